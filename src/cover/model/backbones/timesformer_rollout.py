"""Attention roll-out of a TimeSformer: the attention of all layers, followed back from the class token to the patches
of every frame.

Attention roll-out (Abnar & Zuidema, 2020) multiplies the layers' attention matrices, averaged over the attention heads
and mixed half and half with the identity, which stands for the residual stream. It is one for all classifiers. The heat
of a class (after Chefer, Gur & Wolf, 2021) weights every attention by the gradient of the class's logit, keeps what is
positive and adds it to the identity.

Tokens are the class token of the clip and the patches of all its frames, P = 1 + T n of them. In divided attention a
layer is two steps: in the temporal one a patch attends to the same place in all frames and the class token to nothing,
so its row is the identity; in the spatial one every frame has the class token with its own patches, and what it becomes
there is averaged over the frames: its row of the P x P matrix is the T frames' class rows side by side, each divided by
T, and the entries on itself added up.

Only the class token's row of the product is wanted, and a row times these matrices is a few small products: none of P x
P is made. Layers are computed again one at a time, from the last to the first, so the memory is that of one layer and
all layers' inputs.

Letters in shapes: T frames, N tokens of a frame (class token, then n patches), L tokens that see each other, B rows of
them, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cover.model.backbone import Heat
from cover.model.backbones.timesformer import TimeSformer
from cover.model.layers import Attended, AttentionMaps


class _OutputRow(NamedTuple):
    """Of a token-to-token matrix the row of the output: its entries on the class token, `()` or one for each frame
    `(T,)` where frames are kept apart, and on the patches, `(T, n)`.
    """

    own: Tensor
    patches: Tensor


@torch.inference_mode(False)  # inside it there are no gradients
def rollout(
    network: TimeSformer, frames: Tensor, score: Callable[[Tensor], Tensor] | None, check: Callable[[], None]
) -> Heat:
    """The heat of one clip or image over its patches, as `Backbone.heat`. `network` is in evaluation mode."""
    assert not network.training, "every layer is computed twice, with the same result"
    frames = frames.clone() if frames.is_inference() else frames
    passed, result = _inputs_of_blocks(network, frames, check)
    slope = None if score is None else _slope_of_score(network, result, score)
    row = _first_row(network, frames)
    for number in reversed(range(len(passed))):
        check()
        maps, slopes, slope = _computed_again(network, number, passed[number], slope)
        row = _through_block(row, network, number, maps, slopes)
    sides = (side // network.config.patch for side in frames.shape[2:])
    method = "attention roll-out" if score is None else "attention x gradient"
    return Heat.of(row.patches.unflatten(1, tuple(sides)), method, float(row.own.sum()))


# --- the layers and their attention -----------------------------------------------------------------------------------


def _inputs_of_blocks(
    network: TimeSformer, frames: Tensor, check: Callable[[], None]
) -> tuple[list[tuple[object, ...]], Tensor]:
    """The arguments of every block, and the output of the last one."""
    calls: list[tuple[tuple[object, ...], Tensor]] = []

    def note(block: nn.Module, arguments: tuple[object, ...], result: Tensor) -> None:
        calls.append((arguments, result))

    hooks = [block.register_forward_hook(note) for block in network.blocks]
    hooks += [block.register_forward_pre_hook(lambda block, arguments: check()) for block in network.blocks]
    try:
        with torch.no_grad():
            network(frames, ((1, len(frames)),))
    finally:
        for hook in hooks:
            hook.remove()
    return [arguments for arguments, _ in calls], calls[-1][1]


def _slope_of_score(network: TimeSformer, result: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of a score with respect to the output of the last block."""
    result = result.detach().requires_grad_()
    with torch.enable_grad():
        value = score(network.pooled(result, ((1, len(result)),)))
    return torch.autograd.grad(value, result)[0]


def _computed_again(
    network: TimeSformer, number: int, arguments: tuple[object, ...], slope: Tensor | None
) -> tuple[dict[str, AttentionMaps], dict[str, Tensor], Tensor | None]:
    """The attentions of a block, the gradients of their outcomes, and that of the input of the block; no gradients
    without `slope`.
    """
    block, (entered, *rest) = network.blocks[number], arguments
    assert isinstance(entered, Tensor)
    entered = entered.detach().requires_grad_(slope is not None)
    with network.attention_maps() as maps, torch.set_grad_enabled(slope is not None):
        result = block(entered, *rest)
    if slope is None:
        return maps, {}, None
    outs = {name: attention[0].out for name, attention in maps.items() if attention}
    slope, *slopes = torch.autograd.grad(result, [entered, *outs.values()], slope)
    return maps, dict(zip(outs, slopes, strict=True)), slope


# --- a row times the matrices -----------------------------------------------------------------------------------------


def _first_row(network: TimeSformer, frames: Tensor) -> _OutputRow:
    """The class token is classified, or the mean of the class tokens where frames are kept apart."""
    count, patches = len(frames), frames.shape[2] * frames.shape[3] // network.config.patch**2
    own = frames.new_full((count,), 1 / count) if network.config.attention == "space" else frames.new_ones(())
    return _OutputRow(own, frames.new_zeros(count, patches))


def _through_block(
    row: _OutputRow, network: TimeSformer, number: int, maps: dict[str, AttentionMaps], slopes: dict[str, Tensor]
) -> _OutputRow:
    """The row times the matrix of a block: the steps in the reverse of the order in which they were computed."""
    heads, kind = network.config.attention_heads, network.config.attention
    spatial, temporal = f"blocks.{number}.attn", f"blocks.{number}.temporal_attn"
    step = _through_clip if kind == "joint" else _through_frames
    row = _mixed(row, step(row, maps[spatial][0], slopes.get(spatial), heads), spatial in slopes)
    if maps.get(temporal):  # a single frame attends to itself alone, which is the identity
        row = _mixed(row, _through_time(row, maps[temporal][0], slopes.get(temporal), heads), temporal in slopes)
    return row


def _mixed(row: _OutputRow, moved: _OutputRow, weighted: bool) -> _OutputRow:
    """The residual stream beside the attention: rows of attention weights add up to 1, and so does half of both;
    gradients are added.
    """
    factor = 1.0 if weighted else 0.5
    return _OutputRow(factor * (row.own + moved.own), factor * (row.patches + moved.patches))


def _through_frames(row: _OutputRow, attended: Attended, slope: Tensor | None, heads: int) -> _OutputRow:
    """Spatial attention. Where frames share a class token, each has the T-th part of its weight; of a gradient it has
    its part already.
    """
    shared = not row.own.ndim
    own = row.own.expand(len(row.patches)) / (len(row.patches) if shared and slope is None else 1)
    moved = _times_attention(torch.cat([own[:, None], row.patches], 1)[:, None], attended, slope, heads)[:, 0]
    return _OutputRow(moved[:, 0].sum() if shared else moved[:, 0], moved[:, 1:])


def _through_time(row: _OutputRow, attended: Attended, slope: Tensor | None, heads: int) -> _OutputRow:
    """Temporal attention. The class token takes no part in it: its row is the identity, which no gradient weights."""
    absent = row.patches.new_zeros(len(row.patches), 1)
    moved = _times_attention(torch.cat([absent, row.patches], 1).T[None], attended, slope, heads)[0]
    return _OutputRow(row.own if slope is None else torch.zeros_like(row.own), moved[1:].T)


def _through_clip(row: _OutputRow, attended: Attended, slope: Tensor | None, heads: int) -> _OutputRow:
    """Joint attention of all tokens of the clip."""
    moved = _times_attention(torch.cat([row.own[None], row.patches.flatten()])[None, None], attended, slope, heads)[
        0, 0
    ]
    return _OutputRow(moved[0], moved[1:].view_as(row.patches))


def _times_attention(row_BNL: Tensor, attended: Attended, slope: Tensor | None, heads: int) -> Tensor:
    """Rows times the mean over the heads of their weights, or of the positive part of weights times gradient; one head
    at a time.

    What came out was weights times values: so the gradient of a weight is that of the outcome times the value.
    """
    total = torch.zeros_like(row_BNL)
    for head in range(heads):
        q, k, v = (_of_head(part, head, heads) for part in attended[:3])
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        if slope is not None:
            weights = (weights * (_of_head(slope, head, heads) @ v.mT)).clamp_min(0)
        total += (row_BNL[:, :, None] @ weights.to(total.dtype))[:, :, 0]
    return total / heads


def _of_head(x: Tensor, head: int, heads: int) -> Tensor:
    """`(B, N H, L, d)` to the `(B, N, L, d)` of one head."""
    return x.detach().unflatten(1, (-1, heads))[:, :, head]
