"""How do frames become a file, the same bytes every time?"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.codec.context import Flags
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from cover.sandbox.render import Pixels
from cover.sandbox.settings import FPS

# Suffix -> encoder and its options. One thread and "bitexact" keep times and random ids out of the bytes, and x264 looks
# no frame ahead: where it does, small frames come out different now and then. The webm set is the motion-led one: key frames only
# at one fixed quantiser, so that no frame carries a trace of the one before (see motion.py).
VIDEO = {
    ".mp4": ("libx264", {"preset": "veryfast", "crf": "20", "threads": "1", "g": str(FPS), "bf": "0",
                           "x264-params": "mbtree=0:rc-lookahead=0"}),
    ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "qmin": "20", "qmax": "20", "b": "0", "g": "1",
                             "threads": "1", "lag-in-frames": "0", "aq-mode": "0"}),
}  # fmt: skip
JPEG_QUALITY = 92


def encode(path: Path, frames: Pixels) -> None:
    """Write uint8 `(frames, H, W, 3)` as mp4 (h264), webm (VP9) or, one frame only, JPEG, by the suffix of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in VIDEO:
        _encode_video(path, frames)
    else:
        Image.fromarray(frames[0]).save(path, format="JPEG", quality=JPEG_QUALITY)


def _encode_video(path: Path, frames: Pixels) -> None:
    codec, options = VIDEO[path.suffix]
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=FPS, options=options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.flags |= Flags.bitexact
        converter = VideoReformatter()
        for number, pixels in enumerate(frames):
            frame = converter.reformat(VideoFrame.from_ndarray(pixels, format="rgb24"), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
