"""Class weights in the loss, runs with class balance, and the number of steps that `auto` chooses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as fn
from torch import Tensor

from cover import config
from cover.errors import UserError
from cover.hardware import find_device, make_cluster
from cover.mixture.mixture import Mixture
from cover.mixture.pack import Pack, split_pack
from cover.mixture.published import planned_mixture
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.planning.estimate import plan
from cover.planning.reading import reading_costs
from cover.training.budget import FROM_RANDOM, FROM_START, HEAD_ONLY, Budget
from cover.training.recipe import Augment, Data, Recipe, Start
from cover.training.step import LossSums, StepSettings, forward_backward
from cover.training.train import train, with_steps
from cover.transforms.mixup import Mix

MakeSet = Callable[..., Path]
HEADS = (Head("a", ("0", "1", "2")), Head("b", ("0", "1")))
TARGETS = torch.tensor([[2, -1], [0, -1], [1, -1], [-1, 1], [-1, 0], [2, -1]])
READ = torch.tensor([1.0, 1, 1, 1, 1, 0])
CLASS_WEIGHTS = torch.tensor([0.25, 0.5, 2.25])  # of the data set a
FACTORS = torch.tensor([0.5, 3.0])
BATCH = 7


def build() -> CoVeR:
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), HEADS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model


def make_pack(**changes: Any) -> Pack:
    """Six images: five of the data sets a and b that could be read, and one that could not."""
    frames = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weights = torch.where(TARGETS[:, 0] >= 0, CLASS_WEIGHTS[TARGETS[:, 0].clamp(min=0)], 1.0)
    pack = Pack(frames, ((6, 1),), (TARGETS[:, 0] < 0).long(), TARGETS, READ, torch.arange(6), class_weight=weights)
    return replace(pack, **changes)


def gradients(model: CoVeR) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def by_torch(pack: Pack) -> dict[str, Tensor]:
    """The gradient of the weighted cross-entropy of PyTorch."""
    model = build()
    logits = model((pack.frames / 255 - 0.5) / 0.5, pack.groups)
    a = fn.cross_entropy(logits["a"][:3], TARGETS[:3, 0], CLASS_WEIGHTS, reduction="sum")
    b = fn.cross_entropy(logits["b"][3:5], TARGETS[3:5, 1], reduction="sum")
    ((FACTORS[0] * a + FACTORS[1] * b) / BATCH).backward()
    return gradients(model)


def test_the_gradient_is_that_of_weighted_cross_entropy() -> None:
    pack, wanted = make_pack(), by_torch(make_pack())
    for parts in (1, 2):
        model, tally = build(), LossSums(2, "cpu")
        for part in split_pack(pack, parts):
            forward_backward(model, part, StepSettings(BATCH, FACTORS), tally)
        results = gradients(model)
        for name, gradient in wanted.items():
            torch.testing.assert_close(results[name], gradient, rtol=1e-4, atol=1e-7)
    assert wanted.keys() == results.keys()


def test_means_in_the_log_are_not_weighted() -> None:
    tallies = []
    for weights in (make_pack().class_weight, None):
        tallies.append(LossSums(2, "cpu"))
        forward_backward(build(), make_pack(class_weight=weights), StepSettings(BATCH, FACTORS), tallies[-1])
    assert torch.equal(tallies[0].sums, tallies[1].sums)


def test_a_mixed_sample_has_the_weights_of_both_targets() -> None:
    lam, others = 0.3, torch.tensor([1, -1, 0, 0, 0, 0])
    mix = Mix(others, torch.tensor([lam, lam, 0, 0, 0, 0]), torch.zeros(6, 4, dtype=torch.int64))
    model, pack = build(), make_pack(mix=mix)
    loss = float(forward_backward(model, pack, StepSettings(BATCH, FACTORS)))
    frames = (pack.frames / 255 - 0.5) / 0.5
    frames = torch.stack([torch.lerp(frames[0], frames[1], lam), torch.lerp(frames[1], frames[0], lam), *frames[2:]])
    with torch.no_grad():
        logits = build()(frames, pack.groups)
    by_class = -CLASS_WEIGHTS * logits["a"].log_softmax(1)  # the weighted loss with each class as the target
    a = by_class[2, 1] + sum((1 - lam) * by_class[i, own] + lam * by_class[i, own2] for i, own, own2 in PAIRS)
    b = fn.cross_entropy(logits["b"][3:5], TARGETS[3:5, 1], reduction="sum")
    assert loss == pytest.approx(float(FACTORS[0] * a + FACTORS[1] * b) / BATCH, rel=1e-5)


PAIRS = ((0, 2, 0), (1, 0, 2))  # sample, its class, the class of its partner

# --- runs -------------------------------------------------------------------------------------------------------------

FILES = {f"{kind}{number}.png": kind for kind, count in (("x", 9), ("y", 2), ("z", 1)) for number in range(count)}


def make_recipe(catalog: Path, out: Path, **changes: Any) -> Recipe:
    data = Data(["mine"], str(catalog), frames=2, balance={"mine": 0.5}, class_weights={"mine": "balanced"})
    base = Recipe(data, str(out), steps=6, batch=6, workers=0, log_every=1, evaluate_every=-1, save_every=2)
    return replace(base, **changes)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def losses_of(run: Path) -> list[float]:
    return [line["step_loss"] for line in log_of(run) if line["event"] == "train"]


def test_a_run_that_goes_on_draws_and_weighs_the_same(
    make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = make_set(FILES)
    recipe = make_recipe(catalog, tmp_path / "run", augment=Augment(mixup=0.5))
    run = train(recipe)
    whole, start = losses_of(run), log_of(run)[0]
    roots = [9**0.5, 2**0.5, 1]
    rates = [root / sum(roots) for root in roots]
    weights = [1 / count / sum(rate / size for rate, size in zip(rates, (9, 2, 1))) for count in (9, 2, 1)]
    assert start["classes"]["mine"]["rates"] == pytest.approx([rates[2], rates[0]], rel=0.01)
    assert start["classes"]["mine"]["weights"] == pytest.approx([weights[0], weights[2]], rel=0.01)
    assert "mine: 3 classes, each 18.5% to 55.4% of its draws" in capsys.readouterr().err
    assert log_of(run)[-2]["epochs"]["mine"] == 3  # 36 draws of 12 rows
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    assert losses_of(train(recipe, resume=True)) == whole
    for changes in ({"balance": {}}, {"class_weights": {}}):
        with pytest.raises(UserError, match=rf"was begun with data\.{next(iter(changes))}"):
            train(replace(recipe, data=replace(recipe.data, **changes)), resume=True)


# --- steps: auto ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [FROM_START, FROM_RANDOM, HEAD_ONLY])
def test_a_budget_is_its_updates_within_its_limits(budget: Budget) -> None:
    for rows in (1, 20, 500, 5_000, 30_000, 10**6):
        for batch in (1, 8, 32, 256):
            steps = budget.steps(rows, batch)
            least, most = (math.ceil(epochs * rows / batch) for epochs in (budget.least_epochs, budget.most_epochs))
            assert steps == max(1, sorted([least, budget.updates, most])[1])


def test_random_weights_get_more_updates_than_a_start() -> None:
    for rows in (20, 500, 5_000, 10**6):
        assert FROM_RANDOM.steps(rows, 32) > FROM_START.steps(rows, 32) >= HEAD_ONLY.steps(rows, 32)


def test_auto_is_chosen_once_and_kept_by_a_resumed_run(
    make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = make_set({"a.png": "x", "b.png": "y"})
    plain = Data(["mine"], str(catalog), frames=2)
    recipe = make_recipe(catalog, tmp_path / "run", data=plain, steps="auto", batch=100, save_every=0)
    run = train(recipe)
    # 200 epochs of 2 samples in steps of 100
    assert "steps: auto is 4 from random weights: 200 epochs of 2 samples, the most" in capsys.readouterr().err
    assert (config.load(Recipe, run / "recipe.yaml").steps, log_of(run)[0]["steps"], len(losses_of(run))) == (4, 4, 4)
    (run / "recipe.yaml").write_text(config.dump(replace(recipe, steps=3)), encoding="utf-8")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    assert len(losses_of(train(recipe, resume=True))) == 3, "the number in the folder of the run counts"
    started = replace(recipe, start=Start(str(run)))
    assert with_steps(started, Mixture.open(plain)).steps == 1  # 50 epochs


def test_auto_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {sets: [a], class_weights: {a: balanced}}\nout: x\nsteps: auto\n", encoding="utf-8")
    recipe = config.load(Recipe, file)
    assert (recipe.steps, recipe.data.class_weights) == ("auto", {"a": "balanced"})
    file.write_text(config.dump(recipe), encoding="utf-8")
    assert config.load(Recipe, file) == recipe
    assert config.load(Recipe, file, ["--steps", "5", "--data.class_weights.a", "0.5"]).steps == 5
    assert config.load(Recipe, file, ["--steps", "5", "--steps", "auto"]).steps == "auto"
    for text, message in (("autp", 'steps: expected int or "auto", got "autp"; did you mean "auto"'), ("-1", "steps")):
        with pytest.raises(UserError, match=message):
            config.load(Recipe, file, ["--steps", text])


# --- plans ------------------------------------------------------------------------------------------------------------


def planned(recipe: Recipe, **sizes: float) -> dict[str, Any]:
    mixture = planned_mixture(recipe.data, sizes)
    costs = reading_costs(recipe, mixture, dict.fromkeys(recipe.data.sets, 5.0))
    return plan(recipe, make_cluster(find_device("h200"), 1, 12, 0.4, 400.0), mixture, costs)


def test_a_plan_has_the_classes_and_the_steps_of_the_run(make_set: MakeSet, tmp_path: Path) -> None:
    recipe = make_recipe(make_set(FILES), tmp_path / "run", steps="auto")
    mixture = Mixture.open(recipe.data)
    facts = planned(recipe)
    assert facts["steps"] == with_steps(recipe, mixture).steps == 400
    assert facts["classes"] == mixture.describe_classes()
    assert [note.partition(":")[0] for note in facts["remarks"]] == ["steps", "mine"]
    # The classes of other rows are not known.
    other = planned(recipe, mine=6000)
    assert (other["steps"], other["classes"]) == (30_000, {})
