"""What metrics came to, in a table and as JSON: those that a run has logged, and its machine's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replicate.cli import text
from replicate.cli.schema import JsonObject, value_json
from replicate.cli.table import Column
from replicate.model import Value
from replicate.streams import Summary

#: How the metrics of the machine are called, in the order in which a person looks for them.
_SYSTEM = ("process.cpu", "process.memory", "cpu", "memory", "gpu", "disk", "network")
_RATES = ("disk.read", "disk.write", "network.received", "network.sent")
_BYTES = ("process.memory", "memory.used", "disk.free")
_GPU_UNITS = {"utilization": "%", "temperature": " °C", "power": " W"}


def metric_columns(metrics: Mapping[str, Summary]) -> list[Column]:
    """A row for each metric that was logged."""
    found = list(metrics.values())
    return [
        Column("name", "METRIC", [text.escape(name) for name in metrics]),
        Column("count", "COUNT", [f"{s.count:,}" for s in found]),
        Column("last", "LAST", [text.value(s.last) for s in found], whole=True),
        Column("min", "MIN", [_shown(s.min) for s in found], whole=True),
        Column("max", "MAX", [_shown(s.max) for s in found], whole=True),
    ]


def system_columns(metrics: Mapping[str, Summary]) -> list[Column]:
    """A row for each metric of the machine, with its unit."""
    names = sorted(metrics, key=_place)
    found = [(name, metrics[name]) for name in names]
    return [
        Column("name", "METRIC", [text.escape(name) for name in names]),
        Column("mean", "MEAN", [_with_unit(name, s.mean) for name, s in found], whole=True),
        Column("max", "MAX", [_with_unit(name, s.max) for name, s in found], whole=True),
        Column("last", "LAST", [_with_unit(name, s.last) for name, s in found], whole=True),
    ]


def metrics_json(metrics: Mapping[str, Summary]) -> JsonObject:
    """Each metric's numbers by name."""
    return {
        name: {
            "count": summary.count,
            "last": value_json(summary.last),
            "min": value_json(summary.min),
            "max": value_json(summary.max),
            "mean": value_json(summary.mean),
        }
        for name, summary in metrics.items()
    }


def _shown(number: float | None) -> str:
    return "" if number is None else text.value(number)


def _place(name: str) -> tuple[int, str]:
    places: Sequence[int] = [i for i, start in enumerate(_SYSTEM) if name.startswith(start)]
    return (places[0] if places else len(_SYSTEM)), name


def _with_unit(name: str, value: Value) -> str:
    if not isinstance(value, int | float):
        return ""
    kind = name.rpartition(".")[2]
    if name in _RATES:
        return f"{text.size(round(value))}/s"
    if name in _BYTES or (name.startswith("gpu.") and kind == "memory"):
        return text.size(round(value))
    if name.startswith("gpu."):
        return f"{value:.4g}{_GPU_UNITS.get(kind, '')}"
    return f"{value:.3g}%"
