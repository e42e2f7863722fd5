"""Attention roll-out of a plain vision transformer: the attention of all layers, from the feature back to the patches.

Attention roll-out (Abnar & Zuidema, 2020) multiplies the attention matrices of all layers. Each is the mean over the
heads, mixed half and half with the identity, which stands for the residual stream. Only the row of the feature is
needed: it starts as what the pooling reads of the tokens, and each layer multiplies it by its matrix, the last first.
The layers are `blocks`, before them those of a late encoder or of an attentive probe.

Letters in shapes: B sequences of the sample, T slots, L tokens of a sequence, H heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cover.errors import UserError
from cover.model.backbone import Heat
from cover.model.backbones.vit import Vit
from cover.model.backbones.vit_blocks import CrossAttention, Layout, SelfAttention, ViTBlock
from cover.model.backbones.vit_positions import turned
from cover.model.layers import Attention, rotate, rotation_of

Calls = dict[nn.Module, tuple[Any, ...]]  # module -> its inputs; of the norm of a temporal branch, its output


@torch.inference_mode(False)
@torch.no_grad()
def rollout(network: Vit, frames: Tensor, check: Callable[[], None]) -> Heat:
    """The roll-out of one clip or image over its patches, as in `Backbone.heat`. Raises `UserError` if it has none."""
    _check_defined(network)
    calls = _recorded(network, frames, check)
    blocks = network.stages()
    layout = cast(Layout, calls[blocks[0].attn][1])
    (shape,) = layout.sequences
    row_BL = _slot_weights(network, calls, shape[0]) * _of_pooling(network, calls, shape)
    for block in reversed(blocks):
        check()
        row_BL = _through(block, row_BL, calls)
    prefix, slots = network.config.prefix, layout.slots[0][1]
    patches = row_BL[:, prefix:].reshape(slots, *layout.place)
    each = max(1, len(frames) // slots)  # the frames of a slot have equal parts of its heat
    heat = patches.repeat_interleave(each, 0) / each
    return Heat.of(heat, "attention roll-out", float(row_BL[:, :prefix].sum()))


def _check_defined(network: Vit) -> None:
    config = network.config
    problems = {
        "half of its heads attend over time and half over space": config.attention == "dot_product",
        "learned tokens have no places": config.learned_tokens > 0,
        "its frames are pooled by a learned attention": getattr(network, "frame_pool", None) is not None
        and config.frame_pool == "attentive",
    }
    for problem, holds in problems.items():
        if holds:
            raise UserError(f"rollout: is not defined for this network: {problem}; use --method gradient")


def _recorded(network: Vit, frames: Tensor, check: Callable[[], None]) -> Calls:
    """The inputs of every attention in a forward pass. `check` is called before each of them."""
    calls: Calls = {}

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        check()
        calls[module] = arguments

    def after(module: nn.Module, _arguments: Any, output: Tensor) -> None:
        calls[module] = (output,)

    hooks = []
    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            hooks.append(module.register_forward_pre_hook(before))
        if isinstance(module, ViTBlock) and module.divided:
            hooks.append(module.temporal_norm.register_forward_hook(after))
    static, network.embed.static = network.embed.static, None  # every patch has its own token
    try:
        network(frames, ((1, len(frames)),))
    finally:
        network.embed.static = static
        for hook in hooks:
            hook.remove()
    return calls


# --- the first row ----------------------------------------------------------------------------------------------------


def _slot_weights(network: Vit, calls: Calls, sequences: int) -> Tensor:
    """The part of each sequence in the feature of the sample, `(B, 1)`: of each slot, unless attention is joint."""
    device = network.norm.weight.device
    if network.config.attention != "late":
        return torch.full((sequences, 1), 1 / sequences, device=device)
    blocks, token = cast("list[ViTBlock]", list(network.late.blocks)), network.late.token
    row = torch.full((1, sequences), 1 / sequences, device=device)
    if token:
        row = torch.cat([torch.ones(1, 1, device=device), torch.zeros_like(row)], 1)
    for block in reversed(blocks):
        row = _through(block, row, calls)
    return row[:, int(token) :].T


def _of_pooling(network: Vit, calls: Calls, shape: tuple[int, int]) -> Tensor:
    """What the feature of each sequence reads of its tokens, `(B, L)`, each row with the sum 1."""
    config, device = network.config, network.norm.weight.device
    first, mean = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    mean[:, config.prefix :] = 1 / (shape[1] - config.prefix)
    first[:, 0] = 1
    if config.pool in ("probe", "attentive"):
        row = _of_query(cast(CrossAttention, network.pool.attn), calls)
        for block in reversed(cast("list[ViTBlock]", list(getattr(network.pool, "blocks", ())))):
            row = _through(block, row, calls)
        return row
    if config.pool == "class_distillation":
        first[:, :2] = 0.5
    if config.pool == "class_mean":
        return (first + mean) / 2
    return mean if config.pool in ("mean", "mean_norm") else first


def _of_query(attention: CrossAttention, calls: Calls) -> Tensor:
    """The attention of a learned query, averaged over the heads, `(B, L)`."""
    query_1D, x_BLD = calls[attention]
    q = attention.q(query_1D).unflatten(-1, (attention.heads, -1))[0]  # (H, d)
    k = attention.kv(x_BLD).unflatten(-1, (2, attention.heads, -1))[:, :, 0]  # (B, L, H, d)
    scores = torch.einsum("hd,blhd->bhl", q, k) * q.shape[-1] ** -0.5
    return scores.softmax(-1).mean(1)


# --- through a block --------------------------------------------------------------------------------------------------


def _through(block: ViTBlock, row_BL: Tensor, calls: Calls) -> Tensor:
    """A row times the matrices of a block, the last first."""
    steps = [lambda row: _within(block.attn, row, calls)]
    if block.divided:
        steps.append(lambda row: _over_time(block, row, calls))
    for step in steps if block.settings.time_first else reversed(steps):
        row_BL = (row_BL + step(row_BL)) / 2
    return row_BL


def _within(attention: SelfAttention, row_BL: Tensor, calls: Calls) -> Tensor:
    """A row times the attention within each sequence."""
    x_ND, layout = calls[attention]
    (qkv_BL3D,) = layout.split(attention.projected(x_ND))
    q, k, _ = qkv_BL3D.unflatten(-1, (3, attention.heads, -1)).unbind(2)  # (B, L, H, d)
    q, k = (turned(x, layout.rotations[0], attention.rotary) for x in (q, k))
    total = torch.zeros_like(row_BL)
    for head in range(attention.heads):  # one at a time, to limit memory
        total += (row_BL[:, None] @ _weights(q[:, :, head], k[:, :, head]))[:, 0]
    return total / attention.heads


def _over_time(block: ViTBlock, row_TL: Tensor, calls: Calls) -> Tensor:
    """A row times the attention of each token to the same token of the other slots."""
    attention: Attention = block.temporal_attn
    (x_ND,) = calls[block.temporal_norm]
    q, k, _ = attention.qkv(x_ND.unflatten(0, row_TL.shape)).unflatten(-1, (3, attention.heads, -1)).unbind(2)
    if block.settings.rotary_time:
        rotation = rotation_of(row_TL.shape[0], q.shape[-1], q.device)
        q, k = (rotate(x, rotation) for x in (q, k))
    weights = _weights(q.permute(1, 2, 0, 3), k.permute(1, 2, 0, 3)).mean(1)  # (L, T, T)
    return torch.einsum("tl,lts->sl", row_TL, weights)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """The attention weights `(..., queries, keys)` of queries and keys `(..., L, d)`."""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
