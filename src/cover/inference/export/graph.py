"""Export through torch.export: the graph from clips to probabilities, its metadata, and .pt2 files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cover import __version__
from cover.datasets.manifest import class_digest
from cover.errors import UserError, nearest
from cover.inference.predictor import Predictor
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import WEIGHTS, find_release, load_release

INPUT = "clips"  # name of the graph's input
METADATA_KEY = "cover"  # in the metadata of an ONNX model
METADATA_FILE = "cover.json"  # among the extra files of a .pt2


# --- checkpoint and output files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportRequest:
    """A model in evaluation mode, the folder of its checkpoint, and the heads to export."""

    folder: Path
    model: CoVeR
    heads: tuple[Head, ...]


def load_heads(checkpoint: str | Path, names: Sequence[str]) -> ExportRequest:
    """Load the heads `names` of a run, a checkpoint, a release folder or a Hub id. Raises `UserError`.

    Without names they are those that answer by default (`CoVeR.default_heads`).
    """
    folder = find_release(checkpoint)
    model = load_release(folder)
    known = {each.name: each for each in model.head_list}
    if not known:
        raise UserError(f"{folder}: has no head, so there is no classifier to export")
    for name in names:
        if name not in known:
            raise UserError(f'{folder}: has no head "{name}"{nearest(name, known)}')
    chosen = tuple(known[name] for name in dict.fromkeys(names))
    return ExportRequest(folder, model, chosen or model.default_heads)


def check_file(out: Path, ending: str) -> None:
    """Raise `UserError` if `out` exists or does not have the ending of its format."""
    if out.suffix != ending:
        better = out / f"model{ending}" if out.is_dir() else out.with_suffix(ending)
        raise UserError(f"{out}: name it {ending}, as in --out {better}")
    for path in (out, data_of(out)):
        if path.exists():
            raise UserError(f"{path}: is there already; choose a new file with --out")


def data_of(out: Path) -> Path:
    """The file of weights that are too large for `out` itself."""
    return out.with_name(f"{out.name}.data")


@contextmanager
def write_then_rename(out: Path) -> Iterator[Path]:
    """Yield a path with the name of `out` in a temporary folder. At the end, move all files beside it to their place.

    `out` itself is moved last. So if it exists, all other files exist too. Raises `UserError` if a file exists already.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder) / out.name
            outputs = sorted(Path(folder).iterdir(), key=lambda path: path.name == out.name)  # `out` is last
            for path in outputs:
                _check_free(out.parent / path.name)
            for path in outputs:
                _place(path, out.parent / path.name)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{out}: has appeared meanwhile and does not change; choose another name with --out")


def _place(output: Path, out: Path) -> None:
    if not output.is_dir():
        try:
            os.link(output, out)  # unlike a rename, a link never replaces a file
            return
        except FileExistsError:
            _check_free(out)
        except OSError:  # the file system has no links
            _check_free(out)
    output.rename(out)


# --- graph ------------------------------------------------------------------------------------------------------------


class FeatureGraph(nn.Module):
    """A module whose graph is exported: the features of clips.

    Input: `clips`, uint8 `(B, frames, 3, size, size)`, RGB. Output: the backbone's features, float32 `(B, D)`. It
    changes `model`: `Backbone.simplify` gives the backbone a simpler graph of the same function.
    """

    outputs: tuple[str, ...] = ("features",)

    def __init__(self, model: CoVeR, frames: int) -> None:
        super().__init__()
        self.model, self.frames = model.eval(), frames
        model.backbone.simplify()

    def features(self, clips: Tensor) -> Tensor:
        """The features `(B, D)` of clips."""
        group = (clips.shape[0], self.frames)
        return self.model.forward_features(self.model.normalize(clips.flatten(0, 1)), (group,))

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        return {"features": self.features(clips)}

    def example(self, batch: int) -> Tensor:
        """Random clips, the same ones in each call."""
        size = self.model.backbone.pixels.size
        shape = (batch, self.frames, 3, size, size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Classifier(FeatureGraph):
    """A `FeatureGraph` whose outputs are the probabilities of each of `heads`, float32 `(B, classes)`."""

    def __init__(self, model: CoVeR, heads: Sequence[Head], frames: int) -> None:
        super().__init__(model, frames)
        self.chosen, self.outputs = tuple(heads), tuple(head.name for head in heads)

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        features = self.features(clips)
        return {head.name: head.probabilities(self.model.heads[head.name](features)) for head in self.chosen}


def trace(graph: FeatureGraph) -> ExportedProgram:
    """The graph of a module, for any number of clips, at least 1."""
    shapes = {INPUT: {0: Dim("batch", min=1)}}
    with torch.no_grad():
        return torch.export.export(graph, (graph.example(2),), dynamic_shapes=shapes)


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off logs and warnings, because exporters write many that do not help the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- metadata and .pt2 files ------------------------------------------------------------------------------------------


def metadata_of(request: ExportRequest, frames: int, precision: str) -> dict[str, Any]:
    """The metadata of an export, as JSON values: input, pixels, checkpoint, and the classes and views of each head.

    `precision`: of the weights of matrix products, `float32` or `int8`.
    """
    pixels, predictor = request.model.backbone.pixels, Predictor(request.model)
    return {
        "cover": __version__,
        "step": request.model.metadata.get("step"),
        "weights_sha256": _digest(request.folder / WEIGHTS),
        "precision": precision,
        "input": INPUT,
        "frames": frames,
        "size": pixels.size,
        "colour": "RGB",
        "resize": {
            "short_side": pixels.size,
            "filter": f"{pixels.interpolation}, antialiased",
            "crop": "squares along the long side, of one the middle",
        },
        "normalisation": {"where": "inside the graph", "mean": list(pixels.mean), "std": list(pixels.std)},
        "heads": {head.name: _head(head, predictor) for head in request.heads},
    }


def text_of(facts: dict[str, Any]) -> str:
    """The metadata as JSON text."""
    return json.dumps(facts, ensure_ascii=False)


def _head(head: Head, predictor: Predictor) -> dict[str, Any]:
    plan = predictor.plan(head.name)
    dense = plan.sampling.kind == "dense"
    return {
        "classes": list(head.classes),
        "class_digest": class_digest(head.classes),
        "loss": head.loss,
        "output": f"probabilities: the {head.loss} is inside the graph",
        "sampling": plan.sampling.kind,
        "interval": plan.sampling.interval if dense else None,
        "views": str(plan.views),
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def export_torch(checkpoint: str | Path, heads: Sequence[str], out: Path, frames: int | None = None) -> None:
    """Write `heads` (empty: as `load_heads`) to a .pt2 file for `torch.export.load`.

    Its extra file `cover.json` is the metadata. `frames`: frames of a clip (default: as in training; 1 for images).
    Raises `UserError`.
    """
    check_file(out, ".pt2")
    request = load_heads(checkpoint, heads)
    length = frames or request.model.frames
    metadata = text_of(metadata_of(request, length, "float32"))
    with quiet(), write_then_rename(out) as path:
        program = trace(Classifier(request.model, request.heads, length))
        torch.export.save(program, path, extra_files={METADATA_FILE: metadata})
