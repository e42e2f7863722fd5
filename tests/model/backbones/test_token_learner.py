"""TokenLearner and TokenFuser against outputs of the released modules (tests/golden/tokenlearner_modules.json)."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cover.model.backbones.vit_blocks import BlockSettings
from cover.model.backbones.vit_token_learner import TokenFuser, TokenLearner, TokenLearning

CASES = {
    case["case"]: case
    for case in json.loads((Path(__file__).parents[2] / "golden/tokenlearner_modules.json").read_text())["cases"]
}
LEARNER = {"norm": "LayerNorm_0", "fc1": "token_masking/Dense_0", "fc2": "token_masking/Dense_1"}
LEARNER |= {f"convs.{number}": f"Conv_{number}" for number in range(4)}
FUSER = {"norm1": "fuser_mix_norm1", "norm2": "fuser_mix_norm2", "norm": "LayerNorm_0", "mix": "Dense_0"}
FUSER |= {"fc1": "token_masking/Dense_0", "fc2": "token_masking/Dense_1"}


def fill(module: nn.Module, case: dict[str, Any], names: dict[str, str]) -> None:
    """The weights of a case by the rule of the files, under the names of the module."""
    keys, rule = case["keys"], case["fill"]
    keys = keys if isinstance(keys, dict) else CASES[keys.removeprefix("same as case ")]["keys"]
    state = {}
    for name, shape in keys.items():
        value = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        last = name.split("/")[-1]
        if last == "kernel":
            value = value * (rule["gain"] / math.sqrt(value.numel() / shape[-1]))
            value = value.permute(-1, -2, *range(value.ndim - 2))
        else:
            value = 1 + 0.2 * value if last == "scale" else rule["bias"] * value
        ours = next(ours for ours, theirs in names.items() if name.rpartition("/")[0] == theirs)
        state[f"{ours}.{'bias' if last == 'bias' else 'weight'}"] = value
    module.load_state_dict(state)


def close(found: Tensor, case: dict[str, Any]) -> None:
    wanted = case["outputs"]["output"]
    values = found.flatten()[:: wanted.get("every", 1)]
    assert (values - torch.tensor(wanted["values"])).abs().max() <= 1e-5 * wanted["max_abs"]


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("v1")])
def test_the_learner(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    arguments, x = case["arguments"], torch.randn(case["input"]["shape"], generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        "cover.model.backbones.vit_token_learner.BOTTLENECK", arguments.get("bottleneck_dim", 64)
    )  # the published networks have 64
    place = (x.shape[1], x.shape[2]) if x.ndim == 4 else (math.isqrt(x.shape[1]),) * 2
    module = TokenLearner(x.shape[-1], arguments["num_tokens"], "v1.0" if name.startswith("v10") else "v1.1", 1e-6)
    fill(module, case, LEARNER)
    tokens = module(x.reshape(x.shape[0], -1, x.shape[-1]), place)
    # The published networks sum; a mean is this sum divided by the number of places.
    close(tokens if arguments.get("use_sum_pooling", True) else tokens / math.prod(place), case)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("fuser")])
def test_the_fuser(name: str) -> None:
    case = CASES[name]
    tokens, patches = (
        torch.randn(each["shape"], generator=torch.Generator().manual_seed(each["seed"])) for each in case["inputs"]
    )
    module = TokenFuser(tokens.shape[-1], tokens.shape[1], 1e-6, norms=case["arguments"]["use_normalization"])
    fill(module, case, FUSER)
    close(module(tokens, patches), case)


def test_a_new_fuser_returns_the_patches() -> None:
    learning = TokenLearning(BlockSettings(8, 2, 16), 3, "v1.1", 2, fuser=True)
    learning.initialise()
    assert len(learning.learners) == len(learning.fusers) == 2
    nn.init.zeros_(learning.fusers[0].mix.bias)
    nn.init.zeros_(learning.fusers[0].norm2.bias)
    assert not learning.fusers[0](torch.randn(2, 3, 8), torch.randn(2, 9, 8)).any()
