"""The storage contract as tests. A backend passes when a class that derives from `BackendContract`
and has a fixture `backend` passes."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest

from replicate.backends.base import Backend, Stat
from replicate.errors import KeyNotFoundError, UsageError

INVALID_KEYS = [
    "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.hidden", ".tmp/a", "a.", "a/b.",
    "a b", "a\\b", "a:b", "C:/a", "a\0b", "a\nb", "a\n", "é", "a" * 513,
]  # fmt: skip
METHODS: dict[str, Callable[[Backend, str], object]] = {
    "get": lambda backend, key: backend.get(key),
    "put": lambda backend, key: backend.put(key, b"x"),
    "put_if_absent": lambda backend, key: backend.put_if_absent({"good": b"x", key: b"x"}),
    "append": lambda backend, key: backend.append(key, b"", b"x"),
    "stat": lambda backend, key: backend.stat(key),
    "delete": lambda backend, key: backend.delete(["good", key]),
    "collect": lambda backend, key: backend.delete([key], unless_modified_since=0.0),
}


def keys(backend: Backend, prefix: str = "", after: str = "") -> list[str]:
    return [stat.key for stat in backend.list(prefix, after)]


def known(backend: Backend, key: str) -> Stat:
    found = backend.stat(key)
    assert found is not None
    return found


def next_tick(backend: Backend) -> float:
    """A time of the backend's clock after everything that has happened to it so far."""
    tell = partial(_exact_time, backend) if backend.remote else backend.clock
    start = tell()
    while (now := tell()) <= start:
        pass
    return now


def _exact_time(backend: Backend) -> float:
    """By what is written now: the clock of a bucket may be a second behind."""
    backend.put("now", b"")
    found = known(backend, "now")
    backend.delete(["now"])
    return found.modified


def in_parallel(*work: Callable[[], object]) -> list[object]:
    """Start all the work at the same moment; return the results in order, raise any failure."""
    barrier = Barrier(len(work))

    def start(function: Callable[[], object]) -> object:
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(start, work))


class BackendContract:
    def another(self, backend: Backend) -> Backend:
        """The same storage as another process sees it; the same object where there is only one."""
        return backend

    # Reading

    def test_get_returns_what_was_put(self, backend: Backend) -> None:
        backend.put("a/b", b"hello")
        assert self.another(backend).get("a/b") == b"hello"

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [(0, None, b"hello"), (1, 3, b"ell"), (3, 100, b"lo"), (5, None, b""), (9, 2, b""),
         (2, None, b"llo"), (0, 0, b""), (0, 1 << 60, b"hello")],
    )  # fmt: skip
    def test_get_reads_a_range(
        self, backend: Backend, start: int, length: int | None, expected: bytes
    ) -> None:
        backend.put("a", b"hello")
        assert backend.get("a", start, length) == expected

    def test_a_key_that_is_not_there_is_an_error_that_names_it(self, backend: Backend) -> None:
        backend.put("a/b", b"")
        for missing in ("c", "a", "a/b/c", "a/c"):
            with pytest.raises(KeyNotFoundError, match=missing):
                backend.get(missing)
            assert backend.stat(missing) is None

    def test_an_unused_backend_is_empty(self, backend: Backend) -> None:
        assert keys(backend) == [] == keys(backend, "blobs/")
        assert backend.delete(["a"]) == set() == backend.delete(["a"], unless_modified_since=1.0)
        assert backend.put_if_absent({}) == set()
        assert backend.clock() > 0

    def test_stat_tells_size_and_time(self, backend: Backend) -> None:
        before = backend.clock()
        backend.put("a/b", b"hello")
        found = known(backend, "a/b")
        assert (found.key, found.size) == ("a/b", 5)
        assert before <= found.modified <= next_tick(backend)

    def test_version_changes_with_the_bytes_and_not_without(self, backend: Backend) -> None:
        versions = []
        for content in (b"one", b"two"):
            backend.put("a", content)
            versions += [known(backend, "a").version, known(backend, "a").version]
        backend.append("a", b"two", b"!")
        versions.append(known(backend, "a").version)
        assert versions[0] == versions[1] != versions[2] == versions[3] != versions[4]

    # Writing

    @pytest.mark.parametrize("size", [0, 1, 3 << 20])
    def test_every_kind_of_content_is_written_whole(self, backend: Backend, size: int) -> None:
        content = (bytes(range(251)) * (size // 251 + 1))[:size]
        backend.put("bytes", content)
        backend.put_if_absent({"view": memoryview(content)})
        backend.append("journal", b"", memoryview(content))
        for key in ("bytes", "view", "journal"):
            assert backend.get(key) == content

    def test_a_mapped_file_can_be_closed_after_it_was_put(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        (tmp_path / "source").write_bytes(b"0123456789" * 1000)
        with (
            open(tmp_path / "source", "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
            view[10:5000] as part,
        ):
            backend.put_if_absent({"a": part, "b": view})
            backend.put("c", part)
        assert backend.get("a") == backend.get("c") == (b"0123456789" * 1000)[10:5000]

    def test_put_replaces(self, backend: Backend) -> None:
        backend.put("a", b"a long one")
        backend.put("a", b"short")
        assert backend.get("a") == b"short"

    def test_a_reader_never_sees_half_of_a_put(self, backend: Backend) -> None:
        size, rounds = 1 << 20, 30
        backend.put("a", bytes(size))

        def write() -> None:
            for number in range(rounds):
                backend.put("a", bytes([number]) * size)

        def read() -> set[int]:
            reader, seen = self.another(backend), set()
            while rounds - 1 not in seen:
                content = reader.get("a")
                assert content == content[:1] * size
                seen.add(content[0])
            return seen

        in_parallel(write, read, read)

    def test_put_if_absent_creates_only_what_is_absent(self, backend: Backend) -> None:
        backend.put("a/1", b"old")
        assert backend.put_if_absent({"a/1": b"new", "a/2": b"new", "b": b"new"}) == {"a/2", "b"}
        assert [backend.get(key) for key in ("a/1", "a/2", "b")] == [b"old", b"new", b"new"]
        assert backend.put_if_absent({"a/1": b"newer", "a/2": b"newer"}) == set()

    def test_put_if_absent_does_not_ask_for_the_content_of_what_exists(
        self, backend: Backend
    ) -> None:
        asked: list[str] = []

        class Contents(dict[str, bytes]):
            def __getitem__(self, key: str) -> bytes:
                asked.append(key)
                return super().__getitem__(key)

        backend.put_if_absent({"a": b"old"})
        since = next_tick(backend)
        assert backend.put_if_absent(Contents(a=b"", b=b"new")) == {"b"}
        assert set(asked) == {"b"}
        assert backend.get("a") == b"old" and known(backend, "a").modified >= since

    def test_put_if_absent_touches_what_exists(self, backend: Backend) -> None:
        backend.put_if_absent({"a": b"x", "b": b"x"})
        before = next_tick(backend)
        backend.put_if_absent({"a": b"x"})
        assert known(backend, "b").modified < before <= known(backend, "a").modified

    def test_of_many_writers_of_a_key_exactly_one_creates_it(self, backend: Backend) -> None:
        contents = [bytes([i]) * 5000 for i in range(32)]
        handles = [self.another(backend) for _ in contents]
        for key in (f"race/{number}" for number in range(3 if backend.remote else 12)):
            items = [{key: content} for content in contents]
            results = in_parallel(*map(partial, [h.put_if_absent for h in handles], items))
            winners = [i for i, created in enumerate(results) if created == {key}]
            assert len(winners) == 1
            assert backend.get(key) == contents[winners[0]]

    def test_a_batch_of_many_keys(self, backend: Backend) -> None:
        batch = {f"blobs/{i % 256:02x}/{i:08x}": b"%d" % i for i in range(300)}
        assert backend.put_if_absent(batch) == set(batch)
        reader = self.another(backend)
        assert {key: reader.get(key) for key in keys(backend)} == batch

    def test_append_adds(self, backend: Backend) -> None:
        backend.append("j/1", b"", b"one\n")
        backend.append("j/1", b"one\n", b"two\n")
        assert backend.get("j/1") == b"one\ntwo\n"

    def test_append_can_be_repeated(self, backend: Backend) -> None:
        backend.append("j", b"", b"one\n")
        backend.append("j", b"one\n", b"two and a failed en")
        backend.append("j", b"one\n", b"two\n")
        assert backend.get("j") == b"one\ntwo\n"

    # Listing

    TREE = ("a-b", "a.json", "a/b-c", "a/b/c", "a/b/d", "a/b0", "a0", "b/c", "z")

    def test_list_is_in_the_order_of_the_keys(self, backend: Backend) -> None:
        backend.put_if_absent({key: key.encode() for key in reversed(self.TREE)})
        assert keys(backend) == sorted(self.TREE)
        assert [stat.size for stat in backend.list()] == [len(key) for key in sorted(self.TREE)]

    def test_list_agrees_with_stat(self, backend: Backend) -> None:
        backend.put_if_absent(dict.fromkeys(self.TREE, b"x"))
        assert list(backend.list()) == [backend.stat(key) for key in sorted(self.TREE)]

    @pytest.mark.parametrize("prefix", ["", "a/", "a/b/", "b/", "c/", "z/", "a/b/c/"])
    def test_list_of_a_directory(self, backend: Backend, prefix: str) -> None:
        backend.put_if_absent(dict.fromkeys(self.TREE, b"x"))
        assert keys(backend, prefix) == [k for k in sorted(self.TREE) if k.startswith(prefix)]

    @pytest.mark.parametrize("after", [*TREE, "a", "a/b", "a/b/cc", "a/z", "0", "zz", "b/c/d"])
    @pytest.mark.parametrize("prefix", ["", "a/"])
    def test_list_after_a_key(self, backend: Backend, prefix: str, after: str) -> None:
        backend.put_if_absent(dict.fromkeys(self.TREE, b"x"))
        expected = [k for k in sorted(self.TREE) if k.startswith(prefix) and k > after]
        assert keys(backend, prefix, after) == expected

    @pytest.mark.parametrize("prefix", ["", "a/"])
    def test_an_outline_may_only_lack_what_stands_aside_beside_a_file(
        self, backend: Backend, prefix: str
    ) -> None:
        aside = ("a/x/log/1", "a/x/log/b/2")
        needed = ("a/x/m", "a/x/sub/1", "a/y/log/1", "a/y/log/deep/1", "a/z/log-1")
        backend.put_if_absent(dict.fromkeys((*aside, *needed), b"x"))
        found = [stat.key for stat in backend.outline(prefix, {"log"})]
        assert found == sorted(found)
        assert set(needed) <= set(found) <= {*needed, *aside}

    # Deleting

    def test_delete_returns_what_is_gone(self, backend: Backend) -> None:
        backend.put_if_absent({"a/1": b"x", "a/2": b"x", "b": b"x"})
        assert backend.delete(["a/1", "b", "missing", "a", "a/1/x"]) == {"a/1", "b"}
        assert keys(backend) == ["a/2"]
        assert backend.delete(["a/1"]) == set()
        assert backend.put_if_absent({"a/1": b"again"}) == {"a/1"}

    def test_delete_leaves_what_was_modified_since(self, backend: Backend) -> None:
        backend.put_if_absent({"old": b"x", "touched": b"x", "replaced": b"x", "longer": b"x"})
        since = next_tick(backend)
        backend.put_if_absent({"touched": b"x", "new": b"x"})
        backend.put("replaced", b"y")
        backend.append("longer", b"x", b"y")
        everything = keys(backend)
        assert backend.delete(everything, unless_modified_since=since) == {"old"}
        assert keys(backend) == ["longer", "new", "replaced", "touched"]

    def test_a_key_modified_at_that_very_time_is_left(self, backend: Backend) -> None:
        backend.put("a", b"x")
        assert backend.delete(["a"], unless_modified_since=known(backend, "a").modified) == set()
        assert backend.get("a") == b"x"

    def test_what_a_writer_touches_survives_collectors(self, backend: Backend) -> None:
        """Writers find keys present while two collectors delete the same, old, keys."""
        names = [f"blobs/{i:02x}/k" for i in range(24)]
        wanted, unwanted = names[::2], set(names[1::2])

        def write(wanted: list[str]) -> None:
            handle = self.another(backend)
            for key in wanted:
                handle.put_if_absent({key: b"x"})
                assert handle.get(key) == b"x"

        for _ in range(3 if backend.remote else 12):
            backend.put_if_absent(dict.fromkeys(names, b"x"))
            since = next_tick(backend)
            collect = [partial(self.another(backend).delete, names, since) for _ in range(2)]
            _, _, first, second = in_parallel(
                partial(write, wanted), partial(write, wanted[::3]), *collect
            )
            assert keys(backend) == wanted
            assert isinstance(first, set) and isinstance(second, set)
            assert unwanted <= first | second
            assert not unwanted & first & second

    # Keys

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("key", INVALID_KEYS)
    def test_an_invalid_key_is_refused_and_nothing_done(
        self, backend: Backend, method: str, key: str
    ) -> None:
        if method == "delete":
            backend.put("good", b"x")
        before = keys(backend)
        with pytest.raises(UsageError, match="not a valid storage key"):
            METHODS[method](backend, key)
        assert keys(backend) == before

    @pytest.mark.parametrize("key", ["../", "/", "a//", ".tmp/", "a/../"])
    def test_an_invalid_prefix_is_refused(self, backend: Backend, key: str) -> None:
        with pytest.raises(UsageError):
            backend.list(key)
        with pytest.raises(UsageError):
            backend.list(after=key)

    def test_half_a_name_is_no_prefix(self, backend: Backend) -> None:
        with pytest.raises(UsageError, match="whole directory"):
            backend.list("blobs/a")
