"""`cover add --how best`: several heads on a frozen network, of which the best on held-out samples is kept.

The heads are logistic regressions on the mean over a clip and on its four quarters, an attention over its frames, and a
late space-time block. Nothing is chosen on the samples that the reported accuracy is measured on.
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
from cover.experiments.folds import DividedSet, FoldRequest, divide, pooled, write_catalog
from cover.mixture.mixture import Mixture
from cover.mixture.rates import Data
from cover.model.backbone import BackboneOptions
from cover.model.release import find_release, load_release, read_config, save_release, start_from
from cover.training.recipe import Cache, Checkpoints, Optimizer, Pattern, Recipe, Start
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
MOST_SAMPLES = 20_000  # a logistic regression on more takes longer than training a head step by step
HELD_OUT = 0.2  # fraction of the training samples on which heads are compared, if there is no other split for that
STEPS, BATCH, VIEWS = 300, 32, 2  # of the heads that are trained step by step; augmented views of each sample
TRAINED = Optimizer(lr=1e-3, weight_decay=0.05, warmup=0.1)
FITTED: frozenset[HeadKind] = frozenset(["linear", "quarters"])  # the kinds that are fitted, not trained


@dataclass(frozen=True)
class Candidate:
    """A head that was tried.

    `setting`: its penalty, or its number of steps. `held_out`: its accuracy on the held-out samples. `seconds`: of
    fitting or training it, without the features.
    """

    kind: HeadKind
    setting: str
    held_out: float
    seconds: float


# --- with a fixed split -----------------------------------------------------------------------------------------------


def best_head(
    request: AddRequest, catalog: Catalog, split: str, kinds: Sequence[HeadKind], workers: int
) -> tuple[Recipe, list[Candidate]]:
    """Try heads for `request.name`, and write a release with the best one into `request.out`.

    The heads are compared on the split dev, or on a fifth of train, in whole groups, if dev is the split that is
    reported. Fitted heads are then fitted again on all these samples. `split`: the one that is reported; no sample of
    it is used. Returns the recipe of the release and the candidates, the best first. Raises `UserError`.
    """
    name, classes = request.name, catalog.manifest(request.name, "train").classes
    _check_kinds(request, kinds)
    splits = ["train", *(["dev"] if split != "dev" and "dev" in catalog.spec(name).splits else [])]
    _check_size(catalog, name, splits)
    parts = [frozen_features(request.release, catalog, name, each, request.device, workers) for each in splits]
    features = joined(parts)
    check_classes(features, name, classes.names)
    train_rows, held_out = (
        (parts[0].rows, parts[1].rows) if len(parts) == 2 else _carved(features.rows, name, classes.names)
    )
    ids = {row.sample_id for row in held_out}
    in_dev = np.array([row.sample_id in ids for row in features.rows])
    train, dev = features.taken(np.flatnonzero(~in_dev)), features.taken(np.flatnonzero(in_dev))
    fitted, choices = _fitted(train, dev, len(classes.names), kinds, request.seed)
    trained, runs = list[Candidate](), dict[HeadKind, Path]()
    stepwise = {kind: options for kind in kinds if (options := _trained_options(request, kind))}
    if stepwise:
        own = DividedSet(catalog.spec(name), classes, [*train_rows, *held_out], [])
        divided = {name: (own, {"train": list(train_rows), "dev": list(held_out)})}
        path = write_catalog(request.out / BESIDE / "rows", catalog, divided, Data([name], str(catalog.path)))
        for kind, options in stepwise.items():
            began = time.monotonic()
            runs[kind] = _train(request, path, kind, *options)
            measured = Evaluator(
                find_release(runs[kind]), load_catalog(path), request.out / BESIDE / "measured", request.device, workers
            ).measure(name, "dev")
            seconds = time.monotonic() - began
            trained.append(Candidate(kind, f"{STEPS} steps", float(measured.right.mean()), seconds))
    # Between fitted heads the cross-validation decides, because it has more samples than the held-out part. Of equal
    # heads the first one is kept, which is the simplest.
    best = max([*fitted[:1], *trained], key=lambda each: each.held_out)
    recipe = frozen_recipe(request, best.kind)
    if best.kind in runs:
        model = load_release(find_release(runs[best.kind]))
        save_release(request.out, model, {**model.metadata, "head_kind": best.kind})
    else:
        choice = choices[best.kind]
        save_head(recipe, fit(features, len(classes.names), choice.kind, choice.c), request, best.kind)
    return recipe, [best, *(each for each in [*fitted, *trained] if each is not best)]


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


def _check_kinds(request: AddRequest, kinds: Sequence[HeadKind], fitted_only: bool = False) -> None:
    """Raises `UserError` for a head that this network, these samples or folds do not have."""
    video = load_catalog(request.catalog).spec(request.name).media == "video"
    for kind in kinds:
        if kind in ("quarters", "attentive") and not video:
            raise UserError(f"--heads: {kind}: a photograph has one frame; use linear or late_block")
    if fitted_only and not FITTED.intersection(kinds):
        raise UserError(f"--heads: with --folds only {' and '.join(sorted(FITTED))} are tried; add one of them")
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

    In each fold, kind and penalty are chosen by cross-validation among its training samples. Only fitted heads are
    tried. Returns also what `folds.pooled` returns. Raises `UserError`.
    """
    name = request.name
    _check_kinds(request, kinds, fitted_only=True)
    (divided,) = divide(catalog, folds, exclusions=True)
    names, path = divided.classes.names, request.out / BESIDE / "all"
    write_catalog(path, catalog, {name: (divided, {"train": divided.rows})}, Data([name], str(catalog.path)))
    _check_size(load_catalog(path / "catalog.yaml"), name, ["train"])
    features = frozen_features(
        request.release, load_catalog(path / "catalog.yaml"), name, "train", request.device, workers
    )
    place = {row.sample_id: number for number, row in enumerate(features.rows)}
    results = []
    for number, (train_rows, test_rows) in enumerate(divided.folds, start=1):
        train, test = (
            features.taken(np.array([place[row.sample_id] for row in rows if row.sample_id in place], np.int64))
            for rows in (train_rows, test_rows)
        )
        best = next(choice for choice in choose(train, len(names), request.seed) if choice.kind in kinds)
        predicted = fit(train, len(names), best.kind, best.c).probabilities(test).argmax(1).tolist()
        answers = [
            {"sample_id": row.sample_id, "group": row.group_id, "class": names[label], "predicted": names[answer]}
            for row, label, answer in zip(test.rows, test.labels.tolist(), predicted, strict=True)
        ]
        top1 = float(np.mean([each["class"] == each["predicted"] for each in answers]))
        say(f"fold {number} of {folds.count}: {best.kind}, C {best.c:g}: {top1:.1%} of {len(answers)}")
        results.append(
            {**_protocol(features, divided, request), "top1": top1, "answers": answers}
            | {"n_read": len(answers), "n_listed": len(test_rows)}
        )
    chosen = [choice for choice in choose(features, len(names), request.seed) if choice.kind in kinds]
    recipe = frozen_recipe(replace(request, catalog=path / "catalog.yaml"), chosen[0].kind)
    save_head(recipe, fit(features, len(names), chosen[0].kind, chosen[0].c), request, chosen[0].kind)
    candidates = [Candidate(each.kind, f"C {each.c:g}", each.accuracy, 0.0) for each in chosen]
    return recipe, candidates, pooled(results, folds)


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


def _options(request: AddRequest, kind: HeadKind) -> tuple[BackboneOptions, str] | None:
    """The network of a head, and which parameters of its backbone are trained; None if the family has no such head."""
    media = load_catalog(request.catalog).spec(request.name).media
    options = frozen_options(read_config(request.release), media)
    if kind == "linear":
        return options, ""
    if kind == "late_block":
        return options.with_late_block()
    pooled_options = options.pooled_by(kind)
    trained = r"^backbone\.pool\." if kind == "attentive" else ""
    return (pooled_options, trained) if pooled_options else None


def _trained_options(request: AddRequest, kind: HeadKind) -> tuple[BackboneOptions, str] | None:
    return None if kind in FITTED else _options(request, kind)


def frozen_recipe(request: AddRequest, kind: HeadKind) -> Recipe:
    """The recipe of a head on the frozen network: its data, its model and its start."""
    found, start = _options(request, kind), read_config(request.release)
    assert found
    options, trained = found
    first = rf"^heads\.{request.name}\." + (f"|{trained}" if trained else "")
    patterns = {first: Pattern(), ".": Pattern(freeze=True)}
    return Recipe(
        Data([request.name], str(request.catalog), start.frames),
        str(request.out),
        STEPS,
        BATCH,
        options,  # type: ignore[arg-type]
        Start(str(request.release), "keep", "keep"),
        optimizer=replace(TRAINED, patterns=patterns),
        label_smoothing=SMOOTHING,
        seed=request.seed,
        device=request.device,
        workers=request.workers,
        evaluate_every=-1,
        checkpoints=Checkpoints(keep=1),
    )


def _train(request: AddRequest, catalog: Path, kind: HeadKind, options: BackboneOptions, trained: str) -> Path:
    """Train a head, or resume it, on cached outputs of the frozen stages; returns its run folder."""
    own = replace(request, catalog=catalog, out=request.out / BESIDE / kind)
    recipe = replace(frozen_recipe(own, kind), cache=Cache(stages=-1, views=VIEWS, dtype="float16"))
    return train(recipe, resume=has_started(own.out))


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
