"""Numbers against a hand count, with files that are missing, corrupt or lost; and nothing about how they are computed
changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from cover.datasets.catalog import load_catalog
from cover.errors import UserError
from cover.evaluation import view_reader
from cover.evaluation.evaluate import Variant, evaluate, evaluate_release
from cover.evaluation.protocol import EvaluationTask, ViewPlan, find_tasks, read_views
from cover.media.sampling import Views
from cover.model.backbone import Groups
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

MakeSet = Callable[..., Path]
FRAMES, SIZE = 4, 16
FILES = {"a.mp4": "x", "b.mp4": "y", "c.mp4": "y", "d.mp4": "z", "gone.mp4": "y", "bad.mp4": "x", "lost.mp4": "y"}


class Watched(CoVeR):
    """A model that remembers what it was shown."""

    def __init__(self, classes: tuple[str, ...], seed: int = 0, name: str = "mine") -> None:
        super().__init__(
            TimeSformerConfig(width=16, depth=2, attention_heads=2, patch=8, size=SIZE), (Head(name, classes),)
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.3, generator=generator)
        self.shown: list[Tensor] = []
        self.groups: list[Groups] = []
        self.eval()

    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, *, stages: int = 0
    ) -> dict[str, Tensor]:
        self.groups.append(groups)
        self.shown.append(frames.unflatten(0, groups[0]).clone())
        return super().forward(frames, groups, drop, stages=stages)


@pytest.fixture
def broken_set(make_set: MakeSet, spoil: Callable[[Path], None]) -> Path:
    """Seven listed videos: one missing, one corrupt, one lost after indexing."""
    catalog = make_set(FILES, absent=["gone.mp4"], corrupt=["bad.mp4"])
    spoil(catalog.parent / "mine" / "lost.mp4")
    return catalog


def task_of(catalog: Path, model: CoVeR, views: str | None = None) -> EvaluationTask:
    (task,) = find_tasks(load_catalog(catalog), model, FRAMES, "val", ["mine"], Views.parse(views) if views else None)
    return task


def results_of(
    catalog: Path, model: CoVeR, *variants: Variant, views: str | None = None, workers: int = 0, seed: int = 0
) -> Any:
    return evaluate(model, task_of(catalog, model, views), "cpu", workers, variants or ("plain",), seed)


def test_numbers_by_hand(broken_set: Path) -> None:
    model = Watched(("x", "y", "z"))
    with torch.no_grad():  # a model that always says y
        model.heads["mine"].weight.zero_()
        model.heads["mine"].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    result = results_of(broken_set, model)["plain"]
    assert (result["n_read"], result["n_listed"]) == (4, 7)
    assert result["top1"] == 2 / 4
    assert result["top1_listed"] == 2 / 7
    assert result["mean_class"] == (0 + 1 + 0) / 3
    assert result["per_class"] == [[0, 1], [2, 2], [0, 1]]
    assert result["not_ok"] == {"missing": 1, "unreadable": 1}
    assert (result["views"], result["frames"], result["split"], result["classes"]) == ("1x3", FRAMES, "val", 3)
    (note,) = result["notes"]
    assert "lost.mp4: unreadable" in note
    assert result["n_notes"] == 1


def test_every_readable_file_counts_once_by_its_own_scores(broken_set: Path) -> None:
    for seed in range(3):
        model = Watched(("x", "y", "z"), seed)
        result = results_of(broken_set, model, views="2x3")["plain"]
        right = 0
        for file in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
            plan = ViewPlan(load_catalog(broken_set).spec("mine").sampling, Views(2, 3), FRAMES, SIZE)
            (clips,), _ = read_views(str(broken_set.parent / "mine" / file), "video", [plan], 1.2)
            scores = torch.stack(
                [model(model.normalize(torch.from_numpy(clip)), ((1, FRAMES),))["mine"][0].softmax(0) for clip in clips]
            )
            right += "xyz"[int(scores.mean(0).argmax())] == FILES[file]
        assert result["top1"] == right / 4


@pytest.mark.parametrize("most_frames", [1, 25, 10_000])
def test_batches_and_workers_change_nothing(
    broken_set: Path, most_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants: tuple[Variant, ...] = ("plain", "shuffled", "single")
    model, usual = Watched(("x", "y", "z")), Watched(("x", "y", "z"))
    wanted = results_of(broken_set, usual, *variants)
    monkeypatch.setattr(view_reader, "BATCH_FRAMES", most_frames)
    assert results_of(broken_set, model, *variants) == wanted
    assert sum(groups[0][0] for groups in model.groups) == sum(groups[0][0] for groups in usual.groups) == 3 * 4 * 3
    for place in range(3):
        result, expected = (torch.cat(each.shown[place::3]) for each in (model, usual))
        assert torch.equal(result, expected), variants[place]


def test_worker_processes_change_nothing(broken_set: Path) -> None:
    model = Watched(("x", "y", "z"))
    assert results_of(broken_set, model, "plain", "shuffled", workers=2) == results_of(
        broken_set, model, "plain", "shuffled"
    )


def test_variants_show_the_same_frames_in_another_order_or_one_of_them(broken_set: Path) -> None:
    model = Watched(("x", "y", "z"))
    results = results_of(broken_set, model, "plain", "shuffled", "single", views="2x1")
    plain, shuffled, single = model.shown
    assert plain.shape == shuffled.shape == (8, FRAMES, 3, SIZE, SIZE)
    orders = [
        [next(i for i in range(FRAMES) if torch.equal(frame, clip[i])) for frame in moved]
        for clip, moved in zip(plain, shuffled)
    ]
    assert all(sorted(order) == list(range(FRAMES)) for order in orders)
    assert len({tuple(order) for order in orders}) > 2
    assert torch.equal(single, plain[:, [FRAMES // 2]])
    assert model.groups == [((8, FRAMES),), ((8, FRAMES),), ((8, 1),)]
    assert {variant: result["frames"] for variant, result in results.items()} == {
        "plain": FRAMES,
        "shuffled": FRAMES,
        "single": 1,
    }


def test_the_orders_follow_the_seed(broken_set: Path) -> None:
    shown = []
    for seed in (0, 0, 1):
        model = Watched(("x", "y", "z"))
        results_of(broken_set, model, "shuffled", seed=seed)
        shown.append(model.shown[0])
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])


def test_a_model_blind_to_order_scores_shuffled_frames_alike(broken_set: Path) -> None:
    for seed in range(3):
        model = Watched(("x", "y", "z"), seed)
        model.backbone.reset_temporal("fresh")
        results = results_of(broken_set, model, "plain", "shuffled")
        assert results["shuffled"]["per_class"] == results["plain"]["per_class"]


def test_images_have_spatial_views_alone(make_set: MakeSet) -> None:
    catalog = make_set({"a.png": "x", "b.png": "y"})
    model = Watched(("x", "y"))
    result = results_of(catalog, model, views="4x3")["plain"]
    assert (result["views"], result["frames"], result["sampling"]) == ("1x3", 1, None)
    assert model.groups == [((6, 1),)]


def test_a_split_of_which_nothing_can_be_read(make_set: MakeSet) -> None:
    catalog = make_set({"a.mp4": "x", "b.mp4": "y"}, absent=["a.mp4", "b.mp4"])
    result = results_of(catalog, Watched(("x", "y")))["plain"]
    assert (result["n_read"], result["n_listed"], result["top1"], result["top1_listed"]) == (0, 2, None, 0)


# --- a checkpoint and a catalog ---------------------------------------------------------------------------------------


def test_a_checkpoint_is_measured_on_every_set_it_has_a_head_for(trained: Path, sandbox: Path) -> None:
    results = evaluate_release(trained, sandbox, "val", [], "1x1", ["plain", "shuffled", "single"], "cpu", 0, 0)
    entries = [(row["dataset"], row["variant"]) for row in results]
    videos = [
        (name, variant) for name in ("kinetics", "ssv2", "moments") for variant in ("plain", "shuffled", "single")
    ]
    assert entries == [*videos, ("imagenet", "plain")]
    for row in results:
        assert row["n_read"] == row["n_listed"] == sum(total for _, total in row["per_class"])
        assert row["step"] == 4
        assert row["checkpoint"].endswith("step-0000004")


def test_evaluation_during_training_is_the_same_number(sandbox: Path, tmp_path: Path) -> None:
    import json

    from cover.training.recipe import Data, Recipe
    from cover.training.train import train

    run = train(
        Recipe(Data(["ssv2", "imagenet"], str(sandbox), frames=2), str(tmp_path / "run"), steps=2, batch=4, workers=0)
    )
    dev = next(line for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if line["event"] == "dev")
    for row in evaluate_release(run, sandbox, "dev", [], None, ["plain"], "cpu", 0, 0):
        assert {key: row[key] for key in dev["datasets"][row["dataset"]]} == dev["datasets"][row["dataset"]]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_heads_and_classes_that_do_not_match(make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({"a.png": "x", "b.png": "y"})
    save_release(tmp_path / "other", Watched(("x", "y", "z")), {"step": 1, "frames": 1, "datasets": {}})
    save_release(tmp_path / "theirs", Watched(("x", "y"), name="theirs"), {"step": 1, "frames": 1, "datasets": {}})
    for checkpoint, names, message in (
        ("other", [], 'head "mine" was trained on class list'),
        ("theirs", ["mine"], 'no head "mine"; its heads: theirs'),
        ("theirs", [], "has none of the checkpoint's heads: theirs"),
        ("theirs", ["miine"], 'no data set "miine"; did you mean "mine"'),
    ):
        with pytest.raises(UserError, match=message) as error:
            evaluate_release(tmp_path / checkpoint, catalog, "val", names, None, ["plain"], "cpu", 0, 0)
        one_line(error)


def test_a_split_that_is_not_there(trained: Path, sandbox: Path) -> None:
    with pytest.raises(UserError, match='kinetics has no split "test"') as error:
        evaluate_release(trained, sandbox, "test", [], None, ["plain"], "cpu", 0, 0)
    one_line(error)


# --- beside the plain number ------------------------------------------------------------------------------------------


class _OneOf:
    """One of two processes, whose parts are put together by hand."""

    def __init__(self, rank: int, pool: list[list[Any]]) -> None:
        self.rank, self.ranks, self._pool, self._calls = rank, 2, pool, 0

    def gather(self, value: Any) -> list[Any]:
        """Rank 0 runs first and hands its part in; rank 1 gets both."""
        if self.rank == 0:
            self._pool.append([value])
            return [value]
        self._pool[self._calls].append(value)
        self._calls += 1
        return list(self._pool[self._calls - 1])


def test_two_processes_count_as_one(broken_set: Path) -> None:
    variants: tuple[Variant, ...] = ("plain", "shuffled", "reversed")
    whole = results_of(broken_set, Watched(("x", "y", "z")), *variants)
    pool: list[list[Any]] = []
    for rank in (0, 1):
        model = Watched(("x", "y", "z"))
        result = evaluate(model, task_of(broken_set, model), "cpu", 0, variants, 0, _OneOf(rank, pool))
    assert result == whole


def test_backwards_is_backwards(broken_set: Path) -> None:
    model = Watched(("x", "y", "z"))
    results_of(broken_set, model, "plain", "reversed")
    for plain, backwards in zip(model.shown[::2], model.shown[1::2], strict=True):
        assert torch.equal(plain.flip(1), backwards)


def test_scores_by_hand(broken_set: Path, tmp_path: Path) -> None:
    model = Watched(("x", "y", "z"))
    save_release(tmp_path / "release", model, {"frames": FRAMES, "step": 7})
    file = tmp_path / "scores.arrow"
    (result,) = evaluate_release(
        tmp_path / "release", broken_set, "val", (), "2x3", ("plain",), "cpu", 0, 0, scores=file
    )
    table = pa.ipc.open_file(str(file)).read_all()
    assert table.num_rows == result["n_read"] == 4
    views = np.array(table["view_scores"].to_pylist())
    assert views.shape == (4, 6, 3)
    assert np.allclose(np.array(table["scores"].to_pylist()), views.mean(1), atol=1e-6)
    right = views.mean(1).argmax(1) == table["label"].to_numpy()
    assert right.mean() == result["top1"]
    manifest = task_of(broken_set, model).manifest
    assert table["sample_id"].to_pylist() == [manifest.row(number).sample_id for number in table["row"].to_pylist()]


def test_a_head_on_another_set_by_class_names(broken_set: Path) -> None:
    model = Watched(("Y", "q", "z", "r"), name="other")
    with pytest.raises(UserError, match='no head "mine"'):
        find_tasks(load_catalog(broken_set), model, FRAMES, "val", ["mine"])
    with pytest.raises(UserError, match='no head "oter"; did you mean "other"'):
        find_tasks(load_catalog(broken_set), model, FRAMES, "val", other_heads={"mine": "oter"})
    (task,) = find_tasks(load_catalog(broken_set), model, FRAMES, "val", other_heads={"mine": "other"})
    assert (task.classes, task.columns.tolist(), task.relabel.tolist()) == (("y", "z"), [0, 2], [-1, 0, 1])
    with torch.no_grad():  # always y among the classes that both know, though q scores higher
        model.heads["other"].weight.zero_()
        model.heads["other"].bias.copy_(torch.tensor([1.0, 5.0, 0.0, 0.0]))
    result = evaluate(model, task, "cpu", 0)["plain"]
    assert (result["n_read"], result["n_listed"], result["unmapped"]) == (3, 5, ["x"])  # x: a.mp4 and bad.mp4
    assert result["top1"] == 2 / 3
    strangers = Watched(("p", "q"), name="other")
    with pytest.raises(UserError, match="has 0 of the 3 class names"):
        find_tasks(load_catalog(broken_set), strangers, FRAMES, "val", other_heads={"mine": "other"})
