"""YAML as it is read: words keep their text, and every mistake is one line with its place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from cover.errors import UserError
from cover.yaml_files import Plain, is_null, parse_yaml, read_yaml, resolve


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-1", 0.1),
        ("1E3", 1000.0),
        ("-.5e2", -50.0),
        ("5.", 5.0),
        ("3", 3),
        ("-0", 0),
        ("1_000", 1000),
        ("0x1f", 31),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("-.inf", -math.inf),
        ("010", "010"),
        ("08", "08"),
        ("yes", "yes"),
        ("no", "no"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_word_has_its_text_and_its_value(word: str, value: Any) -> None:
    tree = parse_yaml(f"a: {word}\nb: [{word}]", "x") if word else parse_yaml("a:\nb: [~]", "x")
    assert isinstance(tree["a"], Plain)
    assert tree["a"] == word
    assert (resolve(tree["a"]), type(resolve(tree["a"]))) == (value, type(value))
    assert is_null(tree["a"]) == (value is None)


def test_quotes_make_a_text() -> None:
    assert resolve(parse_yaml("a: '1'\nb: \"null\"\nc: |\n  1\n", "x")) == {"a": "1", "b": "null", "c": "1\n"}


def test_keys_are_texts() -> None:
    tree = parse_yaml("010: 1\n1e3: 2\nyes: 3\nnull: 4\n1: 5\n'a b': 6\n", "x")
    assert list(tree) == ["010", "1e3", "yes", "null", "1", "a b"]
    assert resolve(tree)["1e3"] == 2


def test_aliases_and_merges_are_no_duplicates() -> None:
    tree = parse_yaml(
        "a: &a {x: 2, y: 1}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, x: 4}\nd: {<<: [*b, *a], z: 1}\ne: *a\n", "x"
    )
    assert resolve(tree) == {
        "a": {"x": 2, "y": 1},
        "b": {"x": 2, "y": 3},
        "c": {"x": 4, "y": 3},
        "d": {"x": 2, "y": 3, "z": 1},
        "e": {"x": 2, "y": 1},
    }


def bomb(line: str) -> str:
    """Ten lines that stand for 9^10 words."""
    return "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n} {line.format(', '.join([f'*a{n - 1}'] * 9))}\n" for n in range(1, 11)
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 2", 2),
        ("a:\n  b: 1\n  b: 2", 3),
        ("a: {b: 1, 'b': 2}", 1),
        ("a: 1\n\tb: 2", 2),
        ("a: [1", 1),
        ("a: 1\nb: \x01", 2),
        ("a: 1\nb: !!python/name:os.system", 2),
        ("a: !!int fast", 1),
        ("a: *nobody", 1),
        ("[a]: 1", 1),
        ("a: {<<: 3}", 1),
        ("a: 1\n---\nb: 2", 2),
        ("a: 1\nb: &b [*b]", 2),
        ("a: " + "[" * 5000, 1),
        ("a: " + "[" * 60 + "]" * 60, 1),
        (bomb("[{}]"), 1),
        (bomb("{{<<: [{}]}}"), 1),
        ("- 1", 1),
        ("only words", 1),
        ("3", 1),
    ],
)
def test_every_mistake_names_the_file_and_the_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "x.yaml")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'x.yaml'}: line {line}")
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("text", ["", "# nothing\n", "null", "---\n"])
def test_an_empty_file_has_no_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert read_yaml(tmp_path / "x.yaml") == {}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9")
    for path, reason in (
        (tmp_path / "no.yaml", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "latin.yaml", "not UTF-8"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            read_yaml(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "x.yaml") == {"a": "1"}
