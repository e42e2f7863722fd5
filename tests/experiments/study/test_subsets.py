"""Which clips an arm trains on and is measured on: nothing twice, nothing of one source on both sides,
nothing made up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cover.datasets.catalog import load_catalog
from cover.datasets.exclusions import Exclusion, exclusions_path, write_exclusions
from cover.datasets.manifest import Row, open_manifest
from cover.datasets.splits import deal
from cover.errors import UserError
from cover.experiments.study.subsets import MEASURED, Subset, SubsetBuilder, folded, part_of, permuted
from cover.media.decode import decode_at


def row(number: int, source: str, label: int) -> Row:
    return Row(
        f"clip{number}",
        source,
        f"{number}.mp4",
        None,
        None,
        label,
        None,
        None,
        None,
        None,
        12,
        12.0,
        64,
        48,
        "h264",
        "ok",
        "",
    )


def listed(sources: list[tuple[int, int]]) -> list[Row]:
    """Clips from (source, label) pairs."""
    return [row(number, f"film{source}", label) for number, (source, label) in enumerate(sources)]


clips = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3)), min_size=12, max_size=80).map(listed)


@given(clips, st.integers(2, 5))
def test_folds_measure_every_clip_once_and_share_no_source(rows: list[Row], folds: int) -> None:
    if len({each.source_id for each in rows}) < folds:
        with pytest.raises(UserError, match="folds"):
            deal(rows, 60)
        return
    measured = []
    for fold in range(folds):
        splits = folded(rows, folds, fold, 0.25)
        measured += [each.sample_id for each in splits[MEASURED]]
        assert sum(map(len, splits.values())) == len(rows)
        present = [{each.source_id for each in own} for own in splits.values()]
        assert not present[0] & present[1]
        assert not present[0] & present[2]
        assert not present[1] & present[2]
    assert sorted(measured) == sorted(each.sample_id for each in rows)


def test_folds_are_even_in_size_and_in_classes() -> None:
    rows = [row(number, f"film{number // 3}", number % 4) for number in range(240)]
    place = deal(rows, 5)
    for label in range(4):
        present = Counter(place[each.source_id] for each in rows if each.label == label)
        assert max(present.values()) - min(present.values()) <= 3


@given(clips, st.floats(0.05, 0.9), st.integers(0, 5))
def test_a_part_has_its_share_of_every_class_in_whole_sources(rows: list[Row], part: float, seed: int) -> None:
    retained = part_of(rows, part, seed)
    chosen = {each.source_id for each in retained}
    assert retained == [each for each in rows if each.source_id in chosen]
    for label, count in Counter(each.label for each in rows).items():
        assert sum(each.label == label for each in retained) >= max(1, round(part * count))
    assert retained == part_of(rows, part, seed)


def test_where_every_clip_is_a_source_a_part_is_exact_and_seeds_differ() -> None:
    rows = [row(number, f"film{number}", number % 4) for number in range(400)]
    retained = part_of(rows, 0.1, 0)
    assert Counter(each.label for each in retained) == dict.fromkeys(range(4), 10)
    assert retained != part_of(rows, 0.1, 1)


def test_permuting_moves_labels_and_nothing_else() -> None:
    rows = [row(number, f"film{number}", number % 4) for number in range(200)]
    moved = permuted(rows, 0)
    assert [replace(each, label=0) for each in moved] == [replace(each, label=0) for each in rows]
    assert Counter(each.label for each in moved) == Counter(each.label for each in rows)
    agreeing = np.mean([ours.label == theirs.label for ours, theirs in zip(moved, rows)])
    assert agreeing < 0.4  # one in four by chance


@pytest.fixture
def builder(sandbox: Path, tmp_path: Path) -> SubsetBuilder:
    return SubsetBuilder(load_catalog(sandbox), tmp_path / "data", "val", 0.1)


def rows_of(entry: dict[str, dict[str, str]], split: str) -> list[Row]:
    return list(open_manifest(Path(entry["annotations"][split])).rows())


def test_a_whole_data_set_is_its_own_splits(builder: SubsetBuilder) -> None:
    entry, catalog = builder.entry(Subset("kinetics")), builder.catalog
    for split in ("train", "val"):
        original = list(open_manifest(catalog.manifest_path("kinetics", split)).rows())
        assert rows_of(entry, split) == original
    spec = catalog.spec("kinetics")
    assert (entry["flip"], entry["views"], entry["sampling"]) == (spec.flip, str(spec.views), str(spec.sampling))


def test_folds_of_a_data_set_are_over_all_its_labelled_clips(builder: SubsetBuilder) -> None:
    own = [open_manifest(builder.catalog.manifest_path("moments", split)) for split in ("train", "val")]
    everything = [each.sample_id for manifest in own for each in manifest.rows()]
    measured = [
        each.sample_id
        for fold in range(3)
        for each in rows_of(builder.entry(Subset("moments", folds=3, fold=fold)), MEASURED)
    ]
    assert sorted(measured) == sorted(everything)


def identities(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_another_call_leaves_the_files_of_a_running_study_as_they_are(builder: SubsetBuilder) -> None:
    subsets = [Subset("kinetics", part=0.5, seed=1), Subset("kinetics", stills=2)]
    before = [builder.entry(subset) for subset in subsets]
    files = identities(builder.folder)
    again = SubsetBuilder(builder.catalog, builder.folder, builder.split, builder.dev)
    assert [again.entry(subset) for subset in subsets] == before
    assert identities(builder.folder) == files


def test_a_damaged_list_of_a_study_is_written_anew(builder: SubsetBuilder) -> None:
    subset = Subset("kinetics", part=0.5, seed=2)
    path = Path(builder.entry(subset)["annotations"]["train"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    again = SubsetBuilder(builder.catalog, builder.folder, builder.split, builder.dev)
    assert again.entry(subset) == builder.entry(subset)
    assert path.read_bytes() == whole


def test_stills_are_the_clip_s_own_frames(builder: SubsetBuilder) -> None:
    entry = builder.entry(Subset("kinetics", stills=2))
    stills, train = rows_of(entry, "train"), rows_of(builder.entry(Subset("kinetics")), "train")
    assert set(entry["annotations"]) == {"train"}
    assert entry["media"] == "image"
    assert len(stills) == 2 * len(train)
    assert [each.label for each in stills[::2]] == [each.label for each in train]
    shown = np.asarray(Image.open(stills[0].path)).astype(float)
    frames = decode_at(train[0].path, (np.arange(train[0].frames) / train[0].fps).tolist()).pictures.astype(float)
    assert np.abs(frames - shown).mean((1, 2, 3)).min() < 8, "JPEG at quality 95 of one of them"


def test_what_overlap_excludes_is_trained_on_by_no_arm(make_set, tmp_path: Path) -> None:
    catalog = load_catalog(make_set({f"{letter}.mp4": letter for letter in "abcdef"}))
    manifest = open_manifest(catalog.manifest_path("mine", "train"))
    gone = Exclusion("mine", 2, manifest.row(2).sample_id, "source", "mine", "val", "x")
    digests = {
        f"mine-{split}.arrow": open_manifest(catalog.manifest_path("mine", split)).digest()
        for split in ("train", "val")
    }
    write_exclusions(exclusions_path(catalog), [gone], digests, ["source"])
    builder = SubsetBuilder(catalog, tmp_path / "data", "val", 0.1)
    assert builder.count(Subset("mine")) == 5
    assert gone.sample_id not in {each.sample_id for each in rows_of(builder.entry(Subset("mine")), "train")}


def test_the_digest_tells_one_part_from_another(builder: SubsetBuilder) -> None:
    parts = [
        Subset("kinetics"),
        Subset("ssv2"),
        Subset("ssv2", part=0.5, seed=0),
        Subset("ssv2", part=0.5, seed=1),
        Subset("ssv2", permuted=True),
    ]
    assert len({builder.digest(part) for part in parts}) == len(parts)
    assert builder.digest(parts[2]) == builder.digest(replace(parts[2]))
