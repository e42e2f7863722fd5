"""A catalog's defaults, and its complaints: one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from cover.datasets.catalog import load_catalog
from cover.errors import UserError
from cover.media.sampling import Sampling, Views

GOOD = "format: csv, root: data, media: video, annotations: {train: train.csv}"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_by_format(tmp_path: Path) -> None:
    lists = "root: data, annotations: {train: a, val: /b/val.csv}"
    catalog = load_catalog(
        write(
            tmp_path,
            "\n".join(f"{form}: {{format: {form}, {lists}}}" for form in ("kinetics", "ssv2", "moments", "imagenet")),
        )
    )
    specs = catalog.specs
    assert [spec.media for spec in specs.values()] == ["video", "video", "video", "image"]
    assert [spec.sampling.kind for spec in specs.values()][:3] == ["dense", "segments", "whole"]
    assert [str(spec.views) for spec in specs.values()] == ["1x3", "1x3", "1x3", "1x1"]
    assert [spec.flip for spec in specs.values()] == ["allow", "never", "allow", "allow"]
    assert specs["ssv2"].crop_scale == (0.5, 1.0)
    assert specs["kinetics"].annotations == {"train": str(tmp_path / "data/a"), "val": "/b/val.csv"}
    assert specs["kinetics"].splits == ("train", "dev", "val")
    assert catalog.manifest_path("ssv2", "dev") == tmp_path / "manifests/ssv2-dev.arrow"


def test_crops_of_a_users_own_set_are_larger_than_those_of_the_large_published_sets(tmp_path: Path) -> None:
    own = ("folder, media: video", "csv, media: video", "list, media: image")
    entries = (
        f"set{number}: {{format: {form}, root: data, annotations: {{train: a}}}}"
        for number, form in enumerate((*own, "kinetics", "imagenet"))
    )
    specs = load_catalog(write(tmp_path, "\n".join(entries))).specs.values()
    assert [spec.crop_scale[0] for spec in specs] == [0.6, 0.6, 0.6, 0.3, 0.3]


def test_everything_given(tmp_path: Path) -> None:
    text = (
        f"mine: {{{GOOD}, classes: c.txt, flip: swap, sampling: dense@0.25, views: 2x3, "
        "crop_scale: [0.4, 1], dev: 0, source: take}"
    )
    spec = load_catalog(write(tmp_path, text)).spec("mine")
    assert (spec.flip, spec.sampling, spec.views) == ("swap", Sampling("dense", 0.25), Views(2, 3))
    assert (spec.crop_scale, spec.dev, spec.source, spec.splits) == ((0.4, 1.0), 0.0, "take", ("train",))
    assert spec.classes == str(tmp_path / "data/c.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k4: {formt: kinetics, root: x}", 'catalog.yaml: k4.formt: unknown key; did you mean "format"?'),
        (
            "k4: {format: kinetcs, root: x}",
            'catalog.yaml: k4.format: unknown value "kinetcs"; did you mean "kinetics"?',
        ),
        ("k4: {format: kinetics}", "catalog.yaml: k4.root: missing"),
        ("k4: {format: kinetics, root: [3]}", "catalog.yaml: k4.root: expected text, got [3]"),
        ("k4: {format: kinetics, root: }", "catalog.yaml: k4.root: expected text, got null"),
        (
            "k4: {format: kinetics, root: x, annotations: {train: null}}",
            "k4.annotations: train: expected text, got null",
        ),
        ("k4: {format: kinetics, root: .}", "catalog.yaml: k4.annotations: not given, and"),
        ("k4: {format: kinetics, root: x}", "/x does not exist"),
        ("k4: {format: kinetics, root: catalog.yaml}", "catalog.yaml is not a folder"),
        ("k4: {format: mine.py:mine, root: .}", "k4.format:"),
        ("k4: {format: mine:mine, root: .}", 'k4.format: unknown value "mine:mine"'),
        (
            "k4: {format: kinetics, root: x, annotations: {trian: a}}",
            'k4.annotations: unknown split "trian"; did you mean "train"?',
        ),
        ("k4: {format: kinetics, root: x, annotations: {train: a}, media: image}", "k4.media: kinetics holds videos"),
        ("k4: {format: csv, root: x, annotations: {train: a}}", "k4.annotations.train:"),
        (
            f"k4: {{{GOOD}, sampling: danse}}",
            'catalog.yaml: k4.sampling: unknown clip sampling "danse"; did you mean "dense"?',
        ),
        (f"k4: {{{GOOD}, views: 3}}", "k4.views: "),
        (f"k4: {{{GOOD}, crop_scale: [1, 0.3]}}", "k4.crop_scale: expected [low, high]"),
        (f"k4: {{{GOOD}, dev: 1.5}}", "k4.dev: expected a fraction"),
        (f"k4: {{{GOOD}, dev: yes}}", 'k4.dev: expected a number, got "yes"'),
        (
            f"k4: {{{GOOD}}}\nss: {{{GOOD}}}\nk4: {{{GOOD}}}",
            'catalog.yaml: line 3, column 1: "k4" is given twice, first on line 1',
        ),
        ("k4: {format: csv, root: x, root: y}", '"root" is given twice'),
        ("k4: [", "catalog.yaml: line 1, column 6: not YAML"),
        ("", "catalog.yaml: no data set"),
        ("k.4: {format: csv}", "'k.4' cannot name a data set"),
        ("k4: kinetics", "catalog.yaml: k4: expected keys"),
    ],
)
def test_complaints(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_catalog(write(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_media_that_nothing_tells(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,label\na.bin,x\n")
    with pytest.raises(UserError, match=r"mine\.media: the file endings do not say"):
        load_catalog(write(tmp_path, "mine: {format: csv, root: .}"))


def test_unknown_names(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, f"mine: {{{GOOD}}}"))
    with pytest.raises(UserError, match='no data set "mien"; did you mean "mine"'):
        catalog.manifest_path("mien", "train")
    with pytest.raises(UserError, match='mine has no split "val"; known: dev, train'):
        catalog.manifest_path("mine", "val")
    with pytest.raises(UserError, match="cannot be read"):
        load_catalog(tmp_path / "gone.yaml")
