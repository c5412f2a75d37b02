"""Finishing what a run has left in the spool, when its process and its helper are both gone."""

from __future__ import annotations

from collections.abc import Iterator

from replicate.errors import StorageError
from replicate.model import short
from replicate.recorder.commit import Committer
from replicate.repository import Repository
from replicate.spool import Spool, all_spools


def recover(repository: Repository, *, tell_live: bool = False) -> Iterator[str]:
    """Commit every job that nobody else is about to commit; yield a sentence for each run.

    A run whose process or helper is alive has its spool locked, and is passed over,
    with `tell_live` not without a word.
    """
    for spool in all_spools(repository.spools):
        lock = spool.try_lock()
        if lock is None:
            if tell_live and spool.names():
                id = short(spool.experiment)
                yield f"Experiment {id} is still being saved by its own process: left to that."
            continue
        try:
            yield from _recover_one(repository, spool)
        finally:
            spool.unlock(lock)


def _recover_one(repository: Repository, spool: Spool) -> Iterator[str]:
    jobs = len(spool.names())
    try:
        committer = Committer(repository, spool)
        problems = list(committer.commit())
    except StorageError as error:
        yield f"Experiment {short(spool.experiment)} has unsaved work in {spool.directory}: {error}"
        return
    spool.destroy()
    if jobs or committer.has_streamed:
        yield (
            f"Experiment {short(spool.experiment)} was cut off: what it had not saved yet is "
            "in the repository now."
        )
    yield from problems
