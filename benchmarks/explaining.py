"""Does the heat of `cover explain` lie on what counts? How far the probability of a class falls when the hottest places
are covered.

    python benchmarks/explaining.py                                                          # of a small model that is
    trained first python benchmarks/explaining.py runs/cotrain --catalog sandbox/catalog.yaml              # 40 files of
    every data set; a table python benchmarks/explaining.py runs/cotrain --catalog sandbox/catalog.yaml --samples 200
    --share 0.05 --json explaining.json

Of every file the middle view, and its likeliest class. A share of all its patches gets the mean colour of the view:
those with the most heat by either method, as many at random, and those with the least. The table has by how many points
the probability falls, on average, with the standard error. A map that says nothing falls as far as chance does.
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
    """Frames, uint8 `(T, 3, size, size)`, with the patches `places` of all `heat.size` in their mean colour."""
    out, side = frames.copy(), frames.shape[-1] // heat.shape[-1]
    colour = frames.mean((0, 2, 3)).astype(np.uint8)[:, None, None]
    for frame, row, column in zip(*np.unravel_index(places, heat.shape), strict=True):
        out[frame, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = colour
    return out


def falls(predictor: Predictor, file: str, head: str, share: float, rng: np.random.Generator) -> list[float]:
    """By how much the probability of the likeliest class falls, for each of `ORDERS`."""
    results: dict[str, Explanation] = {}
    for method in ("gradient", "rollout"):
        _, (results[method],) = explanations(predictor, file, ExplainOptions((head,), method=method))
    each = results["gradient"]
    count, size = max(1, round(share * each.heat.size)), each.heat.size
    places = {method: np.argsort(-one.heat, axis=None)[:count] for method, one in results.items()}
    places |= {"random": rng.permutation(size)[:count], "coldest": np.argsort(each.heat, axis=None)[:count]}
    views = [each.frames, *(covered(each.frames, each.heat, places[order]) for order in ORDERS)]
    place = each.prediction.classes.index(each.class_name)
    before, *after = (float(item.scores[head][place]) for item in predictor.run([view[None] for view in views]))
    return [before - share for share in after]


def measured(
    predictor: Predictor, catalog: Path, args: argparse.Namespace
) -> tuple[list[list[str]], dict[str, dict[str, float]]]:
    """Of every data set: a row of the table, and the points."""
    rows, result, rng = [], {}, np.random.default_rng(0)
    for task in find_tasks(load_catalog(catalog), predictor.model, predictor.metadata["frames"], args.split):
        files = [str(row.path) for row in task.manifest.rows() if row.state == "ok"]
        chosen = rng.permutation(len(files))[: args.samples]
        each = np.array([falls(predictor, files[number], task.head.name, args.share, rng) for number in chosen])
        means, errors = 100 * each.mean(0), 100 * each.std(0, ddof=1) / len(each) ** 0.5
        rows.append(
            [
                task.spec.name,
                str(len(each)),
                *(f"{mean:.1f} ± {error:.1f}" for mean, error in zip(means, errors, strict=True)),
            ]
        )
        result[task.spec.name] = dict(zip(ORDERS, means.tolist(), strict=True))
    return rows, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="with --catalog; without, a small model is trained first")
    parser.add_argument("--catalog", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="of training, without a checkpoint")
    parser.add_argument("--split", default="val")
    parser.add_argument("--samples", type=int, default=40, help="of every data set")
    parser.add_argument("--share", type=float, default=0.125, help="of the patches of a clip")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if (args.checkpoint is None) != (args.catalog is None):
        parser.error("a checkpoint and --catalog belong together")
    with tempfile.TemporaryDirectory() as name:
        checkpoint, catalog = (args.checkpoint, args.catalog) if args.checkpoint else trained(Path(name), args.steps)
        predictor = Predictor.load(checkpoint, args.device)
        rows, result = measured(predictor, catalog, args)
    show(f"points lost with {args.share:.1%} of the patches covered", ["data set", "files", *ORDERS], rows)
    write({**where(predictor.device), "checkpoint": args.checkpoint, "share": args.share, "points": result}, args.json)


if __name__ == "__main__":
    main()
