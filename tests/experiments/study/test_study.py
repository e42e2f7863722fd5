"""A reduced study from its file to its report: everything is run once, and a second call repeats nothing."""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command

from cover.cli import main
from cover.evaluation.evaluate import evaluate_release
from cover.evaluation.statistics import look_levels

TEXT = """
catalog: {catalog}
out: {out}
targets: [kinetics]
videos: [kinetics, moments]
images: [imagenet]
arms: [alone, videos_images]
sizes: {{whole: {{epochs: 1}}}}
seeds: [0, 1]
margin: 0.05
frames: 2
batch: 8
evaluations: 1
"""


def write(folder: Path, sandbox: Path, more: str = "") -> Path:
    file = folder / "study.yaml"
    file.write_text(TEXT.format(catalog=sandbox, out=folder / "study") + more, encoding="utf-8")
    return file


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.glob("results/*.json"))}


@pytest.fixture(scope="module")
def done(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that has been run."""
    folder = tmp_path_factory.mktemp("studies")
    assert main(["study", str(write(folder, sandbox)), "--jobs", "1"]) == 0
    return folder


@pytest.fixture
def summary(done: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((done / "study/results.json").read_text(encoding="utf-8"))
    return result


def test_every_figure_has_its_protocol(summary: dict[str, Any]) -> None:
    assert {(row["arm"], row["dataset"]) for row in summary["arms"]} == {
        ("alone", "kinetics"),
        ("videos_images", "kinetics"),
    }
    for row in summary["arms"]:
        assert row["low"] <= row["top1"] <= row["high"]
        assert row["n_read"] == row["n_listed"] == row["items"] > 0
        assert row["top1"] == pytest.approx(np.mean(row["by_seed"]), abs=1e-5)
        assert (row["chance"], row["split"], row["views"]) == (1 / 8, "val", "1x3")
        assert row["checkpoint_steps"]
        assert len(row["class_digest"]) == 12
    (comparison,) = summary["comparisons"]
    ours, theirs = (
        next(row["top1"] for row in summary["arms"] if row["arm"] == arm) for arm in ("videos_images", "alone")
    )
    assert comparison["difference"] == pytest.approx(ours - theirs)
    assert comparison["verdict"] in ("better", "worse", "not worse", "no difference shown")
    assert summary["generated"] is True
    assert [(row["dataset"], row["size"]) for row in summary["trivial"]] == [("kinetics", "whole")]


def test_a_figure_is_what_evaluate_says_of_the_same_checkpoint(
    done: Path, summary: dict[str, Any], sandbox: Path
) -> None:
    (result,) = evaluate_release(
        done / "study/runs/alone.kinetics.whole.scratch.lr0.001.s1", sandbox, "val", (), None, ("plain",), "cpu", 0, 0
    )
    row = next(row for row in summary["arms"] if row["arm"] == "alone")
    assert row["by_seed"][1] == pytest.approx(result["top1"], abs=1e-5)


def test_a_second_call_repeats_nothing_and_another_seed_adds_its_own(
    done: Path, sandbox: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = stamps(done / "study")
    assert main(["study", str(done / "study.yaml"), "--jobs", "1"]) == 0
    assert "4 of 4 runs are done" in capfd.readouterr().err
    assert stamps(done / "study") == before
    assert main(["study", str(done / "study.yaml"), "--jobs", "1", "--seeds", "[0, 1, 2]", "--arms", "[alone]"]) == 0
    after = stamps(done / "study")
    assert {name: after[name] for name in before} == before
    assert len(after) == 5
    assert main(["study", str(done / "study.yaml"), "--jobs", "1"]) == 0  # what is reported is what the file asks for


def test_the_report_and_its_words_are_written(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page, words = (
        (done / "study/report.html").read_text(encoding="utf-8"),
        (done / "study/report.md").read_text(encoding="utf-8"),
    )
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "kinetics" in page
    assert "kinetics" in words
    assert "the best on each set" in words


def test_a_dry_run_says_what_could_be_found_and_runs_nothing(
    sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, sandbox)
    assert main(["study", str(file), "--dry-run"]) == 0
    out, err = capfd.readouterr()
    assert "detectable" in out
    assert "4 runs" in err
    assert f"next: cover study {file}" in err
    assert not (tmp_path / "study/runs").exists()


def test_the_next_command_after_a_dry_run_has_all_its_options(
    sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, sandbox)
    options = ["--worth", "kinetics", "--jobs", "1", "--seeds", "[0]"]
    assert main(["study", str(file), "--dry-run", *options]) == 0
    assert f"next: cover study {file} {shlex.join(options)}" in capfd.readouterr().err


def test_a_killed_study_goes_on_to_the_same_results(done: Path, sandbox: Path, tmp_path: Path) -> None:
    file = write(tmp_path, sandbox)
    process = Command("study", file, "--jobs", "2", start_new_session=True)
    until = time.monotonic() + 120
    while not stamps(tmp_path / "study"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # its processes end with it, and let go of the pipe
    before = stamps(tmp_path / "study")
    assert len(before) < 4, "it was killed in the middle"
    assert main(["study", str(file), "--jobs", "1"]) == 0
    after = stamps(tmp_path / "study")
    assert {name: after[name] for name in before} == before, "what was done stayed as it was"
    ours, theirs = (
        json.loads((folder / "study/results.json").read_text(encoding="utf-8")) for folder in (tmp_path, done)
    )
    assert [row["by_seed"] for row in ours["arms"]] == [row["by_seed"] for row in theirs["arms"]]
    assert ours["comparisons"] == theirs["comparisons"]


def test_two_commands_do_not_run_one_study(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (done / "study/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["study", str(done / "study.yaml"), "--jobs", "1"]) == 2
    assert "another command is writing there" in capfd.readouterr().err


def test_weights_that_are_gone_are_made_again_where_a_run_starts_from_them(sandbox: Path, tmp_path: Path) -> None:
    file = write(tmp_path, sandbox, "origins: {photos: {sets: [imagenet], steps: 2}}\n")
    command = ["study", str(file), "--jobs", "1", "--arms", "[alone]"]
    assert main([*command, "--seeds", "[0]"]) == 0
    first = json.loads((tmp_path / "study/results.json").read_text(encoding="utf-8"))
    shutil.rmtree(tmp_path / "study/runs")
    assert main([*command, "--seeds", "[0]"]) == 0, "what is done needs no weights"
    (tmp_path / "study/results/alone.kinetics.whole.photos.lr0.001.s0.json").unlink()
    assert main([*command, "--seeds", "[0]"]) == 0
    assert json.loads((tmp_path / "study/results.json").read_text(encoding="utf-8"))["arms"] == first["arms"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("probes: [moments]", "probes: moments holds videos"),
        ("split: test", "targets: kinetics has no split test"),
        ("images: [imagent]", 'no data set "imagent"'),
    ],
)
def test_wrong_sets_are_one_line(
    sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: str, said: str
) -> None:
    file = write(tmp_path, sandbox)
    key, _, value = more.partition(": ")
    assert main(["study", str(file), f"--{key}", value]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


def test_transfer_of_checkpoints_to_a_set_that_they_do_not_know(
    sandbox: Path, done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = [
        f"--source={name}={done}/study/runs/{run}"
        for name, run in (
            ("one", "alone.kinetics.whole.scratch.lr0.001.s0"),
            ("mixed", "videos_images.whole.scratch.lr0.001.s0"),
        )
    ]
    command = [
        "transfer",
        *sources,
        "--target",
        "ssv2",
        "--catalog",
        str(sandbox),
        "--epochs",
        "1",
        "--how",
        "probe",
        "--seeds",
        "1",
        "--batch",
        "8",
        "--out",
        str(tmp_path / "moved"),
        "--jobs",
        "1",
    ]
    assert main(command) == 0
    out, _ = capfd.readouterr()
    rows = [line.split() for line in out.splitlines() if line.startswith(("one", "mixed"))]
    assert [row[:3] for row in rows] == [["one", "probe", "ssv2"], ["mixed", "probe", "ssv2"]]
    result = json.loads((tmp_path / "moved/results.json").read_text(encoding="utf-8"))
    (comparison,) = result["comparisons"]
    assert (comparison["ours"], comparison["theirs"]) == ("mixed:probe", "one:probe")
    assert main(command) == 0
    assert "2 of 2 runs are done" in capfd.readouterr().err


def test_a_source_of_a_transfer_is_not_measured_on_its_own_sets(sandbox: Path, tmp_path: Path) -> None:
    command = ["study", str(write(tmp_path, sandbox)), "--jobs", "1", "--arms", "[]", "--seeds", "[0]"]
    transfer = ["--transfer.sources", "{both: [kinetics, imagenet]}", "--transfer.targets", "[moments]"]
    assert main([*command, *transfer, "--transfer.how", "[probe]"]) == 0
    results = [json.loads(path.read_text()) for path in (tmp_path / "study/results").glob("*.json")]
    measured = {result["name"].partition(".")[0]: set(result["measured"]) for result in results}
    assert measured == {"source": set(), "probe": {"moments"}}


def test_a_co_trained_source_that_knows_the_target_is_refused(
    sandbox: Path, done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = f"mixed={done}/study/runs/videos_images.whole.scratch.lr0.001.s0"
    command = ["transfer", "--source", source, "--target", "moments", "--catalog", str(sandbox), "--epochs", "1"]
    assert main([*command, "--out", str(tmp_path / "moved")]) == 2
    assert "leaves the target out" in capfd.readouterr().err


def test_a_pilot_chooses_the_epochs_with_seeds_of_its_own(
    sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No arm of so few steps is above a thumbnail, so the most epochs are taken, and it is said."""
    more = "seeds: [0]\narms: [alone]\npilot: {epochs: [0.5, 1], seeds: [7, 8]}\n"
    file = tmp_path / "study.yaml"
    text = TEXT.format(catalog=sandbox, out=tmp_path / "study").replace("seeds: [0, 1]\n", "")
    text = text.replace("arms: [alone, videos_images]\n", "")
    file.write_text(text.replace("epochs: 1", "epochs: 2") + more, encoding="utf-8")
    assert main(["study", str(file), "--jobs", "1"]) == 0
    result = json.loads((tmp_path / "study/results.json").read_text(encoding="utf-8"))
    assert result["pilot"]["epochs"] == 1
    assert not result["pilot"]["passed"]
    assert result["study"]["sizes"]["whole"]["epochs"] == 1
    assert {(row["epochs"], len(row["by_seed"])) for row in result["pilot"]["rows"]} == {(0.5, 2), (1, 2)}
    assert {run["seed"] for run in result["runs"]} == {0}
    assert "none passes" in capfd.readouterr().err


@pytest.mark.parametrize(("margin", "stopped"), [(0.99, True), (0.0, False)])
def test_a_look_at_half_of_the_seeds(
    sandbox: Path, tmp_path: Path, margin: float, stopped: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ends the study if all claims are decided, and then the levels are those of two looks."""
    text = write(tmp_path, sandbox).read_text().replace("videos_images]", "videos]").replace("images: [imagenet]\n", "")
    text = text.replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3, 4, 5]").replace("margin: 0.05", f"margin: {margin}")
    file = tmp_path / "study.yaml"
    file.write_text(text + "look: true\nlrs: [1.0e-30]\n", encoding="utf-8")
    assert main(["study", str(file), "--jobs", "1"]) == 0
    summary = json.loads((tmp_path / "study/results.json").read_text(encoding="utf-8"))
    early, last = look_levels(0.5)
    level = early if stopped else last
    assert summary["look"] == {"seeds": 3, "planned": 6, "level": level, "stopped": stopped}
    assert {row["level"] for row in summary["comparisons"]} == {level}
    assert {row["seeds"] for row in summary["comparisons"]} == {3 if stopped else 6}
    assert len(list((tmp_path / "study/results").iterdir())) == 2 * (3 if stopped else 6)
    assert "A look at 3 of 6 seeds" in (tmp_path / "study/report.md").read_text(encoding="utf-8")
    before = (tmp_path / "study/results.json").read_bytes()
    assert main(["study", "--recompute", str(tmp_path / "study")]) == 0
    assert json.loads(before)["comparisons"] == json.loads((tmp_path / "study/results.json").read_text())["comparisons"]
    capfd.readouterr()


def test_the_worth_of_each_data_set(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It shares the runs of the study, and its ranking is that of its differences."""
    before = stamps(done / "study")
    assert main(["study", str(done / "study.yaml"), "--worth", "kinetics", "--jobs", "1"]) == 0
    assert capfd.readouterr().out.strip().endswith("study/worth/kinetics/report.html")
    after = stamps(done / "study")
    assert {name: after[name] for name in before} == before
    folder = done / "study/worth/kinetics"
    result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = [row for row in result["comparisons"] if row["claim"] == "worth"]
    assert {(row["ours"], row["theirs"]) for row in rows} == {
        ("videos_images", "without:moments"),
        ("videos_images", "without:imagenet"),
        ("with:moments", "alone"),
        ("with:imagenet", "alone"),
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    without = sorted((row for row in rows if "without" in row["theirs"]), key=lambda row: -row["difference"])
    places = [page.index(f">{row['theirs'].partition(':')[2]}<", page.index("full mixture loses")) for row in without]
    assert places == sorted(places)
    assert main(["study", "--recompute", str(folder)]) == 0
    again = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert again["comparisons"] == result["comparisons"]


def test_worth_of_an_unknown_target_is_refused(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(done / "study.yaml"), "--worth", "kinetic"]) == 2
    assert "kinetics" in capfd.readouterr().err
