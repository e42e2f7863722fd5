"""No shortcut: what the motion set cannot be solved by, and, as controls, what the sets can be solved by.

Frames of 24 x 32 pixels keep this quick; the motion set is encoded and decoded, so that what the codec adds is part of
the test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cover.synthetic.content import CLASSES, DIRECTIONS, class_of, draw_sample, travel
from cover.synthetic.render import encode
from cover.synthetic.settings import Settings

SETTINGS = Settings(height=24, width=32)
COUNTS = {"kinetics": (480, 320), "ssv2": (640, 320), "moments": (320, 320), "imagenet": (960, 480)}
CHANCE = {dataset: 1 / len(CLASSES[dataset]) for dataset in COUNTS}
ALLOWED = 1.5
BATCH = 48


@dataclass(frozen=True)
class Clips:
    """Frames per clip, uint8 `(frames, H, W, 3)`, and labels `(clips,)`."""

    frames: list[np.ndarray]
    labels: np.ndarray

    def pick(self, clips: np.ndarray, share: np.ndarray) -> Tensor:
        """The frames at `share` `(clips, k)` in [0, 1) of each clip's length, float32 `(clips, k, 3,
        H, W)` in [-1, 1].
        """
        chosen = np.stack(
            [self.frames[clip][(row * len(self.frames[clip])).astype(int)] for clip, row in zip(clips, share)]
        )
        return torch.from_numpy(chosen).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


Sets = Callable[[str], tuple[Clips, Clips]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, read_file: Callable[[Path], np.ndarray]) -> Sets:
    """Data set -> (train, val), each made once."""
    folder = tmp_path_factory.mktemp("motion")

    def frames(dataset: str, split: str, index: int) -> np.ndarray:
        drawn = draw_sample(SETTINGS, dataset, split, index)
        if dataset != "ssv2":
            return drawn
        path = folder / f"{split}{index}.webm"
        encode(path, drawn)
        return read_file(path)

    def clips(dataset: str, split: str, count: int) -> Clips:
        labels = [CLASSES[dataset].index(class_of(SETTINGS, dataset, index)) for index in range(count)]
        return Clips([frames(dataset, split, index) for index in range(count)], np.array(labels))

    outputs: dict[str, tuple[Clips, Clips]] = {}

    def get(dataset: str) -> tuple[Clips, Clips]:
        if dataset not in outputs:
            train, val = COUNTS[dataset]
            outputs[dataset] = clips(dataset, "train", train), clips(dataset, "val", val)
        return outputs[dataset]

    return get


class FrameNet(nn.Module):
    """Three convolutions; the classes are read from what is anywhere in the frame and from what is where."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        stages = [(3, 16, 2), (16, 32, 2), (32, 64, 1)]
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(wide, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU())
                for wide, wider, stride in stages
            )
        )
        self.narrow = nn.Conv2d(64, 32, 1)
        self.head = nn.Linear(64 + 32 * 6 * 8, classes)

    def forward(self, frames: Tensor) -> Tensor:
        features = self.body(frames)
        return self.head(torch.cat([features.amax((2, 3)), self.narrow(features).flatten(1)], 1))


def frame_logits(net: nn.Module, frames: Tensor) -> Tensor:
    """`(clips, k, 3, H, W)` -> the mean of the frames' logits `(clips, classes)`; k = 1: a one-frame classifier, else
    order-free.
    """
    return net(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(1)


def train_frame_net(train: Clips, frames: int, steps: int) -> nn.Module:
    """Trained end to end on `frames` frames, taken at random instants of random clips."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = FrameNet(int(train.labels.max()) + 1)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        clips = rng.integers(len(train.labels), size=BATCH)
        logits = frame_logits(net, train.pick(clips, rng.random((BATCH, frames))))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(train.labels[clips]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.inference_mode()
def frame_accuracy(net: nn.Module, val: Clips, frames: int) -> float:
    """Accuracy on `frames` frames: at random instants for one, else at the centres of equal parts."""
    count = len(val.labels)
    share = (
        np.random.default_rng(1).random((count, 1))
        if frames == 1
        else np.tile((np.arange(frames) + 0.5) / frames, (count, 1))
    )
    return float((frame_logits(net, val.pick(np.arange(count), share)).argmax(1).numpy() == val.labels).mean())


def linear_accuracy(train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray) -> float:
    """Least squares on one-hot labels."""
    one_hot = np.eye(train_labels.max() + 1)[train_labels]
    weights = np.linalg.lstsq(np.c_[train, np.ones(len(train))], one_hot, rcond=None)[0]
    return float(((np.c_[val, np.ones(len(val))] @ weights).argmax(1) == val_labels).mean())


def neighbour_accuracy(
    train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray, k: int = 5
) -> float:
    nearest = ((val[:, None] - train[None]) ** 2).sum(-1).argsort(1)[:, :k]
    votes = np.eye(train_labels.max() + 1)[train_labels[nearest]].sum(1)
    return float((votes.argmax(1) == val_labels).mean())


def tracks(clips: Clips) -> np.ndarray:
    """Where the frame differs most from the clip's usual one, at eight even instants: `(clips, 8, 2)`."""
    results = []
    for frames in clips.frames:
        moving = abs(frames.astype(np.float32) - np.median(frames, 0)).sum(-1)
        picked = moving[((np.arange(8) + 0.5) / 8 * len(frames)).astype(int)]
        smooth = sum(np.roll(picked, shift, (1, 2)) for shift in itertools.product(range(-2, 3), repeat=2))
        places = np.unravel_index(smooth.reshape(8, -1).argmax(1), picked.shape[1:])
        results.append(np.stack(places, 1) / picked.shape[1:])
    return np.array(results)


@pytest.mark.parametrize("frames", [1, 8], ids=["one_frame", "order_free"])
def test_motion_is_not_in_frames_without_their_order(sets: Sets, frames: int) -> None:
    train, val = sets("ssv2")
    net = train_frame_net(train, frames, steps=200 if frames == 1 else 100)
    assert frame_accuracy(net, val, frames) <= ALLOWED * CHANCE["ssv2"]


def test_the_same_frame_classifier_solves_the_appearance_set(sets: Sets) -> None:
    train, val = sets("kinetics")
    assert frame_accuracy(train_frame_net(train, 1, steps=200), val, 1) > 3 * CHANCE["kinetics"]


def steps(places: np.ndarray) -> np.ndarray:
    """The median step from one of eight instants to the next, in a frame without edges, `(clips, 2)`, and its
    direction.
    """
    apart = np.diff(places, axis=1)
    median = np.median((apart + 0.5) % 1 - 0.5, axis=1)
    return np.concatenate([median, median / (np.linalg.norm(median, axis=1, keepdims=True) + 1e-3)], 1)


def test_the_order_of_places_solves_the_motion_set(sets: Sets) -> None:
    train, val = sets("ssv2")
    ordered, val_ordered = tracks(train), tracks(val)
    rng = np.random.default_rng(0)
    shuffled, val_shuffled = (rng.permuted(places, axis=1) for places in (ordered, val_ordered))
    assert linear_accuracy(steps(ordered), train.labels, steps(val_ordered), val.labels) > 3.5 * CHANCE["ssv2"]
    assert linear_accuracy(steps(shuffled), train.labels, steps(val_shuffled), val.labels) <= ALLOWED * CHANCE["ssv2"]


@pytest.mark.parametrize("dataset", list(COUNTS))
def test_mean_colour_tells_nothing(sets: Sets, dataset: str) -> None:
    train, val = sets(dataset)
    colour, val_colour = (np.array([frames.mean((0, 1, 2)) for frames in clips.frames]) for clips in (train, val))
    assert linear_accuracy(colour, train.labels, val_colour, val.labels) <= ALLOWED * CHANCE[dataset]
    assert neighbour_accuracy(colour, train.labels, val_colour, val.labels) <= ALLOWED * CHANCE[dataset]


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=str)
def test_every_direction_spends_the_same_time_everywhere(direction: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    places = np.concatenate([travel(rng, (24, 32), direction) for _ in range(20_000)]) / (24, 32) % 1
    share = np.histogram2d(places[:, 0], places[:, 1], 4, [(0, 1), (0, 1)])[0] / len(places)
    assert abs(share - 1 / 16).max() < 0.007


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=str)
def test_a_way_read_backwards_is_one_of_the_opposite_direction(direction: tuple[int, int]) -> None:
    there, back = (
        travel(np.random.default_rng(3), (24, 32), way) for way in (direction, (-direction[0], -direction[1]))
    )
    np.testing.assert_allclose(there - there[0], back[0] - back, atol=1e-4)
    assert (-direction[0], -direction[1]) in DIRECTIONS.values()
