"""Image decoding with Pillow, and folders of numbered images as videos.

Images come back upright and in RGB. A folder has 12 frames per second, the rate of Something-Something's frames.
`cover.mixture.loader.read_pixels` makes an image a clip of one frame.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from cover.media.source import (
    MAX_PIXELS,
    TOLERANCE,
    AnyPath,
    Decoded,
    MediaError,
    Probe,
    Source,
    check_size,
    check_source,
    is_plain,
    read_source,
)

warnings.filterwarnings("ignore", module=r"PIL\.")  # users get one reason per file instead of lines on the terminal
# Exceptions that Pillow's readers raise on damaged files.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def decode_image(path: Source, *, size_hint: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image as uint8 `(H, W, 3)` RGB, upright by its EXIF orientation. Raises MediaError.

    `size_hint`: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, if its short side still has at least
    this many pixels.
    """
    with open_image(path, max_pixels) as image:
        if size_hint:
            image.draft("RGB", (size_hint, size_hint))
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels as uint8 `(H, W, 3)`."""
    if image.mode.startswith("I;16"):  # Pillow clips 16-bit grey at 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def picture_of(image: Image.Image) -> np.ndarray:
    """An image in memory as `decode_image` returns it. Pillow reads its file only now. Raises MediaError."""
    try:
        return _rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(f"damaged image: {error}", getattr(error, "errno", None)) from error


def probe_image(path: Source, max_pixels: int) -> Probe:
    """The properties of an image, which is decoded at reduced size if its format allows it. Raises MediaError."""
    with open_image(path, max_pixels) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 swap width and height
        codec = (image.format or "").lower()
        image.draft("RGB", (1, 1))
        image.load()
    return Probe(1, 0.0, *((height, width) if turned else (width, height)), codec, 0.0, 0.0)


@contextmanager
def open_image(path: Source, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels. Raises MediaError, also for errors inside the `with` block."""
    check_source(path)
    try:
        with Image.open(os.fspath(path) if is_plain(path) else io.BytesIO(read_source(path))) as image:
            check_size(*image.size, max_pixels)
            yield image
    except Image.UnidentifiedImageError as error:
        raise MediaError("not an image that Pillow knows") from error
    except PermissionError as error:
        raise MediaError(f"cannot be read: {error.strerror}", error.errno) from error
    except _DAMAGED as error:
        raise MediaError(f"damaged image: {error}", getattr(error, "errno", None)) from error


# --- folders of numbered images ---

FOLDER_RATE = 12.0  # frames per second; a folder does not store its rate
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def probe_folder(path: AnyPath, max_pixels: int) -> Probe:
    """The properties of a folder of images. The first image is decoded, the others are counted. Raises MediaError."""
    times, files = numbered_images(path)
    first = probe_image(files[0], max_pixels)
    fps = (len(times) - 1) / times[-1] if len(times) > 1 else FOLDER_RATE
    return Probe(len(files), fps, first.width, first.height, first.codec, times[-1] + 1 / FOLDER_RATE, 0.0)


def decode_folder(path: AnyPath, wanted: Sequence[float], size_hint: int | None, max_pixels: int) -> Decoded:
    """The images shown at the times `wanted`, in seconds.

    Raises MediaError if one of these images is damaged, or has another size than the others.
    """
    times, files = numbered_images(path)
    shown = [max(0, bisect_right(times, time + TOLERANCE) - 1) for time in wanted]
    numbers, places = np.unique(shown, return_inverse=True)
    pictures = [frame_file(files[number], size_hint, max_pixels) for number in numbers]
    sizes = {picture.shape[1::-1] for picture in pictures}
    if len(sizes) > 1:
        raise MediaError(
            f"frames of different sizes: {' and '.join(f'{width}x{height}' for width, height in sorted(sizes))}"
        )
    return Decoded(np.stack(pictures), places, None)


def frame_file(file: str, size_hint: int | None, max_pixels: int) -> np.ndarray:
    """One image, uint8 `(H, W, 3)`, scaled down to a short side of `size_hint`. The MediaError names the file."""
    try:
        picture = decode_image(file, size_hint=size_hint, max_pixels=max_pixels)
    except MediaError as error:
        raise MediaError(f"{os.path.basename(file)}: {error}", error.errno) from error
    short = min(picture.shape[:2])
    if size_hint and size_hint < short:
        height, width = (round(side * size_hint / short) for side in picture.shape[:2])
        picture = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    return picture


def numbered_images(folder: AnyPath) -> tuple[list[float], list[str]]:
    """The times of the images of a folder, in seconds after the first image, and their paths.

    The order is that of the last number in each file name. If a number is missing, the image before it is shown longer.
    Raises MediaError if there is no numbered image, or if two images have the same number.
    """
    try:
        names = [name for name in os.listdir(os.fspath(folder)) if name.lower().endswith(_ENDINGS) and name[0] != "."]
    except OSError as error:
        raise MediaError(error.strerror or "cannot be listed", error.errno) from error
    files: dict[int, str] = {}
    for name in names:
        if digits := re.findall("[0-9]+", name.rpartition(".")[0]):
            other = files.setdefault(int(digits[-1]), name)
            if other != name:
                raise MediaError(f"two images of the same number: {min(name, other)} and {max(name, other)}")
    if not files:
        raise MediaError("a folder without numbered images (00001.jpg, img_00001.png, ...)")
    numbers = sorted(files)
    times = [(number - numbers[0]) / FOLDER_RATE for number in numbers]
    return times, [os.path.join(folder, files[number]) for number in numbers]
