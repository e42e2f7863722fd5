"""A release goes to a Hub and comes back: the Hub's own client against a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import READ, WRITE, Hub, card_problems, served_hub, use_hub
from huggingface_hub import ModelCard

from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import find_release, load_release, read_config, save_release

Cover = Callable[..., tuple[int, str, str]]
ODD = "<b>|odd|\nname</b>"
SETS = {
    "moves": {"media": "video", "sampling": "dense@1.067", "views": "1x3", "train_samples": 30, "licence": ODD},
    "things": {"media": "image", "sampling": "segments", "views": "1x1", "train_samples": 12345},
}
START = {"weights": "facebook/timesformer-base-finetuned-k400", "format": "timesformer", "licence": "CC-BY-NC-4.0"}
METADATA = {"cover": "0.1.0", "step": 70, "frames": 4, "datasets": SETS, "start": START}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, to which the client of this process goes, with a token that may write."""
    with served_hub() as hub:
        use_hub(hub, tmp_path, monkeypatch)
        yield hub


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "moves"
    heads = (Head("moves", ("up", "down")), Head("things", ("cat", "dog", "cow")))
    model = CoVeR(TimeSformerConfig(width=32, depth=1, attention_heads=2, patch=8, size=16), heads, metadata=METADATA)
    save_release(folder, model, METADATA)
    (folder / "state").mkdir()
    (folder / "state" / "optimizer.distcp").write_bytes(b"not for others" * 1000)
    return folder


def results(folder: Path) -> Path:
    """Such a file as `cover evaluate --json` writes."""
    row: dict[str, Any] = {
        "dataset": "moves",
        "split": "val",
        "variant": "plain",
        "media": "video",
        "step": 70,
        "multi_label": False,
        "top1": 0.8125,
        "top1_interval": {"low": 0.7, "high": 0.9},
        "n_read": 31,
        "n_listed": 32,
        "frames": 4,
        "views": "1x3",
        "baselines": {"chance": 0.5, "motion": {"top1": 0.85, "low": 0.7, "high": 0.9}, "behind": ["motion"]},
    }
    path = folder / "results.json"
    path.write_text(json.dumps([row, {**row, "variant": "shuffled", "top1": 0.1}]))
    return path


def test_a_release_goes_to_the_hub_and_comes_back(cover: Cover, hub: Hub, release: Path, tmp_path: Path) -> None:
    options = ("--licence", "cc-by-nc-4.0", "--results", results(tmp_path))
    code, out, err = cover("push", release, "me/moves", *options)
    assert (code, out) == (0, f"{hub.url}/me/moves\n"), err
    stored = hub.repositories["model", "me/moves"].files()
    assert set(stored) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert stored["model.safetensors"] == (release / "model.safetensors").read_bytes()
    assert any(method == "PUT" and path.startswith("/lfs/") for method, path, _ in hub.requests)
    code, out, err = cover("pull", "me/moves", "--out", tmp_path / "pulled")
    assert (code, out) == (0, f"{tmp_path / 'pulled'}\n"), err
    theirs, ours = load_release(tmp_path / "pulled"), load_release(release)
    assert theirs.head_list == ours.head_list
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    code, out, err = cover("pull", "me/moves")
    assert (code, Path(out.strip()).is_relative_to(tmp_path / "cache")) == (0, True), err


def test_the_card_says_what_is_known(cover: Cover, hub: Hub, release: Path, tmp_path: Path) -> None:
    cover("push", release, "me/moves", "--licence", "cc-by-nc-4.0", "--results", results(tmp_path))
    text = hub.repositories["model", "me/moves"].files()["README.md"].decode()
    card = ModelCard(text)
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-4.0", START["weights"])
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type, result.metric_value) == (
        "moves",
        "val",
        "accuracy",
        0.8125,
    )
    for fact in ("**81.2** (70.0 to 90.0)", "31 of 32", "| 85.0 |", "4 frames, 1x3 views", "12,345 images"):
        assert fact in text
    assert "&lt;b>\\|odd\\| name&lt;/b>" in text  # a licence cannot end its cell
    limits = text.split("## Limits")[1].split("## ")[0]
    for limit in ("not above motion", "No accuracy is stated for things", "15 training samples", "CC-BY-NC-4.0"):
        assert limit in limits
    assert 'from_pretrained("me/moves")' in text


def test_a_card_without_measurements(cover: Cover, hub: Hub, release: Path) -> None:
    code, out, _ = cover("push", release, "me/moves", "--dry-run")
    assert (code, hub.requests) == (0, [])
    assert "No accuracy is stated here" in out
    assert card_problems(out, "model") == []
    assert ModelCard(out).data.eval_results is None


@pytest.mark.parametrize("replace", [False, True])
def test_a_card_that_someone_changed_stays(cover: Cover, hub: Hub, release: Path, replace: bool) -> None:
    cover("push", release, "me/moves")
    repository = hub.repositories["model", "me/moves"]
    cover("push", release, "me/moves", "--licence", "mit")
    assert b"license: mit" in repository.files()["README.md"]  # nobody has changed it, so the newer one counts
    repository.commit({"README.md": b"---\nlicense: mit\n---\nmine\n"})
    _, _, err = cover("push", release, "me/moves", *["--replace-card"] * replace)
    assert ("it stays" in err) is not replace
    assert (b"mine" in repository.files()["README.md"]) is not replace


def test_an_edited_card_of_the_release_is_pushed(cover: Cover, hub: Hub, release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    load_release(release).save_pretrained(folder)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("# CoVeR release", "# Our moves"))
    _, _, err = cover("push", folder, "me/moves")
    assert "pushed as it is" in err
    assert b"# Our moves" in hub.repositories["model", "me/moves"].files()["README.md"]


def test_an_edited_card_of_the_release_replaces_one_that_was_pushed(
    cover: Cover, hub: Hub, release: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "edited"
    load_release(release).save_pretrained(folder)
    for text in ("first", "second"):
        (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{text}\n")
        assert cover("push", folder, "me/moves")[0] == 0
        assert text.encode() in hub.repositories["model", "me/moves"].files()["README.md"]


@pytest.mark.parametrize("kind", ["model", "space"])
def test_what_a_release_has_no_more_is_removed(cover: Cover, hub: Hub, release: Path, kind: str) -> None:
    """A text network of the release before would be taken for one of this release."""
    below = "model/" if kind == "space" else ""
    old = [f"{below}{name}" for name in ("text.safetensors", "text.json", "tokenizer.json")]
    hub.create(kind, "me/moves").commit({**dict.fromkeys(old, b"{}"), "notes.txt": b"mine"})
    assert cover("push", release, "me/moves", *["--space"] * (kind == "space"))[0] == 0
    left = hub.repositories[kind, "me/moves"].files()
    assert not set(old) & set(left)
    assert {"notes.txt", f"{below}config.json"} <= set(left)


def test_a_model_that_python_uploads_takes_the_text_network_away_too(hub: Hub, release: Path) -> None:
    old = ["text.safetensors", "text.json", "tokenizer.json"]
    hub.create("model", "me/moves").commit({**dict.fromkeys(old, b"{}"), "notes.txt": b"mine"})
    load_release(release).push_to_hub("me/moves")
    left = hub.repositories["model", "me/moves"].files()
    assert not set(old) & set(left)
    assert {"notes.txt", "config.json"} <= set(left)


@pytest.mark.parametrize("by", ["name", "folder"])
def test_the_base_model_of_a_run_is_its_start_on_the_hub(
    cover: Cover, hub: Hub, make_set: Callable[..., Path], tmp_path: Path, by: str
) -> None:
    """`fit` and `add` name the folder in the cache."""
    model = CoVeR(named_config("efficientnet_lite", size=32, frames=4, depth=1), metadata=METADATA)
    save_release(tmp_path / "release", model, METADATA)
    assert cover("push", tmp_path / "release", "me/moves")[0] == 0
    start = "me/moves" if by == "name" else str(find_release("me/moves"))
    catalog = make_set({"a.png": "x", "b.png": "y"}, name="pets")
    recipe = f"""
data: {{catalog: {catalog}, sets: [pets], frames: 4}}
out: {tmp_path / "run"}
steps: 1
batch: 2
workers: 0
start: {{checkpoint: {start}}}
"""
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    code, _, err = cover("train", tmp_path / "recipe.yaml")
    assert code == 0, err
    folder = find_release(tmp_path / "run")
    assert read_config(folder).metadata["start"] == {"weights": "me/moves", "licence": START["licence"]}
    assert ModelCard.load(folder / "README.md").data.base_model == "me/moves"


def test_a_folder_becomes_what_is_pulled(
    cover: Cover, refused: Callable[..., str], hub: Hub, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cover("push", release, "me/moves")
    repository, out = hub.repositories["model", "me/moves"], tmp_path / "pulled"
    first = repository.commits[-1][0]
    repository.commit({"text.json": b"{}"})
    assert cover("pull", "me/moves", "--out", out)[0] == 0
    assert (out / "text.json").is_file()
    assert cover("pull", "me/moves", "--out", out, "--revision", first)[0] == 0
    assert not (out / "text.json").exists()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused("pull", "me/other", "--out", out)


def test_what_was_pushed_already_is_not_sent_again(cover: Cover, hub: Hub, release: Path) -> None:
    cover("push", release, "me/moves")
    commits = len(hub.repositories["model", "me/moves"].commits)
    assert cover("push", release, "me/moves")[0] == 0
    assert len(hub.repositories["model", "me/moves"].commits) == commits
    assert sum(method == "PUT" for method, _, _ in hub.requests) == 1


def test_a_download_that_was_cut_off_goes_on(
    cover: Cover, hub: Hub, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # what arrived in one piece is kept
    cover("push", release, "me/moves")
    hub.requests.clear()
    hub.cut.append(50_000)
    assert cover("pull", "me/moves", "--out", tmp_path / "pulled")[0] == 0
    assert (206 in {status for method, path, status in hub.requests if "model.safetensors" in path}) is True
    hub.requests.clear()
    assert cover("pull", "me/moves", "--out", tmp_path / "pulled")[0] == 0
    assert hub.downloaded() == []


def test_a_revision(cover: Cover, hub: Hub, release: Path, tmp_path: Path) -> None:
    cover("push", release, "me/moves")
    repository = hub.repositories["model", "me/moves"]
    repository.tags["v1"] = repository.commits[-1][0]
    repository.commit({"model.safetensors": b"damaged"})
    assert cover("pull", "me/moves", "--revision", "v1", "--out", tmp_path / "v1")[0] == 0
    code, _, err = cover("pull", "me/moves", "--out", tmp_path / "newest")
    assert (code, "model.safetensors" in err) == (2, True)


def test_wrong_use_is_one_line(
    refused: Callable[..., str], hub: Hub, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "owner/name" in refused("push", release, "moves")
    assert "owner/name" in refused("pull", "a b")
    assert "no model of this name" in refused("pull", "me/nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is there already" in refused("pull", "me/moves", "--out", tmp_path / "full")
    assert "--licence" in refused("push", release, "me/moves", "--space", "--licence", "mit")
    assert "one of the known" in refused("push", release, "me/moves", "--licence", "my own")
    assert "may not write to you" in refused("push", release, "you/moves")
    hub.create("model", "me/foreign").commit({"config.json": b'{"model_type": "timesformer"}'})
    assert "import-weights" in refused("pull", "me/foreign")
    assert 'no branch, tag or commit "v9"' in refused("pull", "me/foreign", "--revision", "v9")
    hub.create("model", "me/gated", gated=True)
    monkeypatch.delenv("HF_TOKEN")
    assert "is gated" in refused("pull", "me/gated")
    assert "hf auth login" in refused("push", release, "me/moves")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know the token" in refused("push", release, "me/moves")
    monkeypatch.setenv("HF_TOKEN", READ)
    assert "write access" in refused("push", release, "me/moves")


def test_no_way_to_the_hub(
    refused: Callable[..., str], hub: Hub, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused("push", release, "me/moves")
    assert "nor can the Hub be reached" in refused("pull", "me/moves")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in refused("push", release, "me/moves")


@pytest.mark.parametrize(
    "content", ["{}", "[1]", '[{"variant": "plain"}]', "no json", '[{"variant": "plain", "multi_label": false}]']
)
def test_a_file_that_holds_no_results(
    refused: Callable[..., str], hub: Hub, release: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "other.json").write_text(content)
    line = refused("push", release, "me/moves", "--results", tmp_path / "other.json")
    assert "other.json" in line
    assert "cover evaluate --json" in line


def test_results_of_another_step(refused: Callable[..., str], hub: Hub, release: Path, tmp_path: Path) -> None:
    path = results(tmp_path)
    path.write_text(path.read_text().replace('"step": 70', '"step": 60'))
    line = refused("push", release, "me/moves", "--results", path)
    assert "step 60" in line
    assert "step 70" in line


@pytest.mark.full
def test_the_settings_that_users_have(hub: Hub, release: Path, tmp_path: Path) -> None:
    """A process of its own, which reads HF_ENDPOINT, HF_TOKEN and HF_HOME."""
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITE, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "cover"]
    for words in (["push", str(release), "me/moves"], ["pull", "me/moves", "--out", str(tmp_path / "pulled")]):
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, check=False, env={**os.environ, **settings}
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "pulled" / "model.safetensors").read_bytes() == (release / "model.safetensors").read_bytes()
