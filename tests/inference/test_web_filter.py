"""`cover filter`: a small trained teacher chooses images, clips and windows by colour; the page docs/filter.md."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as fn
from PIL import Image

from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import Manifest, open_manifest
from cover.inference.predictor import Predictor
from cover.model.backbones.conv3d import Conv3dConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head

PAGE = (Path(__file__).parents[2] / "docs/filter.md").read_text(encoding="utf-8")
CLASSES = ("Deep_Red", "blue")
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
# Listed path -> class. Of the page's data sets.
TARGET = {f"{colour}{number}.png": name for colour, name in zip(("red", "blue"), CLASSES) for number in range(4)}
IMAGES = {
    "red_a.png": "deep red",
    "red_b.png": "deep red",
    "blue_as_red.png": "deep red",
    "blue_a.png": "blue",
    "green.png": "green",
    "copy_of_val.png": "deep red",
    "broken.png": "blue",
    "absent.png": "blue",
}
CLIPS = {"untrimmed.mp4": "deep red", "short_red.mp4": "deep red", "short_blue.mp4": "deep red"}
FILTER = ["filter", "teacher", "web_images", "web_clips", "--catalog", "catalog.yaml", "--workers", "0"]
CUT = ["--window", "2", "--stride", "1"]


def picture(colour: str, seed: int, count: int = 1) -> np.ndarray:
    """uint8 `(count, 48, 64, 3)`: blocks of noise around a colour, so that no two pictures look alike."""
    noise = np.random.default_rng(seed).integers(-30, 30, (count, 6, 8, 1)).repeat(8, 1).repeat(8, 2)
    return (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)


def write_video(path: Path, colours: list[str]) -> None:
    """One second of each colour, at 10 fps."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for number, colour in enumerate(colours):
            for pixels in picture(colour, number, 10):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_list(path: Path, samples: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("path,label\n" + "".join(f"{file},{label}\n" for file, label in samples.items()))


def train_teacher(folder: Path) -> None:
    """Sixty steps on the two colours."""
    torch.manual_seed(0)
    views = {"target": {"media": "image", "sampling": "whole", "views": "1x1"}}
    config = Conv3dConfig(size=16, frames=4, channels=(8,), motion="frames")
    model = CoVeR(config, (Head("target", CLASSES),), metadata={"frames": 4, "datasets": views})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(60):
        frames = [torch.from_numpy(picture(colour, 1000 + step, 4)[:, :16, :16]) for colour in COLOURS]
        logits = model(model.normalize(torch.cat(frames).permute(0, 3, 1, 2)), ((2, 4),))["target"]
        loss = fn.cross_entropy(logits, torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's catalog, indexed and compared, and the teacher. Never changed."""
    folder = tmp_path_factory.mktemp("web")
    write_list(folder / "target/list.csv", TARGET)
    write_list(folder / "target/val.csv", {"val_red.png": CLASSES[0]})
    write_list(folder / "web_images/list.csv", IMAGES)
    write_list(folder / "web_clips/list.csv", CLIPS)
    for number, file in enumerate((*TARGET, "val_red.png")):
        Image.fromarray(picture("red" if "red" in file else "blue", number)[0]).save(folder / "target" / file)
    for number, file in enumerate(
        name for name in IMAGES if name not in ("broken.png", "absent.png", "copy_of_val.png")
    ):
        Image.fromarray(picture("blue" if "blue" in file else "red", 100 + number)[0]).save(
            folder / "web_images" / file
        )
    shutil.copy(folder / "target/val_red.png", folder / "web_images/copy_of_val.png")
    (folder / "web_images/broken.png").write_bytes(b"no picture" * 100)
    write_video(folder / "web_clips/untrimmed.mp4", ["blue", "blue", "red", "red", "blue", "blue", "red", "red"])
    write_video(folder / "web_clips/short_red.mp4", ["red"])
    write_video(folder / "web_clips/short_blue.mp4", ["blue"])
    train_teacher(folder / "teacher")
    (folder / "catalog.yaml").write_text(re.findall(r"```yaml\n(# catalog\.yaml\n.*?)```", PAGE, re.DOTALL)[0])
    assert main(["index", str(folder / "catalog.yaml"), "--workers", "0"]) == 1
    assert main(["overlap", str(folder / "catalog.yaml"), "--workers", "0"]) == 0
    return folder


@pytest.fixture
def at(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with links to the world."""
    for item in world.iterdir():
        (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counts(*more: str) -> dict[str, dict[str, Any]]:
    assert main([*FILTER, "--out", "out", "--json", "counts.json", *more]) == 0
    return {result["dataset"]: result for result in json.loads(Path("counts.json").read_text())}


def kept(name: str) -> Manifest:
    catalog = load_catalog("out/catalog.yaml")
    return open_manifest(catalog.manifest_path(f"{name}_filtered", "train"))


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_every_row_is_counted_once(at: Path) -> None:
    results = counts(*CUT)
    images, clips = results["web_images"], results["web_clips"]
    shown = ("listed", "unusable", "no_class", "duplicates", "unreadable", "refused", "kept", "clips")
    assert [images[name] for name in shown] == [8, 2, 1, 1, 0, 1, 3, 3]
    assert [clips[name] for name in shown] == [3, 0, 0, 0, 0, 1, 2, 3]
    assert images["classes"] == {"Deep_Red": 2, "blue": 1}
    for result in results.values():
        assert result["listed"] == sum(result[name] for name in shown[1:-1])


def test_the_rows_that_are_kept(at: Path) -> None:
    counts(*CUT)
    images, clips = kept("web_images"), kept("web_clips")
    assert images.classes.names == clips.classes.names == CLASSES
    assert [(row.sample_id, row.label) for row in images.rows()] == [
        ("red_a.png", 0),
        ("red_b.png", 0),
        ("blue_a.png", 1),
    ]
    windows = [(row.sample_id, row.start, row.end, row.label) for row in clips.rows()]
    assert windows == [
        ("untrimmed.mp4#2-4", 2.0, 4.0, 0),
        ("untrimmed.mp4#6-8", 6.0, 8.0, 0),
        ("short_red.mp4", None, None, 0),
    ]


def test_a_score_is_the_probability_of_a_prediction(at: Path) -> None:
    counts(*CUT)
    lines = [json.loads(line) for line in Path("out/scores/web_images.jsonl").read_text().splitlines()][1:]
    predictor = Predictor.load("teacher")
    for line in lines:
        row = open_manifest(load_catalog("catalog.yaml").manifest_path("web_images", "train")).row(line["row"])
        wanted = predictor(row.path)["target"].scores[0 if IMAGES[row.sample_id] == "deep red" else 1]
        ((_, _, score),) = line["spans"]
        assert score == pytest.approx(wanted, abs=1e-5)


def test_without_windows_a_video_is_one_clip(at: Path) -> None:
    result = counts("--threshold", "0")["web_clips"]
    assert (result["kept"], result["clips"], result["refused"]) == (3, 3, 0)


@pytest.mark.parametrize(
    ("options", "clips"),
    [
        (["--per-video", "1"], 2),
        (["--most", "1"], 1),
        (["--threshold", "1"], 0),
        (["--class-threshold", "Deep_Red=1"], 0),
        (["--threshold", "1", "--class-threshold", "Deep_Red=0.5"], 3),
        (["--threshold", "0"], 6),  # windows that do not overlap: four of 8 s, and two short clips
    ],
    ids=str,
)
def test_thresholds_and_numbers(at: Path, options: list[str], clips: int) -> None:
    assert counts(*CUT, *options)["web_clips"]["clips"] == clips


# --- again ------------------------------------------------------------------------------------------------------------


def test_another_threshold_runs_no_network(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts(*CUT)
    before = Path("out/scores/web_clips.jsonl").read_bytes()
    monkeypatch.setattr(Predictor, "run", lambda self, clips: [] if not clips else pytest.fail("it ran"))
    assert counts(*CUT, "--threshold", "0")["web_clips"]["clips"] == 6
    assert Path("out/scores/web_clips.jsonl").read_bytes() == before


def test_an_interrupted_run_goes_on(at: Path) -> None:
    results = counts(*CUT)
    file = Path("out/scores/web_clips.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rfind(b"\n", 0, -1) + 10])  # the last line is torn
    assert counts(*CUT) == results
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "3", "--stride", "1"], "window 2.0, this run has 3.0"),
        ([*CUT, "--views", "1x3"], 'views "1x1", this run has "1x3"'),
    ],
)
def test_scores_of_other_views(
    arguments: list[str], message: str, at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts(*CUT)
    assert main([*FILTER, "--out", "out", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_file_of_something_else(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out/scores").mkdir(parents=True)
    for text in ("shopping list\n", '{"weights": "x"}\n{"row": 0}\n', "[1]\n"):
        Path("out/scores/web_images.jsonl").write_text(text)
        assert main([*FILTER, "--out", "out"]) == 2
        assert "holds no scores of cover filter" in capsys.readouterr().err
        assert Path("out/scores/web_images.jsonl").read_text() == text


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["filter", "teacher"], "name the web data sets"),
        ([*FILTER, "--threshold", "1.5"], "--threshold: 1.5"),
        ([*FILTER, "--class-threshold", "red=0.5"], 'no class "red"'),
        ([*FILTER, "--class-threshold", "blue=high"], "--class-threshold"),
        ([*FILTER, "--class-threshold", "blue=2"], "blue=2"),
        ([*FILTER, "--head", "targets"], 'no head "targets"'),
        ([*FILTER, "--per-video", "1"], "only with --window"),
        (["filter", "teacher", "webs"], 'no data set "webs"'),
    ],
)
def test_wrong_use(arguments: list[str], message: str, at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--out", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("out/scores").exists()


def test_duplicates_are_dropped_or_kept_on_purpose(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("manifests").unlink()
    shutil.copytree((at / "catalog.yaml").resolve().parent / "manifests", "manifests")
    Path("manifests/exclusions.arrow").unlink()
    assert main([*FILTER, "--out", "out"]) == 2
    assert "cover overlap" in capsys.readouterr().err
    result = counts("--duplicates", "keep")["web_images"]
    assert (result["duplicates"], result["kept"]) == (0, 4)


def test_classes_that_the_teacher_does_not_know(make_set: Any, at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("catalog.yaml").unlink()
    catalog = make_set({"a.png": "cats", "b.png": "dogs"})
    command = ["filter", str(at / "teacher"), "mine", "--catalog", str(catalog), "--out", "out", "--duplicates", "keep"]
    assert main(command) == 2
    assert 'mine: none of its classes ("cats", ...) is one of head "target"' in capsys.readouterr().err
    catalog = make_set({"a.png": "blue|Deep_Red"}, "many", column="labels")
    assert main([*command[:2], "many", *command[3:]]) == 2
    assert "any number of classes" in capsys.readouterr().err


def test_a_file_that_is_gone_is_counted(at: Path) -> None:
    """The list of duplicates still holds, because the manifests are the same."""
    for name in ("web_clips", "manifests", "catalog.yaml", "target", "web_images"):
        source = (at / name).resolve()
        (at / name).unlink()
        shutil.copytree(source, name) if source.is_dir() else shutil.copy(source, name)
    assert main(["index", "catalog.yaml", "--workers", "0"]) == 1
    assert main(["overlap", "catalog.yaml", "--workers", "0"]) == 0
    Path("web_clips/short_red.mp4").unlink()
    assert main([*FILTER, *CUT, "--out", "out", "--json", "counts.json"]) == 1
    result = json.loads(Path("counts.json").read_text())[1]
    assert (result["unreadable"], result["kept"], result["clips"]) == (1, 1, 2)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/filter.md: from the web data to a run on what is kept."""
    for name in ("catalog.yaml", "manifests"):
        Path(name).unlink()
    for kind, text in re.findall(r"```(yaml|sh)\n(.*?)```", PAGE, re.DOTALL):
        if kind == "yaml":
            Path(re.match(r"# (\S+)\n", text)[1]).write_text(text)  # type: ignore[index]
            continue
        for line in text.splitlines():
            words = shlex.split(line)[1:]
            more = {"train": ["--steps", "1"]}.get(words[0], [])
            code = main([*words, *more, "--workers", "0"])
            assert code == (1 if words[0] == "index" else 0), capsys.readouterr().err
    run = CoVeR.from_pretrained("runs/omnisource")
    assert [(head.name, head.classes) for head in run.head_list] == [("target", CLASSES)]
    assert run.head_list[0].datasets == ("target", "web_images_filtered", "web_clips_filtered")
