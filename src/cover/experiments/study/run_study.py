"""`cover study`: runs what is missing of a study, compares the runs, and writes the report.

cover study recipes/studies/sandbox.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cover import config
from cover.console import print_table, say, write_json
from cover.datasets.catalog import Catalog, load_catalog
from cover.errors import UserError
from cover.evaluation.statistics import detectable, look_levels
from cover.experiments.study.answers import ANSWERS, write_answers
from cover.experiments.study.arms import Grid, measured_subsets
from cover.experiments.study.comparisons import comparisons_of, decided
from cover.experiments.study.networks import finish_networks
from cover.experiments.study.pilot import run_pilot
from cover.experiments.study.runner import MARKDOWN, REPORT, RESULTS, STUDY, run_missing
from cover.experiments.study.study_file import Study
from cover.experiments.study.study_report import write_study_report
from cover.experiments.study.subsets import Subset, SubsetBuilder
from cover.experiments.study.summary import results_of, summarise
from cover.experiments.study.trivial import trivial_methods
from cover.experiments.study.worth import worth_study
from cover.locks import alone_in
from cover.model.release import trained_on


def run_study(study: Study, workers: int, dry: bool = False, worth: str = "") -> dict[str, Any] | None:
    """Run what is missing of a study and write its results and its report.

    `workers`: runs at the same time. With `dry`, only check the study and print its plan. `worth`: a target; then the
    study is that of `worth_study`, in the folder `worth/TARGET` of the study, whose runs it shares. With `models`, each
    network has results and a report in its own folder, and those of the study are of all networks. Returns the results,
    or None with `dry`. Raises `UserError`, before the first run, if something is wrong with the study.
    """
    out, studies = Path(study.out), study.by_model()
    if worth and study.models:
        raise UserError(
            f"--worth: the study has several networks; give {out / next(iter(studies)) / STUDY}, or another"
        )
    catalog = load_catalog(study.catalog)
    builder = SubsetBuilder(catalog, out / "data", study.split, study.fold_dev)
    grids = []
    for own in studies.values():
        _check_sets(own, catalog)
        _check_counts(own, builder)
        grids.append(Grid(worth_study(own, worth) if worth else own, builder))
    planned = plan(grids[0].study, builder)
    jobs = [job for grid in grids for job in grid.jobs.values()]
    comparisons = sum(len(comparisons_of(grid.study)) for grid in grids)
    steps = sum(job.recipe.step_count for job in jobs)
    say(f"{out}: {len(jobs)} runs, {steps:,} steps in all, {comparisons} comparisons")
    print_plan(planned, study.margin)
    if dry:
        return None
    with alone_in(out):
        trivial = trivial_methods(study, builder, workers)
        summaries = {name: _finish(own, builder, workers, planned, trivial, worth) for name, own in studies.items()}
        return finish_networks(study, builder, summaries) if study.models else summaries[""]


def _finish(
    study: Study,
    builder: SubsetBuilder,
    workers: int,
    planned: Sequence[dict[str, Any]],
    trivial: Sequence[dict[str, Any]],
    worth: str,
) -> dict[str, Any]:
    """Run what is missing of a study with one network, and write its results and its report."""
    out, folder = Path(study.out), report_folder(study, worth)
    say(f"study {out}")
    chosen, pilot = run_pilot(study, builder, workers, trivial)
    asked = worth_study(chosen, worth) if worth else chosen
    grid, look = _run(asked, builder, out, workers)
    summary = summarise(grid.study, grid, out, planned, trivial, pilot, look)
    folder.mkdir(parents=True, exist_ok=True)
    write_answers(grid.measurements, results_of(grid, out), folder / ANSWERS)
    write_json(summary, folder / RESULTS)
    (folder / STUDY).write_text(config.dump(study), encoding="utf-8")
    write_study_report(summary, folder / REPORT, folder / MARKDOWN)
    return summary


def _run(study: Study, builder: SubsetBuilder, out: Path, workers: int) -> tuple[Grid, dict[str, Any] | None]:
    """Run what is missing: all runs, or with `look`, those of half of the seeds if they decide all claims.

    Returns the runs to report, and what the report says of the look: the seeds that it had, those that were planned,
    the level of its tests, and whether the study ended there.
    """
    everything = Grid(study, builder)
    if not study.look:
        run_missing(list(everything.waves()), builder, out, workers)
        return everything, None
    seeds = len(study.seeds) // 2
    early, last = look_levels(seeds / len(study.seeds))
    look = {"seeds": seeds, "planned": len(study.seeds), "level": early, "stopped": True}
    half = Grid(replace(study, seeds=study.seeds[:seeds], look=False), builder)
    run_missing(list(half.waves()), builder, out, workers)
    if decided(summarise(half.study, half, out, [], look=look)["comparisons"]):
        say(f"look at {seeds} of {len(study.seeds)} seeds: all claims are decided; the other seeds are not run")
        return half, look
    say(f"look at {seeds} of {len(study.seeds)} seeds: not all claims are decided; the study goes on")
    run_missing(list(everything.waves()), builder, out, workers)
    return everything, {**look, "level": last, "stopped": False}


def report_folder(study: Study, worth: str = "") -> Path:
    """The folder of the results and the report."""
    return Path(study.out) / "worth" / worth if worth else Path(study.out)


def plan(study: Study, builder: SubsetBuilder) -> list[dict[str, Any]]:
    """The detectable difference on each target, computed from `study.expected`."""
    rows = []
    for target in dict.fromkeys([*study.targets, *study.transfer.targets]):
        folds = study.folds.get(target, 0)
        manifests = [builder.measured(Subset(target, folds=folds, fold=fold)) for fold in range(max(1, folds))]
        items = sum(len(manifest.usable) for manifest in manifests)
        sources = len({manifest.row(int(number)).group_id for manifest in manifests for number in manifest.usable})
        spread = study.expected
        smallest = detectable(spread.between_runs, spread.between_sources, len(study.seeds), sources)
        rows.append(
            {"target": target, "items": items, "sources": sources, "seeds": len(study.seeds), "detectable": smallest}
        )
    return rows


def print_plan(planned: Sequence[dict[str, Any]], margin: float) -> None:
    """Print the detectable differences, in points of top-1."""
    rows = [
        [row["target"], row["items"], row["sources"], row["seeds"], f"{100 * row['detectable']:.1f}"] for row in planned
    ]
    print_table(["target", "clips", "sources", "seeds", "detectable, points"], rows)
    say(f"not worse: the whole interval is above {-100 * margin:.1f} points")
    say("a difference that is smaller than the detectable one often stays undetected")


def _check_counts(study: Study, builder: SubsetBuilder) -> None:
    """Raise `UserError` if there are no clips for training or for measuring."""
    for subset in measured_subsets(study):
        measured = 0 if builder.lacks(subset) else len(builder.measured(subset).usable)
        counts = {"train": builder.count(subset), study.split: measured}
        for split, count in counts.items():
            if not count:
                text = f"none of its {split} clips is readable and labelled; `cover index` says why"
                raise UserError(f"{subset.name}: {text}")
    if study.weights:
        sources = [name for sets in study.transfer.sources.values() for name in sets]
        for name in dict.fromkeys([*study.mixture, *study.targets, *study.images, *study.transfer.targets, *sources]):
            if not study.weights.get(name, 0) > 0:
                raise UserError(f"weights.{name}: a positive weight is needed for each data set of the study")


def _check_sets(study: Study, catalog: Catalog) -> None:
    """Raise `UserError` if a data set has the wrong media or does not have the split."""
    transfer = [name for sets in study.transfer.sources.values() for name in sets]
    origins = [name for origin in study.origins.values() for name in origin.sets]
    for key, names, media in (
        ("targets", study.targets, "video"),
        ("videos", study.videos, "video"),
        ("transfer.targets", study.transfer.targets, "video"),
        ("images", study.images, "image"),
        ("probes", study.probes, "image"),
        ("origins", origins, "image"),
        ("transfer.sources", transfer, None),
    ):
        for name in names:
            spec = catalog.spec(name)
            if media and spec.media != media:
                raise UserError(f"{key}: {name} holds {spec.media}s")
    _check_origins(study, catalog)
    shared = sorted({name for origin in study.origins.values() for name in origin.sets} & set(study.images))
    if shared and "videos_images" in study.arms:
        say(f"origins: {', '.join(shared)} is in the pre-training and in the mixture: claim (b) asks for other images")
    targets = [name for name in study.targets if name not in study.folds]
    moved = [name for name in study.transfer.targets if not study.transfer_folds(name)]
    for key, names in (("targets", targets), ("transfer.targets", moved), ("probes", study.probes)):
        for name in names:
            if study.split not in catalog.spec(name).splits:
                raise UserError(f"{key}: {name} has no split {study.split}; set split, or folds.{name}")


def _check_origins(study: Study, catalog: Catalog) -> None:
    """Raise `UserError` if starting weights were trained on clips that are measured, or if a source has no clips."""
    for name, origin in study.origins.items():
        known = [target for target in study.folds if origin.checkpoint and target in trained_on(origin.checkpoint)]
        if known:
            raise UserError(f"origins.{name}: {origin.checkpoint} was trained on {known[0]}, whose folds are measured")
    for name, sets in study.transfer.sources.items():
        for target in study.transfer.targets:
            left = [each for each in sets if len(sets) == 1 or each != target]
            if not any(catalog.spec(each).media == "video" for each in left):
                raise UserError(f"transfer.sources.{name}: without {target}, which it leaves out, it has no video set")
    for name, path in study.transfer.checkpoints.items():
        known = [target for target in study.transfer.targets if target in trained_on(path)]
        if known and len(trained_on(path)) > 1:
            raise UserError(
                f"source {name}: {path} was trained on {known[0]} too;"
                " the co-trained source of a transfer leaves the target out"
            )
