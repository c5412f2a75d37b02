"""`replicate push`, `pull` and `cp`: experiments between any two repositories. What is missing is
brought, verified, and whatever cuts it off, the next time finishes it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend_contract import next_tick
from replicate.backends.base import Backend, Content, Stat
from replicate.backends.local import LocalBackend
from replicate.backends.memory import MemoryBackend
from replicate.blobs import blob_key
from replicate.errors import NotFoundError, StorageError, UsageError
from replicate.maintenance import Outcome, Transferred, check, collect, remove, transfer
from replicate.maintenance.removal import plan_removal
from replicate.model import ExperimentRecord, Status
from replicate.records import new_id, now, seal_event
from replicate.repository import Repository
from saving import Run, broken, contents, finished, objects, store

CODE = {"train.py": b"import replicate"}
LARGE = bytes(range(256)) * 400  # it compresses
_numbers = itertools.count()


class Bucket(MemoryBackend):
    """A store that behaves as a bucket does to those who use it: many requests at once."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.url = f"memory:{next(_numbers)}"
        self.written: list[str] = []

    def put(self, key: str, content: Content) -> None:
        self.written.append(key)
        super().put(key, content)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        created = super().put_if_absent(items, fresh=fresh)
        self.written += sorted(created)
        return created


def memory(directory: Path) -> Repository:
    return Repository(Bucket())


def disk(directory: Path) -> Repository:
    return Repository(LocalBackend(directory / f"repository {next(_numbers)}"))


KINDS: Mapping[str, Callable[[Path], Repository]] = {"disk": disk, "bucket": memory}
PAIRS = list(itertools.product(KINDS, KINDS))


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Repository, Repository]:
    """Two repositories, of which the first exists."""
    source, target = (KINDS[kind](tmp_path) for kind in request.param)
    source.create()
    return source, target


def push(source: Repository, target: Repository, *ids: str, **options: Any) -> Transferred:
    compress = target.compresses("auto")
    return transfer(source, target, ids or None, compress=compress, **options)


def counts(done: Transferred) -> dict[str, int]:
    return {outcome.value: len(ids) for outcome, ids in done.ids.items() if ids}


def records(repository: Repository) -> list[ExperimentRecord]:
    return repository.experiments()


def files(repository: Repository) -> list[dict[str, bytes]]:
    """All files of all checkpoints, in their order."""
    found = (c for e in repository.experiments() for c in e.checkpoints if c.tree)
    return [contents(repository, checkpoint) for checkpoint in found]


def everything(repository: Repository) -> dict[str, bytes]:
    backend = repository.backend
    return {stat.key: backend.get(stat.key) for stat in backend.list()}


# ------------------------------------------------------------ what is copied


def test_a_copy_is_the_same(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    finished(source, {"m": b"1"}, {"m": LARGE, "n/o": b"2"}, code=CODE)
    running = Run(source)
    running.checkpoint({"m": LARGE})
    running.beat()
    done = push(source, target)
    assert counts(done) == {"added": 2} and done.problems == []
    assert [e.checkpoints for e in records(target)] == [e.checkpoints for e in records(source)]
    assert files(target) == files(source)
    assert check(target, full=True).damage == ()
    assert [e.status for e in records(target)] == [Status.FINISHED, Status.LOST]


def test_a_second_time_nothing_is_written(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    finished(source, {"m": b"1"}, {"m": LARGE}, code=CODE)
    lost = Run(source)
    lost.checkpoint({"m": b"3"})
    lost.beat()
    push(source, target)
    before = everything(target)
    done = push(source, target)
    assert counts(done) == {"present": 2} and done.objects == 0
    assert everything(target) == before


def test_what_has_happened_since_is_added(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    run = Run(source)
    run.checkpoint({"m": b"1"})
    push(source, target)
    run.checkpoint({"m": LARGE})
    label = source.journal(run.id, new_id()[:16])
    label.append([("tag", now(), {"author": "ada@host", "add": ["good"], "remove": []})])
    points = source.journal(run.id, new_id()[:16], "log")
    points.append([("log", now(), {"source": "s", "first": 0, "points": [[0, 1, {"x": 1}]]})])
    run.stop()
    run.beat()
    assert counts(push(source, target)) == {"completed": 1}
    assert records(target) == records(source)
    assert records(target)[0].tags == ("good",)
    assert files(target) == files(source)
    assert target.history(records(target)[0]) == source.history(records(source)[0])


def test_both_sides_keep_what_only_they_have(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    id = finished(source, {"m": b"1"})
    push(source, target)
    for repository, tag in ((source, "here"), (target, "there")):
        label = repository.journal(id, new_id()[:16])
        label.append([("tag", now(), {"author": "a@h", "add": [tag], "remove": []})])
    other = finished(target, {"m": b"2"})
    assert counts(push(source, target)) == {"completed": 1}
    assert counts(push(target, source)) == {"completed": 1, "added": 1}
    assert records(source) == records(target)
    assert set(records(source)[0].tags) == {"here", "there"}
    assert other in source.ids()


def test_only_the_experiments_that_were_named(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    finished(source, {"m": b"1"})
    wanted = finished(source, {"m": b"2"})
    assert counts(push(source, target, wanted)) == {"added": 1}
    assert target.ids() == [wanted]
    assert len(objects(target.backend)) == 2


def test_only_what_is_missing_is_read(tmp_path: Path) -> None:
    source, target = Repository(Bucket()), Repository(Bucket())
    finished(source, {"m": LARGE}, {"m": b"2"})
    for repository in (source, target):
        store(repository, {"other": LARGE}, compress=repository is target)
    read: list[str] = []
    get = source.backend.get

    def watched(key: str, start: int = 0, length: int | None = None) -> bytes:
        read.append(key)
        return get(key, start, length)

    source.backend.get = watched  # type: ignore[method-assign]
    push(source, target)
    assert len([key for key in read if key.startswith("blobs/")]) == 1
    assert files(target) == files(source)


def test_what_is_there_is_touched_like_by_every_writer(tmp_path: Path) -> None:
    """Or a collector would take it between our look and our journal line."""
    time = [1_000_000.0]
    backend = MemoryBackend(clock=lambda: time[0])
    backend.url = "other"
    source, target = memory(tmp_path), Repository(backend)
    finished(source, {"m": LARGE})
    target.create()
    store(target, {"m": LARGE})
    time[0] += 7200

    class Collecting(Repository):
        """Collects garbage at the last moment before something refers to what was stored."""

        def announce(self, experiment: str) -> None:
            collect(Repository(backend))

    push(source, Collecting(backend))
    assert files(target) == files(source)


def test_compression_is_up_to_the_target(tmp_path: Path) -> None:
    raw, compressed = disk(tmp_path), memory(tmp_path)
    raw.create()
    finished(raw, {"m": LARGE})
    push(raw, compressed)
    again, far = disk(tmp_path), memory(tmp_path)
    push(compressed, again)
    push(compressed, far)
    assert objects(again.backend) == objects(raw.backend)
    assert objects(far.backend) == objects(compressed.backend) != objects(raw.backend)
    assert files(again) == files(far) == files(raw)


# ------------------------------------------------------------ deletions


def test_what_was_deleted_here_does_not_come_back(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    finished(source, {"m": b"1"})
    push(source, target)
    remove(target, plan_removal(target, records(target)))
    assert counts(push(source, target)) == {"deleted": 1}
    collect(target, grace=0)
    assert counts(push(source, target)) == {"deleted": 1}
    assert records(target) == [] == list(objects(target.backend))


def test_what_is_deleted_there_stays_here_unless_asked(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    finished(source, {"m": b"1"})
    push(source, target)
    finished(source, {"m": b"2"})
    remove(source, plan_removal(source, records(source)))
    assert counts(push(source, target)) == {"left out": 2}
    assert len(records(target)) == 1
    assert counts(push(source, target, deletions=True)) == {"removed": 1, "left out": 1}
    assert records(target) == []
    assert counts(push(source, target, deletions=True)) in (
        {"deleted": 1, "left out": 1},
        {"present": 1, "left out": 1},
    )


def test_a_deleted_checkpoint_is_deleted_in_the_copy_and_its_files_are_not_needed(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    run = Run(source)
    first = run.checkpoint({"m": b"1"})
    run.checkpoint({"m": b"2"})
    run.stop()
    (record,) = records(source)
    gone = [(record, c) for c in record.checkpoints if c.id == first]
    remove(source, plan_removal(source, gone))
    collect(source, grace=0)
    done = push(source, target)
    assert done.problems == []
    assert records(target) == records(source)
    assert check(target, full=True).damage == ()


# ------------------------------------------------------------ interruptions


class Failing(Bucket):
    """A bucket that takes so many writes and then is out of reach."""

    def __init__(self, store: dict[str, Any], writes: int) -> None:
        super().__init__()
        self.url = "failing"
        self._objects = store
        self.left = writes

    def _spend(self) -> None:
        if self.left == 0:
            raise StorageError("the network is gone")
        self.left -= 1

    def put(self, key: str, content: Content) -> None:
        self._spend()
        super().put(key, content)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        created: set[str] = set()
        for key in items:  # each of its own, as in a bucket: some are there when it fails
            if super().stat(key) is None:
                self._spend()
            created |= super().put_if_absent({key: items[key]})
        return created


def test_whatever_cuts_it_off_nothing_is_half_there_and_the_next_time_finishes_it() -> None:
    source = Repository(Bucket())
    finished(source, {"m": b"1"}, {"m": LARGE, "n": b"2"}, code=CODE)
    run = Run(source)
    run.checkpoint({"m": b"3"})
    extra = source.journal(run.id, new_id()[:16], "console")
    extra.append([("output", now(), {"stream": "stdout", "source": "s", "first": 0, "end": 1})])
    run.stop()
    run.beat()
    whole = Repository(Bucket())
    push(source, whole)
    for writes in itertools.count():
        store: dict[str, Any] = {}
        target = Repository(Failing(store, writes))
        try:
            push(source, target)
            break
        except StorageError:
            pass
        seen = Repository(Failing(store, 0))
        assert broken(seen) == {}
        assert check(seen, full=True).damage == ()
        assert counts(push(source, Repository(Failing(store, 10_000)))).keys() <= {
            "added",
            "completed",
            "present",
        }
        assert everything(seen) == everything(whole)
    assert writes > 8
