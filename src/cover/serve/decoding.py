"""Decoding of uploaded files in separate processes, which are killed if a file takes too long.

The content of a file decides whether it is a video or an image. Its name and the client's content type have no
influence. Only containers and formats with a signature are accepted. `media.stream.CONTAINERS` and
`media.image.READERS` name those that are opened at all: none that names other files or starts another program.
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
    """A file to decode under each plan. A video is also decoded in each of `windows` equal parts."""

    path: str
    plans: tuple[ViewPlan, ...]
    windows: int = 0


@dataclass(frozen=True)
class DecodedFile:
    """The pixels of a file.

    `clips`: an array for each different plan, uint8 `(views, T, 3, size, size)`. Equal plans share an array.
    `place`: for each plan of the request, the index of its array in `clips`.
    `windows`: for each equal part of a video, a list like `clips`, but with one view per plan.
    `seconds`: length of a video; 0 for an image.
    `damage`: what is damaged in the file; None if nothing is.
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
        seconds = _seconds(probe(request.path, media, max_pixels=limits.pixels), media, limits)
        plans = [_for_media(plan, media) for plan in request.plans]
        different = list(dict.fromkeys(plans))
        clips, damage = read_views(request.path, media, different, seconds)
        windows = _windows(request, media, different, seconds)
    except MediaError as error:
        raise Refused(422, f"the file cannot be read: {error}") from None
    except OSError as error:  # for example, the client has disconnected and the file was removed
        raise Refused(422, f"the file cannot be read: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise _too_large(limits) from None
    return DecodedFile(media, seconds, clips, [different.index(plan) for plan in plans], windows, damage)


def _too_large(limits: Limits) -> Refused:
    return Refused(422, f"decoding needs more than {limits.memory >> 20} MB of memory")


def _seconds(record: Probe, media: Media, limits: Limits) -> float:
    """The length of a video in seconds: frames divided by frames per second, as in a manifest. 0 for an image."""
    if media == "image" or not record.fps:
        return 0.0
    seconds = record.frames / record.fps
    if max(seconds, record.duration) > limits.seconds:
        raise Refused(422, f"the video lasts {max(seconds, record.duration):.0f} s; the limit is {limits.seconds:g} s")
    return seconds


def _for_media(plan: ViewPlan, media: Media) -> ViewPlan:
    """The plan for a video or an image. An image has spatial views only."""
    if media == "video":
        return plan
    return replace(plan, sampling=replace(plan.sampling, kind="whole"), views=Views(1, plan.views.spatial))


def _windows(request: DecodeRequest, media: Media, plans: list[ViewPlan], seconds: float) -> list[list[np.ndarray]]:
    if media == "image":
        return []
    single, length = [replace(plan, views=ONE_VIEW) for plan in plans], seconds / max(1, request.windows)
    return [read_views(request.path, media, single, length, number * length)[0] for number in range(request.windows)]


# --- processes --------------------------------------------------------------------------------------------------------


class Decoders:
    """`workers` decoding processes, each with one file at a time. Several threads may call it at the same time.

    If a file crashes its process or takes too long, the file is refused and the process is replaced. Other files do not
    wait for it.
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
        """The number of processes that were killed or died."""
        return self.pool.replaced

    def __call__(self, request: DecodeRequest, deadline: float) -> DecodedFile:
        """Decode a file. Raises `Refused`, also if no process is free until `deadline`, a time of `time.monotonic`."""
        try:
            return self.pool.call(partial(decode, limits=self.limits), request, self.limits.decode_s, deadline)
        except (Refused, PoolError):
            raise
        except queue.Empty:
            raise late() from None
        except WorkerLost as lost:
            slow = f"decoding took longer than {self.limits.decode_s:g} s"
            raise Refused(422, slow if lost.timed_out else "the file crashed its decoder") from None
        except MemoryError:  # while the process sent its result
            raise _too_large(self.limits) from None
        except Exception:  # any error of a library, because of an unusual file
            raise Refused(422, "the file crashed its decoder") from None

    def close(self) -> None:
        """Kill all processes at once."""
        self.pool.close()


def _begin(memory: int) -> None:
    """Prepare a decoding process. `memory` is its limit in bytes."""
    # The process ignores SIGTERM, as it ignores Ctrl-C: the server answers its open requests before it ends.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    be_silent()
    torch.set_num_threads(1)
    _bound_resources(memory)


def _bound_resources(memory: int) -> None:
    """Limit this process: no writing of files, few open files, no core dump, and at most `memory` more bytes."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        present = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")  # bytes of address space now
    resource.setrlimit(resource.RLIMIT_AS, (present + memory, present + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


# --- videos and images by content -------------------------------------------------------------------------------------

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
# The first box of an ISO or QuickTime file.
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")
_STILL_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis")


def media_by_content(path: str) -> Media:
    """Whether the file at `path` is a video or an image. Raises `Refused` if it is neither."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head:
        raise Refused(422, "the file is empty")
    if head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if _begins_with_box(path, head):
        return "image" if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS else "video"
    is_avi = head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX")
    if head.startswith(_VIDEOS) or is_avi or _is_transport_stream(head):
        return _gif(path) if head.startswith(b"GIF8") else "video"
    raise Refused(415, "the file is neither a video nor an image of a known format")


def _begins_with_box(path: str, head: bytes) -> bool:
    """Whether the file is a series of boxes. A text may have the name of a box in the same place.

    The first box states its length. The name of the next box must follow there, or the end of the file.
    """
    length, name = int.from_bytes(head[:4], "big"), head[4:8]
    if name not in _BOXES:
        return False
    if name in (b"ftyp", b"moov", b"mdat"):  # the file may be cut off; a text would have a length of 500 MB or more
        return not head[:4].decode("latin-1").isprintable()
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not 8 <= length <= size:
            return False
        file.seek(length)
        return length == size or file.read(8)[4:8] in _BOXES


def _is_transport_stream(head: bytes) -> bool:
    """Whether the file is an MPEG transport stream: packets of 188 bytes, or of 192 with a time code before each."""
    return any(
        len(head) > first + 2 * size and {head[first], head[first + size], head[first + 2 * size]} == {0x47}
        for first, size in ((0, 188), (4, 192))
    )


def _gif(path: str) -> Media:
    """A GIF is a video if it has several frames, else an image."""
    try:
        with Image.open(path, formats=["GIF"]) as image:
            return "video" if getattr(image, "is_animated", False) else "image"
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise Refused(422, "the file cannot be read: damaged GIF") from None
