"""The interface of a backbone: the network that turns the frames of a Pack into one feature per sample.

A family of networks is one file in `backbones/` with three classes: its options in a recipe (`BackboneOptions`), its
configuration in a release (`BackboneConfig`) and the network (`Backbone`). Code outside `cover.model` uses these base
classes alone.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cover.errors import UserError

# (samples, frames of each), in the order of the frames; images are one-frame samples and come last
Groups = tuple[tuple[int, int], ...]
Intermediates = dict[str, Tensor]  # name -> what the network computed there
Rgb = tuple[float, float, float]

HEAT_CELLS = 14  # along each side of a frame, at most: a finer map of input gradients is noise


@dataclass(frozen=True)
class Pixels:
    """The frames that a network takes. This travels with the weights.

    `size`: side in pixels. `multiple`: height and width have to be multiples of it. `tubelet`: frames that are embedded
    together. `mean`, `std`: of each colour in 0..1. `interpolation`: the filter that resizes frames, with antialiasing.
    """

    size: int
    multiple: int = 1
    tubelet: int = 1
    mean: Rgb = (0.5, 0.5, 0.5)
    std: Rgb = (0.5, 0.5, 0.5)
    interpolation: Literal["bilinear"] = "bilinear"


@dataclass(frozen=True)
class Heat:
    """The places of one sample that a score rests on.

    `heat`: float32 `(T, h, w)` over a grid on every frame, 1 in all; all zero where no place speaks for the class.
    `own`: what an attention roll-out leaves on the class token, in the scale that the heat had before it was divided by
    its sum; else 0. `method`: how it was computed.
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
        """From values of any sum that are not negative."""
        heat = heat.float()
        return cls(heat / heat.sum().clamp_min(torch.finfo(heat.dtype).tiny), method, own)


@dataclass(frozen=True)
class BackboneConfig(ABC):
    """Everything that fixes the function of a backbone but not its weights. `frames`: of a clip, as trained."""

    family: ClassVar[str]
    # fields that go with weights into a run that starts from them
    inherited: ClassVar[frozenset[str]] = frozenset(["mean", "std"])

    size: int = 224  # pixels
    frames: int = 8
    mean: Rgb = (0.5, 0.5, 0.5)
    std: Rgb = (0.5, 0.5, 0.5)

    @abstractmethod
    def build(self) -> Backbone:
        """The network, its values still to be initialised (`Backbone.initialise`)."""

    @abstractmethod
    def options(self) -> BackboneOptions:
        """The options of a recipe that ask for this network. Raises `UserError` where none do."""

    @abstractmethod
    def summary(self) -> dict[str, str]:
        """The settings that tell networks of the family apart, in words."""

    def difference(self, theirs: Self, temporal: bool) -> str | None:
        """Why weights of `theirs` would compute another function in this network, in one line; None where they do not.

        `temporal`: whether the parameters that exist for time are taken over too. Shapes of tensors are compared
        elsewhere.
        """
        return None

    def inherited_values(self) -> dict[str, Any]:
        """The fields of `inherited`."""
        return {name: getattr(self, name) for name in sorted(self.inherited)}


def option(default: Any, text: str) -> Any:
    """A field of the options of a recipe: its default and its help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BackboneOptions(ABC):
    """What every family of networks has under `model` in a recipe. `backbone` is the name of the family, a Literal with
    one value.
    """

    backbone: str = option("", "the family of the network")
    size: int = option(32, "image side in pixels")
    drop_path: float = option(0.0, "rate of dropped branches at the last layer, growing linearly from 0")
    head_dropout: float = option(0.0, "before the classifiers")
    checkpointing: bool = option(
        False, "keep the input of each stage alone and compute the rest again: less memory, more time"
    )

    @abstractmethod
    def config(self, frames: int, inherited: BackboneConfig | None = None) -> BackboneConfig:
        """The configuration of the network, clips of `frames` frames. `inherited`: of the release that a run starts
        from, of the same family. Raises `UserError`.
        """

    def for_images(self) -> Self:
        """The options for a stage that trains on images alone."""
        return self

    def check(self) -> None:
        """Raises `UserError` for a number out of range."""
        if self.size < 1:
            raise UserError(f"model.size: {self.size} is not 1 or more")
        self.check_rates("drop_path", "head_dropout")

    def check_rates(self, *names: str) -> None:
        """Raises `UserError` for one of these fields that is not in [0, 1)."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name}: {getattr(self, name)} is not in [0, 1)")


def no_check() -> None:
    """The default of `check` in `Backbone.heat`: the work goes on."""


class Backbone(nn.Module, ABC):
    """A network without classifiers. It knows nothing of heads, data sets or losses.

    `config` is what it was built from, `width` the channels D of a feature, `pixels` the frames that it takes.
    """

    config: BackboneConfig
    width: int

    def __init__(self) -> None:
        super().__init__()
        self.checkpointing = False

    @property
    @abstractmethod
    def pixels(self) -> Pixels:
        """The frames that it takes."""

    @abstractmethod
    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """The feature of every sample of a Pack, float `(S, D)`, in the order of the groups.

        `frames`: normalised float `(F, 3, H, W)`. `drop`: drop-path factors `(layers, branches, S)`, see `drop_shape`;
        None for all ones. `intermediates`: where given, it is filled with what is computed on the way. Packing several
        groups equals each alone. Raises ValueError where shapes do not fit.
        """

    @abstractmethod
    def stages(self) -> Sequence[nn.Module]:
        """The parts that run one after the other: units of checkpointing, torch.compile and FSDP2, and of layer-wise
        learning rates.
        """

    def drop_shape(self) -> tuple[int, int]:
        """(layers, branches of a layer) that drop-path has factors for."""
        return (0, 0)

    def initialise(self) -> None:
        """Set what the general rule of `CoVeR` (matrices and kernels by their width) does not: embeddings, zeros,
        copies.
        """

    # --- parameters ---------------------------------------------------------------------------------------------------

    def layer_of(self, parameter: str) -> int:
        """The layer group of a parameter: 0 before the first stage, 1 to n the stages, n + 1 behind the last."""
        names = [name for name, _ in self.named_parameters()]
        layers = {name: number for number, stage in enumerate(self.stages(), 1) for name in self.names_of(stage)}
        first = min((names.index(name) for name in layers), default=0)
        return layers.get(parameter, 0 if names.index(parameter) < first else len(self.stages()) + 1)

    def temporal_parameters(self) -> frozenset[str]:
        """The names of the parameters that image pre-training does not have."""
        return frozenset()

    def no_decay_parameters(self) -> frozenset[str]:
        """The names of the parameters without weight decay: biases, norms and scales, which have less than two
        dimensions.
        """
        return frozenset(name for name, parameter in self.named_parameters() if parameter.ndim < 2)

    def names_of(self, *parts: nn.Module | Tensor) -> frozenset[str]:
        """The names of the parameters that `parts` consist of."""
        wanted = {
            id(tensor) for part in parts for tensor in ([part] if isinstance(part, Tensor) else part.parameters())
        }
        return frozenset(name for name, parameter in self.named_parameters() if id(parameter) in wanted)

    def reset_temporal(self, how: Literal["fresh", "copied"]) -> None:
        """Make the temporal parameters anew from the others (`start.temporal`). Raises `UserError` where there are none
        to make.
        """
        raise UserError(
            f"start.temporal: {how}: a {self.config.family} backbone has no temporal branch; set it to keep"
        )

    def temporal_is_new(self, weights: dict[str, Tensor]) -> bool:
        """Whether the temporal parameters in `weights`, of a network like this one, have no part yet in what it
        computes.
        """
        return False

    def fit_embeddings(self, weights: dict[str, Tensor]) -> list[str]:
        """Resize tensors of another image size or clip length to this network, in place; returns one note for each."""
        return []

    # --- uses ---------------------------------------------------------------------------------------------------------

    def set_checkpointing(self, on: bool = True) -> None:
        """In training, keep the input of each stage alone and compute the rest again in the backward pass: less memory,
        more time.
        """
        self.checkpointing = on

    def compile_stages(self, **options: object) -> None:
        """torch.compile stage by stage: one graph serves all like ones for a given layout of a Pack. `options` go to
        torch.compile.
        """
        for stage in self.stages():
            stage.compile(**options)

    def simplify(self) -> None:
        """Rewrite the network in place for export: the same function with fewer, constant matrices. It is not trained
        afterwards.
        """

    def heat(
        self, frames: Tensor, score: Callable[[Tensor], Tensor] | None, check: Callable[[], None] = no_check
    ) -> Heat:
        """The places of one sample that a score rests on; by default where input times gradient is positive.

        `frames`: normalised float `(T, 3, H, W)`. `score`: features `(1, D)` to a scalar; None asks for the places that
        attention goes to, whatever the class. `check` is called between layers where there are several passes; what it
        raises ends the work. Gradients are computed whether or not the caller has switched them off. Raises `UserError`
        where the network has no such map.
        """
        if score is None:
            raise UserError(
                f"rollout: a {self.config.family} backbone has no attention to follow; use --method gradient"
            )
        check()
        with torch.inference_mode(False), torch.enable_grad():
            frames = frames.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(score(self(frames, ((1, len(frames)),))), frames)
        heat = (gradient * frames).detach().sum(1).clamp_min(0)
        height, width = (min(HEAT_CELLS, side) for side in heat.shape[1:])
        return Heat.of(fn.adaptive_avg_pool2d(heat, (height, width)), "input x gradient")

    # --- for the networks themselves ----------------------------------------------------------------------------------

    def run_stage(self, stage: nn.Module, *arguments: Any) -> Tensor:
        """The output of a stage, checkpointed where that is switched on."""
        if self.checkpointing and self.training:
            output = checkpoint(stage, *arguments, use_reentrant=False)
        else:
            output = stage(*arguments)
        assert isinstance(output, Tensor)
        return output

    def check_pack(self, frames: Tensor, groups: Groups) -> None:
        """Raises ValueError where frames, groups and `pixels` do not go together."""
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


def per_frame(x: Tensor, groups: Groups) -> Tensor:
    """A value per sample on the last axis, `(..., S)`, repeated for each of its frames: `(..., F)`."""
    parts = x.split([samples for samples, _ in groups], dim=-1)
    return torch.cat(
        [part.repeat_interleave(frames, dim=-1) for part, (_, frames) in zip(parts, groups, strict=True)], dim=-1
    )


def note(intermediates: Intermediates | None, name: str, value: Tensor) -> None:
    """Keep a value among the intermediates, where they are wanted."""
    if intermediates is not None:
        intermediates[name] = value
