"""The report of one run, `report.html` in its folder, from what the run has written.

A run of `cover train` writes `log.jsonl`, `recipe.yaml`, `answers.json` and `baselines.json`; `cover fit` and `cover
add` write `answers.json` and `add/results.json`. The data come from the manifests.
"""

from __future__ import annotations

import math
import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cover import __version__, config
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.manifest import Manifest, open_manifest
from cover.errors import UserError
from cover.evaluation.answers import Answers, read_answers
from cover.evaluation.baselines import TITLES, standing
from cover.evaluation.statistics import proportion, with_interval
from cover.experiments.answer_charts import calibration_panel, class_panel, confusion_table, confusions, mistakes
from cover.experiments.charts import Bar, Panel, bar
from cover.experiments.examples import class_examples
from cover.experiments.report import Cell, Table, curves, percent, render_page, write_text
from cover.experiments.run_files import RunHistory, read_log, read_result
from cover.model.release import find_release, read_config
from cover.training.checkpoint import LOG
from cover.training.dev_report import BASELINES
from cover.training.recipe import Recipe
from cover.training.resume import RECIPE

REPORT = "report.html"
RESULTS = Path("add") / "results.json"
ODD_SHOWN = 20
FEW_OF_A_CLASS = 20
UNSURE_ECE = 0.1  # expected calibration error from which the probabilities should not be taken as such


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds. `results`: of `cover fit` or `cover add`, empty for a run of `cover train`."""

    run: Path
    recipe: Recipe | None
    catalog: Catalog | None
    history: RunHistory
    answers: list[Answers]
    results: dict[str, Any]
    baselines: dict[str, Any]

    @classmethod
    def read(cls, run: Path) -> RunRecord:
        """Read a run folder. Raises `UserError` if there is nothing to report."""
        results, answers, history = read_result(run / RESULTS) or {}, read_answers(run), read_log(run / LOG)
        paths = [path for path in (run / "add" / RECIPE, run / RECIPE) if path.is_file()]
        if not (answers or history.train or results):
            raise UserError(
                f"{run}: no run to report: it has neither {LOG} nor the results of cover fit; give a run folder"
            )
        recipe = config.load(Recipe, paths[0]) if paths else None
        base = read_baselines(run)
        own = run / "catalog.yaml"
        path = own if own.is_file() else Path(recipe.data.catalog) if recipe else own
        catalog = load_catalog(path) if path.is_file() else None
        return cls(run, recipe, catalog, history, answers, results, base)

    @property
    def names(self) -> list[str]:
        """The data sets of the run."""
        trained = self.recipe.data.sets if self.recipe else []
        return list(dict.fromkeys([*(each.dataset for each in self.answers), *trained]))


def read_baselines(run: Path) -> dict[str, Any]:
    """Data set -> its baselines, from the folder of a run of `cover train`, `cover fit` or `cover add`."""
    results = read_result(run / RESULTS) or {}
    return (
        {results["new"]["dataset"]: results["baselines"]} if results.get("new") else read_result(run / BASELINES) or {}
    )


def write_run_report(run: str | Path) -> Path:
    """Write `report.html` into a run folder and return its path. Raises `UserError` as `RunRecord.read`."""
    record = RunRecord.read(Path(run))
    sets = [_set(record, name) for name in record.names]
    page = render_page(
        "run.html",
        title=_title(record),
        lede=_lede(record),
        notes=record.results.get("notes", []),
        sets=sets,
        measured=[line for each in record.answers for line in _measured(each)] + _alone_note(record.results),
        ladder=[panel for each in sets if (panel := each["ladder"])],
        candidates=_candidates(record.results),
        losses=_loss_panels(record),
        dev=_dev_panels(record),
        next=_advice(record, sets),
        commands=_commands(record),
        protocol=_protocol(record),
    )
    return write_text(page, record.run / REPORT)


def _title(record: RunRecord) -> str:
    if len(record.names) == 1 and record.answers:
        return f"{record.names[0]}: {len(record.answers[0].classes)} classes"
    return f"{record.run.resolve().name}: {len(record.names)} data sets" if record.names else str(record.run)


def _lede(record: RunRecord) -> str:
    texts = []
    for each in record.answers:
        estimate = with_interval(*top1_of(each))
        texts.append(f"{estimate} of {len(each.rows):,} samples of {each.dataset} are right ({each.measured}).")
    return " ".join(texts) or "This run has measured no data set with one class for each sample."


def _measured(answers: Answers) -> list[str]:
    """Lines that say which samples the accuracy of a data set is measured on."""
    count = f"{len(answers.rows):,} samples of {answers.dataset}"
    if answers.measured.endswith(" folds"):
        folds = answers.measured.partition(" ")[0]
        return [
            f"By folds: the {count}, of all splits, are divided into {folds} parts. A group is never divided. A head"
            " that is fitted to the other parts is measured on each, so every sample is measured once, by a head that"
            " has not seen it. The head of this model is fitted to all of them."
        ]
    own = answers.measured == "dev"
    apart = "a part of the training files that no weight is fitted to" if own else "kept apart from training"
    return [f"On the split {answers.measured}: {count}, {apart}."]


def _alone_note(results: Mapping[str, Any]) -> list[str]:
    alone = "Frozen start: the network keeps the weights of its start, and only a head is fitted to these files."
    return [alone] if results.get("alone") else []


def top1_of(answers: Answers) -> tuple[float, float | None, float | None]:
    """Top-1 with the ends of its interval over sources."""
    right = np.equal(answers.predicted, answers.truth)
    found = proportion(right, _manifest(answers).sources(np.asarray(answers.rows, np.int64)))
    return found.value, found.low, found.high


def _manifest(answers: Answers) -> Manifest:
    manifest = open_manifest(Path(answers.manifest))
    if manifest.digest() != answers.digest:
        raise UserError(f"{answers.manifest}: was indexed again after the run; run the command again for a report")
    return manifest


# --- one data set -----------------------------------------------------------------------------------------------------


def _set(record: RunRecord, name: str) -> dict[str, Any]:
    answers = next((each for each in record.answers if each.dataset == name), None)
    manifests = _manifests(record, name)
    return {
        "name": name,
        "sizes": _sizes(manifests),
        "odd": _odd(manifests),
        "examples": class_examples(manifests[0]) if manifests else [],
        "ladder": _ladder(record, name, answers),
        "answers": answers,
        "matrix": confusion_table(answers) if answers else None,
        "confusions": confusions(answers) if answers else None,
        "classes": class_panel(answers) if answers else None,
        "calibration": calibration_panel(answers) if answers else None,
        "mistakes": mistakes(answers, _manifest(answers)) if answers else [],
        "counts": _class_counts(manifests),
        "video": any(manifest.media == "video" for manifest in manifests),
    }


def _manifests(record: RunRecord, name: str) -> list[Manifest]:
    if record.catalog is None or name not in record.catalog.specs:
        return [_manifest(each) for each in record.answers if each.dataset == name]
    splits = record.catalog.spec(name).splits
    return [record.catalog.manifest(name, split) for split in splits if record.catalog.has_manifest(name, split)]


def _sizes(manifests: Sequence[Manifest]) -> Table:
    rows = []
    for manifest in manifests:
        counts = manifest.counts()
        states = [f"{counts.get(state, 0):,}" for state in ("ok", "missing", "unreadable", "too_short")]
        present = len(np.unique(manifest.labels[manifest.usable])) if len(manifest.usable) else 0
        classes = "" if manifest.classes.many else f"{present} of {len(manifest.classes.names)}"
        rows.append([Cell(manifest.split), Cell(f"{len(manifest):,}"), *map(Cell, states), Cell(classes)])
    return Table(["split", "listed", "usable", "missing", "unreadable", "too short", "classes present"], rows)


def _class_counts(manifests: Sequence[Manifest]) -> Counter[str]:
    counts = Counter[str]()
    for manifest in manifests:
        if not manifest.classes.many:
            counts.update(dict.fromkeys(manifest.classes.names, 0))
            counts.update(manifest.classes.names[label] for label in manifest.labels[manifest.usable])
    return counts


def _odd(manifests: Sequence[Manifest]) -> dict[str, Any]:
    rows = [row for manifest in manifests for row in manifest.rows() if row.state != "ok" or row.damage]
    shown = [
        [
            Cell(row.sample_id),
            Cell("partial" if row.state == "ok" else row.state, tone="text"),
            Cell(row.why or row.damage, tone="text"),
        ]
        for row in rows[:ODD_SHOWN]
    ]
    return {"table": Table(["file", "state", "why"], shown, kind="small"), "more": max(0, len(rows) - ODD_SHOWN)}


def _ladder(record: RunRecord, name: str, answers: Answers | None) -> Panel | None:
    """Chance, trivial methods, the model trained alone if there is one, and the model."""
    base, bars = record.baselines.get(name) or {}, list[Bar]()
    chance = base.get("chance") or (1 / len(answers.classes) if answers else None)
    for key, title in TITLES.items():
        found = base.get(key)
        if isinstance(found, Mapping):
            bars.append(_bar(title, found["top1"], found["low"], found["high"], "shuffled", chance))
        elif found is not None:
            bars.append(_bar(title, found, None, None, "oneframe", None))
    if (alone := record.results.get("alone")) and record.results["new"]["dataset"] == name:
        bars.append(_bar("these files alone, frozen start", *_estimate(alone["alone"]), "single", chance))
    if answers and answers.rows:
        bars.append(_bar("this model", *top1_of(answers), "cotrained", chance))
    notes = [standing(base["behind"])] if base.get("behind") else []
    return Panel(name, bars=bars, protocol=notes) if bars else None


def _estimate(found: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    return found["value"], found["low"], found["high"]


def _bar(title: str, top1: float, low: float | None, high: float | None, tone: str, chance: float | None) -> Bar:
    interval = None if low is None or high is None else (low, high)
    return bar(title, top1, f"{percent(top1)} %", tone, chance, interval)


# --- curves, protocol and advice --------------------------------------------------------------------------------------


def _candidates(results: Mapping[str, Any]) -> Table | None:
    from cover.experiments.add.best_head import NOTES
    from cover.experiments.add.best_head import TITLES as HEADS

    rows = [
        [
            Cell(HEADS[each["kind"]], f"{'Kept. ' * (place == 0)}{NOTES[each['kind']]}"),
            Cell(each["setting"]),
            Cell(percent(each["held_out"]), tone="lead" if place == 0 else ""),
            Cell(f"{each['seconds']:.0f}"),
        ]
        for place, each in enumerate(results.get("candidates") or [])
    ]
    return Table(["head", "setting", "right, held out %", "seconds"], rows) if rows else None


def _loss_panels(record: RunRecord) -> list[Panel]:
    sizes = {each.dataset: len(each.classes) for each in record.answers}
    return [
        panel
        for name in record.history.sets()
        for panel in curves(
            name,
            [("loss", "cotrained", record.history.losses(name), True)],
            (math.log(sizes[name]), "guessing") if sizes.get(name, 0) > 1 else None,
            percent=False,
        )
    ]


def _dev_panels(record: RunRecord) -> list[Panel]:
    sizes = {each.dataset: len(each.classes) for each in record.answers}
    return [
        panel
        for name in record.history.sets()
        for panel in curves(
            name,
            [("top-1 on dev", "cotrained", record.history.dev_top1(name), False)],
            (1 / sizes[name], "chance") if name in sizes else None,
            percent=True,
        )
    ]


def _protocol(record: RunRecord) -> Table:
    from cover.experiments.add.best_head import is_fitted

    facts = {
        "run": str(record.run),
        "cover": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    new = record.results.get("new") or {}
    facts |= {title: str(new[key]) for title, key in _FACTS.items() if new.get(key) is not None}
    if record.results.get("measured_by"):
        facts["measured"] = record.results["measured_by"]
    if record.results.get("checkpoint") or record.results.get("start"):
        facts["start"] = record.results.get("start") or record.results["checkpoint"]
    if record.recipe:
        facts["seed"] = str(record.recipe.seed)
        if not is_fitted(record.results):  # that has no steps
            facts |= {"steps": str(record.recipe.steps), "batch": str(record.recipe.batch)}
    for each in record.answers:
        facts[f"{each.dataset}, read of listed"] = f"{len(each.rows):,} of {each.listed:,} ({each.measured})"
    facts |= {f"network of {record.run.name}": _network(record)} if _network(record) else {}
    return Table([], [[Cell(key), Cell(value)] for key, value in facts.items()], kind="small facts")


_FACTS = {"views": "views", "frames of a clip": "frames", "clip sampling": "sampling", "class list": "class_digest"}


def _network(record: RunRecord) -> str:
    try:
        found = read_config(find_release(record.run))
    except UserError:
        return ""
    return f"{found.backbone.family}, heads {', '.join(head.name for head in found.heads)}"


def _advice(record: RunRecord, sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to try next, the most likely gain first."""
    lines = []
    for own in sets:
        name, answers = own["name"], own["answers"]
        if behind := (record.baselines.get(name) or {}).get("behind"):
            longer = "" if record.results else "train longer, "
            lines.append(
                f"{name} is {standing(behind)}: {longer}take another start (cover starts lists them), or train more of"
                " the network than its head."
            )
        few = [f"{label} ({count})" for label, count in own["counts"].items() if count < FEW_OF_A_CLASS]
        if few:
            lines.append(
                f"{name}: more samples of classes with few: {', '.join(few[:8])}{' and others' * (len(few) > 8)}."
            )
        if answers and (worst := _most_confused(answers)):
            lines.append(f"{name}: {worst}.")
        if own["odd"]["table"].rows:
            lines.append(f"{name}: some files cannot be used; the table of odd files says which and why.")
        if answers and own["calibration"] and own["calibration"].value > UNSURE_ECE:
            lines.append(
                f"{name}: probabilities are off by {percent(own['calibration'].value)} points on average; set a"
                " threshold by the right answers at it, not by its number."
            )
    if any(note.startswith("no groups") for note in record.results.get("notes", [])):
        lines.append("Say what belongs together (--group), if clips come from one recording or show one person.")
    tried = {each["kind"] for each in record.results.get("candidates") or []}
    if tried and "late_block" not in tried and any(own["video"] for own in sets):
        lines.append(
            "A late space-time block takes minutes more, and can gain where motion counts: --heads late_block."
        )
    return lines


def _most_confused(answers: Answers) -> str:
    pairs = Counter((t, p) for t, p in zip(answers.truth, answers.predicted, strict=True) if t != p and p >= 0)
    if not pairs:
        return ""
    (truth, said), count = pairs.most_common(1)[0]
    of = answers.truth.count(truth)
    if count < 2:
        return ""
    names = answers.classes
    return (
        f'"{names[truth]}" is taken for "{names[said]}" in {count} of {of}: samples that show the difference help most'
    )


def _commands(record: RunRecord) -> list[str]:
    from cover.experiments.add.best_head import is_fitted

    run, results = record.run, record.results
    words: list[list[Any]] = [["predict", run, "FILE"], ["explain", run, "FILE"], ["serve", run, "--page"]]
    if results.get("recipe") and not is_fitted(results):  # training such a head step by step would gain nothing
        words.append(["train", results["recipe"], "--out", run.with_name(f"{run.name}_2")])
    elif record.recipe and not results:
        words.append(["train", run / RECIPE, "--out", run.with_name(f"{run.name}_2"), "--optimizer.lr", "3e-4"])
    return [shlex.join(["cover", *map(str, each)]) for each in words]
