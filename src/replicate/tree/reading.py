"""A stored file as a file object: only the chunks that are asked for are fetched, and each of them
is verified before a byte of it is handed out."""

from __future__ import annotations

import io
from bisect import bisect_right
from itertools import accumulate

from replicate.backends.base import Backend
from replicate.blobs import read_blob
from replicate.tree.manifest import Entry


class _StoredFile(io.RawIOBase):
    """The bytes of an entry, seekable. Holds one chunk in memory."""

    def __init__(self, backend: Backend, entry: Entry) -> None:
        super().__init__()
        self._backend = backend
        self._entry = entry
        # Where each chunk begins, and the end of the last one.
        self._starts = [0, *accumulate(size for _, size in entry.blobs)]
        self._position = 0
        self._number = -1
        self._chunk = b""
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
            hash, size = self._entry.blobs[number]
            self._chunk, self._number = read_blob(self._backend, hash, size), number
        return memoryview(self._chunk)[self._position - self._starts[number] :]


def open_entry(backend: Backend, entry: Entry) -> io.BufferedReader:
    """The file open to read, in binary. Reading raises DamagedError when bytes are not what was
    saved."""
    return io.BufferedReader(_StoredFile(backend, entry))
