"""The streams of events beside the journal: what was logged, what was printed, how the machine did.

They are long and only read when somebody asks for them. It knows how events become points and
text; where the files lie is up to `repository`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from replicate import checks
from replicate.backends.base import Backend
from replicate.errors import DamagedError, KeyNotFoundError
from replicate.model import ExperimentRecord, Point, Printed, Value
from replicate.records import Event, decode_event, decode_value

#: What no float holds, and no integer of a reader's arithmetic either.
_BEYOND = 1e308


class StreamReader:
    """Reads a stream as far as it has come, and from there on when it is asked again."""

    def __init__(self, backend: Backend, prefix: str) -> None:
        self._backend = backend
        self._prefix = prefix
        self._read: dict[str, int] = {}
        #: A sentence for each event that is stored and cannot be read.
        self.damage: list[str] = []

    def read(self) -> list[Event]:
        """What is new, in the order in which it happened."""
        found = [
            event
            for stat in self._backend.list(self._prefix)
            if stat.size > self._read.get(stat.key, 0)
            for event in self._read_on(stat.key)
        ]
        return sorted(found, key=lambda e: (e.time, e.writer, e.number))

    def _read_on(self, key: str) -> Iterator[Event]:
        start = self._read.get(key, 0)
        try:
            data = self._backend.get(key, start, checks.MAX_EVENTS)
        except KeyNotFoundError:
            return
        # What stands behind the last newline is being written, or is not committed.
        data = data[: data.rfind(b"\n") + 1]
        self._read[key] = start + len(data)
        writer = key.rpartition("/")[2].rpartition("-")[0]
        for line in data.splitlines():
            try:
                yield decode_event(line, writer, f"a line of {self._backend.url}/{key}")
            except DamagedError as error:
                self.damage.append(f"{error}: one event is lost")


def logged(events: Iterable[Event], record: ExperimentRecord) -> list[Point]:
    """What `log()` was given, each point once, without what later attempts have superseded."""
    found: dict[tuple[str, int], Point] = {}
    for event in events:
        for source, number, point in _parts(event, _points):
            key = (source, number)
            if key not in found and not record.supersedes(event.attempt, point.time, point.step):
                found[key] = point
    return list(found.values())


def history(events: Iterable[Event], record: ExperimentRecord) -> list[Point]:
    """Every point of a run in the order of time: what was logged, and what its checkpoints had.

    The checkpoint of a run from a tool that has only a history was made of it by the import: what
    it repeats is no other point.
    """
    points = logged(events, record)
    first: dict[str, datetime] = {}
    for point in points if record.imported else ():
        for name in point.metrics:
            first[name] = min(first.get(name, point.time), point.time)
    for c in record.checkpoints:
        known = first if c.attempt == 1 else {}
        metrics = c.metrics
        if known:
            metrics = {n: v for n, v in metrics.items() if n not in known or c.created < known[n]}
        if metrics and not c.superseded:
            points.append(Point(c.created, c.step, metrics))
    return sorted(points, key=lambda point: point.time)


class OutputReader:
    """Reads what was printed, as far as it has come, and from there on when it is asked again."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader
        self._done: dict[tuple[str, str], int] = {}

    @property
    def damage(self) -> list[str]:
        """A sentence for each part that is stored and cannot be read."""
        return self._reader.damage

    def read(self) -> list[Printed]:
        """What is new, in the order in which it was printed, each part once."""
        return [part for event in self._reader.read() for part in _parts(event, self._new)]

    def _new(self, event: Event) -> Iterator[Printed]:
        if event.kind not in ("output", "truncated"):
            return
        stream, text = checks.text(event.data["stream"]), checks.text(event.data["text"])
        source, end = (stream, checks.text(event.data["source"])), checks.whole(event.data["end"])
        if end > self._done.get(source, 0):
            self._done[source] = end
            yield Printed(event.time, stream, text if event.kind == "output" else None)


@dataclass(slots=True)
class Summary:
    """What a metric was: how often, and the mean, least and greatest of its finite values (None:
    it has none), and its value in the end."""

    count: int = 0
    finite: int = 0
    total: float = 0.0
    min: float | None = None
    max: float | None = None
    last: Value = None

    @property
    def mean(self) -> float | None:
        """The mean of the finite values."""
        return self.total / self.finite if self.finite else None

    def add(self, value: Value) -> None:
        """Take a value into account; one that is no number only counts."""
        self.count += 1
        self.last = value
        if isinstance(value, int | float) and abs(value) < _BEYOND:
            self.finite += 1
            self.total += value
            self.min = value if self.min is None else min(self.min, value)
            self.max = value if self.max is None else max(self.max, value)


def summaries(points: Iterable[Point]) -> dict[str, Summary]:
    """A summary of each metric, in order of first appearance."""
    found: dict[str, Summary] = {}
    for point in points:
        for name, value in point.metrics.items():
            found.setdefault(name, Summary()).add(value)
    return found


def samples(events: Iterable[Event]) -> list[Point]:
    """How the machine did, in the order of time."""
    return [point for event in events for point in _parts(event, _sample)]


def _parts(event: Event, decode: Callable[[Event], Iterator[Any]]) -> list[Any]:
    """What an event holds; nothing of one that somebody has malformed."""
    try:
        return list(decode(event))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return []


def _points(event: Event) -> Iterator[tuple[str, int, Point]]:
    if event.kind != "log":
        return
    source, first = checks.text(event.data["source"]), checks.whole(event.data["first"])
    for number, point in enumerate(event.data["points"], first):
        if point is not None:
            seconds, step, metrics = point
            time = event.time + timedelta(seconds=checks.finite(seconds))
            checks.step(step := decode_value(step))
            yield source, number, Point(time, step, decode_value(checks.members(metrics)))


def _sample(event: Event) -> Iterator[Point]:
    if event.kind == "sample":
        yield Point(event.time, None, decode_value(checks.members(event.data["metrics"])))
