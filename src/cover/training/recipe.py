"""What a run is: the typed tree behind a recipe file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

from cover.config import check_range, option
from cover.errors import UserError, install, nearest
from cover.mixture.rates import Data
from cover.model.backbones import DEFAULT_OPTIONS, Options

if TYPE_CHECKING:
    from cover.transforms.base import Transform

# What a number may be, both ends included.
RANGES: dict[str, tuple[float, float]] = {
    "steps": (0, math.inf),
    "batch": (1, math.inf),
    "accumulation": (1, math.inf),
    "seed": (0, 2**63 - 1),
    "label_smoothing": (0, 1),
    "augment.colour": (0, 1),
    "augment.erase": (0, 1),
    "augment.mix": (0, 1),
    "augment.mixup": (0, 100),
    "augment.cutmix": (0, 100),
    "optimizer.layer_decay": (0, 1),
    "optimizer.head_lr": (0, 10**6),
    "optimizer.lr": (0, 10**6),
    "optimizer.weight_decay": (0, 10**6),
    "optimizer.momentum": (0, 1),
    "optimizer.warmup": (0, 1),
    "optimizer.max_grad_norm": (0, math.inf),
    "checkpoints.keep": (1, math.inf),
    "distributed.timeout": (0.1, 10**6),
    "nonfinite.budget": (0, math.inf),
}


@dataclass(frozen=True)
class Start:
    """Where the weights come from."""

    checkpoint: str = option("", "a run, checkpoint or release folder to start from; empty for random weights")
    temporal: Literal["fresh", "copied", "keep"] = option(
        "keep",
        "copied: the temporal branch made anew from the spatial one, temporal_fc zero, as published; "
        "fresh: the same, and under rotary time its heads begin as differences between the frames around",
    )
    heads: Literal["drop", "keep"] = option(
        "drop",
        "the checkpoint's heads that this run does not train: left out, or kept, bit for bit, in all that it writes",
    )


@dataclass(frozen=True)
class SetAugment:
    """What of `augment` is another thing for one data set; null: the same."""

    colour: float | None = option(None, "as augment.colour")
    randaugment: str | None = option(None, "as augment.randaugment; an empty text for none")
    erase: float | None = option(None, "as augment.erase")
    mix: float | None = option(None, "as augment.mix")


@dataclass(frozen=True)
class Augment:
    """What is done to training pixels. The crop's range is the data set's own (catalog)."""

    flip: bool = option(True, "horizontal flips, under each data set's flip policy")
    colour: float = option(0.2, "brightness, contrast and saturation factors within 1 +- this")
    randaugment: str = option("", "mM-nN: N operations of magnitude M of 10, as in m7-n4; empty for none")
    erase: float = option(0.0, "chance of a box of each sample being erased to the mean colour")
    mixup: float = option(0.0, "parameter of the Beta distribution of mixup's lambda; 0 for none")
    cutmix: float = option(0.0, "the same of cutmix; with both, each pair takes one of them")
    mix: float = option(1.0, "chance of a pair being mixed, where mixup or cutmix is on")
    sets: dict[str, SetAugment] = option({}, "data set -> what is another thing for it")

    def of(self, name: str) -> Augment:
        """What holds for the data set `name`."""
        own = {key: value for key, value in vars(self.sets.get(name, SetAugment())).items() if value is not None}
        return replace(self, **own)

    def transforms(self, names: Sequence[str]) -> dict[str, tuple[Transform, ...]]:
        """The transforms of each data set, without those that change nothing in any of them."""
        every = {name: self.of(name)._transforms() for name in names}
        used = [not all(each.is_identity for each in column) for column in zip(*every.values(), strict=True)]
        return {name: tuple(each for each, use in zip(own, used, strict=True) if use) for name, own in every.items()}

    def _transforms(self) -> tuple[Transform, ...]:
        """All transforms of single samples, in the order of their draws: a new one comes last (cover/transforms)."""
        from cover.transforms.colour import ColourJitter  # torch comes with them
        from cover.transforms.erasing import RandomErasing
        from cover.transforms.randaugment import RandAugment

        return ColourJitter(self.colour), RandAugment.parse(self.randaugment), RandomErasing(self.erase)

    def check(self, names: list[str]) -> None:
        """Raises `UserError` where `sets` names others than `names`, or a value is none."""
        for name, own in self.sets.items():
            if name not in names:
                raise UserError(f'augment.sets: "{name}" is not one of data.sets{nearest(name, names)}')
            for key in ("colour", "erase", "mix"):
                if not 0 <= (getattr(own, key) or 0) <= 1:
                    raise UserError(f"augment.sets.{name}.{key}: {getattr(own, key)} is not in [0, 1]")
        for key, text in (
            ("", self.randaugment),
            *((f"sets.{name}.", own.randaugment) for name, own in self.sets.items()),
        ):
            if text:
                from cover.transforms.randaugment import RandAugment

                try:
                    RandAugment.parse(text)
                except UserError as error:
                    raise UserError(f"augment.{key}randaugment: {error}") from None


@dataclass(frozen=True)
class Pattern:
    """What happens to the parameters whose name a regular expression finds."""

    lr: float = option(1.0, "factor on their learning rate")
    decay: float | None = option(None, "their weight decay, in place of the usual")
    freeze: bool = option(False, "whether they stay as they are")

    @property
    def words(self) -> str:
        """What it does, for a line on the terminal."""
        return (
            "frozen" if self.freeze else f"lr x {self.lr:g}" + ("" if self.decay is None else f", decay {self.decay:g}")
        )


@dataclass(frozen=True)
class Optimizer:
    """How the weights move."""

    name: Literal["adamw", "sgd"] = option("adamw", "AdamW, or SGD with Nesterov momentum")
    lr: float = option(1e-3, "peak learning rate")
    weight_decay: float = option(0.05, "on matrices only: none on biases, norms, embeddings")
    betas: tuple[float, float] = option((0.9, 0.98), "AdamW's")
    momentum: float = option(0.9, "SGD's")
    warmup: float = option(0.05, "share of the steps with a rising learning rate")
    schedule: Literal["cosine", "constant", "steps"] = option(
        "cosine", "after the warm-up; steps: a tenth from each milestone on"
    )
    milestones: list[float] = option([], "of the schedule steps, as shares of the run, rising")
    layer_decay: float = option(1.0, "factor on the rate for each layer below the top, of what an image model has too")
    head_lr: float = option(1.0, "factor on the rate of the classifiers")
    patterns: dict[str, Pattern] = option(
        {}, "regular expression -> what happens to the parameters it finds; the first that finds one decides"
    )
    max_grad_norm: float = option(1.0, "largest gradient norm; 0 for none")


@dataclass(frozen=True)
class Log:
    """Where the figures of a run go beside log.jsonl. No part of what is computed: a run is resumed with any."""

    tensorboard: bool = option(False, f"event files under the run's folder; {install('logs')}")
    wandb: str = option("", "the project at Weights & Biases; pip install wandb; WANDB_MODE=offline sends nothing")


@dataclass(frozen=True)
class Distributed:
    """How several processes share a step (docs/many_machines.md). No part of what is computed: a run is resumed with
    any.
    """

    strategy: Literal["ddp", "fsdp"] = option(
        "ddp", "the whole model on every rank, or FSDP2: a part of every parameter on each"
    )
    timeout: float = option(30.0, "minutes that a rank waits for the others before it gives up")


@dataclass(frozen=True)
class Checkpoints:
    """Which checkpoints are kept. No part of what is computed: a run is resumed with any."""

    keep: int = option(2, "the last so many; the best is kept beside them")
    best: str = option(
        "mean_rank", "which is the best on dev: mean_rank over the data sets, one of their names, or empty for none"
    )
    background: bool = option(True, "written while training goes on, from a copy in the host's memory")


@dataclass(frozen=True)
class NonFinite:
    """What is done when a loss or a gradient is not a number. A run is resumed with any."""

    policy: Literal["stop", "skip"] = option("stop", "end the run, or leave the update out and go on")
    budget: int = option(10, "updates that skip may leave out before it ends the run all the same")


@dataclass(frozen=True)
class Recipe:
    """One run: a mixture, a model, a starting point, and for how long."""

    data: Data = field(metadata={"help": "the mixture"})
    out: str = field(metadata={"help": "the run's folder"})
    steps: int = field(metadata={"help": "optimizer steps; 0: as many as data.epochs needs"})
    batch: int = option(64, "samples per optimizer step, over all ranks")
    model: Options = option(DEFAULT_OPTIONS, "the network; model.backbone names its family")
    start: Start = option(Start(), "where the weights come from")
    augment: Augment = option(Augment(), "training pixels")
    optimizer: Optimizer = option(Optimizer(), "how the weights move")
    ema: float = option(0.0, "decay of the average of the weights that is evaluated and released; 0 for none")
    label_smoothing: float = option(0.0, "share of the target spread over all classes")
    accumulation: int = option(1, "micro-batches per step")
    precision: Literal["fp32", "bf16"] = option("fp32", "of the forward pass")
    compile: bool = option(False, "torch.compile, stage by stage")
    seed: int = option(0, "of everything random")
    device: str = option("auto", "auto, cpu, cuda, cuda:1")
    workers: int = option(-1, "reading processes; -1 for one per core, 0 for none")
    log_every: int = option(20, "steps per line of log.jsonl")
    log: Log = option(Log(), "where its figures go beside")
    evaluate_every: int = option(0, "steps between evaluations on dev; 0 for the end only, -1 for never")
    save_every: int = option(0, "steps between checkpoints; 0 for the end only")
    checkpoints: Checkpoints = option(Checkpoints(), "which are kept, and how they are written")
    distributed: Distributed = option(Distributed(), "several processes")
    nonfinite: NonFinite = option(NonFinite(), "losses and gradients that are not numbers")

    def __post_init__(self) -> None:
        self.data.check()
        for key, (low, high) in RANGES.items():
            value: Any = reduce(getattr, key.split("."), self)
            check_range(key, value, low, high)
        self._check_start()
        if self.checkpoints.best not in ("", "mean_rank", *self.data.sets):
            raise UserError(f'checkpoints.best: "{self.checkpoints.best}" is not mean_rank, one of data.sets, or empty')
        self._check_optimizer()
        self.augment.check(self.data.sets)
        self.model.check()

    def _check_start(self) -> None:
        if not self.steps and not self.data.epochs:
            raise UserError("steps: 0 is as many as data.epochs needs; give that, or a number of steps")
        if self.start.heads == "keep" and not self.start.checkpoint:
            raise UserError("start.heads: keep needs a start.checkpoint, whose heads are kept")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema: {self.ema} is not in [0, 1)")

    def _check_optimizer(self) -> None:
        if not all(0 <= beta < 1 for beta in self.optimizer.betas):
            raise UserError(f"optimizer.betas: {list(self.optimizer.betas)} are not both in [0, 1)")
        marks, stepping = self.optimizer.milestones, self.optimizer.schedule == "steps"
        if bool(marks) != stepping:
            raise UserError(
                f"optimizer.milestones: {'needed by' if stepping else 'only for'} the schedule steps, as in [0.5, 0.75]"
            )
        if marks != sorted(set(marks)) or not all(0 < mark < 1 for mark in marks):
            raise UserError(f"optimizer.milestones: {marks} are not shares of the run between 0 and 1, rising")
        for pattern, what in self.optimizer.patterns.items():
            for key, value in (("lr", what.lr), ("decay", what.decay or 0)):
                if not 0 <= value < math.inf:
                    raise UserError(f'optimizer.patterns: "{pattern}": {key}: {value} is not 0 or more')
