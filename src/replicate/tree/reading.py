"""A stored file as a file object: only the chunks that are asked for are fetched, and each of them
is verified before a byte of it is handed out. Of a bucket, who reads on is read ahead for."""

from __future__ import annotations

import io
from bisect import bisect_right
from functools import partial
from itertools import accumulate

from replicate.backends.base import Backend
from replicate.background import Background
from replicate.blobs import read_blob
from replicate.tree.manifest import Entry

#: Of a bucket so many chunks are fetched ahead of one who has read so many in a row, one by one.
_AHEAD, _IN_A_ROW = 4, 2


class _StoredFile(io.RawIOBase):
    """The bytes of an entry, seekable. Holds one chunk in memory, and those that are read ahead."""

    def __init__(self, backend: Backend, entry: Entry) -> None:
        super().__init__()
        self._backend = backend
        self._entry = entry
        # Where each chunk begins, and the end of the last one.
        self._starts = [0, *accumulate(size for _, size in entry.blobs)]
        self._position = 0
        self._number = -1
        self._chunk = b""
        self._in_a_row = 0
        self._ahead: dict[int, Background[bytes]] = {}
        self.name = entry.path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}
        if base[whence] + offset < 0:
            raise ValueError(f"cannot seek to {base[whence] + offset}, before the file's start")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: object) -> int:
        """Fill `buffer` from the chunk at the position. Raises DamagedError, StorageError."""
        with memoryview(buffer) as view:  # type: ignore[arg-type]
            found = self._rest_of_chunk()[: len(view)]
            view[: len(found)] = found
        self._position += len(found)
        return len(found)

    def _rest_of_chunk(self) -> memoryview:
        """What the chunk at the position holds from there on; nothing at the end of the file."""
        if self._position >= self._entry.size:
            return memoryview(b"")
        number = bisect_right(self._starts, self._position) - 1
        if number != self._number:
            self._turn_to(number)
        return memoryview(self._chunk)[self._position - self._starts[number] :]

    def _turn_to(self, number: int) -> None:
        self._in_a_row = self._in_a_row + 1 if number == self._number + 1 else 0
        fetched = self._ahead.pop(number, None)
        follow: range = range(0)
        if self._backend.remote and self._in_a_row >= _IN_A_ROW:
            follow = range(number + 1, min(number + 1 + _AHEAD, len(self._entry.blobs)))
        self._ahead = {n: self._ahead.get(n) or Background(partial(self._read, n)) for n in follow}
        self._chunk = fetched.result() if fetched else self._read(number)
        self._number = number

    def _read(self, number: int) -> bytes:
        return read_blob(self._backend, *self._entry.blobs[number])


def open_entry(backend: Backend, entry: Entry) -> io.BufferedReader:
    """The file open to read, in binary. Reading raises DamagedError when bytes are not what was
    saved."""
    return io.BufferedReader(_StoredFile(backend, entry))
