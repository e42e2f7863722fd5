"""The interface of an augmentation of single samples, and the application of all of a Pack's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

FrameGroups = tuple[tuple[int, int], ...]  # (samples, frames each), as in a Pack
Stage = Literal["uint8", "float", "normalized"]


class Transform(ABC):
    """An augmentation of single samples, the same in all frames of a clip; a frozen dataclass of its settings.

    `stage` says which frames `apply` takes: `uint8`; `float`, in 0 to 1; or `normalized` by the model, 0 being the mean
    colour. The stages run in this order, the transforms of one stage in the order of their draws.
    """

    stage: ClassVar[Stage]

    @property
    def is_identity(self) -> bool:
        """Whether these settings change no sample. A run omits a transform that changes none in any data set."""
        return False

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: int) -> Any:
        """The parameters for one sample of `size` x `size` pixels, all randomness from `rng`.

        A tensor. At the stage `uint8` it may be any object that can be pickled; such objects stay on the host.
        """

    @staticmethod
    @abstractmethod
    def apply(frames: Tensor, drawn: Any, groups: FrameGroups) -> Tensor:
        """New frames `(F, 3, H, W)` from those of a Pack, which stay as they are.

        `drawn`: what `draw` returned for each of the S samples, stacked on the frames' device if tensors, else a tuple.
        """


def apply_stage(stage: Stage, frames: Tensor, drawn: Mapping[type[Transform], Any], groups: FrameGroups) -> Tensor:
    """The frames of a Pack after all transforms of one stage."""
    for transform, parameters in drawn.items():
        if transform.stage == stage:
            frames = transform.apply(frames, parameters, groups)
    return frames


def sample_of_frame(groups: FrameGroups, device: torch.device) -> Tensor:
    """int64 `(F,)`: the index of each frame's sample. It needs no transfer from or to the host."""
    samples = torch.arange(sum(count for count, _ in groups), device=device).split([count for count, _ in groups])
    return torch.cat([part.repeat_interleave(length) for part, (_, length) in zip(samples, groups, strict=True)])


def inside_boxes(boxes_S4: Tensor, frames: Tensor) -> Tensor:
    """bool `(S, 1, H, W)`: the pixels inside each box (left, top, right, bottom)."""
    left, top, right, bottom = boxes_S4[:, :, None].unbind(1)
    x, y = (torch.arange(side, device=frames.device) for side in (frames.shape[3], frames.shape[2]))
    return (((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :])[:, None]
