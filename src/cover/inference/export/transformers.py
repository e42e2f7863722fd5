"""Export of a head as a folder that transformers' `TimesformerForVideoClassification` loads."""

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
    """Write one head as a folder for transformers' `TimesformerForVideoClassification.from_pretrained`, which gives the
    same logits.

    `head` may be None where there is one only. Raises `UserError` naming the setting for which transformers has no such
    function.
    """
    choice = load_heads(checkpoint, [head] if head else [])
    if len(choice.heads) > 1:
        raise UserError(f"which head? --head one of {', '.join(each.name for each in choice.heads)}")
    try:
        check_transformers(choice.model.config)
    except UserError as error:
        raise UserError(f"{choice.folder}: {error}") from None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose a new folder with --out")
    # A folder that is there may be a mount or where the user stands: it is filled, not replaced, and its configuration
    # comes last.
    filled = out.is_dir()
    with write_then_rename(out / CONFIG if filled else out) as path:
        _write(choice, path.parent if filled else path)


def _write(choice: ExportRequest, out: Path) -> None:
    from safetensors.torch import save_file

    (head,), config = choice.heads, choice.model.config
    out.mkdir(exist_ok=True)
    tensors = to_transformers(choice.model, head.name)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, str(out / WEIGHTS), metadata={"format": "pt"}
    )
    for name, content in (
        (CONFIG, transformers_config(config, head)),
        ("preprocessor_config.json", transformers_preprocessor(config)),
    ):
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
