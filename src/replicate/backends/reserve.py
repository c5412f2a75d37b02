"""A little room on the disk of a repository, kept for the day when it is full: to delete something
there takes an event that says so, before the first byte comes free.

It is the hidden file `.reserve`, of no meaning but for the space that it takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from replicate.backends.base import Backend
from replicate.backends.local import LocalBackend

_NAME = ".reserve"
#: Enough for some events and directories, on a file system with blocks of 4 KiB (bytes).
_SIZE = 64 << 10


def keep_reserve(backend: Backend) -> None:
    """See to it that there is a reserve where the backend is a disk, as far as that has room."""
    if isinstance(backend, LocalBackend):
        with suppress(OSError), open(Path(backend.url) / _NAME, "xb", buffering=0) as file:
            file.write(os.urandom(_SIZE))  # zeros take no room where the file system compresses


@contextmanager
def reserve_released(backend: Backend) -> Iterator[None]:
    """While the block runs, the room of the reserve is free for what it has to write."""
    if isinstance(backend, LocalBackend):
        with suppress(OSError):
            (Path(backend.url) / _NAME).unlink()
    try:
        yield
    finally:
        keep_reserve(backend)
