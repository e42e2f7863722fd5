"""Pooling over the frames of a sample, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cover.model.pooling import FramePool, fitted_head

CHANNELS = 40


def features(frames: int) -> Tensor:
    return torch.randn(frames, CHANNELS, generator=torch.Generator().manual_seed(frames))


def test_the_mean() -> None:
    x = features(7)
    pooled = FramePool("mean", CHANNELS)(x, ((1, 5), (2, 1)))
    np.testing.assert_allclose(pooled, np.stack([x[:5].numpy().mean(0), x[5], x[6]]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames", [4, 8, 16])
def test_quarters_are_the_means_of_equal_parts(frames: int) -> None:
    x = features(frames)
    pool = FramePool("quarters", CHANNELS)
    (pooled,) = pool(x, ((1, frames),))
    assert pool.width == 4 * CHANNELS
    wanted = np.concatenate([part.mean(0) for part in np.array_split(x.numpy(), 4)])
    np.testing.assert_allclose(pooled, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6, 7, 9, 10, 11])
def test_quarters_of_other_lengths_are_those_of_adaptive_pooling(frames: int) -> None:
    x = features(frames)
    wanted = torch.nn.functional.adaptive_avg_pool1d(x.T[None], 4)[0].T.flatten()
    torch.testing.assert_close(FramePool("quarters", CHANNELS)(x, ((1, frames),))[0], wanted)


def attention_by_hand(pool: FramePool, x: np.ndarray) -> np.ndarray:
    """The attentive pooling of one clip `(T, C)`, head by head in float64."""
    weights = {name: value.detach().double().numpy() for name, value in pool.attention.state_dict().items()}
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    normed = normed * weights["norm.weight"] + weights["norm.bias"]
    keys = normed @ weights["key.weight"].T + weights["key.bias"]
    values = normed @ weights["value.weight"].T + weights["value.bias"]
    mixed = []
    for begin in range(0, keys.shape[1], 32):
        head = slice(begin, begin + 32)
        # Channels i and i + 16 are a complex number, which each frame turns by another angle.
        key = keys[:, head][:, :16] + 1j * keys[:, head][:, 16:]
        key = key * np.exp(1j * np.arange(len(x))[:, None] * 100.0 ** (-np.arange(16) / 16))
        query = weights["query"][head][:16] + 1j * weights["query"][head][16:]
        scores = (key * query.conj()).real.sum(1) / np.sqrt(32)
        attention = np.exp(scores) / np.exp(scores).sum()
        mixed.append(attention @ values[:, head])
    return x.mean(0) + np.concatenate(mixed) @ weights["proj.weight"].T + weights["proj.bias"]


def test_attentive_by_hand() -> None:
    pool = FramePool("attentive", 256).double()
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(7, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pooled = pool(x, ((1, 6), (1, 1)))
    assert (pooled[0] - x[:6].mean(0)).abs().max() > 0.1
    # The angles are float32 in the network.
    np.testing.assert_allclose(pooled[0].detach(), attention_by_hand(pool, x[:6].numpy()), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled[1].detach(), attention_by_hand(pool, x[6:].numpy()), rtol=1e-4, atol=1e-5)


def test_a_new_attentive_pool_is_the_mean() -> None:
    pool, x = FramePool("attentive", CHANNELS), features(6)
    torch.nn.init.zeros_(pool.attention.proj.bias)  # by the general rule of `CoVeR`
    pool.initialise()
    torch.testing.assert_close(pool(x, ((1, 6),))[0], x.mean(0))


def test_a_classifier_of_the_mean_fits_quarters() -> None:
    x, weight = features(8), torch.randn(3, CHANNELS)
    fitted = fitted_head(weight, "quarters", "mean")
    assert fitted is not None
    of_mean = FramePool("mean", CHANNELS)(x, ((1, 8),)) @ weight.T
    torch.testing.assert_close(FramePool("quarters", CHANNELS)(x, ((1, 8),)) @ fitted.T, of_mean)
    assert fitted_head(weight, "attentive", "mean") is weight
    assert fitted_head(fitted, "mean", "quarters") is None
