"""How an experiment came to be what it is, in lines: its attempts, the edits of its labels, and
which runs it came from and led to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from replicate.cli import text
from replicate.model import Attempt, Edit, ExperimentRecord, flatten, short
from replicate.project.lineage import Relative

#: What a tree is drawn with: a child, the last child, and what goes past either.
_LINES = ("├─ ", "└─ ", "│  ", "   ")
_ASCII_LINES = ("|- ", "`- ", "|  ", "   ")


def attempt_lines(experiment: ExperimentRecord, *, every: bool = False) -> list[str]:
    """A line for each attempt of a run that was resumed: where it went on, and how it ended; and
    how many checkpoints are superseded, unless `every` one is shown."""
    lines = []
    before: Attempt | None = None
    for attempt in experiment.attempts:
        ended = "" if attempt is experiment.attempts[-1] else f", {_ending(attempt)}"
        changed = "" if before is None else _changed(before, attempt)
        lines.append(
            f"{attempt.number}  {text.date(attempt.created)}  on {text.escape(attempt.host)}"
            f"{_from(attempt)}{ended}{changed}"
        )
        before = attempt
    superseded = sum(c.superseded for c in experiment.checkpoints) if lines else 0
    if superseded and not every:
        what = text.count(superseded, "checkpoint")
        lines.append(f"{what} superseded by a later attempt (--all shows {_them(superseded)})")
    return lines


def _them(number: int) -> str:
    return "it" if number == 1 else "them"


def _from(attempt: Attempt) -> str:
    if attempt.number == 1:
        return ""
    if attempt.restored is None and attempt.from_step is None:
        return ", from the start"
    step = "" if attempt.from_step is None else f" after step {text.step(attempt.from_step)}"
    back = attempt.restored
    return f",{step}" + (f" (checkpoint {short(back.checkpoint)})" if back else "")


def _ending(attempt: Attempt) -> str:
    return attempt.stop.status.value if attempt.stop else "lost"


def _changed(before: Attempt, attempt: Attempt) -> str:
    """The params that an attempt was given other values of."""
    old, new = flatten(before.params), flatten(attempt.params)
    names = [n for n in new if n not in old or old[n] != new[n]]
    shown = text.shortened_list([f"{text.escape(n)}={text.value(new[n])}" for n in names], 5)
    return f", with {shown}" if names else ""


def edit_lines(edits: Sequence[Edit]) -> list[str]:
    """A line for each edit of the labels: when, who, and what it changed."""
    return [
        f"{text.date(edit.time)}  {text.escape(edit.author)}  {_change(edit)}" for edit in edits
    ]


def _change(edit: Edit) -> str:
    if edit.kind == "tag":
        marks = [*(f"+{t}" for t in edit.change["add"]), *(f"-{t}" for t in edit.change["remove"])]
        return text.escape(f"tags {' '.join(marks)}")
    value = next(iter(edit.change.values()))
    return text.escape(f"{edit.kind} removed" if value is None else f"{edit.kind}: {value}")


def lineage_lines(root: Relative | None, id: str, *, plain: bool) -> list[str]:
    """The family tree, the experiment with this id marked; nothing when it has no relatives.
    `plain` draws it with ASCII."""
    if root is None or not root.children:
        return []
    return [_label(root, id), *_branches(root, id, _ASCII_LINES if plain else _LINES, "")]


def _branches(
    relative: Relative, id: str, lines: tuple[str, str, str, str], indent: str
) -> Iterator[str]:
    child, last, past, blank = lines
    for number, below in enumerate(relative.children, 1):
        is_last = number == len(relative.children)
        yield f"{indent}{last if is_last else child}{_label(below, id)}"
        yield from _branches(below, id, lines, indent + (blank if is_last else past))


def _label(relative: Relative, id: str) -> str:
    """An experiment in one line: its id, its name, and from which checkpoint it started."""
    record, made = relative.record, relative.checkpoint
    name = text.escape(record.name or record.command) if record else "(deleted)"
    origin = ""
    if relative.origin is not None:
        origin = f", from {text.checkpoint_name(made) if made else short(relative.origin)}"
    mark = "  (this one)" if relative.id == id else ""
    return f"{short(relative.id)} {name}{origin}{mark}"
