"""A journal, or another stream of events, as its only writer appends to it; and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from replicate.backends.base import Backend
from replicate.model import Value
from replicate.records import Event, encode_event

#: A file that has this many bytes is full: the next event begins another.
SEGMENT_SIZE = 256 << 10


class JournalWriter:
    """Appends events to files below `directory` that nobody else writes to. Before each time it
    calls `announce`."""

    def __init__(
        self,
        backend: Backend,
        directory: str,
        writer: str,
        announce: Callable[[], None],
        attempt: int = 1,
    ) -> None:
        self._backend = backend
        self._announce = announce
        # The first attempt goes without saying: most runs have no other.
        self._common = {"attempt": attempt} if attempt > 1 else {}
        self._directory = directory
        self.writer = writer
        self.count = 0
        self._segment = 0
        self._written = b""

    def append(self, events: Iterable[tuple[str, datetime, Mapping[str, Value]]]) -> None:
        """Commit events, given as (kind, time, data). When it returns they are durable.

        After an error nothing is counted as written, and the same call may be made again.
        """
        lines = [
            encode_event(Event(kind, time, self.writer, self.count + i, {**self._common, **data}))
            for i, (kind, time, data) in enumerate(events)
        ]
        if not lines:
            return
        if len(self._written) >= SEGMENT_SIZE:
            self._segment, self._written = self._segment + 1, b""
        added = b"".join(lines)
        key = f"{self._directory}/{self.writer}-{self._segment}.jsonl"
        self._announce()
        self._backend.append(key, self._written, added)
        self._written += added
        self.count += len(lines)


def missing_events(
    id: str, events: Iterable[Event], unreadable: Mapping[str, int], written: Mapping[str, int]
) -> list[str]:
    """A sentence for each writer of whose events some are gone without leaving a damaged line."""
    seen: dict[str, set[int]] = defaultdict(set)
    for event in events:
        seen[event.writer].add(event.number)
    lost = []
    for writer in sorted(seen.keys() | written.keys()):
        expected = max(max(seen[writer], default=-1) + 1, written.get(writer, 0))
        missing = expected - len(seen[writer]) - unreadable.get(writer, 0)
        if missing > 0:
            files = f"experiments/{id}/journal/{writer}-*.jsonl"
            lost.append(f"{missing} of {expected} events are missing from {files}")
    return lost
