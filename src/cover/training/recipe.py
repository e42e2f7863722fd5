"""The fields of a recipe, with their defaults, help texts and allowed values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cover import config
from cover.config import check_range, option
from cover.errors import UserError, install, nearest
from cover.mixture.rates import Data
from cover.model.backbone import BackboneOptions
from cover.model.backbones import DEFAULT_OPTIONS, Options
from cover.model.lora import Lora, Targets
from cover.yaml_files import is_null

if TYPE_CHECKING:
    from cover.transforms.base import Transform

RECIPE = "recipe.yaml"  # in a run folder
# Dotted key -> the smallest and the largest allowed value.
RANGES: dict[str, tuple[float, float]] = {
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
    "adapt.frozen_stages": (0, math.inf),
    "adapt.rank": (1, math.inf),
    "adapt.alpha": (0, 10**6),
    "cache.stages": (-1, math.inf),
    "cache.views": (0, math.inf),
    "checkpoints.minutes": (0, 10**6),
    "checkpoints.keep": (1, math.inf),
    "distributed.timeout": (0.1, 10**6),
    "nonfinite.budget": (0, math.inf),
}


@dataclass(frozen=True)
class Start:
    """The initial weights."""

    checkpoint: str = option(
        "",
        "a run, checkpoint or release folder, a known start (cover starts) or a Hub id; empty for random weights. Its "
        "network is that of the run where model does not say otherwise",
    )
    temporal: Literal["fresh", "copied", "keep"] = option(
        "keep",
        "the temporal branch. keep: from the checkpoint; copied: a copy of the spatial branch with temporal_fc zero, "
        "as published; fresh: the same, and with rotary time its heads start as differences between frames",
    )
    heads: Literal["drop", "keep"] = option(
        "drop", "heads of the checkpoint that this run does not train: drop them, or keep them unchanged"
    )
    text: str = option(
        "",
        "where a checkpoint has a text network (import-weights --text): new heads start from this text about their "
        "classes, as in 'a photo of {}'; empty for zero",
    )


@dataclass(frozen=True)
class SetAugment:
    """The values of `augment` that differ for one data set; null for the same value."""

    colour: float | None = option(None, "as augment.colour")
    randaugment: str | None = option(None, "as augment.randaugment; an empty text for none")
    erase: float | None = option(None, "as augment.erase")
    mix: float | None = option(None, "as augment.mix")


@dataclass(frozen=True)
class Augment:
    """The augmentation of training pixels. The scale of random crops is a field of the catalog."""

    flip: bool = option(True, "horizontal flips, according to the flip policy of each data set")
    colour: float = option(0.2, "brightness, contrast and saturation factors are within 1 +- this value")
    randaugment: str = option("", "mM-nN: N operations of magnitude M of 10, as in m7-n4; empty for none")
    erase: float = option(0.0, "probability that a box of a sample is replaced by the mean colour")
    mixup: float = option(0.0, "parameter of the Beta distribution of mixup's lambda; 0 for no mixup")
    cutmix: float = option(0.0, "the same parameter for cutmix; with both, each pair is mixed by one of them")
    mix: float = option(1.0, "probability that a pair is mixed, if mixup or cutmix is on")
    sets: dict[str, SetAugment] = option({}, "data set -> its own values")

    def of(self, name: str) -> Augment:
        """The augmentation of the data set `name`."""
        own = {key: value for key, value in vars(self.sets.get(name, SetAugment())).items() if value is not None}
        return replace(self, **own)

    def transforms(self, names: Sequence[str]) -> dict[str, tuple[Transform, ...]]:
        """Data set -> its transforms, without those that change nothing in any data set."""
        every = {name: self.of(name)._transforms() for name in names}
        used = [not all(each.is_identity for each in column) for column in zip(*every.values(), strict=True)]
        return {name: tuple(each for each, use in zip(own, used, strict=True) if use) for name, own in every.items()}

    def _transforms(self) -> tuple[Transform, ...]:
        """All transforms of single samples in the order of their draws. A new transform must come last.

        Another place would change the random draws of the transforms after it (cover/transforms).
        """
        # These modules import torch, which is slow and not needed to read a recipe.
        from cover.transforms.colour import ColourJitter
        from cover.transforms.erasing import RandomErasing
        from cover.transforms.randaugment import RandAugment

        return ColourJitter(self.colour), RandAugment.parse(self.randaugment), RandomErasing(self.erase)

    def check(self, names: list[str]) -> None:
        """Raises `UserError` if `sets` has a name that is not in `names`, or if a value is not valid."""
        for name, own in self.sets.items():
            if name not in names:
                raise UserError(f'augment.sets: "{name}" is not one of data.sets{nearest(name, names)}')
            for key in ("colour", "erase", "mix"):
                if not 0 <= (getattr(own, key) or 0) <= 1:
                    raise UserError(f"augment.sets.{name}.{key}: {getattr(own, key)} is not in [0, 1]")
        policies = {"": self.randaugment, **{f"sets.{name}.": own.randaugment for name, own in self.sets.items()}}
        for key, policy in policies.items():
            if policy:
                from cover.transforms.randaugment import RandAugment

                try:
                    RandAugment.parse(policy)
                except UserError as error:
                    raise UserError(f"augment.{key}randaugment: {error}") from None


@dataclass(frozen=True)
class Pattern:
    """The treatment of the parameters whose names match a regular expression."""

    lr: float = option(1.0, "factor on their learning rate")
    decay: float | None = option(None, "their weight decay; null for the usual one")
    freeze: bool = option(False, "whether training leaves them unchanged")

    @property
    def words(self) -> str:
        """The treatment as text for a line on the terminal."""
        if self.freeze:
            return "frozen"
        return f"lr x {self.lr:g}" + ("" if self.decay is None else f", decay {self.decay:g}")


@dataclass(frozen=True)
class Optimizer:
    """The optimizer and its learning-rate schedule."""

    name: Literal["adamw", "sgd"] = option("adamw", "AdamW, or SGD with Nesterov momentum")
    lr: float = option(1e-3, "peak learning rate")
    weight_decay: float = option(0.05, "weight decay of matrices; biases, norms and embeddings have none")
    betas: tuple[float, float] = option((0.9, 0.98), "betas of AdamW")
    momentum: float = option(0.9, "momentum of SGD")
    warmup: float = option(0.05, "fraction of the steps in which the learning rate rises")
    schedule: Literal["cosine", "constant", "steps"] = option(
        "cosine", "learning rate after the warm-up; steps: times 0.1 at each milestone"
    )
    milestones: list[float] = option([], "of the schedule steps: fractions of the run in ascending order")
    layer_decay: float = option(
        1.0, "factor on the learning rate for each layer below the top; the temporal branch is not affected"
    )
    head_lr: float = option(1.0, "factor on the learning rate of the classifiers")
    patterns: dict[str, Pattern] = option(
        {}, "regular expression -> treatment of the parameters that it matches; the first match applies"
    )
    max_grad_norm: float = option(1.0, "largest gradient norm; 0 for no limit")


@dataclass(frozen=True)
class Adapt:
    """What a run trains of the network of its start (docs/recipes.md).

    Heads are trained in any case, and so are parameters that the start does not have.
    """

    method: Literal["full", "lora", "probe"] = option(
        "full",
        "full: all parameters; lora: additions of low rank to frozen projections; probe: nothing but heads and what "
        "the start does not have",
    )
    frozen_stages: int = option(0, "number of first stages that stay as they are, with the embedding before them")
    rank: int = option(8, "lora: rank of the additions")
    alpha: float = option(16.0, "lora: factor of the additions, divided by the rank")
    targets: Targets = option("attention", "lora: the projections that get one")
    train: str = option("", "lora, probe: regular expression of further parameters to train, as in norm or bias$")

    @property
    def lora(self) -> Lora | None:
        """The settings of the additions of low rank; None without them."""
        return Lora(self.rank, self.alpha, self.targets) if self.method == "lora" else None


@dataclass(frozen=True)
class Cache:
    """Outputs of frozen first stages, computed once for each sample and view and kept on the disk (docs/caching.md)."""

    stages: int = option(
        0, "number of first stages whose outputs are kept; -1: as many as are frozen; 0: none, all of the network runs"
    )
    views: int = option(
        0, "augmented views of a sample, drawn in turn from epoch to epoch; 0: one with a cache, else one per epoch"
    )
    seed: int = option(0, "seed of the pixels of these views; runs with other seeds share them")
    dtype: Literal["float32", "float16"] = option("float32", "numbers on the disk; float16 halves their size")
    folder: str = option("", "where the files are; empty: the folder cache beside the manifests of the catalog")

    @property
    def view_count(self) -> int:
        """The number of views of a sample, 0 for one per epoch."""
        return self.views or int(self.stages != 0)


@dataclass(frozen=True)
class Log:
    """Other loggers beside log.jsonl. They do not change results, so they may change on a resume."""

    tensorboard: bool = option(False, f"write event files into the run's folder; {install('logs')}")
    wandb: str = option("", "project at Weights & Biases; pip install wandb; with WANDB_MODE=offline nothing is sent")


@dataclass(frozen=True)
class Distributed:
    """How several processes share a step (docs/many_machines.md).

    It does not change results, so it may change on a resume.
    """

    strategy: Literal["ddp", "fsdp"] = option(
        "ddp", "ddp: the whole model on every rank; fsdp: FSDP2, a shard of every parameter on each rank"
    )
    timeout: float = option(30.0, "minutes that a rank waits for the others before it gives up")


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints by time, besides those of `save_every`, and which checkpoints stay on the disk.

    It does not change results, so it may change on a resume.
    """

    keep: int = option(2, "how many of the last checkpoints stay; the best one stays too")
    best: str = option(
        "mean_rank",
        "how the best on dev is chosen: mean_rank over the data sets, one of their names, or empty for none",
    )
    background: bool = option(True, "write while training goes on, from a copy in the host's memory")
    minutes: float = option(15.0, "minutes between checkpoints, besides those of save_every; 0 for none by time")


@dataclass(frozen=True)
class NonFinite:
    """The reaction to a loss or gradient that is not finite. It may change on a resume."""

    policy: Literal["stop", "skip"] = option("stop", "stop: end the run; skip: skip the update and go on")
    budget: int = option(10, "largest number of skipped updates; one more ends the run")


@dataclass(frozen=True)
class Recipe:
    """The configuration of a run: a mixture, a model, initial weights, an optimizer and a number of steps."""

    data: Data = field(metadata={"help": "the mixture"})
    out: str = field(metadata={"help": "the run's folder"})
    steps: int | Literal["auto"] = field(
        metadata={"help": "optimizer steps; auto: a number that suits the data; 0: as many as data.epochs needs"}
    )
    batch: int = option(64, "samples per optimizer step, over all ranks")
    model: Options = option(DEFAULT_OPTIONS, "the network; model.backbone names its family")
    start: Start = option(Start(), "the initial weights")
    augment: Augment = option(Augment(), "augmentation of training pixels")
    adapt: Adapt = option(Adapt(), "what of the start is trained")
    optimizer: Optimizer = option(Optimizer(), "the optimizer and its schedule")
    default_head: str = option(
        "", "the head that predict, explain, serve and export take where none is named; empty for all heads"
    )
    ema: float = option(0.0, "decay of the average of the weights that is evaluated and released; 0 for no average")
    label_smoothing: float = option(0.0, "fraction of the target that is spread over all classes")
    accumulation: int = option(1, "micro-batches per step")
    precision: Literal["fp32", "bf16"] = option("fp32", "precision of the forward pass")
    compile: bool = option(False, "torch.compile, stage by stage")
    seed: int = option(0, "seed of all random numbers")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, xpu")
    workers: int = option(-1, "reading processes; -1 for one per core, 0 for none")
    log_every: int = option(20, "steps per line of log.jsonl")
    cache: Cache = option(Cache(), "outputs of frozen first stages, kept on the disk")
    log: Log = option(Log(), "other loggers beside log.jsonl")
    evaluate_every: int = option(0, "steps between evaluations on dev; 0 for the end only, -1 for never")
    save_every: int = option(0, "steps between checkpoints; 0 for those of checkpoints.minutes and the end only")
    checkpoints: Checkpoints = option(Checkpoints(), "checkpoints by time, which stay, and how they are written")
    distributed: Distributed = option(Distributed(), "several processes")
    nonfinite: NonFinite = option(NonFinite(), "losses and gradients that are not finite")

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
        self._check_cache()

    @property
    def step_count(self) -> int:
        """The number of steps, of a recipe in which it is a number (`train.with_steps` replaces `auto` and 0)."""
        assert self.steps != "auto", "the number of steps is not known yet"
        return self.steps

    def _check_start(self) -> None:
        if self.steps != "auto":
            check_range("steps", self.steps, 0, math.inf)
        if not self.steps and not self.data.epochs:
            raise UserError("steps: 0 is as many as data.epochs needs; give that, or a number of steps")
        if self.start.heads == "keep" and not self.start.checkpoint:
            raise UserError("start.heads: keep needs a start.checkpoint with heads")
        if self.start.text and not self.start.checkpoint:
            raise UserError("start.text: needs a start.checkpoint with a text network (cover import-weights --text)")
        if self.adapt.method != "full" and not self.start.checkpoint:
            raise UserError(f"adapt.method: {self.adapt.method} adapts a start, and start.checkpoint is empty")
        if self.adapt.train and self.adapt.method == "full":
            raise UserError("adapt.train: is for the methods lora and probe; full trains all parameters")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema: {self.ema} is not in [0, 1)")

    def _check_cache(self) -> None:
        for key in ("mixup", "cutmix") if self.cache.stages else ():
            if getattr(self.augment, key):
                raise UserError(
                    f"augment.{key}: mixes the pixels of two samples, and cache.stages keeps outputs of each alone;"
                    " set one of them to 0"
                )

    def _check_optimizer(self) -> None:
        if not all(0 <= beta < 1 for beta in self.optimizer.betas):
            raise UserError(f"optimizer.betas: {list(self.optimizer.betas)} are not both in [0, 1)")
        marks, stepping = self.optimizer.milestones, self.optimizer.schedule == "steps"
        if bool(marks) != stepping:
            problem = "needed by" if stepping else "only for"
            raise UserError(f"optimizer.milestones: {problem} the schedule steps, as in [0.5, 0.75]")
        if marks != sorted(set(marks)) or not all(0 < mark < 1 for mark in marks):
            raise UserError(f"optimizer.milestones: {marks} are not ascending fractions of the run between 0 and 1")
        for pattern, treatment in self.optimizer.patterns.items():
            for key, value in (("lr", treatment.lr), ("decay", treatment.decay or 0)):
                if not 0 <= value < math.inf:
                    raise UserError(f'optimizer.patterns: "{pattern}": {key}: {value} is not 0 or more')


# --- reading ----------------------------------------------------------------------------------------------------------


def read_recipe(path: Path, overrides: Sequence[str] = (), needs_start: bool = True, resumed: bool = False) -> Recipe:
    """The recipe in a YAML file with overrides.

    Where it has a start, options of `model` that it does not give are those of the start's network. `needs_start`:
    raise `UserError` if the start is not there; else only a start that is on this machine counts. `resumed`: a run that
    has begun has these options in its own recipe, so its start is not read. Raises `UserError` as `cover.config.load`,
    and if `model.backbone` is another family than the start's.
    """
    recipe = config.load(Recipe, path, overrides, partial(_with_network_of_start, path, needs_start, resumed))
    if not recipe.out.strip():
        raise UserError("out: empty; name a folder for the run, as in --out runs/mine")
    return recipe


def _with_network_of_start(path: Path, needs_start: bool, resumed: bool, tree: dict[str, Any]) -> dict[str, Any]:
    """The plain tree of a recipe with the options of the start's network under `model`."""
    start, model = tree.get("start"), tree.get("model")
    checkpoint = str(start.get("checkpoint") or "") if isinstance(start, dict) else ""
    if not checkpoint or not (is_null(model) or isinstance(model, dict)):
        return tree  # of a wrong type, which `load` reports
    begun = Path(str(tree.get("out"))) / RECIPE
    try:
        if resumed and begun.is_file():
            options: BackboneOptions | None = config.load(Recipe, begun).model
        else:
            options = _options_of(checkpoint, needs_start)
    except UserError as error:
        raise UserError(f"{path}: start.checkpoint: {error}") from None
    if options is None:
        return tree
    given = model if isinstance(model, dict) else {}
    wanted = str(given.get("backbone", options.backbone))
    if wanted != options.backbone:
        raise UserError(
            f"{path}: start.checkpoint: {checkpoint}: its network is a {options.backbone}, and model.backbone is "
            f"{wanted}; leave model.backbone out, or choose another start"
        )
    return {**tree, "model": {**config.plain(options), **given}}


def _options_of(checkpoint: str, needs_start: bool) -> BackboneOptions | None:
    """The options of a start's network; None if no options produce it, or if it is not needed and not here."""
    from cover.model.release import start_options
    from cover.model.starts.known import known_start

    here = Path(checkpoint).exists() or known_start(checkpoint) is not None
    return start_options(checkpoint) if needs_start or here else None
