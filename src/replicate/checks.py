"""What JSON from a repository has to be before it is believed: somebody else may have written it.

Each function returns its value, or raises TypeError or ValueError. It knows JSON's types and the
forms of ids and times; it does not know what they are for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

T = TypeVar("T")

#: Deeper than that no value is nested: what comes later recurses, and Python ends at 1,000 calls.
DEEPEST = 100
#: What a reader accepts at most (bytes): of a document, or a file of events, of which a writer
#: begins another after 256 KiB; and of a tree, some million files.
MAX_DOCUMENT, MAX_EVENTS, MAX_TREE = 64 << 20, 64 << 20, 256 << 20
#: Beyond these years a time cannot be told in every time zone.
_YEARS = range(1900, 9000)
#: Between two heartbeats of a run there is no more time than this (seconds).
_LONGEST_INTERVAL = 86_400
_LARGEST = 1 << 63
_LATEST_ATTEMPT = 1 << 31
_is_id = re.compile(r"[0-9a-f]{64}").fullmatch


def optional(check: Callable[[Any], T], value: Any) -> T | None:
    """None, or what `check` makes of the value."""
    return None if value is None else check(value)


def text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{_shown(value)} is not text")
    return value


def texts(value: Any) -> list[str]:
    if type(value) is not list or not all(type(item) is str for item in value):
        raise TypeError(f"{_shown(value)} is not a list of texts")
    return value


def id(value: Any) -> str:
    """An id or a hash: 64 hex digits."""
    if type(value) is not str or _is_id(value) is None:
        raise ValueError(f"{_shown(value)} is not 64 hexadecimal digits")
    return value


def whole(value: Any) -> int:
    """A whole number that counts something."""
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError(f"{_shown(value)} is not a number of things")
    return value


def attempt(value: Any) -> int:
    if type(value) is not int or not 1 <= value < _LATEST_ATTEMPT:
        raise ValueError(f"{_shown(value)} is not the number of an attempt")
    return value


def step(value: Any) -> int | float | None:
    if value is not None and type(value) is not int and type(value) is not float:
        raise TypeError(f"{_shown(value)} is not a step")
    return value


def interval(value: Any) -> float:
    """The seconds between two heartbeats."""
    if type(value) not in (int, float) or not 0 < value <= _LONGEST_INTERVAL:
        raise ValueError(f"{_shown(value)} is not an interval")
    return float(value)


def path(value: Any) -> str | tuple[str, ...] | None:
    """What was passed to be saved: a path, several, or nothing."""
    return tuple(texts(value)) if type(value) is list else optional(text, value)


def members(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError(f"{_shown(value)} is not an object")
    return value


def named_texts(value: Any) -> dict[str, str]:
    if not all(type(item) is str for item in members(value).values()):
        raise TypeError(f"{_shown(value)} is not an object of texts")
    return value  # type: ignore[no-any-return]


def counts(value: Any) -> dict[str, int]:
    return {name: whole(number) for name, number in members(value).items()}


def time(value: Any) -> datetime:
    """A time that has a time zone and can be told in any other."""
    found = datetime.fromisoformat(value)
    if found.tzinfo is not UTC:
        if found.tzinfo is None:
            raise ValueError(f"{_shown(value)} has no time zone")
        found = found.astimezone(UTC)
    if found.year not in _YEARS:
        raise ValueError(f"{_shown(value)} is out of range")
    return found


def checkpoint(data: Mapping[str, Any]) -> None:
    """The members of a `checkpoint` event that are taken as they are. Journals have thousands, so
    it asks only whether all is well, and then, if it is not, what is wrong."""
    tree, size, stored = data["tree"], data.get("size"), data.get("stored")
    if (
        type(data["id"]) is str
        and _is_id(data["id"])
        and type(data["path"]) is str
        and type(tree) is str
        and _is_id(tree)
        and type(size) is type(stored) is int
        and 0 <= size < _LARGEST
        and 0 <= stored < _LARGEST
        and type(data["metrics"]) is dict
        and "attempt" not in data
    ):
        return
    id(data["id"])
    path(data["path"])
    optional(id, tree)
    optional(whole, size)
    optional(whole, stored)
    members(data["metrics"])
    attempt(data.get("attempt", 1))


def finite(value: Any) -> float:
    """A number of seconds."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{_shown(value)} is not a number")
    return float(value)


def _shown(value: Any) -> str:
    """The value as an error names it: what is long, or was nested to harm, is not told whole."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    return repr(value)[:80]
