"""Engines: what computes the features of a forward pass on this machine, and the files that they keep.

`eager` runs the network as it is. `compiled` runs it as one program that torch compiles for this machine, `onnx` in
onnxruntime, and `onnx-int8` there with matrices of 8-bit integers. Each of these three needs a file for every length of
a clip. It is written at the first use, compared with `eager`, and kept for the next time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as fn
from torch import Tensor

from cover.console import say
from cover.errors import UserError
from cover.inference.export.graph import INPUT, FeatureGraph, quiet, trace
from cover.inference.export.onnx import check_packages, save_graph, save_rounded
from cover.inference.predictor import Predictor
from cover.inference.views import ViewRequest, read_files
from cover.locks import wait_and_lock
from cover.model.backbone import Groups
from cover.model.cover import CoVeR
from cover.model.release import load_release
from cover.model.release_config import CONFIG, WEIGHTS
from cover.model.weight_files import digest_of
from cover.processes import ProcessPool

Engine = Literal["eager", "compiled", "onnx", "onnx-int8"]
ENGINES: tuple[Engine, ...] = ("eager", "compiled", "onnx", "onnx-int8")
Run = Callable[[Tensor], Tensor]  # clips, uint8 (B, T, 3, size, size), to features, float32 (B, D)

FOLDER = "engines"  # beside the weights
OPSET = 23  # has attention as one operator, which is faster than its parts
LAYOUT = 1  # part of the names of files; a change of the graphs needs another number
CALIBRATION_CLIPS = 32  # most clips of the comparison with `eager`
LARGEST_DIFFERENCE = 1e-3  # of a feature, as a fraction of the largest one; of engines that compute in float32
ENDINGS = {"compiled": ".pt2", "onnx": ".onnx", "onnx-int8": ".onnx"}


@dataclass(frozen=True)
class Comparison:
    """The most likely classes of an engine and of `eager`: `same` of `compared`, one for each clip and head.

    `difference`: the largest difference of a feature, as a fraction of the largest feature.
    """

    compared: int
    same: int
    difference: float

    def __str__(self) -> str:
        rest = self.compared - self.same
        other = f", another for {rest} ({100 * rest / self.compared:.1f} %)" if rest else ""
        heads = f"the same class as eager for {self.same} of {self.compared} clips and heads{other}"
        return f"{heads if self.compared else 'no heads to compare'}, features within {self.difference:.1g}"


class EngineGraphs:
    """The features of a checkpoint, computed by an engine other than `eager`.

    `model`: the checkpoint's model, with which the engine is compared. `release`: the folder of its weights.

    Raises `UserError` if a package is missing, or if the engine cannot run on the device of `model`.
    """

    def __init__(self, kind: Engine, model: CoVeR, release: Path) -> None:
        self.kind, self.model, self.release = kind, model, release
        self.device = model.mean.device
        self._runs: dict[int, Run] = {}  # frames of a clip -> what computes it
        if kind != "compiled":
            check_packages(f"--engine {kind}")
            if self.device.type != "cpu":
                raise UserError(f"--engine {kind}: runs on the CPU: give --device cpu, or --engine compiled")

    def __call__(self, pixels: Tensor, groups: Groups) -> Tensor:
        """The features of every sample of a Pack, float32 `(S, D)`. `pixels`: uint8 `(F, 3, size, size)`."""
        parts = pixels.split([samples * frames for samples, frames in groups])
        clips = [part.unflatten(0, group) for part, group in zip(parts, groups, strict=True)]
        return torch.cat([self._run_of(part)(part) for part in clips])

    def is_made(self, frames: int) -> bool:
        """Whether the file for clips of `frames` frames exists."""
        return self._path(frames).exists()

    def prepare(self, clips: Tensor) -> None:
        """Load the file for clips `(B, T, 3, size, size)`. If there is none, make it and compare it on these clips."""
        self._run_of(clips)

    def _run_of(self, clips: Tensor) -> Run:
        frames = clips.shape[1]
        if frames not in self._runs:
            self._runs[frames] = self._open(frames, clips[:CALIBRATION_CLIPS])
        return self._runs[frames]

    def _open(self, frames: int, calibration: Tensor) -> Run:
        path = self._path(frames)
        with _locked(path):
            record = path.with_suffix(".json")
            if not (path.exists() and record.exists()):
                return self._make(path, record, frames, calibration)
        say(f"engine {self.kind}, clips of {frames}: {Comparison(**json.loads(record.read_text()))}")
        return self._load(path)

    def _make(self, path: Path, record: Path, frames: int, calibration: Tensor) -> Run:
        """Write an engine's file and its comparison. Nobody sees the file before it is complete and compared."""
        say(f"engine {self.kind}, clips of {frames}: is being made, once for these weights on this machine")
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as folder:
                new = Path(folder) / path.name
                self._save(new, frames)
                run = self._load(new)
                comparison = self._compare(run, calibration)
                (new.parent / record.name).write_text(json.dumps(asdict(comparison)) + "\n", encoding="utf-8")
                for file in sorted(new.parent.iterdir(), key=lambda file: file == new):  # the file itself is last
                    os.replace(file, path.parent / file.name)
        except OSError as error:
            raise UserError(f"--engine {self.kind}: {path.parent}: cannot be written: {error.strerror}") from None
        seconds = time.monotonic() - began
        say(f"engine {self.kind}, clips of {frames}: made in {seconds:.0f} s, {path}: {comparison}")
        return run

    def _save(self, path: Path, frames: int) -> None:
        # A second model, because `simplify` changes the one whose graph is written.
        graph = FeatureGraph(load_release(self.release).to(self.device), frames)
        with quiet():
            if self.kind == "compiled":
                _compile(graph, path)
            elif self.kind == "onnx":
                save_graph(graph, path, opset=OPSET)
            else:
                save_rounded(graph, path, opset=OPSET, bits=_usable_bits())

    def _load(self, path: Path) -> Run:
        return _compiled_run(path) if self.kind == "compiled" else _onnx_run(path)

    @torch.inference_mode()
    def _compare(self, run: Run, clips: Tensor) -> Comparison:
        """Compare an engine with `eager`. Raises `UserError` if one that computes in float32 differs too much."""
        group = clips.shape[0], clips.shape[1]
        expected = self.model.forward_features(self.model.normalize(clips.flatten(0, 1)), (group,))
        features = run(clips)
        difference = float((features - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if self.kind != "onnx-int8" and not difference <= LARGEST_DIFFERENCE:  # NaN is refused too
            raise UserError(
                f"--engine {self.kind}: its features differ from those of eager by {difference:.1g}, more than"
                f" {LARGEST_DIFFERENCE:g}, so it is not used; give --engine eager"
            )
        ours, theirs = self.model.forward_head(features), self.model.forward_head(expected)
        same = sum(int((ours[name].argmax(1) == theirs[name].argmax(1)).sum()) for name in ours)
        return Comparison(len(clips) * len(ours), same, float(f"{difference:.2g}"))

    def _path(self, frames: int) -> Path:
        """The file of the engine. Its name has a digest of all that it depends on."""
        parts = [LAYOUT, digest_of(self.release / WEIGHTS), digest_of(self.release / CONFIG), torch.__version__]
        if self.kind == "compiled":
            parts += [platform.machine(), torch.backends.cpu.get_cpu_capability(), str(self.device)]
        else:
            parts += [_onnx_version(), _usable_bits() if self.kind == "onnx-int8" else 0]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return self._folder() / f"{self.kind}-{frames}-{digest}{ENDINGS[self.kind]}"

    def _folder(self) -> Path:
        """Beside the weights, or else in the user's cache.

        A compiled file is machine code, which runs when it is loaded. So it is always in the user's cache: a folder of
        weights may come from anybody.
        """
        beside = self.release / FOLDER
        if self.kind != "compiled" and os.access(beside if beside.exists() else self.release, os.W_OK):
            return beside
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cover" / FOLDER


def prepare_engine(predictor: Predictor, request: ViewRequest, files: Sequence[str], textures: bool) -> None:
    """Make the files that an engine lacks for the clip lengths of `request`, and compare them on clips of `files`.

    `textures`: also for lengths of which `files` has no readable clip, on `moving_textures`. Nothing for `eager`.
    """
    graphs, size = predictor.graphs, predictor.model.backbone.pixels.size
    lengths = dict.fromkeys([*(plan.frames for plan in request.plans), 1])  # images have one frame
    if graphs is None:
        return
    found: dict[int, list[Tensor]] = {frames: [] for frames in lengths if not graphs.is_made(frames)}
    for part in read_files(files if found else [], request, ProcessPool(0)):
        for views in (views for clips in part.clips for views in clips):
            if views.shape[1] in found:
                found[views.shape[1]].append(torch.from_numpy(views))
    for frames in lengths:
        clips = torch.cat([*found.get(frames, []), torch.empty(0, frames, 3, size, size, dtype=torch.uint8)])
        if not len(clips) and textures:
            clips = moving_textures(CALIBRATION_CLIPS // 2, frames, size)
        if len(clips):
            graphs.prepare(clips)


def moving_textures(count: int, frames: int, size: int) -> Tensor:
    """Clips to compare engines with where no files are given, uint8 `(count, frames, 3, size, size)`.

    Each is a smooth random texture that moves. The same ones in each call.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    large = fn.interpolate(coarse, (2 * size, 2 * size), mode="bicubic").clamp(0, 1)
    steps = (torch.arange(frames) * size // max(frames, 1)).tolist()
    clips = torch.stack([large[..., step : step + size, step // 2 : step // 2 + size] for step in steps], 1)
    return (clips * 255).to(torch.uint8)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of an engine's file, so that two processes never make it at the same time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if path.suffix == ".pt2" else 0o777)
        with path.with_suffix(".lock").open("w", encoding="utf-8") as file:
            wait_and_lock(file)
            yield
    except OSError as error:
        raise UserError(f"--engine: {path.parent}: cannot be written: {error.strerror}") from None


# --- torch's compiler -------------------------------------------------------------------------------------------------


def _compile(graph: FeatureGraph, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    try:
        # The number of threads is then that of the process that runs the file.
        aoti_compile_and_package(trace(graph), package_path=str(path), inductor_configs={"cpp.dynamic_threads": True})
    except Exception as error:  # many kinds, mostly for want of a C++ compiler
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--engine compiled: torch cannot compile this network here: {reason}; it needs a C++ compiler (g++), or"
            " give --engine eager"
        ) from None


def _compiled_run(path: Path) -> Run:
    from torch._inductor import aoti_load_package

    program = aoti_load_package(str(path))

    def run(clips: Tensor) -> Tensor:
        features: Tensor = program(clips.contiguous())["features"]
        return features

    return run


# --- onnxruntime ------------------------------------------------------------------------------------------------------


def _onnx_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {INPUT: clips.numpy()})[0])


def _usable_bits() -> int:
    """The bits of an 8-bit weight that are used: 7 on an x86 CPU without VNNI, whose sums would overflow."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return 8
    try:
        return 8 if "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8") else 7
    except OSError:
        return 7
