"""A multi-label set beside a single-label one, and heads that sets share: trained, saved, evaluated, predicted."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cover import CoVeR
from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.errors import UserError
from cover.evaluation import metrics, view_reader
from cover.evaluation.evaluate import evaluate, evaluate_release, print_results
from cover.evaluation.metrics import MeanAveragePrecision
from cover.evaluation.protocol import find_tasks
from cover.inference.predictor import Predictor
from cover.model.release import find_release, load_release
from cover.training.recipe import Augment, Data, Recipe, Start
from cover.training.train import train

MakeSet = Callable[..., Path]
HOMES = {"a.png": "drink|sit", "b.png": "laugh", "c.png": "", "d.png": "drink|laugh|sit"}  # drink 0, laugh 1, sit 2
MINE = {"e.png": "x", "f.png": "y"}
TRUTH = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]]


def make_recipe(
    catalog: Path, out: Path, sets: list[str], heads: dict[str, list[str]] | None = None, **changes: Any
) -> Recipe:
    base = Recipe(
        Data(sets, str(catalog), frames=2, heads=heads or {}),
        str(out),
        steps=2,
        batch=6,
        workers=0,
        log_every=1,
        evaluate_every=-1,
    )
    return replace(base, **changes)


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == "train"]


@pytest.fixture
def catalog(make_set: MakeSet) -> Path:
    make_set(MINE, crop_scale="[1, 1]")
    return make_set(HOMES, name="homes", column="labels", crop_scale="[1, 1]")


def results_of(run: Path, catalog: Path, *names: str) -> dict[str, dict[str, Any]]:
    result = evaluate_release(run, catalog, "val", names, None, ["plain"], "cpu", 0, 0)
    return {row["dataset"]: row for row in result}


def test_trained_evaluated_and_predicted(catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(
        catalog, tmp_path / "run", ["mine", "homes"], steps=60, batch=6, augment=Augment(flip=False, colour=0)
    )
    run = train(recipe)
    lines = log_of(run)
    # One class in three has p = about 1/3 at the start: log(3) for each class a sample has, log(3/2) for each it has
    # not.
    assert lines[0]["loss"]["homes"] == pytest.approx(
        sum(math.log(3 if item else 1.5) for row in TRUTH for item in row) / 4, rel=0.03
    )
    assert lines[-1]["loss"]["homes"] < 0.2 * lines[0]["loss"]["homes"]
    assert (set(lines[-1]["top1"]), set(lines[-1]["hit1"])) == ({"mine"}, {"homes"})
    assert lines[-1]["hit1"]["homes"] == 1

    results = results_of(run, catalog)
    homes, mine = results["homes"], results["mine"]
    assert (homes["map"], homes["map_listed"], homes["hit1"]) == (1, 1, 1)
    assert homes["per_class"] == [[1, 2], [1, 2], [1, 2]]
    assert (homes["n_read"], homes["n_listed"], homes["multi_label"], homes["head"]) == (4, 4, True, "homes")
    assert "top1" not in homes
    assert (mine["top1"], mine["multi_label"], "map" in mine) == (1, False, False)
    print_results(list(results.values()))
    table = capsys.readouterr().out
    assert "mAP of listed" in table

    predictor = Predictor.load(run)
    for number, (file, wanted) in enumerate(zip(HOMES, TRUTH)):
        scores = predictor(tmp_path / "homes" / file)["homes"].scores
        assert (scores > 0.5).tolist() == [bool(item) for item in wanted], number
    image = str(tmp_path / "homes" / "d.png")
    assert (
        main(
            [
                "predict",
                str(run),
                image,
                "--top",
                "3",
                "--head",
                "homes",
                "--json",
                str(tmp_path / "p.json"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    (result,) = json.loads((tmp_path / "p.json").read_text())
    assert sum(share for _, share in result["heads"]["homes"]) > 1.5
    assert sorted(name for name, _ in result["heads"]["homes"]) == ["drink", "laugh", "sit"]


def test_the_release_says_what_a_head_is(catalog: Path, tmp_path: Path) -> None:
    run = train(make_recipe(catalog, tmp_path / "run", ["mine", "homes"]))
    model = CoVeR.from_pretrained(run)
    assert [(head.name, head.loss, head.datasets) for head in model.head_list] == [
        ("mine", "softmax", ("mine",)),
        ("homes", "sigmoid", ("homes",)),
    ]
    model.save_pretrained(tmp_path / "again")
    assert load_release(tmp_path / "again").head_list == model.head_list
    assert "- homes is multi-label" in (tmp_path / "again" / "README.md").read_text()

    config = json.loads((tmp_path / "again" / "config.json").read_text())
    config["heads"][1]["loss"] = "hinge"
    (tmp_path / "again" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r'heads\[1\]\.loss: .*got "hinge"'):
        load_release(tmp_path / "again")


def test_a_prediction_is_what_evaluation_counts(catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.load(train(make_recipe(catalog, tmp_path / "run", ["mine", "homes"])))
    visited: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(view_reader, "BATCH_FRAMES", 1)
    monkeypatch.setattr(
        MeanAveragePrecision, "update", lambda self, scores, multi_hot: visited.append((scores, multi_hot))
    )
    (task,) = find_tasks(load_catalog(catalog), predictor.model, 2, "val", ["homes"])
    evaluate(predictor.model, task, "cpu", 0)
    assert torch.cat([multi_hot for _, multi_hot in visited]).tolist() == TRUTH
    for file, (scores, _) in zip(HOMES, visited):
        assert np.array_equal(predictor(tmp_path / "homes" / file, ["homes"])["homes"].scores, scores[0].numpy())


def test_files_not_read_count_in_the_figures_of_listed(make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set(
        {**HOMES, "gone.png": "drink", "who.png": "?"}, name="homes", column="labels", absent=["gone.png"]
    )
    result = results_of(train(make_recipe(catalog, tmp_path / "run", ["homes"])), catalog)["homes"]
    assert (result["n_read"], result["n_listed"]) == (4, 5), "a sample of unknown classes is not listed"
    precisions = [precision for precision, _ in result["per_class"]]
    assert result["map_listed"] == pytest.approx((precisions[0] * 2 / 3 + precisions[1] + precisions[2]) / 3)


def test_stopped_and_resumed(catalog: Path, tmp_path: Path) -> None:
    recipe = make_recipe(catalog, tmp_path / "run", ["mine", "homes"], steps=4, save_every=2)
    last = train(recipe) / "checkpoints" / "step-0000004"
    wanted = load_release(last).state_dict()
    shutil.rmtree(last)
    train(recipe, resume=True)
    assert all(torch.equal(value, wanted[name]) for name, value in load_release(last).state_dict().items())


def test_a_start_whose_head_has_another_loss(catalog: Path, make_set: MakeSet, tmp_path: Path) -> None:
    run = train(make_recipe(catalog, tmp_path / "run", ["homes"]))
    (tmp_path / "other").mkdir()
    single = "path,label\n" + "".join(
        f"{tmp_path}/homes/{file},{name}\n" for file, name in zip(HOMES, ("drink", "laugh", "sit", "sit"))
    )
    (tmp_path / "other" / "list.csv").write_text(single)
    entry = "homes: {format: csv, root: ., media: image, annotations: {train: list.csv, val: list.csv}, dev: 0}"
    (tmp_path / "other" / "catalog.yaml").write_text(entry)
    from cover.datasets.index import index

    index(tmp_path / "other" / "catalog.yaml", 0)
    with pytest.raises(UserError, match='its head "homes" is a sigmoid, this run\'s a softmax') as error:
        train(make_recipe(tmp_path / "other" / "catalog.yaml", tmp_path / "bad", ["homes"], start=Start(str(run))))
    assert "\n" not in str(error.value)
    with pytest.raises(
        UserError, match=r'head "homes" was trained on samples of any number of classes, but homes-val\.arrow has one'
    ):
        results_of(run, tmp_path / "other" / "catalog.yaml")


# --- heads that several sets share ------------------------------------------------------------------------------------


@pytest.fixture
def kinetics(make_set: MakeSet) -> Path:
    """Two sets whose first pictures are the same, of the class that both have; no other pictures are."""
    k400 = {"a.png": "yoga", "gone.png": "yoga", "lost.png": "yoga", "b.png": "archery"}
    make_set(k400, name="k400", absent=["gone.png", "lost.png"], crop_scale="[1, 1]")
    return make_set({"c.png": "yoga", "d.png": "zumba", "e.png": "bowling"}, name="k600", crop_scale="[1, 1]")


def test_a_shared_head(kinetics: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        kinetics, tmp_path / "run", ["k600", "k400"], {"kinetics": ["k400", "k600"]}, steps=60, batch=5
    )
    run = train(replace(recipe, augment=Augment(flip=False, colour=0)))
    (head,) = load_release(find_release(run)).head_list
    assert (head.name, head.datasets) == ("kinetics", ("k400", "k600"))
    assert head.classes == ("archery", "yoga", "bowling", "zumba")
    assert "kinetics is shared by k400, k600" in (find_release(run) / "README.md").read_text()
    results = results_of(run, kinetics)
    assert {name: (row["top1"], row["classes"], row["head"], row["head_classes"]) for name, row in results.items()} == {
        "k400": (1, 2, "kinetics", 4),
        "k600": (1, 3, "kinetics", 4),
    }
    assert list(results_of(run, kinetics, "k600")) == ["k600"]
    result = Predictor.load(run)(tmp_path / "k600" / "d.png")
    assert result["kinetics"].top(1)[0][0] == "zumba"
    turned = make_recipe(
        kinetics, tmp_path / "again", ["k400", "k600"], {"kinetics": ["k400", "k600"]}, batch=5, start=Start(str(run))
    )
    again = train(replace(turned, augment=Augment(flip=False, colour=0)))
    assert max(log_of(again)[0]["loss"].values()) < 0.2, "the order of the mixture is not that of the classes"


def test_a_set_is_measured_over_its_own_classes(
    kinetics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_release(
        find_release(train(make_recipe(kinetics, tmp_path / "run", ["k400", "k600"], {"kinetics": ["k400", "k600"]})))
    )
    bias = torch.tensor([0.1, 0.2, 9.0, 0.3])  # archery, yoga, bowling, zumba
    with torch.no_grad():
        model.heads["kinetics"].weight.zero_()
        model.heads["kinetics"].bias.copy_(bias)
    visited = []
    monkeypatch.setattr(metrics.TopK, "update", lambda self, scores, labels: visited.append(scores))
    for task in find_tasks(load_catalog(kinetics), model, 2, "val"):
        evaluate(model, task, "cpu", 0)
    torch.testing.assert_close(visited[0], bias[[0, 1]].softmax(0).expand(2, -1))
    torch.testing.assert_close(visited[1], bias[[2, 1, 3]].softmax(0).expand(3, -1))


def test_a_class_that_the_shared_head_lacks(kinetics: Path, make_set: MakeSet, tmp_path: Path) -> None:
    run = train(make_recipe(kinetics, tmp_path / "run", ["k400", "k600"], {"kinetics": ["k400", "k600"]}))
    (tmp_path / "k600" / "list.csv").write_text("path,label\nc.png,zumba\nd.png,knitting\n")
    from cover.datasets.index import index

    index(kinetics, 0, ["k600"])
    with pytest.raises(
        UserError, match=r'head "kinetics" lacks 1 classes of k600-val\.arrow, the first: "knitting"'
    ) as error:
        results_of(run, kinetics)
    assert "\n" not in str(error.value)


def test_a_shared_multi_label_head(make_set: MakeSet, tmp_path: Path) -> None:
    make_set(HOMES, name="homes", column="labels")
    catalog = make_set({"g.png": "bark|laugh", "h.png": "bark"}, name="sounds", column="labels")
    run = train(make_recipe(catalog, tmp_path / "run", ["homes", "sounds"], {"all": ["homes", "sounds"]}, steps=3))
    (head,) = load_release(find_release(run)).head_list
    assert (head.classes, head.loss) == (("drink", "laugh", "sit", "bark"), "sigmoid")
    results = results_of(run, catalog)
    assert {name: [item for _, item in row["per_class"]] for name, row in results.items()} == {
        "homes": [2, 2, 2],
        "sounds": [2, 1],
    }
