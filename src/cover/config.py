"""What did the user ask for: a YAML file and dotted overrides, turned into a typed tree of dataclasses.

    recipe = load(Recipe, Path("recipes/mine.yaml"), ["--optimizer.lr", "3e-4", "--rates={ssv2: 2}"])

A schema is a dataclass whose fields are plain values, lists and tuples of them, further dataclasses, and dictionaries from a
name to any of these. This module walks the sections, so that it can name the key of every mistake; jsonargparse reads and
checks each value.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import re
import types
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from cover.errors import UserError, nearest

T = TypeVar("T")


def load(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """The resolved tree: `schema`'s defaults, over them the file, over that `--a.b value` or `--a.b=value` in their order.

    An override's value is the text itself for a text field, YAML or JSON for every other. For a section or a dictionary it
    stands in place of all that the file says there. Raises UserError, one line naming the file and the key, for a file that
    cannot be read and for a key that is unknown, missing, given twice or of another type. A ValueError from a schema's
    `__post_init__` becomes such a line too.
    """
    root = _Node(schema)
    try:
        tree = _mapping(_read(path), root)
        for key, text in _pairs(overrides):
            _place(root, tree, key, text)
        return cast(T, _build(root, tree))
    except _Wrong as wrong:
        raise UserError(f"{path}: {wrong}") from None


def dump(value: Any) -> str:
    """A resolved tree as YAML; `load` gives an equal tree back."""
    return yaml.dump(_plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def changed(value: Any) -> Any:
    """What of a tree is not its default, as plain values: a key that a later version of a schema adds does not show."""
    if isinstance(value, dict):
        return {name: changed(own) for name, own in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return _plain(value)
    own = {name: (getattr(value, name), _default(field)) for name, (field, _) in _fields(type(value)).items()}
    return {name: changed(given) for name, (given, default) in own.items() if given != default}


def keys(schema: type) -> list[str]:
    """One line per key: `optimizer.lr: float = 0.001  peak learning rate`, the help from `field(metadata={"help": …})`."""
    lines = [(f"{leaf.key}: {_name(leaf.kind)}{_default_text(leaf)}", leaf.help) for leaf in _Node(schema).leaves()]
    width = max((len(head) for head, _ in lines if len(head) <= 60), default=0)
    return [f"{head:<{width}}  {text}".rstrip() for head, text in lines]


class _Wrong(Exception):
    """A mistake in one line, without the file's name."""


class _Text(str):
    """A value from the command line: unlike a string from the file, still to be read as YAML."""

    __slots__ = ()


# --- the schema --------------------------------------------------------------------------------------------------------------


class _Node(NamedTuple):
    """One place in the schema: its type, its dotted key and its default (MISSING where a value is required)."""

    kind: Any
    key: str = ""
    default: Any = MISSING
    help: str = ""

    def child(self, name: str) -> _Node | None:
        """The place `name` below this one; None where there is no such key."""
        inner, key = _bare(self.kind), f"{self.key}.{name}" if self.key else name
        if get_origin(inner) is dict and name:
            return _Node(get_args(inner)[1], key, self.default.get(name, MISSING) if isinstance(self.default, dict) else MISSING)
        if name not in self.names():
            return None
        field, kind = _fields(inner)[name]
        # A default section may differ from its class's defaults: its own values count.
        default = getattr(self.default, name) if isinstance(self.default, inner) else _default(field)
        return _Node(kind, key, default, field.metadata.get("help", ""))

    def names(self) -> list[str]:
        inner = _bare(self.kind)
        return list(_fields(inner)) if _is_section(inner) else []

    def leaves(self) -> Iterator[_Node]:
        inner = _bare(self.kind)
        named_sections = get_origin(inner) is dict and _is_section(_bare(get_args(inner)[1]))
        children = ["NAME"] if named_sections else self.names()
        if not children:
            yield self
        for name in children:
            child = self.child(name)
            assert child is not None
            yield from child.leaves()


@functools.cache
def _fields(schema: type) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(schema)
    return {field.name: (field, hints[field.name]) for field in dataclasses.fields(schema) if field.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind)


def _optional(kind: Any) -> bool:
    return type(None) in _members(kind)


def _bare(kind: Any) -> Any:
    """`X` of `X | None`; any other type as it is."""
    others = [member for member in _members(kind) if member is not type(None)]
    return others[0] if len(others) == 1 else kind


def _name(kind: Any) -> str:
    """A type as a user reads it: `float or null`, `"adamw" or "sgd"`, `list[str]`."""
    if len(_members(kind)) > 1:
        return " or ".join(_name(member) for member in _members(kind))
    if get_origin(kind) is Literal:
        return " or ".join(_show(choice) for choice in get_args(kind))
    if get_args(kind):
        inside = ", ".join("..." if item is Ellipsis else _name(item) for item in get_args(kind))
        return f"{get_origin(kind).__name__}[{inside}]"
    return "null" if kind is type(None) else str(kind.__name__)


def _default_text(leaf: _Node) -> str:
    return " (required)" if leaf.default is MISSING else f" = {_show(_plain(leaf.default))}"


# --- a plain tree into a typed one -------------------------------------------------------------------------------------------


def _build(node: _Node, value: Any) -> Any:
    inner = _bare(node.kind)
    if _optional(node.kind) and (value is None or (isinstance(value, _Text) and value == "null")):
        return None
    if _is_section(inner):
        return _section(node, _mapping(value, node))
    if get_origin(inner) is dict:
        return {name: _build(_known(node, name), item) for name, item in _mapping(value, node).items()}
    return _leaf(node, value)


def _section(node: _Node, given: Mapping[str, Any]) -> Any:
    for name in given:
        _known(node, name)
    values = {name: _field_value(_known(node, name), given, name) for name in node.names()}
    try:
        return _bare(node.kind)(**values)
    except ValueError as error:
        raise _Wrong(f"{node.key}: {error}" if node.key else str(error)) from None


def _field_value(node: _Node, given: Mapping[str, Any], name: str) -> Any:
    if name in given:
        return _build(node, given[name])
    if node.default is not MISSING:
        return node.default
    if _is_section(node.kind):
        return _build(node, {})  # complains about the keys in it, if it must
    raise _Wrong(f'"{node.key}" is missing: it needs {_name(node.kind)}')


def _leaf(node: _Node, value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, _Text) and str in _members(node.kind):
        return value  # jsonargparse would read the text "null" as nothing
    try:
        if value is None and not _optional(node.kind):
            raise ValueError  # jsonargparse takes this for "not given"
        return _parser(node.kind).parse_object({"value": str(value) if isinstance(value, _Text) else value}).value
    except (ArgumentError, ValueError, OverflowError):
        choices = [str(choice) for member in _members(node.kind) if get_origin(member) is Literal for choice in get_args(member)]
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise _Wrong(f"{node.key}: expected {_name(node.kind)}, got {_show(value)}{hint}") from None


@functools.cache
def _parser(kind: Any) -> ArgumentParser:
    assert not any(_is_section(item) for item in get_args(kind)), f"a schema holds {kind}; sections go in fields or dictionaries"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser


def _mapping(value: Any, node: _Node) -> dict[str, Any]:
    """`value` as a section; an empty one (all of its lines commented out, say) is the same as none."""
    if isinstance(value, _Text):
        value = _parse(value, node.key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Wrong(f"{node.key or 'the file'}: expected keys with values, got {_show(value)}")
    return value


def _known(node: _Node, name: str) -> _Node:
    child = node.child(name)
    if child is None:
        raise _Wrong(f'unknown key "{_dotted(node, name)}"{_hint(node, name)}')
    return child


def _dotted(node: _Node, name: str) -> str:
    return f"{node.key}.{name}" if node.key else name


def _hint(node: _Node, name: str) -> str:
    """The nearest key of the same section, else the key of this name in a section below, else all keys of this section."""
    close = [_dotted(node, sibling) for sibling in difflib.get_close_matches(name, node.names(), n=1)]
    deeper = [leaf.key for leaf in node.leaves() if leaf.key.rpartition(".")[2] == name]
    return f'; did you mean "{(close + deeper)[0]}"?' if close or deeper else nearest(name, node.names())


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- the command line --------------------------------------------------------------------------------------------------------


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(overrides)
    for token in rest:
        if not token.startswith("--"):
            raise _Wrong(f'"{token}" on the command line belongs to no key: write --key value or --key=value')
        key, equals, text = token[2:].partition("=")
        if not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise _Wrong(f"--{key} needs a value: write --{key} value or --{key}=value")
        yield key, text


def _place(node: _Node, tree: dict[str, Any], key: str, text: str) -> None:
    """Put an override where the file would have had it."""
    functools.reduce(_known, key.split("."), node)
    *parents, last = key.split(".")
    for name in parents:
        node = _known(node, name)
        # One more entry for a dictionary leaves its default ones in place. A copy, for a YAML alias shares its sections.
        tree[name] = dict(_mapping(tree.get(name, _plain(node.default) if isinstance(node.default, dict) else None), node))
        tree = tree[name]
    tree[last] = _Text(text)


# --- YAML --------------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML with 1e-3 as a float and dates as text; keys are text, each given once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                raise yaml.MarkedYAMLError(problem="a key that is not text: put it in quotes", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f'key "{key.value}" is given twice', problem_mark=key.start_mark)
            seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """YAML with sections as blocks, lists on one line and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_row(self, items: list[Any]) -> yaml.Node:
        return self.represent_sequence(f"{_TAG}seq", items, flow_style=True)

    def represent_text(self, text: str) -> yaml.Node:
        # Only double quotes keep every kind of line break.
        return self.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"')


_TAG = "tag:yaml.org,2002:"
# Numbers as in YAML 1.2: 1e-3 is one, while 010 and 1:30 are text. PyYAML follows YAML 1.1 and has it the other way round.
_FLOAT = re.compile(
    r"(?:[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", re.ASCII
)
_INT = re.compile(r"(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$")
_Rules = dict[str, list[tuple[str, re.Pattern[str]]]]


def _resolvers(without: Sequence[str]) -> _Rules:
    theirs: _Rules = yaml.SafeLoader.yaml_implicit_resolvers
    table = {first: [rule for rule in rules if rule[0].removeprefix(_TAG) not in without] for first, rules in theirs.items()}
    for first in "-+.0123456789":
        table[first] = [*table.get(first, []), (f"{_TAG}float", _FLOAT), (f"{_TAG}int", _INT)]
    return table


_Loader.yaml_implicit_resolvers = _resolvers(without=["float", "int", "timestamp"])
# The dumper quotes text that looks like a number or a date to either rule book.
_Dumper.yaml_implicit_resolvers = _resolvers(without=[])
_Dumper.add_representer(list, _Dumper.represent_row)
_Dumper.add_representer(str, _Dumper.represent_text)


def _read(path: Path) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _Wrong(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _Wrong("is not UTF-8 text") from None
    return _parse(text, "")


def _parse(text: str, key: str) -> Any:
    """Raises _Wrong with the line and column, both counted from 1."""
    where = f"{key}: " if key else ""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part).replace("\n", " ")
        raise _Wrong(f"{where}line {mark.line + 1}, column {mark.column + 1}: {reason}" if mark else f"{where}{reason}") from None
    except ValueError as error:  # an explicit tag on something else, as in `!!int fast`
        raise _Wrong(f"{where}{error}") from None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        raise _Wrong(f"{where}line {line}, column {column}: the character {error.character!r} is not allowed in YAML") from None


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists, paths as text."""
    kind: type = type(value)
    if _is_section(kind):
        return {name: _plain(getattr(value, name)) for name in _fields(kind)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


# --- writing a schema --------------------------------------------------------------------------------------------------------


def option(default: Any, text: str) -> Any:
    """A field of a schema: its default and its help."""
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def check_range(key: str, value: float, low: float, high: float) -> None:
    """Raises UserError where `value` is not in [low, high]; `high` may be infinite."""
    if not low <= value <= high:
        raise UserError(f"{key}: {value} is not {f'in [{low}, {high}]' if math.isfinite(high) else f'{low} or more'}")
