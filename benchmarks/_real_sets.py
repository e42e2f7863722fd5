"""The small real data sets of the measurements of learning: catalogs, small copies, and folds of whole groups.

The folder of the data has one folder for each set. cifar10 has class folders (train/CLASS/FILE, test/CLASS/FILE); the
others have an `index.csv` with the columns path, class, split and the group of each sample. Copies of the videos with a
short side of 72 px are read several times faster than the originals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.datasets.prepare import prepare, prepared_entry
from cover.experiments.study.subsets import MEASURED, Subset, SubsetBuilder
from cover.media.encode import Encoding

ENCODING = Encoding(short_side=72, crf=12)  # nearly lossless
LISTS = {"train": "index.csv", "test": "index.csv"}
DEV = "-dev"  # ending of the name of a set whose settings are compared on a part of its training images
# Set -> the keys of its catalog entry. `source` is the column whose groups stay on one side of a split.
SETS: dict[str, dict[str, Any]] = {
    "utinteraction6": {"media": "video", "source": "sequence", "dev": 0},
    "tennis7": {"media": "video", "source": "scene_group", "dev": 0, "flip": "never"},
    "yoga6": {"media": "video", "source": "group", "dev": 0},
    "cifar10": {"format": "folder", "media": "image", "dev": 0},
    "sports22": {"media": "image", "source": "group", "dev": 0},
    "caltech100": {"media": "image", "source": "group", "dev": 0},
}
IMAGES = tuple(name for name, keys in SETS.items() if keys["media"] == "image")
FOLDS = {"utinteraction6": 10, "tennis7": 3, "yoga6": 5}


def real_catalogs(data: Path, out: Path, workers: int) -> dict[str, Path]:
    """Set -> its catalog, after indexing the sets in `data` and copying the videos at a small size into `out`.

    What an earlier call has finished is not repeated.
    """
    originals = out / "catalog.yaml"
    names = [name for name in SETS if (data / name).is_dir()]
    entries = {name: _entry(name, data) for name in names}
    entries |= {f"{name}{DEV}": entries[name] | {"dev": 0.15} for name in names if name in IMAGES}
    text = yaml.safe_dump(entries, sort_keys=False)
    if not (originals.is_file() and originals.read_text(encoding="utf-8") == text):
        out.mkdir(parents=True, exist_ok=True)
        originals.write_text(text, encoding="utf-8")
        index(originals, workers)
    videos = [name for name in names if name not in IMAGES]
    prepare(originals, out / "small", workers, videos, ENCODING)
    return {name: out / "small" / "catalog.yaml" if name in videos else originals for name in entries}


def _entry(name: str, data: Path) -> dict[str, Any]:
    lists = {} if name == "cifar10" else {"annotations": LISTS}
    return {"format": "csv", "root": str((data / name).absolute()), **lists, **SETS[name]}


def entry_of(catalog: Path, name: str, folds: int, fold: int, folder: Path) -> tuple[dict[str, Any], str]:
    """The catalog entry of a set or of one of its folds, and the split to measure on.

    `folds`: the number of folds over all samples, whose manifests are written into `folder`; 0 for the set's own
    splits. These are measured on `dev` if the name ends in `DEV`, or else on `test` or `val`.
    """
    loaded = load_catalog(catalog)
    spec = loaded.spec(name)
    if folds:
        return SubsetBuilder(loaded, folder, "test", 0.0).entry(Subset(name, folds=folds, fold=fold)), MEASURED
    paths = {split: loaded.manifest_path(name, split) for split in spec.splits}
    manifests = {split: str(path) for split, path in paths.items() if path.is_file()}
    wanted = ("dev",) if name.endswith(DEV) else ("test", "val")
    return prepared_entry(spec, manifests), next(split for split in wanted if split in manifests)
