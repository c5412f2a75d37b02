"""Which experiments of a bucket have changed: a marker `changes/<experiment id>` for each.

Whoever writes what an experiment is made of has marked it before; whoever has taken it into the
shared listing removes the marker, unless it was touched meanwhile. `docs/format.md` is the
contract. It knows nothing of what changes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from replicate.backends.base import Backend, Stat

PREFIX = "changes/"
#: A mark holds for what is written so long after it, and one request (seconds).
HOLDS = 1800.0
#: A mark that is older than this by the storage's clock says nothing of what is written now.
STALE = 2 * HOLDS
_ID = re.compile(r"[0-9a-f]{64}")


def marker(experiment: str) -> str:
    return PREFIX + experiment


def marked(backend: Backend) -> dict[str, Stat]:
    """The markers that there are, by the experiment's id."""
    found = ((stat.key.removeprefix(PREFIX), stat) for stat in backend.list(PREFIX))
    return {id: stat for id, stat in found if _ID.fullmatch(id)}


class Announcements:
    """The marks that this process has made on one backend. On a disk none are made: there a
    listing looks at every file."""

    def __init__(
        self, backend: Backend, now: Callable[[], tuple[float, ...]] | None = None
    ) -> None:
        self._backend = backend
        self._now = now or _clocks
        self._made: dict[str, tuple[float, ...]] = {}

    def announce(self, experiment: str) -> None:
        """The experiment is marked, and that holds while the caller's next write is made."""
        if not self._backend.remote:
            return
        now, made = self._now(), self._made.get(experiment)
        if made is not None and all(abs(a - b) < HOLDS for a, b in zip(now, made, strict=True)):
            return
        self._backend.put_if_absent({marker(experiment): b""})
        self._made[experiment] = now


def _clocks() -> tuple[float, ...]:
    """Two clocks: one stands still while the machine sleeps, and people set the other."""
    return time.monotonic(), time.time()
