"""Reader and writer of YAML files: recipes, catalogs and studies.

    tree = read_yaml(Path("catalog.yaml"))

An unquoted word such as `1e3`, `010` or `no` is a text, a number or a truth value, and YAML 1.1 and 1.2 disagree on
which. Here the expected type decides. The reader returns every unquoted word as a `Plain`, which holds the text as
written. Code that expects a text uses it as it is. Other code calls `resolve` to get the value.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cover.errors import UserError

MOST_NODES = 200_000  # after aliases are expanded; a catalog of a thousand data sets has about 20,000
DEEPEST = 50  # levels of nesting; a recipe has 4
LONGEST_NUMBER = 300  # characters; a longer word is a text, because its value may not fit a float
_TAG = "tag:yaml.org,2002:"
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Other than in PyYAML, 1e-3 is a number, and 010 and 1:30 are texts.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))(?:[eE][-+]?\d+)?", re.ASCII)
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class Plain(str):
    """An unquoted word, as written in the file. `resolve` returns its value."""

    __slots__ = ()


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none. The values are those of `parse_yaml`.

    Raises `UserError`, in one line with the file and the line number, if the file cannot be read, is not YAML, or has
    no mapping at its top level.
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
    """Read a YAML text into dictionaries, lists, quoted texts (`str`) and unquoted words (`Plain`).

    Keys are texts as written. The same key twice in a mapping is an error.

    Raises `UserError`, in one line that begins with `where` and names the line and the column, both counted from 1.
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
    """The value of a `Plain` word by the rules of YAML 1.2: None, a truth value, a number or a text.

    In a list or a mapping, every item is resolved. Other values do not change.
    """
    if isinstance(value, dict):
        return {key: resolve(item) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item) for item in value]
    return _resolve_word(str(value)) if isinstance(value, Plain) else value


def is_null(value: Any) -> bool:
    """Whether a value is an unquoted `null` or `~`, or empty."""
    return value is None or (isinstance(value, Plain) and resolve(value) is None)


def show(value: Any) -> str:
    """A value as a message shows it: JSON of at most 80 characters."""
    text = json.dumps(resolve(value), ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Dumper(yaml.SafeDumper):
    """Writes YAML from which `read_yaml` reads equal values.

    A `Plain` word is written as it is. A text that some version of YAML would read as a number is written in quotes.
    """

    def represent_word(self, word: Plain) -> yaml.Node:
        return self.represent_scalar(self.resolve(yaml.ScalarNode, str(word), (True, False)), str(word))

    def represent_text(self, text: str) -> yaml.Node:
        # PyYAML itself quotes texts that YAML 1.1 resolves, such as 010. Only double quotes preserve every line break.
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
    """PyYAML's parser. Its own construction of values resolves no word and builds no object."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0

    def tree(self, node: yaml.Node, depth: int = 0) -> Any:
        # Nodes are counted after aliases are expanded. Ten lines of aliases of aliases can exceed any memory, and an
        # alias may contain itself.
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
        merged: dict[str, Any] = {}  # from `<<`; the mapping's own keys have precedence
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
        """The keys that `<<: *a` or `<<: [*a, *b]` adds. If several mappings have a key, the first counts."""
        result: dict[str, Any] = {}
        value = self.tree(node, depth + 1)
        for tree in reversed(value if isinstance(value, list) else [value]):
            if not isinstance(tree, dict):
                _refuse(node, "<< takes a mapping, or a list of them")
            result |= tree
        return result


_YamlReader.yaml_implicit_resolvers = {}


class _InvalidYaml(yaml.MarkedYAMLError):
    """Valid YAML that this reader does not accept."""


def _refuse(node: yaml.Node, problem: str) -> NoReturn:
    raise _InvalidYaml(problem=problem, problem_mark=node.start_mark)
