"""Decoding to the last frame finds what counting packets cannot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cover.media.decode import MediaError, probe, probe_deep


def write_noise(path: Path, frames: int = 40, codec: str = "libx264", first: int = 0) -> Path:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = first + number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.mkv", "libx264")]
)
def test_sound_files_measure_the_same(tmp_path: Path, name: str, codec: str) -> None:
    path = write_noise(tmp_path / name, codec=codec)
    assert probe_deep(path) == (probe(path), "")


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.mkv", "libx264")])
def test_half_a_file_is_partial(tmp_path: Path, name: str, codec: str) -> None:
    result, why = probe_deep(cut(write_noise(tmp_path / name, codec=codec), 0.5))
    assert 5 < result.frames < 30
    assert result.duration == pytest.approx(result.frames / 10, abs=0.01)
    assert why.endswith((f", {result.frames} of 40 frames", f", {result.frames} of about 40 frames"))


def test_damage_inside(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    assert probe(path).frames == 40
    result, why = probe_deep(path)
    assert 5 < result.frames < 30
    assert why.endswith(f", {result.frames} of 40 frames")


def test_late_start_is_no_early_end(tmp_path: Path) -> None:
    result, why = probe_deep(write_noise(tmp_path / "a.mkv", first=50))
    assert (result.start, result.frames, why) == (5.0, 40, "")


def test_images_are_decoded_at_full_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(path)
    assert probe_deep(path, "image") == (probe(path, "image"), "")
    with pytest.raises(MediaError, match="damaged image"):
        probe_deep(cut(path, 0.6), "image")


def test_folder_of_frames(tmp_path: Path) -> None:
    for number in range(1, 11):
        Image.fromarray(np.full((48, 64, 3), number, np.uint8)).save(tmp_path / f"{number:05d}.png")
    assert probe_deep(tmp_path) == (probe(tmp_path), "")
    cut(tmp_path / "00007.png", 0.6)
    result, why = probe_deep(tmp_path)
    assert (result.frames, result.duration) == (6, pytest.approx(0.5))
    assert why.startswith("00007.png: ")
    assert why.endswith(", 6 of 10 frames")
    cut(tmp_path / "00001.png", 0.6)
    with pytest.raises(MediaError, match="damaged image"):
        probe_deep(tmp_path)
