"""Comparisons of a study: paired differences between arms, tested together in families.

A pair is of the same clips and the same seed. Intervals are over seeds and sources (`evaluation.statistics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cover.evaluation.statistics import LEVEL, detectable_in, difference, in_common, judge, proportion
from cover.experiments.study.arms import Measurement
from cover.experiments.study.study_file import Study
from cover.model.release import trained_on

Key = tuple[str, str, str, str]  # arm, target, size, origin
RunResults = Mapping[str, Mapping[str, Any]]  # job -> its result file


@dataclass(frozen=True)
class ArmResults:
    """Answers of one arm on one target: `right` bool `(seeds, N)`, ids and sources of the clips `(N,)`, and the jobs
    behind them.
    """

    right: np.ndarray
    ids: list[str]
    sources: list[str]
    jobs: list[str]

    def estimate(self) -> dict[str, Any]:
        """The accuracy and its interval, as plain data."""
        accuracy = proportion(self.right, self.sources, 0)
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
    """`ours` against `theirs`. `family`: those that are tested together; `claim`: of the article, or a control."""

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


# ours, theirs, the article's claim or what the control is for
PAIRS = (
    ("videos_images", "alone", "a"),
    ("videos", "alone", "a"),
    ("videos_images", "alone_long", "a, equal compute"),
    ("videos_images", "videos", "b"),
    ("videos_images", "stills", "control"),
    ("permuted", "alone", "control"),
)


# --- the answers of an arm --------------------------------------------------------------------------------------------


def results_by_arm(measurements: Iterable[Measurement], results: RunResults, kind: str) -> dict[Key, ArmResults]:
    """The answers of every arm (or transfer, or probe) by arm, data set, size and origin.

    Of several learning rates those of the best on `dev` are taken, seed by seed and fold by fold.
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
        best = [max(tried, key=lambda each: _on_dev(each, results)) for tried in folds.values()]
        measured = [results[each.job]["measured"][each.dataset] for each in best]
        right = {
            key: label == guess
            for part in measured
            for key, label, guess in zip(part["ids"], part["labels"], part["predicted"], strict=True)
        }
        sources = {key: source for part in measured for key, source in zip(part["ids"], part["sources"], strict=True)}
        rows.append((right, sources))
        jobs += [each.job for each in best]
    # A file may have become unreadable between two runs: only clips that all have read count.
    ids = sorted(set.intersection(*(set(right) for right, _ in rows)))
    right_by_seed = np.array([[right[key] for key in ids] for right, _ in rows])
    return ArmResults(right_by_seed, ids, [rows[0][1][key] for key in ids], jobs)


def _on_dev(measurement: Measurement, results: RunResults) -> float:
    """The score that chooses a learning rate: the mean over all targets of the model, so that one rate is chosen for
    all of them.
    """
    result = results[measurement.job]
    return float(np.mean([result["dev"].get(name, 0.0) for name in result["measured"]]))


# --- what is compared -------------------------------------------------------------------------------------------------


def comparisons_of(study: Study) -> list[Comparison]:
    """All comparisons of a study, known before it is run."""
    pairs = [
        Comparison(f"{ours} against {theirs}, {size}, {origin}", claim, target, ours, theirs, size, origin)
        for origin in study.origins
        for size in study.sizes
        for ours, theirs, claim in PAIRS
        if {ours, theirs} <= set(study.arms_at(size))
        for target in study.targets
    ]
    return [*pairs, *_between_sources(study), *_between_sizes(study)]


def _between_sources(study: Study) -> list[Comparison]:
    """Claim (c): each source of several sets against each other source; without one, every pair of sources.

    A source that was trained on the target itself is not compared, since it has an advantage over the others.
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
    """The sources of the transfers and the data sets that each is trained on."""
    return {**study.transfer.sources, **{name: trained_on(path) for name, path in study.transfer.checkpoints.items()}}


def _between_sizes(study: Study) -> list[Comparison]:
    """Claim (d), the gain at a smaller size minus that at the first: `ours` and `theirs` name sizes, `size` the
    mixture.
    """
    mixture = "videos_images" if "videos_images" in study.arms else "videos"
    requested = [size for size in study.sizes if {"alone", mixture} <= set(study.arms_at(size))]
    requested.sort(key=lambda size: -study.sizes[size].part)
    if not requested:
        return []
    first = requested[0]
    smaller = [size for size in requested if study.sizes[size].part < study.sizes[first].part]
    return [
        Comparison(
            f"gain of {mixture} over alone, {size} against {first}, {origin}", "d", target, size, first, mixture, origin
        )
        for origin in study.origins
        for size in smaller
        for target in study.targets
    ]


# --- what the comparisons show ----------------------------------------------------------------------------------------


def compare(study: Study, arms: Mapping[Key, ArmResults], transfers: Mapping[Key, ArmResults]) -> list[dict[str, Any]]:
    """One row for each comparison, as plain data.

    A row has the difference of top-1 (0 to 1) with its interval, the p-value and the one corrected by Holm's rule
    within the family, the verdict, and the difference that could have been found.
    """
    comparisons = comparisons_of(study)
    rows = []
    for family in dict.fromkeys(each.family for each in comparisons):
        members = {each.name: each for each in comparisons if each.family == family}
        gains = {name: _gain(each, arms, transfers) for name, each in members.items()}
        estimates = {name: difference(gain, np.zeros_like(gain), sources, 0) for name, (gain, sources) in gains.items()}
        for name, (p, word) in judge(estimates, study.margin).items():
            (gain, sources), estimate = gains[name], estimates[name]
            rows.append(
                {
                    **asdict(members[name]),
                    "difference": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "level": LEVEL,
                    "p": estimate.p,
                    "p_holm": p,
                    "margin": study.margin,
                    "verdict": word,
                    "seeds": len(gain),
                    "items": gain.shape[1],
                    "sources": len(set(sources)),
                    "detectable": detectable_in(gain, sources),
                }
            )
    return rows


def _gain(
    each: Comparison, arms: Mapping[Key, ArmResults], transfers: Mapping[Key, ArmResults]
) -> tuple[np.ndarray, Sequence[str]]:
    """float `(seeds, N)`: the gain on every clip under every seed, and the clips' sources."""
    if each.claim == "d":
        mixture, target, origin = each.size, each.target, each.origin
        (ours, sources), (theirs, same) = (
            _minus(arms[mixture, target, size, origin], arms["alone", target, size, origin])
            for size in (each.ours, each.theirs)
        )
        assert sources == same, "both sizes are measured on the same clips"
        return ours - theirs, sources
    where = transfers if each.claim == "c" else arms
    return _minus(*(where[arm, each.target, each.size, each.origin] for arm in (each.ours, each.theirs)))


def _minus(ours: ArmResults, theirs: ArmResults) -> tuple[np.ndarray, list[str]]:
    mine, others = in_common(ours.ids, theirs.ids)
    sources = [source for source, common in zip(ours.sources, mine, strict=True) if common]
    return ours.right[:, mine].astype(float) - theirs.right[:, others], sources
