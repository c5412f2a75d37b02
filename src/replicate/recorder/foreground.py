"""Saving in the training process itself, while it waits: for where no helper can be started."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from replicate.errors import ReplicateError
from replicate.recorder.commit import INTERVAL, Committer


class Foreground:
    """Saves in the trainer's own process, while it waits."""

    def __init__(self, committer: Committer, directory: Path) -> None:
        self._committer = committer
        self._directory = directory
        self._last_beat = -INTERVAL
        self._trouble: str | None = None

    def notify(self) -> list[str]:
        self._trouble = None
        try:
            problems = list(self._committer.commit(self._directory))
            self._committer.free()
            if time.monotonic() - self._last_beat >= INTERVAL:
                self._committer.beat(INTERVAL)
                self._last_beat = time.monotonic()
        except ReplicateError as error:
            self._trouble = str(error)
            return [self._trouble]
        return problems

    def wait(self, tick: Callable[[], None], below: int = 0) -> str | None:
        self.notify()
        return self._trouble

    def close(self, *, at_exit: bool) -> None:
        with suppress(ReplicateError):
            self._committer.commit_some(self._directory, final=True)
            self._committer.beat(INTERVAL)
            self._committer.free(all=True)
