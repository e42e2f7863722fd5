"""Heads that are trained on the outputs of a frozen plain vision transformer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cover.cli import main
from cover.experiments.add import best_head
from cover.model.backbones.vit import vit_config
from cover.model.cover import CoVeR
from cover.model.heads import Head


@pytest.mark.parametrize(("kind", "part"), [("attentive", "frame_pool."), ("late_block", "blocks.2.")])
def test_trained_heads_of_a_plain_transformer(
    kind: str, part: str, make_set: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the new part of the network and the new head are trained. The other head keeps its answers where it can."""
    monkeypatch.setattr(best_head, "STEPS", 4)
    monkeypatch.setattr(best_head, "LATE_BLOCK_STEPS", 4)
    config = vit_config("dinov2_b14", width=32, depth=2, attention_heads=2, hidden=64, size=28, frames=4)
    old = CoVeR(config, (Head("known", ("a", "b")),), metadata={"frames": 4, "datasets": {}})
    old.save_pretrained(tmp_path / "start")
    catalog = make_set({f"{number}.mp4": ("up", "down")[number % 2] for number in range(12)}, dev=0.3)
    words = ["add", tmp_path / "start", "--data", "mine", "--catalog", catalog, "--out", tmp_path / "run"]
    assert main([*map(str, words), "--heads", kind, "--workers", "0"]) == 0
    release = CoVeR.from_pretrained(tmp_path / "run")
    before, after = old.state_dict(), release.state_dict()
    new = {name for name in after if name not in before}
    assert {name for name in new if not name.startswith(f"backbone.{part}")} == {"heads.mine.weight", "heads.mine.bias"}
    fresh = release.backbone.added_parameters(config)
    assert {name.removeprefix("backbone.") for name in new if name.startswith("backbone.")} == fresh
    assert all(value.equal(after[name]) for name, value in before.items() if not name.startswith("heads."))
    last = dict(release.backbone.named_parameters())[max(name for name in fresh if name.endswith("proj.weight"))]
    assert last.abs().max() > 0, "a matrix that began at zero was trained"
