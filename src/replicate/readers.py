"""Files as bytes to read. A file that somebody else may still cut short is never mapped: who looks
at a page of a map that is gone from the file is killed. It knows nothing of what the bytes are.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

#: Readings of at least this length share memory; so much of it is got at once; and each begins at
#: a multiple of the last (bytes).
_SHARED, _SLAB, _ALIGNED = 64 << 10, 16 << 20, 4096


class Reader(Protocol):
    """The bytes of one file, as many as it had when this was made."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, length: int) -> memoryview:
        """The bytes from `start`: `length` of them, or fewer where `size` ends, in memory that does
        not change any more. Raises OSError, also when the file has become shorter."""
        ...

    def check(self) -> None:
        """Raises OSError when not all that was read may have been in the file at one time."""
        ...


class MemoryReader:
    """Bytes that are in memory already, and stay as they are."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._view = memoryview(content)
        self.size = len(self._view)

    def read(self, start: int, length: int) -> memoryview:
        return self._view[start : start + length]

    def check(self) -> None: ...


class FileReader:
    """`size` bytes of an open file, from `offset` on. `progress` is told the length of each reading
    before."""

    def __init__(
        self,
        descriptor: int,
        size: int,
        offset: int = 0,
        progress: Callable[[int], None] = lambda length: None,
    ) -> None:
        self.size = size
        self._descriptor = descriptor
        self._offset = offset
        self._progress = progress
        self._memory = _Memory()

    def read(self, start: int, length: int) -> memoryview:
        length = max(0, min(length, self.size - start))
        self._progress(length)
        into = self._memory.take(length)
        done = 0
        while done < len(into):
            read = _read_at(self._descriptor, into[done:], self._offset + start + done)
            if not read:
                raise OSError(errno.EIO, "it has become shorter while it was read")
            done += read
        return into.toreadonly()

    def check(self) -> None: ...


class _Memory:
    """Memory for what is read, and again for something else once nobody has a view of it any more:
    to get new memory from the system takes longer than to read a file into it."""

    def __init__(self) -> None:
        self._slabs: list[bytearray] = []
        self._rest = memoryview(b"")

    def take(self, length: int) -> memoryview:
        if length < _SHARED:
            return memoryview(bytearray(length))
        if length > len(self._rest):
            self._rest = memoryview(b"")  # so that nobody has a view of that slab, it may be
            self._rest = memoryview(self._slab(length))
        taken, self._rest = self._rest[:length], self._rest[-(-length // _ALIGNED) * _ALIGNED :]
        return taken

    def _slab(self, length: int) -> bytearray:
        for slab in self._slabs:
            if len(slab) >= length and _is_free(slab):
                return slab
        self._slabs.append(bytearray(max(length, _SLAB)))
        return self._slabs[-1]


def _is_free(slab: bytearray) -> bool:
    """Whether nobody has a view: only then may the length be changed."""
    try:
        slab.append(slab.pop())
    except BufferError:
        return False
    return True


@contextmanager
def opened(
    path: Path, progress: Callable[[int], None] = lambda length: None
) -> Iterator[FileReader]:
    """All bytes of a file, for the time of a block. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        yield FileReader(file.fileno(), os.fstat(file.fileno()).st_size, progress=progress)


def _read_at(descriptor: int, into: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [into], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows
    found = os.read(descriptor, len(into))
    into[: len(found)] = found
    return len(found)
