"""What does a folder of numbered images show, as the video that it is? 12 frames a second, as Something-Something has."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cover.media.images import decode_image, probe_image
from cover.media.results import Decoded, MediaError, Probe
from cover.media.source import AnyPath

FOLDER_RATE = 12.0  # frames per second of a folder of images, which does not say
TOLERANCE = 1e-3  # seconds, as in a video
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def probe_folder(path: AnyPath, max_pixels: int) -> Probe:
    """As of a video: the first frame is decoded, the rest counted. Raises MediaError."""
    times, files = numbered_images(path)
    first = probe_image(files[0], max_pixels)
    fps = (len(times) - 1) / times[-1] if len(times) > 1 else FOLDER_RATE
    return Probe(len(files), fps, first.width, first.height, first.codec, times[-1] + 1 / FOLDER_RATE, 0.0)


def decode_folder(path: AnyPath, wanted: Sequence[float], size_hint: int | None, max_pixels: int) -> Decoded:
    """The images shown at `wanted` seconds. Raises MediaError where one of them is damaged or of another size than the rest."""
    times, files = numbered_images(path)
    shown = [max(0, bisect_right(times, time + TOLERANCE) - 1) for time in wanted]
    numbers, places = np.unique(shown, return_inverse=True)
    pictures = [frame_file(files[number], size_hint, max_pixels) for number in numbers]
    sizes = {picture.shape[1::-1] for picture in pictures}
    if len(sizes) > 1:
        raise MediaError(f"frames of different sizes: {' and '.join(f'{width}x{height}' for width, height in sorted(sizes))}")
    return Decoded(np.stack(pictures), places, None)


def frame_file(file: str, size_hint: int | None, max_pixels: int) -> np.ndarray:
    """One image, uint8 (H, W, 3), scaled down to a short side of `size_hint`. Raises MediaError that names the file."""
    try:
        picture = decode_image(file, size_hint=size_hint, max_pixels=max_pixels)
    except MediaError as error:
        raise MediaError(f"{os.path.basename(file)}: {error}") from error
    short = min(picture.shape[:2])
    if size_hint and size_hint < short:
        height, width = (round(side * size_hint / short) for side in picture.shape[:2])
        picture = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    return picture


def numbered_images(folder: AnyPath) -> tuple[list[float], list[str]]:
    """When each image of a folder is shown, in seconds after the first, and the files, by the last number in their names: a number
    that is left out leaves its time to the frame before."""
    try:
        names = [name for name in os.listdir(os.fspath(folder)) if name.lower().endswith(_ENDINGS) and name[0] != "."]
    except OSError as error:
        raise MediaError(error.strerror or "cannot be listed") from error
    files: dict[int, str] = {}
    for name in names:
        if digits := re.findall("[0-9]+", name.rpartition(".")[0]):
            other = files.setdefault(int(digits[-1]), name)
            if other != name:
                raise MediaError(f"two images of the same number: {min(name, other)} and {max(name, other)}")
    if not files:
        raise MediaError("a folder without numbered images (00001.jpg, img_00001.png, ...)")
    numbers = sorted(files)
    return [(number - numbers[0]) / FOLDER_RATE for number in numbers], [os.path.join(folder, files[number]) for number in numbers]
