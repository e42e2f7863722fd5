"""Blocks and pooling of the plain vision transformers, over one flat tensor of tokens for a whole Pack.

Norms, projections and MLPs run once over the tokens of all clips and images. Only attention goes group by group.

Letters in shapes: S samples, T slots of one sample (frames that are embedded together), B sequences, L tokens of one
sequence, N tokens of all sequences together, D width, H heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.model.backbone import Groups, Intermediates, note
from cover.model.backbones.vit_positions import Rotary, resized_slots, turned
from cover.model.layers import Attention, Rotation, attend_over_time, gelu_linear, rotation_of

Activation = Literal["gelu", "gelu_tanh", "gelu_quick", "swiglu"]
Attends = Literal["sequence", "divided", "dot_product"]
QUICK = 1.702  # factor of the quick GELU (CLIP)


@dataclass(frozen=True)
class BlockSettings:
    """The sizes and options of one block.

    `attends`: within sequences alone; also over the slots of a sample (`divided`); or half of the heads over slots and
    half within sequences (`dot_product`). `time_first`: whether the temporal branch comes before the spatial one.
    `rotary_time`: whether temporal attention has rotary positions of slots.
    """

    width: int
    heads: int
    hidden: int
    eps: float = 1e-6
    qkv_bias: Literal["all", "qv", "none"] = "all"
    mlp: Activation = "gelu"
    mlp_norm: bool = False
    layer_scale: float = 0.0
    rotary: Rotary = "none"
    attends: Attends = "sequence"
    time_first: bool = True
    rotary_time: bool = False


class Layout(NamedTuple):
    """Where the tokens of a Pack lie in the flat tensor `(N, D)`.

    `sequences`: `(B, L)` of consecutive sequences that attend in one call. `slots`: `(S, T)` of each group. `samples`:
    the samples of each group, and the tokens of each. `place`: rows and columns of the patches of a slot. `rotations`:
    for each entry of `sequences` its rotary angles, or None. `lengths`: for each entry the number of equal tokens that
    each of its tokens stands for, `(B, L)`; None if it is 1 everywhere.
    """

    sequences: tuple[tuple[int, int], ...]
    slots: Groups
    samples: tuple[tuple[int, int], ...]
    place: tuple[int, int]
    rotations: list[Rotation | None]
    lengths: list[Tensor] | None = None

    def split(self, x_NC: Tensor) -> list[Tensor]:
        """The sequences of each entry, `(B, L, C)`."""
        parts = x_NC.split([count * length for count, length in self.sequences])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.sequences, strict=True)]

    def split_slots(self, x_NC: Tensor) -> list[Tensor]:
        """The slots of each group, `(S, T, L, C)`; every slot is a sequence of its own."""
        length = self.sequences[0][1]
        parts = x_NC.split([samples * slots * length for samples, slots in self.slots])
        return [part.unflatten(0, (*group, length)) for part, group in zip(parts, self.slots, strict=True)]


class Embedded(NamedTuple):
    """The tokens of a Pack `(N, D)` and where they lie."""

    tokens: Tensor
    layout: Layout


def joined(parts: list[Tensor]) -> Tensor:
    """The parts along the first axis. A single part is not copied."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


# --- attention --------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Attention among the tokens of each sequence. Biases: of queries, keys and values, of `qv` alone, or none."""

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.rotary, self.halved = settings.heads, settings.rotary, settings.attends == "dot_product"
        self.qkv = nn.Linear(width, 3 * width, bias=settings.qkv_bias == "all")
        for name in ("q_bias", "v_bias") if settings.qkv_bias == "qv" else ():
            self.register_parameter(name, nn.Parameter(torch.zeros(width)))
        self.proj = nn.Linear(width, width)

    def projected(self, x_ND: Tensor) -> Tensor:
        """Queries, keys and values, `(N, D)` to `(N, 3 D)`."""
        if "q_bias" not in self._parameters:
            projected: Tensor = self.qkv(x_ND)
            return projected
        return fn.linear(x_ND, self.qkv.weight, self.bias())

    def bias(self) -> Tensor | None:
        """The bias of queries, keys and values `(3 D,)`; that of keys may be zero."""
        if "q_bias" in self._parameters:
            q_bias, v_bias = self.get_parameter("q_bias"), self.get_parameter("v_bias")
            return torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        return self.qkv.bias

    def forward(self, x_ND: Tensor, layout: Layout) -> Tensor:
        """`(N, D)` to the same shape."""
        qkv_N3D = self.projected(x_ND)
        if self.halved:
            mixed = [self._over_time_and_space(part) for part in layout.split_slots(qkv_N3D)]
        else:
            lengths: Sequence[Tensor | None] = layout.lengths or [None] * len(layout.sequences)
            parts = zip(layout.split(qkv_N3D), layout.rotations, lengths, strict=True)
            mixed = [self._within(*part) for part in parts]
        return self.proj(joined(mixed))

    def _within(self, qkv_BL3D: Tensor, rotation: Rotation | None, lengths_BL: Tensor | None) -> Tensor:
        q, k, v = qkv_BL3D.unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, H, d), views
        q, k = turned(q, rotation, self.rotary), turned(k, rotation, self.rotary)
        # exp(score + log(n)) is n exp(score): the token counts as n equal ones
        mask = None if lengths_BL is None else lengths_BL.to(q.dtype).log()[:, None, None]
        return _attend(q, k, v, mask).flatten(0, 1)

    def _over_time_and_space(self, qkv_STL3D: Tensor) -> Tensor:
        """The first half of the heads attends over slots, the second within them (ViViT, model 4)."""
        q, k, v = qkv_STL3D.unflatten(-1, (3, self.heads, -1)).unbind(3)  # (S, T, L, H, d)
        half = self.heads // 2
        time = [x[..., :half, :].flatten(3) for x in (q, k, v)]
        over_time = attend_over_time(time[0], time[1], time[2], half).flatten(0, 1)
        over_space = _attend(*(x[..., half:, :].flatten(0, 1) for x in (q, k, v)))
        return torch.cat([over_time, over_space], -1).flatten(0, 1)


def _attend(q_BLHd: Tensor, k_BLHd: Tensor, v_BLHd: Tensor, mask_BHLL: Tensor | None = None) -> Tensor:
    """Attention of every query to the keys of its sequence, `(B, L, D)`. `mask_BHLL` is added to the scores."""
    q, k, v = q_BLHd.transpose(1, 2), k_BLHd.transpose(1, 2), v_BLHd.transpose(1, 2)
    out = fn.scaled_dot_product_attention(q, k, v, mask_BHLL)
    return out.transpose(1, 2).flatten(2)


def across_slots(attention: Attention, x_ND: Tensor, layout: Layout, rotary: bool) -> Tensor:
    """Attention of every token to the same token of the other slots of its sample, `(N, D)` to the same shape.

    With one slot, as in an image, the softmax has one key. So the result is the value, and queries and keys are not
    computed.
    """
    width, channels = x_ND.shape[-1], x_ND.shape[-1] // attention.heads
    weight, bias = attention.qkv.weight, attention.qkv.bias
    mixed = []
    for part, (_, slots) in zip(layout.split_slots(x_ND), layout.slots, strict=True):
        if slots == 1:
            mixed.append(fn.linear(part, weight[2 * width :], bias[2 * width :]).flatten(0, 2))
            continue
        rotation = rotation_of(slots, channels, x_ND.device) if rotary else None
        q, k, v = fn.linear(part, weight, bias).chunk(3, -1)
        mixed.append(attend_over_time(q, k, v, attention.heads, rotation).flatten(0, 2))
    return attention.proj(joined(mixed))


# --- blocks -----------------------------------------------------------------------------------------------------------


class ViTMlp(nn.Module):
    """Two linear layers with an activation between them; SwiGLU has a gate beside the hidden values.

    Rows of `fc1` with SwiGLU: the gate first, then the values. `norm`: a LayerNorm of the hidden values (EVA-02).
    """

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        self.kind, hidden = settings.mlp, settings.hidden
        self.fc1 = nn.Linear(settings.width, 2 * hidden if self.kind == "swiglu" else hidden)
        self.norm = nn.LayerNorm(hidden, eps=settings.eps) if settings.mlp_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, settings.width)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to the same shape."""
        hidden = self.fc1(x)
        if self.kind == "gelu" and isinstance(self.norm, nn.Identity):
            return gelu_linear(hidden, self.fc2.weight, self.fc2.bias, self.drop)
        return self.fc2(self.norm(self._activated(hidden)))

    def _activated(self, hidden: Tensor) -> Tensor:
        if self.kind == "swiglu":
            gate, values = hidden.chunk(2, -1)
            return fn.silu(gate) * values
        if self.kind == "gelu_quick":
            return hidden * torch.sigmoid(QUICK * hidden)
        return fn.gelu(hidden, approximate="tanh" if self.kind == "gelu_tanh" else "none")


class ViTBlock(nn.Module):
    """Attention and MLP, each a residual branch after a norm. `divided` has a temporal branch beside them."""

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        width, self.settings = settings.width, settings
        self.divided = settings.attends == "divided"
        if self.divided:
            self.temporal_norm = nn.LayerNorm(width, eps=settings.eps)
            self.temporal_attn = Attention(width, settings.heads)
        self.norm1 = nn.LayerNorm(width, eps=settings.eps)
        self.attn = SelfAttention(settings)
        self.norm2 = nn.LayerNorm(width, eps=settings.eps)
        self.mlp = ViTMlp(settings)
        names = ("temporal_scale", "scale1", "scale2") if self.divided else ("scale1", "scale2")
        for name in names if settings.layer_scale else ():
            self.register_parameter(name, nn.Parameter(torch.full((width,), settings.layer_scale)))

    def forward(
        self, x_ND: Tensor, layout: Layout, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """Tokens `(N, D)` to tokens of the same shape.

        `drop`: drop-path factors `(branches, N, 1)`, in the order temporal, spatial, MLP; None is the same as all ones.
        `intermediates` receives the output of each branch.
        """
        if self.divided and self.settings.time_first:
            x_ND = x_ND + self._temporal(x_ND, layout, drop, intermediates)
        x_ND = x_ND + self._branch("spatial", self.attn(self.norm1(x_ND), layout), drop, intermediates)
        if self.divided and not self.settings.time_first:
            x_ND = x_ND + self._temporal(x_ND, layout, drop, intermediates)
        return x_ND + self._branch("mlp", self.mlp(self.norm2(x_ND)), drop, intermediates)

    @torch.no_grad()
    def reset_temporal(self, differences: bool) -> None:
        """Copy the spatial attention into the temporal branch, with an output projection of zero.

        `differences`: with rotary time, initialise the copy as `Attention.init_temporal_differences`.
        """
        self.temporal_norm.load_state_dict(self.norm1.state_dict())
        self.temporal_attn.qkv.weight.copy_(self.attn.qkv.weight)
        bias = self.attn.bias()
        self.temporal_attn.qkv.bias.copy_(torch.zeros_like(self.temporal_attn.qkv.bias) if bias is None else bias)
        self.temporal_attn.proj.load_state_dict(self.attn.proj.state_dict())
        if differences and self.settings.rotary_time:
            self.temporal_attn.init_temporal_differences()
        if "temporal_scale" in self._parameters:
            self.get_parameter("temporal_scale").copy_(self.get_parameter("scale1"))
        # The branch adds nothing at first: the block computes what the block of an image network computes.
        nn.init.zeros_(self.temporal_attn.proj.weight)
        nn.init.zeros_(self.temporal_attn.proj.bias)

    def temporal_parts(self) -> list[nn.Module | Tensor]:
        """The modules and parameters of the temporal branch; the last module's matrix is the last of the branch."""
        if not self.divided:
            return []
        scale = [self.get_parameter("temporal_scale")] if "temporal_scale" in self._parameters else []
        return [*scale, self.temporal_norm, self.temporal_attn.qkv, self.temporal_attn.proj]

    def _temporal(
        self, x_ND: Tensor, layout: Layout, drop: Tensor | None, intermediates: Intermediates | None
    ) -> Tensor:
        time_ND = across_slots(self.temporal_attn, self.temporal_norm(x_ND), layout, self.settings.rotary_time)
        return self._branch("temporal", time_ND, drop, intermediates)

    def _branch(self, name: str, x_ND: Tensor, drop: Tensor | None, intermediates: Intermediates | None) -> Tensor:
        """The output of a branch times its LayerScale and drop-path factors, ready to be added to the tokens."""
        number = ("temporal", "spatial", "mlp").index(name)
        scale = getattr(self, ("temporal_scale", "scale1", "scale2")[number], None)
        if scale is not None:
            x_ND = x_ND * scale
        note(intermediates, name, x_ND)  # before drop-path, which is absent in evaluation
        return x_ND if drop is None else x_ND * drop[number if self.divided else number - 1]


# --- pooling by attention ---------------------------------------------------------------------------------------------


class CrossAttention(nn.Module):
    """Attention of one query to the tokens of each sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, query_1D: Tensor, x_BLD: Tensor) -> Tensor:
        """`(1, D)` and `(B, L, D)` to `(B, D)`."""
        q = self.q(query_1D).unflatten(-1, (self.heads, -1)).expand(x_BLD.shape[0], 1, -1, -1)
        k, v = self.kv(x_BLD).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return _attend(q, k, v)[:, 0]


class ProbePool(nn.Module):
    """A learned query attends to the tokens; an MLP is added to what it gets (SigLIP), `(B, L, D)` to `(B, D)`."""

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, settings.width))
        self.attn = CrossAttention(settings.width, settings.heads)
        self.proj = nn.Linear(settings.width, settings.width)
        self.norm = nn.LayerNorm(settings.width, eps=settings.eps)
        self.mlp = ViTMlp(settings)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BD = self.proj(self.attn(self.query, x_BLD))
        return x_BD + self.mlp(self.norm(x_BD))


class AttentiveProbe(nn.Module):
    """Blocks of self-attention, then a learned query with cross-attention (V-JEPA 2), `(B, L, D)` to `(B, D)`."""

    def __init__(self, settings: BlockSettings, depth: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, settings.width))
        self.blocks = nn.ModuleList(ViTBlock(settings) for _ in range(depth))
        self.norm1 = nn.LayerNorm(settings.width, eps=settings.eps)
        self.attn = CrossAttention(settings.width, settings.heads)  # without an output projection (released code)
        self.norm2 = nn.LayerNorm(settings.width, eps=settings.eps)
        self.mlp = ViTMlp(settings)

    def forward(self, x_BLD: Tensor) -> Tensor:
        shape = x_BLD.shape[0], x_BLD.shape[1]
        layout, x_ND = Layout((shape,), ((shape[0], 1),), (shape,), (1, shape[1]), [None]), x_BLD.flatten(0, 1)
        for block in self.blocks:
            x_ND = block(x_ND, layout)
        x_BD = self.query + self.attn(self.query, self.norm1(x_ND).unflatten(0, shape))
        return x_BD + self.mlp(self.norm2(x_BD))


class LateEncoder(nn.Module):
    """A transformer over the features of the slots of each sample, `(S T, D)` to `(S, D)` (ViViT, model 2).

    `token`: read the feature from a class token, else from the mean over the slots. `slots`: entries of its positions.
    """

    def __init__(self, settings: BlockSettings, depth: int, slots: int, token: bool) -> None:
        super().__init__()
        self.token = token
        if token:
            self.cls_token = nn.Parameter(torch.zeros(1, settings.width))
        self.pos_embed = nn.Parameter(torch.zeros(token + slots, settings.width))  # that of the token first
        self.blocks = nn.ModuleList(ViTBlock(settings) for _ in range(depth))
        self.norm = nn.LayerNorm(settings.width, eps=settings.eps)

    def forward(self, x_FD: Tensor, slots: Groups) -> Tensor:
        parts, lengths = [], []
        for part, group in zip(x_FD.split([samples * count for samples, count in slots]), slots, strict=True):
            x_STD = part.unflatten(0, group) + resized_slots(self.pos_embed[int(self.token) :], group[1])
            if self.token:
                token = (self.cls_token + self.pos_embed[:1]).expand(group[0], 1, -1)
                x_STD = torch.cat([token.to(x_STD.dtype), x_STD], 1)
            parts.append(x_STD.flatten(0, 1))
            lengths.append((group[0], x_STD.shape[1]))
        layout, x_ND = Layout(tuple(lengths), slots, tuple(lengths), (1, 1), [None] * len(lengths)), joined(parts)
        for block in self.blocks:
            x_ND = block(x_ND, layout)
        if self.token:
            return self.norm(joined([part[:, 0] for part in layout.split(x_ND)]))
        return joined([part.mean(1) for part in layout.split(self.norm(x_ND))])
