"""Whether runs that were cut off have left anything in the spool, and finishing it if so."""

from __future__ import annotations

from collections.abc import Iterator

from replicate.repository import Repository
from replicate.spool import all_spools


def recover_leftovers(repository: Repository) -> Iterator[str]:
    """As `recovery.recover`, in words, and of runs that go on without one. Where there is nothing,
    as nearly always, it costs next to nothing."""
    if all_spools(repository.spools):
        # The committer brings 10 ms of imports, which only a run after a crash has to pay.
        from replicate.recorder.recovery import recover

        yield from (o.message for o in recover(repository) if o.state != "live")
