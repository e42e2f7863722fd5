"""Where did a model look for its answer? The attention of all layers, followed back from the class token to the patches of every frame.

Attention roll-out (Abnar & Zuidema, 2020) multiplies the layers' attention matrices, averaged over the attention heads and mixed half and
half with the identity, which stands for the residual stream. It is one for all classifiers. The heat of a class (after Chefer, Gur & Wolf,
2021) weights every attention by the gradient of the class's logit, keeps what is positive and adds it to the identity.

Tokens are the class token of the clip and the patches of all its frames, P = 1 + T n of them. In divided attention a layer is two steps:
in the temporal one a patch attends to the same place in all frames and the class token to nothing, so its row is the identity; in the
spatial one every frame has the class token with its own patches, and what it becomes there is averaged over the frames: its row of the
P x P matrix is the T frames' class rows side by side, each divided by T, and the entries on itself added up.

Only the class token's row of the product is wanted, and a row times these matrices is a few small products: none of P x P is made. Layers
are computed again one at a time, from the last to the first, so the memory is that of one layer and all layers' inputs.

Letters in shapes: T frames, N tokens of a frame (class token, then n patches), L tokens that see each other, B rows of them, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cover.model.attention import Attended, Kept
from cover.model.timesformer import TimeSformer


@dataclass(frozen=True)
class Rollout:
    """`heat`: float32 `(T, h, w)` over the patches of every frame, 1 in all; all zero where no patch speaks for the class.

    `own`: before that, the part of the class token's row that stays on the class token.
    """

    heat: Tensor
    own: float

    @property
    def frame_weights(self) -> Tensor:
        """The heat of each frame, float32 `(T,)`."""
        return self.heat.sum((1, 2))


class _Row(NamedTuple):
    """Of a token-to-token matrix the row of the output: its entries on the class token, `()` or one for each frame `(T,)` where frames are
    kept apart, and on the patches, `(T, n)`."""

    own: Tensor
    patches: Tensor


def _go_on() -> None:
    """Whoever asks for a roll-out may have it to its end."""


def attention_rollout(model: TimeSformer, frames: Tensor, check: Callable[[], None] = _go_on) -> Rollout:
    """The roll-out of one clip or image. `model` in evaluation mode; `frames`: float `(T, 3, height, width)` from `model.normalize`.

    `check` is called before every layer, each of which is computed twice; what it raises ends the roll-out. A caller's `inference_mode` or
    `no_grad` changes nothing.
    """
    return _rollout(model, frames, None, check)


def class_rollout(model: TimeSformer, frames: Tensor, head: str, place: int, check: Callable[[], None] = _go_on) -> Rollout:
    """The heat that speaks for class number `place` of `head`, otherwise as `attention_rollout`."""
    return _rollout(model, frames, (head, place), check)


@torch.inference_mode(False)  # which knows no gradients, whoever switched it on
def _rollout(model: TimeSformer, frames: Tensor, target: tuple[str, int] | None, check: Callable[[], None]) -> Rollout:
    assert not model.training, "every layer is computed twice, and must give the same"
    frames = frames.clone() if frames.is_inference() else frames
    passed, result = _inputs_of_blocks(model, frames, check)
    slope = None if target is None else _slope_of_logit(model, result, *target)
    row = _first_row(model, frames)
    for number in reversed(range(len(passed))):
        check()
        kept, slopes, slope = _computed_again(model, number, passed[number], slope)
        row = _through_block(row, model, number, kept, slopes)
    sides = (side // model.config.patch for side in frames.shape[2:])
    heat = row.patches.float()
    return Rollout((heat / heat.sum().clamp_min(torch.finfo(heat.dtype).tiny)).unflatten(1, tuple(sides)), float(row.own.sum()))


# --- the layers, and what they attended to ----------------------------------------------------------------------------------------


def _inputs_of_blocks(model: TimeSformer, frames: Tensor, check: Callable[[], None]) -> tuple[list[tuple[object, ...]], Tensor]:
    """The arguments of every block, and what the last one gave."""
    calls: list[tuple[tuple[object, ...], Tensor]] = []

    def note(block: nn.Module, arguments: tuple[object, ...], result: Tensor) -> None:
        calls.append((arguments, result))

    hooks = [block.register_forward_hook(note) for block in model.blocks]
    hooks += [block.register_forward_pre_hook(lambda block, arguments: check()) for block in model.blocks]
    try:
        with torch.no_grad():
            model.forward_features(frames, ((1, len(frames)),))
    finally:
        for hook in hooks:
            hook.remove()
    return [arguments for arguments, _ in calls], calls[-1][1]


def _slope_of_logit(model: TimeSformer, result: Tensor, head: str, place: int) -> Tensor:
    """The gradient of a logit with respect to what the last block gave."""
    result = result.detach().requires_grad_()
    with torch.enable_grad():
        logit = model.forward_head(model.pooled(result, ((1, len(result)),)))[head][0, place]
    return torch.autograd.grad(logit, result)[0]


def _computed_again(
    model: TimeSformer, number: int, arguments: tuple[object, ...], slope: Tensor | None
) -> tuple[dict[str, Kept], dict[str, Tensor], Tensor | None]:
    """A block's attentions, the gradients of what came out of them, and that of the block's input; none of these without `slope`."""
    block, (entered, *rest) = model.blocks[number], arguments
    assert isinstance(entered, Tensor)
    entered = entered.detach().requires_grad_(slope is not None)
    with model.keeping_attention() as kept, torch.set_grad_enabled(slope is not None):
        result = block(entered, *rest)
    if slope is None:
        return kept, {}, None
    outs = {name: attention[0].out for name, attention in kept.items() if attention}
    slope, *slopes = torch.autograd.grad(result, [entered, *outs.values()], slope)
    return kept, dict(zip(outs, slopes, strict=True)), slope


# --- a row times the matrices -----------------------------------------------------------------------------------------------------


def _first_row(model: TimeSformer, frames: Tensor) -> _Row:
    """What is classified is the class token, or where frames are kept apart the mean of theirs."""
    count, patches = len(frames), frames.shape[2] * frames.shape[3] // model.config.patch**2
    own = frames.new_full((count,), 1 / count) if model.config.attention == "space" else frames.new_ones(())
    return _Row(own, frames.new_zeros(count, patches))


def _through_block(row: _Row, model: TimeSformer, number: int, kept: dict[str, Kept], slopes: dict[str, Tensor]) -> _Row:
    """The row times the matrix of a block: the steps in the reverse of the order in which they were computed."""
    heads, kind = model.config.attention_heads, model.config.attention
    spatial, temporal = f"blocks.{number}.attn", f"blocks.{number}.temporal_attn"
    step = _through_clip if kind == "joint" else _through_frames
    row = _mixed(row, step(row, kept[spatial][0], slopes.get(spatial), heads), spatial in slopes)
    if kept.get(temporal):  # a single frame attends to itself alone, which is the identity
        row = _mixed(row, _through_time(row, kept[temporal][0], slopes.get(temporal), heads), temporal in slopes)
    return row


def _mixed(row: _Row, moved: _Row, weighted: bool) -> _Row:
    """The residual stream beside the attention: rows of attention weights add up to 1, and so does half of both; gradients are added."""
    factor = 1.0 if weighted else 0.5
    return _Row(factor * (row.own + moved.own), factor * (row.patches + moved.patches))


def _through_frames(row: _Row, attended: Attended, slope: Tensor | None, heads: int) -> _Row:
    """Spatial attention. Where frames share a class token, each has the T-th part of its weight; of a gradient it has its part already."""
    shared = not row.own.ndim
    own = row.own.expand(len(row.patches)) / (len(row.patches) if shared and slope is None else 1)
    moved = _times_attention(torch.cat([own[:, None], row.patches], 1)[:, None], attended, slope, heads)[:, 0]
    return _Row(moved[:, 0].sum() if shared else moved[:, 0], moved[:, 1:])


def _through_time(row: _Row, attended: Attended, slope: Tensor | None, heads: int) -> _Row:
    """Temporal attention. The class token takes no part in it: its row is the identity, which no gradient weights."""
    absent = row.patches.new_zeros(len(row.patches), 1)
    moved = _times_attention(torch.cat([absent, row.patches], 1).T[None], attended, slope, heads)[0]
    return _Row(row.own if slope is None else torch.zeros_like(row.own), moved[1:].T)


def _through_clip(row: _Row, attended: Attended, slope: Tensor | None, heads: int) -> _Row:
    """Joint attention of all tokens of the clip."""
    moved = _times_attention(torch.cat([row.own[None], row.patches.flatten()])[None, None], attended, slope, heads)[0, 0]
    return _Row(moved[0], moved[1:].view_as(row.patches))


def _times_attention(row_BNL: Tensor, attended: Attended, slope: Tensor | None, heads: int) -> Tensor:
    """Rows times the mean over the heads of their weights, or of the positive part of weights times gradient; one head at a time.

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
