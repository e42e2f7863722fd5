"""What should a reader of a release know before using it? The text of its README.md, on the Hub's conventions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cover.model.timesformer import Head, ModelConfig

FRONT_MATTER = """---
# license: state here under which licence these weights may be used; it depends on the data they were trained on
library_name: cover-video
pipeline_tag: video-classification
tags:
- video-classification
- image-classification
- timesformer
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


def card(config: ModelConfig, heads: tuple[Head, ...], about: Mapping[str, Any]) -> str:
    """The model card of a release. `about`: what training or an import wrote of it; what it lacks is left out."""
    sets = about.get("datasets", {})
    frames = about.get("frames", config.frames)
    parts = [
        "# CoVeR release\n", _what(config, frames), _origin(about), _heads(heads, sets), _pixels(config, frames), _data(sets),
        USE.format(groups=f"((1, {frames}),)", size=config.size),
    ]  # fmt: skip
    return FRONT_MATTER + "\n" + "\n".join(part for part in parts if part)


def _what(config: ModelConfig, frames: int) -> str:
    size = f"width {config.width}, depth {config.depth}, {config.attention_heads} attention heads, patches of {config.patch} px"
    return (
        f"A video and image transformer (TimeSformer) with one classifier per data set: {config.attention} space-time attention, "
        f"time {config.time}, {size}, clips of {frames} frames.\n"
    )


def _origin(about: Mapping[str, Any]) -> str:
    if imported := about.get("imported"):
        return f"Imported from `{imported['weights']}` ({imported['format']}).\n"
    return f"Trained for {about['step']} steps with cover {about.get('cover', '')}.\n" if about.get("step") else ""


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
        f"- {head.name} is multi-label: take the sigmoid of each class, not the softmax.\n" for head in heads if head.loss == "sigmoid"
    ]
    notes = "\n" + "".join(shared + several) if shared or several else ""
    return "## Heads\n\n" + columns + "\n".join(rows) + "\n" + notes


def _sampling(told: Mapping[str, Any] | None) -> str:
    return f"{told['sampling']}, {told['views']}" if told else ""


def _pixels(config: ModelConfig, frames: int) -> str:
    values = {"mean": list(config.mean), "std": list(config.std)}
    return f"## Preprocessing\n\nRGB in 0..1, {config.size} x {config.size} px, {frames} frames per clip; `{json.dumps(values)}`.\n"


def _data(sets: Mapping[str, Any]) -> str:
    trained = {name: told["train_samples"] for name, told in sets.items() if told.get("train_samples")}
    rows = [f"- {name}: {count:,} {sets[name].get('media', 'sample')}s" for name, count in trained.items()]
    return "## Training data\n\n" + "\n".join(rows) + "\n" if rows else ""
