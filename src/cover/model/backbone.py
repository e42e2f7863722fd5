"""The interface of a backbone: the network that turns the frames of a Pack into one feature per sample.

A family of networks is one file in `backbones/`. It has three classes: the options in a recipe (`BackboneOptions`), the
configuration in a release (`BackboneConfig`) and the network (`Backbone`). Code outside `cover.model` uses only these
base classes.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cover.errors import UserError

# (samples, frames of each sample), in the order of the frames. Images are one-frame samples and come last.
Groups = tuple[tuple[int, int], ...]
Intermediates = dict[str, Tensor]  # name of a place in the network -> its output
Rgb = tuple[float, float, float]

# Limits of a configuration, so that no number in a file exhausts the memory: pixels of a side, frames, channels.
MOST_PIXELS, MOST_FRAMES, MOST_CHANNELS = 16_384, 4096, 1 << 20
PACK_LAYOUTS = 8  # layouts of a Pack for which stages are compiled: clips, images, both, training, evaluation
HEAT_CELLS = 14  # largest number of cells along a side of a frame: a finer map of input gradients is noise


@dataclass(frozen=True)
class Pixels:
    """The frames that a network expects. A release stores them with the weights.

    `size`: side of a frame in pixels. `multiple`: height and width must be multiples of it. `tubelet`: number of frames
    that are embedded together. `mean`, `std`: of each colour, on a scale from 0 to 1. `interpolation`: the filter that
    resizes frames, with antialiasing.
    """

    size: int
    multiple: int = 1
    tubelet: int = 1
    mean: Rgb = (0.5, 0.5, 0.5)
    std: Rgb = (0.5, 0.5, 0.5)
    interpolation: Literal["bilinear"] = "bilinear"


@dataclass(frozen=True)
class Heat:
    """A map of the places in one sample that a score depends on.

    `heat`: float32 `(T, h, w)` over a grid on every frame. It sums to 1, or is all zero if no place supports the class.
    `method`: the name of the method that computed it. `own`: the part of an attention roll-out that stays on the class
    token, on the scale of `heat` before its division by its sum; 0 for other methods.
    """

    heat: Tensor
    method: str
    own: float = 0.0

    @property
    def frame_weights(self) -> Tensor:
        """The heat of each frame, float32 `(T,)`."""
        return self.heat.sum((1, 2))

    @classmethod
    def of(cls, heat: Tensor, method: str, own: float = 0.0) -> Heat:
        """The map of non-negative values `(T, h, w)`, divided by their sum."""
        heat = heat.float()
        # `tiny` keeps an all-zero map at zero, without a division by zero
        return cls(heat / heat.sum().clamp_min(torch.finfo(heat.dtype).tiny), method, own)


@dataclass(frozen=True)
class BackboneConfig(ABC):
    """Everything that defines the function of a backbone, except its weights."""

    family: ClassVar[str]
    # fields that a run takes over from the release whose weights it starts from
    inherited: ClassVar[frozenset[str]] = frozenset(["mean", "std"])
    # fields that releases of an earlier version lack; the default is the function that they have
    added_later: ClassVar[frozenset[str]] = frozenset()

    size: int = 224  # side of a frame in pixels
    frames: int = 8  # frames of a training clip
    mean: Rgb = (0.5, 0.5, 0.5)
    std: Rgb = (0.5, 0.5, 0.5)

    def check(self) -> None:
        """Raises ValueError, in one line that begins with the name of the field, if no network has these settings."""
        self._check_whole(size=(1, MOST_PIXELS), frames=(1, MOST_FRAMES))
        for name in ("mean", "std"):
            if not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"{name}: {list(getattr(self, name))} are not finite numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std: {list(self.std)} are not all above 0")

    def _check_whole(self, **ranges: tuple[int, int | None]) -> None:
        """Raises ValueError if a whole number is out of its range (lowest, highest or None)."""
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                raise ValueError(f"{name}: {value} is not {f'in [{low}, {high}]' if high else f'{low} or more'}")

    def shown_by(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The settings that the tensors of a network of this family show: name of a field -> its value.

        `shapes`: the shape of each tensor of the backbone, by name. It lacks a setting whose tensors are absent.
        """
        return {}

    @abstractmethod
    def build(self) -> Backbone:
        """Build the network. `Backbone.initialise` sets its initial values."""

    @abstractmethod
    def options(self) -> BackboneOptions:
        """The recipe options that produce this network. Raises `UserError` if no options produce it."""

    def start_options(self) -> BackboneOptions:
        """The options of a run that starts from this network and names no others. Raises `UserError` as `options`."""
        return self.options()

    @abstractmethod
    def summary(self) -> dict[str, str]:
        """The settings that distinguish networks of the family: name -> value as text."""

    def difference(self, theirs: Self, temporal: bool) -> str | None:
        """Why weights of `theirs` would compute another function in this network, in one line; None if they would not.

        `temporal`: whether the temporal parameters are loaded too. The caller compares the shapes of tensors.
        """
        return None

    def prefix_values(self) -> dict[str, Any]:
        """The fields that the outputs of the first stages depend on, besides the weights of these stages."""
        return {"family": self.family, **asdict(self)}

    def inherited_values(self) -> dict[str, Any]:
        """The fields that `inherited` names, with their values."""
        return {name: getattr(self, name) for name in sorted(self.inherited)}


def option(default: Any, text: str) -> Any:
    """A field of the recipe options, with its default and its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BackboneOptions(ABC):
    """The options under `model` in a recipe that every family has.

    Each family narrows `backbone` to a Literal with one value, its name.
    """

    backbone: str = option("", "the family of the network")
    size: int = option(32, "image side in pixels")
    drop_path: float = option(0.0, "drop-path rate at the last layer; it grows linearly from 0 at the first")
    head_dropout: float = option(0.0, "dropout rate before the classifiers")
    checkpointing: bool = option(
        False, "store only the input of each stage and recompute the rest in the backward pass: less memory, more time"
    )

    @abstractmethod
    def config(self, frames: int, inherited: BackboneConfig | None = None) -> BackboneConfig:
        """The configuration of the network for clips of `frames` frames.

        `inherited`: the configuration of the release that the run starts from, of the same family. Raises `UserError`.
        """

    def for_images(self) -> Self:
        """The options for a stage that trains on images alone."""
        return self

    def pooled_by(self, pool: Literal["mean", "quarters", "attentive"]) -> Self | None:
        """The options with another pooling over frames; None if the family has no choice."""
        return None

    def with_late_block(self) -> Self | None:
        """The options of a network with one more block over space and time, which adds nothing at first.

        It can be trained on fixed outputs of the others. None if the family has none.
        """
        return None

    def check(self) -> None:
        """Raises `UserError` if a number is out of range."""
        if self.size < 1:
            raise UserError(f"model.size: {self.size} is not 1 or more")
        self.check_rates("drop_path", "head_dropout")

    def check_rates(self, *names: str) -> None:
        """Raises `UserError` if one of these fields is not in [0, 1)."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name}: {getattr(self, name)} is not in [0, 1)")


def no_check() -> None:
    """The default of `check` in `Backbone.heat`. It never interrupts the work."""


class Backbone(nn.Module, ABC):
    """A network without classifiers. It does not depend on heads, data sets or losses.

    `config`: the configuration that it was built from. `width`: number of channels D of a feature.
    """

    config: BackboneConfig
    width: int

    def __init__(self) -> None:
        super().__init__()
        self.checkpointing = False

    @property
    @abstractmethod
    def pixels(self) -> Pixels:
        """The frames that the network expects."""

    @abstractmethod
    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """The feature of every sample of a Pack, float `(S, D)`, in the order of the groups.

        `frames`: normalised float `(F, 3, H, W)`. `drop`: drop-path factors `(layers, branches, S)` as `drop_shape`
        says; None is the same as all ones. `intermediates`: a dictionary that the pass fills with its intermediate
        tensors. A sample has the same feature whatever other groups are in the Pack. Raises ValueError if shapes do not
        fit.

        A family with the option `drop_tubes` also takes `tubes`, int64 `(S, K)`: the places of the patches that a
        training pass computes, the same ones in all frames of a sample. None is the same as all places.
        """

    @abstractmethod
    def stages(self) -> Sequence[nn.Module]:
        """The parts that run one after the other.

        They are the units of activation checkpointing, torch.compile, FSDP2, layer-wise learning rates and of caching a
        frozen prefix.
        """

    def forward_prefix(self, frames: Tensor, groups: Groups, stages: int) -> Tensor:
        """The output of the first `stages` stages, float `(F, ...)`: one entry per frame, which `forward_suffix` takes.

        It is computed as in evaluation, without dropout and drop-path, also while the network trains. With `stages` 0
        it is `frames`. The gradient is that of the caller's context; a frozen prefix is computed under `torch.no_grad`.
        Raises `UserError` if the family does not separate its stages, ValueError if shapes do not fit.
        """
        raise UserError(f"cache.stages: a {self.config.family} backbone does not separate its stages; set it to 0")

    def forward_suffix(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """The features `(S, D)` from `x`, the output of `forward_prefix` with the same `stages`.

        `drop` has the factors of all layers, as in `forward`; those of the first `stages` stages have no effect. For
        every number of stages, `forward_suffix(forward_prefix(frames, groups, n), groups, n)` equals `forward` in
        evaluation. Raises as `forward_prefix`.
        """
        raise UserError(f"cache.stages: a {self.config.family} backbone does not separate its stages; set it to 0")

    def drop_shape(self) -> tuple[int, int]:
        """(layers, branches of a layer) of the drop-path factors; (0, 0) for a network without drop-path."""
        return (0, 0)

    def tubes_of(self, sides: tuple[int, int]) -> int:
        """The number of places of a frame with these sides (height, width) that `drop_tubes` can leave out."""
        return (sides[0] // self.pixels.multiple) * (sides[1] // self.pixels.multiple)

    def drop_layers_within(self, stages: int) -> int:
        """The number of layers of `drop_shape` that are in the first `stages` stages; by default a stage is a layer."""
        return min(stages, self.drop_shape()[0])

    def initialise(self) -> None:
        """Set the initial values that the general rule of `CoVeR` does not cover: embeddings, zeros and copies.

        The general rule has set every matrix and kernel before, at a scale that follows its width.
        """

    # --- parameters ---------------------------------------------------------------------------------------------------

    def layer_of(self, parameter: str) -> int:
        """The layer group of a parameter: 0 before the first stage, 1 to n for the stages, n + 1 after the last."""
        return self.layer_numbers()[parameter]

    def layer_numbers(self) -> dict[str, int]:
        """`layer_of` every parameter, by name."""
        stages = self.stages()
        of_stage = {id(each): number for number, stage in enumerate(stages, 1) for each in stage.parameters()}
        layers: dict[str, int] = {}
        before = 0  # parameters are listed in the order of the computation: all before the first stage's are embeddings
        for name, parameter in self.named_parameters():
            layers[name] = of_stage.get(id(parameter), before)
            before = len(stages) + 1 if layers[name] else 0
        return layers

    def prefix_state(self, stages: int) -> dict[str, Tensor]:
        """The parameters and saved buffers that the output of the first `stages` stages depends on, by name."""
        layers = self.layer_numbers()
        # A buffer belongs to the layer of the parameters of its module; without any, to the stage that it is in.
        modules = {name.rpartition(".")[0]: layer for name, layer in layers.items()}
        later = {id(buffer) for stage in self.stages()[stages:] for buffer in stage.buffers()}
        state = self.state_dict(keep_vars=True)
        return {
            name: value.detach()
            for name, value in state.items()
            if layers.get(name, modules.get(name.rpartition(".")[0], 0)) <= stages and id(value) not in later
        }

    def temporal_parameters(self) -> frozenset[str]:
        """The names of the parameters that an image model does not have."""
        return frozenset()

    def no_decay_parameters(self) -> frozenset[str]:
        """The names of the parameters without weight decay: biases, norms and scales.

        By default these are all parameters with fewer than two dimensions.
        """
        return frozenset(name for name, parameter in self.named_parameters() if parameter.ndim < 2)

    def names_of(self, *parts: nn.Module | Tensor) -> frozenset[str]:
        """The names of the parameters in `parts`."""
        # By identity, never by a substring of a name: a data set may be called "temporal".
        wanted = {
            id(tensor) for part in parts for tensor in ([part] if isinstance(part, Tensor) else part.parameters())
        }
        return frozenset(name for name, parameter in self.named_parameters() if id(parameter) in wanted)

    def projections(self) -> dict[str, list[nn.Linear]]:
        """The linear layers of attention, `attention`, and of MLPs, `mlp`, which low-rank adaptation changes.

        Empty for a network without attention.
        """
        return {}

    def reset_temporal(self, how: Literal["fresh", "copied"]) -> None:
        """Initialise the temporal parameters from the others (`start.temporal` of a recipe).

        Raises `UserError` if the network has no temporal branch.
        """
        raise UserError(
            f"start.temporal: {how}: a {self.config.family} backbone has no temporal branch; set it to keep"
        )

    def temporal_is_new(self, weights: dict[str, Tensor]) -> bool:
        """Whether the temporal parameters in `weights` do not change the output yet.

        `weights`: the state of a network of the same configuration.
        """
        return False

    def added_parameters(self, theirs: BackboneConfig) -> frozenset[str]:
        """The names of the parameters that a network of the configuration `theirs` lacks.

        A start from `theirs` keeps their initial values, with which they do not change the output. `difference` has
        allowed this start.
        """
        return frozenset()

    def fitted_head(self, weight: Tensor, theirs: BackboneConfig) -> Tensor:
        """The weight of a classifier for the features of a network of `theirs`, changed for those of this network.

        Both `(classes, D)`. The logits stay the same. Raises `UserError` if no weight does this.
        """
        return weight

    def fit_embeddings(self, weights: dict[str, Tensor]) -> list[str]:
        """Resize tensors of another image size or clip length to this network, in place; returns a note for each."""
        return []

    # --- uses ---------------------------------------------------------------------------------------------------------

    def set_checkpointing(self, on: bool = True) -> None:
        """In training, store only the input of each stage and recompute the rest in the backward pass.

        It needs less memory and more time.
        """
        self.checkpointing = on

    def compile_stages(self, **options: object) -> None:
        """Compile each stage with torch.compile. `options` are passed to it.

        Stages of the same structure share one graph for each layout of a Pack.
        """
        import torch._dynamo as dynamo

        # Stages of one class can have different structures. Beyond this number of graphs of a class, the compiler would
        # leave the rest as they are.
        limit = PACK_LAYOUTS * len(self.stages())
        dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, limit)
        for stage in self.stages():
            stage.compile(**options)

    def simplify(self) -> None:
        """Rewrite the network in place for export: the same function with fewer, constant matrices.

        A simplified network cannot be trained.
        """

    def heat(
        self, frames: Tensor, score: Callable[[Tensor], Tensor] | None, check: Callable[[], None] = no_check
    ) -> Heat:
        """A map of the places in one sample that a score depends on; by default where input x gradient is positive.

        `frames`: normalised float `(T, 3, H, W)`. `score`: maps features `(1, D)` to a scalar; None asks for the
        attention of the whole network, for no particular class. `check` is called between layers if there are several
        passes; an exception from it ends the work. Gradients are computed even if the caller has switched them off.
        Raises `UserError` if the network has no such map.
        """
        if score is None:
            raise UserError(f"rollout: is not defined for a {self.config.family} network; use --method gradient")
        check()
        with torch.inference_mode(False), torch.enable_grad():
            frames = frames.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(score(self(frames, ((1, len(frames)),))), frames)
        heat = (gradient * frames).detach().sum(1).clamp_min(0)  # (T, H, W)
        height, width = (min(HEAT_CELLS, side) for side in heat.shape[1:])
        return Heat.of(fn.adaptive_avg_pool2d(heat, (height, width)), "input x gradient")

    # --- helpers for subclasses ---------------------------------------------------------------------------------------

    def run_stage(self, stage: nn.Module, *arguments: Any) -> Tensor:
        """The output of a stage, with activation checkpointing if it is switched on."""
        if self.checkpointing and self.training:
            output = checkpoint(stage, *arguments, use_reentrant=False, context_fn=_contexts)
        else:
            output = stage(*arguments)
        assert isinstance(output, Tensor)
        return output

    @contextmanager
    def as_in_evaluation(self) -> Iterator[None]:
        """A context without dropout, for `forward_prefix`. Afterwards every module has its mode again."""
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def check_pack(self, frames: Tensor, groups: Groups) -> None:
        """Raises ValueError if the frames do not fit the groups or `pixels`."""
        wanted, pixels = sum(samples * length for samples, length in groups), self.pixels
        if frames.ndim != 4 or tuple(frames.shape[:2]) != (wanted, 3):
            raise ValueError(f"frames are {tuple(frames.shape)}, but groups {groups} need ({wanted}, 3, height, width)")
        if frames.shape[2] % pixels.multiple or frames.shape[3] % pixels.multiple:
            raise ValueError(
                f"frames are {tuple(frames.shape)}, but the sides have to be multiples of {pixels.multiple} px"
            )
        if any(length == 1 for _, length in groups[:-1]):
            raise ValueError(f"groups {groups}: images (one-frame samples) come last, in one group")
        if any(length > 1 and length % pixels.tubelet for _, length in groups):
            raise ValueError(f"groups {groups}: the frames of a clip have to be a multiple of {pixels.tubelet}")


def linears_of(network: nn.Module, *kinds: type[nn.Module]) -> list[nn.Linear]:
    """The linear layers that are direct parts of the modules of these kinds."""
    parts = [module.children() for module in network.modules() if isinstance(module, kinds)]
    return [part for own in parts for part in own if isinstance(part, nn.Linear)]


def count_parts(shapes: Iterable[str], name: str) -> int:
    """The number of parts of a list of modules `name`, from the names of the tensors."""
    return len({tensor.split(".")[1] for tensor in shapes if tensor.startswith(f"{name}.")})


class _Recomputation:
    """Whether the second forward pass of activation checkpointing runs. It may run in a thread of autograd."""

    active = False


def is_recomputing() -> bool:
    """Whether this forward pass repeats an earlier one for activation checkpointing, so it must not count again."""
    return _Recomputation.active


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of the first and the second forward pass of a stage."""
    return nullcontext(), _recomputation()


@contextmanager
def _recomputation() -> Iterator[None]:
    _Recomputation.active = True
    try:
        yield
    finally:
        _Recomputation.active = False


def per_frame(x: Tensor, groups: Groups) -> Tensor:
    """Values per sample `(..., S)`, repeated for each frame of the sample: `(..., F)`."""
    parts = x.split([samples for samples, _ in groups], dim=-1)
    return torch.cat(
        [part.repeat_interleave(frames, dim=-1) for part, (_, frames) in zip(parts, groups, strict=True)], dim=-1
    )


def note(intermediates: Intermediates | None, name: str, value: Tensor) -> None:
    """Store a value under `name`, if the caller asked for intermediates."""
    if intermediates is not None:
        intermediates[name] = value
