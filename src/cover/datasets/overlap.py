"""`cover overlap`: matches between splits, by source id, by file content and by pictures.

Source ids need no files, so rows with the state `missing` are compared too. Train rows that match a row of an
evaluation split go into the list of exclusions (`exclusions.py`), and `cover train` leaves them out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cover.console import print_table, say, tell
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.exclusions import EXCLUSIONS_FILE, Exclusion, exclusions_path, write_exclusions
from cover.datasets.manifest import Row
from cover.datasets.matching import KeyMatches, MatchKind, Shared, Side, content_keys, origin
from cover.datasets.phash import AGREE, RADIUS, SURE, SURE_IMAGE
from cover.datasets.picture_matches import FrameMatches, match_pictures
from cover.datasets.probe import stamps
from cover.errors import UserError
from cover.media.source import is_url
from cover.processes import ProcessPool

EXAMPLES = 5  # examples of matches per pair of splits
_ALL_SHOWN = 30  # with more pairs of splits, the table leaves out pairs without a match


def overlap(
    catalog_path: str | Path,
    workers: int,
    names: Sequence[str] | None = None,
    frames: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Compare all splits of the data sets `names` (default: all) and write the list of exclusions.

    `workers`: processes that read files, 0 to read in this process. `frames`: compare pictures too. `out`: the folder
    for the list (default: the folder of the manifests, where `cover train` reads it). Returns a dict with

    - `kinds`: the kinds of match;
    - `splits`: one dict per split, with its rows and the number of comparable rows for each kind;
    - `pairs`: one dict per pair of splits. For each kind: `distinct`, `left_rows`, `right_rows`, up to 5 `examples`;
    - `excluded`: one dict per train split, with the reason if no row is excluded; `exclusions`: path of the list;
      `catalog`: path of the catalog;
    - `chance`: for each data set, how near its different clips come (see `picture_matches`), empty without `frames`;
    - `doubtful`: one dict per train split with rows that match an evaluated row by pictures, but no nearer than
      different clips of the set come: `rows`, up to 5 `examples`. These rows are not excluded.

    Raises UserError for an invalid catalog, a missing manifest, or a folder that cannot be written.
    """
    catalog = load_catalog(catalog_path)
    sides = _sides(catalog, names or list(catalog.specs))
    digests = {side.manifest.path.name: side.manifest.digest() for side in sides}
    folder = _folder(out or exclusions_path(catalog).parent)
    _say_how_many_are_remote(sides)
    kinds: dict[str, MatchKind] = {"source": KeyMatches([[origin(side, row) for row in side.rows] for side in sides])}
    doubtful, chance = None, []
    with ProcessPool(workers) as pool:
        stamp = stamps(list(dict.fromkeys(row.path for side in sides for row in side.rows)))
        kinds["file"] = KeyMatches(content_keys(sides, pool, stamp, folder))
        if frames:
            found = match_pictures(sides, pool, stamp, folder)
            kinds["frames"], doubtful, chance = found.sure, found.doubtful, found.chance
    exclusions = list(_exclusions(sides, kinds))
    unsure = _doubtful(sides, doubtful, exclusions) if doubtful else []
    write_exclusions(folder / EXCLUSIONS_FILE, exclusions, digests, list(kinds))
    return {
        "catalog": str(catalog.path),
        "kinds": list(kinds),
        "splits": [_split_facts(number, side, kinds) for number, side in enumerate(sides)],
        "pairs": [_pair(sides, kinds, left, right) for left, right in combinations(range(len(sides)), 2)],
        "excluded": [
            _excluded(number, sides, kinds, exclusions) for number, side in enumerate(sides) if side.split == "train"
        ],
        "exclusions": str(folder / EXCLUSIONS_FILE),
        "chance": chance,
        "doubtful": unsure,
    }


def _sides(catalog: Catalog, names: Sequence[str]) -> list[Side]:
    sides = []
    for spec in dict.fromkeys(names):
        for split in catalog.spec(spec).splits:
            path = catalog.manifest_path(spec, split)
            if split == "dev" and "dev" not in catalog.spec(spec).annotations and not path.is_file():
                continue  # too few rows for a dev split
            sides.append(Side(catalog.spec(spec), catalog.manifest(spec, split)))
    return sides


def _say_how_many_are_remote(sides: Sequence[Side]) -> None:
    count = sum(is_url(row.path) for side in sides for row in side.rows)
    if count:
        say(f"{count} rows have URLs and are compared by source id alone; for the rest run this where the files are")


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder}: cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out: {folder}: cannot be written to")
    return folder


# --- results ---


def _split_facts(number: int, side: Side, kinds: dict[str, Any]) -> dict[str, Any]:
    comparable = {kind: matches.known(number) for kind, matches in kinds.items()}
    return {"dataset": side.spec.name, "split": side.split, "rows": len(side.rows), "comparable": comparable}


def _pair(sides: Sequence[Side], kinds: dict[str, MatchKind], left: int, right: int) -> dict[str, Any]:
    named = (("left", sides[left]), ("right", sides[right]))
    result: dict[str, Any] = {name: {"dataset": side.spec.name, "split": side.split} for name, side in named}
    for kind, matches in kinds.items():
        result[kind] = _counts(matches.shared(left, right), sides[left].rows, sides[right].rows)
    return result


def _counts(shared: Shared, left: Sequence[Row], right: Sequence[Row]) -> dict[str, Any]:
    pairs = zip(shared.left[:EXAMPLES].tolist(), shared.partner[:EXAMPLES].tolist())
    examples = [{"left": _summary(left[mine]), "right": _summary(right[theirs])} for mine, theirs in pairs]
    return {
        "distinct": shared.distinct,
        "left_rows": len(shared.left),
        "right_rows": len(shared.right),
        "examples": examples,
    }


def _summary(row: Row) -> dict[str, Any]:
    times = None if row.youtube_start is None else [row.youtube_start, row.youtube_end]
    return {"sample_id": row.sample_id, "source_id": row.source_id, "youtube_times": times, "path": row.path}


def _exclusions(sides: Sequence[Side], kinds: dict[str, MatchKind]) -> Iterator[Exclusion]:
    """Train rows that match an evaluated row, once per split and kind.

    Evaluated rows are the val and test rows of all data sets and the dev rows of other data sets. A data set's own dev
    rows have other groups than its train rows, and by default other source ids, because indexing divides them so.
    """
    for left, train in enumerate(sides):
        for right in _evaluated(sides, left):
            other = sides[right]
            for kind, matches in kinds.items():
                shared = matches.shared(left, right)
                for row, partner in zip(shared.left.tolist(), shared.partner.tolist()):
                    sample, matched = train.rows[row].sample_id, other.rows[partner].sample_id
                    yield Exclusion(train.spec.name, row, sample, kind, other.spec.name, other.split, matched)


def _evaluated(sides: Sequence[Side], train: int) -> list[int]:
    """The sides whose rows exclude rows of the side number `train`. None if that is no train split."""
    own = sides[train].spec.name
    if sides[train].split != "train":
        return []
    return [
        number
        for number, side in enumerate(sides)
        if side.split != "train" and not (side.split == "dev" and side.spec.name == own)
    ]


def _doubtful(sides: Sequence[Side], matches: FrameMatches, exclusions: Sequence[Exclusion]) -> list[dict[str, Any]]:
    """The result `doubtful` of `overlap`. Rows that are excluded for another reason are left out."""
    excluded = {(item.dataset, item.row) for item in exclusions}
    results = []
    for left, train in enumerate(sides):
        partner: dict[int, dict[str, Any]] = {}
        for right in _evaluated(sides, left):
            shared, other = matches.shared(left, right), sides[right]
            for row, matched in zip(shared.left.tolist(), shared.partner.tolist()):
                if (train.spec.name, row) not in excluded and row not in partner:
                    place = {"dataset": other.spec.name, "split": other.split, **_summary(other.rows[matched])}
                    partner[row] = {"left": _summary(train.rows[row]), "right": place}
        if partner:
            examples = [partner[row] for row in sorted(partner)[:EXAMPLES]]
            results.append({"dataset": train.spec.name, "rows": len(partner), "examples": examples})
    return results


def _excluded(
    number: int, sides: Sequence[Side], kinds: dict[str, MatchKind], exclusions: Sequence[Exclusion]
) -> dict[str, Any]:
    side = sides[number]
    own = [item for item in exclusions if item.dataset == side.spec.name]
    by_kind: dict[str, set[int]] = {}
    for item in own:
        by_kind.setdefault(item.reason, set()).add(item.row)
    counts = {kind: len(rows) for kind, rows in by_kind.items()}
    excluded = len({item.row for item in own})
    why = "" if excluded else _why_none(number, sides, kinds)
    return {"dataset": side.spec.name, "train_rows": len(side.rows), "excluded": excluded, "by": counts, "why": why}


def _why_none(number: int, sides: Sequence[Side], kinds: dict[str, MatchKind]) -> str:
    """Why no row of a train split is excluded."""
    side, evaluated = sides[number], _evaluated(sides, number)
    if not side.rows:
        return "it has no rows"
    if not any(sides[other].rows for other in evaluated):
        return "there is no val or test split, and no dev split of another set"
    reasons = []
    unknown = {kind: len(side.rows) - matches.known(number) for kind, matches in kinds.items()}
    if unknown["file"] == len(side.rows):
        reasons.append("its files are not here, so only source ids were compared")
    elif unknown["file"]:
        reasons.append(f"{unknown['file']:,} rows without a file here have only their source id compared")
    for other, theirs in enumerate(sides):
        if other not in evaluated and other != number:
            rows = np.unique(np.concatenate([matches.shared(number, other).left for matches in kinds.values()]))
            if len(rows):
                kept = "which has other groups" if theirs.split == "dev" else "which is not evaluated"
                reasons.append(f"{len(rows):,} rows match {theirs.title}, {kept}")
    names = " or ".join(_TITLES[kind] for kind in kinds)
    pictures = "" if "frames" in kinds else "; pictures were not compared (--frames)"
    return "; ".join([f"no row of an evaluated split has the same {names}{pictures}", *reasons])


_TITLES = {"source": "source ids", "file": "files", "frames": "frames"}


def print_overlap(results: dict[str, Any]) -> None:
    """Print the results of `overlap` as tables on stdout. Numbers of rows are `left / right`."""
    kinds, pairs = results["kinds"], results["pairs"]
    shown = [pair for pair in pairs if len(pairs) <= _ALL_SHOWN or any(pair[kind]["distinct"] for kind in kinds)]
    columns = ["split", "against", *(title for kind in kinds for title in (_TITLES[kind], "rows"))]
    print_table(columns, [_cells(pair, kinds) for pair in shown])
    if len(shown) < len(pairs):
        tell(f"{len(pairs) - len(shown)} other pairs of splits share nothing")
    if results["excluded"]:
        print()
        columns = ["data set", "train rows", "excluded", *(f"by {_TITLES[kind]}" for kind in kinds)]
        print_table(columns, [_excluded_line(row, kinds) for row in results["excluded"]])
        for row in results["excluded"]:
            if row["why"]:
                tell(f"{row['dataset']}: none excluded: {row['why']}")
    for media in dict.fromkeys(chance["media"] for chance in results["chance"]):
        tell(f"{media} frames match {_rule(media)}")
    for chance in results["chance"]:
        tell(_chance_line(chance))
    for row in results["doubtful"]:
        tell(_doubtful_line(row))
    say(f"exclusions: {results['exclusions']}")


def _cells(pair: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    cells = [f"{pair[side]['dataset']} {pair[side]['split']}" for side in ("left", "right")]
    for counts in (pair[kind] for kind in kinds):
        rows = f"{counts['left_rows']:,} / {counts['right_rows']:,}" if counts["distinct"] else ""
        cells += [f"{counts['distinct']:,}", rows]
    return cells


def _excluded_line(row: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    numbers = [row["train_rows"], row["excluded"], *(row["by"].get(kind, 0) for kind in kinds)]
    return [row["dataset"], *(f"{number:,}" for number in numbers)]


def _rule(media: str) -> str:
    video_rule = f"{AGREE} frames within {RADIUS} of 64 bits, one within {SURE}"
    return video_rule if media == "video" else f"within {SURE_IMAGE} of 64 bits"


def _chance_line(chance: dict[str, Any]) -> str:
    """How often different clips of a data set match, in one line."""
    name, noun = chance["dataset"], f"{chance['media']}s"
    if not chance["pairs"]:
        return f"{name}: false matches: not measured, no two {noun} have other labels and sources"
    different = f"{chance['pairs']:,} pairs of different classes"
    measured = f"{chance['matched']:,} of {different} match"
    if chance["limit"] is not None:
        most = f"at most {chance['limit']:.1f} bits on average" if chance["limit"] >= 0 else "no bits, so none"
        measured += f", so {noun} of this set count as copies with {most}"
    bound = f"{chance['expected']:.2g} (under {chance['upper'] * chance['compared']:.2g} at 95 %)"
    total = f"{bound} of {chance['compared']:,} compared pairs match by chance"
    same = f"{chance['same_class_matched']:,} of {chance['same_class']:,} pairs of one class and other groups match"
    return f"{name}: {measured}; {total}; {same}, which copies do too"


def _doubtful_line(row: dict[str, Any]) -> str:
    example = row["examples"][0]
    pair = f"{example['left']['sample_id']} and {example['right']['dataset']} {example['right']['sample_id']}"
    return (
        f"{row['dataset']}: {row['rows']:,} train rows look like evaluated rows, but no more than different rows of the"
        f" set do: not excluded, look at them (--json has examples), such as {pair}"
    )
