"""Additions of low rank in every family that has attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cover.errors import UserError
from cover.model.backbones import named_config
from cover.model.backbones.efficientnet_lite import EfficientNetLiteConfig
from cover.model.cover import BACKBONE, CoVeR
from cover.model.heads import Head
from cover.model.lora import Lora, LoraLinear, add_lora, merged

TINY: dict[str, Any] = {"width": 32, "depth": 2, "attention_heads": 2, "hidden": 64, "size": 32, "frames": 4}
CONFIGS: list[tuple[str, dict[str, Any], int]] = [  # with the number of adapted layers
    ("mini", {"frames": 4}, 4 * 6),
    ("vit_b16", {**TINY, "attention": "divided", "time": "rotary"}, 2 * 6),
    ("eva02_b14", {**TINY, "size": 28}, 2 * 4),  # biases of queries and values alone, SwiGLU
    ("vit_b16", {**TINY, "attention": "late"}, (2 + 4) * 4),
    ("vjepa2_l16", {**TINY, "pool": "attentive"}, (2 + 3) * 4 + 2),
    ("video_swin/mini", {"frames": 4, "size": 56}, 4 * 4),
    ("vidtr/mini", {}, 4 * 4),
    ("vidtr/C-mini", {}, 4 * 4),
    ("lite0", {"size": 32, "frames": 4, "depth": 1}, 6),
]


@pytest.mark.parametrize(("name", "changes", "layers"), CONFIGS)
def test_additions_begin_as_nothing_and_are_merged(name: str, changes: dict[str, Any], layers: int) -> None:
    torch.manual_seed(0)
    model = CoVeR(named_config(name, **changes), (Head("moves", ("up", "down")),)).eval()
    count, side = model.config.frames, model.config.size
    frames, groups = torch.randn(2 * count + 1, 3, side, side), ((2, count), (1, 1))
    with torch.no_grad():
        for parameter in model.parameters():  # zero matrices would hide what comes before them
            parameter.add_(0.1 * torch.randn(parameter.shape))
        before = model(frames, groups)["moves"]
    names = add_lora(model.backbone, Lora(rank=3, alpha=6, targets="both"))
    assert len(names) == 2 * layers
    torch.testing.assert_close(model(frames, groups)["moves"], before, rtol=1e-6, atol=1e-6)

    for added in names:
        torch.nn.init.normal_(dict(model.backbone.named_parameters())[added], std=0.1)
    output = model(frames, groups)["moves"]
    assert (output - before).abs().max() > 0.01
    plain = CoVeR(model.config, model.head_list).eval()
    plain.load_state_dict(merged(model, model.state_dict()))
    torch.testing.assert_close(plain(frames, groups)["moves"], output, rtol=1e-5, atol=1e-5)

    # the gradients follow from that of the merged matrix by the chain rule, with the factor alpha / rank
    output.sum().backward()
    plain(frames, groups)["moves"].sum().backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for place, module in model.named_modules():
        if isinstance(module, LoraLinear):
            whole = gradients[f"{place}.weight"]
            assert whole is not None
            a, b = module.lora_a.detach(), module.lora_b.detach()
            for factor, wanted in ((module.lora_a, 2 * b.T @ whole), (module.lora_b, 2 * whole @ a.T)):
                assert factor.grad is not None
                torch.testing.assert_close(factor.grad, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_which_layers_are_adapted() -> None:
    model = CoVeR(named_config("mini", frames=4))
    first = [f"blocks.0.{part}.weight" for part in ("attn.qkv", "attn.proj")]
    names = add_lora(model.backbone, Lora(targets="attention"), without=first)
    assert {name.rpartition(".")[0] for name in names} == {
        f"blocks.{block}.{part}.{linear}"
        for block in range(4)
        for part in ("temporal_attn", "attn")
        for linear in ("qkv", "proj")
    } - {name.removesuffix(".weight") for name in first}
    assert names[0].removesuffix("a") == names[1].removesuffix("b")
    assert {f"{BACKBONE}{name}" for name in names} <= {name for name, _ in model.named_parameters()}


def test_networks_without_attention() -> None:
    for config in (EfficientNetLiteConfig(size=32), named_config("movinet_a0", size=32), named_config("conv3d")):
        with pytest.raises(UserError, match=rf"a {config.family} network has no projections"):
            add_lora(CoVeR(config).backbone, Lora())
