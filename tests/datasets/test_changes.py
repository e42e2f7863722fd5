"""A catalog that was copied with its files reads the copy, and files that were replaced since they were indexed are
counted or refused.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cover.cli import main
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.changes import changed_files, report_changed
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest, write_manifest
from cover.errors import UserError

PICTURES = {f"{number}.png": ("left", "right")[number % 2] for number in range(6)}


def paths_of(catalog: Path) -> list[str]:
    return [row.path for row in load_catalog(catalog).manifest("mine", "train").rows()]


def write_as_before(catalog: Catalog) -> None:
    """Write the manifests as earlier versions did: with absolute paths alone."""
    for split in catalog.spec("mine").splits:
        old = catalog.manifest("mine", split)
        write_manifest(old.path, "mine", split, old.media, old.classes, list(old.rows()))


@pytest.mark.parametrize("link", [False, True])
def test_a_copied_catalog_reads_the_copy(make_set: Callable[..., Path], tmp_path: Path, link: bool) -> None:
    make_set(PICTURES)
    if link:  # the folder of manifests may be on another disk
        shutil.move(tmp_path / "manifests", tmp_path / "elsewhere")
        (tmp_path / "manifests").symlink_to("elsewhere")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy, symlinks=True, ignore=lambda *_: {"copy"})
    shutil.rmtree(tmp_path / "mine")
    assert paths_of(copy / "catalog.yaml") == [str(copy / "mine" / name) for name in PICTURES]
    manifest = pickle.loads(pickle.dumps(load_catalog(copy / "catalog.yaml").manifest("mine", "train")))
    assert Path(manifest.row(3).path).is_file()
    results = index(copy / "catalog.yaml", 0)
    assert [result["probed"] for result in results] == [0, 0]  # the facts are those of the copied files


@pytest.mark.parametrize("root", ["../data", "deep/../data", "link"])
def test_roots_of_every_form_can_be_copied(make_set: Callable[..., Path], tmp_path: Path, root: str) -> None:
    make_set(PICTURES)
    place = tmp_path / "here" / "project"
    (place / "deep").mkdir(parents=True)
    data = place.parent / "data" if root.startswith("../") else place / "data"
    shutil.move(tmp_path / "mine", data)
    (place / "link").symlink_to("data")
    entry = f"{{format: csv, root: {root}, annotations: {{train: list.csv}}, dev: 0}}"
    (place / "catalog.yaml").write_text(f"mine: {entry}\n", encoding="utf-8")
    index(place / "catalog.yaml", 0)
    shutil.copytree(tmp_path / "here", tmp_path / "there", symlinks=True)
    shutil.rmtree(tmp_path / "here")
    read = paths_of(tmp_path / "there/project/catalog.yaml")
    assert all(path.startswith(f"{tmp_path}/there/") and Path(path).is_file() for path in read)
    assert len(read) == len(PICTURES)


def test_files_outside_the_root_stay_where_they_are(make_set: Callable[..., Path], tmp_path: Path) -> None:
    catalog = make_set(PICTURES)
    outside = shutil.move(tmp_path / "mine" / "0.png", tmp_path / "0.png")
    text = (tmp_path / "mine/list.csv").read_text(encoding="utf-8").replace('"0.png"', f'"{outside}"')
    (tmp_path / "mine/list.csv").write_text(text, encoding="utf-8")
    index(catalog, 0)
    assert paths_of(catalog)[:2] == [str(outside), str(tmp_path / "mine/1.png")]


def test_another_root_is_refused(make_set: Callable[..., Path], tmp_path: Path) -> None:
    catalog = make_set(PICTURES)
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    catalog.write_text(catalog.read_text(encoding="utf-8").replace("root: mine", "root: other"), encoding="utf-8")
    with pytest.raises(UserError, match=f"mine-train.arrow.*{tmp_path}/other; run `cover index {catalog} mine`"):
        paths_of(catalog)
    index(catalog, 0)
    assert paths_of(catalog)[0] == str(tmp_path / "other" / "0.png")


def test_manifests_of_earlier_versions_are_read_in_their_place_alone(
    make_set: Callable[..., Path], tmp_path: Path
) -> None:
    catalog = make_set(PICTURES)
    write_as_before(load_catalog(catalog))
    assert paths_of(catalog) == [str(tmp_path / "mine" / name) for name in PICTURES]
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy, ignore=lambda *_: {"copy"})
    with pytest.raises(UserError, match="cover index"):
        paths_of(copy / "catalog.yaml")


# --- replaced files ---------------------------------------------------------------------------------------------------


def test_a_few_changed_files_are_counted(
    make_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = load_catalog(make_set({f"{number}.png": "left" for number in range(100)}))
    manifest = catalog.manifest("mine", "train")
    os.utime(tmp_path / "mine/7.png", ns=(1, 1))
    result = changed_files(manifest, manifest.usable)
    assert (result.changed, result.checked, result.first) == (1, 100, str(tmp_path / "mine/7.png"))
    report_changed(result, catalog)
    assert f"1 of 100 files changed since they were indexed, the first: {result.first}" in capsys.readouterr().err
    (tmp_path / "mine/8.png").write_bytes(b"short")
    with pytest.raises(UserError, match=f"2 of 100 files.*cover index {catalog.path} mine"):
        report_changed(changed_files(manifest, manifest.usable), catalog)


def test_the_time_of_prepared_files_does_not_count(make_set: Callable[..., Path], tmp_path: Path) -> None:
    old = load_catalog(make_set(PICTURES)).manifest("mine", "train")
    path = tmp_path / "prepared" / "manifests" / "mine-train.arrow"
    rows = [replace(row, path=f"mine/{Path(row.path).name}") for row in old.rows()]
    write_manifest(path, "mine", "train", "image", old.classes, rows, "..", "a scope", "a digest")
    shutil.copytree(tmp_path / "mine", tmp_path / "prepared/mine", copy_function=shutil.copy)
    manifest = open_manifest(path)
    assert not changed_files(manifest, manifest.usable).changed
    (tmp_path / "prepared/mine/2.png").write_bytes(b"short")
    assert changed_files(manifest, manifest.usable).first == str(tmp_path / "prepared/mine/2.png")


def test_training_evaluation_and_resume_refuse_changed_files(
    make_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog, run = make_set(PICTURES), str(tmp_path / "run")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{sets: [mine], catalog: {catalog}}}\nout: {run}\nsteps: 2\nbatch: 2\nworkers: 0\n",
        encoding="utf-8",
    )
    train = ["train", str(recipe)]
    measure = ["evaluate", run, "--catalog", str(catalog), "--workers", "0", "--no-baselines"]
    assert main(train) == 0
    assert main(measure) == 0
    (tmp_path / "mine/1.png").write_bytes((tmp_path / "mine/0.png").read_bytes())
    for command in ([*train, "--resume"], [*train, "--out", f"{run}2"], measure):
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "1 of 6 files changed" in error
        assert f"cover index {catalog} mine" in error
