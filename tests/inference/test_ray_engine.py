"""A Ray cluster answers what the processes of this machine answer, once for every file, and goes on
where it was ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release


def make_release(folder: Path) -> Path:
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("thing", ("cup", "dog")),)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    save_release(folder, model, {"step": 7, "frames": 3, "datasets": {"thing": {"sampling": "whole", "views": "1x3"}}})
    return folder


@pytest.mark.full  # starting Ray takes its time
@pytest.mark.extras
def test_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed: pip install -c constraints.txt -e '.[cluster]'")
    release, folder = make_release(tmp_path / "model"), tmp_path / "files"
    folder.mkdir()
    for number in range(300):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number % 7, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03} gø.png")
    (folder / "123 gø.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "cover", "predict", str(release), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--out", str(tmp_path / "here.jsonl"), "--workers", "0"],
        env=environment,
        capture_output=True,
        check=False,
    )
    here = [json.loads(line) for line in (tmp_path / "here.jsonl").read_text().splitlines()]
    out = tmp_path / "there.jsonl"
    out.write_bytes(b"".join((tmp_path / "here.jsonl").read_bytes().splitlines(keepends=True)[:40]) + b'{"file": "to')
    ended = [*command, "--out", str(out), "--engine", "ray", "--workers", "2"]
    done = subprocess.run(ended, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stdout) == (1, f"{out}\n"), done.stderr
    assert "260 of 300 files are left" in done.stderr
    there = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["file"] for row in there] == [row["file"] for row in here]
    for row, wanted in zip(there, here, strict=True):
        assert row["protocol"] == wanted["protocol"]
        assert row.get("error") == wanted.get("error")
        for (name, share), (wanted_name, wanted_share) in zip(
            row.get("heads", {}).get("thing", []), wanted.get("heads", {}).get("thing", [])
        ):
            assert (name, share) == (wanted_name, pytest.approx(wanted_share, abs=2e-6))
