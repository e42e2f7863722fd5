"""In a damaged file, the frame at a time and its damage do not depend on the other times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cover.media.decode import MediaError, decode_at

COUNT, RATE = 110, 25  # 4.4 s: a late time alone is found by a seek, the same time behind earlier ones is not
X264 = {"g": "25", "bf": "3", "x264-params": "b-adapt=0:scenecut=0"}
X265 = "log-level=none:open-gop=1:bframes=3:keyint=25:pools=1:frame-threads=1"
DAMAGES = 10
FAST = {"movflags": "faststart"}
CLIPS = {
    "a.mp4": ("libx264", X264, FAST),
    "open.mp4": ("libx264", {**X264, "x264-params": "open-gop=1:b-adapt=0:scenecut=0:b-pyramid=normal"}, FAST),
    "fragments.mp4": ("libx264", X264, {"movflags": "frag_keyframe+empty_moov"}),
    "hevc.mp4": ("libx265", {"x265-params": X265}, FAST),
    "mpeg4.mp4": ("mpeg4", {"g": "20", "bf": "2"}, FAST),
    "jpegs.mov": ("mjpeg", {}, FAST),
    "vp9.webm": ("libvpx-vp9", {"g": "25", "deadline": "realtime", "cpu-used": "8"}, {}),
    "a.mkv": ("libx264", X264, {}),
    "a.ts": ("libx264", X264, {}),
    "a.avi": ("mpeg4", {"g": "20"}, {}),
}


def write_noise(path: Path, codec: str, options: dict[str, str], mux: dict[str, str]) -> bytes:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=mux) as container:
        try:
            stream = container.add_stream(codec, rate=RATE, options=options)
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"no {codec} here")
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(COUNT):
            pixels = rng.integers(0, 256, (12, 16, 3)).repeat(4, 0).repeat(4, 1) // 2 + number % 128
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """The file cut off, with flipped bits, with a hole of zeros, or without some bytes."""
    data, kind = bytearray(whole), rng.integers(4)
    place = int(rng.integers(len(data) // 5, len(data)))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for bit in rng.integers(len(data) // 5 * 8, len(data) * 8, rng.integers(1, 6)).tolist():
            data[bit // 8] ^= 1 << bit % 8
        return bytes(data)
    size = int(rng.integers(1, 400))
    data[place : place + size] = b"" if kind == 3 else bytes(len(data[place : place + size]))
    return bytes(data)


def read(path: Path, times: Sequence[float]) -> tuple[list[bytes], bool] | None:
    try:
        decoded = decode_at(path, times)
    except MediaError:
        return None
    return [frame.tobytes() for frame in decoded.frames], decoded.partial is not None


@pytest.mark.parametrize("name", CLIPS)
def test_a_frame_does_not_depend_on_the_other_times(tmp_path: Path, name: str) -> None:
    whole = write_noise(tmp_path / name, *CLIPS[name])
    rng, path = np.random.default_rng(1), tmp_path / f"damaged_{name}"
    partial = 0
    for number in range(DAMAGES):
        path.write_bytes(damaged(whole, rng))
        times = ((rng.choice(COUNT + 10, 6, replace=False) + rng.choice([0, 0.3, 0.99], 6)) / RATE).tolist()
        alone = [read(path, [time]) for time in times]
        together = read(path, times)
        if together is None:
            assert alone == [None] * len(times)
            continue
        assert [each and each[0][0] for each in alone] == together[0]
        assert any(each and each[1] for each in alone) == together[1]
        partial += together[1]
        if number % 2:
            continue
        late = max(times)  # from the start, without a seek
        dense = read(path, [*np.arange(0, late, 1 / RATE).tolist(), late])
        assert dense is not None
        assert dense[0][-1] == together[0][times.index(late)]
    assert partial or not name.endswith(".mp4")


@pytest.mark.parametrize("name", [name for name in CLIPS if name not in ("a.ts", "a.avi")])
def test_what_is_not_partial_is_right(tmp_path: Path, name: str) -> None:
    """However a file was cut off."""
    whole = write_noise(tmp_path / name, *CLIPS[name])
    times = (np.arange(0, COUNT, 9) / RATE + 0.02).tolist()
    right = read(tmp_path / name, times)
    assert right is not None
    assert not right[1]
    for fraction in (0.3, 0.61, 0.99):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * fraction)])
        for time, frame in zip(times, right[0]):
            alone = read(tmp_path / name, [time])
            assert alone is not None
            # only an index in front tells that something was cut off
            assert alone[1] or alone[0] == [frame] or (CLIPS[name][2] != FAST and time > fraction * COUNT / RATE / 2)


def test_an_index_in_front_and_a_cut_behind(tmp_path: Path) -> None:
    """The frames that wait in the decoder before the cut are shown, and every later time says that the file ends."""
    whole = write_noise(tmp_path / "a.mp4", *CLIPS["a.mp4"])
    times = (np.arange(COUNT) / RATE).tolist()
    right = read(tmp_path / "a.mp4", times)
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    cut = read(tmp_path / "a.mp4", times)
    assert right
    assert cut
    shown = [right[0].index(frame) for frame in cut[0]]  # the numbers of the frames that are shown
    sound = [number for number in range(COUNT) if shown[number] == number]
    assert COUNT // 3 < len(sound) < COUNT * 3 // 4
    assert shown == [max(each for each in sound if each <= number) for number in range(COUNT)]
    said = [decode_at(tmp_path / "a.mp4", [time]).partial for time in times]
    assert all(number in sound or said[number] for number in range(COUNT))
    assert set(said) == {None, "the file ends early"}
    assert not any(said[: len(sound) - 5])


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_frames_that_wait_in_the_decoder_are_shown(tmp_path: Path, name: str) -> None:
    """Where a packet cannot be decoded, the pictures before it in the file are shown, by either way of reading."""
    path = tmp_path / name
    whole = bytearray(write_noise(path, "mpeg4", {"g": "100", "bf": "2", "sc_threshold": "1000000000"}, {}))
    times = (np.arange(60) / RATE).tolist()
    right = read(path, times)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    # Packets come as I0 P3 B1 B2 P6 B4 B5 ...: in front of P30, P27 still waits for B28 and B29.
    place = whole.index(bytes(packets[28]))
    whole[place : place + packets[28].size] = b"\xff" * packets[28].size
    path.write_bytes(whole)
    damaged = read(path, times)
    assert right
    assert damaged
    assert damaged[1]
    assert damaged[0][:28] == right[0][:28]
    assert right[0].index(damaged[0][40]) == 27
