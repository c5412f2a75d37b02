"""Finishing what a run has left in the spool, when its process and its helper are both gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from replicate.config import Keep
from replicate.errors import KeyNotFoundError, RepositoryError, StorageError
from replicate.model import short
from replicate.recorder.commit import Committer
from replicate.repository import Repository
from replicate.spool import Spool, all_spools

#: Is told now and again how many bytes are in the repository, and how many there were to save.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the spool of one run: a sentence for a person, and whether its jobs are in the
    repository now, are left to the process that records the run, or could not be saved now. What
    is "lost" of them cannot be saved any more."""

    experiment: str
    state: Literal["saved", "lost", "live", "failed"]
    message: str


def recover(
    repository: Repository, progress: Progress = lambda done, total: None
) -> Iterator[Outcome]:
    """Commit every job that nobody else is about to commit.

    A run whose process or helper is alive has its spool locked, and is passed over. One that has
    left nothing is not worth a word.
    """
    spools = all_spools(repository.spools)
    sizes = [spool.size() for spool in spools]
    for number, spool in enumerate(spools):
        rest = sum(sizes[number + 1 :])

        def left(size: int, rest: int = rest) -> None:
            progress(max(0, sum(sizes) - rest - size), sum(sizes))

        try:
            lock = spool.try_lock()
        except FileNotFoundError:
            continue  # its helper has come to its end
        if lock is None:
            if spool.names():
                spool.hurry()
                text = (
                    f"Experiment {short(spool.experiment)} is left to its own process, which has "
                    "not ended yet, and tries now"
                )
                if repository.backend.remote:
                    text += "; `replicate ls` marks what is not saved"
                yield Outcome(spool.experiment, "live", text)
            continue
        try:
            yield from _recover_one(repository, spool, left)
        finally:
            spool.unlock(lock)


def _recover_one(
    repository: Repository, spool: Spool, left: Callable[[int], None]
) -> Iterator[Outcome]:
    id, jobs, problems = spool.experiment, len(spool.names()), list[str]()
    try:
        if _is_deleted(repository, id):
            spool.destroy()
            yield Outcome(id, "saved", f"Experiment {short(id)} is deleted, and what it had left.")
            return
        committer = _committer(repository, spool, lambda read: left(spool.size() - read))
        for problem in committer.commit():
            problems.append(problem)
            left(spool.size())
        committer.free(all=True)
    except (StorageError, RepositoryError) as error:
        text = f"Experiment {short(id)} has unsaved work in {spool.directory}: {error}"
        yield Outcome(id, "failed", text)
        return
    spool.destroy()
    if jobs or committer.has_streamed:
        what = "is saved: all of it" if committer.stopped else "was cut off: what it had left"
        if problems:
            what = "was not saved whole: all but what follows"
        yield Outcome(id, "saved", f"Experiment {short(id)} {what} is in the repository now.")
    for problem in problems:
        yield Outcome(id, "lost", f"Experiment {short(id)}: {problem}")


def _is_deleted(repository: Repository, id: str) -> bool:
    try:
        return repository.experiment(id).deleted
    except KeyNotFoundError:  # nothing of it was saved
        return False


def _committer(repository: Repository, spool: Spool, progress: Callable[[int], None]) -> Committer:
    """Commits as the run itself would have done."""
    settings = spool.settings
    keep = settings.get("keep")
    return Committer(
        repository,
        spool,
        compress=settings.get("compress", repository.backend.remote),
        keep=Keep(**keep) if keep else None,
        progress=progress,
        alive=False,
    )
