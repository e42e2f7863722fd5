"""The hint in a message: the closest word, or those there are, but never a page of them."""

from __future__ import annotations

from cover.errors import nearest


def test_a_hint_is_a_line() -> None:
    assert nearest("kinetcs", ["ssv2", "kinetics"]) == '; did you mean "kinetics"?'
    assert nearest("x", ["b", "a"]) == "; known: a, b"
    assert nearest("x", []) == ""
    many = [f"class {number:05}" for number in range(21841)]
    assert nearest("?", many) == f"; known: {', '.join(many[:40])} and 21801 more"
