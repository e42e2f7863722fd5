"""Runs of a study: the recipes of all arms, transfers and probes. A run that several comparisons use is run once.

All arms of a comparison draw the target's clips equally often. Their steps have equally many clips. They have the same
starting weights, learning rates and augmentation. They are measured at the checkpoint that is best on `dev`. An arm
without the images, or without the other video sets, differs from the full mixture in nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from cover import config
from cover.experiments.study.study_file import WITH, Origin, Size, Study, Transfer, other_set
from cover.experiments.study.subsets import Subset, SubsetBuilder
from cover.media.source import Media
from cover.mixture.dataset import MixtureDataset
from cover.mixture.mixture import Mixture
from cover.mixture.rates import rates_by
from cover.mixture.schedule import Schedule
from cover.model.backbones import Options, backbone_config
from cover.model.profile import forward_cost, on_meta
from cover.model.release import weights_digest
from cover.training.recipe import Checkpoints, Data, Pattern, Recipe, Start

HEADS_ONLY = r"^(?!heads\.)"  # pattern of all parameters that are not in a head; a probe freezes them
WITH_TIME = Origin(temporal="keep")  # starting weights with a trained temporal branch
FRESH = "_fresh"  # suffix of a target's name, for its new head in a transfer


@dataclass
class Job:
    """One run.

    `subsets`: its data sets by name. `start`: the job whose weights are the starting weights. `measured`: the data sets
    to evaluate on. The runner fills in `recipe.out` and the path of the starting weights.
    """

    name: str
    recipe: Recipe
    subsets: dict[str, Subset]
    start: Job | None = None
    measured: set[str] = field(default_factory=set)
    digest: str = ""

    @property
    def depth(self) -> int:
        """The number of runs that must be done before, one after the other."""
        return 0 if self.start is None else 1 + self.start.depth


@dataclass(frozen=True)
class Measurement:
    """One number of a study: the accuracy of the model of `job` on `dataset`, in one fold with one seed.

    `kind`: arm, transfer, probe or origin. `arm`: the arm, or the source of a transfer. `lr`: the peak learning rate.
    """

    kind: str
    arm: str
    target: str
    size: str
    origin: str
    seed: int
    fold: int
    lr: float
    job: str
    dataset: str


class Grid:
    """All measurements of a study, and their jobs by name.

    >>> grid = Grid(study, builder)
    >>> len(grid.measurements), len(grid.jobs)
    """

    def __init__(self, study: Study, builder: SubsetBuilder) -> None:
        self.study, self.builder = study, builder
        self.jobs: dict[str, Job] = {}
        self.measurements: list[Measurement] = []
        self._by_digest: dict[str, Job] = {}
        # If one target has no dev split, the models of all targets are measured at their last step.
        self._have_dev = all("dev" in builder.entry(subset)["annotations"] for subset in measured_subsets(study))
        for seed in study.seeds:
            for origin in study.origins:
                self._arms(origin, seed)
            if study.transfer.wanted:
                self._transfers(seed)

    # --- arms ---------------------------------------------------------------------------------------------------------

    def _arms(self, origin: str, seed: int) -> None:
        study = self.study
        start = self._origin(origin, seed)
        if start is not None:
            self._probe("origin", "", "", origin, seed, start)
        for size in study.sizes:
            for target in study.targets:
                for fold in range(study.folds.get(target, 1)):
                    for arm in study.arms_at(size):
                        for lr in study.lrs:
                            self._arm(arm, target, size, origin, seed, fold, lr, start)

    def _arm(
        self, arm: str, target: str, size: str, origin: str, seed: int, fold: int, lr: float, start: Job | None
    ) -> None:
        recipes = ArmRecipes(self.study, self.builder, target, self.study.sizes[size], seed, fold)
        recipe, subsets = recipes.recipe(arm, lr)
        shared = recipes.shared and (arm in ("videos", "videos_images") or (arm == "stills" and self.study.one_model))
        words = [arm.replace(":", "_"), *([] if shared else [target]), size, origin]
        words += [f"fold{fold + 1}"] if target in self.study.folds else []
        # All targets of a model take part in the choice of its checkpoint.
        best = ("mean_rank" if shared else target) if self._have_dev else ""
        job = self._job(words, recipe, subsets, start, self.study.origins[origin], seed, lr, best)
        job.measured.add(target)
        self.measurements.append(Measurement("arm", arm, target, size, origin, seed, fold, lr, job.name, target))
        if size == next(iter(self.study.sizes)) and not fold and lr == self.study.lrs[0]:
            self._probe(arm, target, size, origin, seed, job)

    def _origin(self, name: str, seed: int) -> Job | None:
        """The job of an image pre-training; None if the starting weights need none."""
        origin = self.study.origins[name]
        if not origin.sets:
            return None
        seed = seed if origin.each_seed else 0
        subsets = {each: Subset(each) for each in origin.sets}
        recipe = replace(
            self._base(seed, origin.lr),
            data=Data(list(subsets)),
            steps=origin.steps,
            batch=origin.batch,
            model=self.study.model.for_images(),
        )
        job = self._job(["origin", name], recipe, subsets, None, Origin(), seed, origin.lr)
        job.measured |= set(subsets)
        return job

    # --- transfers ----------------------------------------------------------------------------------------------------

    def _transfers(self, seed: int) -> None:
        transfer = self.study.transfer
        origin = transfer.origin or next(iter(self.study.origins))
        start = self._origin(origin, seed) if transfer.sources else None
        for target in transfer.targets:
            folds = self.study.transfer_folds(target)
            for source, sets in transfer.sources.items():
                if folds and sets == [target]:
                    continue  # it has seen the measured clips
                others = [name for name in sets if len(sets) == 1 or name != target]
                self._transfer(target, source, self._source(others, origin, seed, start), seed, folds)
            for source, checkpoint in transfer.checkpoints.items():
                self._transfer(target, source, checkpoint, seed, folds)

    def _transfer(self, target: str, source: str, start: Job | str, seed: int, folds: int) -> None:
        """Add the transfers from one source to one target. `start`: the job of the source, or its checkpoint."""
        for fold in range(max(1, folds)):
            self._transfer_fold(target, source, start, seed, folds, fold)

    def _transfer_fold(self, target: str, source: str, start: Job | str, seed: int, folds: int, fold: int) -> None:
        size = self.study.transfer.size or next(iter(self.study.sizes))
        study = self.study if folds else replace(self.study, folds={})
        recipes = ArmRecipes(study, self.builder, target, study.sizes[size], seed, fold)
        best = target if self._have_dev else ""
        for how in self.study.transfer.how:
            for lr in self.study.lrs:
                recipe, subsets = recipes.recipe("alone", lr)
                recipe, words = fresh_head(recipe, target, how), [how, source, "to", target]
                words += [f"fold{fold + 1}"] if folds else []
                job = self._job(words, recipe, subsets, start, WITH_TIME, seed, lr, best)
                job.measured.add(target)
                self.measurements.append(
                    Measurement("transfer", f"{source}:{how}", target, size, "", seed, fold, lr, job.name, target)
                )

    def _source(self, sets: Sequence[str], origin: str, seed: int, start: Job | None) -> Job:
        """The job of a source: a model of `sets`, trained like the arms, with the first learning rate."""
        study, lr = self.study, self.study.lrs[0]
        videos = [name for name in sets if self.builder.catalog.spec(name).media == "video"]
        images = [name for name in sets if name not in videos]
        whole = replace(next(iter(study.sizes.values())), part=1.0, rate=0.0, arms=[])
        if len(sets) == 1:  # with the batch of the arm `alone`, so that the source and the arm are the same run
            changes, arm = dict[str, Any](), "alone"
        else:
            changes = {"targets": videos[:1], "videos": videos, "images": images}
            changes |= {"sizes": {"whole": whole}, "arms": ["alone"], "transfer": Transfer()}
            arm = "videos_images"
        own_study = replace(study, folds={}, **changes)
        recipe, subsets = ArmRecipes(own_study, self.builder, videos[0], whole, seed, 0).recipe(arm, lr)
        best = (videos[0] if len(sets) == 1 else "mean_rank") if self._have_dev else ""
        return self._job(["source", *sets, origin], recipe, subsets, start, study.origins[origin], seed, lr, best)

    def _probe(self, arm: str, target: str, size: str, origin: str, seed: int, start: Job) -> None:
        """Add the probes of a model: image classifiers on its frozen features, trained equally for every arm."""
        study, lr = self.study, self.study.lrs[0]
        for name in study.probes:
            subsets = {name: Subset(name)}
            steps = max(1, round(study.probe_epochs * self.builder.count(subsets[name]) / study.batch))
            recipe = replace(self._base(seed, lr), data=Data([name]), steps=steps, batch=study.batch)
            words = ["probe", name, "of", start.name.rpartition(".s")[0]]
            job = self._job(words, fresh_head(recipe, name, "probe"), subsets, start, WITH_TIME, seed, lr)
            job.measured.add(name)
            kind = "origin" if arm == "origin" else "probe"
            self.measurements.append(Measurement(kind, arm, target, size, origin, seed, 0, lr, job.name, name))

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _base(self, seed: int, lr: float) -> Recipe:
        return base_recipe(self.study, seed, lr)

    def _job(
        self,
        words: Sequence[str],
        recipe: Recipe,
        subsets: dict[str, Subset],
        start: Job | str | None,
        origin: Origin,
        seed: int,
        lr: float,
        best: str = "mean_rank",
    ) -> Job:
        """The job of a recipe. If an equal job exists, it is returned.

        `words`: parts of its name. `origin` says how the weights of `start` are used. `best`: as `checkpoints.best`.
        """
        checkpoint = start if isinstance(start, str) else origin.checkpoint
        before = start if isinstance(start, Job) else None
        if before or checkpoint:
            recipe = replace(recipe, start=Start("" if before else checkpoint, origin.temporal))
        every = math.ceil(recipe.step_count / self.study.evaluations)
        recipe = replace(recipe, evaluate_every=every, save_every=every, checkpoints=Checkpoints(keep=1, best=best))
        name = ".".join([*words, f"lr{lr:g}", f"s{seed}"])
        began = before.digest if before else weights_digest(checkpoint) if checkpoint else ""
        digest = digest_of(recipe, [*(self.builder.digest(subset) for subset in subsets.values()), began])
        known = self._by_digest.get(digest)
        if known is None:
            assert name not in self.jobs, f"two jobs are called {name}"
            known = self._by_digest[digest] = self.jobs[name] = Job(name, recipe, subsets, before, set(), digest)
        return known

    def waves(self) -> Iterator[list[Job]]:
        """Yield lists of independent jobs. A job comes in a later list than the job of its starting weights."""
        depths = sorted({job.depth for job in self.jobs.values()})
        for depth in depths:
            yield [job for job in self.jobs.values() if job.depth == depth]


def measured_subsets(study: Study) -> list[Subset]:
    """The subsets to measure on: a split or the folds of each target."""
    subsets = [
        Subset(target, folds=study.folds.get(target, 0), fold=fold)
        for target in study.targets
        for fold in range(study.folds.get(target, 1))
    ]
    return subsets + [Subset(target) for target in study.transfer.targets if study.transfer.wanted]


def digest_of(recipe: Recipe, input_digests: Iterable[str]) -> str:
    """12 hex digits of a hash over everything that determines the result of a run.

    `input_digests`: the digests of its manifests and of its starting weights. Of the recipe, only fields that differ
    from their defaults count, so that a new field does not change the digests of earlier runs.
    """
    bare = replace(recipe, out="", device="auto", start=replace(recipe.start, checkpoint=""))
    text = json.dumps(config.changed(bare), sort_keys=True)
    return hashlib.sha256("\n".join([text, *input_digests]).encode()).hexdigest()[:12]


def fresh_head(recipe: Recipe, target: str, how: str) -> Recipe:
    """The recipe with a head that the starting weights do not have. With `probe`, only this head is trained."""
    data = replace(recipe.data, heads={f"{target}{FRESH}": [target]})
    if how == "finetune":
        return replace(recipe, data=data)
    frozen = {HEADS_ONLY: Pattern(freeze=True), **recipe.optimizer.patterns}
    return replace(recipe, data=data, optimizer=replace(recipe.optimizer, patterns=frozen))


def base_recipe(study: Study, seed: int, lr: float) -> Recipe:
    """The common part of the recipes of a study, for a seed and a learning rate."""
    data = Data(["nothing"], frames=study.frames)
    return Recipe(
        data,
        "",
        1,
        batch=study.batch,
        model=study.model,
        augment=study.augment,
        optimizer=replace(study.optimizer, lr=lr),
        seed=seed,
        label_smoothing=study.label_smoothing,
        precision=study.precision,
        cache=study.cache,
        device=study.device,
        workers=0,
        log_every=10,
    )


class ArmRecipes:
    """The recipes of all arms of one target, at one size, in one fold, with one seed.

    `counts`: training samples of each data set. `full`: the schedule of the full mixture. `clips`: clips in a step.
    `steps`: steps of a mixture.
    """

    def __init__(self, study: Study, builder: SubsetBuilder, target: str, size: Size, seed: int, fold: int) -> None:
        self.study, self.builder, self.target, self.size, self.seed = study, builder, target, size, seed
        names = [*(study.mixture or [target]), *study.images]
        self.subsets = {name: self._subset(name, fold if study.one_model else -1) for name in names}
        self.subsets[target] = replace(self._subset(target, fold), part=size.part, seed=seed if size.part < 1 else 0)
        self.videos = [name for name in self.subsets if name not in study.images]
        self.counts = {name: builder.count(subset) for name, subset in self.subsets.items()}
        self.rates = self._rates()
        self.full = self._schedule(list(self.subsets), study.batch)
        self.clips = next(group.samples for group in self.full.groups if group.frames == study.frames)
        target_fraction = next(  # of the clips
            float(fraction)
            for group in self.full.groups
            for dataset, fraction in zip(group.datasets, group.fractions)
            if dataset.name == target
        )
        total = sum(self.counts[name] for name in self.videos)
        epoch = total if self.shared else self.counts[target] / target_fraction  # clips of all videos in an epoch
        self.steps = max(1, round(size.epochs * epoch / self.clips))

    def _subset(self, name: str, fold: int) -> Subset:
        """A data set, or without its fold number `fold` (from 0; -1: its own training clips)."""
        folds = self.study.folds.get(name, 0) if fold >= 0 else 0
        return Subset(name, folds=folds, fold=fold if folds else 0)

    @property
    def shared(self) -> bool:
        """Whether all targets have the same mixture, and therefore one run."""
        if self.study.one_model:
            return self.size.part == 1 and not self.size.rate
        in_proportion = not self.size.rate and not self.study.weights and self.study.alpha == 1
        return in_proportion and self.size.part == 1 and not self.study.folds.get(self.target)

    def recipe(self, arm: str, lr: float) -> tuple[Recipe, dict[str, Subset]]:
        """The recipe of an arm, and its subsets by data-set name."""
        if other_set(arm):
            return self._worth(arm, lr)
        names, batch, steps = self._contents(arm)
        subsets = {name: self.subsets[name] for name in names}
        if arm == "permuted":
            others = {name: replace(subset, permuted=True, seed=self.seed) for name, subset in subsets.items()}
            subsets = {**others, self.target: subsets[self.target]}
        rates = {name: self.rates[name] for name in names}
        if arm == "stills":
            of = self.videos if self.shared and self.study.one_model else [self.target]
            images = sum(self.rates[name] for name in self.study.images) / sum(self.rates[name] for name in of)
            for name in of:
                subsets[f"{name}_stills"] = replace(self.subsets[name], stills=self.study.stills)
                rates[f"{name}_stills"] = images * self.rates[name]
        return self._of(rates, lr, steps, batch), subsets

    def _of(self, rates: Mapping[str, Any], lr: float, steps: int, batch: int) -> Recipe:
        """The recipe that trains on the data sets of `rates`."""
        weights = {name: float(rate) for name, rate in rates.items()} if len(rates) > 1 else {}
        of_head = {head: [name for name in sets if name in rates] for head, sets in self.study.heads.items()}
        heads = {head: sets for head, sets in of_head.items() if sets}
        data = Data(list(rates), frames=self.study.frames, weights=weights, heads=heads)
        return replace(base_recipe(self.study, self.seed, lr), data=data, steps=steps, batch=batch)

    def _worth(self, arm: str, lr: float) -> tuple[Recipe, dict[str, Subset]]:
        """The recipe of an arm with one other data set, or without one, and its subsets.

        Each of its data sets is drawn as often as in the full mixture. Steps have as many clips.
        """
        other = other_set(arm)
        if arm.startswith(WITH):
            names = [name for name in self.subsets if name in (self.target, other)]
        else:
            names = [name for name in self.subsets if name != other]
        drawn = {name: count for name, count in self.full.drawn(self.steps).items() if name in names}
        steps = max(1, round(sum(drawn[name] for name in names if name in self.videos) / self.clips))
        images = sum(drawn[name] for name in names if name not in self.videos)
        batch = self.clips + (max(1, round(images / steps)) if images else 0)
        return self._of(drawn, lr, steps, batch), {name: self.subsets[name] for name in names}

    def _contents(self, arm: str) -> tuple[list[str], int, int]:
        """The data sets of an arm, its samples in a step, and its steps."""
        if arm == "alone":
            return [self.target], self.clips, max(1, round(self.full.drawn(self.steps)[self.target] / self.clips))
        if arm == "alone_long":
            mixed, alone = self._work(self.full), self._work(self._schedule([self.target], self.clips))
            return [self.target], self.clips, max(1, round(self.steps * mixed / alone))
        if arm == "videos":
            return self.videos, self.clips, self.steps
        return (self.videos if arm == "stills" else list(self.subsets)), self.study.batch, self.steps

    def _rates(self) -> dict[str, Any]:
        """The fraction of each data set in the samples of the full mixture."""
        weights = {name: self.study.weights[name] for name in self.counts} if self.study.weights else None
        rates = rates_by(self.counts, self.study.alpha, weights)
        if not self.size.rate:
            return rates
        # The target gets the fraction `size.rate` of the clips. The rates of the images do not change.
        clips = sum(rates[name] for name in self.videos)
        others = clips - rates[self.target]
        if not others:
            return rates
        names = [name for name in self.videos if name != self.target]
        scaled = {name: rates[name] / others * clips * (1 - self.size.rate) for name in names}
        return {**rates, **scaled, self.target: clips * self.size.rate}

    def _schedule(self, names: Sequence[str], batch: int) -> Schedule:
        data = Data(list(names), frames=self.study.frames, weights={name: float(self.rates[name]) for name in names})
        media: dict[str, Media] = {name: "video" if name in self.videos else "image" for name in names}
        datasets = [MixtureDataset.of_size(name, media[name], self.counts[name]) for name in names]
        return Mixture(data, datasets).schedule(batch, self.seed)

    def _work(self, schedule: Schedule) -> int:
        return step_multiply_adds(self.study.model, self.study.frames, schedule.mean_step)


@lru_cache(maxsize=64)
def step_multiply_adds(model: Options, frames: int, groups: tuple[tuple[int, int], ...]) -> int:
    """Multiply-adds of a network in the forward pass of a step. `groups`: (samples, frames of a sample)."""
    config = backbone_config(model, frames)
    return forward_cost(on_meta(config, {}), groups, config.size).multiply_adds
