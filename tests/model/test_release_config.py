"""A configuration that no network has is refused in one line that names the file and the field, before it is built."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cover.cli import main
from cover.errors import UserError
from cover.model.backbone import BackboneConfig
from cover.model.backbones.conv3d import Conv3dConfig
from cover.model.backbones.efficientnet_lite import EfficientNetLiteConfig
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import load_release, read_config, save_release, start_from, starts_untrained_in_time
from cover.model.weight_files import read_checked

THINGS = Head("things", ("cat", "dog", "cow"))
NAN = float("nan")
CONFIGS: dict[str, BackboneConfig] = {
    "timesformer": TimeSformerConfig(
        width=16, depth=2, attention_heads=2, patch=8, size=16, frames=4, patch_embed="conv"
    ),
    "conv3d": Conv3dConfig(size=16, frames=4, channels=(4, 8)),
    "efficientnet_lite": EfficientNetLiteConfig(size=32, frames=4, depth=1),
}
Values = dict[str, Any]


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A release of every family. Shared by all tests, never changed."""
    folder = tmp_path_factory.mktemp("releases")
    for family, config in CONFIGS.items():
        save_release(folder / family, CoVeR(config, (THINGS,)), {"step": 7, "frames": 4})
    return {family: folder / family for family in CONFIGS}


def changed(release: Path, tmp_path: Path, change: Callable[[Values], object]) -> Path:
    """A release with another configuration and the same weights."""
    values = json.loads((release / "config.json").read_text())
    change(values)
    out = tmp_path / "changed"
    out.mkdir()
    (out / "model.safetensors").symlink_to(release / "model.safetensors")
    (out / "config.json").write_text(json.dumps(values))
    return out


def refusal(folder: Path) -> str:
    """The one line with which every use of a release refuses it."""
    model = CoVeR(CONFIGS["conv3d"], (THINGS,))
    lines = set()
    for use in (load_release, read_config, lambda it: start_from(model, it, "keep"), starts_untrained_in_time):
        with pytest.raises(UserError) as error:
            use(folder)  # type: ignore[operator]
        lines.add(str(error.value))
    (line,) = lines
    assert "\n" not in line
    assert line.startswith(f"{folder / 'config.json'}: "), line
    return line


def a(field: str, value: Any) -> Callable[[Values], object]:
    """A change of one field, with a dotted name; `...` deletes it."""

    def change(values: Values) -> None:
        *above, last = field.split(".")
        for name in above:
            values = values[int(name) if name.isdecimal() else name]
        if value is ...:
            del values[last]
        else:
            values[last] = value

    return change


EVERY_FAMILY = [
    ("size", 0),
    ("size", -16),
    ("size", "16"),
    ("size", 16.5),
    ("size", True),
    ("size", None),
    ("size", 10**12),
    ("size", ...),
    ("frames", 0),
    ("frames", -4),
    ("frames", 10**9),
    ("frames", [4]),
    ("mean", [0.5, 0.5]),
    ("mean", [0.5, NAN, 0.5]),
    ("mean", "grey"),
    ("std", [0.5, 0, 0.5]),
    ("std", [0.5, float("inf"), 0.5]),
    ("std", ...),
]
ONE_FAMILY = [
    *(("timesformer", name, value) for name in ("width", "depth", "attention_heads") for value in (0, -2, "4", ...)),
    ("timesformer", "depth", 10_000_000),
    ("timesformer", "depth", 3),
    ("timesformer", "width", 10**9),
    ("timesformer", "width", 10**30),
    ("timesformer", "attention_heads", 3),
    ("timesformer", "attention_heads", 16),
    ("timesformer", "patch", 0),
    ("timesformer", "patch", 3),
    ("timesformer", "patch", 10**9),
    ("timesformer", "mlp_ratio", NAN),
    ("timesformer", "mlp_ratio", -1.0),
    ("timesformer", "mlp_ratio", 1e308),
    ("timesformer", "mlp_ratio", [4]),
    ("timesformer", "norm_eps", NAN),
    ("timesformer", "norm_eps", 0),
    ("timesformer", "layer_scale", float("inf")),
    ("timesformer", "dropout", 1.5),
    ("timesformer", "attention", "all"),
    ("timesformer", "time", 3),
    ("timesformer", "gate", 1),
    ("timesformer", "widht", 16),
    ("conv3d", "channels", []),
    ("conv3d", "channels", [4, -8]),
    ("conv3d", "channels", [4, "8"]),
    ("conv3d", "channels", 8),
    ("conv3d", "channels", [1] * 1_000_000),
    ("conv3d", "channels", [4, 10**12]),
    ("conv3d", "channels", ...),
    ("conv3d", "motion", "none"),
    ("conv3d", "width", 8),
    ("efficientnet_lite", "depth", -1),
    ("efficientnet_lite", "depth", 10_000_000),
    ("efficientnet_lite", "depth", "1"),
    ("efficientnet_lite", "variant", "lite9"),
    ("efficientnet_lite", "variant", ["lite0"]),
    ("efficientnet_lite", "pool", "max"),
]


@pytest.mark.parametrize(
    ("family", "field", "value"), [*((family, *one) for family in CONFIGS for one in EVERY_FAMILY), *ONE_FAMILY]
)
def test_a_backbone_that_cannot_be(
    releases: dict[str, Path], tmp_path: Path, family: str, field: str, value: Any
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = refusal(changed(releases[family], tmp_path, a(f"backbone.{field}", value)))
    # a width without limits is caught where the sizes of tensors are computed, without memory
    assert f"backbone.{field}" in line, line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("heads.0.name", "a.b", "heads[0].name"),
        ("heads.0.name", "", "heads[0].name"),
        ("heads.0.name", "keys", "heads[0].name"),
        ("heads.0.name", "red\x1b[31m", "heads[0].name"),
        ("heads.0.name", 7, "heads[0].name"),
        ("heads.0.name", ..., "heads[0].name"),
        ("heads.0.classes", ["a", "b", "a"], "heads[0].classes"),
        ("heads.0.classes", ["a", 1, "b"], "heads[0].classes[1]"),
        ("heads.0.classes", ["a", None, "b"], "heads[0].classes[1]"),
        ("heads.0.classes", ["a", "\ud800", "b"], "heads[0].classes[1]"),
        ("heads.0.classes", [], "heads[0].classes"),
        ("heads.0.classes", "abc", "heads[0].classes"),
        ("heads.0.classes", ["a", "b"], "heads[0].classes: 2 classes, but the tensors of the file say 3"),
        ("heads.0.name", "others", "heads[0].classes: 3 classes, but the tensors of the file say 0"),
        ("heads.0.loss", "hinge", "heads[0].loss"),
        ("heads.0.serves", "things", "heads[0].serves"),
        ("heads.0.top", 5, "heads[0].top"),
        ("heads", {"things": ["a"]}, "heads"),
        ("heads", [3], "heads[0]"),
        (
            "heads",
            [{"name": "things", "classes": ["x", "y", "z"], "loss": "softmax", "serves": []}] * 2,
            "heads[1].name",
        ),
        (
            "heads",
            [{"name": f"h{n}", "classes": ["x"], "loss": "softmax", "serves": []} for n in range(99)],
            "heads[0]",
        ),
        ("heads", ..., "heads"),
        ("head_dropout", "0.1", "head_dropout"),
        ("head_dropout", NAN, "head_dropout"),
        ("head_dropout", 1.0, "head_dropout"),
        ("head_dropout", ..., "head_dropout"),
        ("backbone", 3, "backbone"),
        ("backbone", [], "backbone"),
        ("backbone.family", ["conv3d"], "backbone.family"),
        ("backbone.family", "resnet", "backbone.family"),
        ("metadata", [], "metadata"),
        ("metadata", ..., "metadata"),
        ("metadata.frames", 0, "metadata.frames"),
        ("metadata.frames", "4", "metadata.frames"),
        ("metadata.frames", 10**9, "metadata.frames"),
        ("metadata.datasets", ["things"], "metadata.datasets"),
        ("metadata.datasets", {"things": 3}, "metadata.datasets"),
        ("metadata.datasets", {"things": {"views": "9"}}, "metadata.datasets.things.views"),
        ("metadata.datasets", {"things": {"sampling": 3}}, "metadata.datasets.things.sampling"),
        ("metadata.datasets", {"things": {"seconds": "2"}}, "metadata.datasets.things.seconds"),
        ("metadata.datasets", {"things": {"seconds": 0}}, "metadata.datasets.things.seconds"),
        ("format", 3, "format"),
    ],
)
def test_a_field_that_cannot_be(releases: dict[str, Path], tmp_path: Path, field: str, value: Any, named: str) -> None:
    assert f": {named}" in refusal(changed(releases["conv3d"], tmp_path, a(field, value)))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 2000 + "1" + "}" * 2000, "\xff\xfe", "NaN", "1" * 9999])
def test_what_is_no_configuration(releases: dict[str, Path], tmp_path: Path, text: str) -> None:
    folder = changed(releases["conv3d"], tmp_path, lambda values: values)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "damaged" in refusal(folder)


def test_the_cases_of_a_command(releases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(releases["timesformer"], tmp_path, a("heads.0.name", "a.b"))
    for command in (["predict", str(folder), "x.mp4"], ["export", str(folder), "--format", "torch", "--out", "x.pt2"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert 'heads[0].name: "a.b"' in line


def test_a_release_from_before_a_field_was_added(releases: dict[str, Path], tmp_path: Path) -> None:
    assert (
        read_config(changed(releases["timesformer"], tmp_path, a("backbone.motion", ...))).backbone
        == (CONFIGS["timesformer"])
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool, torch.int64])
def test_weights_that_are_no_floats(releases: dict[str, Path], tmp_path: Path, dtype: torch.dtype) -> None:
    folder = changed(releases["conv3d"], tmp_path, a("weights_sha256", ...))
    weights = load_file(folder / "model.safetensors")
    weights["heads.things.bias"] = weights["heads.things.bias"].to(dtype)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"model\.safetensors: heads\.things\.bias holds \w+, no floating-point"
    ) as error:
        load_release(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E4M3", "F8_E8M0", "U64", "none"])
def test_weights_of_a_type_that_torch_may_lack(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": [16], "data_offsets": [0, 16]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(UserError, match=r"model\.safetensors: ") as error:
        read_checked(path, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_float_type_are_read(releases: dict[str, Path], tmp_path: Path, dtype: torch.dtype) -> None:
    folder = changed(releases["conv3d"], tmp_path, a("weights_sha256", ...))
    weights = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")
    for name, value in load_release(folder).state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name].float())
