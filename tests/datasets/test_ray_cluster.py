"""A Ray cluster finds what the processes of this machine find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cover.datasets.index import index


def write_images(root: Path) -> Path:
    for number in range(300):
        path = root / f"train/{'ab'[number % 2]}/{number} gø.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20 + number % 7, 30, 3), number % 256, np.uint8)).save(path)
    (root / "train/a/broken.png").write_bytes(b"no image")
    (root / "catalog.yaml").write_text("mine: {format: folder, root: .}\n")
    return root / "catalog.yaml"


@pytest.mark.full  # starting Ray takes its time
@pytest.mark.extras
def test_same_manifests(tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed: pip install -c constraints.txt -e '.[cluster]'")
    catalog = write_images(tmp_path)
    folder = tmp_path / "manifests"
    index(catalog, 0, deep=True)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    for file in folder.iterdir():
        file.unlink()
    home = tmp_path / "home"
    home.mkdir()
    command = [
        sys.executable,
        "-m",
        "cover",
        "index",
        str(catalog),
        "--workers",
        "2",
        "--engine",
        "ray",
        "--deep",
        "--json",
        "-",
    ]
    # A home of its own shows that nothing is written to it.
    done = subprocess.run(
        command, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("[\n")
    assert done.stdout.endswith("]\n")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    assert list(home.iterdir()) == []


def test_without_ray(tmp_path: Path) -> None:
    catalog = write_images(tmp_path)
    (tmp_path / "ray.py").write_text("raise ImportError\n")
    command = [sys.executable, "-m", "cover", "index", str(catalog), "--engine", "ray"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "cover index: --engine ray: ray is not installed: pip install -c constraints.txt -e '.[cluster]'"
    )
