"""How often a helper process commits, and how long it tries: on a disk at once, and where every
commit is several requests less often, but at once when somebody waits for it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from replicate.spool import Spool

#: So many jobs, or so many bytes of them, are enough to be committed at any time.
_JOBS, _BYTES = 256, 64 << 20
_FIRST_RETRY = 1.0


@dataclass(frozen=True, slots=True)
class Rules:
    """Seconds: between two commits of jobs, and of streams; that a helper whose trainer is gone
    tries to reach a repository that fails, before it leaves the rest in the spool; and at most
    between two tries."""

    jobs: float
    streams: float
    patience: float
    last_retry: float


LOCAL = Rules(jobs=0.0, streams=0.0, patience=60.0, last_retry=30.0)
#: A journal is one object that is written again with each commit, and a stream is another.
REMOTE = Rules(jobs=5.0, streams=30.0, patience=600.0, last_retry=60.0)


class Pace:
    """What of a spool is to be committed now, and when to try again what has failed."""

    def __init__(
        self, rules: Rules, spool: Spool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rules = rules
        self._spool = spool
        self._clock = clock
        self._jobs_at = self._streams_at = clock()
        self._retry = _FIRST_RETRY
        self._failed_at: float | None = None
        self._failing_since = 0.0

    def due(self) -> tuple[bool, bool]:
        """Whether jobs are to be committed now, and whether streams are."""
        now = self._clock()
        return now >= self._jobs_at or self._is_much(), now >= self._streams_at

    def _is_much(self) -> bool:
        return len(self._spool.names()) >= _JOBS or self._spool.size() >= _BYTES

    def committed(self, *, jobs: bool, streams: bool) -> None:
        """Take note of what was committed just now."""
        now = self._clock()
        if jobs:
            self._jobs_at = now + self.rules.jobs
        if streams:
            self._streams_at = now + self.rules.streams
        self._retry, self._failed_at = _FIRST_RETRY, None

    def failed(self) -> float:
        """Take note of a failure; return after how many seconds to try again. Many runs that have
        failed together do not come back together."""
        now = self._clock()
        if self._failed_at is None:
            self._failing_since = now
        self._failed_at = now
        retry, self._retry = self._retry, min(2 * self._retry, self.rules.last_retry)
        return retry * random.uniform(0.75, 1.25)

    def has_just_failed(self, seconds: float) -> bool:
        """Whether the last try has failed, so few seconds ago that another will as well."""
        return self._failed_at is not None and self._clock() - self._failed_at < seconds

    def restart_patience(self) -> None:
        """Count from now how long it fails."""
        self._failing_since = self._clock()

    @property
    def is_exhausted(self) -> bool:
        """Whether it has failed for longer than a helper without a trainer tries."""
        return (
            self._failed_at is not None
            and self._failed_at - self._failing_since >= self.rules.patience
        )
