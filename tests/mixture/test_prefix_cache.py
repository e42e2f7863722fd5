"""Cached outputs of the first stages: the same Packs as computed anew, and what a cache does not survive."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cover.datasets.catalog import load_catalog
from cover.datasets.changes import ChangedFiles, changed_files
from cover.datasets.index import index
from cover.errors import UserError
from cover.experiments.folds import DividedSet, write_catalog
from cover.mixture.loader import SampleReader, packs
from cover.mixture.mixture import Mixture
from cover.mixture.pack import Pack
from cover.mixture.prefix_cache import CachedReader, CacheReport, PrefixCache, views_text
from cover.mixture.prefix_files import PrefixFiles, check_space
from cover.mixture.rates import Data
from cover.mixture.schedule import Schedule
from cover.model.backbone import BackboneConfig
from cover.model.backbones.conv3d import Conv3dConfig
from cover.model.backbones.efficientnet_lite import EfficientNetLiteConfig
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.transforms.colour import ColourJitter
from cover.transforms.erasing import RandomErasing
from cover.transforms.randaugment import RandAugment

MakeSet = Callable[..., Path]
SIZE, STEPS, BATCH = 32, 6, 4
TRANSFORMS = (ColourJitter(0.4), RandAugment.parse("m9-n2"), RandomErasing(0.5))
MINI = TimeSformerConfig(size=SIZE, patch=8, width=32, depth=3, attention_heads=4, frames=3)
CLIPS = {f"{name}.mp4": label for name, label in zip("abcde", ("push left", "push right", "wait", "wait", "push left"))}
IMAGES = {"p.png": "cat", "q.png": "dog", "r.png": "cat"}


@pytest.fixture
def catalog(make_set: MakeSet) -> Path:
    """Five clips whose flips change two classes, and three images."""
    make_set(CLIPS, name="moves", flip="swap", crop_scale="[0.3, 1.0]")
    return make_set(IMAGES, name="things", media="image")


class Run:
    """The parts of a run of a few steps: its mixture, schedule, reader and network."""

    def __init__(self, catalog: Path, config: BackboneConfig = MINI, views: int = 2, seed: int = 0, **data: Any):
        sets = data.pop("sets", ["moves", "things"])
        self.mixture = Mixture.open(Data(sets, str(catalog), frames=3, **data))
        self.schedule: Schedule = self.mixture.schedule(BATCH, views=views)
        self.reader: SampleReader = self.mixture.reader(SIZE, TRANSFORMS)
        torch.manual_seed(seed)
        self.model = CoVeR(config, self.mixture.heads)

    def cached(self, cache: PrefixCache | None = None, steps: int = STEPS, stages: int = 2) -> CachedReader:
        cache = cache or PrefixCache(self.model, stages)
        return cache.training_reader(self.model, self.schedule, self.reader, steps, workers=0)

    def outputs(self, pack: Pack, stages: int = 2) -> torch.Tensor:
        """The outputs of the stages, computed from the pixels of a Pack."""
        return self.model.forward_prefix(pack.pixels(self.model.normalize), pack.groups, stages)


def assert_same_packs(run: Run, reader: CachedReader, stages: int = 2, steps: int = STEPS) -> list[Pack]:
    """Cached Packs are those of the pixels, and say the same of every sample."""
    left = list(packs(run.schedule, run.reader, 0, steps, workers=0))
    right = list(packs(run.schedule, reader, 0, steps, workers=0))
    for pixels, cached in zip(left, right, strict=True):
        assert cached.stages == stages
        assert (cached.groups, cached.problems, cached.drawn) == (pixels.groups, pixels.problems, {})
        for name in ("dataset", "targets", "weight", "seed", "multi_hot"):
            value, wanted = getattr(cached, name), getattr(pixels, name)
            assert value is wanted is None or torch.equal(value, wanted), name
        readable = torch.cat([pixels.weight.new_ones(0), pixels.weight])
        frames = torch.cat(
            [
                part.repeat_interleave(length)
                for part, (_, length) in zip(readable.split([s for s, _ in pixels.groups]), pixels.groups)
            ]
        ).bool()
        torch.testing.assert_close(
            cached.pixels(run.model.normalize)[frames], run.outputs(pixels, stages)[frames], rtol=1e-5, atol=1e-5
        )
    return left


def numbers(cache: PrefixCache) -> list[tuple[str, int, int]]:
    return [(report.dataset, report.entries, report.computed) for report in cache.reports]


@pytest.mark.parametrize(
    ("config", "data"),
    [
        (MINI, {}),
        (MINI, {"crops": 2}),
        (MINI, {"batches": "alternating", "weights": {"moves": 1, "things": 1}}),
        (Conv3dConfig(size=SIZE, channels=(8, 16, 16)), {}),
        (EfficientNetLiteConfig(size=SIZE, depth=1), {}),
    ],
    ids=["mixed", "crops", "alternating", "conv3d", "efficientnet_lite"],
)
def test_cached_packs_are_those_of_the_pixels(catalog: Path, config: BackboneConfig, data: dict[str, Any]) -> None:
    run = Run(catalog, config, **data)
    assert_same_packs(run, run.cached())
    flipped = [pack.targets[:, 0].tolist() for pack in packs(run.schedule, run.reader, 0, STEPS, workers=0)]
    listed = [run.mixture.datasets[0].manifest.row(row).label for row in range(len(CLIPS))]
    assert {label for row in flipped for label in row} >= set(listed), "flips exchanged some classes"


def test_several_classes_a_sample(make_set: MakeSet) -> None:
    run = Run(make_set({"a.mp4": "up|down", "b.mp4": "up", "c.mp4": ""}, name="many", column="labels"), sets=["many"])
    assert_same_packs(run, run.cached())


def test_a_view_is_drawn_again_after_the_others(catalog: Path) -> None:
    run = Run(catalog, sets=["things"])
    seeds: dict[tuple[int, int], set[int]] = {}
    for step in range(12):
        for draw in run.schedule.step(step)[0]:
            assert draw.view == draw.epoch % 2
            seeds.setdefault((draw.row, draw.view), set()).add(draw.seed)
    assert len(seeds) == 2 * len(IMAGES)
    assert all(len(found) == 1 for found in seeds.values())
    drops = [draw.step_seed for step in range(12) for draw in run.schedule.step(step)[0]]
    assert len(set(drops)) == len(drops), "what is random behind the pixels does not repeat"


def test_only_what_the_steps_draw_is_computed_and_only_once(catalog: Path) -> None:
    run = Run(catalog)
    first, again, more = (PrefixCache(run.model, 2) for _ in range(3))
    run.cached(first, steps=1)
    run.cached(again, steps=1)
    run.cached(more, steps=40)
    drawn = run.schedule.drawn(1)
    assert numbers(first) == [(name, drawn[name], drawn[name]) for name in ("moves", "things")]
    assert numbers(again) == [(name, drawn[name], 0) for name in ("moves", "things")]
    assert "hit" in str(again.reports[0])
    assert "hit" not in str(first.reports[0])
    sizes = {"moves": 2 * len(CLIPS), "things": 2 * len(IMAGES)}
    assert numbers(more) == [(name, size, size - drawn[name]) for name, size in sizes.items()]


@pytest.mark.parametrize(
    ("samples", "views", "text"),
    [(18, 54, "18 samples x 3 views"), (18, 18, "18 samples"), (18, 40, "40 views of 18 samples")],
)
def test_views_are_counted_beside_samples(samples: int, views: int, text: str) -> None:
    """A user has counted files."""
    assert views_text(samples, views) == text
    assert f"({text})" in str(CacheReport("moves", "train", 2, views, samples, 0, 0, 100, 0.0, "folder"))


def test_bytes_are_those_of_the_numbers_on_the_disk(catalog: Path) -> None:
    run = Run(catalog)
    for dtype, each in (("float32", 4), ("float16", 2)):
        cache = PrefixCache(run.model, 2, dtype=dtype)  # type: ignore[arg-type]
        run.cached(cache, steps=40)
        clips, images = cache.reports
        assert (clips.bytes_each, images.bytes_each) == (3 * 17 * 32 * each, 17 * 32 * each)
        assert (Path(clips.folder) / "values.bin").stat().st_size == clips.bytes_each * 2 * len(CLIPS)


def test_float16_is_float32_rounded(catalog: Path) -> None:
    run = Run(catalog)
    whole = run.cached()
    half = run.cached(PrefixCache(run.model, 2, dtype="float16"))
    for left, right in zip(*(packs(run.schedule, each, 0, STEPS, workers=0) for each in (whole, half)), strict=True):
        assert right.frames.dtype == torch.float16
        assert torch.equal(left.frames.half(), right.frames)
        torch.testing.assert_close(right.frames.float(), left.frames, rtol=2**-11, atol=1e-7)


def test_numbers_too_large_for_float16_are_refused(catalog: Path) -> None:
    run = Run(catalog)
    with torch.no_grad():
        run.model.backbone.get_parameter("blocks.0.mlp.fc2.bias")[3] = 1e6
    with pytest.raises(UserError, match=r"cache\.dtype"):
        run.cached(PrefixCache(run.model, 2, dtype="float16"))
    run.cached()


@pytest.mark.parametrize("change", ["weights", "stages", "transforms", "seed of views", "size of crops", "no flips"])
def test_what_changes_a_value_changes_the_folder(
    catalog: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = Run(catalog), Run(catalog)
    before = PrefixCache(run.model, 2)
    run.cached(before)
    stages, named = 2, change
    if change == "weights":
        with torch.no_grad():
            other.model.backbone.get_parameter("blocks.1.norm1.bias")[0] += 1e-3
    elif change == "stages":
        stages, named = 1, "weights, stages"
    elif change == "transforms":
        other.reader = other.mixture.reader(SIZE, TRANSFORMS[:1])
    elif change == "seed of views":
        other.schedule, named = other.mixture.schedule(BATCH, views=2, views_seed=1), "seed"
    elif change == "size of crops":
        named = "crop_scale"
        other.mixture.datasets = [
            replace(each, source=(replace(each.spec, crop_scale=(0.9, 1.0)), each.manifest))
            for each in other.mixture.datasets
        ]
        other.reader = other.mixture.reader(SIZE, TRANSFORMS)
    else:
        named = "flip"
        other.reader = other.mixture.reader(SIZE, TRANSFORMS, flip=False)
    capsys.readouterr()
    after = PrefixCache(other.model, stages)
    reader = other.cached(after)
    said = capsys.readouterr().err
    assert {report.folder for report in before.reports}.isdisjoint(report.folder for report in after.reports)
    assert f"{before.reports[0].folder} is not used: it was made with other {named}; it takes" in said
    assert all(report.computed == report.entries for report in after.reports)
    assert_same_packs(other, reader, stages)


def test_another_seed_of_the_run_has_the_same_views_in_another_order(catalog: Path) -> None:
    run, other = Run(catalog), Run(catalog)
    other.schedule = other.mixture.schedule(BATCH, seed=1, views=2)
    run.cached(steps=40)
    cache = PrefixCache(other.model, 2)
    assert_same_packs(other, other.cached(cache, steps=40))
    assert [report.computed for report in cache.reports] == [0, 0]
    first, second = ([draw.row for group in each.schedule.step(0) for draw in group] for each in (run, other))
    assert first != second
    drops = [[draw.step_seed for group in each.schedule.step(0) for draw in group] for each in (run, other)]
    assert not set(drops[0]) & set(drops[1]), "what is random behind the pixels follows the seed of the run"


def test_subsets_of_a_data_set_share_its_cache(catalog: Path, tmp_path: Path) -> None:
    """The rows of a fold, in another order and with other numbers, are found where the whole set has put them."""
    whole = Run(catalog, sets=["moves"])
    folder = tmp_path / "shared"
    whole.cached(PrefixCache(whole.model, 2, folder=folder), steps=40)
    manifest = whole.mixture.datasets[0].manifest
    rows = [manifest.row(number) for number in (4, 1, 2)]
    divided = DividedSet(load_catalog(catalog).spec("moves"), manifest.classes, rows, [])
    part = write_catalog(
        tmp_path / "part", load_catalog(catalog), {"moves": (divided, {"train": rows})}, Data(["moves"], str(catalog))
    )
    run = Run(part, sets=["moves"])
    cache = PrefixCache(run.model, 2, folder=folder)
    assert_same_packs(run, run.cached(cache, steps=40))
    assert numbers(cache) == [("moves", 6, 0)]


def test_a_set_that_grows_computes_what_is_new(make_set: MakeSet) -> None:
    """Values of a smaller set stay where they are."""
    catalog = make_set({"a.mp4": "x", "c.mp4": "y"}, name="moves")
    before = Run(catalog, sets=["moves"])
    before.cached(steps=40)
    folder = catalog.parent / "moves"
    shutil.copy(folder / "a.mp4", folder / "b.mp4")
    lists = next(folder.glob("*.csv"))
    lists.write_text(lists.read_text(encoding="utf-8").rstrip() + "\nb.mp4,x\n", encoding="utf-8")
    index(catalog, 0)
    run = Run(catalog, sets=["moves"])
    cache = PrefixCache(run.model, 2)
    assert_same_packs(run, run.cached(cache, steps=40), steps=8)
    assert numbers(cache) == [("moves", 6, 2)]


def test_an_interrupted_growth_is_mended(catalog: Path) -> None:
    """Arrays that are longer than the keys, as a process leaves them that is killed while it adds slots."""
    run = Run(catalog, sets=["moves"])
    cache = PrefixCache(run.model, 2)
    run.cached(cache, steps=40)
    folder = Path(cache.reports[0].folder)
    os.truncate(folder / "keys.bin", 8 * 3 + 5)
    again = PrefixCache(run.model, 2)
    assert_same_packs(run, run.cached(again, steps=40), steps=8)
    assert again.reports[0].computed == 2 * (len(CLIPS) - 3)
    assert (folder / "keys.bin").stat().st_size == 8 * len(CLIPS)


def test_weights_behind_the_stages_do_not_count(catalog: Path) -> None:
    run, other = Run(catalog), Run(catalog)
    run.cached()
    with torch.no_grad():
        for name, parameter in other.model.named_parameters():
            if "blocks.2." in name or name.startswith(("backbone.norm", "heads.")):
                parameter.add_(1)
    cache = PrefixCache(other.model, 2)
    assert_same_packs(other, other.cached(cache))
    assert [report.computed for report in cache.reports] == [0, 0]


def test_a_folder_of_ones_own_says_what_its_values_come_from(catalog: Path, tmp_path: Path) -> None:
    run = Run(catalog)
    cache = PrefixCache(run.model, 2, folder=tmp_path / "elsewhere")
    run.cached(cache)
    folder = Path(cache.reports[0].folder)
    assert folder.parent == tmp_path / "elsewhere"
    facts = json.loads((folder / "cache.json").read_text())
    assert (facts["dataset"], facts["purpose"], facts["stages"], facts["size"]) == ("moves", "training", 2, SIZE)
    assert facts["network"]["family"] == "timesformer"
    assert not (catalog.parent / "manifests" / "cache").exists()


# --- files that are damaged, changed or gone --------------------------------------------------------------------------


def overwrite(path: Path) -> None:
    """Other bytes of the same length and time of change."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_unreadable_file_counts_as_without_a_cache(catalog: Path) -> None:
    clip = catalog.parent / "moves" / "b.mp4"
    whole = clip.read_bytes()
    stamp = clip.stat()
    overwrite(clip)
    (catalog.parent / "things" / "q.png").unlink()
    run = Run(catalog)
    cache = PrefixCache(run.model, 2)
    left = assert_same_packs(run, run.cached(cache, steps=40), steps=8)
    assert {problem.path for pack in left for problem in pack.problems} == {
        str(clip),
        str(catalog.parent / "things" / "q.png"),
    }
    assert numbers(cache) == [("moves", 10, 8), ("things", 6, 4)]
    assert [report.unreadable for report in cache.reports] == [2, 2]
    # a later run tries them again
    clip.write_bytes(whole)
    os.utime(clip, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again = PrefixCache(run.model, 2)
    left = assert_same_packs(run, run.cached(again, steps=40), steps=8)
    assert numbers(again) == [("moves", 10, 2), ("things", 6, 0)]
    assert not any("b.mp4" in problem.path for pack in left for problem in pack.problems)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_changed_file_is_refused(catalog: Path, when: str) -> None:
    run = Run(catalog)
    if when == "after":
        run.cached()
    clip = catalog.parent / "moves" / "b.mp4"
    clip.write_bytes((catalog.parent / "moves" / "c.mp4").read_bytes() + b" ")
    with pytest.raises(UserError, match=r"moves train: 1 of 5 files changed.*b\.mp4; run cover index"):
        run.cached()


@pytest.mark.parametrize("lost", ["values.bin", "states.bin", "keys.bin", "cut short"])
def test_lost_files_of_a_cache_are_made_again(catalog: Path, lost: str) -> None:
    run = Run(catalog)
    before = PrefixCache(run.model, 2)
    run.cached(before)
    folder = Path(before.reports[0].folder)
    if lost == "cut short":
        os.truncate(folder / "values.bin", 100)
    else:
        (folder / lost).unlink()
    after = PrefixCache(run.model, 2)
    assert_same_packs(run, run.cached(after))
    assert after.reports[0].computed == after.reports[0].entries


def test_a_full_disk(catalog: Path) -> None:
    run = Run(catalog)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 3 * 17 * 32 * 4, hard))  # room for four clips
    try:
        with pytest.raises(UserError, match=r"cache\.folder.*cannot be written: File too large") as error:
            run.cached()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert_same_packs(run, run.cached())


def test_room_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    files = PrefixFiles(tmp_path / "not yet" / "there", np.arange(1, dtype=np.uint64), 10, (8, 197, 768), "float32")
    check_space(files.folder, files.bytes_each, "one clip")
    with pytest.raises(UserError, match=r"cache\.folder: mine train needs 48\d\d\d\.\d\d GB, .* free; .*float16"):
        check_space(files.folder, 10**7 * files.bytes_each, "mine train")
    assert not list(tmp_path.iterdir())


# One clip at a time, so that there are many moments to be killed at.
FILL = """
import sys
sys.path.insert(0, sys.argv[2])
import cover.mixture.prefix_cache as module
from test_prefix_cache import Run
module.BATCH_FRAMES = 3
Run(sys.argv[1], sets=["moves"]).cached(steps=40)
"""


def test_a_run_that_is_killed_while_it_fills_is_continued(make_set: MakeSet) -> None:
    catalog = make_set({f"{number}.mp4": "xy"[number % 2] for number in range(20)}, name="moves")
    command = [sys.executable, "-c", FILL, str(catalog), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    states: list[int] = []
    while sum(states) < 5:
        assert process.poll() is None
        assert time.monotonic() - began < 60
        found = list((catalog.parent / "manifests" / "cache").glob("moves-training-*/states.bin"))
        states = [state & 1 for path in found for state in path.read_bytes()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = Run(catalog, sets=["moves"])
    cache = PrefixCache(run.model, 2)
    reader = run.cached(cache, steps=40)
    (report,) = cache.reports
    assert 0 < report.computed < report.entries == 40
    assert_same_packs(run, reader, steps=40)


def test_two_that_fill_at_once_share_the_work(catalog: Path) -> None:
    runs = [Run(catalog) for _ in range(2)]
    caches = [PrefixCache(run.model, 2) for run in runs]
    with ThreadPoolExecutor(2) as threads:
        readers = list(threads.map(lambda pair: pair[0].cached(pair[1]), zip(runs, caches)))
    for place in range(2):
        entries = {cache.reports[place].entries for cache in caches}
        assert {sum(cache.reports[place].computed for cache in caches)} == entries
    for run, reader in zip(runs, readers, strict=True):
        assert_same_packs(run, reader)


def test_the_number_of_stages_is_checked(catalog: Path) -> None:
    run = Run(catalog)
    for stages in (0, 4):
        with pytest.raises(UserError, match=re.escape(f"cache.stages: {stages} is not in 1 to 3")):
            PrefixCache(run.model, stages)


def test_a_manifest_lists_its_changed_files(catalog: Path) -> None:
    manifest = Run(catalog).mixture.datasets[0].manifest
    rows = np.arange(len(manifest))
    assert changed_files(manifest, rows) == ChangedFiles("moves", "train", len(rows))
    path = catalog.parent / "moves" / "d.mp4"
    os.utime(path, ns=(0, 0))
    (catalog.parent / "moves" / "e.mp4").unlink()
    assert changed_files(manifest, rows) == ChangedFiles("moves", "train", len(rows), 1, str(path))
    assert not changed_files(manifest, rows[:3]).changed
