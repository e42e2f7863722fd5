"""What will a run take, before it is begun? Memory, arithmetic, reading and talk between devices, and which of them it will wait for.

cover plan recipes/sandbox/cotrain.yaml --gpus 8 --device h200
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cover.errors import UserError
from cover.machine import default_workers
from cover.mixture.mixture import Mixture
from cover.mixture.schedule import Schedule
from cover.model.cost import multiply_adds, on_meta, parameters, tokens
from cover.model.lean import Groups
from cover.model.presets import model_config
from cover.model.timesformer import ModelConfig
from cover.model.weights import find_release, release_heads
from cover.training.devices import Device
from cover.training.memory import FLOAT32, Memory, Ways, step_memory
from cover.training.parameters import matches
from cover.training.reading_cost import ReadingCost
from cover.training.recipe import Recipe
from cover.training.train import make_schedule, with_steps

LINK_SHARE = 0.7  # of a link's speed that a ring of devices reaches (assumed)
GPU_SHARE, CPU_SHARE = 0.40, 0.50  # of the peak that training reaches: assumed; and about what was measured (docs/planning.md)
GPU_CORES = 12  # for each GPU: those of common machines of eight (assumed)
MOST_WORKERS = 16  # of one device, where a recipe does not say how many (cover.machine.default_workers)
MOST_PARTS = 64  # micro-batches that are tried
SOME = 0.05  # of a step that is worth a word
PREPARING_MS = 50.0  # a prepared clip takes less (docs/preparing.md)


@dataclass(frozen=True)
class Cluster:
    """What a run is planned on: `devices` of one kind, `beside` each other in a machine, `cores` of a CPU for each.

    `share`: of the peak arithmetic that training reaches. `network`: bytes/s of each device to other machines. `assumed`: whether the
    share was not given.
    """

    device: Device
    devices: int
    beside: int
    cores: int
    share: float
    network: float
    assumed: bool = False

    @property
    def link(self) -> float:
        """Bytes/s of the slowest stretch of a ring through all devices."""
        return self.device.link if self.devices <= self.beside else min(self.device.link, self.network)


@dataclass(frozen=True)
class Step:
    """One step of a recipe on a cluster: the network, its heads, and what each device takes of the samples, all micro-batches together.

    `groups`: on average over the run, which the times are of. `largest`: the step with the most frames, which memory has to hold.
    """

    recipe: Recipe
    cluster: Cluster
    config: ModelConfig
    heads: Mapping[str, int]
    groups: Groups
    largest: Groups
    untrained: int

    @property
    def size(self) -> int:
        return self.recipe.model.size

    @property
    def bf16(self) -> bool:
        return self.recipe.precision == "bf16"


def plan(recipe: Recipe, cluster: Cluster, mixture: Mixture, costs: Mapping[str, ReadingCost]) -> dict[str, Any]:
    """All figures of a run. Raises `UserError` where it could not be begun, or its batch cannot be shared out over the devices."""
    schedule, steps = make_schedule(recipe, mixture, cluster.devices), with_steps(recipe, mixture).steps
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
    facts["remarks"] = remarks(facts)
    return facts


def _setting(recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    return {
        "device": cluster.device.title,
        "devices": cluster.devices,
        "beside": cluster.beside,
        "cores": cluster.cores,
        "share": cluster.share,
        "share_assumed": cluster.assumed,
        "network_bytes_per_s": cluster.network,
        "precision": recipe.precision,
        "strategy": recipe.distributed.strategy,
        "checkpointing": recipe.model.checkpointing,
        "accumulation": recipe.accumulation,
        "compile": recipe.compile,
    }


def make_step(recipe: Recipe, cluster: Cluster, mixture: Mixture, schedule: Schedule) -> Step:
    """A device's part of a step. Raises `UserError`."""
    wanted = recipe.model
    config = model_config(
        wanted.preset, size=wanted.size, frames=recipe.data.frames, attention=wanted.attention, time=wanted.time,
        image_temporal=wanted.image_temporal, dropout=wanted.dropout, layer_scale=wanted.layer_scale,
    )  # fmt: skip
    trained = {head.name: len(head.classes) for head in mixture.heads}
    kept = retained_classes(recipe, trained)
    heads = {**trained, **kept}
    groups, largest = (
        tuple((samples // cluster.devices, frames) for samples, frames in whole) for whole in (schedule.mean_step, schedule.largest_step)
    )
    return Step(recipe, cluster, config, heads, groups, largest, _untrained(recipe, config, heads, groups, kept))


def retained_classes(recipe: Recipe, trained: Mapping[str, int]) -> dict[str, int]:
    """Head -> classes of what the starting checkpoint adds to the heads `trained` (`start.heads: keep`); none where it is not here."""
    if recipe.start.heads == "drop":
        return {}
    try:
        theirs = release_heads(find_release(recipe.start.checkpoint))
    except UserError:
        return {}
    return {head.name: len(head.classes) for head in theirs if head.name not in trained}


def _untrained(recipe: Recipe, config: ModelConfig, heads: Mapping[str, int], groups: Groups, kept: Iterable[str]) -> int:
    """Parameters that stay as they are: what a pattern freezes, heads that are `kept`, and the temporal branch where there is no clip."""
    model, images_only = on_meta(config, heads), all(frames == 1 for _, frames in groups)
    found = matches(model, recipe.optimizer.patterns)
    frozen = {name for pattern, names in found.items() for name in names if recipe.optimizer.patterns[pattern].freeze}
    frozen |= {name for name, _ in model.named_parameters() for head in kept if name.startswith(f"heads.{head}.")}
    return sum(p.numel() for name, p in model.named_parameters() if name in frozen or (images_only and model.is_temporal(name)))


def _sets(schedule: Schedule, mixture: Mixture, costs: Mapping[str, ReadingCost], steps: int) -> list[dict[str, Any]]:
    """What the run draws of each data set and what that costs to read."""
    ends = schedule.expected(steps)
    return [
        {
            "name": each.name, "media": each.media, "samples": len(each.rows), "classes": len(each.classes.names), "origin": each.origin,
            "share": ends[each.name] / (steps * schedule.batch), "drawn": ends[each.name], "epochs": ends[each.name] / len(each.rows),
            "ms": costs[each.name].ms, "ms_origin": costs[each.name].origin, "file_bytes": each.file_bytes,
            "reads": ends[each.name] / each.crops,
        }
        for each in mixture.datasets
    ]  # fmt: skip


def _make_up(step: Step, schedule: Schedule) -> dict[str, Any]:
    """A whole step, over all devices; on average where steps differ."""
    whole = schedule.mean_step
    count = parameters(step.config, step.heads)
    adds = 3 * multiply_adds(step.config, whole, step.size, sum(step.heads.values()))
    return {
        "holds": schedule.describe(),
        "groups": [{"samples": samples, "frames": frames} for samples, frames in whole],
        "tokens": tokens(step.config, whole, step.size),
        "multiply_adds": adds,
        "flop": 2 * adds,
        "parameters": count.total,
        "parameters_body": count.body,
        "parameters_heads": count.heads,
        "parameters_trained": count.total - step.untrained,
        "heads": dict(step.heads),
    }


# --- memory ---------------------------------------------------------------------------------------------------------------------


def memory_of(step: Step) -> Memory:
    """Of one device, as the recipe says."""
    recipe, devices = step.recipe, step.cluster.devices
    sharded = recipe.distributed.strategy == "fsdp" and devices > 1
    adam = recipe.optimizer.name == "adamw"
    ways = Ways(
        checkpointing=recipe.model.checkpointing,
        bf16=step.bf16,
        parts=recipe.accumulation,
        means=2 if adam else int(recipe.optimizer.momentum > 0),
        average=recipe.ema > 0,
        untrained=step.untrained,
        shards=devices if sharded else 1,
        buckets=devices > 1 and not sharded,
        mask=FLOAT32 if step.cluster.device.shared else 1,
    )
    return step_memory(step.config, step.heads, step.largest, step.size, ways)


def variants(step: Step) -> Iterator[Step]:
    """The step as it is and otherwise: with and without checkpointing, as copies and in shards."""
    strategies = ("ddp", "fsdp") if step.cluster.devices > 1 else (step.recipe.distributed.strategy,)
    for strategy in strategies:
        for checkpointing in (False, True):
            yield changed(step, strategy=strategy, checkpointing=checkpointing)


def changed(step: Step, strategy: Any = None, checkpointing: bool | None = None, accumulation: int | None = None) -> Step:
    """The step of a recipe that differs in this."""
    recipe = step.recipe
    recipe = replace(
        recipe,
        accumulation=accumulation or recipe.accumulation,
        distributed=replace(recipe.distributed, strategy=strategy or recipe.distributed.strategy),
        model=replace(recipe.model, checkpointing=recipe.model.checkpointing if checkpointing is None else checkpointing),
    )
    return replace(step, recipe=recipe)


def _way(step: Step) -> dict[str, Any]:
    memory = memory_of(step)
    return {
        "strategy": step.recipe.distributed.strategy,
        "checkpointing": step.recipe.model.checkpointing,
        **vars(memory),
        "total": memory.total,
        "fits": memory.total <= step.cluster.device.memory,
    }


def what_fits(step: Step) -> str:
    """The smallest change of the recipe that fits a step into the memory of its devices."""
    several = step.cluster.devices > 1
    tries = [
        *((f"accumulation: {parts}", changed(step, accumulation=parts)) for parts in _finer(step)),
        ("model.checkpointing: true", changed(step, checkpointing=True)),
        *((f"accumulation: {parts} and model.checkpointing: true", changed(step, None, True, parts)) for parts in _finer(step)),
        *([("distributed.strategy: fsdp", changed(step, "fsdp"))] if several else []),
        *([("distributed.strategy: fsdp and model.checkpointing: true", changed(step, "fsdp", True))] if several else []),
    ]
    fitting = (text for text, variant in tries if memory_of(variant).total <= step.cluster.device.memory)
    return next(fitting, "more or larger devices, or a smaller batch, model.size or data.frames")


def _finer(step: Step) -> list[int]:
    """More micro-batches that share out what a device takes, mixed pairs undivided."""
    if step.recipe.data.batches == "alternating":  # which has no micro-batches
        return []
    pair = 2 if step.recipe.augment.mixup or step.recipe.augment.cutmix else 1
    return [
        parts
        for parts in range(step.recipe.accumulation + 1, MOST_PARTS + 1)
        if all(samples % (parts * pair) == 0 for samples, _ in step.groups)
    ]


# --- time -----------------------------------------------------------------------------------------------------------------------


def _times(step: Step, sets: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """Seconds of a step's parts, and what must be read for it."""
    compute = compute_seconds(step)
    talk, hidden = talk_seconds(step, compute)
    core_seconds = sum(each["drawn"] * each["ms"] for each in sets) / 1e3 / steps
    bytes_known = [each["reads"] * each["file_bytes"] for each in sets if each["file_bytes"] is not None]
    reading = core_seconds / reading_cores(step)
    busy = compute + max(0.0, talk - hidden)
    together = _together(step, busy, core_seconds)
    return {
        "time": {"compute": compute, "talk": talk, "talk_hidden": min(talk, hidden), "reading": reading, "step": together},
        "reading": {
            "core_seconds": core_seconds,
            "cores_needed": core_seconds / busy,
            "cores": reading_cores(step),
            "workers": _workers(step),
            "bytes": sum(bytes_known) if len(bytes_known) == len(sets) else None,
            "bytes_per_s": sum(bytes_known) / steps / together if len(bytes_known) == len(sets) else None,
        },
    }


def _together(step: Step, busy: float, core_seconds: float) -> float:
    """Seconds of a step: reading goes on beside the computing, unless it is the same process or the same cores that do both."""
    if not _workers(step):
        return busy + core_seconds / step.cluster.devices
    if step.cluster.device.shared:
        return busy + core_seconds / step.cluster.cores
    return max(busy, core_seconds / reading_cores(step))


def compute_seconds(step: Step) -> float:
    """Forward and backward pass of one device; with checkpointing the forward pass twice."""
    passes = 4 if step.recipe.model.checkpointing else 3
    adds = multiply_adds(step.config, step.groups, step.size, sum(step.heads.values()))
    return 2 * passes * adds / (step.cluster.device.peak(step.bf16) * step.cluster.share)


def talk_seconds(step: Step, compute: float) -> tuple[float, float]:
    """What the devices exchange in a step, and how much of it can pass while they compute.

    DDP adds up the gradients in a ring, 2 (N-1) / N of their bytes, during the last micro-batch's backward pass. FSDP gathers the weights
    for each forward and each backward pass and then shares out the gradients, (N-1) / N of the bytes each time, float32.
    """
    cluster, parts = step.cluster, step.recipe.accumulation
    if cluster.devices == 1:
        return 0.0, 0.0
    count = parameters(step.config, step.heads).total
    sharded = step.recipe.distributed.strategy == "fsdp"
    numbers = 2 * parts * count + count - step.untrained if sharded else 2 * (count - step.untrained)
    seconds = FLOAT32 * numbers * (cluster.devices - 1) / cluster.devices / (LINK_SHARE * cluster.link)
    backward = 3 / 4 if step.recipe.model.checkpointing else 2 / 3
    return seconds, compute if sharded else compute * backward / parts


def _workers(step: Step) -> int:
    """Reading processes of one device, as training starts them."""
    wanted, beside = step.recipe.workers, min(step.cluster.devices, step.cluster.beside)
    if wanted >= 0:
        return wanted
    if step.cluster.device.shared:
        return max(1, default_workers() // beside)
    return max(1, min(MOST_WORKERS, step.cluster.cores))


def reading_cores(step: Step) -> int:
    """Cores of all devices together that read."""
    return step.cluster.devices * max(1, min(_workers(step), step.cluster.cores))


# --- the verdict ----------------------------------------------------------------------------------------------------------------


def verdict(step: Step, facts: Mapping[str, Any]) -> tuple[str, str]:
    """What the run waits for (memory, loader, interconnect or compute), and one line that says what to do about it."""
    memory, time = memory_of(step), facts["time"]
    if memory.total > step.cluster.device.memory:
        room = step.cluster.device.memory / 2**30
        return "memory", f"memory: a step needs {memory.total / 2**30:.1f} GiB of {room:.1f} on each device; set {what_fits(step)}"
    exposed = time["talk"] - time["talk_hidden"]
    if _reads_longest(step, facts, exposed):
        return "loader", _loader_line(step, facts)
    if exposed > SOME * time["compute"]:
        return "interconnect", _interconnect_line(step, time)
    return "compute", f"compute: the devices are the limit; {_idle(step, facts)}"


def _reads_longest(step: Step, facts: Mapping[str, Any], exposed: float) -> bool:
    """Whether reading holds a run up most: where it goes on beside the computing, by anything it takes longer."""
    time = facts["time"]
    busy = time["compute"] + exposed
    waiting = time["step"] - busy
    return waiting > busy if step.cluster.device.shared else waiting > SOME * busy


def _loader_line(step: Step, facts: Mapping[str, Any]) -> str:
    reading, cluster = facts["reading"], step.cluster
    needed, there = reading["cores_needed"], cluster.cores * cluster.devices
    need = f"loader: needs {_count(needed)} cores at {_costs(facts)}"
    if needed <= there and reading["cores"] < there:
        each = math.ceil(needed / cluster.devices)
        return f"{need}, and only {reading['cores']} of {there} read; set workers: {each} (of each device)"
    return f"{need}, and there are {there}; {_read_less(step, facts)}"


def _costs(facts: Mapping[str, Any]) -> str:
    """Mean milliseconds of a clip and of an image of the mixture."""
    words = []
    for media, noun in (("video", "a clip"), ("image", "an image")):
        mine = [each for each in facts["datasets"] if each["media"] == media]
        if mine:
            mean = sum(each["ms"] * each["drawn"] for each in mine) / sum(each["drawn"] for each in mine)
            words.append(f"{mean:.3g} ms {noun}")
    return " and ".join(words)


def _read_less(step: Step, facts: Mapping[str, Any]) -> str:
    """What makes reading cheaper, of what has not been done."""
    videos = [each for each in facts["datasets"] if each["media"] == "video"]
    ways = ["prepare the videos (cover prepare)"] if any(each["ms"] > PREPARING_MS for each in videos) else []
    ways += ["data.crops: 2"] if videos and step.recipe.data.crops == 1 else []
    return ", or ".join([*ways, "more cores for each device"])


def _interconnect_line(step: Step, time: Mapping[str, float]) -> str:
    lost = time["talk"] - time["talk_hidden"]
    copies = changed(step, "ddp")
    if step.recipe.distributed.strategy == "fsdp" and memory_of(copies).total <= step.cluster.device.memory:
        way = "distributed.strategy: ddp"
    else:
        way = "a larger batch on each device (or accumulation), or a faster network"
    return f"interconnect: of each {1e3 * time['step']:.0f} ms the devices wait {1e3 * lost:.0f} for one another; {way}"


def _idle(step: Step, facts: Mapping[str, Any]) -> str:
    reading, time = facts["reading"], facts["time"]
    if step.cluster.device.shared:
        return f"reading takes {(time['step'] - time['compute']) / time['step']:.0%} of their time"
    return f"reading needs {_count(reading['cores_needed'])} of {facts['cores'] * facts['devices']} cores at {_costs(facts)}"


def _count(cores: float) -> str:
    return f"{cores:.0f}" if cores >= 10 else f"{cores:.1f}"


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """What in a plan is not known but taken from elsewhere."""
    named = {
        key: ", ".join(each["name"] for each in facts["datasets"] if each[key] == value)
        for key, value in (("origin", "published"), ("ms_origin", "assumed"))
    }
    found = [f"no manifest of {named['origin']}: sizes as published; --sizes NAME=SAMPLES, or cover index"] if named["origin"] else []
    if named["ms_origin"]:
        found.append(f"reading times of {named['ms_origin']} are assumed, for 16 frames; --decode-ms and --image-ms say them")
    if facts["compile"]:
        found.append("memory is that of plain blocks; compiled ones keep up to a quarter more activations")
    return found


def make_cluster(
    device: Device, devices: int, cores: int | None, share: float | None, network_gbit: float, beside: int | None = None
) -> Cluster:
    """With what goes without saying. Raises `UserError`."""
    if device.shared and devices > 1:
        raise UserError(f"--gpus: {devices} of this CPU cannot be planned; name a device, as in --device h200")
    if share is not None and not 0 < share <= 1:
        raise UserError(f"--mfu: {share:g} is no share of the peak; give one above 0 and at most 1, as in 0.4")
    if not network_gbit > 0:
        raise UserError(f"--network: {network_gbit:g} is no speed; give Gbit/s for each device, as in 400")
    usual = (len(os.sched_getaffinity(0)), CPU_SHARE) if device.shared else (GPU_CORES, GPU_SHARE)
    return Cluster(device, devices, beside or device.beside, cores or usual[0], share or usual[1], network_gbit * 1e9 / 8, share is None)
