"""Every view is the cut that one would make by hand, from one decode of the file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cover.evaluation import protocol
from cover.evaluation.protocol import ViewPlan, read_scaled, read_views
from cover.media.decode import MediaError
from cover.media.sampling import Sampling, Views

RATE, COUNT = 10, 30


def write(path: Path, width: int, height: int, count: int = COUNT) -> np.ndarray:
    """A lossless video of noise; its frames, uint8 `(count, height, width, 3)`."""
    grey = np.random.default_rng(0).integers(0, 256, (count, height, width), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for number, pixels in enumerate(grey):
            frame = av.VideoFrame.from_ndarray(np.repeat(pixels[..., None], 3, axis=2), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return np.repeat(grey[..., None], 3, axis=3)


def at(frames: np.ndarray, times: list[float]) -> np.ndarray:
    """The frames shown at some seconds: the last to have begun, none beyond the last."""
    return frames[[min(int(time * RATE + 1e-3), len(frames) - 1) for time in times]]


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (48, 48)])
def test_views_by_hand(tmp_path: Path, width: int, height: int) -> None:
    frames = write(tmp_path / "a.mkv", width, height)
    (clips,), partial = read_views(
        str(tmp_path / "a.mkv"), "video", [ViewPlan(Sampling("whole"), Views(2, 3), 3, 48)], COUNT / RATE
    )
    assert partial is None
    assert clips.shape == (6, 3, 3, 48, 48)
    for view, times in enumerate(([0.25, 1.25, 2.25], [0.75, 1.75, 2.75])):
        for crop, fraction in enumerate((0, 0.5, 1)):
            left, top = int((width - 48) * fraction), int((height - 48) * fraction)
            wanted = at(frames, times)[:, top : top + 48, left : left + 48].transpose(0, 3, 1, 2)
            assert np.array_equal(clips[3 * view + crop], wanted)


@pytest.mark.parametrize("spatial", [1, 3])
def test_views_of_frames_that_are_in_memory_once(tmp_path: Path, spatial: int) -> None:
    """As many pixels as the frames have, and the clips of `read_views` from them, also of a file that is scaled."""
    write(tmp_path / "a.mkv", 96, 64)
    plan = ViewPlan(Sampling("dense", 0.2), Views(4, spatial), 5, 48)
    (wanted,), _ = read_views(str(tmp_path / "a.mkv"), "video", [plan], COUNT / RATE)
    views, _ = read_scaled(str(tmp_path / "a.mkv"), "video", plan, COUNT / RATE)
    assert np.array_equal(views.clips(lambda pixels: pixels).numpy(), wanted)
    assert views.frames.shape[0] == len(np.unique(views.shown)) <= COUNT


def test_dense_clips_beyond_the_end_repeat_the_last_frame(tmp_path: Path) -> None:
    frames = write(tmp_path / "a.mkv", 48, 48, count=5)
    (clips,), _ = read_views(
        str(tmp_path / "a.mkv"), "video", [ViewPlan(Sampling("dense", 0.2), Views(2, 1), 6, 48)], 0.5
    )
    wanted = frames[[0, 2, 4, 4, 4, 4]].transpose(0, 3, 1, 2)
    assert np.array_equal(clips, np.stack([wanted, wanted]))


def test_a_stretch_of_a_video_repeats_its_own_last_frame(tmp_path: Path) -> None:
    frames = write(tmp_path / "a.mkv", 48, 48)
    plan = ViewPlan(Sampling("dense", 0.3), Views(2, 1), 8, 48)
    (clips,), _ = read_views(str(tmp_path / "a.mkv"), "video", [plan], 1.0, start=0.5)
    for clip in clips:
        np.testing.assert_array_equal(clip.transpose(0, 2, 3, 1), frames[[5, 8, 11, 14, 14, 14, 14, 14]])


def test_a_segment_of_a_file(tmp_path: Path) -> None:
    frames = write(tmp_path / "a.mkv", 48, 48)
    plan = ViewPlan(Sampling("segments"), Views(1, 1), 2, 48)
    (clips,), _ = read_views(str(tmp_path / "a.mkv"), "video", [plan], duration=1.0, start=1.5)
    assert np.array_equal(clips[0], at(frames, [1.75, 2.25]).transpose(0, 3, 1, 2))


def test_all_plans_share_one_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.mkv", 64, 48)
    plans = [ViewPlan(Sampling("whole"), Views(2, 3), 4, 32), ViewPlan(Sampling("dense", 0.25), Views(1, 1), 8, 32)]
    apart = [read_views(str(tmp_path / "a.mkv"), "video", [plan], 3.0)[0][0] for plan in plans]
    calls, decode = [], protocol.decode_at
    monkeypatch.setattr(protocol, "decode_at", lambda *given, **more: calls.append(given) or decode(*given, **more))
    together, _ = read_views(str(tmp_path / "a.mkv"), "video", plans, 3.0)
    assert len(calls) == 1
    assert all(np.array_equal(one, other) for one, other in zip(apart, together, strict=True))


def test_images_are_cropped_along_their_long_side(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (clips,), _ = read_views(str(tmp_path / "a.png"), "image", [ViewPlan(Sampling("dense"), Views(4, 3), 8, 48)])
    wanted = [pixels[:, left : left + 48].transpose(2, 0, 1)[None] for left in (0, 16, 32)]
    assert np.array_equal(clips, np.stack(wanted))


def test_scaled_views_are_pillows(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (clips,), _ = read_views(str(tmp_path / "a.png"), "image", [ViewPlan(Sampling("dense"), Views(1, 1), 8, 16)])
    wanted = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.abs(clips[0, 0].transpose(1, 2, 0).astype(int) - wanted).max() <= 1


def test_a_file_that_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(MediaError):
        read_views(str(tmp_path / "a.mp4"), "video", [ViewPlan(Sampling("whole"), Views(1, 1), 2, 16)], 1.0)
