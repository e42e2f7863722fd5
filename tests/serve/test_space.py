"""The folder of a Space has all that its container needs: its command starts and serves the page from it alone."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
from hub_server import card_problems, served_hub, use_hub
from huggingface_hub import RepoCard

from cover.cli import main
from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.serve.space import PORT, export_space, serve_command

pytest.importorskip(
    "uvicorn", reason="the extra `serve` is not installed: pip install -c constraints.txt -e '.[serve]'"
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "moves"
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("moves", ("a", "b")),)
    )
    save_release(folder, model, {"step": 1, "frames": 2, "datasets": {"moves": {"sampling": "whole", "views": "1x1"}}})
    return folder


@pytest.fixture(scope="module")
def space(release: Path) -> Path:
    assert main(["export", str(release), "--format", "space", "--out", str(release.parent / "space")]) == 0
    return release.parent / "space"


def test_the_hub_accepts_its_settings(space: Path) -> None:
    text = (space / "README.md").read_text(encoding="utf-8")
    assert card_problems(text, "space") == []
    settings = RepoCard(text).data.to_dict()
    assert (settings["sdk"], settings["app_port"], settings["title"]) == ("docker", PORT, "moves")


def test_the_container_installs_what_serving_needs(space: Path) -> None:
    lines = (space / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {"fastapi", "uvicorn", "python-multipart", "prometheus-client", "numpy", "av"} <= {
        line.partition("==")[0] for line in lines
    }
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert not [line for line in lines if line.startswith(("torch=", "ray", "pytest"))]
    docker = (space / "Dockerfile").read_text(encoding="utf-8")
    assert f"torch=={metadata.version('torch').partition('+')[0]} " in docker
    assert json.loads(docker.rpartition("CMD ")[2]) == serve_command()
    assert not list(space.rglob("__pycache__"))


@pytest.mark.full
def test_its_command_serves_the_page(space: Path, tmp_path: Path) -> None:
    """The package in the folder runs, not the one that is installed, and the site of the Hub may frame the page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = [sys.executable, *serve_command()[1:]]
    words = [port if word == str(PORT) else word for word in words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [*words, "--workers", "1"], cwd=space, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        try:
            with answered(f"http://127.0.0.1:{port}/") as page:
                assert "frame-ancestors https://huggingface.co" in page.headers["content-security-policy"]
                assert "model" in page.read().decode()
            with answered(f"http://127.0.0.1:{port}/v1/model") as response:
                assert json.load(response) == {"moves": ["a", "b"]}
            maps = Path(f"/proc/{server.pid}/cwd").resolve() if sys.platform == "linux" else space
            assert maps == space
        finally:
            server.terminate()


def answered(url: str) -> urllib.request.addinfourl:
    for _ in range(600):
        try:
            response: urllib.request.addinfourl = urllib.request.urlopen(url)
            return response
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


def test_it_is_pushed(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served_hub() as hub:
        use_hub(hub, tmp_path, monkeypatch)
        assert main(["push", str(release), "me/moves-page", "--space", "--private"]) == 0
        repository = hub.repositories["space", "me/moves-page"]
        assert repository.private
        assert {"Dockerfile", "cover/serve/server.py", "model/model.safetensors"} <= set(repository.files())
        assert b"title: moves-page\n" in repository.files()["README.md"]


def test_what_cannot_be_shown(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        export_space(release, release)
    bare = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16))
    save_release(tmp_path / "bare", bare, {})
    with pytest.raises(UserError, match="has no head"):
        export_space(tmp_path / "bare", tmp_path / "out")


@pytest.mark.parametrize(
    "words", [["--frame", "huggingface.co"], ["--frame", "https://a.b/c"], ["--frame", "https://x; y"]]
)
def test_sites_that_are_none(release: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(release), "--page", *words]) == 2
    assert "--frame" in capsys.readouterr().err
