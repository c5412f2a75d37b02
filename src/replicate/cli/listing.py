"""Experiments in a table: what differs between them in the columns, or what a person chose.

It knows which columns there are and what a narrow terminal does without. Which experiments are
shown is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from replicate.cli import text
from replicate.cli.output import Output
from replicate.cli.table import Column, Reduction, cut, fit, render
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    Value,
    differing,
    flatten,
    short,
)
from replicate.query import value_of

#: On a narrow terminal no name and no param needs more than this to be recognised.
_MAX_NAME_WIDTH, _MAX_PARAM_WIDTH = 16, 24
_SCALARS = frozenset({str, int, float, bool, type(None)})


def show_table(
    output: Output,
    experiments: Sequence[ExperimentRecord],
    every: bool,
    names: Sequence[str] = (),
) -> None:
    """Write the table as wide as the terminal takes it, and say what had no room. With `names`,
    its columns are those, whatever differs."""
    now = datetime.now(UTC)
    if names:
        columns = chosen_columns(experiments, names, now)
    else:
        columns = table_columns(experiments, now, every=every, ellipsis=output.ellipsis)
    columns, hidden = fit(columns, output.width, reductions(columns), output.ellipsis)
    output.data(render(columns, output.paint))
    if hidden:
        output.note(f"No room for {_names(hidden)}: `replicate ls | less -S` shows everything")


def chosen_columns(
    experiments: Sequence[ExperimentRecord], names: Sequence[str], now: datetime
) -> list[Column]:
    """A column for each of the names of fields, params and metrics, behind that of the ids."""
    return [
        Column("id", "EXPERIMENT", [short(e.id) for e in experiments], whole=True),
        *(_chosen_column(experiments, name, now) for name in names if name != "id"),
    ]


def _chosen_column(experiments: Sequence[ExperimentRecord], name: str, now: datetime) -> Column:
    heading = "STARTED" if name == "created" else text.heading(name)
    styles = text.STATUS_STYLES if name == "status" else {}
    cells = [_chosen_cell(value_of(e, name), name, now) for e in experiments]
    return Column(f"chosen:{name}", heading, cells, styles=styles)


def _chosen_cell(value: Value, name: str, now: datetime) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return text.ago(value, now)
    if name == "duration":
        return text.duration(timedelta(seconds=value))
    if name == "tags":
        return text.escape(", ".join(value))
    return text.value(value)


def _names(hidden: Sequence[Column]) -> str:
    names = [f"LATEST {c.heading}" if c.key.startswith("latest:") else c.heading for c in hidden]
    return text.shortened_list(names, 5)


def table_columns(
    experiments: Sequence[ExperimentRecord],
    now: datetime,
    *,
    every: bool = False,
    ellipsis: str = "…",
) -> list[Column]:
    """The columns that these experiments call for; all params with `every`, else what differs."""
    primary = [metric.name if (metric := e.primary_metric) else None for e in experiments]
    return [
        Column("id", "EXPERIMENT", [short(e.id) for e in experiments], whole=True),
        *_label_columns(experiments, ellipsis),
        Column(
            "started",
            "STARTED",
            [text.ago(e.created, now) for e in experiments],
            short=lambda: [text.ago(e.created, now, brief=True) for e in experiments],
        ),
        Column(
            "status", "STATUS", [text.status(e) for e in experiments], styles=text.STATUS_STYLES
        ),
        Column("host", "HOST", [text.escape(e.host) for e in experiments]),
        Column("user", "USER", [text.escape(e.user) for e in experiments]),
        *_param_columns(experiments, every, ellipsis),
        *_checkpoint_columns("latest", [e.latest() for e in experiments], primary),
        *_checkpoint_columns("best", [e.best() for e in experiments], primary),
    ]


def reductions(columns: Sequence[Column]) -> list[Reduction]:
    """What a narrow terminal does without, the least missed first."""
    params = [c.key for c in columns if c.key.startswith("param:")]
    latest_metrics = [c.key for c in columns if c.key.startswith("latest:")]
    return [
        ("hide", "host"),
        ("hide", "user"),
        ("shorten", "started"),
        ("shorten", "latest"),
        ("shorten", "best"),
        *(("shorten", key) for key in params),
        *(("hide", key) for key in latest_metrics),
        ("hide", "tags"),
        ("shorten", "name"),
        *(("hide", key) for key in reversed(params[1:])),
    ]


def _label_columns(experiments: Sequence[ExperimentRecord], ellipsis: str) -> list[Column]:
    """Names and tags, if anyone gave any."""
    names = [text.escape(e.name or "") for e in experiments]
    tags = [text.escape(", ".join(e.tags)) for e in experiments]
    brief = _cutting(names, _MAX_NAME_WIDTH, ellipsis)
    columns = (Column("name", "NAME", names, short=brief), Column("tags", "TAGS", tags))
    return [column for column in columns if any(column.cells)]


def _param_columns(
    experiments: Sequence[ExperimentRecord], every: bool, ellipsis: str
) -> list[Column]:
    params = [flatten(e.params) for e in experiments]
    if every:
        shown = list(dict.fromkeys(name for flat in params for name in flat))
    else:  # one that is damaged may have had any param: it says nothing about what differs
        known = zip(params, experiments, strict=True)
        shown = differing([flat for flat, e in known if flat or not e.damage])
    return [
        _param_column(name, [_cell(flat, name) for flat in params], ellipsis)
        for name in shown
        if not any(_is_object(flat[name]) for flat in params if name in flat)
    ]


def _param_column(name: str, cells: Sequence[str], ellipsis: str) -> Column:
    brief = _cutting(cells, _MAX_PARAM_WIDTH, ellipsis)
    return Column(f"param:{name}", text.heading(name), cells, short=brief)


def _cutting(cells: Sequence[str], width: int, ellipsis: str) -> Callable[[], list[str]]:
    return lambda: [cut(cell, width, ellipsis) for cell in cells]


def _checkpoint_columns(
    which: str, checkpoints: Sequence[CheckpointRecord | None], primary: Sequence[str | None]
) -> list[Column]:
    """Checkpoints and the primary metrics in them; none at all if there are no best ones."""
    metrics = dict.fromkeys(name for name in primary if name is not None)
    if which == "best" and not metrics:
        return []
    ids = [text.checkpoint_name(c) if c else "" for c in checkpoints]
    return [
        Column(
            which,
            f"{which.upper()} CHECKPOINT",
            ids,
            short=lambda: [short(c.id) if c else "" for c in checkpoints],
            short_heading=which.upper(),
            whole=True,
        ),
        *(
            Column(
                f"{which}:{name}",
                text.heading(name),
                _primary_cells(checkpoints, primary, name),
            )
            for name in metrics
        ),
    ]


def _primary_cells(
    checkpoints: Sequence[CheckpointRecord | None], primary: Sequence[str | None], name: str
) -> list[str]:
    """The metric of that name where it is the primary one, and nothing where it is not."""
    return [
        _cell(checkpoint.metrics, name) if checkpoint and of_run == name else ""
        for checkpoint, of_run in zip(checkpoints, primary, strict=True)
    ]


def _cell(values: Mapping[str, Value], name: str) -> str:
    return text.value(values[name]) if name in values else ""


def _is_object(value: Value) -> bool:
    """Whether the value has parts of its own, for which a cell is too small."""
    if type(value) in _SCALARS:
        return False
    if isinstance(value, list | tuple):
        return any(isinstance(item, Mapping | list | tuple) for item in value)
    return isinstance(value, Mapping)
