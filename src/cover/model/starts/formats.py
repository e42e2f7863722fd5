"""The names of tensors in the checkpoints of other libraries, one table for each format.

Our names are those of a TimeSformer backbone. Imports and exports use the same tables. No tensor is dropped silently:
`Translation.strangers` lists the tensors that a table lacks, and the caller refuses them or leaves them out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cover.errors import UserError

Names = tuple[str, ...]  # foreign tensors that form one of our tensors, concatenated along the first axis
HEAD = "head"  # our name for the only classifier of a foreign checkpoint
# Modules that wrap others under DDP, torch.compile, FSDP and activation checkpointing, or that training scripts add.
_ANYWHERE = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
WRAPPERS = ("module.", "model.", "network.", "net.", "backbone.")
# Parts of names of tensors that belong to another function, which leaving them out does not give.
OTHER_FUNCTIONS = {
    r"dist_token|head_dist|distillation_token|distillation_classifier": "a distilled network reads a second token",
    r"fc_norm": "its classifier reads the mean of the patches and not the class token",
    r"reg_token|register_tokens": "its network reads register tokens",
    r"q_norm|k_norm": "its attention normalises queries and keys",
    r"rel_pos\w*|relative_position\w*|rel_pos_bias": "its attention has relative positions",
    r"norm_pre|pre_layrnorm": "its network has a norm before the first block",
    r"attn_pool|attention_pool": "its classifier reads an attention over the patches",
    r"w12|w3": "its MLP has a gate",
}
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?)\.(\d+)\.")


@dataclass(frozen=True)
class ForeignFormat:
    """The tensor names of one library.

    `title`: its name in messages. `mark`: a tensor that every checkpoint of the format has. `video`: whether its
    networks take clips. `prefixes`: prefixes that a name may have, besides `WRAPPERS`. `tensors`, `layers`: our name ->
    their name, where `{}` is the number of a block; a layer has a weight and a bias. `norm_eps`: the epsilon of the
    norms if no configuration says it.
    """

    title: str
    mark: str
    video: bool
    prefixes: Names
    tensors: Mapping[str, str]
    layers: Mapping[str, str | Names]
    norm_eps: float = 1e-6

    def names(self, depth: int) -> dict[str, Names]:
        """Our name -> their names, for every tensor that a network of `depth` blocks can have."""
        single: dict[str, Names] = {ours: (theirs,) for ours, theirs in self.tensors.items()}
        for ours, theirs in self.layers.items():
            parts = (theirs,) if isinstance(theirs, str) else theirs
            single |= {f"{ours}.{kind}": tuple(f"{part}.{kind}" for part in parts) for kind in ("weight", "bias")}
        return {
            ours.format(block): tuple(part.format(block) for part in theirs)
            for ours, theirs in single.items()
            for block in (range(depth) if "{}" in ours else [0])
        }


_OWN = (
    "blocks.{}.norm1",
    "blocks.{}.attn.qkv",
    "blocks.{}.attn.proj",
    "blocks.{}.norm2",
    "blocks.{}.mlp.fc1",
    "blocks.{}.mlp.fc2",
)
_TIMM = {"patch_embed": "patch_embed.proj", "norm": "norm", HEAD: "head", **{name: name for name in _OWN}}
_HUGGING_TENSORS = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
_HUGGING = {"patch_embed": "embeddings.patch_embeddings.projection", "norm": "layernorm", HEAD: "classifier"}

TIMM = ForeignFormat(
    "timm ViT",
    "blocks.0.attn.qkv.weight",
    video=False,
    prefixes=(),
    tensors={
        "cls_token": "cls_token",
        "pos_embed": "pos_embed",
        "blocks.{}.scale1": "blocks.{}.ls1.gamma",
        "blocks.{}.scale2": "blocks.{}.ls2.gamma",
    },
    layers=_TIMM,
)
OFFICIAL = ForeignFormat(
    "official TimeSformer",
    "blocks.0.attn.qkv.weight",
    video=True,
    prefixes=(),
    tensors={"cls_token": "cls_token", "pos_embed": "pos_embed", "time_embed": "time_embed"},
    layers={
        **_TIMM,
        "blocks.{}.temporal_norm": "blocks.{}.temporal_norm1",
        "blocks.{}.temporal_attn.qkv": "blocks.{}.temporal_attn.qkv",
        "blocks.{}.temporal_attn.proj": "blocks.{}.temporal_attn.proj",
        "blocks.{}.temporal_fc": "blocks.{}.temporal_fc",
    },
)
TRANSFORMERS_TIMESFORMER = ForeignFormat(
    "transformers TimeSformer",
    "encoder.layer.0.attention.attention.qkv.weight",
    video=True,
    prefixes=("timesformer.",),
    tensors={**_HUGGING_TENSORS, "time_embed": "embeddings.time_embeddings"},
    layers={
        **_HUGGING,
        "blocks.{}.temporal_norm": "encoder.layer.{}.temporal_layernorm",
        "blocks.{}.temporal_attn.qkv": "encoder.layer.{}.temporal_attention.attention.qkv",
        "blocks.{}.temporal_attn.proj": "encoder.layer.{}.temporal_attention.output.dense",
        "blocks.{}.temporal_fc": "encoder.layer.{}.temporal_dense",
        "blocks.{}.norm1": "encoder.layer.{}.layernorm_before",
        "blocks.{}.attn.qkv": "encoder.layer.{}.attention.attention.qkv",
        "blocks.{}.attn.proj": "encoder.layer.{}.attention.output.dense",
        "blocks.{}.norm2": "encoder.layer.{}.layernorm_after",
        "blocks.{}.mlp.fc1": "encoder.layer.{}.intermediate.dense",
        "blocks.{}.mlp.fc2": "encoder.layer.{}.output.dense",
    },
)
TRANSFORMERS_VIT = ForeignFormat(
    "transformers ViT",
    "encoder.layer.0.attention.attention.query.weight",
    video=False,
    prefixes=("vit.",),
    norm_eps=1e-12,
    tensors=_HUGGING_TENSORS,
    layers={
        **_HUGGING,
        "blocks.{}.norm1": "encoder.layer.{}.layernorm_before",
        "blocks.{}.attn.qkv": tuple(
            f"encoder.layer.{{}}.attention.attention.{part}" for part in ("query", "key", "value")
        ),
        "blocks.{}.attn.proj": "encoder.layer.{}.attention.output.dense",
        "blocks.{}.norm2": "encoder.layer.{}.layernorm_after",
        "blocks.{}.mlp.fc1": "encoder.layer.{}.intermediate.dense",
        "blocks.{}.mlp.fc2": "encoder.layer.{}.output.dense",
    },
)
# The names of modules in transformers 5. It saves files with the older names, but a state dict of a module has these.
TRANSFORMERS_VIT_5 = ForeignFormat(
    "transformers ViT",
    "layers.0.attention.q_proj.weight",
    video=False,
    prefixes=("vit.",),
    norm_eps=1e-12,
    tensors=_HUGGING_TENSORS,
    layers={
        **_HUGGING,
        "blocks.{}.norm1": "layers.{}.layernorm_before",
        "blocks.{}.attn.qkv": tuple(f"layers.{{}}.attention.{letter}_proj" for letter in "qkv"),
        "blocks.{}.attn.proj": "layers.{}.attention.o_proj",
        "blocks.{}.norm2": "layers.{}.layernorm_after",
        "blocks.{}.mlp.fc1": "layers.{}.mlp.fc1",
        "blocks.{}.mlp.fc2": "layers.{}.mlp.fc2",
    },
)
FORMATS = (TRANSFORMERS_TIMESFORMER, TRANSFORMERS_VIT, TRANSFORMERS_VIT_5, OFFICIAL, TIMM)


@dataclass(frozen=True)
class Translation:
    """A checkpoint under our names.

    `tensors`: our name -> tensor. `sources`: our name -> the names in the file. `depth`: number of blocks. `strangers`:
    names in the file that the format does not have.
    """

    tensors: dict[str, Tensor]
    sources: dict[str, Names]
    depth: int
    strangers: Names

    def source(self, ours: str) -> str:
        """The name in the file of one of our tensors; the first if there are several."""
        return self.sources[ours][0]


def recognise(names: Iterable[str], official: bool) -> ForeignFormat:
    """The format of a checkpoint, from its tensor names. Raises `UserError` if none fits.

    `official`: whether the tensors were under the wrapping key of TimeSformer's release. A TimeSformer with `space`
    attention has the same names as a timm ViT, so only this key distinguishes them.
    """
    names = list(names)
    for form in FORMATS:
        bare = {_bare(name, form) for name in names}
        if form.mark not in bare:
            continue
        if form is OFFICIAL and not (official or any(".temporal_" in name or name == "time_embed" for name in bare)):
            continue
        return form
    shown = ", ".join(sorted(names)[:3]) or "none"
    titles = ", ".join(sorted({form.title for form in FORMATS}))
    prefixes = ", ".join(sorted({*WRAPPERS, "_orig_mod.", *(prefix for form in FORMATS for prefix in form.prefixes)}))
    raise UserError(
        f"its tensor names ({shown}, ...) are of no known format, also without prefixes such as {prefixes}; "
        f"known: {titles}"
    )


def translate(form: ForeignFormat, state: Mapping[str, Tensor]) -> Translation:
    """Rename the tensors of `state` to our names; the classifier becomes `head`.

    Raises `UserError` if some parts of a concatenated tensor are missing or have other shapes.
    """
    files = _by_bare_name(form, state)
    blocks = [int(match[1]) for name in files if (match := _BLOCK.search(name))]
    depth = max(blocks, default=-1) + 1
    if depth > len(files):
        raise UserError(f"a block has the number {depth - 1}, and there are {len(files)} tensors in all")
    tensors: dict[str, Tensor] = {}
    sources: dict[str, Names] = {}
    for ours, theirs in form.names(depth).items():
        available = [part for part in theirs if part in files]
        if not available:
            continue
        if len(available) < len(theirs):
            missing = next(part for part in theirs if part not in files)
            raise UserError(f"the tensor {missing} is missing, but {files[available[0]]} is present")
        sources[ours] = tuple(files[part] for part in theirs)
        tensors[ours] = _joined([state[name] for name in sources[ours]], sources[ours])
    used = {name for names in sources.values() for name in names}
    return Translation(tensors, sources, depth, tuple(name for name in state if name not in used))


def _bare(name: str, form: ForeignFormat) -> str:
    """A name in the file without its prefixes and without the names of wrappers in it."""
    name = _ANYWHERE.sub("", name).removeprefix(".")
    prefixes = (*form.prefixes, *WRAPPERS)
    while prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def other_function(names: Iterable[str]) -> str:
    """The first tensor of another function than that of our networks, and what it is; empty if there is none."""
    for name in names:
        for pattern, why in OTHER_FUNCTIONS.items():
            if re.search(rf"(?:^|\.)(?:{pattern})(?:\.|$)", name):
                return f"the tensor {name}: {why}; no network of this package computes that"
    return ""


def beginnings(strangers: Iterable[str], used: Iterable[str]) -> list[str]:
    """The shortest dotted beginnings of the names `strangers` that no name of `used` has."""
    taken = {name[:at] for name in used for at in _dots(name)}
    shortest = (next((name[:at] for at in _dots(name) if name[:at] not in taken), name) for name in strangers)
    return list(dict.fromkeys(shortest))


def _dots(name: str) -> list[int]:
    """Where the parts of a dotted name end."""
    return [*(match.start() for match in re.finditer(r"\.", name)), len(name)]


def _by_bare_name(form: ForeignFormat, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name without prefixes -> name in the file."""
    files: dict[str, str] = {}
    for name in state:
        bare = _bare(name, form)
        if bare in files:
            raise UserError(f"{files[bare]} and {name} are the same tensor twice")
        files[bare] = name
    return files


def _joined(parts: list[Tensor], names: Names) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if len({part.shape for part in parts}) > 1 or not parts[0].ndim:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise UserError(f"{' and '.join(names)} have shapes that do not fit each other: {shapes}")
    return torch.cat(parts)
