"""The sample reader and the Pack loader.

Worker processes read, crop and collate. Each process works on one step at a time, and the Packs come in the order of
the steps.
"""

from __future__ import annotations

import errno
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cover.datasets.manifest import Row
from cover.errors import UserError
from cover.machine import end_with_parent, reuse_memory
from cover.media.decode import Decoder, FileProblem, MediaError, decode_at, decode_image
from cover.media.sampling import train_times
from cover.mixture.dataset import LabelMap, MixtureDataset
from cover.mixture.pack import Pack, Sample, collate
from cover.mixture.schedule import Draw, Schedule
from cover.model.heads import Head
from cover.processes import start_method
from cover.transforms.base import Transform
from cover.transforms.crop import apply_flip, crop_resize, draw_flip, random_box

T = TypeVar("T")
SHARED_MEMORY, FULL = "/dev/shm", "No space left on device"
CACHED_AHEAD = 3  # Packs of cached outputs that are read in advance
HINT_SLACK = 2  # frames are decoded at up to this many times the size that the smallest crop needs


@dataclass(frozen=True)
class _Clip:
    """A decoded clip before its crop.

    `pixels`: uint8 `(T, H, W, 3)`, None if the file could not be read. `rng`: the generator that chose the times of the
    frames. The first crop continues with it.
    """

    dataset: MixtureDataset
    row: Row
    rng: np.random.Generator
    pixels: np.ndarray | None
    problem: FileProblem | None


class SampleReader:
    """Reads the sample of a draw, at `size` x `size` pixels. All randomness comes from the draw's seed.

    `heads`: the heads of the mixture, in the order of the columns of `Pack.targets`.
    `transforms`: augmentations after crop and flip, in the order of their draws.
    `own`: data set -> its own settings of these augmentations.
    `flip`: whether samples may be flipped.

    Raises ValueError if the transforms in `own` have other types, or another order, than `transforms`.
    """

    stages = 0  # its samples are pixels

    def __init__(
        self,
        datasets: Sequence[MixtureDataset],
        heads: Sequence[Head],
        size: int,
        transforms: Sequence[Transform] = (),
        own: Mapping[str, Sequence[Transform]] | None = None,
        flip: bool = True,
        decoder: Decoder = "pyav",
    ) -> None:
        self.datasets, self.size, self.flip, self.decoder = list(datasets), size, flip, decoder
        self._labels = [LabelMap.of(each.name, each.classes, heads, each.spec.flip == "swap") for each in datasets]
        self._places = {each.name: place for place, each in enumerate(datasets)}
        self._transforms = {name: (own or {}).get(name, transforms) for name in self._places}
        if len({tuple(map(type, each)) for each in self._transforms.values()}) > 1:
            raise ValueError(
                "all data sets of a mixture need the same transforms in the same order; only their settings may differ"
            )

    def read(self, draw: Draw) -> Sample:
        """The sample of one draw. If its file cannot be read, its weight is 0 and `problem` has the reason."""
        return self._crop(draw, self._decode(draw))

    def read_all(self, draws: Sequence[Draw]) -> list[Sample]:
        """The samples of several draws. Draws of one clip share its decoded frames.

        The frames stay in memory until the last draw of their clip.
        """
        last_use = {draw.clip: number for number, draw in enumerate(draws)}
        decoded: dict[tuple[str, int, int], _Clip] = {}
        samples: list[Sample] = []
        for number, draw in enumerate(draws):
            clip = decoded.pop(draw.clip, None) or self._decode(draw)
            samples.append(self._crop(draw, clip))
            if number < last_use[draw.clip]:
                decoded[draw.clip] = clip
        return samples

    def _decode(self, draw: Draw) -> _Clip:
        dataset = self.datasets[self._places[draw.dataset]]
        row = dataset.manifest.row(draw.row)
        # All crops of a clip share the times of its frames, so the times come from the seed of the first crop.
        rng = np.random.default_rng(draw.seed if draw.clip_seed is None else draw.clip_seed)
        try:
            pixels, partial = read_pixels(dataset, row, rng, self.size, self.decoder)
        except MediaError as error:
            return _Clip(dataset, row, rng, None, FileProblem(row.path, "unreadable", str(error), dataset.name))
        problem = FileProblem(row.path, "partial", partial, dataset.name) if partial else None
        return _Clip(dataset, row, rng, pixels, problem)

    def _crop(self, draw: Draw, clip: _Clip) -> Sample:
        dataset, size, place = clip.dataset, self.size, self._places[draw.dataset]
        # The order of the draws from `rng` is fixed: times, crop, flip, transforms. A new order changes every run.
        rng = clip.rng if draw.clip_seed is None else np.random.default_rng(draw.seed)
        if clip.pixels is None:
            frames = np.zeros((dataset.frames, 3, size, size), np.uint8)
        else:
            height, width = clip.pixels.shape[1:3]
            frames = crop_resize(clip.pixels, random_box(rng, width, height, dataset.spec.crop_scale), size)
        allowed = self.flip and dataset.spec.flip != "never"
        flip, labels = draw_flip(rng, labels_of(clip.row), allowed, self._labels[place].mirror)
        targets, multi_hot = self.targets_of(place, labels)
        weights = dataset.class_weights
        return Sample(
            frames=torch.from_numpy(apply_flip(frames) if flip else frames),
            dataset=place,
            targets=targets,
            multi_hot=multi_hot,
            weight=0.0 if clip.pixels is None else 1.0,
            seed=draw.step_seed,
            problem=clip.problem,
            drawn={type(transform): transform.draw(rng, size) for transform in self._transforms[draw.dataset]},
            # The weights follow from the labels in the manifest, so the class before the flip counts.
            class_weight=1.0 if weights is None else float(weights[labels_of(clip.row)[0]]),
            flipped=flip,
        )

    def targets_of(self, place: int, labels: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows of `Pack.targets` and `Pack.multi_hot` for the `labels` of a sample of data set number `place`."""
        return self._labels[place].rows_of(labels)

    def mirrored(self, place: int, labels: Sequence[int]) -> Sequence[int]:
        """The labels of a sample of data set number `place` after a flip that was allowed."""
        mirror = self._labels[place].mirror
        return labels if mirror is None else [int(mirror[label]) for label in labels]

    def settings_of(self, place: int) -> dict[str, Any]:
        """All settings that determine the pixels of data set number `place`, as plain JSON values."""
        dataset = self.datasets[place]
        return {
            "size": self.size,
            "frames": dataset.frames,
            "sampling": str(dataset.spec.sampling) if dataset.media == "video" else None,
            "crop_scale": list(dataset.spec.crop_scale),
            "flip": dataset.spec.flip if self.flip else "never",
            "transforms": [repr(transform) for transform in self._transforms[dataset.name]],
            "decoder": self.decoder if dataset.media == "video" else None,
        }


class Reader(Protocol):
    """What makes samples of draws: `SampleReader`, or `CachedReader` for outputs of the first stages of a network.

    `size`: side of a frame in pixels. `stages`: 0 if the samples are pixels, else the number of stages.
    """

    @property
    def datasets(self) -> list[MixtureDataset]: ...
    @property
    def size(self) -> int: ...
    @property
    def stages(self) -> int: ...
    def read_all(self, draws: Sequence[Draw]) -> list[Sample]: ...


def labels_of(row: Row) -> Sequence[int]:
    """The labels of a labelled row: one, or any number in a multi-label data set."""
    if row.labels is not None:
        return row.labels
    assert row.label is not None, f"{row.sample_id} is not labelled"
    return [row.label]


def read_pixels(
    dataset: MixtureDataset, row: Row, rng: np.random.Generator, size: int, decoder: Decoder = "pyav"
) -> tuple[np.ndarray, str | None]:
    """The uncropped frames of one training sample, uint8 `(T, H, W, 3)`, and the damage of the file, None without any.

    Raises `MediaError` if the file cannot be read.
    """
    smallest_crop = dataset.spec.crop_scale[0] ** 0.5  # side of the smallest crop, as a fraction of the frame
    hint = int(HINT_SLACK * size / smallest_crop)
    if dataset.media == "image":
        return decode_image(row.source, size_hint=hint)[None], None
    times = (row.start or 0.0) + train_times(dataset.spec.sampling, dataset.frames, row.seconds, rng)
    decoded = decode_at(row.source, times.tolist(), size_hint=hint, decoder=decoder)
    return decoded.frames, decoded.partial


class PackDataset(Dataset[Pack]):
    """A data set for a DataLoader of torch, of Lightning or of another trainer: item `step` is that step's Pack.

    The DataLoader needs `batch_size=None` and no shuffling: the schedule has shuffled. With several processes each has
    its slice of every step (`rank` of `ranks`), so the trainer must not divide the steps.

    >>> DataLoader(PackDataset(schedule, reader, steps=100), batch_size=None)
    """

    def __init__(self, schedule: Schedule, reader: Reader, steps: int, rank: int = 0, ranks: int = 1) -> None:
        self.schedule, self.reader, self.steps, self.rank, self.ranks = schedule, reader, steps, rank, ranks

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Pack:
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        draws = self.schedule.rank_step(step, self.rank, self.ranks)
        pack = collate([self.reader.read_all(group) for group in draws], self.reader.stages)
        pairing = self.schedule.pairing
        return replace(pack, mix=pairing.mix(draws, self.reader.size)) if pairing else pack


def packs(
    schedule: Schedule, reader: Reader, first: int, last: int, workers: int, rank: int = 0, ranks: int = 1
) -> Iterator[Pack]:
    """The Packs of steps `first` to `last` - 1, in order.

    `workers`: processes that read ahead, 0 to read in this process. Cached outputs are always read ahead by a thread.
    Raises UserError if a manifest was rewritten after it was opened.
    """
    for dataset in reader.datasets:
        dataset.manifest.check_unchanged()
    steps = PackDataset(schedule, reader, last, rank, ranks)
    if reader.stages:
        return _read_ahead(steps, first, last)
    return from_workers(_loader(steps, first, last, workers))


def _loader(steps: PackDataset, first: int, last: int, workers: int) -> DataLoader[Pack]:
    # This is not a ProcessPool of cover.processes: a DataLoader passes tensors through shared memory. A pipe would
    # copy every frame twice.
    return DataLoader(
        steps,
        sampler=range(first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=reading_processes(workers),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=one_thread,
    )


def reading_processes(workers: int) -> BaseContext | None:
    """How a `DataLoader` starts its processes; None if it has none.

    A forked child of a process with torch threads can hang. These are forked from a server process, which imports
    torch and the readers once for all of them.
    """
    return start_method(__name__) if workers else None


def from_workers(loader: DataLoader[T]) -> Iterator[T]:
    """The items of a loader. Raises `UserError` if the shared memory of this machine is too small for its processes."""
    workers: list[Any] = []
    try:
        items = iter(loader)
        workers = getattr(items, "_workers", [])
        yield from items
    except (RuntimeError, OSError, EOFError) as error:
        if not (loader.num_workers and _is_of_shared_memory(error, workers)):
            raise
        raise UserError(
            f"{SHARED_MEMORY} is full: {loader.num_workers} reading processes pass samples through it, and it has"
            f" {_size_of(SHARED_MEMORY)}; enlarge it (docker run --shm-size 8g, or --ipc=host), or read with fewer"
            " processes (--workers 0: in this one)"
        ) from None


def _is_of_shared_memory(error: Exception, workers: Sequence[Any]) -> bool:
    """Whether shared memory has no room. The exception may only say that a worker has ended; its exit code says why."""
    for worker in workers:
        worker.join(1)  # until the exit code of one that is ending is known
    codes = {worker.exitcode for worker in workers}
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return full or bool(codes & {errno.ENOSPC, -signal.SIGBUS}) or "Bus error" in str(error) or FULL in str(error)


def _size_of(folder: str) -> str:
    try:
        facts = os.statvfs(folder)
    except OSError:
        return "an unknown size"
    return f"{facts.f_blocks * facts.f_frsize / 1e6:.3g} MB"


def _read_ahead(steps: PackDataset, first: int, last: int) -> Iterator[Pack]:
    """The Packs of cached outputs, read by a thread.

    Processes would not be faster: there is nothing to decode, and a thread passes a Pack on without a copy.
    """

    def read(step: int) -> Pack:
        pack = steps[step]
        return pack.pin_memory() if torch.cuda.is_available() else pack

    with ThreadPoolExecutor(1, "cache") as thread:
        waiting: deque[Future[Pack]] = deque()
        for step in range(first, last):
            waiting.append(thread.submit(read, step))
            if len(waiting) > CACHED_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _end(error: Exception, item: object) -> None:
    if FULL in str(error):
        os._exit(errno.ENOSPC)  # `from_workers` says what it means
    traceback.print_exception(error)
    os._exit(1)


def one_thread(worker: int) -> None:
    """Set up a worker process: one thread for torch, no reaction to Ctrl-C, and an end with the parent process.

    It also ends if it cannot send a sample. By default, the parent process would wait for that sample without end.
    """
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles the interrupt
    reuse_memory()
    torch.set_num_threads(1)
    end_with_parent()
