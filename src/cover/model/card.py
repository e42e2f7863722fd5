"""The model card of a release: its README.md, with front matter that the Hub's validator accepts.

A card says what the release knows of itself: data sets, start, heads. What was measured comes from the caller. A
section without a fact is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cover.hub import is_hub_id
from cover.model.backbone import Pixels
from cover.model.heads import Head

if TYPE_CHECKING:
    from cover.model.cover import CoVeR

LICENCE_COMMENT = "# license: state the licence of these weights; it depends on the data and on the start\n"
USE = """## Use

```python
from cover import CoVeR
model = CoVeR.from_pretrained("{source}")
logits = model(model.normalize(frames), groups={groups})  # frames: uint8 (T, 3, {size}, {size})
```

`cover predict {source} clip.mp4` decodes a file, averages its views and prints class names;
`cover serve {source} --page` shows them in a browser.
"""
ZERO_SHOT = """
It also has the text network of its start: `cover predict {source} clip.mp4 --classes "archery, bowling"` predicts any
class names.
"""
NO_SOURCE = "FOLDER_OR_HUB_ID"
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial|research", re.IGNORECASE)
FEW_OF_A_CLASS = 20  # training samples of a class below which a card warns


@dataclass(frozen=True)
class CardResult:
    """A measured accuracy with its protocol.

    `measured`: the split, or the number of folds. `metric`: `top1` or `map`, both from 0 to 1; `low`, `high`: the ends
    of its 95 % interval, None if there are too few sources. `baselines`: title of a trivial method -> its top-1 on the
    same samples. `behind`: the titles of those that the model is not above.
    """

    dataset: str
    measured: str
    media: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n_read: int
    n_listed: int
    frames: int
    views: str
    baselines: Mapping[str, float] = field(default_factory=dict)
    behind: tuple[str, ...] = ()


@dataclass(frozen=True)
class CardFacts:
    """What a card says beyond its release: the name of the repository, the licence as the Hub spells it, results.

    `text`: whether the release has a text network.
    """

    name: str = ""
    licence: str = ""
    results: tuple[CardResult, ...] = ()
    text: bool = False


NO_FACTS = CardFacts()


def card(model: CoVeR, metadata: Mapping[str, Any], facts: CardFacts = NO_FACTS) -> str:
    """The text of the model card. `metadata`: as training or an import wrote it."""
    sets, pixels = metadata.get("datasets", {}), model.backbone.pixels
    frames = metadata.get("frames", model.config.frames)
    source = facts.name or NO_SOURCE
    parts = [
        f"# {facts.name or 'CoVeR release'}\n",
        _network(model, frames),
        _origin(metadata),
        _results(facts.results),
        _heads(model, metadata),
        _data(sets),
        _limits(model.head_list, metadata, facts.results),
        _pixels(pixels, frames),
        USE.format(source=source, groups=f"((1, {frames}),)", size=pixels.size)
        + (ZERO_SHOT.format(source=source) if facts.text else ""),
    ]
    text = _front_matter(model, metadata, facts) + "\n" + "\n".join(part for part in parts if part)
    return f"{text}\n{_mark(text)}\n"


def _mark(text: str) -> str:
    return f"<!-- written by cover; digest of the text above: {hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def is_edited(text: str) -> bool:
    """Whether someone has written or changed a card. If not, a newer one may take its place."""
    above, newline, last = text.rstrip("\n").rpartition("\n")
    return not newline or last != _mark(above)


# --- front matter -----------------------------------------------------------------------------------------------------


def _front_matter(model: CoVeR, metadata: Mapping[str, Any], facts: CardFacts) -> str:
    import yaml

    tasks = ["video-classification", "image-classification"]
    if {each.get("media") for each in metadata.get("datasets", {}).values()} == {"image"}:
        tasks.reverse()
    values: dict[str, Any] = {"license": facts.licence} if facts.licence else {}
    values |= {"library_name": "cover-video", "pipeline_tag": tasks[0], "tags": [*tasks, model.config.family, "cover"]}
    if is_hub_id(weights := _start(metadata).get("weights", "")):
        values["base_model"] = weights
    if facts.results:
        values["metrics"] = sorted({_METRICS[each.metric][0] for each in facts.results})
        name = facts.name.rpartition("/")[2] or "cover"
        values["model-index"] = [{"name": name, "results": [_indexed(each) for each in facts.results]}]
    comment = "" if facts.licence else LICENCE_COMMENT
    return f"---\n{comment}{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


_METRICS = {"top1": ("accuracy", "top-1"), "map": ("mean_average_precision", "mAP")}  # of the Hub, and our title


def _indexed(result: CardResult) -> dict[str, Any]:
    """A result as the Hub's model index has it."""
    kind, title = _METRICS[result.metric]
    dataset = {"name": result.dataset, "type": result.dataset}
    if result.measured in ("train", "dev", "val", "test"):
        dataset["split"] = result.measured
    return {
        "task": {"type": f"{result.media}-classification"},
        "dataset": dataset,
        "metrics": [{"type": kind, "name": title, "value": round(result.value, 4)}],
    }


# --- sections ---------------------------------------------------------------------------------------------------------


def _network(model: CoVeR, frames: int) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in model.config.summary().items())
    network = f"{model.config.family}: {settings}; features of {model.backbone.width} numbers"
    return f"A video and image network ({network}) with one classifier per data set, for clips of {frames} frames.\n"


def _start(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Weights, format and licence of the weights of others that a release is made of or has started from."""
    start: Mapping[str, Any] = metadata.get("imported") or metadata.get("start") or {}
    return start


def _origin(metadata: Mapping[str, Any]) -> str:
    start = _start(metadata)
    licence = f" Licence of these weights: {start['licence']}." if start.get("licence") else ""
    format_ = f" ({start['format']})" if start.get("format") else ""
    source = f"`{start.get('weights')}`{format_}"
    if metadata.get("imported"):
        return f"Imported from {source}.{licence}\n"
    steps = (
        f"Trained for {metadata['step']:,} steps with cover {metadata.get('cover', '')}" if metadata.get("step") else ""
    )
    if not start.get("weights"):
        return f"{steps}, from random weights.\n" if steps and "start" in metadata else f"{steps}.\n" if steps else ""
    fitted = "The network's own weights are those of its start; the classifier was fitted"
    return f"{steps or fitted}. It started from {source}.{licence}\n"


def _results(results: Sequence[CardResult]) -> str:
    if not results:
        return ""
    titles = list(dict.fromkeys(title for each in results for title in each.baselines))
    columns = ["data set", "measured on", "clips", "read of listed", "model", *titles]
    rows = [
        [
            each.dataset,
            each.measured,
            f"{each.frames} frames, {each.views} views" if each.media == "video" else f"image, {each.views} views",
            f"{each.n_read:,} of {each.n_listed:,}",
            _figure(each),
            *(f"{100 * each.baselines[title]:.1f}" if title in each.baselines else "" for title in titles),
        ]
        for each in results
    ]
    return (
        "## Results\n\n"
        + _table(columns, rows)
        + "\nIn per cent, in brackets the 95 % interval over the sources of the samples. Beside the model: what trivial"
        " methods reach on the same samples. Every sample of the split counts once; scores of views are averaged.\n"
    )


def _figure(result: CardResult) -> str:
    title = "" if result.metric == "top1" else f" {_METRICS[result.metric][1]}"
    if result.low is None or result.high is None:
        return f"**{100 * result.value:.1f}**{title}"
    return f"**{100 * result.value:.1f}**{title} ({100 * result.low:.1f} to {100 * result.high:.1f})"


def _heads(model: CoVeR, metadata: Mapping[str, Any]) -> str:
    from cover.datasets.manifest import class_digest

    heads, sets = model.head_list, metadata.get("datasets", {})
    if not heads:
        return "It has no classifier: use it as a starting point for training.\n"
    rows = [
        [head.name, f"{len(head.classes)}", f"`{class_digest(head.classes)}`", _sampling(sets.get(head.datasets[0]))]
        for head in heads
    ]
    shared = [f"- {head.name} is shared by {', '.join(head.serves)}.\n" for head in heads if head.serves]
    multi_label = [
        f"- {head.name} is multi-label: take the sigmoid of each class, not the softmax.\n"
        for head in heads
        if head.loss == "sigmoid"
    ]
    default = metadata.get("default_head")
    alone = [f"- {default} answers where no head is named; `--head` names others.\n"] if heads[1:] and default else []
    lines = alone + shared + multi_label
    notes = "\n" + "".join(lines) if lines else ""
    return "## Heads\n\n" + _table(["head", "classes", "digest of the class list", "clips, views"], rows) + notes


def _sampling(dataset: Mapping[str, Any] | None) -> str:
    return f"{dataset['sampling']}, {dataset['views']}" if dataset else ""


def _data(sets: Mapping[str, Any]) -> str:
    trained = {name: dataset for name, dataset in sets.items() if dataset.get("train_samples")}
    if not trained:
        return ""
    rows = [
        [name, f"{each['train_samples']:,} {each.get('media', 'sample')}s", each.get("licence") or "not stated"]
        for name, each in trained.items()
    ]
    return "## Training data\n\n" + _table(["data set", "training samples", "licence"], rows)


def _limits(heads: Sequence[Head], metadata: Mapping[str, Any], results: Sequence[CardResult]) -> str:
    lines = []
    if any(head.loss == "softmax" for head in heads):
        lines.append(
            "Whatever a video shows, it gets one of the classes of a head: there is no class for anything else."
        )
    measured = {each.dataset for each in results}
    if heads and not measured:
        lines.append("No accuracy is stated here. `cover evaluate` measures it on your data.")
    elif unmeasured := [head.name for head in heads if not measured & set(head.datasets)]:
        lines.append(f"No accuracy is stated for {', '.join(unmeasured)}.")
    for each in results:
        if each.behind:
            lines.append(f"On {each.dataset} it is not above {', '.join(each.behind)}.")
        if each.measured == "dev":
            lines.append(f"{each.dataset} was measured on dev, a part of its training samples that was kept apart.")
    lines += _few(heads, metadata)
    licence = _start(metadata).get("licence", "")
    if NON_COMMERCIAL.search(licence):
        lines.append(f"The licence of its start ({licence}) may restrict the use of these weights too.")
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _few(heads: Sequence[Head], metadata: Mapping[str, Any]) -> list[str]:
    """A line for each data set with few training samples of a class."""
    lines = []
    for head in heads:
        for name in head.datasets:
            count = metadata.get("datasets", {}).get(name, {}).get("train_samples", 0)
            if 0 < count < FEW_OF_A_CLASS * len(head.classes):
                each = count / len(head.classes)
                lines.append(
                    f"{name} has {each:.0f} training samples per class on average: expect errors on other recordings."
                )
    return lines


def _pixels(pixels: Pixels, frames: int) -> str:
    values = json.dumps({"mean": list(pixels.mean), "std": list(pixels.std)})
    sizes = f"{pixels.size} x {pixels.size} px, {frames} frames per clip"
    return f"## Preprocessing\n\nRGB in 0..1, {sizes}; `{values}`.\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """A text without what would end a cell or a line, or begin HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
