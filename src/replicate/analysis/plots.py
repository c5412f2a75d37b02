"""From experiments to a picture in one step: what `.plot()`, `.scatter()` and `.parallel()` do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replicate.analysis import charts, figures
from replicate.analysis.series import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(
    runs: Sequence[Run],
    metric: str | None = None,
    *,
    x: str = "step",
    logx: bool = False,
    logy: bool = False,
    smoothing: float = 0.0,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the course of a metric; see `charts.course` and `figures.draw_course`."""
    course = charts.course(runs, metric, x, color)
    return figures.draw_course(course, figures.axes(ax), logx=logx, logy=logy, smoothing=smoothing)


def scatter(
    runs: Sequence[Run],
    param: str,
    metric: str | None = None,
    *,
    logx: bool | None = None,
    logy: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what the runs came to over a param; see `charts.scatter`, `figures.draw_scatter`."""
    chart = charts.scatter(runs, param, metric)
    return figures.draw_scatter(chart, figures.axes(ax), logx=logx, logy=logy)


def parallel(
    runs: Sequence[Run],
    params: Sequence[str] | None = None,
    metric: str | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw params and a metric side by side; see `charts.parallel`, `figures.draw_parallel`."""
    return figures.draw_parallel(charts.parallel(runs, params, metric), figures.axes(ax))
