"""The roll-out is that of full token-to-token matrices, built here from the parameters alone; and it finds what a model
reads.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as fn

from cover.model.backbone import Heat
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head

CONFIG: dict[str, Any] = {
    "width": 24,
    "depth": 3,
    "attention_heads": 3,
    "patch": 4,
    "size": 12,
    "frames": 5,
    "layer_scale": 0.7,
}
HEADS = (Head("things", ("cat", "dog")), Head("moves", ("up", "down", "left"), loss="sigmoid"))
MODES = pytest.mark.parametrize(
    "mode",
    [
        {},
        {"time": "additive"},
        {"attention": "joint"},
        {"attention": "joint", "time": "additive"},
        {"attention": "space"},
    ],
    ids=lambda mode: " ".join(mode.values()) or "divided",
)
SHAPES = pytest.mark.parametrize(("count", "height", "width"), [(5, 12, 12), (3, 8, 16), (1, 12, 12)])


def build(**changes: Any) -> CoVeR:
    """Every parameter random, and attention far from even."""
    model = CoVeR(TimeSformerConfig(**{**CONFIG, **changes}), HEADS).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.35, generator=generator)
    return model


def clip(count: int = 5, height: int = 12, width: int = 12) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- the same with whole matrices


class Whole:
    """The network on one list of tokens, with a P x P matrix for every attention head of every step: token 0 is the
    class token of the clip, or, where frames are kept apart, tokens 0 to T - 1 are those of the frames.
    """

    def __init__(self, model: CoVeR, frames: Tensor) -> None:
        self.weights = {name.removeprefix("backbone."): parameter for name, parameter in model.named_parameters()}
        self.config, self.count = model.config, len(frames)
        self.steps: list[tuple[str, list[Tensor]]] = []
        self.classes = self.count if self.config.attention == "space" else 1
        x = self.embedded(model, frames)
        self.each = (len(x) - self.classes) // self.count
        for number in range(self.config.depth):
            if self.config.attention == "divided" and not (self.count == 1 and self.config.image_temporal == "skip"):
                x = x + self.attended(x, number, "temporal")
            x = x + self.attended(x, number, "spatial")
            hidden = fn.gelu(self.linear(self.normed(x, f"blocks.{number}.norm2"), f"blocks.{number}.mlp.fc1"))
            x = x + self.linear(hidden, f"blocks.{number}.mlp.fc2") * self.weights[f"blocks.{number}.scale2"]
        features = self.normed(x[: self.classes].mean(0), "norm")
        self.logits = {head.name: self.linear(features, f"heads.{head.name}") for head in HEADS}

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def normed(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt()
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def embedded(self, model: CoVeR, frames: Tensor) -> Tensor:
        """The model's own embedding: what is built anew here begins behind it."""
        intermediates: dict[str, Tensor] = {}
        model.forward_features(frames, ((1, len(frames)),), intermediates=intermediates)
        x = intermediates["embedded"].detach()
        return torch.cat([x[: self.classes, 0], x[:, 1:].flatten(0, 1)])

    def patches(self, frame: int) -> list[int]:
        return [self.classes + frame * self.each + place for place in range(self.each)]

    def attended(self, x: Tensor, number: int, step: str) -> Tensor:
        """A branch, and its matrices noted."""
        block, config = f"blocks.{number}", self.config
        names = (
            ("temporal_norm", "temporal_attn", "temporal_scale") if step == "temporal" else ("norm1", "attn", "scale1")
        )
        norm, attention, scale = (f"{block}.{name}" for name in names)
        q, k, v = (
            self.linear(self.normed(x, norm), f"{attention}.qkv")
            .unflatten(1, (3, config.attention_heads, -1))
            .unbind(1)
        )
        if config.time == "rotary" and (step == "temporal" or config.attention == "joint") and self.count > 1:
            q, k = self.turned(q), self.turned(k)
        scores = torch.einsum("phd,rhd->hpr", q, k) / q.shape[-1] ** 0.5
        matrices = [self.matrix(each, step).clone() for each in scores]
        for matrix in matrices:
            matrix.retain_grad()
        self.steps.append((step, matrices))
        mixed = torch.cat([matrix @ v[:, head] for head, matrix in enumerate(matrices)], 1)
        branch = self.linear(mixed, f"{attention}.proj")
        if step == "temporal":
            branch = self.linear(branch, f"{block}.temporal_fc")
            branch = torch.cat([torch.zeros_like(branch[:1]), branch[1:]])
        return branch * self.weights[scale]

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions: each pair of channels as a complex number, turned by the frame's angle; not the class
        token.
        """
        half = x.shape[-1] // 2
        rates = 100.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        frame = torch.tensor(
            [0] * self.classes + [f for f in range(self.count) for _ in range(self.each)], dtype=torch.float64
        )
        angle = frame[:, None, None] * rates
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], -1)

    def matrix(self, scores: Tensor, step: str) -> Tensor:
        """Which token takes how much of which, `(P, P)`."""
        if self.config.attention == "joint":
            return scores.softmax(-1)
        rows = torch.zeros_like(scores)
        groups = [[self.patches(f)[place] for f in range(self.count)] for place in range(self.each)]
        if step == "spatial":
            groups = [[f if self.classes > 1 else 0, *self.patches(f)] for f in range(self.count)]
        for group in groups:
            index = torch.tensor(group)
            share = scores[index][:, index].softmax(-1)
            if step == "spatial" and self.classes == 1:
                # the class token's outcome is the mean over frames
                share = torch.cat([share[:1] / self.count, share[1:]])
            rows = rows.index_put((index[:, None], index[None]), share, accumulate=True)
        return rows

    def factors(self, weighted: bool) -> list[Tensor]:
        """A matrix for every step, in the order of the computation."""
        results = []
        for step, matrices in self.steps:
            identity = torch.eye(len(matrices[0]), dtype=torch.float64)
            if weighted and step == "temporal" and self.count == 1:
                continue  # a softmax of a single key is 1 whatever it is: nothing is chosen
            if weighted:
                results.append(identity + sum((m.detach() * m.grad).clamp_min(0) for m in matrices) / len(matrices))
                continue
            mean = sum(m.detach() for m in matrices) / len(matrices)
            if step == "temporal":
                mean[0] = identity[0]
            results.append((mean + identity) / (mean + identity).sum(-1, keepdim=True))
        return results

    def rolled(self, weighted: bool = False) -> Tensor:
        """The product of all of them: what is on top comes last."""
        product = torch.eye(self.classes + self.count * self.each, dtype=torch.float64)
        for factor in self.factors(weighted):
            product = factor @ product
        return product

    def check(self, results: Heat, row: Tensor) -> None:
        heat = row[self.classes :].unflatten(0, (self.count, self.each))
        torch.testing.assert_close(results.heat.double().flatten(1), heat / heat.sum(), rtol=1e-4, atol=1e-7)
        assert results.own == pytest.approx(float(row[: self.classes].sum()), rel=1e-5)


@MODES
@SHAPES
def test_the_roll_out_is_that_of_whole_matrices(mode: dict[str, Any], count: int, height: int, width: int) -> None:
    model, frames = build(**mode), clip(count, height, width)
    whole = Whole(model, frames)
    wanted = model(frames, ((1, count),))
    for head, logits in whole.logits.items():
        torch.testing.assert_close(logits, wanted[head][0], rtol=1e-5, atol=1e-6)
    rolled = whole.rolled()
    torch.testing.assert_close(rolled.sum(-1), torch.ones(len(rolled), dtype=torch.float64))
    assert all(bool((factor >= 0).all()) for factor in whole.factors(False))
    result = model.heat(frames)
    whole.check(result, rolled[: whole.classes].mean(0))
    assert result.heat.shape == (count, height // 4, width // 4)
    assert result.own + float(rolled[: whole.classes, whole.classes :].mean(0).sum()) == pytest.approx(1)


@MODES
@SHAPES
def test_the_heat_of_a_class_is_that_of_whole_matrices(
    mode: dict[str, Any], count: int, height: int, width: int
) -> None:
    model, frames = build(**mode), clip(count, height, width)
    heats = []
    for head, place in (("things", 1), ("moves", 0), ("moves", 2)):
        whole = Whole(model, frames)
        whole.logits[head][place].backward()
        result = model.heat(frames, head, place)
        whole.check(result, whole.rolled(weighted=True)[: whole.classes].mean(0))
        torch.testing.assert_close(result.frame_weights, result.heat.flatten(1).sum(1))
        assert float(result.frame_weights.sum()) == pytest.approx(1)
        heats.append(result.heat)
    assert float((heats[0] - heats[1]).abs().sum()) > 0.05  # every class has its own
    assert float((heats[1] - heats[2]).abs().sum()) > 0.05


def test_an_image_passes_over_time_however_it_is_trained() -> None:
    """A branch of a single key is the identity, whether it is computed or left out; and clips keep their attention in
    time.
    """
    model, frames = build(image_temporal="skip"), clip(1)
    whole = Whole(model, frames)
    whole.check(model.heat(frames), whole.rolled()[0])
    with model.backbone.attention_maps() as maps:
        model(clip(5), ((1, 4), (1, 1)))
    assert {name.rpartition(".")[2]: len(attended) for name, attended in maps.items()} == {
        "attn": 1,
        "temporal_attn": 1,
    }
    assert maps["blocks.0.temporal_attn"][0].q.shape == (1, 10 * 3, 4, 8)


def test_looking_changes_nothing() -> None:
    model, frames = build(), clip()
    before = model(frames, ((1, 5),))
    model.heat(frames, "things", 0)
    with model.backbone.attention_maps():
        inside = model(frames, ((1, 5),))
    after = model(frames, ((1, 5),))
    for head in before:
        assert torch.equal(before[head], inside[head])
        assert torch.equal(before[head], after[head])
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(AssertionError, match="twice"):
        build(dropout=0.5).train().heat(frames)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_whoever_has_switched_gradients_off_may_ask(mode: Any) -> None:
    model, frames = build(), clip()
    wanted = [model.heat(frames, "things", 1).heat, model.heat(frames).heat]
    with mode():
        own = frames + 0  # made in that mode
        results = [model.heat(own, "things", 1).heat, model.heat(own).heat]
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
    assert all(torch.equal(one, other) and not other.is_inference() for one, other in zip(wanted, results, strict=True))
    assert not any(heat.requires_grad for heat in results)


def test_a_roll_out_asks_before_every_layer_and_ends_when_it_is_told() -> None:
    model, frames, requested, computed = build(), clip(), list[int](), list[int]()
    model.heat(frames, "things", 0, check=lambda: requested.append(1))
    model.heat(frames, check=lambda: requested.append(2))
    assert requested == [1] * 6 + [2] * 6  # three layers, each computed twice
    for before in range(6):
        requested.clear()
        computed.clear()

        def check() -> None:
            requested.append(0)
            if len(requested) > before:  # noqa: B023
                raise InterruptedError

        hooks = [block.register_forward_hook(lambda *arguments: computed.append(1)) for block in model.backbone.blocks]
        with pytest.raises(InterruptedError):
            model.heat(frames, "things", 0, check)
        for hook in hooks:
            hook.remove()
        assert len(computed) == before
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.backbone.blocks)


def test_a_roll_out_within_a_look_at_attention_leaves_it_its_own() -> None:
    model, frames = build(), clip()
    with model.backbone.attention_maps() as outer:
        model.heat(frames)  # one pass, and the layers again on their own
        with model.backbone.attention_maps() as inner:
            model(frames, ((1, 5),))
        model(frames, ((1, 5),))
    model(frames, ((1, 5),))
    assert [len(attended) for attended in inner.values()] == [1] * 6
    assert [len(attended) for attended in outer.values()] == [2] * 6


def test_a_classifier_that_reads_nothing_has_no_heat() -> None:
    model = build()
    torch.nn.init.zeros_(model.heads["things"].weight)
    result = model.heat(clip(), "things", 0)
    assert not bool(result.heat.any())
    assert not bool(result.heat.isnan().any())


# --- what a model reads


def planted(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clips of noise with two marks, each in a frame and a patch of its own: a colour of two, and stripes of two
    directions.

    Returns frames `(count, 4, 3, 16, 16)`, the two labels `(2, count)`, and the marks' frames and patches `(2, count)`
    each.
    """
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(count, 4, 3, 16, 16, generator=generator) * 0.6 - 0.3
    labels = torch.randint(2, (2, count), generator=generator)
    when = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(count)], 1)
    where = torch.randint(16, (2, count), generator=generator)
    stripes = torch.tensor([-1.0, 1.0, -1.0, 1.0]).expand(3, 4, 4)
    for number in range(count):
        tint = torch.zeros(3, 4, 4)
        tint[0 if labels[0, number] else 2] = 1.5
        for mark, pixels in enumerate((tint, stripes.mT if labels[1, number] else stripes)):
            top, left = 4 * (int(where[mark, number]) // 4), 4 * (int(where[mark, number]) % 4)
            frames[number, when[mark, number], :, top : top + 4, left : left + 4] = pixels
    return frames, labels, when, where


def trained() -> CoVeR:
    """A model that names both marks. Of one layer: deeper ones need not read a mark where it lies, for patches tell
    each other.
    """
    torch.manual_seed(0)
    heads = (Head("colour", ("blue", "red")), Head("stripes", ("upright", "level")))
    model = CoVeR(TimeSformerConfig(width=32, depth=1, attention_heads=2, patch=4, size=16, frames=4), heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(120):
        frames, labels, _, _ = planted(32, step)
        logits = model(frames.flatten(0, 1), ((32, 4),))
        loss = fn.cross_entropy(logits["colour"], labels[0]) + fn.cross_entropy(logits["stripes"], labels[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2
    return model.eval()


def test_the_heat_lies_on_what_a_head_reads() -> None:
    """The roll-out finds both marks, which is all it can; the heat of a class the one that it is told by."""
    model, count, even = trained(), 24, 1 / 64
    frames, labels, when, where = planted(count, 1000)
    heat, rolled = torch.zeros(2, 2), torch.zeros(2)  # of head by mark
    for number in range(count):
        places = (when[:, number], where[:, number])
        rolled += model.heat(frames[number]).heat.flatten(1)[places] / count
        for place, head in enumerate(("colour", "stripes")):
            heat[place] += model.heat(frames[number], head, int(labels[place, number])).heat.flatten(1)[places] / count
    assert bool((rolled > 5 * even).all())
    assert bool((heat.diagonal() > 20 * even).all())
    assert bool((heat.fliplr().diagonal() < heat.diagonal() / 5).all())
