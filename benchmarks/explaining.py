"""Quality of the heat of `cover explain`: the fall of a class's probability when the hottest patches are covered.

    python benchmarks/explaining.py                            # trains a small model first
    python benchmarks/explaining.py runs/cotrain --catalog sandbox/catalog.yaml
    python benchmarks/explaining.py runs/cotrain --catalog sandbox/catalog.yaml --samples 200 --share 0.05

It takes the middle view of every file and the most probable class. A fraction of the patches gets the mean colour of
the view: the patches with the most heat by either method, as many random patches, or those with the least heat. The
table has the mean fall of the probability in points, with its standard error. With a map without information, the
probability falls as far as with random patches.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import show, where, write
from _trained import trained

from cover.datasets.catalog import load_catalog
from cover.evaluation.protocol import find_tasks
from cover.inference.explain import ExplainOptions, Explanation, explanations
from cover.inference.predictor import Predictor

ORDERS = ("gradient", "rollout", "random", "coldest")


def covered(frames: np.ndarray, heat: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Frames, uint8 `(T, 3, size, size)`, with the patches of the flat indices `places` in the mean colour."""
    out, side = frames.copy(), frames.shape[-1] // heat.shape[-1]
    colour = frames.mean((0, 2, 3)).astype(np.uint8)[:, None, None]
    for frame, row, column in zip(*np.unravel_index(places, heat.shape), strict=True):
        out[frame, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = colour
    return out


def falls(predictor: Predictor, file: str, head: str, fraction: float, rng: np.random.Generator) -> list[float]:
    """The fall of the probability of the most probable class, for each of `ORDERS`."""
    by_method: dict[str, Explanation] = {}
    for method in ("gradient", "rollout"):
        _, (by_method[method],) = explanations(predictor, file, ExplainOptions((head,), method=method))
    gradient = by_method["gradient"]
    count, size = max(1, round(fraction * gradient.heat.size)), gradient.heat.size
    places = {method: np.argsort(-one.heat, axis=None)[:count] for method, one in by_method.items()}
    places |= {"random": rng.permutation(size)[:count], "coldest": np.argsort(gradient.heat, axis=None)[:count]}
    views = [gradient.frames, *(covered(gradient.frames, gradient.heat, places[order]) for order in ORDERS)]
    index = gradient.prediction.classes.index(gradient.class_name)
    before, *after = (float(item.scores[head][index]) for item in predictor.run([view[None] for view in views]))
    return [before - probability for probability in after]


def measure(
    predictor: Predictor, catalog: Path, args: argparse.Namespace
) -> tuple[list[list[str]], dict[str, dict[str, float]]]:
    """The rows of the table, and data set -> order -> mean fall in points."""
    rows, points, rng = [], {}, np.random.default_rng(0)
    for task in find_tasks(load_catalog(catalog), predictor.model, predictor.metadata["frames"], args.split):
        files = [str(row.path) for row in task.manifest.rows() if row.state == "ok"]
        chosen = rng.permutation(len(files))[: args.samples]
        each = np.array([falls(predictor, files[number], task.head.name, args.share, rng) for number in chosen])
        means, errors = 100 * each.mean(0), 100 * each.std(0, ddof=1) / len(each) ** 0.5
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in zip(means, errors, strict=True)]
        rows.append([task.spec.name, str(len(each)), *cells])
        points[task.spec.name] = dict(zip(ORDERS, means.tolist(), strict=True))
    return rows, points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="needs --catalog; without it a small model is trained first")
    parser.add_argument("--catalog", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="training steps, without a checkpoint")
    parser.add_argument("--split", default="val")
    parser.add_argument("--samples", type=int, default=40, help="files of every data set")
    parser.add_argument("--share", type=float, default=0.125, help="fraction of the patches of a clip that is covered")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if (args.checkpoint is None) != (args.catalog is None):
        parser.error("give both a checkpoint and --catalog, or neither")
    with tempfile.TemporaryDirectory() as name:
        checkpoint, catalog = (args.checkpoint, args.catalog) if args.checkpoint else trained(Path(name), args.steps)
        predictor = Predictor.load(checkpoint, args.device)
        rows, points = measure(predictor, catalog, args)
    show(f"points lost with {args.share:.1%} of the patches covered", ["data set", "files", *ORDERS], rows)
    write({**where(predictor.device), "checkpoint": args.checkpoint, "share": args.share, "points": points}, args.json)


if __name__ == "__main__":
    main()
