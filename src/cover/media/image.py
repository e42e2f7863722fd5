"""Image decoding with Pillow, and folders of numbered images as videos.

Images come back upright and in 8-bit RGB. Transparent parts show `source.BACKGROUND`, as in videos. Pixels of 16 bits
keep their highest 8 bits. Other numbers (32-bit integers, floating point) are scaled so that the lowest value of the
picture becomes black and the highest white. A folder has 12 frames per second, the rate of Something-Something's
frames. `cover.mixture.loader.read_pixels` makes an image a clip of one frame.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from importlib import import_module

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
    decoder_errors,
    is_plain,
    over_background,
    read_source,
)

warnings.filterwarnings("ignore", module=r"PIL\.")  # users get one reason per file instead of lines on the terminal
# The readers of Pillow that may open a file. They read the file itself and start no other program. HEIF is a plugin's.
READERS = (
    *("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "PPM", "JPEG2000"),
    *("TGA", "SGI", "PCX", "PSD", "QOI", "ICO", "DDS"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


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
    """The pixels as uint8 `(H, W, 3)`. Raises MediaError."""
    if image.mode[0] in "IF":  # Pillow clips these at 255
        return np.repeat(_eight_bits(image)[..., None], 3, axis=2)
    if image.has_transparency_data:
        return over_background(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits, as uint8 `(H, W)`. Raises MediaError if no value is a number."""
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = _tiff_bits(image) or 16
        return np.clip(values.astype(np.int64) >> (bits - 8), 0, 255).astype(np.uint8)
    finite = np.isfinite(values)
    if not finite.any():
        raise MediaError("no pixel has a number as its value")
    values = np.where(finite, values, 0).astype(np.float64)
    low, high = values[finite].min(), values[finite].max()
    return np.rint(np.clip((values - low) / ((high - low) or 1.0), 0, 1) * 255).astype(np.uint8)


def _tiff_bits(image: Image.Image) -> int | None:
    """Bits of a grey value that a TIFF file states, such as 12; None for other files."""
    bits = getattr(image, "tag_v2", {}).get(258)
    return bits[0] if isinstance(bits, tuple) else bits


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
    file = os.fspath(path) if is_plain(path) else io.BytesIO(read_source(path))
    with decoder_errors("damaged image"):
        try:
            with Image.open(file, formats=_readers()) as image:
                check_size(*image.size, max_pixels)
                yield image
        except Image.UnidentifiedImageError as error:
            raise MediaError(_unknown(file)) from error
        except PermissionError as error:
            raise MediaError(f"cannot be read: {error.strerror}", error.errno) from error


@lru_cache(maxsize=1)
def _readers() -> tuple[str, ...]:
    """The names in `READERS` that this installation of Pillow has."""
    for plugin in ("pillow_heif", "pi_heif"):
        with suppress(ImportError):
            import_module(plugin).register_heif_opener()
            break
    Image.init()
    return tuple(name for name in READERS if name in Image.OPEN)


def _unknown(file: str | io.BytesIO) -> str:
    """The reason why Pillow does not know a file."""
    try:
        with open(file, "rb") if isinstance(file, str) else nullcontext(file) as source:
            source.seek(0)
            head = source.read(12)
    except OSError:
        head = b""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in _readers():
        return "a HEIC image, which takes a plugin: pip install pillow-heif, then cover index --force"
    return "not an image that Pillow knows"


# --- folders of numbered images ---

FOLDER_RATE = 12.0  # frames per second; a folder does not store its rate
_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp")


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
