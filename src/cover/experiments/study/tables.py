"""Which tables does a study make? Laid out like the article's: model, pre-training, fine-tuning, accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cover.experiments.study.claims import qualifier
from cover.experiments.study.layout import Cell, Table
from cover.experiments.study.words import (
    ARM_WORDS,
    HOW_WORDS,
    Row,
    by,
    count,
    gap,
    one_for_all,
    origin_words,
    p_value,
    percent,
    points,
    setting,
    size_words,
    source_of,
    spread,
    training_sets,
    unique,
)  # fmt: skip

AGAINST_ALONE = {"better": " ▲", "worse": " ▼"}
CLASSES_TOLD = 6


def accuracies(summary: Row) -> list[Table]:
    """One table for each size: a row for each arm and starting weights, a column for each data set."""
    study = summary["study"]
    against = {
        (row["ours"], row["target"], row["size"], row["origin"]): row["verdict"]
        for row in summary["comparisons"] if row["theirs"] == "alone"
    }  # fmt: skip
    tables = []
    for (size,), rows in by(summary["arms"], "size").items():
        targets = unique(row["dataset"] for row in rows)
        groups = by(rows, "origin", "arm")
        body = [_accuracy(study, key, own, targets, against) for key, own in groups.items()]
        tables.append(Table(["model", "pre-train", "fine-tune", *targets], body, size_words(study, size), "article"))
    return tables


def _accuracy(
    study: Row, key: tuple[str, str], rows: Sequence[Row], targets: Sequence[str], against: Mapping[tuple[Any, ...], str]
) -> list[Cell]:
    origin, arm = key
    sets, remark = training_sets(study, arm)
    own = {row["dataset"]: row for row in rows}
    figures = [_figure(own.get(name), against.get((arm, name, rows[0]["size"], origin), "")) for name in targets]
    model = "one model for all" if one_for_all(rows) else "one model for each" if len(targets) > 1 else ""
    narrow = f"from {origin}; {sets}"
    return [
        Cell(ARM_WORDS[arm], model, narrow=narrow),
        Cell(origin, origin_words(study, origin), "text"),
        Cell(sets, remark, "text"),
        *figures,
    ]


def _figure(row: Row | None, verdict: str) -> Cell:
    if row is None:
        return Cell(None)
    tone = {"better": "lead", "worse": "behind"}.get(verdict, "")
    return Cell(percent(row["top1"]) + AGAINST_ALONE.get(verdict, ""), spread(row["low"], row["high"]), tone)


def comparisons(rows: Sequence[Row], summary: Row) -> Table:
    """Every comparison of one claim with its interval, p-values, verdict and what could have been found."""
    study = summary["study"]
    planned = {row["target"]: row["detectable"] for row in summary["planned"]}
    body = []
    for row in rows:
        before = planned.get(row["target"]) if row["claim"] != "d" else None
        body.append([
            Cell(row["target"], _pair(row, study)), Cell(points(row["difference"]), gap(row["low"], row["high"])),
            Cell(p_value(row["p_holm"]), f"uncorrected {p_value(row['p'])}"), Cell(row["verdict"], "", "said"),
            Cell(None if before is None else percent(before)), Cell(None if row["detectable"] is None else percent(row["detectable"])),
            Cell(f"{row['seeds']} × {count(row['sources'])}", f"{count(row['items'])} clips"),
        ])  # fmt: skip
    columns = ["data set", "points", "p, Holm", "verdict", "could be found: planned", "from the spread seen", "seeds × sources"]
    return Table(columns, body, kind="small")


def _pair(row: Row, study: Row) -> str:
    if row["claim"] == "c":
        source, how = source_of(row["ours"])
        return f"{source} against {source_of(row['theirs'])[0]}, {HOW_WORDS[how]}"
    if row["claim"] == "d":
        return f"gain of {ARM_WORDS[row['size']]}: {qualifier(row, study)}"
    words = f"{ARM_WORDS[row['ours']]} against {ARM_WORDS[row['theirs']]}"
    return ", ".join(part for part in (words, setting(study, row["size"], row["origin"])) if part)


def transfers(summary: Row) -> Table:
    """Source, target, how, accuracy: what the bars draw."""
    body = []
    for row in summary["transfers"]:
        source, how = source_of(row["arm"])
        figures = [Cell(percent(row["top1"]), spread(row["low"], row["high"])), Cell(f"{count(row['n_read'])} of {count(row['n_listed'])}")]
        body.append([Cell(source), Cell(row["dataset"]), Cell(HOW_WORDS[how]), *figures])
    return Table(["model of", "fine-tune", "how", "top-1 %", "read of listed"], body)


def gaps(summary: Row) -> Table:
    """How far accuracy in training is above that on dev."""
    study = summary["study"]
    targets = unique(row["dataset"] for row in summary["arms"])
    body = []
    for (size, origin, arm), rows in by(summary["arms"], "size", "origin", "arm").items():
        own = {row["dataset"]: row["gap"] for row in rows}
        body.append([Cell(ARM_WORDS[arm], setting(study, size, origin)), *(_gap(own.get(name)) for name in targets)])
    return Table(["model", *targets], body, kind="small")


def _gap(found: Row | None) -> Cell:
    if found is None:
        return Cell(None)
    return Cell(points(found["train"] - found["dev"]), f"{percent(found['train'])} train, {percent(found['dev'])} dev")


def probes(rows: Sequence[Row], summary: Row) -> Table:
    """Image accuracy of one image set from one start, before and after, and how far it moved. `rows`: as of `figures.probed`."""
    before = next((row["top1"] for row in rows if row["arm"] == "origin"), None)
    body = []
    for row in rows:
        moved = None if before is None or row["arm"] == "origin" else points(row["top1"] - before)
        body.append([Cell(row["label"]), Cell(percent(row["top1"]), spread(row["low"], row["high"])), Cell(moved)])
    return Table(["model", "top-1 %", "against before, points"], body, rows[0]["dataset"])


def rates(summary: Row) -> Table:
    """What each mixture was made of, in per cent of the samples and in samples."""
    names = unique(name for row in summary["rates"] for name in row["seen"])
    body = []
    for (_, _, _), (row, *_) in by(summary["rates"], "arm", "target", "size").items():  # the same from all starting weights
        shares = row["rates"] or {}
        figures = [
            Cell(percent(shares[name]), f"{count(row['seen'][name])} seen") if name in row["seen"] and name in shares else Cell(None)
            for name in names
        ]  # fmt: skip
        body.append([Cell(ARM_WORDS[row["arm"]], row["run"]), Cell(count(row["steps"]), f"of {count(row['batch'])} samples"), *figures])
    return Table(["mixture", "steps", *names], body, kind="small")


def classes(row: Row) -> Table:
    """The classes of one comparison that gain and lose most."""
    shown, left = most_moved(row)
    body = [[Cell(name), Cell(points(own["gain"])), Cell(count(own["items"]))] for name, own in shown]
    more = f", {left} classes between them left out" if left else ""
    title = f"{ARM_WORDS[row['arm']]} against alone, {row['target']}, {row['size']}, from {row['origin']}{more}"
    return Table(["class", "gain, points", "clips"], body, title)


def most_moved(row: Row) -> tuple[list[tuple[str, Row]], int]:
    """Classes from the largest gain down, those in the middle left out where there are too many, and how many those are."""
    ordered = sorted(row["classes"].items(), key=lambda item: (-item[1]["gain"], item[0]))
    left = len(ordered) - 2 * CLASSES_TOLD
    return (ordered, 0) if left <= 0 else ([*ordered[:CLASSES_TOLD], *ordered[-CLASSES_TOLD:]], left)


def planned(summary: Row) -> Table:
    """What was worked out to be detectable before anything was run."""
    body = [
        [Cell(row["target"]), *map(Cell, (count(row["items"]), count(row["sources"]), str(row["seeds"]), percent(row["detectable"])))]
        for row in summary["planned"]
    ]  # fmt: skip
    return Table(["data set", "clips", "sources", "seeds", "detectable, points"], body, kind="small")
