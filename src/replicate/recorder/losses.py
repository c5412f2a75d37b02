"""What a run loses for good while it goes on, because the disk is full or fails, as the person is
told of it: the first at once and by name, the others by their number."""

from __future__ import annotations

import threading
from collections.abc import Callable

from replicate.errors import DamagedError
from replicate.spool import Spool


class Losses:
    """Counts the files that could not be kept. One thread may add them while another tells."""

    def __init__(self, spool: Spool, report: Callable[[str], None]) -> None:
        self._spool = spool
        self._report = report
        self._lock = threading.Lock()
        self._is_over = True
        #: The first since all was well: its job, its number there, and why.
        self._first: tuple[str, int, str] | None = None
        #: How many there were in all.
        self.count = 0

    def add(self, job: str, number: int, why: str) -> None:
        """There is no copy of the `number`-th large file of a job, and nothing keeps writers from
        it."""
        with self._lock:
            self.count += 1
            if self._is_over:
                self._is_over, self._first = False, (job, number, why)

    def tell(self) -> None:
        """Tell of the first, once its job is there, which knows what it is called."""
        with self._lock:
            first = self._first
            if first is None or not self._spool.has(first[0]):
                return
            self._first = None
        job, number, why = first
        self._report(
            f"{self._name(job, number)} could not be kept, because {why}. What changes before it "
            "is saved is lost, of the checkpoints that follow too."
        )

    def over(self) -> None:
        """All could be saved again: the next one is to be told by name."""
        with self._lock:
            self._is_over, self._first = True, None

    def _name(self, job: str, number: int) -> str:
        """A file as its person calls it, as far as its job tells."""
        try:
            header = self._spool.header(job)
            (path,) = [f["path"] for f in header["files"] if f.get("beside") == number]
            return f"{path} of the checkpoint of step {header['data']['step']}"
        except (DamagedError, OSError, KeyError, ValueError):
            return "A large file"
