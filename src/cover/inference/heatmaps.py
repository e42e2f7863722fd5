"""Pictures of heat maps: a contact sheet of a clip's frames, and a video of them.

All frames share one colour scale, from no heat to the largest heat of a patch, so that frames can be compared. The
lightness follows the square root of the heat. So weak heat over many patches is visible beside one patch with strong
heat. The scale also works in print and for readers who do not distinguish red and green.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import takewhile
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = np.array(
    [(0, 0, 4), (51, 10, 95), (120, 28, 109), (187, 55, 84), (237, 105, 37), (252, 181, 25), (252, 255, 164)],
    np.float32,
)
INK, SOFT, LINE, PAPER, BAR = (28, 36, 48), (96, 106, 122), (213, 218, 226), (255, 255, 255), (37, 99, 201)
SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf")
COLUMNS = 8  # frames in a row
TILE, IMAGE_TILE, CLIP_TILE = 168, 336, 288  # px; side of a frame
GAP, MARGIN = 8, 24  # px
BARS = 46  # px; height of the bar of a frame with the largest heat, or with twice the mean if that is more
LONGEST_S = 1.0  # the longest time for a frame of the video; the shortest is a quarter of it
CLOCK = 1000  # ticks of the video's clock per second


@dataclass(frozen=True)
class Caption:
    """The text beside the frames.

    It has the file, the head, the explained class with its probability, the most likely classes with theirs (`top`),
    and a note on the method.
    """

    file: str
    head: str
    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]
    note: str


def colours(light: np.ndarray) -> np.ndarray:
    """The colours at positions on the scale from 0 to 1, `(...)`: float32 RGB from 0 to 255, `(..., 3)`."""
    place = light * (len(SCALE) - 1)
    below = np.minimum(place.astype(int), len(SCALE) - 2)
    part = (place - below)[..., None]
    return (SCALE[below] * (1 - part) + SCALE[below + 1] * part).astype(np.float32)


def with_heat(frames: np.ndarray, heat: np.ndarray, side: int) -> list[Image.Image]:
    """Frames, uint8 `(T, 3, size, size)`, in grey with their heat `(T, h, w)` over them, as squares of `side` px."""
    most = heat.max() or 1.0
    pictures = []
    for frame, cells in zip(pictures_of(frames, side), heat, strict=True):
        smooth = Image.fromarray((cells / most).astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
        light = np.sqrt(np.asarray(smooth))
        grey, opacity = 0.6 * np.asarray(frame.convert("L"), np.float32)[..., None], 0.85 * light[..., None]
        pictures.append(Image.fromarray(((1 - opacity) * grey + opacity * colours(light)).astype(np.uint8)))
    return pictures


def pictures_of(frames: np.ndarray, side: int) -> list[Image.Image]:
    """Frames, uint8 `(T, 3, size, size)`, as squares of `side` px."""
    pictures = (Image.fromarray(frame.transpose(1, 2, 0)) for frame in frames)
    return [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in pictures]


# --- contact sheet ----------------------------------------------------------------------------------------------------


def contact_sheet(caption: Caption, frames: np.ndarray, heat: np.ndarray, times: Sequence[float]) -> Image.Image:
    """A picture of all frames of a clip. Below each frame are its heat map and a bar with the sum of its heat.

    `frames`: uint8 `(T, 3, size, size)`; `heat`: `(T, h, w)`; `times`: in seconds.
    """
    side = TILE if len(frames) > 1 else IMAGE_TILE
    columns = min(COLUMNS, len(frames))
    width = 2 * MARGIN + max(columns * (side + GAP) - GAP, 2 * side + GAP, 760)
    below = BARS + 44 if len(frames) > 1 else 0
    top, row = 74 + 26 * len(caption.top) + 24, 2 * side + GAP + below + 20
    sheet = Image.new("RGB", (width, top + row * -(-len(frames) // columns) + 30), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw, caption, width)
    _draw_legend(sheet, draw, heat, width)
    weights = heat.sum((1, 2))
    for number, pair in enumerate(zip(pictures_of(frames, side), with_heat(frames, heat, side), strict=True)):
        left, up = MARGIN + number % columns * (side + GAP), top + number // columns * row
        beside = len(frames) == 1  # the heat map of an image is beside it, not below
        for place, picture in enumerate(pair):
            sheet.paste(picture, (left + place * (side + GAP) * beside, up + place * (side + GAP) * (not beside)))
        if not beside:
            place_of_bar = (left, up + 2 * side + GAP + 8, side)
            _draw_weight(draw, place_of_bar, float(weights[number]), weights, f"{times[number]:.2f} s")
    if len(frames) == 1:
        sheet = sheet.crop((0, 0, width, top + side + 44))
        draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, sheet.height - 28), caption.note, 13, SOFT, width - 2 * MARGIN)
    return sheet


def _draw_head(draw: ImageDraw.ImageDraw, caption: Caption, width: int) -> None:
    """The title, and the most likely classes with their probabilities."""
    _write(draw, (MARGIN, 16), f'{caption.head}: why "{caption.class_name}"?', 22, INK, width - 2 * MARGIN)
    _write(draw, (MARGIN, 46), caption.file, 13, SOFT, width - 2 * MARGIN)
    names, bars = MARGIN, MARGIN + 330
    for number, (name, score) in enumerate(caption.top):
        y, is_explained = 74 + 26 * number, name == caption.class_name
        _write(draw, (names, y), name, 14, INK if is_explained else SOFT, 318)
        draw.rounded_rectangle((bars, y + 3, bars + 160, y + 15), 3, LINE)
        if score > 0.01:
            draw.rounded_rectangle((bars, y + 3, bars + round(160 * score), y + 15), 3, BAR if is_explained else SOFT)
        _write(draw, (bars + 170, y), f"{score:.1%}", 14, INK if is_explained else SOFT)


def _draw_legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, heat: np.ndarray, width: int) -> None:
    """The colour scale. Heat is in multiples of the mean over all patches."""
    ramp = colours(np.linspace(0, 1, 180)[None].repeat(12, 0))
    left = width - MARGIN - 180
    _write(draw, (left, 74), "heat of a patch / mean heat", 12, SOFT)
    sheet.paste(Image.fromarray(ramp.astype(np.uint8)), (left, 94))
    if not heat.any():
        _write(draw, (left, 110), "nothing speaks for the class", 12, SOFT)
        return
    most = float(heat.max()) * heat.size
    for place, multiple, anchor in ((0, 0.0, "la"), (90, most / 4, "ma"), (180, most, "ra")):
        _write(draw, (left + place, 110), f"{multiple:.3g}x", 12, SOFT, anchor=anchor)
    if len(heat) > 1:
        _write(draw, (left, 134), "bar: heat in the frame;", 12, SOFT)
        _write(draw, (left, 150), "line: mean over frames", 12, SOFT)


def _draw_weight(
    draw: ImageDraw.ImageDraw, place: tuple[int, int, int], weight: float, weights: np.ndarray, time: str
) -> None:
    """The heat of a frame as a bar, with a line at the mean over all frames. `place`: left, top and width in px."""
    left, top, width = place
    full = max(float(weights.max()), 2 / len(weights))
    draw.rectangle((left, top, left + width - 1, top + BARS), (244, 246, 249))
    draw.rectangle((left, top + BARS - round(BARS * weight / full), left + width - 1, top + BARS), BAR)
    mean = top + BARS - round(BARS / len(weights) / full)
    draw.line((left, mean, left + width - 1, mean), INK, 1)
    _write(draw, (left, top + BARS + 6), f"{weight:.1%}", 14, INK)
    _write(draw, (left + width, top + BARS + 6), time, 14, SOFT, anchor="ra")


# --- text -------------------------------------------------------------------------------------------------------------


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    width: int | None = None,
    anchor: str = "la",
) -> None:
    """Draw text. If it is wider than `width` px, it is shortened and ends with "..."."""
    font = _font(size, text.isascii())
    if font is None:  # without accents rather than with empty boxes
        text, font = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode(), _font(size, True)
    assert font
    if width is not None:
        text = _fitted(text, font, width)
    draw.text(place, text, colour, font, anchor=anchor)


@cache
def _font(size: int, plain: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    """Pillow's own font for plain ASCII text, which is all that it has. Else a font of the system, or None."""
    if plain:
        return ImageFont.load_default(size)
    for name in SYSTEM_FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return None


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if len(text) < width and font.getlength(text) <= width:
        return text
    lengths = range(1, min(len(text), width))
    fitting = list(takewhile(lambda length: font.getlength(f"{text[:length]}...") <= width, lengths))
    return f"{text[: len(fitting)].rstrip()}..."


# --- video ------------------------------------------------------------------------------------------------------------


def write_clip(path: Path, caption: Caption, frames: np.ndarray, heat: np.ndarray, times: Sequence[float]) -> None:
    """Write an MP4 with the frames, their heat maps, and the heat of each frame as bars.

    Frames are shown at their times, but slower if they follow each other fast. Arguments as for `contact_sheet`.
    """
    side, weights = CLIP_TILE, heat.sum((1, 2))
    pairs = list(zip(pictures_of(frames, side), with_heat(frames, heat, side), strict=True))
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 2 * side + GAP, side + 100, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        for number, (start, pair) in enumerate(zip(_shown_at(times), [*pairs, pairs[-1]])):
            picture = _clip_picture(caption, pair, weights, min(number, len(pairs) - 1), times)
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = start, Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _shown_at(times: Sequence[float]) -> list[int]:
    """The start of each frame in ticks, and the end of the last frame.

    Players show the last frame of a video for no time, so the last frame is repeated at its end.
    """
    steps = [*np.diff(times), float(np.median(np.diff(times)))]
    ticks = [round(CLOCK * min(LONGEST_S, max(LONGEST_S / 4, float(step)))) for step in steps]
    return [0, *np.cumsum(ticks).tolist()]


def _clip_picture(
    caption: Caption, pair: tuple[Image.Image, Image.Image], weights: np.ndarray, now: int, times: Sequence[float]
) -> Image.Image:
    side = pair[0].width
    picture = Image.new("RGB", (2 * side + GAP, side + 100), PAPER)
    draw = ImageDraw.Draw(picture)
    title = f"{caption.head}: {caption.class_name} {caption.probability:.1%}"
    _write(draw, (8, 8), title, 16, INK, picture.width - 16)
    for place, part in enumerate(pair):
        picture.paste(part, (place * (side + GAP), 34))
    top, full, step = side + 42, max(float(weights.max()), 2 / len(weights)), (picture.width - 16) / len(weights)
    for number, weight in enumerate(weights):
        left, right = round(8 + number * step), round(8 + (number + 1) * step) - 2
        bar_top, colour = top + 32 - round(32 * float(weight) / full), BAR if number == now else (150, 180, 228)
        draw.rectangle((left, top, right, top + 32), (244, 246, 249))
        draw.rectangle((left, bar_top, right, top + 32), colour)
    _write(draw, (8, top + 37), f"{times[now]:.2f} s, {float(weights[now]):.1%} of the heat", 13, SOFT)
    return picture
