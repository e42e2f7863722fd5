"""The cost of a run before it starts: memory, arithmetic, reading, communication, and its bottleneck.

cover plan recipes/sandbox/cotrain.yaml --gpus 8 --device h200
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cover.errors import UserError
from cover.hardware import Cluster
from cover.machine import default_workers
from cover.mixture.mixture import Mixture, class_line
from cover.mixture.schedule import Schedule
from cover.model.backbone import Groups
from cover.model.backbones import backbone_config
from cover.model.cover import CoVeR
from cover.model.heads import head_of
from cover.model.profile import FLOAT32, ForwardCost, count_parameters, forward_cost, on_meta
from cover.model.release import find_release, read_config
from cover.planning.memory import StepMemory, StepOptions, step_memory
from cover.planning.reading import ReadingCost
from cover.training.adapt import adapt
from cover.training.guards import step_warnings
from cover.training.optim import freeze, frozen_by
from cover.training.recipe import Recipe
from cover.training.train import explain_auto, make_schedule, new_in_run, with_steps

LINK_FRACTION = 0.7  # fraction of a link's speed that a ring of devices reaches (assumed)
MOST_WORKERS = 16  # workers of one device if a recipe has no number (cover.machine.default_workers)
MOST_MICRO_BATCHES = 64  # largest number of micro-batches that `what_fits` tries
SOME = 0.05  # a wait of more than this fraction of a step is a bottleneck
PREPARING_MS = 50.0  # reading a prepared clip takes less than this (docs/preparing.md)


@dataclass(frozen=True)
class Step:
    """One step of a recipe on a cluster.

    `model`: on the meta device; frozen parameters require no gradient. `heads`: name -> number of classes. `groups`:
    the samples of each device in a mean step, all micro-batches together; times follow from them. `largest`: the same
    for the step with the most frames; memory follows from them.
    """

    recipe: Recipe
    cluster: Cluster
    model: CoVeR
    heads: Mapping[str, int]
    groups: Groups
    largest: Groups

    @property
    def size(self) -> int:
        """The side of a frame in pixels."""
        return self.recipe.model.size

    @property
    def bf16(self) -> bool:
        """Whether the forward pass runs in bfloat16."""
        return self.recipe.precision == "bf16"

    @property
    def cost(self) -> ForwardCost:
        """The cost of the forward pass of one device. It is equal for all devices."""
        return forward_cost(self.model, self.groups, self.size)


def plan(recipe: Recipe, cluster: Cluster, mixture: Mixture, costs: Mapping[str, ReadingCost]) -> dict[str, Any]:
    """All figures of a run, as plain JSON values: seconds, bytes and counts.

    `costs`: data set -> time to read a sample. Raises `UserError` if the run could not start, or if its batch cannot be
    divided among the devices.
    """
    schedule, chosen = make_schedule(recipe, mixture, cluster.devices), with_steps(recipe, mixture)
    steps = chosen.step_count
    step = make_step(recipe, cluster, mixture, schedule)
    sets = _sets(schedule, mixture, costs, steps)
    facts: dict[str, Any] = {
        **_setting(recipe, cluster),
        "datasets": sets,
        "step": _make_up(step, schedule),
        "memory": {"available": cluster.device.memory, "ways": [_way(variant) for variant in variants(step)]},
    }
    times = _times(step, sets, steps)
    facts |= {**times, "steps": steps, "hours": steps * times["time"]["step"] / 3600}
    facts["device_hours"] = facts["hours"] * cluster.devices
    facts["bottleneck"], facts["verdict"] = verdict(step, facts)
    facts["classes"] = mixture.describe_classes()
    auto = [explain_auto(chosen, mixture)] if recipe.steps == "auto" else []
    facts["remarks"] = [*auto, *remarks(facts), *step_warnings(chosen, mixture, schedule)]
    return facts


def _setting(recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    return {
        "device": cluster.device.title,
        "devices": cluster.devices,
        "beside": cluster.beside,
        "cores": cluster.cores,
        "share": cluster.mfu,
        "share_assumed": cluster.assumed,
        "network_bytes_per_s": cluster.network,
        "precision": recipe.precision,
        "strategy": recipe.distributed.strategy,
        "checkpointing": recipe.model.checkpointing,
        "accumulation": recipe.accumulation,
        "compile": recipe.compile,
        "cached": recipe.cache.stages != 0,
    }


def make_step(recipe: Recipe, cluster: Cluster, mixture: Mixture, schedule: Schedule) -> Step:
    """A step of the recipe on the cluster. Raises `UserError` for an impossible network or head."""
    config = backbone_config(recipe.model, recipe.data.frames)
    trained = {head.name: len(head.classes) for head in mixture.heads}
    retained = retained_classes(recipe, trained)
    heads = {**trained, **retained}
    groups, largest = (
        tuple((samples // cluster.devices, frames) for samples, frames in whole)
        for whole in (schedule.mean_step, schedule.largest_step)
    )
    model = on_meta(config, heads)
    _freeze(model, recipe, images_only=all(frames == 1 for _, frames in groups), retained=retained)
    return Step(recipe, cluster, model, heads, groups, largest)


def retained_classes(recipe: Recipe, trained: Mapping[str, int]) -> dict[str, int]:
    """Head -> number of classes, for the heads of the starting checkpoint that the run keeps but does not train.

    It is empty if the checkpoint is not on this machine: a plan needs no checkpoint.
    """
    if recipe.start.heads == "drop":
        return {}
    try:
        theirs = read_config(find_release(recipe.start.checkpoint)).heads
    except UserError:
        return {}
    return {head.name: len(head.classes) for head in theirs if head.name not in trained}


def _freeze(model: CoVeR, recipe: Recipe, images_only: bool, retained: Container[str]) -> None:
    """Freeze what `adapt` and patterns freeze, retained heads and, without clips, the temporal branch."""
    adapt(model, recipe.adapt, _new(model, recipe))
    frozen = frozen_by(model, recipe.optimizer.patterns)
    frozen |= {name for name, _ in model.named_parameters() if head_of(name) in retained}
    frozen |= model.temporal_parameters() if images_only else frozenset()
    freeze(model, frozen)


def _new(model: CoVeR, recipe: Recipe) -> frozenset[str]:
    """The parameters that the start does not have. Without the start on this machine, those that it resets."""
    try:
        return new_in_run(model, recipe, find_release(recipe.start.checkpoint) if recipe.start.checkpoint else None)
    except UserError:
        return model.temporal_parameters() if recipe.start.temporal != "keep" else frozenset()


def _sets(schedule: Schedule, mixture: Mixture, costs: Mapping[str, ReadingCost], steps: int) -> list[dict[str, Any]]:
    """The draws of each data set in the whole run, and their cost to read."""
    drawn = schedule.expected(steps)
    return [
        {
            "name": each.name,
            "media": each.media,
            "samples": len(each.rows),
            "classes": len(each.classes.names),
            "origin": each.origin,
            "share": drawn[each.name] / (steps * schedule.batch),
            "drawn": drawn[each.name],
            "epochs": drawn[each.name] / len(each.rows),
            "ms": costs[each.name].ms,
            "ms_origin": costs[each.name].origin,
            "file_bytes": each.file_bytes,
            "reads": drawn[each.name] / each.crops,  # several crops share one decode
        }
        for each in mixture.datasets
    ]


def _make_up(step: Step, schedule: Schedule) -> dict[str, Any]:
    """The work of a step over all devices; the mean if steps differ."""
    whole = schedule.mean_step
    count = count_parameters(step.model)
    adds = 3 * step.cost.multiply_adds * step.cluster.devices  # forward and backward
    return {
        "holds": schedule.describe(),
        "groups": [{"samples": samples, "frames": frames} for samples, frames in whole],
        "tokens": step.cost.tokens * step.cluster.devices,
        "multiply_adds": adds,
        "flop": 2 * adds,
        "parameters": count.total,
        "parameters_body": count.body,
        "parameters_heads": count.heads,
        "parameters_trained": count.trained,
        "heads": dict(step.heads),
    }


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_of(step: Step) -> StepMemory:
    """The memory of one device with the settings of the recipe."""
    recipe, devices = step.recipe, step.cluster.devices
    sharded = recipe.distributed.strategy == "fsdp" and devices > 1
    adam = recipe.optimizer.name == "adamw"
    options = StepOptions(
        checkpointing=recipe.model.checkpointing,
        bf16=step.bf16,
        micro_batches=recipe.accumulation,
        optimizer_states=2 if adam else int(recipe.optimizer.momentum > 0),
        ema=recipe.ema > 0,
        shards=devices if sharded else 1,
        ddp=devices > 1 and not sharded,
        byte_masks=not step.cluster.device.shared,
    )
    return step_memory(step.model, step.largest, step.size, options)


def variants(step: Step) -> Iterator[Step]:
    """The step with all combinations of checkpointing and strategy: off and on, DDP and FSDP."""
    strategies = ("ddp", "fsdp") if step.cluster.devices > 1 else (step.recipe.distributed.strategy,)
    for strategy in strategies:
        for checkpointing in (False, True):
            yield changed(step, strategy=strategy, checkpointing=checkpointing)


def changed(
    step: Step, strategy: Any = None, checkpointing: bool | None = None, accumulation: int | None = None
) -> Step:
    """The step with other settings; None for the setting of the recipe."""
    recipe = step.recipe
    model, distributed = recipe.model, recipe.distributed
    model = model if checkpointing is None else replace(model, checkpointing=checkpointing)
    distributed = replace(distributed, strategy=strategy or distributed.strategy)
    accumulation = accumulation or recipe.accumulation
    return replace(step, recipe=replace(recipe, accumulation=accumulation, distributed=distributed, model=model))


def _way(step: Step) -> dict[str, Any]:
    """The memory of a step and whether it fits, as plain JSON."""
    memory = memory_of(step)
    return {
        "strategy": step.recipe.distributed.strategy,
        "checkpointing": step.recipe.model.checkpointing,
        **vars(memory),
        "total": memory.total,
        "fits": memory.total <= step.cluster.device.memory,
    }


def what_fits(step: Step) -> str:
    """The smallest change of the recipe with which a step fits into the memory of its devices, as text."""
    several = step.cluster.devices > 1
    if micro_batches := _fewest_micro_batches(step):
        return f"accumulation: {micro_batches}"
    if _fits(changed(step, checkpointing=True)):
        return "model.checkpointing: true"
    if micro_batches := _fewest_micro_batches(changed(step, checkpointing=True)):
        return f"accumulation: {micro_batches} and model.checkpointing: true"
    if several and _fits(changed(step, "fsdp")):
        return "distributed.strategy: fsdp"
    if several and _fits(changed(step, "fsdp", True)):
        return "distributed.strategy: fsdp and model.checkpointing: true"
    return "more or larger devices, or a smaller batch, model.size or data.frames"


def _fits(step: Step) -> bool:
    return memory_of(step).total <= step.cluster.device.memory


def _fewest_micro_batches(step: Step) -> int | None:
    """The smallest number of micro-batches above the recipe's with which a step fits; None if there is none."""
    if step.recipe.data.batches == "alternating":  # alternating steps have no micro-batches
        return None
    # The two samples of a mixed pair must be in the same micro-batch.
    pair = 2 if step.recipe.augment.mixup or step.recipe.augment.cutmix else 1
    finer = [
        micro_batches
        for micro_batches in range(step.recipe.accumulation + 1, MOST_MICRO_BATCHES + 1)
        if all(samples % (micro_batches * pair) == 0 for samples, _ in step.groups)
    ]
    if not finer or not _fits(changed(step, accumulation=finer[-1])):
        return None
    # Memory falls with the number of micro-batches, so a binary search finds the first that fits.
    return finer[bisect_left(finer, True, key=lambda micro_batches: _fits(changed(step, accumulation=micro_batches)))]


# --- time -------------------------------------------------------------------------------------------------------------


def _times(step: Step, sets: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """The seconds of a step and of its parts, and the reading that it needs."""
    compute = compute_seconds(step)
    talk, hidden = talk_seconds(step, compute)
    core_seconds = sum(each["drawn"] * each["ms"] for each in sets) / 1e3 / steps  # for one step
    busy = compute + max(0.0, talk - hidden)
    whole = _step_seconds(step, busy, core_seconds)
    sizes = [each["reads"] * each["file_bytes"] for each in sets if each["file_bytes"] is not None]
    total_bytes = sum(sizes) if len(sizes) == len(sets) else None  # of the whole run, if all sizes are known
    return {
        "time": {
            "compute": compute,
            "talk": talk,
            "talk_hidden": min(talk, hidden),
            "reading": core_seconds / reading_cores(step),
            "step": whole,
        },
        "reading": {
            "core_seconds": core_seconds,
            "cores_needed": core_seconds / busy,
            "cores": reading_cores(step),
            "workers": _workers(step),
            "bytes": total_bytes,
            "bytes_per_s": None if total_bytes is None else total_bytes / steps / whole,
        },
    }


def _step_seconds(step: Step, busy: float, core_seconds: float) -> float:
    """The seconds of a step. Reading and computing overlap, unless they use the same process or the same cores."""
    if not _workers(step):
        return busy + core_seconds / step.cluster.devices
    if step.cluster.device.shared:
        return busy + core_seconds / step.cluster.cores
    return max(busy, core_seconds / reading_cores(step))


def compute_seconds(step: Step) -> float:
    """Seconds of the forward and backward pass of one device. With checkpointing, the forward pass runs twice."""
    passes = 4 if step.recipe.model.checkpointing else 3
    return 2 * passes * step.cost.multiply_adds / (step.cluster.device.peak(step.bf16) * step.cluster.mfu)


def talk_seconds(step: Step, compute: float) -> tuple[float, float]:
    """Seconds of communication in a step, and the seconds of computing that it can overlap with.

    DDP sums the gradients in a ring during the backward pass of the last micro-batch. Each device sends 2 (N-1) / N of
    their bytes. FSDP gathers the weights for each forward and each backward pass, and at the end scatters the
    gradients. Each of these sends (N-1) / N of the bytes. All numbers are float32.
    """
    cluster, micro_batches = step.cluster, step.recipe.accumulation
    if cluster.devices == 1:
        return 0.0, 0.0
    count = count_parameters(step.model)
    sharded = step.recipe.distributed.strategy == "fsdp"
    numbers = 2 * micro_batches * count.total + count.trained if sharded else 2 * count.trained
    seconds = FLOAT32 * numbers * (cluster.devices - 1) / cluster.devices / (LINK_FRACTION * cluster.link)
    backward = 3 / 4 if step.recipe.model.checkpointing else 2 / 3
    return seconds, compute if sharded else compute * backward / micro_batches


def _workers(step: Step) -> int:
    """The number of reading processes that training starts for one device."""
    wanted, beside = step.recipe.workers, min(step.cluster.devices, step.cluster.beside)
    if wanted >= 0:
        return wanted
    if step.cluster.device.shared:
        return max(1, default_workers() // beside)
    return max(1, min(MOST_WORKERS, step.cluster.cores))


def reading_cores(step: Step) -> int:
    """The number of cores that read, for all devices together."""
    return step.cluster.devices * max(1, min(_workers(step), step.cluster.cores))


# --- the bottleneck ---------------------------------------------------------------------------------------------------


def verdict(step: Step, facts: Mapping[str, Any]) -> tuple[str, str]:
    """The bottleneck of a run (memory, loader, interconnect or compute), and a line that says how to remove it."""
    memory, time = memory_of(step), facts["time"]
    if memory.total > step.cluster.device.memory:
        sizes = f"{memory.total / 2**30:.1f} GiB of {step.cluster.device.memory / 2**30:.1f}"
        return "memory", f"memory: a step needs {sizes} on each device; set {what_fits(step)}"
    exposed = time["talk"] - time["talk_hidden"]
    if _reads_longest(step, facts, exposed):
        return "loader", _loader_line(step, facts)
    if exposed > SOME * time["compute"]:
        return "interconnect", _interconnect_line(step, time)
    return "compute", f"compute: the devices are the limit; {_idle(step, facts)}"


def _reads_longest(step: Step, facts: Mapping[str, Any], exposed: float) -> bool:
    """Whether reading is the bottleneck.

    If reading has its own cores, any wait for it counts. On shared cores, it must take longer than computing.
    """
    time = facts["time"]
    busy = time["compute"] + exposed
    waiting = time["step"] - busy
    return waiting > busy if step.cluster.device.shared else waiting > SOME * busy


def _loader_line(step: Step, facts: Mapping[str, Any]) -> str:
    reading, cluster = facts["reading"], step.cluster
    needed, available = reading["cores_needed"], cluster.cores * cluster.devices
    need = f"loader: needs {_count(needed)} cores at {_costs(facts)}"
    if needed <= available and reading["cores"] < available:
        each = math.ceil(needed / cluster.devices)
        return f"{need}, and only {reading['cores']} of {available} read; set workers: {each} (of each device)"
    return f"{need}, and there are {available}; {_read_less(step, facts)}"


def _costs(facts: Mapping[str, Any]) -> str:
    """The mean milliseconds for a clip and for an image of the mixture, as text."""
    texts = []
    for media, noun in (("video", "a clip"), ("image", "an image")):
        of_media = [each for each in facts["datasets"] if each["media"] == media]
        if of_media:
            mean = sum(each["ms"] * each["drawn"] for each in of_media) / sum(each["drawn"] for each in of_media)
            texts.append(f"{mean:.3g} ms {noun}")
    return " and ".join(texts)


def _read_less(step: Step, facts: Mapping[str, Any]) -> str:
    """The ways to make reading cheaper that the recipe does not use yet, as text."""
    videos = [each for each in facts["datasets"] if each["media"] == "video"]
    ways = ["prepare the videos (cover prepare)"] if any(each["ms"] > PREPARING_MS for each in videos) else []
    ways += ["data.crops: 2"] if videos and step.recipe.data.crops == 1 else []
    return ", or ".join([*ways, "more cores for each device"])


def _interconnect_line(step: Step, time: Mapping[str, float]) -> str:
    lost = time["talk"] - time["talk_hidden"]
    if step.recipe.distributed.strategy == "fsdp" and _fits(changed(step, "ddp")):
        way = "distributed.strategy: ddp"
    else:
        way = "a larger batch on each device (or accumulation), or a faster network"
    return f"interconnect: of each {1e3 * time['step']:.0f} ms the devices wait {1e3 * lost:.0f} for one another; {way}"


def _idle(step: Step, facts: Mapping[str, Any]) -> str:
    reading, time = facts["reading"], facts["time"]
    if step.cluster.device.shared:
        return f"reading takes {(time['step'] - time['compute']) / time['step']:.0%} of their time"
    cores = facts["cores"] * facts["devices"]
    return f"reading needs {_count(reading['cores_needed'])} of {cores} cores at {_costs(facts)}"


def _count(cores: float) -> str:
    return f"{cores:.0f}" if cores >= 10 else f"{cores:.1f}"


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """Notes on the figures of a plan that are assumed or come from publications."""
    published = ", ".join(each["name"] for each in facts["datasets"] if each["origin"] == "published")
    assumed = ", ".join(each["name"] for each in facts["datasets"] if each["ms_origin"] == "assumed")
    notes = [class_line(name, classes) for name, classes in facts["classes"].items()]
    if published:
        notes.append(f"no manifest of {published}: sizes as published; --sizes NAME=SAMPLES, or cover index")
    if assumed:
        notes.append(f"reading times of {assumed} are assumed, for 16 frames; set --decode-ms and --image-ms")
    if facts["cached"]:
        notes.append("cache.stages: times and memory are those of a run without its cache (docs/caching.md)")
    if facts["compile"]:
        notes.append("memory is that of plain blocks; compiled blocks store up to a quarter more activations")
    return notes
