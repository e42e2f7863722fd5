"""Which steps of a block are computed by hand, to keep less for the backward pass and to move less memory?

Under torch.compile and torch.export the plain formulas stand in: the compiler fuses them itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Groups = tuple[tuple[int, int], ...]  # (samples, frames each), in the order of the frames


def gelu_linear(hidden: Tensor, weight: Tensor, bias: Tensor, drop: nn.Dropout) -> Tensor:
    """GELU, dropout and a linear layer; GELU's output, the largest tensor of a block, is made again in the backward pass."""
    if torch.compiler.is_compiling() or (drop.p and drop.training) or not torch.is_grad_enabled():
        return fn.linear(drop(fn.gelu(hidden)), weight, bias)
    return _GeluLinear.apply(hidden, weight, bias)


def share_class_token(x_FND: Tensor, groups: Groups) -> Tensor:
    """Token 0 of every frame replaced by its mean over the frames of the clip; `x_FND` is used up."""
    if all(frames == 1 for _, frames in groups):
        return x_FND
    if not torch.compiler.is_compiling():
        return _ShareClassToken.apply(x_FND, groups)
    parts = x_FND[:, 0].split([samples * frames for samples, frames in groups])
    shared = [
        part.unflatten(0, group).mean(1, keepdim=True).expand(-1, group[1], -1).flatten(0, 1)
        for part, group in zip(parts, groups, strict=True)
    ]
    return x_FND.select_scatter(torch.cat(shared), 1, 0)


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel i of the first half of the last axis and channel i of the second, as a point in the plane, turned by an angle."""
    if torch.compiler.is_compiling():
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return _TurnPairs.apply(x, cos, sin)


class _TurnPairs(torch.autograd.Function):
    """Half the passes over memory of the plain formula, and the gradient is the turn back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (a, b), (first, second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return out


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return fn.linear(fn.gelu(hidden), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        of_hidden = of_weight = None
        if ctx.needs_input_grad[0]:
            of_hidden = torch.ops.aten.gelu_backward((grad @ weight.to(grad.dtype)).to(hidden.dtype), hidden)
        if ctx.needs_input_grad[1]:  # not where the layer is frozen
            of_weight = (rows.T @ fn.gelu(hidden).flatten(0, -2)).to(weight.dtype)
        return of_hidden, of_weight, rows.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None


class _ShareClassToken(torch.autograd.Function):
    """In place: the plain formula costs five passes over the tensor and its gradient, this one copies the gradient."""

    @staticmethod
    def forward(ctx: Any, x_FND: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        ctx.mark_dirty(x_FND)
        return _average_first_tokens(x_FND, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _average_first_tokens(grad.clone(), ctx.groups), None


def _average_first_tokens(x_FND: Tensor, groups: Groups) -> Tensor:
    for part, group in zip(x_FND[:, 0].split([samples * frames for samples, frames in groups]), groups, strict=True):
        token_STD = part.unflatten(0, group)
        token_STD.copy_(token_STD.mean(1, keepdim=True).expand_as(token_STD))
    return x_FND
