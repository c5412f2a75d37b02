"""Content-addressed bytes on a backend: a blob's name is the BLAKE3 hash of its raw bytes.

It knows keys, hashes and encodings; it does not know which file a blob belongs to.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path

from blake3 import blake3

from replicate import compression
from replicate.backends.base import Backend, Content
from replicate.backends.files import write_at
from replicate.backends.local import LocalBackend
from replicate.background import Background
from replicate.chunking import MAX_CHUNK
from replicate.errors import DamagedError, KeyNotFoundError

#: No blob is larger, so that any one fits in memory (bytes).
MAX_BLOB = MAX_CHUNK
#: A blob that was stored or touched less than this ago is safe from garbage collection while its
#: user is at work: half of a collector's grace (seconds).
FRESH = 1800.0
#: How much a batch holds before it is written (bytes): bounds memory, fills a disk's queue. While
#: it is written, as much again is added.
FLUSH_AT = 64 << 20


_NEXT = "Restore it from a copy. `replicate verify` names the checkpoints that it hurts."


def hash_of(content: Content | mmap.mmap) -> str:
    """The BLAKE3 hash of `content`, 64 hex digits; what `b3sum` prints for the same bytes."""
    return blake3(content).hexdigest()


def blob_key(hash: str, suffix: str = "") -> str:
    return f"blobs/{hash[:2]}/{hash}{suffix}"


def tree_key(hash: str) -> str:
    return f"trees/{hash[:2]}/{hash}.json"


#: By key, what is to be written, and for whom.
_Items = dict[str, tuple[Content, Hashable]]


class Batch:
    """Blobs and trees on their way into a backend, written many at a time.

    What was added is durable only after `flush()`. `stored[owner]` then counts the bytes of blobs
    that were new to the repository, as they are stored, for whoever added them first. Contents
    must stay valid until the flush.
    """

    def __init__(self, backend: Backend, *, compress: bool) -> None:
        self._backend = backend
        self._compress = compress
        self._items: _Items = {}
        self._writing: Background[None] | None = None
        self._size = 0
        self.stored: Counter[Hashable] = Counter()

    def add_blob(self, content: Content, owner: Hashable) -> str:
        """Queue one blob of at most MAX_BLOB bytes and return its hash."""
        hash = hash_of(content)
        self._add(hash, content, owner)
        return hash

    def add_tree(self, manifest: bytes, owner: Hashable) -> str:
        """Queue a tree's manifest and return its hash."""
        hash = hash_of(manifest)
        self._queue(tree_key(hash), manifest, owner)
        return hash

    def flush(self) -> None:
        """Write all that was added. Trees and blobs may go together, because nothing refers to a
        tree before its journal line, and who adds a tree has added each of its blobs too."""
        self._settle()
        self._store(self._take())

    def _write_behind(self) -> None:
        """Write what was added, while the caller goes on adding: hashing need not wait for the
        disk. One such write at a time, which bounds what has to be held."""
        self._settle()
        items = self._take()
        self._writing = Background(lambda: self._store(items))

    def _settle(self) -> None:
        """Wait for what is being written; its error is this call's."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _take(self) -> _Items:
        items, self._items, self._size = self._items, {}, 0
        return items

    def _store(self, items: _Items) -> None:
        if not items:
            return
        created = self._backend.put_if_absent({k: c for k, (c, _) in items.items()})
        for key in created:
            content, owner = items[key]
            if key.startswith("blobs/"):
                self.stored[owner] += len(content)

    def _add(self, hash: str, content: Content, owner: Hashable) -> None:
        if not self._compress:
            self._queue(blob_key(hash), content, owner)
        elif not self._is_fresh(hash):
            suffix, payload = compression.encode(content)
            self._queue(blob_key(hash, suffix), payload, owner)

    def _is_fresh(self, hash: str) -> bool:
        """Whether the blob is stored, in any encoding, and so young that no collector will take it
        before this batch is committed: then it need not be compressed only to be found there."""
        for suffix in compression.SUFFIXES:
            stat = self._backend.stat(blob_key(hash, suffix))
            if stat is not None and self._backend.clock() - stat.modified < FRESH:
                return True
        return False

    def _queue(self, key: str, content: Content, owner: Hashable) -> None:
        if key not in self._items:
            self._items[key] = (content, owner)
            self._size += len(content)
            if self._size >= FLUSH_AT:
                self._write_behind()


def read_blob(backend: Backend, hash: str, size: int) -> bytes:
    """The raw bytes of a blob of `size` bytes, verified.

    Raises DamagedError naming the key when they are missing or not what was written.
    """
    for suffix in compression.SUFFIXES:
        key = blob_key(hash, suffix)
        try:
            payload = backend.get(key, 0, MAX_BLOB + 1)
        except KeyNotFoundError:
            continue
        name = f"{backend.url}/{key}"
        try:
            data = compression.decode(suffix, payload, size) if suffix else payload
        except DamagedError as error:
            raise DamagedError(f"{name} is damaged: {error}", hint=_NEXT) from error
        if len(data) != size or hash_of(data) != hash:
            raise DamagedError(f"{name} is damaged: its bytes do not match its name", hint=_NEXT)
        return data
    raise DamagedError(f"{backend.url}/{blob_key(hash)} is missing", hint=_NEXT)


def copy_blob(backend: Backend, hash: str, size: int, descriptor: int, offset: int) -> None:
    """Write the raw bytes of a blob at `offset` of an open file, verified before they are written.

    Raises like `read_blob`, and OSError when the file cannot be written.
    """
    if isinstance(backend, LocalBackend) and size:
        path = backend.path_of(blob_key(hash))
        if _copy_in_place(path, hash, size, descriptor, offset):
            return
    write_at(descriptor, read_blob(backend, hash, size), offset)


def _copy_in_place(path: Path, hash: str, size: int, descriptor: int, offset: int) -> bool:
    """Copy a raw blob from file to file, without memory of its own; False when there is none that
    is whole, which `read_blob` can tell more of."""
    try:
        source = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        if os.fstat(source).st_size != size:
            return False
        with mmap.mmap(source, size, access=mmap.ACCESS_READ) as content:
            if hash_of(content) != hash:
                return False
            done = _copy_range(source, size, descriptor, offset)
            if done < size:
                with memoryview(content) as view, view[done:] as rest:
                    write_at(descriptor, rest, offset + done)
        return True
    finally:
        os.close(source)


def _copy_range(source: int, size: int, descriptor: int, offset: int) -> int:
    """How many bytes the kernel has copied by itself: all, where it and the file systems can."""
    done = 0
    try:
        while done < size:
            copied = os.copy_file_range(source, descriptor, size - done, done, offset + done)
            if copied == 0:
                break
            done += copied
    except (AttributeError, OSError):
        pass  # what is left is written in the ordinary way, which fails if this was a real failure
    return done


def read_blobs(backend: Backend, chunks: Iterable[tuple[str, int]]) -> Iterable[bytes]:
    """The bytes of consecutive chunks, each verified, one at a time."""
    return (read_blob(backend, hash, size) for hash, size in chunks)
