"""What the charts of experiments show, as values: whoever draws them, on a terminal or on paper,
and `--json`, takes the same numbers. It knows nothing of how anything is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from replicate.analysis.series import (
    Run,
    chosen_metric,
    known_name,
    labels,
    metric_names,
    number,
    outcome,
    param_names,
)
from replicate.errors import UsageError
from replicate.model import Goal, Value, differing_params, flatten
from replicate.text import value as shown

#: What a course is drawn over: the step, the seconds since the run began, or the time of day.
Axis = Literal["step", "time", "date"]
_TIME_UNITS = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
_MAX_PARAMS = 8
#: Numbers that span this factor are easier to tell apart on a logarithmic axis.
_WIDE_SPAN = 100


@dataclass(frozen=True, slots=True)
class Line:
    """A metric of one experiment. `x` rises; `y` is NaN where there is a gap."""

    experiment: str
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Shade:
    """A number for each experiment, by which many of them are told apart; None where unknown."""

    name: str
    values: tuple[float | None, ...]
    log: bool = False


@dataclass(frozen=True, slots=True)
class Course:
    """How a metric went in each experiment that has it. `x` of the lines is in seconds, of the run
    or since 1970, where the axis is "time" or "date"."""

    metric: str
    axis: Axis
    lines: tuple[Line, ...]
    shade: Shade

    @property
    def drawable(self) -> Course:
        """The same without the lines that have no finite value: there is nothing of them to see."""
        kept = [i for i, line in enumerate(self.lines) if any(map(math.isfinite, line.y))]
        shade = replace(self.shade, values=tuple(self.shade.values[i] for i in kept))
        return replace(self, lines=tuple(self.lines[i] for i in kept), shade=shade)


@dataclass(frozen=True, slots=True)
class Scale:
    """Where values lie on an axis: numbers as they are, or the place of each of `categories`."""

    name: str
    positions: tuple[float | None, ...]
    categories: tuple[str, ...] = ()

    @property
    def log(self) -> bool:
        """Whether a logarithmic axis suits the numbers."""
        known = [p for p in self.positions if p is not None and math.isfinite(p)]
        wide = bool(known) and min(known) > 0 and max(known) / min(known) >= _WIDE_SPAN
        return wide and not self.categories


@dataclass(frozen=True, slots=True)
class Scatter:
    """A metric over a param, an experiment a dot."""

    param: Scale
    metric: Scale
    experiments: tuple[str, ...]
    labels: tuple[str, ...]
    goal: Goal | None


@dataclass(frozen=True, slots=True)
class Parallel:
    """Several params and a metric side by side, an experiment a line through all of them."""

    params: tuple[Scale, ...]
    metric: Scale
    experiments: tuple[str, ...]
    goal: Goal | None


def course(
    runs: Sequence[Run], metric: str | None = None, axis: str = "step", color: str | None = None
) -> Course:
    """The course of a metric in these runs; see `chosen_metric` for the default. `color` is the
    param or metric that tells many runs apart. Raises NotFoundError for a name that nobody has."""
    if axis not in get_args(Axis):
        raise UsageError(f"x must be one of {', '.join(get_args(Axis))}, not {axis!r}")
    checked: Axis = axis  # type: ignore[assignment]  # it is one of them
    name = chosen_metric(runs, metric)
    shown_runs = [run for run in runs if any(name in p.metrics for p in run.points)]
    called = labels([run.record for run in shown_runs])
    lines = [_line(r, name, checked, label) for r, label in zip(shown_runs, called, strict=True)]
    return Course(name, checked, tuple(lines), _shade(shown_runs, name, color))


def unseen(course: Course) -> str:
    """What a title adds when experiments have no finite value, and so no line."""
    left = len(course.lines) - len(course.drawable.lines)
    return f" ({left:,} without a finite value)" if left else ""


def _line(run: Run, metric: str, axis: Axis, label: str) -> Line:
    """The points of the line, by x. Of several at one step the one recorded last stands."""
    found: dict[float, float] = {}
    start = run.record.created.timestamp()
    for count, point in enumerate(p for p in run.points if metric in p.metrics):
        value = number(point.metrics[metric])
        x = number(count if point.step is None else point.step)
        if axis != "step":
            x = point.time.timestamp() - (start if axis == "time" else 0.0)
        if value is not None and x is not None and not math.isnan(x):
            found[x] = value
    ordered = sorted(found.items())
    return Line(run.record.id, label, tuple(x for x, _ in ordered), tuple(y for _, y in ordered))


def _shade(runs: Sequence[Run], metric: str, color: str | None) -> Shade:
    """By what is asked for, else by the only param that differs if it is a number, else by what
    each run came to."""
    params, metrics = param_names(runs), metric_names(runs)
    name = known_name(color, [*params, *metrics], "param or metric") if color else None
    if name is None:
        differing = differing_params(run.record for run in runs)
        numeric = [n for n in differing if any(number(v) is not None for v in _param(runs, n))]
        name = numeric[0] if len(differing) == len(numeric) == 1 else None
    if name in params:
        values = [number(v) for v in _param(runs, name)]
    else:
        name = name or metric
        values = [outcome(run, name) for run in runs]
    return Shade(name, tuple(values), Scale(name, tuple(values)).log)


def _param(runs: Sequence[Run], name: str) -> list[Value]:
    return [flatten(run.record.params).get(name) for run in runs]


def scatter(runs: Sequence[Run], param: str, metric: str | None = None) -> Scatter:
    """What the runs came to over one of their params; see `outcome`."""
    name = chosen_metric(runs, metric)
    known_name(param, param_names(runs), "param")
    return Scatter(
        scale(param, [flatten(r.record.params).get(param, _MISSING) for r in runs]),
        Scale(name, tuple(outcome(run, name) for run in runs)),
        tuple(run.record.id for run in runs),
        tuple(labels([run.record for run in runs])),
        _goal(runs, name),
    )


def parallel(
    runs: Sequence[Run], params: Sequence[str] | None = None, metric: str | None = None
) -> Parallel:
    """Params, by default those that differ, beside what the runs came to; see `outcome`."""
    name = chosen_metric(runs, metric)
    known = param_names(runs)
    if params is None:
        chosen = differing_params(run.record for run in runs)[:_MAX_PARAMS] or known[:_MAX_PARAMS]
    else:
        chosen = [known_name(param, known, "param") for param in params]
    if not chosen:
        raise UsageError("These experiments have no params to show")
    return Parallel(
        tuple(
            scale(param, [flatten(r.record.params).get(param, _MISSING) for r in runs])
            for param in chosen
        ),
        Scale(name, tuple(outcome(run, name) for run in runs)),
        tuple(run.record.id for run in runs),
        _goal(runs, name),
    )


_MISSING = object()


def scale(name: str, values: Sequence[Value]) -> Scale:
    """Numbers as they are; anything else as categories in the order in which they appear, or in
    their natural order where they all are numbers, truth values or nothing."""
    numbers = [number(v) for v in values]
    if all(n is not None for n, v in zip(numbers, values, strict=True) if v is not _MISSING):
        return Scale(name, tuple(numbers))
    known = [v for v in values if v is not _MISSING]
    categories = list(dict.fromkeys(shown(v) for v in sorted(known, key=_natural)))
    places = {category: float(place) for place, category in enumerate(categories)}
    return Scale(
        name,
        tuple(None if v is _MISSING else places[shown(v)] for v in values),
        tuple(categories),
    )


def _natural(value: Value) -> tuple[int, float, str]:
    """Nothing before truth values before numbers before texts."""
    if isinstance(value, bool) or value is None:
        return (0, -1.0 if value is None else float(value), "")
    found = number(value)
    return (2, 0.0, shown(value)) if found is None else (1, found, "")


def _goal(runs: Sequence[Run], metric: str) -> Goal | None:
    goals = {m.goal for r in runs if (m := r.record.primary_metric) and m.name == metric}
    return goals.pop() if len(goals) == 1 else None


def best_of(values: Sequence[float | None], goal: Goal | None) -> int | None:
    """The place of the best finite value; None without a goal, or without a value."""
    known = [(v, i) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    if goal is None or not known:
        return None
    return (min if goal == "minimize" else max)(known)[1]


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit that suits a length of time, as its seconds and its name."""
    return next((unit for unit in _TIME_UNITS if seconds >= 2 * unit[0]), (1.0, "seconds"))


def placed(scale: Scale) -> tuple[Callable[[float], float], bool]:
    """The function that places a value of the scale between 0 and 1, and whether it is a
    logarithmic one."""
    known = [p for p in scale.positions if p is not None and math.isfinite(p)]
    log = scale.log
    transform: Callable[[float], float] = math.log10 if log else float
    low, high = (transform(min(known)), transform(max(known))) if known else (0.0, 0.0)

    def place(position: float) -> float:
        return 0.5 if high == low else (transform(position) - low) / (high - low)

    return place, log
