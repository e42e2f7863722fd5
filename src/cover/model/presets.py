"""The named sizes of the model."""

from __future__ import annotations

from typing import Any

from cover.errors import UserError, nearest
from cover.model.timesformer import ModelConfig

# name: width, depth, attention heads (ViT: Dosovitskiy et al., table 1; Ti and S: Touvron et al., DeiT, table 1)
PRESETS = {
    "mini": (128, 4, 4),
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
}


def model_config(preset: str, **changes: Any) -> ModelConfig:
    """The configuration of `mini` or of `SIZE/PATCH` as in `B/16`, with fields replaced. Raises `UserError`."""
    name, _, patch = preset.partition("/")
    if name not in PRESETS or (patch and not (patch.isdecimal() and int(patch))):
        raise UserError(f'unknown model preset "{preset}"{nearest(name, PRESETS)} (with a patch size, as in B/16)')
    width, depth, heads = PRESETS[name]
    default_patch, default_size = (8, 32) if name == "mini" else (16, 224)
    fields: dict[str, Any] = {"width": width, "depth": depth, "attention_heads": heads, "patch": int(patch or default_patch)}
    # `mini` is trained from random weights; the others mostly start from published ones, whose patches are embedded by one linear map.
    embed = "conv" if name == "mini" else "linear"
    config = ModelConfig(**{**fields, "size": default_size, "patch_embed": embed, **changes})
    if config.size % config.patch:
        raise UserError(f"image size {config.size} is not a multiple of the patch {config.patch}")
    if config.patch_embed == "conv" and config.patch.bit_count() != 1:
        raise UserError(f"model.patch_embed: conv needs a patch that is a power of two, and {preset} has {config.patch} px; use linear")
    return config
