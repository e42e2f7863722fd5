"""What every test may ask for."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

# How fast an example runs says more of the machine than of the code.
settings.register_profile("cover", deadline=None, max_examples=50)
settings.register_profile("full", deadline=None)
settings.load_profile("cover")
torch.set_num_threads(1)  # the tests run side by side, and their models are too small for threads

MakeSet = Callable[..., Path]

# Files that take half a minute or more. They begin first, so that no process is left with one of them at the end.
LONG = (
    "experiments/test_demo.py",
    "planning/test_estimate.py",
    "experiments/test_adding_pages.py",
    "experiments/test_best_head.py",
    "test_docs.py",
    "test_processes.py",
    "mixture/test_alternating.py",
    "mixture/test_prefix_cache.py",
    "synthetic/test_shortcuts.py",
    "evaluation/test_baselines.py",
    "inference/test_ray_engine.py",
    "datasets/test_ray_cluster.py",
    "training/test_checkpoint.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    files = {tests / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: files.get(item.path, len(files)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run of a test, also where it draws weights without a seed of its own."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real clips, images and annotation lists, from COVER_TEST_DATA."""
    folder = os.environ.get("COVER_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data not given: set COVER_TEST_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def golden(test_data: Path) -> Path:
    """The folder of published networks' outputs, beside the real data."""
    folder = test_data.parent / "golden"
    if not folder.is_dir():
        pytest.skip("outputs of published networks not given: a folder golden beside COVER_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalog of the smallest sandbox, indexed: kinetics, ssv2, moments, imagenet. Shared by all tests, never
    changed.
    """
    from cover.datasets.index import index
    from cover.synthetic.generate import generate
    from cover.synthetic.settings import Settings

    catalog = generate(tmp_path_factory.mktemp("sandbox"), Settings(size=0.01), workers=0)
    index(catalog, workers=0)
    return catalog


@pytest.fixture(scope="session")
def trained(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a few steps of co-training on the sandbox. Shared by all tests, never changed."""
    from cover.training.recipe import Data, Recipe
    from cover.training.train import train

    sets = ["kinetics", "ssv2", "moments", "imagenet"]
    out = tmp_path_factory.mktemp("runs") / "trained"
    return train(Recipe(Data(sets, str(sandbox), frames=4), str(out), steps=4, batch=8, workers=0, evaluate_every=-1))


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """Writes and indexes a small csv data set: make_set({"a.mp4": "left", "b.mp4": "right"}, flip="swap") -> its
    catalog.

    Files are clips of 12 frames at 10 fps, or png images, 64 x 48 pixels of noise of their own. Those in `absent` are
    listed and not written, those in `corrupt` hold no picture. The list is both `train` and `val`; `column` "labels"
    makes a multi-label set of values such as "left|up"; other keywords go into the catalog.
    """
    from cover.datasets.index import index

    def make(
        files: Mapping[str, str],
        name: str = "mine",
        absent: Iterable[str] = (),
        corrupt: Iterable[str] = (),
        column: str = "label",
        **keys: object,
    ) -> Path:
        root = tmp_path / name
        root.mkdir()
        for number, file in enumerate(files):
            if file in corrupt:
                (root / file).write_bytes(b"no picture at all" * 100)
            elif file not in absent:
                write_noise(root / file, number)
        lines = [f"path,{column}\n", *(f'"{file}",{label}\n' for file, label in files.items())]
        (root / "list.csv").write_text("".join(lines), encoding="utf-8")
        entry = {"format": "csv", "root": name, "annotations": "{train: list.csv, val: list.csv}", "dev": 0, **keys}
        with (tmp_path / "catalog.yaml").open("a", encoding="utf-8") as catalog:
            catalog.write(f"{name}: {{{', '.join(f'{key}: {value}' for key, value in entry.items())}}}\n")
        index(tmp_path / "catalog.yaml", 0, [name])
        return tmp_path / "catalog.yaml"

    return make


@pytest.fixture(scope="session")
def spoil() -> Callable[[Path], None]:
    """Damages an indexed file, spoil(path). Its size and time stay the same, so it does not count as replaced."""

    def write(path: Path) -> None:
        before = path.stat()
        path.write_bytes(b"lost".ljust(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return write


def write_noise(path: Path, seed: int) -> None:
    path.write_bytes(noise(path.suffix, seed))


@cache
def noise(suffix: str, seed: int) -> bytes:
    """The bytes of a file. Encoding takes longer than all else in many a test."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (12, 6, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"noise{suffix}"
        if suffix == ".png":
            Image.fromarray(frames[0]).save(path)
            return path.read_bytes()
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height = 64, 48
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()
