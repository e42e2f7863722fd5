"""Packs hold what the draws name and nothing else, whoever reads them; unreadable files count for nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import open_manifest
from cover.media.decode import decode_at, decode_image
from cover.mixture import loader
from cover.mixture.dataset import LabelMap, MixtureDataset, make_heads
from cover.mixture.loader import SampleReader, packs
from cover.mixture.pack import Pack
from cover.mixture.rates import rates_by
from cover.mixture.schedule import Draw, Schedule, split_batch
from cover.model.heads import Head
from cover.transforms.base import Transform
from cover.transforms.colour import ColourJitter
from cover.transforms.crop import crop_resize, middle_box
from cover.transforms.erasing import RandomErasing
from cover.transforms.randaugment import RandAugment

MakeSet = Callable[..., Path]
SIZE = 16
JITTER = (ColourJitter(0.3),)


def datasets_of(catalog_path: Path, frames: dict[str, int]) -> list[MixtureDataset]:
    """The train splits of some data sets of a catalog, with frames of their own, at rates by size."""
    catalog = load_catalog(catalog_path)
    manifests = {name: open_manifest(catalog.manifest_path(name, "train")) for name in frames}
    rates = rates_by({name: len(manifest.usable) for name, manifest in manifests.items()})
    return [
        replace(MixtureDataset.of(catalog.spec(name), manifests[name]), frames=frames[name], rate=rates[name])
        for name in frames
    ]


def reader_of(
    datasets: list[MixtureDataset], transforms: Sequence[Transform] = JITTER, own: Any = None, flip: bool = True
) -> SampleReader:
    """Each data set has a head of its own."""
    heads = make_heads({each.name: each.classes for each in datasets}, {})
    return SampleReader(datasets, heads, SIZE, transforms, own, flip)


def schedule_of(datasets: list[MixtureDataset], batch: int, seed: int = 0) -> Schedule:
    return Schedule(seed, split_batch(datasets, batch, 1))


def assert_equal_packs(left: Pack, right: Pack) -> None:
    assert (left.groups, left.problems) == (right.groups, right.problems)
    for name in ("frames", "dataset", "targets", "weight", "seed"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    assert torch.equal(left.drawn[ColourJitter], right.drawn[ColourJitter])


def test_packs_do_not_depend_on_who_reads_them(sandbox: Path) -> None:
    datasets = datasets_of(sandbox, {"kinetics": 4, "ssv2": 8, "moments": 2, "imagenet": 1})
    schedule, reader = schedule_of(datasets, 12), reader_of(datasets)
    alone = list(packs(schedule, reader, 0, 3, workers=0))
    for left, right in zip(alone, packs(schedule, reader, 0, 3, workers=2), strict=True):
        assert_equal_packs(left, right)
    assert_equal_packs(next(packs(schedule, reader, 2, 3, workers=0)), alone[2])


def test_a_pack_holds_its_draws_clips_first_without_padding(sandbox: Path) -> None:
    datasets = datasets_of(sandbox, {"imagenet": 1, "kinetics": 4, "ssv2": 8})
    schedule, reader = schedule_of(datasets, 10), reader_of(datasets, flip=False)
    pack = next(packs(schedule, reader, 0, 1, workers=0))
    draws = [draw for group in schedule.step(0) for draw in group]
    assert [frames for _, frames in pack.groups] == [8, 4, 1]
    assert sum(samples for samples, _ in pack.groups) == len(draws) == 10
    assert pack.frames.shape == (sum(samples * frames for samples, frames in pack.groups), 3, SIZE, SIZE)
    assert pack.frames.dtype == torch.uint8
    place = 0
    for number, draw in enumerate(draws):
        dataset = next(m for m in datasets if m.name == draw.dataset)
        sample = reader.read(draw)
        assert torch.equal(pack.frames[place : place + dataset.frames], sample.frames)
        assert datasets[pack.dataset[number]] is dataset
        label = dataset.manifest.row(draw.row).label
        assert pack.targets[number].tolist() == [label if head is dataset else -1 for head in datasets]
        assert torch.equal(pack.drawn[ColourJitter][number], sample.drawn[ColourJitter])
        assert int(pack.seed[number]) == draw.seed % 2**63
        place += dataset.frames
    assert place == len(pack.frames)
    assert pack.weight.tolist() == [1.0] * 10


def test_ranks_read_slices_of_the_same_pack(sandbox: Path) -> None:
    datasets = datasets_of(sandbox, {"kinetics": 4, "imagenet": 1})
    datasets = [replace(dataset, rate=Fraction(1, 2)) for dataset in datasets]
    schedule, reader = Schedule(0, split_batch(datasets, 8, 2)), reader_of(datasets)
    whole = next(packs(schedule, reader, 1, 2, workers=0))
    parts = [next(packs(schedule, reader, 1, 2, workers=0, rank=rank, ranks=2)) for rank in (0, 1)]
    assert whole.groups == ((4, 4), (4, 1))
    assert [part.groups for part in parts] == [((2, 4), (2, 1))] * 2
    clips, images = ([part.frames[rows] for part in parts] for rows in (slice(0, 8), slice(8, None)))
    assert torch.equal(torch.cat([*clips, *images]), whole.frames)


def test_a_draw_changes_the_crop(make_set: MakeSet) -> None:
    datasets = datasets_of(make_set({"a.mp4": "x", "b.mp4": "y"}), {"mine": 4})
    reader = reader_of(datasets)
    first, again, other = (reader.read(Draw("mine", 0, epoch, seed)) for epoch, seed in ((0, 5), (0, 5), (1, 6)))
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.drawn[ColourJitter], again.drawn[ColourJitter])
    assert not torch.equal(first.frames, other.frames)
    assert not torch.equal(first.drawn[ColourJitter], other.drawn[ColourJitter])


@pytest.mark.parametrize("damage", ["removed", "overwritten"])
def test_a_file_lost_after_indexing(make_set: MakeSet, damage: str) -> None:
    catalog = make_set({"a.mp4": "x", "b.mp4": "y", "c.mp4": "y"})
    datasets = datasets_of(catalog, {"mine": 4})
    schedule, reader = schedule_of(datasets, 3), reader_of(datasets)
    before = next(packs(schedule, reader, 0, 1, workers=0))
    victim = catalog.parent / "mine" / "b.mp4"
    victim.unlink() if damage == "removed" else victim.write_bytes(b"nothing" * 500)
    after = next(packs(schedule, reader, 0, 1, workers=0))
    lost = [draw.row for draw in schedule.step(0)[0]].index(1)
    assert after.weight.tolist() == [0.0 if number == lost else 1.0 for number in range(3)]
    frames, retained = after.frames.view(3, 4, 3, SIZE, SIZE), [number for number in range(3) if number != lost]
    assert not frames[lost].any()
    assert torch.equal(frames[retained], before.frames.view(3, 4, 3, SIZE, SIZE)[retained])
    assert torch.equal(after.drawn[ColourJitter][retained], before.drawn[ColourJitter][retained])
    assert before.problems == ()
    (problem,) = after.problems
    assert (problem.path, problem.kind, problem.dataset) == (str(victim), "unreadable", "mine")
    assert str(problem) == f"mine: {victim}: unreadable: {problem.reason}"
    assert "\n" not in str(problem)


def test_a_part_of_a_file_shorter_than_its_clip_repeats_its_own_last_frame(make_set: MakeSet) -> None:
    catalog = make_set({"a.mp4": "x,0.2,0.6"}, column="label,start,end", sampling="dense@0.1")
    (dataset,) = datasets_of(catalog, {"mine": 7})
    (row,) = dataset.manifest.rows()
    pixels, _ = loader.read_pixels(dataset, row, np.random.default_rng(0), 64)
    np.testing.assert_array_equal(
        pixels, decode_at(row.path, [0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5], size_hint=pixels.shape[1]).frames
    )


def test_missing_and_corrupt_files_are_never_drawn(make_set: MakeSet) -> None:
    catalog = make_set(
        {"a.mp4": "x", "gone.mp4": "x", "bad.mp4": "y", "b.mp4": "y"}, absent=["gone.mp4"], corrupt=["bad.mp4"]
    )
    schedule = schedule_of(datasets_of(catalog, {"mine": 2}), 4)
    assert {draw.row for step in range(8) for draw in schedule.step(step)[0]} == {0, 3}


CLASSES = {"a.mp4": "pull left", "b.mp4": "pull right", "c.mp4": "spin left", "d.mp4": "drop"}  # labels 1, 2, 3, 0


def flips(datasets: list[MixtureDataset], row: int, draws: int = 24) -> set[tuple[bool, int]]:
    """What happens to a row over many draws: whether its frames are mirrored, and the class it then trains."""
    plain, flipping = (reader_of(datasets, flip=flip) for flip in (False, True))
    results = set()
    for seed in range(draws):
        draw = Draw("mine", row, 0, seed)
        straight, sample = plain.read(draw), flipping.read(draw)
        mirrored = torch.equal(sample.frames, straight.frames.flip(-1))
        assert mirrored != torch.equal(sample.frames, straight.frames)
        assert torch.equal(sample.drawn[ColourJitter], straight.drawn[ColourJitter])
        results.add((mirrored, int(sample.targets[0])))
    return results


def test_flips_swap_the_labels_of_mirror_pairs(make_set: MakeSet) -> None:
    datasets = datasets_of(make_set(CLASSES, flip="swap"), {"mine": 3})
    assert flips(datasets, 0) == {(False, 1), (True, 2)}
    assert flips(datasets, 1) == {(False, 2), (True, 1)}
    assert flips(datasets, 2) == {(False, 3)}, "spin left has no counterpart"
    assert flips(datasets, 3) == {(False, 0), (True, 0)}


@pytest.mark.parametrize(("policy", "wanted"), [("never", {(False, 1)}), ("allow", {(False, 1), (True, 1)})])
def test_flips_by_the_data_sets_policy(make_set: MakeSet, policy: str, wanted: set[tuple[bool, int]]) -> None:
    assert flips(datasets_of(make_set(CLASSES, flip=policy), {"mine": 3}), 0) == wanted


def test_the_sandbox_swaps_left_and_right(sandbox: Path) -> None:
    (dataset,) = datasets_of(sandbox, {"ssv2": 4})
    names = dataset.classes.names
    labels = LabelMap.of(
        "ssv2", dataset.classes, make_heads({"ssv2": dataset.classes}, {}), swap=dataset.spec.flip == "swap"
    )
    assert labels.mirror is not None
    moved = {names[label]: names[other] for label, other in enumerate(labels.mirror) if other not in (-1, label)}
    assert moved
    for name, other in moved.items():
        assert other == name.replace("left", "\0").replace("right", "left").replace("\0", "right") != name


def test_crops_follow_the_data_sets_own_range(make_set: MakeSet) -> None:
    (dataset,) = datasets_of(make_set({"a.png": "x", "b.png": "y"}), {"mine": 1})
    middle = crop_resize(decode_image(dataset.manifest.row(0).path)[None], middle_box(64, 48), SIZE)
    # a whole 64 x 48 picture fits no box of the wanted shapes
    for scale, distinct in (((1.0, 1.0), 1), ((0.05, 0.3), 10)):
        ranged = replace(dataset, source=(replace(dataset.spec, crop_scale=scale), dataset.manifest))
        reader = reader_of([ranged], flip=False)
        crops = [reader.read(Draw("mine", 0, 0, seed)).frames.numpy() for seed in range(10)]
        assert len({crop.tobytes() for crop in crops}) == distinct
        assert np.array_equal(crops[0], middle) == (distinct == 1)


def test_two_crops_of_a_clip_from_one_decode(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = datasets_of(sandbox, {"kinetics": 4})
    datasets = [replace(datasets[0], crops=2)]
    reader = reader_of(datasets, flip=False)
    (draws,) = Schedule(0, split_batch(datasets, 8, 1)).step(0)
    decoded: list[list[float]] = []
    monkeypatch.setattr(
        loader, "decode_at", lambda path, times, **how: decoded.append(list(times)) or decode_at(path, times, **how)
    )
    together = reader.read_all(draws)
    assert len(decoded) == 4
    apart = [reader.read(draw) for draw in draws]
    assert decoded[4:] == [times for times in decoded[:4] for _ in range(2)]  # at the same instants where read alone
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one.frames, other.frames)
        assert torch.equal(one.drawn[ColourJitter], other.drawn[ColourJitter])
    for first, second in zip(together[::2], together[1::2], strict=True):
        assert torch.equal(first.targets, second.targets)
        assert not torch.equal(first.frames, second.frames)
        assert not torch.equal(first.drawn[ColourJitter], second.drawn[ColourJitter])


# --- the transforms of a data set -------------------------------------------------------------------------------------


def test_every_data_set_has_its_own_settings(sandbox: Path) -> None:
    datasets = datasets_of(sandbox, {"kinetics": 4, "imagenet": 1})
    usual = (ColourJitter(0.3), RandAugment.parse("m9-n4-p1"), RandomErasing(0.0))
    own = {"imagenet": (ColourJitter(0.0), RandAugment.parse(""), RandomErasing(1.0))}
    schedule = schedule_of(datasets, 8)
    pack = next(packs(schedule, reader_of(datasets, usual, own), 0, 1, workers=0))
    images = [datasets[number].name == "imagenet" for number in pack.dataset.tolist()]
    assert 0 < sum(images) < 8
    assert [torch.equal(drawn, torch.eye(3, 4)) for drawn in pack.drawn[ColourJitter]] == images
    assert [drawn is None for drawn in pack.drawn[RandAugment]] == images
    assert [bool(drawn.any()) for drawn in pack.drawn[RandomErasing]] == images


def test_other_transforms_for_one_data_set_are_refused(sandbox: Path) -> None:
    datasets = datasets_of(sandbox, {"kinetics": 4, "imagenet": 1})
    with pytest.raises(ValueError, match="same transforms"):
        reader_of(datasets, JITTER, {"imagenet": ()})


# --- any number of classes --------------------------------------------------------------------------------------------


OTHER = Head("other", ("a", "b"), "sigmoid")


def mixed_reader(datasets: list[MixtureDataset], flip: bool = True) -> SampleReader:
    """Behind another sigmoid head of two classes."""
    heads = (OTHER, *make_heads({each.name: each.classes for each in datasets}, {}))
    return SampleReader(datasets, heads, SIZE, JITTER, flip=flip)


# labels: drop 0, pull left 1, pull right 2
HOMES = {"a.png": "pull left|drop", "b.png": "pull right", "c.png": "", "d.png": "drop"}


def test_a_pack_says_which_classes_each_sample_has(make_set: MakeSet) -> None:
    make_set({"e.png": "x", "f.png": "y"})
    datasets = datasets_of(make_set(HOMES, name="homes", column="labels"), {"mine": 1, "homes": 1})
    schedule = schedule_of(datasets, 6)
    for step in range(4):
        pack = next(packs(schedule, mixed_reader(datasets), step, step + 1, workers=0))
        assert pack.multi_hot is not None
        assert (pack.multi_hot.dtype, tuple(pack.multi_hot.shape)) == (torch.uint8, (6, 5))
        for number, draw in enumerate(schedule.step(step)[0]):
            row = next(m for m in datasets if m.name == draw.dataset).manifest.row(draw.row)
            if draw.dataset == "mine":
                assert pack.targets[number].tolist() == [-1, row.label, -1]
                assert not pack.multi_hot[number].any()
            else:
                assert pack.targets[number].tolist() == [-1, -1, 0]
                assert pack.multi_hot[number].nonzero().flatten().tolist() == [2 + label for label in row.labels or ()]


def test_a_mixture_without_multi_label_sets_carries_nothing_more(make_set: MakeSet) -> None:
    datasets = datasets_of(make_set({"e.png": "x", "f.png": "y"}), {"mine": 1})
    assert next(packs(schedule_of(datasets, 2), reader_of(datasets), 0, 1, workers=0)).multi_hot is None


def many_flips(datasets: list[MixtureDataset], row: int) -> set[tuple[bool, tuple[int, ...]]]:
    plain, flipping = (mixed_reader(datasets, flip=flip) for flip in (False, True))
    results = set()
    for seed in range(24):
        straight, sample = (reader.read(Draw("homes", row, 0, seed)) for reader in (plain, flipping))
        assert sample.multi_hot is not None
        results.add(
            (torch.equal(sample.frames, straight.frames.flip(-1)), tuple(sample.multi_hot.nonzero().flatten().tolist()))
        )
    return results


def test_flips_swap_each_of_several_labels(make_set: MakeSet) -> None:
    make_set({"e.png": "x", "f.png": "y"})
    datasets = datasets_of(make_set(HOMES, name="homes", column="labels", flip="swap"), {"mine": 1, "homes": 1})
    assert many_flips(datasets, 0) == {(False, (2, 3)), (True, (2, 4))}
    assert many_flips(datasets, 1) == {(False, (4,)), (True, (3,))}
    assert many_flips(datasets, 2) == {(False, ()), (True, ())}
    assert many_flips(datasets, 3) == {(False, (2,)), (True, (2,))}


def test_one_label_without_a_mirror_image_keeps_a_sample_as_it_is(make_set: MakeSet) -> None:
    make_set({"e.png": "x", "f.png": "y"})
    datasets = datasets_of(
        make_set({"a.png": "drop|spin left", "b.png": "z"}, name="homes", column="labels", flip="swap"),
        {"mine": 1, "homes": 1},
    )
    assert many_flips(datasets, 0) == {(False, (2, 3))}
    assert many_flips(datasets, 1) == {(False, (4,)), (True, (4,))}


NAMESPACE = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0, reason="no mount namespace"
)
def test_a_small_shared_memory_is_one_line(make_set: Callable[..., Path], tmp_path: Path) -> None:
    catalog = make_set({f"{number}.png": "left" for number in range(4)})
    file = tmp_path / "recipe.yaml"
    text = f"data: {{sets: [mine], catalog: {catalog}}}\nout: {tmp_path / 'run'}\nsteps: 9\nbatch: 64\nworkers: 2\n"
    file.write_text(text, encoding="utf-8")
    train = [*NAMESPACE, sys.executable, "-m", "cover", "train", str(file)]
    ended = subprocess.run(train, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "/dev/shm is full: 2 reading processes" in ended.stderr.splitlines()[-1]
    assert "0.0655 MB" in ended.stderr
    assert "Traceback" not in ended.stderr
