"""The backends keep the storage contract, and the local one survives what disks do."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backend_contract import BackendContract, keys, known, next_tick
from replicate.backends.base import Backend
from replicate.backends.local import STALE_SECONDS, LocalBackend
from replicate.backends.location import open_backend
from replicate.backends.memory import MemoryBackend
from replicate.backends.staging import Staging
from replicate.errors import ConfigError, DamagedError, KeyNotFoundError, StorageError
from servers import Server, enter


class TestMemory(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return MemoryBackend()

    def test_the_clock_may_be_given(self) -> None:
        now = [100.0]
        backend = MemoryBackend(clock=lambda: now[0])
        backend.put("a", b"x")
        now[0] = 200.0
        assert (known(backend, "a").modified, backend.clock()) == (100.0, 200.0)


class TestLocal(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        return LocalBackend(tmp_path / "root")

    def another(self, backend: Backend) -> Backend:
        return LocalBackend(Path(backend.url))


class TestLocalWithoutHardLinks(TestLocal):
    """As on exFAT, where link() answers EPERM."""

    @pytest.fixture(autouse=True)
    def _no_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(source: object, target: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)


class CloudContract(BackendContract):
    """The contract on a real server; a subclass says which."""

    def another(self, backend: Backend) -> Backend:
        return open_backend(backend.url, relative_to=Path())


class TestS3OfMoto(CloudContract):
    @pytest.fixture
    def backend(self, moto: Server, monkeypatch: pytest.MonkeyPatch) -> Backend:
        return open_backend(enter(moto, monkeypatch), relative_to=Path())


class TestS3OfMinistack(CloudContract):
    @pytest.fixture
    def backend(self, ministack: Server, monkeypatch: pytest.MonkeyPatch) -> Backend:
        return open_backend(enter(ministack, monkeypatch), relative_to=Path())


class TestGoogleCloudStorage(CloudContract):
    @pytest.fixture
    def backend(self, gcs: Server, monkeypatch: pytest.MonkeyPatch) -> Backend:
        return open_backend(enter(gcs, monkeypatch), relative_to=Path())


class TestAzure(CloudContract):
    @pytest.fixture
    def backend(self, azurite: Server, monkeypatch: pytest.MonkeyPatch) -> Backend:
        return open_backend(enter(azurite, monkeypatch), relative_to=Path())


KEYS = st.sampled_from(["a/x", "a/b/y", "a.json", "a-1", "ab", "b"])
BYTES = st.binary(max_size=40)


class LocalIsLikeMemory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.local = LocalBackend(Path(self.directory.name) / "root")
        self.memory = MemoryBackend()

    def both(self, call: Callable[[Backend], object]) -> None:
        assert call(self.local) == call(self.memory)

    @rule(key=KEYS, content=BYTES)
    def put(self, key: str, content: bytes) -> None:
        self.both(lambda b: b.put(key, content))

    @rule(items=st.dictionaries(KEYS, BYTES))
    def put_if_absent(self, items: dict[str, bytes]) -> None:
        self.both(lambda b: b.put_if_absent(items))

    @rule(key=KEYS, added=BYTES, kept=st.integers(0, 40))
    def append(self, key: str, added: bytes, kept: int) -> None:
        existing = self.memory.get(key)[:kept] if self.memory.stat(key) else b""
        self.both(lambda b: b.append(key, existing, added))

    @rule(wanted=st.sets(KEYS), limit=st.sampled_from([None, 0.0, float("inf")]))
    def delete(self, wanted: set[str], limit: float | None) -> None:
        self.both(lambda b: b.delete(wanted, unless_modified_since=limit))

    @rule(key=KEYS, start=st.integers(0, 50), length=st.none() | st.integers(0, 50))
    def get(self, key: str, start: int, length: int | None) -> None:
        if self.memory.stat(key):
            self.both(lambda b: b.get(key, start, length))
        else:
            with pytest.raises(KeyNotFoundError):
                self.local.get(key)

    @rule(prefix=st.sampled_from(["", "a/", "a/b/", "c/"]), after=st.just("") | KEYS)
    def list(self, prefix: str, after: str) -> None:
        self.both(lambda b: [(s.key, s.size) for s in b.list(prefix, after)])

    @invariant()
    def nothing_is_left_over(self) -> None:
        for hidden in (".tmp", ".trash"):
            assert not list_files(Path(self.local.url, hidden))

    def teardown(self) -> None:
        self.directory.cleanup()


def list_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


TestLocalIsLikeMemory = LocalIsLikeMemory.TestCase
TestLocalIsLikeMemory.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def local(root: Path) -> LocalBackend:
    return LocalBackend(root)


# What is on the disk


def test_opening_and_reading_creates_nothing(local: LocalBackend, root: Path) -> None:
    local.stat("a")
    list(local.list())
    local.clock()
    local.delete(["a"], unless_modified_since=1.0)
    assert not root.exists()


def test_a_key_is_a_plain_file_with_the_mode_that_the_umask_leaves(
    local: LocalBackend, root: Path
) -> None:
    before = os.umask(0o002)
    try:
        local.put("a/put", b"x")
        local.put_if_absent({"a/absent": b"x"})
        local.append("a/append", b"", b"x")
    finally:
        os.umask(before)
    files = [root / "a" / name for name in ("put", "absent", "append")]
    assert [path.read_bytes() for path in files] == [b"x"] * 3
    assert [oct(path.stat().st_mode & 0o777) for path in files] == ["0o664"] * 3
    assert oct((root / "a").stat().st_mode & 0o777) == "0o775"


def test_nothing_temporary_is_left(local: LocalBackend, root: Path) -> None:
    local.put("a", b"x")
    local.put_if_absent({f"b/{i}": b"x" for i in range(20)})
    local.put_if_absent({f"b/{i}": b"x" for i in range(20)})
    local.delete(keys(local), unless_modified_since=float("inf"))
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert [*(root / ".trash").iterdir()] == []


def test_what_is_not_a_key_is_not_listed(local: LocalBackend, root: Path) -> None:
    local.put("a/b", b"x")
    for name in (".DS_Store", "a/.b.swp", "a/b c", "a/b~"):
        (root / name).write_bytes(b"foreign")
    assert keys(local) == ["a/b"]


def test_symbolic_links_are_not_followed(local: LocalBackend, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    local.put("a/b", b"x")
    (root / "a" / "directory").symlink_to(outside)
    (root / "a" / "file").symlink_to(outside / "secret")
    (root / "a" / "dangling").symlink_to(tmp_path / "nowhere")
    assert keys(local) == ["a/b"]
    assert local.stat("a/file") is None
    with pytest.raises(StorageError, match="symbolic link"):
        local.get("a/file")
    for key in ("a/file", "a/dangling"):
        with pytest.raises(StorageError, match="symbolic link"):
            local.put_if_absent({key: b"x"})
        with pytest.raises(StorageError, match="symbolic link"):
            local.append(key, b"", b"x")
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_relative_root_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = LocalBackend(Path("here"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    backend.put("a", b"x")
    assert (tmp_path / "here" / "a").exists()
    assert backend.url == str(tmp_path / "here")


# After a crash


def crashed_delete(root: Path, key: str, *, age: float) -> Path:
    """What a delete that was killed between its rename and its judgement leaves behind."""
    trash = root / ".trash" / "crashed"
    held = trash / key
    held.parent.mkdir(parents=True)
    (root / key).rename(held)
    when = trash.stat().st_mtime - age
    os.utime(trash, (when, when))
    return held


def test_a_key_that_a_crashed_delete_holds_can_still_be_read(
    local: LocalBackend, root: Path
) -> None:
    local.put_if_absent({"blobs/ab/1": b"x"})
    crashed_delete(root, "blobs/ab/1", age=0)
    assert local.get("blobs/ab/1") == b"x"
    assert known(local, "blobs/ab/1").size == 1


def test_the_next_delete_puts_back_what_a_crashed_one_held(local: LocalBackend, root: Path) -> None:
    local.put_if_absent({"blobs/ab/1": b"x", "blobs/ab/2": b"x"})
    modified = known(local, "blobs/ab/1").modified
    crashed_delete(root, "blobs/ab/1", age=STALE_SECONDS + 60)
    assert local.delete(["blobs/ab/2"], unless_modified_since=float("inf")) == {"blobs/ab/2"}
    assert keys(local) == ["blobs/ab/1"]
    assert known(local, "blobs/ab/1").modified == modified  # so it can be judged again
    assert [*(root / ".trash").iterdir()] == []


def test_what_was_written_anew_is_not_replaced_by_what_a_crashed_delete_held(
    local: LocalBackend, root: Path
) -> None:
    local.put("a", b"old")
    crashed_delete(root, "a", age=STALE_SECONDS + 60)
    assert local.put_if_absent({"a": b"new"}) == {"a"}
    local.delete([], unless_modified_since=0.0)
    assert local.get("a") == b"new"
    assert list_files(root / ".trash") == []


def test_a_delete_at_work_is_left_alone(local: LocalBackend, root: Path) -> None:
    local.put("a", b"x")
    held = crashed_delete(root, "a", age=0)
    local.delete([], unless_modified_since=0.0)
    assert held.exists()
    assert keys(local) == []


def test_delete_without_a_condition_also_deletes_what_a_crashed_one_held(
    local: LocalBackend, root: Path
) -> None:
    local.put("a", b"x")
    crashed_delete(root, "a", age=STALE_SECONDS + 60)
    assert local.delete(["a"]) == {"a"}
    assert local.stat("a") is None
    local.delete([], unless_modified_since=0.0)
    assert keys(local) == []


def test_old_temporary_files_are_swept_and_fresh_ones_left(local: LocalBackend, root: Path) -> None:
    local.put("a", b"x")
    old, fresh = root / ".tmp" / "old", root / ".tmp" / "fresh"
    for path, age in ((old, STALE_SECONDS + 60), (fresh, 0.0)):
        path.write_bytes(b"half")
        os.utime(path, (local.clock() - age,) * 2)
    local.delete([], unless_modified_since=0.0)
    assert (old.exists(), fresh.exists()) == (False, True)


def test_append_to_a_file_that_was_shortened_is_refused(local: LocalBackend, root: Path) -> None:
    local.append("j", b"", b"one\ntwo\n")
    (root / "j").write_bytes(b"one\n")
    with pytest.raises(DamagedError, match="root/j has 4 bytes, but 8"):
        local.append("j", b"one\ntwo\n", b"three\n")
    assert (root / "j").read_bytes() == b"one\n"


# What disks do


def test_a_file_in_the_place_of_the_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    backend = LocalBackend(tmp_path / "file")
    for write in (
        lambda: backend.put("a", b"x"),
        lambda: backend.put_if_absent({"a": b"x", "b": b"x"}),
        lambda: backend.append("a", b"", b"x"),
    ):
        with pytest.raises(StorageError, match=f"{tmp_path}/file.*a file is where a directory"):
            write()


def test_a_directory_that_cannot_be_made_durable_is_a_failure_in_words(
    local: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    durably = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        durably(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for write in (
        lambda: local.put("a/b", b"x"),
        lambda: local.put_if_absent({"c/d": b"x"}),
        lambda: local.append("e/f", b"", b"x"),
    ):
        with pytest.raises(StorageError, match="the disk is full"):
            write()


def test_a_directory_in_the_place_of_a_key_is_named(local: LocalBackend) -> None:
    local.put("a/b", b"x")
    for write in (
        lambda: local.put("a", b"x"),
        lambda: local.put_if_absent({"a": b"x"}),
        lambda: local.append("a", b"", b"x"),
    ):
        with pytest.raises(StorageError, match="root/a: a directory is where a file should be"):
            write()
    with pytest.raises(StorageError, match="a file is where a directory should be"):
        local.put("a/b/c", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_is_not_ours_to_write_is_named(local: LocalBackend, root: Path) -> None:
    local.put("a/b", b"x")
    for directory in (root / "a", root / ".tmp", root):
        directory.chmod(0o555)
    try:
        with pytest.raises(StorageError, match="permission denied"):
            local.put("a/b", b"y")
        assert local.clock() > 0
        assert local.get("a/b") == b"x"
    finally:
        for directory in (root, root / ".tmp", root / "a"):
            directory.chmod(0o755)


def run_python(code: str, *arguments: str) -> None:
    """Run `code`, with the names that it needs, in a process of its own; it must succeed."""
    subprocess.run([sys.executable, "-c", SCRIPT + dedent(code), *arguments], check=True)


SCRIPT = """
import os, resource, sys
from pathlib import Path
from replicate.backends.local import LocalBackend
from replicate.backends.staging import Staging
from replicate.blobs import Batch
from replicate.errors import StorageError

root = Path(sys.argv[1])
local = LocalBackend(root)

def refused(call, cause):
    try:
        call()
    except StorageError as error:
        assert cause in str(error), error
    else:
        raise AssertionError("it was not refused")

def no_leftovers():
    return not list((root / ".tmp").iterdir())
"""


def test_a_write_that_fails_halfway_leaves_nothing_and_can_be_repeated(root: Path) -> None:
    run_python(
        """
        local.put("old", b"old")
        local.append("journal", b"", b"1" * 999 + b"\\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
        big = b"x" * 5000
        refused(lambda: local.put("old", big), f"cannot write {root}/old: the file is larger")
        refused(lambda: local.put_if_absent({"new": big, "small": b"x"}), "the file is larger")
        refused(lambda: local.append("journal", local.get("journal"), big), "the file is larger")
        assert local.get("old") == b"old" and local.stat("new") is None and no_leftovers()

        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        local.append("journal", b"1" * 999 + b"\\n", b"2\\n")
        assert local.get("journal") == b"1" * 999 + b"\\n2\\n"
        """,
        str(root),
    )


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Runs code with a disk of 1 MiB of its own as `root`; `remount()` makes it read-only."""
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path)]
    if (
        not shutil.which("unshare")
        or subprocess.run([*inside, "true"], capture_output=True).returncode
    ):
        pytest.skip("this system lets nobody but root mount a disk")
    remount = """
import subprocess
def remount():
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
"""

    def run(code: str) -> None:
        script = SCRIPT + remount + dedent(code)
        subprocess.run([*inside, sys.executable, "-c", script, str(tmp_path)], check=True)

    yield run


def test_a_full_disk_is_named_and_nothing_is_half_written(
    on_a_small_disk: Callable[[str], None],
) -> None:
    on_a_small_disk(
        """
        local.put("old", b"old")
        big = b"x" * (2 << 20)
        refused(lambda: local.put("old", big), "the disk is full\\nFree some space")
        refused(lambda: local.put_if_absent({"new": big, "a/small": b"x"}), "the disk is full")
        staging = Staging(local)
        staging.add("a/small", b"x")
        refused(lambda: staging.add("new", big), "the disk is full")
        staging.discard()
        batch = Batch(local, compress=False)
        def add():
            for number in range(40):
                batch.add_blob(os.urandom(1 << 20), None)
            batch.flush()
        refused(add, "the disk is full")
        assert not list(local.list("blobs/"))
        refused(lambda: local.append("journal", b"", big), "the disk is full")
        assert local.get("old") == b"old" and local.stat("new") is None and no_leftovers()
        local.append("journal", b"", b"line\\n")
        assert local.get("journal") == b"line\\n"
        assert local.clock() > 0
        """
    )


def test_a_read_only_disk_can_be_read_and_is_named_on_a_write(
    on_a_small_disk: Callable[[str], None],
) -> None:
    on_a_small_disk(
        """
        local.put("a", b"x")
        remount()
        assert local.get("a") == b"x" and [s.key for s in local.list()] == ["a"]
        assert local.clock() > 0
        for write in (
            lambda: local.put("a", b"y"),
            lambda: local.put_if_absent({"a": b"x", "b": b"x"}),
            lambda: local.append("a", b"x", b"y"),
            lambda: local.delete(["a"]),
            lambda: local.delete(["a"], unless_modified_since=float("inf")),
        ):
            refused(write, "not writable")
        """
    )


def test_what_is_staged_is_there_when_it_is_published_and_not_before(local: LocalBackend) -> None:
    local.put("a/old", b"old")
    before = next_tick(local)
    staging = Staging(local)
    staging.add("a/old", b"other")
    staging.add("a/new", b"new")
    assert keys(local) == ["a/old"]
    assert staging.publish() == {"a/new": 3}
    assert (local.get("a/old"), local.get("a/new")) == (b"old", b"new")
    assert local.delete(["a/old", "a/new"], unless_modified_since=before) == set()
    assert no_temporary_files(local)


def test_of_those_who_stage_the_same_key_one_creates_it(local: LocalBackend) -> None:
    first, second = Staging(local), Staging(local)
    first.add("a", b"x")
    second.add("a", b"x")
    assert (second.publish(), first.publish()) == ({"a": 1}, {})
    assert no_temporary_files(local)


def test_a_staging_that_is_forgotten_leaves_nothing(local: LocalBackend) -> None:
    staging = Staging(local)
    staging.add("a", b"x")
    assert not no_temporary_files(local)
    del staging
    assert no_temporary_files(local)
    assert keys(local) == []


def no_temporary_files(local: LocalBackend) -> bool:
    return not list(Path(local.url).glob(".tmp/*"))


def test_a_forked_child_can_write(local: LocalBackend) -> None:
    local.put_if_absent({"a": b"x", "b": b"x"})
    child = os.fork()
    if child == 0:
        created = local.put_if_absent({"a": b"x", "c": b"x", "d": b"x"})
        os._exit(0 if created == {"c", "d"} else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert keys(local) == ["a", "b", "c", "d"]


def test_the_clock_is_the_one_of_the_files(local: LocalBackend) -> None:
    local.put("a", b"x")
    assert known(local, "a").modified <= local.clock() < next_tick(local)


class Slow(dict[str, bytes]):
    """A batch that gives the content of "late" once "early" is written; `since` is in between."""

    def __init__(self, backend: LocalBackend) -> None:
        super().__init__(early=b"early", late=b"")
        self.backend, self.since = backend, 0.0

    def __getitem__(self, key: str) -> bytes:
        if key == "late" and not self.since:
            written: list[int] = []
            while 5 not in written:
                written = [path.stat().st_size for path in Path(self.backend.url).glob(".tmp/*")]
            self.since = next_tick(self.backend)
        return super().__getitem__(key)


def test_a_new_key_is_as_fresh_as_its_publication_however_long_the_batch_took(
    local: LocalBackend,
) -> None:
    batch = Slow(local)
    assert local.put_if_absent(batch) == {"early", "late"}
    assert known(local, "early").modified >= batch.since > 0
    assert local.delete(["early"], unless_modified_since=batch.since) == set()


# Where


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("store", "/project/store"),
        ("../store", "/store"),
        ("/data/store", "/data/store"),
        ("file://store", "/project/store"),
        ("file:///data/store", "/data/store"),
        ("FILE:///data", "/data"),
        ("~/store", "/home/someone/store"),
        ("file://~/store", "/home/someone/store"),
        ("s3:odd", "/project/s3:odd"),
    ],
)
def test_a_location_is_a_path(
    location: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert open_backend(location, relative_to=Path("/project")).url == expected


@pytest.mark.parametrize(
    "location",
    ["s3://", "s3:/bucket/root", "s3:///root", "s3://bucket/../other", "s3://bucket//a",
     "s3://bucket/a b", "s3://bucket/a#b", "s3://bucket/a\nb"],
)  # fmt: skip
def test_what_is_no_place_in_a_bucket_is_refused(location: str) -> None:
    with pytest.raises(ConfigError, match="not a bucket's location"):
        open_backend(location, relative_to=Path("/project"))


@pytest.mark.parametrize("location", ["s3://key:hunter2@bucket/a", "az://bucket/a?sig=hunter2"])
def test_credentials_in_a_location_are_refused_and_not_repeated(location: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_backend(location, relative_to=Path("/project"))
    assert "hunter2" not in str(caught.value)


def test_an_unknown_scheme_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'ftp://host/a'\n.*file://, s3://, gs://, az://"):
        open_backend("ftp://host/a", relative_to=Path("/project"))


@pytest.mark.parametrize("location", ["", "  ", "file://"])
def test_an_empty_location_is_refused(location: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        open_backend(location, relative_to=Path("/project"))
