"""A program that waits for what is being saved: what it tells the person, and when it gives up."""

from __future__ import annotations

import time
from typing import Protocol

from replicate.text import size

#: After this many seconds of waiting a program says what it waits for, and then now and again.
_PATIENCE, _REMINDER = 0.25, 0.5
#: After this many seconds in which nothing has left the spool, nobody waits for it any more; where
#: the repository cannot be reached, after the second number.
_STALLED, _UNREACHABLE = 300.0, 10.0


class Work(Protocol):
    """What is waited for. `pending` are the bytes that are to be saved yet, `progress` changes
    while one large thing is, and `failing` says that the repository cannot be reached now."""

    stopped: bool

    @property
    def pending(self) -> int: ...
    @property
    def progress(self) -> int: ...
    @property
    def failing(self) -> bool: ...

    def show(self, message: str) -> None:
        """Show it to the person until there is another."""


class Stalled(Exception):
    """Nothing has left the spool for so long that it is no use to wait; says so in words."""


class Waiting:
    """Says what a program waits for, once it has waited long enough for a person to wonder."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._speak_at = time.monotonic() + _PATIENCE
        self._seen = (-1, 0)
        self._moved = time.monotonic()

    def tick(self) -> None:
        """Raises Stalled when there is no progress: neither a helper that hangs nor a repository
        that cannot be reached must hang the run."""
        seen = (self._work.pending, self._work.progress)
        if seen != self._seen:
            self._seen, self._moved = seen, time.monotonic()
        quiet = time.monotonic() - self._moved
        if quiet >= _STALLED:
            raise Stalled(f"the helper process has saved nothing for {_STALLED / 60:.0f} minutes.")
        if quiet >= _UNREACHABLE and self._work.failing:
            raise Stalled("the repository cannot be reached.")
        if time.monotonic() >= self._speak_at:
            self._speak_at = time.monotonic() + _REMINDER
            pending = f"{size(seen[0])} to go" if seen[0] else "nearly done"
            end = " Ctrl-C leaves it to the helper process." if self._work.stopped else ""
            self._work.show(f"Still saving: {pending}.{end}")
