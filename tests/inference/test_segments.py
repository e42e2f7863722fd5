"""Segments: hysteresis over windows, and subtitles that FFmpeg reads back."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cover.cli import main
from cover.errors import UserError
from cover.inference.segments import Segment, SegmentRule, cells_of, find_segments, srt, vtt


def spans_of(count: int, window: float, stride: float) -> list[tuple[float, float]]:
    return [(number * stride, window) for number in range(count)]


SCORES = st.lists(st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.49, 0.5, 0.7, 1.0]), min_size=3, max_size=3), min_size=1)


@given(SCORES, st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.3, 0.5]))
def test_what_segments_cover(rows: list[list[float]], window: float, leave: float) -> None:
    """Without joining, the windows of a class that are in a segment are those of its definition, walked one by one."""
    scores, spans = np.array(rows), spans_of(len(rows), window, 0.5)
    cells, segments = cells_of(spans), find_segments(spans, scores, SegmentRule(0.5, leave))
    for label in range(3):
        own = [each for each in segments if each.label == label]
        assert all(one.end < other.start for one, other in pairwise(own))
        covered = {n for n, (start, end) in enumerate(cells) for s in own if s.start <= start and end <= s.end}
        wanted: set[int] = set()
        for number in np.flatnonzero(scores[:, label] >= 0.5):
            for step in (-1, 1):
                place = int(number)
                while 0 <= place < len(rows) and scores[place, label] >= leave:
                    wanted.add(place)
                    place += step
        assert covered == wanted
        for each in own:
            inside = scores[[each.start <= start and end <= each.end for start, end in cells], label]
            assert (each.score, each.peak) == pytest.approx((inside.mean(), inside.max()))


@given(SCORES, st.floats(0, 3), st.floats(0, 3))
def test_joined_and_short_segments(rows: list[list[float]], gap: float, shortest: float) -> None:
    scores, spans = np.array(rows), spans_of(len(rows), 0.5, 0.5)
    plain = find_segments(spans, scores, SegmentRule(0.5, 0.3))
    joined = find_segments(spans, scores, SegmentRule(0.5, 0.3, gap, shortest))
    for label in range(3):
        own = [each for each in joined if each.label == label]
        assert all(other.start - one.end > gap for one, other in pairwise(own))
        assert all(each.end - each.start >= shortest for each in own)
        for each in (each for each in plain if each.label == label and each.end - each.start >= shortest):
            assert any(one.start <= each.start and each.end <= one.end for one in own)


def test_windows_that_overlap_share_the_time() -> None:
    cells = cells_of([(0.0, 2.0), (0.5, 2.0), (1.0, 2.0), (1.2, 2.0)])
    assert cells == [(0.0, 1.25), (1.25, 1.75), (1.75, pytest.approx(2.1)), (pytest.approx(2.1), pytest.approx(3.2))]
    scores = np.array([[0.1], [0.9], [0.2], [0.1]])
    (only,) = find_segments([(0.0, 2.0), (0.5, 2.0), (1.0, 2.0), (1.2, 2.0)], scores, SegmentRule())
    assert only == Segment(1.25, 1.75, 0, 0.9, 0.9)


@pytest.mark.parametrize(
    ("values", "part"),
    [((0.0,), "--segments"), ((1.5,), "--segments"), ((0.5, 0.6), "--leave"), ((0.5, 0.5, -1.0), "--gap")],
)
def test_a_rule_that_is_refused(values: tuple[float, ...], part: str) -> None:
    with pytest.raises(UserError, match=part):
        SegmentRule(*values)


# --- subtitles --------------------------------------------------------------------------------------------------------

CUES = [(3661.5, 3662.0, "run <b>&\n\n--> {x}"), (0.0, 1.25, "läuft 80%"), (0.5, 0.5, "a moment"), (1.0, 2.0, " \n ")]


@pytest.mark.parametrize(("form", "ending"), [(srt, "srt"), (vtt, "vtt")])
def test_subtitles_are_read_back(tmp_path: Path, form: object, ending: str) -> None:
    assert callable(form)
    path = tmp_path / f"a.{ending}"
    path.write_text(form(CUES), encoding="utf-8")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.size]
        times = [float(ticks * each.time_base) for each in packets for ticks in (each.pts, each.pts + each.duration)]
        read = [bytes(packet).decode() for packet in packets]
    assert times == pytest.approx([0.0, 1.25, 0.5, 0.501, 1.0, 2.0, 3661.5, 3662.0])
    odd = {"srt": "run ‹b›& --› (x)", "vtt": "run &lt;b&gt;&amp; --&gt; {x}"}
    assert read == ["läuft 80%", "a moment", "-", odd[ending]]


def test_no_cues() -> None:
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n\n"


# --- the command ------------------------------------------------------------------------------------------------------


def test_segments_of_the_command(
    trained: Path, sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The segments are those of the windows that the timeline of the same command has."""
    folder = sandbox.parent / "kinetics_like" / "val"
    video = next(folder.glob("**/*.mp4"))
    common = ["predict", str(trained), str(video), "--head", "kinetics", "--window", "0.5", "--stride", "0.25"]
    common += ["--workers", "0"]
    assert main([*common, "--format", "jsonl", "--top", "100"]) == 0
    timeline = json.loads(capfd.readouterr().out)["timeline"]["kinetics"]
    level = float(np.median([window["top"][0][1] for window in timeline]))
    assert main([*common, "--segments", str(level), "--leave", str(level), "--out", str(tmp_path / "a.jsonl")]) == 0
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert row["protocol"]["segments"]["enter"] == level
    names = sorted({name for name, _ in timeline[0]["top"]})
    scores = np.array([[dict(window["top"])[name] for name in names] for window in timeline])
    spans = [(window["start"], window["end"] - window["start"]) for window in timeline]
    wanted = find_segments(spans, scores, SegmentRule(level, level))
    found = row["segments"]["kinetics"]
    assert found
    assert [(each["start"], each["end"], each["class"]) for each in found] == [
        (pytest.approx(each.start, abs=2e-3), pytest.approx(each.end, abs=2e-3), names[each.label]) for each in wanted
    ]
    assert main([*common, "--segments", str(level), "--leave", str(level), "--out", str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [each["class"] for each in rows] == [each["class"] for each in found]
    assert main([*common, "--segments", str(level), "--leave", str(level), "--out", str(tmp_path / "a.vtt")]) == 0
    assert (tmp_path / "a.vtt").read_text().count("-->") == len(found)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["a.mp4", "b.mp4", "--out", "x.srt"], "subtitles are of one video, and 2 files"),
        (["a.mp4", "--out", "x.srt", "--format", "csv"], "no --format"),
        (["a.mp4", "--leave", "0.3"], "--leave: goes with --segments"),
        (["a.mp4", "--segments", "0.2", "--leave", "0.3"], "--leave: expected a probability"),
    ],
)
def test_options_that_are_refused(
    trained: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    assert main(["predict", str(trained), *arguments]) == 2
    assert part in capfd.readouterr().err
