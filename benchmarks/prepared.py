"""What does a 16-frame clip cost before and after `cover prepare`? CPU time of decoding and cropping, original and
prepared in turns.

    python benchmarks/prepared.py            # on made clips of 720 lines
    python benchmarks/prepared.py FILE...

Each file is first encoded as people find it on the net (x264's defaults: 720 and 240 lines, a key frame in 250), then
those two as `cover prepare` does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from _clips import make_clips

from cover.console import print_table
from cover.media.decode import decode_at, probe
from cover.media.encode import Encoding, encode_video
from cover.media.stream import open_video
from cover.transforms.crop import crop_resize

FRAMES, SIZE = 16, 224
# between frames: of 2 s clips, and TimeSformer's of the whole of a Kinetics clip
INTERVALS = {"4/30 s": 4 / 30, "32/30 s": 32 / 30}


def as_found(source: str, lines: int, out: Path) -> Path:
    """The video at another height, with the encoder's own defaults."""
    with open_video(source, 10**8) as (container, stream), av.open(str(out), "w") as written:
        width = 2 * round(stream.width * lines / stream.height / 2)
        target = written.add_stream("libx264", rate=stream.average_rate)
        target.width, target.height, target.pix_fmt = width, lines, "yuv420p"
        for frame in container.decode(stream):
            written.mux(target.encode(frame.reformat(width, lines, "yuv420p")))
        written.mux(target.encode())
    return out


def clip(file: Path, start: float, interval: float) -> np.ndarray:
    """uint8 (16, 3, 224, 224)."""
    frames = decode_at(file, (start + np.arange(FRAMES) * interval).tolist(), size_hint=2 * SIZE).frames
    side = min(frames.shape[1:3])
    return crop_resize(frames, (0, 0, side, side), SIZE)


def milliseconds(files: list[Path], interval: float, rounds: int) -> list[float]:
    """Median CPU time of a clip of each file, in turns, from random starts."""
    rng, spent = np.random.default_rng(0), [[] for _ in files]
    room = max(0.0, probe(files[0]).duration - FRAMES * interval)
    for _ in range(rounds):
        start = rng.uniform(0, room)
        for file, times in zip(files, spent):
            began = time.process_time()
            clip(file, start, interval)
            times.append(1000 * (time.process_time() - began))
    return list(map(statistics.median, spent))


def rows_of(source: str, lines: int, folder: Path, rounds: int) -> list[list[str]]:
    """One row of the table for each interval."""
    before, after = as_found(source, lines, folder / "before.mp4"), folder / "after.mp4"
    encode_video(before, after, Encoding())
    rows = []
    for name, interval in INTERVALS.items():
        first, second = milliseconds([before, after], interval, rounds)
        sizes = [f"{file.stat().st_size / 1000:.0f}" for file in (before, after)]
        rows.append(
            [Path(source).name, str(lines), name, f"{first:.1f}", f"{second:.1f}", f"{first / second:.1f}", *sizes]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE", nargs="*", help="videos of some seconds (default: made ones)")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        files = args.files or [str(clip) for clip in make_clips(Path(folder) / "made", 1)["720p h264"]]
        rows = [
            row for file in files for lines in (720, 240) for row in rows_of(file, lines, Path(folder), args.rounds)
        ]
    print_table(["file", "lines", "interval", "ms before", "ms after", "times less", "kB before", "kB after"], rows)


if __name__ == "__main__":
    main()
