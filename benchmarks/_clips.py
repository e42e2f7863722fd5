"""Generated video files for the measurements of reading: moving textures with a little noise, in common encodings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from cover.media.encode import Encoding, encode_video
from cover.media.source import ByteRange, Source


@dataclass(frozen=True)
class Kind:
    """The encoding of a kind of file. `seconds`: its length. `rate`: frames per second. `options`: of the encoder."""

    width: int
    height: int
    codec: str
    ending: str
    seconds: int
    rate: int
    options: dict[str, str]


# The defaults of the encoders, as in most files on the net: x264 writes a key frame every 250 frames and up to 3
# B-frames in a row.
KINDS = {
    "320x240 h264": Kind(320, 240, "libx264", ".mp4", 10, 30, {"crf": "23"}),
    "720p h264": Kind(1280, 720, "libx264", ".mp4", 10, 30, {"crf": "23"}),
    "VP9 webm": Kind(
        320, 240, "libvpx-vp9", ".webm", 4, 12, {"crf": "32", "b": "0", "cpu-used": "5", "deadline": "good"}
    ),
}


def make_clips(folder: Path, count: int) -> dict[str, list[Source]]:
    """`count` files of every kind; also the 720p files after `cover prepare`, each alone and all in a shard."""
    folder.mkdir(parents=True, exist_ok=True)
    sources: dict[str, list[Source]] = {
        name: [make_clip(folder / f"{number}-{kind.width}{kind.ending}", kind, number) for number in range(count)]
        for name, kind in KINDS.items()
    }
    prepared = [folder / f"{number}-prepared.mp4" for number in range(count)]
    for source, out in zip(sources["720p h264"], prepared, strict=True):
        if not out.exists():
            encode_video(source, out, Encoding())
    sources["prepared"] = list(prepared)
    sources["prepared, shard"] = _shard(folder / "shard.tar", prepared)
    return sources


def _shard(shard: Path, files: list[Path]) -> list[Source]:
    ranges: list[Source] = []
    with shard.open("wb") as out:
        for file in files:
            ranges.append(ByteRange(str(shard), out.tell(), file.stat().st_size))
            out.write(file.read_bytes())
    return ranges


def make_clip(path: Path, kind: Kind, seed: int) -> Path:
    """Write a file of `kind`, unless it exists already; returns its path."""
    if path.exists():
        return path
    beside = path.with_name(f"part-{path.name}")
    with av.open(str(beside), "w") as container:
        stream = container.add_stream(kind.codec, rate=kind.rate, options=kind.options)
        stream.width, stream.height, stream.pix_fmt = kind.width, kind.height, "yuv420p"
        for picture in _pictures(kind, np.random.default_rng(seed)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return beside.rename(path)


def _pictures(kind: Kind, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A panning background and four patches that swing across it, uint8 `(H, W, 3)`."""
    width, height, side = kind.width, kind.height, kind.height // 3
    background = _texture(2048, rng)
    patches = [_texture(256, rng)[:side, :side] for _ in range(4)]
    phases, paces = rng.uniform(0, 6, (2, 4)), rng.uniform(0.6, 1.6, (2, 4))
    for number in range(kind.seconds * kind.rate):
        time = number / kind.rate
        left, top = int(200 + 150 * np.sin(time / 2)), int(200 + 100 * np.cos(time / 1.5))
        picture = background[top : top + height, left : left + width].astype(np.int16)
        swing = 0.5 + 0.5 * np.sin(paces * time + phases)
        for patch, x, y in zip(patches, *swing, strict=True):
            column, row = int((width - side) * x), int((height - side) * y)
            picture[row : row + side, column : column + side] = patch[:side, :side]
        yield np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def _texture(side: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of several scales, uint8 `(side, side, 3)`."""
    layers = [
        np.stack([_enlarged(rng.normal(size=(2**octave, 2**octave)), side) for _ in range(3)], axis=-1) / octave
        for octave in range(2, 8)
    ]
    total = np.sum(layers, axis=0)
    return ((total - total.min()) / (total.max() - total.min()) * 255).astype(np.uint8)


def _enlarged(values: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
