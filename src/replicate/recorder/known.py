"""What has not changed since it was saved is not read again: a file is known by what only a writer
could change of it.

It knows when two captures are of the same bytes; it must not know how either was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from replicate.backends.base import Backend, Content
from replicate.blobs import blob_key
from replicate.compression import SUFFIXES
from replicate.errors import KeyNotFoundError
from replicate.readers import Reader
from replicate.tree import Entry, Source

#: So many files are remembered at most, each with the hashes of its chunks.
_REMEMBERED = 1_000

#: What `capture.Seal` has, as a job's header has it.
_Seal = tuple[int, ...]


class Known:
    """The entries of files that this process has saved in a repository on a disk.

    A file that is under a lease now and was then, with the same seal, holds the same bytes: no
    write can have come in between that did not change the seal, if it was settled then.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._entries: dict[_Seal, Entry] = {}

    def source(self, file: Mapping[str, Any], reader: Reader) -> Source:
        """A file of a job, by its entry in the job's header. It is not to be read when it is known
        and all that it consists of is in the repository."""
        path, mode, seal = file["path"], file["mode"], tuple(file.get("seal", ()))
        entry = self._entries.get(seal)
        if entry is not None and self._renew(hash for hash, _ in entry.blobs):
            return Source(path, mode=mode, saved=entry)
        if not file.get("settled") or self._backend.remote:  # there, to ask costs more than to send
            return Source(path, mode=mode, reader=reader)
        return Source(path, mode=mode, reader=reader, done=partial(self._remember, seal))

    def _remember(self, seal: _Seal, entry: Entry) -> None:
        self._entries[seal] = entry
        while len(self._entries) > _REMEMBERED:
            del self._entries[next(iter(self._entries))]

    def _renew(self, hashes: Iterable[str]) -> bool:
        """Whether all these blobs are stored, and as safe from a collector of garbage from now on
        as if they had just been added."""
        keys = [self._stored_key(hash) for hash in hashes]
        try:
            self._backend.put_if_absent(_Stored(key for key in keys if key))
        except KeyNotFoundError:
            return False
        return all(keys)

    def _stored_key(self, hash: str) -> str | None:
        """The key under which a blob is stored, in any encoding."""
        keys = (blob_key(hash, suffix) for suffix in SUFFIXES)
        return next((key for key in keys if self._backend.stat(key) is not None), None)


class _Stored(Mapping[str, Content]):
    """Contents that nobody has: to store them is to touch what is there. KeyNotFoundError tells of
    one that has gone meanwhile."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = dict.fromkeys(keys)

    def __getitem__(self, key: str) -> Content:
        raise KeyNotFoundError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
