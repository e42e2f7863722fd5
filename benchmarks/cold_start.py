"""Time of `cover predict` to its first answer, compared with import, decoding and forward pass alone.

    python benchmarks/cold_start.py                      # mini and B/16, one generated clip
    python benchmarks/cold_start.py --presets B/16 --json cold.json

The command takes turns with a process that only imports torch and the model's code, decodes the frames of the clip and
runs the network. In addition, the command starts, reads its arguments and the weights, reads the length of the file and
prints.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from _measure import show, where, write

from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.synthetic.render import encode

FRAMES = 8
PARTS = ("import", "decode", "forward")
BARE = """
import json, sys, time
from pathlib import Path
preset, path, frames = sys.argv[1], sys.argv[2], int(sys.argv[3])
marks = [time.perf_counter()]
import torch
from cover.media.sampling import Sampling, Views
from cover.evaluation.protocol import ViewPlan, read_views
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.release import load_release
marks.append(time.perf_counter())
model = load_release(Path(preset))
marks.append(time.perf_counter())
(clips,), _ = read_views(path, "video", [ViewPlan(Sampling("whole"), Views(1, 3), frames, model.config.size)], 4.0)
marks.append(time.perf_counter())
with torch.inference_mode():
    model(model.normalize(torch.from_numpy(clips).flatten(0, 1)), ((3, frames),))
marks.append(time.perf_counter())
seconds = [b - a for a, b in zip(marks, marks[1:])]
print(json.dumps({"import": seconds[0], "weights": seconds[1], "decode": seconds[2], "forward": seconds[3]}))
"""


def make_release(folder: Path, preset: str) -> Path:
    """A release with random weights and one head of 400 classes."""
    classes = tuple(f"class {number}" for number in range(400))
    model = CoVeR(named_config(preset, frames=FRAMES), (Head("kinetics400", classes),))
    metadata = {"step": 0, "frames": FRAMES, "datasets": {"kinetics400": {"sampling": "whole", "views": "1x3"}}}
    save_release(folder, model, metadata)
    return folder


def command(release: Path, clip: str) -> float:
    """Seconds of the whole process of `cover predict`."""
    began = time.perf_counter()
    arguments = [sys.executable, "-m", "cover", "predict", str(release), clip]
    finished = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "class " in finished.stdout
    return time.perf_counter() - began


def bare(release: Path, clip: str) -> dict[str, float]:
    """Seconds of every part in a process that does nothing else."""
    arguments = [sys.executable, "-c", BARE, str(release), clip, str(FRAMES)]
    return json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def compare(preset: str, clip: str, rounds: int) -> dict[str, float]:
    """Medians of the seconds of both, and of their ratios within a round.

    The first round fills the file cache and does not count.
    """
    with TemporaryDirectory() as folder:
        release = make_release(Path(folder) / "release", preset)
        pairs = [(command(release, clip), bare(release, clip)) for _ in range(rounds + 1)][1:]
    sums = [sum(parts[name] for name in PARTS) for _, parts in pairs]
    medians = {name: statistics.median(parts[name] for _, parts in pairs) for name in (*PARTS, "weights")}
    whole = [seconds for seconds, _ in pairs]
    ratio = statistics.median(a / b for a, b in zip(whole, sums, strict=True))
    return {**medians, "sum": statistics.median(sums), "command": statistics.median(whole), "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["mini", "B/16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        noise = np.random.default_rng(0).integers(0, 256, (48, 15, 20, 3), dtype=np.uint8)
        encode(clip, noise.repeat(16, axis=1).repeat(16, axis=2))
        results = {preset: compare(preset, str(clip), args.rounds) for preset in args.presets}
    columns = ["model", *PARTS, "their sum", "cover predict", "times", "weights alone"]
    names = [*PARTS, "sum", "command", "ratio", "weights"]
    rows = [[preset, *(f"{row[name]:.2f}" for name in names)] for preset, row in results.items()]
    show("Cold start, seconds", columns, rows)
    write({"where": where(torch.device("cpu")), "results": results}, args.json)


if __name__ == "__main__":
    main()
