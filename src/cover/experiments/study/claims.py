"""What does a study say about the article's claims? Shown, not shown or the opposite shown, on which data sets, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cover.experiments.finding import listed, number
from cover.experiments.study.words import ARM_WORDS, HOW_WORDS, Row, by, gap, p_value, points, setting, source_of, unique

SHOWN, NOT_SHOWN, OPPOSITE = "shown", "not shown", "the opposite shown"
WORDS = (SHOWN, "shown in part", NOT_SHOWN, "not shown, in part the opposite", OPPOSITE, "not asked")
VERDICTS = ("better", "not worse", "no difference shown", "worse")


@dataclass(frozen=True)
class Claim:
    """`short`: within a sentence; `enough`: the verdicts that show it; `needs`: what a study that does not ask it lacks."""

    key: str
    short: str
    words: str
    enough: tuple[str, ...]
    needs: str


CLAIMS = (
    Claim("a", "as good as alone", "One co-trained model is at least as good on each data set as a model of that set alone",
          ("better", "not worse"), "the arm alone and a mixture"),
    Claim("b", "images help", "Images beside the videos help", ("better",), "the arms videos and videos_images"),
    Claim("c", "better transfer", "A co-trained model transfers better to another data set", ("better",),
          "a transfer with a source of several data sets"),
    Claim("d", "larger gain on smaller data", "The gain grows as the target shrinks", ("better",),
          "a second size, or the arm alone and a mixture"),
)  # fmt: skip
# Beside the claims themselves: what else was asked, by claim and arm of comparisons, and how to take the answer.
ASIDES = {
    "Without images": ("a", "videos", "the mixture of videos alone against the target alone"),
    "At equal compute": ("a, equal compute", "", "the target alone is trained for as much arithmetic as the full mixture takes"),
    "Against stills": ("control", "videos_images", "stills of the target's own clips in place of the images; better means that it is not "
                       "single frames as such that help"),
    "Other labels permuted": ("control", "permuted", "worse or no better than alone is as it should be; better would mean that the gain "
                              "does not come from what the other sets teach"),
}  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """How a claim stands: `word` for all of it, `where` by data set, and one sentence for every family of comparisons."""

    claim: Claim
    word: str
    where: str
    sentences: list[str]


def outcome(claim: Claim, row: Row) -> str:
    """What one comparison says about a claim."""
    return SHOWN if row["verdict"] in claim.enough else OPPOSITE if row["verdict"] == "worse" else NOT_SHOWN


def standing(claim: Claim, summary: Row) -> Standing:
    """How `claim` stands, from the comparisons that were made for it: those of the full mixture where there is one."""
    asked = [row for row in summary["comparisons"] if row["claim"] == claim.key]
    if not asked:
        return Standing(claim, "not asked", f"this study lacks {claim.needs}", [])
    full = [row for row in asked if row["ours"] == "videos_images"]
    main = full if claim.key == "a" and full else asked
    found = {outcome(claim, row) for row in main}
    mixed = "shown in part" if SHOWN in found else "not shown, in part the opposite"
    return Standing(claim, mixed if len(found) > 1 else found.pop(), _where(claim, main), _sentences(main, summary["study"]))


def _sentences(rows: Sequence[Row], study: Row) -> list[str]:
    return [sentence(own, study) for own in by(rows, "family").values()]


def _where(claim: Claim, rows: Sequence[Row]) -> str:
    """Data sets by outcome; where one is in several, in how many of its settings."""
    places: dict[str, list[str]] = {SHOWN: [], NOT_SHOWN: [], OPPOSITE: []}
    for (target,), own in by(rows, "target").items():
        found = [outcome(claim, row) for row in own]
        for said in unique(found):
            times = "" if len(set(found)) == 1 else f" in {found.count(said)} of {len(found)} settings"
            places[said].append(f"{target}{times}")
    told = {said: names for said, names in places.items() if names}
    if len(told) == 1:
        return f"on {listed(next(iter(told.values())))}"
    return ", ".join(f"{said} on {listed(names)}" for said, names in told.items())


def qualifier(row: Row, study: Row) -> str:
    """What tells a comparison apart from others on the same data set."""
    if row["claim"] == "c":
        source, how = source_of(row["theirs"])
        return f"{HOW_WORDS[how]}, against {source}"
    if row["claim"] == "d":
        return f"{row['ours']} against {row['theirs']}" + (f", from {row['origin']}" if len(study["origins"]) > 1 else "")
    return setting(study, row["size"], row["origin"])


def lead(row: Row, study: Row) -> str:
    """What is compared with what, in a family."""
    if row["claim"] == "c":
        source, how = source_of(row["ours"])
        return f"{source} as source, {HOW_WORDS[how]}, against each other source"
    if row["claim"] == "d":
        mixture = ARM_WORDS[row["size"]]
        return f"Gain of {mixture} over alone, {qualifier(row, study)}"
    beside = setting(study, row["size"], row["origin"])
    words = f"{ARM_WORDS[row['ours']]}, against {ARM_WORDS[row['theirs']]}"
    return f"{words[0].upper()}{words[1:]}" + (f" ({beside})" if beside else "")


def sentence(rows: Sequence[Row], study: Row) -> str:
    """One family of comparisons in one sentence: every data set with its difference, interval and corrected p-value."""
    said = []
    for verdict in VERDICTS:
        own = [row for row in rows if row["verdict"] == verdict]
        if own:
            said.append(f"{_verdict(verdict, rows[0])} on {listed([_figures(row) for row in own])}")
    return f"{lead(rows[0], study)}: {'; '.join(said)}."


def _verdict(verdict: str, row: Row) -> str:
    if row["claim"] == "d":
        larger = {"better": "larger", "worse": "smaller", "not worse": "not shown to be larger, and not smaller by the margin,"}
        return larger.get(verdict, verdict)
    return "no gain shown, and not worse," if verdict == "not worse" and row["claim"] in ("b", "c") else verdict


def _figures(row: Row) -> str:
    name = f"{row['target']} against {source_of(row['theirs'])[0]}" if row["claim"] == "c" else row["target"]
    unseen = row["verdict"] in ("not worse", "no difference shown") and row["detectable"] is not None
    could = f"; {100 * row['detectable']:.1f} could have been found" if unseen else ""
    return f"{name} ({points(row['difference'])}\u00a0points, {gap(row['low'], row['high'])}, p\u00a0{p_value(row['p_holm'])}{could})"


def asides(summary: Row) -> list[tuple[str, str, list[str]]]:
    """What was asked beside the claims: its name, what it is, its sentences."""
    found = []
    for name, (claim, ours, words) in ASIDES.items():
        asked = [row for row in summary["comparisons"] if row["claim"] == claim and ours in ("", row["ours"])]
        main = claim == "a" and not any(row["ours"] == "videos_images" for row in summary["comparisons"] if row["claim"] == "a")
        if asked and not main:
            found.append((name, words, _sentences(asked, summary["study"])))
    return found


def overall(standings: Iterable[Standing]) -> str:
    """All claims in a few words."""
    by_word: dict[str, list[str]] = {}
    for each in standings:
        by_word.setdefault(each.word, []).append(f"{each.claim.short} ({each.claim.key})")
    said = [f"{word[0].upper()}{word[1:]}: {listed(by_word[word])}." for word in WORDS if word in by_word]
    return " ".join(said)


def expected(summary: Row) -> str:
    """What the study could be expected to find, as it was worked out before running."""
    said = [f"{100 * row['detectable']:.1f}\u00a0points on {row['target']}" for row in summary["planned"]]
    return f"Before it was run, the smallest true difference of two arms that it could be expected to find was {listed(said)}."


def caution(summary: Row) -> str:
    """What these numbers cannot carry."""
    seeds = len(summary["study"]["seeds"])
    said = []
    if summary["generated"]:
        said.append("The data sets are generated and share one generator: they prove that the instrument works, and nothing about "
                    "real videos.")  # fmt: skip
    if seeds == 1:
        said.append("There is one seed: the intervals are over sources alone, and how far another seed would move a figure is not in them.")
    elif seeds < 5:
        said.append(f"{number(seeds).capitalize()} seeds tell little about how far runs lie apart: where that is further than clips do, "
                    "the intervals are too narrow.")  # fmt: skip
    said.append('"No difference shown" means that neither a difference nor its absence has been shown.')
    return " ".join(said)
