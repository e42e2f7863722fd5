"""The checks of `cover doctor`: installed versions, devices, codecs, room on disk and in memory, each with its remedy."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cover.console import say, write_json
from cover.errors import UserError, install
from cover.machine import default_workers

State = Literal["ok", "warn", "bad"]
PACKAGE = "cover-video"
OPTIONAL = {"ray": "cluster", "torchcodec": "torchcodec", "fastapi": "serve", "onnxruntime": "export", "tensorboard": "logs"}
DECODERS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg4", "mpeg2video", "mjpeg", "msmpeg4v2", "wmv2", "gif")
ENCODERS = {"libx264": "bad", "libvpx-vp9": "warn"}  # cover prepare and the sandbox write with the first, the sandbox with the second too
SHARED_PER_WORKER = 256 << 20  # bytes; a worker holds two batches of clips
SCARCE_DISK = 5 << 30
OPEN_FILES = 1024
_TORCH_LINE = "the selector on pytorch.org gives the line"


@dataclass(frozen=True)
class Finding:
    """The result of one check. `warn`: it works, but not as well as it could; `bad`: something will fail. `fix`: what to do."""

    topic: str
    state: State
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


def _findings(device: str, workers: int, quick: bool) -> Iterator[Finding]:
    yield from versions()
    parts: list[Iterable[Finding]] = [devices(), ffmpeg(), disk(), shared_memory(workers), limits(), _missing_device(device)]
    for part in parts:
        try:
            yield from part
        except (ImportError, OSError) as error:  # of a package that versions() reports, or of a broken one
            yield Finding("import", "bad", str(error).splitlines()[0], "pip install -c constraints.txt -e . again")
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


def _missing_device(device: str) -> Iterator[Finding]:
    try:
        from cover.model.device import pick_device
    except (ImportError, OSError):
        return  # devices() reports it
    try:
        pick_device(device)
    except (UserError, ImportError) as error:  # ImportError: some devices need a package of their own
        yield Finding("device", "bad", str(error), "choose another --device")


def _trial(device: str, workers: int) -> list[Finding]:
    try:
        from cover.doctor.trial import trial
        from cover.model.device import pick_device
    except (ImportError, OSError) as error:
        return [Finding("trial", "bad", str(error).splitlines()[0], "put right what is bad above, then run it again")]
    try:
        place = pick_device(device)
    except (UserError, ImportError):
        return []  # _missing_device() reports it
    return trial(place, workers)


def _line(finding: Finding) -> str:
    remedy = f"\n{'':22}-> {finding.fix}" if finding.fix else ""
    return f"{finding.state:<5} {finding.topic:<15} {finding.found}{remedy}"


def versions() -> Iterator[Finding]:
    """Python and every required package, with the versions they need, and the optional packages that are installed."""
    yield Finding("python", "ok", f"{sys.version.split()[0]} on {sys.platform}")
    for text in metadata.requires(PACKAGE) or []:
        match = re.match(r"([\w.-]+)(?:\[.*?\])?>=([\d.]+)", text)
        if match and "extra ==" not in text:
            yield _version(match[1], match[2])
    there = [f"{name} {found}" for name in OPTIONAL if (found := _installed(name))]
    lacking = [extra for name, extra in OPTIONAL.items() if not _installed(name)]
    if lacking:
        there.append(f"without: {', '.join(lacking)} ({install(lacking[0])})")
    yield Finding("optional", "ok", ", ".join(there))


def _version(name: str, least: str) -> Finding:
    found = _installed(name)
    fix = f"pip install -c constraints.txt '{name}>={least}'"
    if found is None:
        return Finding(name, "bad", "not installed", fix)
    if _numbers(found) < _numbers(least):
        return Finding(name, "bad", f"{found}, older than {least}", fix)
    return Finding(name, "ok", found)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3]))


def devices(drivers: Path = Path("/proc/driver/nvidia/version")) -> Iterator[Finding]:
    """The processor and every GPU that PyTorch can use. `drivers`: the file by which NVIDIA's driver shows that it is installed."""
    import torch

    yield Finding("processor", "ok", f"{default_workers()} cores, {torch.backends.cpu.get_cpu_capability()}")
    cores = allowed_cores()
    if cores and cores < default_workers():
        yield Finding("cores", "warn", f"a container's limit of {cores:g}", f"give commands --workers {max(1, int(cores))}")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if about.major >= 8 else "no bf16"
        yield Finding("gpu", "ok", f"cuda:{number} {about.name}, {about.total_memory / 2**30:.0f} GiB, {bf16}")
    if not torch.cuda.is_available():
        yield _no_gpu(torch.version.cuda, drivers)


def _no_gpu(cuda: str | None, drivers: Path) -> Finding:
    if not drivers.exists():
        return Finding("gpu", "ok", "none: everything runs on the CPU")
    if cuda is None:
        return Finding("gpu", "bad", "an NVIDIA driver is here, and PyTorch is built for the CPU", f"install a CUDA build: {_TORCH_LINE}")
    fix = f"a driver that knows CUDA {cuda}, or another build of PyTorch: {_TORCH_LINE}; in a container, docker run --gpus all"
    return Finding("gpu", "bad", f"an NVIDIA driver is here, and PyTorch (CUDA {cuda}) cannot use it", fix)


def allowed_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """How many cores a container may keep busy; None without a limit."""
    try:
        quota, period = limit.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # ValueError: "max", no limit
        return None


def ffmpeg(decoders: Sequence[str] = DECODERS) -> Iterator[Finding]:
    """The FFmpeg inside PyAV, its decoders and encoders, and torchcodec where it is installed."""
    import av

    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    yield Finding("ffmpeg", "ok", f"in PyAV {av.__version__}: libavcodec {libraries['libavcodec']}, libavformat {libraries['libavformat']}")
    fix = own_wheel()
    lacking = [name for name in decoders if not _has_codec(name, "r")]
    if lacking:
        yield Finding("decoders", "bad", f"without {', '.join(lacking)}", fix)
    else:
        yield Finding("decoders", "ok", ", ".join(decoders))
    for name, state in ENCODERS.items():
        there = _has_codec(name, "w")
        yield Finding("encoder", "ok" if there else state, name if there else f"without {name}", "" if there else fix)  # type: ignore[arg-type]
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


def _torchcodec() -> Finding:
    from cover.media.decode import check_decoder

    try:
        return Finding("torchcodec", "ok", check_decoder("torchcodec"))
    except UserError as error:
        return Finding("torchcodec", "warn", str(error), "pip uninstall torchcodec, unless --decoder torchcodec is wanted")


def disk(folder: Path = Path(), scarce: int = SCARCE_DISK) -> Iterator[Finding]:
    """Free space in the current folder and where temporary files go. `scarce`: bytes below which it is a warning."""
    for topic, place in (("disk", folder.resolve()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        few = free < scarce
        fix = "make room, or work in another folder" if topic == "disk" else "make room, or set TMPDIR to another folder"
        yield Finding(topic, "warn" if few else "ok", f"{free / 2**30:.1f} GiB free at {place}", fix if few else "")
        if not os.access(place, os.W_OK):
            yield Finding(topic, "bad", f"{place} cannot be written", "work in a folder of your own")


def shared_memory(workers: int, place: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Shared memory for what the reading processes hand over. `workers`: how many there are."""
    if not place.is_dir():
        return
    free, wanted = shutil.disk_usage(place).free, workers * SHARED_PER_WORKER
    if free >= wanted:
        yield Finding("shared memory", "ok", f"{free / 2**30:.1f} GiB free at {place}")
        return
    fix = f"docker run --shm-size {max(1, round(2 * wanted / 2**30))}g (or --ipc=host), or --workers {int(free // SHARED_PER_WORKER)}"
    yield Finding(
        "shared memory", "warn", f"{free / 2**20:.0f} MiB free at {place}, {workers} reading processes may want {wanted >> 20}", fix
    )


def limits(least: int = OPEN_FILES) -> Iterator[Finding]:
    """The number of files that a process may hold open."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < least
    yield Finding("open files", "warn" if few else "ok", str(soft), f"ulimit -n {least if hard < 0 else min(hard, 65536)}" if few else "")
