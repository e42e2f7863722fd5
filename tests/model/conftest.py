"""Outputs of other implementations: the files in tests/golden, and the weights and inputs that they were made with."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
EMBEDDING = re.compile(
    r"(^|[./])(pos_embed\w*|\w*positional_embedding|pos_embedding|position_embeddings?|cls(_token|_s|_t|_\w*Transformer)?"
    r"|\w*_tokens?|class_embedding|probe|latent|relative_position_bias_table)(\.weight|\.embedding)?$"
)


@dataclass(frozen=True)
class GoldenCase:
    """One case of a file: the arguments of the reference, its weights and input, and its outputs."""

    name: str
    facts: dict[str, Any]
    keys: dict[str, list[int]]

    @property
    def arguments(self) -> dict[str, Any]:
        return self.facts["arguments"]

    def weights(self) -> dict[str, Tensor]:
        """The state dict in the published names; buffers of integers are zero."""
        state = {name: filled(name, shape, **self.facts["fill"]) for name, shape in self.keys.items()}
        floats = {name: value for name, value in state.items() if value.is_floating_point()}
        check = self.facts["fill_check"]
        total = sum(float(value.abs().double().sum()) for value in floats.values())
        assert total == pytest.approx(check["sum_abs"], rel=1e-6)
        torch.testing.assert_close(floats[check["name"]].flatten()[:3], torch.tensor(check["first"]))
        return state

    def input(self) -> Tensor:
        rule, seed = self.facts["input"], re.search(r"manual_seed\((\d+)\)", self.facts["input"]["rule"])
        assert seed
        values = torch.randn(rule["shape"], generator=torch.Generator().manual_seed(int(seed[1])))
        torch.testing.assert_close(values.flatten()[:3], torch.tensor(rule["first"]))
        return values

    def check(self, name: str, result: Tensor, tolerance: float = 1e-5) -> None:
        """Assert that an output is that of the reference."""
        wanted = self.facts["outputs"][name]
        assert list(result.shape) == wanted["shape"]
        values = result.detach().flatten()[:: wanted.get("every", 1)]
        error = float((values - torch.tensor(wanted["values"])).abs().max()) / wanted["max_abs"]
        assert error < tolerance, f"{self.name}, {name}: {error:.1e}"


def filled(name: str, shape: list[int], gain: float, emb: float | None, seed: int, bias: float) -> Tensor:
    """The values of a tensor by the rule of the golden files: strong random numbers from a hash of its name."""
    last = re.split(r"[./]", name)[-1]
    if last in ("relative_position_index", "num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    values = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed))
    if len(shape) >= 2 and emb is not None and EMBEDDING.search(name):
        return emb * values
    if len(shape) >= 2:
        return values * (gain / math.sqrt(values.numel() / shape[0]))
    return 1 + 0.2 * values if last == "weight" else bias * values


@pytest.fixture(scope="session")
def golden_cases() -> Callable[[str], dict[str, GoldenCase]]:
    """Reads a file of tests/golden: name of a case -> case."""

    def read(file: str) -> dict[str, GoldenCase]:
        cases: dict[str, GoldenCase] = {}
        for facts in json.loads((GOLDEN / file).read_text())["cases"]:
            keys = facts["keys"]
            if isinstance(keys, str):
                keys = cases[keys.removeprefix("same as case ")].keys
            cases[facts["case"]] = GoldenCase(facts["case"], facts, keys)
        return cases

    return read
