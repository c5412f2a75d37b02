"""Collecting garbage beside writers loses nothing that anybody can see.

First every order in which one writer and one collector can interleave, step by step; the same
orders show that a simpler collector, or a writer that breaks its part of the contract, does lose
something. Then many processes at once, in whatever order they come.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import combinations_with_replacement
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from backend_contract import next_tick
from replicate.backends.base import Content, Stat
from replicate.backends.local import LocalBackend
from replicate.backends.memory import MemoryBackend
from replicate.errors import DamagedError
from replicate.maintenance import announced, check, collect
from replicate.maintenance.gc import GRACE
from replicate.maintenance.references import objects as needed_objects
from replicate.maintenance.references import references
from replicate.model import ExperimentRecord
from replicate.records import new_id, now
from replicate.repository import Repository
from saving import Run, age, broken, local, objects, store

# ------------------------------------------------------------ every order of steps

#: The moments of a collection at which a writer may do something: before it reads the clock,
#: lists, marks and removes, and after all. A writer stores at one, and commits there or later.
BEFORE, LISTING, MARKING, REMOVING, AFTER = range(5)
ORDERS = list(combinations_with_replacement(range(5), 2))
FILES = {"model.pth": b"weights"}

Collector = Callable[[Repository], object]
Order = tuple[int, int]


class Gates:
    """Runs actions just before the steps of a collection."""

    def __init__(self) -> None:
        self.actions: dict[int, list[Callable[[], None]]] = {}

    def open(self, step: int) -> None:
        for action in self.actions.pop(step, []):
            action()


class GatedMemory(MemoryBackend):
    """A store whose clock stands still unless it is moved; its writers touch what they reuse."""

    def __init__(self, gates: Gates) -> None:
        self.time = 1_000_000.0
        self.gates = gates
        super().__init__(clock=lambda: self.time)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        self.gates.open({"blobs/": LISTING, "experiments/": MARKING}.get(prefix, -1))
        return super().list(prefix, after)

    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        self.gates.open(REMOVING)
        return super().delete(keys, unless_modified_since)


class Untouching(GatedMemory):
    """A store whose writers leave alone what is there already."""

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        return super().put_if_absent({k: c for k, c in items.items() if self.stat(k) is None})


class GatedLocal(LocalBackend):
    """A directory, as `GatedMemory`."""

    def __init__(self, root: Path, gates: Gates) -> None:
        super().__init__(root)
        self.gates = gates

    def clock(self) -> float:
        self.gates.open(BEFORE)
        return super().clock()

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        self.gates.open({"blobs/": LISTING, "experiments/": MARKING}.get(prefix, -1))
        return super().list(prefix, after)

    def outline(self, prefix: str, aside: Container[str]) -> Iterator[Stat]:
        self.gates.open({"experiments/": MARKING}.get(prefix, -1))
        return super().outline(prefix, aside)

    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        self.gates.open(REMOVING)
        return super().delete(keys, unless_modified_since)


def naive(repository: Repository) -> None:
    """A collector that unlinks what was old and unreferenced when it looked, and looks once."""
    backend = repository.backend
    limit = backend.clock() - GRACE
    old = {s.key for p in ("blobs/", "trees/") for s in backend.list(p) if s.modified < limit}
    used: set[str] = set()
    for experiment in repository.experiments():
        for reference in references(experiment):
            used |= needed_objects(reference.ref, repository.tree(*reference.ref))
    backend.delete(old - used)


def play(collector: Collector, backend: GatedMemory, order: Order, *, reuse: bool) -> bool:
    """Let a writer act at the moments of `order` while `collector` runs; whether all is there."""
    repository = Repository(backend)
    run = Run(repository)
    if reuse:  # what the writer is going to store is there already, and is old garbage
        store(repository, FILES)
    backend.time += 2 * GRACE
    trees: list[str] = []

    def stores() -> None:
        backend.time += 1
        trees.append(store(repository, FILES))

    def commits() -> None:
        backend.time += 1
        run.commit(trees[0])

    for moment, action in zip(order, (stores, commits), strict=True):
        backend.gates.actions.setdefault(moment, []).append(action)
    backend.gates.open(BEFORE)
    collector(repository)
    for moment in (LISTING, MARKING, REMOVING, AFTER):
        backend.gates.open(moment)
    (experiment,) = repository.experiments()
    assert len(experiment.checkpoints) == 1
    return not broken(repository)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_in_no_order_of_steps_is_anything_lost(order: Order, reuse: bool) -> None:
    assert play(collect, GatedMemory(Gates()), order, reuse=reuse)


def losses(collector: Collector, backend: Callable[[Gates], GatedMemory]) -> set[Order]:
    return {o for o in ORDERS if not play(collector, backend(Gates()), o, reuse=True)}


def test_a_collector_that_looks_only_once_loses_what_is_reused_meanwhile() -> None:
    assert losses(naive, GatedMemory) == {
        (MARKING, REMOVING),
        (MARKING, AFTER),
        (REMOVING, REMOVING),
        (REMOVING, AFTER),
    }


def test_a_writer_that_does_not_touch_what_it_reuses_loses_it() -> None:
    assert losses(collect, Untouching) == {
        (stored, committed) for stored, committed in ORDERS if stored <= REMOVING <= committed
    }


def play_without_grace(directory: Path, order: Order, *, announce: bool) -> bool:
    """As `play`, where nobody else writes, so that the collector waits for nobody."""
    gates = Gates()
    backend = GatedLocal(directory, gates)
    repository = Repository(backend)
    run = Run(repository)
    run.stop()
    store(repository, FILES)
    age(repository, 2 * GRACE, "blobs/")
    trees: list[str] = []
    with ExitStack() as presence:

        def stores() -> None:
            if announce:
                presence.enter_context(announced(repository))
            trees.append(store(repository, FILES))
            next_tick(backend)

        def commits() -> None:
            run.commit(trees[0])
            presence.close()

        for moment, action in zip(order, (stores, commits), strict=True):
            gates.actions.setdefault(moment, []).append(action)
        collect(repository)
        for moment in (LISTING, MARKING, REMOVING, AFTER):
            gates.open(moment)
    return not broken(repository)


@pytest.mark.parametrize("order", ORDERS)
def test_without_a_grace_period_nothing_is_lost_of_writers_that_say_that_they_are_there(
    tmp_path: Path, order: Order
) -> None:
    assert play_without_grace(tmp_path / "repository", order, announce=True)


def test_without_a_grace_period_writers_that_do_not_say_so_lose_what_they_had_stored_before(
    tmp_path: Path,
) -> None:
    lost = {
        order
        for order in ORDERS
        if not play_without_grace(tmp_path / f"{order}", order, announce=False)
    }
    assert lost == {(BEFORE, REMOVING), (BEFORE, AFTER)}


# ------------------------------------------------------------ many processes at once

#: Seconds. Short, so that objects become old enough to go while others store them again.
STRESS_GRACE = 0.3
#: By so much a file may say that it is older than it is.
TICK = 0.02
WRITERS, RUNS, CHECKPOINTS = 3, 6, 40
CONTENTS = [f"{number} ".encode() * 200 for number in range(40)]


def write(root: str, seed: int) -> None:
    """Save runs whose files are a choice of few contents, so that they are stored again and again.

    The contract gives a writer the grace period from storing to the journal line. A machine that
    is too busy may take longer: these checkpoints and their trees are noted, and not counted.
    """
    choice = random.Random(seed)
    repository = local(Path(root, "repository"))
    late: dict[str, str] = {}
    for _ in range(RUNS):
        run = Run(repository)
        for _ in range(CHECKPOINTS):
            files = {f"part{i}": choice.choice(CONTENTS) for i in range(3)}
            begun = time.monotonic()
            tree = store(repository, files)
            id = run.commit(tree)
            if time.monotonic() - begun >= STRESS_GRACE - TICK:
                late[id] = tree
        run.stop()
    Path(root, f"writer-{seed}.json").write_text(json.dumps(late))


def remove_some(root: str, seed: int) -> None:
    """Delete one checkpoint or finished run after the other, until the writers are done."""
    choice = random.Random(seed)
    repository = local(Path(root, "repository"))
    removed = 0
    while not Path(root, "done").exists():
        for experiment in repository.experiments():
            data = _choose(choice, experiment)
            if data is not None:
                journal = repository.journal(experiment.id, new_id()[:16])
                journal.append([("delete", now(), data)])
                removed += 1
    Path(root, "removed.json").write_text(json.dumps(removed))


def _choose(choice: random.Random, experiment: ExperimentRecord) -> dict[str, list[str]] | None:
    if experiment.stop is not None and choice.random() < 0.1:
        return {}
    doomed = [c.id for c in experiment.checkpoints if choice.random() < 0.3]
    return {"checkpoints": doomed} if doomed else None


def collect_repeatedly(root: str, number: int) -> None:
    """Collect until the writers are done; note why it was refused, if it ever was."""
    repository = local(Path(root, "repository"))
    freed, refused = 0, set[str]()
    while not Path(root, "done").exists():
        try:
            freed += collect(repository, grace=STRESS_GRACE).objects
        except DamagedError as error:
            refused.add(str(error))
    Path(root, f"collector-{number}.json").write_text(json.dumps([freed, *refused]))


@pytest.fixture
def memory_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory whose writes do not wait for a disk that others keep busy, if there is one."""
    shared = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else tmp_path))
    yield directory
    shutil.rmtree(directory)


def test_writers_removers_and_collectors_at_once_lose_nothing_that_can_be_seen(
    memory_disk: Path,
) -> None:
    repository = local(memory_disk / "repository")
    root = str(memory_disk)
    processes = get_context("spawn")
    writers = [processes.Process(target=write, args=(root, seed)) for seed in range(WRITERS)]
    others = [processes.Process(target=remove_some, args=(root, 100))]
    others += [processes.Process(target=collect_repeatedly, args=(root, n)) for n in range(2)]
    lost: dict[str, str] = {}
    for process in writers + others:
        process.start()
    while any(writer.is_alive() for writer in writers):
        lost |= broken(repository)
    (memory_disk / "done").touch()
    for process in writers + others:
        process.join()
        assert process.exitcode == 0
    lost |= broken(repository)
    late: dict[str, str] = {}
    for seed in range(WRITERS):
        late |= _read(memory_disk, f"writer-{seed}")
    assert {id: why for id, why in lost.items() if id not in late} == {}
    assert _read(memory_disk, "removed") > 0
    collections = [_read(memory_disk, f"collector-{number}") for number in range(2)]
    assert sum(freed for freed, *_ in collections) > 0
    refused = [why for _, *whys in collections for why in whys]
    assert [why for why in refused if not any(tree in why for tree in late.values())] == []
    if not late:
        assert check(repository, full=True).damage == ()
        collect(repository)
        assert objects(repository.backend).keys() == _needed(repository)


def _read(root: Path, name: str) -> Any:
    return json.loads((root / f"{name}.json").read_text())


def _needed(repository: Repository) -> set[str]:
    names: set[str] = set()
    for experiment in repository.experiments():
        for reference in references(experiment):
            names |= needed_objects(reference.ref, repository.tree(*reference.ref))
    return names
