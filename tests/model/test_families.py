"""The table of docs/backbones.md about what works with each family, held against the networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.lora import Lora, add_lora
from cover.model.profile import count_parameters, on_meta, trace_step

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
TINY: dict[str, Any] = {"width": 32, "depth": 2, "attention_heads": 2, "hidden": 64, "size": 32, "frames": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # the name in the table -> a small network
    "timesformer": ("mini", {"frames": 4}),
    "vit": ("vit_b16", {**TINY, "attention": "divided", "time": "rotary"}),
    "video_swin": ("video_swin/mini", {"frames": 4, "size": 56}),
    "vidtr": ("vidtr/mini", {"frames": 4}),
    "vidtr, compact": ("vidtr/C-mini", {"frames": 4}),
    "movinet": ("movinet_a0", {"size": 64, "frames": 4}),
    "efficientnet_lite": ("lite0", {"size": 32, "frames": 4, "depth": 1}),
    "conv3d": ("conv3d", {"frames": 4}),
}


def build(family: str) -> tuple[CoVeR, Tensor]:
    """A network with every parameter random, and a clip and an image."""
    torch.manual_seed(0)
    name, changes = FAMILIES[family]
    model = CoVeR(named_config(name, **changes), (Head("moves", ("up", "down")),)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    side = model.config.size
    return model, torch.randn(5, 3, side, side)


def table() -> dict[str, dict[str, str]]:
    """Family -> column -> its cell."""
    section = PAGE.read_text(encoding="utf-8").split("## What works with each\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def allowed(work: Any) -> bool:
    """Whether something works; else it is refused in one line."""
    try:
        work()
    except UserError as error:
        if "\n" in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_is_right(family: str) -> None:
    row, (model, frames) = table()[family], build(family)
    method = "attention x gradient" if family == "timesformer" else "input x gradient"  # as docs/explaining.md says
    assert model.heat(frames[:4], "moves", 1).method == method
    found = {
        "roll-out": allowed(lambda: model.heat(frames[:4])),
        "cached prefix": allowed(lambda: model.forward_prefix(frames[:4], ((1, 4),), 1)),
        "LoRA": allowed(lambda: add_lora(model.backbone, Lora())),
    }
    assert {column: row[column].startswith("yes") for column in found} == found


@torch.no_grad()
@pytest.mark.parametrize(
    "family",
    [
        "vit",
        "vidtr",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("video_swin", "vidtr, compact", "movinet", "conv3d")),
    ],
)
def test_compiled_stages_compute_the_same(family: str) -> None:
    """Also with additions of low rank, where there are any."""
    torch._dynamo.reset()
    model, frames = build(family)
    if model.backbone.projections():
        for name in add_lora(model.backbone, Lora(rank=2)):
            torch.nn.init.normal_(dict(model.backbone.named_parameters())[name], std=0.1)
    wanted = model(frames, ((1, 4), (1, 1)))["moves"]
    model.compile_stages(backend="eager")
    torch.testing.assert_close(model(frames, ((1, 4), (1, 1)))["moves"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["timesformer", "vit"])
def test_a_plan_of_additions(family: str) -> None:
    """Of the same network, additions leave fewer gradients, and a step needs less memory."""
    name, changes = FAMILIES[family]
    config = named_config(name, **changes)
    whole, adapted = on_meta(config, {"moves": 2}), on_meta(config, {"moves": 2})
    adapted.backbone.requires_grad_(False)
    names = add_lora(adapted.backbone, Lora(rank=2))
    sizes = {name: parameter.numel() for name, parameter in adapted.named_parameters()}
    trained = sum(sizes[f"backbone.{name}"] for name in names) + sum(p.numel() for p in adapted.heads.parameters())
    assert count_parameters(adapted).trained == trained < count_parameters(whole).trained / 10
    groups = ((2, 4), (2, 1))
    steps = [trace_step(model, groups, config.size) for model in (whole, adapted)]
    assert [max(moment.gradients for moment in step.moments) for step in steps] == [
        4 * count_parameters(whole).trained,
        4 * trained,
    ]
