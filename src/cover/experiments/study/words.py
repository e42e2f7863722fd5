"""How are a study's arms, sizes, sources and figures called in a sentence?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cover.experiments.finding import listed

ARM_WORDS = {
    "alone": "alone", "alone_long": "alone, equal compute", "videos": "co-trained on videos",
    "videos_images": "co-trained on videos and images", "stills": "co-trained, stills for images",
    "permuted": "co-trained, other labels permuted", "origin": "before: pre-trained on images",
}  # fmt: skip
# A colour each, and a dash where it stands beside its like: told apart without colour too.
ARM_TONES = {
    "alone": "single", "alone_long": "single dashed", "videos": "pretrained", "videos_images": "cotrained", "stills": "extra dotted",
    "permuted": "plain dashed", "origin": "plain",
}  # fmt: skip
HOW_WORDS = {"finetune": "fine-tuned", "probe": "head alone trained"}
Row = Mapping[str, Any]


def percent(share: float) -> str:
    """A share in per cent.

    >>> percent(0.6321)
    '63.2'
    """
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in points, always signed; never a signed zero that reads as a loss."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text


def spread(low: float, high: float) -> str:
    """An interval of an accuracy, in per cent."""
    return f"{percent(low)} to {percent(high)}"


def gap(low: float, high: float) -> str:
    """An interval of a difference, in points."""
    return f"{points(low)} to {points(high)}"


def p_value(p: float) -> str:
    """Three decimals, and no p-value of zero."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(number: float) -> str:
    """Thousands apart."""
    return f"{number:,.0f}"


def few(values: Iterable[Any], most: int = 3) -> str:
    """The different ones of `values`, or where there are more than `most`, the first to the last.

    >>> few([1, 2, 1]), few(range(9))
    ('1, 2', '0 to 8')
    """
    own = sorted(set(values))
    texts = [f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value) for value in own]
    return ", ".join(texts) if len(texts) <= most or isinstance(own[0], str) else f"{texts[0]} to {texts[-1]}"


def training_sets(study: Row, arm: str) -> tuple[str, str]:
    """What an arm's model of a target is trained on, and a remark."""
    videos = list(dict.fromkeys([*study["videos"], *study["targets"]])) if study["videos"] else ["that set"]
    if arm in ("alone", "alone_long"):
        return "that set alone", "longer" if arm == "alone_long" else ""
    if arm == "videos":
        return " + ".join(videos), ""
    if arm == "stills":
        return " + ".join([*videos, "its stills"]), f"{study['stills']} stills of each training clip"
    return " + ".join([*videos, *study["images"]]), "labels of all but that set permuted" if arm == "permuted" else ""


def one_for_all(rows: Sequence[Row]) -> bool:
    """Whether an arm's numbers are all of one and the same model (of each seed)."""
    return len(rows) > 1 and len({tuple(row["runs"]) for row in rows}) == 1


def size_words(study: Row, name: str) -> str:
    """A size and what it is."""
    size = study["sizes"][name]
    rate = f", {percent(size['rate'])} % of the clips of a mixture" if size["rate"] else ""
    return f"{name}: {100 * size['part']:g} % of the training clips, {size['epochs']:g} epochs of them{rate}"


def setting(study: Row, size: str, origin: str) -> str:
    """Size and starting weights, as far as the study has several: what tells two rows of one arm apart."""
    words = [size] if len(study["sizes"]) > 1 and size else []
    words += [f"from {origin}"] if len(study["origins"]) > 1 and origin else []
    return ", ".join(words)


def origin_words(study: Row, name: str) -> str:
    """What the starting weights are."""
    origin = study["origins"][name]
    if origin["sets"]:
        return f"{listed(origin['sets'])}, {count(origin['steps'])} steps"
    return origin["checkpoint"] or "random weights"


def source_of(arm: str) -> tuple[str, str]:
    """A transfer's source, and how it was taken up."""
    source, _, how = arm.rpartition(":")
    return source, how


def unique(values: Iterable[Any]) -> list[Any]:
    """Each once, in their order."""
    return list(dict.fromkeys(values))


def by(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows with the same values of `keys`, in their order."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def seeds_of(summary: Row) -> Sequence[int]:
    """The seeds of the study's runs."""
    return list(summary["study"]["seeds"])
