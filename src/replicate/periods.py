"""What a time that a person writes stands for: "2026-11-01", "yesterday", "2 days ago"; and a
length of time: "90 min", "1 h 30 min".

It knows the calendar, and is told what time it is now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from replicate.errors import UsageError


@dataclass(frozen=True, slots=True)
class Period:
    """A time as exact as it was written. `first` up to `last` equals it; what comes before
    `before` is earlier, and what does not come before `after` is later."""

    first: datetime
    last: datetime
    before: datetime
    after: datetime

    def test(self, operator: str) -> Callable[[datetime], bool]:
        """Whether a time is =, !=, <, <=, > or >= this one."""
        tests: Mapping[str, Callable[[datetime], bool]] = {
            "=": lambda t: self.first <= t < self.last,
            "!=": lambda t: not self.first <= t < self.last,
            "<": lambda t: t < self.before,
            "<=": lambda t: t < self.after,
            ">": lambda t: t >= self.after,
            ">=": lambda t: t >= self.before,
        }
        return tests[operator]


_DAY, _INSTANT = timedelta(days=1), timedelta(microseconds=1)
_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": _DAY,
    "w": timedelta(weeks=1),
    "month": timedelta(days=30),
    "y": timedelta(days=365),
}
_UNIT = r"(?P<unit>[smhdwy]|sec|min|(second|minute|hour|day|week|month|year)s?)"
_AGO = re.compile(rf"(?P<count>[0-9]{{1,9}}|an?) ?{_UNIT} ago")
_PART = re.compile(rf"(?P<count>[0-9]{{1,9}}(\.[0-9]{{1,9}})?|an?) ?{_UNIT}(?![a-z])[ ,]*")
_MONTH = re.compile(r"(?P<year>[0-9]{4})(-(?P<month>[0-9]{2}))?")
_EXAMPLES = "2026-11-01, 2026-11-01 14:30, 2026-11, yesterday, today, 2 days ago, 3 hours ago"


def parse_period(text: str, now: datetime) -> Period:
    """The period that the text stands for, in local time unless it says which.

    Raises UsageError, with examples, for what is no time.
    """
    words = " ".join(text.split())
    try:
        if found := _AGO.fullmatch(words.lower()):
            return _ago(found["count"], found["unit"], now)
        return _calendar(words, now)
    except (ValueError, OverflowError) as error:
        raise UsageError(f'"{text}" is no time', hint=f"times are such as {_EXAMPLES}") from error


def parse_length(text: str) -> float:
    """The seconds that the text stands for: a number of them, or parts with units.

    Raises UsageError, with examples, for what is no length of time.
    """
    words = " ".join(text.split()).lower()
    try:
        return float(words)
    except ValueError:
        pass
    parts = [*_PART.finditer(words)]
    if not parts or "".join(part[0] for part in parts) != words:
        raise UsageError(
            f'"{text}" is no length of time',
            hint="lengths are such as 90 min, 2h, 1 hour 30 min; a number alone is of seconds",
        )
    counts = [float(part["count"]) if part["count"][0].isdecimal() else 1.0 for part in parts]
    units = [_unit(part["unit"]).total_seconds() for part in parts]
    return sum(count * unit for count, unit in zip(counts, units, strict=True))


def _unit(name: str) -> timedelta:
    return _UNITS["month" if name.startswith("mo") else name[0]]


def _ago(count: str, unit: str, now: datetime) -> Period:
    """A moment; what equals it is what a table of experiments shows as that long ago."""
    length = _unit(unit)
    moment = now - length * (int(count) if count.isdecimal() else 1)
    return Period(moment - length + _INSTANT, moment + _INSTANT, moment, moment)


def _calendar(words: str, now: datetime) -> Period:
    """A year, a month, a day, or a time of day."""
    if words.lower() in ("today", "yesterday"):
        today = datetime.combine(now.astimezone().date(), datetime.min.time())
        start = today if words.lower() == "today" else today - _DAY
        return _span(start, start + _DAY)
    if found := _MONTH.fullmatch(words):
        year, month = int(found["year"]), int(found["month"] or 1)
        years, months = divmod(month if found["month"] else 12, 12)
        return _span(datetime(year, month, 1), datetime(year + years, months + 1, 1))
    start = datetime.fromisoformat(words)
    return _span(start, start + _exactness(words))


def _exactness(words: str) -> timedelta:
    """How long the last part of a date or a time of day lasts that is written in it."""
    _, *clock = re.split(r"[ Tt]", words, maxsplit=1)
    if not clock:
        return _DAY
    time = re.split(r"[Zz+-]", clock[0], maxsplit=1)[0]
    return _INSTANT if "." in time else _UNITS["hms"[min(time.count(":"), 2)]]


def _span(start: datetime, end: datetime) -> Period:
    first, last = (time if time.tzinfo else time.astimezone() for time in (start, end))
    return Period(first, last, first, last)
