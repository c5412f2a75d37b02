"""Saving in the training process itself, while it waits: for where no helper can be started."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from replicate.errors import ReplicateError
from replicate.recorder.commit import Committer
from replicate.recorder.link import Aside
from replicate.repository import Repository


class Foreground:
    """Saves in the trainer's own process, while it waits: with each job, or where that takes
    requests over a network only when somebody asks for it."""

    def __init__(self, repository: Repository, committer: Committer, directory: Path) -> None:
        self._repository = repository
        self._committer = committer
        self._directory = directory
        self._at_once = not repository.backend.remote
        self._trouble: str | None = None
        self._problems: list[str] = []

    def notify(self) -> list[str]:
        if self._at_once:
            self._save()
        return self.problems()

    def problems(self) -> list[str]:
        problems, self._problems = self._problems, []
        return problems

    def wait(
        self, tick: Callable[[], None], below: int = 0, aside: Aside = nullcontext
    ) -> str | None:
        self._save()
        return self._trouble

    def close(self, *, at_exit: bool) -> None:
        with suppress(ReplicateError):
            self._committer.commit_some(self._directory, final=True)
            self._committer.beat()
            self._committer.free(all=True)

    def _save(self) -> None:
        self._trouble = None
        try:
            if not self._at_once:  # nobody has yet seen to it that there is one
                self._repository.create()
            self._problems += self._committer.commit(self._directory)
            self._committer.free()
            self._committer.beat(news=False)
        except ReplicateError as error:
            self._trouble = str(error)
            self._problems.append(self._trouble)


class Kept:
    """Saves nothing: what is in the spool stays there until `replicate sync`."""

    def notify(self) -> list[str]:
        return []

    def problems(self) -> list[str]:
        return []

    def wait(
        self, tick: Callable[[], None], below: int = 0, aside: Aside = nullcontext
    ) -> str | None:
        return None

    def close(self, *, at_exit: bool) -> None:
        pass
