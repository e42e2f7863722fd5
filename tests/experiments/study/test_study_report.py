"""The page and the Markdown of a study hold every number with its protocol, say what is missing, and judge in plain words."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cover.evaluation.statistics import Estimate, holm, verdict
from cover.experiments.differences import Difference, forest, signed_ticks, span_of
from cover.experiments.study.claims import CLAIMS, standing
from cover.experiments.study.comparisons import Question, questions
from cover.experiments.study.config import ARMS, Origin, Size, Study, Transfer
from cover.experiments.study.layout import Cell, Table, plain
from cover.experiments.study.report import markdown, write_study_report
from cover.experiments.study.words import few, points

HOSTILE = '<img src="http://evil" onerror=alert(1)> & \'quoted\' | "ü" 跳'
CHANCE = {"kinetics": 8, "ssv2": 12, "moments": 10, "imagenet": 20, "places": 16}
GAIN = {"alone": 0.0, "alone_long": 0.012, "videos": 0.021, "videos_images": 0.043, "stills": 0.018, "permuted": -0.06}


def study_of(**given: Any) -> Study:
    return Study(**{
        "catalog": "sandbox/catalog.yaml", "out": "studies/made up", "targets": ["kinetics", "ssv2", "moments"],
        "videos": ["kinetics", "ssv2", "moments"], "images": ["imagenet"], "arms": list(ARMS), "seeds": [0, 1, 2], "margin": 0.02,
        "sizes": {"whole": Size(30), "tenth": Size(60, 0.1, 0.25)}, "lrs": [5e-4, 1e-3], "probes": ["imagenet", "places"],
        "origins": {"scratch": Origin(), "images": Origin(sets=["imagenet"], steps=4000)},
        "transfer": Transfer(
            sources={"kinetics": ["kinetics"], "ssv2": ["ssv2"], "cotrained": ["kinetics", "ssv2", "imagenet"]}, targets=["ssv2"],
            how=["finetune", "probe"],
        ),
        **given,
    })  # fmt: skip


class Maker:
    """Figures as a real study might have them, the same each time."""

    def __init__(self, study: Study) -> None:
        self.study, self.rng = study, np.random.default_rng(3)

    def row(self, arm: str, dataset: str, size: str, origin: str, top1: float) -> dict[str, Any]:
        by_seed = [round(float(np.clip(top1 + self.rng.normal(0, 0.012), 0, 1)), 6) for _ in self.study.seeds]
        mean = float(np.mean(by_seed))
        step = int(self.rng.integers(4, 9)) * 250
        of = "all" if arm in ("videos", "videos_images") else dataset
        return {
            "arm": arm, "dataset": dataset, "size": size, "origin": origin, "top1": mean, "low": mean - 0.031, "high": mean + 0.029,
            "by_seed": by_seed, "items": 398, "sources": 391, "chance": 1 / CHANCE[dataset], "split": "val", "views": "1x3", "frames": 8,
            "sampling": "dense@0.25", "classes": CHANCE[dataset], "class_digest": f"9f31c2ab0{len(dataset):03d}", "n_read": 398,
            "n_listed": 1400, "decoder": None if dataset in ("imagenet", "places") else "pyav 18.1.0",
            "media": "image" if dataset in ("imagenet", "places") else "video",
            "checkpoint_steps": [step - 250, step], "steps": 2000, "seen": 13_312,
            "gap": {"train": min(1.0, mean + self.rng.uniform(0.05, 0.25)), "dev": mean + 0.013},
            "lrs": [5e-4, 1e-3], "runs": [f"{arm}.{of}.{size}.{origin}.s{seed}" for seed in self.study.seeds],
        }  # fmt: skip

    def arms(self) -> list[dict[str, Any]]:
        base = {"kinetics": 0.632, "ssv2": 0.441, "moments": 0.318}
        start, small = {"scratch": 0.0, "images": 0.09}, {"whole": 0.0, "tenth": -0.19}
        return [
            self.row(arm, target, size, origin, base[target] + start[origin] + small[size] + GAIN[arm])
            for origin in self.study.origins for size in self.study.sizes for target in self.study.targets for arm in self.study.arms
        ]  # fmt: skip

    def transfers(self) -> list[dict[str, Any]]:
        wanted, size = self.study.transfer, next(iter(self.study.sizes))
        level = {"kinetics": 0.41, "ssv2": 0.44, "cotrained": 0.475}
        return [
            self.row(f"{source}:{how}", target, size, "", level[source] - 0.1 * (how == "probe"))
            for target in wanted.targets for how in wanted.how for source in wanted.sources
        ]  # fmt: skip

    def probes(self) -> list[dict[str, Any]]:
        rows = []
        for origin in self.study.origins:
            for arm in self.study.arms:
                shared = arm in ("videos", "videos_images")
                same = [self.row(arm, name, "whole", origin, 0.3 + 5 * GAIN[arm]) for name in self.study.probes]
                for target in self.study.targets:
                    own = (
                        same
                        if shared
                        else [self.row(f"{arm} {target}", name, "whole", origin, 0.3 + GAIN[arm]) for name in self.study.probes]
                    )
                    rows += [{**row, "arm": f"{arm}:{target}"} for row in own]
        return rows

    def origins(self) -> list[dict[str, Any]]:
        made = [name for name, origin in self.study.origins.items() if origin.sets]
        return [self.row("origin", name, "", origin, 0.52) for origin in made for name in self.study.probes]

    def comparisons(self) -> list[dict[str, Any]]:
        found = []
        asked = questions(self.study)
        for family in dict.fromkeys(question.family for question in asked):
            own = [question for question in asked if question.family == family]
            drawn = {question.name: self.estimate(question) for question in own}
            corrected = holm({name: estimate.p or 0.0 for name, estimate in drawn.items()})
            found += [self.comparison(question, drawn[question.name], corrected[question.name]) for question in own]
        return found

    def estimate(self, question: Question) -> Estimate:
        true = GAIN.get(question.ours, 0.03) - GAIN.get(question.theirs, 0.0)
        value, half = float(true + self.rng.normal(0, 0.012)), float(self.rng.uniform(0.01, 0.035))
        return Estimate(value, value - half, value + half, float(max(0.0009995, min(1.0, 2 * np.exp(-2.2 * (abs(value) / half) ** 2)))))

    def comparison(self, question: Question, found: Estimate, p: float) -> dict[str, Any]:
        many = len(self.study.seeds) > 1
        return {
            **asdict(question), "difference": found.value, "low": found.low, "high": found.high, "level": 0.95, "p": found.p, "p_holm": p,
            "margin": self.study.margin, "verdict": verdict(found, p, self.study.margin), "seeds": len(self.study.seeds), "items": 398,
            "sources": 391, "detectable": (found.high - found.low) * 0.7 if many else None,
        }  # fmt: skip

    def curves(self) -> list[dict[str, Any]]:
        seen = np.linspace(550, 13_312, 24)
        rows = []
        for origin in self.study.origins:
            for size in self.study.sizes:
                for target in self.study.targets:
                    for arm in self.study.arms:
                        rise = (0.4 + GAIN[arm]) * (1 - np.exp(-seen / 4000)) + self.rng.normal(0, 0.008, 24)
                        rows.append({
                            "arm": arm, "target": target, "size": size, "origin": origin, "train": list(map(list, zip(seen, rise + 0.1))),
                            "dev": list(map(list, zip(seen[5::6], rise[5::6]))), "loss": list(map(list, zip(seen, 2.4 - 3 * rise))),
                        })  # fmt: skip
        return rows

    def per_class(self) -> list[dict[str, Any]]:
        counts = {"kinetics": 8, "ssv2": 12, "moments": 40}
        return [
            {"arm": arm, "target": target, "size": size, "origin": "images", "classes": {
                f"{target} class {number}": {"gain": float(self.rng.normal(0.03, 0.08)), "items": 9 + number}
                for number in range(counts[target])
            }}
            for arm in ("videos", "videos_images") if arm in self.study.arms
            for size in self.study.sizes for target in self.study.targets
        ]  # fmt: skip

    def rates(self) -> list[dict[str, Any]]:
        seen = {"kinetics": 13_312, "ssv2": 9_108, "moments": 7_590, "imagenet": 29_990}
        return [
            {"arm": arm, "target": "kinetics", "size": size, "run": f"{arm}.{size}.scratch.s0", "steps": 2000, "batch": 30, "seen": seen,
             "rates": {name: number / 60_000 for name, number in seen.items()}}
            for size in self.study.sizes for arm in self.study.arms if arm not in ("alone", "alone_long")
        ]  # fmt: skip


def summary_of(study: Study | None = None) -> dict[str, Any]:
    """What `summarise` makes, of made-up figures."""
    study = study or study_of()
    maker = Maker(study)
    targets = dict.fromkeys([*study.targets, *study.transfer.targets])
    planned = [{"target": name, "items": 398, "sources": 391, "seeds": len(study.seeds), "detectable": 0.0512} for name in targets]
    return {
        "cover": "1.2.3", "study": asdict(study), "arms_mean": ARMS, "generated": True, "arms": maker.arms(),
        "transfers": maker.transfers() if study.transfer.wanted else [], "probes": maker.probes(), "origins": maker.origins(),
        "comparisons": maker.comparisons(), "planned": planned, "per_class": maker.per_class(), "curves": maker.curves(),
        "rates": maker.rates(),
        "runs": [{"name": "alone.s0", "step": 1750, "steps": 2000, "seed": 0, "lr": 1e-3, "sets": ["a"], "seconds": 5400.0, "digest": "0"}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return summary_of()


@pytest.fixture(scope="module")
def small() -> Study:
    """One seed, one size, from scratch, of videos alone, without transfers and probes."""
    return study_of(
        seeds=[0],
        arms=["alone", "videos"],
        images=[],
        probes=[],
        transfer=Transfer(),
        sizes={"whole": Size(3)},
        origins={"scratch": Origin()},
    )


class Page(HTMLParser):
    """The text of a page; what is opened must be closed."""

    VOID = frozenset({"meta", "link", "img", "line", "path", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "title"}:
            self.words += data + "\n"


def page_of(summary: dict[str, Any], folder: Path) -> Page:
    return Page(write_study_report(summary, folder / "new" / "report.html").read_text(encoding="utf-8"))


def tables_of(text: str) -> list[list[str]]:
    """The tables of a Markdown text, as lines."""
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def cells_of(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_every_accuracy_has_its_protocol_in_a_row_of_its_own(summary: dict[str, Any]) -> None:
    every = max(tables_of(markdown(summary)), key=len)[2:]
    wanted = [row for kind in ("arms", "transfers", "origins", "probes") for row in summary[kind]]
    assert len(every) == len(wanted)
    for line, row in zip(every, wanted, strict=True):
        steps = f"{min(row['checkpoint_steps']):,}, {max(row['checkpoint_steps']):,} (of 2,000)"
        seeds = ", ".join(f"{100 * share:.1f}" for share in row["by_seed"])
        expected = [
            row["dataset"], f"{100 * row['top1']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})", seeds,
            "split val (398 of 1,400 read)", f"{row['classes']} ({row['class_digest']})", steps, "13,312 (rate 0.0005, 0.001)",
            row["decoder"] or "–",
        ]  # fmt: skip
        assert [words for words in expected if f" {words} " not in line] == []
        assert ("1x3 (8 frames, dense@0.25)" in line) == (row["media"] == "video")


def test_every_figure_is_on_the_page(summary: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(summary, tmp_path)
    expected = []
    for kind in ("arms", "transfers", "origins", "probes"):
        expected += [f"{100 * row['top1']:.1f}" for row in summary[kind]]
        expected += [f"{100 * row['low']:.1f} to {100 * row['high']:.1f}" for row in summary[kind]]
    for row in summary["comparisons"]:
        expected += [points(row["difference"]), f"{points(row['low'])} to {points(row['high'])}", f"{row['p_holm']:.3f}", row["verdict"]]
        expected += [f"{100 * row['detectable']:.1f}"]
    for row in summary["arms"]:
        expected += [f"{100 * row['gap']['train']:.1f} train, {100 * row['gap']['dev']:.1f} dev"]
    expected += ["9f31c2ab0008", "398 of 1,400 read", "pyav 18.1.0", "checkpoint at step", "29,990 seen", "28 classes between them"]
    expected += ["cover study 'studies/made up/study.yaml' --dry-run", "1.5 hours", "1.2.3", "5.1", "0.0005, 0.001; dev chooses"]
    assert [words for words in expected if words not in page.words] == []
    assert "expected to find was 5.1\u00a0points on kinetics, 5.1\u00a0points on ssv2 and 5.1\u00a0points on moments." in page.words
    families = {row["family"] for row in summary["comparisons"]}
    assert page.tags.count("svg") == len(families) + 4 + 2 * len({(row["target"], row["size"], row["origin"]) for row in summary["curves"]})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_every_table_of_numbers_is_followed_by_how_they_were_measured(summary: dict[str, Any]) -> None:
    text = markdown(summary)
    for title, names in (("The numbers", ["kinetics", "ssv2", "moments"]), ("Transfer", ["ssv2"]), ("Images", ["imagenet", "places"])):
        part = re.split(r"^## ", text[text.index(f"## {title}") + 3 :], flags=re.MULTILINE)[0]
        for name in names:
            assert re.search(
                rf"^- {name}: split val, 1x3 views.*398 of 1,400 read, .*list 9f31.*3 seeds.*checkpoint at step", part, re.MULTILINE
            )


def test_nothing_is_fetched_from_outside(summary: dict[str, Any], tmp_path: Path) -> None:
    text = write_study_report(summary, tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith("data:") for link in page.links)
    assert re.findall(r"https?:|url\(|@import|<script", text) == []


def renamed(value: Any, old: str, new: str) -> Any:
    """The same plain data with another name for a data set, wherever it stands as a value or a key."""
    if isinstance(value, dict):
        return {renamed(key, old, new): renamed(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [renamed(each, old, new) for each in value]
    return value.replace(old, new) if isinstance(value, str) else value


def test_hostile_names_stay_text(summary: dict[str, Any], tmp_path: Path) -> None:
    hostile = renamed(summary, "ssv2", HOSTILE)
    page = page_of(hostile, tmp_path)
    assert "img" not in page.tags
    assert HOSTILE in page.words
    text = markdown(hostile)
    assert "<img" not in text
    for lines in tables_of(text):
        assert len({len(cells_of(line)) for line in lines}) == 1


def test_markdown_tables_are_well_formed(summary: dict[str, Any]) -> None:
    tables = tables_of(markdown(summary))
    assert len(tables) > 10
    for head, rule, *body in tables:
        assert re.fullmatch(r"\|---\|(---:\|)*", rule)
        assert body
        assert {len(cells_of(line)) for line in (head, rule, *body)} == {len(cells_of(head))}


def test_the_word_of_a_claim_and_its_place_are_parted(summary: dict[str, Any]) -> None:
    claims = [line for line in markdown(summary).splitlines() if line.startswith("**(")]
    assert len(claims) == 4
    assert all(re.search(r" – [a-z, ]+( on |: )", line) for line in claims), claims


def test_what_a_study_lacks_is_said(small: Study, tmp_path: Path) -> None:
    summary = summary_of(small)
    page = page_of(summary, tmp_path)
    for said in (
        "No transfer was asked for", "No image set was probed", "There is one seed: the intervals are over sources alone",
        "Of one seed the spread between runs is not known", "this study lacks the arms videos and videos_images",
        "this study lacks a transfer with a source of several data sets", "this study lacks a second size",
    ):  # fmt: skip
        assert said in page.words
    assert "None" not in page.words
    assert "nan" not in page.words.lower().split()
    assert "None" not in markdown(summary)


def test_a_study_of_transfers_alone(tmp_path: Path) -> None:
    study = study_of(arms=[], targets=["ssv2"], videos=[], images=[], probes=[])
    summary = {**summary_of(study), "arms": [], "curves": [], "rates": [], "per_class": [], "planned": []}
    page = page_of(summary, tmp_path)
    for said in ("What transfers? One data set", "No arms were trained", "No learning curve was kept.", "Every run was of one data set.",
                 "No mixture stands beside", "Nothing was worked out before running.", "No run has both"):  # fmt: skip
        assert said in page.words
    assert "cotrained → ssv2" in page.words


def test_a_study_without_a_single_comparison(small: Study, tmp_path: Path) -> None:
    summary = {**summary_of(small), "comparisons": []}
    assert "Nothing was compared" in page_of(summary, tmp_path).words
    assert "Not asked: as good as alone (a), images help (b), better transfer (c) and larger gain on smaller data (d)." in markdown(summary)


def test_missing_gaps_curves_and_rates_are_dashes(summary: dict[str, Any], tmp_path: Path) -> None:
    bare = copy.deepcopy(summary)
    for row in bare["arms"]:
        row.update(gap=None, seen=None)
    for row in bare["curves"]:
        row.update(dev=[], loss=[], train=[])
    for row in bare["rates"]:
        row.update(rates=None)
    page = page_of(bare, tmp_path)
    assert "No run has both accuracy in training and on dev." in page.words
    assert "No learning curve was kept." in page.words
    assert "None" not in page.words


def comparison(target: str, judged: str, claim: str = "a", **given: Any) -> dict[str, Any]:
    return {
        "family": f"{claim} family", "claim": claim, "target": target, "ours": "videos_images", "theirs": "alone", "size": "whole",
        "origin": "scratch", "difference": 0.0321, "low": 0.011, "high": 0.0534, "level": 0.95, "p": 0.002, "p_holm": 0.004, "margin": 0.02,
        "verdict": judged, "seeds": 3, "items": 398, "sources": 391, "detectable": 0.041, **given,
    }  # fmt: skip


def stands(claim: str, *rows: dict[str, Any]) -> tuple[str, str, list[str]]:
    study = asdict(study_of(sizes={"whole": Size(30)}, origins={"scratch": Origin()}))
    found = standing(next(each for each in CLAIMS if each.key == claim), {"study": study, "comparisons": list(rows)})
    return found.word, found.where, found.sentences


def test_at_least_as_good_is_shown_by_better_and_by_not_worse() -> None:
    word, where, (said,) = stands("a", comparison("x", "better"), comparison("y", "not worse", difference=0.001, low=-0.012, p_holm=0.71))
    assert (word, where) == ("shown", "on x and y")
    assert said == (
        "Co-trained on videos and images, against alone: better on x (+3.2\u00a0points, +1.1 to +5.3, p\u00a00.004); "
        "not worse on y (+0.1\u00a0points, -1.2 to +5.3, p\u00a00.710; 4.1 could have been found)."
    )


def test_no_difference_shown_is_said_plainly_and_shows_nothing() -> None:
    word, where, (said,) = stands("a", comparison("x", "no difference shown", low=-0.05))
    assert (word, where) == ("not shown", "on x")
    assert "no difference shown on x" in said


def test_a_gain_is_shown_by_better_alone() -> None:
    rows = [comparison("x", "better", "b"), comparison("y", "not worse", "b"), comparison("z", "worse", "b")]
    word, where, (said,) = stands("b", *rows)
    assert (word, where) == ("shown in part", "shown on x, not shown on y, the opposite shown on z")
    assert "no gain shown, and not worse, on y" in said
    assert stands("b", *rows[2:])[:2] == ("the opposite shown", "on z")
    assert stands("b", *rows[1:])[0] == "not shown, in part the opposite"


def test_a_set_in_several_settings_is_counted() -> None:
    rows = [comparison("x", "better", "b", family=str(number)) for number in range(3)] + [comparison("x", "worse", "b", family="last")]
    word, where, said = stands("b", *rows)
    assert (word, where) == ("shown in part", "shown on x in 3 of 4 settings, the opposite shown on x in 1 of 4 settings")
    assert len(said) == 4


def test_the_gain_of_a_smaller_target_is_larger_or_smaller() -> None:
    given = {"ours": "tenth", "theirs": "whole", "size": "videos_images"}
    word, _, (said,) = stands("d", comparison("x", "better", "d", **given), comparison("y", "worse", "d", **given))
    assert word == "shown in part"
    assert said.startswith("Gain of co-trained on videos and images over alone, tenth against whole: larger on x (+3.2")
    assert "; smaller on y (" in said


def test_transfers_name_the_source_that_they_are_compared_with() -> None:
    given = {"ours": "both:probe", "origin": ""}
    rows = [comparison("x", "better", "c", theirs="p:probe", **given), comparison("x", "worse", "c", theirs="q:probe", **given)]
    word, where, (said,) = stands("c", *rows)
    assert (word, where) == ("shown in part", "shown on x in 1 of 2 settings, the opposite shown on x in 1 of 2 settings")
    assert said.startswith("both as source, head alone trained, against each other source: better on x against p (")


def test_generated_sets_are_said_to_prove_the_instrument_only(summary: dict[str, Any]) -> None:
    assert "nothing about real videos" in markdown(summary)
    assert "real videos" not in markdown({**summary, "generated": False})


def test_a_model_that_serves_all_targets_is_probed_once(summary: dict[str, Any]) -> None:
    part = markdown(summary).split("## Images, before and after")[1].split("## The mixtures")[0]
    tables = tables_of(part)
    assert len(tables) == 4
    for lines in tables:
        assert sum("after co-trained on videos and images" in line for line in lines) == 1
        assert sum("after alone, " in line and "equal" not in line for line in lines) == 3
    assert [sum("before: pre-trained" in line for line in lines) for lines in tables] == [0, 0, 1, 1]
    assert "one model for all" in markdown(summary)


def test_folds_and_the_reported_split_are_named(small: Study) -> None:
    summary = summary_of(small)
    summary["study"].update(split="test", folds={"ssv2": 5})
    text = markdown(summary)
    assert "- kinetics: split test, 1x3 views" in text
    assert "- ssv2: 5 folds over all clips, 1x3 views" in text


def test_a_forest_plot_says_what_it_shows() -> None:
    rows = [Difference("x", 3.0, 1.0, 5.0, "+3.0 (+1.0 to +5.0)", "better"), Difference("y" * 99, -9.0, -20.0, 2.0, "-9.0", "worse")]
    span = span_of(rows, 2.0)
    assert span.low < -20.0
    assert span.high > 5.0
    assert span.x(-20.0) < span.x(-2.0) < span.x(0.0) < span.x(5.0)
    text = forest("name", rows, span, 2.0, "points")
    page = Page(text)
    assert 'aria-label="name: x: +3.0 (+1.0 to +5.0), better; ' in text
    assert "margin -2" in page.words
    assert "…" in page.words
    whiskers = [tuple(map(float, ends)) for ends in re.findall(r'whisker [^>]*d="M([\d.]+) \d+H([\d.]+)"', text)]
    assert whiskers == [(round(span.x(row.low), 1), round(span.x(row.high), 1)) for row in rows]
    assert "margin" not in Page(forest("name", rows, span, 0.0, "points")).words


@pytest.mark.parametrize(("low", "high"), [(-2.5, 7.0), (-0.003, 0.001), (-44.0, -3.0), (0.1, 99.0)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = signed_ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low <= value <= high for value in found)
    assert np.ptp(np.diff(found)) == pytest.approx(0, abs=1e-9)
    assert (0.0 in found) == (low <= 0 <= high)


def test_small_words() -> None:
    assert points(-0.0004) == points(0.0) == "0.0"
    assert points(0.0321) == "+3.2"
    assert few([3, 1, 1, 2]) == "1, 2, 3"
    assert few([1000, 2000, 3000, 4000]) == "1,000 to 4,000"
    assert plain("a|b\n<i> *c*") == "a\\|b &lt;i> \\*c\\*"
    assert Table(["x", "y"], [[Cell("a"), Cell(None)]]).markdown() == "| x | y |\n|---|---:|\n| a | – |"
