"""The streams of events beside the journal: what was logged, what was printed, how the machine did.

They are long and only read when somebody asks for them. It knows how events become points and
text; where the files lie is up to `repository`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from replicate.backends.base import Backend
from replicate.errors import DamagedError, KeyNotFoundError
from replicate.model import ExperimentRecord, Point, Printed
from replicate.records import Event, decode_event, decode_value


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
            data = self._backend.get(key, start)
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
        for number, point in _parts(event, "log", _points):
            key = (event.data["source"], number)
            if key not in found and not record.supersedes(event.attempt, point.time, point.step):
                found[key] = point
    return list(found.values())


def history(events: Iterable[Event], record: ExperimentRecord) -> list[Point]:
    """Every point of a run in the order of time: what was logged, and what its checkpoints had."""
    made = [Point(c.created, c.step, c.metrics) for c in record.checkpoints if not c.superseded]
    points = [*logged(events, record), *(point for point in made if point.metrics)]
    return sorted(points, key=lambda point: point.time)


def printed(events: Iterable[Event]) -> list[Printed]:
    """What was printed, in the order in which it was. A part whose text is None says that from
    there on nothing was kept, because it was too much."""
    found = []
    for event in events:
        for part in _parts(event, "output", _text):
            found.append(part)
        if event.kind == "truncated":
            found.append(Printed(event.time, event.data.get("stream", "stdout"), None))
    return found


def samples(events: Iterable[Event]) -> list[Point]:
    """How the machine did, in the order of time."""
    return [point for event in events for point in _parts(event, "sample", _sample)]


def _parts(event: Event, kind: str, decode: Callable[[Event], Any]) -> list[Any]:
    """What an event of this kind holds; nothing of one that somebody has malformed."""
    if event.kind != kind:
        return []
    try:
        return list(decode(event))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return []


def _points(event: Event) -> Iterator[tuple[int, Point]]:
    first: int = event.data["first"]
    for number, point in enumerate(event.data["points"], first):
        if point is not None:
            seconds, step, metrics = point
            time = event.time + timedelta(seconds=seconds)
            yield number, Point(time, decode_value(step), decode_value(metrics))


def _text(event: Event) -> Iterator[Printed]:
    yield Printed(event.time, event.data["stream"], str(event.data["text"]))


def _sample(event: Event) -> Iterator[Point]:
    yield Point(event.time, None, decode_value(event.data["metrics"]))
