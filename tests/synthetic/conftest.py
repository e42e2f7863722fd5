"""What the sandbox's tests share: files read by PyAV and Pillow themselves, not by the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image

Read = Callable[[Path], np.ndarray]


def read(path: Path) -> np.ndarray:
    """All frames of a file, uint8 `(frames, H, W, 3)`; an image is one frame."""
    if path.suffix in (".JPEG", ".jpg"):
        return np.asarray(Image.open(path))[None]
    with av.open(str(path)) as container:
        convert = VideoReformatter().reformat
        container.streams.video[0].thread_type = "NONE"
        return np.stack([convert(frame, format="rgb24").to_ndarray() for frame in container.decode(video=0)])


@pytest.fixture(scope="session")
def read_file() -> Read:
    return read
