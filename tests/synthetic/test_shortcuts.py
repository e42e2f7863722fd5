"""No shortcut: what the motion set cannot be solved by, and, as controls, what the sets can be solved by.

Frames of 24 x 32 pixels keep this quick; the motion set is encoded and decoded, so that what the codec adds is part of
the test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from cover.synthetic.content import CLASSES, DIRECTIONS, DRAWERS, class_of, draw_sample, travel
from cover.synthetic.render import draw_pan, encode
from cover.synthetic.settings import DIALS, Settings, dials

# `clear` has clean pictures of full contrast, and the dials of movement and shape at 1: what these dials could show is
# seen best there.
SETTINGS = {
    "hard": Settings(height=24, width=32, **dials("hard")),
    "easy": Settings(height=24, width=32, **dials("easy")),
    "clear": Settings(
        height=24,
        width=32,
        **dials("easy", shake=0.5, small_objects=1, tilt=1, occlusion=1, pan=1, uneven_speed=1),
    ),
}
COUNTS = {"kinetics": (480, 320), "ssv2": (640, 320), "moments": (320, 320), "imagenet": (960, 480)}
FEW = (240, 120)  # clips for what is plain to see
CHANCE = {dataset: 1 / len(CLASSES[dataset]) for dataset in COUNTS}
ALLOWED = 1.5
BATCH = 48
DIFFICULT = pytest.mark.parametrize("data", ["hard", pytest.param("clear", marks=pytest.mark.full)])


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


Sets = Callable[[str, str], tuple[Clips, Clips]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, read_file: Callable[[Path], np.ndarray]) -> Sets:
    """Data set and name in `SETTINGS` -> (train, val), each made once."""
    folder = tmp_path_factory.mktemp("motion")

    def frames(dataset: str, data: str, split: str, index: int) -> np.ndarray:
        drawn = draw_sample(SETTINGS[data], dataset, split, index)
        if dataset != "ssv2":
            return drawn
        path = folder / f"{data}{split}{index}.webm"
        encode(path, drawn)
        return read_file(path)

    def clips(dataset: str, data: str, split: str, count: int) -> Clips:
        labels = [CLASSES[dataset].index(class_of(SETTINGS[data], dataset, index)) for index in range(count)]
        return Clips([frames(dataset, data, split, index) for index in range(count)], np.array(labels))

    @cache
    def get(dataset: str, data: str) -> tuple[Clips, Clips]:
        train, val = FEW if (dataset, data) == ("ssv2", "easy") else COUNTS[dataset]
        return clips(dataset, data, "train", train), clips(dataset, data, "val", val)

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


@DIFFICULT
@pytest.mark.parametrize(
    "frames", [pytest.param(1, marks=pytest.mark.full, id="one_frame"), pytest.param(8, id="order_free")]
)
def test_motion_is_not_in_frames_without_their_order(sets: Sets, frames: int, data: str) -> None:
    train, val = sets("ssv2", data)
    net = train_frame_net(train, frames, steps=200 if frames == 1 else 100)
    assert frame_accuracy(net, val, frames) <= ALLOWED * CHANCE["ssv2"]


@DIFFICULT
def test_motion_is_not_in_a_thumbnail(sets: Sets, data: str) -> None:
    small, val_small = (thumbnails(clips) for clips in sets("ssv2", data))
    train, val = sets("ssv2", data)
    fit = make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(small, train.labels)
    assert fit.score(val_small, val.labels) <= ALLOWED * CHANCE["ssv2"]
    assert neighbour_accuracy(small, train.labels, val_small, val.labels) <= ALLOWED * CHANCE["ssv2"]


def thumbnails(clips: Clips) -> np.ndarray:
    """The middle frames at 12 x 16 pixels, `(clips, 576)`."""
    middle = np.stack([frames[len(frames) // 2] for frames in clips.frames]).astype(np.float64)
    return middle.reshape(len(middle), 12, 2, 16, 2, 3).mean((2, 4)).reshape(len(middle), -1)


def test_the_same_frame_classifier_solves_the_appearance_set(sets: Sets) -> None:
    train, val = sets("kinetics", "easy")
    assert frame_accuracy(train_frame_net(train, 1, steps=200), val, 1) > 3 * CHANCE["kinetics"]


def steps(places: np.ndarray) -> np.ndarray:
    """The median step from one of eight instants to the next, in a frame without edges, `(clips, 2)`, and its
    direction.
    """
    apart = np.diff(places, axis=1)
    median = np.median((apart + 0.5) % 1 - 0.5, axis=1)
    return np.concatenate([median, median / (np.linalg.norm(median, axis=1, keepdims=True) + 1e-3)], 1)


@pytest.mark.parametrize(("data", "times_chance"), [("easy", 5), ("hard", 2.5)])
def test_the_order_of_places_solves_the_motion_set(sets: Sets, data: str, times_chance: float) -> None:
    train, val = sets("ssv2", data)
    ordered, val_ordered = tracks(train), tracks(val)
    rng = np.random.default_rng(0)
    shuffled, val_shuffled = (rng.permuted(places, axis=1) for places in (ordered, val_ordered))
    assert linear_accuracy(steps(ordered), train.labels, steps(val_ordered), val.labels) > times_chance * CHANCE["ssv2"]
    assert linear_accuracy(steps(shuffled), train.labels, steps(val_shuffled), val.labels) <= ALLOWED * CHANCE["ssv2"]


@pytest.mark.parametrize("dataset", list(COUNTS))
def test_mean_colour_tells_nothing(sets: Sets, dataset: str) -> None:
    train, val = sets(dataset, "hard")
    colour, val_colour = (np.array([frames.mean((0, 1, 2)) for frames in clips.frames]) for clips in (train, val))
    assert linear_accuracy(colour, train.labels, val_colour, val.labels) <= ALLOWED * CHANCE[dataset]
    assert neighbour_accuracy(colour, train.labels, val_colour, val.labels) <= ALLOWED * CHANCE[dataset]


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=str)
@pytest.mark.parametrize("uneven_speed", [0.0, 1.0])
def test_every_direction_spends_the_same_time_everywhere(direction: tuple[int, int], uneven_speed: float) -> None:
    rng = np.random.default_rng(0)
    places = np.concatenate([travel(rng, (24, 32), direction, uneven_speed) for _ in range(20_000)]) / (24, 32) % 1
    share = np.histogram2d(places[:, 0], places[:, 1], 4, [(0, 1), (0, 1)])[0] / len(places)
    assert abs(share - 1 / 16).max() < 0.007


def test_an_uneven_movement_never_turns_back_and_is_as_likely_backwards() -> None:
    rng = np.random.default_rng(0)
    done = []  # fractions of the way at a quarter, at half and at three quarters of the time
    for _ in range(8_000):
        way = travel(rng, (24, 32), (0, 1), uneven_speed=1.0)[:, 1].astype(float)
        assert (np.diff(way) > 0).all()
        done.append(np.interp([0.25, 0.5, 0.75], np.linspace(0, 1, len(way)), (way - way[0]) / (way[-1] - way[0])))
    forwards, backwards = np.array(done), 1 - np.array(done)[:, ::-1]
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(forwards, levels, 0), np.quantile(backwards, levels, 0), atol=0.01)
    assert forwards.std(0).min() > 0.05


def test_a_pan_is_as_likely_backwards_and_in_every_direction() -> None:
    rng = np.random.default_rng(0)
    pans = np.stack([draw_pan(rng, 9, 10.0) for _ in range(20_000)])
    assert np.hypot(*(pans[:, -1] - pans[:, 0]).T).max() <= 10
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(pans, levels, 0), np.quantile(pans[:, ::-1], levels, 0), atol=0.08)
    angles = np.arctan2(*(pans[:, -1] - pans[:, 0]).T)
    assert abs(np.histogram(angles, 8, (-np.pi, np.pi))[0] / len(pans) - 1 / 8).max() < 0.01


@pytest.mark.parametrize("dial", DIALS)
def test_nothing_but_the_movement_depends_on_the_direction(dial: str) -> None:
    """The same random numbers give the same scene and the same camera for every class."""
    settings = Settings(height=24, width=32, **dials("hard", **{dial: 1.0}))
    draws = [DRAWERS["ssv2"](np.random.default_rng(5), settings, name) for name in DIRECTIONS]
    scene, centres, camera = draws[0]
    for other, other_centres, other_camera in draws[1:]:
        for field in ("background", "sprite", "foreground"):
            np.testing.assert_array_equal(getattr(scene, field), getattr(other, field))
        np.testing.assert_array_equal(camera, other_camera)
        np.testing.assert_array_equal(centres[0], other_centres[0])
        assert abs(centres[-1] - other_centres[-1]).max() > 1


@pytest.mark.parametrize("dial", DIALS)
def test_a_rising_movement_is_a_falling_one_backwards(dial: str) -> None:
    settings = Settings(height=24, width=32, **dials("hard", **{dial: 1.0}))
    rising, falling = (
        DRAWERS["moments"](np.random.default_rng(5), settings, f"flag+{way}") for way in ("rising", "falling")
    )
    np.testing.assert_array_equal(rising[1], falling[1][::-1])
    np.testing.assert_array_equal(rising[2], falling[2])
    np.testing.assert_array_equal(rising[0].background, falling[0].background)


@pytest.mark.parametrize("uneven_speed", [0.0, 1.0])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=str)
def test_a_way_read_backwards_is_one_of_the_opposite_direction(direction: tuple[int, int], uneven_speed: float) -> None:
    there, back = (
        travel(np.random.default_rng(3), (24, 32), way, uneven_speed)
        for way in (direction, (-direction[0], -direction[1]))
    )
    np.testing.assert_allclose(there - there[0], back[0] - back, atol=1e-4)
    assert (-direction[0], -direction[1]) in DIRECTIONS.values()
