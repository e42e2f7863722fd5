"""The Hugging Face Hub: downloads, uploads and the model card (README.md, following the conventions of the Hub)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    with _door(f"{repo}: no such folder here, and the Hub does not give it"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = snapshot_download(repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"])
        except LocalEntryNotFoundError:
            raise UserError(
                f"{repo}: no such folder here, and it is not in the Hub's cache, nor can the Hub be reached"
            ) from None
        return Path(folder)


@contextmanager
def _door(failed: str) -> Iterator[None]:
    """In this block, every exception of the Hub's client becomes a `UserError` that begins with `failed`.

    The client and the libraries below it have no common base of their exceptions. Environment variables of a wrong
    form, such as HF_HUB_ETAG_TIMEOUT=abc, raise ValueError already at the import, and a SOCKS proxy without its package
    raises ImportError.
    """
    try:
        # It reads the environment. If another module of the client imports it, its exception is printed too.
        import huggingface_hub.constants  # noqa: F401

        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{failed}: {_first_line(error)}{_cause(error)}") from None


def _cause(error: Exception) -> str:
    """A hint at a setting of the environment that can be the cause; empty if there is none."""
    if isinstance(error, ValueError) and "literal" in str(error):
        for name, value in sorted(os.environ.items()):
            if name.startswith(("HF_", "HUGGINGFACE_")) and value in str(error):
                return f" (the environment variable {name} is {value!r})"
    if isinstance(error, ImportError) and "socks" in str(error).lower():
        return " (a proxy in the environment is a SOCKS proxy: pip install socksio)"
    proxies = [name for name in os.environ if name.lower().endswith("_proxy") and name.lower() != "no_proxy"]
    named = isinstance(error, OSError | ValueError) and "proxy" in f"{type(error).__name__} {error}".lower()
    return f" (proxies in the environment: {', '.join(sorted(proxies))})" if proxies and named else ""


def upload(folder: Path, repo: str, private: bool, message: str) -> str:
    """Upload the files of `folder` into a model repository; returns its address. Raises `UserError`.

    The repository is created if it does not exist. An existing card (README.md) is not replaced, because its owner may
    have edited it.
    """
    with _door(f"{repo}: cannot be uploaded"):
        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(repo, private=private, exist_ok=True)
        own_card = api.file_exists(repo, CARD)
        api.upload_folder(
            folder_path=folder, repo_id=repo, commit_message=message, ignore_patterns=[CARD] if own_card else None
        )
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
