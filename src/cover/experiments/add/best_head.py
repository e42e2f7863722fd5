"""`cover add --how best`: several heads on a frozen network, of which the best on held-out samples is kept.

The heads are logistic regressions on the mean over a clip and on its four quarters, an attention over its frames, and a
late space-time block. The last two are trained step by step with smoothed labels, which leaves them unsure, so a
temperature calibrates them. Nothing is chosen on the samples that the reported accuracy is measured on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cover.console import print_table, say
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.manifest import Row
from cover.datasets.splits import carve_dev
from cover.errors import UserError
from cover.experiments.add.add_recipe import BESIDE, SMOOTHING, AddRequest
from cover.experiments.add.frozen_heads import (
    Choice,
    FrozenFeatures,
    LogisticHead,
    choose,
    fit,
    frozen_features,
    frozen_options,
    joined,
)
from cover.experiments.add.measure import Evaluator
from cover.experiments.folds import (
    MEASURED,
    DividedSet,
    FoldRequest,
    all_rows,
    divide,
    fold_folder,
    measure_fold,
    pooled,
    with_baselines,
    write_catalog,
)
from cover.mixture.mixture import Mixture
from cover.mixture.prefix_cache import FOLDER as CACHE_FOLDER
from cover.mixture.prefix_cache import Dtype
from cover.mixture.rates import Data
from cover.model.backbone import BackboneOptions
from cover.model.release import find_release, load_release, read_config, save_release, start_from
from cover.training.recipe import Adapt, Cache, Checkpoints, Optimizer, Recipe, Start
from cover.training.resume import has_started
from cover.training.train import build_model, describe, train

HeadKind = Literal["linear", "quarters", "attentive", "late_block"]
HEAD_KINDS: tuple[HeadKind, ...] = ("linear", "quarters", "attentive", "late_block")
TITLES: dict[HeadKind, str] = {
    "linear": "linear, on the mean over the clip",
    "quarters": "linear, on four quarters of the clip",
    "attentive": "attention over the frames",
    "late_block": "a late space-time block",
}
NOTES: dict[HeadKind, str] = {
    "linear": "Logistic regression on the mean of the network's features over the frames. The order of frames is lost.",
    "quarters": "Logistic regression on the means of four quarters of the clip, so that their order counts.",
    "attentive": "A trained query weights the frames, and a linear classifier follows.",
    "late_block": "One more block after the network, trained, in which all places and frames attend to each other.",
}
MOST_SAMPLES = 20_000  # a logistic regression on more takes longer than training a head step by step
HELD_OUT = 0.2  # fraction of the training samples on which heads are compared, if there is no other split for that
STEPS, BATCH, VIEWS = 300, 32, 2  # of the heads that are trained step by step; augmented views of each sample
LEAST_HELD_OUT = 5  # samples on which a late block can show that it is better (`why_not_better`)
LATE_BLOCK_STEPS = 100  # one takes 30 times as long as a step of a head; 80 fit some hundreds of clips
TRAINED = Optimizer(lr=1e-3, weight_decay=0.05, warmup=0.1)
FITTED: frozenset[HeadKind] = frozenset(["linear", "quarters"])  # the kinds that are fitted, not trained
# Numbers on the disk. Features are few numbers, and fitted heads use them too; maps of a late stage are many.
DTYPES: dict[HeadKind, Dtype] = {"attentive": "float32", "late_block": "float16"}


def is_fitted(results: Mapping[str, Any]) -> bool:
    """Whether the head that was kept was fitted, not trained step by step. `results`: of `cover fit` or `cover add`."""
    return any(each["kind"] in FITTED for each in (results.get("candidates") or [])[:1])


def simplest(candidates: Sequence[Candidate], samples: int) -> Candidate:
    """The first candidate that no later one exceeds by more than a standard error.

    `candidates`: the simplest first, measured on `samples` held-out samples. The rule of one standard error (Breiman et
    al., Classification and Regression Trees, 1984, section 3.4.3): on few samples the best one is often best by chance.
    """
    best = candidates[0]
    for each in candidates[1:]:
        error = (best.held_out * (1 - best.held_out) / samples) ** 0.5
        if each.held_out > best.held_out + error:
            best = each
    return best


def why_not_better(candidates: Sequence[Candidate], samples: int) -> str:
    """The reason why no head could be kept that is more complex than `candidates`; empty if there is none.

    `samples`: as in `simplest`, whose rule any head can meet unless a simpler one is right on all samples. Of fewer
    than 5, even a head that is right on all of them and a simpler one that is right on none differ by chance with a
    probability above 5 % (sign test: 1/16 for 4, 1/32 for 5).
    """
    if samples < LEAST_HELD_OUT:
        return f"{samples} held-out samples are too few to show that it is better"
    perfect = next((each.kind for each in candidates if each.held_out == 1), "")
    return perfect and f"{perfect} is right on all {samples} held-out samples"


def usual_kinds(video: bool, folds: bool) -> tuple[HeadKind, ...]:
    """The heads that are tried where none are named: all that make sense, over folds without the slow late block."""
    kinds = HEAD_KINDS if video else ("linear", "late_block")
    return tuple(kind for kind in kinds if not (folds and kind == "late_block"))


@dataclass(frozen=True)
class Candidate:
    """A head that was tried.

    `setting`: its penalty, or its number of steps. `held_out`: its accuracy on the held-out samples. `seconds`: of
    fitting or training it, without the features. `temperature`: by which the logits of a head that is trained step by
    step are divided where it is kept.
    """

    kind: HeadKind
    setting: str
    held_out: float
    seconds: float
    temperature: float | None = None


# --- with a fixed split -----------------------------------------------------------------------------------------------


def best_head(
    request: AddRequest, catalog: Catalog, split: str, kinds: Sequence[HeadKind], workers: int, spare: bool = False
) -> tuple[Recipe, list[Candidate]]:
    """Try heads for `request.name`, and write a release with the best one into `request.out`.

    The heads are compared on the split dev, or on a fifth of train, in whole groups, if dev is the split that is
    reported. Fitted heads are then fitted again on all these samples. `split`: the one that is reported; no sample of
    it is used. `spare`: do not train a late block that could not be kept (`why_not_better`). Returns the recipe of the
    release and the candidates, the best first. Raises `UserError`.
    """
    name, classes = request.name, catalog.manifest(request.name, "train").classes
    _check_kinds(request, kinds)
    splits = ["train", *(["dev"] if split != "dev" and "dev" in catalog.spec(name).splits else [])]
    _check_size(catalog, name, splits)
    parts = [_features(request, catalog, each, workers) for each in splits]
    features = joined(parts)
    check_classes(features, name, classes.names)
    train_rows, held_out = (
        (parts[0].rows, parts[1].rows) if len(parts) == 2 else _carved(features.rows, name, classes.names)
    )
    own = DividedSet(catalog.spec(name), classes, [*train_rows, *held_out], [])
    rows = {"train": list(train_rows), "dev": list(held_out)}
    trial = _Trial(request, catalog, own, rows, request.out / BESIDE, workers)
    candidates, choices = trial.compare(features, kinds, spare)
    best = candidates[0]
    recipe = frozen_recipe(request, best.kind)
    if best.kind in FITTED:
        choice = choices[best.kind]
        save_head(recipe, fit(features, len(classes.names), choice.kind, choice.c), request, best.kind)
    else:
        _keep_run(trial.run(best.kind), request, best)
    return recipe, candidates


@dataclass(frozen=True)
class _Trial:
    """The comparison of heads on held-out samples.

    `rows`: the rows of `train`, to which heads are fitted, and of `dev`, on which they are compared. `folder`: where
    the runs of trained heads are.
    """

    request: AddRequest
    catalog: Catalog
    own: DividedSet
    rows: Mapping[str, list[Row]]
    folder: Path
    workers: int

    def compare(
        self, features: FrozenFeatures, kinds: Sequence[HeadKind], spare: bool = False
    ) -> tuple[list[Candidate], dict[HeadKind, Choice]]:
        """All heads, the best first, and the penalties of the fitted ones.

        `features`: of all rows. `spare`: as in `best_head`.
        """
        train, dev = (rows_of(features, self.rows[split]) for split in ("train", "dev"))
        fitted, choices = _fitted(train, dev, len(self.own.classes.names), kinds, self.request.seed)
        trained = list[Candidate]()
        for kind in (kind for kind in HEAD_KINDS if kind in kinds and _trained_options(self.request, kind)):
            why_not = why_not_better([*fitted[:1], *trained], len(dev.labels)) if kind == "late_block" and spare else ""
            if why_not:
                say(f"{TITLES[kind]}: not trained, for {why_not}; --heads {kind} trains it")
            else:
                trained.append(self._trained(kind))
        # Between fitted heads the cross-validation decides, because it has more samples than the held-out part.
        best = simplest([*fitted[:1], *trained], len(dev.labels))
        return [best, *(each for each in [*fitted, *trained] if each is not best)], choices

    def _trained(self, kind: HeadKind) -> Candidate:
        began = time.monotonic()
        run, name = self.run(kind), self.request.name
        measured = Evaluator(
            find_release(run),
            load_catalog(self._rows()),
            self.folder / "measured",
            self.request.device,
            self.workers,
            _cache(self.catalog, name),
            calibrate=True,
        ).measure(name, "dev")
        accuracy, seconds = float(measured.right.mean()), time.monotonic() - began
        return Candidate(kind, f"{_steps(kind)} steps", accuracy, seconds, measured.temperature)

    def run(self, kind: HeadKind) -> Path:
        """Train a head that is trained step by step, or resume it; returns its run folder."""
        return _train(self.request, self.catalog, self._rows(), self.folder / kind, kind)

    def _rows(self) -> Path:
        """A catalog with the rows."""
        name = self.request.name
        return write_catalog(
            self.folder / "rows", self.catalog, {name: (self.own, self.rows)}, Data([name], str(self.catalog.path))
        )


def _features(request: AddRequest, catalog: Catalog, split: str, workers: int) -> FrozenFeatures:
    cache = _cache(catalog, request.name)
    return frozen_features(request.release, catalog, request.name, split, request.device, workers, cache)


def _cache(catalog: Catalog, name: str) -> Path:
    """The folder of cached outputs: beside the manifests of the catalog, where all subsets of the rows share it."""
    return catalog.manifest_path(name, "train").parent / CACHE_FOLDER


def _keep_run(run: Path, request: AddRequest, best: Candidate) -> None:
    """Write the release of a run, with its head calibrated, into `request.out`."""
    model = load_release(find_release(run))
    metadata = {**model.metadata, "head_kind": best.kind}
    if best.temperature is not None:
        model.divide_logits(request.name, best.temperature)
        metadata["temperature"] = best.temperature
    save_release(request.out, model, metadata)


def _fitted(
    train: FrozenFeatures, dev: FrozenFeatures, classes: int, kinds: Sequence[HeadKind], seed: int
) -> tuple[list[Candidate], dict[HeadKind, Choice]]:
    """The logistic regressions among `kinds`, the best in cross-validation first, with their penalties."""
    began = time.monotonic()
    chosen = [choice for choice in choose(train, classes, seed) if choice.kind in kinds]
    seconds = (time.monotonic() - began) / max(1, len(chosen))
    candidates = []
    for choice in chosen:
        head = fit(train, classes, choice.kind, choice.c)
        setting = f"C {choice.c:g}" + ("" if head.converged else ", not converged")
        candidates.append(Candidate(choice.kind, setting, accuracy_of(head, dev), seconds))
    return candidates, {choice.kind: choice for choice in chosen}


def rows_of(features: FrozenFeatures, rows: Sequence[Row]) -> FrozenFeatures:
    """The features of those of `rows` that could be read, in their order."""
    places = {row.sample_id: place for place, row in enumerate(features.rows)}
    return features.taken(np.array([places[row.sample_id] for row in rows if row.sample_id in places], np.int64))


def accuracy_of(head: LogisticHead, features: FrozenFeatures) -> float:
    """The fraction of samples whose most probable class is the right one."""
    return float((head.probabilities(features).argmax(1).numpy() == features.labels).mean())


def _carved(rows: Sequence[Row], name: str, classes: Sequence[str]) -> tuple[list[Row], list[Row]]:
    carved = carve_dev(rows, HELD_OUT, classes)
    if not carved.dev:
        raise UserError(
            f"{name}: {len(rows)} training samples are too few to hold some out and choose a head on them; add "
            "samples, or use --how probe"
        )
    return carved.train, carved.dev


def _check_kinds(request: AddRequest, kinds: Sequence[HeadKind]) -> None:
    """Raises `UserError` for a head that this network or these samples do not have."""
    video = load_catalog(request.catalog).spec(request.name).media == "video"
    for kind in kinds:
        if kind in ("quarters", "attentive") and not video:
            raise UserError(f"--heads: {kind}: a photograph has one frame; use linear or late_block")
    if not any(_options(request, kind) for kind in kinds):
        raise UserError(f"--heads: this network has none of {', '.join(kinds)}; use linear")


def _check_size(catalog: Catalog, name: str, splits: Sequence[str]) -> None:
    manifests = [catalog.manifest(name, split) for split in splits]
    if manifests[0].classes.many:
        raise UserError(f"--how best: a sample of {name} has any number of classes; use --how probe")
    if (count := sum(len(manifest.usable) for manifest in manifests)) > MOST_SAMPLES:
        raise UserError(f"--how best: {name} has {count:,} samples, and it is for up to {MOST_SAMPLES:,}; use probe")


def check_classes(features: FrozenFeatures, name: str, classes: Sequence[str]) -> None:
    """Raises `UserError` if the samples are of fewer than two classes."""
    present = sorted(set(features.labels.tolist()))
    if len(present) < 2:
        raise UserError(f'{name}: all training samples are of the class "{classes[present[0]]}"; a head needs two')


# --- with folds -------------------------------------------------------------------------------------------------------


def best_head_by_folds(
    request: AddRequest, catalog: Catalog, folds: FoldRequest, kinds: Sequence[HeadKind], workers: int
) -> tuple[Recipe, list[Candidate], dict[str, Any]]:
    """As `best_head`, with the accuracy over folds of all labelled samples. The release has seen all of them.

    In each fold, the head is chosen among its training samples alone: between fitted heads by cross-validation, and
    between them and trained heads on a fifth of these samples, in whole groups. The chosen head is then fitted, or
    trained, on all of them. Returns also what `folds.with_baselines` returns. Raises `UserError`.
    """
    name, beside = request.name, request.out / BESIDE
    _check_kinds(request, kinds)
    (divided,) = divide(catalog, folds, exclusions=True)
    whole = all_rows(beside / "all", catalog, divided)
    _check_size(whole, name, ["train"])
    features = _features(request, whole, "train", workers)
    chooser = _FoldHeads(request, whole, divided, kinds, features, folds, workers)
    results = []
    for number, (train_rows, test_rows) in enumerate(divided.folds, start=1):
        best, answers = chooser.predict(train_rows, test_rows, fold_folder(beside, folds, number - 1))
        top1 = float(np.mean([each["class"] == each["predicted"] for each in answers]))
        say(f"fold {number} of {folds.count}: {TITLES[best.kind]}, {best.setting}: {top1:.1%} of {len(answers)}")
        results.append(
            {**_protocol(features, divided, request), "top1": top1, "answers": answers}
            | {"n_read": len(answers), "n_listed": len(test_rows)}
        )
    candidates = chooser.release(beside)
    recipe = frozen_recipe(replace(request, catalog=whole.path), candidates[0].kind)
    return recipe, candidates, with_baselines(pooled(results, folds), whole, divided, folds)


@dataclass(frozen=True)
class _FoldHeads:
    """Chooses a head on some rows of a data set, and fits or trains it on all of them.

    `whole`: a catalog whose `train` split has all rows. `features`: of all rows.
    """

    request: AddRequest
    whole: Catalog
    divided: DividedSet
    kinds: Sequence[HeadKind]
    features: FrozenFeatures
    folds: FoldRequest
    workers: int

    def predict(
        self, train_rows: list[Row], test_rows: list[Row], folder: Path
    ) -> tuple[Candidate, list[dict[str, Any]]]:
        """The head that is chosen on `train_rows`, and its answers on those of `test_rows` that can be read."""
        candidates, choices = self._choose(train_rows, folder)
        best, names = candidates[0], self.divided.classes.names
        if best.kind not in FITTED:
            rows = {"train": train_rows, MEASURED: test_rows}
            catalog = self._rows(folder / "final", rows)
            run = _train(self.request, self.whole, catalog, folder / "final" / best.kind, best.kind)
            cache = _cache(self.whole, self.request.name)
            path, temperature = folder / "results.json", best.temperature
            measured = measure_fold(load_catalog(catalog), run, self.folds, path, cache, temperature)
            answers: list[dict[str, Any]] = measured[self.request.name]["answers"]
            return best, answers
        train, test = (rows_of(self.features, rows) for rows in (train_rows, test_rows))
        head = fit(train, len(names), choices[best.kind].kind, choices[best.kind].c)
        scores, predicted = (found.tolist() for found in head.probabilities(test).max(1))
        return best, [
            {
                "sample_id": row.sample_id,
                "group": row.group_id,
                "class": names[label],
                "predicted": names[answer],
                "confidence": round(score, 6),
            }
            for row, label, answer, score in zip(test.rows, test.labels.tolist(), predicted, scores, strict=True)
        ]

    def release(self, beside: Path) -> list[Candidate]:
        """Write the release with a head for all rows; returns the candidates of its choice, the best first."""
        rows = self.divided.rows
        candidates, choices = self._choose(rows, beside)
        best, request = candidates[0], replace(self.request, catalog=self.whole.path)
        if best.kind in FITTED:
            head = fit(self.features, len(self.divided.classes.names), choices[best.kind].kind, choices[best.kind].c)
            save_head(frozen_recipe(request, best.kind), head, request, best.kind)
        else:
            catalog = self._rows(beside / "final", {"train": rows})
            run = _train(self.request, self.whole, catalog, beside / "final" / best.kind, best.kind)
            _keep_run(run, request, best)
        return candidates

    def _choose(self, rows: list[Row], folder: Path) -> tuple[list[Candidate], dict[HeadKind, Choice]]:
        """The heads that were tried on some rows, the best first, and the penalties of the fitted ones."""
        features, names = rows_of(self.features, rows), self.divided.classes.names
        if FITTED.issuperset(self.kinds):
            chosen = [each for each in choose(features, len(names), self.request.seed) if each.kind in self.kinds]
            candidates = [Candidate(each.kind, f"C {each.c:g}", each.accuracy, 0.0) for each in chosen]
            return candidates, {each.kind: each for each in chosen}
        train, dev = _carved(features.rows, self.request.name, names)
        trial = _Trial(
            self.request, self.whole, self.divided, {"train": train, "dev": dev}, folder / "trial", self.workers
        )
        return trial.compare(features, self.kinds)

    def _rows(self, folder: Path, rows: Mapping[str, list[Row]]) -> Path:
        name = self.request.name
        return write_catalog(
            folder / "rows", self.whole, {name: (self.divided, rows)}, Data([name], str(self.whole.path))
        )


def _protocol(features: FrozenFeatures, divided: DividedSet, request: AddRequest) -> dict[str, Any]:
    spec, start = divided.spec, read_config(request.release)
    video = spec.media == "video"
    return {
        "dataset": spec.name,
        "media": spec.media,
        "views": str(spec.views) if video else f"1x{spec.views.spatial}",
        "frames": start.frames if video else 1,
        "sampling": str(spec.sampling) if video else None,
        "classes": len(divided.classes.names),
        "class_digest": divided.classes.digest,
        "head": spec.name,
        "multi_label": False,
    }


# --- recipes and releases ---------------------------------------------------------------------------------------------


def _options(request: AddRequest, kind: HeadKind) -> BackboneOptions | None:
    """The network of a head; None if the family has no such head."""
    media = load_catalog(request.catalog).spec(request.name).media
    options = frozen_options(read_config(request.release), media)
    if kind == "linear":
        return options
    if kind == "late_block":
        return options.with_late_block()
    return options.pooled_by(kind)


def _steps(kind: HeadKind) -> int:
    return LATE_BLOCK_STEPS if kind == "late_block" else STEPS


def _trained_options(request: AddRequest, kind: HeadKind) -> BackboneOptions | None:
    return None if kind in FITTED else _options(request, kind)


def frozen_recipe(request: AddRequest, kind: HeadKind) -> Recipe:
    """The recipe of a head on the frozen network: its data, its model and its start."""
    options, start = _options(request, kind), read_config(request.release)
    assert options
    return Recipe(
        Data([request.name], str(request.catalog), start.frames),
        str(request.out),
        _steps(kind),
        BATCH,
        options,  # type: ignore[arg-type]
        Start(str(request.release), "keep", "keep"),
        default_head=request.name,
        adapt=Adapt("probe"),
        optimizer=TRAINED,
        label_smoothing=SMOOTHING,
        seed=request.seed,
        device=request.device,
        workers=request.workers,
        evaluate_every=-1,
        checkpoints=Checkpoints(keep=1),
    )


def _train(request: AddRequest, origin: Catalog, catalog: Path, out: Path, kind: HeadKind) -> Path:
    """Train a head on the rows of `catalog`, or resume it, on cached outputs; returns its run folder.

    `origin`: the catalog that these rows come from. `out`: the run folder.
    """
    own = replace(request, catalog=catalog, out=out)
    cache = Cache(stages=-1, views=VIEWS, dtype=DTYPES[kind], folder=str(_cache(origin, request.name)))
    return train(replace(frozen_recipe(own, kind), cache=cache), resume=has_started(own.out))


def save_head(recipe: Recipe, head: LogisticHead, request: AddRequest, kind: HeadKind) -> None:
    """Write a release of the frozen network with the fitted head, beside the heads that the network has already."""
    origin = find_release(recipe.start.checkpoint)
    mixture = Mixture.open(recipe.data)
    model = build_model(recipe, mixture, origin)
    start_from(model, origin, "keep")
    linear = model.heads[request.name]
    with torch.no_grad():
        linear.weight.copy_(head.weight)  # type: ignore[operator]
        linear.bias.copy_(head.bias)  # type: ignore[operator]
    metadata = {**describe(recipe, mixture, model, origin), "step": 0, "steps": 0, "head_kind": kind}
    save_release(request.out, model, metadata)


# --- the candidates on a terminal -------------------------------------------------------------------------------------


def print_candidates(candidates: Sequence[Mapping[str, Any]]) -> None:
    """Print one row for each head that was tried, the one that was kept first."""
    columns = ["head", "setting", "held out", "seconds", ""]
    print_table(columns, [_cells(row, number == 0) for number, row in enumerate(candidates)])


def _cells(row: Mapping[str, Any], best: bool) -> list[str]:
    figures = [f"{row['held_out']:.1%}", f"{row['seconds']:.1f}"]
    return [TITLES[row["kind"]], row["setting"], *figures, "kept" if best else ""]
