"""What is done to the pixels of a Pack on its device: RandAugment, erasing, mixing. Needs torch alone.

Nothing here is random: what is to be done was drawn with each sample (media/randaugment.py, mixture/mixing.py) and comes in the Pack.
Clips are `(S, T, 3, H, W)`, and what is done to one is done to all its frames alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as fn
from torch import Tensor

from cover.model.backbone import per_frame

if TYPE_CHECKING:
    from cover.media.randaugment import Change
    from cover.mixture.pack import Pack

FILL = 128  # what lies outside a picture that was moved
LUMA = (19595, 38470, 7471)  # Pillow's weights of a grey, in 65536ths


def change_pixels(pack: Pack) -> Pack:
    """The Pack with its RandAugment changes made. Which samples are changed is known on the host, so that no device waits for another."""
    if not any(pack.changes):
        return pack
    frames, first = [], 0
    parts = pack.frames.split([samples * length for samples, length in pack.groups])
    for part, (samples, length) in zip(parts, pack.groups, strict=True):
        frames.append(changed(part.unflatten(0, (samples, length)), pack.changes[first : first + samples]).flatten(0, 1))
        first += samples
    return replace(pack, frames=torch.cat(frames), changes=())


def changed(clips: Tensor, changes: Sequence[Change | None]) -> Tensor:
    """uint8 clips `(S, T, 3, H, W)` with the change of each made: moved first, then tone after tone."""
    clips = clips.clone()
    moved = [number for number, change in enumerate(changes) if change and change.warp]
    if moved:
        clips[moved] = warped(clips[moved], [change.warp for change in changes if change and change.warp])
    tones = [change.tones if change else () for change in changes]
    for layer in range(max(map(len, tones))):
        for name, make in TONES.items():
            mine = [number for number, each in enumerate(tones) if layer < len(each) and each[layer][0] == name]
            if mine:
                amounts = torch.tensor([tones[number][layer][1] for number in mine], dtype=torch.float32, device=clips.device)
                clips[mine] = make(clips[mine], amounts)
    return clips


def warped(clips: Tensor, maps: Sequence[tuple[float, ...]]) -> Tensor:
    """Clips moved by their affine maps (`Change.warp`), bilinear, `FILL` outside. All frames of a clip share one grid."""
    samples, length, channels, height, width = clips.shape
    shape = (samples, length * channels, height, width)
    grid = fn.affine_grid(torch.tensor(maps, dtype=torch.float32, device=clips.device).view(-1, 2, 3), list(shape), align_corners=False)
    moved = fn.grid_sample(clips.reshape(shape).float() - FILL, grid, align_corners=False)
    return (moved + FILL).round_().to(torch.uint8).view_as(clips)


# --- tones: Pillow's arithmetic, over a clip where Pillow has one picture -----------------------------------------------------------


def _levels(clips: Tensor) -> Tensor:
    return torch.arange(256, device=clips.device)


def _looked_up(clips: Tensor, tables: Tensor) -> Tensor:
    """Every value replaced by that in a table: `(S, 3 or 1, 256)`, float or integer within 0 to 255, cut down to whole numbers."""
    samples, length, channels, height, width = clips.shape
    values = clips.transpose(1, 2).reshape(samples, channels, -1)
    found = tables.clamp(0, 255).to(torch.uint8).expand(-1, channels, -1).gather(2, values.long())
    return found.view(samples, channels, length, height, width).transpose(1, 2)


def _histograms(clips: Tensor) -> Tensor:
    """How often each value comes in a channel of a clip, int64 `(S, 3, 256)`."""
    values = clips.transpose(1, 2).flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=clips.device)
    return counts.scatter_add_(2, values, torch.ones_like(values))


def autocontrast(clips: Tensor, _: Tensor) -> Tensor:
    """Every channel stretched to 0 to 255."""
    low, high = (edge.float() for edge in clips.transpose(1, 2).flatten(2).aminmax(dim=2))
    scale = 255 / (high - low).clamp(min=1)
    stretched = (_levels(clips) - low[..., None]) * scale[..., None] + 1e-3  # float32 may end just below a whole number
    return _looked_up(clips, torch.where((high > low)[..., None], stretched, _levels(clips).float()))


def equalize(clips: Tensor, _: Tensor) -> Tensor:
    """Every channel's histogram made flat."""
    counts = _histograms(clips)
    last = counts.gather(2, (counts > 0).long().mul(_levels(clips)).argmax(2, keepdim=True))
    step = (counts.sum(2, keepdim=True) - last) // 255
    flat = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    return _looked_up(clips, torch.where(step > 0, flat, _levels(clips)))


def solarize(clips: Tensor, thresholds: Tensor) -> Tensor:
    """Values from the threshold on turned round."""
    levels = _levels(clips)
    return _looked_up(clips, torch.where(levels < thresholds[:, None, None], levels, 255 - levels))


def posterize(clips: Tensor, bits: Tensor) -> Tensor:
    """Only the highest bits kept."""
    unit = 2 ** (8 - bits[:, None, None]).long()
    return _looked_up(clips, _levels(clips) // unit * unit)


def brightness(clips: Tensor, factors: Tensor) -> Tensor:
    """Away from black, or towards it."""
    return _looked_up(clips, _levels(clips) * factors[:, None, None])


def contrast(clips: Tensor, factors: Tensor) -> Tensor:
    """Away from the clip's mean grey, or towards it."""
    mean = (_grey(clips).double().mean((1, 2, 3, 4)) + 0.5).floor().float()[:, None, None]
    return _looked_up(clips, mean + factors[:, None, None] * (_levels(clips) - mean))


def colour(clips: Tensor, factors: Tensor) -> Tensor:
    """Away from each pixel's grey, or towards it."""
    return _blend(_grey(clips), clips, factors)


def sharpness(clips: Tensor, factors: Tensor) -> Tensor:
    """Away from the smoothed picture, or towards it; a border of one pixel stays, as in Pillow."""
    kernel = torch.ones(1, 1, 3, 3, device=clips.device)
    kernel[0, 0, 1, 1] = 5
    planes = clips.reshape(-1, 1, *clips.shape[3:]).float()
    smooth = clips.clone().view_as(planes)
    smooth[..., 1:-1, 1:-1] = (fn.conv2d(planes, kernel / 13) + 0.5).to(torch.uint8)
    return _blend(smooth.view_as(clips), clips, factors)


def _blend(from_: Tensor, clips: Tensor, factors: Tensor) -> Tensor:
    mixed = torch.lerp(from_.float().expand(clips.shape), clips.float(), factors.view(-1, 1, 1, 1, 1))
    return mixed.clamp_(0, 255).to(torch.uint8)


def _grey(clips: Tensor) -> Tensor:
    red, green, blue = clips.int().split(1, 2)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 0x8000) >> 16


TONES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    make.__name__: make for make in (autocontrast, equalize, solarize, posterize, colour, contrast, brightness, sharpness)
}


# --- erasing and mixing, of normalised frames ---------------------------------------------------------------------------------------


def erased(frames: Tensor, boxes_S4: Tensor, groups: tuple[tuple[int, int], ...]) -> Tensor:
    """Normalised frames `(F, 3, H, W)` with each sample's box (left, top, right, bottom; empty for none) at zero, the mean colour."""
    return frames.masked_fill(_in_boxes(boxes_S4, frames)[_sample_of_frame(boxes_S4, groups)], 0)


def mixed(frames: Tensor, pack: Pack) -> tuple[Tensor, Tensor, Tensor]:
    """Frames mixed with those of each sample's partner; and of every sample the partner's place and share, `(S,)` both.

    Where one of the two could not be read the share is 0: the other is trained as it is.
    """
    assert pack.partner is not None
    assert pack.share is not None
    assert pack.cut is not None
    partner_S = torch.arange(len(pack.partner), device=frames.device) + pack.partner
    share_S = pack.share * pack.weight * pack.weight[partner_S]
    inside = _in_boxes(pack.cut, frames)
    pasted = (pack.cut[:, 2] > pack.cut[:, 0]).view(-1, 1, 1, 1)
    share_S1HW = torch.where(pasted, inside.to(frames.dtype) * (share_S > 0).view(-1, 1, 1, 1), share_S.view(-1, 1, 1, 1))
    parts = pack.partner.split([samples for samples, _ in pack.groups])
    away_F = torch.cat([part.repeat_interleave(length) * length for part, (_, length) in zip(parts, pack.groups, strict=True)])
    partners = frames[torch.arange(len(frames), device=frames.device) + away_F]
    return torch.lerp(frames, partners, share_S1HW[_sample_of_frame(pack.cut, pack.groups)]), partner_S, share_S


def _sample_of_frame(per_sample: Tensor, groups: tuple[tuple[int, int], ...]) -> Tensor:
    return per_frame(torch.arange(len(per_sample), device=per_sample.device), groups)


def _in_boxes(boxes_S4: Tensor, frames: Tensor) -> Tensor:
    """bool `(S, 1, H, W)`: which pixels lie in each box."""
    left, top, right, bottom = boxes_S4[:, :, None].unbind(1)
    x, y = (torch.arange(side, device=frames.device) for side in (frames.shape[3], frames.shape[2]))
    return (((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :])[:, None]
