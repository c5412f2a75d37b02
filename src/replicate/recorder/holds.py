"""Files that the helper process has yet to copy, held open by the trainer as well: one that is
replaced or deleted before that is not lost with a helper that is killed.

It knows which copies are still to come; it must not know what starts a helper, nor what a job is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicate.errors import StorageError
from replicate.recorder import capture, filesystem
from replicate.recorder.capture import Capture, FileState

#: So many files are held open at once; the limit for a process may be 1,024, and is the script's.
_MAX_OPEN = 64


@dataclass(frozen=True, slots=True)
class _Hold:
    job: str
    number: int
    copy: Path
    state: FileState
    #: Without the lease, so that the script itself may write to the file. None when it is not held.
    fd: int | None

    def close(self) -> None:
        if self.fd is not None:
            filesystem.close_private(self.fd)


class Holds:
    """The files of one run that were handed to its helper. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._holds: list[_Hold] = []

    def add(self, taken: Capture, job: str, number: int, copy: Path) -> None:
        """Hold the file whose lease is handed over now, where that is possible."""
        fd = None
        if taken.fd is not None and len(self._holds) < _MAX_OPEN:
            with suppress(OSError):
                fd = filesystem.reopen_private(taken.fd)
        self._holds.append(_Hold(job, number, copy, taken.state, fd))

    def release(self, is_pending: Callable[[str], bool]) -> int:
        """Let go of what was copied, and of what no job needs; return the bytes of the others."""
        left = []
        for hold in self._holds:
            if is_pending(hold.job) and not hold.copy.exists():
                left.append(hold)
            else:
                hold.close()
        self._holds = left
        return sum(hold.state.size for hold in left)

    def inherited(self) -> list[Mapping[str, Any]]:
        """What a new helper is to copy first, from descriptors that it inherits."""
        return [
            {"job": h.job, "number": h.number, "state": h.state, "fd": h.fd}
            for h in self._holds
            if h.fd is not None
        ]

    def copy_here(self) -> None:
        """Make the copies in this process. What has changed meanwhile stays without one."""
        for hold in self._holds:
            if hold.fd is not None:
                with suppress(StorageError, OSError):
                    capture.finish(os.dup(hold.fd), hold.copy, hold.state)

    def forget(self) -> None:
        """In a forked child, whose descriptors these are not."""
        self._holds = []
