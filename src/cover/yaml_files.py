"""YAML files: the one reader of recipes, catalogs and studies, and what their writers share.

    tree = read_yaml(Path("catalog.yaml"))

YAML leaves open whether an unquoted word such as `1e3`, `010` or `no` is a text, a number or a truth value; YAML 1.1
and 1.2 differ. Here the place where it stands decides. Every unquoted word is a `Plain`, which keeps the text as it was
written: where a text is expected it is that text, elsewhere `resolve` gives its value.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cover.errors import UserError

MOST_NODES = 200_000  # with aliases written out: a catalog of a thousand data sets has about 20,000
DEEPEST = 50  # levels of nesting; a recipe has 4
LONGEST_NUMBER = 300  # characters; what is longer stays a text, for it may fit no float
_TAG = "tag:yaml.org,2002:"
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# 1e-3 is a number, which PyYAML's own rules deny; 010 and 1:30 are texts, which they take for numbers.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))(?:[eE][-+]?\d+)?", re.ASCII)
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class Plain(str):
    """A word without quotes, as it is written. `resolve` gives its value where no text is expected."""

    __slots__ = ()


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none. Values are as those of `parse_yaml`.

    Raises `UserError`, one line that names the file and the line, for a file that cannot be read, that is not YAML or
    whose top level is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read: it is not UTF-8 text") from None
    tree = parse_yaml(text, str(path))
    if is_null(tree):
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: line 1: expected keys with values, as in `name: value`")
    return tree


def parse_yaml(text: str, where: str) -> Any:
    """A YAML text as dictionaries, lists, texts (`str`, where quoted) and `Plain` words. Keys are texts as written, and
    each is given once.

    Raises `UserError`, one line that begins with `where` and names the line and the column, both counted from 1.
    """
    try:
        reader = _YamlReader(text)
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        raise UserError(
            f"{where}: line {line}, column {column}: the character {chr(error.character)!r} is not allowed in YAML"
        ) from None
    try:
        node = reader.get_single_node()
        return Plain() if node is None else reader.tree(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "line ?"
        reason = ", ".join(part for part in (error.context, error.problem) if part).replace("\n", " ")
        raise UserError(
            f"{where}: {place}: {'' if isinstance(error, _InvalidYaml) else 'not YAML: '}{reason}"
        ) from None
    except RecursionError:
        raise UserError(f"{where}: line {reader.line + 1}: nested too deeply") from None


def resolve(value: Any) -> Any:
    """The value of a `Plain` word by the rules of YAML 1.2: None, a truth value, a number or a text. Lists and mappings
    item by item.
    """
    if isinstance(value, dict):
        return {key: resolve(item) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item) for item in value]
    return _resolve_word(str(value)) if isinstance(value, Plain) else value


def is_null(value: Any) -> bool:
    """Whether a value is an unquoted `null`, `~` or nothing at all."""
    return value is None or (isinstance(value, Plain) and resolve(value) is None)


def show(value: Any) -> str:
    """A value as a message quotes it: JSON, at most 80 characters."""
    text = json.dumps(resolve(value), ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Dumper(yaml.SafeDumper):
    """Writes what `read_yaml` gives back: a `Plain` word as it is, and a text that looks like a number to any YAML in
    quotes.
    """

    def represent_word(self, word: Plain) -> yaml.Node:
        return self.represent_scalar(self.resolve(yaml.ScalarNode, str(word), (True, False)), str(word))

    def represent_text(self, text: str) -> yaml.Node:
        # PyYAML itself quotes what YAML 1.1 takes for something else, as in 010. Only double quotes keep every kind of
        # line break.
        quotes = None if isinstance(_resolve_word(text), str) else "'"
        return self.represent_scalar(f"{_TAG}str", text, style=quotes if text.isprintable() else '"')


Dumper.add_representer(Plain, Dumper.represent_word)
Dumper.add_representer(str, Dumper.represent_text)


def _resolve_word(word: str) -> Any:
    if word in _CONSTANTS or len(word) > LONGEST_NUMBER:
        return _CONSTANTS.get(word, word)
    if _INT.fullmatch(word):
        return int(word, 16) if word.startswith("0x") else int(word.replace("_", ""))
    if _FLOAT.fullmatch(word):
        return float(word.replace("_", ""))
    if special := _SPECIAL.fullmatch(word):
        return float(f"{special[1] or ''}{'inf' if special[2] else 'nan'}")
    return word


class _YamlReader(yaml.SafeLoader):
    """PyYAML's parser, with a construction of its own that resolves no word and builds no object."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0

    def tree(self, node: yaml.Node, depth: int = 0) -> Any:
        # Counted as it is expanded: ten lines of aliases of aliases stand for more than any memory holds, and one may
        # hold itself.
        self._nodes += 1
        if self._nodes > MOST_NODES or depth > DEEPEST:
            _refuse(node, "too large once its aliases (*) are written out" if depth <= DEEPEST else "nested too deeply")
        if node.tag not in (f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map"):
            _refuse(node, f"the tag {node.tag.replace(_TAG, '!!')} is not read; leave it out")
        if isinstance(node, yaml.SequenceNode):
            return [self.tree(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        return str(node.value) if isinstance(node, yaml.ScalarNode) and node.style else Plain(node.value)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse(key, "a key must be a text")
            if key.value == "<<" and not key.style:
                merged |= self._merged(value, depth)
                continue
            if key.value in own:
                _refuse(key, f'"{key.value}" is given twice, first on line {lines[key.value]}')
            own[key.value], lines[key.value] = self.tree(value, depth + 1), key.start_mark.line + 1
        return merged | own

    def _merged(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        """What `<<: *a` or `<<: [*a, *b]` brings in; of several the first counts."""
        results: dict[str, Any] = {}
        value = self.tree(node, depth + 1)
        for tree in reversed(value if isinstance(value, list) else [value]):
            if not isinstance(tree, dict):
                _refuse(node, "<< takes a mapping, or a list of them")
            results |= tree
        return results


_YamlReader.yaml_implicit_resolvers = {}


class _InvalidYaml(yaml.MarkedYAMLError):
    """What is YAML and is not read."""


def _refuse(node: yaml.Node, problem: str) -> NoReturn:
    raise _InvalidYaml(problem=problem, problem_mark=node.start_mark)
