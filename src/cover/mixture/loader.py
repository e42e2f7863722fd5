"""How draws become Packs: worker processes that read, crop and collate one step each, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cover.datasets.catalog import DatasetSpec
from cover.datasets.manifest import Manifest, Row
from cover.machine import end_with_parent
from cover.media.augment import crop_resize, random_box, random_colour
from cover.media.clips import train_times
from cover.media.decode import MediaError, decode_at, decode_image
from cover.mixture.pack import Pack, Sample, collate
from cover.mixture.schedule import Draw, Schedule

START_METHOD = "forkserver"  # a fork of a process that already runs torch threads can hang
HINT_SLACK = 2  # frames are decoded no larger than this many times what the crop needs


@dataclass(frozen=True)
class Member:
    """A data set of the mixture: how it is read and which heads it trains.

    `targets`: int64 `(classes, heads)`, the class in each head for a label of this set, -1 for none. `mirror`: int `(classes,)`, the
    label after a horizontal flip, -1 where a sample must not be flipped; None where flips change nothing.
    """

    spec: DatasetSpec
    manifest: Manifest
    frames: int
    targets: np.ndarray
    mirror: np.ndarray | None = None


@dataclass(frozen=True)
class Augmentation:
    """What the pixels go through: crops of `size` pixels, flips, colour factors within 1 ± `colour`."""

    size: int
    flip: bool = True
    colour: float = 0.0


class SampleReader:
    """Turns a draw into a sample. Everything random comes from the draw's seed."""

    def __init__(self, members: Sequence[Member], augmentation: Augmentation) -> None:
        self.members = list(members)
        self.augmentation = augmentation
        self._places = {member.spec.name: place for place, member in enumerate(members)}

    def read(self, draw: Draw) -> Sample:
        """The sample of a draw: of weight 0, with a note, where its file cannot be read."""
        member = self.members[self._places[draw.dataset]]
        row, label = member.manifest.row(draw.row), int(member.manifest.labels[draw.row])
        rng = np.random.default_rng(draw.seed)
        frames, weight, note = self._frames(member, row, rng)
        flip, label = self._flip(member, label, rng)
        if flip:
            frames = frames[..., ::-1].copy()
        return Sample(
            frames=torch.from_numpy(frames),
            dataset=self._places[draw.dataset],
            targets=torch.from_numpy(member.targets[label]),
            weight=weight,
            colour=torch.from_numpy(random_colour(rng, self.augmentation.colour)),
            seed=draw.seed,
            note=note,
        )

    def _frames(self, member: Member, row: Row, rng: np.random.Generator) -> tuple[np.ndarray, float, str | None]:
        size = self.augmentation.size
        try:
            pixels, partial = read_pixels(member, row, rng, size)
        except MediaError as error:
            black = np.zeros((member.frames, 3, size, size), np.uint8)
            return black, 0.0, f"{member.spec.name}: {row.path}: unreadable: {error}"
        height, width = pixels[0].shape[:2]
        box = random_box(rng, width, height, member.spec.crop_scale)
        note = f"{member.spec.name}: {row.path}: partial: {partial}" if partial else None
        return crop_resize(pixels, box, size), 1.0, note

    def _flip(self, member: Member, label: int, rng: np.random.Generator) -> tuple[bool, int]:
        wanted = bool(rng.random() < 0.5)
        if not (wanted and self.augmentation.flip) or member.spec.flip == "never":
            return False, label
        if member.mirror is None:
            return True, label
        return (False, label) if member.mirror[label] < 0 else (True, int(member.mirror[label]))


def read_pixels(member: Member, row: Row, rng: np.random.Generator, size: int) -> tuple[np.ndarray, str | None]:
    """The uncropped frames of one training sample, uint8 `(T, H, W, 3)`, and what was damaged. Raises `MediaError`."""
    smallest_crop = member.spec.crop_scale[0] ** 0.5
    hint = int(HINT_SLACK * size / smallest_crop)
    if member.manifest.media == "image":
        return decode_image(row.path, size_hint=hint)[None], None
    times = (row.start or 0.0) + train_times(member.spec.sampling, member.frames, row.seconds, rng)
    decoded = decode_at(row.path, times.tolist(), size_hint=hint)
    return decoded.frames, decoded.partial


class _Steps(Dataset[Pack]):
    """Step number -> Pack."""

    def __init__(self, schedule: Schedule, reader: SampleReader, rank: int, ranks: int) -> None:
        self.schedule, self.reader, self.rank, self.ranks = schedule, reader, rank, ranks

    def __getitem__(self, step: int) -> Pack:
        draws = self.schedule.rank_step(step, self.rank, self.ranks)
        return collate([[self.reader.read(draw) for draw in group] for group in draws])


def packs(schedule: Schedule, reader: SampleReader, first: int, last: int, workers: int, rank: int = 0, ranks: int = 1) -> Iterator[Pack]:
    """The Packs of steps `first` to `last` - 1, in order, read ahead by `workers` processes (0: in this one)."""
    loader = DataLoader(
        _Steps(schedule, reader, rank, ranks),
        sampler=range(first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=START_METHOD if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=one_thread,
    )
    return iter(loader)


def one_thread(worker: int) -> None:
    """Many processes read side by side: none of them starts threads of its own, and none outlives the run."""
    torch.set_num_threads(1)
    end_with_parent()
