"""Time and memory of a catalog with a million rows: of the schedule, and of the reading processes over time.

    python benchmarks/million.py
    python benchmarks/million.py --rows 100000 --batches 1000 --json million.json

The catalog has four data sets in the proportions of Kinetics-400, Something-Something-v2, Moments in Time and ImageNet.
The schedule is measured in a process of its own. The rows point at a few small files, so that 10,000 batches take
minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import show, where, write

from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.manifest import ClassList, Row, write_manifest
from cover.mixture.loader import packs
from cover.mixture.mixture import Mixture
from cover.mixture.rates import Data

# fraction of the samples of each data set, as in the article
SHARES = {"kinetics": 0.097, "ssv2": 0.068, "moments": 0.319, "imagenet": 0.516}
FRAMES, SIZE, BATCH, FILES = 8, 16, 8, 16
MIB = 2**20


def make_catalog(folder: Path, rows: int) -> Catalog:
    """A catalog of four data sets with `rows` train rows together, which point at a few files."""
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(FILES):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(media / f"{number}.jpg")
        _clip(media / f"{number}.mp4", rng)
    kinds = {name: "image" if name == "imagenet" else "video" for name in SHARES}
    lines = [
        f"{name}: {{format: folder, root: {media}, media: {kind}, annotations: {{train: .}}}}"
        for name, kind in kinds.items()
    ]
    (folder / "catalog.yaml").write_text("\n".join(lines) + "\n")
    catalog = load_catalog(folder / "catalog.yaml")
    classes = ClassList.of([f"class {number}" for number in range(400)], "generated")
    for name, fraction in SHARES.items():
        path, own_rows = catalog.manifest_path(name, "train"), _rows(media, kinds[name], round(rows * fraction))
        write_manifest(path, name, "train", catalog.spec(name).media, classes, own_rows)
    return catalog


def _rows(media: Path, kind: str, count: int) -> Iterator[Row]:
    video = kind == "video"
    for number in range(count):
        path = str(media / f"{number % FILES}.{'mp4' if video else 'jpg'}")
        yield Row(
            sample_id=f"{number:08d}_000010_000020",
            source_id=f"{number:011d}",
            path=path,
            offset=None,
            length=None,
            label=number % 400,
            start=None,
            end=None,
            youtube_start=10.0,
            youtube_end=20.0,
            frames=12 if video else 1,
            fps=12.0 if video else 0.0,
            width=32,
            height=24,
            codec="h264" if video else "jpeg",
            state="ok",
            why="",
        )


def _clip(path: Path, rng: np.random.Generator) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"g": "6"})
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for _ in range(12):
            noise = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())


def mixture_of(catalog: Catalog) -> Mixture:
    return Mixture.open(Data(list(SHARES), str(catalog.path), FRAMES), catalog)


# --- the schedule -----------------------------------------------------------------------------------------------------


def schedule_costs(catalog_path: Path) -> dict[str, float]:
    """Seconds and MiB of a new process: to open the manifests, for 1,000 draws with their rows, and for a late step."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_schedule_costs, (catalog_path,))


def _schedule_costs(catalog_path: Path) -> dict[str, float]:
    catalog, before, began = load_catalog(catalog_path), anonymous(os.getpid()), time.perf_counter()
    mixture = mixture_of(catalog)
    schedule = mixture.schedule(64)
    opened = time.perf_counter()
    by_name = {dataset.name: dataset.manifest for dataset in mixture.datasets}
    draws = [draw for step in range(16) for group in schedule.step(step) for draw in group][:1000]
    rows = [by_name[draw.dataset].row(draw.row) for draw in draws]
    drawn = time.perf_counter()
    schedule.step(100_000)
    return {
        "rows": sum(map(len, by_name.values())),
        "open_s": opened - began,
        "draws": len(rows),
        "draws_s": drawn - opened,
        "far_s": time.perf_counter() - drawn,
        "own_mib": (anonymous(os.getpid()) - before) / MIB,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def anonymous(pid: int) -> int:
    """The private memory of a process in bytes, without pages of mapped files, which all processes share."""
    return _status(pid, "RssAnon")


def _status(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


# --- the readers ------------------------------------------------------------------------------------------------------


def reader_memory(catalog: Catalog, batches: int, workers: int) -> list[dict[str, Any]]:
    """The MiB of each reading process, private and with shared pages, at ten times during the batches."""
    mixture = mixture_of(catalog)
    schedule, reader = mixture.schedule(BATCH), mixture.reader(SIZE)
    before, lines = set(_children()), []
    began = time.perf_counter()
    for number, _ in enumerate(packs(schedule, reader, 0, batches, workers), start=1):
        if number == 1:
            readers = _readers(before, workers)
        if number % (batches // 10) == 0:
            own, whole = ([_status(pid, key) / MIB for pid in readers] for key in ("RssAnon", "VmRSS"))
            lines.append({"batches": number, "seconds": time.perf_counter() - began, "own_mib": own, "rss_mib": whole})
    return lines


def _readers(before: set[int], workers: int) -> list[int]:
    """The processes that the loader has started. They are the largest; smaller ones only start them."""
    return sorted(set(_children()) - before, key=anonymous)[-workers:]


def _children() -> list[int]:
    """All descendants of this process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # the process has ended meanwhile
                continue
    family = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sorted(family - {os.getpid()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        catalog = make_catalog(Path(folder), args.rows)
        costs = schedule_costs(catalog.path)
        times = ["manifests opened, s", "1,000 draws, s", "step 100,000, s"]
        columns = ["rows", *times, "private memory, MiB", "peak with torch, MiB"]
        values = [f"{costs['rows']:.0f}", *(f"{costs[key]:.3f}" for key in ("open_s", "draws_s", "far_s"))]
        show("schedule", columns, [[*values, f"{costs['own_mib']:.0f}", f"{costs['peak_mib']:.0f}"]])
        memory = reader_memory(catalog, args.batches, args.workers)
        rows = []
        for line in memory:
            own, whole = (" ".join(f"{mib:.0f}" for mib in line[key]) for key in ("own_mib", "rss_mib"))
            rows.append([str(line["batches"]), f"{line['seconds']:.0f}", own, whole])
        columns = ["batches", "s", "private memory, MiB", "resident, MiB"]
        show(f"{args.workers} readers, batches of {BATCH}", columns, rows)
        write({**where(torch.device("cpu")), "schedule": costs, "readers": memory}, args.json)


if __name__ == "__main__":
    main()
