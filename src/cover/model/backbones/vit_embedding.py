"""From the frames of a Pack to the tokens of a plain vision transformer, and where they lie in one flat tensor.

Letters in shapes: S samples, F frames of all samples together (clips first), T slots of one sample (a slot is the
frames that are embedded together), C tokens before the patches, P patches of one slot, N tokens of all samples
together, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.model.backbone import Groups
from cover.model.backbones.vit_blocks import Embedded, Layout, joined
from cover.model.backbones.vit_positions import (
    Grid,
    resized_axis,
    resized_grid,
    resized_slots,
    rotary_angles,
    sincos_table,
)
from cover.model.backbones.vit_static import Runs, patch_values, run_means, runs_of, unchanged
from cover.model.layers import Rotation

if TYPE_CHECKING:
    from cover.model.backbones.vit import VitConfig

AXES = ("pos_slots", "pos_rows", "pos_columns")  # the tables of factorised positions


class TokenEmbedding(nn.Module):
    """Patches with their positions, after the class token and the like, for every slot or sample of a Pack."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config, self.static = config, config.static_patches
        width, patch, (slots, rows, columns) = config.width, config.patch, config.grid
        if config.tubelet == 1:
            self.patches: nn.Module = nn.Conv2d(3, width, patch, patch, bias=config.patch_bias)
        else:
            kernel = config.tubelet, patch, patch
            self.patches = nn.Conv3d(3, width, kernel, kernel, bias=config.patch_bias)
        counts = {"cls_token": config.class_token, "dist_token": config.distillation, "reg_tokens": config.registers}
        self.before = [name for name, count in counts.items() if count]
        for name in self.before:
            self.register_parameter(name, nn.Parameter(torch.zeros(int(counts[name]), width)))
        if config.positions_before:
            self.pos_before = nn.Parameter(torch.zeros(config.positions_before, width))
        if config.position in ("learned", "learned_joint"):
            depth = slots if config.position == "learned_joint" else 1
            self.pos_embed = nn.Parameter(torch.zeros(depth, rows, columns, width))
        if config.position == "factorised":
            for name, count in zip(AXES, config.grid, strict=True):
                self.register_parameter(name, nn.Parameter(torch.zeros(count, width)))
            self.pos_norm = nn.LayerNorm(width, eps=config.norm_eps)
        if config.time == "additive":
            self.time_embed = nn.Parameter(torch.zeros(slots, width))
        if config.entry_norm:
            self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def tables(self) -> list[Tensor]:
        """The tokens and the tables of positions."""
        names = [*self.before, "pos_before", "pos_embed", *AXES, "time_embed"]
        return [cast(Tensor, self._parameters[name]) for name in names if name in self._parameters]

    def forward(self, frames: Tensor, groups: Groups, tubes: Tensor | None = None) -> Embedded:
        """Frames `(F, 3, H, W)` to the tokens of the Pack. `tubes`: as in `Backbone.forward`."""
        slots, maps = self.slots(groups), self._patches(frames, groups)  # (slots, D, h, w)
        rows, columns = maps.shape[2:]
        before, patches_each, joint = self._before(), rows * columns, self.config.attention == "joint"
        runs = self._runs(frames, groups, slots)
        if runs:  # every sample has its own number of tokens
            slots = tuple((1, each) for samples, each in slots for _ in range(samples))
        retained = [run.first[None] for run in runs] if runs else self._retained(slots, patches_each, tubes, maps)
        sequences, parts = [], maps.flatten(2).transpose(1, 2).split([count * each for count, each in slots])
        for number, (part, (samples, each)) in enumerate(zip(parts, slots, strict=True)):
            patches = part.unflatten(0, (samples, each))  # (S, T, P, D)
            position = self._positions((each, rows, columns), patches.device)
            moving = position if runs and position is not None and len(position) > 1 else None  # differs between slots
            patches = patches if position is None or moving is not None else patches + position
            patches = patches.flatten(1, 2) if joint else patches.flatten(0, 1)
            if retained:
                patches = patches.gather(1, retained[number][..., None].expand(-1, -1, patches.shape[-1]))
            if moving is not None:
                patches = patches + run_means(moving, runs[number], patches_each)
            if before is not None:
                patches = torch.cat([before.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], 1)
            sequences.append(patches.flatten(0, 1))
        x_ND = joined(sequences)
        x_ND = self.norm(x_ND) if self.config.entry_norm else x_ND
        return Embedded(x_ND, self.layout(slots, (rows, columns), frames.device, retained, runs))

    def slots(self, groups: Groups) -> Groups:
        """The groups in slots in place of frames."""
        return tuple((samples, max(1, frames // self.config.tubelet)) for samples, frames in groups)

    def layout(
        self,
        slots: Groups,
        place: tuple[int, int],
        device: torch.device,
        retained: Sequence[Tensor] = (),
        runs: Sequence[Runs] = (),
    ) -> Layout:
        """Where the tokens lie. Consecutive groups with sequences of equal length attend in one call.

        `place`: rows and columns of a slot. `retained`: as `_retained`. `runs`: as `_runs`.
        """
        joint, prefix = self.config.attention == "joint", self.config.prefix
        entries: list[list[int]] = []  # the groups of each entry of `sequences`
        sequences: list[tuple[int, int]] = []
        of_samples = []
        for number, (samples, each) in enumerate(slots):
            patches = retained[number].shape[1] if retained else (each if joint else 1) * place[0] * place[1]
            count, length = samples if joint else samples * each, prefix + patches
            of_samples.append((samples, length if joint else each * length))
            if sequences and sequences[-1][1] == length:
                sequences[-1] = sequences[-1][0] + count, length
                entries[-1].append(number)
            else:
                sequences.append((count, length))
                entries.append([number])
        rotations = []
        for numbers in entries:
            rows = [retained[number] for number in numbers] if retained else []
            most = max(slots[number][1] for number in numbers) if joint else 1
            rotations.append(self._rotation((most, *place), rows, device))
        lengths = []
        for numbers in entries if runs else []:
            own = torch.stack([runs[number].length for number in numbers])
            lengths.append(fn.pad(own, (prefix, 0), value=1))
        return Layout(tuple(sequences), slots, tuple(of_samples), place, rotations, lengths if runs else None)

    # --- the tokens ---------------------------------------------------------------------------------------------------

    def _patches(self, frames: Tensor, groups: Groups) -> Tensor:
        """The embedded patches of every slot, `(slots, D, h, w)`. An image is repeated to one tubelet."""
        if self.config.tubelet == 1:
            return cast(Tensor, self.patches(frames))
        weight, bias = cast(Tensor, self.patches.weight), cast("Tensor | None", self.patches.bias)
        images = groups[-1][0] if groups[-1][1] == 1 else 0
        clips, stills = frames.split([frames.shape[0] - images, images])
        parts = []
        if len(groups) > bool(images):
            tubelets = clips.unflatten(0, (-1, self.config.tubelet)).transpose(1, 2)
            stride = self.config.tubelet, self.config.patch, self.config.patch
            parts.append(fn.conv3d(tubelets, weight, bias, stride).squeeze(2))
        if images:  # the sum of the kernel over its frames does for one frame what the kernel does for its repetition
            parts.append(fn.conv2d(stills, weight.sum(2), bias, self.config.patch))
        return joined(parts)

    def _before(self) -> Tensor | None:
        """The tokens before the patches with their positions, `(C, D)`; None if there are none."""
        if not self.before:
            return None
        tokens_CD = torch.cat([self.get_parameter(name) for name in self.before])
        if count := self.config.positions_before:
            tokens_CD = torch.cat([tokens_CD[:count] + self.pos_before, tokens_CD[count:]])
        return tokens_CD

    def _positions(self, grid: Grid, device: torch.device) -> Tensor | None:
        """What is added to the patches of a sample, `(T or 1, P, D)`; None if nothing is."""
        kind, slots = self.config.position, grid[0]
        position: Tensor | None = None
        if kind in ("learned", "learned_joint"):
            wanted = grid if kind == "learned_joint" else (1, *grid[1:])
            position = resized_grid(self.pos_embed, wanted).flatten(1, 2)
        elif kind == "sincos":
            own = cast(Grid, self.config.position_grid or self.config.grid)
            table = sincos_table(math.prod(own), self.config.width, device).unflatten(0, own)
            position = resized_grid(table, grid).flatten(1, 2)
        elif kind == "factorised":
            times = resized_slots(self.get_parameter(AXES[0]), slots)
            rows, columns = (resized_axis(self.get_parameter(axis), side) for axis, side in zip(AXES[1:], grid[1:]))
            position = self.pos_norm(times[:, None, None] + rows[:, None] + columns).flatten(1, 2)
        if self.config.time == "additive" and slots > 1:  # an image has no time
            times = resized_slots(self.time_embed, slots)[:, None]
            position = times if position is None else position + times
        return position

    def _retained(self, slots: Groups, patches: int, tubes: Tensor | None, like: Tensor) -> list[Tensor]:
        """For each group the patches that a training pass retains of each sequence, int64 `(B, K)`; empty if all are.

        `tubes`: the same places in all slots of a sample. Else `drop_tokens`: any patches (DropToken, VATT).
        """
        if tubes is not None:
            parts = tubes.split([samples for samples, _ in slots])
            return [self._in_slots(part, each, patches) for part, (_, each) in zip(parts, slots, strict=True)]
        if not (self.training and self.config.drop_tokens):
            return []
        rows = {}
        for each in dict.fromkeys(each for _, each in slots):
            count = max(1, round((1 - self.config.drop_tokens) * each * patches))
            rows[each] = torch.randperm(each * patches, device=like.device)[:count].sort().values
        return [rows[each].expand(samples, -1) for samples, each in slots]

    def _in_slots(self, places_SK: Tensor, slots: int, patches: int) -> Tensor:
        """Places of samples as patches of their sequences, `(B, K')`."""
        if self.config.attention != "joint":
            return places_SK.repeat_interleave(slots, 0)
        offsets = torch.arange(slots, device=places_SK.device)[:, None] * patches
        return (places_SK[:, None] + offsets).flatten(1)

    def _runs(self, frames: Tensor, groups: Groups, slots: Groups) -> list[Runs]:
        """The runs of equal patches of every sample, with joint attention; empty without `static_patches`."""
        if self.static is None or self.config.attention != "joint" or frames.device.type == "meta":
            return []
        std = torch.tensor(self.config.std, device=frames.device).view(3, 1, 1)
        runs = []
        for part, (_, length), group in zip(
            frames.split([samples * length for samples, length in groups]), groups, slots, strict=True
        ):
            tubelet = self.config.tubelet if length > 1 else 1
            values = patch_values(part, std, self.config.patch, tubelet).unflatten(0, group)
            runs += [runs_of(repeats) for repeats in unchanged(values, self.static)]
        return runs

    def _rotation(self, grid: Grid, retained: Sequence[Tensor], device: torch.device) -> Rotation | None:
        """The rotary angles of the sequences of one entry: of their retained patches alone if only some are."""
        config, channels = self.config, self.config.width // self.config.attention_heads
        angles = rotary_angles(config.rotary, config.prefix, grid, channels, config.rotary_grid, device)
        if angles is None or not retained:
            return angles
        rows = fn.pad(config.prefix + joined(list(retained)), (config.prefix, 0))
        rows[:, : config.prefix] = torch.arange(config.prefix, device=device)
        return angles[0][rows], angles[1][rows]

    # --- one entry per frame ------------------------------------------------------------------------------------------

    def to_frames(self, tokens: Embedded, groups: Groups) -> Tensor:
        """The tokens as `(F, C + P, D)`: each frame has a copy of its slot.

        With joint attention, every slot has a copy of the tokens before the patches.
        """
        x_ND, layout = tokens
        parts, entries = x_ND.split([samples * count for samples, count in layout.samples]), []
        for part, shape, (_, slots), (_, frames) in zip(parts, layout.samples, layout.slots, groups, strict=True):
            x_SKD = part.unflatten(0, shape)
            if self.config.attention == "joint":
                before, patches = x_SKD.split([self.config.prefix, shape[1] - self.config.prefix], 1)
                before = before[:, None].expand(-1, slots, -1, -1)
                x_SKD = torch.cat([before, patches.unflatten(1, (slots, -1))], 2).flatten(1, 2)
            entries.append(x_SKD.unflatten(1, (slots, -1)).repeat_interleave(frames // slots, 1).flatten(0, 1))
        return joined(entries)

    def from_frames(self, x_FKD: Tensor, groups: Groups, learned: bool = False) -> Embedded:
        """The inverse of `to_frames`. `learned`: the tokens of a slot have no places (`TokenLearner`).

        Raises ValueError for patches that are no square.
        """
        prefix, patches = self.config.prefix, x_FKD.shape[1] - self.config.prefix
        side = math.isqrt(patches)
        place = self.config.grid[1:] if patches == math.prod(self.config.grid[1:]) else (side, side)
        place = (1, patches) if learned else place
        if math.prod(place) != patches:
            raise ValueError(f"{patches} patches of a slot are no square")
        slots, parts = self.slots(groups), []
        entries = x_FKD.split([samples * frames for samples, frames in groups])
        for part, (samples, frames), (_, each) in zip(entries, groups, slots, strict=True):
            x_STKD = part.unflatten(0, (samples, frames))[:, :: frames // each]
            if self.config.attention == "joint":
                x_STKD = torch.cat([x_STKD[:, 0, :prefix], x_STKD[:, :, prefix:].flatten(1, 2)], 1)
            parts.append(x_STKD.flatten(0, -2))
        return Embedded(joined(parts), self.layout(slots, place, x_FKD.device))
