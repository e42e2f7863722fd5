"""Importing the text network of a CLIP or SigLIP 2 checkpoint of transformers, beside its image network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.conventions import HEAD_WIDTH
from cover.model.starts.report import LOADED, UNUSED, counts, row
from cover.model.starts.vit_published import ACTIVATIONS
from cover.model.text import TOKENIZER, TextConfig, TextNetwork, save_text

PREFIX = "text_model."
_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
# Our names -> theirs. `{}` is the number of a block; several names are joined along the first axis.
_TENSORS = {
    "tokens.weight": ("text_model.embeddings.token_embedding.weight",),
    "positions": ("text_model.embeddings.position_embedding.weight",),
}
_LAYERS = {"norm": ("text_model.final_layer_norm",)}
_BLOCK = {
    "norm1": ("layer_norm1",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_FAMILIES = {"clip": "clip", "siglip": "siglip"}  # of `model_type`
_SETTINGS: dict[str, dict[str, Any]] = {  # transformers' own, where config.json leaves them out
    "clip": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}


def add_text(checkpoint: ForeignCheckpoint, out: Path, report: dict[str, Any]) -> None:
    """Write the text network of a checkpoint into the release `out`, and its tensors into the report.

    Raises `UserError` if the checkpoint has none, or if it is not one that this package computes.
    """
    names = check_text(checkpoint)
    tensors = {ours: _joined(checkpoint, theirs) for ours, theirs in names.items()}
    network = TextNetwork(_config(checkpoint, tensors))
    if "shift" not in tensors:
        tensors["shift"] = torch.zeros(())
    _check_shapes(network, tensors, names)
    network.load_state_dict(tensors)
    save_text(out, network, checkpoint.path / TOKENIZER)
    used = {name for theirs in names.values() for name in theirs}
    rows = [each for each in report["tensors"] if each["fate"] != UNUSED or not used & set(each["source"])]
    rows += [row(f"text.{ours}", theirs, LOADED, tensors[ours]) for ours, theirs in names.items()]
    report |= {"tensors": rows, "counts": counts(rows)}
    note = f"text network of {network.config.depth} layers: use --classes of cover predict"
    report["notes"] = [*report["notes"], note]


def check_text(checkpoint: ForeignCheckpoint) -> dict[str, tuple[str, ...]]:
    """Our name -> the names in the file, for all tensors of the text network. Raises `UserError` if there is none."""
    kind, tensors = checkpoint.config.get("model_type"), checkpoint.tensors
    if kind not in _FAMILIES or not any(name.startswith(PREFIX) for name in tensors):
        raise UserError("--text: has no text network; a whole CLIP or SigLIP 2 of transformers has one")
    if not (checkpoint.path / TOKENIZER).is_file():
        raise UserError(f"--text: {TOKENIZER} is missing beside the weights")
    depth = 1 + max((int(match[1]) for name in tensors if (match := _LAYER.match(name))), default=-1)
    last = ("text_projection",) if kind == "clip" else ("text_model.head",)
    layers = {**_LAYERS, "proj": last} | {
        f"blocks.{block}.{ours}": tuple(f"text_model.encoder.layers.{block}.{part}" for part in theirs)
        for block in range(depth)
        for ours, theirs in _BLOCK.items()
    }
    names = {
        f"{ours}.{part}": tuple(f"{each}.{part}" for each in theirs)
        for ours, theirs in layers.items()
        for part in ("weight", "bias")
        if not (part == "bias" and theirs == ("text_projection",))
    }
    names |= {**_TENSORS, "log_scale": ("logit_scale",)}
    names |= {"image_proj.weight": ("visual_projection.weight",)} if kind == "clip" else {"shift": ("logit_bias",)}
    missing = [name for theirs in names.values() for name in theirs if name not in tensors]
    known = {name for theirs in names.values() for name in theirs}
    strange = [name for name in tensors if name.startswith(PREFIX) and name not in known and "position_ids" not in name]
    if missing or strange:
        problem = f"the tensor {missing[0]} is missing" if missing else f"unexpected tensor {strange[0]}"
        raise UserError(f"--text: {problem}")
    return names


def _joined(checkpoint: ForeignCheckpoint, names: tuple[str, ...]) -> Tensor:
    parts = [checkpoint.tensors[name].float() for name in names]
    if names[0] in ("logit_scale", "logit_bias"):  # some files have an axis of one entry
        return parts[0].reshape(())
    return torch.cat(parts) if parts[1:] else parts[0]


def _config(checkpoint: ForeignCheckpoint, tensors: dict[str, Tensor]) -> TextConfig:
    kind = str(checkpoint.config["model_type"])
    given = checkpoint.config.get("text_config")
    settings = {**_SETTINGS[kind], **(given if isinstance(given, dict) else {})}
    if settings["hidden_act"] not in ACTIVATIONS:
        raise UserError(f"--text: text_config.hidden_act: {settings['hidden_act']}: only {', '.join(ACTIVATIONS)}")
    vocabulary, width = tensors["tokens.weight"].shape
    heads = settings.get("num_attention_heads") or width // HEAD_WIDTH
    if not isinstance(heads, int) or width % max(heads, 1):
        raise UserError(f"--text: text_config.num_attention_heads: {heads} does not divide {width}")
    image = tensors.get("image_proj.weight", tensors["proj.weight"])
    pad = settings.get("pad_token_id")
    return TextConfig(
        family="clip" if kind == "clip" else "siglip",
        width=width,
        depth=len([name for name in tensors if name.endswith(".norm1.weight")]),
        attention_heads=heads,
        hidden=len(tensors["blocks.0.mlp.fc1.weight"]),
        vocabulary=vocabulary,
        context=len(tensors["positions"]),
        embedding=len(tensors["proj.weight"]),
        image_width=image.shape[1] if "image_proj.weight" in tensors else len(image),
        projected="image_proj.weight" in tensors,
        mlp=ACTIVATIONS[settings["hidden_act"]],  # type: ignore[arg-type]
        norm_eps=float(settings["layer_norm_eps"]),
        pad=pad if isinstance(pad, int) and 0 <= pad < vocabulary else 0,
    )


def _check_shapes(network: TextNetwork, tensors: dict[str, Tensor], names: dict[str, tuple[str, ...]]) -> None:
    for ours, wanted in network.state_dict().items():
        if tensors[ours].shape != wanted.shape:
            theirs, shapes = " + ".join(names[ours]), (tuple(tensors[ours].shape), tuple(wanted.shape))
            raise UserError(f"--text: {theirs} is {shapes[0]}, and should be {shapes[1]}")
