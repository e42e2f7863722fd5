"""`cover doctor`: checks of the installation, the hardware and the limits of this machine, and a short trial of reading
and training.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from av.error import FFmpegError
from torch.utils.data import DataLoader, Dataset

from cover.console import say, write_json
from cover.errors import UserError, install
from cover.evaluation.protocol import ViewPlan, read_views
from cover.machine import default_workers
from cover.media.decode import MediaError
from cover.media.sampling import Sampling, Views
from cover.mixture.loader import START_METHOD, one_thread
from cover.mixture.pack import Pack, Sample, collate
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.synthetic.render import VIDEO, encode
from cover.training.optim import build_optimizer
from cover.training.recipe import Optimizer
from cover.training.step import StepSettings, train_step

CheckState = Literal["ok", "warn", "bad"]
PACKAGE = "cover-video"
OPTIONAL = {
    "ray": "cluster",
    "torchcodec": "torchcodec",
    "fastapi": "serve",
    "onnxruntime": "export",
    "tensorboard": "logs",
}
DECODERS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg4", "mpeg2video", "mjpeg", "msmpeg4v2", "wmv2", "gif")
# cover prepare and the sandbox write with the first, the sandbox with the second too
ENCODERS: dict[str, CheckState] = {"libx264": "bad", "libvpx-vp9": "warn"}
SHARED_PER_WORKER = 256 << 20  # bytes; a worker holds two batches of clips
SCARCE_DISK = 5 << 30
OPEN_FILES = 1024
_TORCH_LINE = "the selector on pytorch.org gives the line"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check. `warn`: it works, but not as well as it could; `bad`: something will fail. `fix`: what
    to do.
    """

    topic: str
    state: CheckState
    found: str
    fix: str = ""


def doctor(device: str, workers: int, quick: bool, json_target: str | None) -> bool:
    """Run every check, print each finding at once, and return whether none is bad. `quick`: without the trial.

    Raises `UserError` where `device` is no name of a device; a device that this machine lacks is a finding.
    """
    _check_name(device)
    findings: list[dict[str, Any]] = []
    for finding in _findings(device, workers, quick):
        findings.append(asdict(finding))
        if json_target != "-":
            print(_line(finding), flush=True)
    if json_target:
        write_json(findings, json_target)
    counts = {state: sum(one["state"] == state for one in findings) for state in ("bad", "warn")}
    if any(counts.values()):
        say(f"{counts['bad']} will fail, {counts['warn']} could be better")
    return not counts["bad"]


def _findings(device: str, workers: int, quick: bool) -> Iterator[CheckResult]:
    yield from versions()
    parts: list[Iterable[CheckResult]] = [
        devices(),
        ffmpeg(),
        disk(),
        shared_memory(workers),
        limits(),
        _missing_device(device),
    ]
    for part in parts:
        try:
            yield from part
        except (ImportError, OSError) as error:  # of a package that versions() reports, or of a broken one
            yield CheckResult("import", "bad", str(error).splitlines()[0], "pip install -c constraints.txt -e . again")
    if not quick:
        yield from _trial(device, workers)


def _check_name(device: str) -> None:
    try:
        import torch
    except (ImportError, OSError):
        return  # versions() reports it
    try:
        torch.device("cpu" if device == "auto" else device)
    except (RuntimeError, ImportError):
        raise UserError(f'--device "{device}" is no device; write auto, cpu, cuda or cuda:1') from None


def _missing_device(device: str) -> Iterator[CheckResult]:
    try:
        from cover.hardware import pick_device
    except (ImportError, OSError):
        return  # devices() reports it
    try:
        pick_device(device)
    except (UserError, ImportError) as error:  # ImportError: some devices need a package of their own
        yield CheckResult("device", "bad", str(error), "choose another --device")


def _trial(device: str, workers: int) -> list[CheckResult]:
    try:
        from cover.hardware import pick_device
    except (ImportError, OSError) as error:
        return [
            CheckResult("trial", "bad", str(error).splitlines()[0], "put right what is bad above, then run it again")
        ]
    try:
        place = pick_device(device)
    except (UserError, ImportError):
        return []  # _missing_device() reports it
    return try_out(place, workers)


def _line(finding: CheckResult) -> str:
    remedy = f"\n{'':22}-> {finding.fix}" if finding.fix else ""
    return f"{finding.state:<5} {finding.topic:<15} {finding.found}{remedy}"


def versions() -> Iterator[CheckResult]:
    """Python and every required package, with the versions they need, and the optional packages that are installed."""
    yield CheckResult("python", "ok", f"{sys.version.split()[0]} on {sys.platform}")
    for text in metadata.requires(PACKAGE) or []:
        match = re.match(r"([\w.-]+)(?:\[.*?\])?>=([\d.]+)", text)
        if match and "extra ==" not in text:
            yield _version(match[1], match[2])
    there = [f"{name} {result}" for name in OPTIONAL if (result := _installed(name))]
    lacking = [extra for name, extra in OPTIONAL.items() if not _installed(name)]
    if lacking:
        there.append(f"without: {', '.join(lacking)} ({install(lacking[0])})")
    yield CheckResult("optional", "ok", ", ".join(there))


def _version(name: str, least: str) -> CheckResult:
    result = _installed(name)
    fix = f"pip install -c constraints.txt '{name}>={least}'"
    if result is None:
        return CheckResult(name, "bad", "not installed", fix)
    if _numbers(result) < _numbers(least):
        return CheckResult(name, "bad", f"{result}, older than {least}", fix)
    return CheckResult(name, "ok", result)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3]))


def devices(drivers: Path = Path("/proc/driver/nvidia/version")) -> Iterator[CheckResult]:
    """The processor and every GPU that PyTorch can use. `drivers`: the file by which NVIDIA's driver shows that it is
    installed.
    """
    import torch

    yield CheckResult("processor", "ok", f"{default_workers()} cores, {torch.backends.cpu.get_cpu_capability()}")
    cores = allowed_cores()
    if cores and cores < default_workers():
        yield CheckResult(
            "cores", "warn", f"a container's limit of {cores:g}", f"give commands --workers {max(1, int(cores))}"
        )
    for number in range(torch.cuda.device_count()):
        metadata = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if metadata.major >= 8 else "no bf16"
        yield CheckResult(
            "gpu", "ok", f"cuda:{number} {metadata.name}, {metadata.total_memory / 2**30:.0f} GiB, {bf16}"
        )
    if not torch.cuda.is_available():
        yield _no_gpu(torch.version.cuda, drivers)


def _no_gpu(cuda: str | None, drivers: Path) -> CheckResult:
    if not drivers.exists():
        return CheckResult("gpu", "ok", "none: everything runs on the CPU")
    if cuda is None:
        return CheckResult(
            "gpu",
            "bad",
            "an NVIDIA driver is here, and PyTorch is built for the CPU",
            f"install a CUDA build: {_TORCH_LINE}",
        )
    fix = f"a driver that knows CUDA {cuda}, or another build of PyTorch: {_TORCH_LINE}; in a container, docker run --gpus all"
    return CheckResult("gpu", "bad", f"an NVIDIA driver is here, and PyTorch (CUDA {cuda}) cannot use it", fix)


def allowed_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """How many cores a container may keep busy; None without a limit."""
    try:
        quota, period = limit.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # ValueError: "max", no limit
        return None


def ffmpeg(decoders: Sequence[str] = DECODERS) -> Iterator[CheckResult]:
    """The FFmpeg inside PyAV, its decoders and encoders, and torchcodec where it is installed."""
    import av

    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    yield CheckResult(
        "ffmpeg",
        "ok",
        f"in PyAV {av.__version__}: libavcodec {libraries['libavcodec']}, libavformat {libraries['libavformat']}",
    )
    fix = own_wheel()
    lacking = [name for name in decoders if not _has_codec(name, "r")]
    if lacking:
        yield CheckResult("decoders", "bad", f"without {', '.join(lacking)}", fix)
    else:
        yield CheckResult("decoders", "ok", ", ".join(decoders))
    for name, state in ENCODERS.items():
        there = _has_codec(name, "w")
        yield CheckResult(
            "encoder", "ok" if there else state, name if there else f"without {name}", "" if there else fix
        )
    if _installed("torchcodec"):
        yield _torchcodec()


def own_wheel() -> str:
    """The command that installs PyAV's own wheel, which brings all codecs."""
    import av

    return f"pip install -c constraints.txt --force-reinstall --only-binary av 'av=={av.__version__}': PyAV's own wheel has it"


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    try:
        Codec(name, mode)
    except UnknownCodecError:
        return False
    return True


def _torchcodec() -> CheckResult:
    from cover.media.decode import check_decoder

    try:
        return CheckResult("torchcodec", "ok", check_decoder("torchcodec"))
    except UserError as error:
        return CheckResult(
            "torchcodec", "warn", str(error), "pip uninstall torchcodec, unless --decoder torchcodec is wanted"
        )


def disk(folder: Path = Path(), scarce: int = SCARCE_DISK) -> Iterator[CheckResult]:
    """Free space in the current folder and where temporary files go. `scarce`: bytes below which it is a warning."""
    for topic, place in (("disk", folder.resolve()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        few = free < scarce
        fix = (
            "make room, or work in another folder" if topic == "disk" else "make room, or set TMPDIR to another folder"
        )
        yield CheckResult(topic, "warn" if few else "ok", f"{free / 2**30:.1f} GiB free at {place}", fix if few else "")
        if not os.access(place, os.W_OK):
            yield CheckResult(topic, "bad", f"{place} cannot be written", "work in a folder of your own")


def shared_memory(workers: int, place: Path = Path("/dev/shm")) -> Iterator[CheckResult]:
    """Shared memory for what the reading processes hand over. `workers`: how many there are."""
    if not place.is_dir():
        return
    free, wanted = shutil.disk_usage(place).free, workers * SHARED_PER_WORKER
    if free >= wanted:
        yield CheckResult("shared memory", "ok", f"{free / 2**30:.1f} GiB free at {place}")
        return
    fix = f"docker run --shm-size {max(1, round(2 * wanted / 2**30))}g (or --ipc=host), or --workers {int(free // SHARED_PER_WORKER)}"
    yield CheckResult(
        "shared memory",
        "warn",
        f"{free / 2**20:.0f} MiB free at {place}, {workers} reading processes may want {wanted >> 20}",
        fix,
    )


def limits(least: int = OPEN_FILES) -> Iterator[CheckResult]:
    """The number of files that a process may hold open."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < least
    yield CheckResult(
        "open files",
        "warn" if few else "ok",
        str(soft),
        f"ulimit -n {least if hard < 0 else min(hard, 65536)}" if few else "",
    )


SECONDS = 2.5  # of each half: with the reading process's start about ten in all
FRAMES, SIZE, BATCH, WAIT_S = 8, 64, 4, 60
_PRESET = "Ti/16"


@dataclass(frozen=True)
class _RepeatedVideo(Dataset[Sample]):
    """One video, read again and again."""

    path: Path
    count: int = 1_000_000

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Sample:
        plan = ViewPlan(Sampling("whole"), Views(1, 1), FRAMES, SIZE)
        (clips,), _ = read_views(self.path, "video", [plan], 2.0)
        return Sample(torch.from_numpy(clips[0]), 0, torch.tensor([0]), 1.0, number)


def try_out(device: torch.device, workers: int) -> list[CheckResult]:
    """Two findings: reading in one process (in this one where `workers` is 0) and training on `device`; fewer where one
    fails.
    """
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "trial.mp4"
            if lacking := _write(path):
                return [lacking]
            reading, pack = _read(path, min(workers, 1))
    except OSError as error:
        return [
            CheckResult(
                "writing",
                "bad",
                f"failed: {_reason(error)}",
                "make room (df, ulimit -f), or set TMPDIR to another folder",
            )
        ]
    return [reading, _train(pack, device)] if pack else [reading]


def _write(path: Path) -> CheckResult | None:
    """A finding where the encoder fails. Raises OSError where there is no room."""
    rng = np.random.default_rng(0)
    try:
        encode(path, rng.integers(0, 256, (24, 15, 20, 3), dtype=np.uint8).repeat(16, axis=1).repeat(16, axis=2))
    except OSError:  # some of FFmpeg's errors are one
        raise
    except (FFmpegError, ValueError, RuntimeError) as error:
        return CheckResult("writing", "bad", f"failed: {VIDEO['.mp4'][0]}: {_reason(error)}", own_wheel())
    return None


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _read(path: Path, workers: int) -> tuple[CheckResult, Pack | None]:
    loader = DataLoader(
        _RepeatedVideo(path),
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=_pack,
        worker_init_fn=one_thread,
        timeout=WAIT_S if workers else 0,
        multiprocessing_context=START_METHOD if workers else None,
    )
    fix = "run it again with --workers 0: where that works, reading processes cannot start or hand over (see shared memory)"
    try:
        packs = iter(loader)
        pack, began, count = next(packs), time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            next(packs)
            count += BATCH
    except MediaError as error:  # one of another process ends in the reason
        return CheckResult(
            "reading", "bad", f"the clip that was written: {str(error).strip().splitlines()[-1]}", own_wheel()
        ), None
    except (RuntimeError, OSError, ValueError) as error:
        return CheckResult("reading", "bad", f"failed: {_reason(error)}", fix), None
    rate = count / (time.perf_counter() - began)
    return CheckResult(
        "reading", "ok", f"{rate:.0f} clips of {FRAMES} frames a second in one process (h264, 320 x 240)"
    ), pack


def _pack(samples: list[Sample]) -> Pack:
    return collate([samples])


def _train(pack: Pack, device: torch.device) -> CheckResult:
    fix = "try --device cpu; where that works, the GPU's driver and PyTorch's build do not fit each other"
    try:
        losses, ms = _steps(pack, device)
    except (RuntimeError, OSError, ValueError) as error:
        return CheckResult("training", "bad", f"failed on {device}: {_reason(error)}", fix)
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        return CheckResult(
            "training", "bad", f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} on {device}", fix
        )
    record = f"{ms:.0f} ms a step on {device} ({_PRESET}, {BATCH} clips of {FRAMES} x {SIZE} px), loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return CheckResult("training", "ok", record)


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
