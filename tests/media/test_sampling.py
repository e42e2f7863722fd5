"""The instants of clips and views: within the video, evenly spaced, centred; and how they are written."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cover.errors import UserError
from cover.media.sampling import END, Sampling, Views, train_times, view_times

WITHIN = 2 * END  # what a clip that fits may be shifted by at its end, and a rounding
FRAMES, SECONDS, SEEDS = st.integers(1, 96), st.floats(0.05, 3600), st.integers(0, 2**63)


@given(FRAMES, SECONDS, SEEDS)
def test_segments_take_one_instant_of_each_part(frames: int, duration: float, seed: int) -> None:
    times = train_times(Sampling("segments"), frames, duration, np.random.default_rng(seed))
    edges = np.linspace(0, duration, frames + 1)
    slack = END + 1e-9 * duration
    assert times.shape == (frames,)
    assert (edges[:-1] - slack <= times).all()
    assert (times <= edges[1:] + slack).all()


def test_segments_move_each_by_itself_and_whole_all_together() -> None:
    segments, whole = (train_times(Sampling(kind), 8, 8.0, np.random.default_rng(0)) for kind in ("segments", "whole"))
    assert len(set((segments - np.arange(8)).round(6))) == 8
    assert whole - np.arange(8) == pytest.approx(whole[0])


@given(FRAMES, SECONDS, SEEDS)
def test_whole_clips_span_the_video(frames: int, duration: float, seed: int) -> None:
    times = train_times(Sampling("whole"), frames, duration, np.random.default_rng(seed))
    assert times[0] >= 0
    assert times[-1] <= duration
    assert np.diff(times) == pytest.approx(duration / frames, abs=WITHIN)


@given(FRAMES, SECONDS, SEEDS, st.floats(0.01, 4))
def test_dense_clips_keep_their_interval_and_stay_inside_where_they_fit(
    frames: int, duration: float, seed: int, interval: float
) -> None:
    times = train_times(Sampling("dense", interval), frames, duration, np.random.default_rng(seed))
    assert (times >= 0).all()
    assert (times <= duration - END).all()
    if interval * (frames - 1) <= duration:
        assert np.diff(times) == pytest.approx(interval, abs=WITHIN)
    else:
        assert times == pytest.approx(np.minimum(interval * np.arange(frames), duration), abs=WITHIN)


@pytest.mark.parametrize(
    ("frames", "interval", "duration"), [(8, 0.25, 10.0), (16, 1.0, 15.5), (2, 0.1, 60.0), (1, 1.0, 3.0)]
)
def test_dense_clips_start_anywhere_in_the_slack_with_equal_chance(
    frames: int, interval: float, duration: float
) -> None:
    rng, draws, slack = np.random.default_rng(0), 4000, duration - interval * (frames - 1)
    starts = np.sort([train_times(Sampling("dense", interval), frames, duration, rng)[0] for _ in range(draws)])
    distance = np.abs(starts / slack - (np.arange(draws) + 0.5) / draws).max()
    assert distance < 2 / np.sqrt(draws), (
        "Kolmogorov-Smirnov: a uniform distribution is nearer in 99.9 % of such samples"
    )
    assert starts[0] < 0.002 * slack
    assert starts[-1] > 0.998 * slack - END, "the last possible start is reached"


@given(FRAMES, SECONDS, st.integers(1, 10), st.sampled_from(["dense", "dense@0.25", "segments", "whole"]))
def test_views_are_centred_and_equally_spaced(frames: int, duration: float, temporal: int, kind: str) -> None:
    sampling = Sampling.parse(kind)
    times = view_times(sampling, frames, duration, temporal)
    assert times.shape == (temporal, frames)
    assert (times >= 0).all()
    assert (times <= duration - END).all()
    spacing = sampling.interval if sampling.kind == "dense" else duration / frames
    if sampling.kind != "dense" or spacing * (frames - 1) <= duration:
        assert np.diff(times, axis=1) == pytest.approx(spacing, abs=WITHIN)
        assert np.diff(times[:, 0], n=2) == pytest.approx(0, abs=WITHIN)
        assert times.mean() == pytest.approx(duration / 2, abs=WITHIN)
    else:
        assert times == pytest.approx(
            np.minimum(spacing * np.arange(frames), duration)[None].repeat(temporal, 0), abs=WITHIN
        )


def test_one_view_of_a_dense_clip_is_the_middle() -> None:
    assert view_times(Sampling("dense", 0.5), 4, 10.0, 1).tolist() == [[4.25, 4.75, 5.25, 5.75]]


def test_many_views_differ() -> None:
    for kind in ("dense@0.25", "segments", "whole"):
        starts = view_times(Sampling.parse(kind), 8, 10.0, 5)[:, 0].tolist()
        assert all(a < b for a, b in pairwise(starts))


@pytest.mark.parametrize("text", ["dense@0.25", "dense@2", "segments", "whole"])
def test_samplings_are_written_as_they_are_read(text: str) -> None:
    assert str(Sampling.parse(text)) == text
    assert Sampling.parse(str(Sampling.parse(text))) == Sampling.parse(text)


def test_the_default_interval_is_timesformers() -> None:
    assert Sampling.parse(str(Sampling.parse("dense"))).interval == pytest.approx(32 / 30, abs=1e-3)


@pytest.mark.parametrize("text", ["1x3", "10x1", "4x3"])
def test_views_are_written_as_they_are_read(text: str) -> None:
    assert str(Views.parse(text)) == text


@pytest.mark.parametrize("text", ["999999x9999", "1001x1", "1x1001", "32x32", "9" * 5000 + "x1"])
def test_more_views_than_memory_holds(text: str) -> None:
    assert str(Views.parse("1000x1")) == "1000x1"
    with pytest.raises(UserError, match="at most 1000 views in all"):
        Views.parse(text)


@pytest.mark.parametrize(
    "text", ["densse", "", "dense@0", "dense@-1", "dense@x", "dense@.", "segments@2", "whole@1", "dense@nan"]
)
def test_samplings_that_are_none(text: str) -> None:
    with pytest.raises(UserError) as caught:
        Sampling.parse(text)
    assert "\n" not in str(caught.value)
    assert text in str(caught.value)


def test_the_nearest_sampling_is_named() -> None:
    with pytest.raises(UserError, match='did you mean "segments"'):
        Sampling.parse("segment")


@pytest.mark.parametrize("text", ["", "3", "x3", "0x1", "1x0", "1 x 3", "1x3x2", "-1x3", "1×3"])
def test_views_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="TEMPORALxSPATIAL, as in 1x3"):
        Views.parse(text)
