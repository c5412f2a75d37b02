"""Many writers, removers, collectors and readers at once on one bucket: nothing that anybody sees
is ever lost or half there, and what is deleted is cleared away.

With 64 writers where a request costs nothing, and with fewer on a real S3 server.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event

import pytest

from replicate import blobs
from replicate.backends.base import Content
from replicate.backends.location import open_backend
from replicate.backends.memory import MemoryBackend
from replicate.blobs import Recent
from replicate.errors import DamagedError
from replicate.maintenance import check, collect
from replicate.maintenance.references import objects as needed_objects
from replicate.maintenance.references import read_tree, references
from replicate.model import ExperimentRecord, Status, Stop
from replicate.records import new_id, now, stop_data
from replicate.repository import Repository
from replicate.tree import Source, add_tree
from saving import Run, broken, objects

CONTENTS = [f"{number} ".encode() * 200 for number in range(16)]

Open = Callable[[], Repository]
Collector = Callable[[Repository, float], int]


class Busy(MemoryBackend):
    """A bucket where others always come in between: each answer lets another thread go on."""

    remote = True

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        created = set()
        for key in items:  # one request each, as in a bucket
            created |= super().put_if_absent({key: items[key]})
            time.sleep(0)
        return created

    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        gone = set()
        for key in list(keys):
            gone |= super().delete([key], unless_modified_since)
            time.sleep(0)
        return gone


class Untouching(Busy):
    """A bucket whose writers leave alone what is there already."""

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        return super().put_if_absent({k: c for k, c in items.items() if self.stat(k) is None})


class Stress:
    """People at work on one repository, each through a connection of its own."""

    def __init__(self, open: Open, grace: float, collector: Collector) -> None:
        self.open = open
        self.grace = grace
        self.collector = collector
        self.done = Event()
        #: Checkpoints that took longer than a writer may, for which nothing is promised.
        self.late: set[str] = set()
        self._broken: dict[str, str] = {}
        self._seeds = count()
        self.removed = 0
        self.freed = 0

    def run(self, writers: int, checkpoints: int, enough: Callable[[], bool]) -> None:
        """Let `writers` save so many checkpoints each, while others delete, collect and read; and
        again until that is enough."""
        self.open().create()
        others = [self.remove_some, self.collect_all, self.collect_all, self.read_all]
        with ThreadPoolExecutor(writers + len(others)) as pool:
            started = [pool.submit(work) for work in others]
            try:
                while not enough():
                    seeds = [next(self._seeds) for _ in range(writers)]
                    list(pool.map(lambda seed: self.write(seed, checkpoints), seeds))
                    self._look()
            finally:
                self.done.set()
            for one in started:
                one.result()
        self._look()

    def write(self, seed: int, checkpoints: int) -> None:
        """Save a run whose files are a choice of few contents, stored again and again by all."""
        choice = random.Random(seed)
        repository = self.open()
        recent = Recent() if seed % 2 else None  # half of the writers use packs
        run = Run(repository)
        for _ in range(checkpoints):
            begun = time.monotonic()
            id = _checkpoint(run, recent, [choice.choice(CONTENTS) for _ in range(3)])
            if time.monotonic() - begun >= blobs.FRESH:
                self.late.add(id)
        stop = Stop(now(), Status.FINISHED)
        run.journal.append([("stop", stop.time, stop_data(stop))])

    def remove_some(self) -> None:
        """Delete one checkpoint or finished run after the other."""
        choice = random.Random(0)
        repository = self.open()
        while not self.done.is_set():
            for experiment in repository.experiments():
                data = _chosen(choice, experiment)
                if data is not None:
                    journal = repository.journal(experiment.id, new_id()[:16])
                    journal.append([("delete", now(), data)])
                    self.removed += 1

    def collect_all(self) -> None:
        """Collect garbage again and again."""
        repository = self.open()
        while not self.done.is_set():
            try:
                freed = self.collector(repository, self.grace)
                self.freed += freed
            except DamagedError as error:
                self._broken["seen by a collector"] = str(error)

    def read_all(self) -> None:
        """Read everything again and again, as those who list and check out."""
        while not self.done.is_set():
            self._look()

    def _look(self) -> None:
        self._broken |= broken(self.open())

    @property
    def lost(self) -> dict[str, str]:
        """What could be seen and not be had."""
        return {id: why for id, why in self._broken.items() if id not in self.late}


def _checkpoint(run: Run, recent: Recent | None, parts: list[bytes]) -> str:
    batch = run.repository.batch(recent=recent)
    sources = [Source(f"part{i}", view=memoryview(data)) for i, data in enumerate(parts)]
    tree, _ = add_tree(batch, sources, None)
    batch.flush()
    return run.commit(tree, packs=batch.packs_of(tree))


def _chosen(choice: random.Random, experiment: ExperimentRecord) -> dict[str, list[str]] | None:
    if experiment.stop is not None and choice.random() < 0.5:
        return {}
    doomed = [c.id for c in experiment.checkpoints if choice.random() < 0.5]
    return {"checkpoints": doomed} if doomed else None


def collected(repository: Repository, grace: float) -> int:
    """What the real collector does."""
    return collect(repository, grace=grace).objects


def naive(repository: Repository, grace: float) -> int:
    """A collector that deletes what was old and unreferenced when it looked, and looks once."""
    backend = repository.backend
    limit = backend.clock() - grace
    places = ("blobs/", "trees/", "packs/")
    old = {s.key for p in places for s in backend.list(p) if s.modified < limit}
    used: set[str] = set()
    for experiment in repository.experiments():
        for reference in references(experiment):
            used |= needed_objects(reference.ref, read_tree(repository, reference.ref))
    return len(backend.delete(old - used))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Gives writers a shorter memory, in proportion to a shorter grace period; and threads too."""
    usual = sys.getswitchinterval()

    def shorten(grace: float) -> None:
        monkeypatch.setattr(blobs, "FRESH", grace / 2)
        monkeypatch.setattr(blobs, "TOUCHED", grace / 6)
        monkeypatch.setattr(blobs, "_RECENT", grace / 4)
        sys.setswitchinterval(1e-4)

    yield shorten
    sys.setswitchinterval(usual)


def _in_memory(backend: MemoryBackend) -> Open:
    return lambda: Repository(backend)


def test_64_writers_beside_removers_collectors_and_readers_lose_nothing(
    hasty: Callable[[float], None],
) -> None:
    grace = 0.4
    hasty(grace)
    stress = Stress(_in_memory(Busy()), grace, collected)
    stress.run(64, 4, lambda: stress.freed > 50 or bool(stress.lost))
    assert stress.lost == {}
    repository = stress.open()
    if not stress.late:
        assert check(repository, full=True).damage == ()
        while (repository.backend.clock() - _youngest(repository)) < grace:
            pass
        collect(repository, grace=grace)
        assert objects(repository.backend).keys() <= _needed(repository)


@pytest.mark.parametrize(
    ("backend", "collector"), [(Busy, naive), (Untouching, collected)], ids=["naive", "untouching"]
)
def test_a_simpler_protocol_loses_something(
    hasty: Callable[[float], None], backend: type[Busy], collector: Collector
) -> None:
    grace = 0.1
    hasty(grace)
    stress = Stress(_in_memory(backend()), grace, collector)
    stress.run(8, 40, lambda: bool(stress.lost))
    assert stress.lost


def test_writers_beside_removers_and_collectors_on_a_real_server_lose_nothing(
    s3_url: str, hasty: Callable[[float], None]
) -> None:
    grace = 4.0  # its clock counts whole seconds
    hasty(grace)
    stress = Stress(lambda: Repository(open_backend(s3_url, relative_to=Path())), grace, collected)
    stress.run(8, 5, lambda: stress.freed > 10 or bool(stress.lost))
    assert stress.lost == {}
    if not stress.late:
        assert check(stress.open(), full=True).damage == ()


def _youngest(repository: Repository) -> float:
    places = ("blobs/", "trees/", "packs/")
    return max(stat.modified for place in places for stat in repository.backend.list(place))


def _needed(repository: Repository) -> set[str]:
    names: set[str] = set()
    for experiment in repository.experiments():
        for reference in references(experiment):
            names |= needed_objects(reference.ref, repository.tree(*reference.ref))
    return names
