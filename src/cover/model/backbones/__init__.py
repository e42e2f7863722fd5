"""The families of networks.

A new family is a file in this folder with the three classes that `cover.model.backbone` describes, an entry in each of
the two unions here, and a test in tests/model/backbones. Nothing else has to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from cover.errors import UserError
from cover.model.backbone import BackboneConfig, BackboneOptions
from cover.model.backbones.conv3d import Conv3dConfig, Conv3dOptions
from cover.model.backbones.efficientnet_lite import FACTORS, EfficientNetLiteConfig, EfficientNetLiteOptions
from cover.model.backbones.movinet import VARIANTS, MoViNetConfig, MoViNetOptions
from cover.model.backbones.timesformer import TimeSformerConfig, TimeSformerOptions, timesformer_config
from cover.model.backbones.video_swin import VideoSwinConfig, VideoSwinOptions, video_swin_config
from cover.model.backbones.vidtr import VidTrConfig, VidTrOptions, vidtr_config
from cover.model.backbones.vit import VitConfig, VitOptions, vit_config
from cover.model.backbones.vit_presets import PRESETS as VIT_PRESETS
from cover.model.json_values import show, typed

# `backbone` in the config.json of a release
Config = (
    TimeSformerConfig
    | Conv3dConfig
    | EfficientNetLiteConfig
    | VitConfig
    | VideoSwinConfig
    | VidTrConfig
    | MoViNetConfig
)
# `model` in a recipe; its field `backbone` selects one
Options = (
    TimeSformerOptions
    | Conv3dOptions
    | EfficientNetLiteOptions
    | VitOptions
    | VideoSwinOptions
    | VidTrOptions
    | MoViNetOptions
)

# families other than TimeSformer whose configurations have presets
PRESET_CONFIGS: dict[type, Callable[..., BackboneConfig]] = {
    VideoSwinConfig: video_swin_config,
    VidTrConfig: vidtr_config,
}

DEFAULT_OPTIONS = TimeSformerOptions()
_MOVINETS: dict[str, dict[str, Any]] = {
    f"movinet_{variant}{'_stream' * stream}": {"variant": variant, "size": sizes.pixels, "stream": stream}
    for variant, sizes in VARIANTS.items()
    for stream in (False, True)
}


def backbone_config(options: BackboneOptions, frames: int, inherited: BackboneConfig | None = None) -> BackboneConfig:
    """The configuration of the network of a recipe, for clips of `frames` frames.

    `inherited`: the configuration of the release that a run starts from. Fields that belong to the weights come from it
    (pixel statistics, how embeddings are resized). Raises `UserError` if it is of another family.
    """
    if inherited is not None and inherited.family != options.backbone:
        families = f"is a {inherited.family}, this run's a {options.backbone}"
        raise UserError(f"start.checkpoint: its network {families}: set model.backbone")
    return options.config(frames, inherited)


def config_from(values: Any, key: str, shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The configuration from the fields of a release; the field `family` selects its class.

    `shapes`: the shape of each tensor of the backbone in the release; empty if they are not known. Raises `UserError`,
    in one line that begins with the dotted key (`key`, then the field), if this version has no such family or fields,
    or if no network has these values, or not that of the tensors. No network is built for this.
    """
    kinds = {kind.family: kind for kind in get_args(Config)}
    family = values.get("family") if isinstance(values, dict) else values
    if not isinstance(family, str) or family not in kinds:
        raise UserError(f"{key}.family: its networks are {show(family)}, and known are {', '.join(kinds)}")
    kind = kinds[family]
    settings = {name: value for name, value in values.items() if name != "family"}
    config: Config = typed(kind, settings, key, kind.added_later)
    try:
        config.check()
    except ValueError as error:
        raise UserError(f"{key}.{error}") from None
    for name, shown in config.shown_by(shapes).items() if shapes else ():
        if getattr(config, name) != shown:
            raise UserError(
                f"{key}.{name}: {show(getattr(config, name))}, but the tensors of the file say {show(shown)}"
            )
    return config


def named_config(name: str, **changes: Any) -> BackboneConfig:
    """The configuration of a family, of a preset of TimeSformer such as B/16, of a plain vision transformer such as
    dinov2_b14, of a variant of EfficientNet-Lite such as lite0 or of MoViNet such as movinet_a0 or movinet_a0_stream,
    with some fields replaced. A preset of another family is written after its name, as in video_swin/B.

    Raises `UserError` for an unknown name or field.
    """
    if name in FACTORS:
        return named_config(EfficientNetLiteConfig.family, **{"variant": name, **changes})
    if movinet := _MOVINETS.get(name):
        return named_config(MoViNetConfig.family, **{**movinet, **changes})
    family, _, preset = name.partition("/")
    kind = next((kind for kind in get_args(Config) if kind.family == family), TimeSformerConfig)
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
    if preset and kind in PRESET_CONFIGS:
        return PRESET_CONFIGS[kind](preset, **changes)
    if preset:
        raise UserError(f'"{name}": a {family} has no presets')
    config: BackboneConfig = kind(**changes)
    return config
