"""Choosing and ordering experiments by their names: of fields, params and metrics.

A filter is the text `name operator value`. It knows what the names and values mean for one record;
it must not know where records come from, or how a value looks to a person.
"""

from __future__ import annotations

import difflib
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from replicate.errors import NotFoundError, UsageError
from replicate.model import ExperimentRecord, Status, Value, flatten, same
from replicate.periods import parse_length, parse_period

Compare = Callable[[Value, Value], bool]
Test = Callable[[Value], bool]

_ORDER: Mapping[str, Compare] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPERATORS = ("=", "!=", *_ORDER)

#: What every experiment has, whatever its params and metrics are called.
FIELDS: Mapping[str, Callable[[ExperimentRecord], Value]] = {
    "id": lambda e: e.id,
    "created": lambda e: e.created,
    "status": lambda e: e.status.value,
    "name": lambda e: e.name,
    "tags": lambda e: e.tags or None,
    "group": lambda e: e.group,
    "notes": lambda e: e.notes,
    "user": lambda e: e.user,
    "host": lambda e: e.host,
    "command": lambda e: e.command,
    "step": lambda e: None if (latest := e.latest()) is None else latest.step,
    "duration": lambda e: None if (length := e.duration) is None else length.total_seconds(),
}
_TEXT_FIELDS = frozenset({"id", "status", "name", "group", "notes", "user", "host", "command"})


class _Missing:
    """What a record has for a name that it does not know: no value, not even null."""


_MISSING = _Missing()

# ---------------------------------------------------------------- names


def value_of(record: ExperimentRecord, name: str) -> Value:
    """The value that `name` has in the experiment; None when it has none.

    A name is a field's, else a param's (dotted where nested), else a metric's: that of the best
    checkpoint, or of the latest where the best has none, or the last that was logged. "params.x"
    and "metrics.x" name the x of one of them where several have it.
    """
    if name in FIELDS:
        return FIELDS[name](record)
    found = _lookup(record, name)
    return None if found is _MISSING else found


def _lookup(record: ExperimentRecord, name: str) -> Value:
    kind, _, rest = name.partition(".")
    found: Value = _MISSING
    if kind == "params":
        found = _param(record.params, rest)
    elif kind == "metrics":
        found = _metric(record, rest)
    if found is _MISSING:
        found = _param(record.params, name)
    return _metric(record, name) if found is _MISSING else found


def _param(params: Mapping[str, Value], name: str) -> Value:
    """The param under a dotted name, whichever of the dots are part of a name themselves."""
    if name in params:
        return params[name]
    for dot in (i for i, character in enumerate(name) if character == "."):
        inner = params.get(name[:dot])
        if isinstance(inner, Mapping):
            found = _param(inner, name[dot + 1 :])
            if found is not _MISSING:
                return found
    return _MISSING


def _metric(record: ExperimentRecord, name: str) -> Value:
    for checkpoint in (record.best(), record.latest()):
        if checkpoint is not None and name in checkpoint.metrics:
            return checkpoint.metrics[name]
    return record.logged.get(name, _MISSING)


def names(records: Iterable[ExperimentRecord]) -> list[str]:
    """Every name that one of the experiments has a value for: fields, params, then metrics."""
    found = list(records)
    return list(dict.fromkeys([*FIELDS, *param_names(found), *metric_names(found)]))


def param_names(records: Iterable[ExperimentRecord]) -> list[str]:
    """Every param of the experiments, dotted where nested."""
    return list(dict.fromkeys(name for record in records for name in flatten(record.params)))


def metric_names(records: Iterable[ExperimentRecord]) -> list[str]:
    """Every metric that a list of the experiments can show."""
    found: dict[str, None] = {}
    for record in records:
        for checkpoint in (record.best(), record.latest()):
            found.update(dict.fromkeys(checkpoint.metrics if checkpoint else ()))
        found.update(dict.fromkeys(record.logged))
    return list(found)


def check_names(wanted: Iterable[str], records: Sequence[ExperimentRecord]) -> None:
    """Raise NotFoundError, with the nearest name there is, for one that no experiment has.

    Without experiments every name is right: nobody knows yet.
    """
    for name in wanted:
        if not records or name in FIELDS:
            continue
        if any(_lookup(record, name) is not _MISSING for record in records):
            continue
        known = names(records)
        explicit = [f"{kind}.{n}" for kind in ("params", "metrics") for n in known]
        pool = explicit if name.startswith(("params.", "metrics.")) else known
        near = difflib.get_close_matches(name, pool, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise NotFoundError(
            f'no experiment has "{name}"{advice}', hint=f"there are {', '.join(known)}"
        )


# ---------------------------------------------------------------- filters


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition, as its author wrote it, and the test that it puts to a value."""

    text: str
    name: str
    test: Test

    def matches(self, record: ExperimentRecord) -> bool:
        """Whether the condition holds for the experiment. It never raises: values that cannot be
        compared are not equal, and none of them is the smaller one."""
        return self.test(value_of(record, self.name))


_SIGNS = frozenset("=!<>~")
_FILTER = re.compile(
    r"""\s* (?: (?P<quote>["']) (?P<quoted>.*?) (?P=quote) | (?P<plain>[^=!<>~]*?) )
        \s* (?P<operator>[=!<>~]+) \s* (?P<value>.*?) \s*""",
    re.VERBOSE | re.DOTALL,
)


def parse_filter(text: str, now: datetime | None = None) -> Filter:
    """The filter that the text `name operator value` says. Raises UsageError when it says none.

    A value is a number, true, false, null, a list or an object in JSON, or text, which may stand
    in quotes; so may a name. `now` is what "2 days ago" is counted from.
    """
    found = _FILTER.fullmatch(text)
    name = (found["quoted"] or found["plain"] or "") if found else ""
    if found is None or not name:
        raise _not_a_filter(text, "it should read: name operator value")
    if found["operator"] not in OPERATORS:
        raise _not_a_filter(text, f'there is no operator "{found["operator"]}"')
    if not found["value"]:
        raise _not_a_filter(text, 'the value is missing; an empty text is ""')
    return Filter(text.strip(), name, _test(name, found["operator"], found["value"], now))


def _not_a_filter(text: str, why: str) -> UsageError:
    return UsageError(
        f'"{text}" is no filter: {why}',
        hint=f'operators are {" ".join(OPERATORS)}, as in --filter "val/loss < 0.2"',
    )


def select(
    records: Sequence[ExperimentRecord], filters: Sequence[Filter]
) -> list[ExperimentRecord]:
    """The experiments for which all filters hold. Raises like `check_names`."""
    for one in filters:
        try:
            check_names([one.name], records)
        except NotFoundError as error:
            whole = [name for name in names(records) if _begins(one.text, name)]
            if whole:
                error.hint = f"a name with such a sign stands in quotes: '\"{whole[-1]}\" = 3'"
            raise
    return [record for record in records if all(f.matches(record) for f in filters)]


def _begins(text: str, name: str) -> bool:
    """Whether a name that a filter cannot have without quotes is what its author meant."""
    return not _SIGNS.isdisjoint(name) and text.startswith(name)


def _test(name: str, operator: str, value: str, now: datetime | None) -> Test:
    literal = _literal(value)
    if name == "created":
        return parse_period(literal.text, now or datetime.now(UTC)).test(operator)
    if name == "duration" and literal.value is not None:
        seconds = parse_length(literal.text)
        literal = _Literal(seconds, literal.text, quoted=True)
    if name == "id" and operator in ("=", "!="):
        return lambda id: id.startswith(literal.text) is (operator == "=")
    if name == "tags":
        return _tag_test(operator, literal)
    if name in _TEXT_FIELDS and literal.value is not None:
        literal = _Literal(literal.text, literal.text, quoted=True)
    if name == "status":
        _check_status(literal)
    return _value_test(operator, literal)


def _value_test(operator: str, literal: _Literal) -> Test:
    if operator == "=":
        return literal.equals
    if operator == "!=":
        return lambda value: not literal.equals(value)
    compare = _ORDER[operator]
    return lambda value: _have_order(value, literal.value) and compare(value, literal.value)


def _have_order(left: Value, right: Value) -> bool:
    both_numbers = _is_number(left) and _is_number(right)
    return both_numbers or (isinstance(left, str) and isinstance(right, str))


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tag_test(operator: str, literal: _Literal) -> Test:
    """Tags are a set: it has the tag, or it has not. No tags at all are null."""
    if operator not in ("=", "!="):
        raise UsageError(
            f'tags cannot be compared with "{operator}"',
            hint='"tags = x" is for those that have the tag x, "tags != x" for those that have not',
        )
    wanted = operator == "="
    if literal.value is None:
        return lambda tags: (tags is None) is wanted
    return lambda tags: (literal.text in (tags or ())) is wanted


def _check_status(literal: _Literal) -> None:
    known = [status.value for status in Status]
    if literal.text in known:
        return
    near = difflib.get_close_matches(literal.text, known, n=1)
    advice = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(
        f'there is no status "{literal.text}"{advice}', hint=f"there are {', '.join(known)}"
    )


# ---------------------------------------------------------------- values


@dataclass(frozen=True, slots=True)
class _Literal:
    """The value of a filter: what it means, and how it was written (without quotes)."""

    value: Value
    text: str
    quoted: bool = False

    def equals(self, value: Value) -> bool:
        """1 equals 1.0 but not True; NaN equals NaN. Without quotes it equals text that is written
        like it, too: in a table a 1 and a "1" look the same."""
        if isinstance(value, str) and not self.quoted and value == self.text:
            return True
        return same(value, self.value)


_CONSTANTS: Mapping[str, Value] = {"null": None, "none": None, "true": True, "false": False}
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf(inity)?|nan)", re.I)


def _literal(text: str) -> _Literal:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return _Literal(text[1:-1], text[1:-1], quoted=True)
    if text.lower() in _CONSTANTS:
        return _Literal(_CONSTANTS[text.lower()], text)
    if _INTEGER.fullmatch(text):
        return _Literal(int(text), text)
    if _FLOAT.fullmatch(text):
        return _Literal(float(text), text)
    if text[0] in "[{":
        try:
            return _Literal(json.loads(text), text)
        except (ValueError, RecursionError):
            pass  # then it is text
    return _Literal(text, text)


# ---------------------------------------------------------------- order


@dataclass(frozen=True, slots=True)
class Sort:
    """By which name to order experiments, and whether the greatest comes first."""

    name: str
    descending: bool = False


def parse_sort(text: str) -> Sort:
    """The order that `name`, `name-asc` or `name-desc` says. Raises UsageError without a name."""
    name = text.strip()
    descending = name.endswith("-desc")
    name = name.removesuffix("-desc") if descending else name.removesuffix("-asc")
    if not name:
        raise UsageError("nothing to sort by", hint="for example --sort val/loss or --sort lr-desc")
    return Sort(name, descending)


def arrange(records: Sequence[ExperimentRecord], sort: Sort) -> list[ExperimentRecord]:
    """The experiments in that order, equal ones as they were.

    Truth values come before numbers, numbers before texts, texts before the rest; descending turns
    all of that round. Behind them, in both directions, stand NaN and then those without a value.
    """
    keyed = [(sort_key(value_of(record, sort.name)), record) for record in records]
    last = [pair for pair in keyed if pair[0][0] >= _NAN_RANK]
    first = [pair for pair in keyed if pair[0][0] < _NAN_RANK]
    first.sort(key=lambda pair: pair[0], reverse=sort.descending)
    last.sort(key=lambda pair: pair[0])
    return [record for _, record in (*first, *last)]


_NAN_RANK, _NULL_RANK = 8, 9


def sort_key(value: Value) -> tuple[int, Value]:
    """What values of all types can be ordered by."""
    if value is None:
        return _NULL_RANK, 0
    if isinstance(value, bool):
        return 0, value
    if isinstance(value, int | float):
        return (1, value) if value == value else (_NAN_RANK, 0)
    if isinstance(value, datetime):
        return 2, value
    return (3, value) if isinstance(value, str) else (4, json.dumps(value, default=str))
