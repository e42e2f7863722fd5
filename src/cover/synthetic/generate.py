"""Generation of the synthetic data sets on disk: `cover sandbox DIR --seed 0 --difficulty easy --clutter 0.3`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from cover.console import Meter, say
from cover.errors import UserError
from cover.locks import LOCK, alone_in
from cover.processes import ProcessPool
from cover.synthetic.content import SPLITS, datasets_of, draw_sample
from cover.synthetic.layouts import LAYOUTS, count
from cover.synthetic.render import encode
from cover.synthetic.settings import DIALS, Settings

RECORD = "sandbox.json"
CATALOG = "catalog.yaml"
REVISION = 2  # of the generator: raise it when the same settings give other files
BATCH = 16  # files that a process writes before it reports

SampleJob = tuple[str, str, int]


def generate(folder: Path, settings: Settings, workers: int) -> Path:
    """Write the data sets and their `catalog.yaml` into `folder`. Returns the path of the catalog.

    With fewer than 2 `workers`, this process writes the files. The same settings give the same bytes for any number of
    workers. A finished sandbox of the same settings does not change. An unfinished one is written again.

    Raises `UserError` if `folder` holds anything else.
    """
    if _is_finished(folder, settings):
        say(f"sandbox: {folder} already holds this sandbox, nothing to do")
        return folder / CATALOG
    with alone_in(folder, "sandbox"):
        return _generate(folder, settings, workers)


def _generate(folder: Path, settings: Settings, workers: int) -> Path:
    _write_record(folder, settings, finished=False)
    datasets = datasets_of(settings)
    jobs = [
        (dataset, split, index)
        for dataset in datasets
        for split in SPLITS
        for index in range(count(settings, dataset, split))
    ]
    with Meter("sandbox", total=len(jobs)) as meter:
        for dataset, done in _write_samples(folder, settings, jobs, workers):
            meter.advance(done, note=dataset)
    for dataset in datasets:
        LAYOUTS[dataset].annotate(folder / LAYOUTS[dataset].folder, settings)
    _write_catalog(folder, datasets)
    _write_record(folder, settings, finished=True)
    return folder / CATALOG


def sample_path(folder: Path, settings: Settings, dataset: str, split: str, index: int) -> Path:
    """The file of one sample."""
    return folder / LAYOUTS[dataset].folder / LAYOUTS[dataset].path(settings, split, index)


def _write_samples(folder: Path, settings: Settings, jobs: list[SampleJob], workers: int) -> Iterator[tuple[str, int]]:
    """Write all samples. Yields the data set and the number of files after each batch."""
    write = partial(_write_batch, folder, settings)
    batches = [jobs[first : first + BATCH] for first in range(0, len(jobs), BATCH)]
    if workers < 2:
        yield from map(write, batches)
        return
    with ProcessPool(workers) as pool:
        yield from pool.map(write, batches)


def _write_batch(folder: Path, settings: Settings, jobs: list[SampleJob]) -> tuple[str, int]:
    for dataset, split, index in jobs:
        encode(sample_path(folder, settings, dataset, split, index), draw_sample(settings, dataset, split, index))
    return jobs[-1][0], len(jobs)


def _is_finished(folder: Path, settings: Settings) -> bool:
    """Whether the folder holds the finished sandbox of these settings. If not, it may be written.

    Raises `UserError` if the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and set(os.listdir(folder)) <= {LOCK}):
        return False
    record = _read_record(folder)
    if record is None:
        raise UserError(f"{folder} is not empty and holds no sandbox: give a new folder")
    expected = _record(settings, finished=True)
    # A dial that the record does not name did not exist when the folder was written: it is at 0.
    was, now = {**dict.fromkeys(DIALS, 0.0), **record.get("settings", {})}, expected["settings"]
    if {**record, "settings": was, "finished": True} != expected:
        changed = [key for key in {**now, **was} if was.get(key) != now.get(key)]
        difference = ", ".join(changed) or "another revision"
        raise UserError(f"{folder} holds a sandbox of other settings ({difference}): give a new folder")
    return bool(record["finished"])


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _record(settings: Settings, finished: bool) -> dict[str, Any]:
    return {"revision": REVISION, "settings": settings.as_json(), "finished": finished}


def _write_record(folder: Path, settings: Settings, finished: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(_record(settings, finished), indent=2) + "\n", encoding="utf-8")


def _write_catalog(folder: Path, datasets: Sequence[str]) -> None:
    entries = {name: {"format": name, "root": LAYOUTS[name].folder, **LAYOUTS[name].catalog} for name in datasets}
    (folder / CATALOG).write_text(yaml.safe_dump(entries, sort_keys=False, default_flow_style=None), encoding="utf-8")
