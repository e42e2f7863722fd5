"""Configuration of a study: the schema of its YAML file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cover.config import option
from cover.errors import UserError, nearest
from cover.model.backbones import DEFAULT_OPTIONS, Options
from cover.training.recipe import Augment, Cache, Optimizer

# The training data of a target's model. The last two arms are controls. Beside these there are `with:NAME`, the target
# and one other data set, and `without:NAME`, as videos_images without one data set.
ARMS = {
    "alone": "the target alone, with as many of its clips as in every other arm",
    "alone_long": "the target alone, with the compute of the full mixture",
    "videos": "the target and the other video sets",
    "videos_images": "the target, the other video sets and the image sets",
    "stills": "as videos_images, with stills of the target's own training clips in place of the images",
    "permuted": "as videos_images, with permuted labels in all data sets except the target",
}
HOW = ("finetune", "probe")
WITH, WITHOUT = "with:", "without:"
LEAST_LOOKED_AT = 6  # seeds of a study that is looked at: half of them, three, have a spread
MIXTURES = {"videos", "videos_images", "permuted", "alone_long", "stills"}


def other_set(arm: str) -> str:
    """The data set that an arm `with:NAME` or `without:NAME` names; empty for other arms."""
    return arm.partition(":")[2]


@dataclass(frozen=True)
class Size:
    """The amount of the target's training data, its epochs, and its rate in mixtures."""

    epochs: float = field(metadata={"help": "epochs of the target's training clips, in every arm"})
    part: float = option(1.0, "fraction of the target's training clips; each seed draws its own")
    rate: float = option(0.0, "fraction of the target's clips among the clips of a mixture; 0: in proportion to size")
    arms: list[str] = option([], "only these arms; empty for all arms of the study")


@dataclass(frozen=True)
class Origin:
    """Starting weights of every arm: a checkpoint, one image pre-training, or random weights."""

    checkpoint: str = option("", "folder of a run, a checkpoint or a release")
    sets: list[str] = option([], "image sets for the pre-training of all non-temporal weights")
    steps: int = option(0, "steps of this pre-training")
    each_seed: bool = option(False, "one pre-training for each seed of the study; else all runs share one")
    batch: int = option(64, "images in a step of this pre-training")
    lr: float = option(1e-3, "learning rate of this pre-training")
    temporal: Literal["fresh", "copied", "keep"] = option("fresh", "as start.temporal of a recipe")
    models: list[str] = option([], "only for these of models; empty for all of them")


@dataclass(frozen=True)
class Transfer:
    """Transfers: each source model gets a fresh head for every target and is trained on it."""

    sources: dict[str, list[str]] = option({}, "name -> its data sets; if there are several, the target is left out")
    checkpoints: dict[str, str] = option({}, "name -> folder of a run, a checkpoint or a release that is a source")
    targets: list[str] = option([], "video sets")
    how: list[str] = option(["finetune"], "finetune: train all weights; probe: train the head only")
    size: str = option("", "one of sizes, for the targets (default: the first)")
    origin: str = option("", "one of origins, for the sources (default: the first)")
    folds: bool = option(False, "measure a target that has folds on them, by sources that were not trained on it")

    @property
    def wanted(self) -> bool:
        """Whether there are any transfers."""
        return bool(self.sources or self.checkpoints)


@dataclass(frozen=True)
class Expected:
    """Expected spreads. The detectable difference is computed from them before any run."""

    between_runs: float = option(0.03, "standard deviation of the difference of two arms, between seeds")
    between_sources: float = option(0.5, "standard deviation of the mean difference of a source, between sources")


@dataclass(frozen=True)
class Pilot:
    """Runs that choose the epochs of the first size, before the study and with seeds of their own.

    The first of `epochs` is taken with which every seed of every arm is above every trivial method, and seeds differ
    by little. The epochs of the other sizes change by the same factor.
    """

    epochs: list[float] = option([], "epochs to try, in ascending order; empty for no pilot")
    seeds: list[int] = option([1000, 1001, 1002], "seeds of its runs; none of the study's own")
    arms: list[str] = option([], "arms to run; empty: alone and the fullest mixture")
    spread: float = option(0.04, "largest standard deviation over seeds of the difference of two arms")


@dataclass(frozen=True)
class Study:
    """A study: arms x targets x sizes x origins x seeds."""

    catalog: str = field(metadata={"help": "the catalog file, relative to the current folder; it must be indexed"})
    out: str = field(metadata={"help": "folder of the study"})
    targets: list[str] = field(metadata={"help": "video sets whose accuracy is measured"})
    sizes: dict[str, Size] = field(metadata={"help": "name -> amount of the target's training data and its epochs"})
    seeds: list[int] = field(metadata={"help": "seeds of runs; the intervals are over seeds and sources"})
    margin: float = field(
        metadata={"help": "the loss of top-1 (0 to 1) that still counts as not worse; fixed before the runs"}
    )
    videos: list[str] = option([], "video sets to mix with each target (the target itself may be among them)")
    images: list[str] = option([], "image sets of the mixture")
    arms: list[str] = option(["alone", "videos", "videos_images"], ", ".join(ARMS))
    origins: dict[str, Origin] = option({"scratch": Origin()}, "name -> starting weights")
    one_model: bool = option(
        False,
        "one model of a mixture for all targets; with folds, one for the folds of a number of all video sets",
    )
    folds: dict[str, int] = option({}, "video set -> number of folds over all its clips, by source")
    fold_dev: float = option(0.1, "fraction of a fold's training groups for the choice of the checkpoint")
    split: str = option("val", "split that is reported, for targets without folds")
    frames: int = option(8, "frames in a clip")
    batch: int = option(40, "samples in a step of the full mixture")
    alpha: float = option(1.0, "rates of the mixture are proportional to size^alpha")
    weights: dict[str, float] = option({}, "rates of the full mixture, in place of the sizes")
    heads: dict[str, list[str]] = option({}, "as data.heads of a recipe")
    lrs: list[float] = option([1e-3], "peak learning rates to try in every arm; the best on dev counts")
    evaluations: int = option(4, "number of evaluations on dev in a run; the best checkpoint is measured")
    model: Options = option(DEFAULT_OPTIONS, "as in a recipe")
    models: dict[str, Options] = option({}, "name -> a network, in place of model: the whole study with each of them")
    optimizer: Optimizer = option(Optimizer(), "as in a recipe; lrs replaces its lr")
    augment: Augment = option(Augment(), "as in a recipe")
    label_smoothing: float = option(0.0, "as in a recipe")
    precision: Literal["fp32", "bf16"] = option("fp32", "as in a recipe; models are measured in fp32")
    cache: Cache = option(Cache(), "as in a recipe; all runs share it")
    stills: int = option(4, "number of images of each training clip of the target, in the arm stills")
    transfer: Transfer = option(Transfer(), "transfers from other models to targets")
    probes: list[str] = option(
        [], "image sets for probes of frozen features, before and after training (at the first of lrs)"
    )
    probe_epochs: float = option(5.0, "epochs of these probes")
    pilot: Pilot = option(Pilot(), "runs that choose the epochs before the study")
    look: bool = option(
        False, "look at half of the seeds, and stop there if all claims are decided (O'Brien and Fleming's levels)"
    )
    expected: Expected = option(Expected(), "expected spreads, for the detectable difference")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, xpu")

    def __post_init__(self) -> None:
        self._check_names()
        self._check_parts()
        self._check_numbers()
        self._check_transfer()
        self._check_models()

    def _check_names(self) -> None:
        if not self.out.strip():
            raise UserError("out: empty; name a folder for the study")
        for key, given, known in (
            ("arms", self.arms, self._known_arms()),
            ("pilot.arms", self.pilot.arms, self.arms),
            ("folds", self.folds, [*self.targets, *self.videos]),
            ("transfer.how", self.transfer.how, HOW),
        ):
            for name in given:
                if name not in known:
                    raise UserError(f'{key}: unknown "{name}"{nearest(name, known)}')
        needed = ("targets", "sizes", "seeds", "origins", "lrs")
        for key in needed if self.transfer.wanted else (*needed, "arms"):
            if not getattr(self, key):
                raise UserError(f"{key}: give at least one")
        for key in ("targets", "videos", "images", "seeds", "arms", "lrs"):
            values = getattr(self, key)
            for repeated in {value for value in values if values.count(value) > 1}:
                raise UserError(f"{key}: {repeated} is given twice")
        others = all(set(self.videos) - {target} for target in self.targets)
        if "videos" in self.arms and not others:
            raise UserError("arms: videos needs a video set beside each target; give videos, or leave that arm out")
        if set(self.arms) & MIXTURES and not (self.images or others):
            raise UserError("arms: a mixture needs videos or images")
        if "stills" in self.arms and not self.images:
            raise UserError("arms: stills replace images; give images")

    def _check_parts(self) -> None:
        for name, size in self.sizes.items():
            for arm in size.arms:
                if arm not in self.arms:
                    raise UserError(f'sizes.{name}.arms: "{arm}" is not one of arms{nearest(arm, self.arms)}')
            if not (0 < size.part <= 1 and 0 < size.epochs < math.inf and 0 <= size.rate < 1):
                raise UserError(f"sizes.{name}: part is in (0, 1], epochs above 0, rate in [0, 1)")
        for name, origin in self.origins.items():
            if origin.sets and (origin.checkpoint or origin.steps < 1):
                raise UserError(
                    f"origins.{name}: give sets to pre-train on, with steps (1 or more), or a checkpoint, not both"
                )
        for name, folds in self.folds.items():
            if folds < 2:
                raise UserError(f"folds.{name}: {folds} is not 2 or more")
        counts = {name: self.folds.get(name, 0) for name in self.mixture}
        if self.one_model and len(set(counts.values())) > 1:
            raise UserError(f"folds: one_model needs as many folds of every video set, and they are {counts}")

    def _check_numbers(self) -> None:
        if self.split not in ("val", "test"):
            raise UserError(f"split: {self.split} serves training or choices; report val or test")
        if self.frames < 2:
            raise UserError("frames: a clip has 2 frames or more; one frame is an image")
        if not 0 <= self.margin < 1:
            raise UserError(f"margin: {self.margin} is not in [0, 1)")
        if self.pilot.epochs and set(self.pilot.seeds) & set(self.seeds):
            raise UserError("pilot.seeds: some are seeds of the study; a pilot needs seeds of its own")
        if self.pilot.epochs and (len(self.pilot.seeds) < 2 or min(self.pilot.epochs) <= 0):
            raise UserError("pilot: give two seeds or more, and epochs above 0")
        if self.look and len(self.seeds) < LEAST_LOOKED_AT:
            raise UserError(f"look: half of {len(self.seeds)} seeds decides nothing; give {LEAST_LOOKED_AT} or more")
        if self.evaluations < 1 or self.stills < 1 or min(self.seeds) < 0:
            raise UserError("evaluations and stills must be 1 or more, seeds 0 or more")

    def _check_transfer(self) -> None:
        if not self.transfer.wanted:
            return
        for key, known in (("size", self.sizes), ("origin", self.origins)):
            name = getattr(self.transfer, key) or next(iter(known))
            if name not in known:
                raise UserError(f'transfer.{key}: unknown "{name}"{nearest(name, known)}')
        for name in [name for name, sets in self.transfer.sources.items() if not sets]:
            raise UserError(f"transfer.sources.{name}: name its data sets")
        for name in set(self.transfer.sources) & set(self.transfer.checkpoints):
            raise UserError(f"transfer.checkpoints: {name} is a source already")
        if not self.transfer.targets:
            raise UserError("transfer.targets: give at least one")

    def _check_models(self) -> None:
        if self.models and self.pilot.epochs:
            raise UserError("pilot.epochs: a pilot is of one network, and models needs the same epochs for all of them")
        for name, origin in self.origins.items():
            for model in origin.models:
                if model not in self.models:
                    raise UserError(f'origins.{name}.models: unknown "{model}"{nearest(model, self.models)}')
        for name in self.models:
            if name != Path(name).name or name.startswith("."):
                raise UserError(f'models: "{name}" names a folder of the study; give a name without slashes')
            if not self._origins_of(name):
                raise UserError(f"models.{name}: no starting weights; name it in origins.NAME.models")

    def by_model(self) -> dict[str, Study]:
        """The study with each of `models`, in a folder of its own; without `models`, the study itself by no name."""
        return {
            name: replace(self, out=str(Path(self.out) / name), model=model, models={}, origins=self._origins_of(name))
            for name, model in self.models.items()
        } or {"": self}

    def _origins_of(self, model: str) -> dict[str, Origin]:
        return {
            name: replace(origin, models=[])
            for name, origin in self.origins.items()
            if model in (origin.models or [model])
        }

    def _known_arms(self) -> list[str]:
        sets = dict.fromkeys([*self.mixture, *self.images])
        return [*ARMS, *(f"{word}{name}" for word in (WITH, WITHOUT) for name in sets)]

    def arms_at(self, size: str) -> list[str]:
        """The arms at a size."""
        return [arm for arm in self.arms if arm in (self.sizes[size].arms or self.arms)]

    def transfer_folds(self, target: str) -> int:
        """The number of folds that a target of transfers is measured on; 0: on `split`."""
        return self.folds.get(target, 0) if self.transfer.folds else 0

    @property
    def mixture(self) -> list[str]:
        """The video sets of a mixture, with the targets, in order."""
        return list(dict.fromkeys([*self.videos, *self.targets])) if self.videos else []
