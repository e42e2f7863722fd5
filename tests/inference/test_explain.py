"""What `cover explain` writes: the Predictor's own scores, the roll-out of the middle view, and pictures on which both
can be read.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from cover.errors import UserError
from cover.evaluation.protocol import ViewPlan, read_views
from cover.inference.explain import ExplainOptions, Explanation, default_folder, explain, explanations
from cover.inference.heatmaps import BAR, GAP, MARGIN, TILE, Caption, colours, contact_sheet, with_heat, write_clip
from cover.inference.predictor import Predictor
from cover.media.sampling import Sampling, Views
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

HEADS = (
    Head("ssv2", ("up", "down", "left")),
    Head("photo/things", ("cat", "dog")),
    Head("tags", ("left", "rain"), loss="sigmoid"),
)
SETS = {
    "ssv2": {"sampling": "segments", "views": "2x3"},
    "photo/things": {"sampling": "whole", "views": "1x1"},
    "tags": {"sampling": "segments", "views": "1x3"},
}
CAPTION = Caption("clip.mp4", "ssv2", "up", 0.75, (("up", 0.75), ("down", 0.25)), "how it came about.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of random weights, a clip of 2 s and an image."""
    folder = tmp_path_factory.mktemp("explain")
    model = CoVeR(TimeSformerConfig(width=32, depth=2, attention_heads=2, patch=8, size=32), HEADS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    save_release(folder / "release", model, {"step": 7, "frames": 4, "datasets": SETS})
    rng = np.random.default_rng(0)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 96, 48
        for _ in range(20):
            pixels = rng.integers(0, 256, (6, 12, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 60)).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder / "release")


def wrote(
    folder: Path, out: Path, file: str = "clip.mp4", heads: tuple[str, ...] | None = None
) -> tuple[list[str], dict[str, Any]]:
    paths = explain(str(folder / "release"), str(folder / file), ExplainOptions(heads), out, "cpu")
    assert all(path.stat().st_size > 0 for path in paths)
    return [path.name for path in paths], json.loads((out / "explanation.json").read_text())


# --- what is told


def test_of_a_video(folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    names, record = wrote(folder, tmp_path / "new" / "out")
    assert names == [
        "ssv2.png",
        "ssv2.mp4",
        "photo_things.png",
        "photo_things.mp4",
        "tags.png",
        "tags.mp4",
        "explanation.json",
    ]
    assert (record["media"], record["step"], record["method"], list(record["heads"])) == (
        "video",
        7,
        "gradient",
        [head.name for head in HEADS],
    )
    own = predictor(folder / "clip.mp4")
    for name, result in record["heads"].items():
        assert result["top"] == [[label, pytest.approx(share, abs=1e-5)] for label, share in own[name].top(5)]
        assert (result["class"], result["probability"]) == (
            own[name].top(1)[0][0],
            pytest.approx(own[name].top(1)[0][1], abs=1e-5),
        )
        assert sum(frame["weight"] for frame in result["frames"]) == pytest.approx(1, abs=1e-4)
        assert np.array(result["heat"]).shape == (4, 4, 4)
        assert [frame["weight"] for frame in result["frames"]] == pytest.approx(
            np.array(result["heat"]).sum((1, 2)), abs=1e-4
        )
    times = [frame["time"] for frame in record["heads"]["ssv2"]["frames"]]
    assert times == pytest.approx([0.25, 0.75, 1.25, 1.75])  # of 2 s the middles of four parts
    assert (record["heads"]["ssv2"]["views"], record["heads"]["ssv2"]["sampling"]) == ("2x3", "segments")


def middle_view(folder: Path, predictor: Predictor, sampling: str) -> torch.Tensor:
    plan = ViewPlan(Sampling.parse(sampling), Views(1, 1), 4, 32)
    (clips,), _ = read_views(str(folder / "clip.mp4"), "video", [plan], 2.0)
    return predictor.model.normalize(torch.from_numpy(clips[0]))


def test_the_heat_is_the_roll_out_of_the_middle_view(folder: Path, predictor: Predictor) -> None:
    pixels = middle_view(folder, predictor, "segments")
    _, (ssv2, tags) = explanations(predictor, str(folder / "clip.mp4"), ExplainOptions(("ssv2", "tags"), "left"))
    np.testing.assert_allclose(ssv2.heat, predictor.model.heat(pixels, "ssv2", 2).heat, atol=1e-6)
    np.testing.assert_allclose(tags.heat, predictor.model.heat(pixels, "tags", 0).heat, atol=1e-6)
    assert np.abs(ssv2.heat - tags.heat).sum() > 0.01
    assert (ssv2.class_name, ssv2.probability) == ("left", pytest.approx(float(ssv2.prediction.scores[2])))
    rolled = explanations(predictor, str(folder / "clip.mp4"), ExplainOptions(("ssv2", "tags"), method="rollout"))[1]
    np.testing.assert_allclose(rolled[0].heat, predictor.model.heat(pixels).heat, atol=1e-6)
    assert np.array_equal(rolled[0].heat, rolled[1].heat)  # it knows nothing of classifiers


def test_of_an_image(folder: Path, tmp_path: Path) -> None:
    names, record = wrote(folder, tmp_path, "photo.png", ("tags",))
    assert names == ["tags.png", "explanation.json"]
    (result,) = record["heads"].values()
    assert (result["clip"], result["frames"], record["media"]) == (
        None,
        [{"time": 0, "weight": pytest.approx(1)}],
        "image",
    )


def test_of_a_video_by_one_frame(folder: Path, tmp_path: Path) -> None:
    model = CoVeR(TimeSformerConfig(width=32, depth=1, attention_heads=2, patch=8, size=32), (Head("one", ("a", "b")),))
    save_release(tmp_path / "one", model, {"frames": 1, "datasets": {"one": {"sampling": "whole", "views": "1x1"}}})
    explain(str(tmp_path / "one"), str(folder / "clip.mp4"), ExplainOptions(), tmp_path / "out", "cpu")
    record = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert [frame["time"] for frame in record["heads"]["one"]["frames"]] == [1.0]  # the middle of 2 s


def test_a_named_class_is_asked_of_the_heads_that_have_it(folder: Path, predictor: Predictor) -> None:
    clip = str(folder / "clip.mp4")
    assert [each.prediction.head for each in explanations(predictor, clip, ExplainOptions(class_name="left"))[1]] == [
        "ssv2",
        "tags",
    ]
    with pytest.raises(UserError, match='--class: photo/things has no class "dogg"; did you mean "dog"'):
        explanations(predictor, clip, ExplainOptions(("photo/things",), "dogg"))


def test_what_cannot_be_read_or_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    with pytest.raises(UserError, match=r"broken\.mp4: unreadable: "):
        explain(
            str(folder / "release"), str(tmp_path / "broken.mp4"), ExplainOptions(), tmp_path / "new" / "out", "cpu"
        )
    assert not (tmp_path / "new").exists()
    save_release(
        tmp_path / "headless",
        CoVeR(TimeSformerConfig(width=32, depth=1, attention_heads=2, patch=8, size=32)),
        {"frames": 4},
    )
    with pytest.raises(UserError, match="headless: has no head, so there is nothing to explain"):
        explain(str(tmp_path / "headless"), str(folder / "photo.png"), ExplainOptions(), tmp_path / "out", "cpu")
    with pytest.raises(UserError, match=r"--out .*broken\.mp4: cannot be written"):
        explain(str(folder / "release"), str(folder / "photo.png"), ExplainOptions(), tmp_path / "broken.mp4", "cpu")


def test_heads_of_like_names_have_pictures_of_their_own(folder: Path, tmp_path: Path) -> None:
    heads = (Head("a/b", ("x", "y")), Head("a_b", ("x", "y")), Head("A_b", ("x", "y")))
    model = CoVeR(TimeSformerConfig(width=32, depth=1, attention_heads=2, patch=8, size=32), heads)
    save_release(tmp_path / "release", model, {"frames": 4, "datasets": {head.name: SETS["tags"] for head in heads}})
    paths = explain(str(tmp_path / "release"), str(folder / "photo.png"), ExplainOptions(), tmp_path / "out", "cpu")
    assert [path.name for path in paths] == ["a_b.png", "a_b-2.png", "A_b-3.png", "explanation.json"]
    record = json.loads((tmp_path / "out" / "explanation.json").read_text())["heads"]
    assert [record[head.name]["sheet"] for head in heads] == [path.name for path in paths[:3]]


def test_files_of_like_names_have_folders_of_their_own() -> None:
    names = ("a/clip.mp4", "clip.jpg", "https://host/b/clip.webm?signed=1", "s3://bucket/clip.avi", "odd?.mp4")
    assert [str(default_folder(name)) for name in names] == [
        f"explained/{name}" for name in ("clip.mp4", "clip.jpg", "clip.webm", "clip.avi", "odd?.mp4")
    ]


def test_an_explanation_of_another_file_is_not_mixed_with_the_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote(folder, tmp_path / "out", "photo.png", ("tags",))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=r"--out .*out: holds the explanation of .*photo\.png; name another folder"):
        explain("nowhere", str(folder / "clip.mp4"), ExplainOptions(), tmp_path / "out", "cpu")  # before any work
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    monkeypatch.chdir(folder)
    # the same file, otherwise called
    explain("release", "./photo.png", ExplainOptions(("ssv2",)), tmp_path / "out", "cpu")


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"file": "clip.mp4"}', '{"file": 1, "heads": {}}', '{"file": "a", "heads": {"a": 1}}']
)
def test_a_folder_of_someone_elses(folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "explanation.json").write_text(text)
    with pytest.raises(UserError, match=r"explanation\.json in it was not written by cover explain"):
        explain(str(folder / "release"), str(folder / "clip.mp4"), ExplainOptions(), tmp_path, "cpu")
    assert (tmp_path / "explanation.json").read_text() == text


def test_a_new_explanation_of_a_file_takes_the_place_of_the_old(folder: Path, tmp_path: Path) -> None:
    """Heads that are not asked for any more leave no pictures; what else lies in the folder, or is listed outside it,
    stays.
    """
    out, outside = tmp_path / "out", tmp_path / "tags.png"
    _, record = wrote(folder, out, heads=("tags", "photo/things"))
    for path in (out / "mine.txt", outside):
        path.write_text("kept")
    record["heads"]["tags"]["sheet"] = "../tags.png"
    (out / "explanation.json").write_text(json.dumps(record))
    wrote(folder, out, heads=("ssv2",))
    assert sorted(path.name for path in out.iterdir()) == ["explanation.json", "mine.txt", "ssv2.mp4", "ssv2.png"]
    assert outside.read_text() == "kept"


def test_a_frame_beyond_the_end_is_at_the_end(folder: Path, predictor: Predictor) -> None:
    plan = replace(predictor.plan("ssv2"), sampling=Sampling("dense", 1.0))
    predictor.model.metadata["datasets"] = {**SETS, "ssv2": {"sampling": "dense@1", "views": "1x1"}}
    _, (result,) = explanations(Predictor(predictor.model), str(folder / "clip.mp4"), ExplainOptions(("ssv2",)))
    assert isinstance(result, Explanation)
    assert (result.times, result.plan.sampling) == ((0.0, 1.0, 1.998, 1.998), plan.sampling)


# --- how it looks


def test_the_scale_grows_lighter_with_the_heat() -> None:
    linear = (colours(np.linspace(0, 1, 50)) / 255) ** 2.2
    lightness = linear @ np.array([0.2126, 0.7152, 0.0722])
    assert bool((np.diff(lightness) > 0).all())
    assert lightness[-1] - lightness[0] > 0.8


def test_the_hottest_place_is_the_brightest() -> None:
    heat = np.zeros((2, 4, 4), np.float32)
    heat[1, 3, 0], heat[0, 0, 3] = 0.8, 0.2
    cool, multi_hot = (
        np.asarray(picture, np.float32) for picture in with_heat(np.full((2, 3, 32, 32), 128, np.uint8), heat, 64)
    )
    warmth = multi_hot[..., 0] - multi_hot[..., 2]
    assert np.unravel_index(warmth.argmax(), warmth.shape)[0] >= 48
    assert np.unravel_index(warmth.argmax(), warmth.shape)[1] < 16
    assert float(np.abs(multi_hot[:32, 32:] - multi_hot[:32, 32:].mean()).max()) < 1  # nothing there: even grey
    # one scale for both frames
    assert float(multi_hot[56, 8].sum()) > float(cool[8, 56].sum()) > float(cool[56, 8].sum())


def test_bars_are_as_long_as_the_frames_parts() -> None:
    heat = np.zeros((10, 2, 2), np.float32)
    heat[:4, 0, 0] = (0.1, 0.2, 0.6, 0.1)
    sheet = np.asarray(
        contact_sheet(CAPTION, np.zeros((10, 3, 16, 16), np.uint8), heat, [0.5 * number for number in range(10)])
    )
    below = (sheet == np.array(BAR)).all(-1)[160:]  # the classes' bars lie above
    columns = [below[:, MARGIN + place * (TILE + GAP) + TILE // 2].sum() for place in range(8)]
    np.testing.assert_allclose(columns, np.array([0.1, 0.2, 0.6, 0.1, 0, 0, 0, 0]) / 0.6 * 47, atol=2)
    assert sheet.shape[1] == 2 * MARGIN + 8 * (TILE + GAP) - GAP  # the other two begin a second row


@pytest.mark.parametrize("frames", [1, 2, 3, 16])
def test_sheets_of_any_number_of_frames_and_any_words(frames: int) -> None:
    long = replace(
        CAPTION,
        class_name="läuft & springt " * 30,
        file="x" * 300,
        top=(("läuft & springt " * 30, 1.0),),
        note="y" * 900,
    )
    for caption in (CAPTION, long):
        for heat in (np.zeros((frames, 4, 4), np.float32), np.full((frames, 4, 4), 1 / (16 * frames), np.float32)):
            sheet = contact_sheet(
                caption, np.zeros((frames, 3, 32, 32), np.uint8), heat, [0.1 * number for number in range(frames)]
            )
            assert 700 < sheet.width < 1500
            assert 300 < sheet.height < 1500


@pytest.mark.parametrize(("step", "shown"), [(0.5, 0.5), (0.04, 0.25), (7.0, 1.0)])
def test_the_clip_plays_at_a_pace_to_be_seen(tmp_path: Path, step: float, shown: float) -> None:
    """Every frame at its time, but neither too fast nor too slow; the last as long as the others."""
    heat = np.full((3, 2, 2), 1 / 12, np.float32)
    write_clip(
        tmp_path / "clip.mp4", CAPTION, np.zeros((3, 3, 16, 16), np.uint8), heat, [step * number for number in range(3)]
    )
    with av.open(str(tmp_path / "clip.mp4")) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    assert times == pytest.approx([0, shown, 2 * shown, 3 * shown], abs=0.002)
