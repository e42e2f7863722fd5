"""Decoding of uploaded files: told apart by content, in processes that are ended where a file takes too long.

A file is a video or an image by what it holds; its name and what the client calls it count for nothing. Only containers
and formats with a signature of their own pass: libraries would take text for playlists, which name other files, and
hand some pictures to programs of the system.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from cover.console import be_silent
from cover.evaluation.protocol import ViewPlan, read_views
from cover.media.decode import MediaError, Probe, probe
from cover.media.sampling import Views
from cover.media.source import Media
from cover.processes import PoolError, ProcessPool, WorkerLost
from cover.serve.middleware import Limits, Refused, late

ONE_VIEW = Views(1, 1)


@dataclass(frozen=True)
class DecodeRequest:
    """A file to decode under each plan, and under each again in every one of `windows` equal parts of a video."""

    path: str
    plans: tuple[ViewPlan, ...]
    windows: int = 0


@dataclass(frozen=True)
class DecodedFile:
    """What a file shows. `clips`: for every plan uint8 `(views, T, 3, size, size)`; `windows`: the same of every part,
    one view each.

    Plans that are alike share one array: `clips` and each window hold the different ones, `place` which of them is each
    plan's. `seconds`: of a video, 0 of an image. `damage`: what is broken in it, None if nothing is.
    """

    media: Media
    seconds: float
    clips: list[np.ndarray]
    place: list[int]
    windows: list[list[np.ndarray]]
    damage: str | None


def decode(request: DecodeRequest, limits: Limits) -> DecodedFile:
    """Decode a file under all its plans. Raises `Refused`."""
    try:
        media = media_by_content(request.path)
        result = probe(request.path, media, max_pixels=limits.pixels)
        seconds = _seconds(result, media, limits)
        plans = [_for_media(plan, media) for plan in request.plans]
        different = list(dict.fromkeys(plans))
        clips, damage = read_views(request.path, media, different, seconds)
        windows = _windows(request, media, different, seconds)
    except MediaError as error:
        raise Refused(422, f"the file cannot be read: {error}") from None
    except OSError as error:  # its client may have left, and the file with it
        raise Refused(422, f"the file cannot be read: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise _too_large(limits) from None
    return DecodedFile(media, seconds, clips, [different.index(plan) for plan in plans], windows, damage)


def _too_large(limits: Limits) -> Refused:
    return Refused(422, f"decoding needs more than {limits.memory >> 20} MB of memory")


def _seconds(results: Probe, media: Media, limits: Limits) -> float:
    """How long a video is by a manifest's own measure, as in evaluation."""
    if media == "image" or not results.fps:
        return 0.0
    seconds = results.frames / results.fps
    if max(seconds, results.duration) > limits.seconds:
        raise Refused(422, f"the video lasts {max(seconds, results.duration):.0f} s; the limit is {limits.seconds:g} s")
    return seconds


def _for_media(plan: ViewPlan, media: Media) -> ViewPlan:
    """Of an image every plan takes its spatial views alone."""
    return (
        plan
        if media == "video"
        else replace(plan, sampling=replace(plan.sampling, kind="whole"), views=Views(1, plan.views.spatial))
    )


def _windows(request: DecodeRequest, media: Media, plans: list[ViewPlan], seconds: float) -> list[list[np.ndarray]]:
    if media == "image":
        return []
    single, length = [replace(plan, views=ONE_VIEW) for plan in plans], seconds / max(1, request.windows)
    return [read_views(request.path, media, single, length, number * length)[0] for number in range(request.windows)]


# --- processes


class Decoders:
    """`workers` decoding processes, each with one file at a time. Threads may call it side by side.

    A process that takes too long over a file, or dies of it, is replaced, and its file refused: no other file waits for
    it.
    """

    def __init__(self, workers: int, limits: Limits) -> None:
        self.limits = limits
        self.pool = ProcessPool(workers, partial(_begin, limits.memory), preload=__name__)
        try:
            self.pool.start()
        except BaseException:
            self.pool.close()
            raise

    @property
    def replaced(self) -> int:
        """Processes that were killed or died."""
        return self.pool.replaced

    def __call__(self, request: DecodeRequest, deadline: float) -> DecodedFile:
        """Raises `Refused`, also where no process comes free until `deadline` (of `time.monotonic`)."""
        try:
            return self.pool.call(partial(decode, limits=self.limits), request, self.limits.decode_s, deadline)
        except (Refused, PoolError):
            raise
        except queue.Empty:
            raise late() from None
        except WorkerLost as lost:
            reason = (
                f"decoding took longer than {self.limits.decode_s:g} s"
                if lost.timed_out
                else "the file crashed its decoder"
            )
            raise Refused(422, reason) from None
        except MemoryError:  # while the result was handed over
            raise _too_large(self.limits) from None
        except Exception:  # a library's, of a file that it was not made for
            raise Refused(422, "the file crashed its decoder") from None

    def close(self) -> None:
        """End all processes, and what they are doing."""
        self.pool.close()


def _begin(memory: int) -> None:
    """A decoding process ignores SIGTERM as it does Ctrl-C: the server finishes what it took in, and ends its processes
    last.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    be_silent()
    torch.set_num_threads(1)
    keep_safe_readers()
    _bound_resources(memory)


def _bound_resources(memory: int) -> None:
    """No file is written, few are open, no core is dumped, and no more memory is taken than `memory` bytes beyond what
    is there.
    """
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        chosen = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (chosen + memory, chosen + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


# --- videos and images by content

# of Pillow's; none starts a program
READERS = frozenset(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000"])
_IMAGES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"P5",
    b"P6",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
)
_VIDEOS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"0&\xb2u\x8ef\xcf\x11",  # ASF, WMV
    b"OggS",
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG video
    b"YUV4MPEG2 ",
    b"GIF8",
)
# what an ISO or QuickTime file begins with
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")
_STILL_BRANDS = (b"avif", b"avis", b"mif1")


def media_by_content(path: str) -> Media:
    """Raises `Refused` for what is neither."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head:
        raise Refused(422, "the file is empty")
    if head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if head[4:8] in _BOXES:
        return "image" if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS else "video"
    if (
        head.startswith(_VIDEOS)
        or (head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"))
        or _is_transport_stream(head)
    ):
        return _gif(path) if head.startswith(b"GIF8") else "video"
    raise Refused(415, "the file is neither a video nor an image of a known format")


def _is_transport_stream(head: bytes) -> bool:
    """Packets of 188 bytes, or of 192 with a time code in front."""
    return any(
        len(head) > first + 2 * size and {head[first], head[first + size], head[first + 2 * size]} == {0x47}
        for first, size in ((0, 188), (4, 192))
    )


def _gif(path: str) -> Media:
    """A GIF of several frames is a video."""
    try:
        with Image.open(path, formats=["GIF"]) as image:
            return "video" if getattr(image, "is_animated", False) else "image"
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise Refused(422, "the file cannot be read: damaged GIF") from None


def keep_safe_readers() -> None:
    """From now on this process opens pictures by `READERS` alone."""
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in READERS]
