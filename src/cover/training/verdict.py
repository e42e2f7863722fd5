"""What limits a run, and which key of its recipe changes that? One sentence from the shares of its time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cover.machine import default_workers
from cover.training.recipe import Recipe

# The share of the time from which a phase is worth a word. Less than this is not worth changing a run for.
WORTH = {"data": 0.10, "communication": 0.15, "evaluation": 0.25, "checkpoint": 0.05}
WORDS = {
    "data": "waiting for data", "compute": "compute", "communication": "communication", "evaluation": "evaluating on dev",
    "checkpoint": "writing checkpoints",
}  # fmt: skip
LOW_MFU = 0.35  # of a GPU that is kept waiting by the host or works on too little at once


@dataclass(frozen=True)
class Verdict:
    """`limit`: the phase that a run should change first, `compute` where none of the others is worth it. `text`: the sentence."""

    limit: str
    text: str


def judge(shares: Mapping[str, float], mfu: float | None, recipe: Recipe, device: str, originals: Collection[str]) -> Verdict:
    """`shares`: of the time, by phase. `device`: cpu or cuda. `originals`: the media of the data sets that `cover prepare` did not make."""
    every = {"evaluation": recipe.evaluate_every, "checkpoint": recipe.save_every}  # 0: at the end only, which no key makes rarer
    worth = {phase: shares[phase] for phase, least in WORTH.items() if shares[phase] >= least and every.get(phase, 1) > 0}
    limit = max(worth, key=worth.__getitem__, default="compute")
    advice = _of_compute(mfu, recipe, device) if limit == "compute" else _of_others(limit, recipe, originals)
    return Verdict(limit, f"{WORDS[limit]} {shares[limit]:.0%} of the time; to go faster: {', or '.join(advice)}")


def _of_others(limit: str, recipe: Recipe, originals: Collection[str]) -> list[str]:
    if limit == "evaluation":
        return ["raise evaluate_every"]
    if limit == "checkpoint":
        return ["raise save_every"]
    if limit == "communication":
        return ["raise batch, with accumulation where memory is short"]
    advice, most = [], default_workers()
    if 0 <= recipe.workers < most:
        advice.append(f"raise workers ({recipe.workers} of {most})")
    if originals:
        advice.append(f"prepare the {' and '.join(sorted(f'{media}s' for media in originals))} (cover prepare)")
    if recipe.data.crops == 1:
        advice.append("data.crops 2")
    return advice or ["more cores, or a faster disk"]


def _of_compute(mfu: float | None, recipe: Recipe, device: str) -> list[str]:
    """A CPU gains nothing from bf16 or a larger batch: most have no units for the one, and the other is full already."""
    gpu, advice = device == "cuda", []
    if gpu and recipe.precision == "fp32":
        advice.append("precision bf16")
    if not recipe.compile:
        advice.append("compile true")
    if gpu and mfu is not None and mfu < LOW_MFU:
        advice.append("a larger batch")
    return advice or ["a smaller model", "fewer data.frames", "a smaller model.size"]
