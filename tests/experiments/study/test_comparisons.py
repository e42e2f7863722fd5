"""What a study says of planted differences: a gain is a gain, nothing is nothing, and harm is harm."""

from __future__ import annotations

import numpy as np
import pytest

from cover.experiments.study.comparisons import ArmResults, Key, compare, comparisons_of
from cover.experiments.study.study_file import Size, Study, Transfer

ITEMS, SEEDS = 300, 5


def make_study(**changes: object) -> Study:
    fields = {
        "catalog": "catalog.yaml",
        "out": "study",
        "targets": ["hills", "rivers", "woods"],
        "videos": ["hills", "rivers", "woods"],
        "sizes": {"whole": Size(5), "tenth": Size(5, 0.1)},
        "seeds": list(range(SEEDS)),
        "margin": 0.05,
        "arms": ["alone", "videos"],
    }
    return Study(**{**fields, **changes})  # type: ignore[arg-type]


def answered(rates: dict[Key, float], spread: float = 0.0, seed: int = 0) -> dict[Key, ArmResults]:
    """Arms that are right with the given chances; how hard a clip is, is the same for all arms of a target."""
    rng = np.random.default_rng(seed)
    hard = {target: rng.uniform(size=ITEMS) for target in {key[1] for key in rates}}
    ids = [f"clip{number}" for number in range(ITEMS)]
    results = {}
    for key, rate in rates.items():
        by_seed = np.clip(rate + spread * rng.normal(size=(SEEDS, 1)), 0, 1)
        luck = rng.uniform(-0.15, 0.15, (SEEDS, ITEMS))
        results[key] = ArmResults(
            hard[key[1]] + luck < by_seed, ids, [f"film{number // 2}" for number in range(ITEMS)], []
        )
    return results


def arms(alone: float, videos: dict[str, float], tenth: float = 0.0) -> dict[Key, float]:
    return {
        (arm, target, size, "scratch"): (alone if arm == "alone" else rate)
        + (tenth if (size, arm) == ("tenth", "videos") else 0)
        for target, rate in videos.items()
        for size in ("whole", "tenth")
        for arm in ("alone", "videos")
    }


def verdicts(results: list[dict[str, object]], claim: str, size: str = "whole") -> dict[object, object]:
    return {row["target"]: row["verdict"] for row in results if row["claim"] == claim and row["size"] == size}


def test_a_planted_gain_a_null_and_harm_are_found_as_such() -> None:
    planted = answered(arms(0.5, {"hills": 0.65, "rivers": 0.5, "woods": 0.35}), spread=0.01)
    result = verdicts(compare(make_study(), planted, {}), "a")
    assert result["hills"] == "better"
    assert result["rivers"] in ("not worse", "no difference shown")
    assert result["woods"] == "worse"


def test_nothing_is_rarely_called_something() -> None:
    """Of studies in which nothing was planted, at most about one in twenty may find anything."""
    wrong = 0
    for seed in range(24):
        null = answered(
            dict.fromkeys(arms(0.5, dict.fromkeys(("hills", "rivers", "woods"), 0.5)), 0.5), spread=0.02, seed=seed
        )
        wrong += any(
            row["verdict"] in ("better", "worse") for row in compare(make_study(sizes={"whole": Size(5)}), null, {})
        )
    # A bootstrap over five seeds is somewhat too sure of itself: it draws from the spread of those five.
    assert wrong <= 5


def test_seeds_that_differ_much_widen_the_interval() -> None:
    def width(spread: float) -> float:
        result = compare(make_study(), answered(arms(0.5, {"hills": 0.6, "rivers": 0.5, "woods": 0.5}), spread), {})
        row = next(row for row in result if row["target"] == "hills" and row["claim"] == "a")
        return float(row["high"] - row["low"])

    assert width(0.15) > 2 * width(0.0)


def test_a_gain_that_grows_as_the_target_shrinks() -> None:
    planted = answered(arms(0.4, {"hills": 0.4, "rivers": 0.4, "woods": 0.4}, tenth=0.25))
    results = [row for row in compare(make_study(), planted, {}) if row["claim"] == "d"]
    assert [row["verdict"] for row in results] == ["better"] * 3
    assert all(row["difference"] == pytest.approx(0.25, abs=0.06) for row in results)
    assert {(row["ours"], row["theirs"]) for row in results} == {("tenth", "whole")}


def test_the_transfers_of_the_co_trained_source_are_compared_with_each_other_source() -> None:
    study = make_study(transfer=Transfer({"hills": ["hills"], "cover": ["hills", "rivers"]}, {}, ["woods"], ["probe"]))
    value = answered({("hills:probe", "woods", "whole", ""): 0.4, ("cover:probe", "woods", "whole", ""): 0.6})
    (row,) = [
        row
        for row in compare(study, answered(arms(0.5, dict.fromkeys(study.targets, 0.5))), value)
        if row["claim"] == "c"
    ]
    assert (row["ours"], row["theirs"], row["target"], row["verdict"]) == (
        "cover:probe",
        "hills:probe",
        "woods",
        "better",
    )
    assert row["p_holm"] == row["p"], "one question in its family"


def test_a_source_that_knows_the_target_is_asked_about_by_no_question() -> None:
    sources = {"hills": ["hills"], "rivers": ["rivers"], "cover": ["hills", "rivers", "photos"]}
    requested = [
        each
        for each in comparisons_of(make_study(transfer=Transfer(sources, {}, ["hills", "rivers"], ["probe"])))
        if each.claim == "c"
    ]
    assert {(each.target, each.ours, each.theirs) for each in requested} == {
        ("hills", "cover:probe", "rivers:probe"),
        ("rivers", "cover:probe", "hills:probe"),
    }


def test_the_smaller_size_is_the_one_with_the_smaller_part_wherever_it_stands() -> None:
    requested = [
        each
        for each in comparisons_of(make_study(sizes={"tenth": Size(5, 0.1), "whole": Size(5), "again": Size(9)}))
        if each.claim == "d"
    ]
    assert {(each.ours, each.theirs) for each in requested} == {("tenth", "whole")}


def test_few_sources_show_nothing() -> None:
    planted = answered(arms(0.3, {"hills": 0.9, "rivers": 0.9, "woods": 0.9}))
    few = {key: ArmResults(each.right, each.ids, ["film"] * ITEMS, []) for key, each in planted.items()}
    assert {row["verdict"] for row in compare(make_study(), few, {}) if row["claim"] == "a"} <= {
        "not worse",
        "no difference shown",
    }


def test_clips_that_one_arm_could_not_read_are_left_out_of_both() -> None:
    planted = answered(arms(0.5, {"hills": 0.6, "rivers": 0.5, "woods": 0.5}))
    whole = next(row for row in compare(make_study(), planted, {}) if row["target"] == "hills")
    key = ("alone", "hills", "whole", "scratch")
    value = planted[key]
    planted[key] = ArmResults(value.right[:, 1:], value.ids[1:], value.sources[1:], [])
    row = next(row for row in compare(make_study(sizes={"whole": Size(5)}), planted, {}) if row["target"] == "hills")
    assert row["items"] == whole["items"] - 1
    assert row["difference"] == pytest.approx(whole["difference"], abs=0.01)


def test_corrected_p_values_are_those_of_the_family() -> None:
    result = compare(make_study(), answered(arms(0.5, {"hills": 0.56, "rivers": 0.5, "woods": 0.5}), spread=0.02), {})
    family = sorted((row for row in result if row["claim"] == "a" and row["size"] == "whole"), key=lambda row: row["p"])
    assert family[0]["p_holm"] == pytest.approx(min(1, 3 * family[0]["p"]))
    assert all(row["p_holm"] >= row["p"] for row in family)


def test_every_question_is_known_before_anything_is_run() -> None:
    requested = comparisons_of(
        make_study(arms=["alone", "alone_long", "videos", "videos_images", "stills", "permuted"], images=["photos"])
    )
    pairs = {(each.ours, each.theirs) for each in requested if each.claim != "d"}
    assert ("videos_images", "alone") in pairs
    assert ("videos_images", "videos") in pairs
    assert ("videos_images", "stills") in pairs
    assert ("alone_long", "alone") in pairs
    assert {each.target for each in requested} == {"hills", "rivers", "woods"}
