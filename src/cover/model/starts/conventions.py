"""The settings of a foreign checkpoint: its network, its pixels and its classes.

Sizes come from the shapes of the tensors. A configuration beside them adds what shapes do not show, and must not
contradict them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.formats import HEAD, OFFICIAL, TIMM, TRANSFORMERS_TIMESFORMER, ForeignFormat, Translation

HEAD_WIDTH = 64  # of an attention head in every ViT size
# frames of a 30 fps video from one of the clip's to the next (TimeSformer, section 4)
FRAME_STEPS = {8: 32, 16: 16, 96: 4}
CLIP_SPAN = 256  # frames of the video that other lengths are spread over: as 8 x 32 and 16 x 16
ATTENTION = {"divided_space_time": "divided", "joint_space_time": "joint", "space_only": "space"}  # transformers' words
# What a configuration may say, key by key, for the function to be ours.
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "num_channels": (3,),
    "problem_type": (None, "single_label_classification"),
    "qkv_bias": (True,),
    "global_pool": ("token", ""),
    "do_rescale": (True,),
    "rescale_factor": (1 / 255,),
}
# Arguments of a timm model that its tensors show; any other could change the function unseen.
SHOWN = {
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "num_classes",
    "init_values",
    "global_pool",
}

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImportOptions:
    """What can be chosen of an import; None (empty) leaves it to the checkpoint and the conventions of its format.

    `size` (pixels) and `frames` resize the embeddings. `attention` and `time` are open for image ViTs alone. `head`
    names the classifier, `none` leaves it out. `classes`: a file of one class name per line. `sampling` as in a
    catalog. `unused`: tensors left out on purpose, each by its name or the beginning of it.
    """

    size: int | None = None
    frames: int | None = None
    attention: Literal["divided", "joint", "space"] | None = None
    time: Literal["additive", "rotary"] | None = None
    resize: Literal["bicubic", "nearest"] | None = None
    head: str | None = None
    attention_heads: int | None = None
    classes: Path | None = None
    sampling: str | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of pixels in 0..1, and the place that they come from."""

    mean: Triple
    std: Triple
    origin: str


# --- the network ------------------------------------------------------------------------------------------------------


def network_of(
    source: ForeignCheckpoint, form: ForeignFormat, present: Translation, options: ImportOptions
) -> TimeSformerConfig:
    """The network whose tensors `present` are, at the size and length that they have. Raises `UserError`."""
    width, patch = _patches(present)
    attention = _attention(form, present, options)
    time_embed = present.tensors.get("time_embed")
    frames = _frames_option(source, options) if time_embed is None else _sides(present, "time_embed", 3)[1]
    config = TimeSformerConfig(
        width=width,
        depth=present.depth,
        attention_heads=_heads(source, width, options),
        patch=patch,
        size=patch * _grid(present),
        mlp_ratio=_mlp_ratio(present, width),
        frames=frames,
        attention=attention,
        time=_time(form, options),
        image_time="first" if form.video else "none",
        resize=options.resize or ("nearest" if form.video else "bicubic"),
        layer_scale=1.0 if "blocks.0.scale1" in present.tensors else 0.0,
        norm_eps=_number_option(source.config, "layer_norm_eps", form.norm_eps),
    )
    _check_options(source, form, config)
    if width % config.attention_heads or (config.time == "rotary" and width // config.attention_heads % 2):
        raise UserError(f"--attention-heads: a width of {width} does not divide into {config.attention_heads} heads")
    return config


def _sides(present: Translation, ours: str, count: int) -> tuple[int, ...]:
    """The shape of a tensor with so many sides."""
    shape = tuple(present.tensors[ours].shape)
    if len(shape) != count:
        raise UserError(f"{present.source(ours)} is {shape}, and should have {count} sides")
    return shape


def _patches(present: Translation) -> tuple[int, int]:
    width, colours, patch, across = _sides(present, "patch_embed.weight", 4)
    if colours != 3 or patch != across:
        name = present.source("patch_embed.weight")
        raise UserError(
            f"{name} takes {colours} colours in patches of {patch} x {across}; this model has 3 and square ones"
        )
    return width, patch


def _grid(present: Translation) -> int:
    places = _sides(present, "pos_embed", 3)[1] - 1
    side = math.isqrt(max(places, 0))
    if not side or side * side != places:
        raise UserError(
            f"{present.source('pos_embed')} has {places + 1} entries; a class token and a square of patches are read"
        )
    return side


def _attention(
    form: ForeignFormat, present: Translation, options: ImportOptions
) -> Literal["divided", "joint", "space"]:
    if not form.video:
        return options.attention or "divided"
    temporal = "blocks.0.temporal_fc.weight" in present.tensors
    result: Literal["divided", "joint", "space"] = (
        "divided" if temporal else "joint" if "time_embed" in present.tensors else "space"
    )
    if options.attention not in (None, result):
        raise UserError(f"--attention {options.attention}: by its tensors this is a network of {result} attention")
    return result


def _time(form: ForeignFormat, options: ImportOptions) -> Literal["additive", "rotary"]:
    if form.video and options.time == "rotary":
        raise UserError(
            "--time rotary: a TimeSformer tells frames apart by the embedding it was trained with; rotary is for image ViTs"
        )
    return "additive" if form.video else options.time or "rotary"


def _heads(source: ForeignCheckpoint, width: int, options: ImportOptions) -> int:
    arguments = source.config.get("model_args")
    timm = _number_option(arguments, "num_heads", 0) if isinstance(arguments, dict) else 0
    record = int(_number_option(source.config, "num_attention_heads", timm))
    if options.attention_heads and record not in (0, options.attention_heads):
        raise UserError(f"--attention-heads {options.attention_heads}: config.json says {record}")
    if heads := options.attention_heads or record:
        return heads
    if width % HEAD_WIDTH:
        raise UserError(
            f"how many attention heads? a width of {width} is no multiple of {HEAD_WIDTH}; give --attention-heads"
        )
    return width // HEAD_WIDTH


def _mlp_ratio(present: Translation, width: int) -> float:
    hidden = _sides(present, "blocks.0.mlp.fc1.weight", 2)[0]
    ratio = hidden / width
    # the ratio is rounded down again when it is used
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _frames_option(source: ForeignCheckpoint, options: ImportOptions) -> int:
    """The length of a clip where no tensor shows it."""
    return options.frames or int(_number_option(source.config, "num_frames", TimeSformerConfig.frames))


def _number_option(text: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = text.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UserError(f"config.json: {key}: expected a number, got {value!r}")
    return value


def _check_options(source: ForeignCheckpoint, form: ForeignFormat, config: TimeSformerConfig) -> None:
    """Refuse a configuration that says something else than the tensors, or that means another function."""
    record = source.config
    for key, value in (*record.items(), *source.preprocessing.items()):
        if key in ONLY and value not in ONLY[key]:
            raise UserError(f"{key}: {value}: only {' or '.join(map(str, ONLY[key]))} is the function of this model")
    if form is TIMM and (surplus := [key for key in record.get("model_args") or {} if key not in SHOWN]):
        raise UserError(
            f"config.json: model_args.{surplus[0]}: not known here, and could be another function than the tensors show"
        )
    hidden = int(config.width * config.mlp_ratio)
    results: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "image_size": config.size,
        "patch_size": config.patch,
        "intermediate_size": hidden,
        **({"num_frames": config.frames} if config.attention != "space" else {}),
    }
    for key, value in results.items() if form is not TIMM else ():
        if record.get(key, value) not in (value, [value, value]):
            raise UserError(f"config.json: {key} is {record[key]}, but the tensors say {value}")
    if (
        form is TRANSFORMERS_TIMESFORMER
        and ATTENTION.get(str(record.get("attention_type")), config.attention) != config.attention
    ):
        raise UserError(
            f"config.json: attention_type is {record['attention_type']}, but by its tensors it is {config.attention}"
        )


# --- the pixels and the clips -----------------------------------------------------------------------------------------


def pixels_of(source: ForeignCheckpoint, form: ForeignFormat) -> PixelStatistics:
    """Mean and deviation from the files beside the weights, else by the format's convention. Raises `UserError`."""
    record = source.preprocessing
    if record:
        if record.get("do_normalize") is False:
            return PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "do_normalize is false")
        return _pixels(record, "image_mean", "image_std", "the folder's preprocessing: ")
    timm = source.config.get("pretrained_cfg")
    if form is TIMM and isinstance(timm, dict) and {"mean", "std"} <= timm.keys():
        return _pixels(timm, "mean", "std", "config.json: pretrained_cfg.")
    recipe = _recipe_data(source)
    if {"MEAN", "STD"} <= recipe.keys():
        return _pixels(recipe, "MEAN", "STD", "the checkpoint's cfg: DATA.")
    value = (0.45, 0.225) if form.video else (0.5, 0.5)
    whose = "TimeSformer's released settings" if form.video else "the convention of ViT checkpoints"
    return PixelStatistics((value[0],) * 3, (value[1],) * 3, f"no file says it; {whose}")


def _pixels(text: Mapping[str, Any], mean: str, std: str, place: str) -> PixelStatistics:
    return PixelStatistics(
        _triple(text.get(mean), place + mean), _triple(text.get(std), place + std), place.rstrip(":. ")
    )


def seconds_between_frames(source: ForeignCheckpoint, frames: int, wanted: int) -> float:
    """Seconds from one frame of a dense clip to the next: the checkpoint's clip of `frames`, spread over `wanted`
    frames.
    """
    record = _recipe_data(source).get("SAMPLING_RATE")
    step = record if isinstance(record, int | float) and record > 0 else FRAME_STEPS.get(frames, CLIP_SPAN / frames)
    return step / 30 * frames / wanted


def _recipe_data(source: ForeignCheckpoint) -> dict[str, Any]:
    """The DATA section of the recipe in an official checkpoint; empty where there is none that can be read."""
    import yaml

    try:
        tree = yaml.safe_load(source.recipe) if source.recipe else None
    except yaml.YAMLError:
        return {}
    data = tree.get("DATA") if isinstance(tree, dict) else None
    return data if isinstance(data, dict) else {}


def _triple(value: Any, where: str) -> Triple:
    numbers = value if isinstance(value, list | tuple) else [value] * 3
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        raise UserError(f"{where}: expected a number for each of three colours, got {value!r}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


# --- the classes ------------------------------------------------------------------------------------------------------


def classes_of(
    source: ForeignCheckpoint, form: ForeignFormat, present: Translation, options: ImportOptions
) -> tuple[tuple[str, ...], str]:
    """The class names of the checkpoint's classifier in the order of its outputs, and where they come from. Raises
    `UserError`.
    """
    count = _sides(present, f"{HEAD}.weight", 2)[0]
    names, origin = _classes_option(source, form, options)
    if not names:
        names, origin = [f"class {number}" for number in range(count)], "numbered: the checkpoint names no classes"
    if len(names) != count:
        raise UserError(
            f"{origin} has {len(names)} class names, but {present.source(f'{HEAD}.weight')} has {count} outputs"
        )
    return _distinct(names), origin


def _classes_option(source: ForeignCheckpoint, form: ForeignFormat, options: ImportOptions) -> tuple[list[str], str]:
    if options.classes:
        try:
            return options.classes.read_text(encoding="utf-8").splitlines(), options.classes.name
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{options.classes}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if form is TIMM:
        timm = source.config.get("pretrained_cfg")
        places = [source.config, timm if isinstance(timm, dict) else {}]
        record = next((place[key] for place in places for key in ("label_names", "labels") if place.get(key)), None)
        return _in_order(record, "label_names"), "config.json: label_names"
    return _in_order(
        source.config.get("id2label") if form is not OFFICIAL else None, "id2label"
    ), "config.json: id2label"


def _in_order(text: Any, key: str) -> list[str]:
    """Class names from a list, or from a mapping of numbers to names."""
    if isinstance(text, Mapping):
        try:
            numbered = {int(number): str(name) for number, name in text.items()}
        except ValueError:
            raise UserError(f"config.json: {key}: its keys are no class numbers") from None
        if sorted(numbered) != list(range(len(numbered))):
            raise UserError(f"config.json: {key}: the class numbers do not run from 0 to {len(numbered) - 1}")
        return [numbered[number] for number in range(len(numbered))]
    return [str(name) for name in text] if isinstance(text, Sequence) and not isinstance(text, str) else []


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which none comes twice: ImageNet has two cranes, and a class list may not."""
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    return tuple(name if first[name] == place else f"{name} ({place})" for place, name in enumerate(names))
