"""Plain tables that fit the terminal: columns of text two spaces apart, nothing drawn around them.

It knows the width of characters and how to make a table narrower. It knows nothing of what is in
the cells, and writes nowhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

GAP = "  "
#: No column is cut below this, nor an id ever: a table that still does not fit runs over.
MIN_WIDTH = 8

#: Gives a text a colour or a weight, for example `paint("failed", "red")`.
Paint = Callable[[str, str], str]
#: One way to save width: hide a column, or show its short cells.
Reduction = tuple[Literal["hide", "shorten"], str]


def unpainted(text: str, style: str) -> str:
    """The text as it is, for where there are no colours."""
    return text


def text_width(text: str) -> int:
    """How many places a terminal gives the text: two for wide characters, none for accents."""
    if text.isascii():
        return len(text)
    return sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def cut(text: str, width: int, ellipsis: str = "…") -> str:
    """The text in at most `width` places, ending in the ellipsis when something is missing."""
    if text_width(text) <= width:
        return text
    room = width - len(ellipsis)
    kept = []
    for character in text:
        room -= _character_width(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept) + ellipsis


def pad(text: str, width: int) -> str:
    """The text with spaces after it, as wide as `width`."""
    return text + " " * (width - text_width(text))


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and its cells.

    `short` gives the cells in their shorter form, and `short_heading` is that of the heading, for a
    narrow terminal. `styles` says which
    cells are painted. A column that is `whole` is never cut: half an id is of no use.
    """

    key: str
    heading: str
    cells: Sequence[str]
    short: Callable[[], Sequence[str]] | None = None
    short_heading: str | None = None
    styles: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False

    @property
    def width(self) -> int:
        """The places that its widest cell takes, or its heading."""
        return max(text_width(self.heading), max(_widths(self.cells), default=0))


def fit(
    columns: Sequence[Column],
    width: int | None,
    reductions: Iterable[Reduction] = (),
    ellipsis: str = "…",
) -> tuple[list[Column], list[Column]]:
    """The columns made narrow enough, and those that had to go.

    Takes the reductions in their order, as few as needed, and cuts the widest cells after the last.
    """
    kept = list(columns)
    hidden: list[Column] = []
    for how, key in reductions:
        if width is None or _total(kept) <= width:
            break
        found = next((c for c in kept if c.key == key), None)
        if found is None:
            continue
        place = kept.index(found)
        if how == "hide":
            hidden.append(found)
            del kept[place]
        else:
            kept[place] = _shortened(found)
    return (kept if width is None else _cut_widest(kept, width, ellipsis)), hidden


def _shortened(column: Column) -> Column:
    cells = column.cells if column.short is None else column.short()
    return replace(column, heading=column.short_heading or column.heading, cells=cells)


def _total(columns: Sequence[Column]) -> int:
    return sum(c.width for c in columns) + len(GAP) * (len(columns) - 1)


def _cut_widest(columns: list[Column], width: int, ellipsis: str) -> list[Column]:
    widths = [c.width for c in columns]
    room = width - len(GAP) * (len(columns) - 1)
    while sum(widths) > room:
        cuttable = [i for i, c in enumerate(columns) if not c.whole and widths[i] > MIN_WIDTH]
        if not cuttable:
            break
        widths[max(cuttable, key=lambda i: widths[i])] -= 1
    return [_narrowed(c, w, ellipsis) for c, w in zip(columns, widths, strict=True)]


def _narrowed(column: Column, width: int, ellipsis: str) -> Column:
    if column.width <= width:
        return column
    cells = [cut(cell, width, ellipsis) for cell in column.cells]
    return replace(column, heading=cut(column.heading, width, ellipsis), cells=cells)


def render(columns: Sequence[Column], paint: Paint = unpainted) -> list[str]:
    """The lines of the table: the headings and a line for each row, with no space at their ends."""
    if not columns:
        return []
    # A listing has many rows and few columns: what can be done for a column at once is done so.
    rows = zip(*(_padded(column, paint) for column in columns), strict=True)
    return [GAP.join(row).rstrip(" ") for row in rows]


def _padded(column: Column, paint: Paint) -> list[str]:
    """The heading and the cells, all as wide as the widest. The spaces stay outside of what is
    painted."""
    heading, width = column.heading, column.width
    padded = [
        cell + " " * (width - taken)
        for cell, taken in zip(column.cells, _widths(column.cells), strict=True)
    ]
    if column.styles:
        padded = [_painted(c, p, column, paint) for c, p in zip(column.cells, padded, strict=True)]
    return [paint(heading, "bold") + " " * (width - text_width(heading)), *padded]


def _painted(cell: str, padded: str, column: Column, paint: Paint) -> str:
    style = column.styles.get(cell, "")
    return paint(cell, style) + padded[len(cell) :] if style else padded


def _widths(cells: Sequence[str]) -> Iterable[int]:
    """The places that each of the cells takes."""
    return map(len if all(map(str.isascii, cells)) else text_width, cells)
