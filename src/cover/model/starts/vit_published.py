"""Reading the published checkpoints of plain vision transformers: their tensors and their configuration.

`FAMILIES` has what the tensors of a network do not show. A new one is an entry there, and its names, if they are new,
a table in `cover.model.starts.vit_names`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbones.vit import VitConfig
from cover.model.backbones.vit_presets import CLIP_PIXELS, IMAGENET_PIXELS, PRESETS
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.conventions import HEAD_WIDTH, ImportOptions
from cover.model.starts.vit_names import (
    DINOV3_LAYER,
    ENCODER_LAYER,
    FUSED,
    NAMINGS,
    OPENAI,
    SCENIC,
    SELF_ATTN,
    Names,
    Naming,
)

HEAD = "head"  # our name for the only classifier of a foreign checkpoint
# `hidden_act` of transformers -> our activation. SwiGLU is shown by the shapes.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "silu": "gelu",
}


@dataclass(frozen=True)
class Family:
    """What the tensors of a published network do not show.

    `title`: in messages. `model_types`: of transformers. `settings`: fields of the configuration. `hugging`: those of
    transformers, where its function is another. `video`: whether it takes clips. `interval`: seconds between the frames
    of a clip, 0 for equal segments of the video.
    """

    title: str
    model_types: Names = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    hugging: Mapping[str, Any] = field(default_factory=dict)
    video: bool = False
    interval: float = 0.0


_HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
_JOINT = {"attention": "joint", "frames": 16}
FAMILIES: dict[str, Family] = {
    "vit": Family("ViT", ("vit",), _HALF, {"norm_eps": 1e-12}),
    "deit": Family("DeiT", ("deit",), IMAGENET_PIXELS, {"norm_eps": 1e-12}),
    "dinov2": Family("DINOv2", ("dinov2", "dinov2_with_registers"), IMAGENET_PIXELS),
    "dinov3": Family("DINOv3", ("dinov3_vit",), {"norm_eps": 1e-5, "rotary": "halves", "size": 256, **IMAGENET_PIXELS}),
    "clip": Family("CLIP", ("clip", "clip_vision_model"), {"norm_eps": 1e-5, "mlp": "gelu_quick", **CLIP_PIXELS}),
    "siglip": Family("SigLIP", ("siglip", "siglip_vision_model"), {"mlp": "gelu_tanh", **_HALF}),
    "eva02": Family("EVA-02", (), {"rotary": "pairs", "rotary_grid": 16, **CLIP_PIXELS}),
    "videomae": Family(
        "VideoMAE",
        ("videomae",),
        {"position": "sincos", **_JOINT, **IMAGENET_PIXELS},
        # Its last norm has an epsilon of its own, which is not that of the original release.
        {"norm_eps": 1e-12, "pool_eps": 1e-5},
        video=True,
        interval=4 / 30,
    ),
    "umt": Family("UMT", (), {"position": "sincos", **_JOINT, "frames": 8, **IMAGENET_PIXELS}, video=True),
    "vjepa2": Family(
        "V-JEPA 2",
        ("vjepa2",),
        {"rotary": "3d", "size": 256, "probe_heads": 16, "pool_eps": 1e-5, **_JOINT, **IMAGENET_PIXELS},
        {"probe_heads": 0, "pool_eps": 0.0},  # as in the encoder
        video=True,
        interval=4 / 30,
    ),
    "vivit": Family(
        "ViViT",
        ("vivit",),
        {"mlp": "gelu_tanh", **_JOINT, "frames": 32, **_HALF},
        video=True,
        interval=2 / 30,
    ),
    "ijepa": Family("I-JEPA", ("ijepa",), IMAGENET_PIXELS, {"norm_eps": 1e-12}),
}
# Architectures of timm whose function the tensors do not show: rotary positions without parameters, other stems.
OTHER_FUNCTIONS = re.compile(r"rope|_pe_|^beit|relpos|_mci_|hybrid|_r(26|50)_|naflex|samvit")
# What an image ViT has that can become a TimeSformer.
IMAGE_VIT = {"embed.patches", "raw.cls_token", "raw.positions", "norm", HEAD} | {
    f"blocks.0.{part}" for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "scale1", "scale2")
}
MODEL_TYPES = {kind: key for key, family in FAMILIES.items() for kind in family.model_types}


@dataclass(frozen=True)
class Published:
    """The tensors of a checkpoint under our names.

    `tensors`: our name -> tensor; the classifier is `head`. `sources`: our name -> the names in the file. `unused`:
    name in the file -> why it is no part of the network. `heads`: attention heads that shapes show, by module.
    """

    naming: Naming
    family: str
    tensors: dict[str, Tensor]
    sources: dict[str, Names]
    unused: dict[str, str]
    heads: dict[str, int]


def is_published_vit(checkpoint: ForeignCheckpoint, options: ImportOptions) -> bool:
    """Whether the checkpoint is read as a plain vision transformer, and not as a TimeSformer or its image ViT."""
    if checkpoint.wrapping == "model_state" or options.backbone == "timesformer":  # TimeSformer's own releases
        return False
    kind = checkpoint.config.get("model_type")
    naming = _naming(checkpoint.tensors)
    if naming is None or (kind is not None and kind not in MODEL_TYPES):
        return False
    bare = _by_bare_name(naming, checkpoint.tensors)
    if any(".temporal_" in name for name in bare) or "time_embed" in bare:
        return False
    if options.backbone == "vit" or kind not in (None, "vit"):
        return True
    # Image ViTs become TimeSformers, unless they have a part that a TimeSformer lacks.
    if naming not in (FUSED, ENCODER_LAYER) or _family(naming, set(bare), checkpoint) != "vit":
        return True
    first = {name: file for name, file in bare.items() if "blocks." not in name or ".0." in name}
    names = {re.sub(r"\.(weight|bias)$", "", ours) for ours in _rows_of(naming, set(first), 1)}
    return not names <= IMAGE_VIT or "raw.cls_token" not in names


def published(checkpoint: ForeignCheckpoint, unused: Names) -> Published:
    """The tensors of a checkpoint under our names. Raises `UserError` for a tensor that is no part of the network."""
    left_out = {name: "named with --unused" for name in checkpoint.tensors if unused and name.startswith(unused)}
    state = {name: value for name, value in checkpoint.tensors.items() if name not in left_out}
    heads: dict[str, int] = {}
    flax: dict[str, str] = {}
    if any(name.endswith("/kernel") for name in state):
        state, heads, flax = _from_flax(state)
    naming = _naming(state)
    if naming is None:
        raise UserError("its tensor names are of no known plain vision transformer")
    bare = _by_bare_name(naming, state)
    family = _family(naming, set(bare), checkpoint)
    for name, file in bare.items():
        why = next((why for beginning, why in naming.unused.items() if name.startswith(beginning)), None)
        if why is not None and file not in left_out:
            left_out[file] = why
    only = naming.only and any(name.startswith(naming.only) for name in state)
    left_out |= {name: "of another network in the file" for name in state if only and not name.startswith(naming.only)}
    usable = {name: file for name, file in bare.items() if file not in left_out}
    tensors, sources = _renamed(naming, usable, state)
    if strangers := [file for file in usable.values() if not any(file in names for names in sources.values())]:
        more = f" (and {len(strangers) - 1} more)" if strangers[1:] else ""
        unexpected = f"unexpected tensor {strangers[0]}{more}: no part of {FAMILIES[family].title} ({naming.title})"
        raise UserError(f"{unexpected}; to leave it out: --unused {strangers[0]}")
    _adapt(tensors, sources)
    sources = {ours: tuple(flax.get(name, name) for name in names) for ours, names in sources.items()}
    return Published(naming, family, tensors, sources, left_out, heads)


# --- names ------------------------------------------------------------------------------------------------------------


def _naming(state: Mapping[str, Any]) -> Naming | None:
    """The table of names that a state dict has; None if it has none of them."""
    flax = any(name.endswith("/kernel") for name in state)
    names = {re.sub(r"/scale$", ".weight", name) for name in state} if flax else set(state)
    for naming in NAMINGS:
        if any(_bare(name, naming) in naming.marks for name in names):
            return naming
    return None


def _bare(name: str, naming: Naming) -> str:
    """A name in the file without its prefixes."""
    while prefix := next((prefix for prefix in naming.prefixes if name.startswith(prefix)), ""):
        if name.startswith(naming.blocks) or name in naming.marks:
            break  # `encoder.layer` is a block here and a prefix elsewhere
        name = name.removeprefix(prefix)
    return name


def _by_bare_name(naming: Naming, state: Mapping[str, Any]) -> dict[str, str]:
    """Name without prefixes -> name in the file."""
    only = naming.only and any(name.startswith(naming.only) for name in state)
    files: dict[str, str] = {}
    for name in state:
        if only and not name.startswith(naming.only):
            continue
        bare = _bare(name, naming)
        if bare in files:
            raise UserError(f"{files[bare]} and {name} are the same tensor twice")
        files[bare] = name
    return files


def _family(naming: Naming, bare: set[str], checkpoint: ForeignCheckpoint) -> str:
    """The key of the family in `FAMILIES`, from `config.json` or from parts that only it has."""
    kind = checkpoint.config.get("model_type")
    if naming in (ENCODER_LAYER, SELF_ATTN, DINOV3_LAYER):
        if kind not in MODEL_TYPES:
            known = ", ".join(sorted(MODEL_TYPES))
            raise UserError(
                f"{naming.title} by its tensors, and config.json names no known model_type (known: {known}); "
                "give the folder with both"
            )
        return MODEL_TYPES[kind]
    if naming is not FUSED:
        return {OPENAI.title: "clip", SCENIC.title: "vivit"}[naming.title]
    kernel = checkpoint.tensors.get(
        next((name for name in checkpoint.tensors if name.endswith("embed.proj.weight")), "")
    )
    if kernel is not None and kernel.ndim == 5:
        if "blocks.0.attn.qkv.bias" in bare:
            return "vjepa2"
        return "umt" if kernel.shape[2] == 1 else "videomae"
    architecture = str(checkpoint.config.get("architecture", ""))
    if OTHER_FUNCTIONS.search(architecture):  # timm has it under the names of a ViT
        raise UserError(f"config.json: architecture {architecture}: no network that is known here")
    if "rope_embed.periods" in bare or ("reg_token" in bare and "pos_embed" not in bare):
        return "dinov3"
    if "blocks.0.attn.q_bias" in bare and _is_gated(checkpoint.tensors):  # the small sizes
        return "eva02"
    shown = {
        "blocks.0.mlp.fc1_g.weight": "eva02",
        "attn_pool.latent": "siglip",
        "norm_pre.weight": "clip",
        "reg_token": "dinov2",
        "register_tokens": "dinov2",
        "mask_token": "dinov2",
        "dist_token": "deit",
    }
    return next((key for name, key in shown.items() if name in bare), "vit")


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the first layer of an MLP has a gate beside its hidden values."""
    first, second = (
        next((value for name, value in state.items() if name.endswith(f"blocks.0.mlp.fc{n}.weight")), None)
        for n in (1, 2)
    )
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[-1]


def _renamed(
    naming: Naming, bare: Mapping[str, str], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Names]]:
    """Our name -> tensor, and our name -> its names in the file, by the rows of a table."""
    pattern = re.compile(re.escape(naming.blocks) + r"(\d+)[./]")
    depth = 1 + max((int(match[1]) for name in bare if (match := pattern.search(name))), default=-1)
    if depth > len(bare):
        raise UserError(f"a block has the number {depth - 1}, and there are {len(bare)} tensors in all")
    rows = _rows_of(naming, set(bare), depth)
    sources = {ours: tuple(bare[name] for name in theirs) for ours, theirs in rows.items()}
    return {ours: _stacked([state[name] for name in names], names) for ours, names in sources.items()}, sources


def _rows_of(naming: Naming, bare: set[str], depth: int) -> dict[str, Names]:
    """Our name -> the names that form it, of those in the file."""
    rows: dict[str, Names] = {}
    used: set[str] = set()
    for row, names in naming.rows:
        for block in range(depth) if "{}" in row else (0,):
            ours, theirs = row.format(block), tuple(name.format(block) for name in names)
            if ours not in rows and all(name in bare and name not in used for name in theirs):
                used.update(theirs)
                rows[ours] = theirs
    return rows


def _stacked(parts: list[Tensor], names: Names) -> Tensor:
    if any(not part.is_floating_point() for part in parts):
        raise UserError(f"{names[0]} holds {parts[0].dtype}, no floating-point numbers")
    if len(parts) > 1 and (not parts[0].ndim or len({part.shape[1:] for part in parts}) > 1):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise UserError(f"{' and '.join(names)} have shapes that do not fit each other: {shapes}")
    return torch.cat([part.float() for part in parts]) if len(parts) > 1 else parts[0].float()


def _from_flax(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int], dict[str, str]]:
    """The tensors of a flax network, named with `/`, with the names and layouts of PyTorch's layers.

    Also the attention heads by module, and the flax name of every new name.
    """
    out: dict[str, Tensor] = {}
    heads: dict[str, int] = {}
    names: dict[str, str] = {}
    for name, value in state.items():
        module, _, last = name.rpartition("/")
        part = module.rpartition("/")[2]
        if part in ("query", "key", "value") and last == "kernel":
            heads[module.split("/")[0]] = value.shape[1]
        kind = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}.get(last)
        new = name if kind is None else module + kind
        out[new], names[new] = _torch_layout(value, part, last), name
    return out, heads, names


def _torch_layout(value: Tensor, part: str, last: str) -> Tensor:
    """A tensor of the flax module `part` in PyTorch's layout."""
    if last == "bias":
        return value.flatten()
    if last != "kernel":
        return value
    if part in ("query", "key", "value"):  # (inputs, heads, d)
        value = value.flatten(1)
    if part == "out":  # (heads, d, outputs)
        value = value.flatten(0, 1)
    # (inputs, outputs) of a layer, (places, inputs, outputs) of a convolution
    return value.permute(-1, -2, *range(value.ndim - 2))


# --- tensors that other releases lay out in another way ---------------------------------------------------------------


def _adapt(tensors: dict[str, Tensor], sources: dict[str, Names]) -> None:
    """Change the tensors whose names begin with `raw.`, and those of other shapes, in place."""

    def take(raw: str) -> Tensor | None:
        return tensors.pop(f"raw.{raw}", None)

    def put(ours: str, value: Tensor, *raw: str) -> None:
        tensors[ours] = value
        own = sources.pop(ours, ())
        sources[ours] = own + tuple(name for part in raw for name in sources.get(f"raw.{part}", ()))

    kernel = tensors.get("embed.patches.weight")
    if kernel is not None and kernel.ndim == 5 and kernel.shape[2] == 1:
        tensors["embed.patches.weight"] = kernel.squeeze(2)
    for name in ("cls_token", "dist_token", "reg_tokens"):
        if (token := take(name)) is not None:
            put(f"embed.{name}", token.reshape(-1, token.shape[-1]), name)
    for name, ours in (("pool.query", "pool.query"), ("late.cls_token", "late.cls_token")):
        if (token := take(name)) is not None:
            put(ours, token.reshape(1, -1), name)
    if (table := take("late.pos_embed")) is not None:
        put("late.pos_embed", table.reshape(-1, table.shape[-1]), "late.pos_embed")
    for kind in ("weight", "bias"):
        if (both := take(f"pool.in_proj.{kind}")) is not None:
            query, keys = both.split([len(both) // 3, 2 * (len(both) // 3)])
            put(f"pool.attn.q.{kind}", query, f"pool.in_proj.{kind}")
            put(f"pool.attn.kv.{kind}", keys, f"pool.in_proj.{kind}")
    _masked_biases(tensors, sources, put)
    weight, bias = take("head_dist.weight"), take("head_dist.bias")
    if weight is not None and bias is not None:  # the mean of the logits of the two heads
        put("head.weight", torch.cat([tensors["head.weight"], weight], 1) / 2, "head_dist.weight")
        put("head.bias", (tensors["head.bias"] + bias) / 2, "head_dist.bias")
    for name in [name for name in sources if name.startswith("raw.") and name != "raw.positions"]:
        del sources[name]


def _masked_biases(tensors: dict[str, Tensor], sources: dict[str, Names], put: Any) -> None:
    """Biases of queries, keys and values with a mask that is zero for the keys (DINOv3's released files)."""
    for name in [name for name in tensors if name.startswith("raw.bias_mask.")]:
        block, mask = name.rpartition(".")[2], tensors.pop(name)
        bias = tensors.pop(f"blocks.{block}.attn.qkv.bias")
        wanted = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(len(bias) // 3)
        if not torch.equal(mask, wanted):
            raise UserError(f"{sources[name][0]}: is not one for queries and values and zero for keys")
        theirs = sources.pop(f"blocks.{block}.attn.qkv.bias")
        for letter, part in zip("qv", (bias.chunk(3)[0], bias.chunk(3)[2])):
            sources[f"blocks.{block}.attn.{letter}_bias"] = theirs
            put(f"blocks.{block}.attn.{letter}_bias", part, f"bias_mask.{block}")


# --- the configuration ------------------------------------------------------------------------------------------------


def config_of(checkpoint: ForeignCheckpoint, found: Published, options: ImportOptions) -> VitConfig:
    """The configuration of the network, and its table of positions in our layout, at its own size and length.

    Raises `UserError` if the tensors are of no network of this family, or contradict `config.json`.
    """
    tensors, family, settings = found.tensors, FAMILIES[found.family], _settings(checkpoint)
    for ours in ("embed.patches.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"):
        if ours not in tensors:
            theirs = next(names for name, names in found.naming.rows if name == ours.replace("blocks.0", "blocks.{}"))
            raise UserError(f"the tensor {theirs[0].format(0)} is missing")
    kernel, first = tensors["embed.patches.weight"], tensors["blocks.0.mlp.fc1.weight"]
    if kernel.ndim not in (4, 5) or kernel.shape[1] != 3 or kernel.shape[-1] != kernel.shape[-2]:
        raise UserError(
            f"{found.sources['embed.patches.weight'][0]} is {tuple(kernel.shape)}: no square patches of 3 colours"
        )
    hidden = tensors["blocks.0.mlp.fc2.weight"].shape[1]
    known = {**family.settings, **(family.hugging if checkpoint.config.get("model_type") else {})}
    shown: dict[str, Any] = {
        **known,
        "width": kernel.shape[0],
        "depth": 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        "hidden": hidden,
        "patch": kernel.shape[-1],
        "tubelet": kernel.shape[2] if kernel.ndim == 5 else 1,
        "patch_bias": "embed.patches.bias" in tensors,
        "class_token": "embed.cls_token" in tensors,
        "distillation": "embed.dist_token" in tensors,
        "registers": len(tensors.get("embed.reg_tokens", ())),
        "entry_norm": "embed.norm.weight" in tensors,
        "mlp_norm": "blocks.0.mlp.norm.weight" in tensors,
        "layer_scale": 1.0 if "blocks.0.scale1" in tensors else 0.0,
        "qkv_bias": "qv"
        if "blocks.0.attn.q_bias" in tensors
        else "all"
        if "blocks.0.attn.qkv.bias" in tensors
        else "none",
        "norm_eps": float(settings.get("layer_norm_eps", known.get("norm_eps", 1e-6))),
        **_activation(checkpoint, found, settings, first.shape[0] == 2 * hidden),
        **_time(found, family, options),
        **_learner(found),
    }
    shown |= (
        _pooling(checkpoint, found, shown) | _heads(found, settings, shown, options) | _places(found, settings, shown)
    )
    try:
        config = VitConfig(**shown)
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_settings(checkpoint, settings, config)
    return config


def _settings(checkpoint: ForeignCheckpoint) -> dict[str, Any]:
    """The settings of `config.json`, under the names of transformers' vision models."""
    config = checkpoint.config
    vision = config.get("vision_config")
    settings = dict(vision if isinstance(vision, dict) else config)
    arguments, pretrained = config.get("model_args"), config.get("pretrained_cfg")
    if isinstance(arguments, dict):
        theirs = {"num_heads": "num_attention_heads", "img_size": "image_size"}
        settings |= {ours: arguments[name] for name, ours in theirs.items() if name in arguments}
    if isinstance(pretrained, dict) and isinstance(pretrained.get("input_size"), list):
        settings.setdefault("image_size", pretrained["input_size"][-1])
    for name, ours in (("crop_size", "image_size"), ("frames_per_clip", "num_frames")):
        if name in settings:
            settings.setdefault(ours, settings[name])
    return settings


def _activation(
    checkpoint: ForeignCheckpoint, found: Published, settings: dict[str, Any], gated: bool
) -> dict[str, str]:
    if gated:
        return {"mlp": "swiglu"}
    if "hidden_act" in settings:
        if settings["hidden_act"] not in ACTIVATIONS:
            raise UserError(f"hidden_act: {settings['hidden_act']}: only {', '.join(ACTIVATIONS)} are known")
        return {"mlp": ACTIVATIONS[settings["hidden_act"]]}
    if found.family == "clip" and found.naming is FUSED:  # timm has both under the same names
        architecture = str(checkpoint.config.get("architecture", ""))
        if not architecture:
            raise UserError("CLIP in timm's names, and no config.json says which activation; give the folder with both")
        return {"mlp": "gelu_quick" if "quickgelu" in architecture else "gelu"}
    if found.family == "siglip" and found.naming is FUSED:  # timm's function, but for its largest networks
        architecture = str(checkpoint.config.get("architecture", ""))
        return {"mlp": "gelu_tanh" if re.search("large_patch16_siglip_512|giantopt", architecture) else "gelu"}
    return {"mlp": str(FAMILIES[found.family].settings.get("mlp", "gelu"))}


def _time(found: Published, family: Family, options: ImportOptions) -> dict[str, Any]:
    """The fields of attention over time."""
    tensors, attention = found.tensors, "joint"
    time: dict[str, Any] = {"time": "none"}
    if not family.video:
        attention = options.attention or "space"
        time["time"] = options.time or ("rotary" if attention == "divided" else "none")
        return {"attention": attention, "frames": options.frames or 8, **time}
    if "late.norm.weight" in tensors:
        attention, time["late_pool"] = "late", "class" if "late.cls_token" in tensors else "mean"
        blocks = {name.split(".")[2] for name in tensors if name.startswith("late.blocks.")}
        time |= {"late_depth": len(blocks), "late_hidden": tensors["late.blocks.0.mlp.fc1.weight"].shape[0]}
    elif "blocks.0.temporal_norm.weight" in tensors:
        attention = "divided"
    elif any(name.startswith("SpatialTransformer") for names in found.sources.values() for name in names):
        attention = "space"
    elif options.attention == "dot_product":  # ViViT's models 1 and 4 have the same tensors
        attention = "dot_product"
    if options.attention not in (None, attention):
        raise UserError(f"--attention {options.attention}: by its tensors this is a network of {attention} attention")
    return {"attention": attention, **time}


def _learner(found: Published) -> dict[str, Any]:
    """TokenLearner. Without a fuser no tensor shows where it is; half of the blocks come before it (section 4)."""
    learner = "learning.learners.0"
    last = found.tensors.get(f"{learner}.fc2.weight", found.tensors.get(f"{learner}.convs.3.weight"))
    if last is None:
        return {}
    depth = 1 + max(int(name.split(".")[1]) for name in found.tensors if name.startswith("blocks."))
    fusers = {name.split(".")[2] for name in found.tensors if name.startswith("learning.fusers.")}
    version = "v1.0" if last.ndim == 4 else "v1.1"
    after = depth - len(fusers) if fusers else depth // 2
    return {"learned_tokens": last.shape[0], "learner": version, "learner_after": after, "fuser": bool(fusers)}


def _pooling(checkpoint: ForeignCheckpoint, found: Published, shown: dict[str, Any]) -> dict[str, Any]:
    """The pooling of a sequence, from the tensors after the blocks."""
    tensors, source = found.tensors, found.sources.get("norm.weight", ("",))[0]
    if "pool.norm1.weight" in tensors:
        blocks = {name.split(".")[2] for name in tensors if name.startswith("pool.blocks.")}
        return {"pool": "attentive", "probe_depth": len(blocks)}
    if "pool.query" in tensors:
        return {"pool": "probe"}
    named = {"avg": "mean", "token": "class"}.get(str(checkpoint.config.get("global_pool")))  # timm
    if named and "fc_norm" not in source and not shown["distillation"]:
        return {"pool": named}
    if "fc_norm" in source or not source:
        return {"pool": "mean_norm"}
    head = tensors.get("head.weight")
    if shown["distillation"] and (head is None or head.shape[1] == 2 * shown["width"]):
        return {"pool": "class_distillation"}
    if found.family == "dinov2" and head is not None and head.shape[1] == 2 * shown["width"]:
        return {"pool": "class_mean"}
    # VideoMAE has a mode that reads its first token, although that is a patch.
    first = shown["class_token"] or (found.family == "videomae" and head is not None)
    return {"pool": "class" if first else "mean"}


def _heads(found: Published, settings: dict[str, Any], shown: dict[str, Any], options: ImportOptions) -> dict[str, Any]:
    """The numbers of attention heads: no shape of a PyTorch tensor shows them."""
    width = shown["width"]
    own = found.heads.get("Transformer") or found.heads.get("SpatialTransformer")
    number = int(settings.get("num_attention_heads") or own or 0)
    if options.attention_heads and number not in (0, options.attention_heads):
        raise UserError(f"--attention-heads {options.attention_heads}: config.json says {number}")
    number = options.attention_heads or number
    if not number:
        shape = {name: shown[name] for name in ("width", "depth", "hidden")}
        presets = (p for p in PRESETS.values() if all(p[name] == value for name, value in shape.items()))
        number = next((preset["attention_heads"] for preset in presets), width // HEAD_WIDTH)
    if not number or width % number:
        raise UserError(f"how many attention heads? a width of {width} does not show it; give --attention-heads")
    late = {"late_heads": found.heads["TemporalTransformer"]} if "TemporalTransformer" in found.heads else {}
    return {"attention_heads": number, **late}


def _places(found: Published, settings: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """Size, frames and positions. The table of positions gets our layout."""
    family, patch, tubelet = FAMILIES[found.family], shown["patch"], shown["tubelet"]
    frames = int(settings.get("num_frames", shown.get("frames", 8)))
    table = found.tensors.pop("raw.positions", None)
    sources = found.sources.pop("raw.positions", ())
    own = int(_side(settings.get("image_size"), shown.get("size", 224)))
    if table is None:
        fixed = shown.get("position", "none")
        size = own - own % patch
        # The fixed table of a fine-tuned network is for its own grid; the common one is for 8 x 14 x 14.
        grid = (max(1, frames // tubelet), size // patch, size // patch) if fixed == "sincos" else ()
        return {"position": fixed, "position_grid": grid, "size": size, "frames": frames}
    table = table.reshape(-1, table.shape[-1])
    joint = family.video and shown["attention"] in ("joint", "divided", "dot_product")
    slots = max(1, frames // tubelet) if joint else 1
    before = shown["class_token"] + shown["distillation"]
    for count in dict.fromkeys((before, 0)):
        side = math.isqrt((len(table) - count) // slots)
        if side and side * side * slots == len(table) - count:
            break
    else:
        places = f"{len(table)} entries: no square of patches with {before} tokens before them"
        raise UserError(f"{sources[0]} has {places}{f', for {slots} slots of {tubelet} frames' if joint else ''}")
    found.tensors["embed.pos_embed"] = table[count:].reshape(slots, side, side, -1)
    found.sources["embed.pos_embed"] = sources
    if count:
        found.tensors["embed.pos_before"], found.sources["embed.pos_before"] = table[:count], sources
    kind = "learned_joint" if joint else "learned"
    positioned = None if count == before else count
    return {"position": kind, "positioned": positioned, "size": side * patch, "frames": frames}


def _side(value: Any, default: int) -> int:
    side = value[0] if isinstance(value, list | tuple) and value else value
    return int(side) if isinstance(side, int | float) and side > 0 else default


def _check_settings(checkpoint: ForeignCheckpoint, settings: dict[str, Any], config: VitConfig) -> None:
    """Raises `UserError` if `config.json` contradicts the tensors, or describes another function."""
    gated = config.mlp == "swiglu"
    values: dict[str, tuple[Any, ...]] = {
        "num_channels": (3,),
        "hidden_size": (config.width,),
        "num_hidden_layers": (config.depth,),
        "patch_size": (config.patch, [config.patch] * 2),
        "tubelet_size": (config.tubelet, [config.tubelet, config.patch, config.patch]),
        "rope_theta": (100.0,),
        "problem_type": (None, "single_label_classification"),
        "do_rescale": (True,),
        "rescale_factor": (1 / 255,),
        **({} if gated else {"intermediate_size": (config.hidden,)}),
    }
    side = _side(settings.get("image_size"), config.size)
    if side // config.patch != config.size // config.patch:  # the rest of a side that no patch covers is not read
        raise UserError(f"config.json: image_size is {side}, but the table of positions is for {config.size} px")
    for key, value in (*settings.items(), *checkpoint.preprocessing.items()):
        if key in values and value not in values[key] and not (key == "patch_size" and isinstance(value, list)):
            wanted = " or ".join(map(str, values[key][:1]))
            raise UserError(f"config.json: {key} is {value}, but the network of the tensors has {wanted}")


def resized(config: VitConfig, options: ImportOptions) -> VitConfig:
    """The configuration at the size and length of the options. Raises `UserError`."""
    size, frames = options.size or config.size, options.frames or config.frames
    if size % config.patch:
        raise UserError(f"--size {size} is not a multiple of the patch, {config.patch} px")
    if frames > 1 and frames % config.tubelet:
        raise UserError(f"--frames {frames} is not a multiple of the tubelet, {config.tubelet} frames")
    return replace(config, size=size, frames=frames)
