"""Which runs does a study consist of? From its file to recipes, each run once however many comparisons use it.

All arms of a comparison see the target's clips equally often, in steps of as many clips, from the same weights, under the same
learning rates and augmentation, and are measured at the checkpoint that is best on `dev`. Take the images, or the other video sets, out
of the full mixture, and what is left is the very rest of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cover import config
from cover.datasets.manifest import Media
from cover.mixture.dataset import MixtureDataset
from cover.mixture.mixture import Mixture
from cover.mixture.rates import rates_by
from cover.mixture.schedule import Schedule
from cover.model.cost import multiply_adds
from cover.model.presets import model_config
from cover.studies.grid.derive import Deriver, Part
from cover.studies.grid.file import Origin, Size, Study, Transfer
from cover.training.recipe import Checkpoints, Data, Pattern, Recipe, Start
from cover.training.starting import weights_digest

HEADS_ONLY = r"^(?!heads\.)"  # every parameter but those of the heads
KEPT = Origin(temporal="keep")  # of weights that have learnt what time is
FRESH = "_fresh"  # behind a target's name: its new head in a transfer


@dataclass
class Job:
    """One run: `recipe`, its `parts` by data-set name, `start`: the job whose weights it starts from, and which data sets are measured
    on it. `recipe.out` and the start's path are filled in by whoever runs it."""

    name: str
    recipe: Recipe
    parts: dict[str, Part]
    start: Job | None = None
    measured: set[str] = field(default_factory=set)
    digest: str = ""

    @property
    def depth(self) -> int:
        """How many runs it waits for, one after the other."""
        return 0 if self.start is None else 1 + self.start.depth


@dataclass(frozen=True)
class Cell:
    """What one number is of: the model of `job` on `dataset`, as `arm` of `target` (or source of a transfer) in one fold under one seed.

    `kind`: arm, transfer, probe or origin. `lr`: the peak learning rate, one of those that were tried.
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
    """The cells of a study, and their jobs by name.

    >>> grid = Grid(study, deriver)
    >>> len(grid.cells), len(grid.jobs)
    """

    def __init__(self, study: Study, deriver: Deriver) -> None:
        self.study, self.deriver = study, deriver
        self.jobs: dict[str, Job] = {}
        self.cells: list[Cell] = []
        self._by_digest: dict[str, Job] = {}
        # Where one target has nothing to choose on, no arm of any is chosen: all are measured at their last step.
        self._chosen = all("dev" in deriver.entry(part)["annotations"] for part in measured_parts(study))
        for seed in study.seeds:
            for origin in study.origins:
                self._arms(origin, seed)
            if study.transfer.wanted:
                self._transfers(seed)

    # --- arms ---------------------------------------------------------------------------------------------------------------------

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

    def _arm(self, arm: str, target: str, size: str, origin: str, seed: int, fold: int, lr: float, start: Job | None) -> None:
        mix = Mix(self.study, self.deriver, target, self.study.sizes[size], seed, fold)
        recipe, parts = mix.recipe(arm, lr)
        shared = mix.shared and arm in ("videos", "videos_images")
        words = [arm, *([] if shared else [target]), size, origin]
        words += [f"fold{fold + 1}"] if target in self.study.folds else []
        # One model of several targets is chosen for all of them, a model of one for that one.
        best = ("mean_rank" if shared else target) if self._chosen else ""
        job = self._job(words, recipe, parts, start, self.study.origins[origin], seed, lr, best)
        job.measured.add(target)
        self.cells.append(Cell("arm", arm, target, size, origin, seed, fold, lr, job.name, target))
        if size == next(iter(self.study.sizes)) and not fold and lr == self.study.lrs[0]:
            self._probe(arm, target, size, origin, seed, job)

    def _origin(self, name: str, seed: int) -> Job | None:
        origin = self.study.origins[name]
        if not origin.sets:
            return None
        parts = {each: Part(each) for each in origin.sets}
        recipe = replace(
            self._base(seed, origin.lr), data=Data(list(parts)), steps=origin.steps, batch=origin.batch,
            model=replace(self.study.model, image_temporal="skip"),
        )  # fmt: skip
        job = self._job(["origin", name], recipe, parts, None, Origin(), seed, origin.lr)
        job.measured |= set(parts)
        return job

    # --- transfers ----------------------------------------------------------------------------------------------------------------

    def _transfers(self, seed: int) -> None:
        wanted = self.study.transfer
        origin = wanted.origin or next(iter(self.study.origins))
        start = self._origin(origin, seed) if wanted.sources else None
        for target in wanted.targets:
            for source, sets in wanted.sources.items():
                left = [name for name in sets if len(sets) == 1 or name != target]
                self._to(target, source, self._source(left, origin, seed, start), seed)
            for source, checkpoint in wanted.checkpoints.items():
                self._to(target, source, checkpoint, seed)

    def _to(self, target: str, source: str, start: Job | str, seed: int) -> None:
        """`start`: the job that makes the source, or the checkpoint that it is."""
        size = self.study.transfer.size or next(iter(self.study.sizes))
        study = replace(self.study, folds={})
        for how in self.study.transfer.how:
            for lr in self.study.lrs:
                recipe, parts = Mix(study, self.deriver, target, study.sizes[size], seed, 0).recipe("alone", lr)
                best = target if self._chosen else ""
                job = self._job([how, source, "to", target], fresh_head(recipe, target, how), parts, start, KEPT, seed, lr, best)
                job.measured.add(target)
                self.cells.append(Cell("transfer", f"{source}:{how}", target, size, "", seed, 0, lr, job.name, target))

    def _source(self, sets: Sequence[str], origin: str, seed: int, start: Job | None) -> Job:
        """A model of `sets`, trained as the arms are, under the first learning rate."""
        study, lr = self.study, self.study.lrs[0]
        videos = [name for name in sets if self.deriver.catalog.spec(name).media == "video"]
        whole = replace(next(iter(study.sizes.values())), part=1.0, rate=0.0, arms=[])
        images = [name for name in sets if name not in videos]
        narrowed = replace(
            study, targets=videos[:1], videos=videos, images=images, folds={}, sizes={"whole": whole}, arms=["alone"], transfer=Transfer()
        )
        recipe, parts = Mix(narrowed, self.deriver, videos[0], whole, seed, 0).recipe("videos_images" if len(sets) > 1 else "alone", lr)
        if len(sets) == 1:  # in steps as large as those of the arm alone, so that the two are one run where both are wanted
            recipe, parts = Mix(replace(study, folds={}), self.deriver, videos[0], whole, seed, 0).recipe("alone", lr)
        best = (videos[0] if len(sets) == 1 else "mean_rank") if self._chosen else ""
        return self._job(["source", *sets, origin], recipe, parts, start, study.origins[origin], seed, lr, best)

    def _probe(self, arm: str, target: str, size: str, origin: str, seed: int, start: Job) -> None:
        """How well a classifier of images does on a model's features: the same in every arm."""
        for name in self.study.probes:
            parts = {name: Part(name)}
            steps = max(1, round(self.study.probe_epochs * self.deriver.count(parts[name]) / self.study.batch))
            recipe = replace(self._base(seed, self.study.lrs[0]), data=Data([name]), steps=steps, batch=self.study.batch)
            words = ["probe", name, "of", start.name.rpartition(".s")[0]]
            job = self._job(words, fresh_head(recipe, name, "probe"), parts, start, KEPT, seed, self.study.lrs[0])
            job.measured.add(name)
            kind = "origin" if arm == "origin" else "probe"
            self.cells.append(Cell(kind, arm, target, size, origin, seed, 0, self.study.lrs[0], job.name, name))

    # --- jobs ---------------------------------------------------------------------------------------------------------------------

    def _base(self, seed: int, lr: float) -> Recipe:
        return base_recipe(self.study, seed, lr)

    def _job(
        self, words: Sequence[str], recipe: Recipe, parts: dict[str, Part], start: Job | str | None, origin: Origin, seed: int, lr: float,
        best: str = "mean_rank",
    ) -> Job:  # fmt: skip
        """The job of a recipe, the known one where it is the same. `origin`: how `start` is taken up; `best`: as `checkpoints.best`."""
        checkpoint = start if isinstance(start, str) else origin.checkpoint
        before = start if isinstance(start, Job) else None
        if before or checkpoint:
            recipe = replace(recipe, start=Start("" if before else checkpoint, origin.temporal))
        every = math.ceil(recipe.steps / self.study.evaluations)
        recipe = replace(recipe, evaluate_every=every, save_every=every, checkpoints=Checkpoints(keep=1, best=best))
        name = ".".join([*words, f"lr{lr:g}", f"s{seed}"])
        began = before.digest if before else weights_digest(checkpoint) if checkpoint else ""
        digest = digest_of(recipe, [*(self.deriver.digest(part) for part in parts.values()), began])
        known = self._by_digest.get(digest)
        if known is None:
            assert name not in self.jobs, f"two jobs are called {name}"
            known = self._by_digest[digest] = self.jobs[name] = Job(name, recipe, parts, before, set(), digest)
        return known

    def waves(self) -> Iterator[list[Job]]:
        """The jobs in an order in which each comes after the one that it starts from, those of a list independent of each other."""
        depths = sorted({job.depth for job in self.jobs.values()})
        for depth in depths:
            yield [job for job in self.jobs.values() if job.depth == depth]


def measured_parts(study: Study) -> list[Part]:
    """What targets are measured on: a split, or folds."""
    parts = [
        Part(target, folds=study.folds.get(target, 0), fold=fold) for target in study.targets for fold in range(study.folds.get(target, 1))
    ]
    return parts + [Part(target) for target in study.transfer.targets if study.transfer.wanted]


def digest_of(recipe: Recipe, rests_on: Iterable[str]) -> str:
    """12 hex digits over everything that a run's result depends on: its recipe, and digests of its manifests and starting weights.

    Of the recipe only what is not the default: a key that a later version brings changes nothing of what has been run.
    """
    told = replace(recipe, out="", device="auto", start=replace(recipe.start, checkpoint=""))
    text = json.dumps(config.changed(told), sort_keys=True)
    return hashlib.sha256("\n".join([text, *rests_on]).encode()).hexdigest()[:12]


def fresh_head(recipe: Recipe, target: str, how: str) -> Recipe:
    """The recipe with a head of another name than any that the starting weights have; `probe`: nothing else is trained."""
    data = replace(recipe.data, heads={f"{target}{FRESH}": [target]})
    if how == "finetune":
        return replace(recipe, data=data)
    frozen = {HEADS_ONLY: Pattern(freeze=True), **recipe.optimizer.patterns}
    return replace(recipe, data=data, optimizer=replace(recipe.optimizer, patterns=frozen))


def base_recipe(study: Study, seed: int, lr: float) -> Recipe:
    """What is the same in all runs of a study under one seed and learning rate."""
    data = Data(["nothing"], frames=study.frames)
    return Recipe(
        data, "", 1, batch=study.batch, model=study.model, augment=study.augment, optimizer=replace(study.optimizer, lr=lr), seed=seed,
        label_smoothing=study.label_smoothing, device=study.device, workers=0, log_every=10,
    )  # fmt: skip


class Mix:
    """The mixtures of one target at one size under one seed, and how long they are trained on."""

    def __init__(self, study: Study, deriver: Deriver, target: str, size: Size, seed: int, fold: int) -> None:
        self.study, self.deriver, self.target, self.size, self.seed = study, deriver, target, size, seed
        folds = study.folds.get(target, 0)
        self.parts = {name: Part(name) for name in [*(study.mixture or [target]), *study.images]}
        self.parts[target] = Part(target, size.part, folds, fold if folds else 0, seed=seed if size.part < 1 else 0)
        self.videos = [name for name in self.parts if name not in study.images]
        self.counts = {name: deriver.count(part) for name, part in self.parts.items()}
        self.rates = self._rates()
        self.full = self._schedule(list(self.parts), study.batch)
        self.clips = next(group.samples for group in self.full.groups if group.frames == study.frames)
        fraction = next(
            float(fraction)
            for group in self.full.groups for dataset, fraction in zip(group.datasets, group.fractions) if dataset.name == target
        )  # fmt: skip
        seen = sum(self.counts[name] for name in self.videos) if self.shared else self.counts[target] / fraction
        self.steps = max(1, round(size.epochs * seen / self.clips))

    @property
    def shared(self) -> bool:
        """Whether a mixture is the same whichever target is asked for."""
        in_proportion = not self.size.rate and not self.study.weights and self.study.alpha == 1
        return in_proportion and self.size.part == 1 and not self.study.folds.get(self.target)

    def recipe(self, arm: str, lr: float) -> tuple[Recipe, dict[str, Part]]:
        """The recipe of an arm, and its data sets."""
        names, batch, steps = self._made_of(arm)
        parts = {name: self.parts[name] for name in names}
        if arm == "permuted":
            parts = {name: part if name == self.target else replace(part, permuted=True, seed=self.seed) for name, part in parts.items()}
        rates = {name: self.rates[name] for name in names}
        if arm == "stills":
            still = f"{self.target}_stills"
            parts[still] = replace(self.parts[self.target], stills=self.study.stills)
            rates[still] = sum(self.rates[name] for name in self.study.images)
        weights = {name: float(rate) for name, rate in rates.items()} if len(parts) > 1 else {}
        heads = {head: [name for name in served if name in parts] for head, served in self.study.heads.items()}
        data = Data(list(parts), frames=self.study.frames, weights=weights, heads={head: own for head, own in heads.items() if own})
        return replace(base_recipe(self.study, self.seed, lr), data=data, steps=steps, batch=batch), parts

    def _made_of(self, arm: str) -> tuple[list[str], int, int]:
        """Data sets, samples of a step, and steps."""
        if arm == "alone":
            return [self.target], self.clips, max(1, round(self.full.drawn(self.steps)[self.target] / self.clips))
        if arm == "alone_long":
            return (
                [self.target],
                self.clips,
                max(1, round(self.steps * self._work(self.full) / self._work(self._schedule([self.target], self.clips)))),
            )
        if arm == "videos":
            return self.videos, self.clips, self.steps
        return (self.videos if arm == "stills" else list(self.parts)), self.study.batch, self.steps

    def _rates(self) -> dict[str, Any]:
        rates = rates_by(
            self.counts, self.study.alpha, {name: self.study.weights[name] for name in self.counts} if self.study.weights else None
        )
        if not self.size.rate:
            return rates
        # Among the clips the target has the wanted share; images keep theirs of the whole.
        clips = sum(rates[name] for name in self.videos)
        others = clips - rates[self.target]
        if not others:
            return rates
        scaled = {name: rates[name] / others * clips * (1 - self.size.rate) for name in self.videos if name != self.target}
        return {**rates, **scaled, self.target: clips * self.size.rate}

    def _schedule(self, names: Sequence[str], batch: int) -> Schedule:
        data = Data(list(names), frames=self.study.frames, weights={name: float(self.rates[name]) for name in names})
        media: dict[str, Media] = {name: "video" if name in self.videos else "image" for name in names}
        datasets = [MixtureDataset.of_size(name, media[name], self.counts[name]) for name in names]
        return Mixture(data, datasets).schedule(batch, self.seed)

    def _work(self, schedule: Schedule) -> int:
        """Multiply-adds of a step."""
        model = self.study.model
        shape = model_config(model.preset, size=model.size, frames=self.study.frames, attention=model.attention, time=model.time)
        return multiply_adds(shape, schedule.mean_step, model.size, 0)
