"""Export of a head as a folder for transformers' `TimesformerForVideoClassification`."""

from __future__ import annotations

import json
from pathlib import Path

from cover.errors import UserError
from cover.inference.export.graph import ExportRequest, load_heads, write_then_rename
from cover.model.release import CONFIG, WEIGHTS
from cover.model.starts.to_transformers import (
    check_transformers,
    to_transformers,
    transformers_config,
    transformers_preprocessor,
)


def export_transformers(checkpoint: str | Path, head: str | None, out: Path) -> None:
    """Write a folder for transformers' `TimesformerForVideoClassification.from_pretrained`. The logits are the same.

    `head` may be None if the checkpoint has one head only. Raises `UserError`, with the name of the setting, if
    transformers cannot compute the model.
    """
    request = load_heads(checkpoint, [head] if head else [])
    if len(request.heads) > 1:
        raise UserError(f"which head? give --head with one of {', '.join(each.name for each in request.heads)}")
    try:
        check_transformers(request.model.config)
    except UserError as error:
        raise UserError(f"{request.folder}: {error}") from None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose a new folder with --out")
    # An existing empty folder may be a mount or the working folder. So files are moved into it, the configuration last.
    exists = out.is_dir()
    with write_then_rename(out / CONFIG if exists else out) as path:
        _write(request, path.parent if exists else path)


def _write(request: ExportRequest, out: Path) -> None:
    from safetensors.torch import save_file

    (head,), config = request.heads, request.model.config
    out.mkdir(exist_ok=True)
    tensors = {name: value.contiguous() for name, value in to_transformers(request.model, head.name).items()}
    save_file(tensors, str(out / WEIGHTS), metadata={"format": "pt"})
    contents = {
        CONFIG: transformers_config(config, head),
        "preprocessor_config.json": transformers_preprocessor(config),
    }
    for name, content in contents.items():
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
