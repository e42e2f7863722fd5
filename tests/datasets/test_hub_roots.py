"""A catalog names a data set of the Hub: its files are downloaded, and stay those of one commit."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, Repository, served_hub, use_hub
from PIL import Image

from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.datasets.hub_roots import HubRoot
from cover.datasets.index import index
from cover.errors import UserError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served_hub() as hub:
        use_hub(hub, tmp_path, monkeypatch)
        monkeypatch.delenv("HF_TOKEN")  # public data need none
        yield hub


def picture(path: Path, red: int) -> bytes:
    Image.new("RGB", (16, 16), (red, 0, 0)).save(path)
    return path.read_bytes()


@pytest.fixture
def animals(hub: Hub, tmp_path: Path) -> Repository:
    repository = hub.create("dataset", "me/animals")
    red = itertools.count(10)  # all differ, because the Hub's cache has equal files once
    files = {
        f"small/{split}/{name}/{number}.png": picture(tmp_path / "picture.png", next(red))
        for split in ("train", "val")
        for name in ("cat", "dog")
        for number in range(3)
    }
    repository.commit({**files, "large/train/cat/0.png": files["small/train/cat/0.png"], "README.md": b"# Animals"})
    return repository


def write(tmp_path: Path, root: str, more: str = "") -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(f"animals: {{format: folder, root: '{root}', dev: 0, licence: cc-by-4.0}}\n{more}")
    return path


def test_index_downloads_and_pins(hub: Hub, animals: Repository, tmp_path: Path) -> None:
    path = write(tmp_path, "hf://datasets/me/animals/small")
    before = load_catalog(path)
    assert (dict(before.specs), before.not_loaded) == ({}, ("animals",))
    with pytest.raises(UserError, match=r"cover index .*catalog.yaml animals"):
        before.spec("animals")
    results = index(path, 0)
    assert [(each["split"], each["ok"]) for each in results] == [("train", 6), ("val", 6)]
    assert not [path for path in hub.downloaded() if path.startswith("large")]
    (pin,) = json.loads((tmp_path / "manifests/hub.json").read_text()).values()
    assert pin["commit"] == animals.commits[-1][0]
    manifest = load_catalog(path).manifest("animals", "train")
    assert Path(manifest.row(0).path).read_bytes() == animals.files()["small/train/cat/0.png"]
    assert load_catalog(path).spec("animals").licence == "cc-by-4.0"


def test_a_new_version_is_taken_when_it_is_asked_for(hub: Hub, animals: Repository, tmp_path: Path) -> None:
    path = write(tmp_path, "hf://datasets/me/animals/small")
    index(path, 0)
    animals.commit({"small/train/dog/9.png": picture(tmp_path / "new.png", 200)})
    hub.requests.clear()
    assert [each["ok"] for each in index(path, 0)] == [6, 6]
    assert hub.downloaded() == []
    assert [each["ok"] for each in index(path, 0, update=True)] == [7, 6]
    assert hub.downloaded() == ["small/train/dog/9.png"]  # the others are in the cache


def test_a_revision(hub: Hub, animals: Repository, tmp_path: Path) -> None:
    animals.tags["v1"] = animals.commits[-1][0]
    animals.commit({"small/train/dog/9.png": picture(tmp_path / "new.png", 200)})
    assert index(write(tmp_path, "hf://datasets/me/animals@v1/small"), 0)[0]["ok"] == 6


def test_a_download_goes_on(hub: Hub, animals: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "hf://datasets/me/animals/small")
    monkeypatch.setattr("huggingface_hub.file_download.http_get", stop_after(3))
    with pytest.raises(UserError, match="the machine was switched off"):
        index(path, 0)
    monkeypatch.undo()
    use_hub(hub, tmp_path, monkeypatch)
    first = set(hub.downloaded())
    hub.requests.clear()
    assert index(path, 0)[0]["ok"] == 6
    assert first
    assert not first & set(hub.downloaded())


def stop_after(count: int) -> object:
    """The client's own download of a file, which fails after `count` files."""
    from huggingface_hub.file_download import http_get

    done = iter(range(count))

    def get(*args: object, **settings: object) -> None:
        if next(done, None) is None:
            raise OSError("the machine was switched off")
        http_get(*args, **settings)  # type: ignore[arg-type]

    return get


def test_only_what_is_indexed_is_downloaded(hub: Hub, animals: Repository, tmp_path: Path) -> None:
    other = "other: {format: folder, root: 'hf://datasets/me/nothing', media: image}\n"
    path = write(tmp_path, "hf://datasets/me/animals/small", other)
    index(path, 0, ["animals"])
    catalog = load_catalog(path)
    assert (list(catalog.specs), catalog.not_loaded) == (["animals"], ("other",))
    with pytest.raises(UserError, match=r"catalog.yaml: other.root: me/nothing: .*no dataset of this name"):
        index(path, 0)


@pytest.mark.parametrize(
    "root",
    [
        "hf://me/animals",
        "hf://datasets/animals",
        "hf://spaces/me/animals",
        "hf://datasets/me/animals/../../etc",
        "hf://datasets/me/animals//etc",
        "hf://datasets/me/animals/small/./dogs",
        "hf://datasets/me/animals@",
        "hf://",
    ],
)
def test_roots_that_name_no_data_set(tmp_path: Path, root: str) -> None:
    with pytest.raises(UserError, match=r"catalog.yaml: animals.root: .*expected hf://datasets/OWNER/NAME"):
        load_catalog(write(tmp_path, root))


def test_the_parts_of_a_root() -> None:
    assert HubRoot.parse("hf://datasets/me/a.b-c") == HubRoot("hf://datasets/me/a.b-c", "me/a.b-c", None, "")
    root = HubRoot.parse("hf://datasets/me/clips@refs.1/a/b/")
    assert (root.repo, root.revision, root.folder) == ("me/clips", "refs.1", "a/b")


def test_pins_that_are_damaged_or_name_a_folder_that_is_gone(hub: Hub, animals: Repository, tmp_path: Path) -> None:
    path = write(tmp_path, "hf://datasets/me/animals/small")
    index(path, 0)
    os.rename(tmp_path / "cache", tmp_path / "elsewhere")
    assert load_catalog(path).not_loaded == ("animals",)
    assert index(path, 0)[0]["ok"] == 6
    (tmp_path / "manifests/hub.json").write_text("[]")
    with pytest.raises(UserError, match=r"hub.json: cannot be read"):
        load_catalog(path)


def test_a_folder_with_characters_of_patterns(hub: Hub, animals: Repository, tmp_path: Path) -> None:
    files = {path.replace("small", "set [1]"): data for path, data in animals.files().items() if "small" in path}
    animals.commit(files)
    assert index(write(tmp_path, "hf://datasets/me/animals/set [1]"), 0)[0]["ok"] == 6


def test_a_root_that_another_process_pins_meanwhile(
    hub: Hub, animals: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pins = write(tmp_path, "hf://datasets/me/animals/small"), tmp_path / "manifests" / "hub.json"
    other = {"hf://datasets/me/other": {"commit": "0" * 40, "folder": str(tmp_path)}}
    pins.parent.mkdir()

    def pin_other(*args: object, **settings: object) -> None:
        pins.write_text(json.dumps(other))
        http_get(*args, **settings)  # type: ignore[arg-type]

    from huggingface_hub.file_download import http_get

    monkeypatch.setattr("huggingface_hub.file_download.http_get", pin_other)
    index(path, 0)
    assert set(json.loads(pins.read_text())) == {*other, "hf://datasets/me/animals/small"}


def test_a_folder_that_is_not_there(hub: Hub, animals: Repository, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no files below tiny"):
        index(write(tmp_path, "hf://datasets/me/animals/tiny"), 0)


def test_parts_take_no_newer_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "hf://datasets/me/animals/small")
    assert main(["index", str(path), "--shard", "1/2", "--update"]) == 2
    assert "--update: cannot go with --shard" in capsys.readouterr().err
