"""What does a clip cost to read, and how far is that from decoding alone?

    python benchmarks/loading.py
    python benchmarks/loading.py --rounds 5 --files 4 --json loading.json

Every file is read in one thread, contenders by turns, the same random clips for all. "decode" is 16 frames as RGB of
full size, by cover and by the raw decoders; "clip" is what training gets, 16 frames cropped at random to 224 px. CPU
time is that of the whole process. decord2 and torchcodec take part where they are installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _clips import make_clips
from _measure import ratio, show, where, write

from cover.evaluation.protocol import ViewPlan, read_views
from cover.machine import reuse_memory
from cover.media.decode import decode_at, probe
from cover.media.sampling import Sampling, Views, train_times
from cover.media.source import Source, is_plain
from cover.mixture.loader import one_thread
from cover.transforms.crop import crop_resize, random_box

FRAMES, SIZE, SCALE = 16, 224, (0.3, 1.0)
# 16 frames of a 30 fps video, one in four
SAMPLINGS = {"dense": Sampling("dense", 4 / 30), "uniform": Sampling("segments")}
Decode = Callable[[Source, np.ndarray, float], np.ndarray]  # file, seconds, frames per second -> uint8 (T, H, W, 3)


# --- contenders


def by_cover(path: Source, times: np.ndarray, rate: float) -> np.ndarray:
    return decode_at(path, times.tolist()).frames


def by_pyav(path: Source, times: np.ndarray, rate: float) -> np.ndarray:
    """One pass from the start, as data loaders built on PyAV have it."""
    wanted = np.floor(times * rate + 1e-3).astype(int)
    last, frames = wanted.max(), {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames[number] = frame.to_ndarray(format="rgb24")
            if number >= last:
                break
    return np.stack([frames[min(number, max(frames))] for number in wanted])


def by_decord(path: Source, times: np.ndarray, rate: float) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    wanted = np.minimum(np.floor(times * rate + 1e-3).astype(int), len(reader) - 1)
    result: np.ndarray = reader.get_batch(wanted.tolist()).asnumpy()
    return result


def by_torchcodec(path: Source, times: np.ndarray, rate: float) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    wanted = np.minimum(np.floor(times * rate + 1e-3).astype(int), decoder.metadata.num_frames - 1)
    result: np.ndarray = decoder.get_frames_at(wanted.tolist()).data.numpy()
    return result


def contenders() -> dict[str, Decode]:
    results: dict[str, Decode] = {"cover": by_cover, "PyAV": by_pyav}
    for name, decode in (("decord2", by_decord), ("torchcodec", by_torchcodec)):
        try:
            __import__("decord" if name == "decord2" else name)
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name} does not take part: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            results[name] = decode
    return results


# --- what is timed


def cpu_ms(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return 1e3 * (time.process_time() - began)


def by_turns(tasks: Mapping[str, Callable[[int], object]], rounds: int, files: int) -> dict[str, list[float]]:
    """CPU ms per clip of every contender in every round; each round reads every file once."""
    spent: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task(0)
    for number in range(rounds):
        names = list(tasks)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent[name].append(
                sum(cpu_ms(lambda name=name, clip=clip: tasks[name](clip)) for clip in _clips(number, files)) / files
            )
    return spent


def _clips(number: int, files: int) -> range:
    return range(number * files, (number + 1) * files)


class Clips:
    """The random clips of one kind of file: the n-th is of file n modulo their number."""

    def __init__(self, sources: Sequence[Source], sampling: Sampling) -> None:
        self.sources, self.sampling = sources, sampling
        self.metadata = [probe(source) for source in sources]

    def times(self, number: int) -> tuple[Source, np.ndarray, float]:
        place, rng = number % len(self.sources), np.random.default_rng(number)
        metadata = self.metadata[place]
        return self.sources[place], train_times(self.sampling, FRAMES, metadata.duration, rng), metadata.fps

    def decode(self, decode: Decode) -> Callable[[int], object]:
        return lambda number: decode(*self.times(number))

    def max_grad_norm(self, decode: Decode) -> Callable[[int], np.ndarray]:
        return lambda number: cropped(decode(*self.times(number)), number)

    def views(self, number: int) -> object:
        """All of a file's, as evaluation reads them."""
        place = number % len(self.sources)
        plan = ViewPlan(self.sampling, Views(10, 3), FRAMES, SIZE)
        return read_views(self.sources[place], "video", [plan], self.metadata[place].duration)

    def every_frame(self, number: int) -> object:
        return every_frame(self.sources[number % len(self.sources)], rgb=True)

    def every_packet(self, number: int) -> object:
        return every_frame(self.sources[number % len(self.sources)], rgb=False)


def cropped(frames: np.ndarray, number: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    return crop_resize(frames, random_box(np.random.default_rng(number), width, height, SCALE), SIZE)


class ClipSet(Dataset[np.ndarray]):
    """Clips for worker processes."""

    def __init__(self, clips: Clips, decode: Decode, count: int) -> None:
        self.clips, self._decode, self.count = clips, decode, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> np.ndarray:
        return self.clips.max_grad_norm(self._decode)(number)


def clips_per_second(clips: Clips, decode: Decode, workers: int, count: int) -> float:
    """Through worker processes, from the first clip to arrive to the last."""
    loader = DataLoader(
        ClipSet(clips, decode, count),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver",
        worker_init_fn=one_thread,
    )
    began = 0.0
    for number, _ in enumerate(loader):
        if number == 2 * workers:
            began = time.perf_counter()
    return (count - 2 * workers - 1) / (time.perf_counter() - began)


# --- tables


def decoding(kinds: dict[str, list[Source]], rounds: int) -> list[list[str]]:
    """Full-size RGB: cover against the raw decoders, which cannot read a stretch of a shard."""
    rows = []
    for name, sources in kinds.items():
        for sampling, how in SAMPLINGS.items():
            clips = Clips(sources, how)
            takes_part = {who: decode for who, decode in contenders().items() if who == "cover" or is_plain(sources[0])}
            spent = by_turns({who: clips.decode(decode) for who, decode in takes_part.items()}, rounds, len(sources))
            fastest = min(
                (who for who in spent if who != "cover"), key=lambda who: statistics.median(spent[who]), default="cover"
            )
            times = [f"{statistics.median(spent[who]):.1f}" if who in spent else "-" for who in contenders()]
            rows.append(
                [
                    name,
                    sampling,
                    *times,
                    f"{ratio(spent, 'cover', fastest):.2f} x {fastest}" if fastest != "cover" else "-",
                ]
            )
    return rows


def clips(kinds: dict[str, list[Source]], rounds: int) -> tuple[list[list[str]], dict[str, dict[str, float]]]:
    """What training gets, all kinds of file by turns."""
    rows, medians = [], {}
    for sampling, how in SAMPLINGS.items():
        spent = by_turns(
            {name: Clips(sources, how).max_grad_norm(by_cover) for name, sources in kinds.items()},
            rounds,
            len(kinds["prepared"]),
        )
        medians[sampling] = {name: statistics.median(times) for name, times in spent.items()}
        for name in kinds:
            gain = ratio(spent, name, "prepared")
            rows.append([sampling, name, f"{medians[sampling][name]:.1f}", f"{gain:.2f}"])
    return rows, medians


def throughput(kinds: dict[str, list[Source]], count: int) -> list[list[str]]:
    rows = []
    for name, sources in kinds.items():
        dense = Clips(sources, SAMPLINGS["dense"])
        clips_each = count if name != "720p h264" else count // 4
        rates = [clips_per_second(dense, by_cover, workers, clips_each) for workers in (1, 2)]
        rows.append([name, *(f"{rate:.0f}" for rate in rates), f"{rates[1] / rates[0]:.2f}"])
    return rows


def evaluation(kinds: dict[str, list[Source]], rounds: int) -> list[list[str]]:
    """30 views of a file against one decode of it, every frame turned into RGB and none kept, and against the decode
    alone.
    """
    rows = []
    for name, sources in kinds.items():
        if not is_plain(sources[0]):
            continue
        dense = Clips(sources, SAMPLINGS["dense"])
        tasks = {"views": dense.views, "frames": dense.every_frame, "decode": dense.every_packet}
        spent = by_turns(tasks, rounds, len(sources))
        times = [f"{statistics.median(spent[task]):.1f}" for task in tasks]
        rows.append([name, *times, f"{ratio(spent, 'views', 'frames'):.2f}", f"{ratio(spent, 'views', 'decode'):.2f}"])
    return rows


def every_frame(path: Source, rgb: bool) -> int:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        return sum(frame.to_ndarray(format="rgb24").shape[0] if rgb else 1 for frame in container.decode(stream))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=3, help="of each kind")
    parser.add_argument("--clips", type=int, default=240, help="read through worker processes")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "cover-loading", help="of the made files"
    )
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reuse_memory()  # as in worker processes
    metadata = where(torch.device("cpu"))
    kinds = make_clips(args.folder, args.files)
    sizes = {
        name: f"{sum(Path(source).stat().st_size for source in sources) / len(sources) / 1e3:.0f}"
        for name, sources in kinds.items()
    }
    print(
        f"{metadata['date']}, {metadata['device']}, one thread; kB a file: {', '.join(f'{n} {s}' for n, s in sizes.items() if 'shard' not in n)}"
    )
    who = contenders()
    decoded = decoding(kinds, args.rounds)
    show(
        "16 frames as RGB of full size, CPU ms",
        ["file", "sampling", *who, "cover to the fastest of the others"],
        decoded,
    )
    clip_rows, medians = clips(kinds, args.rounds)
    show("a training clip of 16 x 224, CPU ms", ["sampling", "file", "ms", "times prepared"], clip_rows)
    through = throughput(kinds, args.clips)
    show("dense training clips a second, through worker processes", ["file", "1 worker", "2 workers", "ratio"], through)
    views = evaluation(kinds, args.rounds)
    columns = [
        "file",
        "30 views, CPU ms",
        "every frame as RGB",
        "every frame decoded",
        "views / RGB",
        "views / decoded",
    ]
    show("evaluation at 10x3 views of 16 x 224", columns, views)
    write({**metadata, "decode": decoded, "clip": medians, "clips_per_s": through, "views": views}, args.json)


if __name__ == "__main__":
    main()
