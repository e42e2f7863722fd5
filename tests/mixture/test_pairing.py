"""Who is mixed with whom: samples of one head, fixed by the schedule, the same whatever the ranks and micro-batches."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cover.errors import UserError
from cover.mixture.dataset import MixtureDataset
from cover.mixture.loader import packs
from cover.mixture.mixture import Mixture
from cover.mixture.pack import Pack, split_pack
from cover.mixture.rates import Data
from cover.mixture.schedule import Draw, Pairing, Schedule, split_batch
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.training.step import StepSettings, forward_backward
from cover.transforms.colour import ColourJitter
from cover.transforms.erasing import RandomErasing
from cover.transforms.mixup import Mixup

SIZE = 16
HEADS = {"a": "a", "b": "b", "c": "bc", "d": "bc", "e": "e"}


def datasets(crops: int = 1) -> list[MixtureDataset]:
    frames = {"a": 8, "b": 8, "c": 8, "d": 8, "e": 1}
    rates = {"a": 0.3, "b": 0.1, "c": 0.15, "d": 0.2, "e": 0.25}
    return [
        MixtureDataset(n, np.arange(5, 40), frames[n], Fraction(rate), crops if frames[n] > 1 else 1)
        for n, rate in rates.items()
    ]


def make_schedule(pairing: Pairing | None, crops: int = 1, batch: int = 48, divisor: int = 1) -> Schedule:
    return Schedule(3, split_batch(datasets(crops), batch, divisor, paired=pairing is not None), pairing)


def pairs_of(draws: tuple[Draw, ...]) -> list[tuple[Draw, Draw]]:
    return list(zip(draws[::2], draws[1::2], strict=False))


def mixed_pairs(pairing: Pairing, draws: tuple[Draw, ...]) -> list[tuple[Draw, Draw]]:
    partner, lam, _ = pairing.mix([draws], SIZE)
    for number, step in enumerate(partner.tolist()):
        assert partner[number + step] == -step
        assert lam[number + step] == lam[number]
        assert step or not lam[number]
    return [(draws[number], draws[number + step]) for number, step in enumerate(partner.tolist()) if step > 0]


@pytest.mark.parametrize("crops", [1, 2, 3])
def test_the_same_draws_in_pairs_of_one_head_and_two_clips(crops: int) -> None:
    pairing = Pairing(HEADS, Mixup(0.8))
    for step in range(12):
        plain, paired = (make_schedule(way, crops).step(step) for way in (None, pairing))
        for before, after in zip(plain, paired, strict=True):
            assert Counter(before) == Counter(after)
            heads = Counter(HEADS[draw.dataset] for draw in after)
            output = mixed_pairs(pairing, after)
            assert all(HEADS[x.dataset] == HEADS[y.dataset] and x.clip != y.clip for x, y in output)
            possible = sum(count // 2 for count in heads.values())
            assert len(output) == possible if crops == 1 else len(output) >= possible - crops * len(heads)


def test_the_order_is_mixed_among_the_data_sets() -> None:
    (clips, _) = make_schedule(Pairing(HEADS, Mixup(1))).step(0)
    heads = [HEADS[x.dataset] for x, _ in pairs_of(clips)]
    assert heads != sorted(heads)
    assert sum(a != b for a, b in pairwise(heads)) > len(set(heads))


def test_the_crops_of_a_clip_stay_near_each_other() -> None:
    (clips, _) = make_schedule(Pairing(HEADS, Mixup(1)), crops=2).step(0)
    places: dict[tuple[str, int, int], list[int]] = {}
    for place, draw in enumerate(clips):
        places.setdefault(draw.clip, []).append(place)
    near = [both[1] - both[0] <= 3 for both in places.values() if len(both) == 2]
    assert np.mean(near) > 0.8, "so that one decode serves both, and few wait"


def test_partners_and_weights_come_from_the_draws_alone() -> None:
    pairing = Pairing(HEADS, Mixup(0.8, 1))
    for step in (0, 7):
        draws = make_schedule(pairing).step(step)
        torch.manual_seed(step)
        np.random.seed(step)
        first, again = pairing.mix(draws, SIZE), pairing.mix(make_schedule(pairing).step(step), SIZE)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("ways", [1, 2, 3])
def test_slices_mix_as_the_whole_step_does(ways: int) -> None:
    pairing = Pairing(HEADS, Mixup(0.8, 1))
    schedule = make_schedule(pairing, divisor=ways)
    for step in range(5):
        whole = pairing.mix(schedule.step(step), SIZE)
        of_draw = {
            d: tuple(x[n].tolist() for x in whole)
            for n, d in enumerate(d for group in schedule.step(step) for d in group)
        }
        for rank in range(ways):
            mine = schedule.rank_step(step, rank, ways)
            part = pairing.mix(mine, SIZE)
            for number, draw in enumerate(draw for group in mine for draw in group):
                assert tuple(x[number].tolist() for x in part) == of_draw[draw]


def test_a_step_whose_pairs_would_be_parted() -> None:
    pairing = Pairing(HEADS, Mixup(1))
    make_schedule(pairing, batch=20)  # 15 clips and 5 images: the odd ones stay as they are
    with pytest.raises(UserError, match=r"multiple of 2 x ranks x accumulation = 10") as error:
        make_schedule(pairing, batch=20, divisor=5)
    assert "\n" not in str(error.value)
    make_schedule(None, batch=20, divisor=5)


def test_the_chance_of_a_pair_is_the_smaller_one() -> None:
    draws = tuple(Draw("c" if number % 2 else "d", number, 0, number * 7919) for number in range(4000))
    partner, lam, _ = Pairing(HEADS, Mixup(0.8, 1.0), {"c": 0.5, "d": 0.9}).mix([draws], 32)
    assert (partner != 0).float().mean() == pytest.approx(0.5, abs=0.04)
    assert not lam[partner == 0].any()


# --- real files, real steps -------------------------------------------------------------------------------------------


def gradients(mixture: Mixture, parts: list[Pack], batch: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = CoVeR(TimeSformerConfig(width=16, depth=2, attention_heads=2, patch=8, size=SIZE), mixture.heads)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    settings = StepSettings(batch=batch, loss_weights=torch.ones(2), drop_path=0.3)
    for part in parts:
        forward_backward(model, part, settings)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_ranks_and_micro_batches_train_the_same_mixed_batch(sandbox: Path) -> None:
    mixture = Mixture.open(
        Data(["kinetics", "imagenet"], str(sandbox), frames=4, weights={"kinetics": 1, "imagenet": 1})
    )
    schedule = mixture.schedule(16, ranks=2, accumulation=2, mixup=0.8, cutmix=1.0)
    reader = mixture.reader(SIZE, (ColourJitter(0.2), RandomErasing(0.5)))
    (whole,) = packs(schedule, reader, 1, 2, workers=0)
    ranks = [next(packs(schedule, reader, 1, 2, workers=0, rank=rank, ranks=2)) for rank in (0, 1)]
    assert whole.mix is not None
    assert (whole.mix.partner != 0).all()
    wanted = gradients(mixture, [whole], 16)
    for parts in (
        split_pack(whole, 2),
        split_pack(whole, 4),
        ranks,
        [micro for pack in ranks for micro in split_pack(pack, 2)],
    ):
        for name, result in gradients(mixture, parts, 16).items():
            torch.testing.assert_close(
                result, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max()) + 1e-9
            )
    plain = Schedule(0, schedule.groups)
    unmixed = gradients(mixture, [next(packs(plain, reader, 1, 2, workers=0))], 16)
    assert not torch.allclose(unmixed["backbone.patch_embed.weight"], wanted["backbone.patch_embed.weight"], rtol=1e-2)
