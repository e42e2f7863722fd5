"""Report of a study, as one self-contained HTML page and as Markdown, from the summary in `results.json`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cover.evaluation.baselines import TITLES
from cover.experiments.charts import Bar, Interval, Line, Panel, bar, forest, line_chart, signed_bar, span_of
from cover.experiments.report import Cell, Table, percent, points, render_markdown, render_page, write_text
from cover.experiments.study.numbers import (
    HOW_NAMES,
    StudyRow,
    arm_name,
    between,
    by,
    fact_table,
    joined,
    number_table,
    p_value,
    planned_table,
    plural,
    points_between,
    protocol_lines,
    read_of_listed,
    setting,
    source_of,
    unique,
)
from cover.experiments.study.study_file import WITH, WITHOUT, other_set
from cover.experiments.study.worth import ranked, set_of

# Classes of the style sheet. Arms of one kind also differ in their dashes, so that colour is not needed.
ARM_TONES = {
    "alone": "single",
    "alone_long": "single dashed",
    "videos": "pretrained",
    "videos_images": "cotrained",
    "stills": "extra dotted",
    "permuted": "plain dashed",
    "origin": "plain",
}
# The claims of the article: text, the verdicts that show it, and what a study needs to test it.
CLAIMS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "a": (
        "One co-trained model is at least as good on each data set as a model of that set alone",
        ("better", "not worse"),
        "needs the arm alone and a mixture",
    ),
    "b": ("Images beside the videos help", ("better",), "needs the arms videos and videos_images"),
    "c": (
        "A co-trained model transfers better to another data set",
        ("better",),
        "needs a transfer with a source of several data sets",
    ),
    "d": ("The gain grows as the target shrinks", ("better",), "needs a second size, the arm alone and a mixture"),
}
WORTH = {  # arms of the comparisons of the worth of a data set: the title of their chart
    WITHOUT: "What the full mixture loses without it",
    WITH: "What it adds to the target alone",
}
SHOWN, NOT_SHOWN, OPPOSITE = "shown", "not shown", "the opposite shown"
ONE_SEED = "not decided by one seed"  # a claim is about the way of training, and another seed is another model
AGAINST_ALONE = {"better": (" ▲", "lead"), "worse": (" ▼", "behind")}  # sign and class of the style sheet
CLASSES_SHOWN = 6  # at each end of a list of classes


def arm_tone(arm: str) -> str:
    """The class of the style sheet for an arm."""
    return ARM_TONES.get(arm, "extra dotted")


def write_study_report(summary: StudyRow, page: Path, markdown: Path) -> None:
    """Write the report as an HTML page and as Markdown. `summary` is that of `summary.summarise`."""
    data = report_data(summary)
    write_text(render_page("study.jinja", **data), page)
    write_text(render_markdown("study.jinja", **data), markdown)


def report_data(summary: StudyRow) -> dict[str, Any]:
    """The tables, panels and texts of a study's report, by their names in `templates/study.jinja`."""
    study = summary["study"]
    first_curves, other_curves = _split_curves(summary["curves"], study)
    first_classes, other_classes = _split_classes(summary["per_class"], study)
    return {
        "summary": summary,
        "study": study,
        "title": title(summary),
        "claims": claims_table(summary),
        "accuracies": accuracy_tables(summary),
        "protocol": protocol_lines(summary["arms"], study),
        "arm_meanings": [
            f"{arm_name(arm)}: {summary['arms_mean'][arm]}"
            for arm in unique(row["arm"] for row in summary["arms"])
            if arm in summary["arms_mean"]
        ],
        "longer": any(row["arm"] == "alone_long" for row in summary["arms"]),
        "comparisons": comparison_groups(summary),
        "pooled": pooled_table(summary),
        "pilot": pilot_table(summary),
        "look": look_line(summary),
        "worth": worth_panels(summary),
        "worth_table": worth_table(summary),
        "transfers": transfer_table(summary),
        "transfer_panels": transfer_panels(summary),
        "transfer_protocol": protocol_lines(summary["transfers"], study),
        "curve_key": [(arm_tone(arm), arm_name(arm)) for arm in unique(row["arm"] for row in summary["curves"])],
        "curves": first_curves,
        "other_curves": other_curves,
        "gaps": gap_table(summary),
        "probes": probe_groups(summary),
        "rates": rate_table(summary),
        "classes": [class_table(row) for row in first_classes],
        "class_panels": [class_panel(row, study) for row in first_classes],
        "other_classes": [class_panel(row, study) for row in other_classes],
        "planned": planned_table(summary),
        "facts": fact_table(summary),
        "numbers": number_table(summary),
        "command": _command(summary),
    }


def _command(summary: StudyRow) -> str:
    """The command that runs the study again."""
    worth = unique(row["target"] for row in summary["comparisons"] if row["claim"] == "worth")
    words = [str(Path(summary["study"]["out"]) / "study.yaml"), *(["--worth", worth[0]] if worth else [])]
    return f"cover study {' '.join(map(shlex.quote, words))}"


def title(summary: StudyRow) -> str:
    """The question of the study, with its numbers of data sets and seeds."""
    worth = unique(row["target"] for row in summary["comparisons"] if row["claim"] == "worth")
    if worth:
        seeds = plural(len(summary["study"]["seeds"]), "seed")
        return f"How much is each data set worth to {', '.join(worth)}? {seeds}"
    targets = unique(row["dataset"] for row in [*summary["arms"], *summary["transfers"]])
    question = "Does co-training help?" if summary["arms"] else "What transfers?"
    return f"{question} {plural(len(targets), 'data set')}, {plural(len(summary['study']['seeds']), 'seed')}"


# --- claims and comparisons -------------------------------------------------------------------------------------------


def look_line(summary: StudyRow) -> str:
    """What the look at half of the seeds means for the figures; empty without one."""
    look = summary.get("look")
    if not look:
        return ""
    level = f"{percent(look['level'])} %"
    end = (
        "decided all claims, so the others were not run"
        if look["stopped"]
        else "did not decide all claims, so all were run"
    )
    return (
        f"A look at {look['seeds']} of {look['planned']} seeds {end}. So that two looks err as seldom as one (O'Brien"
        f" and Fleming), the intervals of differences are at {level}, and better and worse need a p below"
        f" {1 - look['level']:.3f}."
    )


def claims_table(summary: StudyRow) -> Table:
    """A row for each claim, with its outcome over all comparisons and its outcome on every target."""
    targets = unique(row["target"] for row in summary["comparisons"] if row["claim"] in CLAIMS)
    rows = []
    for key, (text, _, needs) in CLAIMS.items():
        comparisons = _comparisons_of(summary, key)
        outcomes = [_outcome(key, row) for row in comparisons]
        cells = []
        for target in targets:
            cells.append(_target_cell([_outcome(key, row) for row in comparisons if row["target"] == target]))
        rows.append([Cell(f"({key}) {text}"), _outcome_cell(_overall(outcomes), "" if comparisons else needs), *cells])
    return Table(["claim", "outcome", *targets], rows)


def _comparisons_of(summary: StudyRow, claim: str) -> list[StudyRow]:
    """The comparisons that decide a claim. For (a), only those of the full mixture, if there are any."""
    comparisons = [row for row in summary["comparisons"] if row["claim"] == claim]
    full = [row for row in comparisons if row["ours"] == "videos_images"]
    return full if claim == "a" and full else comparisons


def _outcome(claim: str, row: StudyRow) -> str:
    if row["seeds"] == 1:
        return ONE_SEED
    return SHOWN if row["verdict"] in CLAIMS[claim][1] else OPPOSITE if row["verdict"] == "worse" else NOT_SHOWN


def _overall(outcomes: Sequence[str]) -> str:
    different = set(outcomes)
    if len(different) < 2:
        return outcomes[0] if outcomes else "not asked"
    return "shown in part" if SHOWN in different else "not shown, in part the opposite"


def _outcome_cell(outcome: str, note: str = "") -> Cell:
    tone = {SHOWN: "lead", OPPOSITE: "behind"}.get(outcome, "")
    return Cell(outcome, note, f"{tone} said".strip())


def _target_cell(outcomes: Sequence[str]) -> Cell:
    """The outcome on one target. If the outcomes of its settings differ, the number of settings with each outcome."""
    if not outcomes:
        return Cell(None)
    if len(set(outcomes)) == 1:
        return _outcome_cell(outcomes[0])
    counts = {each: outcomes.count(each) for each in (SHOWN, NOT_SHOWN, OPPOSITE, ONE_SEED)}
    text = ", ".join(f"{each} in {count} of {len(outcomes)}" for each, count in counts.items() if count)
    return Cell(text, "settings", "said")


def comparison_groups(summary: StudyRow) -> list[dict[str, Any]]:
    """For each claim or control, its forest plots on one scale, and the same numbers as a table."""
    study, margin = summary["study"], 100 * summary["study"]["margin"]
    groups = []
    pooled = {row["family"]: _pooled_interval(row) for row in summary.get("pooled", ())}
    for (claim,), rows in by([row for row in summary["comparisons"] if row["claim"] != "worth"], "claim").items():
        intervals = {family: [comparison_interval(row) for row in own] for (family,), own in by(rows, "family").items()}
        for family in intervals.keys() & pooled.keys():
            intervals[family].append(pooled[family])
        span = span_of([each for own in intervals.values() for each in own], margin)
        panels = []
        for (family,), own in by(rows, "family").items():
            name = family_name(own[0], study)
            panels.append(Panel(name, drawing=forest(name, intervals[family], span, margin, "points of top-1")))
        groups.append({"claim": claim, "panels": panels, "table": comparison_table(rows, summary)})
    order = ["a", "a, equal compute", "b", "c", "d", "control"]
    return sorted(groups, key=lambda group: order.index(group["claim"]))


def family_name(row: StudyRow, study: StudyRow) -> str:
    """A name for the comparison that all rows of a family share."""
    if row["claim"] == "c":
        source, how = source_of(row["ours"])
        return f"{source} as source, {HOW_NAMES[how]}, against each other source"
    if row["claim"] == "d":
        return f"Gain of {arm_name(row['size'])} over alone, {_sizes_compared(row, study)}"
    name = f"{arm_name(row['ours'])}, against {arm_name(row['theirs'])}"
    note = setting(study, row["size"], row["origin"])
    return f"{name[0].upper()}{name[1:]}" + (f" ({note})" if note else "")


def _sizes_compared(row: StudyRow, study: StudyRow) -> str:
    origin = f", from {row['origin']}" if len(study["origins"]) > 1 else ""
    return f"{row['ours']} against {row['theirs']}{origin}"


def comparison_interval(row: StudyRow, label: str = "") -> Interval:
    """The row of a comparison in a forest plot. `label`: its name, by default that of the target."""
    label = label or row["target"]
    if row["claim"] == "c":
        label += f" (against {source_of(row['theirs'])[0]})"
    text = f"{points(row['difference'])} ({points_between(row)})"
    low, high = (None if row[end] is None else 100 * row[end] for end in ("low", "high"))
    return Interval(label, 100 * row["difference"], low, high, text, row["verdict"])


def _pooled_interval(row: StudyRow) -> Interval:
    text = f"{points(row['difference'])} ({points_between(row)})"
    ends = (100 * row["low"], 100 * row["high"])
    return Interval(f"all {row['sets']} together", 100 * row["difference"], *ends, text, row["verdict"])


def pooled_table(summary: StudyRow) -> Table | None:
    """The mean difference over all targets of each comparison. Summaries of earlier versions have none."""
    rows = [row for row in summary.get("pooled", ()) if row["claim"] != "worth"]
    body = [
        [
            Cell(family_name(row, summary["study"])),
            Cell(points(row["difference"]), points_between(row)),
            Cell(p_value(row["p"])),
            Cell(row["verdict"], "", "said"),
            Cell(percent(row["between"]), f"{row['sets']} sets"),
        ]
        for row in rows
    ]
    columns = ["comparison", "points", "p", "verdict", "spread over sets, points"]
    return Table(columns, body, kind="small") if rows else None


def pilot_table(summary: StudyRow) -> Table | None:
    """The runs of the pilot; None without one."""
    pilot = summary.get("pilot")
    if not pilot:
        return None
    body = [
        [
            Cell(f"{row['epochs']:g}"),
            Cell(row["target"], arm_name(row["arm"])),
            Cell(", ".join(percent(top1) or "-" for top1 in row["by_seed"])),
            Cell(percent(row["trivial"]), "" if row["above"] else "not below every seed"),
            Cell(percent(row["spread"])),
        ]
        for row in pilot["rows"]
    ]
    passed = "which pass" if pilot["passed"] else "the most that were tried; none passes"
    columns = ["epochs", "data set", "top-1 % by seed", "best trivial method", "spread, points"]
    return Table(columns, body, f"{pilot['epochs']:g} epochs, {passed}", "small")


# --- worth of data sets -----------------------------------------------------------------------------------------------


def worth_panels(summary: StudyRow) -> list[Panel]:
    """For each target, what each data set is worth to it, as bars with intervals, the most useful first."""
    panels = []
    for (target,), rows in by([row for row in summary["comparisons"] if row["claim"] == "worth"], "target").items():
        most = max(abs(end) for row in rows for end in (row["low"], row["high"], row["difference"]) if end is not None)
        for word, title in WORTH.items():
            bars = [_worth_bar(row, most or 1.0) for row in ranked(rows, word)]
            if bars:
                panels.append(Panel(target, title, bars))
    return panels


def _worth_bar(row: StudyRow, most: float) -> Bar:
    interval = None if row["low"] is None else (row["low"], row["high"])
    note = f"{points_between(row)}, {row['verdict']}"
    return signed_bar(set_of(row), note, row["difference"], most, points(row["difference"]), interval)


def worth_table(summary: StudyRow) -> Table | None:
    """The same numbers with p-values; None in a study of something else."""
    rows = [row for row in summary["comparisons"] if row["claim"] == "worth"]
    ordered = [row for word in WORTH for row in ranked(rows, word)]
    body = [
        [
            Cell(set_of(row), WORTH[WITHOUT if row["theirs"].startswith(WITHOUT) else WITH]),
            Cell(points(row["difference"]), points_between(row)),
            Cell(p_value(row["p_holm"]), _other_p_values(row)),
            Cell(row["verdict"], "", "said"),
            Cell(percent(row["detectable"])),
        ]
        for row in ordered
    ]
    return Table(["data set", "points", "p, Holm", "verdict", "detectable"], body, kind="small") if rows else None


def comparison_table(rows: Sequence[StudyRow], summary: StudyRow) -> Table:
    """Comparisons with interval, p-values, verdict and detectable differences."""
    study = summary["study"]
    planned = {row["target"]: row["detectable"] for row in summary["planned"]}
    body = [
        [
            Cell(row["target"], _pair(row, study)),
            Cell(points(row["difference"]), points_between(row)),
            Cell(p_value(row["p_holm"]), _other_p_values(row)),
            Cell(row["verdict"], "", "said"),
            Cell(percent(planned.get(row["target"]) if row["claim"] != "d" else None)),
            Cell(percent(row["detectable"])),
            Cell(f"{row['seeds']} × {row['sources']:,}", f"{row['items']:,} clips"),
        ]
        for row in rows
    ]
    detectable = ["detectable, as planned", "detectable, with the real spread"]
    columns = ["data set", "points", "p, Holm", "verdict", *detectable, "seeds × sources"]
    return Table(columns, body, kind="small")


def _other_p_values(row: StudyRow) -> str:
    flips = row.get("p_sign_flip")  # results of earlier versions have none
    return joined(f"uncorrected {p_value(row['p'])}", "" if flips is None else f"signs of seeds {p_value(flips)}")


def _pair(row: StudyRow, study: StudyRow) -> str:
    if row["claim"] == "c":
        source, how = source_of(row["ours"])
        return f"{source} against {source_of(row['theirs'])[0]}, {HOW_NAMES[how]}"
    if row["claim"] == "d":
        return f"gain of {arm_name(row['size'])}: {_sizes_compared(row, study)}"
    names = f"{arm_name(row['ours'])} against {arm_name(row['theirs'])}"
    return joined(names, setting(study, row["size"], row["origin"]))


# --- accuracies -------------------------------------------------------------------------------------------------------


def accuracy_tables(summary: StudyRow) -> list[Table]:
    """One table for each size, in the form of the article: rows are arms and starting weights, columns are targets."""
    study = summary["study"]
    verdicts = {
        (row["ours"], row["target"], row["size"], row["origin"]): row["verdict"]
        for row in summary["comparisons"]
        if row["theirs"] == "alone"
    }
    tables = []
    for (size,), rows in by(summary["arms"], "size").items():
        targets = unique(row["dataset"] for row in rows)
        body = []
        for (origin, arm), own in by(rows, "origin", "arm").items():
            of = {row["dataset"]: row for row in own}
            figures = [figure(of.get(name), verdicts.get((arm, name, size, origin), "")) for name in targets]
            body.append([*_arm_cells(study, arm, origin, own, len(targets)), *figures])
        body += _trivial_row(summary, size, targets)
        columns = ["model", "pre-train", "fine-tune", *targets]
        tables.append(Table(columns, body, size_name(study, size), "article"))
    return tables


def _trivial_row(summary: StudyRow, size: str, targets: Sequence[str]) -> list[list[Cell]]:
    """The best trivial method on each target. Summaries of earlier versions have none."""
    of = {row["dataset"]: row for row in summary.get("trivial", ()) if row["size"] == size}
    if not of:
        return []
    head = [Cell("trivial", "the best on each set", narrow="the same clips"), Cell(None, "", "text")]
    return [[*head, Cell("that set alone", "", "text"), *(trivial_cell(of.get(name)) for name in targets)]]


def trivial_cell(row: StudyRow | None) -> Cell:
    """The best trivial method on a target."""
    if row is None:
        return Cell(None)
    best = row[row["best"]]
    return Cell(percent(best["top1"]), f"{TITLES[row['best']]}; {between(best)}")


def _arm_cells(study: StudyRow, arm: str, origin: str, rows: Sequence[StudyRow], targets: int) -> list[Cell]:
    """The name of an arm, its starting weights and its training data sets."""
    sets, remark = _training_sets(study, arm)
    shared = len(rows) > 1 and len({tuple(row["runs"]) for row in rows}) == 1
    model = "one model for all" if shared else "one model for each" if targets > 1 else ""
    return [
        Cell(arm_name(arm), model, narrow=f"from {origin}; {sets}"),
        Cell(origin, origin_name(study, origin), "text"),
        Cell(sets, remark, "text"),
    ]


def _training_sets(study: StudyRow, arm: str) -> tuple[str, str]:
    """The training data sets of an arm, and a note."""
    if arm.startswith(WITH):
        return f"that set + {other_set(arm)}", ""
    if arm.startswith(WITHOUT):
        return " + ".join(name for name in [*study["videos"], *study["images"]] if name != other_set(arm)), ""
    videos = unique([*study["videos"], *study["targets"]]) if study["videos"] else ["that set"]
    if arm in ("alone", "alone_long"):
        return "that set alone", "longer" if arm == "alone_long" else ""
    if arm == "videos":
        return " + ".join(videos), ""
    if arm == "stills":
        own = "their stills" if study.get("one_model") else "its stills"
        return " + ".join([*videos, own]), f"{study['stills']} stills of each training clip"
    note = "permuted labels in all sets except that set" if arm == "permuted" else ""
    return " + ".join([*videos, *study["images"]]), note


def origin_name(study: StudyRow, name: str) -> str:
    """The starting weights in words."""
    origin = study["origins"][name]
    if origin["sets"]:
        return f"{', '.join(origin['sets'])}, {origin['steps']:,} steps"
    return origin["checkpoint"] or "random weights"


def size_name(study: StudyRow, name: str) -> str:
    """A size with its part and its epochs."""
    size = study["sizes"][name]
    rate = f", {percent(size['rate'])} % of the clips of a mixture" if size["rate"] else ""
    return f"{name}: {100 * size['part']:g} % of the training clips, {size['epochs']:g} epochs{rate}"


def figure(row: StudyRow | None, verdict: str) -> Cell:
    """An accuracy with its interval, and a sign of the verdict against the target alone."""
    if row is None:
        return Cell(None)
    sign, tone = AGAINST_ALONE.get(verdict, ("", ""))
    return Cell(f"{percent(row['top1'])}{sign}", between(row), tone)


def transfer_table(summary: StudyRow) -> Table:
    """The accuracies of the transfers as a table."""
    rows = []
    for row in summary["transfers"]:
        source, how = source_of(row["arm"])
        accuracy = Cell(percent(row["top1"]), between(row))
        rows.append([Cell(source), Cell(row["dataset"]), Cell(HOW_NAMES[how]), accuracy, Cell(read_of_listed(row))])
    return Table(["model of", "fine-tune", "method", "top-1 %", "read of listed"], rows)


def transfer_panels(summary: StudyRow) -> list[Panel]:
    """A panel of bars for every target and method of transfer."""
    study = summary["study"]
    mixed = {source_of(row["ours"])[0] for row in summary["comparisons"] if row["claim"] == "c"}
    rows = [{**row, **dict(zip(("source", "how"), source_of(row["arm"])))} for row in summary["transfers"]]
    panels = []
    for (target, how), own in by(rows, "dataset", "how").items():
        bars = []
        for row in own:
            is_target = study["transfer"]["sources"].get(row["source"]) == [target]
            tone = "cotrained" if row["source"] in mixed else "pretrained" if is_target else "single"
            bars.append(_bar(f"{row['source']} → {target}", row, tone))
        panels.append(Panel(target, HOW_NAMES[how], bars, protocol=protocol_lines(own, study)))
    return panels


def _bar(label: str, row: StudyRow, tone: str) -> Bar:
    value = f"{percent(row['top1'])} ({between(row)})"
    interval = None if row["low"] is None else (row["low"], row["high"])
    return bar(label, row["top1"], value, tone, row["chance"], interval)


def probe_groups(summary: StudyRow) -> list[dict[str, Any]]:
    """Accuracies of image classifiers on frozen features, before and after training.

    There is one group for each combination of starting weights, size and image set.
    """
    study, groups = summary["study"], []
    for (origin, size, dataset), rows in by(summary["probes"], "origin", "size", "dataset").items():
        note = setting(study, size, origin)
        before = [row for row in summary["origins"] if (row["origin"], row["dataset"]) == (origin, dataset)]
        models = [(arm_name("origin"), "origin", row) for row in before] + _probe_models(rows)
        bars = [_bar(label, row, arm_tone(arm)) for label, arm, row in models]
        lines = protocol_lines([row for *_, row in models], study)
        body = []
        for label, arm, row in models:
            change = points(row["top1"] - before[0]["top1"]) if before and arm != "origin" else None
            body.append([Cell(label), Cell(percent(row["top1"]), between(row)), Cell(change)])
        table = Table(["model", "top-1 %", "change, points"], body, joined(dataset, note))
        groups.append({"panel": Panel(dataset, note, bars, protocol=lines), "table": table, "protocol": lines})
    return groups


def _probe_models(rows: Sequence[StudyRow]) -> list[tuple[str, str, StudyRow]]:
    """Label, arm and row of each model with a probe. A model of several targets is listed once."""
    split = [{**row, "of": row["arm"].partition(":")[0], "models": tuple(row["runs"])} for row in rows]
    models = []
    for (arm, _), same in by(split, "of", "models").items():
        target = "" if len(same) > 1 else f", {same[0]['arm'].partition(':')[2]}"
        models.append((f"after {arm_name(arm)}{target}", arm, same[0]))
    return models


# --- training runs ----------------------------------------------------------------------------------------------------


def _split_curves(rows: Sequence[StudyRow], study: StudyRow) -> tuple[list[Panel], list[Panel]]:
    """The curves of the first size and starting weights, and all other curves."""
    if not any(row["dev"] or row["loss"] for row in rows):
        return [], []
    place = rows[0]["size"], rows[0]["origin"]
    first = [row for row in rows if (row["size"], row["origin"]) == place]
    return curve_panels(first, study), curve_panels([row for row in rows if row not in first], study)


def curve_panels(rows: Sequence[StudyRow], study: StudyRow) -> list[Panel]:
    """For every target and setting, accuracy on dev and loss in training, over the target's samples so far."""
    highest = max((y for row in rows for _, y in row["dev"]), default=1.0)
    most = max(1, math.ceil(5 * highest - 1e-9)) / 5  # rounded up to a fifth, so that the labels are round numbers
    panels = []
    for (target, size, origin), own in by(rows, "target", "size", "origin").items():
        for name, kind in (("top-1 on dev", "dev"), ("training loss", "loss")):
            note = joined(name, setting(study, size, origin))
            rows_with_points = [row for row in own if row[kind]]
            lines = [
                Line(arm_name(row["arm"]), arm_tone(row["arm"]), row[kind], smooth=False) for row in rows_with_points
            ]
            if lines:
                label = f"training samples of {target}"
                drawing = line_chart(f"{target}, {note}", lines, label, percent=kind == "dev", most=most)
                panels.append(Panel(target, note, drawing=drawing))
    return panels


def gap_table(summary: StudyRow) -> Table | None:
    """The accuracy in training minus that on dev; None if no run has both."""
    if not any(row["gap"] for row in summary["arms"]):
        return None
    targets = unique(row["dataset"] for row in summary["arms"])
    body = []
    for (size, origin, arm), rows in by(summary["arms"], "size", "origin", "arm").items():
        own = {row["dataset"]: row["gap"] for row in rows}
        cells = [_gap(own.get(name)) for name in targets]
        body.append([Cell(arm_name(arm), setting(summary["study"], size, origin)), *cells])
    return Table(["model", *targets], body, kind="small")


def _gap(gap: StudyRow | None) -> Cell:
    if gap is None:
        return Cell(None)
    return Cell(points(gap["train"] - gap["dev"]), f"{percent(gap['train'])} train, {percent(gap['dev'])} dev")


def rate_table(summary: StudyRow) -> Table:
    """The fraction of each data set in the samples of each mixture, and the number of samples.

    It does not depend on the starting weights.
    """
    names = unique(name for row in summary["rates"] for name in row["seen"])
    body = []
    for row, *_ in by(summary["rates"], "arm", "target", "size").values():
        head = [Cell(arm_name(row["arm"]), row["run"]), Cell(f"{row['steps']:,}", f"of {row['batch']:,} samples")]
        body.append(head + [_rate(row, name) for name in names])
    return Table(["mixture", "steps", *names], body, kind="small")


def _rate(row: StudyRow, name: str) -> Cell:
    rates = row["rates"] or {}
    if name not in row["seen"] or name not in rates:
        return Cell(None)
    return Cell(percent(rates[name]), f"{row['seen'][name]:,} samples")


def _split_classes(rows: Sequence[StudyRow], study: StudyRow) -> tuple[list[StudyRow], list[StudyRow]]:
    """The rows of the last arm at the first size, and all other rows."""
    if not rows:
        return [], []
    place = rows[-1]["arm"], next(iter(study["sizes"]))
    first = [row for row in rows if (row["arm"], row["size"]) == place]
    return first, [row for row in rows if row not in first]


def _largest_changes(row: StudyRow) -> tuple[list[tuple[str, StudyRow]], int]:
    """Classes by gain, the largest first, and the number of classes that are left out in the middle of a long list."""
    ordered = sorted(row["classes"].items(), key=lambda item: (-item[1]["gain"], item[0]))
    left = len(ordered) - 2 * CLASSES_SHOWN
    return (ordered, 0) if left <= 0 else ([*ordered[:CLASSES_SHOWN], *ordered[-CLASSES_SHOWN:]], left)


def class_table(row: StudyRow) -> Table:
    """The classes of one mixture with the largest gains and losses."""
    shown, left = _largest_changes(row)
    body = [[Cell(name), Cell(points(own["gain"])), Cell(f"{own['items']:,}")] for name, own in shown]
    more = f", {left} classes between these left out" if left else ""
    name = f"{arm_name(row['arm'])} against alone, {row['target']}, {row['size']}, from {row['origin']}{more}"
    return Table(["class", "gain, points", "clips"], body, name)


def class_panel(row: StudyRow, study: StudyRow) -> Panel:
    """The classes of one mixture with the largest gains and losses, as bars."""
    shown, left = _largest_changes(row)
    most = max(abs(own["gain"]) for _, own in shown) or 1.0
    bars = [signed_bar(name, f"{own['items']} clips", own["gain"], most, points(own["gain"])) for name, own in shown]
    note = joined(arm_name(row["arm"]), setting(study, row["size"], row["origin"]))
    return Panel(row["target"], note, bars, left_out=left)
