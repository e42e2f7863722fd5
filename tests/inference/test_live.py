"""Predictions for a video while it plays are those for the same frames as a whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cover import CoVeR
from cover.cli import main
from cover.errors import UserError
from cover.inference.predict import default_windows
from cover.inference.predictor import Predictor
from cover.inference.views import Windows
from cover.model.backbones import named_config
from cover.model.backbones.movinet import MoViNetConfig
from cover.model.heads import Head

FPS = 10


def noise(count: int, side: tuple[int, int] = (40, 56)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *side, 3), np.uint8)


def playing(frames: np.ndarray, begin: float = 3.0) -> Iterator[tuple[float, np.ndarray]]:
    yield from ((begin + number / FPS, frame) for number, frame in enumerate(frames))


def spread(model: CoVeR) -> CoVeR:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for head in model.heads.values():
            head.weight.normal_(generator=generator)
    return model


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads = (Head("parts", ("a", "b", "c")), Head("dense", ("x", "y"), "sigmoid"))
    sets = {"parts": {"sampling": "segments", "views": "1x3"}, "dense": {"sampling": "dense@0.3", "views": "2x1"}}
    model = CoVeR(named_config("mini", size=32, frames=4), heads, metadata={"frames": 4, "datasets": sets})
    folder = tmp_path_factory.mktemp("live") / "clips"
    spread(model).save_pretrained(folder)
    return folder


def stream_predictor() -> Predictor:
    sets = {"mine": {"sampling": "dense@0.2", "views": "1x1"}}
    config = MoViNetConfig(size=32, frames=8, stream=True)
    return Predictor(spread(CoVeR(config, (Head("mine", tuple("abc")),), metadata={"frames": 8, "datasets": sets})))


def test_a_sliding_window_is_a_timeline(clips: Path) -> None:
    predictor, frames = Predictor.load(clips), noise(64)
    live = list(predictor.live(playing(frames), stride=0.5, window=2.0))
    assert [result.end for result in live] == pytest.approx([*np.arange(0.5, 6.1, 0.5), 6.4])
    assert [result.start for result in live[:5]] == [0, 0, 0, 0, 0.5]
    timeline = {round(each.end or 0, 6): each for each in predictor.timeline(frames, 2.0, 0.5, fps=FPS)}
    compared = [(each, timeline[round(each.end or 0, 6)]) for each in live if round(each.end or 0, 6) in timeline]
    assert len(compared) == 10
    for ours, wanted in compared:
        for head in ("parts", "dense"):
            np.testing.assert_allclose(ours[head].scores, wanted[head].scores, atol=1e-5)
    before = predictor(frames[:10], fps=FPS)  # the first second, of which there is no whole window yet
    np.testing.assert_allclose(live[1]["parts"].scores, before["parts"].scores, atol=1e-5)


def test_the_window_of_a_head_is_the_span_of_its_clip(clips: Path) -> None:
    predictor = Predictor.load(clips)
    (result,) = list(predictor.live(playing(noise(30)), stride=3, heads=["dense"]))
    assert (result.start, result.end) == pytest.approx((3 - 4 * 0.3, 3))


@pytest.mark.parametrize(("seconds", "window"), [(None, 4.0), (2.0, 2.0), (75.0, 10.0), (0.03, 0.1)])
def test_the_window_of_parts_is_as_long_as_the_training_videos(
    clips: Path, seconds: float | None, window: float
) -> None:
    predictor = Predictor.load(clips)
    predictor.metadata["datasets"]["parts"].pop("seconds", None)
    if seconds:
        predictor.metadata["datasets"]["parts"]["seconds"] = seconds
    assert predictor.window("parts") == window
    assert default_windows(predictor, ["parts"]) == Windows(window, window / 4)


def test_a_stream_network_reads_frame_by_frame() -> None:
    """The features are those of one forward pass over all frames since the start of its stream."""
    predictor, frames = stream_predictor(), noise(48, (32, 32))
    results = list(predictor.live(playing(frames), stride=0.6))
    assert len(results) == 8
    spans = []
    for result in results:
        assert result.start is not None
        assert result.end is not None
        ticks = np.arange(round(result.start / 0.2), round(result.end / 0.2))
        spans.append(len(ticks))
        clip = frames[2 * ticks].transpose(0, 3, 1, 2)[None]  # every second frame of 10 fps
        (wanted,) = predictor.run([clip])
        np.testing.assert_allclose(result["mine"].scores, wanted.scores["mine"], atol=1e-5)
    assert max(spans) <= 8
    assert min(spans[2:]) >= 4


def test_a_stream_network_repeats_frames_of_a_slow_video() -> None:
    predictor, frames = stream_predictor(), noise(3, (32, 32))
    slow = [(number / 2, frame) for number, frame in enumerate(frames)]
    *_, result = predictor.live(slow, stride=1.5)
    clip = frames[[0, 0, 0, 1, 1, 2, 2, 2]].transpose(0, 3, 1, 2)[None]
    np.testing.assert_allclose(result["mine"].scores, predictor.run([clip])[0].scores["mine"], atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        ([(0.0, np.zeros((8, 8, 3), np.float32))], "give uint8"),
        ([(0.0, noise(1)[0]), (0.1, noise(1, (8, 8))[0])], "frame 1: pixels (8, 8, 3)"),
        ([(1.0, noise(1)[0]), (0.5, noise(1)[0])], "frame 1: its time is 0.5"),
        ([(float("nan"), noise(1)[0])], "frame 0: its time is nan"),
    ],
)
def test_frames_that_are_refused(clips: Path, frames: list[tuple[float, Any]], part: str) -> None:
    with pytest.raises(UserError) as raised:
        list(Predictor.load(clips).live(frames))
    assert part in str(raised.value)


def test_no_frames_give_no_prediction(clips: Path) -> None:
    assert list(Predictor.load(clips).live([])) == []


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import av

    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height = 56, 40
        for frame in np.repeat(noise(20), 60, 0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_rows_of_the_command(capfd: pytest.CaptureFixture[str], clips: Path, film: Path) -> None:
    import av

    path = film.with_name("short.mp4")
    with av.open(str(film)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][:12]:
            packet.stream = stream
            container.mux(packet)
    assert main(["predict", str(clips), "--live", str(path), "--stride", "0.5", "--top", "1"]) == 0
    out, err = capfd.readouterr()
    assert [line.split()[:3] for line in out.splitlines()] == [[end, "s", "parts:"] for end in ("0.50", "1.00", "1.20")]
    assert f"{path}: 3 predictions, 0 of 12 frames dropped" in err


@pytest.mark.full
def test_ctrl_c_ends_the_command(clips: Path, film: Path) -> None:
    command = [sys.executable, "-m", "cover", "predict", str(clips), "--live", str(film), "--format", "jsonl"]
    command += ["--stride", "0.2", "--top", "1", "--head", "parts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        rows = [json.loads(process.stdout.readline()) for _ in range(4)]
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 30
    assert [row["end"] for row in rows] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert all(row["heads"]["parts"][0][0] in "abc" for row in rows)
    assert process.returncode == 0, err
    assert "predictions" in err
    assert "0 of" in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--live", "a.mp4", "b.mp4"], "leave b.mp4 out"),
        (["--live", "a.mp4", "--out", "a.jsonl"], "cannot go with --out"),
        (["--live", "a.mp4", "--format", "csv"], "--format pretty or jsonl"),
        (["--live", "a.mp4", "--stride", "0"], "--stride: expected seconds"),
    ],
)
def test_options_that_do_not_go_together(
    capfd: pytest.CaptureFixture[str], clips: Path, arguments: list[str], part: str
) -> None:
    assert main(["predict", str(clips), *arguments]) == 2
    assert part in capfd.readouterr().err


def test_a_source_that_cannot_be_opened(capfd: pytest.CaptureFixture[str], clips: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert main(["predict", str(clips), "--live", str(tmp_path / "text.mp4")]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "text.mp4: not a video" in line
