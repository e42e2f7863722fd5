"""The demo's page holds every number, copes with what is missing, and needs nothing from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cover.experiments.demo import Answers, uncertainty
from cover.experiments.report import DemoResults, PredictedClip, numbers_markdown, plain, write_demo_report
from cover.experiments.run_files import read_log

HOSTILE = '<img src="http://evil" onerror=alert(1)> & \'quoted\' "ü" 跳'


def row(**value: Any) -> dict[str, Any]:
    """A row of results, with its intervals and differences."""
    values = _row(**value)
    count = values["n_read"]
    numbers, keys = np.arange(count), ("single", "cotrained", "cotrained_shuffled", "cotrained_single_frame")
    right = {key: numbers < round(values[key] * count) for key in keys if values[key] is not None}
    return {**values, **uncertainty({key: Answers(numbers, own, numbers) for key, own in right.items()})}


def _row(**value: Any) -> dict[str, Any]:
    return {
        "chance": 0.1,
        "single": 0.604,
        "cotrained": 0.632,
        "cotrained_shuffled": 0.147,
        "cotrained_single_frame": 0.121,
        "n_read": 398,
        "n_listed": 1400,
        "top5": 0.951,
        "mean_class": 0.618,
        "classes": 10,
        "views": "1x3",
        "split": "val",
        "step": 1612,
        "class_digest": "9f31c2ab04de",
        "media": "video",
        **value,
    }


def log_line(step: int, **loss: float) -> str:
    names = list(loss)
    each = {name: round(1 / len(names), 3) for name in names}
    return json.dumps(
        {
            "event": "train",
            "step": step,
            "seconds": step / 2,
            "loss": loss,
            "top1": each,
            "lr": 0.001,
            "samples_per_s": 151.0,
            "wait_share": 0.037,
            "rate_wanted": each,
            "rate_realised": each,
            "epochs": dict.fromkeys(names, step / 7),
            "seen": dict.fromkeys(names, 8 * step),
            "grad_norm": 1.0,
        }
    )


def write_log(path: Path, lines: list[str], tail: str = "") -> Path:
    path.write_text("\n".join(lines) + "\n" + tail, encoding="utf-8")
    return path


def whole_demo(folder: Path) -> DemoResults:
    dev = json.dumps({"event": "dev", "step": 30, "datasets": {"motion": {"top1": 0.4}}})
    both = [log_line(step, motion=2.3 / step, image=3.0 / step) for step in range(10, 60, 10)]
    frames = np.random.default_rng(0).integers(0, 255, (8, 24, 32, 3), dtype=np.uint8)
    return DemoResults(
        results={
            "wall_seconds": 1159.0,
            "datasets": {"motion": row(), "image": row(cotrained_shuffled=None, single=None, n_read=77)},
        },
        stages=[("sandbox", 61.0), ("co-training", 505.0)],
        runs={"co-training": write_log(folder / "co.jsonl", [*both, dev])},
        clips=[
            PredictedClip("motion", "/data/a.mp4", frames, "up", [("down", 0.61), ("up", 0.27)]),
            PredictedClip("image", "b", frames[:1], "x", [("x", 0.9)]),
        ],
        commands=["cover evaluate out/checkpoint --shuffle-frames"],
        environment={"seed": "17", "torch": "2.13.0"},
    )


def test_every_number_is_on_the_page(tmp_path: Path, parse: Any) -> None:
    path = write_demo_report(tmp_path / "new" / "folder", whole_demo(tmp_path))
    page = parse(path.read_text(encoding="utf-8"))
    expected = [
        "10.0",
        "60.4",
        "63.2",
        "14.7",
        "12.1",
        "95.1",
        "61.8",
        "398 of 1,400",
        "77 of 1,400",
        "1x3",
        "val",
        "1,612",
        "9f31c2ab04de",
    ]
    expected += ["19:19", "1:01", "8:25", "50.00", "7.14", "400", "151", "3.7", "61 %", "27 %", "a.mp4", "17", "2.13.0"]
    expected += ["cover evaluate out/checkpoint --shuffle-frames", "+2.8 points", "co-training"]
    assert [words for words in expected if words not in page.words] == []
    assert page.tags.count("svg") == 2
    assert page.tags.count("img") == 2
    assert list(path.parent.iterdir()) == [path]


def test_trivial_methods_are_columns_where_they_were_measured() -> None:
    plainly = numbers_markdown({"datasets": {"a": row()}})
    assert "thumbnail" not in plainly
    assert "motion" not in plainly
    results = {"datasets": {"a": row(thumbnail=0.644, motion=0.251), "b": row(thumbnail=0.333, motion=None)}}
    header, _, first, second = [line for line in numbers_markdown(results).splitlines() if line.startswith("|")]
    assert header.index("chance") < header.index("thumbnail") < header.index("motion") < header.index("trained alone")
    assert "64.4" in first
    assert "above the model" in first
    assert "above the model" not in second


def test_nothing_is_fetched_from_outside(tmp_path: Path, parse: Any) -> None:
    text = write_demo_report(tmp_path, whole_demo(tmp_path)).read_text(encoding="utf-8")
    page = parse(text)
    assert all(link.startswith("data:") for link in page.links)
    assert "http:" not in text
    assert "https:" not in text
    assert "script" not in page.tags
    assert re.findall(r"url\(|@import", text) == []


def test_hostile_names_stay_text(tmp_path: Path, parse: Any) -> None:
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    log = write_log(tmp_path / "log.jsonl", [log_line(step, **{HOSTILE: 1.0, "b": 2.0}) for step in (1, 2)])
    demo = DemoResults(
        results={
            "wall_seconds": 1.0,
            "datasets": {HOSTILE: row(views=HOSTILE, split=HOSTILE, media=HOSTILE, class_digest=HOSTILE)},
        },
        stages=[(HOSTILE, 1.0)],
        runs={HOSTILE: log},
        clips=[PredictedClip(HOSTILE, HOSTILE + "\udc80", frames, HOSTILE, [(HOSTILE, 0.5)])],
        commands=[HOSTILE],
        environment={HOSTILE: HOSTILE},
    )
    text = write_demo_report(tmp_path, demo).read_text(encoding="utf-8")
    page = parse(text)
    assert page.tags.count("img") == 1
    assert HOSTILE in page.words
    assert "<img src=http" not in text.replace('"', "")


def test_nulls_and_absent_keys_are_dashes(tmp_path: Path, parse: Any) -> None:
    results = {"wall_seconds": None, "datasets": {"a": dict.fromkeys(row()), "b": {}}}
    page = parse(write_demo_report(tmp_path, DemoResults(results)).read_text(encoding="utf-8"))
    assert "–" in page.words
    assert "None" not in page.words
    for said in ("Not evaluated.", "There is no training log.", "There are no predicted clips.", "No stage was timed."):
        assert said in page.words


def test_an_empty_story_is_still_a_page(tmp_path: Path, parse: Any) -> None:
    assert (
        "No data set was evaluated."
        in parse(write_demo_report(tmp_path, DemoResults({})).read_text(encoding="utf-8")).words
    )


def test_torn_and_missing_logs_are_said_and_drawn_around(tmp_path: Path, parse: Any) -> None:
    torn = write_log(
        tmp_path / "torn.jsonl", [log_line(1, a=2.0, b=1.0), log_line(2, a=1.5, b=float("nan"))], '{"event":"train","st'
    )
    runs = {
        "co-training": torn,
        "single: a": tmp_path / "gone.jsonl",
        "pre-training": write_log(tmp_path / "empty.jsonl", []),
    }
    page = parse(
        write_demo_report(tmp_path, DemoResults({"datasets": {"a": row()}}, runs=runs)).read_text(encoding="utf-8")
    )
    assert "co-training: 1 unreadable line left out." in page.words
    assert "single: a: gone.jsonl: No such file or directory." in page.words
    assert "pre-training: no train line in its log." in page.words
    assert page.tags.count("svg") == 1, "one point is no curve"
    assert read_log(torn).losses("a") == [(8, 2.0), (16, 1.5)]
    assert read_log(torn).losses("b") == [(8, 1.0)]


def test_one_logged_step_and_no_frames_are_enough(tmp_path: Path, parse: Any) -> None:
    log = write_log(tmp_path / "log.jsonl", [log_line(0, a=0.0)])
    strip = PredictedClip("a", "a.mp4", np.zeros((0, 8, 8, 3), np.uint8), "x", [])
    page = parse(
        write_demo_report(tmp_path, DemoResults({}, runs={"co-training": log}, clips=[strip])).read_text(
            encoding="utf-8"
        )
    )
    assert "No frame could be read." in page.words
    assert "No prediction." in page.words


@pytest.mark.parametrize("shape", [(2, 20, 30), (8, 300, 200), (64, 16, 16)])
def test_strips_of_any_length_and_size(tmp_path: Path, shape: tuple[int, int, int], parse: Any) -> None:
    strip = PredictedClip("a", "a.mp4", np.zeros((*shape, 3), np.uint8), "x", [("x", 1.0)])
    assert (
        parse(write_demo_report(tmp_path, DemoResults({}, clips=[strip])).read_text(encoding="utf-8")).tags.count("img")
        == 1
    )


def test_differences_have_a_verdict(tmp_path: Path, parse: Any) -> None:
    sets = {
        "up": row(single=0.5, cotrained=0.7),
        "same": row(single=0.6, cotrained=0.603),
        "down": row(single=0.9, cotrained=0.7),
        "unpaired": row(single=None, cotrained_shuffled=None),
        "chance": row(cotrained=0.11, cotrained_shuffled=0.11),
        "few": row(single=0.0, cotrained=1.0, n_read=1),
    }
    lines = {
        line.split(" | ")[0].removeprefix("| "): line for line in numbers_markdown({"datasets": sets}).splitlines()
    }
    assert "| 70.0 (+20.0 points: better) | 14.7 (-55.3 points: worse) |" in lines["up (video)"]
    assert "| 60.3 (+0.3 points: no difference shown) |" in lines["same (video)"]
    assert "| 70.0 (-20.0 points: worse) |" in lines["down (video)"]
    assert "| – | 63.2 | – |" in lines["unpaired (video)"]
    assert "| 10.0 (not exceeded) |" in lines["chance (video)"]
    assert "| 11.0 (0.0 points: no difference shown) |" in lines["chance (video)"]
    assert "(+100.0 points: no difference shown)" in lines["few (video)"]
    page = parse(write_demo_report(tmp_path, DemoResults({"datasets": sets})).read_text(encoding="utf-8"))
    assert page.words.count("points: better") == 1


def test_what_the_numbers_cannot_carry_is_said(tmp_path: Path) -> None:
    results = {"datasets": {"a": row(), "b": row(n_read=77)}}
    generated, real = (
        write_demo_report(tmp_path, DemoResults(results, generated=item)).read_text(encoding="utf-8")
        for item in (True, False)
    )
    assert "77 to 398 samples per data set" in generated
    assert "nothing about real videos" in generated
    assert "real videos" not in real


def test_markdown_table() -> None:
    lines = numbers_markdown({"datasets": {"a|b\nc": row(), "empty": {}}}).splitlines()
    figures = "10.0 | 60.4 | 63.2 (+2.8 points: better) | 14.7 (-48.5 points: worse) | 12.1"
    assert lines[2] == f"| a\\|b c (video) | {figures} | 10 | 398 of 1,400 | 1x3 |"
    assert lines[3].count("–") == 8
    assert plain("a|b\n<i> *c*") == "a\\|b &lt;i> \\*c\\*"
    assert numbers_markdown({}).count("\n") == 2
