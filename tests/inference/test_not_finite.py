"""Damaged weights are refused wherever they are loaded; outputs that are not finite are the problem of a file."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cover import CoVeR, Predictor
from cover.cli import main
from cover.errors import UserError
from cover.inference.explain import ExplainOptions, explanations
from cover.media.decode import MediaError
from cover.model.release import find_release, load_release, save_release

WEIGHTS = "model.safetensors"


@pytest.fixture
def release(trained: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint of a run, which tests may damage."""
    return Path(shutil.copytree(find_release(trained), tmp_path / "release"))


def overwrite(release: Path, name: str, value: float) -> None:
    """Set one number of a tensor, and forget the digests, as somebody who edits weights does."""
    weights = load_file(release / WEIGHTS)
    weights[name].view(-1)[3] = value
    save_file(weights, release / WEIGHTS)
    (release / "complete.json").unlink()
    config = json.loads((release / "config.json").read_text())
    del config["weights_sha256"]
    (release / "config.json").write_text(json.dumps(config))


def flip_bytes(release: Path) -> None:
    """Change 64 bytes inside a tensor."""
    data = bytearray((release / WEIGHTS).read_bytes())
    data[-4096 : -4096 + 64] = bytes(byte ^ 1 for byte in data[-4096 : -4096 + 64])
    (release / WEIGHTS).write_bytes(data)


def commands(release: Path, sandbox: Path, picture: Path, out: Path) -> dict[str, list[str]]:
    recipe = out / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "data": {"catalog": str(sandbox), "sets": ["imagenet"], "frames": 4},
                "out": str(out / "run"),
                "steps": 1,
                "batch": 4,
                "start": {"checkpoint": str(release), "temporal": "keep"},
            }
        )
    )
    return {
        "predict": ["predict", str(release), str(picture)],
        "explain": ["explain", str(release), str(picture), "--out", str(out / "explained")],
        "evaluate": ["evaluate", str(release), "--catalog", str(sandbox), "imagenet"],
        "serve": ["serve", str(release), "--port", "0"],
        "export": ["export", str(release), "--format", "torch", "--out", str(out / "x.pt2")],
        "transformers": ["export", str(release), "--format", "transformers", "--head", "ssv2", "--out", str(out / "x")],
        "start": ["train", str(recipe)],
    }


@pytest.mark.parametrize("command", ["predict", "explain", "evaluate", "serve", "export", "transformers", "start"])
@pytest.mark.parametrize("damage", ["nan", "inf", "-inf", "flipped"])
def test_damaged_weights_are_used_by_no_command(
    release: Path, sandbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, damage: str
) -> None:
    picture = tmp_path / "x.png"
    Image.new("RGB", (40, 40), (10, 200, 30)).save(picture)
    if damage == "flipped":
        flip_bytes(release)
    else:
        overwrite(release, "backbone.blocks.1.norm1.weight", float(damage))
    assert main(commands(release, sandbox, picture, tmp_path)[command]) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert str(release / WEIGHTS) in line
    assert ("SHA-256" if damage == "flipped" else "backbone.blocks.1.norm1.weight has NaN or infinity in 1 of") in line
    assert "Traceback" not in captured.err
    assert not captured.out


def test_a_digest_beside_the_weights_counts_in_either_file(release: Path) -> None:
    flip_bytes(release)
    config = json.loads((release / "config.json").read_text())
    del config["weights_sha256"]  # as a checkpoint of an earlier version
    (release / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="SHA-256"):
        load_release(release)
    (release / "complete.json").unlink()
    load_release(release)


def test_a_float64_number_beyond_float32_is_not_finite(release: Path) -> None:
    weights = load_file(release / WEIGHTS)
    overwrite(release, "heads.imagenet.bias", 0.0)
    weights["heads.imagenet.bias"] = torch.full_like(weights["heads.imagenet.bias"], 1e300, dtype=torch.float64)
    save_file(weights, release / WEIGHTS)
    with pytest.raises(UserError, match=r"heads\.imagenet\.bias has NaN or infinity"):
        load_release(release)


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def overflowing(release: Path, tmp_path: Path) -> Path:
    """A release with finite weights whose outputs are not finite where a picture is not grey (the mean of pixels)."""
    model = load_release(release)
    with torch.no_grad():
        model.backbone.norm.weight.fill_(3e38)  # type: ignore[union-attr, operator]
        model.backbone.norm.bias.fill_(3e38)  # type: ignore[union-attr, operator]
    save_release(tmp_path / "overflowing", model, model.metadata)
    return tmp_path / "overflowing"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_predict_has_a_row_with_the_reason(
    overflowing: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(overflowing), str(picture), str(tmp_path / "none.png"), "--json", "-"]) == 1
    captured = capsys.readouterr()
    row, other = json.loads(captured.out, parse_constant=pytest.fail)
    assert "not finite" in row["error"]
    assert "heads" not in row
    assert "No such file" in other["error"]
    assert f"{picture}: unreadable: " in captured.err


def test_the_rows_and_features_of_such_a_file(overflowing: Path, picture: Path, tmp_path: Path) -> None:
    out, features = tmp_path / "rows.csv", tmp_path / "features.npy"
    assert main(["predict", str(overflowing), str(picture), "--out", str(out)]) == 1
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert "not finite" in row["error"]
    assert main(["predict", str(overflowing), str(picture), "--embed", str(features)]) == 1
    (listed,) = csv.DictReader(features.with_suffix(".csv").read_text().splitlines())
    assert "not finite" in listed["problem"]


@pytest.mark.parametrize(
    "use",
    [
        lambda predictor, file: predictor(file),
        lambda predictor, file: predictor.features(file),
        lambda predictor, file: predictor.timeline(file, 1.0),
        lambda predictor, file: explanations(predictor, file, ExplainOptions()),
    ],
    ids=["call", "features", "timeline", "explain"],
)
def test_in_python_it_is_an_exception(
    overflowing: Path, picture: Path, use: Callable[[Predictor, str], object]
) -> None:
    with pytest.raises(MediaError, match="not finite"):
        use(Predictor.load(overflowing), str(picture))


def test_evaluate_counts_such_samples_as_not_read(
    overflowing: Path, sandbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    arguments = ["evaluate", str(overflowing), "--catalog", str(sandbox), "imagenet", "ssv2", "--json", str(out)]
    assert main([*arguments, "--shuffle-frames"]) == 1
    for row in json.loads(out.read_text(), parse_constant=pytest.fail):
        assert row["n_read"] == 0
        assert row["n_listed"] == row["n_notes"] > 0
        assert "not finite" in row["notes"][0]
    assert "Traceback" not in capsys.readouterr().err


def test_finite_weights_are_used(release: Path, picture: Path) -> None:
    result = Predictor(CoVeR.from_pretrained(release))(str(picture))
    assert all(math.isclose(each.scores.sum(), 1.0, rel_tol=1e-5) for each in result.values())
