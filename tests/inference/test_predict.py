"""`cover predict`: one row for every input, in order, whatever the input holds; runs that are killed go on; features
and timelines.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import commands
import numpy as np
import pyarrow as pa
import pytest
import torch
from commands import Command
from PIL import Image

import cover
from cover.cli import main
from cover.errors import UserError
from cover.evaluation.protocol import ViewPlan, read_views
from cover.inference import views
from cover.inference.predict import find_inputs
from cover.inference.predictor import Predictor
from cover.inference.views import Windows
from cover.media.decode import MediaError
from cover.media.sampling import Sampling, Views
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

Typed = Callable[..., tuple[int, str, str]]
HEADS = (Head("act", ("run", "sit", "fall")), Head("thing", ("cup", "dog")))
SETS = {"act": {"sampling": "dense@0.2", "views": "2x1"}, "thing": {"sampling": "whole", "views": "1x3"}}


def make_release(folder: Path, heads: tuple[Head, ...] = HEADS, step: int = 7) -> Path:
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), heads)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    save_release(folder, model, {"step": step, "frames": 3, "datasets": {head.name: SETS[head.name] for head in heads}})
    return folder


def write_clip(path: Path, seconds: float, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(round(10 * seconds)):
            pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, an image, a file that is none, and a text that nobody asks for."""
    folder = tmp_path_factory.mktemp("files")
    write_clip(folder / "a.mp4", 2.0, 1)
    write_clip(folder / "c, d.mp4", 4.5, 2)
    (folder / "b.mp4").write_bytes(b"nothing at all")
    (folder / "notes.txt").write_text("nobody asks for these")
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / "e.png")
    return folder


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str], release: Path) -> Typed:
    """predict(FILE, ...) -> exit code, stdout, stderr."""

    def run(*arguments: object, checkpoint: Path = release) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(["predict", str(checkpoint), *map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return run


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- what is meant ----------------------------------------------------------------------------------------------------


def test_files_folders_patterns_and_lists(files: Path) -> None:
    inside = [str(files / name) for name in ("a.mp4", "b.mp4", "c, d.mp4", "e.png")]
    assert find_inputs([str(files)], io.BytesIO()) == inside
    assert find_inputs([str(files / "*.mp4")], io.BytesIO()) == inside[:3]
    assert find_inputs([str(files / "**" / "e.png")], io.BytesIO()) == inside[3:]
    assert find_inputs(["-", "x.mp4"], io.BytesIO(f"{inside[2]}\n\n{files}\r\n".encode())) == [
        inside[2],
        *inside[:2],
        inside[3],
        "x.mp4",
    ]
    assert find_inputs(["s3://bucket/a*.mp4", "gone.mp4"], io.BytesIO()) == ["s3://bucket/a*.mp4", "gone.mp4"]


def test_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    odd = tmp_path / "a[1].mp4"
    odd.write_bytes(b"x")
    assert find_inputs([str(odd)], io.BytesIO()) == [str(odd)]


def test_a_file_with_brackets_that_is_missing(typed: Typed, files: Path, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone [id].mp4")
    assert find_inputs([gone], io.BytesIO()) == find_inputs(["-"], io.BytesIO(gone.encode())) == [gone]
    assert find_inputs([str(files / "[ab].mp4")], io.BytesIO()) == [str(files / "a.mp4"), str(files / "b.mp4")]
    with pytest.raises(UserError, match="no file matches"):
        find_inputs([str(tmp_path / "gone [id]*.mp4")], io.BytesIO())
    code, out, err = typed(gone, files / "a.mp4", "--format", "jsonl")
    assert (code, ["error" in json.loads(line) for line in out.splitlines()]) == (1, [True, False]), err


def test_a_list_behind_an_option(typed: Typed, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{files / 'e.png'}\n".encode())))
    code, out, err = typed(files / "a.mp4", "--top", 1, "-", "--format", "jsonl")
    assert (code, [Path(json.loads(line)["file"]).name for line in out.splitlines()]) == (0, ["a.mp4", "e.png"]), err


def test_a_list_of_names_that_are_no_text() -> None:
    (result,) = find_inputs(["-"], io.BytesIO(b"\xff.mp4\n"))
    assert os.fsencode(result) == b"\xff.mp4"


def test_nothing_is_meant(tmp_path: Path) -> None:
    for names, part in (
        (["-"], "no files are given"),
        ([str(tmp_path)], "no video or image"),
        ([str(tmp_path / "*.mp4")], "no file matches"),
    ):
        with pytest.raises(UserError, match=part):
            find_inputs(names, io.BytesIO())


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_one_row_for_every_file_in_order(typed: Typed, release: Path, files: Path, workers: int) -> None:
    code, out, err = typed(files, "--format", "jsonl", "--top", 2, "--workers", workers)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [Path(row["file"]).name for row in rows]) == (1, ["a.mp4", "b.mp4", "c, d.mp4", "e.png"])
    assert [line for line in err.splitlines() if "b.mp4" in line] == [
        f"{files / 'b.mp4'}: unreadable: {rows[1]['error']}"
    ]
    predictor = Predictor.load(release)
    for row in (rows[0], rows[2], rows[3]):
        result = predictor(row["file"])
        for head, top in row["heads"].items():
            assert [name for name, _ in top] == [name for name, _ in result[head].top(2)]
            assert [share for _, share in top] == pytest.approx([share for _, share in result[head].top(2)], abs=2e-6)
    assert rows[0]["protocol"] == {
        "checkpoint": str(release),
        "step": 7,
        "decoder": f"pyav {av.__version__}",
        "frames": 3,
        "views": {"act": "2x1", "thing": "1x3"},
        "sampling": {"act": "dense@0.2", "thing": "whole"},
        "top": 2,
    }


def test_chosen_heads_and_views(typed: Typed, files: Path) -> None:
    code, out, _ = typed(files / "a.mp4", "--head", "thing", "--views", "3x2", "--json", "-")
    (row,) = json.loads(out)
    assert (code, list(row["heads"]), row["protocol"]["views"]) == (0, ["thing"], {"thing": "3x2"})


def test_csv_has_one_line_for_every_file(typed: Typed, files: Path) -> None:
    _, out, _ = typed(files, "--format", "csv", "--top", 2)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [Path(row["file"]).name for row in rows] == ["a.mp4", "b.mp4", "c, d.mp4", "e.png"]
    _, out, _ = typed(files, "--format", "jsonl", "--top", 2)
    for row, wanted in zip(rows, map(json.loads, out.splitlines()), strict=True):
        assert row["error"] == wanted.get("error", "")
        assert json.loads(row["protocol"]) == wanted["protocol"]
        if "heads" in wanted:
            assert (row["act_1"], float(row["act_1_score"])) == tuple(wanted["heads"]["act"][0])
            assert (row["thing_2"], float(row["thing_2_score"])) == tuple(wanted["heads"]["thing"][1])


def test_pretty_shows_files_and_shares(typed: Typed, files: Path) -> None:
    _, out, _ = typed(files, "--top", 1)
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        str(files / n) for n in ("a.mp4", "c, d.mp4", "e.png")
    ]
    assert out.count("%") == 6


def test_damage_reaches_the_user(typed: Typed, test_data: Path, release: Path) -> None:
    damaged = test_data / "torture/derived/bitflips_mid.mp4"
    code, out, err = typed(damaged, "--format", "jsonl")
    row = json.loads(out)
    assert (code, row["partial"]) == (0, "a picture is damaged")
    assert err.splitlines() == [f"{damaged}: partial: a picture is damaged"]
    assert Predictor.load(release)(damaged).partial == "a picture is damaged"


@pytest.mark.parametrize("options", [[], ["--window", "1"], ["--embed", "f.npy"]], ids=["whole", "windows", "features"])
def test_nothing_but_unreadable_files(
    typed: Typed, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, record = typed(files / "b.mp4", tmp_path / "gone.mp4", "--out", "rows.jsonl", *options)
    assert code == 1
    assert ["error" in row for row in rows_in(tmp_path / "rows.jsonl")] == [True, True]
    assert record.count(": unreadable: ") == 2
    if "--embed" in options:
        assert np.isnan(np.load("f.npy")).all()


def test_every_torture_file_gets_the_row_that_is_expected(typed: Typed, test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "torture"
    with (folder / "manifest.csv").open(encoding="utf-8") as lines:
        expected = {row["path"]: row["expect"] for row in csv.DictReader(lines)}
    out = tmp_path / "rows.jsonl"
    assert typed(folder, "--out", out, "--workers", 2)[0] == 1
    results = {os.path.relpath(row["file"], folder): row for row in rows_in(out)}
    assert len(rows_in(out)) == len(results) == len(expected) == 72
    for path, what in expected.items():
        kind = "unreadable" if "error" in results[path] else "partial" if "partial" in results[path] else "frames"
        assert kind == what, path


# --- runs that end early ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("window", [[], ["--window", "1"]], ids=["whole", "windows"])
def test_a_file_cut_anywhere_is_taken_up(
    typed: Typed, files: Path, tmp_path: Path, ending: str, window: list[str]
) -> None:
    out = tmp_path / f"rows.{ending}"
    arguments = (files, "--out", out, "--workers", 0, *window)
    code, printed, _ = typed(*arguments)
    whole = out.read_bytes()
    assert (code, printed) == (1, f"{out}\n")
    for cut in [*range(0, len(whole), max(1, len(whole) // 9)), len(whole) - 1, len(whole)]:
        out.write_bytes(whole[:cut])
        assert typed(*arguments)[0] == 1
        assert out.read_bytes() == whole, cut


def test_rows_that_are_there_are_not_made_again(
    typed: Typed, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.jsonl"
    assert typed(files / "a.mp4", "--out", out)[0] == 0
    before = out.read_bytes()
    visited: list[int] = []
    run = Predictor.run
    monkeypatch.setattr(Predictor, "run", lambda self, clips: (visited.append(len(clips)), run(self, clips))[1])
    code, _, err = typed(files / "a.mp4", files / "e.png", "--out", out)
    assert (code, sum(visited)) == (0, 2)  # two heads that look differently at one image
    assert "continues after 1 rows; 1 of 2 files are left" in err
    assert out.read_bytes().startswith(before)


def test_a_killed_run_goes_on(release: Path, files: Path, tmp_path: Path) -> None:
    copies = [tmp_path / f"{number}.mp4" for number in range(40)]
    for copy in copies:
        copy.write_bytes((files / "a.mp4").read_bytes())
    out = tmp_path / "rows.jsonl"
    command = ["predict", release, *copies, "--out", out, "--workers", "0"]
    with Command(*command) as running:
        while running.poll() is None and not (out.exists() and out.stat().st_size):
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
    assert out.stat().st_size > 0
    done = commands.run(*command)
    assert done.returncode == 0, done.stderr
    assert [row["file"] for row in rows_in(out)] == list(map(str, copies))


def test_another_protocol_is_refused(typed: Typed, files: Path, tmp_path: Path) -> None:
    rows, table = tmp_path / "rows.jsonl", tmp_path / "rows.csv"
    for out in (rows, table):
        typed(files / "a.mp4", "--out", out)
    other = make_release(tmp_path / "other", step=8)
    for out, arguments, part in (
        (rows, ["--views", "1x1"], "was written with views"),
        (rows, ["--top", "1"], "was written with top 5, this run has 1"),
        (table, ["--top", "1"], "has other columns"),
        (table, ["--window", "1"], "was written with stride null"),
    ):
        before = out.read_bytes()
        code, _, err = typed(files / "a.mp4", "--out", out, *arguments)
        assert (code, part in err, len(err.splitlines())) == (2, True, 1), err
        assert out.read_bytes() == before
    assert "was written with checkpoint" in typed(files / "a.mp4", "--out", rows, checkpoint=other)[2]


def test_another_file_is_not_overwritten(typed: Typed, files: Path, tmp_path: Path) -> None:
    for name in ("mine.jsonl", "mine.csv"):
        (tmp_path / name).write_text("my own text")
        code, _, err = typed(files / "a.mp4", "--out", tmp_path / name)
        assert (code, (tmp_path / name).read_text()) == (2, "my own text"), err


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        ("rows.jsonl", lambda rows: [rows[0].replace(b'"protocol": {', b'"protocol": [1], "p": {'), *rows[1:]], 1),
        ("rows.jsonl", lambda rows: [rows[0].replace(b'"file": "', b'"file": 1, "f": "'), *rows[1:]], 1),
        ("rows.jsonl", lambda rows: [rows[0].replace(b"a.mp4", b"\xe4.mp4"), *rows[1:]], 1),
        ("rows.csv", lambda rows: [rows[0], rows[1].replace(b"a.mp4", b"\xe4.mp4"), *rows[2:]], 2),
        ("rows.csv", lambda rows: [*rows[:2], rows[2].replace(b"{", b"", 1)], 3),
        ("rows.csv", lambda rows: [*rows[:2], rows[2].replace(b"{", b"[1, {", 1).replace(b"}}", b"}}]"), *rows[3:]], 3),
        ("rows.csv", lambda rows: [rows[0], rows[1].replace(b",", b"", 1), *rows[2:]], 2),
        ("rows.csv", lambda rows: [rows[0], b"x" * 200_000 + rows[1], *rows[2:]], 2),
    ],
    ids=["protocol", "name", "latin1", "csv-latin1", "csv-json", "csv-protocol", "csv-cells", "csv-long"],
)
def test_damaged_rows_are_refused(
    typed: Typed, files: Path, tmp_path: Path, name: str, damage: Callable[[list[bytes]], list[bytes]], line: int
) -> None:
    out = tmp_path / name
    arguments = (files / "a.mp4", files / "e.png", "--out", out)
    assert typed(*arguments)[0] == 0
    damaged = b"".join(damage(out.read_bytes().splitlines(keepends=True)))
    out.write_bytes(damaged)
    code, printed, err = typed(*arguments)
    wanted = f"cover predict: --out {out}: line {line} is no row of cover predict; give another --out\n"
    assert (code, printed, err, out.read_bytes()) == (2, "", wanted, damaged)


def test_the_list_of_a_run_that_went_on_has_all_rows(typed: Typed, files: Path, tmp_path: Path) -> None:
    requested = [files / name for name in ("a.mp4", "b.mp4", "e.png")]
    typed(*requested, "--json", tmp_path / "wanted.json")
    rows, result = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    typed(files / "e.png", files / "b.mp4", files / "c, d.mp4", "--out", rows)
    for _ in range(2):
        code, _, err = typed(*requested, "--out", rows, "--json", result)
        assert (code, json.loads(result.read_text())) == (1, json.loads((tmp_path / "wanted.json").read_text())), err
    table = tmp_path / "rows.csv"
    assert typed(files / "a.mp4", "--out", table, "--json", result)[0] == 0
    code, _, err = typed(files / "a.mp4", files / "e.png", "--out", table, "--json", result)
    wanted = f"--json: cannot list the rows of an earlier .csv; leave it out, or give another --out than {table}"
    assert (code, err) == (2, f"cover predict: {wanted}\n")


# --- places that are full ---------------------------------------------------------------------------------------------


def limited(file_bytes: int | None, *arguments: object, stdout: str = "/dev/null") -> tuple[int, str]:
    """Exit code and stderr of a process under a limit on the size of the files it writes."""
    with Path(stdout).open("w") as file:
        done = commands.run("predict", *arguments, file_bytes=file_bytes, stdout=file.fileno())
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_full_disk_ends_rows_in_one_line(release: Path, files: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    arguments = (release, files / "a.mp4", files / "c, d.mp4", files / "e.png", "--out", out)
    record = f"cover predict: --out {out}: cannot be written: File too large; the same command continues from here\n"
    assert limited(1024, *arguments) == (2, record)
    assert out.stat().st_size == 1024
    assert limited(None, *arguments)[0] == 0


@pytest.mark.parametrize(("name", "window"), [("f.npy", 0.05), ("f.arrow", 0.5)])
def test_a_full_disk_ends_features_in_one_line(
    release: Path, files: Path, tmp_path: Path, name: str, window: float
) -> None:
    target = tmp_path / name
    code, err = limited(1024, release, files / "c, d.mp4", "--embed", target, "--window", window)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert err.startswith(f"cover predict: --embed {target}: cannot be written: ")
    assert "oo large" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [[], ["--format", "csv"], ["--json", "-"], ["--out", "rows.jsonl"]], ids=" ".join)
def test_stdout_that_is_full(
    release: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = limited(None, release, files / "a.mp4", *options, stdout="/dev/full")
    assert (code, err) == (2, "cover predict: stdout: cannot be written: No space left on device\n")


def test_stdout_that_nobody_reads(release: Path, files: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = commands.run("predict", release, files / "a.mp4", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


# --- timelines --------------------------------------------------------------------------------------------------------


def test_windows_tile_a_video() -> None:
    assert Windows(2, 1).spans(4.5) == [(0, 2), (1, 2), (2, 2), (2.5, 2)]
    assert Windows(2, 2).spans(4) == [(0, 2), (2, 2)]
    assert Windows(2, 1).spans(1.5) == [(0, 1.5)]
    assert Windows(1, 3).spans(7.5) == [(0, 1), (3, 1), (6, 1), (6.5, 1)]
    assert len(Windows(0.3, 0.1).spans(1.2)) == 10
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="--window"):
            Windows(wrong, 1)


def test_a_window_is_seen_as_a_video_of_its_length(release: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is decoded together: each window's pixels are those of a file read from there, for that long."""
    predictor, path = Predictor.load(release), str(files / "c, d.mp4")
    for most in (1, 12, 10_000):
        monkeypatch.setattr("cover.inference.views.CHUNK_FRAMES", most)
        result = predictor.timeline(path, 2.0, 1.0)
        assert [(part.start, part.end) for part in result] == [(0, 2), (1, 3), (2, 4), (2.5, 4.5)]
        for part in result:
            for head in HEADS:
                record = SETS[head.name]
                plan = ViewPlan(Sampling.parse(record["sampling"]), Views.parse(record["views"]), 3, 16)
                (clips,), _ = read_views(path, "video", [plan], 2.0, part.start)
                with torch.inference_mode():
                    logits = predictor.model(
                        predictor.model.normalize(torch.from_numpy(clips).flatten(0, 1)), ((len(clips), 3),)
                    )[head.name]
                assert part[head.name].scores == pytest.approx(logits.softmax(-1).mean(0).numpy(), abs=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_timeline_rows(typed: Typed, release: Path, files: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cover.inference.views.CHUNK_FRAMES", 9)
    code, out, _ = typed(files, "--window", 2, "--stride", 1, "--format", "jsonl", "--workers", workers)
    rows = {Path(row["file"]).name: row for row in map(json.loads, out.splitlines())}
    assert (code, len(rows), rows["c, d.mp4"]["protocol"]["stride"]) == (1, 4, 1)
    wanted = Predictor.load(release).timeline(files / "c, d.mp4", 2.0, 1.0)
    for head, record in rows["c, d.mp4"]["timeline"].items():
        assert [(part["start"], part["end"]) for part in record] == [(part.start, part.end) for part in wanted]
        assert [part["top"][0][0] for part in record] == [part[head].top(1)[0][0] for part in wanted]
    assert "timeline" not in rows["e.png"]
    _, out, _ = typed(files / "c, d.mp4", "--window", 2, "--format", "csv", "--head", "act")
    assert [(row["start"], row["end"]) for row in csv.DictReader(io.StringIO(out))] == [
        ("0.0", "2.0"),
        ("2.0", "4.0"),
        ("2.5", "4.5"),
    ]
    _, out, _ = typed(files / "c, d.mp4", "--window", 2)
    assert "2.50 -     4.50 s" in out


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_and_names(typed: Typed, release: Path, files: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(release)
    for target in (tmp_path / "f.npy", tmp_path / "f.arrow"):
        assert typed(files, "--embed", target, "--json", tmp_path / "rows.json")[0] == 1
    array = np.load(tmp_path / "f.npy")
    names = list(csv.DictReader((tmp_path / "f.csv").open(encoding="utf-8")))
    table = pa.ipc.open_file(tmp_path / "f.arrow").read_all()
    assert (array.shape, array.dtype, [Path(row["file"]).name for row in names]) == (
        (4, 16),
        np.float32,
        ["a.mp4", "b.mp4", "c, d.mp4", "e.png"],
    )
    for number, row in enumerate(names):
        vector = table["features"][number].as_py()
        if row["problem"]:
            assert np.isnan(array[number]).all()
            assert vector is None
            continue
        assert array[number] == pytest.approx(predictor.features(row["file"]), abs=1e-5)
        assert vector == pytest.approx(array[number].tolist())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.arrow", "f.csv", "f.npy", "rows.json"]


def test_features_are_what_the_heads_see(release: Path, files: Path) -> None:
    predictor = Predictor.load(release)
    vector = torch.from_numpy(predictor.features(files / "e.png", "act", Views(1, 1)))
    scores = predictor.model.forward_head(vector[None])["act"].softmax(-1)[0].detach().numpy()
    assert scores == pytest.approx(predictor(files / "e.png", ["act"], Views(1, 1))["act"].scores, abs=1e-6)


def test_features_of_windows_and_of_a_model_without_heads(typed: Typed, files: Path, tmp_path: Path) -> None:
    bare = make_release(tmp_path / "bare", ())
    code, _, err = typed(files / "c, d.mp4", "--embed", tmp_path / "f.npy", "--window", 2, checkpoint=bare)
    assert (code, np.load(tmp_path / "f.npy").shape) == (0, (3, 16)), err
    assert "has no head, so there is nothing to predict" in typed(files / "a.mp4", checkpoint=bare)[2]


def test_the_list_of_features_replaces_nothing_else(typed: Typed, files: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    for text in ("label,path\n1,a.mp4\n", ""):
        mine.write_text(text)
        code, _, err = typed(files / "e.png", "--embed", tmp_path / "mine.npy")
        assert (code, len(err.splitlines()), f"{mine} is no list of features" in err) == (2, 1, True), err
        assert ([path.name for path in tmp_path.iterdir()], mine.read_text()) == (["mine.csv"], text)
    mine.unlink()
    for file in ("e.png", "a.mp4"):
        assert typed(files / file, "--embed", tmp_path / "mine.npy")[0] == 0
        assert [Path(row["file"]).name for row in csv.DictReader(mine.open(encoding="utf-8"))] == [file]


# --- wrong use --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--window", "0"], "--window: expected seconds"),
        (["--window", "2", "--stride", "nan"], "--stride: expected seconds"),
        (["--stride", "1"], "--stride: goes with --window"),
        (["--stride", "0"], "--stride: goes with --window"),
        (["--out", "rows.txt"], "name it .jsonl, .csv"),
        (["--embed", "f.pt", "--out", "rows.csv"], "name it .npy or .arrow"),
        (["--embed", "f.npy", "--engine", "ray"], "--engine ray"),
        (["--embed", "f.npy", "--out", "f.csv"], "f.csv: --out writes it too"),
        (["--embed", "f.npy", "--json", "f.csv"], "f.csv: --json writes it too"),
        (["--embed", "f.npy", "--json", "./f.npy"], "f.npy: --json writes it too"),
        (["--out", "s.jsonl", "--json", "./s.jsonl"], "s.jsonl: --out writes it too"),
        (["--head", "actt"], 'did you mean "act"'),
        (["--out", "/proc/none/rows.jsonl"], "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused(
    typed: Typed, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(files / "a.mp4", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert part in err
    assert list(tmp_path.iterdir()) == []


# --- reading processes ------------------------------------------------------------------------------------------------


def crash_on_some_files() -> None:
    """Begins a reading process whose decoder dies on files called `crash`."""
    probe = views.probe

    def probe_or_die(path: str, *arguments: Any) -> Any:
        if Path(path).stem == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        return probe(path, *arguments)

    views.probe = probe_or_die


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_crashes_the_decoder_has_its_row(
    typed: Typed, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(views, "_begin_reading", crash_on_some_files)
    crash, rows = tmp_path / "crash.mp4", tmp_path / "rows.jsonl"
    crash.write_bytes((files / "a.mp4").read_bytes())
    names = [files / "a.mp4", crash, files / "e.png", files / "c, d.mp4"]
    code, _, err = typed(*names, "--workers", workers, "--out", rows)
    assert code == 1
    result = rows_in(rows)
    assert [row["file"] for row in result] == list(map(str, names))
    assert [row.get("error") for row in result] == [None, "the decoder crashed on it", None, None]
    assert all(set(row["heads"]) == {"act", "thing"} for row in result if "error" not in row)
    assert f"{crash}: unreadable: the decoder crashed on it" in err.splitlines()


# --- in Python --------------------------------------------------------------------------------------------------------


def test_one_head_or_several(release: Path, files: Path, tmp_path: Path) -> None:
    several = cover.Predictor.load(release)(files / "a.mp4")
    assert several["act"].top(1) == several["act"].top(3)[:1]
    with pytest.raises(UserError, match='choose one, as in predictions\\["act"\\]'):
        several.top()
    one = cover.Predictor.load(make_release(tmp_path / "one", HEADS[:1]))(files / "a.mp4")
    assert one.top(2) == one["act"].top(2)
    with pytest.raises(MediaError):
        cover.Predictor.load(release).timeline(files / "b.mp4", 1.0)


def test_from_the_hubs_cache(release: Path, files: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--me--mine/snapshots/0123"
    snapshot.mkdir(parents=True)
    for file in release.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123")
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = commands.run("predict", "me/mine", files / "a.mp4", "--json", "-", env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["protocol"]["checkpoint"] == "me/mine"
