"""What the profile of a network says against formulas written out here, published figures, and what really runs.

Multiply-adds: the products of a divided block, written out for every layout. Memory: the storages that autograd holds
after a forward pass in training, parameters left out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cover.errors import UserError
from cover.model.backbone import Groups
from cover.model.backbones import named_config
from cover.model.backbones.conv3d import Conv3dConfig
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.profile import (
    count_parameters,
    forward_cost,
    largest_stage,
    on_meta,
    pack_of,
    trace_step,
)

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


def products(config: TimeSformerConfig, groups: Groups, size: int, classes: int) -> int:
    """Multiply-adds of the published function, product by product: each as rows x columns x inner length."""
    width, hidden, patches = config.width, int(config.width * config.mlp_ratio), (size // config.patch) ** 2
    total = sum(samples for samples, _ in groups) * width * classes
    for samples, frames in groups:
        rows, divided = samples * frames * (1 + patches), config.attention == "divided"
        embedding = samples * frames * patches * 3 * config.patch**2 * width
        spatial = rows * 4 * width * width + rows * 2 * width * hidden
        if config.attention == "joint":
            spatial += 2 * samples * (1 + frames * patches) ** 2 * width
        else:
            spatial += 2 * rows * (1 + patches) * width
        temporal = rows * (4 + 1) * width * width + 2 * rows * frames * width
        if frames == 1:  # value and output projections, and temporal_fc
            temporal = rows * 3 * width * width if config.image_temporal == "attend" else 0
        total += embedding + config.depth * (spatial + temporal * divided)
    return total


# --- multiply-adds ----------------------------------------------------------------------------------------------------


@KINDS
@LAYOUT
def test_every_product_is_counted(kind: dict[str, Any], groups: Groups) -> None:
    """Attention's two products and those of the blocks that are written by hand among them."""
    config = TimeSformerConfig(**SHAPE, **kind)
    for size in (24, 40):
        assert forward_cost(on_meta(config, HEADS), groups, size).multiply_adds == products(config, groups, size, 8)


@pytest.mark.parametrize(
    "changes", [{"mlp_ratio": 2.7}, {"patch": 4}, {"layer_scale": 0.1}, {"width": 20, "attention_heads": 2}], ids=str
)
def test_multiply_adds_of_other_shapes(changes: dict[str, Any]) -> None:
    config = TimeSformerConfig(**{**SHAPE, **changes})
    assert forward_cost(on_meta(config, {}), LAYOUTS[2], 24).multiply_adds == products(config, LAYOUTS[2], 24, 0)


def test_what_a_small_cpu_runs_is_what_is_counted() -> None:
    """The counter does not know the fused attention of a CPU, but the products of the plain one."""
    config, groups = TimeSformerConfig(**SHAPE), LAYOUTS[3]
    model = build(config)
    model.backbone.set_merging(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(20, 3, 24, 24), groups)
    assert counter.get_total_flops() == 2 * forward_cost(on_meta(config, HEADS), groups, 24).multiply_adds


@pytest.mark.parametrize("groups", LAYOUTS[:2], ids=str)
def test_a_training_step_is_three_forward_passes(groups: Groups) -> None:
    config = TimeSformerConfig(**SHAPE)
    model = on_meta(config, HEADS)
    model.backbone.set_merging(False)
    frames = torch.empty(sum(s * t for s, t in groups), 3, 24, 24, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        torch.stack([scores.sum() for scores in model(frames, groups).values()]).sum().backward()
    assert counter.get_total_flops() == 2 * 3 * forward_cost(model, groups, 24).multiply_adds


def test_a_count_changes_nothing_of_the_network() -> None:
    model = on_meta(TimeSformerConfig(**SHAPE), HEADS)
    forward_cost(model, LAYOUTS[2], 24)
    assert model.training
    assert all(block.merging for block in model.backbone.stages())
    assert all(parameter.is_meta and parameter.requires_grad for parameter in model.parameters())


# --- the published figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "frames", "size", "heads", "millions", "tera"),
    [
        ("B/16", 8, 224, {"k400": 400}, 121.4, 0.59),
        ("B/16", 16, 448, {"k400": 400}, 121.4 + (28**2 - 14**2) * 768e-6, 5.11),  # plus a larger position embedding
        ("B/16", 96, 224, {"k400": 400}, 121.4, 7.14),
        ("L/16", 16, 448, COTRAINED, 431, 17.6),
    ],
    ids=["CoVeR", "CoVeR-HR", "CoVeR-L", "CoVeR"],
)
@pytest.mark.parametrize("time", ["rotary", "additive"])
def test_published_sizes(
    preset: str, frames: int, size: int, heads: dict[str, int], millions: float, tera: float, time: str
) -> None:
    """CoVeR, table 2 and section 4; CoVeR's as UniFormerV2 prints them (tables 6 to 11), three views each."""
    config = named_config(preset, frames=frames, size=size, time=time)
    model = on_meta(config, heads)
    assert count_parameters(model).total / 1e6 == pytest.approx(millions, rel=5e-3)
    assert 3 * forward_cost(model, ((1, frames),), size).multiply_adds / 1e12 == pytest.approx(tera, rel=5e-3)


@pytest.mark.parametrize(
    ("attention", "frames", "giga"),
    [
        ("divided", 8, 195.83),
        ("joint", 8, 180.16),
        ("space", 8, 140.50),
        ("divided", 1, 17.56 + 4.18),
        ("space", 1, 17.56),
    ],
)
def test_multiply_adds_of_the_attention_kinds(attention: Any, frames: int, giga: float) -> None:
    """As counted on transformers' models, whose temporal branch leaves the class token out where ours computes and
    drops it (0.35 %). An image passes three more products in each divided block than in a ViT (`space`).
    """
    model = on_meta(named_config("B/16", attention=attention, time="additive"), {"k400": 400} if frames > 1 else {})
    assert forward_cost(model, ((1, frames),), 224).multiply_adds / 1e9 == pytest.approx(giga, rel=4e-3)


def test_merged_matrices_save_what_is_known_of_them() -> None:
    model = on_meta(named_config("B/16"), {"k400": 400}).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(8, 3, 224, 224, device="meta"), ((1, 8),))
    assert counter.get_total_flops() / 2e9 == pytest.approx(190.80, abs=0.01)


@pytest.mark.parametrize(("attention", "millions"), [("space", 85.9), ("joint", 85.9), ("divided", 121.4)])
def test_parameters_of_the_attention_kinds(attention: str, millions: float) -> None:
    """CoVeR, table 1."""
    assert count_parameters(
        on_meta(named_config("B/16", attention=attention), {"k400": 400})
    ).total / 1e6 == pytest.approx(millions, rel=5e-3)


# --- parameters and tokens --------------------------------------------------------------------------------------------


@KINDS
def test_parameters_in_their_parts(kind: dict[str, Any]) -> None:
    config = TimeSformerConfig(**SHAPE, **kind)
    result, model = count_parameters(on_meta(config, HEADS)), build(config)
    assert result == count_parameters(model)
    assert result.total == result.trained == sum(p.numel() for p in model.parameters())
    assert result.heads == 8 * 32 + 8
    assert result.temporal == sum(model.get_parameter(name).numel() for name in model.temporal_parameters())
    assert count_parameters(on_meta(config, {})).total == result.body
    assert largest_stage(model) == sum(p.numel() for p in model.backbone.stages()[0].parameters())


def test_a_head_is_no_temporal_parameter_whatever_its_name() -> None:
    config = TimeSformerConfig(**SHAPE)
    plain, named = on_meta(config, {"a": 2}), on_meta(config, {"temporal": 2})
    assert count_parameters(named) == count_parameters(plain)
    assert named.temporal_parameters() == plain.temporal_parameters()


def test_tokens_and_packs() -> None:
    assert forward_cost(on_meta(TimeSformerConfig(), {}), pack_of(1, 8, 0), 224).tokens == 8 * 197
    assert pack_of(2, 8, 3) == ((2, 8), (3, 1))
    assert pack_of(2, 1, 3) == ((5, 1),)
    assert pack_of(0, 8, 3) == ((3, 1),)
    with pytest.raises(UserError, match="no clips and no images"):
        pack_of(0, 8, 0)


@pytest.mark.parametrize(
    ("name", "classes", "part"),
    [("a", 0, "a=0"), ("a", 10**7, "1 to 1,000,000"), ("keys", 2, "keys"), ("a.b", 2, "a.b")],
)
def test_heads_that_cannot_be(name: str, classes: int, part: str) -> None:
    with pytest.raises(UserError, match=r"^heads: ") as error:
        on_meta(TimeSformerConfig(**SHAPE), {name: classes})
    assert part in str(error.value)
    assert "\n" not in str(error.value)


# --- memory -----------------------------------------------------------------------------------------------------------


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
    present, inputs = Kept(model), []
    for block in model.backbone.stages():
        block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    frames = torch.randn(sum(s * t for s, t in groups), 3, size, size)
    present.note(frames)  # as floats they stay, also where bf16 has its own
    with (
        torch.autograd.graph.saved_tensors_hooks(present.note, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        _ = model(frames, groups)
        if checkpointing:  # what a checkpoint holds is hidden from the hooks
            _ = model.backbone.stages()[-1].forward(*inputs[-1])
            for arguments in inputs:
                present.note(arguments[0])
    return present.bytes


WIDER: dict[str, Any] = {"width": 96, "depth": 3, "attention_heads": 4, "patch": 8, "frames": 4}
CHECKPOINTING = pytest.mark.parametrize("checkpointing", [False, True], ids=["all", "checkpointing"])


@CHECKPOINTING
@KINDS
@LAYOUT
def test_activation_memory(kind: dict[str, Any], groups: Groups, checkpointing: bool) -> None:
    config = TimeSformerConfig(**WIDER, **kind)
    trace = trace_step(on_meta(config, HEADS), groups, 32, backward=False)
    assert trace.activation_bytes(checkpointing) == pytest.approx(kept(config, groups, 32, checkpointing), rel=0.01)


@CHECKPOINTING
@pytest.mark.parametrize("groups", LAYOUTS[1:4], ids=str)
@pytest.mark.parametrize(
    "kind", [{}, {"attention": "joint"}, {"image_temporal": "skip"}, {"layer_scale": 0.1}], ids=str
)
def test_activation_memory_under_autocast(kind: dict[str, Any], groups: Groups, checkpointing: bool) -> None:
    config = TimeSformerConfig(**WIDER, **kind)
    trace = trace_step(on_meta(config, HEADS), groups, 32, bf16=True, backward=False)
    result = kept(config, groups, 32, checkpointing, bf16=True)
    assert trace.activation_bytes(checkpointing) == pytest.approx(result, rel=0.05)


def test_dropout_masks_are_those_of_the_device() -> None:
    config = TimeSformerConfig(**WIDER, dropout=0.1)
    none, gpu, cpu = (
        trace_step(on_meta(each, HEADS), ((2, 4),), 32, byte_masks=masks, backward=False).forward
        for each, masks in ((TimeSformerConfig(**WIDER), True), (config, True), (config, False))
    )
    width, tokens = config.width, 2 * 4 * 17
    masks = tokens * width * (1 + config.depth * (1 + 1 + 1 + 4))  # embedding; time, space, MLP's output and inside
    assert cpu - gpu == 3 * masks
    assert gpu > none + masks


def test_nothing_is_traced_of_what_is_not_trained() -> None:
    """A frozen prefix keeps nothing and gets no gradients."""
    config, groups = TimeSformerConfig(**WIDER), ((2, 4),)
    whole, part, none = on_meta(config, HEADS), on_meta(config, HEADS), on_meta(config, HEADS).requires_grad_(False)
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(name.startswith(("backbone.blocks.2", "backbone.norm", "heads")))
    traces = [trace_step(model, groups, 32) for model in (whole, part, none)]
    for model, trace in zip((whole, part, none), traces, strict=True):
        assert trace.moments[-1].gradients == 4 * count_parameters(model).trained
    assert traces[0].recomputed[0] == traces[0].recomputed[2] == traces[1].recomputed[2]
    assert traces[1].recomputed[:2] == (0, 0)
    assert traces[1].forward < 0.5 * traces[0].forward
    assert traces[2].activation_bytes() == traces[2].activation_bytes(checkpointing=True)


def test_a_convolutional_network_has_a_profile() -> None:
    """Against its layers' own arithmetic: kernel values x places of the output, and every output as it is kept."""
    config = Conv3dConfig(size=8, frames=4, channels=(8, 16), motion="frames")
    model, groups = on_meta(config, {"a": 5}), ((2, 4),)
    products = 8 * (27 * 3 * 8 * 16 + 27 * 8 * 16 * 4) + 2 * 16 * 5  # 8 frames of 4 x 4, then 2 x 2 places; the head
    assert forward_cost(model, groups, 8) == (products, 8 * 4)
    assert count_parameters(model).body == (27 * 3 + 3) * 8 + (27 * 8 + 3) * 16
    trace = trace_step(model, groups, 8)
    assert trace.moments[-1].gradients == 4 * count_parameters(model).total
    assert trace.forward > 4 * 8 * (3 * 64 + 8 * 16 + 16 * 4)  # the frames and the output of each convolution


def test_stages_that_do_not_run_cost_nothing() -> None:
    """Blocks are alike, so each that is left out saves the same; what is before them goes with the first."""
    model, groups = on_meta(named_config("mini", frames=4), {"a": 3}), ((2, 4), (3, 1))
    whole, *rest = (forward_cost(model, groups, 32, stages).multiply_adds for stages in range(5))
    saved = [before - after for before, after in pairwise(rest)]
    assert len(set(saved)) == 1
    assert whole - rest[0] > saved[0] > 0
    assert rest[-1] == (2 + 3) * 128 * 3, "of all stages only the classifier is left"
    assert {forward_cost(model, groups, 32, stages).tokens for stages in range(5)} == {11 * 17}
