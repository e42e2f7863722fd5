"""The mixture of a run: its data sets, sampling rates and heads, and its schedule and reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.exclusions import excluded_rows
from cover.errors import UserError
from cover.mixture.balance import ClassBalance, class_weights
from cover.mixture.dataset import MixtureDataset, make_heads
from cover.mixture.loader import SampleReader
from cover.mixture.rates import Data, rates_by, steps_for
from cover.mixture.schedule import Alternating, Pairing, Schedule, split_batch
from cover.transforms.base import Transform
from cover.transforms.mixup import Mixup

MOST_TIMED = 1000  # videos from which their usual length is taken


class Mixture:
    """The data sets of a run, in the order of `data.sets`, and the heads that they train.

    >>> mixture = Mixture.open(Data(["ssv2", "imagenet"], "sandbox/catalog.yaml", frames=4))
    >>> schedule, reader = mixture.schedule(batch=12), mixture.reader(size=32)
    >>> for pack in packs(schedule, reader, first=0, last=100, workers=2): ...
    """

    def __init__(self, data: Data, datasets: Sequence[MixtureDataset]) -> None:
        """A mixture of given data sets. `Mixture.open` reads them from a catalog instead.

        Raises `UserError` if a setting in `data` is not valid, or does not fit a data set.
        """
        data.check()
        self.data = data
        self.sizes = {each.name: len(each.rows) for each in datasets}
        rates = rates_by(self.sizes, data.alpha, data.weights, data.epochs)
        self.datasets = [
            replace(
                _with_class_settings(each, data),
                frames=1 if each.media == "image" else data.frames,
                crops=1 if each.media == "image" or data.frames == 1 else data.crops,
                rate=rates[each.name],
                loss_weight=data.loss_weights.get(each.name, 1.0),
            )
            for each in datasets
        ]
        self.heads = make_heads({each.name: each.classes for each in datasets}, data.heads)

    @classmethod
    def open(cls, data: Data, catalog: Catalog | None = None) -> Mixture:
        """The mixture of `data.sets` from a catalog, by default the file `data.catalog`.

        It has the usable rows of the train split, without the rows that `cover overlap` excludes. Raises `UserError` if
        a data set has no manifest or no usable row, or if the list of exclusions is out of date.
        """
        data.check()
        catalog = catalog or load_catalog(Path(data.catalog))
        paths = {name: catalog.manifest_path(name, "train") for name in data.sets}
        manifests = {name: catalog.manifest(name, "train") for name in paths}
        excluded = excluded_rows(catalog, paths) if data.exclusions == "use" else None
        if excluded is not None:
            manifests = {name: catalog.manifest(name, "train", excluded[name]) for name in paths}
        for name, manifest in manifests.items():
            if not len(manifest.usable):
                but = f", or all are excluded ({len(excluded[name])})" if excluded and len(excluded[name]) else ""
                none = f"none of its {len(manifest)} rows is readable and labelled{but}"
                raise UserError(f"{manifest.path.name}: {none}; nothing to train on")
        return cls(data, [MixtureDataset.of(catalog.spec(name), manifest) for name, manifest in manifests.items()])

    def steps(self, batch: int) -> int:
        """How many steps of `batch` samples give every data set its `data.epochs` epochs."""
        return steps_for(self.sizes, self.data.epochs, batch)

    def schedule(
        self,
        batch: int,
        seed: int = 0,
        ranks: int = 1,
        accumulation: int = 1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix: Mapping[str, float] | None = None,
        views: int = 0,
        views_seed: int = 0,
    ) -> Schedule:
        """The schedule of a run. A step has `batch` samples over all ranks.

        `mixup`, `cutmix`: the parameters of their Beta distributions, 0 for none. `mix`: data set -> probability that a
        pair of its samples is mixed, 1 if not given. `views`, `views_seed`: augmented views of a row, 0 for a new one
        in every epoch, and the seed of their pixels (`Schedule`). Raises `UserError` if a step cannot be divided into
        equal parts for all ranks and micro-batches.
        """
        head_of = {name: head.name for head in self.heads for name in head.datasets}
        pairing = Pairing(head_of, Mixup(mixup, cutmix), mix or {}) if mixup or cutmix else None
        groups = split_batch(self.datasets, batch, ranks * accumulation, pairing is not None)
        if self.data.batches == "mixed":
            return Schedule(seed, groups, pairing, views, views_seed)
        if ranks * accumulation > 1:
            # After a step of images some temporal weights have no gradient. Other ranks would wait for it forever.
            raise UserError("data.batches: alternating steps are for one process and accumulation 1; use mixed")
        return Alternating(seed, groups, pairing, views, views_seed)

    def reader(
        self,
        size: int,
        transforms: Sequence[Transform] = (),
        own: Mapping[str, Sequence[Transform]] | None = None,
        flip: bool = True,
    ) -> SampleReader:
        """The reader of this mixture's samples, at `size` x `size` pixels.

        The other arguments are those of `SampleReader`.
        """
        return SampleReader(self.datasets, self.heads, size, transforms, own, flip, self.data.decoder)

    def describe_classes(self) -> dict[str, dict[str, Any]]:
        """Data set with class balance or class weights -> their effect.

        `classes`: the number of classes that have rows. `rates`: the smallest and the largest fraction of the data
        set's draws that a class has. `row_epochs`: how often the rows of each class are drawn in an epoch of the data
        set, the smallest and the largest number. `weights`: the smallest and the largest weight in the loss.
        """
        return {
            each.name: _describe_classes(each)
            for each in self.datasets
            if each.balance is not None or each.class_weights is not None
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Data set -> the metadata that a release stores about it: clip sampling, views, classes and training rows."""
        return {
            each.name: {
                "media": each.media,
                "sampling": str(each.spec.sampling),
                "views": str(each.spec.views),
                "classes_source": each.classes.source,
                "class_digest": each.classes.digest,
                "train_samples": len(each.rows),
                **({"seconds": seconds} if (seconds := _usual_seconds(each)) else {}),
                "not_ok": {state: count for state, count in each.manifest.counts().items() if count and state != "ok"},
                "draws_digest": each.manifest.draws_digest(),
                **({"licence": each.spec.licence} if each.spec.licence else {}),
            }
            for each in self.datasets
        }


def _usual_seconds(dataset: MixtureDataset) -> float:
    """The median length of the training videos, from at most `MOST_TIMED` of them; 0 if there is none."""
    rows = dataset.rows[:: max(1, len(dataset.rows) // MOST_TIMED)] if dataset.media == "video" else ()
    lengths = [seconds for row in rows if (seconds := dataset.manifest.row(int(row)).seconds) > 0]
    return round(float(np.median(lengths)), 2) if lengths else 0.0


def class_line(name: str, facts: Mapping[str, Any]) -> str:
    """The class balance and class weights of a data set in words, from its `describe_classes`."""
    rates, row_epochs = _range_text(facts["rates"], ".1%"), _range_text(facts["row_epochs"], ".3g")
    return (
        f"{name}: {facts['classes']} classes, each {rates} of its draws (a row {row_epochs} times in an epoch),"
        f" class weights {_range_text(facts['weights'], '.3g')}"
    )


# --- the classes of a data set ---


def _with_class_settings(dataset: MixtureDataset, data: Data) -> MixtureDataset:
    """The data set with its class balance and class weights. Without a manifest (in a plan), it has neither.

    Raises `UserError` if they are set for a multi-label data set.
    """
    name = dataset.name
    balance, exponent = data.balance.get(name, 0.0), data.class_exponent(name)
    for key, value in (("balance", balance), ("class_weights", exponent)):
        if value and dataset.classes.many:
            raise UserError(f"data.{key}.{name}: a sample of {name} has any number of classes; leave this key out")
    dataset = replace(dataset, balance=None, class_weights=None)
    labels = dataset.labels
    if labels is None or not (balance or exponent):
        return dataset
    dataset = replace(dataset, balance=ClassBalance.of(labels, balance) if balance else None)
    counts = _class_counts(dataset, labels)
    weights = class_weights(counts, exponent, _class_rates(dataset, counts)) if exponent else None
    return replace(dataset, class_weights=weights)


def _class_counts(dataset: MixtureDataset, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """int64 `(classes,)`: the rows of each class."""
    return np.bincount(labels, minlength=len(dataset.classes.names)).astype(np.int64)


def _class_rates(dataset: MixtureDataset, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """float64 `(classes,)`: the fraction of the data set's draws of each class, from the `counts` of their rows."""
    if dataset.balance is None:
        return counts / counts.sum()
    rates = np.zeros(len(counts))
    rates[counts > 0] = dataset.balance.rates
    return rates


def _describe_classes(dataset: MixtureDataset) -> dict[str, Any]:
    labels = dataset.labels
    assert labels is not None
    counts = _class_counts(dataset, labels)
    present, rates = counts > 0, _class_rates(dataset, counts)
    row_epochs = rates[present] * counts.sum() / counts[present]
    weights = np.ones(len(counts)) if dataset.class_weights is None else dataset.class_weights
    return {
        "classes": int(present.sum()),
        "rates": _range_of(rates[present]),
        "row_epochs": _range_of(row_epochs),
        "weights": _range_of(weights[present]),
    }


def _range_text(limits: Sequence[float], spec: str) -> str:
    smallest, largest = (format(limit, spec) for limit in limits)
    return smallest if smallest == largest else f"{smallest} to {largest}"


def _range_of(values: npt.NDArray[np.floating]) -> list[float]:
    return [float(values.min()), float(values.max())]
