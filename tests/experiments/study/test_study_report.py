"""The page and the Markdown of a study hold every number with its protocol, say what is missing, and judge in plain
words.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cover.evaluation.statistics import Estimate, holm, verdict
from cover.experiments.charts import Interval, forest, signed_ticks, span_of
from cover.experiments.report import points, render_markdown
from cover.experiments.study import networks
from cover.experiments.study.comparisons import Comparison, comparisons_of
from cover.experiments.study.numbers import few
from cover.experiments.study.study_file import ARMS, Origin, Size, Study, Transfer
from cover.experiments.study.study_report import claims_table, report_data, write_study_report

STUDIES = Path(__file__).parents[3] / "studies"
HOSTILE = '<img src="http://evil" onerror=alert(1)> & \'quoted\' | "ü" 跳'
CHANCE = {"kinetics": 8, "ssv2": 12, "moments": 10, "imagenet": 20, "places": 16}
GAIN = {"alone": 0.0, "alone_long": 0.012, "videos": 0.021, "videos_images": 0.043, "stills": 0.018, "permuted": -0.06}


def study_of(**value: Any) -> Study:
    return Study(
        **{
            "catalog": "sandbox/catalog.yaml",
            "out": "studies/made up",
            "targets": ["kinetics", "ssv2", "moments"],
            "videos": ["kinetics", "ssv2", "moments"],
            "images": ["imagenet"],
            "arms": list(ARMS),
            "seeds": [0, 1, 2],
            "margin": 0.02,
            "sizes": {"whole": Size(30), "tenth": Size(60, 0.1, 0.25)},
            "lrs": [5e-4, 1e-3],
            "probes": ["imagenet", "places"],
            "origins": {"scratch": Origin(), "images": Origin(sets=["imagenet"], steps=4000)},
            "transfer": Transfer(
                sources={"kinetics": ["kinetics"], "ssv2": ["ssv2"], "cotrained": ["kinetics", "ssv2", "imagenet"]},
                targets=["ssv2"],
                how=["finetune", "probe"],
            ),
            **value,
        }
    )


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
            "arm": arm,
            "dataset": dataset,
            "size": size,
            "origin": origin,
            "top1": mean,
            "low": mean - 0.031,
            "high": mean + 0.029,
            "by_seed": by_seed,
            "items": 398,
            "sources": 391,
            "chance": 1 / CHANCE[dataset],
            "split": "val",
            "views": "1x3",
            "frames": 8,
            "sampling": "dense@0.25",
            "classes": CHANCE[dataset],
            "class_digest": f"9f31c2ab0{len(dataset):03d}",
            "n_read": 398,
            "n_listed": 1400,
            "decoder": None if dataset in ("imagenet", "places") else "pyav 18.1.0",
            "media": "image" if dataset in ("imagenet", "places") else "video",
            "checkpoint_steps": [step - 250, step],
            "steps": 2000,
            "seen": 13_312,
            "gap": {"train": min(1.0, mean + self.rng.uniform(0.05, 0.25)), "dev": mean + 0.013},
            "lrs": [5e-4, 1e-3],
            "runs": [f"{arm}.{of}.{size}.{origin}.s{seed}" for seed in self.study.seeds],
        }

    def arms(self) -> list[dict[str, Any]]:
        base = {"kinetics": 0.632, "ssv2": 0.441, "moments": 0.318}
        start, small = {"scratch": 0.0, "images": 0.09}, {"whole": 0.0, "tenth": -0.19}
        return [
            self.row(arm, target, size, origin, base[target] + start[origin] + small[size] + GAIN[arm])
            for origin in self.study.origins
            for size in self.study.sizes
            for target in self.study.targets
            for arm in self.study.arms
        ]

    def transfers(self) -> list[dict[str, Any]]:
        wanted, size = self.study.transfer, next(iter(self.study.sizes))
        level = {"kinetics": 0.41, "ssv2": 0.44, "cotrained": 0.475}
        return [
            self.row(f"{source}:{how}", target, size, "", level[source] - 0.1 * (how == "probe"))
            for target in wanted.targets
            for how in wanted.how
            for source in wanted.sources
        ]

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
                        else [
                            self.row(f"{arm} {target}", name, "whole", origin, 0.3 + GAIN[arm])
                            for name in self.study.probes
                        ]
                    )
                    rows += [{**row, "arm": f"{arm}:{target}"} for row in own]
        return rows

    def origins(self) -> list[dict[str, Any]]:
        outputs = [name for name, origin in self.study.origins.items() if origin.sets]
        return [self.row("origin", name, "", origin, 0.52) for origin in outputs for name in self.study.probes]

    def comparisons(self) -> list[dict[str, Any]]:
        results = []
        requested = comparisons_of(self.study)
        for family in dict.fromkeys(comparison.family for comparison in requested):
            own = [comparison for comparison in requested if comparison.family == family]
            drawn = {comparison.name: self.estimate(comparison) for comparison in own}
            corrected = holm({name: estimate.p or 0.0 for name, estimate in drawn.items()})
            results += [
                self.comparison(comparison, drawn[comparison.name], corrected[comparison.name]) for comparison in own
            ]
        return results

    def estimate(self, comparison: Comparison) -> Estimate:
        true = GAIN.get(comparison.ours, 0.03) - GAIN.get(comparison.theirs, 0.0)
        value, half = float(true + self.rng.normal(0, 0.012)), float(self.rng.uniform(0.01, 0.035))
        return Estimate(
            value,
            value - half,
            value + half,
            float(max(0.0009995, min(1.0, 2 * np.exp(-2.2 * (abs(value) / half) ** 2)))),
        )

    def comparison(self, comparison: Comparison, results: Estimate, p: float) -> dict[str, Any]:
        many = len(self.study.seeds) > 1
        return {
            **asdict(comparison),
            "difference": results.value,
            "low": results.low,
            "high": results.high,
            "level": 0.95,
            "p": results.p,
            "p_holm": p,
            "margin": self.study.margin,
            "verdict": verdict(results, p, self.study.margin),
            "seeds": len(self.study.seeds),
            "items": 398,
            "sources": 391,
            "detectable": (results.high - results.low) * 0.7 if many else None,
        }

    def curves(self) -> list[dict[str, Any]]:
        visited = np.linspace(550, 13_312, 24)
        rows = []
        for origin in self.study.origins:
            for size in self.study.sizes:
                for target in self.study.targets:
                    for arm in self.study.arms:
                        rise = (0.4 + GAIN[arm]) * (1 - np.exp(-visited / 4000)) + self.rng.normal(0, 0.008, 24)
                        rows.append(
                            {
                                "arm": arm,
                                "target": target,
                                "size": size,
                                "origin": origin,
                                "train": list(map(list, zip(visited, rise + 0.1))),
                                "dev": list(map(list, zip(visited[5::6], rise[5::6]))),
                                "loss": list(map(list, zip(visited, 2.4 - 3 * rise))),
                            }
                        )
        return rows

    def per_class(self) -> list[dict[str, Any]]:
        counts = {"kinetics": 8, "ssv2": 12, "moments": 40}
        return [
            {
                "arm": arm,
                "target": target,
                "size": size,
                "origin": "images",
                "classes": {
                    f"{target} class {number}": {"gain": float(self.rng.normal(0.03, 0.08)), "items": 9 + number}
                    for number in range(counts[target])
                },
            }
            for arm in ("videos", "videos_images")
            if arm in self.study.arms
            for size in self.study.sizes
            for target in self.study.targets
        ]

    def rates(self) -> list[dict[str, Any]]:
        visited = {"kinetics": 13_312, "ssv2": 9_108, "moments": 7_590, "imagenet": 29_990}
        return [
            {
                "arm": arm,
                "target": "kinetics",
                "size": size,
                "run": f"{arm}.{size}.scratch.s0",
                "steps": 2000,
                "batch": 30,
                "seen": visited,
                "rates": {name: number / 60_000 for name, number in visited.items()},
            }
            for size in self.study.sizes
            for arm in self.study.arms
            if arm not in ("alone", "alone_long")
        ]


def summary_of(study: Study | None = None) -> dict[str, Any]:
    """What `summarise` makes, of made-up figures."""
    study = study or study_of()
    maker = Maker(study)
    targets = dict.fromkeys([*study.targets, *study.transfer.targets])
    planned = [
        {"target": name, "items": 398, "sources": 391, "seeds": len(study.seeds), "detectable": 0.0512}
        for name in targets
    ]
    return {
        "cover": "1.2.3",
        "study": asdict(study),
        "arms_mean": ARMS,
        "generated": True,
        "arms": maker.arms(),
        "transfers": maker.transfers() if study.transfer.wanted else [],
        "probes": maker.probes(),
        "origins": maker.origins(),
        "comparisons": maker.comparisons(),
        "planned": planned,
        "per_class": maker.per_class(),
        "curves": maker.curves(),
        "rates": maker.rates(),
        "runs": [
            {
                "name": "alone.s0",
                "step": 1750,
                "steps": 2000,
                "seed": 0,
                "lr": 1e-3,
                "sets": ["a"],
                "seconds": 5400.0,
                "digest": "0",
            }
        ],
    }


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


def page_of(summary: dict[str, Any], folder: Path, parse: Any) -> Any:
    write_study_report(summary, folder / "new" / "report.html", folder / "new" / "report.md")
    return parse((folder / "new" / "report.html").read_text(encoding="utf-8"))


def markdown(summary: dict[str, Any]) -> str:
    return render_markdown("study.jinja", **report_data(summary))


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
            row["dataset"],
            f"{100 * row['top1']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})",
            seeds,
            "split val (398 of 1,400 read)",
            f"{row['classes']} ({row['class_digest']})",
            steps,
            "13,312 (learning rate 0.0005, 0.001)",
            row["decoder"] or "–",
        ]
        assert [words for words in expected if f" {words} " not in line] == []
        assert ("1x3 (8 frames, dense@0.25)" in line) == (row["media"] == "video")


def test_every_figure_is_on_the_page(summary: dict[str, Any], tmp_path: Path, parse: Any) -> None:
    page = page_of(summary, tmp_path, parse)
    expected = []
    for kind in ("arms", "transfers", "origins", "probes"):
        expected += [f"{100 * row['top1']:.1f}" for row in summary[kind]]
        expected += [f"{100 * row['low']:.1f} to {100 * row['high']:.1f}" for row in summary[kind]]
    for row in summary["comparisons"]:
        expected += [
            points(row["difference"]),
            f"{points(row['low'])} to {points(row['high'])}",
            f"{row['p_holm']:.3f}",
            row["verdict"],
        ]
        expected += [f"{100 * row['detectable']:.1f}"]
    for row in summary["arms"]:
        expected += [f"{100 * row['gap']['train']:.1f} train, {100 * row['gap']['dev']:.1f} dev"]
    expected += [
        "9f31c2ab0008",
        "398 of 1,400 read",
        "pyav 18.1.0",
        "checkpoint at step",
        "29,990 samples",
        "28 classes between these",
    ]
    expected += [
        "cover study 'studies/made up/study.yaml' --dry-run",
        "1.5 hours",
        "1.2.3",
        "5.1",
        "0.0005, 0.001; each run takes the best on dev",
    ]
    assert [words for words in expected if words not in page.words] == []
    families = {row["family"] for row in summary["comparisons"]}
    assert page.tags.count("svg") == len(families) + 4 + 2 * len(
        {(row["target"], row["size"], row["origin"]) for row in summary["curves"]}
    )
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.html", "report.md"]


def test_every_table_of_numbers_is_followed_by_how_they_were_measured(summary: dict[str, Any]) -> None:
    text = markdown(summary)
    for title, names in (
        ("Accuracies", ["kinetics", "ssv2", "moments"]),
        ("Transfer", ["ssv2"]),
        ("Images", ["imagenet", "places"]),
    ):
        part = re.split(r"^## ", text[text.index(f"## {title}") + 3 :], flags=re.MULTILINE)[0]
        for name in names:
            assert re.search(
                rf"^- {name}: split val, 1x3 views.*398 of 1,400 read, .*list 9f31.*3 seeds.*checkpoint at step",
                part,
                re.MULTILINE,
            )


def test_nothing_is_fetched_from_outside(summary: dict[str, Any], tmp_path: Path, parse: Any) -> None:
    page = page_of(summary, tmp_path, parse)
    text = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert all(link.startswith("data:") for link in page.links)
    assert re.findall(r"https?:|url\(|@import|<script", text) == []


def renamed(value: Any, old: str, new: str) -> Any:
    """The same plain data with another name for a data set, wherever it stands as a value or a key."""
    if isinstance(value, dict):
        return {renamed(key, old, new): renamed(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [renamed(each, old, new) for each in value]
    return value.replace(old, new) if isinstance(value, str) else value


def test_hostile_names_stay_text(summary: dict[str, Any], tmp_path: Path, parse: Any) -> None:
    hostile = renamed(summary, "ssv2", HOSTILE)
    page = page_of(hostile, tmp_path, parse)
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


def test_what_a_study_lacks_is_said(small: Study, tmp_path: Path, parse: Any) -> None:
    summary = summary_of(small)
    page = page_of(summary, tmp_path, parse)
    for said in (
        "This study has no transfers",
        "This study has no probes",
        "There is one seed: the intervals are over sources only",
        "With one seed the spread between runs is not known",
        "needs the arms videos and videos_images",
        "needs a transfer with a source of several data sets",
        "needs a second size",
    ):
        assert said in page.words
    assert "None" not in page.words
    assert "nan" not in page.words.lower().split()
    assert "None" not in markdown(summary)


def test_the_best_trivial_method_stands_below_the_arms(tmp_path: Path, parse: Any) -> None:
    rung = {"low": 0.301, "high": 0.402}
    row = {"dataset": "kinetics", "size": "whole", "n": 40, "best": "motion"}
    row |= {"prior": {"top1": 0.131, **rung}, "thumbnail": {"top1": 0.222, **rung}, "motion": {"top1": 0.347, **rung}}
    assert "trivial" not in markdown(summary_of()).lower()
    text = markdown({**summary_of(), "trivial": [row]})
    (line,) = [line for line in text.splitlines() if line.startswith("| trivial")]
    for part in ("34.7", "motion", "30.1 to 40.2"):
        assert part in line
    assert "22.2" not in line
    assert "34.7" in page_of({**summary_of(), "trivial": [row]}, tmp_path, parse).words


def test_a_study_of_transfers_alone(tmp_path: Path, parse: Any) -> None:
    study = study_of(arms=[], targets=["ssv2"], videos=[], images=[], probes=[])
    summary = {**summary_of(study), "arms": [], "curves": [], "rates": [], "per_class": [], "planned": []}
    page = page_of(summary, tmp_path, parse)
    for said in (
        "What transfers? 1 data set, 3 seeds",
        "No arms were trained",
        "There are no learning curves.",
        "Every run had one data set.",
        "There is no mixture with a model",
        "No detectable difference was computed.",
        "No run has both",
    ):
        assert said in page.words
    assert "cotrained → ssv2" in page.words


def test_a_study_without_a_single_comparison(small: Study, tmp_path: Path, parse: Any) -> None:
    summary = {**summary_of(small), "comparisons": []}
    assert "Nothing was compared" in page_of(summary, tmp_path, parse).words
    assert [row[1].text for row in claims_table(summary).rows] == 4 * ["not asked"]


def test_missing_gaps_curves_and_rates_are_dashes(summary: dict[str, Any], tmp_path: Path, parse: Any) -> None:
    bare = copy.deepcopy(summary)
    for row in bare["arms"]:
        row.update(gap=None, seen=None)
    for row in bare["curves"]:
        row.update(dev=[], loss=[], train=[])
    for row in bare["rates"]:
        row.update(rates=None)
    page = page_of(bare, tmp_path, parse)
    assert "No run has both accuracy in training and on dev." in page.words
    assert "There are no learning curves." in page.words
    assert "None" not in page.words


def comparison(target: str, judged: str, claim: str = "a", **value: Any) -> dict[str, Any]:
    return {
        "family": f"{claim} family",
        "claim": claim,
        "target": target,
        "ours": "videos_images",
        "theirs": "alone",
        "size": "whole",
        "origin": "scratch",
        "difference": 0.0321,
        "low": 0.011,
        "high": 0.0534,
        "level": 0.95,
        "p": 0.002,
        "p_holm": 0.004,
        "margin": 0.02,
        "verdict": judged,
        "seeds": 3,
        "items": 398,
        "sources": 391,
        "detectable": 0.041,
        **value,
    }


def outcomes(claim: str, *rows: dict[str, Any]) -> list[str]:
    """The cells of a claim's row: its outcome, and that on each target."""
    table = claims_table({"study": asdict(study_of()), "comparisons": list(rows)})
    own = next(row for row in table.rows if str(row[0].text).startswith(f"({claim})"))
    assert table.columns == ["claim", "outcome", *dict.fromkeys(row["target"] for row in rows)]
    return [str(cell.text) for cell in own[1:]]


def test_at_least_as_good_is_shown_by_better_and_by_not_worse() -> None:
    assert outcomes("a", comparison("x", "better"), comparison("y", "not worse")) == ["shown", "shown", "shown"]
    assert outcomes("a", comparison("x", "no difference shown")) == ["not shown", "not shown"]


def test_of_the_first_claim_the_full_mixture_decides() -> None:
    assert outcomes("a", comparison("x", "better"), comparison("x", "worse", ours="videos")) == ["shown", "shown"]
    assert outcomes("a", comparison("x", "worse", ours="videos")) == 2 * ["the opposite shown"]


def test_a_gain_is_shown_by_better_alone() -> None:
    rows = [comparison("x", "better", "b"), comparison("y", "not worse", "b"), comparison("z", "worse", "b")]
    assert outcomes("b", *rows) == ["shown in part", "shown", "not shown", "the opposite shown"]
    assert outcomes("b", *rows[2:]) == 2 * ["the opposite shown"]
    assert outcomes("b", *rows[1:])[0] == "not shown, in part the opposite"


@pytest.mark.parametrize("verdict", ["better", "not worse", "worse", "no difference shown"])
def test_one_seed_decides_no_claim(verdict: str) -> None:
    assert outcomes("a", comparison("x", verdict, seeds=1)) == 2 * ["not decided by one seed"]


def test_a_set_in_several_settings_is_counted() -> None:
    rows = [comparison("x", "better", "b", family=str(number)) for number in range(3)] + [
        comparison("x", "worse", "b", family="last")
    ]
    assert outcomes("b", *rows) == ["shown in part", "shown in 3 of 4, the opposite shown in 1 of 4"]


def test_verdicts_and_figures_stand_in_the_table_of_comparisons(summary: dict[str, Any]) -> None:
    values = [
        comparison("x", "better"),
        comparison("x", "worse", "d", ours="tenth", theirs="whole", size="videos_images"),
        comparison("x", "not worse", "c", ours="both:probe", theirs="p:probe", origin="", low=-0.012, p_holm=0.71),
    ]
    text = markdown({**summary, "comparisons": values})
    for line in (
        "| x (co-trained on videos and images against alone, whole, from scratch) "
        "| +3.2 (+1.1 to +5.3) | 0.004 (uncorrected 0.002) | better |",
        "| x (gain of co-trained on videos and images: tenth against whole, from scratch) | +3.2 (+1.1 to +5.3) |",
        "| x (both against p, only the head trained) | +3.2 (-1.2 to +5.3) | "
        "0.710 (uncorrected 0.002) | not worse | – | 4.1 |",
    ):
        assert line in text


def test_generated_sets_are_said_to_prove_the_instrument_only(summary: dict[str, Any]) -> None:
    assert "nothing about real videos" in markdown(summary)
    assert "real videos" not in markdown({**summary, "generated": False})


def test_a_model_that_serves_all_targets_is_probed_once(summary: dict[str, Any]) -> None:
    part = markdown(summary).split("## Images, before and after")[1].split("## Mixtures")[0]
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


def test_a_forest_plot_shows_its_intervals() -> None:
    rows = [
        Interval("x", 3.0, 1.0, 5.0, "+3.0 (+1.0 to +5.0)", "better"),
        Interval("y" * 99, -9.0, -20.0, 2.0, "-9.0", "worse"),
    ]
    span = span_of(rows, 2.0)
    assert span.low < -20.0
    assert span.high > 5.0
    assert span.x(-20.0) < span.x(-2.0) < span.x(0.0) < span.x(5.0)
    drawing = forest("name", rows, span, 2.0, "points")
    assert drawing.label.startswith("name: x: +3.0 (+1.0 to +5.0), better; ")
    texts = [shape.text for shape in drawing.shapes]
    assert "margin -2" in texts
    assert any(text.endswith("…") for text in texts)
    whiskers = [
        re.fullmatch(r"M([\d.]+) \d+H([\d.]+)", str(shape.attributes["d"]))
        for shape in drawing.shapes
        if "whisker" in str(shape.attributes.get("class"))
    ]
    assert [tuple(map(float, item.groups())) for item in whiskers if item] == [
        (round(span.x(row.low), 1), round(span.x(row.high), 1)) for row in rows
    ]
    assert not any("margin" in shape.text for shape in forest("name", rows, span, 0.0, "points").shapes)


@pytest.mark.parametrize(("low", "high"), [(-2.5, 7.0), (-0.003, 0.001), (-44.0, -3.0), (0.1, 99.0)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    result = signed_ticks(low, high)
    assert 3 <= len(result) <= 8
    assert all(low <= value <= high for value in result)
    assert np.ptp(np.diff(result)) == pytest.approx(0, abs=1e-9)
    assert (0.0 in result) == (low <= 0 <= high)


def test_small_words() -> None:
    assert points(-0.0004) == points(0.0) == "0.0"
    assert points(0.0321) == "+3.2"
    assert few([3, 1, 1, 2]) == "1, 2, 3"
    assert few([1000, 2000, 3000, 4000]) == "1,000 to 4,000"


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in STUDIES.glob("*/results.json")), ids=lambda folder: folder.name
)
def test_a_kept_study_gives_the_figures_of_its_kept_report(folder: Path) -> None:
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    several = bool(kept["study"].get("models"))
    text = render_markdown("networks.jinja", **networks.report_data(kept)) if several else markdown(kept)
    assert tables_of(text) == tables_of((folder / "report.md").read_text(encoding="utf-8"))
