"""The intervals of a kept study, computed again from its answers without any code of the package.

python tests/experiments/study/independent.py studies/real_start
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.ipc
from scipy import stats


def answers(folder):
    """(arm, data set, size, origin) -> {seed: {clip: right}}, and (data set, clip) -> source."""
    right, source = defaultdict(lambda: defaultdict(dict)), {}
    for row in pyarrow.ipc.open_file(folder / "answers.arrow").read_all().to_pylist():
        if row["kind"] in ("arm", "transfer"):
            key = row["arm"], row["dataset"], row["size"], row["origin"]
            right[key][row["seed"]][row["id"]] = float(row["label"] == row["predicted"])
            source[row["dataset"], row["id"]] = row["source"]
    return right, source


def interval(gain, sources):
    """The mean of `gain` (seeds x clips) and the ends of its 95 % interval over seeds and sources."""
    names = np.unique(sources)
    member = (np.array(sources)[:, None] == names).astype(float)  # clips x sources
    sizes, mean, seeds, count = member.sum(0), gain.mean(), len(gain), len(names)
    cells = (gain @ member - mean * sizes) * count / sizes.sum()
    of_seed, of_source = cells.mean(1), cells.mean(0)
    if seeds == 1:  # over sources alone; the least error is that of one clip better and one worse
        t = stats.t.ppf(0.975, max(1, sizes.sum() ** 2 / np.sum(sizes**2) - 1))
        half = t * max(cells.var(ddof=1) / count, 2 / gain.shape[1] ** 2) ** 0.5
        return mean, mean - half, mean + half
    ms_seed = count * np.sum(of_seed**2) / (seeds - 1)
    ms_source = seeds * np.sum(of_source**2) / (count - 1)
    ms_rest = np.sum((cells - of_seed[:, None] - of_source) ** 2) / ((seeds - 1) * (count - 1))
    by_seed = max(ms_seed, 0.05 * ms_rest) / (seeds * count)
    by_source = max(0.0, ms_source - ms_rest) / (seeds * count)
    t_seed, t_source = stats.t.ppf(0.975, [seeds - 1, max(1, sizes.sum() ** 2 / np.sum(sizes**2) - 1)])
    t = (by_seed * t_seed + by_source * t_source) / (by_seed + by_source) if by_seed + by_source else t_seed
    half = t * max(by_seed + by_source, 0.25 / seeds / gain.shape[1] ** 2) ** 0.5
    return mean, mean - half, mean + half


def recomputed(folder):
    """(printed row, its own difference and interval) for each comparison of two arms in results.json."""
    right, source = answers(folder)
    for row in json.loads((folder / "results.json").read_text(encoding="utf-8"))["comparisons"]:
        if row["claim"] != "d":  # differences of differences have no arm of their own
            of = [right[row[arm], row["target"], row["size"], row["origin"]] for arm in ("ours", "theirs")]
            clips = sorted(set.intersection(*(set(by_clip) for arm in of for by_clip in arm.values())))
            ours, theirs = (np.array([[arm[seed][clip] for clip in clips] for seed in sorted(arm)]) for arm in of)
            yield row, interval(ours - theirs, [source[row["target"], clip] for clip in clips])


if __name__ == "__main__":
    for row, own in recomputed(Path(sys.argv[1])):
        printed = [row[key] for key in ("difference", "low", "high")]
        names = [row[key] for key in ("target", "ours", "theirs", "size")]
        print(*names, *(f"{100 * value:+.2f}" for value in (*printed, *own)))
