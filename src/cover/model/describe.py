"""The figures of `cover describe`: sizes and costs of a network. They need no weights and no data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cover.errors import UserError
from cover.model.backbone import BackboneConfig
from cover.model.cover import CoVeR
from cover.model.lora import Lora, add_lora
from cover.model.profile import FLOAT32, count_parameters, forward_cost, on_meta, pack_of, trace_step

SETTINGS = {"image_temporal": "images in the temporal branch"}  # setting -> its name in the table


def read_heads(text: str) -> dict[str, int]:
    """Head name -> number of classes, from text such as `k400=400,ssv2=174`. Raises `UserError`."""
    heads: dict[str, int] = {}
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"\s*([A-Za-z0-9][\w-]*)=(\d{1,9})\s*", part, re.ASCII)
        if not match:
            raise UserError(f'heads: "{part}" is no NAME=CLASSES; write for example --heads k400=400,ssv2=174')
        if match[1] in heads:
            raise UserError(f'heads: "{match[1]}" is given twice')
        heads[match[1]] = int(match[2])
    return heads


def describe(
    config: BackboneConfig,
    heads: Mapping[str, int],
    views: tuple[int, int],
    batch: int,
    images: int,
    lora: Lora | None = None,
) -> dict[str, Any]:
    """All figures of a network, as plain JSON values.

    They are for one clip of `config.frames` frames, for one image, for an evaluation protocol of `views` (temporal
    offsets, crops) and for a training step. The step has one Pack of `batch` clips and `images` images, fp32 parameters
    and AdamW. `lora`: it trains only these additions and the heads. Raises `UserError`.
    """
    model = _network(config, heads, lora)
    clip = forward_cost(model, pack_of(1, config.frames, 0), config.size)
    image = forward_cost(model, pack_of(0, config.frames, 1), config.size)
    return {
        **_of_weights(model, config, heads),
        "views": f"{views[0]}x{views[1]}",
        "tokens_per_clip": clip.tokens,
        "tokens_per_image": image.tokens,
        "multiply_adds_per_view": clip.multiply_adds,
        "multiply_adds_per_protocol": views[0] * views[1] * clip.multiply_adds,
        "multiply_adds_per_image": image.multiply_adds,
        **_of_step(model, config, batch, images, lora),
    }


def _network(config: BackboneConfig, heads: Mapping[str, int], lora: Lora | None) -> CoVeR:
    model = on_meta(config, heads)
    if lora:
        model.backbone.requires_grad_(False)
        add_lora(model.backbone, lora)
    return model


def _of_weights(model: CoVeR, config: BackboneConfig, heads: Mapping[str, int]) -> dict[str, Any]:
    count = count_parameters(model)
    return {
        "frames": config.frames,
        "size": config.size,
        "settings": list(config.summary()),
        **config.summary(),
        "heads": dict(heads),
        "parameters": count.total,
        "parameters_body": count.body,
        "parameters_temporal": count.temporal,
        "parameters_heads": count.heads,
        "parameters_trained": count.trained,
        "parameter_bytes": FLOAT32 * count.total,
        "gradient_bytes": FLOAT32 * count.trained,
        "optimizer_bytes": 2 * FLOAT32 * count.trained,  # AdamW's two running means
    }


def _of_step(model: CoVeR, config: BackboneConfig, batch: int, images: int, lora: Lora | None) -> dict[str, Any]:
    groups = pack_of(batch, config.frames, images)
    # Without a head there is no loss, so no activation would be stored for a backward pass.
    trained = model if model.heads else _network(config, {"any": 1}, lora)
    activations = {}
    for bf16 in (False, True):
        trace = trace_step(trained, groups, config.size, bf16, backward=False)
        for checkpointing in (False, True):
            name = f"activation_bytes{'_bf16' * bf16}{'_checkpointed' * checkpointing}"
            activations[name] = trace.activation_bytes(checkpointing)
    adds = forward_cost(model, groups, config.size).multiply_adds
    return {"batch": batch, "images": images, "multiply_adds_per_step": 3 * adds, **activations}


def print_description(preset: str, facts: Mapping[str, Any]) -> None:
    """Print the figures of `describe` as a table on stdout."""
    from cover.console import print_table

    print_table((f"{preset}, {facts['frames']} x {facts['size']} px", ""), [*_network_rows(facts), *_step_rows(facts)])


def _network_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    heads = " ".join(f"{name} {classes}" for name, classes in facts["heads"].items()) or "none; --heads names them"
    return [
        *((SETTINGS.get(name, name), facts[name]) for name in facts["settings"]),
        ("parameters", short(facts["parameters"])),
        ("  body", short(facts["parameters_body"])),
        ("    temporal branch", short(facts["parameters_temporal"])),
        (f"  heads ({heads})", short(facts["parameters_heads"])),
        *(
            [("  trained", short(facts["parameters_trained"]))]
            if facts["parameters_trained"] < facts["parameters"]
            else []
        ),
        ("tokens of a clip", f"{facts['tokens_per_clip']:,}"),
        ("tokens of an image", f"{facts['tokens_per_image']:,}"),
        ("multiply-adds of a view", short(facts["multiply_adds_per_view"])),
        (f"multiply-adds of {facts['views']} views", short(facts["multiply_adds_per_protocol"])),
        ("multiply-adds of an image", short(facts["multiply_adds_per_image"])),
    ]


def _step_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    weights = facts["parameter_bytes"] + facts["gradient_bytes"] + facts["optimizer_bytes"]
    return [
        (f"a training step of {facts['batch']} clips and {facts['images']} images", ""),
        ("  multiply-adds, forward and backward", short(facts["multiply_adds_per_step"])),
        ("  parameters, gradients and AdamW state, fp32", gibibytes(weights)),
        ("  activations, fp32", gibibytes(facts["activation_bytes"])),
        ("  activations, bf16", gibibytes(facts["activation_bytes_bf16"])),
        ("  activations, fp32, checkpointing", gibibytes(facts["activation_bytes_checkpointed"])),
        ("  activations, bf16, checkpointing", gibibytes(facts["activation_bytes_bf16_checkpointed"])),
    ]


def short(count: int) -> str:
    """A number with four digits and the letter of its power of a thousand: `431.9 M`."""
    power = min(max(0, (len(str(count)) - 1) // 3), 6)
    return f"{count / 1000**power:.4g} {'.KMGTPE'[power]}" if power else str(count)


def gibibytes(count: int) -> str:
    """A number of bytes as `12.34 GiB`."""
    return f"{count / 2**30:,.2f} GiB"
