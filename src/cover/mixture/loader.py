"""The reader of samples and the loader of Packs: worker processes that read, crop and collate one step each, in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cover.datasets.manifest import Row
from cover.machine import end_with_parent, reuse_memory
from cover.media.augment import crop_resize, random_box, random_colour
from cover.media.clips import train_times
from cover.media.decode import Decoder, MediaError, decode_at, decode_image
from cover.media.randaugment import RandAugment, random_erasing
from cover.mixture.dataset import LabelMap, MixtureDataset
from cover.mixture.pack import Pack, Sample, collate
from cover.mixture.schedule import Draw, Schedule
from cover.model.timesformer import Head

START_METHOD = "forkserver"  # a fork of a process that already runs torch threads can hang
HINT_SLACK = 2  # frames are decoded no larger than this many times what the crop needs


@dataclass(frozen=True)
class Augmentation:
    """What the pixels go through: crops of `size` pixels, flips, colour factors within 1 ± `colour`, RandAugment, a box erased with
    the chance `erase` (None: nowhere in the mixture)."""

    size: int
    flip: bool = True
    colour: float = 0.0
    randaugment: RandAugment | None = None
    erase: float | None = None


@dataclass(frozen=True)
class _Clip:
    """Uncropped frames, uint8 `(T, H, W, 3)`, None where the file could not be read; `rng` has chosen their times."""

    dataset: MixtureDataset
    row: Row
    rng: np.random.Generator
    pixels: np.ndarray | None
    note: str | None


class SampleReader:
    """Turns a draw into a sample. Everything random comes from the draw's seed.

    `heads`: the columns of `Pack.targets`. `own`: the augmentation of those data sets that have another than `augmentation`, of
    the same size.
    """

    def __init__(
        self,
        datasets: Sequence[MixtureDataset],
        heads: Sequence[Head],
        augmentation: Augmentation,
        decoder: Decoder = "pyav",
        own: Mapping[str, Augmentation] | None = None,
    ) -> None:
        self.datasets = list(datasets)
        self.augmentation = augmentation
        self.own = own or {}
        self.decoder = decoder
        self._labels = [LabelMap.of(each.name, each.classes, heads, each.spec.flip == "swap") for each in datasets]
        self._places = {each.name: place for place, each in enumerate(datasets)}

    def read(self, draw: Draw) -> Sample:
        """The sample of a draw: of weight 0, with a note, where its file cannot be read."""
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
        dataset = self.datasets[self._places[draw.dataset]]
        row = dataset.manifest.row(draw.row)
        rng = np.random.default_rng(draw.seed if draw.clip_seed is None else draw.clip_seed)
        try:
            pixels, partial = read_pixels(dataset, row, rng, self.augmentation.size, self.decoder)
        except MediaError as error:
            return _Clip(dataset, row, rng, None, f"{dataset.name}: {row.path}: unreadable: {error}")
        return _Clip(dataset, row, rng, pixels, f"{dataset.name}: {row.path}: partial: {partial}" if partial else None)

    def _crop(self, draw: Draw, clip: _Clip) -> Sample:
        dataset, size = clip.dataset, self.augmentation.size
        place = self._places[draw.dataset]
        mine = self.own.get(draw.dataset, self.augmentation)
        rng = clip.rng if draw.clip_seed is None else np.random.default_rng(draw.seed)
        if clip.pixels is None:
            frames = np.zeros((dataset.frames, 3, size, size), np.uint8)
        else:
            height, width = clip.pixels.shape[1:3]
            frames = crop_resize(clip.pixels, random_box(rng, width, height, dataset.spec.crop_scale), size)
        flip, labels = self._flip(dataset, self._labels[place], labels_of(clip.row), rng)
        targets, multi_hot = self._labels[place].rows_of(labels)
        colour = random_colour(rng, mine.colour)
        return Sample(
            frames=torch.from_numpy(frames[..., ::-1].copy() if flip else frames),
            dataset=place,
            targets=targets,
            multi_hot=multi_hot,
            weight=0.0 if clip.pixels is None else 1.0,
            colour=torch.from_numpy(colour),
            seed=draw.seed,
            note=clip.note,
            change=mine.randaugment.draw(rng) if mine.randaugment else None,
            erase=None if mine.erase is None else torch.from_numpy(random_erasing(rng, mine.erase, size)),
        )

    def _flip(
        self, dataset: MixtureDataset, labels: LabelMap, own: Sequence[int], rng: np.random.Generator
    ) -> tuple[bool, Sequence[int]]:
        wanted = bool(rng.random() < 0.5)
        mirrored = labels.mirrored(own)
        if not (wanted and self.augmentation.flip) or dataset.spec.flip == "never" or mirrored is None:
            return False, own
        return True, mirrored


def labels_of(row: Row) -> Sequence[int]:
    """The classes of a labelled row: one, or any number in a multi-label set."""
    if row.labels is not None:
        return row.labels
    assert row.label is not None, f"{row.sample_id} is not labelled"
    return [row.label]


def read_pixels(
    dataset: MixtureDataset, row: Row, rng: np.random.Generator, size: int, decoder: Decoder = "pyav"
) -> tuple[np.ndarray, str | None]:
    """The uncropped frames of one training sample, uint8 `(T, H, W, 3)`, and what was damaged. Raises `MediaError`."""
    smallest_crop = dataset.spec.crop_scale[0] ** 0.5
    hint = int(HINT_SLACK * size / smallest_crop)
    if dataset.media == "image":
        return decode_image(row.source, size_hint=hint)[None], None
    times = (row.start or 0.0) + train_times(dataset.spec.sampling, dataset.frames, row.seconds, rng)
    decoded = decode_at(row.source, times.tolist(), size_hint=hint, decoder=decoder)
    return decoded.frames, decoded.partial


class _Steps(Dataset[Pack]):
    """Step number -> Pack."""

    def __init__(self, schedule: Schedule, reader: SampleReader, rank: int, ranks: int) -> None:
        self.schedule, self.reader, self.rank, self.ranks = schedule, reader, rank, ranks

    def __getitem__(self, step: int) -> Pack:
        draws = self.schedule.rank_step(step, self.rank, self.ranks)
        pack = collate([self.reader.read_all(group) for group in draws])
        mixing = self.schedule.mixing
        if mixing is None:
            return pack
        partner, share, cut = mixing.blend(draws, self.reader.augmentation.size)
        return replace(pack, partner=partner, share=share, cut=cut)


def packs(schedule: Schedule, reader: SampleReader, first: int, last: int, workers: int, rank: int = 0, ranks: int = 1) -> Iterator[Pack]:
    """The Packs of steps `first` to `last` - 1, in order, read ahead by `workers` processes (0: in this one).

    Raises UserError where a manifest was written anew since it was opened."""
    for dataset in reader.datasets:
        dataset.manifest.check_unchanged()
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
