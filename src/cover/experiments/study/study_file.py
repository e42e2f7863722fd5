"""Configuration of a study: the typed tree of a STUDY.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cover.config import option
from cover.errors import UserError, nearest
from cover.model.backbones import DEFAULT_OPTIONS, Options
from cover.training.recipe import Augment, Optimizer

# What a target's model is trained on. The last two are controls.
ARMS = {
    "alone": "the target alone, as many of its clips as every other arm sees",
    "alone_long": "the target alone, at the compute of the full mixture",
    "videos": "the target and the other video sets",
    "videos_images": "the target, the other video sets and the image sets",
    "stills": "as videos_images, with stills of the target's own training clips for images",
    "permuted": "as videos_images, with the labels of all but the target permuted",
}
HOW = ("finetune", "probe")


@dataclass(frozen=True)
class Size:
    """How much of the target is trained on, how often, and at which rate in mixtures."""

    epochs: float = field(metadata={"help": "how often every arm sees the target's training clips"})
    part: float = option(1.0, "fraction of the target's training clips, drawn anew with each seed")
    rate: float = option(0.0, "fraction of a mixture's clips that are the target's; 0: in proportion to size")
    arms: list[str] = option([], "only these of the study's arms; empty for all")


@dataclass(frozen=True)
class Origin:
    """Starting weights of every arm: a checkpoint, image pre-training made for each seed, or random weights."""

    checkpoint: str = option("", "a run, checkpoint or release folder")
    sets: list[str] = option([], "image sets to pre-train all non-temporal weights on")
    steps: int = option(0, "of that pre-training")
    batch: int = option(64, "of that pre-training")
    lr: float = option(1e-3, "of that pre-training")
    temporal: Literal["fresh", "copied", "keep"] = option("fresh", "as start.temporal of a recipe")


@dataclass(frozen=True)
class Transfer:
    """Transfers: models of the sources, each given a fresh head and trained on every target."""

    sources: dict[str, list[str]] = option({}, "name -> its data sets; a source of several leaves the target out")
    checkpoints: dict[str, str] = option(
        {}, "name -> a run, checkpoint or release folder: a source that is there already"
    )
    targets: list[str] = option([], "video sets, measured on split also where they have folds")
    how: list[str] = option(["finetune"], "finetune: all weights; probe: the head alone")
    size: str = option("", "one of sizes: how much of the target, how often")
    origin: str = option("", "one of origins, of the sources")

    @property
    def wanted(self) -> bool:
        """Whether the study has transfers."""
        return bool(self.sources or self.checkpoints)


@dataclass(frozen=True)
class Expected:
    """Expected spreads, from which the detectable difference is computed before anything is run."""

    between_runs: float = option(0.03, "standard deviation between seeds of a difference of two arms")
    between_sources: float = option(0.5, "standard deviation over sources of their mean difference")


@dataclass(frozen=True)
class Study:
    """A study: arms x targets x sizes x origins x seeds."""

    catalog: str = field(metadata={"help": "the catalog file, relative to the current folder; indexed"})
    out: str = field(metadata={"help": "the study's folder"})
    targets: list[str] = field(metadata={"help": "video sets that are measured"})
    sizes: dict[str, Size] = field(metadata={"help": "name -> how much of the target, and how often"})
    seeds: list[int] = field(metadata={"help": "of runs; the intervals are over them and over sources"})
    margin: float = field(
        metadata={"help": "the loss of top-1 (0 to 1) that still counts as not worse, stated before running"}
    )
    videos: list[str] = option([], "video sets that a target is mixed with (itself left out)")
    images: list[str] = option([], "image sets of the mixture")
    arms: list[str] = option(["alone", "videos", "videos_images"], ", ".join(ARMS))
    origins: dict[str, Origin] = option({"scratch": Origin()}, "name -> where the weights come from")
    folds: dict[str, int] = option({}, "target -> that many folds over all its clips, by source")
    fold_dev: float = option(0.1, "fraction of a fold's training sources that the checkpoint is chosen on")
    split: str = option("val", "that is reported where there are no folds")
    frames: int = option(8, "frames of a clip")
    batch: int = option(40, "samples of a step of the full mixture")
    alpha: float = option(1.0, "rates of the mixture in proportion to size^alpha")
    weights: dict[str, float] = option({}, "rates of the full mixture in place of sizes")
    heads: dict[str, list[str]] = option({}, "as data.heads of a recipe")
    lrs: list[float] = option([1e-3], "peak learning rates tried in every arm; dev chooses")
    evaluations: int = option(4, "on dev, evenly over a run; the best is the one that is measured")
    model: Options = option(DEFAULT_OPTIONS, "as of a recipe")
    optimizer: Optimizer = option(Optimizer(), "as of a recipe; its lr is one of lrs")
    augment: Augment = option(Augment(), "as of a recipe")
    label_smoothing: float = option(0.0, "as of a recipe")
    stills: int = option(4, "images of every training clip of the target, in the arm stills")
    transfer: Transfer = option(Transfer(), "A to B")
    probes: list[str] = option(
        [], "image sets on which the features of models are probed, before and after (those of the first of lrs)"
    )
    probe_epochs: float = option(5.0, "of those probes")
    expected: Expected = option(Expected(), "for the detectable difference")
    device: str = option("auto", "auto, cpu, cuda, cuda:1")

    def __post_init__(self) -> None:
        self._check_names()
        self._check_parts()
        self._check_numbers()
        self._check_transfer()

    def _check_names(self) -> None:
        for key, given, known in (
            ("arms", self.arms, ARMS),
            ("folds", self.folds, self.targets),
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
        if set(self.arms) & {"videos_images", "permuted", "alone_long"} and not (self.images or others):
            raise UserError("arms: a mixture needs videos or images")
        if "stills" in self.arms and not self.images:
            raise UserError("arms: stills stand in place of images; give images")

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
                    f"origins.{name}: sets are pre-trained on for steps (1 or more), or a checkpoint is given, not both"
                )
        for name, folds in self.folds.items():
            if folds < 2:
                raise UserError(f"folds.{name}: {folds} is not 2 or more")

    def _check_numbers(self) -> None:
        if self.split not in ("val", "test"):
            raise UserError(f"split: {self.split} is trained on or chosen on; report val or test")
        if self.frames < 2:
            raise UserError("frames: a clip has 2 or more; one frame is an image")
        if not 0 <= self.margin < 1:
            raise UserError(f"margin: {self.margin} is not in [0, 1)")
        if self.evaluations < 1 or self.stills < 1 or min(self.seeds) < 0:
            raise UserError("evaluations and stills are 1 or more, seeds 0 or more")

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

    def arms_at(self, size: str) -> list[str]:
        """The arms of a size."""
        return [arm for arm in self.arms if arm in (self.sizes[size].arms or self.arms)]

    @property
    def mixture(self) -> list[str]:
        """The video sets of a mixture, targets included, in their order."""
        return list(dict.fromkeys([*self.videos, *self.targets])) if self.videos else []
