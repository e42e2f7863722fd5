"""`cover add`: trains one more head on a released model, and measures its accuracy and that of the old heads.

cover add runs/cotrain --data mine --catalog catalog.yaml --how probe --compare
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cover import config
from cover.console import print_table, say, say_lines, tell, write_json
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import Manifest
from cover.distributed import started_by_torchrun
from cover.errors import UserError
from cover.evaluation.answers import write_answers
from cover.evaluation.baselines import TITLES, baselines, figures, shortfalls, sizes, standing
from cover.evaluation.statistics import FEW_SOURCES, with_interval
from cover.experiments.add.add_recipe import BESIDE, AddMethod, AddRequest, add_recipe, baseline_recipe, in_short
from cover.experiments.add.best_head import (
    HeadKind,
    best_head,
    best_head_by_folds,
    print_candidates,
    usual_kinds,
)
from cover.experiments.add.measure import (
    Evaluator,
    OldSets,
    SampleResults,
    accuracy,
    compare_old,
    gain_over,
    measure_old,
    old_sets,
    split_of,
    split_of_new,
    why_absent,
)
from cover.experiments.folds import FoldRequest, check_start, divide, fold_answers, run_folds, write_catalog
from cover.experiments.run_files import read_log
from cover.locks import alone_in
from cover.machine import default_workers
from cover.model.release import find_release, read_config
from cover.training.checkpoint import LOG
from cover.training.recipe import Recipe
from cover.training.resume import has_started
from cover.training.train import train

FOLDS = "folds"  # folder, in `BESIDE`, for the runs of the folds


@dataclass(frozen=True)
class AddOptions:
    """Options of `add`.

    `compare`: also train the new data set alone, from `baseline` or from random weights. `split`: the split to measure
    on, in place of the first of `measure.SPLITS`. `only_recipe`: write the recipe and stop. `overrides`: fields of the
    recipe, as for `cover train`. `folds`: measure by this many folds over all labelled samples, and train the final
    head on all of them. `kinds`: the heads that `--how best` tries; all that make sense for the data if empty.
    """

    compare: bool = False
    baseline: str | Path | None = None
    split: str | None = None
    only_recipe: bool = False
    overrides: Sequence[str] = ()
    folds: int | None = None
    kinds: tuple[HeadKind, ...] = ()

    def check(self) -> None:
        """Raises `UserError` for options that exclude each other."""
        others = {"--compare": self.compare or self.baseline, "--split": self.split, "--only-recipe": self.only_recipe}
        for name, given in others.items():
            if self.folds and given:
                raise UserError(f"--folds: cannot go with {name}")


def default_method(checkpoint: Path) -> AddMethod:
    """`best` for a network that can pool quarters of a clip, else `probe`. Raises `UserError` without a checkpoint."""
    folder = find_release(checkpoint)
    try:
        options = read_config(folder).backbone.options()
    except UserError:  # the method itself reports it
        return "probe"
    return "best" if options.pooled_by("quarters") else "probe"


def add(request: AddRequest, options: AddOptions) -> dict[str, Any] | None:
    """Train the new head, if that is not done yet, and measure it and the old heads.

    Returns the results, which are also written to `results.json`, or None with `only_recipe`. Raises `UserError`.
    """
    if started_by_torchrun():
        raise UserError(
            "torchrun: write the recipe with cover add --only-recipe, run it with torchrun -m cover train,"
            " then run cover add"
        )
    options.check()
    with alone_in(request.out, "--out"):
        return _add(request, options)


def _add(request: AddRequest, options: AddOptions) -> dict[str, Any] | None:
    catalog, workers = load_catalog(request.catalog), default_workers() if request.workers < 0 else request.workers
    request, beside = replace(request, release=find_release(request.release)), request.out / BESIDE
    rows = len(_new_set(request, catalog, workers).usable)
    old = old_sets(read_config(request.release).heads, catalog)
    if request.how == "best":
        return _add_best(request, options, old, catalog, workers)
    if options.folds:
        return _add_by_folds(request, options, old, catalog, workers)
    recipe = make_recipe(request, rows, old, catalog, options.overrides)
    write_short_recipe(recipe, beside / "recipe.yaml")
    if options.only_recipe:
        return None
    baseline = find_release(options.baseline) if options.baseline else None  # a wrong path is reported before the work
    split = split_of_new(request.name, catalog, options.split)
    splits = {name: split_of(name, catalog, options.split) for name in old.heads}
    before = measure_old(_evaluator(request.release, catalog, request, workers), old, splits)
    run = train_missing(recipe)
    after = _evaluator(find_release(run), catalog, request, workers)
    new = after.measure(request.name, split)
    results = _results(request, recipe, old, compare_old(before, request.release, after, old, recipe))
    _put_new(results, request, new, catalog, workers)
    if options.compare or baseline:
        write_json(results, beside / "results.json")  # here too, because the baseline takes long
        results["compare"] = _compare(request, recipe, new, catalog, baseline, workers)
    write_json(results, beside / "results.json")
    return results


def _results(request: AddRequest, recipe: Recipe, old: OldSets, compared: list[dict[str, Any]]) -> dict[str, Any]:
    """The results without those of the new head."""
    run = Path(recipe.out)
    return {
        "checkpoint": str(request.release),
        "how": request.how,
        "seed": recipe.seed,
        "run": str(run),
        "recipe": str(request.out / BESIDE / "recipe.yaml"),
        "epochs": _epochs(run),
        "not_replayed": old.absent if request.how == "replay" else {},
        "old": compared,
        "new": None,
        "baselines": None,
        "compare": None,
    }


def _add_best(request: AddRequest, options: AddOptions, old: OldSets, catalog: Catalog, workers: int) -> dict[str, Any]:
    """The results of `add` with `--how best`."""
    if options.only_recipe or options.overrides:
        name = "--only-recipe" if options.only_recipe else next(iter(options.overrides))
        raise UserError(f"{name}: --how best tries several heads and has no recipe before that; use --how probe")
    video = catalog.spec(request.name).media == "video"
    kinds, beside = options.kinds or usual_kinds(video, options.folds is not None), request.out / BESIDE
    baseline = find_release(options.baseline) if options.baseline else None
    # The heads are compared on dev, so dev is reported only if there is no other split.
    reported = (
        [options.split]
        if options.split
        else [each for each in ("val", "test") if not why_absent(request.name, catalog, each)]
    )
    split = None if options.folds else split_of_new(request.name, catalog, next(iter(reported), None))
    splits = {name: split_of(name, catalog, options.split) for name in old.heads}
    before = measure_old(_evaluator(request.release, catalog, request, workers), old, splits)
    if options.folds:
        folds = FoldRequest((request.name,), options.folds, request.seed, device=request.device, workers=workers)
        recipe, candidates, measured = best_head_by_folds(request, catalog, folds, kinds, workers)
    else:
        assert split
        recipe, candidates = best_head(request, catalog, split, kinds, workers, spare=not options.kinds)
    write_short_recipe(recipe, request.out / BESIDE / "recipe.yaml", quiet=True)
    after = _evaluator(request.out, catalog, request, workers)
    results = _results(request, recipe, old, compare_old(before, request.release, after, old, recipe))
    results["candidates"] = [asdict(each) for each in candidates]
    if options.folds:
        _put_folds(results, measured, request, beside / "all")
    else:
        assert split
        new = after.measure(request.name, split)
        _put_new(results, request, new, catalog, workers)
        if options.compare or baseline:
            results["compare"] = _compare(request, recipe, new, catalog, baseline, workers)
    write_json(results, request.out / BESIDE / "results.json")
    return results


def _add_by_folds(
    request: AddRequest, options: AddOptions, old: OldSets, catalog: Catalog, workers: int
) -> dict[str, Any]:
    """The results of `add` with folds. The final head is trained on all samples, by the recipe of the folds."""
    assert options.folds
    beside = request.out / BESIDE
    whole = beside / FOLDS / "all"
    folds = FoldRequest((request.name,), options.folds, request.seed, device=request.device, workers=workers)
    request = replace(request, catalog=whole / "catalog.yaml")
    replayed = replayed_rows(request, old, catalog)
    exclusions = _recipe(request, 1, replayed, old, options.overrides).data.exclusions == "use"
    divided = divide(catalog, folds, exclusions)
    rows = divided[0].rows
    recipe = _recipe(request, sum(row.state == "ok" for row in rows), replayed, old, options.overrides)
    check_start(recipe, folds)
    write_catalog(whole, catalog, {request.name: (divided[0], {"train": rows})}, recipe.data)
    write_short_recipe(recipe, beside / "recipe.yaml")
    measured = run_folds(recipe, catalog, divided, folds, beside / FOLDS)[request.name]
    splits = {name: split_of(name, catalog, None) for name in old.heads}
    before = measure_old(_evaluator(request.release, catalog, request, workers), old, splits)
    say(f"all {len(rows)} samples: {recipe.out}")
    after = _evaluator(find_release(train_missing(recipe)), catalog, request, workers)
    results = _results(request, recipe, old, compare_old(before, request.release, after, old, recipe))
    _put_folds(results, measured, request, beside / FOLDS / "all" / request.name)
    write_json(results, beside / "results.json")
    return results


def _put_new(results: dict[str, Any], request: AddRequest, new: SampleResults, catalog: Catalog, workers: int) -> None:
    """Put the accuracy of the new data set into `results`, and the baselines on the same samples."""
    results["new"] = {"dataset": request.name, **accuracy(new)}
    results["baselines"] = _baselines(request, new, catalog, workers)
    if new.answers:
        write_answers(request.out, [new.answers])


def _put_folds(results: dict[str, Any], measured: dict[str, Any], request: AddRequest, whole: Path) -> None:
    """As `_put_new`, over folds. `whole`: the folder of the catalog of all samples."""
    write_answers(request.out, [fold_answers(measured, load_catalog(whole / "catalog.yaml"))])
    results["baselines"] = measured.pop("baselines")
    estimate = {"value": measured["top1"], **measured["top1_interval"]}
    results["new"] = {"measure": "top1", "split": f"{measured['folds']} folds", **estimate, **measured}


def _evaluator(release: Path, catalog: Catalog, request: AddRequest, workers: int) -> Evaluator:
    return Evaluator(release, catalog, request.out / BESIDE / "measured", request.device, workers)


def _epochs(run: Path) -> dict[str, float]:
    """The epochs of each data set in a run."""
    if not (run / LOG).is_file():  # a fitted head
        return {}
    epochs: dict[str, float] = read_log(run / LOG).last().get("epochs", {})
    return epochs


def _new_set(request: AddRequest, catalog: Catalog, workers: int) -> Manifest:
    """The manifest of the new data set's training split. It is made if it does not exist. Raises `UserError`."""
    path = catalog.manifest_path(request.name, "train")
    for head in read_config(request.release).heads:
        if request.name in (head.name, *head.datasets):
            raise UserError(
                f'{request.release}: its head "{head.name}" is for {request.name} already; train that further with'
                " cover train (start.checkpoint), or give the new data another name in the catalog"
            )
    if not path.is_file():
        index(request.catalog, workers, [request.name])
    manifest = catalog.manifest(request.name, "train")
    if not len(manifest.usable):
        raise UserError(f"{path.name}: none of its {len(manifest)} rows is readable and labelled; nothing to train on")
    return manifest


# --- the runs ---------------------------------------------------------------------------------------------------------


def make_recipe(request: AddRequest, rows: int, old: OldSets, catalog: Catalog, overrides: Sequence[str]) -> Recipe:
    """The recipe for `rows` samples of the new data set. Old data sets that are not replayed are reported on stderr.

    Raises `UserError`.
    """
    return _recipe(request, rows, replayed_rows(request, old, catalog), old, overrides)


def replayed_rows(request: AddRequest, old: OldSets, catalog: Catalog) -> dict[str, int]:
    """The old data sets that are replayed, with their training samples. Those that are not are reported on stderr.

    Raises `UserError`.
    """
    replayed: dict[str, int] = {}
    names = ", ".join(old.heads)
    if request.how == "replay":
        replayed = {name: len(catalog.manifest(name, "train").usable) for name in old.replayable}
        for name, reason in old.absent.items():
            change = "its head stays the same, but the backbone changes"
            say(f"WITHOUT REPLAY: {name}: {reason}; {change}: expect it to forget")
        if not replayed:
            raise UserError(f"--how replay: none of the release's data sets ({names}) is here; choose probe or alone")
    if request.how == "alone" and old.heads:
        say(f"WITHOUT REPLAY: the heads of {names} stay the same, but the backbone changes: expect them to forget")
    return replayed


def _recipe(
    request: AddRequest, rows: int, replayed: Mapping[str, int], old: OldSets, overrides: Sequence[str]
) -> Recipe:
    recipe = add_recipe(request, rows, replayed, old.shared)
    if not overrides:
        return recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(config.dump(recipe), encoding="utf-8")
        try:
            return config.load(Recipe, path, overrides)
        except UserError as error:  # leave out the name of the temporary file
            raise UserError(str(error).removeprefix(f"{path}: ")) from None


def write_short_recipe(recipe: Recipe, path: Path, quiet: bool = False) -> None:
    """Print the recipe and write it to a file for `cover train`. The file of a run that has started does not change."""
    text = f"# cover train {path}\n{in_short(recipe)}"
    if not quiet:
        say_lines(text)
    if has_started(Path(recipe.out)):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {path}: cannot be written: {error.strerror}") from None


def train_missing(recipe: Recipe) -> Path:
    """Train the run of `recipe`, or resume it. A finished run does not change."""
    return train(recipe, resume=has_started(Path(recipe.out)))


def _baselines(request: AddRequest, new: SampleResults, catalog: Catalog, workers: int) -> dict[str, Any]:
    """The baselines of the new data set on the samples of `new`, and in `behind` those that the model is not above."""
    found = baselines(catalog, request.name, new.protocol["split"], workers, new.rows)
    if new.measure != "top1" or not len(new.rows):
        return {**found, "behind": []}
    ours = accuracy(new)
    return {**found, "behind": shortfalls(found, ours["value"], ours["low"])}


def _compare(
    request: AddRequest, recipe: Recipe, ours: SampleResults, catalog: Catalog, checkpoint: Path | None, workers: int
) -> dict[str, Any]:
    """Train the same network on the new data set without the release, and compare the accuracies."""
    beside = request.out / BESIDE
    baseline = baseline_recipe(recipe, request.name, beside / "baseline", checkpoint)
    write_short_recipe(baseline, beside / "baseline.yaml")
    run = train_missing(baseline)
    theirs = _evaluator(find_release(run), catalog, request, workers).measure(request.name, ours.protocol["split"])
    gain = gain_over(ours, theirs)
    return {"start": baseline.start.checkpoint or None, "run": str(run), "epochs": _epochs(run), **gain}


# --- the results on a terminal ----------------------------------------------------------------------------------------


def print_added(results: dict[str, Any]) -> None:
    """Print the results as a table, and the comparison with training alone below it."""
    if results.get("candidates"):
        print_candidates(results["candidates"])
    columns = ["data set", "head", "split", "read", "before", "after", "difference", ""]
    print_table(columns, [*(_old_cells(row) for row in results["old"]), _new_cells(results["new"])])
    compared, new, found = results["compare"], results["new"], results["baselines"]
    if found:
        beside = ", ".join(f"{title} {text}" for title, text in zip(TITLES.values(), figures(found)) if text != "-")
        notes = "; ".join(filter(None, [sizes(found), standing(found["behind"])]))
        tell(f"{new['dataset']}, trivial methods: {', '.join(filter(None, [beside, notes]))}")
        if found["behind"]:
            say(_advice(results))
    if compared:
        start = f"from {compared['start']}" if compared["start"] else "from random weights"
        gain = f"{_points(compared['difference'])}: {compared['verdict']} (one seed)"
        tell(f"{new['dataset']} alone, {start}, as many epochs: {_percent(compared['alone'])}; with the release {gain}")


def _advice(results: dict[str, Any]) -> str:
    """One line about a new head that is not above the baselines: the likely causes, and what to try."""
    name, epochs = results["new"]["dataset"], results["epochs"].get(results["new"]["dataset"])
    few = "too few epochs" + (f" ({epochs:.3g}; --epochs)" if epochs else " (--epochs)")
    start = f"a start that knows little of such data ({results['checkpoint']}; try cover add OTHER_START --data {name})"
    probe = ", or a fixed backbone (--how replay or alone)" if results["how"] == "probe" else ""
    # A fitted head has no epochs.
    causes = start if results["how"] == "best" else f"{few}, {start}{probe}"
    return f"{name}: {standing(results['baselines']['behind'])}; likely causes: {causes}"


def _old_cells(row: dict[str, Any]) -> list[str]:
    kind = "replayed" if row["trained"] else "kept"  # kept: in the checkpoint, but not trained
    if "why_not" in row:
        return [row["dataset"], row["head"], "-", "-", "-", "-", "-", f"{kind}; not measured: {row['why_not']}"]
    outcome = "unchanged, bit for bit" if row["unchanged"] else f"{kind}: {row['verdict']}"
    return [*_place(row), _percent(row["before"]), _percent(row["after"]), _points(row["difference"]), outcome]


def _new_cells(row: dict[str, Any]) -> list[str]:
    chance = f", chance {1 / row['classes']:.1%}" if row["measure"] == "top1" else ""
    return [*_place(row), "-", _percent(row), "-", f"new{chance}"]


def _place(row: dict[str, Any]) -> list[str]:
    measure = "" if row["measure"] == "top1" else f" ({row['measure']})"
    return [row["dataset"], row["head"] + measure, row["split"], f"{row['n_read']} of {row['n_listed']}"]


def _percent(estimate: dict[str, Any]) -> str:
    return with_interval(estimate["value"], estimate["low"], estimate["high"])


def _points(estimate: dict[str, Any]) -> str:
    low, high = estimate["low"], estimate["high"]
    interval = FEW_SOURCES if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return f"{100 * estimate['value']:+.1f} points ({interval})"
