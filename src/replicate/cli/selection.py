"""What `ls` and `ps` share: the options that choose and order experiments, and showing them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

import click

from replicate.cli import text
from replicate.cli.listing import show_table
from replicate.cli.options import COLUMNS, SORT, filtering
from replicate.cli.output import Output
from replicate.cli.schema import experiment_json
from replicate.errors import NotFoundError, UsageError
from replicate.model import ExperimentRecord, Value
from replicate.query import Filter, Sort, arrange, check_names, select, value_of

_MAX_VALUES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What was asked for: which experiments, in which order, and shown how."""

    filters: tuple[Filter, ...]
    sort: Sort | None
    limit: int | None
    columns: tuple[tuple[str, ...], ...]
    every: bool
    quiet: bool
    as_json: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that were chosen, in order; none for those of the table's own choice."""
        return tuple(dict.fromkeys(name for names in self.columns for name in names))

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""
        if self.quiet and (self.as_json or self.every or self.columns):
            raise UsageError("--quiet cannot be used together with --json, --all or --columns")
        if self.columns and (self.as_json or self.every):
            raise UsageError("--columns cannot be used together with --json or --all")

    def of(self, records: Sequence[ExperimentRecord]) -> list[ExperimentRecord]:
        """The experiments that were asked for. Raises NotFoundError for a name none of them has."""
        check_names([*self.names, *([self.sort.name] if self.sort else [])], records)
        found = select(records, self.filters)
        if self.sort is None:
            return found[-self.limit :] if self.limit else found
        return arrange(found, self.sort)[: self.limit]


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a Selection, and pass it one as `selection`."""

    @filtering
    @click.option("-s", "--sort", type=SORT, help="Order by this, the least first. [created]")
    @click.option(
        "-n",
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        help="Only the first N rows; the newest N when there is no --sort.",
    )
    @click.option(
        "--columns", type=COLUMNS, multiple=True, help="Show these fields, params and metrics."
    )
    @click.option("-a", "--all", "every", is_flag=True, help="Show params that do not differ, too.")
    @click.option("-q", "--quiet", is_flag=True, help="Print ids only, in full.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(command)
    def with_selection(*args: Any, **options: Any) -> Any:
        chosen = {field.name: options.pop(field.name) for field in fields(Selection)}
        selection = Selection(**chosen)
        selection.check()
        return command(*args, selection=selection, **options)

    return with_selection


def show_experiments(
    output: Output, experiments: Sequence[ExperimentRecord], selection: Selection
) -> bool:
    """Write the experiments as they were asked for; False when a person has seen nothing of it."""
    if selection.as_json:
        output.json_list(experiment_json(e) for e in experiments)
    elif selection.quiet:
        output.data(e.id for e in experiments)
    elif experiments:
        show_table(output, experiments, selection.every, selection.names)
    output.warn(sentence for e in experiments for sentence in e.damage)
    return bool(experiments) or selection.as_json or selection.quiet


def why_none(records: Sequence[ExperimentRecord], filters: Iterable[Filter]) -> str:
    """That no experiment matches, and what they have instead, for the first filter that alone
    holds for none."""
    for one in filters:
        if not any(one.matches(record) for record in records):
            values = [value_of(record, one.name) for record in records]
            spread = _spread(values, one.name)
            return f'No experiment matches: "{one.text}" is true of none; {one.name} is {spread}'
    each = "each filter is true of some experiments, but all of them are of none"
    return f"No experiment matches: {each}"


def matching(
    records: Sequence[ExperimentRecord], filters: Sequence[Filter]
) -> list[ExperimentRecord]:
    """The experiments for which all filters hold, for who can do nothing with none: then it raises
    NotFoundError, which says why. Where there are none to begin with it returns none."""
    found = select(records, filters)
    if records and not found:
        raise NotFoundError(why_none(records, filters))
    return found


def _spread(values: Sequence[Value], name: str) -> str:
    """The values in few words: from the least to the greatest, or each that there is."""
    known = [v for v in values if _has_order(v)]
    if len(known) == len(values) and min(known) < max(known):
        return f"from {_shown(min(known), name)} to {_shown(max(known), name)}"
    said = ["not set" if v is None else _shown(v, name) for v in values]
    return text.shortened_list([*dict.fromkeys(said)], _MAX_VALUES)


def _has_order(value: Value) -> bool:
    """Whether it is a time, or a number but NaN."""
    if isinstance(value, int | float):
        return not isinstance(value, bool) and value == value
    return isinstance(value, datetime)


def _shown(value: Value, name: str) -> str:
    if isinstance(value, datetime):
        return text.date(value)
    if name == "duration":
        return text.duration(timedelta(seconds=value))
    return text.values_apart(value, value)[0]
