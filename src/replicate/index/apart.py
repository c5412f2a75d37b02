"""Reading many experiments with several processes: Python decodes on one core, and a listing
without a cache does little else.

Knows when processes pay. The files are read here, so that no other process needs the storage or
its credentials.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from replicate.backends.files import each, several
from replicate.index.entries import Kept, packed_beat
from replicate.index.worker import Row, request
from replicate.repository import Listed, Reading, Repository
from replicate.together import THREADS, fetched

if TYPE_CHECKING:
    from replicate.index.crew import Crew

#: A process is worth its start, some 100 ms, for so many bytes. More processes than that take more
#: memory than time they save.
SHARE, MOST = 4 << 20, 4
#: So much is decoded at a time: bounds memory, and how long one waits for the others at the end.
_BATCH, _BATCH_BYTES = 64, 1 << 20
#: What is larger, as hardly an experiment is, is read when its turn comes.
_LARGE = 8 << 20
#: What was read here, or the row that another process has made.
Made = Reading | tuple[Listed, Row]


def processes_for(listed: Sequence[Listed]) -> int:
    """How many processes pay for reading these experiments; 0 where none does."""
    if len(listed) < 2 * MOST or not sys.executable or getattr(sys, "frozen", False):
        return 0  # the program of an application that was frozen is no interpreter
    count = min(_cores(), MOST, sum(map(_size, listed)) // SHARE)
    return count if count > 1 else 0


def read_apart(repository: Repository, listed: Sequence[Listed], processes: int) -> Iterator[Made]:
    """Each of these experiments in their order, as `Repository.read` or `read_together` has it."""
    from replicate.index.crew import Crew  # 10 ms that a listing with a cache need not pay

    batches = list(_batches(listed))
    crew = Crew(processes)
    remote = repository.backend.remote
    lanes = 2 * processes if remote else processes + 1  # some read while the others are decoded
    work = partial(_rows, repository, crew, max(1, THREADS // lanes) if remote else 1)
    with closing(each(work, batches, lanes)) as made, crew:
        for batch, rows in zip(batches, made, strict=True):
            for one, row in zip(batch, rows, strict=True):
                yield repository.read(one) if row is None else (one, row)


def _rows(
    repository: Repository, crew: Crew, threads: int, listed: Sequence[Listed]
) -> list[Row | None]:
    """The rows of these experiments; None for those that are to be read again."""
    if sum(map(_size, listed)) > _LARGE:
        return [None for _ in listed]
    if not repository.backend.remote:
        # Before the journals: it counts events, and they may only grow after they were counted.
        keys = [s.key for one in listed for s in (one.heartbeat, one.inputs, *one.journals) if s]
        return crew.rows(request(fetched(repository.backend, keys, threads, _LARGE), listed))
    keys = [s.key for one in listed for s in (one.inputs, *one.journals) if s]
    files = fetched(repository.backend, keys, threads, _LARGE)
    rows = crew.rows(request(files, [replace(one, heartbeat=None) for one in listed]))
    return _alive(repository, listed, rows, threads)


def _alive(
    repository: Repository, listed: Sequence[Listed], rows: list[Row | None], threads: int
) -> list[Row | None]:
    """The rows with the heartbeats of the runs that go on. Where one says more than the journals
    did before it was read, or nothing, there is no row."""
    entries = [
        Kept.of(one, row["head"] if row else None, repository, repository.backend.clock)
        for one, row in zip(listed, rows, strict=True)
    ]
    goes_on = [n for n, e in enumerate(entries) if e and e.listed.heartbeat and not e.stopped]
    stats = [stat for n in goes_on if (stat := listed[n].heartbeat)]
    beats = several(repository.heartbeat, stats, threads)
    rows = list(rows)
    for n, stat, heartbeat in zip(goes_on, stats, beats, strict=True):
        entry, row = entries[n], rows[n]
        assert entry and row
        rows[n] = None
        if heartbeat is not None and entry.accept(heartbeat):
            rows[n] = {**row, "beat": packed_beat(stat, heartbeat)}
    return rows


def _batches(listed: Sequence[Listed]) -> Iterator[list[Listed]]:
    batch: list[Listed] = []
    size = 0
    for one in listed:
        if batch and (len(batch) == _BATCH or size + _size(one) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += _size(one)
    if batch:
        yield batch


def _size(listed: Listed) -> int:
    return sum(stat.size for stat in (listed.inputs, *listed.journals) if stat)


def _cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
