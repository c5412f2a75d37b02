"""Who may be writing to a repository at this moment, besides the runs whose heartbeat says so.

A process announces itself by the lock of a directory in the spool, and the system takes the lock
back when the process dies. It knows nothing of what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from replicate.backends.files import explained
from replicate.records import new_id
from replicate.repository import Repository
from replicate.spool import Spool, all_spools


@contextmanager
def announced(repository: Repository) -> Iterator[None]:
    """While the block runs, a collector leaves young objects alone: what the block stores is safe
    before anything refers to it. Raises StorageError when the repository cannot be written."""
    root = repository.spools
    if root is None or repository.backend.remote:  # those who collect are on other machines
        yield
        return
    spool = Spool(root / new_id())
    with explained("write", spool.directory):
        lock = spool.create()
    try:
        yield
    finally:
        spool.unlock(lock)
        spool.destroy()


def somebody_may_write(repository: Repository, but: str | None = None) -> bool:
    """Whether a process may have stored objects that nothing refers to yet. `but` is the
    experiment that the caller records itself, which knows what it stores.

    A run has its heartbeat only after it has stored its code, so the heartbeats do not settle it.
    Where the spool is not in the repository nobody can tell what other machines do.
    """
    root = repository.spools
    return (
        root is None
        or repository.backend.remote
        or any(_is_locked(spool) for spool in all_spools(root) if spool.experiment != but)
    )


def has_spool(repository: Repository, experiment: str) -> bool:
    """Whether something of the experiment waits in the spool, or is being recorded here."""
    root = repository.spools
    return root is not None and (root / experiment).exists()


def _is_locked(spool: Spool) -> bool:
    if not (spool.directory / "lock").exists():
        return spool.directory.exists()  # it is being made, or removed, at this moment
    try:
        lock = spool.try_lock()
    except FileNotFoundError:
        return False  # it was removed since
    except PermissionError:
        return True  # it is another user's
    if lock is None:
        return True
    spool.unlock(lock)
    return False
