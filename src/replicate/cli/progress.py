"""One line that counts, on a terminal, while something takes long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from replicate.maintenance import Progress

#: Seconds between two counts: more often than that nobody can read them.
_INTERVAL = 0.1
_CLEAR = "\r\x1b[K"


@contextmanager
def counter(stream: TextIO, doing: str = "checking", patience: float = 0.0) -> Iterator[Progress]:
    """A function that shows how far something is; what it has shown is gone when that is done, or
    the block ends.

    `doing` is what is done to it. Nothing is shown where the stream is no terminal, nor for the
    first seconds, as many as `patience` has.
    """
    shown: list[float] = []
    begun: list[float] = []

    def show(what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if total is not None and done >= total:
            clear()
            return
        if not begun:
            begun.append(now)
        if now - begun[0] < patience:
            return
        if stream.isatty() and (not shown or now - shown[-1] >= _INTERVAL):
            shown[:] = [now]
            of = "" if total is None else f" of {total:,}"
            stream.write(f"{_CLEAR}{doing} {what}: {done:,}{of}")
            stream.flush()

    def clear() -> None:
        if shown:
            stream.write(_CLEAR)
            stream.flush()
        shown.clear()
        begun.clear()

    try:
        yield show
    finally:
        clear()
