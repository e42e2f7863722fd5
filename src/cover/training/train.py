"""The training loop: a run from its recipe to its last checkpoint, in the order of execution.

cover train recipes/sandbox/cotrain.yaml --optimizer.lr 3e-4
"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cover import __version__, config
from cover.console import say
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.changes import changed_files, report_changed
from cover.distributed import (
    DistributedStep,
    ProcessGroup,
    process_group,
    restarted,
    started_by_torchrun,
    workers_of_a_rank,
)
from cover.errors import UserError, nearest
from cover.evaluation.answers import Answers, write_answers
from cover.evaluation.cached_views import cache_views
from cover.evaluation.evaluate import evaluate
from cover.evaluation.protocol import EvaluationTask, find_tasks
from cover.hub import repo_of
from cover.locks import alone_in
from cover.media.decode import check_decoder
from cover.mixture.dataset import retained_metadata, with_retained
from cover.mixture.loader import SampleReader, packs
from cover.mixture.mixture import Mixture, class_line
from cover.mixture.pack import augment_uint8, split_pack
from cover.mixture.prefix_cache import CachedReader, PrefixCache
from cover.mixture.schedule import Schedule, draw_seed
from cover.model.backbones import backbone_config
from cover.model.cover import CoVeR
from cover.model.release import find_release, is_on_hub, load_release, new_parameters, read_config, start_from
from cover.training import checkpoint
from cover.training.adapt import adapt, say_adapted
from cover.training.budget import budget_for, explain_steps
from cover.training.caching import open_cache
from cover.training.guards import FiniteCheck, ReadingCheck, step_warnings
from cover.training.logging import RunLog, check_sinks
from cover.training.optim import (
    Ema,
    averaged,
    build_optimizer,
    freeze,
    freeze_matched,
    freeze_retained,
    learning_rate,
    set_learning_rate,
)
from cover.training.recipe import Adapt, Recipe
from cover.training.resume import (
    begun_with,
    check_same_data,
    count_exclusions,
    first_step,
    has_started,
    prepare_folder,
    write_recipe,
)
from cover.training.step import StepSettings, train_step


def train(recipe: Recipe, resume: bool = False) -> Path:
    """Run `recipe` in one process, or in all processes that torchrun started; returns the run folder.

    Raises `UserError`: for an error in the recipe before the first step, later if the run cannot go on.
    """
    with process_group(recipe.distributed.timeout, recipe.device) as group, ExitStack() as locks:
        try:
            return train_in_group(group, recipe, resume or (restarted() and has_started(Path(recipe.out))), locks)
        except torch.OutOfMemoryError:
            samples = recipe.batch // (group.ranks * recipe.accumulation)
            raise UserError(
                f"{samples} samples at once do not fit into the memory of {group.device}; raise accumulation,"
                " set model.checkpointing, or lower batch, and see what fits by `cover plan`"
            ) from None


def train_in_group(group: ProcessGroup, recipe: Recipe, resume: bool, locks: ExitStack) -> Path:  # noqa: PLR0915
    """The part of a run in this process. `locks` has the lock on the run folder."""
    # --- the data -----------------------------------------------------------------------------------------------------
    run = Path(recipe.out)
    torch.manual_seed(recipe.seed)
    workers = workers_of_a_rank(recipe.workers)
    check_packages(recipe)
    catalog = load_catalog(recipe.data.catalog)
    mixture = Mixture.open(recipe.data, catalog)
    recipe = choose_steps(recipe, mixture, run if resume else None)
    changed = group.once(lambda: check_files(recipe, mixture, catalog))
    schedule = make_schedule(recipe, mixture, group.ranks)
    reader = make_reader(recipe, mixture)

    # --- the model, its initial weights and the optimizer -------------------------------------------------------------
    group.once(lambda: None if resume and not has_started(run) else locks.enter_context(alone_in(run)))
    first = group.once(lambda: first_step(run, recipe, resume))
    # A resumed run reads the configuration of its own checkpoint; `restore` below loads its weights.
    begin = str(checkpoint.folder_of(run, first)) if first else recipe.start.checkpoint
    origin = find_release(begin) if begin else None
    model = build_model(recipe, mixture, origin)
    group.once(lambda: prepare_folder(run, recipe, first, resume))
    for line in step_warnings(recipe, mixture, schedule) if not first else ():
        say(f"warning: {line}")
    exclusions = count_exclusions(run, first, mixture)
    metadata = describe(recipe, mixture, model, origin)
    if origin and not first:
        for line in start_from(model, origin, recipe.start.temporal, recipe.start.text):
            say(line)
    # A resumed run does not need its start: what was new in it is in the checkpoint.
    new = checkpoint.new_in(run, first) if first else new_in_run(model, recipe, origin)
    adapt(model, recipe.adapt, new)  # before patterns, which may name its additions
    freeze_unused(model, schedule)
    freeze_retained(model, recipe.data.sets)
    freeze_matched(model, recipe.optimizer.patterns)
    say_adapted(model, recipe.adapt, new)
    model.to(group.device)

    # --- the outputs of frozen stages ---------------------------------------------------------------------------------
    # The weights of a resumed run are not loaded yet, but those of its frozen stages are in its checkpoint.
    frozen = load_release(origin).to(group.device) if recipe.cache.stages and origin and first else model
    cache = open_cache(recipe, model, frozen, group)
    cached = fill_cache(cache, frozen, recipe, schedule, reader, catalog, workers) if cache else None
    metadata |= {"cache": {"stages": cache.stages, "dtype": cache.dtype}} if cache else {}
    engine = DistributedStep(model, group, recipe.distributed.strategy)
    optimizer = build_optimizer(model, recipe.optimizer)
    ema = Ema(model, recipe.ema) if recipe.ema else None
    trained = checkpoint.Trained(model, optimizer, ema)
    before = checkpoint.restore(run, first, trained, group) if first else {}
    facts = {"ranks": group.ranks, "new": sorted(new)}
    model.set_checkpointing(recipe.model.checkpointing)
    if recipe.compile:
        model.compile_stages()
    settings = step_settings(recipe, mixture, model, group.device)
    reading = {each.name: reader.settings_of(place) for place, each in enumerate(mixture.datasets)}
    if first:
        check_same_data(run, metadata, reading)
        group.once(lambda: write_recipe(run, recipe))  # its folder, or a field that changes no result, may be another

    # --- the log, the guards and the checkpoints ----------------------------------------------------------------------
    stages = cache.stages if cache else 0
    log = RunLog(run, recipe, mixture, schedule, model, first, group.total, group.leads, stages)
    log.write(
        "start",
        first,
        **metadata,
        reading=reading,
        **make_up(schedule, mixture),
        exclusions=exclusions,
        **({"files_changed": changed} if changed else {}),
        ranks=group.ranks,
        **({"caches": [asdict(report) for report in cache.reports]} if cache else {}),
        **log.metadata(),
    )
    finite = FiniteCheck(run, recipe.nonfinite, group, schedule, mixture, before.get("skipped", 0))
    unreadable = ReadingCheck(recipe.data.sets, recipe.data.unreadable, group)
    saver = checkpoint.Saver(run, group, engine.sharded, recipe.checkpoints)
    clock = checkpoint.SaveClock(recipe.checkpoints.minutes, group.leads)

    # --- the loop -----------------------------------------------------------------------------------------------------
    with log, StopSignal() as stop:
        done = first
        batches = packs(schedule, cached or reader, first, recipe.step_count, workers, group.rank, group.ranks)
        for step in range(first, recipe.step_count):
            lr = learning_rate(recipe.optimizer, step, recipe.step_count)
            set_learning_rate(optimizer, lr)
            with log.spending("data"):
                pack = next(batches)
            log.note(pack)
            unreadable.note(pack)
            seed_dropout(recipe.seed, step, group.rank)
            micro_batches = split_pack(augment_uint8(pack.to(group.device)), recipe.accumulation)
            asking = (stop.received is not None, clock.due())
            outcome = train_step(model, optimizer, micro_batches, settings, log.tally, engine, *asking)
            if ema:
                ema.update(step)
            finite.after(step, outcome)
            done = step + 1
            # Several ranks stop or save at the same step, after the step has shared the signal or the clock of one.
            leaving = finite.leaving or (group.ranks == 1 and stop.received is not None)
            last = done == recipe.step_count or leaving
            evaluating = due(done, recipe.evaluate_every, last and recipe.evaluate_every >= 0)
            if due(done, recipe.log_every, last or evaluating):
                finite.settle()  # a line or a checkpoint must not come before the check of its step
                log.window(done, float(outcome.loss), float(outcome.norm), lr)
                unreadable.judge(done)
            log.advance()
            if evaluating and not leaving:
                with log.spending("evaluation"), averaged(ema):
                    results = evaluate_dev(engine.whole(), catalog, recipe, group, workers, cache, run)
                    log.write("dev", done, datasets=results)
            if due(done, recipe.save_every, last or finite.saving):
                finite.settle()
                finite.saving = False
                clock.restart()
                with log.spending("checkpoint"):
                    saver.save(done, trained, metadata, {**facts, "skipped": finite.skipped})
            if leaving:
                break
        with log.spending("checkpoint"):
            saver.wait()
        if finite.leaving or stop.received is not None:
            say(f"stopped after {done} of {recipe.step_count} steps; saved in {checkpoint.folder_of(run, done)}")
            raise Interrupted(stop.received or signal.SIGTERM, run)
    return run


class Interrupted(SystemExit):
    """The end of a run after a signal, with its last step saved. `run`: its folder. The exit code is 128 + signal."""

    def __init__(self, number: int, run: Path) -> None:
        super().__init__(128 + number)
        self.run = run


# --- setting up -------------------------------------------------------------------------------------------------------


def check_packages(recipe: Recipe) -> None:
    """Raises `UserError` if a package that the recipe needs is missing."""
    check_decoder(recipe.data.decoder)
    check_sinks(recipe.log)


def check_files(recipe: Recipe, mixture: Mixture, catalog: Catalog) -> dict[str, int]:
    """Data set -> its training files that changed after they were indexed, of data sets with any. They are printed.

    The files of `dev` are checked too, if the run is evaluated. Raises `UserError` if too many changed.
    """
    results = [changed_files(each.manifest, each.rows) for each in mixture.datasets]
    dev = [catalog.manifest(name, "dev") for name in sets_with_dev(recipe, catalog)]
    for result in [*results, *(changed_files(manifest, manifest.usable) for manifest in dev)]:
        report_changed(result, catalog)
    return {result.name: result.changed for result in results if result.changed}


def with_steps(recipe: Recipe, mixture: Mixture) -> Recipe:
    """The recipe with its number of steps, which may follow from `data.epochs` or, with `auto`, from the sizes."""
    if recipe.steps == "auto":
        rows = sum(mixture.sizes.values())
        return replace(recipe, steps=budget_for(recipe.start.checkpoint).steps(rows, recipe.batch))
    return recipe if recipe.steps else replace(recipe, steps=mixture.steps(recipe.batch))


def choose_steps(recipe: Recipe, mixture: Mixture, resumed: Path | None) -> Recipe:
    """The recipe with its number of steps. What `steps: auto` chooses is printed.

    `resumed`: the folder of a run that is resumed. It keeps the number of steps that it was begun with.
    """
    if recipe.steps != "auto":
        return with_steps(recipe, mixture)
    if resumed and has_started(resumed):
        return replace(recipe, steps=begun_with(resumed).steps)
    chosen = with_steps(recipe, mixture)
    say(explain_auto(chosen, mixture))
    return chosen


def explain_auto(chosen: Recipe, mixture: Mixture) -> str:
    """Why `steps: auto` is the number of steps of the recipe `chosen`, in one line."""
    return explain_steps(chosen.start.checkpoint, sum(mixture.sizes.values()), chosen.batch, chosen.step_count)


def make_schedule(recipe: Recipe, mixture: Mixture, ranks: int = 1) -> Schedule:
    """The draws of a run. Raises `UserError` if a step cannot be divided equally among the ranks."""
    augment, chance = recipe.augment, {name: recipe.augment.of(name).mix for name in recipe.data.sets}
    return mixture.schedule(
        recipe.batch,
        recipe.seed,
        ranks,
        recipe.accumulation,
        augment.mixup,
        augment.cutmix,
        chance,
        recipe.cache.view_count,
        recipe.cache.seed,
    )


def make_reader(recipe: Recipe, mixture: Mixture) -> SampleReader:
    """The reader of the samples of a run, with the augmentation of each data set."""
    own = recipe.augment.transforms(recipe.data.sets)
    return mixture.reader(recipe.model.size, own=own, flip=recipe.augment.flip)


def fill_cache(
    cache: PrefixCache,
    frozen: CoVeR,
    recipe: Recipe,
    schedule: Schedule,
    reader: SampleReader,
    catalog: Catalog,
    workers: int,
) -> CachedReader:
    """Compute what the run needs of its cache, also for its evaluations; returns the reader of its samples.

    `frozen`: a network with the weights of the frozen stages.
    """
    cached = cache.training_reader(frozen, schedule, reader, recipe.step_count, workers, recipe.precision == "bf16")
    for task in dev_tasks(frozen, catalog, recipe):
        cache_views(cache, frozen, task, workers)
    return cached


def build_model(recipe: Recipe, mixture: Mixture, origin: Path | None) -> CoVeR:
    """The network of the recipe with the heads of its data sets, initialised with the recipe's seed.

    `origin`: the release that the run starts from. Pixel statistics and other fields that belong to the weights come
    from it, and so do retained heads.
    """
    release, heads = read_config(origin) if origin else None, mixture.heads
    for head in heads:
        if hasattr(torch.nn.ModuleDict, head.name):  # a ModuleDict refuses the names of its methods
            raise UserError(f'data.sets: "{head.name}" cannot name a head; rename it in the catalog, or in data.heads')
    if release and recipe.start.heads == "keep":
        heads = with_retained(heads, release.heads)
    names = [head.name for head in heads]
    if recipe.default_head and recipe.default_head not in names:
        hint = nearest(recipe.default_head, names)
        raise UserError(f'default_head: the model of this run has no head "{recipe.default_head}"{hint}')
    config = backbone_config(recipe.model, recipe.data.frames, release.backbone if release else None)
    return CoVeR(config, heads, recipe.model.head_dropout)


def new_in_run(model: CoVeR, recipe: Recipe, origin: Path | None) -> frozenset[str]:
    """The parameters of the backbone that the start does not have; without a start, none."""
    return new_parameters(model, read_config(origin), recipe.start.temporal) if origin else frozenset()


def freeze_unused(model: CoVeR, schedule: Schedule) -> None:
    """Freeze the temporal parameters if the mixture has no clips: images alone cannot train them."""
    if all(group.frames == 1 for group in schedule.groups):
        freeze(model, model.temporal_parameters())


def step_settings(recipe: Recipe, mixture: Mixture, model: CoVeR, device: torch.device) -> StepSettings:
    """The settings of a training step, with the loss weights on `device`."""
    loss_weights = [dataset.loss_weight for dataset in mixture.datasets]
    return StepSettings(
        batch=recipe.batch,
        loss_weights=torch.tensor(loss_weights, device=device),
        label_smoothing=recipe.label_smoothing,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        drop_path=recipe.model.drop_path,
        drop_tubes=getattr(recipe.model, "drop_tubes", 0.0),  # of the families that have it
        bf16=recipe.precision == "bf16",
        sigmoid=tuple(head.name for head in model.head_list if head.loss == "sigmoid"),
    )


def describe(recipe: Recipe, mixture: Mixture, model: CoVeR, origin: Path | None) -> dict[str, Any]:
    """The metadata of the release: the clip sampling and views of each data set, and the facts of the run.

    The data sets of retained heads have the metadata of `origin`, the release that these heads come from.
    """
    before = read_config(origin).datasets if origin else {}
    sets = mixture.describe() | retained_metadata(model.head_list, recipe.data.sets, before)
    adapted = {"adapt": config.changed(recipe.adapt)} if recipe.adapt != Adapt() else {}
    return {
        "cover": __version__,
        "frames": recipe.data.frames,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "datasets": sets,
        "start": _start_of(recipe, origin),
        **({"default_head": recipe.default_head} if recipe.default_head else {}),
        **adapted,
    }


def _start_of(recipe: Recipe, origin: Path | None) -> dict[str, str]:
    """The weights of others that a run comes from, with their format and licence if known; empty for random weights.

    A run that starts from another run has the start of that one. A release on the Hub is a start itself.
    """
    if origin is None or not recipe.start.checkpoint:
        return {}
    before, start = read_config(origin).metadata, recipe.start.checkpoint
    known = before.get("imported") or before.get("start") or {"weights": Path(start).name}
    if repo := repo_of(Path(start)) or (start if is_on_hub(start) else ""):
        known = {"weights": repo, "licence": known["licence"]} if "licence" in known else {"weights": repo}
    return {key: known[key] for key in ("weights", "format", "licence") if key in known}


def make_up(schedule: Schedule, mixture: Mixture) -> dict[str, Any]:
    """The groups and rates of a step, and the rates and weights of classes, for the log. They are printed too."""
    groups = [{"frames": frames, "samples": samples} for samples, frames in schedule.mean_step]
    rates = schedule.rates
    say(f"each step: {schedule.describe()}; rates {', '.join(f'{name} {rate:.1%}' for name, rate in rates.items())}")
    classes = mixture.describe_classes()
    for name, facts in classes.items():
        say(class_line(name, facts))
    return {"groups": groups, "rate_wanted": rates, **({"classes": classes} if classes else {})}


# --- inside the loop --------------------------------------------------------------------------------------------------


def due(done: int, every: int, otherwise: bool) -> bool:
    """Whether an action is due after `done` steps: after every `every` steps, and always if `otherwise` is true."""
    return otherwise or (every > 0 and done % every == 0)


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed dropout from the run's seed, the step and the rank, so that a checkpoint needs no generator state."""
    torch.manual_seed(draw_seed(seed, "dropout", step, rank) >> 1)


def sets_with_dev(recipe: Recipe, catalog: Catalog) -> list[str]:
    """The data sets of a run that have a split `dev` on which it is evaluated."""
    return [name for name in recipe.data.sets if recipe.evaluate_every >= 0 and catalog.has_manifest(name, "dev")]


def dev_tasks(model: CoVeR, catalog: Catalog, recipe: Recipe) -> list[EvaluationTask]:
    """The evaluations on `dev`: one for every data set that has this split."""
    with_dev = sets_with_dev(recipe, catalog)
    if not with_dev:
        return []
    return find_tasks(catalog, model, recipe.data.frames, "dev", with_dev, decoder=recipe.data.decoder)


def evaluate_dev(
    model: CoVeR,
    catalog: Catalog,
    recipe: Recipe,
    group: ProcessGroup,
    workers: int,
    cache: PrefixCache | None = None,
    run: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """The results of every data set with a `dev` split, by its own protocol. Each rank evaluates a part of the rows.

    `run`: the folder for the answers to the single samples, which the report of the run shows.
    """
    model.eval()
    answers: list[Answers] = []
    results = {
        task.spec.name: evaluate(
            model, task, group.device, workers, group=group, prefix=cache, check=False, answers=answers
        )["plain"]
        for task in dev_tasks(model, catalog, recipe)
    }
    if run and group.leads:
        write_answers(run, answers)
    model.train()
    return results


class StopSignal:
    """Handles SIGTERM, SIGINT and SIGHUP: the loop finishes the current step, saves a checkpoint and ends.

    A terminal that is closed sends SIGHUP. Under nohup it is ignored, and stays so.

    `received`: the number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        # torchrun sends each rank the same signal again, so there a second signal must not end the run at once.
        if not started_by_torchrun():
            signal.signal(number, self._before[number])
