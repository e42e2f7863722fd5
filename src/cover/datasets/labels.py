"""`cover labels`: which classes of several data sets are the same, by their names, and which sets can share a head.

Names are compared one to one: `exact` are equal; `normalised` are equal without case, spaces, underscores, punctuation
and Unicode form; `near` have mostly the same words, or differ by a qualifier in brackets. A shared head joins classes
whose names are equal, so the other pairs are for a person to look at: the names in one of the two lists can be changed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from cover.console import print_table, say, tell
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.manifest import ClassList
from cover.errors import UserError

Kind = Literal["exact", "normalised", "near"]
# Similarity from which two names are near. Between Kinetics-400 and the merged Kinetics-710, whose renames are known,
# 0.85 finds 6 of 13 and no wrong one; between Kinetics-400 and 600, 0.8 takes "playing darts" for "playing cards".
NEAR = 0.85
QUALIFIED = 0.9  # similarity of names of which one has a qualifier in brackets, as "hugging" and "hugging (not baby)"
SHARED_FROM = 0.5  # fraction of the smaller set's classes, exact ones, from which a shared head is proposed
SHOWN = 20  # pairs on the terminal
_SMALL_WORDS = frozenset(["a", "an", "the", "of", "to", "in", "on", "at", "with", "and", "or", "something", "someone"])


@dataclass(frozen=True)
class LabelPair:
    """A class of each of two data sets with related names. `similarity`: from 0 to 1."""

    left: str
    right: str
    kind: Kind
    similarity: float


@dataclass(frozen=True)
class LabelRelation:
    """The related classes of two data sets, the surest first.

    `left_classes`, `right_classes`: numbers of classes. `same_kind`: whether both have one class for each sample, or
    both any number; others cannot share a head.
    """

    left: str
    right: str
    left_classes: int
    right_classes: int
    pairs: tuple[LabelPair, ...]
    same_kind: bool = True

    def count(self, kind: Kind) -> int:
        """The number of pairs of a kind."""
        return sum(pair.kind == kind for pair in self.pairs)

    @property
    def can_share_head(self) -> bool:
        """Whether so many names are equal that a shared head makes sense."""
        smaller = min(self.left_classes, self.right_classes)
        return self.same_kind and self.count("exact") >= max(1, SHARED_FROM * smaller)


def normalised(name: str) -> str:
    """A name without case, Unicode form, punctuation and runs of spaces.

    >>> normalised("Playing_Guitar (Acoustic)")
    'playing guitar acoustic'
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", text).split()) or name  # signs alone, as "+", say what the class is


def relate(left: Sequence[str], right: Sequence[str], near: float = NEAR) -> tuple[LabelPair, ...]:
    """The pairs of related names of two class lists, each name in at most one pair."""
    equal = set(left) & set(right)
    pairs = [LabelPair(name, name, "exact", 1.0) for name in left if name in equal]
    rest_left, rest_right = ([name for name in names if name not in equal] for names in (left, right))
    by_form = {normalised(name): name for name in reversed(rest_right)}
    for name in rest_left:
        if (other := by_form.pop(normalised(name), None)) is not None:
            pairs.append(LabelPair(name, other, "normalised", 1.0))
    done_left, done_right = ({pair.left for pair in pairs}, {pair.right for pair in pairs})
    candidates = _near_pairs(
        [name for name in rest_left if name not in done_left],
        [name for name in rest_right if name not in done_right],
        near,
    )
    for pair in sorted(candidates, key=lambda pair: (-pair.similarity, pair.left, pair.right)):
        if pair.left not in done_left and pair.right not in done_right:
            pairs.append(pair)
            done_left.add(pair.left)
            done_right.add(pair.right)
    return tuple(pairs)


def _near_pairs(left: Sequence[str], right: Sequence[str], near: float) -> Iterator[LabelPair]:
    """The pairs that have a word in common and are similar enough."""
    with_word: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(right):
        for word in _words(name):
            with_word[word].append(number)
    for name in left:
        for number in sorted({each for word in _words(name) for each in with_word[word]}):
            similarity = _similarity(name, right[number])
            if similarity >= near:
                yield LabelPair(name, right[number], "near", round(similarity, 3))


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    """The words of a name that say what it is, in alphabetical order."""
    words = normalised(name).split()
    return tuple(sorted(word for word in words if word not in _SMALL_WORDS)) or tuple(sorted(words))


def _similarity(left: str, right: str) -> float:
    """The similarity of the letters of the words of two names; less than 1 where only small words differ."""
    if (words := _words(left)) == (others := _words(right)):
        return 0.99
    brief, other_brief = (re.sub(r"\([^)]*\)", "", name) for name in (left, right))
    if (brief == left) != (other_brief == right) and _words(brief) == _words(other_brief):
        return QUALIFIED
    if ("not" in words) != ("not" in others):
        return 0.0
    return SequenceMatcher(None, " ".join(words), " ".join(others), autojunk=False).ratio()


# --- data sets of a catalog -------------------------------------------------------------------------------------------


def related_sets(
    catalog_path: str | Path, names: Sequence[str] | None = None, near: float = NEAR
) -> list[LabelRelation]:
    """The relations of every two data sets of a catalog. Raises `UserError` if fewer than two are indexed."""
    catalog = load_catalog(catalog_path)
    chosen = list(dict.fromkeys(names or [name for name in catalog.specs if _split(catalog, name)]))
    classes = {name: _classes(catalog, name) for name in chosen}
    if len(classes) < 2:
        raise UserError(
            f"{catalog.path}: names relate two or more indexed data sets, and there is {', '.join(classes) or 'none'}; "
            f"add another, or run `{catalog.index_command()}`"
        )
    return [_relation((one, classes[one]), (other, classes[other]), near) for one, other in combinations(classes, 2)]


def _relation(left: tuple[str, ClassList], right: tuple[str, ClassList], near: float) -> LabelRelation:
    (left_name, ours), (right_name, theirs) = left, right
    pairs = relate(ours.names, theirs.names, near)
    counts = len(ours.names), len(theirs.names)
    return LabelRelation(left_name, right_name, *counts, pairs, ours.many == theirs.many)


def _split(catalog: Catalog, name: str) -> str | None:
    return next((split for split in catalog.spec(name).splits if catalog.has_manifest(name, split)), None)


def _classes(catalog: Catalog, name: str) -> ClassList:
    split = _split(catalog, name)
    if split is None:
        raise UserError(f"{name}: not indexed; run `{catalog.index_command(name)}`")
    return catalog.manifest(name, split).classes


def shared_heads(relations: Sequence[LabelRelation]) -> list[list[str]]:
    """Groups of data sets that can share a head: those that `LabelRelation.can_share_head` connects."""
    groups: list[list[str]] = []
    for relation in relations:
        if not relation.can_share_head:
            continue
        known = [group for group in groups if relation.left in group or relation.right in group]
        joined = list(dict.fromkeys([*(name for group in known for name in group), relation.left, relation.right]))
        groups = [group for group in groups if group not in known] + [joined]
    return groups


def as_json(relations: Sequence[LabelRelation]) -> dict[str, Any]:
    """The relations and the proposed heads as plain JSON values."""
    return {"relations": [asdict(relation) for relation in relations], "shared_heads": shared_heads(relations)}


def print_labels(relations: Sequence[LabelRelation]) -> None:
    """Print a table of the counts and the pairs that are not equal on stdout, proposals on stderr."""
    columns = ["data sets", "classes", "exact", "normalised", "near"]
    rows = [
        [
            f"{each.left}, {each.right}",
            f"{each.left_classes}, {each.right_classes}",
            *(str(each.count(kind)) for kind in ("exact", "normalised", "near")),
        ]
        for each in relations
    ]
    print_table(columns, rows)
    for each in relations:
        other = [pair for pair in each.pairs if pair.kind != "exact"]
        for pair in other[:SHOWN]:
            tell(f'{pair.kind}: {each.left} "{pair.left}" - {each.right} "{pair.right}"')
        if other[SHOWN:]:
            tell(f"and {len(other) - SHOWN} more pairs of {each.left} and {each.right} (--json has all)")
    for group in shared_heads(relations):
        say(f"these can share a head; in a recipe, data.heads: {{{group[0]}_and_others: [{', '.join(group)}]}}")
    if any(each.count("normalised") + each.count("near") for each in relations):
        say("a shared head joins equal names only: change the others in one of the lists if they mean the same")
