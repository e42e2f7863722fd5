"""Published weights of EfficientNet-Lite: their names, and BatchNorm folded into the convolutions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cover.errors import UserError
from cover.model.backbones.efficientnet_lite import Variant, scaled_stages

BATCH_NORM_EPS = 1e-3
STATISTICS = ("running_mean", "running_var")
CLASSIFIER = {"weight": "_fc.weight", "bias": "_fc.bias"}


def from_published(published: Mapping[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """The tensors of a backbone of this variant, of depth 0, from the published state dict.

    Raises `UserError` if a tensor is absent or left over, so that no other network is read by mistake.
    """
    used: set[str] = {*CLASSIFIER.values()}
    state = {}
    for ours, (convolution, norm) in _names(variant).items():
        names = [f"{convolution}.weight", *(f"{norm}.{part}" for part in ("weight", "bias", *STATISTICS))]
        if missing := [name for name in names if name not in published]:
            raise UserError(f"the tensor {missing[0]} is missing: no {variant} of EfficientNet-Lite")
        used |= {*names, f"{norm}.num_batches_tracked"}
        state[f"{ours}.weight"], state[f"{ours}.bias"] = folded(*(published[name] for name in names))
    if left := sorted(published.keys() - used):
        raise UserError(f"unexpected tensor {left[0]}: no {variant} of EfficientNet-Lite")
    return state


def folded(kernel: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that computes a convolution without bias and then BatchNorm in evaluation."""
    factor = scale.double() / (variance.double() + BATCH_NORM_EPS).sqrt()
    weight = kernel.double() * factor.view(-1, *[1] * (kernel.ndim - 1))
    return weight.float(), (shift.double() - mean.double() * factor).float()


def _names(variant: Variant) -> dict[str, tuple[str, str]]:
    """Our name of a convolution -> the published names of its kernel and of its BatchNorm."""
    names = {"stem": ("_conv_stem", "_bn0"), "last": ("_conv_head", "_bn1")}
    number = 0  # published blocks are numbered through all stages
    for stage, row in enumerate(scaled_stages(variant)):
        for block in range(row.repeats):
            parts = {"depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
            if row.expansion > 1:
                parts["expand"] = ("_expand_conv", "_bn0")
            for ours, theirs in parts.items():
                kernel, norm = (f"_blocks.{number}.{name}" for name in theirs)
                names[f"layers.{stage}.{block}.{ours}"] = kernel, norm
            number += 1
    return names
