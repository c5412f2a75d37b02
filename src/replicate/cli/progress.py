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
def counter(stream: TextIO, doing: str = "checking") -> Iterator[Progress]:
    """A function that shows how far something is; what it has shown is gone when the block ends.

    `doing` is what is done to it. Where the stream is no terminal nothing is shown.
    """
    shown: list[float] = []

    def show(what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if not shown and total is not None and done >= total:
            return  # done at once: there is nothing to wait for
        if stream.isatty() and (not shown or now - shown[-1] >= _INTERVAL):
            shown[:] = [now]
            of = "" if total is None else f" of {total:,}"
            stream.write(f"{_CLEAR}{doing} {what}: {done:,}{of}")
            stream.flush()

    try:
        yield show
    finally:
        if shown:
            stream.write(_CLEAR)
            stream.flush()
