"""What do the numbers say? Comparisons with their uncertainty, put into plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Mapping[str, Any]]
# Two standard errors: about 95 % of repeated draws of the same number of clips.
Z = 2.0


def interval(share: float, samples: int) -> tuple[float, float]:
    """Wilson's score interval at two standard errors for a share of `samples`; never empty, also at 0 and 1."""
    centre = (share + Z * Z / (2 * samples)) / (1 + Z * Z / samples)
    half = Z * math.sqrt(share * (1 - share) / samples + Z * Z / (4 * samples * samples)) / (1 + Z * Z / samples)
    return max(0.0, centre - half), min(1.0, centre + half)


def differs(first: float, second: float, samples: int) -> bool:
    """Whether two shares of `samples` each are further apart than two standard errors (Agresti and Caffo 2000: one hit and one
    miss added to each, so that shares of 0 and 1 do not look certain). The same clips were shown to both, which makes this cautious.
    """
    first, second = ((share * samples + 1) / (samples + 2) for share in (first, second))
    error = math.sqrt((first * (1 - first) + second * (1 - second)) / (samples + 2))
    return abs(first - second) > Z * error


def compared(results: Results, one: str, other: str) -> dict[str, list[tuple[str, float]]]:
    """Data sets by whether column `one` is better than, equal to or worse than `other`, each with the difference (a share).

    Sets where either was not run, or the number of samples is not known, are in none of the three.
    """
    found: dict[str, list[tuple[str, float]]] = {"better": [], "equal": [], "worse": []}
    for name, row in results.items():
        a, b, samples = row.get(one), row.get(other), row.get("n_read")
        if a is None or b is None or not samples:
            continue
        verdict = "equal" if not differs(a, b, samples) else "better" if a > b else "worse"
        found[verdict].append((name, a - b))
    return found


def headline(results: Results) -> str:
    """One sentence: on which data sets the co-trained model beats, equals or falls behind a model of each set alone."""
    trained = [name for name, row in results.items() if row.get("cotrained") is not None]
    if not trained:
        return "No co-trained model has been evaluated yet."
    found = compared(results, "cotrained", "single")
    words = {"better": "better", "equal": "not measurably different", "worse": "worse"}
    said = [f"{words[verdict]} on {_sets(sets)}" for verdict, sets in found.items() if sets]
    whole = f"One model, co-trained on {number(len(trained))} data set{'s' * (len(trained) > 1)}"
    if not said:
        return f"{whole}; no model of one set alone was evaluated to compare it with."
    known = {name for sets in found.values() for name, _ in sets}
    rest = [name for name in trained if name not in known]
    nothing = f"; on {listed(rest)} there is none to compare with" if rest else ""
    return f"{whole}, against a model trained on each set alone: {', '.join(said)}{nothing}."


def notes(results: Results) -> list[str]:
    """Further sentences that the numbers carry: what the order of frames is worth, what stands at chance."""
    found = compared(results, "cotrained", "cotrained_shuffled")
    said = []
    if found["better"]:
        falls = [_fall(name, results[name]) for name, _ in found["better"]]
        said.append(f"It reads the order of the frames: shuffling them takes {listed(falls)}.")
    if found["worse"]:
        said.append(f"Shuffling raises {_sets([(name, -gap) for name, gap in found['worse']])}.")
    if found["equal"]:
        said.append(f"Shuffling changes nothing measurable on {listed([name for name, _ in found['equal']])}.")
    at_chance = [name for name, row in results.items() if _at_chance(row)]
    if at_chance:
        said.append(f"Not measurably above chance: {listed(at_chance)}.")
    return said


def caution(results: Results, generated: bool) -> str:
    """What these numbers cannot carry."""
    read = [row["n_read"] for row in results.values() if row.get("n_read")]
    counts = "an unknown number of"
    if read:
        counts = f"{min(read):,}" if min(read) == max(read) else f"{min(read):,} to {max(read):,}"
    text = (
        f"One seed and {counts} samples per data set: a difference within two standard errors counts as none, "
        "and another seed may move any of these figures."
    )
    if generated:
        text += " The data sets are generated and share one generator: they prove that the instrument works, and nothing about real videos."
    return text


def percent(share: float | None) -> str:
    """A share as a figure in per cent with one decimal, a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}"


def number(count: int) -> str:
    """A count as prose writes it."""
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return words[count] if count < len(words) else f"{count:,}"


def _fall(name: str, row: Mapping[str, Any]) -> str:
    return f"{name} from {percent(row['cotrained'])} to {percent(row['cotrained_shuffled'])}\u00a0%"


def _at_chance(row: Mapping[str, Any]) -> bool:
    share, chance, samples = row.get("cotrained"), row.get("chance"), row.get("n_read")
    return share is not None and chance is not None and bool(samples) and interval(share, samples or 1)[0] <= chance


def _sets(sets: Sequence[tuple[str, float]]) -> str:
    return listed([f"{name} ({100 * gap:+.1f} points)" for name, gap in sets])


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
