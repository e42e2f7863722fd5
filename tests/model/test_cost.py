"""The formulas against what is counted while the network runs, and against the published figures.

Multiply-adds: torch's own counter on the meta device, where every attention is two plain products (the CPU's fused kernel is not in
its list). Memory: the storages that autograd holds after a forward pass in training, parameters left out.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cover.errors import UserError
from cover.model.backbone import Groups
from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cost import activation_bytes, multiply_adds, pack_of, parameters, tokens
from cover.model.cover import CoVeR
from cover.model.heads import Head

SHAPE: dict[str, Any] = {"width": 32, "depth": 2, "attention_heads": 4, "patch": 8, "size": 24, "frames": 4}
HEADS = {"motion": 3, "things": 5}
COTRAINED = {"k400": 400, "ssv2": 174, "mit": 339, "imagenet": 1000}
LAYOUTS: list[Groups] = [((2, 4),), ((3, 1),), ((2, 4), (3, 1)), ((1, 8), (2, 4), (1, 2), (2, 1)), ((1, 8), (2, 3))]
KINDS = pytest.mark.parametrize(
    "kind",
    [{"attention": a, "time": t} for a in ("divided", "joint", "space") for t in ("rotary", "additive")]
    + [{"image_temporal": "skip", "time": t} for t in ("rotary", "additive")],
    ids=lambda kind: "-".join(kind.values()),
)
LAYOUT = pytest.mark.parametrize("groups", LAYOUTS, ids=str)


def build(config: TimeSformerConfig, heads: dict[str, int] = HEADS) -> CoVeR:
    return CoVeR(config, tuple(Head(name, tuple(map(str, range(classes)))) for name, classes in heads.items()))


def counted(config: TimeSformerConfig, groups: Groups, size: int, heads: dict[str, int] = HEADS, backward: bool = False) -> int:
    """Multiply-adds by torch's counter, which takes two operations for each."""
    with torch.device("meta"):
        model, frames = build(config, heads), torch.empty(sum(s * t for s, t in groups), 3, size, size)
    model.backbone.set_merging(False)  # the function as published, product by product
    with FlopCounterMode(display=False) as counter:
        logits = model(frames.requires_grad_(backward), groups)
        if backward:
            torch.stack([scores.sum() for scores in logits.values()]).sum().backward()
    return counter.get_total_flops() // 2


# --- multiply-adds ----------------------------------------------------------------------------------------------------------------


@KINDS
@LAYOUT
def test_multiply_adds_are_those_of_the_network(kind: dict[str, Any], groups: Groups) -> None:
    config = TimeSformerConfig(**SHAPE, **kind)
    for size in (24, 40):
        assert multiply_adds(config, groups, size, sum(HEADS.values())) == counted(config, groups, size)


@pytest.mark.parametrize("changes", [{"mlp_ratio": 2.7}, {"patch": 4}, {"layer_scale": 0.1}, {"width": 20, "attention_heads": 2}], ids=str)
def test_multiply_adds_of_other_shapes(changes: dict[str, Any]) -> None:
    config = TimeSformerConfig(**{**SHAPE, **changes})
    assert multiply_adds(config, LAYOUTS[2], 24) == counted(config, LAYOUTS[2], 24, {})


def test_what_a_small_cpu_runs_is_what_is_counted() -> None:
    """The counter does not know the CPU's fused kernel, but the products of the plain one."""
    config, groups = TimeSformerConfig(**SHAPE), LAYOUTS[3]
    model = build(config)
    model.backbone.set_merging(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(20, 3, 24, 24), groups)
    assert counter.get_total_flops() == 2 * multiply_adds(config, groups, 24, sum(HEADS.values()))


@pytest.mark.parametrize("groups", LAYOUTS[:2], ids=str)
def test_a_training_step_is_three_forward_passes(groups: Groups) -> None:
    config = TimeSformerConfig(**SHAPE)
    assert counted(config, groups, 24, backward=True) == pytest.approx(3 * multiply_adds(config, groups, 24, 8), rel=1e-12)


# --- the published figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "frames", "size", "heads", "millions", "tera"),
    [
        ("B/16", 8, 224, {"k400": 400}, 121.4, 0.59),
        ("B/16", 16, 448, {"k400": 400}, 121.4 + (28**2 - 14**2) * 768e-6, 5.11),  # plus a larger position embedding
        ("B/16", 96, 224, {"k400": 400}, 121.4, 7.14),
        ("L/16", 16, 448, COTRAINED, 431, 17.6),
    ],
    ids=["TimeSformer", "TimeSformer-HR", "TimeSformer-L", "CoVeR"],
)
@pytest.mark.parametrize("time", ["rotary", "additive"])
def test_published_sizes(preset: str, frames: int, size: int, heads: dict[str, int], millions: float, tera: float, time: str) -> None:
    """CoVeR, table 2 and section 4; CoVeR's as UniFormerV2 prints them (tables 6 to 11), three views each."""
    config = named_config(preset, frames=frames, size=size, time=time)
    assert parameters(config, heads).total / 1e6 == pytest.approx(millions, rel=5e-3)
    adds = multiply_adds(config, ((1, frames),), size, sum(heads.values()))
    assert 3 * adds / 1e12 == pytest.approx(tera, rel=5e-3)
    assert adds == counted(config, ((1, frames),), size, heads)


@pytest.mark.parametrize(("attention", "millions"), [("space", 85.9), ("joint", 85.9), ("divided", 121.4)])
def test_parameters_of_the_attention_kinds(attention: str, millions: float) -> None:
    """CoVeR, table 1."""
    assert parameters(named_config("B/16", attention=attention), {"k400": 400}).total / 1e6 == pytest.approx(millions, rel=5e-3)


# --- parameters and tokens --------------------------------------------------------------------------------------------------------


@KINDS
def test_parameters_in_their_parts(kind: dict[str, Any]) -> None:
    config = TimeSformerConfig(**SHAPE, **kind)
    found, model = parameters(config, HEADS), build(config)
    assert found.total == sum(p.numel() for p in model.parameters())
    assert found.heads == 8 * 32 + 8
    assert found.temporal == sum(p.numel() for name, p in model.named_parameters() if name in model.temporal_parameters())
    assert parameters(config).total == found.body
    assert parameters(config, {"temporal": 2}).temporal == found.temporal


def test_tokens_and_packs() -> None:
    config = TimeSformerConfig()
    assert tokens(config, pack_of(1, 8, 0), 224) == 8 * 197
    assert pack_of(2, 8, 3) == ((2, 8), (3, 1))
    assert pack_of(2, 1, 3) == ((5, 1),)
    assert pack_of(0, 8, 3) == ((3, 1),)
    with pytest.raises(UserError, match="no clips and no images"):
        pack_of(0, 8, 0)


@pytest.mark.parametrize(
    ("name", "classes", "part"), [("a", 0, "a=0"), ("a", 10**7, "1 to 1,000,000"), ("keys", 2, "keys"), ("a.b", 2, "a.b")]
)
def test_heads_that_cannot_be(name: str, classes: int, part: str) -> None:
    with pytest.raises(UserError, match=r"^heads: ") as error:
        parameters(TimeSformerConfig(**SHAPE), {name: classes})
    assert part in str(error.value)
    assert "\n" not in str(error.value)


# --- memory -----------------------------------------------------------------------------------------------------------------------


class Kept:
    """The distinct storages that autograd holds, parameters left out."""

    def __init__(self, model: CoVeR) -> None:
        self.parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters:
            self.storages[storage.data_ptr()] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


def kept(config: TimeSformerConfig, groups: Groups, size: int, checkpointing: bool = False, bf16: bool = False) -> int:
    """Bytes held after a forward pass; with `checkpointing` while the last block has been computed again."""
    model = build(config).train()
    model.set_checkpointing(checkpointing)
    held, inputs = Kept(model), []
    for block in model.backbone.blocks:
        block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    frames = torch.randn(sum(s * t for s, t in groups), 3, size, size)
    with torch.autograd.graph.saved_tensors_hooks(held.note, lambda x: x), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        _ = model(frames, groups)
        if checkpointing:  # what a checkpoint holds is hidden from the hooks
            _ = model.backbone.blocks[-1].forward(*inputs[-1])
            for arguments in inputs:
                held.note(arguments[0])
    return held.bytes


WIDER: dict[str, Any] = {"width": 96, "depth": 3, "attention_heads": 4, "patch": 8, "frames": 4}
CHECKPOINTING = pytest.mark.parametrize("checkpointing", [False, True], ids=["all", "checkpointing"])


@CHECKPOINTING
@KINDS
@LAYOUT
def test_activation_memory(kind: dict[str, Any], groups: Groups, checkpointing: bool) -> None:
    config = TimeSformerConfig(**WIDER, **kind)
    for size in (32, 80):
        found = activation_bytes(config, groups, size, checkpointing)
        assert found == pytest.approx(kept(config, groups, size, checkpointing), rel=0.01)


@CHECKPOINTING
@pytest.mark.parametrize("groups", LAYOUTS[1:4], ids=str)
@pytest.mark.parametrize("kind", [{}, {"attention": "joint"}, {"image_temporal": "skip"}, {"layer_scale": 0.1}], ids=str)
def test_activation_memory_under_autocast(kind: dict[str, Any], groups: Groups, checkpointing: bool) -> None:
    config = TimeSformerConfig(**WIDER, **kind)
    found = activation_bytes(config, groups, 32, checkpointing, bf16=True)
    assert found == pytest.approx(kept(config, groups, 32, checkpointing, bf16=True), rel=0.05)
