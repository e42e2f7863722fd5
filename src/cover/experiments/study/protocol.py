"""How was a number measured? One line under every table and figure, and one row for every number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cover.evaluation.statistics import LEVEL, RESAMPLES
from cover.experiments.study.layout import Cell, Items, Table
from cover.experiments.study.words import ARM_WORDS, HOW_WORDS, Row, by, count, few, percent, setting, source_of, spread

COLUMNS = ("number", "data set", "top-1 %", "by seed", "reported on", "views", "classes", "checkpoint step", "samples seen", "decoder")
SEEDS_SHOWN = 5


def lines(rows: Sequence[Row], study: Row) -> Items:
    """Under a table or figure: for every data set in it, how its numbers were measured."""
    return Items([line(own, study) for own in by(rows, "dataset").values()], "protocol")


def line(rows: Sequence[Row], study: Row) -> str:
    """The protocol of numbers of one data set; what differs between them is given as a range."""
    first = rows[0]
    read = few(f"{count(row['n_read'])} of {count(row['n_listed'])} read" for row in rows)
    classes = few(f"{row['classes']} classes (list {row['class_digest']})" for row in rows)
    said = [
        split_of(study, first), f"{few(_views(row) for row in rows)}", read, classes, f"chance {percent(first['chance'])} %",
        f"{few(len(row['by_seed']) for row in rows)} seed{'s' * (max(len(row['by_seed']) for row in rows) > 1)}",
        f"checkpoint at step {few(step for row in rows for step in row['checkpoint_steps'])} of {few(row['steps'] for row in rows)}",
        f"learning rate {few(lr for row in rows for lr in row['lrs'])}", few(row["decoder"] or "" for row in rows),
    ]  # fmt: skip
    return f"{first['dataset']}: {', '.join(filter(None, said))}"


def split_of(study: Row, row: Row) -> str:
    """What is reported of a data set: of arms its folds, where it has them; of transfers and probes the study's split.

    Within the study what is measured goes by one name, whatever it is: that of the row says nothing to a reader.
    """
    folds = study["folds"].get(row["dataset"]) if row["arm"] in study["arms"] else None
    return f"{folds} folds over all clips" if folds else f"split {study['split']}"


def every_number(summary: Row) -> Table:
    """One row for each accuracy of the study."""
    study = summary["study"]
    rows = [_row(row, name, study) for kind, name in _named(summary) for row in kind]
    return Table(COLUMNS, rows, kind="small")


def of_the_study(summary: Row) -> Table:
    """What holds for all numbers."""
    study = summary["study"]
    model = study["model"]
    steps, seconds = (sum(run[key] or 0 for run in summary["runs"]) for key in ("steps", "seconds"))
    chosen = "; dev chooses, run by run" if len(study["lrs"]) > 1 else ""
    facts = {
        "seeds": ", ".join(map(str, study["seeds"])),
        "model": f"{model['preset']}, {model['size']} pixels, {study['frames']} frames, {model['attention']} attention",
        "samples of a step": f"{study['batch']} in the full mixture; the target alone as many clips as that holds of all videos",
        "learning rates tried": f"{', '.join(f'{lr:g}' for lr in study['lrs'])}{chosen}",
        "checkpoint": f"best on dev of {study['evaluations']} evenly over a run; by mean rank over its data sets",
        "margin": f"{percent(study['margin'])} points of top-1, stated before running",
        "intervals": f"{100 * LEVEL:g} %, percentiles of {count(RESAMPLES)} resamples of seeds and sources, the same for both of a pair",
        "p-values": "two-sided, from the same resamples, corrected by Holm's rule within each family",
        "runs": f"{len(summary['runs'])}, {count(steps)} steps, {seconds / 3600:.1f} hours in all",
        "cover": summary["cover"],
    }
    return Table([], [[Cell(key), Cell(value)] for key, value in facts.items()], kind="small facts")


def _named(summary: Row) -> Iterable[tuple[Sequence[Row], str]]:
    return [(summary["arms"], "arm"), (summary["transfers"], "transfer"), (summary["origins"], "origin"), (summary["probes"], "probe")]


def _row(row: Row, kind: str, study: Row) -> list[Cell]:
    accuracy = Cell(percent(row["top1"]), spread(row["low"], row["high"]))
    reported = Cell(split_of(study, row), f"{count(row['n_read'])} of {count(row['n_listed'])} read")
    views = Cell(row["views"], f"{row['frames']} frames, {row['sampling']}" if row["media"] == "video" else "")
    steps = Cell(few(row["checkpoint_steps"]), f"of {count(row['steps'])}")
    seen = Cell(None if row["seen"] is None else count(row["seen"]), f"rate {few(row['lrs'])}")
    return [
        Cell(called(row["arm"], kind), setting(study, row["size"], row["origin"])), Cell(row["dataset"]), accuracy, Cell(_seeds(row)),
        reported, views, Cell(str(row["classes"]), row["class_digest"]), steps, seen, Cell(row["decoder"]),
    ]  # fmt: skip


def called(arm: str, kind: str) -> str:
    """What a row is of, in words."""
    if kind == "transfer":
        source, how = source_of(arm)
        return f"from {source}, {HOW_WORDS[how]}"
    if kind == "probe":
        name, _, target = arm.partition(":")
        return f"probe after {ARM_WORDS[name]}, for {target}"
    return ARM_WORDS[arm]


def _seeds(row: Row) -> str:
    """Accuracies seed by seed, or of many the ends."""
    own = row["by_seed"]
    return ", ".join(map(percent, own)) if len(own) <= SEEDS_SHOWN else spread(min(own), max(own))


def _views(row: Row) -> str:
    return f"{row['views']} views" + (f" of {row['frames']} frames" if row["media"] == "video" else "")
