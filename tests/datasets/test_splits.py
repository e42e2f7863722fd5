"""Splits keep groups together, have their fraction of every class, and depend on the rows alone."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cover.datasets.annotations import ListedSample
from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.datasets.splits import carve_by_hash, carve_dev, deal, folds, group_warnings
from cover.errors import UserError

NAMES = [f"class {label}" for label in range(6)]


def sample(number: int, group: object, label: int | None, labels: list[int] | None = None) -> ListedSample:
    return ListedSample(f"s{number}", f"clip {number}", "/x", label, labels=labels, group=str(group))


def rows_of(pairs: Sequence[tuple[object, int]]) -> list[ListedSample]:
    """Samples from (group, label) pairs."""
    return [sample(number, group, label) for number, (group, label) in enumerate(pairs)]


def groups(rows: Sequence[ListedSample]) -> set[str]:
    return {row.group_id for row in rows}


def labels(rows: Sequence[ListedSample]) -> Counter[int | None]:
    return Counter(row.label for row in rows)


grouped = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 5)), min_size=20, max_size=120).map(rows_of)
single_class = st.lists(st.integers(0, 5), min_size=20, max_size=200).map(
    lambda classes: rows_of([(f"clip {number}", label) for number, label in enumerate(classes)])
)


# --- dev ---


@given(grouped, st.floats(0.01, 0.6), st.randoms())
def test_dev_never_leaks_and_is_a_function_of_the_rows(rows: list[ListedSample], fraction: float, rng: Any) -> None:
    carved = carve_dev(rows, fraction, NAMES)
    assert not groups(carved.train) & groups(carved.dev)
    assert sorted(row.sample_id for row in [*carved.train, *carved.dev]) == sorted(row.sample_id for row in rows)
    assert set(labels(carved.train)) == set(labels(rows)), "train has every class"
    shuffled = rng.sample(rows, len(rows))
    assert groups(carve_dev(shuffled, fraction, NAMES).dev) == groups(carved.dev)
    assert carve_dev(shuffled, fraction, NAMES).warnings == carved.warnings
    absent = [name for label, name in enumerate(NAMES) if label in labels(rows) and label not in labels(carved.dev)]
    said = " ".join(carved.warnings)
    assert all(name in said for name in absent[:5])


@given(single_class, st.floats(0.02, 0.9))
def test_dev_of_single_samples_has_its_fraction_of_every_class(rows: list[ListedSample], fraction: float) -> None:
    carved = carve_dev(rows, fraction, NAMES)
    for label, count in labels(rows).items():
        own = labels(carved.dev)[label]
        wanted = min(max(fraction * count, 1), count - 1)  # one on each side where there are two
        assert abs(own - wanted) <= 0.5 + 1e-9


def test_dev_of_whole_groups_is_near_its_fraction() -> None:
    rng = np.random.default_rng(0)
    pairs = [(group, int(label)) for group in range(100) for label in rng.integers(0, 6, rng.integers(1, 12))]
    rows = rows_of(pairs)
    dev = labels(carve_dev(rows, 0.2, NAMES).dev)
    for label, count in labels(rows).items():
        assert 0.14 < dev[label] / count < 0.26


def test_new_samples_move_few_others() -> None:
    rows = rows_of([(f"clip {number}", number % 6) for number in range(1000)])
    before, after = (groups(carve_dev(part, 0.1, NAMES).dev) for part in (rows[:900], rows))
    old = groups(rows[:900])
    assert len(before ^ (after & old)) <= 10  # 90 of 900 are in dev
    assert len(after) == pytest.approx(100, abs=3)


def test_a_class_in_one_group_stays_in_train_and_is_named() -> None:
    rows = rows_of([(number // 2, number % 2) for number in range(40)] + [("alone", 2)] * 5 + [("one", 3)])
    carved = carve_dev(rows, 0.25, NAMES)
    assert set(labels(carved.dev)) == {0, 1}
    (warning,) = carved.warnings
    assert "dev has no sample" in warning
    assert "class 2, class 3" in warning


def test_no_class_can_be_on_both_sides() -> None:
    rows = rows_of([(number % 2, number % 2) for number in range(30)])
    carved = carve_dev(rows, 0.2, NAMES)
    assert (carved.train, carved.dev) == (rows, [])
    assert "no dev split" in carved.warnings[0]
    assert "class 0, class 1" in carved.warnings[0]


def test_too_few_samples_for_a_dev_split() -> None:
    rows = rows_of([(number, number % 2) for number in range(12)])
    carved = carve_dev(rows, 0.05, NAMES)
    assert (carved.train, carved.dev) == (rows, [])
    assert "0.05 of 12 samples" in carved.warnings[0]
    assert labels(carve_dev(rows, 0.2, NAMES).dev) == {0: 1, 1: 1}


def test_a_dev_split_larger_than_asked_for_is_named() -> None:
    rows = rows_of([(number, number % 6) for number in range(24)])
    carved = carve_dev(rows, 0.05, NAMES)
    assert len(carved.dev) == 6
    assert "dev holds 6 of 24 samples, more than the fraction 0.05" in carved.warnings[0]


def test_dev_of_several_classes_a_sample() -> None:
    held = [[0, 1], [1], [], [2]]
    rows = [sample(number, number, None, held[number % 4]) for number in range(200)]
    dev = carve_dev(rows, 0.2, NAMES).dev
    assert Counter(label for row in dev for label in row.labels or ()) == pytest.approx({0: 10, 1: 20, 2: 10}, abs=2)
    assert sum(row.labels == [] for row in dev) == 10


def test_rows_without_a_label_stay_in_train() -> None:
    rows = [*rows_of([(number, number % 2) for number in range(40)]), *(sample(n, n, None) for n in range(40, 90))]
    carved = carve_dev(rows, 0.2, NAMES)
    assert labels(carved.dev) == {0: 4, 1: 4}


def listed(sources: Sequence[str]) -> list[ListedSample]:
    return [ListedSample(f"{source}-{n}", source, "/x", 0) for source in sources for n in range(3)]


def test_dev_by_hash_shares_no_source_with_train() -> None:
    rows = listed([f"video {n}" for n in range(1000)])
    carved = carve_by_hash(rows, 0.05)
    assert not groups(carved.train) & groups(carved.dev)
    assert len(carved.train) + len(carved.dev) == len(rows)
    assert 0.03 < len(carved.dev) / len(rows) < 0.07
    fewer = carve_by_hash(rows[:1500], 0.05).dev
    assert fewer == [row for row in carved.dev if row in rows[:1500]]  # rows added later moved none


def test_dev_by_hash_is_that_of_earlier_versions() -> None:
    dev = carve_by_hash(listed([f"video {n}" for n in range(40)]), 0.1).dev
    assert sorted(groups(dev)) == ["video 22", "video 24", "video 28", "video 30"]


@pytest.mark.parametrize(("sources", "some"), [(1, False), (3, False), (7, True), (8, True)])
def test_dev_by_hash_of_small_sets(sources: int, some: bool) -> None:
    carved = carve_by_hash(listed([f"s{n}" for n in range(sources)]), 1e-9)
    assert bool(carved.dev) == some
    assert carved.train


# --- warnings ---


def test_groups_in_two_given_splits_are_named() -> None:
    train, val = rows_of([("p1", 0), ("p2", 1)]), [sample(8, "p3", 0)]
    assert list(group_warnings({"train": train, "val": val})) == []
    (line,) = group_warnings({"train": train, "val": [*val, sample(9, "p2", 0)]})
    assert "groups in train and in val" in line
    assert "p2" in line
    (line,) = group_warnings({"train": [*train, ListedSample("again", "clip 0", "/x", 0, group="p2")]})
    assert "in more than one group: clip 0" in line


# --- folds ---


@given(grouped, st.integers(2, 5), st.integers(0, 3))
def test_folds_never_leak_and_measure_every_row_once(rows: list[ListedSample], count: int, seed: int) -> None:
    try:
        parts = folds(rows, count, seed, NAMES)
    except UserError:
        return  # the refusals have tests of their own
    assert len(parts) == count
    for train, test in parts:
        assert test
        assert not groups(train) & groups(test)
        assert len(train) + len(test) == len(rows)
        assert set(labels(test)) <= set(labels(train)), "every measured class is trained on"
    tested = [row.sample_id for _, test in parts for row in test]
    assert sorted(tested) == sorted(row.sample_id for row in rows)
    assert parts == folds(rows, count, seed, NAMES)


@given(st.lists(st.integers(2, 9), min_size=2, max_size=6), st.integers(2, 6))
def test_where_every_sample_is_a_group_folds_are_exactly_stratified(counts: list[int], count: int) -> None:
    rows = rows_of([(f"{label}-{n}", label) for label, own in enumerate(counts) for n in range(own)])
    if len(rows) < count:
        return
    for _, test in folds(rows, count, 0, NAMES):
        for label, own in enumerate(counts):
            assert own // count <= labels(test)[label] <= -(-own // count)


def test_folds_are_as_even_as_those_of_scikit_learn() -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    rng = np.random.default_rng(1)
    pairs = [(group, int(label)) for group in range(60) for label in rng.integers(0, 5, rng.integers(1, 10))]
    rows = rows_of(pairs)

    def unevenness(parts: Sequence[Sequence[ListedSample]]) -> float:
        return float(np.std([[labels(part)[label] for label in range(5)] for part in parts], axis=0).mean())

    reference = selection.StratifiedGroupKFold(5, shuffle=True, random_state=0)
    theirs = reference.split(rows, [label for _, label in pairs], [group for group, _ in pairs])
    ours = unevenness([test for _, test in folds(rows, 5, 0, NAMES)])
    assert ours <= 1.25 * unevenness([[rows[place] for place in test] for _, test in theirs])


def test_seeds_differ() -> None:
    rows = rows_of([(number // 2, number % 3) for number in range(120)])
    assert deal(rows, 5, 0) != deal(rows, 5, 1)


REFUSED: list[tuple[list[tuple[object, int]], int, str]] = [
    ([(n % 3, n % 2) for n in range(30)], 4, "3 groups cannot make 4 folds; ask for 3"),
    ([(n, 0) for n in range(30)], 3, 'all 30 samples are of the class "class 0"'),
    ([*((n, n % 2) for n in range(30)), ("x", 2)], 3, 'the class "class 2" has one sample'),
    ([*((n, n % 2) for n in range(30)), ("x", 2), ("x", 2)], 3, 'class "class 2" into one split alone.*group "x"'),
    ([], 3, "no sample is readable and labelled"),
]


@pytest.mark.parametrize(("pairs", "count", "message"), REFUSED)
def test_refused_folds(pairs: list[tuple[object, int]], count: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        folds(rows_of(pairs), count, 0, NAMES)
    assert "\n" not in str(error.value)


# --- from a catalog to manifests ---


def test_dev_of_a_folder_has_every_class_and_whole_groups(tmp_path: Path) -> None:
    for label in "abc":
        for number in range(20):
            path = tmp_path / f"{label}/take{number // 4}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"not an image")
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(r"mine: {format: folder, root: ., dev: 0.2, group: {path: '/(take\d+)_'}}")
    index(catalog, 0)
    rows = {split: list(open_manifest(tmp_path / f"manifests/mine-{split}.arrow").rows()) for split in ("train", "dev")}
    takes = {split: {row.group for row in own} for split, own in rows.items()}
    assert takes["train"] | takes["dev"] == {f"take{number}" for number in range(5)}
    assert len(takes["dev"]) == 1
    assert Counter(row.label for row in rows["dev"]) == {0: 4, 1: 4, 2: 4}
    manifest = open_manifest(tmp_path / "manifests/mine-dev.arrow")
    assert set(manifest.sources(np.arange(12)).tolist()) == {0}, "intervals resample groups"
    assert len({row.source_id for row in rows["dev"]}) == 12


def test_dev_of_a_published_format_stays_where_it_is(tmp_path: Path) -> None:
    names = [f"{number:011d}" for number in range(200)]
    lines = [f"{'ab'[number % 2]},{name},0,10,train" for number, name in enumerate(names)]
    (tmp_path / "train.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *lines]) + "\n")
    (tmp_path / "catalog.yaml").write_text("k: {format: kinetics, root: ., annotations: {train: train.csv}, dev: 0.1}")
    index(tmp_path / "catalog.yaml", 0)
    dev = [row.source_id for row in open_manifest(tmp_path / "manifests/k-dev.arrow").rows()]
    assert dev == [row.source_id for row in carve_by_hash(listed(names)[::3], 0.1).dev]


@pytest.mark.parametrize(("name", "column", "fraction"), [("yoga6", "group", 0.2), ("utinteraction6", "sequence", 0.2)])
def test_real_clips(test_data: Path, tmp_path: Path, name: str, column: str, fraction: float) -> None:
    entry = f"format: csv, root: {test_data / name}, media: video, annotations: {{train: all.csv}}"
    with (test_data / name / "index.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    with (tmp_path / "all.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("path", "class", "g"), *((r["path"], r["class"], r[column]) for r in table)])
    (tmp_path / "catalog.yaml").write_text(
        f"set: {{{entry.replace('all.csv', str(tmp_path / 'all.csv'))}, group: g, dev: {fraction}}}\n"
    )
    warnings = [line for result in index(tmp_path / "catalog.yaml", 0) for line in result["warnings"]]
    assert warnings == []
    catalog = load_catalog(tmp_path / "catalog.yaml")
    manifests = {split: open_manifest(catalog.manifest_path("set", split)) for split in ("train", "dev")}
    rows = {split: list(manifest.rows()) for split, manifest in manifests.items()}
    assert not {row.group for row in rows["train"]} & {row.group for row in rows["dev"]}
    counts = {split: Counter(row.label for row in own) for split, own in rows.items()}
    for label in range(6):
        assert 0.05 <= counts["dev"][label] / (counts["dev"][label] + counts["train"][label]) <= 0.4
    every = [*rows["train"], *rows["dev"]]
    assert len(every) == len(table)
    parts = folds(every, 5, 0, manifests["train"].classes.names)
    assert all(not {row.group for row in train} & {row.group for row in test} for train, test in parts)
    assert max(len(test) for _, test in parts) - min(len(test) for _, test in parts) <= 8
