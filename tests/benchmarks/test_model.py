"""The model's benchmark runs, and needs torch alone but for the rows of other libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "model.py"
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, {folder!r})
sys.argv = ["model.py", "--help"]
"""
NOT_THERE = {
    "av",
    "PIL",
    "pyarrow",
    "yaml",
    "rich",
    "safetensors",
    "transformers",
    "huggingface_hub",
    "torchvision",
    "timm",
}


def test_it_starts_with_torch_alone() -> None:
    code = WITHOUT.format(names=sorted(NOT_THERE), folder=str(SCRIPT.parent)) + "import model\nmodel.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout


@pytest.mark.full
@pytest.mark.parametrize("workload", ["small", "mixed"])
def test_every_row_is_measured(workload: str, tmp_path: Path) -> None:
    value = tmp_path / "found.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--only",
        workload,
        "--rounds",
        "1",
        "--no-compile",
        "--device",
        "cpu",
        "--json",
        str(value),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(value.read_text())["results"]
    for stage in ("forward", "training step"):
        rows = result[stage]["rows"]
        assert any(name.startswith("transformers") for name in rows)
        assert any(name.startswith("ours") for name in rows)
        assert all(row["milliseconds"] > 0 and row["share_of_peak"] > 0 for row in rows.values())
    assert all(row["peak_bytes"] > 0 for row in result["training step"]["rows"].values())
