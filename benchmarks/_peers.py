"""Other implementations of TimeSformer, with the interface that a training step needs.

Every peer is called as `network(frames, groups)` with one group at a time. It has `normalize` and `config` as the model
has, so that all of them run in the same step function as `cover train`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.model.backbone import Groups
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR

HEAD = "classes"


class _NoBranches:
    """The part of a backbone's interface that a training step without drop-path needs."""

    def drop_shape(self) -> tuple[int, int]:
        return (0, 0)


class _Peer(nn.Module):
    """The parts of a model's interface that a training step needs, except the forward pass."""

    mean: Tensor
    std: Tensor
    normalize = CoVeR.normalize

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        self.config, self.backbone = config, _NoBranches()
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)


# --- a plain TimeSformer ----------------------------------------------------------------------------------------------


class _PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(fn.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, length, width))


class _PlainBlock(nn.Module):
    """A block on `(S, 1 + T P, D)`: one class token, then the patches of all frames, as in the released code."""

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        width = config.width
        self.temporal_norm, self.norm1, self.norm2 = (nn.LayerNorm(width, eps=config.norm_eps) for _ in range(3))
        self.temporal_attn, self.attn = (_PlainAttention(width, config.attention_heads) for _ in range(2))
        self.temporal_fc = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        samples, width = len(x), x.shape[-1]
        token, patches = x[:, :1], x[:, 1:].reshape(samples, frames, -1, width)
        moved = patches.transpose(1, 2).reshape(-1, frames, width)
        moved = self.temporal_fc(self.temporal_attn(self.temporal_norm(moved)))
        patches = patches + moved.view(samples, -1, frames, width).transpose(1, 2)

        x = torch.cat([token.expand(-1, frames, -1).reshape(-1, 1, width), patches.flatten(0, 1)], 1)
        spatial = self.attn(self.norm1(x)).view(samples, frames, -1, width)
        x = torch.cat([token + spatial[:, :, 0].mean(1, keepdim=True), (patches + spatial[:, :, 1:]).flatten(1, 2)], 1)
        return x + self.mlp(self.norm2(x))


class PlainTimeSformer(_Peer):
    """TimeSformer as in the paper, with PyTorch's fused attention. Compiled, it is the strongest fair peer."""

    def __init__(self, config: TimeSformerConfig, classes: int) -> None:
        super().__init__(config)
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.cls_token, self.pos_embed, self.time_embed = (
            nn.Parameter(torch.zeros(1, length, config.width)) for length in (1, config.tokens, config.frames)
        )
        self.blocks = nn.ModuleList(_PlainBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, classes)

    def forward(self, frames: Tensor, groups: Groups, drop: None = None) -> dict[str, Tensor]:
        ((samples, length),) = groups
        patches = self.patch_embed(frames).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        patches = patches.view(samples, length, *patches.shape[1:]) + self.time_embed[:, :length, None]
        token = (self.cls_token + self.pos_embed[:, :1]).expand(samples, -1, -1)
        x = torch.cat([token, patches.flatten(1, 2)], 1)
        for block in self.blocks:
            x = block(x, length)
        return {HEAD: self.head(self.norm(x[:, 0]))}

    def compile_stages(self) -> None:
        for block in self.blocks:
            block.compile()

    def fill(self, ours: CoVeR) -> PlainTimeSformer:
        """Copy the weights of `ours`."""
        renames = {"backbone.": "", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", f"heads.{HEAD}": "head"}
        state = {}
        for name, value in ours.state_dict().items():
            own = name
            for old, new in renames.items():
                own = own.replace(old, new)
            state[own] = value
        self.load_state_dict(state)
        return self


# --- transformers -----------------------------------------------------------------------------------------------------


class TransformersTimeSformer(_Peer):
    """The TimesformerForVideoClassification of transformers, one for each clip length, with shared weights.

    Its configuration fixes the number of frames, so a mixture of lengths needs several networks.
    """

    def __init__(self, config: TimeSformerConfig, classes: int, lengths: tuple[int, ...]) -> None:
        from transformers import TimesformerConfig, TimesformerForVideoClassification

        super().__init__(config)
        shape: dict[str, Any] = {
            "image_size": config.size,
            "patch_size": config.patch,
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.attention_heads,
            "intermediate_size": int(config.width * config.mlp_ratio),
            "layer_norm_eps": config.norm_eps,
            "num_labels": classes,
        }
        configs = [TimesformerConfig(num_frames=length, **shape) for length in lengths]
        networks = [TimesformerForVideoClassification(config) for config in configs]
        for other in networks[1:]:
            _share(networks[0], other)
        self.by_length = nn.ModuleDict(dict(zip(map(str, lengths), networks, strict=True)))

    def forward(self, frames: Tensor, groups: Groups, drop: None = None) -> dict[str, Tensor]:
        (group,) = groups
        return {HEAD: self.by_length[str(group[1])](frames.unflatten(0, group)).logits}

    def compile_stages(self) -> None:
        for network in self.by_length.values():
            for layer in network.timesformer.encoder.layer:
                layer.compile()

    def fill(self, ours: CoVeR) -> TransformersTimeSformer:
        """Copy the weights of `ours`."""
        from cover.model.starts.to_transformers import to_transformers

        longest = max(self.by_length, key=int)
        self.by_length[longest].load_state_dict(to_transformers(ours, HEAD))
        return self


def _share(owner: nn.Module, other: nn.Module) -> None:
    """Replace the parameters of `other` by those of `owner`; a time embedding for one frame is its first entry."""
    for name, parameter in list(other.named_parameters()):
        theirs = owner.get_parameter(name)
        module = other.get_submodule(name.rpartition(".")[0])
        if theirs.shape == parameter.shape:
            setattr(module, name.rpartition(".")[2], theirs)
        else:  # a time embedding of another length: a view of the owner's values, without a gradient
            del module._parameters[name.rpartition(".")[2]]
            setattr(module, name.rpartition(".")[2], theirs.detach()[:, : parameter.shape[1]])


# --- images as clips --------------------------------------------------------------------------------------------------


class Repeating(_Peer):
    """The model with every image repeated to the length of the clips, as one does without a Pack."""

    def __init__(self, ours: CoVeR) -> None:
        super().__init__(ours.config)
        self.ours = ours

    def forward(self, frames: Tensor, groups: Groups, drop: None = None) -> dict[str, Tensor]:
        (clips, length), (images, _) = groups
        long = torch.cat([frames[: clips * length], frames[clips * length :].repeat_interleave(length, 0)])
        return self.ours(long, ((clips + images, length),))

    def compile_stages(self) -> None:
        self.ours.compile_stages()
