"""From the spool into the repository: what grows while a run goes on, its points and its output.

`commit` is for jobs, which are one thing each; this is for lines, which come many at a time and
are committed many at a time. What was committed is known by the number of its line, so that
whoever is killed between two steps leaves nothing twice and nothing out.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from replicate.journal import JournalWriter
from replicate.model import Value
from replicate.recorder.console import KINDS, end_of_output
from replicate.recorder.points import POINTS
from replicate.recorder.segments import Segment, Segments
from replicate.records import decode_value, encode_value, new_id
from replicate.repository import Repository
from replicate.secrets import Redact, redact_text
from replicate.spool import Spool

#: The kind of lines that say how the machine did: `[seconds since the epoch, {name: number}]`.
SAMPLES = "samples"
#: No event holds more points than this, so that damage to its line takes no more.
_POINTS = 1000
#: No event holds much more text than this (characters).
_TEXT = 64 << 10
#: A line that is not complete, such as a progress bar, is committed when it is this old (seconds).
_PATIENCE = 5.0
#: So much output of a run is kept (bytes).
_MOST_OUTPUT = 50 << 20
_READ = 256 << 10

Event = tuple[str, datetime, Mapping[str, Value]]


class Streams:
    """Commits the points and the output in one spool. Not for use by two threads at once."""

    def __init__(
        self,
        repository: Repository,
        spool: Spool,
        attempt: int,
        tails: Sequence[Mapping[str, Any]] = (),
        redact: Redact = redact_text,
    ) -> None:
        self._repository = repository
        self._redact = redact
        self._experiment = spool.experiment
        self._attempt = attempt
        self._segments = Segments(str(spool.directory))
        self._tails = [_Tail(**tail) for tail in tails]
        self._writers: dict[str, JournalWriter] = {}
        self._output = 0
        self._full = False
        self._waiting_since: dict[str, float] = {}
        self._resumed = False
        self._sampled = 0.0
        #: Whether it has committed anything.
        self.used = False
        #: The last value of each metric that was logged, as far as this process has seen them.
        self.last: dict[str, Value] = {}

    def begin(self) -> None:
        """Nothing of it is in the repository yet, so that nobody need look."""
        self._resumed = True

    def _resume(self) -> None:
        """Pass what is in the repository already, by the hand of a process that has died."""
        done: dict[tuple[str, str], int] = {}
        for event in self._repository.stream(self._experiment, "log").read():
            source = (POINTS, event.data["source"])
            end = event.data["first"] + len(event.data["points"])
            done[source] = max(end, done.get(source, 0))
            if event.attempt == self._attempt:
                for point in filter(None, event.data["points"]):
                    self.last.update(decode_value(point[2]))
        for event in self._repository.stream(self._experiment, "console").read():
            source = (event.data["stream"], event.data["source"])
            done[source] = max(event.data["end"], done.get(source, 0))
            self._output += len(event.data["text"])
            self._full = self._full or event.kind == "truncated"
        for event in self._repository.stream(self._experiment, "system").read():
            self._sampled = max(self._sampled, event.time.timestamp())
        self._segments.skip(done)
        for tail in self._tails:
            tail.offset = max(tail.offset, done.get((tail.kind, tail.source), 0))

    @property
    def pending(self) -> bool:
        """Whether there are lines in the spool that were not looked at yet."""
        return any(segment.has_more for segment in self._segments.look())

    def commit(self, *, final: bool = False) -> None:
        """Commit all that is there, with `final` an incomplete line too. Raises StorageError."""
        if not self._resumed:
            self._resume()
            self._resumed = True
        self.copy(final=final)
        self._segments.remove_passed()

    def copy(self, *, final: bool = False) -> None:
        """As `commit`, and all of it stays in the spool. Nothing that is in the repository already
        may come before it: see `begin`."""
        found = self._segments.look()
        for segment in found:
            if segment.kind == POINTS:
                self._commit_points(segment)
            elif segment.kind == SAMPLES:
                self._commit_samples(segment)
        more = True
        while more:
            more = self._commit_output([s for s in found if s.kind in KINDS], final)

    def _append(self, stream: str, events: Sequence[Event]) -> None:
        if stream not in self._writers:
            self._writers[stream] = self._repository.journal(
                self._experiment, new_id()[:16], stream, attempt=self._attempt
            )
        self._writers[stream].append(events)
        self.used = self.used or bool(events)

    # ------------------------------------------------------------ points

    def _commit_points(self, segment: Segment) -> None:
        while lines := segment.lines():
            events = []
            for start in range(0, len(lines), _POINTS):
                points = [_point(line) for line in lines[start : start + _POINTS]]
                events.append(_log_event(segment.source, segment.next + start, points))
                for point in points:
                    self.last.update(point[2] if point else {})
            self._append("log", [event for event in events if event is not None])
            segment.advance(lines)

    def _commit_samples(self, segment: Segment) -> None:
        """Samples have no numbers: those that another has committed are told by their time."""
        while lines := segment.lines():
            found = [sample for sample in map(_sample, lines) if sample is not None]
            self._append(
                "system",
                [
                    ("sample", _time(when), {"metrics": metrics})
                    for when, metrics in found
                    if _time(when).timestamp() > self._sampled
                ],
            )
            segment.advance(lines)

    # ------------------------------------------------------------ output

    def _commit_output(self, segments: Sequence[Segment], final: bool) -> bool:
        """Commit what was printed, in the order in which it was; return whether there is more."""
        taken = [t for t in (_Taken.of(segment) for segment in segments) if t is not None]
        tails = [t for t in (tail.take(final) for tail in self._tails) if t is not None]
        ready = [t for t in (*taken, *tails) if self._is_ready(t, final)]
        pieces = sorted((piece for t in ready for piece in t.pieces), key=lambda piece: piece.time)
        self._append("console", list(self._output_events(pieces)))
        for t in ready:
            t.advance()
        return bool(ready)

    def _is_ready(self, taken: _Taken, final: bool) -> bool:
        """A line is not torn apart unless it waits for long: most of them will be overwritten."""
        source = f"{taken.kind}-{taken.source}"
        if final or any("\n" in piece.text for piece in taken.pieces):
            self._waiting_since.pop(source, None)
            return True
        now = time.monotonic()
        since = self._waiting_since.setdefault(source, now)
        if now - since < _PATIENCE and taken.size < _TEXT:
            return False
        del self._waiting_since[source]
        return True

    def _output_events(self, pieces: Sequence[_Piece]) -> Iterator[Event]:
        """Pieces that follow each other from one source become one event."""
        place = 0
        while place < len(pieces):
            first = pieces[place]
            text, end = "", first.end
            while place < len(pieces) and pieces[place].follows(first) and len(text) < _TEXT:
                text += pieces[place].text
                end = pieces[place].end
                place += 1
            text = self._redact(without_overwritten(text))
            event = {"stream": first.kind, "source": first.source, "first": first.first, "end": end}
            if self._full:
                continue
            self._output += len(text)
            self._full = self._output > _MOST_OUTPUT
            kind = "truncated" if self._full else "output"
            yield kind, _time(first.time), {**event, "text": "" if self._full else text}


class _Piece:
    """Text that was written at once: the lines `first` to `end` of a source, or these bytes."""

    __slots__ = ("end", "first", "kind", "source", "text", "time")

    def __init__(
        self, kind: str, source: str, first: int, end: int, time: float, text: str
    ) -> None:
        self.kind, self.source, self.first, self.end = kind, source, first, end
        self.time, self.text = time, text

    def follows(self, other: _Piece) -> bool:
        """Whether it is from the same source, and no later than a reader would want to tell."""
        return (self.kind, self.source) == (other.kind, other.source) and self.time < other.time + 1


class _Taken:
    """What was read of a source, and is passed when it is committed."""

    def __init__(self, pieces: Sequence[_Piece], lines: Sequence[bytes], origin: Any) -> None:
        self.pieces, self._lines, self._origin = pieces, lines, origin
        self.kind, self.source = origin.kind, origin.source
        self.size = sum(len(piece.text) for piece in pieces)

    @classmethod
    def of(cls, segment: Segment) -> _Taken | None:
        lines = segment.lines()
        pieces = []
        for number, line in enumerate(lines, segment.next):
            try:
                when, text = json.loads(line)
            except (ValueError, TypeError):  # a crash of the machine has left something else
                when, text = time.time(), "\ufffd\n"
            pieces.append(_Piece(segment.kind, segment.source, number, number + 1, when, text))
        return cls(pieces, lines, segment) if lines else None

    def advance(self) -> None:
        self._origin.advance(self._lines)


class _Tail:
    """A file that the script prints to, read as it grows."""

    source = "file"

    def __init__(self, fd: int, kind: str, offset: int) -> None:
        self._fd, self.kind, self.offset = fd, kind, offset

    def take(self, final: bool) -> _Taken | None:
        """What was added. It is not known when; a file that was cut off is read from its start."""
        size = os.fstat(self._fd).st_size
        if size < self.offset:
            self.offset, self.source = 0, f"file-{os.urandom(4).hex()}"
        data = os.pread(self._fd, _READ, self.offset)
        end = end_of_output(self._fd)  # asked after it was read, so that nothing later slips in
        if end is not None:
            data = data[: max(0, end - self.offset)]
        whole = data if final and len(data) < _READ else data[: data.rfind(b"\n") + 1] or data
        if not whole:
            return None
        end = self.offset + len(whole)
        text = whole.decode("utf-8", "replace")
        piece = _Piece(self.kind, self.source, self.offset, end, time.time(), text)
        return _Taken([piece], [whole], self)

    def advance(self, parts: Sequence[bytes]) -> None:
        self.offset += sum(map(len, parts))


def without_overwritten(text: str) -> str:
    """The text without what carriage returns have overwritten, such as all but the last state of a
    progress bar. What it overwrites of the text before it stays told."""
    if "\r" not in text:
        return text
    lines = []
    for line in text.split("\n"):
        last = line.rstrip("\r").rfind("\r")
        lines.append(line if last < 0 else line[last:])
    return "\n".join(lines)


_Point = tuple[float, int | float | None, dict[str, Value]]


def _log_event(source: str, first: int, read: Sequence[_Point | None]) -> Event | None:
    """The event of these points; null stands for a line that a crash of the machine has spoilt."""
    start = next((point[0] for point in read if point is not None), None)
    if start is None:
        return None
    when = _time(start)
    base = when.timestamp()
    points = [p and [round(p[0] - base, 6), encode_value(p[1]), encode_value(p[2])] for p in read]
    return "log", when, {"source": source, "first": first, "points": points}


def _point(line: bytes) -> _Point | None:
    try:
        when, step, metrics = json.loads(line)
        return float(when), step, dict(metrics)
    except (ValueError, TypeError):
        return None


def _sample(line: bytes) -> tuple[float, dict[str, Value]] | None:
    try:
        when, metrics = json.loads(line)
        return float(when), dict(metrics)
    except (ValueError, TypeError):  # a crash of the machine has spoilt it
        return None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
