"""Experiments as data frames of pandas, which is imported when the first one is made.

The columns and their types depend on what was recorded, never on its order: see `runs_frame`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from replicate.analysis.optional import required
from replicate.analysis.series import Run, number
from replicate.model import CheckpointRecord, ExperimentRecord, Value, flatten, short

if TYPE_CHECKING:
    from pandas import DataFrame

_INT64 = range(-(2**63), 2**63)


def _pandas() -> Any:
    return required("pandas", "A data frame", "'replicate[pandas]'")


def _came_to(record: ExperimentRecord, picked: CheckpointRecord | None) -> Mapping[str, Value]:
    """The metrics of the picked checkpoint, and the last value of what was only logged."""
    return {**record.logged, **(picked.metrics if picked else {})}


def runs_frame(records: Sequence[ExperimentRecord]) -> DataFrame:
    """A row for each experiment: what it is, `params.*` dotted where nested, and `metrics.*` of its
    best checkpoint, or of its latest where none is best: `checkpoint` and `step` say which. Of what
    was only logged, the last value.

    Times are in UTC, durations timedeltas. A column of numbers is Int64 when all of them are whole,
    else float64, in which NaN stands for what is missing, too. A column of mixed kinds is object.
    """
    picked = [r.best() or r.latest() for r in records]
    columns: dict[str, Any] = {
        "id": _texts(r.id for r in records),
        "short_id": _texts(short(r.id) for r in records),
        "name": _texts(r.name for r in records),
        "status": _texts(r.status.value for r in records),
        "created": _times([r.created for r in records]),
        "duration": _pandas().Series([r.duration for r in records], dtype="timedelta64[us]"),
        "user": _texts(r.user for r in records),
        "host": _texts(r.host for r in records),
        "command": _texts(r.command for r in records),
        "group": _texts(r.group for r in records),
        "tags": _objects([list(r.tags) for r in records]),
        "notes": _texts(r.notes for r in records),
        "checkpoints": _pandas().Series([len(r.checkpoints) for r in records], dtype="Int64"),
        "checkpoint": _texts(short(c.id) if c else None for c in picked),
        "step": _column([c.step if c else None for c in picked]),
        **_named("params", [flatten(r.params) for r in records], _column),
        **_named("metrics", list(map(_came_to, records, picked)), _metrics),
    }
    frame: DataFrame = _pandas().DataFrame(columns)
    return frame


def checkpoints_frame(checkpoints: Sequence[CheckpointRecord]) -> DataFrame:
    """A row for each checkpoint, with `metrics.*`. Types are as in `runs_frame`."""
    paths = [" ".join(p) if isinstance(p := c.path, tuple) else p for c in checkpoints]
    columns: dict[str, Any] = {
        "id": _texts(c.id for c in checkpoints),
        "short_id": _texts(short(c.id) for c in checkpoints),
        "experiment": _texts(c.experiment for c in checkpoints),
        "created": _times([c.created for c in checkpoints]),
        "step": _column([c.step for c in checkpoints]),
        "path": _texts(paths),
        "superseded": _pandas().Series([c.superseded for c in checkpoints], dtype="bool"),
        **_named("metrics", [c.metrics for c in checkpoints], _metrics),
    }
    frame: DataFrame = _pandas().DataFrame(columns)
    return frame


def history_frame(runs: Sequence[Run], metric: str | None = None) -> DataFrame:
    """A row for each number that was recorded, in its order: experiment, time, step, metric, value.
    With `metric` only that one. What is not a number has no row; NaN and infinities stay."""
    rows = [
        (run.record.id, point.time, point.step, name, float(value))
        for run in runs
        for point in run.points
        for name, value in point.metrics.items()
        if metric in (None, name) and _is_float(value)
    ]
    ids, times, steps, names, values = map(list, zip(*rows, strict=True)) if rows else ([],) * 5
    columns = {
        "experiment": _texts(ids),
        "time": _times(times),
        "step": _column(steps),
        "metric": _texts(names),
        "value": _pandas().Series(values, dtype="float64"),
    }
    frame: DataFrame = _pandas().DataFrame(columns)
    return frame


def _is_float(value: Value) -> bool:
    return number(value) is not None and not (isinstance(value, int) and value not in _INT64)


def _named(
    prefix: str, rows: Sequence[Mapping[str, Value]], column: Callable[[list[Value]], Any]
) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {f"{prefix}.{name}": column([row.get(name) for row in rows]) for name in names}


def _texts(values: Any) -> Any:
    return _pandas().Series(list(values), dtype="string")


def _times(values: list[Any]) -> Any:
    return _pandas().Series(values, dtype="datetime64[us, UTC]")


def _objects(values: list[Any]) -> Any:
    series = _pandas().Series([None] * len(values), dtype="object")
    for place, value in enumerate(values):
        series.iat[place] = value
    return series


def _metrics(values: list[Value]) -> Any:
    """Metrics are floats, whole or not, so that a value that joins does not change the type."""
    if all(v is None or _is_float(v) for v in values):
        floats = [math.nan if v is None else float(v) for v in values]
        return _pandas().Series(floats, dtype="float64")
    return _column(values)


def _column(values: list[Value]) -> Any:
    """The values as the narrowest type that holds them all; None is missing in each."""
    known = [v for v in values if v is not None]
    if not known:
        return _objects(values)
    if all(isinstance(v, bool) for v in known):
        return _pandas().Series(values, dtype="boolean")
    if all(isinstance(v, str) for v in known):
        return _texts(values)
    if all(_is_float(v) for v in known):
        if all(isinstance(v, int) for v in known):
            return _pandas().Series(values, dtype="Int64")
        return _pandas().Series([math.nan if v is None else float(v) for v in values])
    return _objects(values)
