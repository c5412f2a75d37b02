"""A bucket in memory: what a request costs is counted, and its clock is the test's own. With
what the tests of listing one share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import pytest

from replicate.backends.base import Content, Stat, validate_prefix
from replicate.backends.memory import MemoryBackend
from replicate.changes import Announcements
from replicate.index import Index
from replicate.model import ExperimentRecord, Status, Stop
from replicate.records import new_id, now, stop_data
from replicate.repository import Repository
from saving import Run

#: So many keys come with one request of a listing.
PAGE = 1000
#: Of the checkpoints: they have metrics, and no files.
TREE: Any = None
HOUR = 3600.0


class Bucket(MemoryBackend):
    """Counts requests by their kind, and remembers the keys that were read, by whom it was."""

    remote = True

    def __init__(self) -> None:
        self.time = 1_000_000.0
        super().__init__(lambda: self.time)
        self.url = "memory://bucket"
        self.requests: Counter[str] = Counter()
        self.read: list[str] = []
        self._counting = RLock()

    def forget(self) -> None:
        """Count from here."""
        self.requests.clear()
        self.read.clear()

    def _count(self, kind: str, keys: Iterable[str] = ("",)) -> None:
        with self._counting:
            for key in keys:
                self.requests[kind] += 1
                if kind == "GET":
                    self.read.append(key)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._count("GET", [key])
        return super().get(key, start, length)

    def put(self, key: str, content: Content) -> None:
        self._count("PUT")
        super().put(key, content)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        self._count("PUT", items)
        return super().put_if_absent(items, fresh=fresh)

    def stat(self, key: str) -> Stat | None:
        self._count("HEAD")
        return super().stat(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        validate_prefix(prefix, after)
        found = [*self._listed(prefix, after)]
        self._count("LIST", ("" for _ in range(max(1, -(-len(found) // PAGE)))))
        return iter(found)

    def _listed(self, prefix: str, after: str) -> Iterator[Stat]:
        with self._lock:
            objects = sorted((k, o) for k, o in self._objects.items() if k.startswith(prefix))
        return (Stat(k, len(o.content), o.modified, o.version) for k, o in objects if k > after)


# ---------------------------------------------------------------- experiments in it


def opened(bucket: Bucket) -> Repository:
    """The repository, as another process sees it."""
    repository = Repository(bucket)
    repository._announcements = Announcements(bucket, lambda: (bucket.time,))
    return repository


def seen(records: list[ExperimentRecord]) -> list[str]:
    """What can be seen of them. How a run that is over was last alive is not."""
    return [
        repr(
            (
                record.status,
                record.best(),
                record.latest(),
                record.primary_metric,
                record.num_checkpoints,
                replace(
                    record,
                    checkpoints=tuple(record.checkpoints),
                    heartbeat=None if record.stop else record.heartbeat,
                ),
            )
        )
        for record in records
    ]


def same(index: Index, repository: Repository) -> None:
    assert seen(index.records()) == seen(repository.experiments())


def over(repository: Repository, *losses: float) -> str:
    """A run that has ended, with a checkpoint for each of these losses; its id."""
    run = Run(repository)
    for loss in losses:
        run.commit(TREE, loss)
    stop(run)
    return run.id


def stop(run: Run) -> None:
    made = Stop(now(), Status.FINISHED)
    run.journal.append([("stop", made.time, stop_data(made))])


def tag(repository: Repository, id: str, name: str) -> None:
    data = {"author": "ada@lovelace", "add": [name], "remove": []}
    repository.journal(id, new_id()[:16]).append([("tag", now(), data)])


def delete(repository: Repository, id: str, *checkpoints: str) -> None:
    data = {"checkpoints": list(checkpoints)} if checkpoints else {}
    repository.journal(id, new_id()[:16]).append([("delete", now(), data)])


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def repository(bucket: Bucket) -> Repository:
    return opened(bucket)


@pytest.fixture
def index(repository: Repository, tmp_path: Path) -> Index:
    return Index(repository, tmp_path)
