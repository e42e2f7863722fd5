"""Parity with other implementations: the files in tests/golden, and networks with strong random weights."""

from __future__ import annotations

import json
import math
import re
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-5  # of the largest absolute value
EMBEDDING = re.compile(
    r"(^|[./])(pos_embed\w*|\w*positional_embedding|pos_embedding|position_embeddings?|cls(_token|_s|_t|_\w*Transformer)?"
    r"|\w*_tokens?|class_embedding|probe|latent|relative_position_bias_table)(\.weight|\.embedding)?$"
)

SCALES = ("alpha", "gamma", "gamma_1", "gamma_2", "lambda1")
INTEGERS = ("relative_position_index", "num_batches_tracked")
BUFFERS = (*INTEGERS, "bias_mask", "periods", "inv_freq")  # not filled by the rule, so not in the sum of a file


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
        floats = {name: value for name, value in state.items() if _last(name) not in BUFFERS}
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

    def check(self, name: str, result: Tensor, tolerance: float = TOLERANCE) -> None:
        """Assert that an output is that of the reference."""
        wanted = self.facts["outputs"][name]
        assert list(result.shape) == wanted["shape"]
        values = result.detach().flatten()[:: wanted.get("every", 1)]
        error = float((values - torch.tensor(wanted["values"])).abs().max()) / wanted["max_abs"]
        assert error < tolerance, f"{self.name}, {name}: {error:.1e}"


def filled(name: str, shape: list[int], gain: float, emb: float | None, seed: int, bias: float) -> Tensor:
    """The values of a tensor by the rule of the golden files: strong random numbers from a hash of its name.

    Buffers that the reference computes itself have the values that the reference gives them.
    """
    last = _last(name)
    if last in INTEGERS:
        return torch.zeros(shape, dtype=torch.long)
    if last == "bias_mask":
        return torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(shape[0] // 3)
    values = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed))
    if last == "running_mean":
        return 0.2 * values
    if last == "running_var":
        return 0.5 + 0.5 * values.abs()
    if last in SCALES:
        return 0.5 + 0.2 * values
    if len(shape) >= 2 and emb is not None and EMBEDDING.search(name):
        return emb * values
    if len(shape) >= 2:
        return values * (gain / math.sqrt(values.numel() / shape[-1 if last == "kernel" else 0]))
    return 1 + 0.2 * values if last in ("weight", "scale") else bias * values


def _last(name: str) -> str:
    return re.split(r"[./]", name)[-1]


@cache
def golden_cases(file: str) -> dict[str, GoldenCase]:
    """The cases of a file of tests/golden, by name."""
    cases: dict[str, GoldenCase] = {}
    for facts in json.loads((GOLDEN / file).read_text(encoding="utf-8"))["cases"]:
        keys = facts["keys"]
        if isinstance(keys, str):
            keys = cases[keys.removeprefix("same as case ")].keys
        cases[facts["case"]] = GoldenCase(facts["case"], facts, keys)
    return cases


# --- our networks -----------------------------------------------------------------------------------------------------


def strong(module: M, embeddings: str, gain: float = 1.5) -> M:
    """The module with random parameters and statistics of BatchNorm, so strong that no branch is near zero.

    `embeddings`: a regular expression of the names of tables and tokens.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            values = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                values = 0.5 + 0.5 * values.abs()
            elif name.endswith("alpha"):
                values = 0.5 + 0.2 * values
            elif "norm" in name and name.endswith("weight"):
                values = 1 + 0.2 * values
            elif re.search(embeddings, name) or value.ndim < 2:
                values = 0.4 * values
            else:
                values = values * gain / math.sqrt(value[0].numel())
            value.copy_(values)
    return module.eval()


def close(result: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    """Assert that two tensors differ by little of the largest value."""
    assert result.shape == wanted.shape
    error = float((result - wanted).detach().abs().max()) / float(wanted.detach().abs().max())
    assert error < tolerance, f"{error:.1e}"
