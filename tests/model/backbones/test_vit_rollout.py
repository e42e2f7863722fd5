"""Attention roll-out of plain vision transformers, held against the attention that transformers returns, and against
matrices of all tokens of a clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from cover.errors import UserError
from cover.model.backbone import Heat
from cover.model.backbones.vit import Vit, vit_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import load_release
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.importing import import_weights

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
TINY: dict[str, Any] = {"width": 32, "depth": 2, "attention_heads": 2, "hidden": 64, "frames": 4, "size": 32}


def noise(count: int, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def strong(module: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def product(attentions: tuple[Tensor, ...]) -> Tensor:
    """The product of the matrices `(1, H, L, L)` of all layers, by the definition, `(L, L)`."""
    whole = torch.eye(attentions[0].shape[-1])
    for attention in attentions:
        whole = (attention[0].mean(0) + torch.eye(len(whole))) / 2 @ whole
    return whole


def check(heat: Heat, patches: Tensor) -> None:
    torch.testing.assert_close(heat.heat, (patches / patches.sum()).view_as(heat.heat), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_an_image_of_transformers_vit(tmp_path: Path) -> None:
    theirs = strong(tf.ViTModel(tf.ViTConfig(**SHAPE, attn_implementation="eager"), add_pooling_layer=False))
    theirs.save_pretrained(tmp_path / "theirs")
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours", ImportOptions(backbone="vit"))
    attentions = theirs(noise(1), output_attentions=True).attentions
    check(load_release(tmp_path / "ours").heat(noise(1)), product(attentions)[0, 1:])


@torch.no_grad()
def test_a_clip_of_transformers_videomae(tmp_path: Path) -> None:
    config = tf.VideoMAEConfig(**SHAPE, num_frames=4, tubelet_size=2, attn_implementation="eager")
    theirs = strong(tf.VideoMAEForVideoClassification(config))
    theirs.save_pretrained(tmp_path / "theirs")
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    attentions = theirs(noise(4)[None], output_attentions=True).attentions
    heat = load_release(tmp_path / "ours").heat(noise(4))
    assert heat.heat.shape == (4, 4, 4)
    check(heat, product(attentions).mean(0).view(2, 1, 4, 4).expand(-1, 2, -1, -1))


@torch.no_grad()
@pytest.mark.parametrize("time_first", [True, False])
def test_divided_attention_by_matrices_of_all_tokens(time_first: bool) -> None:
    """Each step of a block as one matrix over all tokens of the clip, found by what it does to one-hot values."""
    model = strong(CoVeR(vit_config("vit_b16", **TINY, attention="divided", time="rotary", time_first=time_first)))
    backbone, frames, heads = model.backbone, noise(4), 2
    assert isinstance(backbone, Vit)
    inputs: dict[str, Tensor] = {}
    hooks = [
        getattr(block, name).register_forward_hook(lambda _m, _a, out, key=(number, name): inputs.update({key: out}))
        for number, block in enumerate(backbone.stages())
        for name in ("norm1", "temporal_norm")
    ]
    backbone(frames, ((1, 4),))
    for hook in hooks:
        hook.remove()
    tokens = len(inputs[0, "norm1"])
    length = tokens // 4
    row = torch.zeros(tokens)
    row[::length] = 0.25  # the class tokens of the four frames
    for number in (1, 0):
        block = backbone.stages()[number]
        matrices = [
            matrix_of(inputs[number, "norm1"], block.attn.qkv, heads, lambda i, j: i // length == j // length),
            matrix_of(
                inputs[number, "temporal_norm"],
                block.temporal_attn.qkv,
                heads,
                lambda i, j: i % length == j % length,
                [i // length for i in range(tokens)],
            ),
        ]
        for matrix in matrices if time_first else reversed(matrices):
            row = (row + row @ matrix) / 2
    heat = model.heat(frames)
    check(heat, row.view(4, length)[:, 1:])
    assert heat.own == pytest.approx(float(row[::length].sum()), rel=1e-4)


def matrix_of(x: Tensor, qkv: torch.nn.Linear, heads: int, sees: Any, frames: list[int] | None = None) -> Tensor:
    """The attention of all tokens, `(N, N)`, entry by entry. `frames`: the frame of each token, for rotary angles."""
    count, width = x.shape
    q, k, _ = qkv(x).view(count, 3, heads, width // heads).unbind(1)
    if frames:  # pairs of channels as complex numbers
        half = width // heads // 2
        rates = 100.0 ** (-torch.arange(half) / half)
        turn = torch.polar(torch.ones(count, half), torch.tensor(frames)[:, None] * rates)[:, None]
        q, k = (torch.complex(part[..., :half], part[..., half:]) * turn for part in (q, k))
    scores = torch.stack([(q[:, head] @ k[:, head].conj().T).real for head in range(heads)]) / (width // heads) ** 0.5
    mask = torch.tensor([[bool(sees(i, j)) for j in range(count)] for i in range(count)])
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).mean(0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("dinov2_b14", {"size": 28, "pool": "class_mean"}),
        ("siglip2_b16", {}),
        ("vjepa2_l16", {"pool": "attentive"}),
        ("vit_b16", {"attention": "late", "late_pool": "class"}),
        ("vit_b16", {"added_blocks": 1}),
        ("vivit1_b16x2", {"position_grid": ()}),
    ],
)
def test_parts_sum_to_one_and_follow_a_frame(preset: str, changes: dict[str, Any]) -> None:
    """Every other way of pooling. What passes to the class token of a late encoder is in no frame."""
    model = strong(CoVeR(vit_config(preset, **{**TINY, **changes}), (Head("moves", ("up", "down")),)))
    heat = model.heat(noise(4, model.config.size))
    assert heat.heat.shape[0] == 4
    assert heat.heat.sum() == pytest.approx(1, abs=1e-5)
    assert 0 <= heat.own < 1
    assert heat.heat.std() > 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attention": "dot_product", "class_token": False, "pool": "mean"}, "half of its heads"),
        ({"learned_tokens": 3, "learner_after": 1}, "learned tokens"),
        ({"frame_pool": "attentive"}, "learned attention"),
    ],
)
def test_networks_without_a_rollout(changes: dict[str, Any], why: str) -> None:
    model = CoVeR(vit_config("vit_b16", **TINY, **changes), (Head("moves", ("up", "down")),)).eval()
    with pytest.raises(UserError, match=rf"rollout: .*{why}.*--method gradient"):
        model.heat(noise(4))
    assert model.heat(noise(4), "moves", 1).method == "input x gradient"
