"""The numbers of experiments: what a metric was over time, what a run came to, what to call it.

Pure functions of model values. It knows nothing of drawing, tables or storage.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from replicate.errors import NotFoundError, UsageError
from replicate.model import ExperimentRecord, Point, Value, differing_params, flatten, short
from replicate.text import escape
from replicate.text import value as shown

_MAX_LABEL_PARAMS = 3


@dataclass(frozen=True, slots=True)
class Run:
    """An experiment and the course of its metrics, in the order in which they were recorded."""

    record: ExperimentRecord
    points: Sequence[Point]


def number(value: Value) -> float | None:
    """The value as a float, NaN and infinities as NaN; None when it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an integer beyond every float
        return math.nan


def metric_names(runs: Iterable[Run]) -> list[str]:
    """Every metric of these runs, in order of first appearance."""
    return list(dict.fromkeys(name for run in runs for p in run.points for name in p.metrics))


def param_names(runs: Iterable[Run]) -> list[str]:
    """Every param of these runs, dotted where nested, in order of first appearance."""
    return list(dict.fromkeys(name for run in runs for name in flatten(run.record.params)))


def chosen_metric(runs: Sequence[Run], name: str | None) -> str:
    """The metric of that name; without one the primary metric that most of the runs have, else the
    metric that most of them have. Raises NotFoundError when there is none."""
    if not runs:
        raise NotFoundError("There are no experiments to show")
    known = metric_names(runs)
    if name is not None:
        return known_name(name, known, "metric")
    primary = Counter(m.name for run in runs if (m := run.record.primary_metric))
    every = Counter(name for run in runs for name in metric_names([run]))
    for counted in (primary, every):
        if counted:
            return counted.most_common(1)[0][0]
    raise NotFoundError("None of these experiments has metrics yet")


def check_metric(runs: Sequence[Run], name: str) -> None:
    """Raise NotFoundError for a metric that none of these runs has ever had. While they have none
    at all every name is right."""
    known = metric_names(runs)
    if name in known:
        return
    for run in runs:  # what a resumed run has gone back to before is in no point
        known += [*run.record.logged, *(n for c in run.record.checkpoints for n in c.metrics)]
    if known:
        known_name(name, list(dict.fromkeys(known)), "metric")


def known_name(name: str, known: Sequence[str], kind: str) -> str:
    """The name if it is known; raises NotFoundError that suggests the nearest one if not."""
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"; did you mean {near[0]}?" if near else ""
    raise NotFoundError(
        f'no experiment has the {kind} "{name}"{advice}',
        hint=f"there are {', '.join(known) or 'none'}",
    )


def outcome(run: Run, metric: str) -> float | None:
    """What a run came to: the metric in its best checkpoint, else in its latest, else as it was
    recorded last. None when it has no such number; NaN and infinities are NaN."""
    for checkpoint in (run.record.best(), run.record.latest()):
        if checkpoint is not None and metric in checkpoint.metrics:
            return number(checkpoint.metrics[metric])
    for point in reversed(run.points):
        if metric in point.metrics:
            return number(point.metrics[metric])
    return None


def labels(records: Sequence[ExperimentRecord]) -> list[str]:
    """What to call each experiment: its name or short id, and the params that tell it apart."""
    names = Counter(r.name for r in records)
    differing = differing_params(records)[:_MAX_LABEL_PARAMS]
    return [_label(r, names, differing) for r in records]


def _label(
    record: ExperimentRecord, names: Mapping[str | None, int], differing: Sequence[str]
) -> str:
    base = short(record.id)
    if record.name:
        base = record.name if names[record.name] == 1 else f"{record.name} ({base})"
    params = flatten(record.params)
    told = ", ".join(f"{name}={shown(params[name])}" for name in differing if name in params)
    return escape(f"{base}  {told}" if told else base)


def smoothed(values: Sequence[float], amount: float) -> list[float]:
    """The exponential moving average of the values, each past one counting `amount` times as much
    as the one after it. NaN stays NaN and is passed over. Raises UsageError unless 0 <= amount < 1.
    """
    if not 0 <= amount < 1:
        raise UsageError(f"smoothing must be 0 or more and less than 1, not {amount!r}")
    average = weight = 0.0
    found = []
    for value in values:
        if math.isnan(value):
            found.append(math.nan)
            continue
        average = amount * average + (1 - amount) * value
        weight = amount * weight + (1 - amount)  # less than 1 at first: there is no past yet
        found.append(average / weight)
    return found
