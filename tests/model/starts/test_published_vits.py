"""Published plain vision transformers compute after their import what their own code computed.

The references are the files in tests/golden: outputs of other implementations for weights that a rule makes (`parity`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import GOLDEN, GoldenCase, golden_cases
from torch import Tensor

from cover.model.backbones.vit import Vit, VitConfig
from cover.model.cover import CoVeR
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.importing import convert_checkpoint

FILES = re.compile(r"clip_|deit_|dinov|siglip_|timm_|umt|videomae|vit_hf|vivit|scenic_vivit|vjepa2|tokenlearner_vit")
LARGE = 1e7  # parameters; a case above takes seconds


def cases() -> list[Any]:
    found = []
    for path in sorted(path for path in GOLDEN.glob("*.json") if FILES.match(path.name)):
        for case, golden in golden_cases(path.name).items():
            marks = [pytest.mark.full] if golden.facts["parameters"] > LARGE else []
            found.append(pytest.param(path.stem, case, id=f"{path.stem}-{case}", marks=marks))
    return found


def settings(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """What `config.json` says of the case, in a form that a user may have."""
    arguments = case["arguments"]
    if "config" in arguments:
        return dict(arguments["config"])
    if "create_model" in arguments:
        architecture, _, _ = arguments["create_model"].partition(".")
        shown = {ours: arguments[ours] for ours in ("num_heads", "img_size", "embed_dim", "depth") if ours in arguments}
        sizes = {} if "img_size" in shown else {"input_size": [3, *case["input"]["shape"][2:]]}
        pool = {"global_pool": "avg"} if "dinov3" in architecture else {}  # as in timm's own config.json
        return {
            **pool,
            "architecture": architecture,
            "model_args": shown,
            "pretrained_cfg": {**case["timm_cfg"], **sizes},
        }
    flat = {**arguments, **arguments.get("encoder", {})}
    theirs = {
        "num_heads": "num_attention_heads",
        "heads": "num_attention_heads",
        "img_size": "image_size",
        "all_frames": "num_frames",
        "num_frames": "num_frames",
    }
    found = {ours: flat[name] for name, ours in theirs.items() if name in flat}
    if name.startswith(("scenic", "tokenlearner")):
        found = {"num_frames": case["input"]["shape"][1] if "(T,)" not in case["input"]["layout"] else 1}
        if len(case["input"]["shape"]) == 5:
            found = {"num_frames": case["input"]["shape"][1]}
    return found


def imported(name: str, case: dict[str, Any], state: dict[str, Tensor], **changes: Any) -> CoVeR:
    """The model that the import makes of a case."""
    checkpoint = ForeignCheckpoint(Path(name), name, state, config=settings(name, case))
    options = ImportOptions(backbone="vit", head="theirs", attention="dot_product" if name == "scenic_vivit4" else None)
    model, report = convert_checkpoint(checkpoint, options)
    accounted = [source for row in report["tensors"] for source in row["source"]]
    assert set(accounted) == set(state)
    assert not report["counts"]["left new"]["tensors"]
    if changes:
        other = CoVeR(replace(model.config, **changes), model.head_list).eval()  # type: ignore[arg-type]
        other.load_state_dict(model.state_dict())
        model = other
    return model


def pack(golden: GoldenCase) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """The input of a case as the frames of a Pack."""
    case, shape = golden.facts, golden.facts["input"]["shape"]
    x = golden.input()
    layout = case["input"]["layout"].replace("(T,)", "T," * (len(shape) == 5)).split(",")
    if layout == ["N", "H", "W", "C"]:
        return x.permute(0, 3, 1, 2), ((shape[0], 1),)
    if "T" not in layout:
        return x, ((shape[0], 1),)
    x = x.permute(*(layout.index(axis) for axis in ("N", "T", "C", "H", "W")))
    return x.flatten(0, 1), ((x.shape[0], x.shape[1]),)


def outputs(model: CoVeR, golden: GoldenCase, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our values of every output that a file may have."""
    frames, groups = pack(golden)
    kept: dict[str, Tensor] = {}
    features = model.forward_features(frames, groups, intermediates=kept)
    backbone = model.backbone
    assert isinstance(backbone, Vit)
    config: VitConfig = backbone.config
    raw = kept[f"blocks.{config.depth - 1}"].unflatten(0, (golden.facts["input"]["shape"][0], -1))
    tokens = raw if config.pool == "mean_norm" else backbone.norm(raw)
    found = {"features": features, "pooled": features, "tokens_before_post_norm": raw, "tokens": tokens}
    if config.pool in ("mean", "attentive"):
        found["pooled"] = tokens.mean(1)
    if config.pool == "class_distillation":
        found["features"] = features.unflatten(1, (2, -1)).mean(1)
        names = {"cls_logits": "cls_classifier", "distillation_logits": "distillation_classifier"}
        for half, (ours, theirs) in enumerate(names.items()):
            if f"{theirs}.weight" in state:
                part = features.chunk(2, 1)[half]
                found[ours] = torch.nn.functional.linear(part, state[f"{theirs}.weight"], state[f"{theirs}.bias"])
    if "visual_projection.weight" in state:
        found["image_embeds"] = features @ state["visual_projection.weight"].T
    if "visual.proj" in state:
        found["image_embed"] = features @ state["visual.proj"]
    found["cls"], found["storage_tokens"] = tokens[:, 0], tokens[:, 1:5]
    found["patch_tokens"] = tokens[:, config.prefix :]
    if model.heads:
        logits = model.forward_head(features)["theirs"]
        found |= dict.fromkeys(("logits", "logits_mean", "output", "probe_logits"), logits)
    return found


@pytest.mark.parametrize(("name", "case_name"), cases())
def test_a_published_network(name: str, case_name: str) -> None:
    golden = golden_cases(f"{name}.json")[case_name]
    case, state = golden.facts, golden.weights()
    changes: dict[str, Any] = {}
    if case["arguments"].get("attention_config", {}).get("attention_order") == "space_time":
        changes["time_first"] = False  # the tensors do not show it
    if "tokenizer" in case["arguments"]:
        changes["learner_after"] = case["arguments"]["tokenizer"]["tokenlearner_loc"]
    if "probe" in case["arguments"]:
        changes["probe_heads"] = case["arguments"]["probe"]["num_heads"]
    model = imported(name, case, state, **changes)
    ours = outputs(model, golden, state)
    for output in case["outputs"]:
        golden.check(output, ours[output])
    if case["parameters"] < LARGE:
        sum(found.float().square().sum() for found in ours.values()).backward()  # type: ignore[union-attr]
        for parameter_name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), parameter_name
