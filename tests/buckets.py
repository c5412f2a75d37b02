"""A bucket in memory: what a request costs is counted, and its clock is the test's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from threading import RLock

from replicate.backends.base import Content, Stat, validate_prefix
from replicate.backends.memory import MemoryBackend

#: So many keys come with one request of a listing.
PAGE = 1000


class Bucket(MemoryBackend):
    """Counts requests by their kind, and remembers the keys that were read, by whom it was."""

    remote = True

    def __init__(self) -> None:
        self.time = 1_000_000.0
        super().__init__(lambda: self.time)
        self.url = "memory://bucket"
        self.requests: Counter[str] = Counter()
        self.read: list[str] = []
        self._counting = RLock()

    def forget(self) -> None:
        """Count from here."""
        self.requests.clear()
        self.read.clear()

    def _count(self, kind: str, keys: Iterable[str] = ("",)) -> None:
        with self._counting:
            for key in keys:
                self.requests[kind] += 1
                if kind == "GET":
                    self.read.append(key)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._count("GET", [key])
        return super().get(key, start, length)

    def put(self, key: str, content: Content) -> None:
        self._count("PUT")
        super().put(key, content)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        self._count("PUT", items)
        return super().put_if_absent(items, fresh=fresh)

    def stat(self, key: str) -> Stat | None:
        self._count("HEAD")
        return super().stat(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        validate_prefix(prefix, after)
        found = [*self._listed(prefix, after)]
        self._count("LIST", ("" for _ in range(max(1, -(-len(found) // PAGE)))))
        return iter(found)

    def _listed(self, prefix: str, after: str) -> Iterator[Stat]:
        with self._lock:
            objects = sorted((k, o) for k, o in self._objects.items() if k.startswith(prefix))
        return (Stat(k, len(o.content), o.modified, o.version) for k, o in objects if k > after)
