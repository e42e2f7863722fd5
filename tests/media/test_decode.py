"""Frames are chosen exactly, in every container; what cannot be used says why."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image

from cover.datasets.files import media_of
from cover.errors import UserError
from cover.media import video
from cover.media.decode import MediaError, check_decoder, decode_at, decode_image, probe, probe_deep
from cover.media.image import open_image
from cover.media.source import ByteRange
from cover.media.stream import open_video

BITS, BLOCK, HEIGHT = 10, 8, 32  # a frame's number as black and white blocks, lowest bit first


def numbered(number: int) -> np.ndarray:
    bits = (number >> np.arange(BITS)) & 1
    row = np.repeat(bits * 255, BLOCK).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (HEIGHT, BITS * BLOCK, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    blocks = frames.reshape(len(frames), HEIGHT, BITS, -1).mean(axis=(1, 3)) > 128
    return (blocks << np.arange(BITS)).sum(axis=1).tolist()


def write_clip(
    path: Path,
    codec: str = "libx264",
    *,
    count: int = 60,
    rate: int = 25,
    stamps: Sequence[int] | None = None,
    tick: Fraction | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    mux: dict[str, str] | None = None,
    display: tuple[float, bool] | None = None,
    frames: Iterable[np.ndarray] | None = None,
) -> Path:
    """Frames 0, 1, 2, … shown at `stamps` x `tick` seconds (default: evenly at `rate`)."""
    tick = tick or Fraction(1, rate)
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = BITS * BLOCK, HEIGHT, pix_fmt
        stream.codec_context.time_base = tick
        if display:
            stream.set_display_rotation(display[0], hflip=display[1])
        for stamp, pixels in zip(stamps or range(count), frames or map(numbered, range(count))):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = stamp, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


B_FRAMES = {"bf": "3", "g": "20", "x264-params": "b-adapt=0"}
CLIPS = {
    "clip.mp4": {"options": B_FRAMES},
    "clip.mkv": {"options": B_FRAMES},
    "clip.ts": {"options": B_FRAMES},
    "fragments.mp4": {"options": B_FRAMES, "mux": {"movflags": "frag_keyframe+empty_moov"}},
    "clip.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "clip.avi": {"codec": "mpeg4"},
    "b_frames.avi": {"options": B_FRAMES},
    "b_frames_mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "20"}},
    "clip.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "jpegs.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "raw.h264": {"options": {"bf": "0"}},
    "raw_b_frames.h264": {"options": B_FRAMES},
}


@pytest.fixture(scope="module", params=CLIPS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / request.param, **CLIPS[request.param])


def test_the_frame_shown_at_a_time(clip: Path) -> None:
    decoded = decode_at(clip, [0.0, 0.038, 0.04, 0.41, 1.0, 2.36])
    assert numbers(decoded.frames) == [0, 0, 1, 10, 25, 59]
    assert decoded.partial is None
    assert decoded.frames.shape == (6, HEIGHT, BITS * BLOCK, 3)
    assert decoded.frames.dtype == np.uint8


def test_every_frame_at_its_own_time(clip: Path) -> None:
    assert numbers(decode_at(clip, np.arange(60) / 25).frames) == list(range(60))


def test_order_repeats_and_times_outside_the_clip(clip: Path) -> None:
    assert numbers(decode_at(clip, [1.02, 0.2, 99.0, 1.02, -1.0, 2.3, 2.4]).frames) == [25, 5, 59, 25, 0, 57, 59]


def test_probe_agrees_with_what_was_written(clip: Path) -> None:
    result = probe(clip, "video")
    assert result.frames == 60
    assert result.fps == pytest.approx(25, abs=0.03)
    assert result.duration == pytest.approx(2.4, abs=0.03)
    assert (result.width, result.height) == (BITS * BLOCK, HEIGHT)


def test_b_frames_are_really_there(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "b.mp4", **CLIPS["clip.mp4"])
    with av.open(str(path)) as container:
        assert any(frame.pict_type == av.video.frame.PictureType.B for frame in container.decode(video=0))


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.avi", "long.ts"])
@pytest.mark.parametrize("group", [25, 250])
def test_far_into_a_clip(tmp_path: Path, name: str, group: int) -> None:
    options = {"g": str(group), "keyint_min": str(group), "sc_threshold": "0"}
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = write_clip(tmp_path / name, codec, count=400, options=options)
    assert numbers(decode_at(path, [15.0, 9.01, 14.0, 13.99]).frames) == [375, 225, 350, 349]
    assert numbers(decode_at(path, [10.0]).frames) == [250]
    assert numbers(decode_at(path, [9.999]).frames) == [250]  # within a millisecond of the next frame
    assert numbers(decode_at(path, [1000.0]).frames) == [399]


GROUPS = {
    "short.mp4": ("libx264", {"g": "7", "bf": "0"}),
    "b_frames.mp4": ("libx264", {"g": "12", "bf": "3", "x264-params": "b-adapt=0:b-pyramid=normal"}),
    "open.mp4": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}),
    "one.mp4": ("libx264", {"g": "999", "bf": "2"}),
    "intra_refresh.mp4": ("libx264", {"g": "12", "x264-params": "intra-refresh=1"}),
    "hevc.mp4": ("libx265", {"g": "12", "x265-params": "log-level=none:open-gop=1:bframes=3:pools=1:frame-threads=1"}),
    "layers.mp4": (
        "libx265",
        {"g": "24", "x265-params": "log-level=none:temporal-layers=3:bframes=4:b-adapt=0:pools=1:frame-threads=1"},
    ),
    "vp9.webm": (
        "libvpx-vp9",
        {"g": "12", "deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"},
    ),
    "vp8.webm": (
        "libvpx",
        {"g": "12", "deadline": "good", "cpu-used": "4", "auto-alt-ref": "1", "lag-in-frames": "16", "crf": "10"},
    ),
    "av1.mp4": ("libsvtav1", {"g": "12", "preset": "12"}),
    "mpeg2.ts": ("mpeg2video", {"g": "12", "bf": "2"}),
    "mpeg4.mkv": ("mpeg4", {"g": "12", "bf": "2"}),
}


@pytest.fixture(scope="module", params=GROUPS)
def grouped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec, options = GROUPS[request.param]
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"no {codec} here")
    return write_clip(tmp_path_factory.mktemp("groups") / request.param, codec, count=100, options=options)


def test_any_frames_of_any_groups(grouped: Path) -> None:
    """However the key frames lie and whatever refers to what, the frames are those that a decode of
    everything gives.
    """
    rng = np.random.default_rng(0)
    for _ in range(25):
        wanted = rng.choice(100, rng.integers(1, 20), replace=False)
        assert numbers(decode_at(grouped, wanted / 25 + 0.01).frames) == wanted.tolist()


@pytest.mark.parametrize("name", [name for name in GROUPS if name not in ("vp8.webm", "intra_refresh.mp4")])
def test_sound_files_are_decoded_sparingly(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, options = GROUPS[name]
    path = write_clip(tmp_path / name, codec, count=100, options=options)
    monkeypatch.setattr(video, "_decode_sequentially", None)
    assert numbers(decode_at(path, [0.05, 1.01, 3.97, 2.21]).frames) == [1, 25, 99, 55]


@pytest.mark.parametrize("start", [0.0, 7.0])
def test_pixels_do_not_depend_on_what_else_is_asked_for(tmp_path: Path, start: float) -> None:
    rng = np.random.default_rng(0)
    pictures = [np.clip(numbered(n) + rng.normal(0, 30, (HEIGHT, 80, 3)), 0, 255).astype(np.uint8) for n in range(300)]
    path = write_clip(tmp_path / "noisy.mp4", count=300, frames=pictures, options={"g": "50", "bf": "3"})
    together = decode_at(path, np.arange(300) / 25).frames
    times = start + np.array([0.0, 0.32, 0.64, 3.1, 4.9])
    assert np.array_equal(decode_at(path, times).frames, together[np.round(times * 25 - 0.01).astype(int)])


def test_far_into_a_clip_of_open_groups(tmp_path: Path) -> None:
    options = {"g": "50", "keyint_min": "50", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
    path = write_clip(tmp_path / "open.mp4", count=400, options=options)
    for number in (97, 98, 99, 100, 101, 248, 249, 250, 399):
        assert numbers(decode_at(path, [number / 25]).frames) == [number]


@pytest.mark.parametrize("name", ["gaps.mp4", "gaps.mkv"])
def test_variable_rate(tmp_path: Path, name: str) -> None:
    stamps = np.cumsum([0, 33, 33, 500, 33, 34, 1200, 10, 40]).tolist()
    path = write_clip(tmp_path / name, stamps=stamps, count=len(stamps), tick=Fraction(1, 1000))
    wanted = [0.0, 0.031, 0.033, 0.5, 0.566, 1.0, 1.8, 1.834, 1.85, 9.0]
    assert numbers(decode_at(path, wanted).frames) == [0, 0, 1, 2, 3, 5, 5, 6, 7, 8]
    result = probe(path, "video")
    assert result.frames == 9
    assert result.fps == pytest.approx(8 / 1.883, rel=1e-3)


@pytest.mark.parametrize("name", ["late.mkv", "late.ts", "late.mp4"])
def test_times_count_from_the_first_frame(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, stamps=range(125, 225), count=100)
    assert probe(path, "video").start >= 5
    assert numbers(decode_at(path, [0.0, 0.04, 1.0, 3.0]).frames) == [0, 1, 25, 75]
    assert numbers(decode_at(path, [3.0, 3.5]).frames) == [75, 87]


@pytest.mark.parametrize(("degrees", "mirrored"), [(0, False), (90, False), (180, False), (-90, False), (0, True)])
def test_display_matrix(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = write_clip(tmp_path / "turned.mp4", count=5, display=(degrees, mirrored))
    upright = np.rot90(numbered(1), degrees // 90)  # FFmpeg's degrees count anticlockwise
    upright = upright[:, ::-1] if mirrored else upright
    shown = decode_at(path, [0.04]).frames[0]
    assert shown.shape == upright.shape
    assert np.abs(shown.astype(int) - upright).mean() < 8
    result = probe(path, "video")
    assert (result.height, result.width) == upright.shape[:2]


def test_cover_art_is_not_the_video(tmp_path: Path) -> None:
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        art = container.add_stream("mjpeg", rate=25)
        art.width, art.height, art.pix_fmt, art.disposition = 64, 64, "yuvj420p", Disposition.attached_pic
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = BITS * BLOCK, HEIGHT, "yuv420p"
        container.mux(art.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(art.encode())
        for number in range(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        container.mux(video.encode())
    with av.open(str(path)) as container:
        assert any(stream.disposition & Disposition.attached_pic for stream in container.streams.video)
    assert probe(path, "video").frames == 10
    assert numbers(decode_at(path, [0.2]).frames) == [5]


def test_size_hint_scales_down_and_never_up(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", count=5)
    assert decode_at(path, [0.0], size_hint=16).frames.shape == (1, 16, 40, 3)
    assert decode_at(path, [0.0], size_hint=100).frames.shape == (1, HEIGHT, BITS * BLOCK, 3)
    assert numbers(decode_at(path, [0.12], size_hint=16).frames.repeat(2, axis=1)) == [3]


def test_full_range_and_limited_range_give_the_same_white(tmp_path: Path) -> None:
    for pix_fmt in ("yuv420p", "yuvj420p", "yuv444p"):
        path = write_clip(tmp_path / f"{pix_fmt}.mp4", count=3, pix_fmt=pix_fmt, options={"crf": "5"})
        frame = decode_at(path, [0.0]).frames[0]
        assert frame.max() <= 3, pix_fmt
        white = write_clip(
            tmp_path / f"{pix_fmt}-white.mp4", frames=[np.full((HEIGHT, 80, 3), 255, np.uint8)], pix_fmt=pix_fmt
        )
        assert decode_at(white, [0.0]).frames.min() >= 252, pix_fmt


def test_a_file_cut_short_gives_what_is_left_and_says_so(tmp_path: Path) -> None:
    whole = write_clip(
        tmp_path / "whole.mp4", count=200, options={"g": "20"}, mux={"movflags": "faststart"}
    ).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 7 // 10])
    decoded = decode_at(path, [0.4, 7.9])
    assert decoded.partial
    first, last = numbers(decoded.frames)
    assert (first, 20 < last < 199) == (10, True)
    assert numbers(decode_at(path, [7.9]).frames) == [last]  # asked for alone, from behind the cut
    assert decode_at(path, [0.4, 1.0]).partial is None  # what is wanted lies before the cut
    assert probe(path, "video").frames < 200


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi", "raw.h264"])
def test_damage_anywhere_ends_in_frames_or_a_reason(tmp_path: Path, name: str) -> None:
    whole = write_clip(tmp_path / name, **CLIPS[name]).read_bytes()
    random = np.random.default_rng(0)
    for trial in range(20):
        data = bytearray(whole[: random.integers(1, len(whole))] if trial % 3 == 0 else whole)
        for place in random.integers(0, min(len(data), 2000 if trial % 2 else len(data)), 10):
            data[place] = random.integers(256)
        (tmp_path / name).write_bytes(data)
        for use in (lambda: probe(tmp_path / name, "video"), lambda: decode_at(tmp_path / name, [0.0, 2.3]).frames):
            with suppress(MediaError):  # anything else fails the test
                use()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "20"}),
        ("a.mkv", "libx264", {"g": "20"}),
        ("a.webm", "libvpx-vp9", {"g": "20", "cpu-used": "8", "deadline": "realtime"}),
        ("a.ts", "libx264", {"g": "20"}),
    ],
)
def test_zeros_in_the_middle(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    """Pictures that need a damaged one are never shown. Behind the next key frame the frames are right again, but in a
    container without an index they end.
    """
    rng = np.random.default_rng(0)
    pictures = [
        np.clip(numbered(n) + rng.integers(-20, 20, (HEIGHT, 80, 3)), 0, 255).astype(np.uint8) for n in range(100)
    ]
    data = bytearray(write_clip(tmp_path / name, codec, count=100, options=options, frames=pictures).read_bytes())
    data[len(data) * 2 // 5 : len(data) // 2] = bytes(len(data) // 2 - len(data) * 2 // 5)
    (tmp_path / name).write_bytes(data)
    decoded = decode_at(tmp_path / name, np.arange(100) / 25)
    result = numbers(decoded.frames)
    last = next(number for number in range(100) if result[number] != number) - 1
    assert decoded.partial
    assert 20 < last < 60
    again = 100 if name == "a.ts" else result.index(next(number for number in result if number > last))
    assert result == [*range(last + 1), *[last] * (again - 1 - last), *range(again, 100)]
    assert name == "a.ts" or again < 90
    assert decode_at(tmp_path / name, np.arange(15) / 25).partial is None  # asked for alone, what lies before is sound
    assert numbers(decode_at(tmp_path / name, [3.96]).frames) == result[-1:]


def test_metadata_in_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / "named.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "AAAAAAAA"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = BITS * BLOCK, HEIGHT, "yuv420p"
        for number in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"AAAAAAAA", b"caf\xe9\xff\xfe\x80!"))
    assert probe(path, "video").frames == 5
    assert numbers(decode_at(path, [0.12]).frames) == [3]


def test_a_stream_that_begins_in_the_middle(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "whole.ts", count=60, options={"g": "20", "bf": "0"}).read_bytes()
    path = tmp_path / "tail.ts"
    path.write_bytes(data[len(data) // 188 // 3 * 188 :])
    first, later = numbers(decode_at(path, [0.0, 0.4]).frames)
    assert later == first + 10


UNUSABLE = {
    "nothing here": None,
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "noise": np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes(),
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("media", ["video", "image"])
def test_what_is_no_media_file_says_why(tmp_path: Path, kind: str, media: str) -> None:
    path = tmp_path / "file.mp4"
    if UNUSABLE[kind] is not None:
        path.write_bytes(UNUSABLE[kind])
    with pytest.raises(MediaError) as caught:
        probe(path, media)
    assert 0 < len(str(caught.value)) < 100
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(MediaError):
        decode_at(path, [0.0]) if media == "video" else decode_image(path)


def test_folders_sound_and_odd_names(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="not a file"):
        probe(tmp_path, "image")
    with pytest.raises(MediaError, match="a folder without numbered images"):
        probe(tmp_path, "video")
    with pytest.raises(MediaError, match="file name"):
        probe("a\0b.mp4", "video")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(MediaError, match="no video stream"):
        probe(tmp_path / "sound.wav", "video")
    odd = write_clip(tmp_path / "clip.mp4", count=3).rename(tmp_path / "http:a %03d, 'é'.mp4")
    assert numbers(decode_at(odd, [0.08]).frames) == [2]


RAW = {
    "raw.h264": ("libx264", "h264", {"bf": "3", "x264-params": "b-adapt=0"}),
    "raw.hevc": ("libx265", "hevc", {"x265-params": "log-level=none:pools=1:frame-threads=1"}),
    "raw.m4v": ("mpeg4", "m4v", {"bf": "2"}),
    "raw.m2v": ("mpeg2video", "mpeg2video", {"bf": "2"}),
    "vp9.ivf": ("libvpx-vp9", "ivf", {"deadline": "realtime", "cpu-used": "8"}),
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("rate", [25, 30])
def test_the_rate_that_a_stream_without_a_container_states(tmp_path: Path, name: str, rate: int) -> None:
    codec, form, options = RAW[name]
    with av.open(str(tmp_path / name), "w", format=form) as container:
        try:
            stream = container.add_stream(codec, rate=rate, options=options)
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"no {codec} here")
        stream.width, stream.height, stream.pix_fmt = BITS * BLOCK, HEIGHT, "yuv420p"
        for number in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        container.mux(stream.encode())
    result = probe(tmp_path / name)
    assert (result.frames, result.fps, result.duration) == (60, pytest.approx(rate), pytest.approx(60 / rate))
    assert numbers(decode_at(tmp_path / name, [0.0, 1 / rate, 1.0, 59 / rate]).frames) == [0, 1, rate, 59]


@pytest.mark.parametrize("name", ["canon_exif.avi", "canon_exif.mov"])
def test_side_data_that_pyav_does_not_know(name: str) -> None:
    """Motion-JPEG with EXIF data in its frames, as cameras write it."""
    path = Path(__file__).with_name("files") / name
    assert probe(path).frames == 20
    assert probe_deep(path) == (probe(path), "")
    decoded = decode_at(path, [0.0, 1.0])
    assert (decoded.frames.shape, decoded.partial) == ((2, 100, 100, 3), None)


def test_an_orientation_in_motion_jpeg(tmp_path: Path) -> None:
    """A camera held upright: the EXIF data turn the pictures."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = io.BytesIO()
    for number in range(3):
        Image.fromarray(numbered(number)).save(pictures, "JPEG", exif=exif, quality=95)
    (tmp_path / "a.mjpeg").write_bytes(pictures.getvalue())
    assert decode_at(tmp_path / "a.mjpeg", [0.0]).frames.shape == (1, BITS * BLOCK, HEIGHT, 3)
    assert (probe(tmp_path / "a.mjpeg").width, probe(tmp_path / "a.mjpeg").height) == (HEIGHT, BITS * BLOCK)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{victim}\n#EXT-X-ENDLIST\n",
    "relative hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nvictim.mp4\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile victim.mp4\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "dash": '<!--free --><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1000"><BaseURL>file://{victim}'
    "</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("ending", [".mp4", ".m3u8", ".ffconcat", ".mpd"])
def test_a_list_of_other_files_is_no_video(tmp_path: Path, kind: str, ending: str) -> None:
    victim = write_clip(tmp_path / "victim.mp4", count=5)
    path = tmp_path / f"list{ending}"
    path.write_text(PLAYLISTS[kind].format(victim=victim))
    for source in (path, ByteRange(str(path), 0, path.stat().st_size)):
        for use in (probe, probe_deep, partial(decode_at, times=[0.0])):
            with pytest.raises(MediaError, match="not a video"):
                use(source)


def test_a_name_with_a_pattern_opens_no_other_file(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(numbered(number)).save(tmp_path / f"{number}.png")
    (tmp_path / "%d.png").write_bytes(b"x")
    with pytest.raises(MediaError, match="not an image"):
        decode_at(tmp_path / "%d.png", [0.0])


def test_size_guard(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", count=3)
    with pytest.raises(MediaError, match="80x32 pixels"):
        decode_at(path, [0.0], max_pixels=1000)
    with pytest.raises(MediaError, match="80x32 pixels"):
        probe(path, "video", max_pixels=1000)
    Image.new("RGB", (80, 32)).save(tmp_path / "image.png")
    with pytest.raises(MediaError, match="80x32 pixels"):
        decode_image(tmp_path / "image.png", max_pixels=1000)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted through /proc")
def test_files_are_closed(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", count=100, options={"g": "20"})
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:2000])
    Image.new("RGB", (80, 32)).save(tmp_path / "image.png")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        probe(clip, "video")
        decode_at(clip, [3.0])
        probe(tmp_path / "image.png", "image")
        decode_image(tmp_path / "image.png")
        with pytest.raises(MediaError):
            decode_at(tmp_path / "cut.mp4", [0.0])
    assert len(os.listdir("/proc/self/fd")) == before


# --- where the bytes lie


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A shard with a clip and an image behind a URL, and the clip as a file. fsspec's store in memory
    stands for any.
    """
    import fsspec

    clip = write_clip(tmp_path / "clip.mp4", count=60, options=B_FRAMES)
    Image.fromarray(numbered(9)).save(tmp_path / "image.png")
    shard = b"#" * 77 + clip.read_bytes() + (tmp_path / "image.png").read_bytes()
    store = fsspec.filesystem("memory")
    store.pipe("memory://bucket/shard.tar", shard)
    (tmp_path / "shard.tar").write_bytes(shard)
    yield clip, "memory://bucket/shard.tar"
    store.rm("memory://bucket", recursive=True)


def test_a_stretch_of_a_shard_is_as_good_as_a_file(remote: tuple[Path, str]) -> None:
    clip, url = remote
    size = clip.stat().st_size
    for place in (url, str(clip.with_name("shard.tar"))):
        part = ByteRange(place, 77, size)
        assert probe(part, "video") == probe(clip, "video")
        assert np.array_equal(decode_at(part, [0.0, 1.0, 2.0]).frames, decode_at(clip, [0.0, 1.0, 2.0]).frames)
        image = ByteRange(place, 77 + size, clip.with_name("image.png").stat().st_size)
        assert np.array_equal(decode_image(image), numbered(9))
        assert probe(image, "image").codec == "png"


def test_what_cannot_be_fetched_says_why(remote: tuple[Path, str]) -> None:
    clip, url = remote
    with pytest.raises(MediaError, match="the shard ends 5 bytes too early"):
        decode_image(ByteRange(str(clip), 0, clip.stat().st_size + 5))
    with pytest.raises(MediaError, match="cannot be read"):
        decode_at("memory://bucket/nothing.mp4", [0.0])
    with pytest.raises(MediaError, match="not a video"):
        decode_at(ByteRange(url, 0, 50), [0.0])
    with pytest.raises(MediaError, match=r"cannot be read: .*nosuch"):
        probe("nosuch://bucket/clip.mp4", "video")


# --- images


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32] = 255  # white at the upper left
    undo = {1: 0, 2: 0, 3: 180, 4: 180, 5: 90, 6: 90, 7: -90, 8: -90}[orientation]
    stored = Image.fromarray(upright).rotate(undo, expand=True)
    if orientation in (2, 4, 5, 7):
        stored = stored.transpose(
            Image.Transpose.FLIP_LEFT_RIGHT if orientation in (2, 4) else Image.Transpose.FLIP_TOP_BOTTOM
        )
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "image.jpg", exif=exif, quality=95)
    image = decode_image(tmp_path / "image.jpg")
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 5
    result = probe(tmp_path / "image.jpg", "image")
    assert (result.frames, result.width, result.height, result.codec) == (1, 64, 48, "jpeg")


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("P", "a.gif"), ("RGBA", "a.png"), ("CMYK", "a.jpg"), ("1", "a.png"), ("LA", "a.png")],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, name: str) -> None:
    Image.new("RGB", (20, 10), (255, 255, 255)).convert(mode).save(tmp_path / name)
    image = decode_image(tmp_path / name)
    assert image.shape == (10, 20, 3)
    assert image.min() >= 250


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 200).astype(np.uint16).reshape(10, 20)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(decode_image(tmp_path / "grey.png")[..., 1], grey >> 8)


@pytest.mark.parametrize("name", ["grey.pgm", "grey.tif", "grey16.png", "float.tif", "signed.tif"])
def test_grey_of_more_than_8_bits_is_not_clipped(tmp_path: Path, name: str) -> None:
    """All 16 bits, or from the lowest to the highest value of the picture where numbers have no range of their own."""
    ramp = np.linspace(0, 65535, 200).reshape(10, 20)
    if name == "grey.pgm":
        (tmp_path / name).write_bytes(b"P5 20 10 65535\n" + ramp.astype(">u2").tobytes())
    else:
        of_name = {"grey.tif": np.int32, "grey16.png": np.uint16, "float.tif": np.float32, "signed.tif": np.int32}
        scale = {"float.tif": 1e-5, "signed.tif": 1.0}.get(name, 1.0)
        values = ((ramp - (32768 if name == "signed.tif" else 0)) * scale).astype(of_name[name])
        Image.fromarray(values).save(tmp_path / name)
    image = decode_image(tmp_path / name)
    assert np.abs(image[..., 1].astype(int) - ramp / 257).max() <= 1.0
    assert (image == image[..., :1]).all()
    assert probe(tmp_path / name, "image").width == 20


def test_grey_values_that_are_no_numbers(tmp_path: Path) -> None:
    values = np.array([[0.0, np.nan], [np.inf, 2.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "some.tif")
    assert decode_image(tmp_path / "some.tif")[..., 0].tolist() == [[0, 0], [0, 255]]
    Image.fromarray(values * np.nan).save(tmp_path / "none.tif")
    with pytest.raises(MediaError, match="no pixel"):
        decode_image(tmp_path / "none.tif")
    Image.fromarray(np.full((2, 2), 7.0, np.float32)).save(tmp_path / "flat.tif")
    assert decode_image(tmp_path / "flat.tif").max() == 0


HIDDEN, HALF = (255, 0, 255, 0), (0, 0, 0, 128)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "palette.png", "grey.png", "colour_key.png"])
def test_transparent_parts_of_an_image_are_white(tmp_path: Path, name: str) -> None:
    image = Image.new("RGBA", (40, 20), HIDDEN)
    image.paste((0, 200, 0, 255), (0, 0, 20, 20))
    image.paste(HALF, (0, 0, 10, 10))
    if name == "palette.png":
        image = image.quantize()
    if name == "grey.png":
        image = image.convert("LA")
    if name == "colour_key.png":
        image = image.convert("RGB")
        image.info["transparency"] = HIDDEN[:3]
    image.save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}), **_key_of(image))
    pixels = decode_image(tmp_path / name)
    assert (pixels[:, 20:] == 255).all()
    assert np.abs(pixels[15, 5].astype(int) - (np.array([118] * 3) if name == "grey.png" else [0, 200, 0])).max() <= 2
    if name not in ("colour_key.png",):
        assert np.abs(pixels[5, 5].astype(int) - 127).max() <= 2


def _key_of(image: Image.Image) -> dict[str, object]:
    return {"transparency": image.info["transparency"]} if image.mode == "RGB" else {}


def write_gif(path: Path, frames: list[Image.Image], canvas: tuple[int, int] | None = None) -> Path:
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, disposal=2)
    data = bytearray(path.read_bytes())
    for place, side in zip((6, 8), canvas or ()):
        data[place : place + 2] = side.to_bytes(2, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("canvas", [None, (40, 30)])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_gif_is_the_same_as_picture_and_as_video(
    tmp_path: Path, alpha: bool, count: int, canvas: tuple[int, int] | None
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    pixels[..., 3] = 255 * rng.integers(0, 2, (20, 30))
    image = Image.fromarray(pixels).convert("RGBA" if alpha else "RGB")
    path = write_gif(tmp_path / "a.gif", [image, image.rotate(180)][:count], canvas)
    picture = decode_image(path)
    assert np.array_equal(decode_at(path, [0.0]).frames[0], picture)
    if alpha:
        assert (picture[:20, :30][pixels[..., 3] == 0] == 255).all()


def test_transparent_parts_of_a_video_are_white(tmp_path: Path) -> None:
    path = tmp_path / "a.mov"
    pixels = np.zeros((32, 80, 4), np.uint8)
    pixels[:] = HIDDEN
    pixels[:, :40] = (0, 200, 0, 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle", rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 32, "argb"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode())
    for hint in (None, 16):
        frame = decode_at(path, [0.04], size_hint=hint).frames[0]
        assert (frame[:, frame.shape[1] // 2 + 2 :] == 255).all()
        assert np.abs(frame[:, : frame.shape[1] // 2 - 2].astype(int) - [0, 200, 0]).max() <= 3


def test_endings_of_images(tmp_path: Path) -> None:
    Image.fromarray(numbered(5)).save(tmp_path / "a.jfif", "JPEG")
    assert media_of("a.JFIF") == media_of("a.heic") == "image"
    assert probe(tmp_path / "a.jfif", "image").codec == "jpeg"


def test_heic_takes_a_plugin(tmp_path: Path) -> None:
    if find_spec("pillow_heif") or find_spec("pi_heif"):
        pytest.skip("the plugin is installed")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    for use in (decode_image, partial(probe, media="image")):
        with pytest.raises(MediaError, match=r"HEIC image.*pip install pillow-heif"):
            use(tmp_path / "a.heic")


def test_no_image_starts_another_program(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    with pytest.raises(MediaError, match="not an image that Pillow knows"):
        decode_image(tmp_path / "a.eps")


def test_an_error_of_a_decoder_is_one_of_the_file_and_any_other_is_not(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="damaged image: ValueError"), open_image(tmp_path / "a.png", 100) as image:
        image.convert("no such mode")
    with pytest.raises(UserError), open_image(tmp_path / "a.png", 100):
        raise UserError("a user's mistake")
    with pytest.raises(ZeroDivisionError), open_image(tmp_path / "a.png", 100):
        _ = 1 // 0
    path = write_clip(tmp_path / "clip.mp4", count=3)
    with pytest.raises(MediaError, match="the decoder failed: "), open_video(path, 10**6) as (_, stream):
        stream.codec_context.skip_frame = "no such word"
    with pytest.raises(ZeroDivisionError), open_video(path, 10**6):
        _ = 1 // 0


@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.webp"])
def test_a_truncated_image_is_unreadable(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError):
        decode_image(path)
    with pytest.raises(MediaError):
        probe(path, "image")


def test_size_hint_of_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (800, 400)).save(tmp_path / "large.jpg")
    assert decode_image(tmp_path / "large.jpg", size_hint=100).shape == (100, 200, 3)
    assert decode_image(tmp_path / "large.jpg", size_hint=150).shape == (200, 400, 3)
    assert decode_image(tmp_path / "large.jpg").shape == (400, 800, 3)


# --- the other decoder


def torture_rows() -> list:
    manifest = Path(os.environ.get("COVER_TEST_DATA", "")) / "torture" / "manifest.csv"
    if not manifest.is_file():
        return [pytest.param({}, id="no data")]
    with manifest.open(encoding="utf-8", newline="") as file:
        return [pytest.param(row, id=row["path"]) for row in csv.DictReader(file)]


def test_torchcodec_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # Python's own way to say that there is none
    with pytest.raises(UserError, match=r"not installed: pip install -c constraints\.txt -e '\.\[torchcodec\]'$"):
        check_decoder("torchcodec")


@pytest.fixture(scope="module")
def torchcodec_loads() -> None:
    try:
        check_decoder("torchcodec")
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("torchcodec_loads")
@pytest.mark.parametrize(
    "name", [*CLIPS, "gaps.mp4", "late.mkv", *(name for name in GROUPS if name != "intra_refresh.mp4")]
)
def test_both_decoders_choose_the_same_frames(tmp_path: Path, name: str) -> None:
    odd = {
        "gaps.mp4": {
            "stamps": np.cumsum([0, 33, 33, 500, 33, 34, 1200, 10, 40]).tolist(),
            "count": 9,
            "tick": Fraction(1, 1000),
        },
        "late.mkv": {"stamps": range(125, 225), "count": 100},
    }
    how = odd.get(name) or CLIPS.get(name) or dict(zip(("codec", "options"), GROUPS[name]))
    path = write_clip(tmp_path / name, **how)
    times = [-1.0, 0.0, 0.033, 0.039, 0.04, 0.41, 0.5, 1.0, 1.8, 1.999, 2.36, 99.0]
    ours, theirs = (decode_at(path, times, decoder=decoder) for decoder in ("pyav", "torchcodec"))
    assert numbers(theirs.frames) == numbers(ours.frames)
    assert ours.partial is theirs.partial is None


@pytest.mark.usefixtures("torchcodec_loads")
@pytest.mark.parametrize(
    ("degrees", "mirrored"), [(0, False), (90, False), (180, False), (-90, False), (0, True), (90, True), (180, True)]
)
def test_both_decoders_turn_pictures_alike(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = write_clip(
        tmp_path / "turned.mp4", count=20, display=(degrees, mirrored), frames=map(numbered, range(200, 220))
    )
    ours, theirs = (decode_at(path, [0.0, 0.4], decoder=decoder).frames for decoder in ("pyav", "torchcodec"))
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_a_gpu_that_is_not_there_is_no_decoder() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="torchcodec"):
        check_decoder("torchcodec_cuda")


@pytest.mark.usefixtures("torchcodec_loads")
@pytest.mark.parametrize("row", torture_rows())
def test_both_decoders_show_the_same_of_real_files(test_data: Path, row: dict[str, str]) -> None:
    path = test_data / "torture" / row["path"]
    if row["expect"] == "unreadable":
        with pytest.raises(MediaError):
            decode_at(path, [0.0, 1.0], decoder="torchcodec")
        return
    times = np.linspace(0, probe(path, "video").duration, 8)
    ours, theirs = (decode_at(path, times, decoder=decoder) for decoder in ("pyav", "torchcodec"))
    assert ours.partial == theirs.partial
    assert ours.frames.shape == theirs.frames.shape
    assert np.abs(ours.frames.astype(int) - theirs.frames).mean() < 3  # two ways from YUV to RGB


# --- real files in odd shapes


def displayed(row: dict[str, str]) -> tuple[int, int]:
    across, down = map(int, (row["sar"] or "1:1").split(":"))
    width, height = round(int(row["w"]) * across / down), int(row["h"])
    return (height, width) if abs(int(row["rotation"] or 0)) == 90 else (width, height)


@pytest.mark.parametrize("row", torture_rows())
def test_real_files(test_data: Path, row: dict[str, str]) -> None:
    path = test_data / "torture" / row["path"]
    if row["expect"] == "unreadable":
        for use in (lambda: probe(path, "video"), lambda: decode_at(path, [0.0, 1.0])):
            with pytest.raises(MediaError):
                use()
        return
    result = probe(path, "video")
    decoded = decode_at(path, np.linspace(0, result.duration, 8))
    assert (decoded.partial is None) == (row["expect"] == "frames")
    assert (result.width, result.height) == displayed(row) == decoded.frames.shape[2:0:-1]
    assert result.start == pytest.approx(float(row["first_pts_s"]), abs=1e-3)
    if row["expect"] == "frames":
        assert result.frames == int(row["n_decoded"])
        assert result.duration == pytest.approx(float(row["duration_s"]) + 1 / result.fps, abs=1.1 / result.fps)


ONE_BY_ONE = [
    "asis/decord_unordered.mov",
    "asis/imageio_newtonscradle.gif",
    "asis/torchcodec_h265_video.mp4",
    "asis/tv_hmdb_TrumanShow_wave.avi",
    "asis/torchcodec_nasa_13013_rotated.mp4",
    "derived/h264.avi",
    "derived/h264_editlist_copycut.mp4",
    "derived/h264_fragmented.mp4",
    "derived/h264_one_keyframe_8bframes.mp4",
    "derived/h264_start_offset5s.mkv",
    "derived/h264_vfr_gaps.mp4",
    "derived/mpeg2_interlaced.ts",
]


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_real_frame_is_found_by_its_own_time_stamp(test_data: Path, name: str) -> None:
    """Against a plain decode of the whole file."""
    path = test_data / "torture" / name
    with av.open(str(path)) as container:
        everything = list(container.decode(video=0))
        pace = 1 / container.streams.video[0].base_rate
    size = decode_at(path, [0.0]).frames.shape[1:3]
    turns = everything[0].rotation // 90
    across = size[::-1] if turns % 2 == 0 else size
    plain = np.stack(
        [np.rot90(frame.to_ndarray(format="rgb24", width=across[0], height=across[1]), turns) for frame in everything]
    )
    times = [float((frame.pts - everything[0].pts) * frame.time_base) for frame in everything]
    if path.suffix == ".avi":  # its stamps are scrambled: the decoder's order holds, at the steady pace avi has
        times = [float(number * pace) for number in range(len(times))]
    assert np.array_equal(decode_at(path, times).frames, plain)
    alone = [len(times) // 2, len(times) - 1]
    for index in alone:
        assert np.array_equal(decode_at(path, [times[index]]).frames[0], plain[index])
