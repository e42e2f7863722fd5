"""Definitions of the trivial methods beside a model, by cross-validation over whole sources of a data set.

    python benchmarks/baselines.py CATALOG NAME --splits train,test --folds 10    # table; JSON with --json FILE

Every fold leaves out whole sources (of a csv list, the catalog's `source`), so clips of one recording are never on both
sides. Without a catalog, a small sandbox is generated and its motion set is taken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import write

from cover.console import print_table
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import Row, open_manifest
from cover.evaluation.baseline_features import BINS, FRAMES, GREY, HEIGHT, SIZE_HINT, WIDTH
from cover.media.decode import decode_at
from cover.media.sampling import Sampling, view_times
from cover.synthetic.generate import generate
from cover.synthetic.settings import Settings

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # values of C
SCALES = (1, 2, 4)  # factors on 12 x 16 pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", nargs="?", type=Path)
    parser.add_argument("name", nargs="?", default="ssv2")
    parser.add_argument("--splits", default="train,val")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        catalog = args.catalog
        if catalog is None:
            catalog = generate(Path(folder), Settings(size=0.1), workers=0)
            index(catalog, workers=0)
        rows = list(rows_of(load_catalog(catalog), args.name, args.splits.split(",")))
        features = features_of([row for row in rows if row.label is not None])
    labels = np.array([row.label for row in rows])
    folds = folds_of([row.source_id for row in rows], args.folds)
    results = [
        {"definition": name, **{f"C={c:g}": accuracy(values, labels, folds, c) for c in STRENGTHS}}
        for name, values in features.items()
    ]
    print_table(
        list(results[0]), [[name, *(f"{100 * v:.1f}" for v in row)] for name, *row in map(dict.values, results)]
    )
    if args.json:
        write(args.json, {"samples": len(rows), "folds": args.folds, "results": results})


def rows_of(catalog: Catalog, name: str, splits: list[str]) -> Iterator[Row]:
    """The usable rows of several splits."""
    for split in splits:
        manifest = open_manifest(catalog.manifest_path(name, split))
        yield from (manifest.row(int(number)) for number in manifest.usable)


def folds_of(sources: list[str], count: int) -> np.ndarray:
    """The fold of each sample. Sources with numbers are in the order of their numbers, others in that of their text."""
    unique = sorted(set(sources), key=lambda text: (not text.isdecimal(), int(text) if text.isdecimal() else 0, text))
    of = {source: place % count for place, source in enumerate(unique)}
    return np.array([of[source] for source in sources])


def features_of(rows: list[Row]) -> dict[str, np.ndarray]:
    """Definition -> float64 `(N, D)`."""
    clips = [read(row) for row in rows]
    features = {"thumbnail": np.stack([resized(middle, 1).ravel() for middle, _ in clips])}
    for scale in SCALES:
        grey = np.stack([[resized(frame, scale) @ GREY for frame in frames] for _, frames in clips])
        plain = differences(grey)
        for text, values in (("", plain), (", square root", np.sqrt(plain)), (", log(1 + x)", np.log1p(plain))):
            features[f"motion at {HEIGHT * scale} x {WIDTH * scale}{text}"] = values
    return features


def read(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The middle frame, and 16 frames at equal distances."""
    times = np.concatenate([view_times(Sampling("whole"), count, row.seconds, 1)[0] for count in (1, FRAMES)])
    frames = decode_at(row.source, ((row.start or 0.0) + times).tolist(), size_hint=SIZE_HINT).frames
    return frames[0], frames[1:]


def resized(picture: np.ndarray, scale: int) -> np.ndarray:
    size = WIDTH * scale, HEIGHT * scale
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX), np.float32)


def differences(grey: np.ndarray) -> np.ndarray:
    """Absolute differences of `(N, T, H, W)`, averaged in 6 x 8 cells and `BINS` parts of the time."""
    steps = np.abs(np.diff(grey, axis=1))
    samples, times, height, width = steps.shape
    cells = steps.reshape(samples, times, 6, height // 6, 8, width // 8).mean((3, 5))
    return np.stack([part.mean(1) for part in np.array_split(cells, BINS, axis=1)], 1).reshape(samples, -1)


def accuracy(values: np.ndarray, labels: np.ndarray, folds: np.ndarray, strength: float) -> float:
    """The fraction of right answers over all folds."""
    right = np.zeros(len(labels), bool)
    for fold in np.unique(folds):
        train, rest = folds != fold, folds == fold
        scaler = StandardScaler().fit(values[train])
        model = LogisticRegression(C=strength, max_iter=2000).fit(scaler.transform(values[train]), labels[train])
        right[rest] = model.predict(scaler.transform(values[rest])) == labels[rest]
    return float(right.mean())


if __name__ == "__main__":
    main()
