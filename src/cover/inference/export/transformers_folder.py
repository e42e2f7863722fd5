"""How does a head become a model of transformers? A folder that `TimesformerForVideoClassification` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cover.errors import UserError
from cover.inference.export.choice import choose, written_beside
from cover.model.foreign import to_transformers
from cover.model.foreign_config import ATTENTION
from cover.model.timesformer import Head, ModelConfig, TimeSformer
from cover.model.weights import CONFIG, WEIGHTS

BILINEAR = 2  # Pillow's number for it, which transformers writes


def export_transformers(checkpoint: str | Path, head: str | None, out: Path) -> None:
    """Write one head as a folder for transformers' `TimesformerForVideoClassification.from_pretrained`, which gives the same logits.

    `head` may be None where there is one only. Raises `UserError` naming the setting for which transformers has no such function.
    """
    choice = choose(checkpoint, [head] if head else [])
    if len(choice.heads) > 1:
        raise UserError(f"which head? --head one of {', '.join(each.name for each in choice.heads)}")
    if obstacle := in_the_way(choice.model.config):
        raise UserError(f"{choice.folder}: {obstacle}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose a new folder with --out")
    # A folder that is there may be a mount or where the user stands: it is filled, not replaced, and its configuration comes last.
    filled = out.is_dir()
    with written_beside(out / CONFIG if filled else out) as path:
        _write(choice.model, choice.heads[0], path.parent if filled else path)


def in_the_way(config: ModelConfig) -> str | None:
    """The setting for which transformers' TimeSformer does not compute the same, in one line; None where it does."""
    if config.attention == "space":
        return "attention space: transformers gives logits for each frame, not for the clip"
    if config.time != "additive":
        return f"time {config.time}: transformers has the learned time embedding (additive) alone"
    if config.patch_embed != "linear":
        return f"patch_embed {config.patch_embed}: transformers' TimeSformer embeds patches by one linear map"
    if config.layer_scale:
        return f"layer_scale {config.layer_scale}: transformers' TimeSformer has no LayerScale"
    if config.image_temporal != "attend":
        return f"image_temporal {config.image_temporal}: in transformers an image passes the temporal branch"
    # Divided attention is bound to its own number of frames there; joint attention takes single frames too.
    if config.image_time != "first" and (config.frames == 1 or config.attention == "joint"):
        return f"image_time {config.image_time}: transformers adds the first time embedding to a single frame"
    return None


def _write(model: TimeSformer, head: Head, out: Path) -> None:
    from safetensors.torch import save_file

    out.mkdir(exist_ok=True)
    tensors = to_transformers(model.state_dict(), head.name, model.config.depth)
    save_file({name: value.contiguous() for name, value in tensors.items()}, str(out / WEIGHTS), metadata={"format": "pt"})
    for name, content in ((CONFIG, _config(model.config, head)), ("preprocessor_config.json", _preprocessor(model.config))):
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(config: ModelConfig, head: Head) -> dict[str, Any]:
    words = {ours: theirs for theirs, ours in ATTENTION.items()}
    return {
        "architectures": ["TimesformerForVideoClassification"], "model_type": "timesformer", "attention_type": words[config.attention],
        "image_size": config.size, "patch_size": config.patch, "num_channels": 3, "num_frames": config.frames,
        "hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.attention_heads,
        "intermediate_size": int(config.width * config.mlp_ratio), "hidden_act": "gelu", "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0, "layer_norm_eps": config.norm_eps, "qkv_bias": True,
        "id2label": {str(number): name for number, name in enumerate(head.classes)},
        "label2id": {name: number for number, name in enumerate(head.classes)},
        **({"problem_type": "multi_label_classification"} if head.loss == "sigmoid" else {}),
    }  # fmt: skip


def _preprocessor(config: ModelConfig) -> dict[str, Any]:
    """As in the TimeSformer checkpoints on the Hub, which name the VideoMAE processor too."""
    return {
        "image_processor_type": "VideoMAEImageProcessor", "do_resize": True, "size": {"shortest_edge": config.size}, "resample": BILINEAR,
        "do_center_crop": True, "crop_size": {"height": config.size, "width": config.size}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(config.mean), "image_std": list(config.std),
    }  # fmt: skip
