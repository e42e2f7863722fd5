"""What a run does, from its recipe to its last checkpoint: read it once from top to bottom.

cover train recipes/sandbox/cotrain.yaml --optimizer.lr 3e-4
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cover import __version__, config
from cover.console import Meter, say
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.exclusions import excluded_rows
from cover.datasets.flips import mirror_pairs
from cover.datasets.manifest import Manifest, open_manifest
from cover.errors import UserError
from cover.evaluation.evaluate import evaluate, find_tasks
from cover.machine import default_workers
from cover.media.decode import check_decoder
from cover.mixture.loader import Augmentation, Member, SampleReader, packs
from cover.mixture.pack import Pack
from cover.mixture.schedule import Schedule, Source, rates_by, split_batch, wanted_rates
from cover.model.device import pick_device
from cover.model.presets import model_config
from cover.model.timesformer import TimeSformer
from cover.model.weights import find_release, inherited_settings, start_from, steps_saved
from cover.training import checkpoint
from cover.training.heads import hot_places, hot_width, make_heads, targets_of
from cover.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from cover.training.recipe import Recipe
from cover.training.step import StepSettings, Tally, train_step

RECIPE = "recipe.yaml"
NOTES_KEPT = 5  # of the files that could not be read, in one line of the log


def train(recipe: Recipe, resume: bool = False) -> Path:
    """Run `recipe`; returns the run folder. Raises `UserError` before the first step for anything wrong with it."""
    # --- what there is to learn from ------------------------------------------------------------------------------------------
    run = Path(recipe.out)
    torch.manual_seed(recipe.seed)
    device = pick_device(recipe.device)
    workers = default_workers() if recipe.workers < 0 else recipe.workers
    check_decoder(recipe.data.decoder)
    catalog = load_catalog(recipe.data.catalog)
    members = find_members(recipe, catalog)
    schedule = make_schedule(recipe, members)
    reader = SampleReader(members, Augmentation(recipe.model.size, recipe.augment.flip, recipe.augment.colour), recipe.data.decoder)

    # --- the model, where it starts, and what moves it ------------------------------------------------------------------------
    origin = str(run) if resume and steps_saved(run) else recipe.start.checkpoint
    model = build_model(recipe, members, find_release(origin) if origin else None)
    first = prepare_folder(run, recipe, resume)
    exclusions = count_exclusions(run, first, recipe, members)
    if recipe.start.checkpoint and not first:
        for line in start_from(model, find_release(recipe.start.checkpoint), recipe.start.temporal):
            say(line)
    freeze_unused(model, schedule)
    model.to(device)
    optimizer = build_optimizer(model, recipe.optimizer)
    if first:
        checkpoint.restore(run, first, model, optimizer)
    model.set_checkpointing(recipe.model.checkpointing)
    if recipe.compile:
        model.compile_blocks()
    settings = step_settings(recipe, model, device)
    about = describe(recipe, members)

    # --- the loop -------------------------------------------------------------------------------------------------------------
    log = RunLog(run, schedule, {member.spec.name: member.manifest.classes.many for member in members}, device, first)
    log.write("start", first, **about, **make_up(schedule), exclusions=exclusions)
    stop = StopSignal()
    with Meter(f"train {run.name}", recipe.steps, first) as meter, stop:
        batches = packs(schedule, reader, first, recipe.steps, workers)
        for step in range(first, recipe.steps):
            lr = learning_rate(recipe.optimizer, step, recipe.steps)
            set_learning_rate(optimizer, lr)
            with log.waiting():
                pack = next(batches)
            log.note(pack)
            moved = pack.to(device)
            loss, norm = train_step(model, optimizer, split_pack(moved, recipe.accumulation), settings, log.tally, require_finite)
            done = step + 1
            last = done == recipe.steps or stop.received is not None
            evaluating = due(done, recipe.evaluate_every, last and recipe.evaluate_every >= 0)
            if due(done, recipe.log_every, last or evaluating):
                log.window(done, float(loss), float(norm), lr)
            meter.advance(note=log.summary)
            if evaluating and stop.received is None:
                log.write("dev", done, datasets=evaluate_dev(model, catalog, recipe, device, workers))
            if due(done, recipe.save_every, last):
                checkpoint.save(run, done, model, optimizer, about)
            if stop.received is not None:
                raise SystemExit(128 + stop.received)
    return run


# --- setting up -----------------------------------------------------------------------------------------------------------------


def find_members(recipe: Recipe, catalog: Catalog) -> list[Member]:
    """The data sets of the mixture and what they train, without the rows that `cover overlap` excludes.

    Raises `UserError` where one cannot be drawn from, or the list of exclusions is stale.
    """
    paths = {name: catalog.manifest_path(name, "train") for name in recipe.data.sets}
    manifests = {name: open_manifest(path) for name, path in paths.items()}
    excluded = excluded_rows(catalog, paths) if recipe.data.exclusions == "use" else None
    if excluded is not None:
        manifests = {name: open_manifest(path, excluded[name]) for name, path in paths.items()}
    heads = make_heads({name: manifest.classes for name, manifest in manifests.items()}, recipe.data.heads)
    members = []
    for name, manifest in manifests.items():
        spec = catalog.spec(name)
        if not len(manifest.usable):
            but = f", or all are excluded ({len(excluded[name])})" if excluded and len(excluded[name]) else ""
            raise UserError(f"{manifest.path.name}: none of its {len(manifest)} rows is readable and labelled{but}; nothing to train on")
        targets, hot = targets_of(name, manifest.classes, heads), hot_places(name, manifest.classes, heads)
        mirror = mirror_pairs(manifest.classes.names) if spec.flip == "swap" else None
        frames = 1 if manifest.media == "image" else recipe.data.frames
        members.append(Member(spec, manifest, frames, targets, mirror, hot, hot_width(heads)))
    return members


def count_exclusions(run: Path, first: int, recipe: Recipe, members: Sequence[Member]) -> dict[str, Any] | None:
    """For each data set `rows`, how many usable train rows are left out, and their `digest`; None without a list of exclusions. Said on
    the terminal. Raises `UserError` where a run that goes on was begun with other rows left out: its draws would not be the same."""
    listed = all(member.manifest.without is not None for member in members)
    now = {member.spec.name: _left_out(member.manifest) for member in members} if listed else None
    if first and _that_bind(_begun_with(run)) != _that_bind(now):
        raise UserError(f"{run} was begun with other training rows left out (cover overlap); begin another run with --out")
    if now:
        counts = ", ".join(f"{name} {left_out['rows']}" for name, left_out in now.items())
        say(f"training rows left out, being in evaluation splits too: {counts}")
    if recipe.data.exclusions == "ignore":
        say("data.exclusions is ignore: training rows may be in evaluation splits too")
    return now


def _left_out(manifest: Manifest) -> dict[str, Any]:
    rows = np.setdiff1d(open_manifest(manifest.path).usable, manifest.usable)
    return {"rows": len(rows), "digest": hashlib.sha256(rows.tobytes()).hexdigest()[:12]}


def _begun_with(run: Path) -> dict[str, Any] | None:
    """The exclusions that the log of a run begins with."""
    with (run / checkpoint.LOG).open(encoding="utf-8") as lines:
        start: dict[str, Any] = json.loads(next(lines, "{}"))
    return start.get("exclusions")


def _that_bind(exclusions: dict[str, Any] | None) -> dict[str, Any]:
    """Without the data sets that nothing is left out of: for them a list that finds nothing is as good as none."""
    return {name: left_out for name, left_out in (exclusions or {}).items() if left_out["rows"]}


def make_schedule(recipe: Recipe, members: Sequence[Member]) -> Schedule:
    """The mixture's draws, at rates proportional to size unless the recipe says otherwise."""
    sizes = {member.spec.name: len(member.manifest.usable) for member in members}
    rates = rates_by(sizes, recipe.data.alpha, recipe.data.weights)
    sources = [
        Source(m.spec.name, m.manifest.usable, m.frames, rates[m.spec.name], recipe.data.crops if m.frames > 1 else 1) for m in members
    ]
    return Schedule(recipe.seed, split_batch(sources, recipe.batch, recipe.accumulation))


def build_model(recipe: Recipe, members: Sequence[Member], origin: Path | None) -> TimeSformer:
    """The recipe's network with the heads of its data sets, randomly initialised under the recipe's seed.

    How pixels are normalised, and what else belongs to weights rather than to a run, comes from `origin`, the release that it starts from.
    """
    wanted = recipe.model
    inherited = inherited_settings(origin) if origin else {}
    heads = make_heads({member.spec.name: member.manifest.classes for member in members}, recipe.data.heads)
    for head in heads:
        if hasattr(torch.nn.ModuleDict, head.name):  # it could not be told from a method
            raise UserError(f'data.sets: "{head.name}" cannot name a head; rename it in the catalog, or in data.heads')
    shape = model_config(
        wanted.preset, size=wanted.size, frames=recipe.data.frames, attention=wanted.attention, time=wanted.time,
        image_temporal=wanted.image_temporal, dropout=wanted.dropout, head_dropout=wanted.head_dropout, layer_scale=wanted.layer_scale,
        **inherited,
    )  # fmt: skip
    return TimeSformer(shape, heads)


def prepare_folder(run: Path, recipe: Recipe, resume: bool) -> int:
    """Make the run folder ready and return the step to begin with: 0, or that of the last checkpoint with `resume`."""
    saved = steps_saved(run)
    if not resume:
        if saved or (run / checkpoint.LOG).exists():
            raise UserError(f"{run} already holds a run: go on with --resume, or choose another folder with --out")
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / RECIPE).write_text(config.dump(recipe), encoding="utf-8")
        except OSError as error:
            raise UserError(f"out: {run}: cannot be written: {error.strerror}") from None
        return 0
    if not (run / RECIPE).is_file():
        raise UserError(f"{run}: no run to resume; leave --resume out to begin one")
    before = config.load(Recipe, run / RECIPE)
    # Where a run is computed is no part of what it computes.
    for key, was, now in differences(before, replace(recipe, device=before.device, workers=before.workers)):
        raise UserError(f"{run} was begun with {key} {was}, not {now}; a run is resumed with the recipe it was begun with")
    checkpoint.cut_log(run, saved[-1] if saved else -1)
    return saved[-1] if saved else 0


def differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two recipes differ, with both values."""
    if not hasattr(before, "__dataclass_fields__"):
        if before != after:
            yield key, before, after
        return
    for name in before.__dataclass_fields__:
        yield from differences(getattr(before, name), getattr(after, name), f"{key}.{name}" if key else name)


def freeze_unused(model: TimeSformer, schedule: Schedule) -> None:
    """Image pre-training is of the non-temporal weights: without a clip in the mixture the temporal branch stays as it is."""
    if all(group.frames == 1 for group in schedule.groups):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not model.is_temporal(name))


def step_settings(recipe: Recipe, model: TimeSformer, device: torch.device) -> StepSettings:
    factors = [recipe.data.loss_weights.get(name, 1.0) for name in recipe.data.sets]
    return StepSettings(
        batch=recipe.batch, loss_weights=torch.tensor(factors, device=device), label_smoothing=recipe.label_smoothing,
        clip=recipe.optimizer.clip, drop_path=recipe.model.drop_path, bf16=recipe.precision == "bf16",
        sigmoid=tuple(head.name for head in model.head_list if head.loss == "sigmoid"),
    )  # fmt: skip


def describe(recipe: Recipe, members: Sequence[Member]) -> dict[str, Any]:
    """What travels with the weights: how each data set's clips are to be taken, and what the run was."""
    sets = {
        m.spec.name: {
            "media": m.manifest.media, "sampling": str(m.spec.sampling), "views": str(m.spec.views),
            "classes_source": m.manifest.classes.source, "class_digest": m.manifest.classes.digest, "train_samples": len(m.manifest.usable),
        }
        for m in members
    }  # fmt: skip
    return {"cover": __version__, "frames": recipe.data.frames, "seed": recipe.seed, "steps": recipe.steps, "datasets": sets}


def make_up(schedule: Schedule) -> dict[str, Any]:
    """What a step holds, said on the terminal and put into the log."""
    groups = [{"frames": group.frames, "samples": group.samples} for group in schedule.groups]
    rates = dict(wanted_rates(schedule.groups))
    held = " + ".join(f"{g['samples']} {'images' if g['frames'] == 1 else 'clips of ' + str(g['frames'])}" for g in groups)
    say(f"each step: {held}; rates {', '.join(f'{name} {rate:.1%}' for name, rate in rates.items())}")
    return {"groups": groups, "rate_wanted": rates}


# --- inside the loop ------------------------------------------------------------------------------------------------------------


def due(done: int, every: int, otherwise: bool) -> bool:
    """Whether something happens after `done` steps: every so many, and whenever `otherwise` says so."""
    return otherwise or (every > 0 and done % every == 0)


def require_finite(loss: Tensor, norm: Tensor) -> None:
    """Stop before a loss or a gradient that is not a number reaches the weights."""
    if not torch.isfinite(loss + norm):
        raise UserError(f"the loss is {float(loss)} and the gradient norm {float(norm)}: lower optimizer.lr, or raise optimizer.warmup")


def split_pack(pack: Pack, parts: int) -> list[Pack]:
    """A Pack as `parts` micro-batches with equal shares of every group."""
    if parts == 1:
        return [pack]
    frames_of, samples_of, frame, sample = [], [], 0, 0
    for samples, frames in pack.groups:
        frames_of.append(pack.frames[frame : frame + samples * frames].view(parts, -1, *pack.frames.shape[1:]))
        samples_of.append(torch.arange(sample, sample + samples, device=pack.dataset.device).view(parts, -1))
        frame, sample = frame + samples * frames, sample + samples
    micro = []
    for part in range(parts):
        mine = torch.cat([rows[part] for rows in samples_of])
        per_sample = {name: getattr(pack, name)[mine] for name in ("dataset", "targets", "weight", "colour", "seed")}
        if pack.hot is not None:
            per_sample["hot"] = pack.hot[mine]
        groups = tuple((samples // parts, frames) for samples, frames in pack.groups)
        micro.append(Pack(frames=torch.cat([rows[part] for rows in frames_of]), groups=groups, **per_sample))
    return micro


def evaluate_dev(model: TimeSformer, catalog: Catalog, recipe: Recipe, device: torch.device, workers: int) -> dict[str, dict[str, Any]]:
    """Every data set that has a `dev` split, under its own protocol."""
    named = [name for name in recipe.data.sets if "dev" in catalog.spec(name).splits and catalog.manifest_path(name, "dev").is_file()]
    model.eval()
    tasks = find_tasks(catalog, model, recipe.data.frames, "dev", named, decoder=recipe.data.decoder) if named else []
    results = {task.spec.name: evaluate(model, task, device, workers)["plain"] for task in tasks}
    model.train()
    return results


class StopSignal:
    """SIGTERM or SIGINT while the loop runs: the step in progress is finished and saved, then the run leaves."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])  # a second one ends the run at once


@dataclass
class _Wait:
    """Seconds spent waiting for data."""

    total: float = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.total += time.perf_counter() - self._began


class RunLog:
    """log.jsonl: one line per window of steps, and what the live view shows."""

    def __init__(self, run: Path, schedule: Schedule, many: dict[str, bool], device: torch.device, first: int) -> None:
        """`many`: for each data set, whether it is multi-label."""
        self.path, self.schedule, self.many = run / checkpoint.LOG, schedule, many
        self.tally = Tally(len(many), device)
        self.summary = ""
        self._wait, self._began, self._first = _Wait(), time.perf_counter(), first
        self._batch = sum(group.samples for group in schedule.groups)
        self._sizes = {source.name: len(source.rows) for group in schedule.groups for source in group.sources}
        self._wanted = dict(wanted_rates(schedule.groups))
        self._notes: list[str] = []
        self._run_began = self._began

    def waiting(self) -> _Wait:
        """A context whose time counts as waiting for data."""
        return self._wait

    def note(self, pack: Pack) -> None:
        """Remember the files of a Pack that were damaged or could not be read."""
        self._notes += pack.notes

    def window(self, step: int, loss: float, norm: float, lr: float) -> None:
        """Write the line of the steps since the last one, up to `step` done."""
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {step}; lower optimizer.lr")
        seconds = time.perf_counter() - self._began
        read = {name: counts for name, counts in zip(self.many, self.tally.take(), strict=True) if counts[2]}
        drawn = self.schedule.drawn(step)
        self.write(
            "train", step, seconds=round(time.perf_counter() - self._run_began, 3),
            loss={name: mean for name, (mean, _, _) in read.items()}, **self._hits(read),
            step_loss=loss, grad_norm=norm, lr=lr,
            samples_per_s=(step - self._first) * self._batch / seconds, wait_share=self._wait.total / seconds,
            rate_wanted=self._wanted, rate_realised={name: count / (step * self._batch) for name, count in drawn.items()},
            epochs={name: count / self._sizes[name] for name, count in drawn.items()}, seen=drawn,
            **({"files_damaged": len(self._notes), "files": self._notes[:NOTES_KEPT]} if self._notes else {}),
        )  # fmt: skip
        self.summary = f"loss {loss:.3f}  " + " ".join(f"{name} {hits:.0%}" for name, (_, hits, _) in read.items())
        self._first, self._began, self._wait, self._notes = step, time.perf_counter(), _Wait(), []

    def _hits(self, read: dict[str, tuple[float, float, int]]) -> dict[str, dict[str, float]]:
        """`top1` of single-label sets; `hit1` of multi-label ones, where there are any: `step.sigmoid_hits`."""
        top1, hit1 = ({name: hits for name, (_, hits, _) in read.items() if self.many[name] == many} for many in (False, True))
        return {"top1": top1, **({"hit1": hit1} if any(self.many.values()) else {})}

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, **values}, ensure_ascii=False) + "\n")
