"""The one place that writes to the terminal: data to stdout, everything else to stderr.

It knows the streams, their colours, width and encoding, how questions are asked and how errors
look. It knows no command.
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import click

from replicate.cli.text import escape, escape_json
from replicate.errors import AmbiguousIdError, ReplicateError, UsageError

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

_STYLES = {
    "bold": "1",
    "faint": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "bright red": "91",
    "bright green": "92",
    "bright yellow": "93",
    "bright blue": "94",
    "bright magenta": "95",
    "bright cyan": "96",
}
_MAX_WARNINGS = 10
_MAX_MATCHES = 10


class Output:
    """What a command says. Created once for each run of the program and passed to its command."""

    def __init__(
        self, stdin: TextIO, stdout: TextIO, stderr: TextIO, environment: Mapping[str, str]
    ) -> None:
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._environment = environment
        self._color = "auto"
        self.verbose = False
        fancy = _can_write(stderr, "═╡│")
        self._mark, self._continued = ("═══╡ ", "   │ ") if fancy else ("===| ", "   | ")
        self.ellipsis = "…" if _can_write(stdout, "…") else "..."

    @classmethod
    def standard(cls) -> Output:
        """The output on the standard streams of this process."""
        return cls(sys.stdin, sys.stdout, sys.stderr, os.environ)

    def set_color(self, when: str) -> None:
        """Paint "always", "never", or, with "auto", on a terminal that is not told otherwise."""
        self._color = when

    # ---------------------------------------------------------------- what the terminal is

    @property
    def width(self) -> int | None:
        """The places in a line, or None when stdout is no terminal: then nothing is left out."""
        if not self._stdout.isatty():
            return None
        columns = self._environment.get("COLUMNS", "")
        if columns.isdecimal() and int(columns) > 0:
            return int(columns)
        try:
            return os.get_terminal_size(self._stdout.fileno()).columns or 80
        except OSError:
            return 80

    @property
    def terminal(self) -> bool:
        """Whether a person reads stdout, rather than a file or a program."""
        return self._stdout.isatty()

    @property
    def colored(self) -> bool:
        """Whether stdout takes colours."""
        return self._has_colors(self._stdout)

    def can_write(self, text: str) -> bool:
        """Whether the encoding of stdout has all these characters."""
        return _can_write(self._stdout, text)

    def paint(self, text: str, style: str) -> str:
        """The text in a style ("bold", "red" …), if stdout takes colours."""
        return self._paint(self._stdout, text, style)

    def _paint(self, stream: TextIO, text: str, style: str) -> str:
        if not style or not self._has_colors(stream):
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    def _has_colors(self, stream: TextIO) -> bool:
        if self._color != "auto":
            return self._color == "always"
        environment = self._environment
        return (
            stream.isatty()
            and not environment.get("NO_COLOR")
            and environment.get("TERM") != "dumb"
        )

    # ---------------------------------------------------------------- data, on stdout

    def data(self, lines: Iterable[str]) -> None:
        """Write lines of data. What the encoding of stdout lacks is written as an escape."""
        for line in lines:
            self._write(self._stdout, line)

    def json(self, value: Any) -> None:
        """Write one JSON document, indented, that is valid whatever the encoding of stdout is."""
        self._write(self._stdout, self._as_json(value))

    def json_list(self, values: Iterable[Any]) -> None:
        """Write a JSON list as `json` does, each element as soon as it comes."""
        mark = "["
        for value in values:
            element = self._as_json([value]).removeprefix("[").removesuffix("\n]")
            self._stdout.write(mark + element)
            mark = ","
        self._write(self._stdout, "[]" if mark == "[" else "\n]")

    def json_lines(self, values: Iterable[Any]) -> None:
        """Write a JSON document on a line for each value."""
        for value in values:
            self._write(self._stdout, json.dumps(value, allow_nan=False))

    def flush(self) -> None:
        """Let whoever reads the data have what was written so far."""
        self._stdout.flush()

    def _as_json(self, value: Any) -> str:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        text = escape_json(text)
        if _can_write(self._stdout, text):
            return text
        return json.dumps(value, indent=2, allow_nan=False)

    # ---------------------------------------------------------------- words, on stderr

    def message(self, first: str, *more: str) -> None:
        """Say something about what happens, in one marked line and lines that continue it."""
        self._write(self._stderr, self._paint(self._stderr, self._mark, "faint") + escape(first))
        for line in more:
            mark = self._paint(self._stderr, self._continued, "faint")
            self._write(self._stderr, mark + escape(line))

    def note(self, text: str) -> None:
        """Say something in passing."""
        self._write(self._stderr, self._paint(self._stderr, escape(text), "faint"))

    def warn(self, warnings: Iterable[str]) -> None:
        """Warn in a line each, of which a flood is counted rather than shown."""
        every = list(warnings)
        label = self._paint(self._stderr, "warning:", "yellow")
        for text in every[:_MAX_WARNINGS]:
            self._write(self._stderr, f"{label} {escape(text)}")
        if len(every) > _MAX_WARNINGS:
            self._write(self._stderr, f"{label} and {len(every) - _MAX_WARNINGS:,} more like these")

    def error(self, message: str, hint: str | None = None) -> None:
        """Say what went wrong, and what to do next."""
        label = self._paint(self._stderr, "error:", "red")
        self._write(self._stderr, f"{label} {escape(message, keep=_NEWLINE)}")
        if hint:
            label = self._paint(self._stderr, "hint:", "cyan")
            self._write(self._stderr, f"{label} {escape(hint, keep=_NEWLINE)}")

    def confirm(self, question: str, flag: str = "--force") -> bool:
        """Ask, taking all but a clear yes for a no. Raises UsageError where nobody can answer."""
        if not self._stdin.isatty():
            raise UsageError(
                "this needs a yes, and there is no terminal to ask on",
                hint=f"pass {flag} to go on without being asked",
            )
        self._stderr.write(f"\n{escape(question)} (y/N) ")
        self._stderr.flush()
        answer = self._stdin.readline()
        self._write(self._stderr, "" if answer.endswith("\n") else "\n")
        return answer.strip().lower() in ("y", "yes")

    # ---------------------------------------------------------------- what went wrong

    def failure(self, problem: BaseException) -> int:
        """Say why the command ended, and return the exit code that stands for it."""
        if isinstance(problem, ReplicateError):
            self.error(problem.message, problem.hint)
            if isinstance(problem, AmbiguousIdError):
                self._matches(problem.matches)
        elif isinstance(problem, click.ClickException):
            context = getattr(problem, "ctx", None)
            command = context.command_path if context else "replicate"
            # Some messages of click end in a full stop, others in none, and some have tabs in them.
            message = " ".join(problem.format_message().split()).removesuffix(".")
            self.error(message, f"see `{command} --help`")
            return problem.exit_code
        elif isinstance(problem, KeyboardInterrupt | click.Abort):
            self._write(self._stderr, "\ninterrupted")  # the terminal's line holds a ^C
            return INTERRUPTED
        else:
            about = f"{type(problem).__name__}: {problem}".rstrip(": ")
            self.error(f"unexpected {about}", None if self.verbose else _SEE_TRACEBACK)
        if self.verbose:
            trace = "".join(traceback.format_exception(problem)).rstrip()
            self._write(self._stderr, escape(trace, keep=_NEWLINE))
        return WRONG_USE if isinstance(problem, UsageError) else FAILED

    def _matches(self, matches: Iterable[str]) -> None:
        lines = [escape(match) for match in matches]
        for line in lines[:_MAX_MATCHES]:
            self._write(self._stderr, f"  {line}")
        if len(lines) > _MAX_MATCHES:
            self._write(self._stderr, f"  and {len(lines) - _MAX_MATCHES:,} more")

    def _write(self, stream: TextIO, text: str) -> None:
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


_NEWLINE = "\n"
_SEE_TRACEBACK = "`replicate --verbose …` shows where; please report it"


def _can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def reader_is_gone(stream: TextIO) -> bool:
    """Whether nobody reads the stream any more, as with `| head`."""
    if not hasattr(select, "poll"):  # on Windows, where it is what a broken pipe mostly means
        return True
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except io.UnsupportedOperation:  # it is in memory
        return False
    return bool(poll.poll(0))


def finish(stream: TextIO) -> None:
    """Write out what is still to be written. Where nobody reads it, it goes nowhere, so that the
    end of the program stays quiet too."""
    try:
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
