"""The families of networks.

A new family is a file in this folder with the three classes that `cover.model.backbone` describes, an entry in each of
the two unions here, and a test in tests/model/backbones. Nothing else has to change.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

from cover.errors import UserError
from cover.model.backbone import BackboneConfig, BackboneOptions
from cover.model.backbones.conv3d import Conv3dConfig, Conv3dOptions
from cover.model.backbones.efficientnet_lite import FACTORS, EfficientNetLiteConfig, EfficientNetLiteOptions
from cover.model.backbones.timesformer import TimeSformerConfig, TimeSformerOptions, timesformer_config
from cover.model.backbones.vit import VitConfig, VitOptions, vit_config
from cover.model.backbones.vit_presets import PRESETS as VIT_PRESETS

# `backbone` in the config.json of a release
Config = TimeSformerConfig | Conv3dConfig | EfficientNetLiteConfig | VitConfig
Options = (
    TimeSformerOptions | Conv3dOptions | EfficientNetLiteOptions | VitOptions
)  # `model` in a recipe; its field `backbone` selects one

DEFAULT_OPTIONS = TimeSformerOptions()


def backbone_config(options: BackboneOptions, frames: int, inherited: BackboneConfig | None = None) -> BackboneConfig:
    """The configuration of the network of a recipe, for clips of `frames` frames.

    `inherited`: the configuration of the release that a run starts from. Fields that belong to the weights come from it
    (pixel statistics, how embeddings are resized). Raises `UserError` if it is of another family.
    """
    if inherited is not None and inherited.family != options.backbone:
        families = f"is a {inherited.family}, this run's a {options.backbone}"
        raise UserError(f"start.checkpoint: its network {families}: set model.backbone")
    return options.config(frames, inherited)


def config_from(values: dict[str, Any]) -> Config:
    """The configuration from the fields of a release; the key `family` selects its class.

    Raises ValueError or TypeError if this version has no such family or fields.
    """
    kinds = {kind.family: kind for kind in get_args(Config)}
    if values.get("family") not in kinds:
        raise ValueError(f"its family of networks is {values.get('family')}, and known are {', '.join(kinds)}")
    settings = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name != "family"
    }
    config: Config = kinds[values["family"]](**settings)
    return config


def named_config(name: str, **changes: Any) -> BackboneConfig:
    """The configuration of a family, of a preset of TimeSformer such as B/16, of a plain vision transformer such as
    dinov2_b14 or of a variant of EfficientNet-Lite such as lite0, with some fields replaced.

    Raises `UserError` for an unknown name or field.
    """
    if name in FACTORS:
        return named_config(EfficientNetLiteConfig.family, **{"variant": name, **changes})
    kind = next((kind for kind in get_args(Config) if kind.family == name), TimeSformerConfig)
    kind = VitConfig if name in VIT_PRESETS else kind
    known = [field.name for field in fields(kind)]
    for key, value in changes.items():
        if key not in known:
            raise UserError(f"--{key.replace('_', '-')}: a {name} has no such setting")
        choices = get_args(get_type_hints(kind)[key])
        if isinstance(value, str) and choices and value not in choices:
            raise UserError(f"--{key.replace('_', '-')} {value}: a {name} has {', '.join(map(str, choices))}")
    if kind is TimeSformerConfig:
        return timesformer_config("B/16" if name == kind.family else name, **changes)
    if kind is VitConfig:
        return vit_config("vit_b16" if name == kind.family else name, **changes)
    config: BackboneConfig = kind(**changes)
    return config
