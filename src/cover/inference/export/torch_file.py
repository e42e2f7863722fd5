"""How does a classifier become a program that torch alone can load? By torch.export, as a .pt2 file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cover.inference.export.choice import check_file, choose, written_beside
from cover.inference.export.facts import facts, text_of
from cover.inference.export.traced import Classifier, quiet, trace

FACTS = "cover.json"  # of the extra files


def export_torch(checkpoint: str | Path, heads: Sequence[str], out: Path, frames: int | None = None) -> None:
    """Write the heads called `heads`, or all, for `torch.export.load`, with what has to be known beside the graph as `cover.json`.

    `frames`: of a clip (default: as trained; 1 for images). Raises `UserError`.
    """
    check_file(out, ".pt2")
    choice = choose(checkpoint, heads)
    length = frames or choice.model.frames
    told = text_of(facts(choice, length, "float32"))
    with quiet(), written_beside(out) as path:
        torch.export.save(trace(Classifier(choice.model, choice.heads, length)), path, extra_files={FACTS: told})
