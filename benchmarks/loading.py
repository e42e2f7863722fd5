"""Time to read a clip, compared with decoding alone.

    python benchmarks/loading.py
    python benchmarks/loading.py --rounds 5 --files 4 --json loading.json

Every file is read in one thread. Contenders take turns and read the same random clips. "decode" reads 16 frames as RGB
in full size, by cover and by the raw decoders. "clip" reads the input of training, 16 frames with a random crop of 224
px. CPU time is that of the whole process. decord2 and torchcodec take part if they are installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _clips import make_clips
from _measure import ratio, show, where, write

from cover.evaluation.protocol import ViewPlan, read_scaled
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


# --- contenders -------------------------------------------------------------------------------------------------------


def by_cover(path: Source, times: np.ndarray, rate: float) -> np.ndarray:
    return decode_at(path, times.tolist()).frames


def by_pyav(path: Source, times: np.ndarray, rate: float) -> np.ndarray:
    """Decode from the start of the file to the last wanted frame, as simple data loaders with PyAV do."""
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
    """Name -> function that decodes; a decoder that is not installed is left out."""
    decoders: dict[str, Decode] = {"cover": by_cover, "PyAV": by_pyav}
    for name, decode in (("decord2", by_decord), ("torchcodec", by_torchcodec)):
        try:
            __import__("decord" if name == "decord2" else name)
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name} does not take part: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            decoders[name] = decode
    return decoders


# --- the measured work ------------------------------------------------------------------------------------------------


def cpu_ms(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return 1e3 * (time.process_time() - began)


def by_turns(tasks: Mapping[str, Callable[[int], object]], rounds: int, files: int) -> dict[str, list[float]]:
    """CPU milliseconds for a clip of every contender in every round. Each round reads every file once."""
    spent: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task(0)
    names = list(tasks)
    for number in range(rounds):
        first, clips = number % len(names), range(number * files, (number + 1) * files)
        for name in names[first:] + names[:first]:
            spent[name].append(sum(cpu_ms(partial(tasks[name], clip)) for clip in clips) / files)
    return spent


class Clips:
    """Random clips of the files of one kind. Clip number n is from file number n modulo the number of files."""

    def __init__(self, sources: Sequence[Source], sampling: Sampling) -> None:
        self.sources, self.sampling = sources, sampling
        self.metadata = [probe(source) for source in sources]

    def times(self, number: int) -> tuple[Source, np.ndarray, float]:
        """The file of a clip, the times of its frames in seconds, and the frames per second of the file."""
        file, rng = number % len(self.sources), np.random.default_rng(number)
        metadata = self.metadata[file]
        return self.sources[file], train_times(self.sampling, FRAMES, metadata.duration, rng), metadata.fps

    def decode(self, decode: Decode) -> Callable[[int], object]:
        """A function that decodes a clip in full size."""
        return lambda number: decode(*self.times(number))

    def crop(self, decode: Decode) -> Callable[[int], np.ndarray]:
        """A function that reads a training clip, uint8 `(FRAMES, 3, SIZE, SIZE)`."""
        return lambda number: random_crop(decode(*self.times(number)), number)

    def views(self, number: int) -> object:
        """All views of a file, as evaluation reads them."""
        file = number % len(self.sources)
        plan = ViewPlan(self.sampling, Views(10, 3), FRAMES, SIZE)
        return read_scaled(self.sources[file], "video", plan, self.metadata[file].duration)

    def every_frame(self, number: int) -> object:
        return every_frame(self.sources[number % len(self.sources)], rgb=True)

    def every_packet(self, number: int) -> object:
        return every_frame(self.sources[number % len(self.sources)], rgb=False)


def random_crop(frames: np.ndarray, number: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    return crop_resize(frames, random_box(np.random.default_rng(number), width, height, SCALE), SIZE)


class ClipSet(Dataset[np.ndarray]):
    """Training clips for worker processes."""

    def __init__(self, clips: Clips, decode: Decode, count: int) -> None:
        self.clips, self._decode, self.count = clips, decode, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> np.ndarray:
        return self.clips.crop(self._decode)(number)


def clips_per_second(clips: Clips, decode: Decode, workers: int, count: int) -> float:
    """Training clips per second through worker processes, after the first clips of every worker."""
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


# --- tables -----------------------------------------------------------------------------------------------------------


def decoding(kinds: dict[str, list[Source]], rounds: int) -> list[list[str]]:
    """Decoding to RGB in full size: cover against the raw decoders, which cannot read a file inside a shard."""
    rows = []
    for name, sources in kinds.items():
        for sampling, how in SAMPLINGS.items():
            clips = Clips(sources, how)
            decoders = {who: decode for who, decode in contenders().items() if who == "cover" or is_plain(sources[0])}
            spent = by_turns({who: clips.decode(decode) for who, decode in decoders.items()}, rounds, len(sources))
            medians = {who: statistics.median(times) for who, times in spent.items()}
            times = [f"{medians[who]:.1f}" if who in medians else "-" for who in contenders()]
            fastest = min((who for who in medians if who != "cover"), key=medians.__getitem__, default=None)
            comparison = f"{ratio(spent, 'cover', fastest):.2f} x {fastest}" if fastest else "-"
            rows.append([name, sampling, *times, comparison])
    return rows


def training_clips(kinds: dict[str, list[Source]], rounds: int) -> tuple[list[list[str]], dict[str, dict[str, float]]]:
    """Training clips of all kinds of files, in turns."""
    rows, medians = [], {}
    for sampling, how in SAMPLINGS.items():
        tasks = {name: Clips(sources, how).crop(by_cover) for name, sources in kinds.items()}
        spent = by_turns(tasks, rounds, len(kinds["prepared"]))
        medians[sampling] = {name: statistics.median(times) for name, times in spent.items()}
        for name in kinds:
            gain = ratio(spent, name, "prepared")
            rows.append([sampling, name, f"{medians[sampling][name]:.1f}", f"{gain:.2f}"])
    return rows, medians


def throughput(kinds: dict[str, list[Source]], count: int) -> list[list[str]]:
    """Training clips per second with one worker process and with two."""
    rows = []
    for name, sources in kinds.items():
        dense = Clips(sources, SAMPLINGS["dense"])
        clips_each = count if name != "720p h264" else count // 4
        rates = [clips_per_second(dense, by_cover, workers, clips_each) for workers in (1, 2)]
        rows.append([name, *(f"{rate:.0f}" for rate in rates), f"{rates[1] / rates[0]:.2f}"])
    return rows


def evaluation(kinds: dict[str, list[Source]], rounds: int) -> list[list[str]]:
    """30 views of a file, compared with one decode of the whole file, with and without the conversion to RGB."""
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
    """Decode every frame of a file in one thread, and drop it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        return sum(frame.to_ndarray(format="rgb24").shape[0] if rgb else 1 for frame in container.decode(stream))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=3, help="files of each kind")
    parser.add_argument("--clips", type=int, default=240, help="clips that worker processes read")
    default_folder = Path(tempfile.gettempdir()) / "cover-loading"
    parser.add_argument("--folder", type=Path, default=default_folder, help="folder of the generated files")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reuse_memory()  # as worker processes do
    metadata = where(torch.device("cpu"))
    kinds = make_clips(args.folder, args.files)
    sizes = {
        name: sum(Path(source).stat().st_size for source in sources) / len(sources) / 1e3
        for name, sources in kinds.items()
        if "shard" not in name
    }
    size_text = ", ".join(f"{name} {size:.0f}" for name, size in sizes.items())
    print(f"{metadata['date']}, {metadata['device']}, one thread; kB a file: {size_text}")
    columns = ["file", "sampling", *contenders(), "cover to the fastest of the others"]
    decode_rows = decoding(kinds, args.rounds)
    show("16 frames as RGB of full size, CPU ms", columns, decode_rows)
    clip_rows, medians = training_clips(kinds, args.rounds)
    show("a training clip of 16 x 224, CPU ms", ["sampling", "file", "ms", "times prepared"], clip_rows)
    rates = throughput(kinds, args.clips)
    show("dense training clips a second, through worker processes", ["file", "1 worker", "2 workers", "ratio"], rates)
    views = evaluation(kinds, args.rounds)
    decodes = ["every frame as RGB", "every frame decoded", "views / RGB", "views / decoded"]
    show("evaluation at 10x3 views of 16 x 224", ["file", "30 views, CPU ms", *decodes], views)
    write({**metadata, "decode": decode_rows, "clip": medians, "clips_per_s": rates, "views": views}, args.json)


if __name__ == "__main__":
    main()
