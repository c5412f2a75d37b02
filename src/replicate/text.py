"""How a value looks to a person: numbers, times, sizes, and text that others wrote.

Pure functions from values to text. It knows nothing of terminals, tables, notebooks or commands.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo

from replicate.model import Value

#: Control characters, line separators, changes of writing direction and lone surrogates: all that
#: could move the cursor, break a table, disguise a name or fail to be written.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SIZES = ("bytes", "KB", "MB", "GB", "TB", "PB")
#: A unit of time, its seconds, and the seconds from which on the next one is used.
_UNITS = (
    ("second", 1, 60),
    ("minute", 60, 3600),
    ("hour", 3600, 86_400),
    ("day", 86_400, 30 * 86_400),
)


def escape(text: str, *, keep: str = "") -> str:
    """The text on one line without what a terminal would act on, except characters in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda m: m[0] if m[0] in keep else _escaped(m[0]), text)


def escape_json(document: str) -> str:
    """The same JSON without what a terminal would act on: in JSON all that is in strings."""
    if document.isascii() and "\x7f" not in document:
        return document
    return _UNPRINTABLE.sub(lambda m: m[0] if m[0] == "\n" else f"\\u{ord(m[0]):04x}", document)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def value(item: Value, *, full: bool = False) -> str:
    """A param or metric: numbers to 5 digits, or in full; lists and dicts as JSON.

    A float that is a whole number is written as one, and a string without quotes.
    """
    if isinstance(item, float):  # as most cells of a table
        return _float(item, full=full)
    if isinstance(item, str):
        return escape(item)
    if isinstance(item, bool) or item is None:
        return json.dumps(item)
    if isinstance(item, int):
        return str(item)
    if isinstance(item, Mapping):
        items = (f"{_quoted(str(k))}: {_nested(v, full=full)}" for k, v in item.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(item, list | tuple):
        return f"[{', '.join(_nested(v, full=full) for v in item)}]"
    return escape(str(item))


def values_apart(left: Value, right: Value) -> tuple[str, str]:
    """Two differing values in full, with strings in quotes where they would look the same."""
    texts = value(left, full=True), value(right, full=True)
    if texts[0] == texts[1]:
        texts = _nested(left, full=True), _nested(right, full=True)
    return texts


def _nested(item: Value, *, full: bool) -> str:
    return _quoted(item) if isinstance(item, str) else value(item, full=full)


def _quoted(text: str) -> str:
    return escape(json.dumps(text, ensure_ascii=False))


def _float(number: float, *, full: bool) -> str:
    if not math.isfinite(number):
        return str(number)
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    if full:
        return repr(number)
    return f"{number:.0f}" if 1e5 <= abs(number) < 1e15 else f"{number:.5g}"


def step(number: int | float | None) -> str:
    """A checkpoint's step, or nothing when it has none."""
    return "" if number is None else value(number, full=True)


def ago(when: datetime, now: datetime, *, brief: bool = False) -> str:
    """How long ago, in one unit; the date when that is a month or more, or lies in the future."""
    seconds = int((now - when).total_seconds())
    if -60 < seconds < 1:
        return "now" if brief else "just now"
    for unit, size, limit in _UNITS:
        if 0 < seconds < limit:
            count = seconds // size
            if brief:
                return f"{count}{unit[0]} ago"
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return when.astimezone().strftime("%Y-%m-%d")


def date(when: datetime, zone: tzinfo | None = None) -> str:
    """The time in full in the given or local time zone: Tue, 01 Sep 2020 21:42:22 PDT."""
    return when.astimezone(zone).strftime("%a, %d %b %Y %H:%M:%S %Z")


def duration(length: timedelta) -> str:
    """A length of time in its two largest units: 45s, 2m 05s, 3h 20m, 2d 04h."""
    seconds = max(0, round(length.total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{days}d {hours % 24:02}h"
    if hours:
        return f"{hours}h {minutes % 60:02}m"
    return f"{minutes}m {seconds % 60:02}s" if minutes else f"{seconds}s"


def size(number: int) -> str:
    """A number of bytes in decimal units, as `ls -h` shows it: 8.3 KB."""
    if number < 1000:
        return f"{number} byte{'s' if number != 1 else ''}"
    amount = float(number)
    for unit in _SIZES:
        if amount < 999.5 or unit == _SIZES[-1]:
            break
        amount /= 1000
    return f"{amount:.1f} {unit}" if amount < 99.95 else f"{amount:.0f} {unit}"
