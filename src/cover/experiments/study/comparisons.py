"""What do a study's results show? Paired differences with intervals, each set of questions corrected for their number.

Pairs are the same clips and the same seed. An interval is over both: seeds and sources are drawn anew, two-level (`statistics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cover.evaluation.statistics import LEVEL, detectable, difference, holm, share, verdict
from cover.experiments.study.arms import Cell
from cover.experiments.study.config import Study
from cover.training.starting import trained_on

Key = tuple[str, str, str, str]  # arm, target, size, origin


@dataclass(frozen=True)
class Answers:
    """Of one arm on one target: `right` bool `(seeds, N)`, the clips' ids and sources `(N,)`, and the runs that gave them."""

    right: np.ndarray
    ids: list[str]
    sources: list[str]
    jobs: list[str]

    def estimate(self) -> dict[str, Any]:
        """The accuracy and its interval, as plain data."""
        found = share(self.right, self.sources, 0)
        by_seed = [round(float(mean), 6) for mean in self.right.mean(1)]
        return {"top1": found.value, "low": found.low, "high": found.high, "by_seed": by_seed, "items": len(self.ids),
                "sources": len(set(self.sources))}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """Is `ours` better than `theirs`? `family`: the questions that are answered together; `claim`: of the article, or a control."""

    family: str
    claim: str
    target: str
    ours: str
    theirs: str
    size: str = ""
    origin: str = ""

    @property
    def name(self) -> str:
        return "|".join([self.target, self.size, self.origin, self.ours, self.theirs])


# ours, theirs, the article's claim or what the control is for
PAIRS = (
    ("videos_images", "alone", "a"), ("videos", "alone", "a"), ("videos_images", "alone_long", "a, equal compute"),
    ("videos_images", "videos", "b"), ("videos_images", "stills", "control"), ("permuted", "alone", "control"),
)  # fmt: skip


def answers(cells: Iterable[Cell], results: Mapping[str, Mapping[str, Any]], kind: str) -> dict[Key, Answers]:
    """The answers of every arm (or transfer, or probe) by arm, data set, size and origin; of several learning rates those that did best
    on `dev`, seed by seed and fold by fold."""
    groups: dict[Key, dict[int, dict[int, list[Cell]]]] = {}
    for cell in cells:
        if cell.kind == kind:
            named = f"{cell.arm}" if kind != "probe" else f"{cell.arm}:{cell.target}"
            key = named, cell.dataset, cell.size, cell.origin
            groups.setdefault(key, {}).setdefault(cell.seed, {}).setdefault(cell.fold, []).append(cell)
    return {key: _joined(by_seed, results) for key, by_seed in groups.items()}


def _joined(by_seed: Mapping[int, Mapping[int, list[Cell]]], results: Mapping[str, Mapping[str, Any]]) -> Answers:
    rows, jobs = [], []
    for folds in by_seed.values():
        best = [max(tried, key=lambda cell: _on_dev(cell, results)) for tried in folds.values()]
        found = [results[cell.job]["measured"][cell.dataset] for cell in best]
        right = {
            key: label == guess
            for part in found for key, label, guess in zip(part["ids"], part["labels"], part["predicted"], strict=True)
        }  # fmt: skip
        sources = {key: source for part in found for key, source in zip(part["ids"], part["sources"], strict=True)}
        rows.append((right, sources))
        jobs += [cell.job for cell in best]
    ids = sorted(set.intersection(*(set(right) for right, _ in rows)))  # a file may have become unreadable between two runs
    return Answers(np.array([[right[key] for key in ids] for right, _ in rows]), ids, [rows[0][1][key] for key in ids], jobs)


def _on_dev(cell: Cell, results: Mapping[str, Mapping[str, Any]]) -> float:
    """What a learning rate is chosen by: of one model of several targets the mean over them, so that it is one model."""
    result = results[cell.job]
    return float(np.mean([result["dev"].get(name, 0.0) for name in result["measured"]]))


def questions(study: Study) -> list[Question]:
    """All that a study asks, before it is run."""
    found = []
    for origin in study.origins:
        for size in study.sizes:
            for ours, theirs, claim in PAIRS:
                if {ours, theirs} <= set(study.arms_at(size)):
                    family = f"{ours} against {theirs}, {size}, {origin}"
                    found += [Question(family, claim, target, ours, theirs, size, origin) for target in study.targets]
    return found + _moving(study) + _shrinking(study)


def _moving(study: Study) -> list[Question]:
    """Does a co-trained source transfer better than each other one? Without one of several sets, each pair of sources is compared.

    A source that was trained on the target itself is in the tables alone: it has seen what the others have not.
    """
    if not study.transfer.wanted:
        return []
    known, size, found = sources_of(study), study.transfer.size or next(iter(study.sizes)), []
    names = sorted(known, key=lambda name: -len(known[name]))
    for how in study.transfer.how:
        for target in study.transfer.targets:
            left = {name: frozenset(known[name]) - ({target} if len(known[name]) > 1 else set()) for name in names}
            strangers = [name for name in names if target not in left[name]]
            mixed = [name for name in strangers if len(known[name]) > 1] or strangers
            for place, ours in enumerate(strangers):
                for theirs in strangers[place + 1 :]:
                    if ours in mixed and left[ours] != left[theirs]:
                        family = f"transfer by {how}, between sources"
                        found.append(Question(family, "c", target, f"{ours}:{how}", f"{theirs}:{how}", size))
    return found


def sources_of(study: Study) -> dict[str, list[str]]:
    """The sources of the transfers and what each is trained on."""
    return {**study.transfer.sources, **{name: trained_on(path) for name, path in study.transfer.checkpoints.items()}}


def _shrinking(study: Study) -> list[Question]:
    """Does the gain grow as the target shrinks? `ours` and `theirs` name sizes: the gain at one minus the gain at the other."""
    ours = "videos_images" if "videos_images" in study.arms else "videos"
    asked = sorted((size for size in study.sizes if {"alone", ours} <= set(study.arms_at(size))), key=lambda size: -study.sizes[size].part)
    if not asked:
        return []
    first = asked[0]
    smaller = [size for size in asked if study.sizes[size].part < study.sizes[first].part]
    return [
        Question(f"gain of {ours} over alone, {size} against {first}, {origin}", "d", target, size, first, ours, origin)
        for origin in study.origins for size in smaller for target in study.targets
    ]  # fmt: skip


def compare(study: Study, arms: Mapping[Key, Answers], transfers: Mapping[Key, Answers]) -> list[dict[str, Any]]:
    """Every question answered: the difference of top-1 (a share), its interval at 95 %, the p-value corrected by Holm's rule within the
    question's family, the verdict, and what the comparison could have found."""
    found = []
    asked = questions(study)
    for family in dict.fromkeys(question.family for question in asked):
        rows = []
        for question in (each for each in asked if each.family == family):
            gain, sources = _gain(question, arms, transfers)
            rows.append((question, difference(gain, np.zeros_like(gain), sources, 0), gain, sources))
        corrected = holm({question.name: estimate.p or 0.0 for question, estimate, *_ in rows})
        for question, estimate, gain, sources in rows:
            p = corrected[question.name]
            found.append({
                **asdict(question), "difference": estimate.value, "low": estimate.low, "high": estimate.high, "level": LEVEL,
                "p": estimate.p, "p_holm": p, "margin": study.margin, "verdict": verdict(estimate, p, study.margin),
                "seeds": len(gain), "items": gain.shape[1], "sources": len(set(sources)), "detectable": _detectable(gain, sources),
            })  # fmt: skip
    return found


def _gain(question: Question, arms: Mapping[Key, Answers], transfers: Mapping[Key, Answers]) -> tuple[np.ndarray, list[str]]:
    """float `(seeds, N)`: per clip and seed what is gained, and the clips' sources."""
    if question.claim == "d":
        gains = [
            _minus(arms[question.size, question.target, size, question.origin], arms["alone", question.target, size, question.origin])
            for size in (question.ours, question.theirs)
        ]
        assert gains[0][1] == gains[1][1], "both sizes are measured on the same clips"
        return gains[0][0] - gains[1][0], gains[0][1]
    where = transfers if question.claim == "c" else arms
    ours, theirs = (where[arm, question.target, question.size, question.origin] for arm in (question.ours, question.theirs))
    return _minus(ours, theirs)


def _minus(ours: Answers, theirs: Answers) -> tuple[np.ndarray, list[str]]:
    both = set(ours.ids) & set(theirs.ids)
    mine, other = ([place for place, key in enumerate(each.ids) if key in both] for each in (ours, theirs))
    return ours.right[:, mine].astype(float) - theirs.right[:, other], [ours.sources[place] for place in mine]


def _detectable(gain: np.ndarray, sources: Sequence[str]) -> float | None:
    """What could have been found, from the spread that was seen; None of one seed."""
    if len(gain) < 2:
        return None
    names, codes = np.unique(np.asarray(sources), return_inverse=True)
    by_source = np.bincount(codes, gain.mean(0)) / np.bincount(codes)
    return detectable(float(gain.mean(1).std(ddof=1)), float(by_source.std(ddof=1)) if len(names) > 1 else 0.0, len(gain), len(names))
