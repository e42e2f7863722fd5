"""Which pixels does an uploaded file show? Decoded in processes that are killed where a file takes too long."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from cover.console import be_silent
from cover.datasets.manifest import Media
from cover.evaluation.protocol import ViewPlan, read_views
from cover.inference.serve.limits import Limits, Refused, late
from cover.inference.serve.magic import keep_safe_readers, media_by_content
from cover.inference.serve.processes import process_context
from cover.machine import end_with_parent
from cover.media.clips import Views
from cover.media.decode import MediaError, Probe, probe

START_S = 120.0  # a first process imports torch on a machine that may be busy
ONE_VIEW = Views(1, 1)


@dataclass(frozen=True)
class Job:
    """A file to decode under each plan, and under each again in every one of `windows` equal parts of a video."""

    path: str
    plans: tuple[ViewPlan, ...]
    windows: int = 0


@dataclass(frozen=True)
class Pixels:
    """What a file shows. `clips`: for every plan uint8 `(views, T, 3, size, size)`; `windows`: the same of every part, one view each.

    Plans that look alike share one array: `clips` and each window hold the different ones, `place` which of them is each plan's.
    `seconds`: of a video, 0 of an image. `damage`: what is broken in it, None if nothing is.
    """

    media: Media
    seconds: float
    clips: list[np.ndarray]
    place: list[int]
    windows: list[list[np.ndarray]]
    damage: str | None


def decode(job: Job, limits: Limits) -> Pixels:
    """Decode a file under all its plans. Raises `Refused`."""
    try:
        media = media_by_content(job.path)
        found = probe(job.path, media, max_pixels=limits.pixels)
        seconds = _seconds(found, media, limits)
        plans = [_as_looked_at(plan, media) for plan in job.plans]
        different = list(dict.fromkeys(plans))
        clips, damage = read_views(job.path, media, different, seconds)
        windows = _windows(job, media, different, seconds)
    except MediaError as error:
        raise Refused(422, f"the file cannot be read: {error}") from None
    except OSError as error:  # its client may have left, and the file with it
        raise Refused(422, f"the file cannot be read: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise Refused(422, f"decoding needs more than {limits.memory >> 20} MB of memory") from None
    return Pixels(media, seconds, clips, [different.index(plan) for plan in plans], windows, damage)


def _seconds(found: Probe, media: Media, limits: Limits) -> float:
    """How long a video is by a manifest's own measure, as in evaluation."""
    if media == "image" or not found.fps:
        return 0.0
    seconds = found.frames / found.fps
    if max(seconds, found.duration) > limits.seconds:
        raise Refused(422, f"the video lasts {max(seconds, found.duration):.0f} s; the limit is {limits.seconds:g} s")
    return seconds


def _as_looked_at(plan: ViewPlan, media: Media) -> ViewPlan:
    """Of an image every plan takes its spatial views alone."""
    return plan if media == "video" else replace(plan, sampling=replace(plan.sampling, kind="whole"), views=Views(1, plan.views.spatial))


def _windows(job: Job, media: Media, plans: list[ViewPlan], seconds: float) -> list[list[np.ndarray]]:
    if media == "image":
        return []
    single, length = [replace(plan, views=ONE_VIEW) for plan in plans], seconds / max(1, job.windows)
    return [read_views(job.path, media, single, length, number * length)[0] for number in range(job.windows)]


# --- processes


class Decoders:
    """`workers` decoding processes, each answering one job at a time. Threads may call it side by side.

    A process that overruns a file's time or dies of it is replaced, and its file refused: nothing else waits for it.
    """

    def __init__(self, workers: int, limits: Limits) -> None:
        self.workers, self.limits, self.replaced = workers, limits, 0
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._closing, self._closed = threading.Lock(), False
        self._all = [_Worker(limits) for _ in range(workers)]
        try:
            for worker in self._all:
                worker.wait_ready()
                self._idle.put(worker)
        except BaseException:
            self.close()
            raise

    def __call__(self, job: Job, deadline: float) -> Pixels:
        """Raises `Refused`, also where no process comes free until `deadline` (of `time.monotonic`)."""
        try:
            worker = self._idle.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise late() from None
        try:
            answer = worker.ask(job)
        except _Lost as error:
            with self._closing:
                if not self._closed:
                    self.replaced += 1
                    worker.restart()
            raise Refused(422, str(error)) from None
        finally:
            self._idle.put(worker)
        if isinstance(answer, Refused):
            raise answer
        return answer

    def close(self) -> None:
        """End all processes, and with them what they are at."""
        with self._closing:
            self._closed = True
            for worker in self._all:
                worker.end()


class _Lost(Exception):
    """A process is of no more use."""


class _Worker:
    """One decoding process. It gets jobs through a pipe and answers with `Pixels` or `Refused`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._start()

    def _start(self) -> None:
        context = process_context()
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, self._limits), name="cover-decode", daemon=True)
        self._ready = False
        self._process.start()
        far.close()

    def restart(self) -> None:
        """A new process in place of this one."""
        self.end()
        self._pipe.close()
        self._process.close()
        self._start()

    def wait_ready(self) -> None:
        """The first message of a process says that it is there."""
        if not self._ready:
            self._receive(START_S, "the decoding process does not start")
            self._ready = True

    def ask(self, job: Job) -> Pixels | Refused:
        """Raises _Lost."""
        self.wait_ready()
        try:
            self._pipe.send(job)
        except OSError:
            raise _Lost("the decoding process is gone; send the file again") from None
        answer: Pixels | Refused = self._receive(self._limits.decode_s, f"decoding took longer than {self._limits.decode_s:g} s")
        return answer

    def _receive(self, seconds: float, otherwise: str) -> Any:
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except (EOFError, OSError):
            raise _Lost("the file crashed its decoder") from None
        raise _Lost(otherwise)

    def end(self) -> None:
        """Kill the process; the pipe then ends for whoever waits for it."""
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, limits: Limits) -> None:
    """What a decoding process does until it is killed or its server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server drains; its processes go last
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    be_silent()
    end_with_parent()
    torch.set_num_threads(1)
    keep_safe_readers()
    _bound_resources(limits.memory)
    pipe.send("ready")
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(job, limits))


def _answer(job: Job, limits: Limits) -> Pixels | Refused:
    try:
        return decode(job, limits)
    except Refused as refused:
        return refused


def _bound_resources(memory: int) -> None:
    """No file is written, few are open, no core is dumped, and no more memory is taken than `memory` bytes beyond what is there."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
