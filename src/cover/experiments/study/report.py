"""How is a study shown? One self-contained page, and the same as Markdown."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from cover.experiments.finding import number
from cover.experiments.study import figures, protocol, tables
from cover.experiments.study.claims import CLAIMS, SHOWN, Standing, asides, caution, expected, overall, standing
from cover.experiments.study.layout import Block, Commands, Figure, Folded, Group, Heading, Items, Part, Table, Words, absent, plain
from cover.experiments.study.words import ARM_WORDS, Row, unique
from cover.experiments.page import page

CLAIM_TITLES = {
    "a": "(a) One model for all, against a model of each set alone", "a, equal compute": "(a) at equal compute",
    "b": "(b) Images beside the videos",
    "c": "(c) Transfer", "d": "(d) As the target shrinks", "control": "Controls",
}  # fmt: skip
SIGNS = {
    SHOWN: "✓",
    "shown in part": "◐",
    "not shown": "–",
    "not shown, in part the opposite": "✗",
    "the opposite shown": "✗",
    "not asked": "·",
}


def write_study_report(summary: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a study's `summary` (`summary.summarise`; beside, then renamed) and return its path."""
    body = _opening(summary) + "\n".join(part.html() for part in parts(summary))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    # A name that is no valid text must not lose the report.
    beside.write_text(page(title(summary), body), encoding="utf-8", errors="backslashreplace")
    os.replace(beside, path)
    return path


def markdown(summary: Mapping[str, Any]) -> str:
    """A study in words and tables, the same as the page but for what can only be drawn."""
    found = _standings(summary)
    above = [f"# {plain(title(summary))}", plain(overall(found)), f"> {plain(caution(summary))}"]
    return "\n\n".join([*above, *(part.markdown() for part in parts(summary))]) + "\n"


def title(summary: Row) -> str:
    """What the study is about."""
    targets = unique(row["dataset"] for row in [*summary["arms"], *summary["transfers"]])
    seeds = len(summary["study"]["seeds"])
    counted = f"{number(len(targets))} data set{'s' * (len(targets) != 1)}, {number(seeds)} seed{'s' * (seeds != 1)}"
    return f"{'Does co-training help?' if summary['arms'] else 'What transfers?'} {counted[0].upper()}{counted[1:]}"


def parts(summary: Row) -> list[Part]:
    """All of the report below its opening."""
    return [
        _shown(summary), _accuracy(summary), _comparisons(summary), _transfers(summary), _curves(summary), _gaps(summary), _images(summary),
        _rates(summary), _classes(summary), _planned(summary), _protocol(summary), _again(summary),
    ]  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A claim and how it stands."""

    standing: Standing

    def html(self) -> str:
        """As a card: its sign and word say what its colour says."""
        own = self.standing
        sentences = Items(own.sentences).html() if own.sentences else ""
        kind = own.word.replace(",", "").replace(" ", "-")
        return (
            f'<article class="claim {kind}"><h3>({own.claim.key}) {escape(own.claim.words)}</h3>'
            f'<p class="stands"><b>{SIGNS[own.word]} {escape(own.word)}</b>{escape(_joint(own))}.</p>{sentences}</article>'
        )

    def markdown(self) -> str:
        """As a paragraph and its list."""
        own = self.standing
        head = f"**({own.claim.key}) {plain(own.claim.words)}** – {plain(own.word + _joint(own))}."
        return "\n\n".join([head, Items(own.sentences).markdown()]) if own.sentences else head


def _joint(own: Standing) -> str:
    return f" {own.where}" if own.where.startswith("on ") else f": {own.where}"


def _standings(summary: Row) -> list[Standing]:
    return [standing(claim, summary) for claim in CLAIMS]


def _opening(summary: Row) -> str:
    said = overall(_standings(summary))
    return (
        f'<header><h1>{escape(title(summary))}</h1><p class="lede">{escape(said)}</p>'
        f'<p class="caution">{escape(caution(summary))}</p></header>\n'
    )


def _shown(summary: Row) -> Part:
    blocks: list[Block] = [Words(expected(summary))] if summary["planned"] else []
    blocks += [Card(each) for each in _standings(summary)]
    for name, words, sentences in asides(summary):
        blocks += [Heading(name), Words(f"{words[0].upper()}{words[1:]}.", "caption"), Items(sentences)]
    margin = 100 * summary["study"]["margin"]
    caption = (
        "Differences are in points of top-1, with their 95 % interval over seeds and sources, and p corrected by Holm's rule. Better and "
        f"worse: p is below 0.05. Not worse: the whole interval lies above a loss of {margin:.1f} points. No difference shown: neither. "
        "What could have been found is the smallest true difference that a study of this spread finds four times in five."
    )
    return Part("What it shows", caption, blocks)


def _accuracy(summary: Row) -> Part:
    if not summary["arms"]:
        return Part("The numbers", "", [absent("No arms were trained: this study is of transfers alone.")])
    caption = (
        "Top-1 accuracy in per cent and its 95 % interval. ▲ better than the target alone, ▼ worse, Holm-corrected. All models of a table "
        "see a target's training clips equally often"
    )
    longer = any(row["arm"] == "alone_long" for row in summary["arms"])
    caption += "; the one at equal compute sees them longer." if longer else "."
    means = [f"{ARM_WORDS[arm]}: {summary['arms_mean'][arm]}" for arm in unique(row["arm"] for row in summary["arms"])]
    blocks: list[Block] = []
    for table in tables.accuracies(summary):
        blocks.append(table)
    blocks += [protocol.lines(summary["arms"], summary["study"]), Items(means, "protocol")]
    return Part("The numbers", caption, blocks)


def _comparisons(summary: Row) -> Part:
    if not summary["comparisons"]:
        return Part("Every comparison", "", [absent("Nothing was compared: there is no pair of arms or sources that a claim asks about.")])
    caption = (
        "Paired by clip and seed. Beside the 0 line, dashed, the loss that still counts as not worse. Plots of one claim share a scale. "
        "What could be found is in points: as planned from the expected spread, and from the spread that was seen."
    )
    blocks: list[Block] = [Figure(figures.forest_key())]
    for claim, words in CLAIM_TITLES.items():
        rows = [row for row in summary["comparisons"] if row["claim"] == claim]
        if rows:
            blocks += [Heading(words, "group"), Figure(figures.forests(rows, summary["study"]))]
            blocks.append(Folded(f"The same as a table, with {number(len(rows))} rows", [tables.comparisons(rows, summary)]))
    if len(summary["study"]["seeds"]) == 1:
        blocks.append(absent("Of one seed the spread between runs is not known, so what could be found from the spread seen is left out."))
    return Part("Every comparison", caption, blocks)


def _transfers(summary: Row) -> Part:
    if not summary["transfers"]:
        return Part("Transfer", "", [absent("No transfer was asked for (transfer.sources or transfer.checkpoints of the study).")])
    caption = (
        "Each model of a source, given a new head and trained on the target, all sources alike. Blue: sources of several data sets; green: "
        "of the target itself. The upright tick is chance, the thin line the 95 % interval."
    )
    return Part("Transfer", caption, [
        Figure(figures.transfers(summary), Group([tables.transfers(summary), protocol.lines(summary["transfers"], summary["study"])])),
    ])  # fmt: skip


def _curves(summary: Row) -> Part:
    rows, study = summary["curves"], summary["study"]
    if not any(row["dev"] or row["loss"] for row in rows):
        return Part("Learning curves", "", [absent("No learning curve was kept.")])
    caption = "One run of each, of the first seed (and fold, and learning rate). Equal positions mean equal experience of the target."
    first, others = _first(rows, lambda row: (row["size"], row["origin"]) == (rows[0]["size"], rows[0]["origin"]))
    blocks: list[Block] = [Figure(figures.curve_key(rows)), Figure(figures.curves(first, study), Words("Drawn in the HTML report."))]
    if others:
        blocks.append(Folded("The other sizes and starting weights", [Figure(figures.curves(others, study))]))
    return Part("Learning curves", caption, blocks)


def _first(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> tuple[list[Row], list[Row]]:
    """What is shown at once, and what is folded away."""
    return [row for row in rows if wanted(row)], [row for row in rows if not wanted(row)]


def _gaps(summary: Row) -> Part:
    if not any(row["gap"] for row in summary["arms"]):
        return Part("Training against dev", "", [absent("No run has both accuracy in training and on dev.")])
    caption = (
        "Points by which top-1 in training lies above that on dev; means over seeds and folds. In training: augmented clips, at the end of "
        "the run; on dev: at the checkpoint that was measured. A small gap with a low dev figure is underfitting."
    )
    return Part("Training against dev", caption, [tables.gaps(summary)])


def _images(summary: Row) -> Part:
    if not summary["probes"]:
        return Part("Images, before and after", "", [absent("No image set was probed (probes of the study).")])
    caption = (
        "How well a new classifier of images does on a model's frozen features: before video training, after it without images, and after "
        "it with images in the mixture. No differences are tested here; intervals are at 95 %."
    )
    groups = figures.probed(summary)
    study = summary["study"]
    blocks: list[Block] = [
        Figure(figures.probes(note, rows, study), Group([_noted(tables.probes(rows, summary), note), protocol.lines(rows, study)]))
        for note, rows in groups
    ]  # fmt: skip
    if not summary["origins"]:
        blocks.append(absent("No starting weights were pre-trained in this study, so there is no figure from before."))
    return Part("Images, before and after", caption, blocks)


def _noted(table: Table, note: str) -> Table:
    return Table(table.columns, table.rows, f"{table.title}, {note}" if note else table.title, table.kind)


def _rates(summary: Row) -> Part:
    if not summary["rates"]:
        return Part("The mixtures", "", [absent("Every run was of one data set.")])
    caption = "Share of the samples drawn, in per cent, and their number; first seed. An image counts as one sample, as a clip does."
    return Part("The mixtures", caption, [tables.rates(summary)])


def _classes(summary: Row) -> Part:
    if not summary["per_class"]:
        return Part("Class by class", "", [absent("No mixture stands beside a model of its target alone.")])
    caption = (
        "Gain of a mixture over the target alone, in points of each class's accuracy, mean over seeds. Single classes have few clips and "
        "are not tested: what stands at the ends of such a list is in part luck. All of them are in results.json."
    )
    last, study = summary["per_class"][-1], summary["study"]
    first, others = _first(summary["per_class"], lambda row: row["arm"] == last["arm"] and row["size"] == next(iter(study["sizes"])))
    blocks: list[Block] = [_drawn_classes(first, study)] if first else []
    if others:
        blocks.append(Folded("The other mixtures and sizes", [Figure(figures.classes(others, study))]))
    return Part("Class by class", caption, blocks)


def _drawn_classes(rows: Sequence[Row], study: Row) -> Block:
    return Figure(figures.classes(rows, study), Group([tables.classes(row) for row in rows]))


def _planned(summary: Row) -> Part:
    if not summary["planned"]:
        return Part("What could be found", "", [absent("Nothing was worked out before running.")])
    expected = summary["study"]["expected"]
    caption = (
        f"The smallest true difference of two arms found four times in five, worked out before anything was run, from an expected "
        f"standard deviation of {100 * expected['between_runs']:g} points between seeds and {100 * expected['between_sources']:g} points "
        "between sources."
    )
    return Part("What could be found", caption, [tables.planned(summary)])


def _protocol(summary: Row) -> Part:
    caption = (
        "One row for every number. Accuracy is over the samples read, from integer counts; a tie counts as wrong. Nothing is dropped or "
        "padded. Views are clips in time x crops in space, softmax averaged. A class list is named by the start of its SHA-256."
    )
    every = protocol.every_number(summary)
    return Part("Protocol", caption, [protocol.of_the_study(summary), Folded(f"Every number: {number(len(every.rows))} rows", [every])])


def _again(summary: Row) -> Part:
    file = shlex.quote(str(Path(summary["study"]["out"]) / "study.yaml"))
    caption = "In the folder that it was run in. What is done and unchanged is kept; without results and runs all of it is made anew."
    return Part("To run it again", caption, [Commands([f"cover study {file} --dry-run", f"cover study {file}"])])
