"""The memory that is planned against what the allocator counts while a real training step runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from cover.mixture.pack import Pack, split_pack
from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.layers import Groups
from cover.model.profile import on_meta
from cover.planning.memory import StepMemory, StepOptions, step_memory
from cover.training.step import StepSettings, train_step

MEASURE = Path(__file__).parents[2] / "benchmarks" / "_measure.py"
CLASSES = 100
VIDEO: Groups = ((6, 4),)
MIXED: Groups = ((8, 8), (16, 1))
LARGE = on_meta(named_config("L/16", frames=8), {"a": 400})


def peak_bytes(work: Any) -> int:
    """By the account that the benchmarks use too."""
    spec = importlib.util.spec_from_file_location("_measure", MEASURE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return int(module.peak_bytes(work, torch.device("cpu")))


def freeze(model: torch.nn.Module, names: frozenset[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)


def make_pack(groups: Groups, size: int) -> Pack:
    samples = sum(count for count, _ in groups)
    return Pack(
        frames=torch.randint(0, 256, (sum(s * t for s, t in groups), 3, size, size), dtype=torch.uint8),
        groups=groups,
        dataset=torch.zeros(samples, dtype=torch.int64),
        targets=torch.zeros(samples, 1, dtype=torch.int64),
        weight=torch.ones(samples),
        seed=torch.arange(samples),
    )


def measured(
    config: TimeSformerConfig, groups: Groups, size: int, options: StepOptions, frozen: frozenset[str] = frozenset()
) -> tuple[int, int]:
    """(what stays, most above it) of a step like every one but the first, in bytes."""
    model = CoVeR(config, (Head("a", tuple(map(str, range(CLASSES)))),)).train()
    model.set_checkpointing(options.checkpointing)
    freeze(model, frozen)
    pack = make_pack(groups, size)
    settings = StepSettings(len(pack.seed), torch.ones(1), bf16=options.bf16)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-5, fused=True)

    def step() -> None:
        train_step(model, optimizer, split_pack(pack, options.micro_batches), settings)

    step()
    model.zero_grad(set_to_none=True)
    present = [
        *model.parameters(),
        *(value for state in optimizer.state.values() for value in state.values() if value.dim()),
    ]
    return sum(tensor.nbytes for tensor in present), peak_bytes(step) + pack.frames.nbytes


def planned(
    config: TimeSformerConfig, groups: Groups, size: int, options: StepOptions, frozen: frozenset[str] = frozenset()
) -> tuple[int, int]:
    model = on_meta(config, {"a": CLASSES})
    freeze(model, frozen)
    memory = step_memory(model, groups, size, options)
    state = memory.weights + memory.optimizer + memory.average
    return state, memory.tensors - state


PLANS: dict[str, tuple[str, int, Groups, dict[str, Any], dict[str, Any]]] = {
    "mixed": ("mini", 32, MIXED, {}, {}),
    "joint": ("mini", 64, VIDEO, {"attention": "joint"}, {}),
    "micro-batches": ("mini", 48, MIXED, {"time": "additive"}, {"micro_batches": 4}),
    "bf16": ("mini", 64, MIXED, {}, {"bf16": True}),
    "dropout": ("mini", 64, MIXED, {"dropout": 0.1}, {"byte_masks": False}),
    "clips": ("Ti/16", 64, VIDEO, {}, {}),
    "skip": ("Ti/8", 48, ((4, 4), (8, 1)), {"image_temporal": "skip"}, {}),
    "weights alone": ("S/16", 32, ((1, 4),), {}, {}),
    "images": ("mini", 32, ((64, 1),), {}, {}),
}
# the others' blocks are computed anew in the full checks only
CHECKPOINTED = ("mixed", "joint", "micro-batches", "images")


@pytest.mark.parametrize(
    ("plan", "checkpointing"),
    [
        *((plan, False) for plan in PLANS),
        *(pytest.param(plan, True, marks=[] if plan in CHECKPOINTED else pytest.mark.full) for plan in PLANS),
    ],
)
def test_a_step_takes_what_was_planned(plan: str, checkpointing: bool) -> None:
    preset, size, groups, changes, options = PLANS[plan]
    config = named_config(preset, size=size, frames=groups[0][1], **changes)
    how = StepOptions(checkpointing=checkpointing, **options)
    (state, step), (state_found, step_found) = planned(config, groups, size, how), measured(config, groups, size, how)
    assert state == state_found
    assert step == pytest.approx(step_found, rel=0.05)


@pytest.mark.parametrize("part", ["temporal", "prefix", "body"])
def test_what_is_not_trained_has_no_gradient_and_no_optimizer(part: str) -> None:
    config, groups = named_config("Ti/16", size=64), ((16, 1),)
    model = on_meta(config, {"a": CLASSES})
    names = [name for name, _ in model.named_parameters()]
    parts = ("cls_token", "pos_embed", "patch_embed", *(f"blocks.{number}." for number in range(6)))
    prefix = tuple(f"backbone.{part}" for part in parts)
    frozen = {
        "temporal": model.temporal_parameters(),
        "prefix": frozenset(name for name in names if name.startswith(prefix)),
        "body": frozenset(name for name in names if not name.startswith("heads.")),
    }[part]
    (state, step), (state_found, step_found) = (
        run(config, groups, 64, StepOptions(), frozen) for run in (planned, measured)
    )
    assert state == state_found
    assert state + step == pytest.approx(state_found + step_found, rel=0.05)


# --- several devices --------------------------------------------------------------------------------------------------


def of_large(**options: Any) -> StepMemory:
    return step_memory(LARGE, ((2, 8),), 224, StepOptions(bf16=True, checkpointing=True, **options))


def test_shards_share_the_state_and_little_else() -> None:
    alone, shared = of_large(ddp=True), of_large(shards=8)
    assert shared.weights + shared.optimizer == pytest.approx((alone.weights + alone.optimizer) / 8, rel=1e-6)
    assert shared.total < 0.4 * alone.total
    assert shared.working > alone.working  # whole blocks are gathered


def test_shards_hold_whole_gradients_between_micro_batches() -> None:
    assert of_large(shards=8, micro_batches=2).gradients == of_large(micro_batches=2).gradients == of_large().weights


def test_an_average_takes_as_much_as_what_is_trained() -> None:
    assert of_large(ema=True).total - of_large().total == pytest.approx(1.05 * of_large().weights, abs=2)
