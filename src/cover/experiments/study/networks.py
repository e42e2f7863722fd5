"""Study with several networks: what each costs, and the report that has all of them side by side."""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cover import __version__, config
from cover.console import say, write_json
from cover.experiments.charts import Panel, forest, span_of
from cover.experiments.report import Cell, Table, percent, points, render_markdown, render_page, write_text
from cover.experiments.run_files import read_result, write_result
from cover.experiments.study.arms import ArmRecipes
from cover.experiments.study.numbers import (
    StudyRow,
    arm_name,
    by,
    joined,
    model_name,
    plural,
    points_between,
    protocol_lines,
    unique,
)
from cover.experiments.study.runner import MARKDOWN, REPORT, RESULTS, STUDY
from cover.experiments.study.study_file import Study
from cover.experiments.study.study_report import comparison_interval, figure, origin_name, size_name, trivial_cell
from cover.experiments.study.subsets import SubsetBuilder
from cover.hardware import pick_device
from cover.model.backbones import backbone_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.profile import count_parameters, forward_cost, on_meta
from cover.planning.timing import Work, in_turns, random_pack
from cover.training.step import StepSettings, train_step

COSTS = "costs.json"
ROUNDS = 5  # of the timing
CLASSES = 8  # of the head in the timing
SHOWN = ("arms", "comparisons", "pooled", "runs")  # rows of the studies of single networks that the common report has


def finish_networks(study: Study, builder: SubsetBuilder, summaries: Mapping[str, StudyRow]) -> dict[str, Any]:
    """Write the results and the report of a study with `models`.

    `summaries`: by the name of the network. Returns the results: every row of a network's own results that
    the report shows has the name of the network.
    """
    out, first = Path(study.out), next(iter(summaries.values()))
    rows = {
        kind: [{"network": name, **row} for name, summary in summaries.items() for row in summary[kind]]
        for kind in SHOWN
    }
    shared = {key: first[key] for key in ("arms_mean", "generated", "planned", "trivial")}
    costs = network_costs(study, builder, out / COSTS)
    summary = {"cover": __version__, "study": asdict(study), **shared, "costs": costs, **rows}
    write_json(summary, out / RESULTS)
    (out / STUDY).write_text(config.dump(study), encoding="utf-8")
    data = report_data(summary)
    write_text(render_page("networks.jinja", **data), out / REPORT)
    write_text(render_markdown("networks.jinja", **data), out / MARKDOWN)
    return summary


# --- costs ------------------------------------------------------------------------------------------------------------


def network_costs(study: Study, builder: SubsetBuilder, kept: Path) -> dict[str, Any]:
    """Parameters without heads, multiply-adds of a clip, and times of every network, with the machine.

    The times are of a training step with random pixels, as large as that of the full mixture, and of the forward pass
    of one clip. The networks take turns. `kept`: a file with the costs; they are measured again for other networks.
    """
    device, size = pick_device(study.device), next(iter(study.sizes.values()))
    recipes = ArmRecipes(study, builder, study.targets[0], size, study.seeds[0], 0)
    groups = tuple((group.samples, group.frames) for group in recipes.full.groups)
    configs = {name: backbone_config(options, study.frames) for name, options in study.models.items()}
    known = json.dumps([{name: asdict(each) for name, each in configs.items()}, groups, str(device)])
    digest = hashlib.sha256(known.encode()).hexdigest()[:12]
    if (before := read_result(kept)) is not None and before["digest"] == digest:
        return before
    say(f"timing of {plural(len(configs), 'network')}")
    tasks: dict[str, Work] = {}
    for name, each in configs.items():
        network = CoVeR(each, (Head("timing", tuple(map(str, range(CLASSES)))),)).to(device)
        tasks |= {f"{name} step": _step(network, groups, device), f"{name} clip": _clip(network, study.frames, device)}
    seconds = {name: statistics.median(times) for name, times in in_turns(tasks, ROUNDS, device).items()}
    samples = sum(count for count, _ in groups)
    networks = {}
    for name, each in configs.items():
        empty = on_meta(each, {})
        networks[name] = {
            "parameters": count_parameters(empty).body,
            "multiply_adds": forward_cost(empty, ((1, study.frames),), each.size).multiply_adds,
            "training_samples_per_second": samples / seconds[f"{name} step"],
            "clip_milliseconds": 1000 * seconds[f"{name} clip"],
        }
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else plural(torch.get_num_threads(), "thread")
    costs = {"digest": digest, "groups": groups, "rounds": ROUNDS, "device": f"{device.type}, {kind}"}
    write_result({**costs, "networks": networks}, kept)
    return {**costs, "networks": networks}


def _step(network: CoVeR, groups: tuple[tuple[int, int], ...], device: torch.device) -> Work:
    """A training step."""
    pack = random_pack(groups, network.config.size, CLASSES, device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-5, fused=True)
    settings = StepSettings(len(pack.seed), torch.ones(1, device=device))

    def step() -> None:
        network.train()
        train_step(network, optimizer, [pack], settings)

    return step


def _clip(network: CoVeR, frames: int, device: torch.device) -> Work:
    """The forward pass of one clip."""
    groups = ((1, frames),)
    pack = random_pack(groups, network.config.size, CLASSES, device)

    def clip() -> None:
        network.eval()
        with torch.inference_mode():
            network(pack.pixels(network.normalize), groups)

    return clip


# --- the report -------------------------------------------------------------------------------------------------------


def report_data(summary: StudyRow) -> dict[str, Any]:
    """The tables, panels and texts of the report, by their names in `templates/networks.jinja`."""
    study = summary["study"]
    counts = plural(len(study["models"]), "network"), plural(len(study["targets"]), "data set")
    return {
        "summary": summary,
        "study": study,
        "title": f"{counts[0]}, alone and co-trained: {counts[1]}, {plural(len(study['seeds']), 'seed')}",
        "accuracies": [accuracy_table(summary, size) for size in study["sizes"]],
        "protocol": protocol_lines(summary["arms"], study),
        "differences": difference_panels(summary),
        "compared": difference_table(summary),
        "costs": cost_table(summary),
        "step": " + ".join(f"{count} of {plural(frames, 'frame')}" for count, frames in summary["costs"]["groups"]),
        "facts": fact_table(summary),
        "command": f"cover study {shlex.quote(str(Path(study['out']) / 'study.yaml'))}",
    }


def accuracy_table(summary: StudyRow, size: str) -> Table:
    """One row for each network and its starting weights, one column for each target and arm."""
    study = summary["study"]
    columns = [(target, arm) for target in study["targets"] for arm in study["arms"]]
    rows = [row for row in summary["arms"] if row["size"] == size]
    verdicts = {_place(row, "target", "ours"): row["verdict"] for row in _against_alone(summary)}
    body = []
    for (network, origin), own in by(rows, "network", "origin").items():
        of = {(row["dataset"], row["arm"]): row for row in own}
        figures = [figure(of.get(column), verdicts.get((network, *column, size, origin), "")) for column in columns]
        note = f"{model_name(study['models'][network])}, from {origin_name(study, origin)}"
        body.append([Cell(network, note), *figures])
    trivial = {row["dataset"]: row for row in summary["trivial"] if row["size"] == size}
    if trivial:
        cells = [trivial_cell(trivial.get(target)) if arm == "alone" else Cell(None) for target, arm in columns]
        body.append([Cell("trivial", "the best on each set"), *cells])
    heads = [f"{target}, {arm_name(arm)}" for target, arm in columns]
    return Table(["network", *heads], body, size_name(study, size))


def _against_alone(summary: StudyRow) -> list[StudyRow]:
    """The comparisons with the target alone, and their means over the targets."""
    pooled = [{**row, "target": "mean of the data sets"} for row in summary["pooled"]]
    return [row for row in [*summary["comparisons"], *pooled] if row["theirs"] == "alone"]


def _place(row: StudyRow, *keys: str) -> tuple[str, ...]:
    return (row["network"], *(row[key] for key in keys), row["size"], row["origin"])


def difference_panels(summary: StudyRow) -> list[Panel]:
    """For each target and mixture, the difference to the target alone of every network, on one scale."""
    rows, margin = _against_alone(summary), 100 * summary["study"]["margin"]
    if not rows:
        return []
    span = span_of([comparison_interval(row) for row in rows], margin)
    panels = []
    for (target, ours, size), own in by(rows, "target", "ours", "size").items():
        intervals = [comparison_interval(row, _network(row, summary)) for row in own]
        note = joined(f"{arm_name(ours)} minus alone", size if len(summary["study"]["sizes"]) > 1 else "")
        drawing = forest(f"{target}, {note}", intervals, span, margin, "points of top-1")
        panels.append(Panel(target, note, drawing=drawing))
    return panels


def _network(row: StudyRow, summary: StudyRow) -> str:
    """The name of a network, with its start if it has several."""
    starts = {each["origin"] for each in summary["arms"] if each["network"] == row["network"]}
    return f"{row['network']} from {row['origin']}" if len(starts) > 1 else row["network"]


def difference_table(summary: StudyRow) -> Table:
    """One row for each network, one column for each target and mixture: the difference to the target alone."""
    rows = _against_alone(summary)
    columns = unique((row["target"], row["ours"], row["size"]) for row in rows)
    several = len(summary["study"]["sizes"]) > 1, len({ours for _, ours, _ in columns}) > 1
    body = []
    for own in by(rows, "network", "origin").values():
        of = {(row["target"], row["ours"], row["size"]): row for row in own}
        cells = [_difference(of[column]) if column in of else Cell(None) for column in columns]
        body.append([Cell(_network(own[0], summary)), *cells])
    heads = [
        joined(target, arm_name(ours) if several[1] else "", size if several[0] else "")
        for target, ours, size in columns
    ]
    return Table(["network", *heads], body, kind="small")


def _difference(row: StudyRow) -> Cell:
    return Cell(points(row["difference"]), f"{points_between(row)}; {row['verdict']}")


def cost_table(summary: StudyRow) -> Table:
    """What each network costs."""
    body = []
    for name, cost in summary["costs"]["networks"].items():
        figures = [
            f"{cost['parameters'] / 1e6:.2f}",
            f"{cost['multiply_adds'] / 1e6:.1f}",
            f"{cost['training_samples_per_second']:.0f}",
            f"{cost['clip_milliseconds']:.1f}",
        ]
        body.append([Cell(name, model_name(summary["study"]["models"][name])), *map(Cell, figures)])
    columns = ["network", "parameters, M", "multiply-adds of a clip, M", "training samples a second", "ms a clip"]
    return Table(columns, body)


def fact_table(summary: StudyRow) -> Table:
    """The facts that apply to all numbers."""
    study, runs = summary["study"], summary["runs"]
    steps, seconds = (sum(run[key] or 0 for run in runs) for key in ("steps", "seconds"))
    facts = {
        "seeds": ", ".join(map(str, study["seeds"])),
        "clips": f"{study['frames']} frames",
        "samples in a step": f"{study['batch']} in the full mixture; as many clips for the target alone",
        "learning rates": ", ".join(f"{lr:g}" for lr in study["lrs"]),
        "margin": f"{percent(study['margin'])} points of top-1, fixed before the runs",
        "runs": f"{len(runs)}, {steps:,} steps, {seconds / 3600:.1f} hours in total",
        "timing": f"{summary['costs']['device']}, medians of {summary['costs']['rounds']} rounds, networks in turn",
        "cover": summary["cover"],
    }
    return Table([], [[Cell(key), Cell(value)] for key, value in facts.items()], kind="small facts")
