"""Export through torch.export: the graph from clips to the probabilities of the chosen heads, its metadata, and .pt2
files.
"""

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
from cover.model.release import WEIGHTS, load_release, release_folder


@dataclass(frozen=True)
class ExportRequest:
    """A model in evaluation mode, the folder that it came from, and those of its heads that are wanted."""

    folder: Path
    model: CoVeR
    heads: tuple[Head, ...]


def load_heads(checkpoint: str | Path, names: Sequence[str]) -> ExportRequest:
    """The heads called `names`, or all, of a run, a checkpoint, a release folder or a Hub id. Raises `UserError`."""
    folder = release_folder(checkpoint)
    model = load_release(folder)
    known = {each.name: each for each in model.head_list}
    if not known:
        raise UserError(f"{folder}: has no head, and what is exported is a classifier")
    for name in names:
        if name not in known:
            raise UserError(f'{folder}: has no head "{name}"{nearest(name, known)}')
    return ExportRequest(folder, model, tuple(known[name] for name in dict.fromkeys(names or known)))


def check_file(out: Path, ending: str) -> None:
    """Raises `UserError` where `out` is there already, or is not named as its format wants."""
    if out.suffix != ending:
        better = out / f"model{ending}" if out.is_dir() else out.with_suffix(ending)
        raise UserError(f"{out}: name it {ending}, as in --out {better}")
    for path in (out, data_of(out)):
        if path.exists():
            raise UserError(f"{path}: is there already; choose a new file with --out")


def data_of(out: Path) -> Path:
    """Where the weights lie that are too large for their file."""
    return out.with_name(f"{out.name}.data")


@contextmanager
def write_then_rename(out: Path) -> Iterator[Path]:
    """Yields a path of the same name in a folder of its own; what has been written there is moved into place when it is
    whole.

    What is called as `out` is moved last: who finds it finds all that belongs to it. Raises `UserError` where there is
    something by now.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder) / out.name
            outputs = sorted(Path(folder).iterdir(), key=lambda path: path.name == out.name)
            for path in outputs:
                _check_free(out.parent / path.name)
            for path in outputs:
                _place(path, out.parent / path.name)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{out}: has come meanwhile, and is left as it is; choose another name with --out")


def _place(output: Path, out: Path) -> None:
    if not output.is_dir():
        try:
            os.link(output, out)  # unlike a rename, never onto a file
            return
        except FileExistsError:
            _check_free(out)
        except OSError:  # of a file system that has no links
            _check_free(out)
    output.rename(out)


INPUT = "clips"


class Classifier(nn.Module):
    """`clips` uint8 `(B, frames, 3, size, size)`, RGB, to head name -> its probabilities, float32 `(B, classes)`.

    Takes over `model`, whose backbone is simplified for a graph (`Backbone.simplify`); the function stays the same.
    """

    def __init__(self, model: CoVeR, heads: Sequence[Head], frames: int) -> None:
        super().__init__()
        self.model, self.chosen, self.frames = model.eval(), tuple(heads), frames
        model.backbone.simplify()

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        features = self.model.forward_features(
            self.model.normalize(clips.flatten(0, 1)), ((clips.shape[0], self.frames),)
        )
        return {head.name: head.probabilities(self.model.heads[head.name](features)) for head in self.chosen}

    def example(self, batch: int) -> Tensor:
        """Clips of noise, the same ones each time."""
        size = self.model.backbone.pixels.size
        shape = (batch, self.frames, 3, size, size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trace(classifier: Classifier) -> ExportedProgram:
    """Its graph, for any number of clips from 1 on."""
    with torch.no_grad():
        return torch.export.export(
            classifier, (classifier.example(2),), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}}
        )


@contextmanager
def quiet() -> Iterator[None]:
    """What exporters narrate of their own workings is not for who exports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


METADATA_KEY = "cover"  # of the metadata of an ONNX model


def metadata_of(choice: ExportRequest, frames: int, precision: str) -> dict[str, Any]:
    """Input, pixels, checkpoint, and for each head its classes, its loss and how it looks at a video. Plain JSON.

    `precision`: of the weights of the matrix products, `float32` or `int8`.
    """
    pixels, predictor = choice.model.backbone.pixels, Predictor(choice.model)
    return {
        "cover": __version__,
        "step": choice.model.metadata.get("step"),
        "weights_sha256": _digest(choice.folder / WEIGHTS),
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
        "heads": {head.name: _head(head, predictor) for head in choice.heads},
    }


def text_of(facts: dict[str, Any]) -> str:
    """As it stands in a file."""
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


METADATA_FILE = "cover.json"  # of the extra files


def export_torch(checkpoint: str | Path, heads: Sequence[str], out: Path, frames: int | None = None) -> None:
    """Write the heads called `heads`, or all, for `torch.export.load`, with what has to be known beside the graph as
    `cover.json`.

    `frames`: of a clip (default: as trained; 1 for images). Raises `UserError`.
    """
    check_file(out, ".pt2")
    choice = load_heads(checkpoint, heads)
    length = frames or choice.model.frames
    record = text_of(metadata_of(choice, length, "float32"))
    with quiet(), write_then_rename(out) as path:
        torch.export.save(
            trace(Classifier(choice.model, choice.heads, length)), path, extra_files={METADATA_FILE: record}
        )
