"""Listing a bucket costs requests for what has changed, many at a time, and no others."""

from __future__ import annotations

from collections import Counter
from threading import Barrier

import pytest

from buckets import HOUR, PAGE, TREE, Bucket, opened, over, same, stop, tag
from buckets import bucket as bucket
from buckets import index as index
from buckets import repository as repository
from replicate.index import Index
from replicate.maintenance import compact
from replicate.model import Status
from replicate.repository import Repository
from replicate.snapshots import PARTS
from saving import Run

MANY = 40


def names(bucket: Bucket) -> Counter[str]:
    """What kinds of files of experiments were read."""
    found = (key.split("/")[2] for key in bucket.read if key.startswith("experiments/"))
    return Counter(name.removesuffix(".json") for name in found)


# ---------------------------------------------------------------- without a snapshot


def test_the_first_listing_reads_each_file_once_and_no_heartbeat_of_who_is_over(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    for _ in range(MANY):
        run = Run(repository)
        run.commit(TREE)
        run.beat()
        over(repository, 0.5)
    bucket.forget()
    assert len(index.records()) == 2 * MANY
    assert names(bucket) == {"experiment": 2 * MANY, "journal": 2 * MANY, "heartbeat": MANY}
    same(index, repository)


def test_the_next_listing_reads_nothing_but_what_has_changed(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    runs = [Run(repository) for _ in range(3)]
    for run in runs:
        run.commit(TREE)
        run.beat()
    for _ in range(MANY):
        over(repository, 0.5)
    index.records()
    bucket.forget()
    index.records()
    assert bucket.read == []
    runs[0].commit(TREE, 0.25)
    runs[1].beat()
    bucket.forget()
    same_before = index.records()
    assert names(bucket) == {"experiment": 1, "journal": 1, "heartbeat": 2}
    assert len(same_before) == MANY + 3
    same(index, repository)


def test_many_files_are_asked_for_at_once(bucket: Bucket, repository: Repository) -> None:
    together = Barrier(16)

    class Slow(Bucket):
        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            if key.endswith("experiment.json"):
                together.wait(timeout=20)  # raises where fewer come at a time
            return super().get(key, start, length)

    slow = Slow()
    run_by = opened(slow)
    for _ in range(32):
        over(run_by, 0.5)
    assert len(Index(run_by, None).records()) == 32


def test_a_run_that_goes_on_while_it_is_listed_is_not_damaged(bucket: Bucket) -> None:
    class Between(Bucket):
        """Every journal is read just before another checkpoint and heartbeat come."""

        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            found = super().get(key, start, length)
            if "/journal/" in key and self.left:
                self.left -= 1
                run.commit(TREE)
                run.beat()
            return found

    between = Between()
    between.left = 0
    repository = opened(between)
    run = Run(repository)
    run.commit(TREE)
    run.beat()
    between.left = 1
    (record,) = Index(repository, None).records()
    assert record.damage == () and len(record.checkpoints) == 2
    assert record.status is Status.RUNNING


def test_how_far_it_is_can_be_seen(bucket: Bucket, repository: Repository) -> None:
    for _ in range(5):
        over(repository, 0.5)
    told: list[tuple[str, int, int]] = []
    index = Index(repository, None, lambda *how: told.append(how))
    index.records()
    assert told == [("experiments", number, 5) for number in range(1, 6)]
    bucket.time += 2 * HOUR
    compact(repository)
    told.clear()
    index.records()
    assert told == [("experiments", 5, 5)]


# ---------------------------------------------------------------- with one


def test_the_first_listing_takes_a_handful_of_requests_however_many_there_are(
    bucket: Bucket, repository: Repository
) -> None:
    requests = []
    for _ in range(2):
        for _ in range(MANY):
            over(repository, 0.5, 0.25)
        bucket.time += 2 * HOUR
        compact(repository)
        bucket.forget()
        same_index = Index(repository, None)
        same_index.records()
        requests.append(dict(bucket.requests))
        assert not names(bucket)
    assert requests[0] == requests[1] == {"LIST": 3, "GET": 2}
    same(same_index, repository)


def test_a_snapshot_tells_how_many_checkpoints_are_left_of_a_resumed_run(
    bucket: Bucket, repository: Repository
) -> None:
    run = Run(repository)
    for loss in (0.5, 0.25, 0.125):
        run.commit(TREE, loss)
    run.resume(0)
    stop(run)
    bucket.time += 2 * HOUR
    compact(repository)
    bucket.forget()
    (record,) = Index(repository, None).records()
    assert (record.num_checkpoints, len(record.checkpoints)) == (1, 3)
    assert bucket.requests == {"LIST": 3, "GET": 2}


def test_the_next_listing_reads_only_the_manifest(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    for _ in range(MANY):
        over(repository, 0.5)
    bucket.time += 2 * HOUR
    compact(repository)
    index.records()
    bucket.forget()
    index.records()
    assert bucket.requests == {"LIST": 3, "GET": 1}


def test_what_has_changed_since_is_listed_and_read_by_itself(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    ids = [over(repository, 0.5) for _ in range(MANY)]
    bucket.time += 2 * HOUR
    compact(repository)
    index.records()
    tag(opened(bucket), ids[3], "paper")
    over(opened(bucket), 0.5)
    bucket.forget()
    assert len(index.records()) == MANY + 1
    assert bucket.requests["LIST"] == 3 + 2
    assert names(bucket) == {"experiment": 2, "journal": 3}
    bucket.forget()
    index.records()
    assert not names(bucket)
    same(index, repository)


def test_a_part_is_read_again_only_if_it_was_written_again(
    bucket: Bucket, repository: Repository, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicate.maintenance.compaction.PART_BYTES", 4000)
    ids = [over(repository, 0.5) for _ in range(MANY)]
    bucket.time += 2 * HOUR
    compact(repository)
    bucket.forget()
    index.records()
    first = sum(key.startswith(PARTS) for key in bucket.read)
    assert first > 4
    tag(opened(bucket), ids[0], "paper")
    bucket.time += 2 * HOUR
    compact(repository)
    bucket.forget()
    index.records()
    assert 1 <= sum(key.startswith(PARTS) for key in bucket.read) < first
    same(index, repository)


def test_when_most_has_changed_all_is_listed_at_once(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    ids = [over(repository, 0.5) for _ in range(100)]
    bucket.time += 2 * HOUR
    compact(repository)
    person = opened(bucket)
    for id in ids[1:]:
        tag(person, id, "paper")
    bucket.forget()
    same(index, repository)
    index.records()
    pages = -(-sum(1 for _ in bucket.list("experiments/")) // PAGE)
    bucket.forget()
    index.records()
    assert bucket.requests["LIST"] == 3 + pages
