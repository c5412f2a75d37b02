"""`replicate plot`: how a metric went, on the terminal or as a figure in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicate.analysis import Run, charts, figures
from replicate.analysis.charts import Course, Parallel, Scale, Scatter
from replicate.analysis.series import smoothed
from replicate.cli.chart import Axis, Look, Style, Trace, chart
from replicate.cli.options import FILTER, ID, METRIC, PARAM, location
from replicate.cli.output import Output
from replicate.cli.schema import JsonObject, value_json
from replicate.cli.selection import matching
from replicate.cli.text import escape
from replicate.errors import StorageError, UsageError
from replicate.project import ExperimentList, Project
from replicate.query import Filter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = (".png", ".svg", ".pdf")
Drawing = Course | Scatter | Parallel


@dataclass(frozen=True, slots=True)
class _Options:
    """How it is drawn."""

    logx: bool
    logy: bool
    smoothing: float


@click.command()
@click.argument("metric", required=False, type=METRIC)
@click.argument("ids", nargs=-1, type=ID)
@click.option(
    "-f", "--filter", "filters", type=FILTER, multiple=True, help="Only these, as for `ls`."
)
@click.option("--x", type=click.Choice(["step", "time", "date"]), default="step", help="Over what.")
@click.option("--logx", is_flag=True, help="Make the x axis logarithmic.")
@click.option("--logy", is_flag=True, help="Make the y axis logarithmic.")
@click.option(
    "--smoothing",
    type=float,
    default=0.0,
    metavar="N",
    help="Draw a moving average: from 0 to less than 1.",
)
@click.option(
    "--scatter",
    "param",
    type=PARAM,
    metavar="PARAM",
    help="A dot for each experiment, over PARAM.",
)
@click.option("--parallel", is_flag=True, help="Params and metric side by side; needs -o.")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a figure (PNG, SVG or PDF). Needs matplotlib.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers, not smoothed, as JSON.")
@location
@click.pass_obj
def plot(
    output: Output,
    /,
    project: Project,
    metric: str | None,
    ids: Sequence[str],
    filters: Sequence[Filter],
    x: str,
    param: str | None,
    parallel: bool,
    file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw how a metric went in each experiment.

    METRIC is the primary metric if it is left out, IDS are all experiments. A line is named after
    its experiment and the params that tell it apart.

    \b
    Examples:
      replicate plot loss
      replicate plot loss f1b4d2b 02010f9 --logy
      replicate plot accuracy --scatter learning_rate
      replicate plot loss --smoothing 0.9 -o loss.svg
    """
    _check(param, parallel, file, as_json)
    how = _Options(**options)
    smoothed((), how.smoothing)
    runs = _runs(project, ids, filters)
    drawing: Drawing
    if parallel:
        drawing = charts.parallel(runs, None, metric)
    elif param is not None:
        drawing = charts.scatter(runs, param, metric)
    else:
        drawing = charts.course(runs, metric, x)
    if as_json:
        output.json(drawing_json(drawing))
    elif file is not None:
        _save(output, file, drawing, how)
    else:
        output.data(_on_terminal(output, drawing, how))


def _check(param: str | None, parallel: bool, file: Path | None, as_json: bool) -> None:
    if parallel and param is not None:
        raise UsageError("--parallel cannot be used together with --scatter")
    if file is not None and as_json:
        raise UsageError("--json cannot be used together with --output")
    if parallel and file is None and not as_json:
        raise UsageError(
            "--parallel is too fine for a terminal", hint="write it to a file: -o params.png"
        )
    if file is not None and file.suffix.lower() not in _KINDS:
        raise UsageError(
            f"cannot write {file}: a figure's name ends in {', '.join(_KINDS)}",
        )


def _runs(project: Project, ids: Sequence[str], filters: Sequence[Filter]) -> list[Run]:
    """The experiments that were asked for, each once, in the order in which they were named."""
    if ids:
        found = ExperimentList({e.id: e for e in map(project.find, ids)}.values())
    else:
        found = project.experiments.list()
    chosen = {r.id for r in matching([e.record for e in found], filters)}
    return found.filter(lambda e: e.id in chosen).runs()


# ---------------------------------------------------------------- on a terminal


def _on_terminal(output: Output, drawing: Drawing, how: _Options) -> list[str]:
    assert not isinstance(drawing, Parallel)
    title, traces, x_axis, y_axis = (
        _course(drawing, how) if isinstance(drawing, Course) else _scatter(drawing, how)
    )
    style: Style = "marks"
    if not output.can_write("●×▲◆○■△□◇·│┤─┬└━⣿"):
        style = "ascii"
    elif output.colored or len(traces) == 1:
        style = "braille"
    look = Look(output.width or 80, 16, style, output.paint, output.ellipsis)
    return chart(title, traces, x_axis, y_axis, look)


def _course(course: Course, how: _Options) -> tuple[str, list[Trace], Axis, Axis]:
    size, unit = 1.0, str(course.axis)
    if course.axis == "time":
        longest = max((line.x[-1] for line in course.lines if line.x), default=0.0)
        size, name = charts.time_unit(longest)
        unit = f"{name} since the start"
    traces = [
        Trace(line.label, [x / size for x in line.x], smoothed(line.y, how.smoothing))
        for line in course.drawable.lines
    ]
    dates = course.axis == "date"
    x_axis = Axis(unit, log=how.logx and not dates, dates=dates)
    return escape(course.metric + charts.unseen(course)), traces, x_axis, Axis("", log=how.logy)


def _scatter(scatter: Scatter, how: _Options) -> tuple[str, list[Trace], Axis, Axis]:
    known = [
        (x, y)
        for x, y in zip(scatter.param.positions, scatter.metric.positions, strict=True)
        if x is not None and y is not None
    ]
    dots = Trace("", [x for x, _ in known], [y for _, y in known], joined=False)
    log = how.logx or scatter.param.log
    x_axis = Axis(escape(scatter.param.name), log=log, categories=scatter.param.categories)
    title = escape(f"{scatter.metric.name} by {scatter.param.name}")
    return title, [dots], x_axis, Axis("", log=how.logy or scatter.metric.log)


# ---------------------------------------------------------------- to a file, and as JSON


def _save(output: Output, file: Path, drawing: Drawing, how: _Options) -> None:
    def draw(ax: Axes) -> object:
        if isinstance(drawing, Course):
            return figures.draw_course(
                drawing, ax, logx=how.logx, logy=how.logy, smoothing=how.smoothing
            )
        if isinstance(drawing, Scatter):
            # Without a flag an axis is what suits the numbers.
            return figures.draw_scatter(drawing, ax, logx=how.logx or None, logy=how.logy or None)
        return figures.draw_parallel(drawing, ax)

    try:
        figures.save(file, draw)
    except OSError as error:
        raise StorageError(f"Cannot write {file}: {error.strerror}") from error
    output.message(f"Wrote {file}")


def drawing_json(drawing: Drawing) -> JsonObject:
    """The numbers of a drawing, as they were recorded."""
    if isinstance(drawing, Course):
        series = [
            {"experiment": n.experiment, "label": n.label, "x": _json(n.x), "y": _json(n.y)}
            for n in drawing.lines
        ]
        return {"metric": drawing.metric, "x": drawing.axis, "series": series}
    if isinstance(drawing, Scatter):
        return {
            "metric": drawing.metric.name,
            "param": drawing.param.name,
            "points": _rows(drawing.experiments, [drawing.param], drawing.metric),
        }
    return {
        "metric": drawing.metric.name,
        "params": [scale.name for scale in drawing.params],
        "points": _rows(drawing.experiments, drawing.params, drawing.metric),
    }


def _rows(ids: Sequence[str], params: Sequence[Scale], metric: Scale) -> list[JsonObject]:
    return [
        {
            "experiment": id,
            "params": {scale.name: _value(scale, place) for scale in params},
            "metric": value_json(metric.positions[place]),
        }
        for place, id in enumerate(ids)
    ]


def _value(scale: Scale, place: int) -> Any:
    position = scale.positions[place]
    if position is None or not scale.categories:
        return value_json(position)
    return scale.categories[int(position)]


def _json(numbers: Sequence[float]) -> list[Any]:
    return [value_json(number) for number in numbers]
