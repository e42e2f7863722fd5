"""What does an image show? Read through Pillow, upright, as RGB."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from cover.media.results import MAX_PIXELS, MediaError, Probe, check_size
from cover.media.source import Source, check_source, is_plain, read_source

warnings.filterwarnings("ignore", module=r"PIL\.")  # a reason per file reaches the user, never lines on the terminal
# What Pillow's readers are known to raise on damaged files.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def decode_image(path: Source, *, size_hint: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image as uint8 (H, W, 3) RGB, upright by its EXIF orientation. Raises MediaError.

    With `size_hint`, a JPEG is decoded at 1/2, 1/4 or 1/8 size where its short side stays at least that many pixels.
    """
    with open_image(path, max_pixels) as image:
        if size_hint:
            image.draft("RGB", (size_hint, size_hint))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(image.convert("RGB"))


def probe_image(path: Source, max_pixels: int) -> Probe:
    """Measure an image, decoding it at reduced size where its format can. Raises MediaError."""
    with open_image(path, max_pixels) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
        codec = (image.format or "").lower()
        image.draft("RGB", (1, 1))
        image.load()
    return Probe(1, 0.0, *((height, width) if turned else (width, height)), codec, 0.0, 0.0)


@contextmanager
def open_image(path: Source, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose pixels need not be decoded yet. Raises MediaError, also for what goes wrong while it is used."""
    check_source(path)
    try:
        with Image.open(os.fspath(path) if is_plain(path) else io.BytesIO(read_source(path))) as image:
            check_size(*image.size, max_pixels)
            yield image
    except Image.UnidentifiedImageError as error:
        raise MediaError("not an image that Pillow knows") from error
    except PermissionError as error:
        raise MediaError(f"cannot be read: {error.strerror}") from error
    except _DAMAGED as error:
        raise MediaError(f"damaged image: {error}") from error
