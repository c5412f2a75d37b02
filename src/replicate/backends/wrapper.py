"""A backend in front of another: it passes on every call that its heirs do not answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from replicate.backends.base import Backend, Content, Stat


class Wrapper(Backend):
    """The backend that it wraps, with all of its guarantees."""

    def __init__(self, wrapped: Backend) -> None:
        self.wrapped = wrapped
        self.url = wrapped.url
        self.remote = wrapped.remote

    @property
    def identity(self) -> str:
        return self.wrapped.identity

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self.wrapped.get(key, start, length)

    def put(self, key: str, content: Content) -> None:
        self.wrapped.put(key, content)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        return self.wrapped.put_if_absent(items, fresh=fresh)

    def append(self, key: str, existing: Content, added: Content) -> None:
        self.wrapped.append(key, existing, added)

    def stat(self, key: str) -> Stat | None:
        return self.wrapped.stat(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        return self.wrapped.list(prefix, after)

    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        return self.wrapped.delete(keys, unless_modified_since)

    def clock(self) -> float:
        return self.wrapped.clock()
