"""`replicate diff`: two checkpoints side by side, and what changed in the code."""

from __future__ import annotations

from collections.abc import Sequence

import click

from replicate.cli import text
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.cli.schema import comparison_json
from replicate.cli.table import Paint, cut, pad, text_width, unpainted
from replicate.diff import Change, Comparison, FileSide, Missing, Side, unified
from replicate.model import short
from replicate.project import Project

#: A row: its label, and what stands on the left and on the right.
Row = tuple[str, str, str]

_WIDTH = 26
_NOT_SET = "(not set)"
_LINE_STYLES = {"+": "green", "-": "red", "@": "cyan"}


@click.command()
@click.argument("left", type=ID, metavar="LEFT")
@click.argument("right", type=ID, metavar="RIGHT")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location
@click.pass_obj
def diff(output: Output, project: Project, left: str, right: str, as_json: bool) -> None:
    """Compare two checkpoints: params, metrics, packages and code.

    For an experiment, its best checkpoint is compared, or the latest one if none is best. What a
    run has only logged is compared as it was last, whichever checkpoint is named.

    \b
    Examples:
      replicate diff 8ee945b dbcdd99
      replicate diff f1b4d2b 02010f9 --json
    """
    picked = [project.pick(left), project.pick(right)]
    for pick in picked:
        note = text.picked_note(pick.experiment.id, pick.checkpoint, pick.how)
        if note:
            output.note(note)
    comparison = project.compare(*picked)
    for side in (comparison.left, comparison.right):
        if not side.has_files:
            output.note(
                f"{short(side.experiment.id)}: its files are not compared, as they are not all "
                "saved yet, or not on this machine"
            )
    if as_json:
        output.json(comparison_json(comparison))
        return
    output.data(side_by_side(comparison, output.width, output.paint, output.ellipsis))
    output.data(code_lines(comparison, output.paint, terminal=output.terminal))
    if comparison.identical:
        but = "" if comparison.has_files else ", files aside"
        output.data(["", f"(no difference{but})"])


def side_by_side(
    comparison: Comparison,
    width: int | None = None,
    paint: Paint = unpainted,
    ellipsis: str = "…",
) -> list[str]:
    """All that differs but the code, in three columns that fit the width, if one is given."""
    left, right = comparison.left, comparison.right
    sections: list[tuple[str, list[Row]]] = [
        ("", _headings(left, right)),
        ("Params", _rows(comparison.params)),
        ("Metrics", _rows(comparison.metrics)),
        ("Logged, as it was last", _rows(comparison.logged)),
        ("Packages", _rows(comparison.packages)),
        ("Files", [_file_row(c.path, c.left, c.right) for c in comparison.outputs]),
    ]
    sections = [(title, rows) for title, rows in sections if rows]
    label_width, value_width = _widths([row for _, rows in sections for row in rows], width)
    lines: list[str] = []
    for title, rows in sections:
        lines += ["", paint(title, "bold")] if title else []
        for label, *values in rows:
            label = pad(cut(label, label_width - 2, ellipsis) + ":", label_width)
            old, new = (cut(value, value_width - 2, ellipsis) for value in values)
            lines.append(label + pad(old, value_width) + new)
    return lines


def code_lines(
    comparison: Comparison, paint: Paint = unpainted, *, terminal: bool = False
) -> list[str]:
    """The unified diff of the code under its title: as it is for a program, safe for a terminal."""
    if not comparison.code:
        return []
    lines = ["", paint("Code", "bold")]
    for change in comparison.code:
        in_hunk = False
        for line in unified(change):
            in_hunk = in_hunk or line.startswith("@@")
            shown = text.escape(line, keep="\t") if terminal else line
            lines.append(paint(shown, _LINE_STYLES.get(line[:1], "") if in_hunk else "bold"))
    return lines


def _headings(left: Side, right: Side) -> list[Row]:
    checkpoints = [short(s.checkpoint.id) if s.checkpoint else "(none)" for s in (left, right)]
    return [
        ("Checkpoint", checkpoints[0], checkpoints[1]),
        ("Experiment", short(left.experiment.id), short(right.experiment.id)),
    ]


def _rows(changes: Sequence[Change]) -> list[Row]:
    return [(text.escape(change.name), *_values(change)) for change in changes]


def _values(change: Change) -> tuple[str, str]:
    left, right = change.left, change.right
    if isinstance(left, Missing):
        return _NOT_SET, text.value(right, full=True)
    if isinstance(right, Missing):
        return text.value(left, full=True), _NOT_SET
    return text.values_apart(left, right)


def _file_row(path: str, left: FileSide | None, right: FileSide | None) -> Row:
    """A file by its size, and the start of its hash: two of the same size still differ."""
    sides = [f"{text.size(s.size)} ({s.hash[:7]})" if s else "(none)" for s in (left, right)]
    return text.escape(path), sides[0], sides[1]


def _widths(rows: Sequence[Row], width: int | None) -> tuple[int, int]:
    """The widths of the labels and of the left values, with the space after them."""
    label = max(_WIDTH, max(text_width(name) for name, _, _ in rows) + 3)
    value = max(_WIDTH, max(text_width(text) for _, *both in rows for text in both) + 2)
    if width is None:
        return label, value
    label = min(label, max(12, width // 3))
    return label, min(value, max(10, (width - label) // 2 + 1))
