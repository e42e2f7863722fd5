"""The Hugging Face Hub: downloads, uploads and the model card (README.md, following the conventions of the Hub)."""

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
# license: state the licence of these weights here; it depends on the data they were trained on
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

`cover predict FOLDER clip.mp4` decodes a file, averages its views and prints class names.
"""


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/name` of the Hub. The caller has checked that it is no local path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def fetch(repo: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Download the files of a Hub repository that match `patterns`; returns their folder.

    If the Hub cannot be reached, the files come from its cache. Raises `UserError` if the repository or revision does
    not exist, if access is denied, or if the machine is offline and the cache lacks the files.
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
    """Upload the files of `folder` into a model repository; returns its address. Raises `UserError`.

    The repository is created if it does not exist. An existing card (README.md) is not replaced, because its owner may
    have edited it.
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
    """The text of the model card.

    `metadata`: as training or an import wrote it. The card leaves out a section for which `metadata` has no entry.
    """
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
    network = f"{model.config.family}: {settings}; features of {model.backbone.width} numbers"
    return f"A video and image network ({network}) with one classifier per data set, for clips of {frames} frames.\n"


def _origin(metadata: Mapping[str, Any]) -> str:
    if imported := metadata.get("imported"):
        licence = f" Licence of the weights: {imported['licence']}." if "licence" in imported else ""
        return f"Imported from `{imported['weights']}` ({imported['format']}).{licence}\n"
    if not metadata.get("step"):
        return ""
    return f"Trained for {metadata['step']} steps with cover {metadata.get('cover', '')}.\n"


def _heads(heads: tuple[Head, ...], sets: Mapping[str, Any]) -> str:
    from cover.datasets.manifest import class_digest

    if not heads:
        return "It has no classifier: use it as a starting point for training.\n"
    rows = []
    for head in heads:
        digest, sampling = class_digest(head.classes), _sampling(sets.get(head.datasets[0]))
        rows.append(f"| {head.name} | {len(head.classes)} | `{digest}` | {sampling} |")
    columns = "| head | classes | digest of the class list | clips, views |\n|---|---:|---|---|\n"
    shared = [f"- {head.name} is shared by {', '.join(head.serves)}.\n" for head in heads if head.serves]
    multi_label = [
        f"- {head.name} is multi-label: take the sigmoid of each class, not the softmax.\n"
        for head in heads
        if head.loss == "sigmoid"
    ]
    notes = "\n" + "".join(shared + multi_label) if shared or multi_label else ""
    return "## Heads\n\n" + columns + "\n".join(rows) + "\n" + notes


def _sampling(dataset: Mapping[str, Any] | None) -> str:
    return f"{dataset['sampling']}, {dataset['views']}" if dataset else ""


def _pixels(pixels: Pixels, frames: int) -> str:
    values = json.dumps({"mean": list(pixels.mean), "std": list(pixels.std)})
    sizes = f"{pixels.size} x {pixels.size} px, {frames} frames per clip"
    return f"## Preprocessing\n\nRGB in 0..1, {sizes}; `{values}`.\n"


def _data(sets: Mapping[str, Any]) -> str:
    trained = {name: dataset["train_samples"] for name, dataset in sets.items() if dataset.get("train_samples")}
    rows = [f"- {name}: {count:,} {sets[name].get('media', 'sample')}s" for name, count in trained.items()]
    return "## Training data\n\n" + "\n".join(rows) + "\n" if rows else ""
