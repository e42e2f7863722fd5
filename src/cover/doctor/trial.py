"""The trial of `cover doctor`: a clip is written, read by a worker process as in training, and trained on, for some seconds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from av.error import FFmpegError
from torch.utils.data import DataLoader, Dataset

from cover.doctor.checks import Finding, own_wheel
from cover.evaluation.protocol import ViewPlan, read_views
from cover.media.clips import Sampling, Views
from cover.media.decode import MediaError
from cover.mixture.loader import START_METHOD, one_thread
from cover.mixture.pack import Pack, Sample, collate
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.sandbox.encode import VIDEO, encode
from cover.training.optimizer import build_optimizer
from cover.training.recipe import Optimizer
from cover.training.step import StepSettings, train_step

SECONDS = 2.5  # of each half: with the reading process's start about ten in all
FRAMES, SIZE, BATCH, WAIT_S = 8, 64, 4, 60
_PRESET = "Ti/16"


@dataclass(frozen=True)
class _Clips(Dataset[Sample]):
    """One video, read again and again."""

    path: Path
    count: int = 1_000_000

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Sample:
        plan = ViewPlan(Sampling("whole"), Views(1, 1), FRAMES, SIZE)
        (clips,), _ = read_views(self.path, "video", [plan], 2.0)
        return Sample(torch.from_numpy(clips[0]), 0, torch.tensor([0]), 1.0, number)


def trial(device: torch.device, workers: int) -> list[Finding]:
    """Two findings: reading in one process (in this one where `workers` is 0) and training on `device`; fewer where one fails."""
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "trial.mp4"
            if lacking := _write(path):
                return [lacking]
            reading, pack = _read(path, min(workers, 1))
    except OSError as error:
        return [Finding("writing", "bad", f"failed: {_reason(error)}", "make room (df, ulimit -f), or set TMPDIR to another folder")]
    return [reading, _train(pack, device)] if pack else [reading]


def _write(path: Path) -> Finding | None:
    """A finding where the encoder fails. Raises OSError where there is no room."""
    rng = np.random.default_rng(0)
    try:
        encode(path, rng.integers(0, 256, (24, 15, 20, 3), dtype=np.uint8).repeat(16, axis=1).repeat(16, axis=2))
    except OSError:  # some of FFmpeg's errors are one
        raise
    except (FFmpegError, ValueError, RuntimeError) as error:
        return Finding("writing", "bad", f"failed: {VIDEO['.mp4'][0]}: {_reason(error)}", own_wheel())
    return None


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _read(path: Path, workers: int) -> tuple[Finding, Pack | None]:
    loader = DataLoader(
        _Clips(path), batch_size=BATCH, num_workers=workers, collate_fn=_pack, worker_init_fn=one_thread, timeout=WAIT_S if workers else 0,
        multiprocessing_context=START_METHOD if workers else None,
    )  # fmt: skip
    fix = "run it again with --workers 0: where that works, reading processes cannot start or hand over (see shared memory)"
    try:
        packs = iter(loader)
        pack, began, count = next(packs), time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            next(packs)
            count += BATCH
    except MediaError as error:  # one of another process ends in the reason
        return Finding("reading", "bad", f"the clip that was written: {str(error).strip().splitlines()[-1]}", own_wheel()), None
    except (RuntimeError, OSError, ValueError) as error:
        return Finding("reading", "bad", f"failed: {_reason(error)}", fix), None
    rate = count / (time.perf_counter() - began)
    return Finding("reading", "ok", f"{rate:.0f} clips of {FRAMES} frames a second in one process (h264, 320 x 240)"), pack


def _pack(samples: list[Sample]) -> Pack:
    return collate([samples])


def _train(pack: Pack, device: torch.device) -> Finding:
    fix = "try --device cpu; where that works, the GPU's driver and PyTorch's build do not fit each other"
    try:
        losses, ms = _steps(pack, device)
    except (RuntimeError, OSError, ValueError) as error:
        return Finding("training", "bad", f"failed on {device}: {_reason(error)}", fix)
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        return Finding("training", "bad", f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} on {device}", fix)
    told = f"{ms:.0f} ms a step on {device} ({_PRESET}, {BATCH} clips of {FRAMES} x {SIZE} px), loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return Finding("training", "ok", told)


def _steps(pack: Pack, device: torch.device) -> tuple[list[float], float]:
    """The loss of every step, and the milliseconds of one."""
    torch.manual_seed(0)
    model = CoVeR(named_config(_PRESET, size=SIZE, frames=FRAMES), (Head("trial", ("a", "b")),)).to(device).train()
    settings = StepSettings(BATCH, torch.ones(1, device=device))
    optimizer, moved = build_optimizer(model, Optimizer(lr=1e-4)), pack.to(device)
    losses: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS or len(losses) < 4:
        if len(losses) == 1:
            began = time.perf_counter()  # the first step warms up
        losses.append(float(train_step(model, optimizer, [moved], settings).loss))
    return losses, 1000 * (time.perf_counter() - began) / (len(losses) - 1)
