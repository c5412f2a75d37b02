"""Experiments as two Parquet tables: `experiments.parquet` with a row for each, and
`history.parquet` with a row for each value that a metric ever had.

It knows columns and their types. pyarrow is an extra: it is imported when somebody asks for tables.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from replicate.analysis.optional import required
from replicate.backends.files import explained
from replicate.interop.export import check_empty
from replicate.maintenance import Progress
from replicate.model import ExperimentRecord, Point, Value, flatten
from replicate.records import encode_value
from replicate.repository import Repository

Row = dict[str, Any]

#: So many rows of the history are held in memory.
_ROWS = 100_000
_INT64 = range(-(2**63), 2**63)
#: Columns of `experiments.parquet` that always are text.
_TEXTS = (
    *("id", "name", "group", "notes", "status", "user", "host", "command"),
    *("best_checkpoint", "latest_checkpoint"),
)


def export_parquet(
    repository: Repository,
    records: Sequence[ExperimentRecord],
    target: Path,
    progress: Progress,
) -> None:
    """Write both tables into the new directory `target`.

    Raises UsageError when there is something in it or pyarrow is missing, and StorageError.
    """
    arrow = required("pyarrow", "A Parquet file", "replicate[parquet]")
    parquet = required("pyarrow.parquet", "A Parquet file", "replicate[parquet]")
    check_empty(target)
    with explained("write", target):
        target.mkdir(parents=True, exist_ok=True)
        schema, rows = experiments_table(arrow, records)
        _Table(arrow, parquet, target / "experiments.parquet").write(schema, [rows])
        _Table(arrow, parquet, target / "history.parquet").write(
            history_schema(arrow), _history(repository, records, progress)
        )


class _Table:
    """A file that appears whole or not at all."""

    def __init__(self, arrow: Any, parquet: Any, path: Path) -> None:
        self._arrow, self._parquet, self._path = arrow, parquet, path

    def write(self, schema: Any, groups: Iterable[list[Row]]) -> None:
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            with self._parquet.ParquetWriter(partial, schema) as writer:
                for rows in groups:
                    writer.write_table(self._arrow.Table.from_pylist(rows, schema))
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)


def experiment_row(record: ExperimentRecord) -> Row:
    """An experiment with its params, and the metrics of its best checkpoint, else its latest."""
    best, latest = record.best(), record.latest()
    shown = best or latest
    length = record.duration
    return {
        "id": record.id,
        "name": record.name,
        "group": record.group,
        "tags": list(record.tags),
        "notes": record.notes,
        "created": record.created,
        "status": record.status.value,
        "duration": length.total_seconds() if length is not None else None,
        "user": record.user,
        "host": record.host,
        "command": record.command,
        "checkpoints": len(record.checkpoints),
        "best_checkpoint": best.id if best else None,
        "latest_checkpoint": latest.id if latest else None,
        **_prefixed("params", flatten(record.params)),
        **_prefixed("metrics", shown.metrics if shown else {}),
    }


def _prefixed(prefix: str, values: Any) -> Row:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def experiments_table(arrow: Any, records: Sequence[ExperimentRecord]) -> tuple[Any, list[Row]]:
    """The schema that these experiments need, and their rows.

    A param has the narrowest type that holds all its values: a truth value, an integer, a float,
    else text, which is JSON unless the value was text.
    """
    rows = [experiment_row(record) for record in records]
    kinds: dict[str, Any] = dict.fromkeys(_TEXTS, arrow.string())
    kinds |= {"tags": arrow.list_(arrow.string()), "created": _time(arrow)}
    kinds |= {"duration": arrow.float64(), "checkpoints": arrow.int64()}
    for name in dict.fromkeys(name for row in rows for name in row if name not in kinds):
        kinds[name] = _kind(arrow, [row.get(name) for row in rows])
        if kinds[name] == arrow.string():
            for row in rows:
                row[name] = _text(row.get(name))
    return arrow.schema(list(kinds.items())), rows


def _kind(arrow: Any, values: Sequence[Value]) -> Any:
    found = {type(value) for value in values if value is not None}
    if found == {bool}:
        return arrow.bool_()
    if found == {int} and all(v is None or v in _INT64 for v in values):
        return arrow.int64()
    if found <= {int, float} and float in found and all(_is_exact(v) for v in values):
        return arrow.float64()
    return arrow.string()


def _is_exact(value: Value) -> bool:
    """Whether a number is the same as a float."""
    return not isinstance(value, int) or abs(value) <= 2**53


def _text(value: Value) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(encode_value(value), ensure_ascii=False)


def history_schema(arrow: Any) -> Any:
    """A row for each value: a number is in `value`, anything else in `text`, as JSON."""
    return arrow.schema(
        [
            ("experiment", arrow.string()),
            ("time", _time(arrow)),
            ("step", arrow.float64()),
            ("metric", arrow.string()),
            ("value", arrow.float64()),
            ("text", arrow.string()),
        ]
    )


def _time(arrow: Any) -> Any:
    return arrow.timestamp("us", tz="UTC")


def _history(
    repository: Repository, records: Sequence[ExperimentRecord], progress: Progress
) -> Iterator[list[Row]]:
    """The rows of the history, some at a time."""
    rows: list[Row] = []
    for number, record in enumerate(records):
        progress("experiments", number, len(records))
        for point in repository.history(record):
            rows += _point_rows(record.id, point)
            if len(rows) >= _ROWS:
                yield rows
                rows = []
    yield rows


def _point_rows(experiment: str, point: Point) -> Iterator[Row]:
    for name, value in point.metrics.items():
        is_number = isinstance(value, int | float) and _is_exact(value)
        yield {
            "experiment": experiment,
            "time": point.time,
            "step": point.step,
            "metric": name,
            "value": float(value) if is_number else None,
            "text": None if is_number else _text(value),
        }
