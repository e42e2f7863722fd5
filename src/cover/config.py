"""Typed configuration: reads a YAML file and dotted overrides into a tree of dataclasses.

    recipe = load(Recipe, Path("recipes/mine.yaml"), ["--optimizer.lr", "3e-4", "--rates={ssv2: 2}"])

A schema is a dataclass. A field holds a plain value, a list or a tuple of plain values, another dataclass (a
"section"), or a dictionary from a name to any of these. A plain value may have one of several types, as in
`int | Literal["auto"]`; the first type that fits is used. A field may also be a union of dataclasses. The first field
of each of them then has the same name, and its type is a Literal with one value. This value chooses the dataclass.

This module does not use jsonargparse, which also has dataclass trees and dotted overrides, for four reasons.
jsonargparse reads `lr: null` as "not given". It opens a text in the place of a section as a file. It gives words such
as `010` a number before it knows that a text is expected. And for a mistake inside a dictionary (`sources.a.wight`) it
names neither the full key nor the nearest key. The code to correct this would be longer than this module.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from cover.errors import UserError, nearest
from cover.yaml_files import Dumper, is_null, parse_yaml, read_yaml, resolve, show

T = TypeVar("T")


def load(
    schema: type[T],
    path: Path,
    overrides: Sequence[str] = (),
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> T:
    """Read a tree of type `schema` from a YAML file and from overrides.

    A value in the file replaces the default of the schema. An override, `--a.b value` or `--a.b=value`, replaces the
    value in the file. If a key is overridden twice, the last override counts.

    The value of an override is YAML or JSON. For a text field it is the text itself, but `null` is None if the field
    may be null. For a section or a dictionary, the override replaces the whole of it.

    Raises `UserError`, in one line with the file and the key, if the file cannot be read, or if a key is unknown,
    missing, given twice or of another type. A ValueError from `__post_init__` of a schema becomes such a line too.
    """
    root = _SchemaNode(schema)
    tree = read_yaml(path)
    try:
        for key, text in _pairs(overrides):
            _override(root, tree, key, text)
        return cast(T, _build(root, complete(tree) if complete else tree))
    except _Mistake as mistake:
        raise UserError(f"{path}: {mistake}") from None


def dump(value: Any) -> str:
    """The tree as YAML. `load` reads an equal tree from it."""
    return yaml.dump(plain(value), Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=120)


def changed(value: Any) -> Any:
    """The fields of a tree that differ from their defaults, as plain values.

    The result stays the same when a later version of the schema adds a field.
    """
    if isinstance(value, dict):
        return {name: changed(item) for name, item in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return plain(value)
    result: dict[str, Any] = {}
    for name, (field, _) in _fields(type(value)).items():
        item, default = getattr(value, name), _default(field)
        if item != default:
            # A section of another type than the default is given in full: only its own fields say which type it is.
            another = default is not MISSING and type(item) is not type(default)
            result[name] = plain(item) if another else changed(item)
    return result


def keys(schema: type) -> list[str]:
    """One line per key, as in `optimizer.lr: float = 0.001  peak learning rate`. The help is that of `option`."""
    lines = [
        (f"{leaf.key}: {_name(leaf.kind)}{_default_text(leaf)}", leaf.help) for leaf in _SchemaNode(schema).leaves()
    ]
    width = max((len(head) for head, _ in lines if len(head) <= 60), default=0)
    return [f"{head:<{width}}  {text}".rstrip() for head, text in lines]


class _Mistake(Exception):
    """A mistake of the user. The message is one line without the name of the file."""


# --- the schema -------------------------------------------------------------------------------------------------------


class _SchemaNode(NamedTuple):
    """A key of the schema: its type, its dotted name, its default (MISSING if a value is required) and its help."""

    kind: Any
    key: str = ""
    default: Any = MISSING
    help: str = ""

    def child(self, name: str) -> _SchemaNode | None:
        """The key `name` below this one, or None if there is no such key."""
        inner, key = _bare(self.kind), _dotted(self, name)
        if get_origin(inner) is dict and name:
            default = self.default.get(name, MISSING) if isinstance(self.default, dict) else MISSING
            return _SchemaNode(get_args(inner)[1], key, default)
        if name not in self.names():
            return None
        section = next(section for section in _sections(inner) if name in _fields(section))
        field, kind = _fields(section)[name]
        sections = _sections(inner)
        if len(sections) > 1 and name == _choice(section):
            kind = Literal[tuple(_word_of(each) for each in sections)]
        # The default of a section may be an instance whose values differ from the defaults of its class.
        default = getattr(self.default, name) if isinstance(self.default, section) else _default(field)
        return _SchemaNode(kind, key, default, field.metadata.get("help", ""))

    def names(self) -> list[str]:
        """The keys below this one; for a union of sections, the keys of all of them."""
        return list(dict.fromkeys(name for section in _sections(self.kind) for name in _fields(section)))

    def leaves(self) -> Iterator[_SchemaNode]:
        """All keys below this one that are no sections; this key itself if there are none."""
        inner = _bare(self.kind)
        named_sections = get_origin(inner) is dict and _is_section(_bare(get_args(inner)[1]))
        children = ["NAME"] if named_sections else self.names()
        if not children:
            yield self
        for name in children:
            child = self.child(name)
            assert child is not None
            yield from child.leaves()
            yield from self._other_meanings(name)

    def _other_meanings(self, name: str) -> Iterator[_SchemaNode]:
        """The key `name` once more for each other type or help that it has in a union of sections.

        Its help begins with the values that choose these sections.
        """
        sections = [section for section in _sections(self.kind) if name in _fields(section)]
        if len(sections) < 2 or name == _choice(sections[0]):
            return
        meanings: dict[tuple[str, str], list[type]] = {}
        for section in sections:
            field, kind = _fields(section)[name]
            meanings.setdefault((_name(kind), field.metadata.get("help", "")), []).append(section)
        for (_, text), same in list(meanings.items())[1:]:
            field, kind = _fields(same[0])[name]
            words = ", ".join(_word_of(section) for section in same)
            known = text.startswith(f"{words}: ")
            yield _SchemaNode(kind, _dotted(self, name), _default(field), text if known else f"{words}: {text}")


@functools.cache
def _fields(schema: type) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass by name, each with its resolved type."""
    hints = get_type_hints(schema)
    return {field.name: (field, hints[field.name]) for field in dataclasses.fields(schema) if field.init}


def _choice(section: type) -> str:
    """The name of the first field, whose value chooses a section of a union."""
    return next(iter(_fields(section)))


def _word_of(section: type) -> str:
    """The value that chooses a section of a union."""
    return str(get_args(_fields(section)[_choice(section)][1])[0])


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type, the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind)


def _sections(kind: Any) -> list[Any]:
    """The dataclasses among the members of a type."""
    return [member for member in _members(kind) if _is_section(member)]


def _optional(kind: Any) -> bool:
    return type(None) in _members(kind)


def _bare(kind: Any) -> Any:
    """`X` for `X | None`, and any other type unchanged."""
    others = [member for member in _members(kind) if member is not type(None)]
    return others[0] if len(others) == 1 else kind


def _name(kind: Any) -> str:
    """A type in the words of a message, as in `float or null`, `"adamw" or "sgd"`, `list[str]`."""
    if len(_members(kind)) > 1:
        return " or ".join(_name(member) for member in _members(kind))
    if get_origin(kind) is Literal:
        return " or ".join(show(choice) for choice in get_args(kind))
    if get_args(kind):
        inside = ", ".join("..." if item is Ellipsis else _name(item) for item in get_args(kind))
        return f"{get_origin(kind).__name__}[{inside}]"
    return "null" if kind is type(None) else str(kind.__name__)


def _default_text(leaf: _SchemaNode) -> str:
    return " (required)" if leaf.default is MISSING else f" = {show(plain(leaf.default))}"


# --- a plain tree into a typed one ------------------------------------------------------------------------------------


def _build(node: _SchemaNode, value: Any) -> Any:
    inner = _bare(node.kind)
    if _optional(node.kind) and is_null(value):
        return None
    if _sections(inner):
        section = _mapping(value, node)
        return _section(_chosen(node, section), section)
    if get_origin(inner) is dict:
        return {name: _build(_known_child(node, name), item) for name, item in _mapping(value, node).items()}
    return _leaf(node, value)


def _chosen(node: _SchemaNode, value: Mapping[str, Any]) -> _SchemaNode:
    """`node` with one section in place of a union of sections.

    The value of the first field chooses the section. If it is not given, the section is that of the default.
    """
    sections = _sections(node.kind)
    if len(sections) == 1:
        return node
    name = _choice(sections[0])
    values = {_word_of(section): section for section in sections}
    wanted = str(value.get(name, getattr(node.default, name, MISSING)))
    if wanted not in values:
        raise _Mistake(f"{_dotted(node, name)}: expected {_name(Literal[tuple(values)])}, got {show(value.get(name))}")
    return node._replace(kind=values[wanted])


def _section(node: _SchemaNode, value: Mapping[str, Any]) -> Any:
    for name in value:
        _known_child(node, name)
    values = {name: _field_value(_known_child(node, name), value, name) for name in node.names()}
    try:
        return _bare(node.kind)(**values)
    except ValueError as error:
        raise _Mistake(f"{node.key}: {error}" if node.key else str(error)) from None


def _field_value(node: _SchemaNode, value: Mapping[str, Any], name: str) -> Any:
    if name in value:
        return _build(node, value[name])
    if node.default is not MISSING:
        return node.default
    if _sections(node.kind):
        return _build(node, {})  # raises if the section has a required key
    raise _Mistake(f'"{node.key}" is missing: it needs {_name(node.kind)}')


def _leaf(node: _SchemaNode, value: Any) -> Any:
    try:
        if is_null(value):
            raise ValueError  # only here: in a list of texts, `null` is a text
        return _read(_bare(node.kind), value)
    except ValueError:
        literals = [member for member in _members(node.kind) if get_origin(member) is Literal]
        choices = [str(choice) for literal in literals for choice in get_args(literal)]
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise _Mistake(f"{node.key}: expected {_name(node.kind)}, got {show(value)}{hint}") from None


def _read(kind: Any, values: Any) -> Any:
    """Convert a text, a `Plain` word or a list to the type `kind`.

    `kind` is a text, a number, a truth value, a Literal of texts, a list, a tuple or a union of these. Raises
    ValueError if the value does not have this type.
    """
    if len(_members(kind)) > 1:
        return _read_union(_members(kind), values)
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (list, tuple) and isinstance(values, list):
        any_length = origin is list or inside[-1] is Ellipsis  # tuple[int, ...]
        kinds = inside[:1] * len(values) if any_length else inside
        return origin(_read(item_kind, item) for item_kind, item in zip(kinds, values, strict=True))
    if isinstance(values, str) and (kind is str or (origin is Literal and values in inside)):
        return str(values)
    value = resolve(values)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError
    return value


def _read_union(kinds: Sequence[Any], value: Any) -> Any:
    """Convert a value to the first of several types that it has. Raises ValueError if it has none of them."""
    for kind in kinds:
        try:
            return _read(kind, value)
        except ValueError:
            continue
    raise ValueError


def _mapping(value: Any, node: _SchemaNode) -> dict[str, Any]:
    """The keys and values of a section or a dictionary. An empty value, as of a section without lines, has no keys."""
    if is_null(value):
        return {}
    if not isinstance(value, dict):
        raise _Mistake(f"{node.key}: expected keys with values, got {show(value)}")
    return value


def _known_child(node: _SchemaNode, name: str) -> _SchemaNode:
    """The key `name` below `node`. Raises `_Mistake` if there is no such key."""
    child = node.child(name)
    if child is None:
        raise _Mistake(f'unknown key "{_dotted(node, name)}"{_hint(node, name)}')
    return child


def _dotted(node: _SchemaNode, name: str) -> str:
    return f"{node.key}.{name}" if node.key else name


def _hint(node: _SchemaNode, name: str) -> str:
    """A hint after an unknown key.

    It names the nearest key of the same section, else a key of this name in a section below, else all keys of the
    section.
    """
    close = [_dotted(node, sibling) for sibling in difflib.get_close_matches(name, node.names(), n=1)]
    deeper = [leaf.key for leaf in node.leaves() if leaf.key.rpartition(".")[2] == name]
    return f'; did you mean "{(close + deeper)[0]}"?' if close or deeper else nearest(name, node.names())


# --- the command line -------------------------------------------------------------------------------------------------


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(overrides)
    for token in rest:
        if not token.startswith("--"):
            raise _Mistake(f'"{token}" on the command line belongs to no key: write --key value or --key=value')
        key, equals, text = token[2:].partition("=")
        if not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise _Mistake(f"--{key} needs a value: write --{key} value or --{key}=value")
        yield key, text


def _override(node: _SchemaNode, tree: dict[str, Any], key: str, text: str) -> None:
    """Put the value of `--key text` into the tree that was read from the file."""
    leaf = functools.reduce(_known_child, key.split("."), node)
    *parents, last = key.split(".")
    for name in parents:
        node = _known_child(node, name)
        # If the file does not set a dictionary, an override adds an entry to the default entries.
        default = plain(node.default) if isinstance(node.default, dict) else None
        # A copy, because a YAML alias may place one section at two keys.
        tree[name] = dict(_mapping(tree.get(name, default), node))
        tree = tree[name]
    tree[last] = _override_value(leaf, text)


def _override_value(leaf: _SchemaNode, text: str) -> Any:
    if str in _members(leaf.kind):
        return None if text == "null" and _optional(leaf.kind) else text
    try:
        return parse_yaml(text, leaf.key)
    except UserError as error:
        raise _Mistake(str(error)) from None


# --- a typed tree into YAML -------------------------------------------------------------------------------------------


class _RecipeDumper(Dumper):
    """Writes sections as blocks, lists on one line, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_row(self, items: list[Any]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_RecipeDumper.add_representer(list, _RecipeDumper.represent_row)


def plain(value: Any) -> Any:
    """A tree of plain values: dataclasses become dictionaries, tuples become lists, paths become texts."""
    kind: type = type(value)
    if _is_section(kind):
        return {name: plain(getattr(value, name)) for name in _fields(kind)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


# --- writing a schema -------------------------------------------------------------------------------------------------


def option(default: Any, text: str) -> Any:
    """A field of a schema with its default and its help."""
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def check_range(key: str, value: float, low: float, high: float) -> None:
    """Raise `UserError` if `value` is not in [low, high]. `high` may be infinite."""
    if not low <= value <= high:
        raise UserError(f"{key}: {value} is not {f'in [{low}, {high}]' if math.isfinite(high) else f'{low} or more'}")
