"""Attention roll-out of a TimeSformer: the attention of all layers from the class token back to the patches.

Attention roll-out (Abnar & Zuidema, 2020) multiplies the attention matrices of all layers. Each matrix is the mean over
the attention heads, mixed half and half with the identity, which stands for the residual stream. The result does not
depend on a classifier. The heat of a class (after Chefer, Gur & Wolf, 2021) multiplies every attention weight by the
gradient of the logit of the class, drops negative products, and adds the rest to the identity.

The tokens are the class token of the clip and the patches of all its frames, P = 1 + T n tokens. In divided attention,
a layer has two steps. In the temporal step, a patch attends to the same place in all frames. The class token attends to
nothing, so its row is the identity. In the spatial step, the class token attends to the patches of each frame
separately, and its T results are averaged. So its row of the P x P matrix consists of the class rows of the T frames
side by side, each divided by T, and its entry on itself is their sum.

The heat needs only the row of the class token. A row times these matrices is a few small products, so no P x P matrix
exists in memory. Layers are computed a second time, one by one from the last to the first. So memory holds the inputs
of all layers, but the attention of only one.

Letters in shapes: T frames, N tokens of a frame (class token, then n patches), L tokens that attend to each other,
B rows of such tokens, H heads, d channels of a head.
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
    """The row of the output token in a token-to-token matrix.

    `own`: its entry on the class token, `()`, or with `space` attention one entry for each frame, `(T,)`. `patches`:
    its entries on the patches, `(T, n)`.
    """

    own: Tensor
    patches: Tensor


@torch.inference_mode(False)  # inference mode computes no gradients, whatever `enable_grad` says
def rollout(
    network: TimeSformer, frames: Tensor, score: Callable[[Tensor], Tensor] | None, check: Callable[[], None]
) -> Heat:
    """The heat of one clip or image over its patches, as in `Backbone.heat`.

    `network` must be in evaluation mode. `frames`: normalised float `(T, 3, H, W)`.
    """
    assert not network.training, "every layer is computed twice, and both results must be equal"
    frames = frames.clone() if frames.is_inference() else frames  # autograd refuses inference tensors
    inputs, output = _inputs_of_blocks(network, frames, check)
    gradient = None if score is None else _gradient_of_score(network, output, score)
    # From the last block to the first, the row is multiplied by the matrix of each block.
    row = _first_row(network, frames)
    for number in reversed(range(len(inputs))):
        check()
        maps, attention_gradients, gradient = _recompute_block(network, number, inputs[number], gradient)
        row = _through_block(row, network, number, maps, attention_gradients)
    sides = (side // network.config.patch for side in frames.shape[2:])
    method = "attention roll-out" if score is None else "attention x gradient"
    return Heat.of(row.patches.unflatten(1, tuple(sides)), method, float(row.own.sum()))  # (T, h, w)


# --- the layers and their attention -----------------------------------------------------------------------------------


def _inputs_of_blocks(
    network: TimeSformer, frames: Tensor, check: Callable[[], None]
) -> tuple[list[tuple[object, ...]], Tensor]:
    """The arguments of every block, and the output of the last block, `(F, N, D)`."""
    calls: list[tuple[tuple[object, ...], Tensor]] = []

    def record(block: nn.Module, arguments: tuple[object, ...], output: Tensor) -> None:
        calls.append((arguments, output))

    # `check` runs before every block, so that a caller can interrupt a long pass.
    hooks = [block.register_forward_hook(record) for block in network.blocks]
    hooks += [block.register_forward_pre_hook(lambda block, arguments: check()) for block in network.blocks]
    try:
        with torch.no_grad():
            network(frames, ((1, len(frames)),))
    finally:
        for hook in hooks:
            hook.remove()
    return [arguments for arguments, _ in calls], calls[-1][1]


def _gradient_of_score(network: TimeSformer, output: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of a score with respect to the output of the last block, `(F, N, D)`."""
    output = output.detach().requires_grad_()
    with torch.enable_grad():
        value = score(network.pooled(output, ((1, len(output)),)))
    return torch.autograd.grad(value, output)[0]


def _recompute_block(
    network: TimeSformer, number: int, arguments: tuple[object, ...], gradient: Tensor | None
) -> tuple[dict[str, AttentionMaps], dict[str, Tensor], Tensor | None]:
    """Compute a block again, with its attention and its backward pass.

    `gradient`: of the score with respect to the output of the block; None for a roll-out without gradients. Returns the
    attention of each module, the gradient of the output of each attention, and the gradient of the input of the block.
    """
    block, (tokens, *rest) = network.blocks[number], arguments
    assert isinstance(tokens, Tensor)
    tokens = tokens.detach().requires_grad_(gradient is not None)
    with network.attention_maps() as maps, torch.set_grad_enabled(gradient is not None):
        output = block(tokens, *rest)
    if gradient is None:
        return maps, {}, None
    # The gradient of each attention output comes from the same backward pass as that of the block's input.
    outs = {name: attention[0].out for name, attention in maps.items() if attention}  # one sample, so one group
    gradient, *of_outs = torch.autograd.grad(output, [tokens, *outs.values()], gradient)
    return maps, dict(zip(outs, of_outs, strict=True)), gradient


# --- a row times the matrices -----------------------------------------------------------------------------------------


def _first_row(network: TimeSformer, frames: Tensor) -> _OutputRow:
    """The row of the classified token: the class token, or with `space` attention the mean of the class tokens."""
    count, patches = len(frames), frames.shape[2] * frames.shape[3] // network.config.patch**2
    own = frames.new_full((count,), 1 / count) if network.config.attention == "space" else frames.new_ones(())
    return _OutputRow(own, frames.new_zeros(count, patches))


def _through_block(
    row: _OutputRow, network: TimeSformer, number: int, maps: dict[str, AttentionMaps], gradients: dict[str, Tensor]
) -> _OutputRow:
    """The row times the matrix of a block. The steps run in the reverse order of the forward pass."""
    heads, kind = network.config.attention_heads, network.config.attention
    spatial, temporal = f"blocks.{number}.attn", f"blocks.{number}.temporal_attn"
    step = _through_clip if kind == "joint" else _through_frames
    row = _add_residual(row, step(row, maps[spatial][0], gradients.get(spatial), heads), spatial in gradients)
    if maps.get(temporal):  # the temporal attention of a single frame is the identity, and is not computed
        moved = _through_time(row, maps[temporal][0], gradients.get(temporal), heads)
        row = _add_residual(row, moved, temporal in gradients)
    return row


def _add_residual(row: _OutputRow, moved: _OutputRow, weighted: bool) -> _OutputRow:
    """The row after the attention and the residual stream.

    A row of attention weights sums to 1, and so does the mean of both. `weighted`: by gradients, which are added as
    they are.
    """
    factor = 1.0 if weighted else 0.5
    return _OutputRow(factor * (row.own + moved.own), factor * (row.patches + moved.patches))


def _through_frames(row: _OutputRow, attended: Attended, gradient: Tensor | None, heads: int) -> _OutputRow:
    """The row times spatial attention.

    If all frames share one class token, each frame gets 1 / T of its weight. A gradient has been divided already, in
    the backward pass of `share_class_token`.
    """
    shared = not row.own.ndim
    own = row.own.expand(len(row.patches)) / (len(row.patches) if shared and gradient is None else 1)  # (T,)
    row_TL = torch.cat([own[:, None], row.patches], 1)
    moved_TL = _times_attention(row_TL[:, None], attended, gradient, heads)[:, 0]
    return _OutputRow(moved_TL[:, 0].sum() if shared else moved_TL[:, 0], moved_TL[:, 1:])


def _through_time(row: _OutputRow, attended: Attended, gradient: Tensor | None, heads: int) -> _OutputRow:
    """The row times temporal attention.

    The class token takes no part in it. So its row is the identity without gradients, and zero with them.
    """
    # The network computes temporal attention for the class token too and discards it, so its entries are zero here.
    absent = row.patches.new_zeros(len(row.patches), 1)
    row_NT = torch.cat([absent, row.patches], 1).T
    moved_NT = _times_attention(row_NT[None], attended, gradient, heads)[0]
    return _OutputRow(row.own if gradient is None else torch.zeros_like(row.own), moved_NT[1:].T)


def _through_clip(row: _OutputRow, attended: Attended, gradient: Tensor | None, heads: int) -> _OutputRow:
    """The row times the joint attention of all tokens of the clip."""
    row_L = torch.cat([row.own[None], row.patches.flatten()])
    moved_L = _times_attention(row_L[None, None], attended, gradient, heads)[0, 0]
    return _OutputRow(moved_L[0], moved_L[1:].view_as(row.patches))


def _times_attention(row_BNL: Tensor, attended: Attended, gradient: Tensor | None, heads: int) -> Tensor:
    """Rows times the attention weights, averaged over the heads, `(B, N, L)` to the same shape.

    `gradient`: of the output of the attention, `(B, N H, L, d)`. With it, each weight is replaced by the positive part
    of weight x gradient. The output is weights @ values, so the gradient of the weights is gradient @ values^T.
    """
    total = torch.zeros_like(row_BNL)
    for head in range(heads):  # one head at a time, to limit memory
        q, k, v = (_of_head(part, head, heads) for part in attended[:3])  # (B, N, L, d)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        if gradient is not None:
            weights = (weights * (_of_head(gradient, head, heads) @ v.mT)).clamp_min(0)
        total += (row_BNL[:, :, None] @ weights.to(total.dtype))[:, :, 0]
    return total / heads


def _of_head(x: Tensor, head: int, heads: int) -> Tensor:
    """The part `(B, N, L, d)` of one head in `(B, N H, L, d)`."""
    return x.detach().unflatten(1, (-1, heads))[:, :, head]
