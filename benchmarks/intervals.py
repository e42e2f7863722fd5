"""How often the intervals of an accuracy contain the truth, and how often tests see a difference where there is none.

    python benchmarks/intervals.py                    # two tables, about three minutes; JSON with --json FILE
    python benchmarks/intervals.py --answers studies/real_start     # the test on real runs that differ in seeds alone

Every cell is simulated: accuracies of clustered samples with a known mean, and pairs of methods without a true
difference. Intervals are at 95 %, so 95 % of them should contain the truth and 5 % of the tests should reject.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import write

from cover.console import print_table
from cover.evaluation.statistics import detectable_in, difference, proportion
from cover.experiments.study.answers import ANSWERS, read_answers
from cover.experiments.study.comparisons import results_by_arm

SOURCES, SAMPLES = (3, 5, 10, 30, 100), 20  # sources of 1 to SAMPLES samples
ACCURACIES, CORRELATIONS = (0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0), (0.0, 0.05, 0.2, 0.5)
SEEDS, CLIPS = (1, 3, 5, 10), ((20, 1), (100, 1), (100, 5), (1000, 1))  # clips, and clips of a source
SPREADS, OF_SOURCES = (0.02, 0.05, 0.1, 0.2), (0.0, 0.3)

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AccuracyCell:
    """Clustered samples: `sources` of 1 to `SAMPLES` samples, and the correlation of two samples of a source."""

    sources: int
    accuracy: float
    correlation: float

    def study(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.bool_], Numbers]:
        """Which samples are right, bool `(N,)`, and their sources. A source's accuracy has a beta distribution."""
        sizes = rng.integers(1, SAMPLES + 1, self.sources)
        level = np.full(self.sources, self.accuracy)
        if self.correlation and self.accuracy < 1:
            strength = 1 / self.correlation - 1
            level = rng.beta(self.accuracy * strength, (1 - self.accuracy) * strength, self.sources)
        sources = np.repeat(np.arange(self.sources), sizes)
        return rng.random(len(sources)) < level[sources], sources

    def coverage(self, studies: int) -> tuple[float, float]:
        """The fraction of intervals that contain the true accuracy, and their mean width."""
        rng, inside, width = np.random.default_rng(0), 0, 0.0
        for _ in range(studies):
            result = proportion(*self.study(rng))
            assert result.low is not None
            assert result.high is not None
            inside += result.low <= self.accuracy + 1e-12 and self.accuracy <= result.high + 1e-12
            width += result.high - result.low
        return inside / studies, width / studies


@dataclass(frozen=True)
class NullCell:
    """Pairs of methods without a true difference.

    `seeds`, `clips`: how many. `each`: clips of a source. `spread`: the standard deviation over seeds of the true
    difference. `of_sources`: that over sources, of which each has the same for all seeds.
    """

    seeds: int
    clips: int
    each: int
    spread: float
    of_sources: float

    def study(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], Numbers]:
        """The right answers of both methods, bool `(seeds, clips)`, and the sources of the clips."""
        sources = np.repeat(np.arange(self.clips // self.each), self.each)
        level = rng.uniform(0.2, 0.95, self.clips)
        by_source = rng.normal(0, self.of_sources / 2**0.5, (2, sources[-1] + 1))[:, sources]
        by_seed = rng.normal(0, self.spread / 2**0.5, (2, self.seeds, 1))
        right = rng.random((2, self.seeds, self.clips)) < level + by_source[:, None] + by_seed
        return right[0], right[1], sources

    def rejected(self, studies: int) -> tuple[float, float]:
        """The fraction of p-values below 0.05, and the fraction of intervals that contain 0."""
        rng, rejected, inside = np.random.default_rng(0), 0, 0
        for _ in range(studies):
            result = difference(*self.study(rng))
            assert result.p is not None
            assert result.low is not None
            assert result.high is not None
            rejected += result.p < 0.05
            inside += result.low <= 0 <= result.high
        return rejected / studies, inside / studies

    def detected(self, studies: int) -> float:
        """The fraction of studies that see a true difference of the size that they call detectable, 0.8 by definition.

        Every study has the detectable difference that follows from the mean of their variances.
        """
        rng = np.random.default_rng(0)
        drawn = [self.study(rng) for _ in range(studies)]
        gains = [ours.astype(float) - theirs for ours, theirs, _ in drawn]
        sizes = [detectable_in(gain, list(map(str, sources))) or 0.0 for gain, (*_, sources) in zip(gains, drawn)]
        shift = float(np.mean(np.square(sizes)) ** 0.5)
        results = [difference(gain + shift, np.zeros_like(gain), own[2]) for gain, own in zip(gains, drawn)]
        return sum(result.p is not None and result.p < 0.05 for result in results) / studies


def accuracy_cells() -> Iterator[AccuracyCell]:
    """All cells of the first table."""
    yield from (AccuracyCell(*values) for values in product(SOURCES, ACCURACIES, CORRELATIONS))


def null_cells() -> Iterator[NullCell]:
    """All cells of the second table. A single seed has no spread over seeds that it could show."""
    for seeds, (clips, each), spread, of_sources in product(SEEDS, CLIPS, SPREADS, OF_SOURCES):
        if seeds > 1 or spread == SPREADS[0]:
            yield NullCell(seeds, clips, each, spread if seeds > 1 else 0.0, of_sources)


def split_seeds(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the tests that reject, in %, among all halves of the seeds of an arm of a kept study.

    Both halves are the same arm, so there is no true difference. Splits of the same seeds are not independent.
    """
    measurements, results = read_answers(folder / ANSWERS)
    rows, everything = [], []
    for (arm, target, size, _), own in results_by_arm(measurements, results, "arm").items():
        seeds, rejected = len(own.right), []
        for first in combinations(range(seeds), seeds // 2):
            if seeds % 2 or 0 in first:  # with an even number of seeds, every split would be there twice
                second = [seed for seed in range(seeds) if seed not in first][: len(first)]
                result = difference(own.right[list(first)], own.right[second], own.sources)
                rejected.append(result.p is not None and result.p < 0.05)
        everything += rejected
        rows.append([target, arm, size, str(len(rejected)), f"{100 * np.mean(rejected):.1f}"])
    rows.append(["all", "", "", str(len(everything)), f"{100 * np.mean(everything):.1f}"])
    return ["data set", "arm", "size", "splits of the seeds", "rejected, %"], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies of a cell (default: 1000)")
    parser.add_argument("--answers", type=Path, metavar="STUDY", help="folder of a kept study with answers.arrow")
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.answers:
        return print_table(*split_seeds(args.answers))
    covered = {cell: cell.coverage(args.studies) for cell in accuracy_cells()}
    nulls = {cell: cell.rejected(args.studies) for cell in null_cells()}
    print_table(*accuracy_table(covered))
    print()
    print_table(*null_table(nulls))
    if args.json:
        rows: dict[str, Any] = {
            "accuracies": [{**vars(cell), "inside": own[0], "width": own[1]} for cell, own in covered.items()],
            "nulls": [{**vars(cell), "rejected": own[0], "inside": own[1]} for cell, own in nulls.items()],
        }
        write({"studies": args.studies, **rows}, args.json)


def accuracy_table(covered: dict[AccuracyCell, tuple[float, float]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: for each number of sources and correlation, the intervals that contain each accuracy, in %."""
    columns = ["sources", "correlation", *(f"{100 * accuracy:g} %" for accuracy in ACCURACIES), "width at 80 %"]
    rows = []
    for sources, correlation in product(SOURCES, CORRELATIONS):
        own = [covered[AccuracyCell(sources, accuracy, correlation)] for accuracy in ACCURACIES]
        width = own[ACCURACIES.index(0.8)][1]
        inside = [f"{100 * fraction:.1f}" for fraction, _ in own]
        rows.append([str(sources), f"{correlation:g}", *inside, f"{100 * width:.0f}"])
    return columns, rows


def null_table(nulls: dict[NullCell, tuple[float, float]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the tests that reject a true null, in %, without and with differences between sources."""
    columns = ["seeds", "clips", "of a source", *(f"spread {100 * spread:g}" for spread in SPREADS)]
    rows = []
    for seeds, (clips, each) in product(SEEDS, CLIPS):
        cells = []
        for spread in SPREADS:
            own = [nulls.get(NullCell(seeds, clips, each, spread if seeds > 1 else 0.0, of)) for of in OF_SOURCES]
            first = seeds > 1 or spread == SPREADS[0]
            cells.append(" / ".join(f"{100 * each[0]:.1f}" for each in own if each) if first else "")
        rows.append([str(seeds), str(clips), str(each), *cells])
    return columns, rows


if __name__ == "__main__":
    main()
