"""How often a helper commits: at once on a disk, and seldom where every commit is a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicate.recorder.pace import LOCAL, REMOTE, Pace
from replicate.spool import Spool, job_header


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.directory.mkdir()
    return spool


@pytest.fixture
def pace(spool: Spool, clock: Clock) -> Pace:
    return Pace(REMOTE, spool, clock)


def add(spool: Spool, jobs: int, size: int = 10) -> None:
    for _ in range(jobs):
        spool.add(spool.next_name(), job_header("checkpoint"), [bytes(size)])


def test_on_a_disk_everything_is_due_at_any_time(spool: Spool, clock: Clock) -> None:
    pace = Pace(LOCAL, spool, clock)
    pace.committed(jobs=True, streams=True)
    assert pace.due() == (True, True)


def test_in_a_bucket_the_first_is_due_at_once_and_the_next_later(
    pace: Pace, spool: Spool, clock: Clock
) -> None:
    assert pace.due() == (True, True)
    pace.committed(jobs=True, streams=True)
    add(spool, 100, 8192)
    assert pace.due() == (False, False)
    clock.now += REMOTE.jobs
    assert pace.due() == (True, False)
    pace.committed(jobs=True, streams=False)
    clock.now += REMOTE.streams - REMOTE.jobs
    assert pace.due() == (True, True)


@pytest.mark.parametrize(("jobs", "size"), [(256, 10), (1, 64 << 20)])
def test_much_is_due_before_its_time(pace: Pace, spool: Spool, jobs: int, size: int) -> None:
    pace.committed(jobs=True, streams=True)
    add(spool, jobs - 1, size)
    assert pace.due() == (False, False)
    add(spool, 1, size)
    assert pace.due() == (True, False)


def test_tries_are_ever_further_apart_and_begin_anew_after_a_success(pace: Pace) -> None:
    def tries() -> list[float]:
        return [pace.failed() for _ in range(20)]

    first = tries()
    assert first[0] <= 1.25 and first[3] > first[0]
    assert all(0.75 * REMOTE.last_retry <= t <= 1.25 * REMOTE.last_retry for t in first[10:])
    assert len(set(first[10:])) > 1
    pace.committed(jobs=True, streams=True)
    assert tries()[0] <= 1.25


def test_patience_counts_from_the_first_failure_in_a_row(pace: Pace, clock: Clock) -> None:
    for _ in range(3):
        pace.failed()
        clock.now += REMOTE.patience / 2
        assert not pace.is_exhausted
        pace.failed()
        pace.committed(jobs=True, streams=True)
    pace.failed()
    clock.now += REMOTE.patience
    pace.failed()
    assert pace.is_exhausted
    pace.restart_patience()  # the trainer is gone only now
    pace.failed()
    assert not pace.is_exhausted


def test_who_begins_to_wait_just_after_a_failure_is_told_of_that_one(
    pace: Pace, clock: Clock
) -> None:
    assert not pace.has_just_failed(10.0)
    pace.failed()
    clock.now += 9.0
    assert pace.has_just_failed(10.0)
    clock.now += 2.0
    assert not pace.has_just_failed(10.0)
