"""A ratio of speed that falls is an error of `benchmarks/regress.py`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_a_ratio_that_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    regress = importlib.import_module("regress")
    assert json.loads(regress.KEPT.read_text(encoding="utf-8")).keys() == regress.RATIOS.keys()

    now = {"a": 2.0, "b": 1.0}
    ratios = {name: (name, lambda name=name: now[name]) for name in now}
    monkeypatch.setattr(regress, "RATIOS", ratios)
    monkeypatch.setattr(regress, "KEPT", tmp_path / "regress.json")
    monkeypatch.setattr("sys.argv", ["regress.py", "--update"])
    regress.main()
    assert json.loads(regress.KEPT.read_text(encoding="utf-8")) == now

    now["b"] = 0.7
    monkeypatch.setattr("sys.argv", ["regress.py"])
    with pytest.raises(SystemExit, match="slower than kept: b;"):
        regress.main()
    assert "| b " in capsys.readouterr().out
    assert json.loads(regress.KEPT.read_text(encoding="utf-8"))["b"] == 1.0
