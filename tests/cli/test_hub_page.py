"""The commands of the page on the Hub (docs/hub.md) do what it says, with a Hub on this machine."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import av
import numpy as np
import pytest
from hub_server import served_hub, use_hub
from PIL import Image

from cover.cli import main
from cover.datasets.index import index
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

PAGE = Path(__file__).parents[2] / "docs/hub.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the page has: a run in `runs/mine`, a clip, and a catalog with the pictures of the run's data set."""
    sets = {"mine": {"media": "image", "sampling": "segments", "views": "1x1", "train_samples": 4}}
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("mine", ("a", "b")),)
    )
    save_release(tmp_path / "runs" / "mine", model, {"step": 1, "frames": 2, "datasets": sets})
    for split in ("train", "val"):
        for name in ("a", "b"):
            place = tmp_path / "pictures" / split / name
            place.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (20, 16), (100 * number, 0, 200 * (name == "a"))).save(place / f"{number}.png")
    (tmp_path / "catalog.yaml").write_text("mine: {format: folder, root: pictures, dev: 0}\n")
    index(tmp_path / "catalog.yaml", 0)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return tmp_path


def test_page(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    printed = {}
    with served_hub() as hub:
        use_hub(hub, folder, monkeypatch)
        repository = hub.create("dataset", "me/animals")
        picture = (folder / "pictures/train/a/0.png").read_bytes()
        names = [f"small/{split}/{name}/0.png" for split in ("train", "val") for name in ("cat", "dog")]
        repository.tags["v1"] = repository.commit({name: picture + name.encode() for name in names})
        for kind, text in re.findall(r"```(sh|yaml)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
            if kind == "yaml":
                (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)
                continue
            for line in text.splitlines():
                command, *words = shlex.split(line)
                more = {"evaluate": ["--workers", "0"], "index": ["--workers", "0"], "predict": ["--workers", "0"]}
                assert (command, main([*words, *more.get(words[0], [])])) == ("cover", 0), line
                printed[line] = capfd.readouterr().out
        assert {("model", "me/mine"), ("space", "me/mine-page")} <= set(hub.repositories)
        card = hub.repositories["model", "me/mine"].files()["README.md"].decode()
        (result,) = json.loads((folder / "results.json").read_text())
        assert f"**{100 * result['top1']:.1f}**" in card
        assert "thumbnail" in card
        assert "license: apache-2.0" in next(text for line, text in printed.items() if "--dry-run" in line)
        assert (folder / "page" / "Dockerfile").is_file()
        assert (folder / "manifests" / "animals-train.arrow").is_file()
