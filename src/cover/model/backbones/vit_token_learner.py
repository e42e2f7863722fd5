"""TokenLearner: a few learned tokens in place of the patches of a slot, and TokenFuser, its way back.

Source: Ryoo et al., 2021, "TokenLearner". An option of the plain vision transformers.

Letters in shapes: N tokens of all samples together, B slots, P patches of one slot, h, w its rows and columns, n
learned tokens, D width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.model.backbones.vit_blocks import BlockSettings, Embedded, joined

Version = Literal["v1.0", "v1.1"]
BOTTLENECK = 64  # hidden values of the MLPs
CONVOLUTIONS = 4  # in version 1.0


class TokenLearner(nn.Module):
    """The tokens of each slot, `(B, P, D)` to `(B, n, D)`: sums of its patches, with learned weights of the places.

    `v1.0`: weights by four 3x3 convolutions and a sigmoid. `v1.1`: by an MLP for each place and a softmax over places.
    """

    def __init__(self, width: int, tokens: int, version: Version, eps: float) -> None:
        super().__init__()
        self.version = version
        self.norm = nn.LayerNorm(width, eps=eps)
        if version == "v1.0":
            channels = [width, *[tokens] * CONVOLUTIONS]
            self.convs = nn.ModuleList(
                nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise(channels)
            )
        else:
            self.fc1 = nn.Linear(width, BOTTLENECK)
            self.fc2 = nn.Linear(BOTTLENECK, tokens)

    def forward(self, x_BPD: Tensor, place: tuple[int, int]) -> Tensor:
        """`place`: rows and columns of the patches."""
        weights_BnP = self._weights(self.norm(x_BPD), place)
        return weights_BnP.to(x_BPD.dtype) @ x_BPD

    def _weights(self, x_BPD: Tensor, place: tuple[int, int]) -> Tensor:
        if self.version == "v1.1":
            hidden = fn.gelu(self.fc1(x_BPD), approximate="tanh")
            return self.fc2(hidden).transpose(1, 2).softmax(-1)
        x_BChw = x_BPD.transpose(1, 2).unflatten(2, place)
        for number, conv in enumerate(self.convs):
            x_BChw = conv(x_BChw)
            if number < CONVOLUTIONS - 1:
                x_BChw = fn.gelu(x_BChw, approximate="tanh")
        return torch.sigmoid(x_BChw.flatten(2))


class TokenFuser(nn.Module):
    """The patches of each slot again from its tokens, `(B, n, D)` and the patches `(B, P, D)` to `(B, P, D)`.

    `norms`: around the mixing of tokens. A new one returns the patches: its mixing starts at zero, and its output is
    added to them.
    """

    def __init__(self, width: int, tokens: int, eps: float, norms: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps) if norms else nn.Identity()
        self.mix = nn.Linear(tokens, tokens)
        self.norm2 = nn.LayerNorm(width, eps=eps) if norms else nn.Identity()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, BOTTLENECK)
        self.fc2 = nn.Linear(BOTTLENECK, tokens)

    def forward(self, tokens_BnD: Tensor, x_BPD: Tensor) -> Tensor:
        mixed_BnD = self.norm2(self.mix(self.norm1(tokens_BnD).transpose(1, 2)).transpose(1, 2))
        hidden = fn.gelu(self.fc1(self.norm(x_BPD)), approximate="tanh")
        weights_BPn = torch.sigmoid(self.fc2(hidden))
        return weights_BPn @ mixed_BnD.to(weights_BPn.dtype)


class TokenLearning(nn.Module):
    """What the last `blocks` blocks of a network learn from patches: once before them, or with `fuser` around each.

    The tokens before the patches, such as a class token, pass by.
    """

    def __init__(self, settings: BlockSettings, tokens: int, version: Version, blocks: int, fuser: bool) -> None:
        super().__init__()
        width, eps = settings.width, settings.eps
        self.learners = nn.ModuleList(TokenLearner(width, tokens, version, eps) for _ in range(blocks if fuser else 1))
        self.fusers = nn.ModuleList(TokenFuser(width, tokens, eps) for _ in range(blocks if fuser else 0))

    def initialise(self) -> None:
        """Let a new fuser return the patches."""
        for fuser in self.fusers:
            nn.init.zeros_(cast(TokenFuser, fuser).mix.weight)

    def learn(self, number: int, tokens: Embedded, prefix: int, joint: bool) -> Tensor:
        """`(N, D)` with learned tokens in place of the patches of every slot.

        `prefix`: tokens before the patches of a sequence. `joint`: whether a sequence has all slots of a sample.
        """
        parts = []
        for part, slots in _sequences(tokens, joint):
            learned = self.learners[number](_patches(part, slots, prefix), tokens.layout.place)
            parts.append(torch.cat([part[:, :prefix], _together(learned, slots)], 1).flatten(0, 1))
        return joined(parts)

    def fuse(self, number: int, tokens: Embedded, before: Embedded, prefix: int, joint: bool) -> Tensor:
        """The patches `before` plus what the learned tokens say of them, `(N, D)`; other tokens as in `tokens`."""
        parts = []
        for (part, slots), (old, _) in zip(_sequences(tokens, joint), _sequences(before, joint), strict=True):
            patches = _patches(old, slots, prefix)
            patches = patches + self.fusers[number](_patches(part, slots, prefix), patches)
            parts.append(torch.cat([part[:, :prefix], _together(patches, slots)], 1).flatten(0, 1))
        return joined(parts)


def _sequences(tokens: Embedded, joint: bool) -> list[tuple[Tensor, int]]:
    """The sequences of each group, `(sequences, L, D)`, and the slots in one of them."""
    x_ND, layout = tokens
    parts = x_ND.split([samples * count for samples, count in layout.samples])
    return [
        (part.unflatten(0, (samples if joint else samples * slots, -1)), slots if joint else 1)
        for part, (samples, slots) in zip(parts, layout.slots, strict=True)
    ]


def _patches(x_BLD: Tensor, slots: int, prefix: int) -> Tensor:
    """The patches of each slot of sequences, or their learned tokens."""
    return x_BLD[:, prefix:].unflatten(1, (slots, -1)).flatten(0, 1)


def _together(x_BPD: Tensor, slots: int) -> Tensor:
    """The inverse of `_patches`."""
    return x_BPD.unflatten(0, (-1, slots)).flatten(1, 2)
