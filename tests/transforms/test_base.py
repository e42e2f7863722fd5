"""A transform that the package does not know goes the whole way: draw, Pack, micro-batches, device, pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from cover.mixture.loader import packs
from cover.mixture.mixture import Mixture
from cover.mixture.pack import Pack, augment_uint8, split_pack
from cover.mixture.rates import Data
from cover.training.recipe import Augment, SetAugment
from cover.transforms.base import FrameGroups, Stage, Transform, sample_of_frame
from cover.transforms.colour import ColourJitter
from cover.transforms.erasing import RandomErasing
from cover.transforms.randaugment import RandAugment

SIZE = 16


@dataclass(frozen=True)
class Invert(Transform):
    """Inverts a sample with probability `chance`; what it draws stays on the host."""

    chance: float
    stage: ClassVar[Stage] = "uint8"

    def draw(self, rng: np.random.Generator, size: int) -> str:
        return "inverted" if rng.random() < self.chance else "as it is"

    @staticmethod
    def apply(frames: torch.Tensor, drawn: Any, groups: FrameGroups) -> torch.Tensor:
        inverted = torch.tensor([word == "inverted" for word in drawn])[sample_of_frame(groups, frames.device)]
        return torch.where(inverted.view(-1, 1, 1, 1), 255 - frames, frames)


@dataclass(frozen=True)
class Dim(Transform):
    """Multiplies a sample by a factor below 1."""

    stage: ClassVar[Stage] = "float"

    def draw(self, rng: np.random.Generator, size: int) -> torch.Tensor:
        return torch.tensor(rng.random(), dtype=torch.float32)

    @staticmethod
    def apply(frames: torch.Tensor, drawn: torch.Tensor, groups: FrameGroups) -> torch.Tensor:
        return frames * drawn[sample_of_frame(groups, frames.device)].view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Blank(Transform):
    """Every sample at the mean colour."""

    stage: ClassVar[Stage] = "normalized"

    def draw(self, rng: np.random.Generator, size: int) -> torch.Tensor:
        return torch.zeros(1)

    @staticmethod
    def apply(frames: torch.Tensor, drawn: torch.Tensor, groups: FrameGroups) -> torch.Tensor:
        return frames * drawn[sample_of_frame(groups, frames.device)].view(-1, 1, 1, 1)


def normalize(frames: torch.Tensor) -> torch.Tensor:
    return (frames - 0.4) / 0.2


@pytest.fixture
def read(sandbox: Path) -> Callable[..., Pack]:
    """read(*transforms) -> the Pack of one step of four clips of 4 frames and four images."""
    data = Data(["kinetics", "imagenet"], str(sandbox), frames=4, weights={"kinetics": 1, "imagenet": 1})
    mixture = Mixture.open(data)
    schedule = mixture.schedule(8, ranks=2)
    return lambda *transforms: next(packs(schedule, mixture.reader(SIZE, transforms), 0, 1, workers=0))


def test_draws_become_pixels_stage_by_stage(read: Callable[..., Pack]) -> None:
    plain, pack = read(), read(Invert(0.5), Dim())
    assert torch.equal(pack.frames, plain.frames)
    samples = torch.tensor([0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4, 5, 6, 7])
    assert torch.equal(sample_of_frame(pack.groups, torch.device("cpu")), samples)
    words, factors = pack.drawn[Invert], pack.drawn[Dim]
    assert set(words) == {"inverted", "as it is"}
    for number, result in zip(samples.tolist(), zip(plain.frames, pack.pixels(normalize), strict=True), strict=True):
        before, after = result
        turned = 255 - before if words[number] == "inverted" else before
        torch.testing.assert_close(after, normalize(turned / 255 * factors[number]))
    assert not read(Blank()).pixels(normalize).any()


def test_micro_batches_have_the_pixels_of_the_whole_pack(read: Callable[..., Pack]) -> None:
    pack = read(Invert(0.5), ColourJitter(0.3), Dim(), RandomErasing(0.5))
    whole = pack.pixels(normalize)
    parts = [part.pixels(normalize) for part in split_pack(augment_uint8(pack), 2)]
    clips, images = whole[:16].view(2, 8, *whole.shape[1:]), whole[16:].view(2, 2, *whole.shape[1:])
    for number, part in enumerate(parts):
        torch.testing.assert_close(part, torch.cat([clips[number], images[number]]))


def test_a_pack_moves_with_what_was_drawn(read: Callable[..., Pack]) -> None:
    moved = read(Invert(0.5), Dim()).to("meta")
    assert moved.drawn[Dim].device.type == "meta"
    assert isinstance(moved.drawn[Invert], tuple)


def test_a_recipe_gives_every_data_set_the_same_transforms_with_its_own_settings() -> None:
    augment = Augment(colour=0.2, randaugment="m7-n4", sets={"b": SetAugment(colour=0.0, randaugment="")})
    result = augment.transforms(["a", "b"])
    assert result["a"] == (ColourJitter(0.2), RandAugment(7, 4))
    assert result["b"] == (ColourJitter(0.0), RandAugment())
    assert augment.transforms(["b"])["b"] == (ColourJitter(0.0),), "what no data set uses is left out"
    (_, erasing) = replace(augment, erase=0.25, randaugment="").transforms(["a"])["a"]
    assert erasing == RandomErasing(0.25)
