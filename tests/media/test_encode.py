"""Encoded files show the same picture at the same time as their source, and are quick to read."""

from __future__ import annotations

import csv
import errno
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cover.media.decode import MediaError, decode_at, decode_image, probe
from cover.media.encode import Encoding, encode_image, encode_video

BITS = 10


def picture(number: int) -> np.ndarray:
    """uint8 (64, 160, 3): a number as black and white bars."""
    bars = [255 * (number >> bit & 1) for bit in range(BITS)]
    return np.array(bars, np.uint8).repeat(16)[None, :, None].repeat(64, 0).repeat(3, 2)


def numbers(path: Path, times: Sequence[float]) -> list[int]:
    """Which numbers are shown at these times."""
    shown = decode_at(path, times).frames[:, 32, :, 0]
    bars = shown.reshape(len(times), BITS, -1)[:, :, 4:12].mean(-1) > 127
    return [int(sum(1 << bit for bit in range(BITS) if row[bit])) for row in bars]


def write_numbered(
    path: Path, stamps: Sequence[int], codec: str = "libx264", tick: Fraction = Fraction(1, 1000)
) -> Path:
    """A video whose frames are numbered, with time stamps in ticks, sound, and few key frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 160, 64, "yuv420p", tick
        stream.codec_context.time_base, stream.codec_context.gop_size = tick, 250
        sound = container.add_stream("aac" if path.suffix == ".mp4" else "mp2", rate=44100)
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = stamp, tick
            container.mux(stream.encode(frame))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.pts = 44100, 0
        container.mux(sound.encode(silence))
        container.mux(stream.encode())
        container.mux(sound.encode())
    return path


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 numbered frames at uneven times, 12 s in all."""
    steps = np.random.default_rng(0).integers(10, 71, 299)
    return write_numbered(
        tmp_path_factory.mktemp("uneven") / "uneven.mp4", list(accumulate(map(int, steps), initial=0))
    )


@pytest.mark.parametrize("key_interval", [0.5, 0.04, 100.0])
def test_same_frames_at_the_same_times(uneven: Path, tmp_path: Path, key_interval: float) -> None:
    out, requested = tmp_path / "out.mp4", np.random.default_rng(1).uniform(0, 13, 400).tolist()
    encoded = encode_video(uneven, out, Encoding(key_interval=key_interval))
    assert numbers(out, requested) == numbers(uneven, requested)
    assert len(set(numbers(out, requested))) > 150
    assert (encoded.frames, encoded.partial, encoded.copied) == (300, None, False)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "mpeg4"])
@pytest.mark.parametrize("ending", [".mkv", ".mp4"])
def test_other_codecs_and_containers(tmp_path: Path, codec: str, ending: str) -> None:
    source = write_numbered(tmp_path / f"source{ending}", range(0, 3000, 40), codec)
    encode_video(source, tmp_path / "out.mp4", Encoding())
    requested = np.arange(0, 3.1, 0.02).tolist()
    assert numbers(tmp_path / "out.mp4", requested) == numbers(source, requested)


@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (1.0, None), (0.513, 3.217), (8.0, 9.5), (11.0, 50.0)])
def test_segment_becomes_a_file_of_its_own(uneven: Path, tmp_path: Path, start: float, end: float | None) -> None:
    out = tmp_path / "out.mp4"
    encoded = encode_video(uneven, out, Encoding(), start, end)
    # between ticks: at them the tolerance is a matter of rounding
    requested = np.arange(0.0003, min(end or 13, 13) - start - 0.002, 0.01)
    assert numbers(out, requested.tolist()) == numbers(uneven, (start + requested).tolist())
    assert probe(out).frames == encoded.frames == len(set(numbers(out, requested.tolist())))


def test_segment_behind_the_end_is_refused(uneven: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="only 1 frame can be decoded"):
        encode_video(uneven, tmp_path / "out.mp4", Encoding(), 40.0, 50.0)


def test_layout_of_the_file(uneven: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    encode_video(uneven, out, Encoding(key_interval=0.5))
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(out)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert container.streams.video[0].codec_context.name == "h264"
    keys = [float(packet.pts * packet.time_base) for packet in packets if packet.is_keyframe]
    assert keys[0] == 0
    assert all(0.5 * place <= time < 0.5 * place + 0.1 for place, time in enumerate(keys))
    with av.open(str(out)) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        # nothing refers to the rest: they need not be decoded
        assert sum(1 for _ in container.decode(video=0)) < 300 / 2
    for place, packet in enumerate(packets):  # closed groups: nothing in front of a key frame comes behind it
        assert not packet.is_keyframe or all(other.pts > packet.pts for other in packets[place + 1 :])


def test_same_bytes_every_time(uneven: Path, tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        encode_video(uneven, tmp_path / name, Encoding(short_side=48))
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


@pytest.mark.parametrize(("short_side", "size"), [(256, (160, 64)), (32, (80, 32)), (31, (78, 30 + 2)), (1, (2, 2))])
def test_never_scaled_up_and_even(uneven: Path, tmp_path: Path, short_side: int, size: tuple[int, int]) -> None:
    encoded = encode_video(uneven, tmp_path / "out.mp4", Encoding(short_side=short_side), 0, 0.5)
    result = probe(tmp_path / "out.mp4")
    assert (result.width, result.height) == (encoded.width, encoded.height) == size


def test_damage_ends_it(uneven: Path, tmp_path: Path) -> None:
    mkv = write_numbered(tmp_path / "whole.mkv", range(0, 4000, 40))
    cut = tmp_path / "cut.mkv"
    data = bytearray(mkv.read_bytes())
    data[len(data) * 2 // 3 :] = b"\xff" * (len(data) - len(data) * 2 // 3)
    cut.write_bytes(data)
    encoded = encode_video(cut, tmp_path / "out.mp4", Encoding())
    assert 20 < encoded.frames < 100
    requested = np.arange(0, encoded.last, 0.04).tolist()
    assert numbers(tmp_path / "out.mp4", requested) == numbers(cut, requested)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk_is_no_damage_of_the_source(uneven: Path, tmp_path: Path) -> None:
    (tmp_path / "out.mp4").symlink_to("/dev/full")
    (tmp_path / "none").mkdir()
    for out, number in ((tmp_path / "out.mp4", errno.ENOSPC), (tmp_path / "none", errno.EISDIR)):
        for start in (None, 8.0):
            with pytest.raises(OSError, match=out.name) as refused:
                encode_video(uneven, out, Encoding(), start)
            assert (refused.value.errno, refused.value.filename) == (number, str(out))


def test_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(picture(number)).save(folder / f"{number + 1:05d}.png")
    (folder / "00007.png").unlink()
    encode_video(folder, tmp_path / "out.mp4", Encoding())
    requested = np.arange(0, 1.7, 0.02).tolist()
    assert numbers(tmp_path / "out.mp4", requested) == numbers(folder, requested)


def test_folder_ends_at_a_bad_image(tmp_path: Path) -> None:
    for number in range(8):
        Image.fromarray(picture(number)).save(tmp_path / f"{number:05d}.png")
    (tmp_path / "00005.png").write_bytes(b"no image")
    encoded = encode_video(tmp_path, tmp_path / "out.mp4", Encoding())
    assert (encoded.frames, encoded.partial) == (5, "00005.png: not an image that Pillow knows")
    assert numbers(tmp_path / "out.mp4", [frame / 12 for frame in range(5)]) == list(range(5))
    assert encode_video(tmp_path, tmp_path / "out.mp4", Encoding(), 0.0, 4 / 12).partial is None  # it ends before
    (tmp_path / "00001.png").write_bytes(b"")
    with pytest.raises(MediaError, match=r"only 1 frame can be decoded: 00001\.png: empty file"):
        encode_video(tmp_path, tmp_path / "out.mp4", Encoding())


def test_real_files_look_the_same(test_data: Path, tmp_path: Path) -> None:
    """Rotation, pixel aspect, colour range and matrix, 10 and 12 bits, 4:4:4, odd sides: all as before to the eye."""
    with (test_data / "torture/manifest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["open"] == "ok" and row["expect"] == "frames"]
    apart = {}
    for row in rows:
        source, out = test_data / "torture" / row["path"], tmp_path / "out.mp4"
        # big ones take their time
        if int(row["n_decoded"]) < 2 or (row["w"] == "1280" and "full_range" not in row["path"]):
            continue
        encoded = encode_video(source, out, Encoding(short_side=128, crf=8))
        requested = np.linspace(0, encoded.last, 4).tolist()
        before, after = (small(decode_at(path, requested).frames) for path in (source, out))
        apart[row["path"]] = float(np.abs(before - after).mean())
    assert max(apart.values()) < 6, max(apart, key=lambda path: apart[path])  # of 255
    assert len(apart) > 50
    assert np.median(list(apart.values())) < 2


def small(frames: np.ndarray) -> np.ndarray:
    """float (N, 24, 24, 3)."""
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((24, 24), Image.Resampling.BOX), float) for frame in frames]
    )


# --- images


def write_image(path: Path, width: int, height: int, **options: object) -> Path:
    y, x = np.mgrid[:height, :width]
    Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)).save(
        path, **options
    )
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_small_image_is_copied(tmp_path: Path, name: str) -> None:
    source = write_image(tmp_path / name, 300, 200)
    encoded = encode_image(source, tmp_path / "out", Encoding())
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert (encoded.copied, encoded.width, encoded.height, encoded.codec) == (
        True,
        300,
        200,
        {"a.jpg": "jpeg", "a.png": "png"}[name],
    )


@pytest.mark.parametrize(
    ("name", "size", "becomes"),
    [("a.jpg", (1000, 500), (512, 256)), ("a.png", (300, 901), (256, 769)), ("a.bmp", (90, 60), (90, 60))],
)
def test_image_becomes_jpeg(tmp_path: Path, name: str, size: tuple[int, int], becomes: tuple[int, int]) -> None:
    source, out = write_image(tmp_path / name, *size), tmp_path / "out"
    encoded = encode_image(source, out, Encoding())
    assert (encoded.copied, encoded.codec, (encoded.width, encoded.height)) == (False, "jpeg", becomes)
    assert probe(out, "image").codec == "jpeg"
    before, after = (small(decode_image(path)[None]) for path in (source, out))
    assert np.abs(before - after).mean() < 3


def test_image_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source, out = write_image(tmp_path / "a.jpg", 80, 40, exif=exif.tobytes(), quality=95), tmp_path / "out"
    encoded = encode_image(source, out, Encoding())
    assert (encoded.copied, encoded.width, encoded.height) == (False, 40, 80)
    with Image.open(out) as image:
        assert image.getexif().get(0x0112, 1) == 1
    assert np.abs(decode_image(source).astype(float) - decode_image(out)).mean() < 5


def test_damaged_image(tmp_path: Path) -> None:
    source = write_image(tmp_path / "a.jpg", 90, 60)
    source.write_bytes(source.read_bytes()[:900])
    with pytest.raises(MediaError):
        encode_image(source, tmp_path / "out", Encoding())
