"""Comparisons of a study: paired differences between arms, with tests that are corrected within families.

Both of a pair have the same clips and the same seed. Intervals are over seeds and sources (`evaluation.statistics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cover.evaluation.statistics import (
    LEVEL,
    Estimate,
    detectable_in,
    difference,
    in_common,
    judge,
    pooled,
    proportion,
    sign_flip,
)
from cover.experiments.study.arms import Measurement
from cover.experiments.study.study_file import WITH, WITHOUT, Study
from cover.model.release import trained_on

Key = tuple[str, str, str, str]  # arm, target, size, origin
RunResults = Mapping[str, Mapping[str, Any]]  # job -> its result file


@dataclass(frozen=True)
class ArmResults:
    """The results of one arm on one target.

    `right`: bool `(seeds, N)`, whether each prediction is correct. `ids`, `sources`: of the N clips. `jobs`: the runs
    of these results.
    """

    right: np.ndarray
    ids: list[str]
    sources: list[str]
    jobs: list[str]

    def estimate(self) -> dict[str, Any]:
        """The accuracy and its interval, as JSON values."""
        accuracy = proportion(self.right, self.sources)
        return {
            "top1": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
            "by_seed": [round(float(mean), 6) for mean in self.right.mean(1)],
            "items": len(self.ids),
            "sources": len(set(self.sources)),
        }


@dataclass(frozen=True)
class Comparison:
    """A comparison of the arm `ours` with the arm `theirs`.

    `family`: comparisons of a family are corrected together. `claim`: the claim of the article, or a control.
    """

    family: str
    claim: str
    target: str
    ours: str
    theirs: str
    size: str = ""
    origin: str = ""

    @property
    def name(self) -> str:
        """A name that is unique within the family."""
        return "|".join([self.target, self.size, self.origin, self.ours, self.theirs])


# ours, theirs, and the claim of the article or "control"
PAIRS = (
    ("videos_images", "alone", "a"),
    ("videos", "alone", "a"),
    ("videos_images", "alone_long", "a, equal compute"),
    ("videos_images", "videos", "b"),
    ("videos_images", "stills", "control"),
    ("permuted", "alone", "control"),
    ("alone_long", "alone", "control"),
)


# --- results of an arm ------------------------------------------------------------------------------------------------


def results_by_arm(measurements: Iterable[Measurement], results: RunResults, kind: str) -> dict[Key, ArmResults]:
    """The results of every arm (or transfer, or probe) by arm, data set, size and origin.

    If there are several learning rates, the best on `dev` counts, for each seed and each fold.
    """
    groups: dict[Key, dict[int, dict[int, list[Measurement]]]] = {}
    for each in measurements:
        if each.kind == kind:
            arm = f"{each.arm}:{each.target}" if kind == "probe" else each.arm
            by_seed = groups.setdefault((arm, each.dataset, each.size, each.origin), {})
            by_seed.setdefault(each.seed, {}).setdefault(each.fold, []).append(each)
    return {key: _joined(by_seed, results) for key, by_seed in groups.items()}


def _joined(by_seed: Mapping[int, Mapping[int, list[Measurement]]], results: RunResults) -> ArmResults:
    rows, jobs = [], []
    for folds in by_seed.values():
        best = [max(rates, key=lambda each: _on_dev(each, results)) for rates in folds.values()]
        measured = [results[each.job]["measured"][each.dataset] for each in best]
        right = {
            key: label == guess
            for part in measured
            for key, label, guess in zip(part["ids"], part["labels"], part["predicted"], strict=True)
        }
        sources = {key: source for part in measured for key, source in zip(part["ids"], part["sources"], strict=True)}
        rows.append((right, sources))
        jobs += [each.job for each in best]
    # A file may become unreadable between two runs. So only clips that all runs have read count.
    ids = sorted(set.intersection(*(set(right) for right, _ in rows)))
    right_by_seed = np.array([[right[key] for key in ids] for right, _ in rows])
    return ArmResults(right_by_seed, ids, [rows[0][1][key] for key in ids], jobs)


def _on_dev(measurement: Measurement, results: RunResults) -> float:
    """The score for the choice of a learning rate: the mean over all targets of the model, which share one rate."""
    result = results[measurement.job]
    return float(np.mean([result["dev"].get(name, 0.0) for name in result["measured"]]))


# --- list of comparisons ----------------------------------------------------------------------------------------------


def comparisons_of(study: Study) -> list[Comparison]:
    """All comparisons of a study. They do not depend on its results."""
    pairs = [
        Comparison(f"{ours} against {theirs}, {size}, {origin}", claim, target, ours, theirs, size, origin)
        for origin in study.origins
        for size in study.sizes
        for ours, theirs, claim in PAIRS
        if {ours, theirs} <= set(study.arms_at(size))
        for target in study.targets
    ]
    return [*pairs, *_worth(study), *_between_sources(study), *_between_sizes(study)]


def _worth(study: Study) -> list[Comparison]:
    """The mixture against the mixture without one data set, and the target with one data set against it alone."""
    comparisons = []
    for origin in study.origins:
        for size in study.sizes:
            pairs = [("videos_images", arm) for arm in study.arms_at(size) if arm.startswith(WITHOUT)]
            pairs += [(arm, "alone") for arm in study.arms_at(size) if arm.startswith(WITH)]
            for ours, theirs in pairs:
                family = f"worth {WITHOUT if theirs.startswith(WITHOUT) else WITH} {size}, {origin}"
                comparisons += [Comparison(family, "worth", name, ours, theirs, size, origin) for name in study.targets]
    return comparisons


def _between_sources(study: Study) -> list[Comparison]:
    """Claim (c): each source with several data sets against each other source. If there is none, all pairs of sources.

    A source that was trained on the target is not compared, because it has an advantage.
    """
    if not study.transfer.wanted:
        return []
    known, size = sources_of(study), study.transfer.size or next(iter(study.sizes))
    names = sorted(known, key=lambda name: -len(known[name]))
    comparisons = []
    for how in study.transfer.how:
        for target in study.transfer.targets:
            trained = {name: frozenset(known[name]) - ({target} if len(known[name]) > 1 else set()) for name in names}
            others = [name for name in names if target not in trained[name]]
            mixed = [name for name in others if len(known[name]) > 1] or others
            comparisons += [
                Comparison(f"transfer by {how}, between sources", "c", target, f"{ours}:{how}", f"{theirs}:{how}", size)
                for place, ours in enumerate(others)
                for theirs in others[place + 1 :]
                if ours in mixed and trained[ours] != trained[theirs]
            ]
    return comparisons


def sources_of(study: Study) -> dict[str, list[str]]:
    """The sources of the transfers, and the training data sets of each."""
    return {**study.transfer.sources, **{name: trained_on(path) for name, path in study.transfer.checkpoints.items()}}


def _between_sizes(study: Study) -> list[Comparison]:
    """Claim (d): the gain at a smaller size minus the gain at the largest size.

    In these comparisons, `ours` and `theirs` are sizes and `size` is the mixture.
    """
    mixture = "videos_images" if "videos_images" in study.arms else "videos"
    sizes = [size for size in study.sizes if {"alone", mixture} <= set(study.arms_at(size))]
    sizes.sort(key=lambda size: -study.sizes[size].part)
    if not sizes:
        return []
    first = sizes[0]
    smaller = [size for size in sizes if study.sizes[size].part < study.sizes[first].part]
    comparisons = []
    for origin in study.origins:
        for size in smaller:
            family = f"gain of {mixture} over alone, {size} against {first}, {origin}"
            comparisons += [Comparison(family, "d", target, size, first, mixture, origin) for target in study.targets]
    return comparisons


# --- results of the comparisons ---------------------------------------------------------------------------------------


def compare(
    study: Study, arms: Mapping[Key, ArmResults], transfers: Mapping[Key, ArmResults], level: float = LEVEL
) -> list[dict[str, Any]]:
    """One row for each comparison, as JSON values. `level`: of its interval and its verdict.

    A row has the difference of top-1 (0 to 1) with its interval, the p-value without and with Holm's correction within
    the family, the exact p-value over the signs of seeds (null for few seeds), the verdict, and the detectable
    difference.
    """
    comparisons = comparisons_of(study)
    rows = []
    for family in dict.fromkeys(each.family for each in comparisons):
        members = {each.name: each for each in comparisons if each.family == family}
        gains = {name: _gain(each, arms, transfers) for name, each in members.items()}
        estimates = {
            name: difference(gain, np.zeros_like(gain), sources, level) for name, (gain, sources) in gains.items()
        }
        for name, (p, word) in judge(estimates, study.margin, level).items():
            (gain, sources), estimate = gains[name], estimates[name]
            rows.append(
                {
                    **asdict(members[name]),
                    "difference": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "error": estimate.error,
                    "level": level,
                    "p": estimate.p,
                    "p_holm": p,
                    "p_sign_flip": sign_flip(gain),
                    "margin": study.margin,
                    "verdict": word,
                    "seeds": len(gain),
                    "items": gain.shape[1],
                    "sources": len(set(sources)),
                    "detectable": detectable_in(gain, sources),
                }
            )
    return rows


def decided(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether every comparison of a claim, and not only of a control, has a verdict."""
    return all(row["verdict"] != "no difference shown" for row in rows if row["claim"] not in ("control", "worth"))


def pool(rows: Sequence[Mapping[str, Any]], margin: float, level: float = LEVEL) -> list[dict[str, Any]]:
    """One row for each family with several targets: the mean difference over the targets, as random effects."""
    result = []
    for family in dict.fromkeys(row["family"] for row in rows if row["claim"] != "c"):
        own = [row for row in rows if row["family"] == family]
        estimates = [Estimate(row["difference"], row["low"], row["high"], row["p"], row["error"]) for row in own]
        mean = pooled(estimates, level)
        if mean is not None and len({row["target"] for row in own}) == len(own):
            names = {key: own[0][key] for key in ("family", "claim", "ours", "theirs", "size", "origin")}
            estimate = Estimate(mean.value, mean.low, mean.high, mean.p)
            word = judge({family: estimate}, margin, level)[family][1]
            result.append({**names, "difference": mean.value, **asdict(mean), "verdict": word})
    return result


def _gain(
    each: Comparison, arms: Mapping[Key, ArmResults], transfers: Mapping[Key, ArmResults]
) -> tuple[np.ndarray, Sequence[str]]:
    """The gain on every clip with every seed, float `(seeds, N)`, and the sources of the clips."""
    if each.claim == "d":
        mixture, target, origin = each.size, each.target, each.origin
        (ours, sources), (theirs, same) = (
            _minus(arms[mixture, target, size, origin], arms["alone", target, size, origin])
            for size in (each.ours, each.theirs)
        )
        assert sources == same, "both sizes are measured on the same clips"
        return ours - theirs, sources
    results = transfers if each.claim == "c" else arms
    return _minus(*(results[arm, each.target, each.size, each.origin] for arm in (each.ours, each.theirs)))


def _minus(ours: ArmResults, theirs: ArmResults) -> tuple[np.ndarray, list[str]]:
    """The difference on the clips that both have, `(seeds, N)`, and the sources of these clips."""
    mine, others = in_common(ours.ids, theirs.ids)
    sources = [source for source, common in zip(ours.sources, mine, strict=True) if common]
    return ours.right[:, mine].astype(float) - theirs.right[:, others], sources


def comparison_lines(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Comparisons that were judged again, as texts, with both verdicts."""
    lines = []
    for row in rows:
        ends = [] if row["low"] is None else [f"{100 * row[end]:+.1f}" for end in ("low", "high")]
        figures = [f"{100 * row['difference']:+.1f}", " to ".join(ends), f"{row['p_holm']:.3f}"]
        names = [row[key] for key in ("claim", "target", "ours", "theirs", "size")]
        lines.append([*names, *figures, row["before"], row["verdict"]])
    return lines
