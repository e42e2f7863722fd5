"""The report of a run: its numbers are those of the answers, it is escaped, and it has no empty chart."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.evaluation.answers import Answers, read_answers, write_answers
from cover.experiments.answer_charts import (
    MOST_CLASSES,
    calibration_panel,
    class_panel,
    confusion_table,
    confusions,
    mistakes,
)
from cover.experiments.examples import class_examples
from cover.experiments.report import GAP
from cover.experiments.run_report import write_run_report

NAMES = ["<blink>bold</blink>", "other & more", "third"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the answers to 30 pictures, and a catalog."""
    for label, name in enumerate(("x", "y", "z")):
        for number in range(10):
            path = tmp_path / "set" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (80 * label, 20 * number, 90)).save(path)
    (tmp_path / "set/x/broken.png").write_bytes(b"no picture")
    (tmp_path / "run").mkdir()
    catalog = tmp_path / "run/catalog.yaml"
    (tmp_path / "set/classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
    lines = [
        f"{name}/{file} {label}"
        for label, name in enumerate(("x", "y", "z"))
        for file in [*(f"{number}.png" for number in range(10)), *(["broken.png"] if name == "x" else [])]
    ]
    (tmp_path / "set/train.txt").write_text("\n".join(lines), encoding="utf-8")
    catalog.write_text("mine: {format: list, root: ../set, dev: 0, classes: classes.txt}", encoding="utf-8")
    index(catalog, 0)
    manifest = load_catalog(catalog).manifest("mine", "train")
    rng = np.random.default_rng(0)
    rows, truth = manifest.usable.tolist(), manifest.labels[manifest.usable].tolist()
    predicted = [label if rng.random() < 0.6 else int(rng.integers(0, 3)) for label in truth]
    confidence = rng.uniform(0.34, 1, len(rows)).round(3).tolist()
    answers = Answers(
        "mine", "train", str(manifest.path), manifest.digest(), NAMES, 31, rows, truth, predicted, confidence
    )
    write_answers(tmp_path / "run", [answers])
    return tmp_path / "run"


def test_a_page(run: Path, parse: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = parse((run / "report.html").read_text(encoding="utf-8"))
    assert "blink" not in page.tags, "names of classes are escaped"
    assert NAMES[0] in page.words
    assert "broken.png" in page.words
    assert "Training loss" not in page.words
    assert page.tags.count("svg") == 0
    assert all(link.startswith("data:") for link in page.links)
    (answers,) = read_answers(run)
    right = np.mean(np.equal(answers.truth, answers.predicted))
    assert f"{right:.1%}" in page.words
    assert "On the split train: 30 samples of mine, kept apart from training." in page.words
    surest = sorted(
        (
            score
            for truth, said, score in zip(answers.truth, answers.predicted, answers.confidence, strict=True)
            if truth != said
        ),
        reverse=True,
    )
    shown = page.words[page.words.index("The surest mistakes") : page.words.index("Calibration")]
    assert re.findall(r"^(\d+) %$", shown, re.MULTILINE) == [f"{100 * score:.0f}" for score in surest[:8]]


def test_a_picture_among_videos_is_shown_as_a_picture(run: Path) -> None:
    catalog = run / "catalog.yaml"
    catalog.write_text(
        "mine: {format: list, root: ../set, dev: 0, classes: classes.txt, media: video, stills: true}", encoding="utf-8"
    )
    index(catalog, 0)
    (answers,) = read_answers(run)
    shown = mistakes(answers, load_catalog(catalog).manifest("mine", "train"))
    assert shown
    assert all(each["still"] and each["strip"] for each in shown)


def test_the_example_of_a_class_is_a_clip_if_it_has_one(
    make_set: Callable[..., Path],
) -> None:
    """Pictures lie before and behind the only clip of a class; another class has pictures alone."""
    files = {f"{place}.png": "moves" for place in (1, 2, 5, 6)} | {"4.mp4": "moves", "a.png": "stays", "b.png": "stays"}
    catalog = make_set(files, media="video", stills=True)
    shown = {each["name"]: each["strip"] for each in class_examples(load_catalog(catalog).manifest("mine", "train"))}
    assert list(shown) == ["moves", "stays"]
    assert [(each["width"] + GAP) / (64 + GAP) for each in shown.values()] == [8, 2], "frames of 64 pixels"


def test_the_numbers_of_the_charts(run: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    (answers,) = read_answers(run)
    table = confusion_table(answers)
    assert table
    theirs = metrics.confusion_matrix(answers.truth, answers.predicted)
    assert [[cell.count for cell in cells] for _, _, cells in table["rows"]] == theirs.tolist()
    panel = class_panel(answers)
    assert panel
    recall = metrics.recall_score(answers.truth, answers.predicted, average=None)
    assert [each.label for each in panel.bars] == [NAMES[place] for place in np.argsort(-recall, kind="stable")]
    found = calibration_panel(answers)
    assert found
    assert sum(int(each.value.split()[-1]) for each in found.bars) == 30
    assert calibration_panel(replace(answers, rows=answers.rows[:5])) is None


def test_many_classes_have_a_list_of_confusions(run: Path) -> None:
    (answers,) = read_answers(run)
    many = [f"class {number}" for number in range(MOST_CLASSES + 1)]
    truth = [number for number in range(len(many)) for _ in range(2)]
    predicted = [0 if number == 1 else number for number in truth]
    answers = replace(answers, classes=many, truth=truth, predicted=predicted, confidence=[0.5] * len(truth))
    assert confusion_table(answers) is None
    table = confusions(answers)
    assert table
    assert [[cell.text for cell in row] for row in table.rows] == [["class 1", "class 0", "2 of 2"]]


def test_a_training_run_has_a_report(trained: Path, tmp_path: Path, parse: Any) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "copy"))
    page = parse(write_run_report(run).read_text(encoding="utf-8"))
    assert {"kinetics", "ssv2", "moments", "imagenet"} <= set(page.words.split())
    assert "Accuracy during training" not in page.words, "one point is no curve"


def test_folders_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_files_that_were_indexed_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "set/x/0.png").unlink()
    index(run / "catalog.yaml", 0)
    assert main(["report", str(run)]) == 2
    assert "mine-train.arrow" in capsys.readouterr().err
