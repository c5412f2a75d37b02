"""A repository that may not be asked now: what a person has called offline uses no network.

What this machine keeps of it is in front of it (`cached`), and answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn

from replicate.backends.base import Backend, Content, Stat
from replicate.backends.wrapper import Wrapper
from replicate.errors import OfflineError


class OfflineBackend(Wrapper):
    """The backend that it wraps, of which every call raises OfflineError."""

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._refuse(key)

    def put(self, key: str, content: Content) -> None:
        self._refuse(key)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        self._refuse()

    def append(self, key: str, existing: Content, added: Content) -> None:
        self._refuse(key)

    def stat(self, key: str) -> Stat | None:
        self._refuse(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        self._refuse(prefix)

    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        self._refuse()

    def clock(self) -> float:
        self._refuse()

    def _refuse(self, key: str = "") -> NoReturn:
        raise OfflineError(
            f"REPLICATE_MODE is offline, and {self.url}{'/' if key else ''}{key} is not on this "
            "machine",
            hint="Unset it to use the network.",
        )


def offline(backend: Backend) -> Backend:
    """The backend, which is not asked where that would mean the network."""
    return OfflineBackend(backend) if backend.remote else backend


def online(backend: Backend) -> Backend:
    """The backend itself, offline or not."""
    return backend.wrapped if isinstance(backend, OfflineBackend) else backend
