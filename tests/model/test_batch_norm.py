"""BatchNorm over the groups of a Pack: what is normalised together, and the statistics that all share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cover.model.backbone import Groups
from cover.model.batch_norm import MOMENTUM, PackBatchNorm, batch_norms, update_statistics

MIXED: Groups = ((4, 3), (2, 1))
EPS = 1e-3


def norm_of(channels: int = 2, **changes: int) -> PackBatchNorm:
    norm = PackBatchNorm(channels, EPS, **changes)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, -1.0]))
    return norm


def maps(count: int, side: int = 3) -> Tensor:
    return 3 * torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(0)) + 1


def reference(norm: PackBatchNorm) -> nn.BatchNorm2d:
    theirs = nn.BatchNorm2d(2, eps=EPS, momentum=None)
    theirs.load_state_dict({"num_batches_tracked": torch.tensor(0), **_shared(norm)})
    return theirs


def _shared(norm: PackBatchNorm) -> dict[str, Tensor]:
    return {name: norm.state_dict()[name] for name in ("weight", "bias", "running_mean", "running_var")}


def test_one_group_is_torch_batch_norm() -> None:
    norm, x = norm_of(), maps(12).requires_grad_()
    theirs, y = reference(norm), x.detach().clone().requires_grad_()
    for ours, wanted in ((norm(x, ((4, 3),)), theirs(y)),):
        torch.testing.assert_close(ours, wanted)
        ours.square().sum().backward()
        wanted.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(norm.weight.grad, theirs.weight.grad)
    update_statistics(norm)
    torch.testing.assert_close(norm.running_mean, theirs.running_mean)
    torch.testing.assert_close(norm.running_var, theirs.running_var)
    norm.eval(), theirs.eval()
    torch.testing.assert_close(norm(x, MIXED[:1]), theirs(y))


def test_each_group_is_normalised_alone() -> None:
    norm, x = norm_of(), maps(14)
    theirs = reference(norm)
    packed = norm(x, MIXED)
    torch.testing.assert_close(packed, torch.cat([theirs(x[:12]), theirs(x[12:])]))


def test_groups_count_by_their_frames() -> None:
    norm, x = norm_of(), maps(14)
    norm(x, MIXED)
    update_statistics(norm)
    for running, statistic in ((norm.running_mean, torch.mean), (norm.running_var, torch.var)):
        clips, images = (statistic(part, (0, 2, 3)) for part in (x[:12], x[12:]))
        torch.testing.assert_close(running, (12 * clips + 2 * images) / 14)


@pytest.mark.parametrize("groups", [((4, 3),), ((8, 1),), ((6, 2), (4, 1))], ids=str)
def test_parts_of_a_group_are_normalised_alone(groups: Groups) -> None:
    norm, whole = norm_of(norm_samples=2), norm_of()
    x = maps(sum(samples * frames for samples, frames in groups))
    parts = [part for samples, frames in groups for part in [(2, frames)] * (samples // 2)]
    torch.testing.assert_close(norm(x, groups), whole(x, tuple(parts)))
    torch.testing.assert_close(norm.pending, whole.pending)


def test_a_group_that_does_not_divide_is_normalised_as_a_whole() -> None:
    norm, whole, x = norm_of(norm_samples=2), norm_of(), maps(9)
    torch.testing.assert_close(norm(x, ((3, 3),)), whole(x, ((3, 3),)))


def test_one_value_has_no_variance() -> None:
    norm, x = norm_of(), maps(5, side=1)
    before = norm(x[:4], ((2, 2),)), norm.pending.clone()
    packed = norm(x, ((2, 2), (1, 1)))
    torch.testing.assert_close(packed[:4], before[0])
    torch.testing.assert_close(norm.pending, 2 * before[1])
    torch.testing.assert_close(packed[4:], norm.eval()(x[4:], ((1, 1),)))


def test_micro_batches_are_one_step() -> None:
    parts, whole, x = norm_of(norm_samples=2), norm_of(norm_samples=2), maps(12)
    for part in x.split(6):
        parts(part, ((2, 3),))
    whole(x, ((4, 3),))
    for norm in (parts, whole):
        update_statistics(norm)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_ranks_share_one_sum() -> None:
    norm, x = norm_of(), maps(6)
    norm(x, ((2, 3),))
    update_statistics(norm, total=lambda sums: 2 * sums)  # two ranks with the same samples
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))


def test_the_first_step_replaces_zeros_and_ones() -> None:
    norm, means = norm_of(), []
    for step in range(40):
        x = maps(6) + step
        norm(x, ((2, 3),))
        update_statistics(norm)
        means.append(x.mean((0, 2, 3)))
        if step < 1 / MOMENTUM:
            torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    wanted = torch.stack(means[:10]).mean(0)
    for mean in means[10:]:
        wanted = torch.lerp(wanted, mean, MOMENTUM)
    torch.testing.assert_close(norm.running_mean, wanted)
    assert int(norm.updates) == 40


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    norm = norm_of()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(maps(6) * float("nan"), ((2, 3),))
    update_statistics(norm, finite=torch.tensor(False))
    torch.testing.assert_close(norm.state_dict(), before)
    assert not norm.pending.any()


def test_frozen_statistics() -> None:
    x = maps(14)
    evaluated = norm_of().eval()(x, MIXED)
    kept, frozen = norm_of(batch_statistics=False), norm_of()
    frozen.weight.requires_grad_(False)
    for norm in (kept, frozen):
        assert batch_norms(norm) == {}
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        torch.testing.assert_close(norm(x, MIXED), evaluated)
        update_statistics(norm)
        torch.testing.assert_close(norm.state_dict(), before)


def test_bfloat16_is_normalised_by_float32_statistics() -> None:
    norm, x = norm_of(), maps(14)
    wanted = norm(x, MIXED)
    with torch.autocast("cpu", torch.bfloat16):
        ours = norm(x.bfloat16(), MIXED)
    assert ours.dtype == torch.bfloat16
    assert norm.pending.dtype == torch.float32
    torch.testing.assert_close(ours.float(), wanted, rtol=0.05, atol=0.05)
