"""Charts in characters: lines and dots with axes and a legend, in as many places as there are.

Lines are drawn in dots of Braille, four to a place's height, where colours tell them apart or there
is only one; else with a mark for each. It knows nothing of experiments, and writes nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Literal

from replicate.cli.table import Paint, cut, pad, text_width, unpainted

#: How a line looks: in dots of Braille, in marks, or in marks that ASCII has.
Style = Literal["braille", "marks", "ascii"]

#: As many colours, and as many marks, as traces are named.
_HUES = ("cyan", "yellow", "magenta", "green", "blue", "red")
_COLORS = (*_HUES, *(f"bright {hue}" for hue in _HUES))
_MARKS: dict[Style, str] = {"braille": "●" * 12, "marks": "●×▲+◆○■*△□◇#", "ascii": "*xo+#@%&svz="}
#: The traces that are not named.
_UNNAMED: dict[Style, str] = {"braille": "●", "marks": "·", "ascii": "."}
#: The upright line and its tick, the flat line and its tick, and the corner.
_LINES: dict[Style, tuple[str, ...]] = {
    "braille": ("│", "┤", "─", "┬", "└"),
    "marks": ("│", "┤", "─", "┬", "└"),
    "ascii": ("|", "+", "-", "+", "+"),
}
_BRAILLE = 0x2800
#: The dots of a place in Braille, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


@dataclass(frozen=True, slots=True)
class Trace:
    """A line through the points, or dots that nothing joins. NaN is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis is called and how it is divided: evenly, by powers of ten, into the places of
    categories, or as dates of seconds since 1970."""

    name: str
    log: bool = False
    categories: Sequence[str] = ()
    dates: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """The room there is and how to fill it."""

    width: int = 80
    height: int = 16
    style: Style = "braille"
    paint: Paint = unpainted
    ellipsis: str = "…"


# ---------------------------------------------------------------- scales


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where the values of an axis lie, from 0 to 1, and which of them are written beside it."""

    low: float
    high: float
    log: bool
    ticks: Sequence[tuple[float, str]] = field(default=())

    def place(self, value: float) -> float | None:
        """From 0 at the low end to 1 at the high one; None for what has no place."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        moved = math.log10(value) if self.log else value
        return (moved - self.low) / (self.high - self.low)


def _scale(axis: Axis, values: Iterator[float], count: int) -> _Scale:
    usable = [v for v in values if math.isfinite(v) and not (axis.log and v <= 0)]
    if axis.categories:
        places = [(float(i), name) for i, name in enumerate(axis.categories)]
        return _Scale(-0.5, len(places) - 0.5, False, places)
    moved = [math.log10(v) for v in usable] if axis.log else usable
    low, high = (min(moved), max(moved)) if moved else (0.0, 1.0)
    if low == high:
        # A value that never changes lies in the middle.
        margin = 0.5 if axis.log else abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    return _Scale(low, high, axis.log, [*_ticks(axis, low, high, count)])


def _ticks(axis: Axis, low: float, high: float, count: int) -> Iterator[tuple[float, str]]:
    if axis.dates:
        shown = "%H:%M:%S" if high - low < 600 else "%H:%M" if high - low < 86_400 else "%Y-%m-%d"
        for part in range(count):
            value = low + (high - low) * (part + 0.5) / count
            yield value, datetime.fromtimestamp(value).astimezone().strftime(shown)
        return
    if axis.log and high - low >= 1:
        yield from ((value, f"{value:g}") for value in _powers(low, high, count))
        return
    if axis.log:
        low, high = 10**low, 10**high
    step = _nice((high - low) / max(count, 1))
    first = math.ceil(low / step - 1e-9)
    for number in range(first, math.floor(high / step + 1e-9) + 1):
        value = number * step
        yield value, f"{value:.10g}"


def _powers(low: float, high: float, count: int) -> list[float]:
    """Powers of ten between these logarithms, with 2 and 5 times each where there is room."""
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [
            digit * 10.0**power
            for power in range(math.floor(low), math.floor(high) + 1)
            for digit in digits
            if low - 1e-9 <= power + math.log10(digit) <= high + 1e-9
        ]
        if len(found) <= count + 1:
            break
    return found[:: max(math.ceil(len(found) / (count + 1)), 1)]


def _nice(step: float) -> float:
    """The least of 1, 2, 5, 10, 20 … that is no smaller than the step."""
    size = 10.0 ** math.floor(math.log10(step))
    return next((n * size for n in (1, 2, 5) if n * size >= step * (1 - 1e-9)), 10 * size)


# ---------------------------------------------------------------- the drawing


class _Canvas:
    """Places for characters, each of which belongs to the trace that was drawn there last."""

    def __init__(self, width: int, height: int, style: Style) -> None:
        self.width, self.height, self.style = width, height, style
        self.fine = (2, 4) if style == "braille" else (1, 1)
        self.dots: dict[tuple[int, int], int] = {}
        self.owner: dict[tuple[int, int], int] = {}

    def point(self, x: float, y: float) -> tuple[int, int]:
        """The dot of a place between 0 and 1, counted from the top left."""
        columns, rows = self.width * self.fine[0], self.height * self.fine[1]
        return round(x * (columns - 1)), round((1 - y) * (rows - 1))

    def dot(self, column: int, row: int, owner: int) -> None:
        cell = (column // self.fine[0], row // self.fine[1])
        bit = _DOTS[row % 4][column % 2] if self.style == "braille" else 1
        self.dots[cell] = self.dots.get(cell, 0) | bit
        self.owner[cell] = owner

    def mark(self, column: int, row: int, owner: int) -> None:
        """A whole character, which a dot in Braille would be too small for."""
        cell = (column // self.fine[0], row // self.fine[1])
        self.dots[cell] = -1
        self.owner[cell] = owner

    def line(self, start: tuple[int, int], end: tuple[int, int], owner: int) -> None:
        steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
        for step in range(steps + 1):
            part = step / steps
            column = round(start[0] + part * (end[0] - start[0]))
            self.dot(column, round(start[1] + part * (end[1] - start[1])), owner)

    def rows(self, character: Callable[[int, int], tuple[str, str]], paint: Paint) -> list[str]:
        """The lines of the drawing, neighbours of one colour painted at once."""
        lines = []
        for row in range(self.height):
            cells = [
                character(self.owner[column, row], bits)
                if (bits := self.dots.get((column, row)))
                else (" ", "")
                for column in range(self.width)
            ]
            while cells and cells[-1][1] == "":
                cells.pop()
            groups = groupby(cells, key=lambda cell: cell[1])
            lines.append("".join(paint("".join(c for c, _ in g), color) for color, g in groups))
        return lines


def chart(title: str, traces: Sequence[Trace], x_axis: Axis, y_axis: Axis, look: Look) -> list[str]:
    """The lines of the chart: its title, the drawing between its axes, and a legend.

    The last of the traces are named there, each with a colour or mark of its own; the others are
    drawn faintly beneath them.
    """
    y_scale = _scale(y_axis, (v for t in traces for v in t.y), max(look.height // 3, 2))
    margin = max([text_width(name) for _, name in y_scale.ticks] or [1]) + 1
    columns = max(look.width - margin - 1, 20)
    x_scale = _scale(x_axis, (v for t in traces for v in t.x), max(columns // 12, 2))
    canvas = _Canvas(columns, look.height, look.style)
    for owner, trace in enumerate(traces, min(0, len(_COLORS) - len(traces))):
        _draw(canvas, trace, owner, x_scale, y_scale)
    drawn = canvas.rows(lambda owner, bits: _character(owner, bits, look), look.paint)
    return [
        " " * margin + look.paint(cut(title, look.width - margin, look.ellipsis), "bold"),
        *_with_y_axis(drawn, y_scale, margin, look),
        *_x_axis(x_scale, x_axis, columns, margin, look),
        *_legend(traces, look),
    ]


def _draw(canvas: _Canvas, trace: Trace, owner: int, x_scale: _Scale, y_scale: _Scale) -> None:
    last: tuple[int, int] | None = None
    for x, y in zip(trace.x, trace.y, strict=True):
        across, up = x_scale.place(x), y_scale.place(y)
        if across is None or up is None:
            last = None
            continue
        here = canvas.point(across, up)
        if not trace.joined:
            canvas.mark(*here, owner)
        elif here != last:
            canvas.line(last or here, here, owner)
        last = here


def _character(owner: int, bits: int, look: Look) -> tuple[str, str]:
    """What stands at a place of a trace, and its colour. Those below 0 are not named."""
    mark, color = (_MARKS[look.style][owner], _COLORS[owner]) if owner >= 0 else _unnamed(look)
    return (chr(_BRAILLE + bits) if look.style == "braille" and bits > 0 else mark), color


def _unnamed(look: Look) -> tuple[str, str]:
    return _UNNAMED[look.style], "faint"


def _with_y_axis(drawn: Sequence[str], scale: _Scale, margin: int, look: Look) -> list[str]:
    upright, tick, *_ = _LINES[look.style]
    names: dict[int, str] = {}
    for value, name in scale.ticks:
        place = scale.place(value)
        if place is not None and -1e-9 <= place <= 1 + 1e-9:
            names.setdefault(round((1 - place) * (len(drawn) - 1)), name)
    lines = []
    for row, line in enumerate(drawn):
        name = names.get(row, "")
        edge = " " * (margin - text_width(name) - 1) + name + " " + (tick if name else upright)
        lines.append(look.paint(edge, "faint") + line)
    return lines


def _x_axis(scale: _Scale, axis: Axis, columns: int, margin: int, look: Look) -> list[str]:
    """The line below the drawing, the names of its ticks that have room, and its own name."""
    _, _, flat, tick, corner = _LINES[look.style]
    line = [flat] * columns
    names = " " * (margin + 1)
    for value, name in scale.ticks:
        place = scale.place(value)
        if place is None or not -1e-9 <= place <= 1 + 1e-9:
            continue
        column = round(place * (columns - 1))
        name = cut(name, 16, look.ellipsis)
        start = margin + 1 + column - text_width(name) // 2
        start = min(start, margin + 1 + columns - text_width(name))
        if start > text_width(names) or not names.strip():
            line[column] = tick
            names = pad(names[: max(start, 0)], max(start, 0)) + name
    below = [" " * margin + corner + "".join(line), names]
    name = cut(axis.name, columns, look.ellipsis)
    space = margin + 1 + columns - text_width(name)
    if text_width(names) < space - 2:
        below[1] = pad(names, space) + name
    else:
        below.append(" " * space + name)
    return [look.paint(text.rstrip(), "faint") for text in below]


def _legend(traces: Sequence[Trace], look: Look) -> list[str]:
    if len(traces) == 1 and not traces[0].label:
        return []
    entries = [
        (*_character(owner, 0, look), trace) for owner, trace in enumerate(traces[-len(_COLORS) :])
    ]
    left = len(traces) - len(entries)
    if left > 0:
        entries.append((*_unnamed(look), Trace(f"{left:,} earlier ones, not named", (), ())))
    lines = []
    for mark, color, trace in entries:
        sample = "━━" if look.style == "braille" and trace.joined else mark
        label = cut(trace.label, look.width - text_width(sample) - 3, look.ellipsis)
        lines.append(f"  {look.paint(sample, color)} {label}")
    return lines
