"""What was read from a bucket is kept on this machine: within bounds, and never shown damaged."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from threading import Barrier

import pytest

from backend_contract import BackendContract
from buckets import Bucket
from replicate import compression
from replicate.backends.base import Backend
from replicate.backends.cached import Blobs, cached, uncached
from replicate.backends.local import LocalBackend
from replicate.blobs import blob_key, copy_blob, hash_of, read_blob
from replicate.errors import DamagedError
from replicate.packs import PackedView, Packs, encode_pack, pack_key
from replicate.repository import Repository
from replicate.tree import Entry, open_entry, stage
from saving import store

LIMIT = 64 << 20


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def backend(bucket: Bucket, tmp_path: Path) -> Backend:
    return cached(bucket, tmp_path, LIMIT)


class TestCached(BackendContract):
    """With the cache a bucket keeps every promise that it keeps without."""

    @pytest.fixture
    def backend(self, bucket: Bucket, tmp_path: Path) -> Backend:
        bucket._now = time.time
        return cached(bucket, tmp_path / "cache", LIMIT)


def blob(bucket: Bucket, content: bytes, suffix: str = "") -> str:
    hash = hash_of(content)
    bucket.put(blob_key(hash, suffix), compression.encode_as(suffix, content))
    return hash


def files(directory: Path) -> list[Path]:
    return [f for f in (directory / "blobs").rglob("*") if f.is_file() and f.name != "growth"]


@pytest.mark.parametrize("suffix", compression.SUFFIXES)
def test_what_was_read_is_not_fetched_again_also_by_another_process(
    bucket: Bucket, backend: Backend, tmp_path: Path, suffix: str
) -> None:
    content = b"weights " * 1000
    hash = blob(bucket, content, suffix)
    assert read_blob(backend, hash, len(content)) == content
    bucket.forget()
    assert read_blob(backend, hash, len(content)) == content
    assert read_blob(cached(bucket, tmp_path, LIMIT), hash, len(content)) == content
    assert not any(key.endswith(f"{hash}{suffix}") for key in bucket.read)


def test_only_what_never_changes_is_kept(bucket: Bucket, backend: Backend) -> None:
    for key in ("experiments/a/heartbeat.json", "snapshots/manifests/0000000000.json", "blobs/x"):
        bucket.put(key, b"old")
        backend.get(key)
        bucket.put(key, b"new")
        assert backend.get(key) == b"new"


def test_a_disk_has_no_cache(tmp_path: Path) -> None:
    local = LocalBackend(tmp_path)
    assert cached(local, tmp_path, LIMIT) is local
    assert cached(bucket := Bucket(), None, LIMIT) is bucket


def test_repositories_do_not_see_what_others_hold(
    bucket: Bucket, backend: Backend, tmp_path: Path
) -> None:
    content = b"weights"
    hash = blob(bucket, content)
    read_blob(backend, hash, len(content))
    other = Bucket()
    other.url = "memory://other"
    with pytest.raises(DamagedError, match="missing"):
        read_blob(cached(other, tmp_path, LIMIT), hash, len(content))


# ---------------------------------------------------------------- damage


def test_what_is_damaged_on_this_machine_is_fetched_again(
    bucket: Bucket, backend: Backend, tmp_path: Path
) -> None:
    content = b"weights " * 1000
    hash = blob(bucket, content)
    read_blob(backend, hash, len(content))
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    for spoilt in (b"", whole[:100], whole[:-1] + b"x", b"x" + whole[1:], whole + b"x"):
        file.write_bytes(spoilt)
        bucket.forget()
        assert read_blob(backend, hash, len(content)) == content
        assert bucket.requests["GET"] > 0
    assert file.read_bytes() == whole


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_what_was_damaged_in_the_bucket_and_is_restored_is_seen(
    bucket: Bucket, backend: Backend, tmp_path: Path, suffix: str
) -> None:
    content = b"weights " * 1000
    hash = blob(bucket, content, suffix)
    key = blob_key(hash, suffix)
    bucket.put(key, compression.encode_as(suffix, content.upper()))
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    for _ in range(2):
        with pytest.raises(DamagedError, match="do not match"):
            read_blob(backend, hash, len(content))
        with pytest.raises(DamagedError, match="do not match"):
            copy_blob(backend, hash, len(content), target, 0)
    backend.get(key)
    bucket.put(key, compression.encode_as(suffix, content))
    copy_blob(backend, hash, len(content), target, 0)
    assert os.pread(target, len(content) + 1, 0) == content
    os.close(target)
    assert read_blob(backend, hash, len(content)) == content


def test_who_verifies_sees_what_is_there(bucket: Bucket, backend: Backend) -> None:
    hash = blob(bucket, b"weights")
    read_blob(backend, hash, 7)
    bucket.delete([blob_key(hash)])
    assert read_blob(backend, hash, 7) == b"weights"
    with pytest.raises(DamagedError, match="missing"):
        read_blob(uncached(backend), hash, 7)


def test_a_cache_that_cannot_be_is_done_without(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    hash = blob(bucket, b"weights")
    for directory in (tmp_path / "file", tmp_path / ("long" * 100)):
        assert read_blob(cached(bucket, directory, LIMIT), hash, 7) == b"weights"


# ---------------------------------------------------------------- packs


@pytest.mark.parametrize("size", [100, 1000, 300_000])
def test_a_pack_is_kept_however_it_was_read(bucket: Bucket, backend: Backend, size: int) -> None:
    contents = [os.urandom(size) for _ in range(3)]
    hash, data = encode_pack({blob_key(hash_of(c)): c for c in contents})
    bucket.put(pack_key(hash), data)
    for times in range(2):
        bucket.forget()
        view = PackedView(backend, Packs(backend), [hash])
        for content in contents:
            assert read_blob(view, hash_of(content), size) == content
        assert (pack_key(hash) in bucket.read) == (times == 0)


# ---------------------------------------------------------------- bounds


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path, 100_000)
    for number in range(10):
        blobs.keep(f"{number}", bytes(6000))
        path = blobs._path(f"{number}")
        os.utime(path, (1e9 + number, 1e9 + number))
    blobs.read("0")
    for number in range(10, 18):
        blobs.keep(f"{number}", bytes(6000))
    blobs.make_room()
    kept = {number for number in range(18) if blobs.read(f"{number}") is not None}
    assert kept == {0, *range(5, 18)}


def test_the_size_is_bounded_however_many_processes_read(tmp_path: Path) -> None:
    limit = 8 << 20
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(tmp_path, limit, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert limit / 2 < size < limit * 1.5


def fill(directory: Path, limit: int, number: int) -> None:
    """Keep twice as much as there is room for, and read it, as others do at the same time."""
    blobs = Blobs(directory, limit)
    for one in range(48):
        content = bytes([one]) * (3 << 17)
        blobs.keep(f"{(one + number) % 50}", content)
        for other in range(3):
            found = blobs.read(f"{other}")
            assert found is None or len(set(found)) == 1


# ---------------------------------------------------------------- only what is asked for


def test_of_a_large_file_only_the_chunks_that_are_read_are_fetched(
    bucket: Bucket, backend: Backend
) -> None:
    repository = Repository(backend)
    content = os.urandom(20 << 20)
    tree = repository.tree(store(repository, {"model.pth": content}))
    entry = tree.files["model.pth"]
    assert len(entry.blobs) > 2
    bucket.forget()
    with open_entry(backend, entry) as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]
    assert {key.split("/")[2][:64] for key in bucket.read} == {entry.blobs[-1][0]}


@pytest.fixture
def chunked(bucket: Bucket) -> tuple[Entry, bytes]:
    """A file of many chunks."""
    chunks = [os.urandom(1000) for _ in range(20)]
    content = b"".join(chunks)
    named = tuple((blob(bucket, chunk), 1000) for chunk in chunks)
    return Entry("model.pth", "file", 0o644, len(content), hash_of(content), named), content


def test_who_reads_on_finds_the_next_chunks_there(
    bucket: Bucket, chunked: tuple[Entry, bytes]
) -> None:
    entry, content = chunked
    at_once = Barrier(4)

    class Slow(Bucket):
        """Gives out chunks of the middle only four at a time."""

        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            if any(hash in key for hash, _ in entry.blobs[3:11]):
                at_once.wait(timeout=20)
            return bucket.get(key, start, length)

    slow = Slow()
    with open_entry(slow, entry) as file:
        assert file.read() == content
    assert len(bucket.read) == len(entry.blobs)


def test_who_jumps_about_is_not_read_ahead_for(
    bucket: Bucket, chunked: tuple[Entry, bytes]
) -> None:
    entry, content = chunked
    bucket.forget()
    with open_entry(bucket, entry) as file:
        for place in (15_000, 4000, 18_500, 100):
            file.seek(place)
            assert file.raw.read(10) == content[place : place + 10]
    assert len(bucket.read) == 4


def test_many_small_files_are_fetched_at_once(tmp_path: Path) -> None:
    at_once = Barrier(8)

    class Slow(Bucket):
        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            if waiting:
                at_once.wait(timeout=20)
            return super().get(key, start, length)

    waiting: list[bool] = []
    slow = Slow()
    contents = [os.urandom(100) for _ in range(32)]
    entries = [
        Entry(f"{number}.bin", "file", 0o644, 100, blob(slow, content))
        for number, content in enumerate(contents)
    ]
    waiting.append(True)
    with stage(slow, entries, tmp_path / "there") as staged:
        staged.move_into_place()
    assert [(tmp_path / "there" / e.path).read_bytes() for e in entries] == contents


def test_what_is_compressed_as_the_chunk_before_is_found_with_one_request(bucket: Bucket) -> None:
    contents = [bytes([number]) * 1000 for number in range(20)]
    hashes = [blob(bucket, content, ".p4.zst") for content in contents]
    bucket.forget()
    for hash, content in zip(hashes, contents, strict=True):
        assert read_blob(bucket, hash, 1000) == content
    assert bucket.requests["GET"] <= len(contents) + 3
