"""Names, number formats, protocol lines and small tables of a study's report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cover.evaluation.statistics import FEW_SOURCES, LEAST_SEEDS, LEVEL
from cover.experiments.report import Cell, Table, percent, points
from cover.experiments.study.study_file import WITH, other_set

StudyRow = Mapping[str, Any]

ARM_NAMES = {
    "alone": "alone",
    "alone_long": "alone, equal compute",
    "videos": "co-trained on videos",
    "videos_images": "co-trained on videos and images",
    "stills": "co-trained, stills in place of images",
    "permuted": "co-trained, other labels permuted",
    "origin": "before: pre-trained on images",
}
HOW_NAMES = {"finetune": "fine-tuned", "probe": "only the head trained"}
SEEDS_SHOWN = 5  # with more seeds, only the range of their accuracies is shown


# --- names and number formats -----------------------------------------------------------------------------------------


def arm_name(arm: str) -> str:
    """The name of an arm in a report.

    >>> arm_name("without:cifar10")
    'full mixture without cifar10'
    """
    other = other_set(arm)
    if other:
        return f"target with {other}" if arm.startswith(WITH) else f"full mixture without {other}"
    return ARM_NAMES[arm]


def setting(study: StudyRow, size: str, origin: str) -> str:
    """Size and starting weights, each only if the study has several of them."""
    words = [size] if len(study["sizes"]) > 1 and size else []
    words += [f"from {origin}"] if len(study["origins"]) > 1 and origin else []
    return ", ".join(words)


def source_of(arm: str) -> tuple[str, str]:
    """The source of a transfer, and its method (`finetune` or `probe`)."""
    source, _, how = arm.rpartition(":")
    return source, how


def few(values: Iterable[Any], most: int = 3) -> str:
    """The different values. For more than `most` numbers, the smallest and the largest.

    >>> few([1, 2, 1]), few(range(9))
    ('1, 2', '0 to 8')
    """
    own = sorted(set(values))
    texts = [
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
        for value in own
    ]
    return ", ".join(texts) if len(texts) <= most or isinstance(own[0], str) else f"{texts[0]} to {texts[-1]}"


def unique(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))


def by(rows: Iterable[StudyRow], *keys: str) -> dict[tuple[Any, ...], list[StudyRow]]:
    """Rows grouped by their values of `keys`, in order."""
    groups: dict[tuple[Any, ...], list[StudyRow]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def joined(*parts: str) -> str:
    """The texts that are not empty, with commas between them."""
    return ", ".join(filter(None, parts))


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}{'s' * (count != 1)}"


def between(row: StudyRow) -> str:
    """The interval of an accuracy in per cent."""
    return FEW_SOURCES if row["low"] is None else f"{percent(row['low'])} to {percent(row['high'])}"


def points_between(row: StudyRow) -> str:
    """The interval of a difference in points."""
    return FEW_SOURCES if row["low"] is None else f"{points(row['low'])} to {points(row['high'])}"


def p_value(p: float) -> str:
    """A p-value with three decimals; never zero."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def read_of_listed(row: StudyRow) -> str:
    """The number of samples read, and the number listed."""
    return f"{row['n_read']:,} of {row['n_listed']:,}"


# --- protocol ---------------------------------------------------------------------------------------------------------


def planned_table(summary: StudyRow) -> Table:
    """The detectable differences, computed before the runs."""
    body = []
    for row in summary["planned"]:
        figures = [f"{row['items']:,}", f"{row['sources']:,}", str(row["seeds"]), percent(row["detectable"])]
        body.append([Cell(row["target"]), *map(Cell, figures)])
    return Table(["data set", "clips", "sources", "seeds", "detectable, points"], body, kind="small")


def protocol_lines(rows: Sequence[StudyRow], study: StudyRow) -> list[str]:
    """One line for each data set with the protocol of its numbers in `rows`, with ranges where values differ."""
    lines = []
    for (dataset,), own in by(rows, "dataset").items():
        seeds = [len(row["by_seed"]) for row in own]
        steps, last_steps = (
            few(step for row in own for step in row["checkpoint_steps"]),
            few(row["steps"] for row in own),
        )
        facts = [
            _split_name(study, own[0]),
            few(f"{row['views']} views" + f" of {row['frames']} frames" * (row["media"] == "video") for row in own),
            few(f"{read_of_listed(row)} read" for row in own),
            few(f"{row['classes']} classes (list {row['class_digest']})" for row in own),
            f"chance {percent(own[0]['chance'])} %",
            f"{few(seeds)} seed{'s' * (max(seeds) > 1)}",
            f"checkpoint at step {steps} of {last_steps}",
            f"learning rate {few(lr for row in own for lr in row['lrs'])}",
            few(row["decoder"] or "" for row in own),
        ]
        lines.append(f"{dataset}: {', '.join(filter(None, facts))}")
    return lines


def _split_name(study: StudyRow, row: StudyRow) -> str:
    """The folds of a row's data set, or the split of the study. The split in the row is an internal name."""
    in_folds = row["arm"] in study["arms"] or study["transfer"].get("folds")
    folds = study["folds"].get(row["dataset"]) if in_folds else None
    return f"{folds} folds over all clips" if folds else f"split {study['split']}"


def number_table(summary: StudyRow) -> Table:
    """One row for each accuracy of the study, with its protocol."""
    study = summary["study"]
    names = [(row, arm_name(row["arm"])) for row in summary["arms"]]
    for row in summary["transfers"]:
        source, how = source_of(row["arm"])
        names.append((row, f"from {source}, {HOW_NAMES[how]}"))
    names += [(row, arm_name(row["arm"])) for row in summary["origins"]]
    for row in summary["probes"]:
        arm, _, target = row["arm"].partition(":")
        names.append((row, f"probe after {arm_name(arm)}, for {target}"))
    columns = (
        "number",
        "data set",
        "top-1 %",
        "by seed",
        "split",
        "views",
        "classes",
        "checkpoint step",
        "training samples",
        "decoder",
    )
    return Table(columns, [_number(row, name, study) for row, name in names], kind="small")


def _number(row: StudyRow, name: str, study: StudyRow) -> list[Cell]:
    by_seed, samples = row["by_seed"], row["seen"]
    ends = {"low": min(by_seed), "high": max(by_seed)}
    views = f"{row['frames']} frames, {row['sampling']}" if row["media"] == "video" else ""
    return [
        Cell(name, setting(study, row["size"], row["origin"])),
        Cell(row["dataset"]),
        Cell(percent(row["top1"]), between(row)),
        Cell(", ".join(f"{100 * top1:.1f}" for top1 in by_seed) if len(by_seed) <= SEEDS_SHOWN else between(ends)),
        Cell(_split_name(study, row), f"{read_of_listed(row)} read"),
        Cell(row["views"], views),
        Cell(str(row["classes"]), row["class_digest"]),
        Cell(few(row["checkpoint_steps"]), f"of {row['steps']:,}"),
        Cell(None if samples is None else f"{samples:,}", f"learning rate {few(row['lrs'])}"),
        Cell(row["decoder"]),
    ]


def model_name(model: StudyRow) -> str:
    """The options that name a network, of any family, and the side of its frames."""
    names = {"backbone": "", "preset": "", "variant": "", "attention": "attention ", "pool": "pool "}
    return " ".join(f"{word}{model[name]}" for name, word in names.items() if model.get(name)) + f", {model['size']} px"


def fact_table(summary: StudyRow) -> Table:
    """The facts that apply to all numbers of the study."""
    study, runs = summary["study"], summary["runs"]
    steps, seconds = (sum(run[key] or 0 for run in runs) for key in ("steps", "seconds"))
    choice = "; each run takes the best on dev" if len(study["lrs"]) > 1 else ""
    facts = {
        "seeds": ", ".join(map(str, study["seeds"])),
        "model": f"{model_name(study['model'])}, {study['frames']} frames",
        "samples in a step": f"{study['batch']} in the full mixture; as many clips for the target alone",
        "learning rates": f"{', '.join(f'{lr:g}' for lr in study['lrs'])}{choice}",
        "checkpoint": f"the best on dev of {study['evaluations']} in a run, by mean rank over its data sets",
        "margin": f"{percent(study['margin'])} points of top-1, fixed before the runs",
        "intervals": f"{100 * LEVEL:g} %, over seeds and sources; of differences, Student's t with Cochran's quantile",
        "p-values": "two-sided, of the same t, with Holm's correction within each family; beside them, with"
        f" {LEAST_SEEDS} seeds or more, the exact p-value of all signs of the seeds, which takes the clips as given",
        "runs": f"{len(runs)}, {steps:,} steps, {seconds / 3600:.1f} hours in total",
        "cover": summary["cover"],
    }
    return Table([], [[Cell(key), Cell(value)] for key, value in facts.items()], kind="small facts")
