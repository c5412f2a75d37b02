"""A snapshot shows what the experiments are, whoever writes, lists or compacts meanwhile."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from buckets import HOUR, TREE, Bucket, delete, opened, over, same, stop, tag
from buckets import bucket as bucket
from buckets import index as index
from buckets import repository as repository
from conftest import ProjectDirectory
from replicate.backends.base import Content
from replicate.changes import HOLDS, STALE, marked, marker
from replicate.errors import RepositoryError, StorageError
from replicate.index import Index, Match
from replicate.maintenance import collect, compact
from replicate.maintenance.compaction import KEPT, _Compaction
from replicate.model import Status
from replicate.records import new_id, now, seal_event, unseal
from replicate.repository import Repository
from replicate.snapshots import MANIFESTS, PARTS, latest_key, manifest_key, read_manifest
from saving import Run

# ---------------------------------------------------------------- what is in it


def test_what_is_over_is_taken_in_and_its_mark_goes(bucket: Bucket, repository: Repository) -> None:
    ids = {over(repository, 0.5, 0.25, 0.75) for _ in range(3)}
    running = Run(repository)
    assert marked(bucket).keys() == ids | {running.id}
    bucket.time += 2 * HOUR
    running.beat()
    done = compact(repository)
    assert (done.experiments, done.added, done.waiting, done.marks) == (3, 3, 1, 3)
    assert marked(bucket).keys() == {running.id}
    same(Index(repository, None), repository)


def test_what_ended_within_the_hour_waits(bucket: Bucket, repository: Repository) -> None:
    over(repository, 0.5)
    bucket.time += HOUR / 2
    assert compact(repository).waiting == 1
    bucket.time += HOUR
    assert compact(repository).experiments == 1


def test_a_run_that_was_lost_is_taken_in_as_lost(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    run = Run(repository)
    run.commit(TREE)
    run.beat()
    bucket.time += 2 * HOUR
    compact(repository)
    assert marked(bucket) == {}
    for _ in range(2):
        assert [r.status for r in index.records()] == [Status.LOST]
        same(index, repository)


def test_what_happens_to_an_old_experiment_is_seen_at_once_and_taken_in_later(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    tagged, deleted, shorter, other = (over(repository, 0.5, 0.25, 0.125) for _ in range(4))
    bucket.time += 2 * HOUR
    compact(repository)
    index.records()
    person = opened(bucket)
    tag(person, tagged, "paper")
    delete(person, deleted)
    best = repository.experiment(shorter).best()
    assert best
    delete(person, shorter, best.id)
    for _ in range(2):
        assert {r.id for r in index.records()} == {tagged, shorter, other}
        same(index, repository)
        same(Index(repository, None), repository)
        bucket.time += 2 * HOUR
        compact(repository)
        assert marked(bucket) == {}
    assert compact(repository).added == 0


def test_deleted_experiments_are_not_read_again_and_again(
    bucket: Bucket, repository: Repository
) -> None:
    for _ in range(3):
        delete(repository, over(repository, 0.5))
    bucket.time += 2 * HOUR
    assert compact(repository).experiments == 0
    bucket.forget()
    compact(repository)
    assert not any(key.startswith("experiments/") for key in bucket.read)


def test_the_damaged_stay_out_of_it_and_are_shown_as_they_are(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    id = over(repository, 0.5)
    over(repository, 0.5)
    key = next(stat.key for stat in bucket.list(f"experiments/{id}/journal/"))
    whole = bucket.get(key)
    bucket.put(key, whole.replace(b'"loss":0.5', b'"loss":0.4'))
    bucket.time += 2 * HOUR
    assert compact(repository).waiting == 1
    same(index, repository)
    assert [bool(r.damage) for r in index.records() if r.id == id] == [True]
    bucket.put(key, whole)
    same(index, repository)


def test_what_was_copied_into_the_bucket_by_hand_is_seen_after_the_next_compaction(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    over(repository, 0.5)
    bucket.time += 2 * HOUR
    compact(repository)
    elsewhere = Bucket()
    elsewhere.time = bucket.time
    id = over(opened(elsewhere), 0.25)
    for stat in elsewhere.list("experiments/"):
        bucket.put(stat.key, elsewhere.get(stat.key))
    assert compact(repository).waiting == 1
    assert id in {r.id for r in index.records()}
    bucket.time += 2 * HOUR
    assert compact(repository).experiments == 2
    same(index, repository)


def test_nothing_is_done_to_say_what_would_be(bucket: Bucket, repository: Repository) -> None:
    over(repository, 0.5)
    bucket.time += 2 * HOUR
    before = {stat.key: stat.version for stat in bucket.list()}
    done = compact(repository, dry_run=True)
    assert (done.experiments, done.added, done.marks, done.written) == (1, 1, 1, 0)
    assert {stat.key: stat.version for stat in bucket.list()} == before


def test_a_disk_needs_none(tmp_path: Path) -> None:
    from saving import local

    assert not compact(local(tmp_path)).needed


# ---------------------------------------------------------------- ids


def test_ids_are_found_by_prefix_wherever_they_are(
    bucket: Bucket, repository: Repository, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicate.snapshots.manifest.IDS_TOGETHER", 20)
    old = [over(repository, *(0.5 for _ in range(10))) for _ in range(5)]
    bucket.time += 2 * HOUR
    compact(repository)
    recent = over(repository, 0.5)
    bucket.forget()
    for id in [*old, recent]:
        every = [c.id for c in repository.experiment(id).checkpoints]
        found = index.matches([id[:20], *(c[:20] for c in every), "", "x"])
        assert found == [[Match(id)], *([Match(id, c)] for c in every), [], []]
    (first, *_) = repository.experiment(old[0]).checkpoints
    every = {c.id for id in [*old, recent] for c in repository.experiment(id).checkpoints}
    found = index.matches([first.id[:1]])[0]
    assert {m.checkpoint for m in found if m.checkpoint} == {
        c for c in every if c.startswith(first.id[0])
    }
    bucket.forget()
    index.matches([first.id[:7]])
    assert sum(key.startswith(PARTS) for key in bucket.read) == 1


def test_the_id_of_a_checkpoint_that_was_deleted_is_not_found(
    bucket: Bucket, repository: Repository, index: Index
) -> None:
    id = over(repository, 0.5, 0.25)
    kept, gone = (c.id for c in repository.experiment(id).checkpoints)
    bucket.time += 2 * HOUR
    compact(repository)
    delete(opened(bucket), id, gone)
    for _ in range(2):
        assert index.matches([kept, gone]) == [[Match(id, kept)], []]
        bucket.time += 2 * HOUR
        compact(repository)


def test_no_part_of_ids_gets_too_large(
    bucket: Bucket, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicate.maintenance.compaction.GROUP_IDS", 10)
    ids = [over(repository, *(0.5 for _ in range(4))) for _ in range(5)]
    many = over(repository, *(0.5 for _ in range(11)))
    bucket.time += 2 * HOUR
    done = compact(repository)
    assert (done.experiments, done.waiting) == (5, 1)
    assert marked(bucket).keys() == {many}
    manifest = read_manifest(bucket, manifest_key(0))
    assert sorted(group.checkpoints for group in manifest.groups) == [4, 8, 8]
    same(Index(repository, None), repository)
    for id in [*ids, many]:
        for checkpoint in repository.experiment(id).checkpoints:
            found = Index(repository, None).matches([checkpoint.id])
            assert found == [[Match(id, checkpoint.id)]]


# ---------------------------------------------------------------- two at once


def test_of_two_compactions_at_once_one_begins_again_and_nothing_is_lost(
    bucket: Bucket, repository: Repository
) -> None:
    first = over(repository, 0.5)
    bucket.time += 1.5 * STALE
    over(repository, 0.5)
    slow = _Compaction(repository, None, afresh=False)
    bucket.time += 2 * HOUR
    assert compact(repository).experiments == 2
    assert marked(bucket) == {}
    assert slow.run(dry_run=False) is None
    assert {r.id for r in Index(repository, None).records()} > {first}
    same(Index(repository, None), repository)


def test_the_answer_to_a_put_that_got_lost_is_not_taken_for_a_rival(
    bucket: Bucket, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    over(repository, 0.5)
    bucket.time += 2 * HOUR
    put_if_absent = bucket.put_if_absent

    def lost(items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        created = put_if_absent(items, fresh=fresh)
        return set() if any(key.startswith(MANIFESTS) for key in items) else created

    monkeypatch.setattr(bucket, "put_if_absent", lost)
    assert compact(repository).marks == 1
    assert latest_key(bucket) == manifest_key(0)


def test_who_is_always_beaten_says_so(bucket: Bucket, repository: Repository) -> None:
    class Beaten(Bucket):
        def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
            for key in items:
                if key.startswith(MANIFESTS):
                    self.put(key, b"another")
            return super().put_if_absent(items, fresh=fresh)

    beaten = Beaten()
    over(opened(beaten), 0.5)
    beaten.time += 2 * HOUR
    with pytest.raises(StorageError, match="by others"):
        compact(opened(beaten))
    assert len(marked(beaten)) == 1


class Everybody:
    """Runs, people, and compactions that take their time, in an order that chance gives."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.chance = random.Random(seed)
        self.bucket = Bucket()
        self.repository = opened(self.bucket)
        self.repository.create()
        self.index = Index(self.repository, directory)
        self.runs: list[Run] = []
        self.slow: list[_Compaction] = []
        self.steps = [
            *(self.start, self.commit, self.commit, self.beat, self.stop, self.edit),
            *(self.wait, self.wait, self.compact, self.begin, self.end, self.collect),
        ]

    def start(self) -> None:
        self.runs.append(Run(opened(self.bucket)))

    def commit(self) -> None:
        if self.runs:
            self.chance.choice(self.runs).commit(TREE, self.chance.random())

    def beat(self) -> None:
        if self.runs:
            self.chance.choice(self.runs).beat()

    def stop(self) -> None:
        if self.runs:
            stop(self.runs.pop(self.chance.randrange(len(self.runs))))

    def edit(self) -> None:
        if ids := [r.id for r in self.repository.experiments()]:
            change = delete if self.chance.random() < 0.3 else partial(tag, name="paper")
            change(opened(self.bucket), self.chance.choice(ids))

    def wait(self) -> None:
        self.bucket.time += 60 * self.chance.choice([1, 10, 29, 31, 59, 61, 120])

    def compact(self) -> None:
        compact(self.repository)

    def begin(self) -> None:
        self.slow.append(_Compaction(self.repository, None, afresh=self.chance.random() < 0.1))

    def end(self) -> None:
        if self.slow:
            compaction = self.slow.pop(self.chance.randrange(len(self.slow)))
            if self.bucket.time - compaction._start < KEPT / 2:
                compaction.run(dry_run=False)

    def collect(self) -> None:
        collect(self.repository)


@pytest.mark.parametrize("seed", range(40))
def test_listings_are_right_whoever_does_what(seed: int, tmp_path: Path) -> None:
    everybody = Everybody(seed, tmp_path)
    for _ in range(60):
        everybody.chance.choice(everybody.steps)()
        same(everybody.index, everybody.repository)
    same(Index(everybody.repository, None), everybody.repository)


# ---------------------------------------------------------------- marks


def test_a_mark_is_made_before_the_first_write_and_again_after_half_an_hour(
    bucket: Bucket, repository: Repository
) -> None:
    run = Run(repository)
    first = bucket.stat(marker(run.id))
    run.commit(TREE)
    assert bucket.stat(marker(run.id)) == first
    bucket.time += HOLDS
    run.commit(TREE)
    again = bucket.stat(marker(run.id))
    assert first and again and again.modified == first.modified + HOLDS


def test_nothing_is_written_that_is_not_marked(bucket: Bucket, repository: Repository) -> None:
    class NoMarks(Bucket):
        def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
            if any(key.startswith("changes/") for key in items):
                raise StorageError("the network is down")
            return super().put_if_absent(items, fresh=fresh)

    journal = opened(bucket := NoMarks()).journal(new_id(), new_id()[:16])
    for _ in range(2):
        with pytest.raises(StorageError, match="network"):
            journal.append([("note", now(), {"author": "a@b", "text": "x"})])
    assert [stat.key for stat in bucket.list()] == []


# ---------------------------------------------------------------- old ones, and bad ones


def test_what_an_earlier_snapshot_had_stays_for_a_day(
    bucket: Bucket, repository: Repository
) -> None:
    over(repository, 0.5)
    bucket.time += 2 * HOUR
    compact(repository)
    earlier = {stat.key for stat in bucket.list("snapshots/")}
    bucket.time += 2 * KEPT
    over(repository, 0.5)
    bucket.time += 2 * HOUR
    compact(repository)
    assert earlier <= {stat.key for stat in bucket.list("snapshots/")}
    bucket.time += KEPT + HOUR
    collect(repository)
    key = latest_key(bucket)
    assert key == manifest_key(1)
    parts = {part.key for part in read_manifest(bucket, key).parts}
    assert {stat.key for stat in bucket.list("snapshots/")} == {key, *parts}
    same(Index(repository, None), repository)


def garbled(content: bytes) -> bytes:
    return content[:-7] + b"garbage"


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def of_a_later_version(content: bytes) -> bytes:
    return seal_event({**unseal(content.rstrip(), ""), "version": 2})


def bomb(content: bytes) -> bytes:
    value = unseal(content.rstrip(), "")
    value["groups"][0]["rows"][2] = 1 << 40
    return seal_event(value)


@pytest.mark.parametrize(
    ("prefix", "spoil"),
    [
        (MANIFESTS, garbled),
        (MANIFESTS, halved),
        (MANIFESTS, bomb),
        (MANIFESTS, of_a_later_version),
        (PARTS, garbled),
        (PARTS, halved),
        (PARTS, None),
    ],
)
def test_a_bad_snapshot_costs_time_and_is_replaced(
    bucket: Bucket,
    repository: Repository,
    prefix: str,
    spoil: Callable[[bytes], bytes] | None,
) -> None:
    id = over(repository, 0.5, 0.25)
    (checkpoint, _) = repository.experiment(id).checkpoints
    bucket.time += 2 * HOUR
    compact(repository)
    for stat in list(bucket.list(prefix)):
        if spoil is None:
            bucket.delete([stat.key])
        else:
            bucket.put(stat.key, spoil(bucket.get(stat.key)))
    same(Index(repository, None), repository)
    assert Index(repository, None).matches([checkpoint.id]) == [[Match(id, checkpoint.id)]]
    if spoil is of_a_later_version:
        with pytest.raises(RepositoryError, match="another version"):
            compact(repository)
        return
    compact(repository)
    over(repository, 0.5)
    bucket.time += 2 * HOUR
    compact(repository)
    bucket.forget()
    same(Index(repository, None), repository)
    Index(repository, None).records()
    assert len(marked(bucket)) == 0


def test_a_number_after_which_there_is_none_is_no_way_to_hide_experiments(
    bucket: Bucket, repository: Repository
) -> None:
    over(repository, 0.5)
    bucket.time += 2 * HOUR
    bucket.put(f"{MANIFESTS}9999999999.json", b"")
    with pytest.raises(RepositoryError, match="no number"):
        compact(repository)
    assert len(marked(bucket)) == 1


# ---------------------------------------------------------------- on a server


def test_a_real_bucket_is_compacted_and_listed(
    project: ProjectDirectory, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("replicate.yaml", f"repository: {s3_url}")
    repository = project.open().repository
    repository.create()
    ids = [over(repository, 0.5, 0.25) for _ in range(3)]
    waiting = json.loads(project.cli("compact", "--json").stdout)
    assert (waiting["experiments"], waiting["waiting"]) == (0, 3)
    assert "3 experiments are not in it: they go on" in project.cli("compact").stdout
    monkeypatch.setattr("replicate.maintenance.compaction.STALE", -HOUR)
    assert compact(repository).experiments == 3
    assert marked(repository.backend) == {}
    assert "The shared listing has 3 experiments: 0 added" in project.cli("compact").stdout
    person = Repository(repository.backend)
    tag(person, ids[0], "paper")
    shown = json.loads(project.cli("ls", "--json").stdout)
    assert {e["id"]: e["tags"] for e in shown} == {ids[0]: ["paper"], ids[1]: [], ids[2]: []}
    (checkpoint, _) = repository.experiment(ids[1]).checkpoints
    assert json.loads(project.cli("show", checkpoint.id[:12], "--json").stdout)
    same(Index(repository, None), repository)
