"""JSON that others made: reading it, and typed dataclasses from its plain values."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cover.errors import UserError, nearest

T = TypeVar("T")
DEEPEST = 50  # levels of nesting; the configuration of a release has about 5
NAMES = {int: "a whole number", float: "a number", str: "a text", tuple: "a list"}


def parse_json(text: str | bytes) -> Any:
    """Plain values from a JSON text. Raises ValueError, in one line, if it is no JSON or is nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    layer, depth = [value], 0
    while layer := [item for each in layer if isinstance(each, dict | list) for item in _items(each)]:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep()
    return value


def _items(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {DEEPEST} levels deep")


def show(value: Any) -> str:
    """A plain value as a message shows it: JSON of at most 80 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def typed(schema: type[T], values: Any, key: str, optional: Container[str] = ()) -> T:
    """A dataclass of numbers, texts, Literals and tuples of these, from the plain values of a JSON object.

    `optional`: fields that may be absent, which then have their default. Raises `UserError`, in one line that begins
    with the dotted key (`key`, then the field), if a field is unknown, absent or of another type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{key}: expected an object, got {show(values)}")
    kinds = get_type_hints(schema)
    names = [field.name for field in fields(schema) if field.init]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise UserError(f"{key}.{name}: unknown field{nearest(name, names)}")
    for name in names:
        if name not in values and name not in optional:
            raise UserError(f"{key}.{name} is missing")
    return schema(**{name: _read(kinds[name], value, f"{key}.{name}") for name, value in values.items()})


def _read(kind: Any, value: Any, key: str) -> Any:
    """The value of a field, as its type. Raises `UserError`."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in inside:
            raise UserError(f"{key}: expected {' or '.join(map(show, inside))}, got {show(value)}")
        return value
    if origin is UnionType:  # a value or None
        (inner,) = (each for each in inside if each is not NoneType)
        return None if value is None else _read(inner, value, key)
    if origin is tuple and isinstance(value, list):
        items = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        if len(items) != len(value):
            raise UserError(f"{key}: expected {len(items)} entries, got {len(value)}")
        return tuple(_read(item, each, f"{key}[{at}]") for at, (item, each) in enumerate(zip(items, value)))
    if kind is float and type(value) is int and abs(value) < 1 << 63:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{key}: expected {NAMES[origin or kind]}, got {show(value)}")
    if kind is str and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{key}: {show(value)} is no valid text")
    return value
