"""A study with several networks is the same study with each of them, and one report of all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cover import config
from cover.cli import main
from cover.errors import UserError
from cover.experiments.study.networks import accuracy_table, report_data
from cover.experiments.study.study_file import Origin, Pilot, Size, Study
from cover.model.backbones.conv3d import Conv3dOptions
from cover.model.backbones.vit import VitOptions

TEXT = """
catalog: {catalog}
out: {out}
targets: [kinetics]
images: [imagenet]
arms: [alone, videos_images]
sizes: {{whole: {{epochs: 0.5}}}}
seeds: [0]
margin: 0.05
frames: 2
batch: 8
evaluations: 1
models:
  still: {{backbone: conv3d, channels: [8], motion: frames, size: 16}}
  moving: {{backbone: conv3d, channels: [8], motion: differences, size: 16}}
"""


@pytest.fixture(scope="module")
def done(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two networks that has been run."""
    folder = tmp_path_factory.mktemp("networks")
    (folder / "study.yaml").write_text(TEXT.format(catalog=sandbox, out=folder / "out"), encoding="utf-8")
    assert main(["study", str(folder / "study.yaml"), "--jobs", "1"]) == 0
    return folder


@pytest.fixture
def summary(done: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((done / "out/results.json").read_text(encoding="utf-8"))
    return result


def test_the_common_results_are_those_of_each_network(done: Path, summary: dict[str, Any]) -> None:
    for kind in ("arms", "comparisons"):
        own = {
            name: json.loads((done / "out" / name / "results.json").read_text(encoding="utf-8"))[kind]
            for name in ("still", "moving")
        }
        assert summary[kind] == [{"network": name, **row} for name, rows in own.items() for row in rows]
    assert len(summary["arms"]) == 4
    page = (done / "out/report.html").read_text(encoding="utf-8")
    for name in ("still", "moving"):
        assert page.count(f'<th scope="row">{name}<') == 3  # accuracies, differences, costs


def test_costs_are_counted_and_timed(summary: dict[str, Any]) -> None:
    costs = summary["costs"]["networks"]["still"]
    assert costs["parameters"] == 8 * (3 * 27 + 1) + 2 * 8  # one convolution and its norm
    assert costs["multiply_adds"] == 2 * 8 * 8 * 8 * 3 * 27  # at every place of two maps of 8 x 8
    assert min(costs["training_samples_per_second"], costs["clip_milliseconds"]) > 0
    assert sum(count for count, _ in summary["costs"]["groups"]) == 8


def test_a_second_call_repeats_nothing(done: Path, summary: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    file = str(done / "study.yaml")
    assert main(["study", file, "--worth", "kinetics"]) == 2
    assert main(["study", file, "--jobs", "1"]) == 0
    assert capfd.readouterr().err.count("2 of 2 runs are done") == 2
    assert json.loads((done / "out/results.json").read_text(encoding="utf-8")) == summary


def test_the_table_marks_a_network_that_gains(summary: dict[str, Any]) -> None:
    gains = [{**row, "verdict": "better"} if row["network"] == "moving" else row for row in summary["comparisons"]]
    table = accuracy_table({**summary, "comparisons": gains}, "whole")
    marked = {row[0].text: "▲" in str(row[-1].text) for row in table.rows}
    assert marked == {"still": False, "moving": True, "trivial": False}


def test_without_the_arm_alone_there_are_accuracies_and_no_differences(summary: dict[str, Any]) -> None:
    arms = [row for row in summary["arms"] if row["arm"] != "alone"]
    study = {**summary["study"], "arms": ["videos_images"]}
    data = report_data({**summary, "study": study, "arms": arms, "comparisons": [], "pooled": []})
    assert data["differences"] == []
    assert [len(row) for row in data["accuracies"][0].rows] == [2, 2, 2]


def study(**changes: Any) -> Study:
    networks = {"conv": Conv3dOptions(), "vit": VitOptions(preset="vit_mini8", size=32)}
    plain = Study(
        "catalog.yaml", "out", ["kinetics"], {"whole": Size(1)}, [0], 0.02, images=["imagenet"], arms=["alone"]
    )
    return replace(plain, **{"models": networks, **changes})


def test_each_network_is_a_study_with_its_own_folder_and_starts() -> None:
    origins = {"scratch": Origin(), "released": Origin("released", models=["vit"])}
    conv, vit = study(origins=origins).by_model().values()
    assert (conv.out, conv.model, list(conv.origins)) == ("out/conv", Conv3dOptions(), ["scratch"])
    assert (vit.out, list(vit.origins)) == ("out/vit", ["scratch", "released"])
    assert not vit.models


def test_one_network_needs_no_folder() -> None:
    alone = study(models={})
    assert alone.by_model() == {"": alone}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {"origins": {"scratch": Origin(models=["vti"])}},
            'origins.scratch.models: unknown "vti"; did you mean "vit"',
        ),
        ({"origins": {"scratch": Origin(models=["vit"])}}, "models.conv: no starting weights"),
        ({"pilot": Pilot([1.0])}, "pilot.epochs: a pilot is of one network"),
        ({"models": {"../conv": Conv3dOptions()}}, 'models: "../conv"'),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as error:
        study(**changes)
    assert str(error.value).startswith(key)


def test_networks_are_read_from_the_file_by_family(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(TEXT.format(catalog="catalog.yaml", out="out"), encoding="utf-8")
    read = config.load(Study, file, ["--models.moving.size", "32"])
    assert read.models["moving"] == Conv3dOptions(channels=(8,), motion="differences", size=32)
    file.write_text(config.dump(read), encoding="utf-8")
    assert config.load(Study, file) == read
