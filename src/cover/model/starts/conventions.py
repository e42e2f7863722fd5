"""The settings of a foreign checkpoint: its network, its pixel statistics, its clips and its classes.

Sizes come from the shapes of the tensors. A configuration file adds settings that shapes do not show. It must not
contradict the shapes.
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

HEAD_WIDTH = 64  # channels of an attention head in every ViT size
# frames of a clip -> frames of a 30 fps video from one frame of the clip to the next (TimeSformer, section 4)
FRAME_STEPS = {8: 32, 16: 16, 96: 4}
LARGEST = 1 << 31  # no setting of a configuration is as large
CLIP_SPAN = 256  # frames of the video that a clip of another length covers, as 8 x 32 and 16 x 16 do
ATTENTION = {"divided_space_time": "divided", "joint_space_time": "joint", "space_only": "space"}  # theirs -> ours
# Key of a configuration -> the values with which the function is that of our network.
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "num_channels": (3,),
    "problem_type": (None, "single_label_classification"),
    "qkv_bias": (True,),
    "global_pool": ("token", ""),
    "do_rescale": (True,),
    "rescale_factor": (1 / 255,),
}
# Arguments of a timm model that its tensors show. Any other argument could change the function without a trace.
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
    """The options of an import. With None or an empty value, the checkpoint and the conventions of its format decide.

    `size` (pixels), `frames`: resize the embeddings. `backbone`: of an image ViT, which both
    families can read. `attention`, `time`: only for image networks. `head`: the name of the
    classifier; `none` leaves it out. `classes`: a file with one class name per line. `sampling`: as in a catalog.
    `unused`: names, or beginnings of names, of tensors that the import leaves out. `key`: the dotted key of the
    dictionary in a pickled file that contains the tensors. `text`: whether the text network of a CLIP or SigLIP 2 is
    imported too.
    """

    size: int | None = None
    frames: int | None = None
    backbone: Literal["timesformer", "vit"] | None = None
    attention: Literal["divided", "joint", "space", "late", "dot_product"] | None = None
    time: Literal["additive", "rotary", "none"] | None = None
    resize: Literal["bicubic", "nearest"] | None = None
    head: str | None = None
    attention_heads: int | None = None
    classes: Path | None = None
    sampling: str | None = None
    unused: tuple[str, ...] = ()
    key: str | None = None
    text: bool = False


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of each colour on a scale from 0 to 1. `origin`: where they come from."""

    mean: Triple
    std: Triple
    origin: str


# --- the network ------------------------------------------------------------------------------------------------------


def network_of(
    source: ForeignCheckpoint, form: ForeignFormat, translation: Translation, options: ImportOptions
) -> TimeSformerConfig:
    """The configuration of a checkpoint's network, at its original size and length.

    Raises `UserError` if it is not a network of this package, or if the files contradict each other.
    """
    width, patch = _patches(translation)
    attention = _attention(form, translation, options)
    time_embed = translation.tensors.get("time_embed")
    frames = _frames_option(source, options) if time_embed is None else _shape(translation, "time_embed", 3)[1]
    config = TimeSformerConfig(
        width=width,
        depth=translation.depth,
        attention_heads=_heads(source, width, options),
        patch=patch,
        size=patch * _grid(translation),
        mlp_ratio=_mlp_ratio(translation, width),
        frames=frames,
        attention=attention,
        time=_time(form, options),
        image_time="first" if form.video else "none",
        resize=options.resize or ("nearest" if form.video else "bicubic"),
        layer_scale=1.0 if "blocks.0.scale1" in translation.tensors else 0.0,
        norm_eps=_number_option(source.config, "layer_norm_eps", form.norm_eps),
    )
    _check_options(source, form, config)
    if width % config.attention_heads or (config.time == "rotary" and width // config.attention_heads % 2):
        raise UserError(f"--attention-heads: a width of {width} does not divide into {config.attention_heads} heads")
    return config


def _shape(translation: Translation, ours: str, count: int) -> tuple[int, ...]:
    """The shape of a tensor. Raises `UserError` if it has not `count` dimensions."""
    shape = tuple(translation.tensors[ours].shape)
    if len(shape) != count:
        raise UserError(f"{translation.source(ours)} is {shape}, and should have {count} dimensions")
    return shape


def _patches(translation: Translation) -> tuple[int, int]:
    """The width and the side of a patch in pixels."""
    width, colours, patch, across = _shape(translation, "patch_embed.weight", 4)
    if colours != 3 or patch != across:
        kernel = f"{translation.source('patch_embed.weight')} takes {colours} colours in patches of {patch} x {across}"
        raise UserError(f"{kernel}; this model has 3 and square ones")
    return width, patch


def _grid(translation: Translation) -> int:
    """The number of patches along a side of a frame."""
    places = _shape(translation, "pos_embed", 3)[1] - 1
    side = math.isqrt(max(places, 0))
    if not side or side * side != places:
        name = translation.source("pos_embed")
        raise UserError(
            f"{name} has {places + 1} entries; those of one class token and of a square of patches are read"
        )
    return side


def _attention(
    form: ForeignFormat, translation: Translation, options: ImportOptions
) -> Literal["divided", "joint", "space"]:
    wanted = options.attention or "divided"
    if wanted not in ("divided", "joint", "space"):
        raise UserError(f"--attention {wanted}: a TimeSformer has none; give --backbone vit too")
    if not form.video:
        return wanted
    attention: Literal["divided", "joint", "space"] = "space"
    if "blocks.0.temporal_fc.weight" in translation.tensors:
        attention = "divided"
    elif "time_embed" in translation.tensors:
        attention = "joint"
    if options.attention not in (None, attention):
        raise UserError(f"--attention {options.attention}: by its tensors this is a network of {attention} attention")
    return attention


def _time(form: ForeignFormat, options: ImportOptions) -> Literal["additive", "rotary"]:
    if form.video and options.time == "rotary":
        raise UserError(
            "--time rotary: a TimeSformer needs the time embedding that it was trained with; rotary is for image ViTs"
        )
    if options.time == "none":
        raise UserError("--time none: a TimeSformer has additive or rotary time; give --backbone vit too")
    return "additive" if form.video else options.time or "rotary"


def _heads(source: ForeignCheckpoint, width: int, options: ImportOptions) -> int:
    """The number of attention heads: no shape of a tensor shows it."""
    arguments = source.config.get("model_args")
    timm = _number_option(arguments, "num_heads", 0) if isinstance(arguments, dict) else 0
    number = int(_number_option(source.config, "num_attention_heads", timm))
    if options.attention_heads and number not in (0, options.attention_heads):
        raise UserError(f"--attention-heads {options.attention_heads}: config.json says {number}")
    if heads := options.attention_heads or number:
        return heads
    if width % HEAD_WIDTH:
        raise UserError(
            f"how many attention heads? a width of {width} is no multiple of {HEAD_WIDTH}; give --attention-heads"
        )
    return width // HEAD_WIDTH


def _mlp_ratio(translation: Translation, width: int) -> float:
    hidden = _shape(translation, "blocks.0.mlp.fc1.weight", 2)[0]
    ratio = hidden / width
    # The network rounds `width * ratio` down, so a ratio with a rounding error would lose one channel.
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _frames_option(source: ForeignCheckpoint, options: ImportOptions) -> int:
    """The number of frames of a clip, if no tensor shows it."""
    return options.frames or int(_number_option(source.config, "num_frames", TimeSformerConfig.frames))


def _number_option(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST:
        raise UserError(f"config.json: {key}: expected a number, got {value!r}")
    return value


def _check_options(source: ForeignCheckpoint, form: ForeignFormat, config: TimeSformerConfig) -> None:
    """Raises `UserError` if `config.json` contradicts the tensors, or if it describes another function."""
    settings = source.config
    for key, value in (*settings.items(), *source.preprocessing.items()):
        if key in ONLY and value not in ONLY[key]:
            raise UserError(f"{key}: {value}: only {' or '.join(map(str, ONLY[key]))} is the function of this model")
    if form is TIMM and (surplus := [key for key in settings.get("model_args") or {} if key not in SHOWN]):
        raise UserError(f"config.json: model_args.{surplus[0]}: unknown here, and could change the function")
    shown: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "image_size": config.size,
        "patch_size": config.patch,
        "intermediate_size": int(config.width * config.mlp_ratio),
        **({"num_frames": config.frames} if config.attention != "space" else {}),
    }
    for key, value in shown.items() if form is not TIMM else ():
        if settings.get(key, value) not in (value, [value, value]):
            raise UserError(f"config.json: {key} is {settings[key]}, but the tensors say {value}")
    kind = str(settings.get("attention_type"))
    if form is TRANSFORMERS_TIMESFORMER and ATTENTION.get(kind, config.attention) != config.attention:
        raise UserError(f"config.json: attention_type is {kind}, but by its tensors it is {config.attention}")


# --- the pixels and the clips -----------------------------------------------------------------------------------------


def pixels_of(source: ForeignCheckpoint, form: ForeignFormat) -> PixelStatistics:
    """Mean and standard deviation from the files beside the weights, or else from the convention of the format.

    Raises `UserError` if a file has no valid numbers.
    """
    if beside := pixels_beside(source):
        return beside
    timm = source.config.get("pretrained_cfg")
    if form is TIMM and isinstance(timm, dict) and {"mean", "std"} <= timm.keys():
        return _pixels(timm, "mean", "std", "config.json: pretrained_cfg.")
    recipe = _recipe_data(source)
    if {"MEAN", "STD"} <= recipe.keys():
        return _pixels(recipe, "MEAN", "STD", "the checkpoint's cfg: DATA.")
    mean, std = (0.45, 0.225) if form.video else (0.5, 0.5)
    convention = "TimeSformer's released settings" if form.video else "the convention of ViT checkpoints"
    return PixelStatistics((mean,) * 3, (std,) * 3, f"no file says it; {convention}")


def pixels_beside(source: ForeignCheckpoint) -> PixelStatistics | None:
    """Mean and standard deviation from the preprocessing file beside the weights; None if there is none.

    Raises `UserError` if the file has no valid numbers.
    """
    if not source.preprocessing:
        return None
    if source.preprocessing.get("do_normalize") is False:
        return PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "do_normalize is false")
    return _pixels(source.preprocessing, "image_mean", "image_std", "the folder's preprocessing: ")


def _pixels(values: Mapping[str, Any], mean: str, std: str, place: str) -> PixelStatistics:
    mean_rgb, std_rgb = (_triple(values.get(key), place + key) for key in (mean, std))
    return PixelStatistics(mean_rgb, std_rgb, place.rstrip(":. "))


def seconds_between_frames(source: ForeignCheckpoint, frames: int, wanted: int) -> float:
    """The interval of dense clips in seconds: `wanted` frames cover the same time as `frames` of the checkpoint."""
    rate = _recipe_data(source).get("SAMPLING_RATE")
    step = rate if isinstance(rate, int | float) and rate > 0 else FRAME_STEPS.get(frames, CLIP_SPAN / frames)
    return step / 30 * frames / wanted


def _recipe_data(source: ForeignCheckpoint) -> dict[str, Any]:
    """The DATA section of the recipe in an official checkpoint; empty if it is absent or cannot be read."""
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
    source: ForeignCheckpoint, form: ForeignFormat, translation: Translation, options: ImportOptions
) -> tuple[tuple[str, ...], str]:
    """The class names of a checkpoint's classifier in the order of its outputs, and where they come from.

    Raises `UserError` if their number differs from the number of outputs.
    """
    count = _shape(translation, f"{HEAD}.weight", 2)[0]
    names, origin = _classes_option(source, form, options)
    if not names:
        names, origin = [f"class {number}" for number in range(count)], "numbered: the checkpoint names no classes"
    if len(names) != count:
        raise UserError(
            f"{origin} has {len(names)} class names, but {translation.source(f'{HEAD}.weight')} has {count} outputs"
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
        names = next((place[key] for place in places for key in ("label_names", "labels") if place.get(key)), None)
        return _in_order(names, "label_names"), "config.json: label_names"
    names = source.config.get("id2label") if form is not OFFICIAL else None
    return _in_order(names, "id2label"), "config.json: id2label"


def _in_order(names: Any, key: str) -> list[str]:
    """Class names from a list, or from a mapping of numbers to names; empty for anything else."""
    if isinstance(names, Mapping):
        try:
            numbered = {int(number): str(name) for number, name in names.items()}
        except ValueError:
            raise UserError(f"config.json: {key}: its keys are no class numbers") from None
        if sorted(numbered) != list(range(len(numbered))):
            raise UserError(f"config.json: {key}: the class numbers do not run from 0 to {len(numbered) - 1}")
        return [numbered[number] for number in range(len(numbered))]
    return [str(name) for name in names] if isinstance(names, Sequence) and not isinstance(names, str) else []


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Make names unique: ImageNet has two classes called "crane", but a class list must not repeat a name."""
    for place, name in enumerate(names):
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(f"the name of class {place}, {name!r}, is no valid text")
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    return tuple(name if first[name] == place else f"{name} ({place})" for place, name in enumerate(names))
