"""The interface of augmentations of single samples, and their application to a Pack."""

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
    """An augmentation of single samples. It is the same in all frames of a clip.

    A subclass is a frozen dataclass of its settings. `stage`: the frames that `apply` takes: `uint8`; `float`, in 0 to
    1; or `normalized` by the model, where 0 is the mean colour. The stages run in this order, and the transforms of one
    stage in the order of their draws.
    """

    stage: ClassVar[Stage]

    @property
    def is_identity(self) -> bool:
        """Whether these settings change no sample. A run leaves out a transform that changes no data set."""
        return False

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: int) -> Any:
        """The parameters for one sample of `size` x `size` pixels. All randomness comes from `rng`.

        Returns a tensor. At the stage `uint8` it may be any object that can be pickled; these stay on the host.
        """

    @staticmethod
    @abstractmethod
    def apply(frames: Tensor, drawn: Any, groups: FrameGroups) -> Tensor:
        """New frames `(F, 3, H, W)` from the frames of a Pack, which are not changed.

        `drawn`: the results of `draw` for the S samples, stacked on the frames' device if tensors, otherwise a tuple.
        """


def apply_stage(stage: Stage, frames: Tensor, drawn: Mapping[type[Transform], Any], groups: FrameGroups) -> Tensor:
    """The frames of a Pack after all transforms of one stage."""
    for transform, parameters in drawn.items():
        if transform.stage == stage:
            frames = transform.apply(frames, parameters, groups)
    return frames


def sample_of_frame(groups: FrameGroups, device: torch.device) -> Tensor:
    """int64 `(F,)`: the index of each frame's sample. Nothing is copied between host and device."""
    samples = torch.arange(sum(count for count, _ in groups), device=device).split([count for count, _ in groups])
    return torch.cat([part.repeat_interleave(length) for part, (_, length) in zip(samples, groups, strict=True)])


def inside_boxes(boxes_S4: Tensor, frames: Tensor) -> Tensor:
    """bool `(S, 1, H, W)`: the pixels inside each box (left, top, right, bottom)."""
    left, top, right, bottom = boxes_S4[:, :, None].unbind(1)
    x, y = (torch.arange(side, device=frames.device) for side in (frames.shape[3], frames.shape[2]))
    return (((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :])[:, None]
