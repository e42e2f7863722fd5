"""Positions of the plain vision transformers: tables that are added to tokens, and rotary angles.

A grid is (slots, rows, columns): the places of the patches of one sample. A slot is the frames that are embedded
together, one frame without tubelets.

Letters in shapes: S samples, T slots of one sample, P patches of one slot, L tokens of one sequence, H heads, d
channels of a head, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as fn
from torch import Tensor

from cover.model.layers import Rotation, turn_pairs

Grid = tuple[int, int, int]  # slots, rows, columns
Rotary = Literal["none", "halves", "pairs", "3d"]

SINCOS_BASE = 10000.0
HALVES_BASE = 100.0  # DINOv3
PAIRS_BASE = 10000.0  # EVA-02 and V-JEPA 2


def sincos_table(tokens: int, width: int, device: torch.device) -> Tensor:
    """The fixed sine and cosine table over the numbers of tokens, float32 `(tokens, width)` (VideoMAE, released code).

    Sines are in the even channels, cosines in the odd ones.
    """
    # Float64, because an angle of 1568 rad in float32 is wrong by 1e-4. MPS has no float64.
    place = torch.device("cpu") if device.type == "mps" else device
    rates = SINCOS_BASE ** -(torch.arange(0, width, 2, dtype=torch.float64, device=place) / width)
    angles = torch.arange(tokens, dtype=torch.float64, device=place)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width].float().to(device)


def resized_grid(table_ThwD: Tensor, grid: Grid) -> Tensor:
    """A table of positions `(T, h, w, D)`, resized to another grid: bicubic over places, linear over slots.

    One slot (an image, or a clip of one tubelet) gets the first slot's entries, unresized in time.
    """
    slots, rows, columns = grid
    if slots == 1:
        table_ThwD = table_ThwD[:1]
    if table_ThwD.shape[1:3] != (rows, columns):
        maps = table_ThwD.permute(0, 3, 1, 2)  # (T, D, h, w), as interpolate needs
        maps = fn.interpolate(maps, size=(rows, columns), mode="bicubic", align_corners=False)
        table_ThwD = maps.permute(0, 2, 3, 1)
    return resized_slots(table_ThwD.flatten(1), slots).unflatten(1, (rows, columns, -1))


def resized_slots(table_TC: Tensor, slots: int) -> Tensor:
    """A table with an entry for each slot `(T, C)`, resized linearly; one slot gets the first entry."""
    return table_TC[:1] if slots == 1 else resized_axis(table_TC, slots)


def resized_axis(table_nC: Tensor, count: int) -> Tensor:
    """A table with an entry for each place along one axis `(n, C)`, resized linearly."""
    if table_nC.shape[0] == count:
        return table_nC
    return fn.interpolate(table_nC.T[None], size=count, mode="linear", align_corners=False)[0].T


# --- rotary angles ----------------------------------------------------------------------------------------------------


def rotary_angles(
    kind: Rotary, prefix: int, grid: Grid, channels: int, reference: int, device: torch.device
) -> Rotation | None:
    """Cosines and sines of the angles of all tokens of a sequence, None for `none`.

    `prefix`: the number of tokens before the patches, which are not turned. `channels`: d of one head. `reference`: the
    side of the grid on which `pairs` counts places; 0 for the grid itself. Returns two float32 tensors `(L, 1, d / 2)`
    for `halves` and `(L, 1, d)` for the others.
    """
    if kind == "none":
        return None
    angles = {"halves": _halves, "pairs": _pairs, "3d": _three_axes}[kind](grid, channels, reference, device)
    angles = fn.pad(angles, (0, 0, prefix, 0))[:, None]  # an angle of zero turns nothing
    return angles.cos(), angles.sin()


def turned(x_BLHd: Tensor, rotation: Rotation | None, kind: Rotary) -> Tensor:
    """Queries or keys, turned by the angles of their tokens."""
    if rotation is None:
        return x_BLHd
    cos, sin = (part.to(x_BLHd.dtype) for part in rotation)
    if kind == "halves":
        return turn_pairs(x_BLHd, cos, sin)
    # Neighbouring channels are a pair. With `3d` the two of a pair have different angles (released code), so this is
    # not a rotation there, and the published weights depend on it.
    first, second = x_BLHd.unflatten(-1, (-1, 2)).unbind(-1)
    return x_BLHd * cos + torch.stack([-second, first], -1).flatten(-2) * sin


def _halves(grid: Grid, channels: int, _reference: int, device: torch.device) -> Tensor:
    """DINOv3: centres of patches on a scale from -1 to 1 for each axis, `(T P, d / 2)`; all slots alike."""
    slots, rows, columns = grid
    periods = HALVES_BASE ** (torch.arange(channels // 4, dtype=torch.float32, device=device) / (channels // 4))
    centres = [(torch.arange(side, device=device) + 0.5) / side * 2 - 1 for side in (rows, columns)]
    return _of_both_axes(*(2 * math.pi * place[:, None] / periods for place in centres)).repeat(slots, 1)


def _pairs(grid: Grid, channels: int, reference: int, device: torch.device) -> Tensor:
    """EVA-02: rows and columns counted on a grid of the pre-training, `(T P, d)`; all slots alike."""
    slots, rows, columns = grid
    rates = PAIRS_BASE ** -(torch.arange(channels // 4, dtype=torch.float32, device=device) / (channels // 4))
    places = [torch.arange(side, device=device) * ((reference or side) / side) for side in (rows, columns)]
    angles = _of_both_axes(*(place[:, None] * rates for place in places))
    return angles.repeat_interleave(2, -1).repeat(slots, 1)


def _three_axes(grid: Grid, channels: int, _reference: int, device: torch.device) -> Tensor:
    """V-JEPA 2: slots, rows and columns, each for nearly a third of the channels, `(T P, d)`."""
    each = channels // 3 // 2
    rates = PAIRS_BASE ** -(torch.arange(each, dtype=torch.float32, device=device) / each)
    axes = torch.meshgrid(*(torch.arange(side, device=device) for side in grid), indexing="ij")
    # The rates are repeated block-wise, although neighbouring channels are the pairs (released code).
    angles = [(axis.flatten()[:, None] * rates).repeat(1, 2) for axis in axes]
    return fn.pad(torch.cat(angles, -1), (0, channels - 6 * each))


def _of_both_axes(rows: Tensor, columns: Tensor) -> Tensor:
    """Angles of rows `(h, n)` and of columns `(w, n)` for every place, `(h w, 2 n)`."""
    shape = rows.shape[0], columns.shape[0], rows.shape[1]
    return torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], -1).flatten(0, 1)
