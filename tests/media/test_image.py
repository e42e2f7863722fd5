"""A folder of numbered images is read as the video it was cut from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cover.media.decode import MediaError, decode_at, probe


def write_frames(
    folder: Path, numbers: list[int], pattern: str = "{:06d}.png", size: tuple[int, int] = (40, 30)
) -> Path:
    """Frame n is grey of level n."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((size[1], size[0], 3), number, np.uint8)).save(folder / pattern.format(number))
    return folder


def shown(folder: Path, times: list[float]) -> list[int]:
    return decode_at(folder, times).frames[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("pattern", ["{:06d}.png", "img_{:05d}.png", "78687_{}.png", "frame{}.bmp"])
def test_frames_at_12_a_second(tmp_path: Path, pattern: str) -> None:
    folder = write_frames(tmp_path / "78687", list(range(1, 25)), pattern)
    (folder / "notes.txt").touch()
    result = probe(folder)
    assert (result.frames, result.width, result.height, result.start) == (24, 40, 30, 0.0)
    assert (result.fps, result.duration) == pytest.approx((12, 2))
    assert shown(folder, [0, 1 / 12, 0.9 / 12, 1.0, 5.0, -1.0]) == [1, 2, 1, 13, 24, 1]


def test_absent_number_leaves_its_time_to_the_frame_before(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", [3, 4, 7, 8])
    assert shown(folder, [n / 12 for n in range(6)]) == [3, 4, 4, 4, 7, 8]
    assert probe(folder).fps == pytest.approx(3 / (5 / 12))


def test_size_hint_is_met(tmp_path: Path) -> None:
    assert decode_at(
        write_frames(tmp_path / "a", [1, 2], "{}.jpg", (400, 300)), [0.0, 0.1], size_hint=60
    ).frames.shape == (2, 60, 80, 3)
    assert decode_at(write_frames(tmp_path / "b", [1, 2]), [0.0], size_hint=60).frames.shape == (1, 30, 40, 3)


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MediaError, match="without numbered images"):
        probe(empty)
    damaged = write_frames(tmp_path / "damaged", [1, 2, 3])
    (damaged / "000002.png").write_bytes(b"")
    assert shown(damaged, [0.0, 0.2]) == [1, 3]
    with pytest.raises(MediaError, match=r"000002\.png: empty file"):
        decode_at(damaged, [0.1])
    mixed = write_frames(write_frames(tmp_path / "mixed", [1]), [2], size=(10, 10))
    with pytest.raises(MediaError, match="different sizes: 10x10 and 40x30"):
        decode_at(mixed, [0.0, 0.1])
    twice = write_frames(write_frames(tmp_path / "twice", [1], "img_{}.png"), [1], "flow_{}.png")
    with pytest.raises(MediaError, match=r"same number: flow_1\.png and img_1\.png"):
        probe(twice)
    with pytest.raises(MediaError, match="not a file"):
        probe(twice, "image")
