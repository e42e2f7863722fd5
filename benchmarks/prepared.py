"""Time to read a 16-frame clip before and after `cover prepare`: CPU time of decoding and cropping, in turns.

    python benchmarks/prepared.py            # with generated clips of 720 lines
    python benchmarks/prepared.py FILE...

Each file is first encoded as most files on the net are (defaults of x264: a key frame every 250 frames), with 720 and
with 240 lines. Then both are prepared as by `cover prepare`.
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
# Seconds between frames: of clips of 2 s, and of TimeSformer, whose clips cover a whole Kinetics video.
INTERVALS = {"4/30 s": 4 / 30, "32/30 s": 32 / 30}


def encode_default(source: str, lines: int, out: Path) -> Path:
    """Encode the video with another height and the defaults of the encoder."""
    with open_video(source, 10**8) as (container, stream), av.open(str(out), "w") as output:
        width = 2 * round(stream.width * lines / stream.height / 2)
        target = output.add_stream("libx264", rate=stream.average_rate)
        target.width, target.height, target.pix_fmt = width, lines, "yuv420p"
        for frame in container.decode(stream):
            output.mux(target.encode(frame.reformat(width, lines, "yuv420p")))
        output.mux(target.encode())
    return out


def clip(file: Path, start: float, interval: float) -> np.ndarray:
    """Read a clip, uint8 `(16, 3, 224, 224)`, from `start` with `interval` seconds between frames."""
    frames = decode_at(file, (start + np.arange(FRAMES) * interval).tolist(), size_hint=2 * SIZE).frames
    side = min(frames.shape[1:3])
    return crop_resize(frames, (0, 0, side, side), SIZE)


def milliseconds(files: list[Path], interval: float, rounds: int) -> list[float]:
    """The median CPU milliseconds for a clip of each file, in turns, with random starts."""
    rng, spent = np.random.default_rng(0), [[] for _ in files]
    latest = max(0.0, probe(files[0]).duration - FRAMES * interval)
    for _ in range(rounds):
        start = rng.uniform(0, latest)
        for file, times in zip(files, spent):
            began = time.process_time()
            clip(file, start, interval)
            times.append(1000 * (time.process_time() - began))
    return list(map(statistics.median, spent))


def rows_of(source: str, lines: int, folder: Path, rounds: int) -> list[list[str]]:
    """The rows of the table for one file, one for each interval."""
    before, after = encode_default(source, lines, folder / "before.mp4"), folder / "after.mp4"
    encode_video(before, after, Encoding())
    sizes = [f"{file.stat().st_size / 1000:.0f}" for file in (before, after)]
    rows = []
    for name, interval in INTERVALS.items():
        first, second = milliseconds([before, after], interval, rounds)
        times = [f"{first:.1f}", f"{second:.1f}", f"{first / second:.1f}"]
        rows.append([Path(source).name, str(lines), name, *times, *sizes])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE", nargs="*", help="videos of some seconds (default: generated ones)")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        files = args.files or [str(clip) for clip in make_clips(Path(folder) / "generated", 1)["720p h264"]]
        rows = [
            row for file in files for lines in (720, 240) for row in rows_of(file, lines, Path(folder), args.rounds)
        ]
    print_table(["file", "lines", "interval", "ms before", "ms after", "times less", "kB before", "kB after"], rows)


if __name__ == "__main__":
    main()
