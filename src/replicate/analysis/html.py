"""Experiments and checkpoints as HTML for a notebook: one fragment that needs nothing from outside,
reads without its script, and takes its colours from the page around it.

Every text that a person or a program has recorded passes through `_escaped`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape as html_escape

from replicate import text
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    PrimaryMetric,
    Status,
    Value,
    differing_params,
    flatten,
    short,
)

_MAX_ROWS = 40
_MAX_COLUMNS = 12
_MAX_PAIRS = 40
_MAX_CELL = 36
_MAX_TITLE = 500

_STATUS_COLORS: Mapping[Status, str] = {
    Status.RUNNING: "#2e9e5b",
    Status.FINISHED: "#8a8f98",
    Status.FAILED: "#d64545",
    Status.KILLED: "#d64545",
    Status.LOST: "#c98a1b",
}

#: Lines and faint text are shades of the text's own colour, so that they suit dark and light pages.
_STYLE = """<style>
.replicate{font-size:13px;line-height:1.45;color:inherit;overflow-x:auto}
.replicate table{border-collapse:collapse;margin:4px 0;border:none;font-size:inherit;width:auto}
.replicate th,.replicate td{padding:2px 14px 2px 0;text-align:left;white-space:nowrap;border:none;
 vertical-align:top;background:none;color:inherit}
.replicate thead th{font-weight:600;border-bottom:1px solid rgba(128,128,128,.5)}
.replicate tbody tr{background:none;border-bottom:1px solid rgba(128,128,128,.18)}
.replicate td.n{text-align:right;font-variant-numeric:tabular-nums}
.replicate th.n{text-align:right}
.replicate code{font-size:12px;background:none;color:inherit;padding:0}
.replicate .f{opacity:.65}
.replicate .d{display:inline-block;width:8px;height:8px;border-radius:4px;margin-right:6px}
.replicate .t{background:rgba(128,128,128,.18);border-radius:3px;padding:0 5px;margin-right:3px}
.replicate th[tabindex]{cursor:pointer}
.replicate th[aria-sort=ascending]::after{content:" ▴"}
.replicate th[aria-sort=descending]::after{content:" ▾"}
.replicate .c{display:flex;flex-wrap:wrap;gap:0 36px;align-items:flex-start}
</style>"""

#: Sorts by the values in `data-v`, empty ones last. Without it the table is as it is.
_SCRIPT = """<script>(function(){
document.querySelectorAll('table[data-replicate="KEY"]').forEach(function(t){
if(t.dataset.ready)return;t.dataset.ready=1;
var heads=t.querySelectorAll('thead th');
heads.forEach(function(h,i){h.tabIndex=0;h.title=h.title||'sort';
function sort(){var up=h.getAttribute('aria-sort')!=='ascending',b=t.tBodies[0];
heads.forEach(function(o){o.removeAttribute('aria-sort')});
h.setAttribute('aria-sort',up?'ascending':'descending');
function key(r){var c=r.cells[i];return c?c.getAttribute('data-v')||'':''}
var rows=Array.from(b.rows).filter(function(r){return !r.hasAttribute('data-gap')||r.remove()});
rows.sort(function(x,y){var a=key(x),c=key(y);if(a===''||c==='')return(a==='')-(c==='');
var n=Number(a)-Number(c);var d=isNaN(n)?a.localeCompare(c):n;return up?d:-d});
rows.forEach(function(r){b.appendChild(r)})}
h.addEventListener('click',sort);
h.addEventListener('keydown',function(e){
if(e.key==='Enter'||e.key===' '){e.preventDefault();sort()}})
})})})();</script>"""


def experiments_html(records: Sequence[ExperimentRecord]) -> str:
    """A table of experiments that sorts: the params that differ, and the best and latest metrics.
    Of many the first and the last are shown, with a note."""
    if not records:
        return _fragment('<span class="f">no experiments</span>')
    flat = [flatten(r.params) for r in records]
    params = differing_params(records) or list(dict.fromkeys(n for p in flat for n in p))
    metrics = list(dict.fromkeys(m for r in records if (m := r.primary_metric)))
    names = [m.name for m in metrics] or _names(c.metrics for r in records if (c := r.latest()))
    columns = [
        _ids("experiment", [r.id for r in records]),
        _texts("name", [r.name for r in records]),
        _times("started", [r.created for r in records]),
        _Column("status", [_status_cell(r.status) for r in records]),
        _Column("duration", [_duration_cell(r) for r in records], numeric=True),
        _Column("tags", [_tags_cell(r.tags) for r in records]),
        *(_values(n, [p.get(n) for p in flat]) for n in params[:_MAX_COLUMNS]),
        _count("checkpoints", [len(r.checkpoints) for r in records]),
    ]
    best, latest = [r.best() for r in records], [r.latest() for r in records]
    for word, chosen in (("best", best), ("latest", latest)):
        columns += [
            _values(f"{word} {name}", [c.metrics.get(name) if c else None for c in chosen])
            for name in names[:_MAX_COLUMNS]
        ]
    left_out = [_left_out(params, "param"), _left_out(names, "metric")]
    return _fragment(_table(columns, len(records), "experiment", left_out))


def checkpoints_html(checkpoints: Sequence[CheckpointRecord]) -> str:
    """A table of checkpoints that sorts, with all their metrics."""
    if not checkpoints:
        return _fragment('<span class="f">no checkpoints</span>')
    return _fragment(_checkpoints_table(checkpoints))


def _checkpoints_table(checkpoints: Sequence[CheckpointRecord]) -> str:
    names = _names(c.metrics for c in checkpoints)
    columns = [
        _ids("checkpoint", [c.id for c in checkpoints]),
        _values("step", [c.step for c in checkpoints]),
        _times("created", [c.created for c in checkpoints]),
        *(_values(n, [c.metrics.get(n) for c in checkpoints]) for n in names[:_MAX_COLUMNS]),
        _texts("path", [_path(c.path) for c in checkpoints]),
        _texts("state", [_state(c) for c in checkpoints]),
    ]
    return _table(columns, len(checkpoints), "checkpoint", [_left_out(names, "metric")])


def _state(record: CheckpointRecord) -> str | None:
    """What sets a checkpoint apart: that it does not count any more, or cannot be had whole."""
    marks = {
        "superseded": record.superseded,
        "files let go": record.dropped,
        f"lacks {', '.join(record.lost)}": bool(record.lost),
    }
    return ", ".join(mark for mark, holds in marks.items() if holds) or None


def experiment_html(record: ExperimentRecord) -> str:
    """What an experiment is and has come to: its labels, params and checkpoints."""
    named = f" {_escaped(record.name)}" if record.name else ""
    tags = f" {_tags_cell(record.tags).html}" if record.tags else ""
    length = record.duration
    took = f", {text.duration(length)}" if length is not None else ""
    head = (
        f"<div><b>experiment <code>{short(record.id)}</code>{named}</b> &ensp;"
        f"{_status_cell(record.status).html}{tags}</div>"
        f'<div class="f">{_date(record.created)}{took} · '
        f"{_escaped(record.user)}@{_escaped(record.host)} · "
        f"<code>{_escaped(record.command)}</code></div>"
    )
    notes = f"<div>{_escaped(record.notes)}</div>" if record.notes else ""
    best = record.best()
    parts = [_pairs("params", flatten(record.params))]
    if best is not None:
        parts.append(_pairs(f"best: {_checkpoint_name(best)}", best.metrics, best.primary_metric))
    latest = record.latest()
    if latest is not None and latest != best:
        parts.append(_pairs(f"latest: {_checkpoint_name(latest)}", latest.metrics))
    number = len(record.checkpoints)
    total = f'<div class="f">{number:,} checkpoint{"" if number == 1 else "s"}</div>'
    return _fragment(f'{head}{notes}<div class="c">{"".join(parts)}</div>{total}')


def checkpoint_html(record: CheckpointRecord) -> str:
    """What a checkpoint is: its step, files and metrics."""
    path = _path(record.path)
    files = f" · <code>{_escaped(path)}</code>" if path else ""
    size = f" ({text.size(record.size)})" if record.size is not None else ""
    state = f" · {_escaped(state)}" if (state := _state(record)) else ""
    head = (
        f"<div><b>checkpoint <code>{_checkpoint_name(record)}</code></b></div>"
        f'<div class="f">{_date(record.created)} · experiment '
        f"<code>{short(record.experiment)}</code>{files}{size}{state}</div>"
    )
    return _fragment(head + _pairs("metrics", record.metrics, record.primary_metric))


# ---------------------------------------------------------------- cells and columns


@dataclass(frozen=True, slots=True)
class _Cell:
    """HTML that is safe already, and what a column is sorted by."""

    html: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    cells: Sequence[_Cell]
    numeric: bool = False

    @property
    def empty(self) -> bool:
        return not any(cell.html for cell in self.cells)


def _escaped(value: object, limit: int | None = None) -> str:
    """A text as a page can hold it: no markup, no quotes, no control characters."""
    shown = text.escape(str(value))
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return html_escape(shown, quote=True)


def _cell(value: Value) -> _Cell:
    if value is None:
        return _Cell("")
    full = text.value(value, full=True)
    brief = text.value(value)
    shown = _escaped(brief, _MAX_CELL)
    if full != brief or len(brief) > _MAX_CELL:
        shown = f'<span title="{_escaped(full, _MAX_TITLE)}">{shown}</span>'
    return _Cell(shown, _sort_key(value, full))


def _sort_key(value: Value, full: str) -> str:
    """The number itself; NaN sorts last, like what is missing."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        known = {"nan": "", "inf": "Infinity", "-inf": "-Infinity"}
        return known.get(full, full)
    return _escaped(full, _MAX_TITLE)


def _values(heading: str, values: Sequence[Value]) -> _Column:
    known = [v for v in values if v is not None]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
    return _Column(heading, [_cell(v) for v in values], numeric=bool(known) and numbers)


def _count(heading: str, values: Sequence[int]) -> _Column:
    return _Column(heading, [_Cell(f"{v:,}", str(v)) for v in values], numeric=True)


def _texts(heading: str, values: Sequence[str | None]) -> _Column:
    return _Column(heading, [_cell(v or None) for v in values])


def _ids(heading: str, ids: Sequence[str]) -> _Column:
    return _Column(heading, [_Cell(f"<code>{_escaped(short(i))}</code>", i[:12]) for i in ids])


def _times(heading: str, times: Sequence[datetime]) -> _Column:
    return _Column(heading, [_Cell(_date(t), repr(t.timestamp())) for t in times])


def _date(when: datetime) -> str:
    local = when.astimezone()
    return f'<span title="{local.isoformat()}">{local:%Y-%m-%d %H:%M}</span>'


def _status_cell(status: Status) -> _Cell:
    dot = f'<span class="d" style="background:{_STATUS_COLORS[status]}"></span>'
    return _Cell(f"{dot}{status.value}", status.value)


def _duration_cell(record: ExperimentRecord) -> _Cell:
    length = record.duration
    if length is None:
        return _Cell("")
    return _Cell(text.duration(length), repr(length.total_seconds()))


def _tags_cell(tags: Sequence[str]) -> _Cell:
    shown = "".join(f'<span class="t">{_escaped(tag, _MAX_CELL)}</span>' for tag in tags)
    return _Cell(shown, _escaped(" ".join(tags), _MAX_TITLE))


def _checkpoint_name(record: CheckpointRecord) -> str:
    step = f" (step {_escaped(text.step(record.step))})" if record.step is not None else ""
    return f"{short(record.id)}{step}"


def _path(path: str | tuple[str, ...] | None) -> str:
    return ", ".join(path) if isinstance(path, tuple) else path or ""


def _names(rows: Iterable[Mapping[str, Value]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _left_out(names: Sequence[str], noun: str) -> str:
    left = len(names) - _MAX_COLUMNS
    return f"{left} more {noun}{'' if left == 1 else 's'}" if left > 0 else ""


# ---------------------------------------------------------------- tables


def _table(columns: Sequence[_Column], rows: int, noun: str, left_out: Sequence[str]) -> str:
    """The table without its empty columns, and a note that says what it does not show."""
    shown = [column for column in columns if not column.empty]
    head = "".join(
        f'<th class="n" scope="col">{_escaped(c.heading, _MAX_CELL)}</th>'
        if c.numeric
        else f'<th scope="col">{_escaped(c.heading, _MAX_CELL)}</th>'
        for c in shown
    )
    half = _MAX_ROWS // 2
    places: list[int | None] = list(range(rows))
    if rows > _MAX_ROWS:
        places = [*range(half), None, *range(rows - half, rows)]
    body = "".join(
        f'<tr data-gap><td colspan="{len(shown)}" class="f">⋮</td></tr>'
        if place is None
        else f"<tr>{''.join(_td(c, place) for c in shown)}</tr>"
        for place in places
    )
    notes = [n for n in left_out if n]
    if rows > _MAX_ROWS:
        notes.insert(0, f"the first and last {half} of {rows:,} {noun}s are shown")
    note = f'<div class="f">{"; ".join(notes)}; to_dataframe() has all</div>' if notes else ""
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    key = hashlib.sha256(inner.encode()).hexdigest()[:12]
    return f'<table data-replicate="{key}">{inner}</table>{note}{_SCRIPT.replace("KEY", key)}'


def _td(column: _Column, place: int) -> str:
    cell = column.cells[place]
    kind = ' class="n"' if column.numeric else ""
    return f'<td{kind} data-v="{cell.key}">{cell.html}</td>'


def _pairs(heading: str, values: Mapping[str, Value], primary: PrimaryMetric | None = None) -> str:
    """A small table of names and values, the primary metric in bold."""
    if not values:
        return ""
    rows = []
    for name, value in list(values.items())[:_MAX_PAIRS]:
        shown = f"{_escaped(name, _MAX_CELL)}"
        if primary is not None and primary.name == name:
            shown = f'<b title="{primary.goal}">{shown}</b>'
        rows.append(f'<tr><td>{shown}</td><td class="n">{_cell(value).html or "null"}</td></tr>')
    left = len(values) - len(rows)
    more = f'<tr><td class="f" colspan="2">and {left:,} more</td></tr>' if left else ""
    head = f'<thead><tr><th colspan="2">{heading}</th></tr></thead>'
    return f"<table>{head}<tbody>{''.join(rows)}{more}</tbody></table>"


def _fragment(inner: str) -> str:
    return f'{_STYLE}<div class="replicate">{inner}</div>'
