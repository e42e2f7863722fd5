"""What does a study say about the article's claims? Shown, not shown or the opposite shown, on which data sets, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cover.studies.finding import listed, number
from cover.studies.grid.words import ARM_WORDS, HOW_WORDS, Row, by, gap, p_value, points, setting, source_of, unique

SHOWN, NOT_SHOWN, OPPOSITE = "shown", "not shown", "the opposite shown"
VERDICTS = ("better", "not worse", "no difference shown", "worse")


@dataclass(frozen=True)
class Claim:
    """`enough`: the verdicts that show it; `needs`: what a study that does not ask it lacks."""

    key: str
    words: str
    enough: tuple[str, ...]
    needs: str


CLAIMS = (
    Claim("a", "One co-trained model is at least as good on each data set as a model of that set alone", ("better", "not worse"),
          "the arm alone and a mixture"),
    Claim("b", "Images beside the videos help", ("better",), "the arms videos and videos_images"),
    Claim("c", "A co-trained model transfers better to another data set", ("better",), "a transfer with a source of several data sets"),
    Claim("d", "The gain grows as the target shrinks", ("better",), "a second size, the arm alone and a mixture"),
)  # fmt: skip
# Beside the claims themselves: what else was asked, and how to take the answer.
ASIDES = {
    "a, equal compute": "At equal compute: against the target alone, trained for as much arithmetic as the full mixture takes",
    "control": "Controls: better than stills means that it is not single frames as such that help; better than alone with "
    "the other labels permuted would mean that the gain does not come from what the other sets teach",
}


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
    """How `claim` stands, from all comparisons that were made for it."""
    asked = [row for row in summary["comparisons"] if row["claim"] == claim.key]
    if not asked:
        return Standing(claim, "not asked", f"this study lacks {claim.needs}", [])
    sentences = [sentence(rows, summary["study"]) for rows in by(asked, "family").values()]
    main = _main(claim, asked)
    found = [outcome(claim, row) for row in main]
    word = found[0] if len(set(found)) == 1 else "shown in part" if SHOWN in found else "mostly not shown"
    return Standing(claim, word, _where(claim, main, summary["study"]), sentences)


def _main(claim: Claim, rows: list[Row]) -> list[Row]:
    """The comparisons that the claim stands or falls with: those of the full mixture where there is one."""
    full = [row for row in rows if row["ours"] == "videos_images"]
    return full if claim.key == "a" and full else rows


def _where(claim: Claim, rows: Sequence[Row], study: Row) -> str:
    """Data sets by outcome; where one is in several, with the settings that differ."""
    places: dict[str, list[str]] = {SHOWN: [], NOT_SHOWN: [], OPPOSITE: []}
    for (target,), own in by(rows, "target").items():
        found = unique(outcome(claim, row) for row in own)
        for said in found:
            settings = [qualifier(row, study) for row in own if outcome(claim, row) == said]
            places[said].append(target if len(found) == 1 else f"{target} ({'; '.join(settings)})")
    return ", ".join(f"{said} on {listed(names)}" for said, names in places.items() if names)


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
    margin = f"{100 * row['margin']:.1f} points"
    if row["claim"] == "d":
        larger = {"better": "larger", "worse": "smaller", "not worse": f"not smaller by {margin} or more, and not shown to be larger,"}
        return larger.get(verdict, verdict)
    return f"not worse (no loss of {margin} or more)" if verdict == "not worse" else verdict


def _figures(row: Row) -> str:
    name = f"{row['target']} against {source_of(row['theirs'])[0]}" if row["claim"] == "c" else row["target"]
    unseen = row["verdict"] in ("not worse", "no difference shown") and row["detectable"] is not None
    could = f"; {100 * row['detectable']:.1f} could have been found" if unseen else ""
    return f"{name} ({points(row['difference'])} points, {gap(row['low'], row['high'])}, p\u00a0{p_value(row['p_holm'])}{could})"


def asides(summary: Row) -> dict[str, list[str]]:
    """What was asked beside the claims: how to take it, and its sentences."""
    found = {}
    for claim, words in ASIDES.items():
        asked = [row for row in summary["comparisons"] if row["claim"] == claim]
        if asked:
            found[words] = [sentence(rows, summary["study"]) for rows in by(asked, "family").values()]
    return found


def overall(standings: Iterable[Standing]) -> str:
    """One sentence over all claims."""
    by_word: dict[str, list[str]] = {}
    for each in standings:
        by_word.setdefault(each.word, []).append(each.claim.key)
    asked = sum(len(keys) for word, keys in by_word.items() if word != "not asked")
    if not asked:
        return "None of the article's claims was asked about."
    order = [SHOWN, "shown in part", NOT_SHOWN, "mostly not shown", OPPOSITE]
    said = [f"{word}: {listed(by_word[word])}" for word in order if word in by_word]
    return f"Of the article's claims {number(asked)} {'was' if asked == 1 else 'were'} asked about. On these data, {'; '.join(said)}."


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
        said.append(f"With {number(seeds)} seeds the intervals are somewhat too narrow: so few runs show less spread than there is.")
    said.append('"No difference shown" means that neither a difference nor its absence has been shown.')
    return " ".join(said)
