"""What the Hugging Face Hub needs: downloads, uploads, and the model card (its README.md, after the conventions of the
Hub).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cover.errors import UserError
from cover.model.backbone import Pixels
from cover.model.heads import Head

if TYPE_CHECKING:
    from cover.model.cover import CoVeR

CARD = "README.md"
FRONT_MATTER = """---
# license: state here under which licence these weights may be used; it depends on the data they were trained on
library_name: cover-video
pipeline_tag: video-classification
tags:
- video-classification
- image-classification
- {family}
- cover
---
"""
USE = """## Use

```python
from cover import CoVeR
model = CoVeR.from_pretrained("FOLDER_OR_HUB_ID")
logits = model(model.normalize(frames), groups={groups})  # frames: uint8 (T, 3, {size}, {size})
```

`cover predict FOLDER clip.mp4` does the decoding, the views and the class names.
"""


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file or folder here has the form `owner/name` of the Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def fetch(repo: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The folder of a Hub repository's files that match `patterns`: downloaded, or from the cache where the Hub cannot
    be reached.

    Raises `UserError`: no such repository or revision, no access, or offline and not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError:
        raise UserError(
            f"{repo}: no such folder here, and it is not in the Hub's cache, nor can the Hub be reached"
        ) from None
    except (EntryNotFoundError, HTTPError, OSError, ValueError) as error:
        raise UserError(f"{repo}: no such folder here, and the Hub does not give it: {_first_line(error)}") from None


def upload(folder: Path, repo: str, private: bool, message: str) -> str:
    """Put the files of `folder` into a model repository, made where it is new; returns its address. Raises `UserError`.

    A card (README.md) that the repository has already is its owner's text and stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        own_card = api.file_exists(repo, CARD)
        api.upload_folder(
            folder_path=folder, repo_id=repo, commit_message=message, ignore_patterns=[CARD] if own_card else None
        )
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"{repo}: cannot be uploaded: {_first_line(error)}") from None
    return str(address)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- the model card ---------------------------------------------------------------------------------------------------


def card(model: CoVeR, metadata: Mapping[str, Any]) -> str:
    """The model card. `metadata`: as training or an import wrote it; what it lacks is left out."""
    sets, pixels = metadata.get("datasets", {}), model.backbone.pixels
    frames = metadata.get("frames", model.config.frames)
    parts = [
        "# CoVeR release\n",
        _network(model, frames),
        _origin(metadata),
        _heads(model.head_list, sets),
        _pixels(pixels, frames),
        _data(sets),
        USE.format(groups=f"((1, {frames}),)", size=pixels.size),
    ]
    return FRONT_MATTER.format(family=model.config.family) + "\n" + "\n".join(part for part in parts if part)


def _network(model: CoVeR, frames: int) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in model.config.summary().items())
    return (
        f"A video and image network ({model.config.family}: {settings}; features of {model.backbone.width} numbers) with one classifier "
        f"per data set, for clips of {frames} frames.\n"
    )


def _origin(metadata: Mapping[str, Any]) -> str:
    if imported := metadata.get("imported"):
        return f"Imported from `{imported['weights']}` ({imported['format']}).\n"
    return (
        f"Trained for {metadata['step']} steps with cover {metadata.get('cover', '')}.\n"
        if metadata.get("step")
        else ""
    )


def _heads(heads: tuple[Head, ...], sets: Mapping[str, Any]) -> str:
    from cover.datasets.manifest import class_digest

    if not heads:
        return "It has no classifier: a start for training.\n"
    rows = [
        f"| {head.name} | {len(head.classes)} | `{class_digest(head.classes)}` | {_sampling(sets.get(head.datasets[0]))} |"
        for head in heads
    ]
    columns = "| head | classes | digest of the class list | clips, views |\n|---|---:|---|---|\n"
    shared = [f"- {head.name} is shared by {', '.join(head.serves)}.\n" for head in heads if head.serves]
    several = [
        f"- {head.name} is multi-label: take the sigmoid of each class, not the softmax.\n"
        for head in heads
        if head.loss == "sigmoid"
    ]
    notes = "\n" + "".join(shared + several) if shared or several else ""
    return "## Heads\n\n" + columns + "\n".join(rows) + "\n" + notes


def _sampling(known: Mapping[str, Any] | None) -> str:
    return f"{known['sampling']}, {known['views']}" if known else ""


def _pixels(pixels: Pixels, frames: int) -> str:
    values = {"mean": list(pixels.mean), "std": list(pixels.std)}
    return f"## Preprocessing\n\nRGB in 0..1, {pixels.size} x {pixels.size} px, {frames} frames per clip; `{json.dumps(values)}`.\n"


def _data(sets: Mapping[str, Any]) -> str:
    trained = {name: known["train_samples"] for name, known in sets.items() if known.get("train_samples")}
    rows = [f"- {name}: {count:,} {sets[name].get('media', 'sample')}s" for name, count in trained.items()]
    return "## Training data\n\n" + "\n".join(rows) + "\n" if rows else ""
