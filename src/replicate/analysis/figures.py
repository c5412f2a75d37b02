"""Charts as figures of matplotlib, which is imported when the first one is drawn.

It knows how a chart looks on paper and in a notebook. What it shows is made in `charts`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from os import PathLike
from typing import TYPE_CHECKING, Any

from replicate.analysis.charts import (
    Course,
    Parallel,
    Scale,
    Scatter,
    Shade,
    best_of,
    placed,
    time_unit,
    unseen,
)
from replicate.analysis.optional import required
from replicate.analysis.series import smoothed
from replicate.text import escape, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Ten colours that people of every kind of sight tell apart (those of Petroff, arXiv 2107.02270).
_COLORS = (
    *("#3f90da", "#e76300", "#832db6", "#bd1f01", "#ffa90e"),
    *("#717581", "#a96b59", "#94a4a2", "#b9ac70", "#92dadd"),
)
_MANY = len(_COLORS)
_UNKNOWN = "#9a9a9a"
_SIZE = (7.5, 4.5)
_MAX_CATEGORY = 18
_MAX_LABEL = 72
_MAX_INSIDE = 24
_MAX_CATEGORIES = 12
#: On an upright axis from 0 to 1: where a value that is missing is drawn, and what a name takes.
_MISSING, _TICK_ROOM = -0.12, 0.045


def _required(module: str) -> Any:
    return required(module, "A figure", "'replicate[plot]'")


def axes(ax: Axes | None) -> Axes:
    """These axes, or new ones in a figure that a notebook shows."""
    if ax is not None:
        return ax
    pyplot = _required("matplotlib.pyplot")
    _, new = pyplot.subplots(figsize=_SIZE, layout="constrained")
    return new  # type: ignore[no-any-return]


def save(path: str | PathLike[str], draw: Callable[[Axes], object]) -> None:
    """Write the figure that `draw` makes to a file of the kind that its name says. No window."""
    figure = _required("matplotlib.figure").Figure(figsize=_SIZE, layout="constrained")
    with warnings.catch_warnings():
        # A name in a script that the font lacks is no reason to fail, nor to tell about.
        warnings.filterwarnings("ignore", "Glyph")
        draw(figure.add_subplot())
        figure.savefig(path, dpi=160)


def draw_course(
    course: Course, ax: Axes, *, logx: bool = False, logy: bool = False, smoothing: float = 0.0
) -> Axes:
    """A line for each experiment: up to ten in colours with a legend, more of them thin and
    coloured by a number. With smoothing the recorded values stay as faint lines. One that has no
    finite value is counted in the title."""
    left_out, course = unseen(course), course.drawable
    many = len(course.lines) > _MANY
    colors = _shades(course.shade, bar=ax) if many else _COLORS
    convert, x_label = _x_axis(course)
    handles = []
    for line, color in zip(course.lines, colors, strict=False):
        x = [convert(value) for value in line.x]
        curve = line.y
        if smoothing:  # any but 0, so that a wrong one is found
            ax.plot(x, line.y, color=color, alpha=0.1 if many else 0.25, linewidth=0.8)
            curve = tuple(smoothed(line.y, smoothing))
        width, opacity = (0.9, 0.7) if many else (1.6, 1.0)
        handles += ax.plot(
            x, curve, color=color, linewidth=width, alpha=opacity, **_marks(curve, many=many)
        )
    _scale_axes(ax, logx=logx and course.axis != "date", logy=logy)
    _decorate(ax, x_label, course.metric)
    smoothed_by = f", smoothed by {smoothing:g}" if smoothing else ""
    several = f" of {len(course.lines)} experiments" if many else ""
    _text(ax.set_title(escape(course.metric) + several + left_out + smoothed_by))
    if not many:
        _legend(ax, handles, [line.label for line in course.lines])
    return ax


def _marks(values: Sequence[float], *, many: bool) -> dict[str, Any]:
    """A mark for each value where there are few, and for those between two gaps, which are the ends
    of no line."""
    if len(values) <= 20 and not many:
        return {"marker": "o", "markersize": 3.5}
    gap = [math.isnan(v) for v in (math.nan, *values, math.nan)]
    alone = [i for i in range(len(values)) if gap[i] and gap[i + 2] and not gap[i + 1]]
    return {"marker": "o", "markersize": 2.5, "markevery": alone} if alone else {}


def _x_axis(course: Course) -> tuple[Callable[[float], Any], str]:
    if course.axis == "step":
        return float, "step"
    if course.axis == "date":
        return lambda seconds: datetime.fromtimestamp(seconds, UTC), "time (UTC)"
    size, name = time_unit(max((line.x[-1] for line in course.lines if line.x), default=0.0))
    return lambda seconds: seconds / size, f"{name} since the start"


def draw_scatter(
    scatter: Scatter, ax: Axes, *, logx: bool | None = None, logy: bool | None = None
) -> Axes:
    """A dot for each experiment that has both values; the best one is named. An axis is logarithmic
    where its numbers call for it, unless told otherwise."""
    dots = [
        (x, y, label)
        for x, y, label in zip(
            scatter.param.positions, scatter.metric.positions, scatter.labels, strict=True
        )
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
    ]
    x, y = [dot[0] for dot in dots], [dot[1] for dot in dots]
    ax.scatter(x, y, s=38, color=_COLORS[0], alpha=0.75, linewidths=0)
    best = best_of(y, scatter.goal)
    if best is not None:
        ax.scatter([x[best]], [y[best]], s=90, facecolors="none", edgecolors=_COLORS[1], zorder=3)
        note = ax.annotate(
            "best: " + dots[best][2].partition("  ")[0],
            (x[best], y[best]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_COLORS[1],
        )
        _text(note)
    ax.margins(0.12, 0.14)
    logx = scatter.param.log if logx is None else logx
    logy = scatter.metric.log if logy is None else logy
    _scale_axes(ax, logx=logx and not scatter.param.categories, logy=logy)
    _name_categories(ax, scatter.param)
    _decorate(ax, scatter.param.name, scatter.metric.name)
    left = len(scatter.experiments) - len(dots)
    without = f" ({left} without a value)" if left else ""
    _text(ax.set_title(escape(f"{scatter.metric.name} by {scatter.param.name}") + without))
    return ax


def _name_categories(ax: Axes, scale: Scale) -> None:
    if not scale.categories:
        return
    names = [_short(c) for c in scale.categories]
    slanted: Any = {"rotation": 30, "ha": "right"} if sum(map(len, names)) > 60 else {}
    ax.set_xticks(range(len(names)), names, parse_math=False, **slanted)
    ax.set_xlim(-0.6, len(names) - 0.4)


def draw_parallel(parallel: Parallel, ax: Axes) -> Axes:
    """An upright axis for each param and one for the metric, and a line through them for each
    experiment, coloured by the metric; the best is drawn above the others. What an experiment has
    no number for is marked as missing, below the axis."""
    scales = [*parallel.params, parallel.metric]
    values = parallel.metric.positions
    rows = [_heights(scale) for scale in scales]
    colors = _shades(Shade(parallel.metric.name, values, parallel.metric.log))
    best = best_of(values, parallel.goal)
    order = sorted(range(len(values)), key=lambda i: (i == best, _finite(values[i])))
    for i in order:
        emphasis = (2.8, 1.0) if i == best else (1.2, 0.65 if _finite(values[i]) else 0.35)
        heights = [row[i] for row in rows]
        ax.plot(
            range(len(scales)), heights, color=colors[i], linewidth=emphasis[0], alpha=emphasis[1]
        )
    for place, scale in enumerate(scales):
        _upright_axis(ax, place, scale)
    names = [_short(s.name) for s in scales]
    room = _MAX_CATEGORY * 4 // len(scales)
    slanted: Any = {"rotation": 20, "ha": "right"} if max(map(len, names)) > room else {}
    ax.set_xticks(range(len(scales)), names, parse_math=False, **slanted)
    ax.tick_params(axis="x", length=0, pad=8)
    ax.set_yticks([])
    ax.set_xlim(-0.25, len(scales) - 1 + 0.4)
    ax.spines[:].set_visible(False)
    _text(ax.set_title(f"{escape(parallel.metric.name)} of {len(values)} experiments by params"))
    return ax


def _heights(scale: Scale) -> list[float]:
    place, _ = placed(scale)
    return [place(p) if p is not None and math.isfinite(p) else _MISSING for p in scale.positions]


def _upright_axis(ax: Axes, x: int, scale: Scale) -> None:
    ax.plot([x, x], [0, 1], color=_UNKNOWN, linewidth=0.8, zorder=0)
    for height, name in _legible(_ticks(scale)):
        ax.plot([x, x + 0.025], [height, height], color=_UNKNOWN, linewidth=0.8, zorder=0)
        label = ax.text(x + 0.04, height, _short(name), fontsize=7.5, va="center", zorder=5)
        label.set_bbox({"facecolor": ax.get_facecolor(), "alpha": 0.8, "pad": 0.8, "linewidth": 0})
        _text(label)


def _ticks(scale: Scale) -> list[tuple[float, str]]:
    place, log = placed(scale)
    missing = [] if all(map(_finite, scale.positions)) else [(_MISSING, "missing")]
    if scale.categories:
        every = math.ceil(len(scale.categories) / _MAX_CATEGORIES)
        named = [(place(float(i)), c) for i, c in enumerate(scale.categories) if i % every == 0]
        return missing + named
    known = sorted({p for p in scale.positions if p is not None and math.isfinite(p)})
    if len(known) > 7:
        low, high = known[0], known[-1]
        parts = (0.0, 0.25, 0.5, 0.75, 1.0)
        known = [low * (high / low) ** t if log else low + t * (high - low) for t in parts]
    return missing + [(place(v), value(float(f"{v:.3g}"))) for v in known]


def _legible(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those of the ticks whose names do not lie on each other's: the ends first, then others."""
    kept: list[tuple[float, str]] = []
    for tick in (*ticks[-1:], *ticks[:2], *reversed(ticks)):
        if all(abs(tick[0] - other[0]) >= _TICK_ROOM for other in kept):
            kept.append(tick)
    return kept


def _shades(shade: Shade, bar: Axes | None = None) -> list[Any]:
    """A colour for each number, and a scale beside these axes that says which is which."""
    matplotlib = _required("matplotlib")
    colors = _required("matplotlib.colors")
    known = [v for v in shade.values if v is not None and math.isfinite(v)]
    if not known:
        return [_UNKNOWN] * len(shade.values)
    kind = colors.LogNorm if shade.log else colors.Normalize
    norm = kind(min(known), max(known))
    # The palest end of the map is hard to see on white.
    whole = matplotlib.colormaps["viridis"]
    palette = colors.ListedColormap(whole([i / 255 * 0.92 for i in range(256)]))
    mappable = matplotlib.cm.ScalarMappable(norm, palette)
    if bar is not None:
        key = bar.figure.colorbar(mappable, ax=bar, pad=0.02, aspect=30)
        key.outline.set_visible(False)
        _text(key.ax.yaxis.label)
        key.set_label(escape(shade.name))
    return [mappable.to_rgba(v) if _finite(v) else _UNKNOWN for v in shade.values]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _scale_axes(ax: Axes, *, logx: bool, logy: bool) -> None:
    """What is not above zero has no place on a logarithmic axis, and is left out."""
    ticker = _required("matplotlib.ticker")
    if logx:
        ax.set_xscale("log", nonpositive="mask")
    if logy:
        ax.set_yscale("log", nonpositive="mask")
    for axis in [ax.xaxis] * logx + [ax.yaxis] * logy:
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(ticker.FuncFormatter(_between_powers(axis)))


def _between_powers(axis: Any) -> Callable[[float, object], str]:
    """Names for 2 and 5 times a power of ten, on an axis so short that it has few powers."""

    def name(value: float, _: object) -> str:
        low, high = axis.get_view_interval()
        digit = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
        return f"{value:g}" if high / low < 200 and digit in (2, 5) else ""

    return name


def _decorate(ax: Axes, x_label: str, y_label: str) -> None:
    for label, name in ((ax.xaxis.label, x_label), (ax.yaxis.label, y_label)):
        _text(label)
        label.set_text(escape(name))
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _legend(ax: Axes, handles: Sequence[Any], names: Sequence[str]) -> None:
    if not handles:
        return
    names = [_short(name, _MAX_LABEL) for name in names]
    place: Any = {}
    if max(map(len, names)) > _MAX_INSIDE:  # it would cover the lines
        columns = 2 if max(map(len, names)) <= _MAX_LABEL // 2 else 1
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.13), "ncols": columns}
    # A label that begins with "_" would keep its line out of the legend.
    legend = ax.legend(handles, [f"\u200b{name}" for name in names], fontsize=8, **place)
    legend.get_frame().set_linewidth(0)
    for text, name in zip(legend.get_texts(), names, strict=True):
        _text(text)
        text.set_text(name)


def _text(text: Any) -> None:
    """A dollar sign in somebody's name begins no formula."""
    text.set_parse_math(False)


def _short(name: str, limit: int = _MAX_CATEGORY) -> str:
    name = escape(name)
    return name if len(name) <= limit else name[: limit - 1] + "…"
