"""Which runs a study consists of: every arm sees the target equally often, and nothing is run twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from cover import config
from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import open_manifest
from cover.errors import UserError
from cover.experiments.study.arms import Grid, Job, Measurement
from cover.experiments.study.study_file import ARMS, Origin, Size, Study, Transfer
from cover.experiments.study.subsets import Subset, SubsetBuilder
from cover.mixture.mixture import Mixture
from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerOptions
from cover.model.profile import forward_cost, on_meta
from cover.training.recipe import Recipe
from cover.training.train import make_schedule

MakeGrid = Callable[..., Grid]
PHOTOS = Origin(sets=["imagenet"], steps=4)
SETS = ["kinetics", "ssv2", "moments"]


@pytest.fixture
def make_grid(sandbox: Path, tmp_path: Path) -> MakeGrid:
    """The grid of a study on the sandbox: three video targets, images, one seed."""

    def make(**changes: object) -> Grid:
        study = Study(
            str(sandbox),
            str(tmp_path),
            SETS,
            {"whole": Size(6)},
            [0],
            0.02,
            SETS,
            ["imagenet"],
            origins={"photos": PHOTOS},
            frames=4,
            batch=12,
        )
        return Grid(replace(study, **changes), SubsetBuilder(load_catalog(sandbox), tmp_path / "data", "val", 0.2))

    return make


def drawn(grid: Grid, job: Job) -> dict[str, int]:
    """How many samples of each data set a run's own schedule holds."""
    import yaml

    catalog = grid.builder.folder / f"{job.name}.yaml"
    catalog.write_text(yaml.safe_dump({name: grid.builder.entry(part) for name, part in job.subsets.items()}))
    recipe = replace(job.recipe, data=replace(job.recipe.data, catalog=str(catalog)))
    return make_schedule(recipe, Mixture.open(recipe.data, load_catalog(catalog))).drawn(recipe.steps)


def test_every_arm_sees_the_target_equally_often(make_grid: MakeGrid) -> None:
    grid = make_grid(arms=list(ARMS), sizes={"whole": Size(6), "half": Size(9, 0.5, 0.4)})
    for cell in grid.measurements:
        if cell.kind == "arm" and cell.arm != "alone_long":
            job, size = grid.jobs[cell.job], grid.study.sizes[cell.size]
            wanted = size.epochs * grid.builder.count(job.subsets[cell.target])
            assert drawn(grid, job)[cell.target] == pytest.approx(wanted, abs=job.recipe.batch), cell


def test_the_steps_of_a_target_hold_as_many_clips_in_every_arm(make_grid: MakeGrid) -> None:
    grid = make_grid(arms=list(ARMS))
    clips = set()
    for cell in grid.measurements:
        if cell.kind == "arm":
            recipe = grid.jobs[cell.job].recipe
            shares = dict(recipe.data.weights) or {cell.target: 1.0}
            videos = sum(share for name, share in shares.items() if name in SETS) / sum(shares.values())
            clips.add(round(recipe.batch * videos))
    assert len(clips) == 1


@pytest.mark.parametrize("image_temporal", ["attend", "skip"])
def test_at_equal_compute_the_multiply_adds_are_equal(
    make_grid: MakeGrid, image_temporal: Literal["attend", "skip"]
) -> None:
    """Three of four samples are images, so that what their temporal branch takes is more than rounding."""
    weights = {"kinetics": 1, "ssv2": 1, "moments": 1, "imagenet": 9}
    model = TimeSformerOptions(image_temporal=image_temporal)
    grid = make_grid(
        arms=["alone_long", "videos_images"], sizes={"whole": Size(60)}, weights=weights, batch=24, model=model
    )

    def work(recipe: Recipe) -> int:
        shape = named_config("mini", frames=4, image_temporal=image_temporal)
        groups = ((6, 4), (18, 1)) if "imagenet" in recipe.data.sets else ((recipe.batch, 4),)
        assert sum(samples for samples, _ in groups) == recipe.batch
        return recipe.steps * forward_cost(on_meta(shape, {}), groups, 32).multiply_adds

    for target in SETS:
        alone, mixed = (
            work(grid.jobs[each.job].recipe)
            for arm in ("alone_long", "videos_images")
            for each in grid.measurements
            if (each.arm, each.target) == (arm, target)
        )
        assert alone == pytest.approx(mixed, rel=0.01)


def test_one_model_of_all_folds_of_a_number(make_grid: MakeGrid) -> None:
    """With `one_model` the mixtures of a fold are one run, measured on every target and trained on no measured clip.

    A target is drawn as often as for its own model.
    """
    folds, weights = dict.fromkeys(SETS, 2), {"kinetics": 3, "ssv2": 1, "moments": 2, "imagenet": 6}
    arms = ["alone", "videos_images", "stills", "permuted"]
    grid = make_grid(arms=arms, folds=folds, weights=weights, one_model=True, sizes={"whole": Size(3)})
    runs = {arm: {cell.job for cell in grid.measurements if cell.arm == arm} for arm in arms}
    counts = {"alone": 6, "videos_images": 2, "stills": 2, "permuted": 6}
    assert {arm: len(jobs) for arm, jobs in runs.items()} == counts
    for name in runs["videos_images"]:
        job = grid.jobs[name]
        assert job.measured == set(SETS)
        assert len({job.subsets[target].fold for target in SETS}) == 1
        for target in SETS:
            splits = grid.builder.entry(job.subsets[target])["annotations"]
            rows = {split: list(open_manifest(Path(path)).rows()) for split, path in splits.items()}
            trained, measured = ({row.sample_id for row in rows[split]} for split in ("train", "val"))
            assert trained
            assert not trained & measured
    mixed, alone = (drawn(grid, grid.jobs[cell.job]) for cell in _first(grid, "videos_images", "alone"))
    assert alone["kinetics"] == pytest.approx(mixed["kinetics"], abs=12)


def test_arms_with_and_without_a_data_set_draw_the_others_as_often(make_grid: MakeGrid) -> None:
    arms = ["alone", "videos_images", "without:ssv2", "without:imagenet", "with:imagenet", "with:moments"]
    weights = {"kinetics": 3, "ssv2": 1, "moments": 2, "imagenet": 6}
    grid = make_grid(targets=["kinetics"], arms=arms, weights=weights, sizes={"whole": Size(6)})
    counts = {cell.arm: drawn(grid, grid.jobs[cell.job]) for cell in grid.measurements}
    full = counts["videos_images"]
    assert set(counts["without:ssv2"]) == {"kinetics", "moments", "imagenet"}
    assert set(counts["with:imagenet"]) == {"kinetics", "imagenet"}
    for arm, drawn_by_arm in counts.items():
        for name, count in drawn_by_arm.items():
            assert count == pytest.approx(full[name], rel=0.05, abs=12), (arm, name)


def test_all_seeds_share_one_pre_training_unless_each_asks_for_its_own(make_grid: MakeGrid) -> None:
    for each, wanted in ((False, 1), (True, 2)):
        origins = {"photos": replace(PHOTOS, each_seed=each)}
        grid = make_grid(seeds=[3, 4], origins=origins, arms=["alone"], targets=["ssv2"])
        assert len({job.start.name for job in grid.jobs.values() if job.start is not None}) == wanted


def _first(grid: Grid, *arms: str) -> list[Measurement]:
    return [next(cell for cell in grid.measurements if cell.arm == arm) for arm in arms]


def test_a_mixture_that_is_the_same_for_all_targets_is_run_once(make_grid: MakeGrid) -> None:
    grid = make_grid()
    runs = {
        arm: {cell.job for cell in grid.measurements if cell.arm == arm} for arm in ("alone", "videos", "videos_images")
    }
    assert {arm: len(jobs) for arm, jobs in runs.items()} == {"alone": 3, "videos": 1, "videos_images": 1}
    (shared,) = runs["videos"]
    assert grid.jobs[shared].measured == set(SETS)


def test_with_a_part_of_the_target_every_target_has_its_own(make_grid: MakeGrid) -> None:
    grid = make_grid(sizes={"half": Size(6, 0.5)})
    assert len({cell.job for cell in grid.measurements if cell.arm == "videos"}) == 3


@pytest.mark.parametrize(
    "changes", [{"alpha": 0.5}, {"weights": {"kinetics": 1, "ssv2": 2, "moments": 1, "imagenet": 4}}]
)
def test_where_rates_are_not_in_proportion_every_target_has_its_own_number_of_steps(
    make_grid: MakeGrid, changes: dict
) -> None:
    grid = make_grid(sizes={"whole": Size(30)}, **changes)
    for cell in grid.measurements:
        if cell.kind == "arm":
            wanted = 30 * grid.builder.count(grid.jobs[cell.job].subsets[cell.target])
            assert drawn(grid, grid.jobs[cell.job])[cell.target] == pytest.approx(wanted, abs=grid.study.batch)


def test_seeds_and_folds_multiply_and_each_fold_is_measured_on_its_own_clips(make_grid: MakeGrid) -> None:
    grid = make_grid(seeds=[0, 1], folds={"moments": 3}, targets=["moments"], videos=[], images=[], arms=["alone"])
    jobs = [grid.jobs[cell.job] for cell in grid.measurements]
    assert len(jobs) == len({job.name for job in jobs}) == 6
    first = [job for job in jobs if job.recipe.seed == 0]
    present = [{row.sample_id for row in grid.builder.measured(job.subsets["moments"]).rows()} for job in first]
    assert len(set().union(*present)) == sum(map(len, present))


def test_the_co_trained_source_of_a_transfer_leaves_the_target_out(make_grid: MakeGrid) -> None:
    sources = {"kinetics": ["kinetics"], "cover": [*SETS, "imagenet"]}
    grid = make_grid(arms=["alone"], transfer=Transfer(sources, {}, ["kinetics", "moments"], ["finetune", "probe"]))
    for cell in (each for each in grid.measurements if each.kind == "transfer"):
        job = grid.jobs[cell.job]
        assert job.start is not None
        trained = set(job.start.subsets)
        if cell.arm.startswith("cover"):
            assert trained == {*SETS, "imagenet"} - {cell.target}
        else:
            assert trained == {"kinetics"}, "also onto itself"
        assert job.recipe.data.heads == {f"{cell.target}_fresh": [cell.target]}
    same = {
        (grid.jobs[c.job].recipe.steps, grid.jobs[c.job].recipe.batch)
        for c in grid.measurements
        if c.kind == "transfer" and c.target == "moments"
    }
    assert len(same) == 1, "equal steps and clips"


def test_a_transfer_in_folds_measures_every_clip_once_and_no_source_has_seen_it(make_grid: MakeGrid) -> None:
    sources = {"kinetics": ["kinetics"], "moments": ["moments"], "cover": [*SETS, "imagenet"]}
    transfer = Transfer(sources, {}, ["moments"], folds=True, how=["probe"])
    folds = dict.fromkeys(SETS, 3)
    grid = make_grid(arms=["alone"], targets=["moments"], folds=folds, one_model=True, transfer=transfer)
    cells = [each for each in grid.measurements if each.kind == "transfer"]
    assert {cell.arm for cell in cells} == {"kinetics:probe", "cover:probe"}, "the source moments has seen the clips"
    for arm in ("kinetics:probe", "cover:probe"):
        jobs = [grid.jobs[cell.job] for cell in cells if cell.arm == arm]
        measured = [row.sample_id for job in jobs for row in grid.builder.measured(job.subsets["moments"]).rows()]
        assert len(jobs) == 3
        assert len(measured) == len(set(measured))
        assert all("moments" not in job.start.subsets for job in jobs if job.start is not None)
        for job in jobs:
            train = open_manifest(Path(grid.builder.entry(job.subsets["moments"])["annotations"]["train"]))
            own = {row.sample_id for row in grid.builder.measured(job.subsets["moments"]).rows()}
            assert not own & {row.sample_id for row in train.rows()}


def test_a_size_may_leave_arms_out(make_grid: MakeGrid) -> None:
    sizes = {"whole": Size(6), "half": Size(6, 0.5, arms=["alone"])}
    grid = make_grid(sizes=sizes, transfer=Transfer({"cover": SETS}, {}, ["moments"], size="half"))
    assert {cell.arm for cell in grid.measurements if cell.kind == "arm" and cell.size == "half"} == {"alone"}


def test_a_source_that_is_an_arm_is_the_arm_s_run(make_grid: MakeGrid) -> None:
    grid = make_grid(transfer=Transfer({"kinetics": ["kinetics"]}, {}, ["moments"], ["probe"]))
    alone = next(cell.job for cell in grid.measurements if cell.arm == "alone" and cell.target == "kinetics")
    (moved,) = [grid.jobs[cell.job] for cell in grid.measurements if cell.kind == "transfer"]
    assert moved.start is grid.jobs[alone]


def test_a_job_comes_after_the_one_that_it_starts_from(make_grid: MakeGrid) -> None:
    grid = make_grid(probes=["imagenet"], transfer=Transfer({"kinetics": ["kinetics"]}, {}, ["moments"]))
    visited: set[str] = set()
    for wave in grid.waves():
        assert all(job.start is None or job.start.name in visited for job in wave)
        visited |= {job.name for job in wave}
    assert visited == set(grid.jobs)


def test_the_digest_is_of_what_the_result_depends_on(make_grid: MakeGrid) -> None:
    def digests(**changes: object) -> set[str]:
        return {job.digest for job in make_grid(arms=["alone"], **changes).jobs.values()}

    first = digests()
    assert first == digests() == digests(out="elsewhere", margin=0.1)
    for changes in (
        {"lrs": [2e-3]},
        {"seeds": [1]},
        {"sizes": {"whole": Size(7)}},
        {"origins": {"photos": Origin(sets=["imagenet"], steps=5)}},
    ):
        assert not first <= digests(**changes)


def test_a_mixture_of_several_targets_is_one_run_whatever_the_counts_round_to(make_grid: MakeGrid) -> None:
    for batch in range(8, 24):
        for epochs in (0.5, 1, 1.5, 2.5):
            grid = make_grid(batch=batch, sizes={"whole": Size(epochs)}, arms=["videos", "videos_images"])
            assert len({cell.job for cell in grid.measurements}) == 2


def test_a_run_of_one_target_is_chosen_on_it_and_one_of_several_on_all(
    make_grid: MakeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {job.recipe.checkpoints.best for job in make_grid().jobs.values() if job.measured & set(SETS)} == {""}, (
        "there is no dev here"
    )
    monkeypatch.setattr("cover.experiments.study.arms.measured_subsets", lambda study: [])
    for job in make_grid(sizes={"whole": Size(6), "half": Size(6, 0.5)}).jobs.values():
        if targets := job.measured & set(SETS):
            assert job.recipe.checkpoints.best == ("mean_rank" if len(targets) > 1 else next(iter(targets)))


def test_every_arm_is_evaluated_as_often(make_grid: MakeGrid) -> None:
    for epochs in (3, 6, 11, 25):
        for cell in (grid := make_grid(sizes={"whole": Size(epochs)})).measurements:
            recipe = grid.jobs[cell.job].recipe
            steps = {*range(recipe.evaluate_every, recipe.steps + 1, recipe.evaluate_every), recipe.steps}
            assert len(steps) <= grid.study.evaluations


def test_the_digest_is_of_how_clips_are_read_too(sandbox: Path, tmp_path: Path) -> None:
    catalog = load_catalog(sandbox)
    other = replace(catalog, specs={**catalog.specs, "ssv2": replace(catalog.spec("ssv2"), flip="never")})
    first, second = (
        SubsetBuilder(each, tmp_path / "data", "val", 0.1).digest(Subset("ssv2")) for each in (catalog, other)
    )
    assert first != second


def test_every_learning_rate_is_tried_in_every_arm(make_grid: MakeGrid) -> None:
    grid = make_grid(lrs=[1e-3, 3e-3], transfer=Transfer({"kinetics": ["kinetics"]}, {}, ["moments"]))
    tried: dict[tuple[str, str, str], set[float]] = {}
    for cell in grid.measurements:
        tried.setdefault((cell.kind, cell.arm, cell.target), set()).add(grid.jobs[cell.job].recipe.optimizer.lr)
    assert all(rates == {1e-3, 3e-3} for rates in tried.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms: [alone, vidoes]", 'arms: unknown "vidoes"; did you mean "videos"'),
        ("seeds: [1, 1]", "seeds: 1 is given twice"),
        ("sizes: {none: {epochs: 5, part: 0}}", "sizes.none"),
        ("folds: {kinetics: 1}", "folds.kinetics: 1"),
        ("margin: 2", "margin: 2"),
        ("split: train", "split: train"),
        ("frames: 1", "frames"),
        ("videos: [kinetics]", "a video set beside each target"),
        ("transfer: {sources: {a: [kinetics]}}", "transfer.targets"),
        ("arms: [alone, stills]", "stills replace images"),
        ("colour: blue", "colour"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, said: str) -> None:
    fields = {
        "catalog": "c.yaml",
        "out": "o",
        "targets": "[kinetics]",
        "seeds": "[0]",
        "margin": "0.02",
        "sizes": "{whole: {epochs: 5}}",
    }
    fields |= {"arms": "[alone, videos]", "videos": "[kinetics, moments]"}
    key = text.split(":", maxsplit=1)[0]
    file = tmp_path / "study.yaml"
    file.write_text("\n".join([*(f"{name}: {value}" for name, value in fields.items() if name != key), text]))
    with pytest.raises(UserError) as error:
        config.load(Study, file)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
