"""Outputs of the frozen first stages of a network, computed once per sample and view, and training from them.

    cache = PrefixCache(model, stages=3, group=ProcessGroup(torch.device("cpu")))
    reader = cache.training_reader(model, schedule, mixture.reader(size=32), steps=1000, workers=2)
    for pack in packs(schedule, reader, first=0, last=1000, workers=0): ...

A cache has a folder of its own for each data set (`prefix_files`), which all its splits and subsets share. With other
weights or other settings it is another folder, so a cache is never out of date.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cover import __version__
from cover.console import Meter, clock, say
from cover.datasets.changes import changed_files
from cover.datasets.manifest import Manifest
from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.media.decode import FileProblem
from cover.mixture.dataset import MixtureDataset
from cover.mixture.loader import SampleReader, labels_of, one_thread, reading_processes
from cover.mixture.pack import Pack, Sample, augment_uint8, collate
from cover.mixture.prefix_files import FORMAT, PrefixFiles, check_space, folder_of, gigabytes, other_caches
from cover.mixture.schedule import Draw, Schedule
from cover.model.cover import CoVeR

Dtype = Literal["float32", "float16"]
FOLDER = "cache"  # beside the manifests, where no folder is given
BATCH_FRAMES = 256  # approximate frames of one forward pass

# Entries (row, view), outputs of the stages (n, T, ...), whether each sample is flipped, and its problem.
Computed = tuple[npt.NDArray[np.int64], Tensor, Sequence[bool], Sequence[FileProblem | None]]


@dataclass(frozen=True)
class CacheReport:
    """What a cache holds for one split.

    `entries`: outputs that are needed, one for each view of `samples` samples. `computed`: those that were computed
    now. `unreadable`: those of files that could not be read. `seconds`: how long it took.
    """

    dataset: str
    split: str
    stages: int
    entries: int
    samples: int
    computed: int
    unreadable: int
    bytes_each: int
    seconds: float
    folder: str

    def __str__(self) -> str:
        views = views_text(self.samples, self.entries)
        count = f"{self.entries} outputs of {self.stages} stage{'s' if self.stages > 1 else ''} ({views})"
        done = f"{self.computed} computed in {clock(self.seconds)}" if self.computed else "hit"
        size = f"{self.bytes_each / 1e3:.1f} kB each, {gigabytes(self.bytes_each * self.entries)}"
        lost = f", {self.unreadable} of unreadable files" if self.unreadable else ""
        return f"cache: {self.dataset} {self.split}: {done}: {count}{lost}, {size}, in {self.folder}"


def views_text(samples: int, views: int) -> str:
    """The views of some samples as text, because a user has counted the samples.

    >>> views_text(18, 54), views_text(18, 18), views_text(18, 40)
    ('18 samples x 3 views', '18 samples', '40 views of 18 samples')
    """
    if views == samples:
        return f"{samples} samples"
    return f"{views} views of {samples} samples" if views % samples else f"{samples} samples x {views // samples} views"


class PrefixCache:
    """The cached outputs of the first stages of one network.

    `stages`: their number. `dtype`: of the stored values; computation continues in float32. `reports`: one for each
    cache that was opened.
    """

    def __init__(
        self,
        model: CoVeR,
        stages: int,
        group: ProcessGroup | None = None,
        dtype: Dtype = "float32",
        folder: str | Path = "",
    ) -> None:
        """`group`: the processes that fill it together. `folder`: its place, by default beside the manifests.

        Raises `UserError` if the network has not so many stages or does not separate them.
        """
        most = len(model.backbone.stages())
        if not 1 <= stages <= most:
            raise UserError(f"cache.stages: {stages} is not in 1 to {most}, the stages of this network")
        self.stages, self.dtype, self.folder = stages, dtype, folder
        self.group = group or ProcessGroup(torch.device("cpu"))
        self.reports: list[CacheReport] = []
        self._weights = prefix_digest(model, stages)

    def check(self, model: CoVeR) -> None:
        """Raises `UserError` if the first stages of `model` are not those that the values come from."""
        if prefix_digest(model, self.stages) != self._weights:
            raise UserError("cache: the first stages of this network have other weights than those of the cache")

    def files(
        self,
        model: CoVeR,
        manifest: Manifest,
        frames: int,
        views: int,
        settings: Mapping[str, Any],
        keys: npt.NDArray[np.uint64] | None = None,
    ) -> tuple[PrefixFiles, dict[str, Any]]:
        """The files for the rows of a manifest and the ingredients of their digest.

        `frames`: of a sample. `settings`: plain JSON values of everything that determines the pixels of a view, and the
        `purpose` of the views, a word for the name of the folder. `keys`: of the rows, `Manifest.content_keys` if None.
        """
        ingredients = {
            "format": FORMAT,
            "cover": __version__,
            "dataset": manifest.name,
            "weights": self._weights,
            "network": _plain(model.config.prefix_values()),
            "stages": self.stages,
            "dtype": self.dtype,
            "views": views,
            **settings,
        }
        parent = Path(self.folder) if str(self.folder) else manifest.path.parent / FOLDER
        blank = torch.zeros(frames, 3, settings["size"], settings["size"], device=model.mean.device)
        shape = tuple(model.forward_prefix(blank, ((1, frames),), self.stages).shape)
        folder = folder_of(parent, ingredients)
        keys = manifest.content_keys if keys is None else keys
        return PrefixFiles(folder, keys, views, shape, self.dtype), ingredients

    def fill(
        self,
        files: PrefixFiles,
        ingredients: Mapping[str, Any],
        manifest: Manifest,
        entries: npt.NDArray[np.int64],
        compute: Callable[[npt.NDArray[np.int64]], Iterator[Computed]],
    ) -> None:
        """Compute the entries that are missing, each rank a part of them. Every rank must call it.

        `entries`: int64 `(n, 2)`, row and view. `compute`: yields the outputs of entries. Raises `UserError` if a media
        file has changed since it was indexed, if the disk has no room, or if the folder cannot be written.
        """
        began = time.monotonic()
        with ExitStack() as stack:
            missing = self.group.once(lambda: self._begin(files, ingredients, manifest, entries, stack))
            problem = None
            try:
                if len(missing):
                    self._compute(files, f"{manifest.name} {manifest.split}", missing, compute)
            except UserError as error:
                problem = str(error)
            problems = [each for each in self.group.gather(problem) if each]
        if problems:
            raise UserError(problems[0])
        files.forget()
        left = len(files.missing(missing))  # files that could not be read; the next run tries them again
        seconds = time.monotonic() - began
        names = (manifest.name, manifest.split, self.stages)
        counts = (len(entries), len(np.unique(entries[:, 0])), len(missing) - left, left)
        report = CacheReport(*names, *counts, files.bytes_each, seconds, str(files.folder))
        if report.computed or report.folder not in {each.folder for each in self.reports}:
            say(str(report))  # not at every evaluation
        self.reports.append(report)

    def _begin(
        self,
        files: PrefixFiles,
        ingredients: Mapping[str, Any],
        manifest: Manifest,
        entries: npt.NDArray[np.int64],
        stack: ExitStack,
    ) -> npt.NDArray[np.int64]:
        """On the leading rank: lock the cache and return the entries to compute."""
        changed = changed_files(manifest, np.unique(entries[:, 0]))
        if changed.changed:
            raise UserError(f"cache: {changed}; run cover index")
        missing = files.missing(entries)
        if not len(missing):
            return missing
        check_space(files.folder, len(missing) * files.bytes_each, f"{manifest.name} {manifest.split}")
        if not files.folder.exists():
            for line in other_caches(files.folder, ingredients):
                say(f"cache: {line}")
        stack.enter_context(files.locked())
        files.prepare(ingredients, np.unique(entries[:, 0]))
        return files.missing(entries)  # another process may have filled it while this one waited

    def _compute(
        self,
        files: PrefixFiles,
        what: str,
        missing: npt.NDArray[np.int64],
        compute: Callable[[npt.NDArray[np.int64]], Iterator[Computed]],
    ) -> None:
        """Compute and write this rank's part of `missing`."""
        if not files.folder.is_dir():
            raise UserError(f"cache.folder: {files.folder} must be one folder that all machines share")
        part = np.array_split(missing, self.group.ranks)[self.group.rank]
        views = views_text(len(np.unique(part[:, 0])), len(part))
        with Meter(f"cache {what}, {views}", len(part)) as meter:
            for entries, outputs, flipped, problems in compute(part):
                files.write(entries, self._stored(outputs, problems, what), flipped, problems)
                meter.advance(len(entries))

    def _stored(self, outputs: Tensor, problems: Sequence[FileProblem | None], what: str) -> npt.NDArray[Any]:
        """The outputs in the stored dtype. Raises `UserError` if one is not finite."""
        stored = outputs.to(getattr(torch, self.dtype)).cpu()
        readable = torch.tensor([problem is None or problem.kind != "unreadable" for problem in problems])
        if not torch.isfinite(stored[readable]).all():
            how = "; float16 holds numbers up to 65504: set cache.dtype to float32" if self.dtype == "float16" else ""
            raise UserError(f"cache: {what}: the output of {self.stages} stages is not finite{how}")
        return stored.numpy()

    # --- training -----------------------------------------------------------------------------------------------------

    def training_reader(
        self, model: CoVeR, schedule: Schedule, reader: SampleReader, steps: int, workers: int, bf16: bool = False
    ) -> CachedReader:
        """Compute the views that the first `steps` steps of `schedule` draw; returns the reader of their outputs.

        `workers`: processes that read files. `bf16`: with autocast to bfloat16, as the run. Raises `UserError` as
        `fill`.
        """
        drawn = schedule.views_drawn(steps)
        precision = "bf16" if bf16 else "fp32"
        opened: list[tuple[PrefixFiles, dict[str, Any]]] = []
        for place, dataset in enumerate(reader.datasets):
            views = {"precision": precision, "crops": dataset.crops, "seed": schedule.views_seed}
            settings = {"purpose": "training", **reader.settings_of(place), **views}
            count = schedule.views * dataset.crops
            keys = _training_keys(dataset)
            opened.append(self.files(model, dataset.manifest, dataset.frames, count, settings, keys))
        self.group.once(
            lambda: self._check_total([files for files, _ in opened], [drawn[each.name] for each in reader.datasets])
        )
        for dataset, (files, ingredients) in zip(reader.datasets, opened, strict=True):
            source = _ViewSource(schedule, reader, dataset)

            def compute(entries: npt.NDArray[np.int64], source: _ViewSource = source) -> Iterator[Computed]:
                return self._training_outputs(model, source, entries, workers, bf16)

            self.fill(files, ingredients, dataset.manifest, drawn[dataset.name], compute)
        return CachedReader(reader, [files for files, _ in opened], self.stages)

    def _check_total(self, opened: Sequence[PrefixFiles], drawn: Sequence[npt.NDArray[np.int64]]) -> None:
        """Raises `UserError` if the disk has no room for all data sets together, before any is computed."""
        needed = sum(len(each.missing(own)) * each.bytes_each for each, own in zip(opened, drawn, strict=True))
        check_space(opened[0].folder, needed, f"the outputs of {self.stages} stages")

    def _training_outputs(
        self, model: CoVeR, source: _ViewSource, entries: npt.NDArray[np.int64], workers: int, bf16: bool
    ) -> Iterator[Computed]:
        batch = max(1, BATCH_FRAMES // source.dataset.frames)
        parts = [entries[first : first + batch] for first in range(0, len(entries), batch)]
        workers = min(workers, len(parts))
        loader: Iterator[tuple[npt.NDArray[np.int64], Pack, list[bool], list[FileProblem | None]]] = iter(
            DataLoader(
                _TrainingViews(source, parts),
                batch_size=None,
                num_workers=workers,
                collate_fn=_unchanged,
                multiprocessing_context=reading_processes(workers),
                worker_init_fn=one_thread,
            )
        )
        for part, pack, flipped, problems in loader:
            moved = augment_uint8(pack.to(model.mean.device))
            pixels = moved.pixels(model.normalize)
            with torch.no_grad(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
                outputs = model.forward_prefix(pixels, moved.groups, self.stages)
            yield part, outputs.unflatten(0, moved.groups[0]), flipped, problems


def prefix_digest(model: CoVeR, stages: int) -> str:
    """12 hex digits of a hash of the weights of the first `stages` stages."""
    digest = hashlib.sha256()
    for name, value in sorted(model.backbone.prefix_state(stages).items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


# --- reading the views of a run ---------------------------------------------------------------------------------------


def _training_keys(dataset: MixtureDataset) -> npt.NDArray[np.uint64]:
    """The keys of the rows of a data set for its training views."""
    # The pixels of a view follow from the sample id, and with flips that exchange classes also from the class.
    keys = dataset.manifest.content_keys ^ dataset.manifest.sample_keys
    return keys ^ dataset.manifest.label_keys if dataset.spec.flip == "swap" else keys


@dataclass(frozen=True)
class _ViewSource:
    """The samples of a data set by row and view."""

    schedule: Schedule
    reader: SampleReader
    dataset: MixtureDataset

    def read(self, entries: npt.NDArray[np.int64]) -> list[Sample]:
        """The samples of entries (row, view)."""
        draws = []
        for row, view in entries.tolist():
            epoch, crop = divmod(view, self.dataset.crops)
            draws.append(self.schedule.draw(self.dataset, row, epoch, crop))
        return self.reader.read_all(draws)


class _TrainingViews(Dataset[Any]):
    """A map-style data set for the DataLoader: an item is (entries, Pack, flipped, problems)."""

    def __init__(self, source: _ViewSource, parts: Sequence[npt.NDArray[np.int64]]) -> None:
        self.source, self.parts = source, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, place: int) -> Any:
        entries = self.parts[place]
        samples = self.source.read(entries)
        return entries, collate([samples]), [each.flipped for each in samples], [each.problem for each in samples]


def _unchanged(item: Any) -> Any:
    return item


# --- training from the cache ------------------------------------------------------------------------------------------


class CachedReader:
    """Reads the outputs of the first stages for the draws of a schedule, in place of a `SampleReader`.

    `reader`: the reader whose samples were computed. `files`: of each of its data sets. A sample has the same targets,
    weight and problem as with `reader`. Its transforms are applied already.
    """

    def __init__(self, reader: SampleReader, files: Sequence[PrefixFiles], stages: int) -> None:
        self.datasets, self.size, self.stages = reader.datasets, reader.size, stages
        self._reader, self._files = reader, list(files)
        self._places = {each.name: place for place, each in enumerate(reader.datasets)}

    def read_all(self, draws: Sequence[Draw]) -> list[Sample]:
        """The samples of several draws."""
        return [self.read(draw) for draw in draws]

    def read(self, draw: Draw) -> Sample:
        """The sample of one draw: its frames are float `(T, ...)`, of the stored dtype."""
        place = self._places[draw.dataset]
        dataset, cached = self.datasets[place], self._files[place].read(draw.row, draw.view)
        manifest = dataset.manifest
        labels: Sequence[int] = (
            labels_of(manifest.row(draw.row)) if manifest.classes.many else [int(manifest.labels[draw.row])]
        )
        weights = dataset.class_weights
        # As in `SampleReader`, the class before the flip counts.
        class_weight = 1.0 if weights is None else float(weights[labels[0]])
        if cached.flipped:
            labels = self._reader.mirrored(place, labels)
        targets, multi_hot = self._reader.targets_of(place, labels)
        return Sample(
            frames=torch.from_numpy(cached.values),
            dataset=place,
            targets=targets,
            weight=float(cached.readable),
            seed=draw.step_seed,
            problem=cached.problem,
            multi_hot=multi_hot,
            class_weight=class_weight,
            flipped=cached.flipped,
        )
