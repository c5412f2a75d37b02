"""`replicate logs`: what a run has printed, now or while it goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

import click

from replicate.cli import text
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.cli.schema import JsonObject, time_json
from replicate.model import ExperimentRecord, Printed, Status, short
from replicate.project import Project

#: How often a run that goes on is looked at (seconds).
_LOOK = 0.5
#: Colours and weights; and every other sequence that a terminal would act on.
_STYLE = re.compile(r"(\x1b\[[0-9;:]*m)")
_ACTION = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[ -/]*[0-~])"
)
_PLAIN = "\x1b[0m"


class Line(NamedTuple):
    """A line that was printed, without its end."""

    time: datetime
    stream: str
    text: str


@click.command()
@click.argument("id", type=ID, metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends, or Ctrl-C.")
@click.option("--stderr", "only_stderr", is_flag=True, help="Show what went to stderr only.")
@click.option(
    "-n", "--lines", metavar="LINES", type=click.IntRange(0), help="Begin with the last so many."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with -f an object a line.")
@location
@click.pass_obj
def logs(
    output: Output,
    project: Project,
    id: str,
    follow: bool,
    only_stderr: bool,
    lines: int | None,
    as_json: bool,
) -> None:
    """Show what a run has printed.

    Where stdout and stderr of the run led to the same place, all of it counts as stdout.

    \b
    Examples:
      replicate logs f1b4d2b
      replicate logs f1b4d2b -f -n 20
      replicate logs f1b4d2b --stderr
    """
    found = project.resolve(id)
    experiment = found if isinstance(found, ExperimentRecord) else found[0]
    log = _Log(project, experiment, "stderr" if only_stderr else None)
    goes_on = follow and experiment.status is Status.RUNNING
    try:
        first = log.read() if goes_on else [*log.read(), *log.rest()]
        first = first if lines is None else first[max(0, len(first) - lines) :]
        if as_json and not follow:
            output.json_list(line_json(line) for line in first)
        else:
            show_lines(output, first, as_json)
        for more in _follow(project, experiment, log) if goes_on else ():
            show_lines(output, more, as_json)
    except KeyboardInterrupt:
        if not follow:
            raise
        return  # that is how one ceases to look
    if log.is_empty and only_stderr:
        # Where both lead to one place, nobody can tell afterwards which of them a line went to.
        whole = f"replicate logs {short(experiment.id)}"
        output.note(f"Nothing was kept of stderr by itself: `{whole}` shows all that was kept")
    elif log.is_empty:
        output.note("Nothing that it has printed was kept")
    if project.is_known_in_part(experiment):
        output.note(text.unseen_note(experiment.id))
    if log.is_cut_off:
        output.note("It has printed more than is kept")
    output.warn(log.damage)


def show_lines(output: Output, lines: Iterable[Line], as_json: bool) -> None:
    """Write the lines, and let whoever reads them see them at once."""
    if as_json:
        output.json_lines(line_json(line) for line in lines)
    else:
        output.data(printable(line.text, colored=output.colored) for line in lines)
    output.flush()


def line_json(line: Line) -> JsonObject:
    """A line for a program, with its colours."""
    return {"time": time_json(line.time), "stream": line.stream, "text": line.text}


def printable(line: str, *, colored: bool) -> str:
    """The line as a terminal may have it: with its colours, or without, and nothing else that a
    terminal would act on."""
    parts = []
    for part in _STYLE.split(line):
        if not _STYLE.fullmatch(part):
            parts.append(text.escape(_ACTION.sub("", part), keep="\t"))
        elif colored:
            parts.append(part)
    styled = colored and any(part.startswith("\x1b") for part in parts)
    return "".join(parts) + (_PLAIN if styled else "")


def _follow(project: Project, experiment: ExperimentRecord, log: _Log) -> Iterator[list[Line]]:
    """What is printed from now on until the run has ended, and what is left then."""
    goes_on = True
    while goes_on:
        time.sleep(_LOOK)
        # Before the last look: what it has printed is saved before how it has ended.
        goes_on = project.current(experiment).status is Status.RUNNING
        yield log.read()
    yield log.rest()


class _Log:
    """Puts lines together from what was printed; `stream` is the only one that counts, if any."""

    def __init__(self, project: Project, experiment: ExperimentRecord, stream: str | None) -> None:
        self._reader = project.output(experiment)
        self._stream = stream
        self._begun: dict[str, Printed] = {}
        self.is_cut_off = False
        self.is_empty = True

    @property
    def damage(self) -> list[str]:
        return self._reader.damage

    def read(self) -> list[Line]:
        """Lines that have been completed since the last time."""
        return [line for part in self._reader.read() for line in self._complete(part)]

    def rest(self) -> list[Line]:
        """What is left, which no end of a line follows."""
        left, self._begun = list(self._begun.values()), {}
        return [_line(part.time, part.stream, part.text or "") for part in left]

    def _complete(self, part: Printed) -> Iterator[Line]:
        if part.text is None:
            self.is_cut_off = True
            return
        if self._stream not in (None, part.stream):
            return
        self.is_empty = False
        begun = self._begun.pop(part.stream, None)
        before = begun.text or "" if begun else ""
        *complete, rest = (before + part.text).split("\n")
        for line in complete:
            yield _line(part.time, part.stream, line)
        if rest:
            self._begun[part.stream] = Printed(part.time, part.stream, rest)


def _line(when: datetime, stream: str, line: str) -> Line:
    """The line as it was in the end: a carriage return begins it anew."""
    return Line(when, stream, line.rstrip("\r").rpartition("\r")[2])
