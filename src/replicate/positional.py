"""Frozen dataclasses with slots as lists of plain values, for caches: each field by its position,
without names or versions.

What is written is read only by the same code, so the fields of the classes are all the schema
there is: a new field needs nothing here. Values of the user's, which are JSON, stay as they are.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
Decode = Callable[[Any], Any]
_PLAIN = frozenset({str, int, float, bool, types.NoneType})


def pack(value: Any) -> Any:
    """`value` as what `marshal` writes; `unpack` with the value's type is the inverse."""
    if type(value) in _PLAIN:
        return value
    if is_dataclass(value):
        schema = _schema(type(value))
        packed = [pack(getattr(value, name)) for name in schema.names]
        return tuple(packed) if schema.texts else packed
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return tuple(map(pack, value))
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, Mapping):
        return {name: pack(item) for name, item in value.items()}
    return value


def unpack(kind: type[T], packed: Any, **instead: Any) -> T:
    """The inverse of `pack` for a dataclass, with the fields in `instead` as given there. It uses
    `packed` up."""
    schema = _schema(kind)
    if schema.texts:
        made: T = _common(kind, packed)
        return made
    for place, decode in schema.decoders:
        if packed[place] is not None:
            packed[place] = decode(packed[place])
    for name, value in instead.items():
        packed[schema.names[name]] = value
    # As __init__ does for a frozen class with slots, at a third of the price.
    made = object.__new__(kind)
    for assign, value in zip(schema.slots, packed, strict=True):
        assign(made, value)
    return made


class _Schema(NamedTuple):
    """The places of a class's fields by name, what assigns each, and what decodes those whose
    values are not plain. Of `texts` alone consist small values such as a primary metric, which
    many records have in common: those are one."""

    names: dict[str, int]
    slots: list[Callable[[Any, Any], None]]
    decoders: list[tuple[int, Decode]]
    texts: bool


def _schema_of(kind: type) -> _Schema:
    hints = typing.get_type_hints(kind)
    names = {field.name: place for place, field in enumerate(fields(kind))}
    decoders = [(place, d) for name, place in names.items() if (d := _decoder(hints[name]))]
    texts = all(hint is str or typing.get_origin(hint) is typing.Literal for hint in hints.values())
    return _Schema(names, [getattr(kind, name).__set__ for name in names], decoders, texts)


#: A value of texts; so many different ones are kept to be given again.
_common: Callable[..., Any] = lru_cache(64)(lambda kind, packed: kind(*packed))
#: As `_schema_of`, which is asked for every value of every row.
_schema: Callable[[type], _Schema] = cache(_schema_of)


def _decoder(hint: Any) -> Decode | None:
    """What makes a value of this type of its packed form; None where that is the value."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        decoders = [d for a in arguments if (d := _decoder(a))]
        if len(decoders) > 1:
            raise TypeError(f"{hint} has no positional form")
        return decoders[0] if decoders else None
    if origin is tuple and arguments[1:] == (...,):
        decode = _decoder(arguments[0])
        return (lambda items: tuple(map(decode, items))) if decode else None
    if isinstance(hint, type) and is_dataclass(hint):
        return partial(unpack, hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {member.value: member for member in hint}.__getitem__
    if hint is datetime:
        return datetime.fromisoformat
    if hint is Any or hint in _PLAIN or origin in _AS_THEY_ARE:
        return None
    raise TypeError(f"{hint} has no positional form")


#: Of the user's values, which are JSON; the index replaces a sequence of checkpoints itself.
_AS_THEY_ARE = (typing.Literal, Mapping, Sequence)
