"""The loss of a multi-label head by hand, beside a softmax's, and that rows of other data sets leave it alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cover.mixture.pack import Pack, split_pack
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.training.step import LossSums, StepSettings, forward_backward, sample_losses, sigmoid_hits, sigmoid_loss

ONE, SOUNDS, HOMES = (
    Head("one", ("a", "b", "c")),
    Head("sounds", ("x", "y"), "sigmoid"),
    Head("homes", ("p", "q", "r", "s"), "sigmoid"),
)
HEADS = (SOUNDS, ONE, HOMES)
SIGMOID = ("sounds", "homes")
DATASET = [1, 0, 2, 2, 1, 0]
TARGETS = [[-1, 2, -1], [0, -1, -1], [-1, -1, 0], [-1, -1, 0], [-1, 0, -1], [0, -1, -1]]
HOT = [
    [0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [0, 0, 1, 0, 0, 1],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0],
    [0, 1, 0, 0, 0, 0],
]
FACTORS = [2.0, 1.0, 0.5]


def build(random: bool = True) -> CoVeR:
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), HEADS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if random or not name.startswith("heads"):
                parameter.normal_(0, 0.3, generator=generator)
    return model


def make_pack() -> Pack:
    generator = torch.Generator().manual_seed(1)
    return Pack(
        frames=torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=generator),
        groups=((4, 2), (2, 1)),
        dataset=torch.tensor(DATASET),
        targets=torch.tensor(TARGETS),
        weight=torch.tensor([1.0, 1, 1, 1, 0, 1]),
        seed=torch.arange(6),
        multi_hot=torch.tensor(HOT, dtype=torch.uint8),
    )


def make_settings(smoothing: float = 0.0) -> StepSettings:
    return StepSettings(10, torch.tensor(FACTORS), smoothing, max_grad_norm=0.0, sigmoid=SIGMOID)


def logits_of(model: CoVeR, pack: Pack) -> dict[str, list[list[float]]]:
    with torch.no_grad():
        return {name: scores.tolist() for name, scores in model(model.normalize(pack.frames), pack.groups).items()}


def loss_by_hand(logits: dict[str, list[list[float]]], number: int, smoothing: float) -> float:
    """Of one sample, class by class."""
    name, first = {0: ("sounds", 0), 1: ("one", 0), 2: ("homes", 2)}[DATASET[number]]
    scores = logits[name][number]
    if name == "one":
        total = math.log(sum(math.exp(score) for score in scores))
        goals = [smoothing / 3 + (1 - smoothing) * (place == TARGETS[number][1]) for place in range(3)]
        return sum(goal * (total - score) for goal, score in zip(goals, scores))
    loss = 0.0
    for place, score in enumerate(scores):
        p, goal = 1 / (1 + math.exp(-score)), (1 - smoothing) * HOT[number][first + place] + smoothing / len(scores)
        loss -= goal * math.log(p) + (1 - goal) * math.log(1 - p)
    return loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_mixed_pack_by_hand(smoothing: float) -> None:
    model, pack, tally = build(), make_pack(), LossSums(3, "cpu")
    loss = forward_backward(model, pack, make_settings(smoothing), tally)
    logits = logits_of(model, pack)
    each = [loss_by_hand(logits, number, smoothing) for number in range(6)]
    weighed = [FACTORS[DATASET[number]] * float(pack.weight[number]) * each[number] for number in range(6)]
    assert float(loss) == pytest.approx(sum(weighed) / 10, rel=1e-5)
    assert [mean for mean, _, _ in tally.take()] == pytest.approx(
        [(each[1] + each[5]) / 2, each[0], (each[2] + each[3]) / 2], rel=1e-5
    )


def gradients(model: CoVeR, pack: Pack) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    forward_backward(model, pack, make_settings())
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_what_a_row_does_not_train_does_not_reach_its_gradient() -> None:
    """The classes that other heads have, and those of a row that could not be read, may say anything."""
    model, pack = build(), make_pack()
    wanted = gradients(model, pack)
    assert pack.multi_hot is not None
    other = pack.multi_hot.clone()
    other[DATASET.index(1)] = 1
    other[4] = 1  # of weight 0
    other[[1, 5], 2:] = 1 - other[[1, 5], 2:]
    other[[2, 3], :2] = 1 - other[[2, 3], :2]
    assert all(
        torch.equal(wanted[name], value) for name, value in gradients(model, replace(pack, multi_hot=other)).items()
    )
    other[2, 3] = 1 - other[2, 3]
    changed = gradients(model, replace(pack, multi_hot=other))
    assert not torch.equal(wanted["heads.homes.bias"], changed["heads.homes.bias"])
    assert torch.equal(wanted["heads.sounds.bias"], changed["heads.sounds.bias"])


def test_a_head_that_no_row_trains_gets_zeros_not_nothing() -> None:
    pack = replace(make_pack(), targets=torch.tensor([[-1, 1, -1]] * 6))
    result = gradients(build(), pack)
    assert not result["heads.homes.weight"].any()
    assert not result["heads.sounds.bias"].any()
    assert result["heads.one.weight"].any()


def test_the_gradient_on_the_logits_is_that_of_a_softmax_at_the_start() -> None:
    """For samples of one class: both heads begin by saying 1 / C."""
    for classes in (2, 3, 50):
        names = tuple(map(str, range(classes)))
        model = CoVeR(
            TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16),
            (Head("a", names), Head("b", names, "sigmoid")),
        )
        for name in ("a", "b"):
            model.zero_head(name)
        start = model.forward_head(torch.randn(4, 16))
        assert torch.equal(
            start["b"], torch.full((4, classes), -math.log(classes - 1)) if classes > 2 else torch.zeros(4, 2)
        )
        logits = {name: scores.detach().requires_grad_() for name, scores in start.items()}
        labels = torch.tensor([0, 1, classes - 1, 0])
        multi_hot = torch.nn.functional.one_hot(labels, classes).to(torch.uint8)
        for smoothing in (0.0, 0.2):
            grads = []
            for column, name in enumerate(("a", "b")):
                targets = torch.full((4, 2), -1)
                targets[:, column] = 0 if name == "b" else labels
                loss, _ = sample_losses(logits, targets, smoothing, multi_hot, ("b",))
                grads.append(torch.autograd.grad(loss.sum(), logits[name])[0])
            torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


def test_a_head_of_one_class() -> None:
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("a", ("x",), "sigmoid"),)
    )
    model.zero_head("a")
    assert model.head_list[0].probabilities(model.forward_head(torch.randn(2, 16))["a"]).tolist() == [[0.5], [0.5]]


def test_a_logit_however_large_gives_a_finite_loss() -> None:
    scores = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = sigmoid_loss(scores, torch.tensor([[0, 1]], dtype=torch.uint8), 0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert scores.grad is not None
    assert scores.grad.tolist() == [pytest.approx([0.95, -0.95])]


def test_hits() -> None:
    scores = torch.tensor([[2.0, 1, 0], [2, 1, 0], [2, 1, 0], [-1, -2, -3]])
    multi_hot = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.uint8)
    assert sigmoid_hits(scores, multi_hot).tolist() == [True, False, False, True]


def test_accumulation_changes_nothing() -> None:
    model, pack = build(), make_pack()
    whole = gradients(model, pack)
    model.zero_grad(set_to_none=True)
    parts = split_pack(pack, 2)
    assert all(part.multi_hot is not None and len(part.multi_hot) == 3 for part in parts)
    for part in parts:
        forward_backward(model, part, make_settings())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-5, atol=1e-6)


def test_a_pack_moves_with_its_classes() -> None:
    moved = make_pack().to("meta")
    assert moved.multi_hot is not None
    assert moved.multi_hot.device.type == "meta"
