"""A wheel that is built from this folder installs, has every file of the package, and its command runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import cover

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.full


def run(*command: object, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build product lies in the source."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", folder / "dist", folder, folder=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def test_it_has_the_version_and_every_file(wheel: Path) -> None:
    assert wheel.name == f"cover_video-{cover.__version__}-py3-none-any.whl"
    package = ROOT / "src/cover"
    files = {f"cover/{path.relative_to(package)}" for path in package.rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= set(zipfile.ZipFile(wheel).namelist())


def test_it_installs_and_runs(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment, whose dependencies are those of this one."""
    venv.create(tmp_path / "fresh", with_pip=False, symlinks=True)
    python = tmp_path / "fresh/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, folder=tmp_path)
    (packages,) = (tmp_path / "fresh/lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    assert run(python, "-c", "import cover; print(cover.__file__)", folder=tmp_path).startswith(str(packages))
    assert run(tmp_path / "fresh/bin/cover", "--version", folder=tmp_path) == f"cover {cover.__version__}\n"
    run(tmp_path / "fresh/bin/cover", "sandbox", "sandbox", "--size", "0.001", "--workers", "0", folder=tmp_path)
    run(tmp_path / "fresh/bin/cover", "index", "sandbox/catalog.yaml", "--workers", "0", folder=tmp_path)
