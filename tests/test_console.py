"""How the time left is told: by the pace so far, and by what items take where they differ."""

from __future__ import annotations

import pytest

from cover import console
from cover.console import Meter


class Clock:
    """`time.monotonic`, turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    output = Clock()
    monkeypatch.setattr(console, "time", output)
    return output


def test_the_time_left_goes_by_what_items_take(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("study", total=5, done=1, work=1000) as meter:
        clock.now += 80  # one of the four that are left, and nine tenths of what they take
        meter.advance(note="long", work=800)
        clock.now += 5
        meter.advance(note="short", work=50)
        clock.now += 10
        meter.advance(note="short too", work=100)
    assert capsys.readouterr().err.splitlines() == [
        "study: 2/5, 0:20 left  long",
        "study: 4/5, 0:05 left  short too",
        "study: 4/5 in 1:35",
    ]


def test_the_time_left_of_equal_items(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("index", total=10, done=4) as meter:
        assert meter.left == ""
        clock.now += 20
        meter.advance(2)
        assert meter.left == "0:40"
        clock.now += 30  # none is done meanwhile, and still it runs down
        assert meter.left == "0:10"
        clock.now += 30
        assert meter.left == "0:00"
    assert capsys.readouterr().err.splitlines() == ["index: 6/10, 0:40 left", "index: 6/10 in 1:20"]


def test_a_terminal_shows_the_same(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_can_redraw", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    console._terminal.cache_clear()
    try:
        with Meter("study", total=4, work=100) as meter:
            clock.now += 60
            meter.advance(note="long", work=60)
    finally:
        console._terminal.cache_clear()
    shown = capsys.readouterr().err
    assert "0:40 left" in shown
    assert "1/4" in shown
