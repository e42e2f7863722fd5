"""Export of a TimeSformer with one head to transformers: the tensors and files of its video classification model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cover.errors import UserError
from cover.model.backbone import BackboneConfig
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.starts.conventions import ATTENTION
from cover.model.starts.formats import HEAD, TRANSFORMERS_TIMESFORMER

BILINEAR = 2  # the number of this filter in Pillow, which transformers writes


def to_transformers(model: CoVeR, head: str) -> dict[str, Tensor]:
    """The tensors of the backbone and of one head under the names of transformers.

    Raises `UserError` if the network is not a TimeSformer.
    """
    config = _timesformer(model.config)
    classifier = {f"{HEAD}.{name}": value for name, value in model.heads[head].state_dict().items()}
    names = TRANSFORMERS_TIMESFORMER.names(config.depth)
    theirs = {names[name][0]: value for name, value in (model.backbone.state_dict() | classifier).items()}
    return {name if name.startswith("classifier.") else f"timesformer.{name}": value for name, value in theirs.items()}


def check_transformers(config: BackboneConfig) -> None:
    """Raises `UserError` if the TimeSformer of transformers cannot compute the same function."""
    config = _timesformer(config)
    if config.attention == "space":
        raise UserError("attention space: transformers gives logits for each frame, not for the clip")
    if config.time != "additive":
        raise UserError(f"time {config.time}: transformers has only the learned time embedding (additive)")
    if config.patch_embed != "linear":
        raise UserError(f"patch_embed {config.patch_embed}: transformers' TimeSformer embeds patches by one linear map")
    if config.motion != "frames":
        raise UserError(f"motion {config.motion}: transformers' TimeSformer embeds frames, not their differences")
    if config.layer_scale:
        raise UserError(f"layer_scale {config.layer_scale}: transformers' TimeSformer has no LayerScale")
    if config.image_temporal != "attend":
        raise UserError(f"image_temporal {config.image_temporal}: in transformers an image passes the temporal branch")
    # In transformers, divided attention accepts only its own number of frames. Joint attention accepts single frames.
    if config.image_time != "first" and (config.frames == 1 or config.attention == "joint"):
        raise UserError(f"image_time {config.image_time}: transformers adds the first time embedding to a single frame")


def transformers_config(config: BackboneConfig, head: Head) -> dict[str, Any]:
    """The `config.json` of transformers."""
    config = _timesformer(config)
    attention_types = {ours: theirs for theirs, ours in ATTENTION.items()}
    return {
        "architectures": ["TimesformerForVideoClassification"],
        "model_type": "timesformer",
        "attention_type": attention_types[config.attention],
        "image_size": config.size,
        "patch_size": config.patch,
        "num_channels": 3,
        "num_frames": config.frames,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.attention_heads,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0,
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": True,
        "id2label": {str(number): name for number, name in enumerate(head.classes)},
        "label2id": {name: number for number, name in enumerate(head.classes)},
        **({"problem_type": "multi_label_classification"} if head.loss == "sigmoid" else {}),
    }


def transformers_preprocessor(config: BackboneConfig) -> dict[str, Any]:
    """The `preprocessor_config.json` of transformers, with the processor of TimeSformer checkpoints on the Hub."""
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.size},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": config.size, "width": config.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }


def _timesformer(config: BackboneConfig) -> TimeSformerConfig:
    if not isinstance(config, TimeSformerConfig):
        raise UserError(f"a {config.family} backbone: transformers has no such network; use --format onnx or torch")
    return config
