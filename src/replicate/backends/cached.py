"""A bucket whose immutable objects, once read, are kept on this machine's disk.

It knows which keys never change, and that nothing which can be had again is worth an error: what
cannot be kept is not kept, and what was kept and is damaged is fetched again.
"""

from __future__ import annotations

import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from blake3 import blake3

from replicate.backends.base import Backend
from replicate.backends.wrapper import Wrapper

#: What never changes: the hash of its bytes, or (of compressed blobs) of those they stand for, is
#: its name. Only the first can be told from other bytes before they are kept.
_IMMUTABLE = re.compile(
    r"(?:blobs|trees|packs|snapshots/parts)/(?P<two>[0-9a-f]{2})/(?P<hash>(?P=two)[0-9a-f]{62})"
    r"(?P<kind>\.json|\.pack|(?:\.p[24])?\.zst)?"
)
#: Bytes behind each content that say whether it is whole, and of that key.
_CHECK = 16
#: A file that is used has its time renewed, unless that is younger than this (seconds).
_RENEW = 3600.0
#: The directory is looked through once so much of its size has been added, and then brought down to
#: this part of its size.
_LOOK_AT, _DOWN_TO = 1 / 16, 0.9
#: What is added is counted in units of so many bytes.
_UNIT = 1 << 20
#: Beginnings of so many objects are remembered, for when their end is read.
_BEGUN = 32
#: Leftovers of processes that crashed are older than this (seconds).
_STALE = 3600.0


class Blobs:
    """Bytes by name in a directory that takes about `limit` bytes, those that were not used for
    longest going first. Many processes may use it at once."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._growth = directory / "growth"

    def read(self, name: str) -> bytes | None:
        """What is kept under this name; None when nothing is, or it is damaged."""
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                content = file.read()
                if time.time() - os.fstat(file.fileno()).st_mtime > _RENEW:
                    os.utime(path)
        except OSError:
            return None
        if _check(name, memoryview(content)[:-_CHECK]) != content[-_CHECK:]:
            self.forget(name)
            return None
        return content[:-_CHECK]

    def keep(self, name: str, content: bytes) -> None:
        """Keep it, if that can be done."""
        if len(content) > self._limit * _LOOK_AT:
            return
        path = self._path(name)
        temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}.tmp")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                with open(temporary, "xb", buffering=0) as file:
                    file.write(content)
                    file.write(_check(name, content))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._grown(len(content))
        except OSError:
            return

    def forget(self, name: str) -> bool:
        """Keep it no longer; whether it was kept."""
        try:
            self._path(name).unlink()
        except OSError:
            return False
        return True

    def _path(self, name: str) -> Path:
        hash = blake3(name.encode()).hexdigest(length=16)
        return self._directory / hash[:2] / hash

    def _grown(self, size: int) -> None:
        """Count what was added, in a file whose length is the count, and make room when it is time.
        A part of a unit counts as a whole one now and then, which on average is right."""
        units, rest = divmod(size, _UNIT)
        units += int.from_bytes(os.urandom(4)) * _UNIT < rest << 32
        if not units:
            return
        with open(self._growth, "ab", buffering=0) as growth:
            growth.write(bytes(units))
            count = growth.tell()
        if count * _UNIT > self._limit * _LOOK_AT:
            os.truncate(self._growth, 0)
            self.make_room()

    def make_room(self) -> None:
        """Remove what was not used for longest, until what is left is well within the limit."""
        found = sorted(self._files())
        size = sum(size for _, size, _ in found)
        for _, one, path in found:
            if size <= self._limit * _DOWN_TO:
                break
            with suppress(OSError):
                path.unlink()
                size -= one

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each was last used, its size, and where it is."""
        for directory in self._directory.glob("[0-9a-f][0-9a-f]"):
            with suppress(OSError), os.scandir(directory) as entries:
                for entry in entries:
                    with suppress(OSError):
                        stat = entry.stat(follow_symlinks=False)
                        if entry.name.endswith(".tmp") and time.time() - stat.st_mtime > _STALE:
                            os.unlink(entry.path)
                        else:
                            yield stat.st_mtime, stat.st_size, Path(entry.path)


def _check(name: str, content: bytes | memoryview) -> bytes:
    return blake3(name.encode() + b"\0").update(content).digest(length=_CHECK)


class CachedBackend(Wrapper):
    """The backend that it wraps; what is immutable there is read from `blobs` once it is there."""

    def __init__(self, wrapped: Backend, blobs: Blobs) -> None:
        super().__init__(wrapped)
        self._blobs = blobs
        self._begun: OrderedDict[str, bytes] = OrderedDict()
        self._distrusted: set[str] = set()
        self._lock = Lock()

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        named = _IMMUTABLE.fullmatch(key)
        if named is None or key in self._distrusted:
            return super().get(key, start, length)
        whole = self._blobs.read(self._name(key))
        if whole is not None:
            return whole[start : None if length is None else start + length]
        data = super().get(key, start, length)
        whole = self._whole(key, start, length, data)
        compressed = key.startswith("blobs/") and named["kind"] is not None
        if whole is not None and (compressed or blake3(whole).hexdigest() == named["hash"]):
            self._blobs.keep(self._name(key), whole)
        return data

    def forget(self, key: str) -> bool:
        """Keep nothing of this key from now on, as it was not what it should be. Whether anything
        was kept; if not, there is no use in asking again."""
        self._distrusted.add(key)
        return self._blobs.forget(self._name(key))

    def _name(self, key: str) -> str:
        """What it is kept under: a repository never gives out what another one has said."""
        return f"{self.identity}\n{key}"

    def _whole(self, key: str, start: int, length: int | None, data: bytes) -> bytes | None:
        """The whole object, when this was its end and the rest was read just before."""
        ended = length is None or len(data) < length
        if start == 0 and ended:
            return data
        with self._lock:
            if start == 0:
                self._begun[key] = data
                if len(self._begun) > _BEGUN:
                    self._begun.popitem(last=False)
                return None
            begun = self._begun.pop(key, b"") if ended else b""
        return begun + data if len(begun) == start else None


def cached(backend: Backend, directory: Path | None, limit: int) -> Backend:
    """The backend, with a cache below that directory where one helps and can be."""
    if directory is None or not backend.remote:
        return backend
    return CachedBackend(backend, Blobs(directory / "blobs", limit))


def forget(backend: Backend, key: str) -> bool:
    """Do not give out again what is kept of this key; whether anything was."""
    inner: Backend | None = backend
    while inner is not None and not isinstance(inner, CachedBackend):
        inner = getattr(inner, "wrapped", None)
    return inner is not None and inner.forget(key)


def uncached(backend: Backend) -> Backend:
    """What really is there, and not what once was."""
    return backend.wrapped if isinstance(backend, CachedBackend) else backend
