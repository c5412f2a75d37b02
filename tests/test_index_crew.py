"""A listing that several processes decode is the one that this process alone would give, whatever
becomes of them."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import replicate
from buckets import Bucket, stop
from replicate.backends.base import Stat
from replicate.backends.local import LocalBackend
from replicate.index import Index
from replicate.index.apart import MOST, SHARE, processes_for, read_apart
from replicate.index.crew import Crew
from replicate.index.worker import decoded, request
from replicate.records import now
from replicate.repository import Listed, Reading, Repository
from replicate.together import fetched
from saving import Run
from test_index import TREE, Recorded, age, seen

HOW_MANY = 30


@pytest.fixture(params=["disk", "bucket"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """Some of all that can be found in a repository."""
    disk = request.param == "disk"
    repository = Repository(Recorded(tmp_path / "repository") if disk else Bucket())
    for number in range(HOW_MANY):
        kind = KINDS[number % len(KINDS)]
        run = Run(repository)
        run.commit(TREE, 0.5)
        run.commit(TREE, float(number))
        run.beat()
        kind(run)
    if disk:
        age(tmp_path / "repository")
    racy = Run(repository)
    racy.commit(TREE)
    return repository


def goes_on(run: Run) -> None:
    pass


def is_deleted(run: Run) -> None:
    run.journal.append([("delete", now(), {})])


def loses_a_checkpoint(run: Run) -> None:
    (first, _) = run.repository.experiment(run.id).checkpoints
    run.journal.append([("delete", now(), {"checkpoints": [first.id]})])


def is_damaged(run: Run) -> None:
    change(run, "journal/", lambda data: data.replace(b'"loss":0.5', b'"loss":0.4'))


def is_cut_off(run: Run) -> None:
    change(run, "journal/", lambda data: data[: data.index(b"\n") + 1])


def has_no_inputs(run: Run) -> None:
    run.repository.backend.delete([f"experiments/{run.id}/experiment.json"])


def has_a_damaged_heartbeat(run: Run) -> None:
    change(run, "heartbeat.json", lambda data: data[:-9])


KINDS = (
    *(goes_on, stop, is_deleted, loses_a_checkpoint),
    *(is_damaged, is_cut_off, has_no_inputs, has_a_damaged_heartbeat),
)


def change(run: Run, name: str, how: Callable[[bytes], bytes]) -> None:
    backend = run.repository.backend
    (stat,) = [s for s in backend.list(f"experiments/{run.id}/") if name in s.key]
    backend.put(stat.key, how(backend.get(stat.key)))


def read(repository: Repository) -> set[str]:
    """The keys that have been read since this was last asked."""
    assert isinstance(repository.backend, Recorded | Bucket)
    keys = set(repository.backend.read)
    repository.backend.read.clear()
    return keys


def same(one: list[str], other: list[str]) -> None:
    """Without a difference that pytest would take minutes to show."""
    assert len(one) == len(other)
    assert [
        number for number, pair in enumerate(zip(one, other, strict=True)) if len({*pair}) > 1
    ] == []


# ---------------------------------------------------------------- the same answer


def test_several_processes_list_what_one_does(repository: Repository, tmp_path: Path) -> None:
    alone = Index(repository, tmp_path / "alone", processes=0)
    crew = Index(repository, tmp_path / "crew", processes=2)
    read(repository)
    for _ in range(2):  # the second time they read what was not kept
        expected, keys = seen(alone.records()), read(repository)
        assert sum("damage=()" not in record for record in expected) >= 9
        same(seen(crew.records()), expected)
        assert len(read(repository) ^ keys) == 0
    prefixes = [record.id[:9] for record in repository.experiments()]
    assert crew.matches(prefixes) == alone.matches(prefixes)


def test_a_run_that_goes_on_meanwhile_is_not_damaged(tmp_path: Path) -> None:
    class Between(Bucket):
        """Each journal is read just before another checkpoint and heartbeat come."""

        left: dict[str, Run] = {}  # noqa: RUF012

        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            found = super().get(key, start, length)
            if "/journal/" in key and (run := self.left.pop(key.split("/")[1], None)):
                run.commit(TREE)
                run.beat()
            return found

    between = Between()
    repository = Repository(between)
    runs = [Run(repository) for _ in range(8)]
    for run in runs:
        run.commit(TREE)
        run.beat()
    between.left = {run.id: run for run in runs}
    records = Index(repository, None, processes=2).records()
    assert [record.damage for record in records] == [()] * 8


# ---------------------------------------------------------------- what becomes of the processes


def test_the_share_of_a_process_that_dies_is_decoded_here(repository: Repository) -> None:
    listed = list(repository.listing().values())
    keys = [s.key for one in listed for s in (one.heartbeat, one.inputs, *one.journals) if s]
    asked = request(fetched(repository.backend, keys, 1, 1 << 20), listed)
    expected = decoded(asked)
    assert None in expected and any(expected)
    with Crew(2) as crew:
        assert [crew.rows(asked) for _ in range(3)] == [expected] * 3
        for worker in crew.workers:
            os.kill(worker.id, signal.SIGKILL)
            assert [crew.rows(asked) for _ in range(3)] == [expected] * 3


@pytest.mark.parametrize("python", ["/nowhere/python", shutil.which("false"), shutil.which("echo")])
def test_where_no_process_can_be_started_it_does_without(
    repository: Repository, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = seen(Index(repository, None, processes=0).records())
    monkeypatch.setattr(sys, "executable", python)
    same(seen(Index(repository, None, processes=2).records()), expected)


def test_a_process_of_another_version_is_not_believed(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = seen(Index(repository, None, processes=0).records())
    newer = tmp_path / "newer"
    shutil.copytree(Path(replicate.__file__).parent, newer / "replicate")
    with (newer / "replicate" / "index" / "worker.py").open("a") as worker:
        worker.write("\n\nids_of = lambda record: '\\nanother'\n")
    monkeypatch.setattr(sys, "path", [str(newer), *sys.path])
    same(seen(Index(repository, tmp_path, processes=2).records()), expected)
    (checkpoint, *_) = repository.experiments()[0].checkpoints
    assert len(Index(repository, tmp_path, processes=2).matches([checkpoint.id])[0]) == 1


def test_no_process_is_left_when_a_listing_is_given_up(repository: Repository) -> None:
    listed = list(repository.listing().values())
    others = set(psutil.Process().children())  # such as servers of other tests
    readings = read_apart(repository, listed, 2)
    made = next(readings)
    assert (made.listed if isinstance(made, Reading) else made[0]) == listed[0]
    assert len(set(psutil.Process().children()) - others) == 2
    readings.close()  # type: ignore[attr-defined]
    assert set(psutil.Process().children()) <= others


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no way to wait for a grandchild")
def test_no_process_outlives_a_listing_that_is_killed() -> None:
    script = """if True:
        import sys
        from replicate.index.crew import Crew
        crew = Crew(2)
        print(*[worker.id for worker in crew.workers], flush=True)
        sys.stdin.read()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        workers = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2 and select.select(workers, [], [], 0) == ([], [], [])
        parent.kill()
        for worker in workers:
            assert select.select([worker], [], [], 60)[0], "it goes on"
            os.close(worker)


# ---------------------------------------------------------------- when they pay


def made_up(size: int) -> Listed:
    return Listed("a" * 64, None, (Stat("journal", size, 0.0, "1"),), None)


def test_few_or_small_experiments_are_read_by_one_process() -> None:
    assert processes_for([]) == 0
    assert processes_for([made_up(100)] * 1000) == 0
    assert processes_for([made_up(100 * SHARE)]) == 0


def test_no_more_processes_are_started_than_there_are_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [made_up(SHARE)] * 100
    for cores, expected in {1: 0, 2: 2, 64: MOST}.items():
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n), raising=False)
        assert processes_for(many) == expected
    monkeypatch.setattr(sys, "executable", None)
    assert processes_for(many) == 0


def test_a_frozen_application_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert processes_for([made_up(SHARE)] * 100) == MOST
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert processes_for([made_up(SHARE)] * 100) == 0


def test_large_experiments_are_read_when_their_turn_comes(tmp_path: Path) -> None:
    repository = Repository(LocalBackend(tmp_path))
    for _ in range(3):
        run = Run(repository)
        run.journal.append([("problem", now(), {"message": "x" * (9 << 20)})])
        stop(run)
    expected = seen(repository.experiments())
    listed = list(repository.listing().values())
    assert all(isinstance(made, Reading) for made in read_apart(repository, listed, 2))
    same(seen(Index(repository, None, processes=2).records()), expected)
