"""Who is mixed with whom: samples of one head, fixed by the schedule, the same whatever the ranks and micro-batches."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import open_manifest
from cover.errors import UserError
from cover.mixture.loader import Augmentation, Member, SampleReader, packs
from cover.mixture.mixing import Mixing, cut_box
from cover.mixture.pack import Pack, split_pack
from cover.mixture.schedule import Draw, Schedule, Source, rates_by, split_batch
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.training.step import StepSettings, forward_backward

SIZE = 16
HEADS = {"a": "a", "b": "b", "c": "bc", "d": "bc", "e": "e"}


def sources(crops: int = 1) -> list[Source]:
    frames = {"a": 8, "b": 8, "c": 8, "d": 8, "e": 1}
    rates = {"a": 0.3, "b": 0.1, "c": 0.15, "d": 0.2, "e": 0.25}
    return [Source(n, np.arange(5, 40), frames[n], Fraction(rate), crops if frames[n] > 1 else 1) for n, rate in rates.items()]


def make_schedule(mixing: Mixing | None, crops: int = 1, batch: int = 48, divisor: int = 1) -> Schedule:
    return Schedule(3, split_batch(sources(crops), batch, divisor, paired=mixing is not None), mixing)


def pairs_of(draws: tuple[Draw, ...]) -> list[tuple[Draw, Draw]]:
    return list(zip(draws[::2], draws[1::2], strict=False))


def mixed_pairs(mixing: Mixing, draws: tuple[Draw, ...]) -> list[tuple[Draw, Draw]]:
    partner, share, _ = mixing.blend([draws], SIZE)
    for number, step in enumerate(partner.tolist()):
        assert partner[number + step] == -step
        assert share[number + step] == share[number]
        assert step or not share[number]
    return [(draws[number], draws[number + step]) for number, step in enumerate(partner.tolist()) if step > 0]


@pytest.mark.parametrize("crops", [1, 2, 3])
def test_the_same_draws_in_pairs_of_one_head_and_two_clips(crops: int) -> None:
    mixing = Mixing(HEADS, mixup=0.8)
    for step in range(12):
        plain, paired = (make_schedule(way, crops).step(step) for way in (None, mixing))
        for before, after in zip(plain, paired, strict=True):
            assert Counter(before) == Counter(after)
            heads = Counter(HEADS[draw.dataset] for draw in after)
            made = mixed_pairs(mixing, after)
            assert all(HEADS[x.dataset] == HEADS[y.dataset] and x.clip != y.clip for x, y in made)
            possible = sum(count // 2 for count in heads.values())
            assert len(made) == possible if crops == 1 else len(made) >= possible - crops * len(heads)


def test_the_order_is_mixed_among_the_data_sets() -> None:
    (clips, _) = make_schedule(Mixing(HEADS, mixup=1)).step(0)
    heads = [HEADS[x.dataset] for x, _ in pairs_of(clips)]
    assert heads != sorted(heads)
    assert sum(a != b for a, b in pairwise(heads)) > len(set(heads))


def test_the_crops_of_a_clip_stay_near_each_other() -> None:
    (clips, _) = make_schedule(Mixing(HEADS, mixup=1), crops=2).step(0)
    places: dict[tuple[str, int, int], list[int]] = {}
    for place, draw in enumerate(clips):
        places.setdefault(draw.clip, []).append(place)
    near = [both[1] - both[0] <= 3 for both in places.values() if len(both) == 2]
    assert np.mean(near) > 0.8, "so that one decode serves both, and few wait"


def test_partners_and_shares_come_from_the_draws_alone() -> None:
    mixing = Mixing(HEADS, mixup=0.8, cutmix=1)
    for step in (0, 7):
        draws = make_schedule(mixing).step(step)
        torch.manual_seed(step)
        np.random.seed(step)
        first, again = mixing.blend(draws, SIZE), mixing.blend(make_schedule(mixing).step(step), SIZE)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("ways", [1, 2, 3])
def test_slices_mix_as_the_whole_step_does(ways: int) -> None:
    mixing = Mixing(HEADS, mixup=0.8, cutmix=1)
    schedule = make_schedule(mixing, divisor=ways)
    for step in range(5):
        whole = mixing.blend(schedule.step(step), SIZE)
        of_draw = {d: tuple(x[n].tolist() for x in whole) for n, d in enumerate(d for group in schedule.step(step) for d in group)}
        for rank in range(ways):
            mine = schedule.rank_step(step, rank, ways)
            part = mixing.blend(mine, SIZE)
            for number, draw in enumerate(draw for group in mine for draw in group):
                assert tuple(x[number].tolist() for x in part) == of_draw[draw]


def test_a_step_whose_pairs_would_be_parted() -> None:
    mixing = Mixing(HEADS, mixup=1)
    make_schedule(mixing, batch=20)  # 15 clips and 5 images: the odd ones stay as they are
    with pytest.raises(UserError, match=r"multiple of 2 x ranks x accumulation = 10") as error:
        make_schedule(mixing, batch=20, divisor=5)
    assert "\n" not in str(error.value)
    make_schedule(None, batch=20, divisor=5)


def test_mixup_and_cutmix_take_turns_and_the_chance_is_the_smaller_one() -> None:
    draws = tuple(Draw("c" if number % 2 else "d", number, 0, number * 7919) for number in range(4000))
    partner, share, cut = Mixing(HEADS, 0.8, 1.0, {"c": 0.5, "d": 0.9}).blend([draws], 32)
    assert (partner != 0).float().mean() == pytest.approx(0.5, abs=0.04)
    pasted = cut[:, 2] > cut[:, 0]
    assert pasted[partner != 0].float().mean() == pytest.approx(0.5, abs=0.06)
    area = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1]) / 32**2
    torch.testing.assert_close(share[pasted], area[pasted].float())
    assert share[(partner != 0) & ~pasted].mean() == pytest.approx(0.5, abs=0.04)


def test_a_cut_box_has_its_share_inside_the_picture() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        left, top, right, bottom = cut_box(rng, 0.25, 64)
        assert 0 <= left <= right <= 64
        assert 0 <= top <= bottom <= 64
        areas.append((right - left) * (bottom - top) / 64**2)
    assert max(areas) == pytest.approx(0.25)
    assert cut_box(rng, 1.0, 64) != cut_box(rng, 0.0, 64)


# --- real files, real steps -------------------------------------------------------------------------------------------------------


def members_of(catalog_path: Path) -> list[Member]:
    catalog, members = load_catalog(catalog_path), []
    for place, (name, length) in enumerate({"kinetics": 4, "imagenet": 1}.items()):
        manifest = open_manifest(catalog.manifest_path(name, "train"))
        targets = np.full((len(manifest.classes.names), 2), -1)
        targets[:, place] = np.arange(len(targets))
        members.append(Member(catalog.spec(name), manifest, length, targets))
    return members


def gradients(members: list[Member], parts: list[Pack], batch: int) -> dict[str, torch.Tensor]:
    heads = tuple(Head(m.spec.name, m.manifest.classes.names) for m in members)
    torch.manual_seed(0)
    model = CoVeR(TimeSformerConfig(width=16, depth=2, attention_heads=2, patch=8, size=SIZE), heads)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    settings = StepSettings(batch=batch, loss_weights=torch.ones(2), drop_path=0.3)
    for part in parts:
        forward_backward(model, part, settings)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_ranks_and_micro_batches_train_the_same_mixed_batch(sandbox: Path) -> None:
    members = members_of(sandbox)
    rates = rates_by({"kinetics": 1, "imagenet": 1})
    given = [Source(m.spec.name, m.manifest.usable, m.frames, rates[m.spec.name]) for m in members]
    mixing = Mixing({"kinetics": "kinetics", "imagenet": "imagenet"}, 0.8, 1.0)
    schedule = Schedule(0, split_batch(given, 16, 4, paired=True), mixing)
    reader = SampleReader(members, Augmentation(SIZE, colour=0.2, erase=0.5))
    (whole,) = packs(schedule, reader, 1, 2, workers=0)
    ranks = [next(packs(schedule, reader, 1, 2, workers=0, rank=rank, ranks=2)) for rank in (0, 1)]
    assert whole.partner is not None
    assert (whole.partner != 0).all()
    wanted = gradients(members, [whole], 16)
    for parts in (split_pack(whole, 2), split_pack(whole, 4), ranks, [micro for pack in ranks for micro in split_pack(pack, 2)]):
        for name, found in gradients(members, parts, 16).items():
            torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max()) + 1e-9)
    plain = Schedule(0, schedule.groups)
    unmixed = gradients(members, [next(packs(plain, reader, 1, 2, workers=0))], 16)
    assert not torch.allclose(unmixed["backbone.patch_embed.weight"], wanted["backbone.patch_embed.weight"], rtol=1e-2)
