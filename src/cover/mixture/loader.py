"""How draws become Packs: worker processes that read, crop and collate one step each, in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cover.datasets.catalog import DatasetSpec
from cover.datasets.manifest import Manifest, Row
from cover.machine import end_with_parent, reuse_memory
from cover.media.clips import train_times
from cover.media.decode import Decoder, FileProblem, MediaError, decode_at, decode_image
from cover.mixture.pack import Pack, Sample, collate
from cover.mixture.schedule import Draw, Schedule
from cover.transforms.base import Transform
from cover.transforms.crop import crop_resize, random_box
from cover.transforms.flip import apply_flip, draw_flip

START_METHOD = "forkserver"  # a fork of a process that already runs torch threads can hang
HINT_SLACK = 2  # frames are decoded no larger than this many times what the crop needs


@dataclass(frozen=True)
class Member:
    """A data set of the mixture: how it is read and which heads it trains.

    `targets`: int64 `(classes, heads)`, the class in each head for a label of this set, -1 for none. `mirror`: int `(classes,)`, the
    label after a horizontal flip, -1 where a sample must not be flipped; None where flips change nothing. `hot`: int64 `(classes,)`,
    the column of `Pack.hot` for a label of a multi-label set, whose rows of `targets` are all the same; None for other sets.
    `hot_width`: the columns of `Pack.hot`, for any set of the mixture.
    """

    spec: DatasetSpec
    manifest: Manifest
    frames: int
    targets: np.ndarray
    mirror: np.ndarray | None = None
    hot: np.ndarray | None = None
    hot_width: int = 0

    def answers(self, labels: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What a sample with these labels is to be told: its row of `Pack.targets` and of `Pack.hot`."""
        targets = torch.from_numpy(self.targets[labels[0] if self.hot is None else 0])
        if not self.hot_width:
            return targets, None
        row = torch.zeros(self.hot_width, dtype=torch.uint8)
        if self.hot is not None:
            row[self.hot[list(labels)]] = 1
        return targets, row


@dataclass(frozen=True)
class _Clip:
    """Uncropped frames, uint8 `(T, H, W, 3)`, None where the file could not be read; `rng` has chosen their times."""

    member: Member
    row: Row
    rng: np.random.Generator
    pixels: np.ndarray | None
    problem: FileProblem | None


class SampleReader:
    """Turns a draw into a sample of `size` x `size` pixels. Everything random comes from the draw's seed.

    `transforms`: the augmentations after crop and flip, in the order of their draws. `own`: those of data sets with other settings; they
    must be of the same types in the same order, or ValueError is raised. `flip`: whether there are flips at all.
    """

    def __init__(
        self,
        members: Sequence[Member],
        size: int,
        transforms: Sequence[Transform] = (),
        own: Mapping[str, Sequence[Transform]] | None = None,
        flip: bool = True,
        decoder: Decoder = "pyav",
    ) -> None:
        self.members, self.size, self.flip, self.decoder = list(members), size, flip, decoder
        self._places = {member.spec.name: place for place, member in enumerate(members)}
        self._transforms = {name: (own or {}).get(name, transforms) for name in self._places}
        if len({tuple(map(type, each)) for each in self._transforms.values()}) > 1:
            raise ValueError("all data sets of a mixture need the same transforms in the same order; only their settings may differ")

    def read(self, draw: Draw) -> Sample:
        """The sample of a draw: of weight 0, with its problem, where its file cannot be read."""
        return self._crop(draw, self._decode(draw))

    def read_all(self, draws: Sequence[Draw]) -> list[Sample]:
        """The samples of draws; those of one clip share its decode, which is kept no longer than to the last of them."""
        last = {draw.clip: number for number, draw in enumerate(draws)}
        held: dict[tuple[str, int, int], _Clip] = {}
        samples: list[Sample] = []
        for number, draw in enumerate(draws):
            clip = held.pop(draw.clip, None) or self._decode(draw)
            samples.append(self._crop(draw, clip))
            if number < last[draw.clip]:
                held[draw.clip] = clip
        return samples

    def _decode(self, draw: Draw) -> _Clip:
        member = self.members[self._places[draw.dataset]]
        row = member.manifest.row(draw.row)
        rng = np.random.default_rng(draw.seed if draw.clip_seed is None else draw.clip_seed)
        try:
            pixels, partial = read_pixels(member, row, rng, self.size, self.decoder)
        except MediaError as error:
            return _Clip(member, row, rng, None, FileProblem(row.path, "unreadable", str(error), member.spec.name))
        problem = FileProblem(row.path, "partial", partial, member.spec.name) if partial else None
        return _Clip(member, row, rng, pixels, problem)

    def _crop(self, draw: Draw, clip: _Clip) -> Sample:
        member, size = clip.member, self.size
        rng = clip.rng if draw.clip_seed is None else np.random.default_rng(draw.seed)
        if clip.pixels is None:
            frames = np.zeros((member.frames, 3, size, size), np.uint8)
        else:
            height, width = clip.pixels.shape[1:3]
            frames = crop_resize(clip.pixels, random_box(rng, width, height, member.spec.crop_scale), size)
        flip, labels = draw_flip(rng, labels_of(clip.row), self.flip and member.spec.flip != "never", member.mirror)
        targets, hot = member.answers(labels)
        return Sample(
            frames=torch.from_numpy(apply_flip(frames) if flip else frames),
            dataset=self._places[draw.dataset],
            targets=targets,
            hot=hot,
            weight=0.0 if clip.pixels is None else 1.0,
            seed=draw.seed,
            problem=clip.problem,
            drawn={type(transform): transform.draw(rng, size) for transform in self._transforms[draw.dataset]},
        )


def labels_of(row: Row) -> Sequence[int]:
    """The classes of a labelled row: one, or any number in a multi-label set."""
    if row.labels is not None:
        return row.labels
    assert row.label is not None, f"{row.sample_id} is not labelled"
    return [row.label]


def read_pixels(member: Member, row: Row, rng: np.random.Generator, size: int, decoder: Decoder = "pyav") -> tuple[np.ndarray, str | None]:
    """The uncropped frames of one training sample, uint8 `(T, H, W, 3)`, and what was damaged. Raises `MediaError`."""
    smallest_crop = member.spec.crop_scale[0] ** 0.5
    hint = int(HINT_SLACK * size / smallest_crop)
    if member.manifest.media == "image":
        return decode_image(row.source, size_hint=hint)[None], None
    times = (row.start or 0.0) + train_times(member.spec.sampling, member.frames, row.seconds, rng)
    decoded = decode_at(row.source, times.tolist(), size_hint=hint, decoder=decoder)
    return decoded.frames, decoded.partial


class _Steps(Dataset[Pack]):
    """Step number -> Pack."""

    def __init__(self, schedule: Schedule, reader: SampleReader, rank: int, ranks: int) -> None:
        self.schedule, self.reader, self.rank, self.ranks = schedule, reader, rank, ranks

    def __getitem__(self, step: int) -> Pack:
        draws = self.schedule.rank_step(step, self.rank, self.ranks)
        pack = collate([self.reader.read_all(group) for group in draws])
        pairing = self.schedule.pairing
        return replace(pack, mix=pairing.mix(draws, self.reader.size)) if pairing else pack


def packs(schedule: Schedule, reader: SampleReader, first: int, last: int, workers: int, rank: int = 0, ranks: int = 1) -> Iterator[Pack]:
    """The Packs of steps `first` to `last` - 1, in order, read ahead by `workers` processes (0: in this one).

    Raises UserError where a manifest was written anew since it was opened."""
    for member in reader.members:
        member.manifest.check_unchanged()
    # Not cover.processes: a DataLoader hands tensors over in shared memory, where a pipe would copy every frame twice.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the parent's
    reuse_memory()
    torch.set_num_threads(1)
    end_with_parent()
