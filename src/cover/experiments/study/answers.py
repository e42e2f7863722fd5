"""The answers of a study clip by clip, in one file: what every figure and interval of its results follows from.

`answers.arrow` is an Arrow IPC file with one row for each clip and each measurement of it. `pyarrow.ipc.open_file(...)
.read_all()` reads it; a study of a thousand runs takes a few hundred kilobytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cover.errors import UserError
from cover.experiments.study.arms import Measurement

ANSWERS = "answers.arrow"
# Of a measurement: the same value in all its rows.
NAMES = ("kind", "arm", "target", "size", "origin", "job", "dataset")
NUMBERS = {"seed": pa.int32(), "fold": pa.int16(), "lr": pa.float64()}
NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        *((name, NAME) for name in NAMES),
        *NUMBERS.items(),
        ("dev", pa.float64()),  # top-1 on dev of the measured checkpoint; null without dev
        ("id", NAME),
        ("source", NAME),  # clips of one source are not independent
        ("label", pa.int32()),
        ("predicted", pa.int32()),
    ]
)


def write_answers(measurements: Sequence[Measurement], results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the answers of all measurements. `results`: job -> its result file."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    classes: dict[str, list[str]] = {}
    for each in measurements:
        result = results[each.job]
        measured = result["measured"][each.dataset]
        count = len(measured["ids"])
        classes[each.dataset] = measured.get("class_names", [])
        for name in (*NAMES, *NUMBERS):
            columns[name] += [getattr(each, name)] * count
        columns["dev"] += [result["dev"].get(each.dataset)] * count
        for name, key in (("id", "ids"), ("source", "sources"), ("label", "labels"), ("predicted", "predicted")):
            columns[name] += measured[key]
    arrays = []
    for field in SCHEMA:
        values = pa.array(columns[field.name], pa.string() if field.type == NAME else field.type)
        arrays.append(values.dictionary_encode() if field.type == NAME else values)
    table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata({"classes": json.dumps(classes)}))
    temporary = path.with_name(f".{path.name}")
    with pa.OSFile(str(temporary), "wb") as file:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(file, table.schema, options=options) as writer:
            writer.write_table(table)
    temporary.replace(path)


def read_answers(path: Path) -> tuple[list[Measurement], dict[str, dict[str, Any]]]:
    """The measurements of a study, and job -> its answers and its accuracies on dev, as in a result file.

    Raises `UserError` if the file is damaged.
    """
    try:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in SCHEMA.names}
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    keys = (*NAMES, *NUMBERS)
    begins = np.flatnonzero(np.any([_changes(columns[name]) for name in keys], axis=0))
    measurements: list[Measurement] = []
    results: dict[str, dict[str, Any]] = {}
    for first, last in zip(begins, [*begins[1:], table.num_rows], strict=True):
        row = {name: columns[name][first] for name in keys}
        numbers = {"seed": int(row["seed"]), "fold": int(row["fold"]), "lr": float(row["lr"])}
        each = Measurement(**{**row, **numbers})
        measurements.append(each)
        result = results.setdefault(each.job, {"measured": {}, "dev": {}})
        result["measured"][each.dataset] = {
            key: columns[name][first:last].tolist()
            for name, key in (("id", "ids"), ("source", "sources"), ("label", "labels"), ("predicted", "predicted"))
        }
        if not np.isnan(columns["dev"][first]):
            result["dev"][each.dataset] = float(columns["dev"][first])
    return measurements, results


def _changes(values: np.ndarray) -> np.ndarray:
    """bool `(N,)`: whether a value differs from the one before. The first does."""
    return np.concatenate([[True], values[1:] != values[:-1]])[: len(values)]
