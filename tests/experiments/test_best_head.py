"""Heads on a frozen network: fits equal scikit-learn's, nothing that is reported was used, and the best one is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image

from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import Row, open_manifest
from cover.evaluation.answers import read_answers
from cover.evaluation.evaluate import evaluate_release
from cover.evaluation.metrics import temperature
from cover.experiments.add import best_head, run
from cover.experiments.add.frozen_heads import FrozenFeatures, choose, fit, frozen_features
from cover.model.backbones.efficientnet_lite import EfficientNetLiteConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import read_config

COLOURS = {"green": (40, 200, 60), "red": (210, 40, 50), "white": (230, 230, 230)}


def row(number: int, group: str, label: int) -> Row:
    values: dict[str, Any] = dict.fromkeys(field.name for field in fields(Row))
    return Row(**{**values, "sample_id": str(number), "source_id": group, "group": group, "label": label})


def features(count: int, views: int, parts: int, width: int, classes: int, seed: int = 0) -> FrozenFeatures:
    """Random features with a weak signal of the class; two samples of every group."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    values = rng.normal(size=(count, views, parts, width)).astype(np.float32)
    values[..., :classes] += 0.7 * np.eye(classes, dtype=np.float32)[labels][:, None, None]
    rows = tuple(row(number, f"group {number // 2}", int(label)) for number, label in enumerate(labels))
    return FrozenFeatures(rows, labels, values, (), count)


@pytest.mark.parametrize(("count", "width"), [(40, 9), (40, 300)])  # more samples than columns, and fewer
def test_a_fit_is_that_of_scikit_learn(count: int, width: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    own = features(count, 2, 1, width, 3)
    head = fit(own, 3, "linear", 1.0)
    theirs = linear_model.LogisticRegression(C=0.5, max_iter=5000, tol=1e-8)
    theirs.fit(own.values.reshape(-1, width), np.repeat(own.labels, 2))
    logits = torch.from_numpy(own.values[:, 0, 0]) @ head.weight.T + head.bias
    wanted = torch.from_numpy(theirs.predict_proba(own.values[:, 0, 0])).float()
    torch.testing.assert_close(logits.softmax(-1), wanted, atol=5e-3, rtol=0)


def test_probabilities_are_the_mean_over_views() -> None:
    own = features(30, 3, 4, 5, 2)
    head = fit(own, 2, "quarters", 0.1)
    each = [
        (torch.from_numpy(own.values[:, view].reshape(30, -1)) @ head.weight.T + head.bias).softmax(-1)
        for view in range(3)
    ]
    torch.testing.assert_close(head.probabilities(own), torch.stack(each).mean(0))


def test_a_class_without_samples_is_never_predicted() -> None:
    own = features(30, 1, 1, 6, 2)
    assert fit(own, 4, "linear", 1.0).probabilities(own)[:, 2:].max() < 1e-3


def test_the_choice_is_made_over_whole_groups() -> None:
    # A column that names the group and says nothing about the class elsewhere: samples of one group in both parts of a
    # division would make it look useful.
    own = features(60, 1, 1, 4, 2)
    values = np.random.default_rng(1).normal(size=(60, 1, 1, 30)).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 2, 30).repeat(2)
    values[..., :30] = 20 * np.eye(30, dtype=np.float32)[np.arange(60) // 2][:, None, None]
    rows = tuple(row(number, f"group {number // 2}", int(label)) for number, label in enumerate(labels))
    (best,) = choose(FrozenFeatures(rows, labels, values, own.problems, 60), 2, seed=0)
    assert best.accuracy < 0.7


def test_quarters_win_where_the_order_tells() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    values = rng.normal(size=(80, 1, 4, 8)).astype(np.float32)
    values[:, 0, 0, 0] += np.where(labels, 3, -3)
    values[:, 0, 3, 0] -= np.where(labels, 3, -3)  # the mean over the clip says nothing
    rows = tuple(row(number, str(number), int(label)) for number, label in enumerate(labels))
    best, other = choose(FrozenFeatures(rows, labels, values, (), 80), 2, seed=0)
    assert (best.kind, other.kind) == ("quarters", "linear")
    assert best.accuracy > 0.9
    assert other.accuracy < 0.75


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image network that pools frames, with a head of its own."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    config = EfficientNetLiteConfig(size=32, frames=4)
    CoVeR(config, (Head("known", ("a", "b")),), metadata={"frames": 4, "datasets": {}}).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """48 pictures in a folder for each of 3 classes, of which the colour tells."""
    rng = np.random.default_rng(0)
    for place, (name, colour) in enumerate(COLOURS.items()):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(16):
            noise = rng.integers(-30, 30, (40, 40, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"shot{number // 2}_{place}{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def fit_on(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def typed(data: Path, *more: object) -> tuple[int, str]:
        words = ["fit", data, "--start", start, "--out", tmp_path / "run", "--workers", 0, "--folds", 0, *more]
        code = main([str(word) for word in words])
        return code, capsys.readouterr().err

    return typed


def test_from_a_folder_to_a_release(
    fit_on: Callable[..., tuple[int, str]], pictures: Path, start: Path, tmp_path: Path
) -> None:
    assert fit_on(pictures, "--heads", "linear", "--json", tmp_path / "results.json")[0] == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [each["kind"] for each in results["candidates"]] == ["linear"]
    assert results["new"]["value"] > 0.9
    assert results["baselines"]["chance"] == pytest.approx(1 / 3)
    catalog = tmp_path / "run" / "catalog.yaml"
    (again,) = evaluate_release(tmp_path / "run", catalog, "dev", ["pictures"], None, ["plain"], "cpu", 0, 0)
    assert again["top1"] == pytest.approx(results["new"]["value"])
    release, old = CoVeR.from_pretrained(tmp_path / "run"), CoVeR.from_pretrained(start)
    assert [head.name for head in read_config(tmp_path / "run").heads] == ["pictures", "known"]
    frames = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(release(frames, ((2, 1),))["known"], old(frames, ((2, 1),))["known"])


def test_what_is_reported_was_not_used(
    fit_on: Callable[..., tuple[int, str]], pictures: Path, start: Path, tmp_path: Path
) -> None:
    """Other labels of the reported samples change nothing of the release."""
    assert fit_on(pictures, "--heads", "linear")[0] == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    catalog = load_catalog(tmp_path / "run" / "catalog.yaml")
    dev = frozen_features(start, catalog, "pictures", "dev")
    for sample in dev.rows:  # another picture under the same name
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(pictures / sample.sample_id)
    assert fit_on(pictures, "--heads", "linear", "--out", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == before


def test_folds_measure_every_sample_once(
    fit_on: Callable[..., tuple[int, str]], pictures: Path, tmp_path: Path
) -> None:
    assert fit_on(pictures, "--folds", 4, "--group", r"(shot\d)", "--json", tmp_path / "results.json")[0] == 0
    new = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["new"]
    assert len({answer["sample_id"] for answer in new["answers"]}) == new["n_read"] == 48
    folds_of: dict[str, set[int]] = {}
    for answer in new["answers"]:
        folds_of.setdefault(answer["group"], set()).add(answer["fold"])
    assert len(folds_of) == 8
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert new["top1"] > 0.9


def test_folds_of_a_trained_head(
    fit_on: Callable[..., tuple[int, str]], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fold trains on samples of the other groups only, all from one cache, and so does the final head on all."""
    monkeypatch.setattr(best_head, "LATE_BLOCK_STEPS", 4)
    more = ("--folds", 2, "--group", r"(shot\d)", "--heads", "late_block", "--json", tmp_path / "results.json")
    assert fit_on(pictures, *more)[0] == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    new = results["new"]
    assert len({answer["sample_id"] for answer in new["answers"]}) == new["n_read"] == 48
    assert results["baselines"]["folds"] == 2
    for fold in (1, 2):
        folder = tmp_path / "run" / f"add/fold{fold}of2"
        tested = {answer["group"] for answer in new["answers"] if answer["fold"] == fold}
        for part in ("trial", "final"):
            manifest = open_manifest(folder / part / "rows/data/pictures-train.arrow")
            assert not tested & {row.group for row in manifest.rows()}, part
        held_out = open_manifest(folder / "trial/rows/data/pictures-dev.arrow")
        assert not tested & {row.group for row in held_out.rows()}
        log = [json.loads(line) for line in (folder / "final/late_block/log.jsonl").read_text().splitlines()]
        (start,) = (line for line in log if line["event"] == "start")
        assert [each["split"] for each in start["caches"]] == ["train"]
        # The confidences are of the head that would be kept, with a temperature that no test sample has chosen.
        trial = scores_of(folder / "trial/late_block", folder / "trial/rows/catalog.yaml", "dev", tmp_path)
        final = scores_of(folder / "final/late_block", folder / "final/rows/catalog.yaml", "val", tmp_path)
        wanted = (final[1].log() / temperature(trial[1], trial[2])).softmax(-1).mean(1)
        confidence = {each["sample_id"]: each["confidence"] for each in new["answers"] if each["fold"] == fold}
        assert dict(zip(final[0], wanted.amax(1).tolist(), strict=True)) == pytest.approx(confidence, abs=1e-4)
    assert len(list((tmp_path / "run").rglob("*-training-*/values.bin"))) == 1, "one cache for all folds"
    assert read_config(tmp_path / "run").datasets["pictures"]["train_samples"] == 48


def scores_of(run: Path, catalog: Path, split: str, folder: Path) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """The sample ids of a split of the pictures, the probabilities of every view, and the labels."""
    file = folder / "scores.arrow"
    evaluate_release(run, catalog, split, ["pictures"], None, ["plain"], "cpu", 0, 0, scores=file)
    table = pyarrow.ipc.open_file(file).read_all().to_pydict()
    return table["sample_id"], torch.tensor(table["view_scores"]), torch.tensor(table["label"])


def test_a_trained_head_is_calibrated_once(
    fit_on: Callable[..., tuple[int, str]], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept head is that of the run divided by the temperature of the held-out samples, also in a second run."""
    monkeypatch.setattr(best_head, "LATE_BLOCK_STEPS", 20)
    out = tmp_path / "run"
    assert fit_on(pictures, "--heads", "late_block", "--json", tmp_path / "results.json")[0] == 0
    _, scores, labels = scores_of(out / "add/late_block", out / "add/rows/catalog.yaml", "dev", tmp_path)
    wanted = temperature(scores, labels)
    assert wanted != 1
    assert read_config(out).metadata["temperature"] == pytest.approx(wanted, rel=1e-3)
    (candidate,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["candidates"]
    assert candidate["temperature"] == read_config(out).metadata["temperature"]
    trained = CoVeR.from_pretrained(out / "add/late_block").state_dict()
    kept = CoVeR.from_pretrained(out).state_dict()
    for name, value in trained.items():
        factor = candidate["temperature"] if name.startswith("heads.pictures.") else 1
        torch.testing.assert_close(kept[name], value / factor, atol=0, rtol=1e-6)
    # What is reported is of the kept head.
    _, scores, labels = scores_of(out, out / "catalog.yaml", "dev", tmp_path)
    (answers,) = read_answers(out)
    np.testing.assert_allclose(answers.confidence, scores.mean(1).amax(1), atol=1e-4)
    before = [(out / name).read_bytes() for name in ("model.safetensors", "config.json")]
    assert fit_on(pictures, "--heads", "late_block")[0] == 0
    assert [(out / name).read_bytes() for name in ("model.safetensors", "config.json")] == before


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--only-recipe"], "--only-recipe"),
        (["--optimizer.lr", "1e-3"], "--optimizer.lr"),
        (["--how", "probe", "--heads", "linear"], "--heads"),
    ],
)
def test_options_that_do_not_go_together(
    start: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(f"mine: {{format: folder, root: {pictures}, dev: 0.2}}", encoding="utf-8")
    words = ["add", start, "--data", "mine", "--catalog", catalog, "--out", tmp_path / "run", "--workers", 0, *more]
    assert main([str(word) for word in words]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "named"),
    [(["--heads", "quarters"], "quarters"), (["--heads", "attentive", "--folds", "2"], "attentive")],
)
def test_heads_that_cannot_be_tried(
    fit_on: Callable[..., tuple[int, str]], pictures: Path, tmp_path: Path, more: list[str], named: str
) -> None:
    code, said = fit_on(pictures, *more)
    assert code == 2
    assert named in said.splitlines()[-1]
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("held_out", "samples", "wanted"),
    [
        ((0.875, 0.90), 24, 0),  # one sample better: by chance as likely as not
        ((0.55, 0.61), 85, 1),
        ((0.55, 0.61), 20, 0),
        ((1.0, 1.0), 10, 0),
        ((0.5, 0.7, 0.71), 50, 1),
    ],
)
def test_a_more_complex_head_has_to_be_better_by_a_standard_error(
    held_out: tuple[float, ...], samples: int, wanted: int
) -> None:
    tried = [best_head.Candidate("linear", str(place), value, 0.0) for place, value in enumerate(held_out)]
    assert best_head.simplest(tried, samples) is tried[wanted]


@pytest.mark.parametrize("samples", [1, 4, 5, 60])
def test_a_late_block_is_left_out_where_it_cannot_be_kept(samples: int) -> None:
    """From 5 held-out samples on, exactly where no accuracy of it would be kept."""
    late_block = best_head.Candidate("late_block", "", 1.0, 0.0)
    for right in range(samples + 1):
        linear = best_head.Candidate("linear", "", right / samples, 0.0)
        can_be_kept = best_head.simplest([linear, late_block], samples) is late_block
        assert bool(best_head.why_not_better([linear], samples)) == (samples < 5 or not can_be_kept)


def test_no_late_block_where_a_simpler_head_is_right_on_all(
    fit_on: Callable[..., tuple[int, str]], pictures: Path, tmp_path: Path
) -> None:
    code, said = fit_on(pictures, "--json", tmp_path / "results.json")
    assert code == 0
    (candidate,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["candidates"]
    assert (candidate["kind"], candidate["held_out"]) == ("linear", 1)
    assert "late_block" in said
    assert not (tmp_path / "run/add/late_block").exists()


def test_the_advice_for_a_fitted_head_names_no_epochs() -> None:
    new, found = {"dataset": "mine"}, {"behind": ["thumbnail"]}
    advice = run._advice({"new": new, "baselines": found, "epochs": {}, "how": "best", "checkpoint": "start"})
    assert "below thumbnail" in advice
    assert "OTHER_START" in advice
    assert "--epochs" not in advice
