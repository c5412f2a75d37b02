"""A listing is the same with the cache as without it, whatever happens to either of them; and what
has not changed is not read again."""

from __future__ import annotations

import marshal
import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from replicate import config
from replicate.backends.local import LocalBackend
from replicate.index import RACY_SECONDS, Index, Match
from replicate.model import (
    Attempt,
    CheckpointRecord,
    Edit,
    ExceptionInfo,
    ExperimentRecord,
    Origin,
    PrimaryMetric,
    Restored,
    Status,
    Stop,
)
from replicate.positional import pack, unpack
from replicate.records import new_id, now
from replicate.repository import Repository
from saving import Run

TREE = "ab" * 32


class Recorded(LocalBackend):
    """A directory that remembers which keys were read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.read.append(key)
        return super().get(key, start, length)


def age(root: Path, seconds: float = 60.0) -> None:
    """Let all files of the repository be that old, so that their versions can be trusted."""
    for file in (root / "experiments").rglob("*.json*"):
        modified = file.stat().st_mtime - seconds
        os.utime(file, (modified, modified))


def seen(records: Sequence[ExperimentRecord]) -> list[str]:
    """What can be seen of the records, where NaN is NaN: all but how old a heartbeat is exactly."""
    return [
        f"{r.status, r.best(), r.latest(), r.primary_metric, r.num_checkpoints, len(r.checkpoints)}"
        + repr(
            replace(
                r,
                heartbeat=r.heartbeat and replace(r.heartbeat, age=0.0),
                checkpoints=tuple(r.checkpoints),
            )
        )
        for r in records
    ]


def same(index: Index, repository: Repository) -> None:
    """The index shows what a read of everything shows."""
    assert seen(index.records()) == seen(repository.experiments())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def backend(root: Path) -> Recorded:
    return Recorded(root)


@pytest.fixture
def repository(backend: Recorded) -> Repository:
    return Repository(backend)


@pytest.fixture
def index(repository: Repository, tmp_path: Path) -> Index:
    return Index(repository, tmp_path / "cache")


@pytest.fixture
def runs(repository: Repository, backend: Recorded, root: Path) -> list[Run]:
    """Three runs that go on, some time after they wrote their last."""
    runs = [Run(repository) for _ in range(3)]
    for run in runs:
        run.commit(TREE, 0.5)
        run.commit(TREE, 0.25)
        run.beat()
    age(root)
    backend.read.clear()
    return runs


def cache_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache" / "index").glob("*.sqlite")
    return file


# ---------------------------------------------------------------- what is read


def test_what_has_not_changed_is_not_read_again(
    runs: list[Run], index: Index, backend: Recorded
) -> None:
    index.records()
    assert {key.split("/")[1] for key in backend.read} == {run.id for run in runs}
    backend.read.clear()
    assert [r.latest() and r.best() for r in index.records()] != [None] * 3
    assert backend.read == []


def test_a_new_checkpoint_makes_the_next_listing_read_one_journal(
    runs: list[Run], index: Index, backend: Recorded, root: Path
) -> None:
    index.records()
    id = runs[1].commit(TREE, 0.125)
    journal = root / f"experiments/{runs[1].id}/journal/{runs[1].journal.writer}-0.jsonl"
    os.utime(journal, (1e9, 1e9))
    backend.read.clear()
    (changed,) = (r for r in index.records() if r.id == runs[1].id)
    assert [key for key in backend.read if "journal" in key] == [
        str(journal.relative_to(root).as_posix())
    ]
    assert {key.split("/")[1] for key in backend.read} == {runs[1].id}
    assert (best := changed.best()) and best.id == id
    backend.read.clear()
    index.records()
    assert backend.read == []


def test_a_listing_looks_into_no_stream_but_the_journal(
    runs: list[Run], backend: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_logged = new_id()  # all else of it is lost
    for stream in ("console", "log", "system"):
        backend.put(f"experiments/{runs[0].id}/{stream}/w-0.jsonl", b"")
        backend.put(f"experiments/{only_logged}/{stream}/w-0.jsonl", b"")
    seen: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(str(path)) or scandir(path))
    assert set(Repository(backend).listing()) == {only_logged, *(run.id for run in runs)}
    assert {Path(path).name for path in seen if f"{runs[0].id}/" in path} == {
        runs[0].id,
        "journal",
    }


def test_a_new_heartbeat_makes_the_next_listing_read_only_the_heartbeat(
    runs: list[Run], index: Index, repository: Repository, backend: Recorded
) -> None:
    assert {r.status for r in index.records()} == {Status.LOST}
    runs[2].beat()
    backend.read.clear()
    assert {r.id for r in index.records() if r.status is Status.RUNNING} == {runs[2].id}
    assert backend.read == [f"experiments/{runs[2].id}/heartbeat.json"]
    backend.read.clear()
    same(index, repository)
    backend.read.clear()
    index.records()
    assert backend.read == []


def test_what_was_modified_just_now_is_read_again(
    repository: Repository, backend: Recorded, index: Index, root: Path
) -> None:
    Run(repository).commit(TREE)
    index.records()
    age(root, RACY_SECONDS / 4)
    index.records()
    backend.read.clear()
    index.records()
    assert any("journal" in key for key in backend.read)


def test_all_checkpoints_are_there_once_asked_for(
    runs: list[Run], index: Index, repository: Repository, backend: Recorded
) -> None:
    index.records()
    backend.read.clear()
    record = index.records()[0]
    assert len(record.checkpoints) == 2 and backend.read == []
    assert tuple(record.checkpoints) == repository.experiment(record.id).checkpoints


def test_how_many_are_left_of_a_resumed_run_is_told_without_reading_it(
    runs: list[Run], index: Index, repository: Repository, backend: Recorded, root: Path
) -> None:
    runs[0].resume(0)
    age(root)
    index.records()
    backend.read.clear()
    (record,) = (r for r in index.records() if r.id == runs[0].id)
    assert (record.num_checkpoints, len(record.checkpoints)) == (1, 2)
    assert backend.read == []
    assert repository.experiment(record.id).num_checkpoints == len(record.current) == 1


def test_the_cache_lies_where_the_environment_says(tmp_path: Path) -> None:
    named, shared = tmp_path / "named", tmp_path / "shared"
    environ = {"XDG_CACHE_HOME": str(shared)}
    assert config.load(tmp_path, environ=environ).cache == shared / "replicate"
    environ["REPLICATE_CACHE"] = str(named)
    assert config.load(tmp_path, environ=environ).cache == named
    for unusable in ("", "relative"):
        cache = config.load(tmp_path, environ={"XDG_CACHE_HOME": unusable}).cache
        assert cache == Path.home() / ".cache" / "replicate"


# ---------------------------------------------------------------- ids


def test_ids_are_found_by_prefix_and_those_of_deleted_ones_are_not(
    runs: list[Run], index: Index, repository: Repository
) -> None:
    first, second = (c.id for c in repository.experiment(runs[0].id).checkpoints)
    runs[0].journal.append([("delete", now(), {"checkpoints": [second]})])
    runs[1].journal.append([("delete", now(), {})])
    for _ in range(2):
        found = index.matches([runs[0].id[:20], first[:20], second[:20], runs[1].id, "", "x"])
        assert found == [[Match(runs[0].id)], [Match(runs[0].id, first)], [], [], [], []]


def test_the_ids_in_the_cache_are_those_of_the_listed_version(
    runs: list[Run], index: Index, backend: Recorded, repository: Repository, root: Path
) -> None:
    index.records()
    id = runs[0].commit(TREE)
    assert index.matches([id[:30]]) == [[Match(runs[0].id, id)]]
    age(root)
    index.records()
    backend.read.clear()
    assert index.matches([id[:30]]) == [[Match(runs[0].id, id)]]
    assert backend.read == []


# ---------------------------------------------------------------- damage of the repository


def test_what_is_damaged_is_never_kept_and_its_repair_is_seen(
    runs: list[Run], index: Index, repository: Repository, root: Path, tmp_path: Path
) -> None:
    index.records()
    journal = next((root / f"experiments/{runs[0].id}/journal").iterdir())
    shutil.copy2(journal, tmp_path / "copy")
    journal.write_bytes(journal.read_bytes().replace(b'"loss":0.5', b'"loss":0.4'))
    age(root)
    for _ in range(2):
        assert [len(r.damage) for r in index.records() if r.id == runs[0].id] == [1]
        same(index, repository)
    shutil.copy2(tmp_path / "copy", journal)
    same(index, repository)
    assert [r.damage for r in index.records()] == [()] * 3


def test_bytes_that_are_replaced_under_the_same_size_and_time_are_seen(
    runs: list[Run], index: Index, root: Path
) -> None:
    index.records()
    journal = next((root / f"experiments/{runs[0].id}/journal").iterdir())
    times = journal.stat().st_mtime_ns
    journal.write_bytes(journal.read_bytes().replace(b'"loss":0.5', b'"loss":0.4'))
    os.utime(journal, ns=(times, times))
    assert any(r.damage for r in index.records())


# ---------------------------------------------------------------- damage of the cache


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def no_database(file: Path) -> None:
    file.write_text("not a database " * 100)


def of_another_version(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.executescript(
        "DROP TABLE rows; CREATE TABLE rows (other INTEGER); PRAGMA user_version = 7"
    )
    connection.close()


def without_its_table(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.executescript("DROP TABLE rows")
    connection.close()


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    "spoil",
    [truncated, emptied, zeroed, no_database, of_another_version, without_its_table, removed],
)
def test_a_cache_that_was(
    spoil: Callable[[Path], None],
    runs: list[Run],
    index: Index,
    repository: Repository,
    backend: Recorded,
    tmp_path: Path,
) -> None:
    """A cache that was spoilt changes nothing that is listed, and is whole again thereafter."""
    index.records()
    spoil(cache_file(tmp_path))
    same(index, repository)
    index.records()
    backend.read.clear()
    index.records()
    assert backend.read == []


def test_flipped_bits_in_the_cache_are_never_shown(
    runs: list[Run], index: Index, repository: Repository, tmp_path: Path
) -> None:
    index.records()
    file = cache_file(tmp_path)
    good, chance = file.read_bytes(), random.Random(0)
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        file.write_bytes(bad)
        same(index, repository)
        assert [len(found) for found in index.matches([runs[0].id])] == [1]


def test_a_directory_that_cannot_be_is_done_without(
    runs: list[Run], repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for directory in (tmp_path / "file", tmp_path / ("long" * 100), None):
        same(Index(repository, directory), repository)


def test_a_full_disk_is_done_without(
    runs: list[Run], repository: Repository, small_disk: Path
) -> None:
    with open(small_disk / "rest", "wb", buffering=0) as rest, pytest.raises(OSError):
        while rest.write(bytes(4096)):
            pass
    for _ in range(2):
        same(Index(repository, small_disk), repository)


def test_a_cache_that_a_hung_process_has_locked_is_done_without(
    runs: list[Run], index: Index, repository: Repository, tmp_path: Path
) -> None:
    index.records()
    script = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(cache_file(tmp_path))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as hung:
        assert hung.stdout is not None and hung.stdout.readline() == b"locked\n"
        runs[0].commit(TREE)
        same(index, repository)
        assert [len(found) for found in index.matches([runs[0].id])] == [1]
        hung.kill()
    assert cache_file(tmp_path).exists()


def test_many_processes_build_one_cache_and_each_lists_everything(
    runs: list[Run], repository: Repository, root: Path, tmp_path: Path
) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from replicate.backends.local import LocalBackend
        from replicate.index import Index
        from replicate.repository import Repository
        repository = Repository(LocalBackend(Path(sys.argv[1])))
        for _ in range(20):
            records = Index(repository, Path(sys.argv[2])).records()
            print(*(r.id for r in records), sum(len(r.checkpoints) for r in records))
    """)
    command = [sys.executable, "-c", script, str(root), str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    expected = f"{' '.join(r.id for r in repository.experiments())} 6"
    for process in processes:
        out, err = process.communicate()
        assert out.splitlines() == [expected] * 20, err
        assert err == ""


# ---------------------------------------------------------------- any sequence of events


class Listings(RuleBasedStateMachine):
    """Anything may happen to a repository and to the cache; the two ways to list always agree."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(os.environ["XDG_CACHE_HOME"]) / new_id()
        self.root = self.place / "repository"
        self.repository = Repository(LocalBackend(self.root))
        self.repository.create()
        self.index = Index(self.repository, self.place)
        self.runs: list[Run] = []
        self.copies: dict[Path, bytes] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    def run_(self, n: int) -> Run:
        return self.runs[n % len(self.runs)]

    def files(self) -> list[Path]:
        return sorted((self.root / "experiments").rglob("*.json*"))

    def file(self, n: int) -> Path:
        return self.files()[n % len(self.files())]

    @rule()
    def begin(self) -> None:
        self.runs.append(Run(self.repository))

    @precondition(lambda self: self.runs)
    @rule(n=st.integers(0, 9), loss=st.sampled_from([0.5, 0.25, math.nan]))
    def checkpoint(self, n: int, loss: float) -> None:
        self.append(n, "checkpoint", loss)

    @precondition(lambda self: self.runs)
    @rule(n=st.integers(0, 9), kind=st.sampled_from(["tag", "stop", "delete", "delete one"]))
    def event(self, n: int, kind: str) -> None:
        self.append(n, kind, 0.0)

    def append(self, n: int, kind: str, loss: float) -> None:
        run = self.run_(n)
        directory = self.root / f"experiments/{run.id}/journal"
        sizes = [file.stat().st_size for file in directory.glob("*")]
        if sum(sizes) != len(run.journal._written):
            return  # its file was damaged: a writer would refuse, and readers see that loss
        if kind == "checkpoint":
            run.commit(TREE, loss)
        elif kind == "stop":
            run.stop()
        elif kind == "tag":
            edit = {"add": ["good"], "remove": [], "author": "ada@lovelace"}
            run.journal.append([("tag", now(), edit)])
        elif kind == "delete":
            run.journal.append([("delete", now(), {})])
        else:
            listed = (r for r in self.repository.experiments() if r.id == run.id)
            ids = [c.id for r in listed for c in r.checkpoints[:1]]
            run.journal.append([("delete", now(), {"checkpoints": ids})])

    @precondition(lambda self: self.runs)
    @rule(n=st.integers(0, 9))
    def beat(self, n: int) -> None:
        self.run_(n).beat()

    @precondition(lambda self: self.files())
    @rule(n=st.integers(0, 99), at=st.integers(0, 9999), keep_time=st.booleans())
    def damage(self, n: int, at: int, keep_time: bool) -> None:
        """Another byte in place of one, in a file of the same size."""
        file = self.file(n)
        content, times = bytearray(file.read_bytes()), file.stat().st_mtime_ns
        self.copies.setdefault(file, bytes(content))
        if content:
            content[at % len(content)] ^= 1
            file.write_bytes(content)
        if keep_time:
            os.utime(file, ns=(times, times))

    @rule()
    def repair(self) -> None:
        """Restore what was damaged, unless more was written to it since."""
        for file, content in self.copies.items():
            if file.exists() and file.stat().st_size == len(content):
                file.with_suffix(".tmp").write_bytes(content)
                file.with_suffix(".tmp").rename(file)
        self.copies.clear()

    @precondition(lambda self: self.files())
    @rule(n=st.integers(0, 99))
    def lose(self, n: int) -> None:
        self.file(n).unlink()

    @rule(seconds=st.sampled_from([60.0, 1.0, -60.0]))
    def clock(self, seconds: float) -> None:
        """Time goes by, or the storage's clock is set back."""
        age(self.root, seconds)

    @rule(n=st.integers(0, 9999), how=st.sampled_from([truncated, zeroed, removed, "flipped"]))
    def spoil(self, n: int, how: Callable[[Path], None] | str) -> None:
        for file in (self.place / "index").glob("*.sqlite"):
            if callable(how):
                how(file)
            elif content := bytearray(file.read_bytes()):
                content[n % len(content)] ^= 8
                file.write_bytes(content)

    @invariant()
    def listings_agree(self) -> None:
        expected = self.repository.experiments()
        assert seen(self.index.records()) == seen(expected)
        ids = [(r.id, c.id) for r in expected for c in r.checkpoints]
        for experiment, checkpoint in ids[-2:]:
            assert self.index.matches([checkpoint[:12]]) == [[Match(experiment, checkpoint)]]


Listings.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_any_sequence_of_events = Listings.TestCase


# ---------------------------------------------------------------- positional values


def test_every_value_of_an_experiment_comes_out_of_its_positional_form() -> None:
    time = now()
    stop = Stop(time, Status.FAILED, ExceptionInfo("E", "no", "Traceback"), "SIGKILL", 3)
    checkpoint = CheckpointRecord(
        id="c",
        experiment="e",
        created=time,
        step=1.5,
        path=("a", "b"),
        tree=None,
        metrics={"loss": math.inf, "n": {"$float": 1}},
        primary_metric=PrimaryMetric("loss", "maximize"),
    )
    attempt = Attempt(
        number=2,
        created=time,
        params={"a": [1, {}]},
        user="u",
        host="h",
        command="\udc80\n",
        path=("a",),
        tree=TREE,
        restored=Restored("c", 1, time),
        stop=stop,
    )
    record = ExperimentRecord(
        id="e",
        created=time,
        params={"a": None, "b": [1, 2.0, True]},
        user="u",
        host="h",
        command="c",
        path="p",
        tree=None,
        tags=("x", "y"),
        stop=stop,
        problems=("p",),
        parent=Origin("e", "c"),
        attempts=(attempt,),
        edits=(Edit(time, "a@b", "tag", {"add": ["x"]}),),
    )
    for value in (record, checkpoint):
        packed = marshal.loads(marshal.dumps(pack(value), 2))
        instead = {"checkpoints": ()} if value is record else {}
        assert unpack(type(value), packed, **instead) == value
