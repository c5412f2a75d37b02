"""The storage contract in a dictionary: the readable specification, and a real fake for tests.

Knows nothing of files. What it holds is gone when the process ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from threading import RLock

from replicate.backends.base import Backend, Content, Stat, validate_key, validate_prefix
from replicate.errors import KeyNotFoundError


@dataclass(frozen=True, slots=True)
class _Object:
    content: bytes
    modified: float
    version: str


class MemoryBackend(Backend):
    """Keeps every promise of `Backend` but durability. `clock` may be a test's own."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.url = "memory:"
        self._now = clock
        self._objects: dict[str, _Object] = {}
        self._versions = count(1)
        self._lock = RLock()

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        found = self._objects.get(validate_key(key))
        if found is None:
            raise KeyNotFoundError(f"no {key} in {self.url}")
        return found.content[start : None if length is None else start + length]

    def put(self, key: str, content: Content) -> None:
        with self._lock:
            self._objects[validate_key(key)] = self._object(content)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        with self._lock:
            created = {key for key in items if validate_key(key) not in self._objects}
            for key in items:
                held = items[key] if key in created else self._objects[key].content
                self._objects[key] = self._object(held)
            return created

    def append(self, key: str, existing: Content, added: Content) -> None:
        self.put(key, bytes(existing) + bytes(added))

    def stat(self, key: str) -> Stat | None:
        found = self._objects.get(validate_key(key))
        if found is None:
            return None
        return Stat(key, len(found.content), found.modified, found.version)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        validate_prefix(prefix, after)
        with self._lock:
            keys = sorted(k for k in self._objects if k.startswith(prefix) and k > after)
        return (stat for key in keys if (stat := self.stat(key)))

    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        wanted = {validate_key(key) for key in keys}
        limit = float("inf") if unless_modified_since is None else unless_modified_since
        with self._lock:
            gone = {k for k in wanted & self._objects.keys() if self._objects[k].modified < limit}
            for key in gone:
                del self._objects[key]
            return gone

    def clock(self) -> float:
        return self._now()

    def _object(self, content: Content) -> _Object:
        return _Object(bytes(content), self._now(), str(next(self._versions)))
