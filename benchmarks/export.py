"""Speed and accuracy of exported models, compared with the checkpoint.

    python benchmarks/export.py                              # speed of S/16, then top-1 of a small model
    python benchmarks/export.py --only speed --rounds 21 --clips 4
    python benchmarks/export.py --only accuracy --checkpoint runs/cotrain --catalog sandbox/catalog.yaml

Speed is measured with random weights, clips of 8 x 112 and the same number of threads for every contender. Accuracy is
measured on all clips of the validation splits of a checkpoint's video data sets, in the views of `cover evaluate`.
Every contender gets the same pixels. Without --checkpoint, a `mini` is trained first on two generated data sets.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import in_turns, ratio, show, where, write
from _trained import trained

from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import open_manifest
from cover.inference.export import export_onnx, export_torch
from cover.inference.predictor import Predictor
from cover.inference.views import ViewRequest, read_file
from cover.machine import reuse_memory
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import find_release, save_release

CPU = torch.device("cpu")
TORCH, PROGRAM, ONNX, INT8 = "cover, eager", ".pt2", "onnx", "onnx, int8"
Classify = Callable[[np.ndarray], dict[str, np.ndarray]]  # uint8 (B, T, 3, S, S) -> head -> probabilities


def contenders(release: Path, folder: Path) -> dict[str, Classify]:
    """The checkpoint and its exports, each as a function of clips."""
    folder.mkdir(parents=True, exist_ok=True)
    export_torch(release, [], folder / "model.pt2")
    export_onnx(release, [], folder / "model.onnx")
    export_onnx(release, [], folder / "int8.onnx", int8=True)
    for path in sorted(folder.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    predictor, program = Predictor.load(release), torch.export.load(folder / "model.pt2").module()

    @torch.inference_mode()
    def eager(clips: np.ndarray) -> dict[str, np.ndarray]:
        model, groups = predictor.model, ((len(clips), clips.shape[1]),)
        logits = model(model.normalize(torch.from_numpy(clips).flatten(0, 1)), groups)
        return {head.name: head.probabilities(logits[head.name]).numpy() for head in model.head_list}

    @torch.inference_mode()
    def exported(clips: np.ndarray) -> dict[str, np.ndarray]:
        return {name: item.numpy() for name, item in program(torch.from_numpy(clips)).items()}

    return {TORCH: eager, PROGRAM: exported, ONNX: session(folder / "model.onnx"), INT8: session(folder / "int8.onnx")}


def session(path: Path) -> Classify:
    """An ONNX model in onnxruntime, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in model.get_outputs()]
    return lambda clips: dict(zip(names, model.run(names, {"clips": clips}), strict=True))


# --- speed ------------------------------------------------------------------------------------------------------------


def speed(folder: Path, rounds: int, clips: int) -> dict[str, Any]:
    """Times of S/16 at 8 x 112 with a head of 400 classes."""
    head = Head("kinetics", tuple(map(str, range(400))))
    model = CoVeR(named_config("S/16", size=112), (head,))
    metadata = {"step": 0, "frames": 8, "datasets": {"kinetics": {"sampling": "dense", "views": "1x1"}}}
    save_release(folder / "s16", model, metadata)
    batch = np.random.default_rng(0).integers(0, 256, (clips, 8, 3, 112, 112), dtype=np.uint8)
    functions = contenders(folder / "s16", folder / "s16_out")
    work = {name: lambda classify=classify: classify(batch) for name, classify in functions.items()}
    seconds = in_turns(work, rounds, CPU)
    medians = {name: 1e3 * statistics.median(times) / clips for name, times in seconds.items()}
    ratios = {name: ratio(seconds, name, TORCH) for name in seconds}
    rows = [[name, f"{medians[name]:.1f}", f"{ratios[name]:.2f}"] for name in seconds]
    show(f"S/16, {clips} clip(s) of 8 x 112 at once", ["", "ms a clip", "times cover's"], rows)
    return {"clips": clips, "rounds": rounds, "ms": medians, "ratios": ratios}


# --- accuracy ---------------------------------------------------------------------------------------------------------


def accuracy(folder: Path, checkpoint: Path, catalog: Path) -> dict[str, Any]:
    """Top-1 of every contender on the validation splits."""
    release = find_release(checkpoint)
    classify = contenders(release, folder / "out")
    sets = [name for name, item in Predictor.load(release).metadata["datasets"].items() if item["media"] == "video"]
    results: dict[str, Any] = {}
    for name in sets:
        right, scores = dict.fromkeys(classify, 0), {each: list[np.ndarray]() for each in classify}
        for label, views in validation(catalog, release, name):
            for each, function in classify.items():
                scores[each].append(function(views)[name].mean(0))
                right[each] += int(scores[each][-1].argmax()) == label
        results[name] = compare(right, scores)
        rows = [[each, *map(str, item.values())] for each, item in results[name]["rows"].items()]
        columns = ["", "top-1, %", "same class as cover", "largest difference"]
        show(f"{name}: {results[name]['clips']} clips", columns, rows)
    return results


def validation(catalog: Path, release: Path, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """The label and the views of every clip."""
    manifest = open_manifest(load_catalog(catalog).manifest_path(name, "val"))
    request = ViewRequest((Predictor.load(release).plan(name),))
    for row in manifest.rows():
        ((views,),) = read_file(row.path, request).clips
        yield row.label, views


def compare(right: dict[str, int], scores: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """The top-1 of each contender, and its differences from the checkpoint."""
    stacked = {each: np.stack(rows) for each, rows in scores.items()}
    clips, ours = len(stacked[TORCH]), stacked[TORCH]
    rows = {
        each: {
            "top1": round(100 * right[each] / clips, 1),
            "same": int((theirs.argmax(1) == ours.argmax(1)).sum()),
            "difference": float(f"{np.abs(theirs - ours).max():.1g}"),
        }
        for each, theirs in stacked.items()
    }
    return {"clips": clips, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["speed", "accuracy"], default=["speed", "accuracy"])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--clips", type=int, default=1, help="clips in one call")
    parser.add_argument("--steps", type=int, default=400, help="training steps, without --checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="a run, checkpoint or release folder")
    parser.add_argument("--catalog", type=Path, help="catalog of the checkpoint's data sets, indexed")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    reuse_memory()
    metadata = where(CPU)
    print(f"{metadata['date']}, {metadata['device']}, {metadata['threads']} threads, torch {metadata['torch']}")
    with tempfile.TemporaryDirectory() as name:
        folder, result = Path(name), dict[str, Any](metadata)
        if "speed" in args.only:
            result["speed"] = speed(folder, args.rounds, args.clips)
        if "accuracy" in args.only:
            given = args.checkpoint and args.catalog
            checkpoint, catalog = (args.checkpoint, args.catalog) if given else trained(folder, args.steps)
            result["accuracy"] = accuracy(folder, checkpoint, catalog)
    write(result, args.json)


if __name__ == "__main__":
    main()
