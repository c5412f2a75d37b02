"""From a tree to files: everything is written and verified beside its destination first, so that
damage is found before the first of the user's files is touched.

It knows which chunks make up which file, and moves several at a time; it must not know why the
files are wanted, nor what becomes of those that they replace.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from replicate import ignore, locks
from replicate.backends.base import Backend
from replicate.backends.files import each
from replicate.blobs import copy_blob, read_blobs
from replicate.errors import StorageError, UnsafeTreeError
from replicate.text import size as size_text
from replicate.tree.manifest import Entry, permission_bits

#: Called with the bytes that are done and those there are in all.
Progress = Callable[[int, int], None]

#: The file in the temporary directory that its process keeps locked.
_LOCK = "lock"
#: Each keeps a core busy, and more than there are cores hinder one another: on two, four threads
#: take 1.1 times as long as two. Many more hide the waiting for a bucket.
_THREADS = max(2, os.cpu_count() or 1)
_REMOTE_THREADS = 16
#: What one thread writes in one go is at least this long, unless the file is shorter (bytes).
_PART = 4 << 20


@dataclass(frozen=True, slots=True)
class Staged:
    """Entries that lie verified in a directory of their own, on the disk of `destination`."""

    directory: Path
    destination: Path
    entries: tuple[Entry, ...]
    #: Tells others that this is not a leftover; None where the file system has no locks.
    lock: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _remove(self.directory, self.lock)

    def move_into_place(self) -> None:
        """Put every entry where it belongs, replacing what is there, each in one step."""
        for number, entry in enumerate(self.entries):
            target = self.destination / entry.path
            _check_place(self.destination, entry)  # again: much may have happened meanwhile
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.directory / str(number), target)


def stage(
    backend: Backend,
    entries: Sequence[Entry],
    destination: Path,
    progress: Progress | None = None,
) -> Staged:
    """Write `entries` into a temporary directory inside `destination`, verifying every byte.

    `destination` is made when it is not there. A few threads read at once, each one chunk at a
    time, which bounds the memory; `progress` is called in between, by the calling thread.

    Raises DamagedError naming what is lost, and UnsafeTreeError when something that lies in
    `destination` would lead the files elsewhere; then nothing but the temporary directory was
    written, and that is gone again.
    """
    for entry in entries:
        _check_place(destination, entry)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(destination)
        _check_room(destination, sum(entry.size for entry in entries))
        directory, lock = _make_directory(destination)
    except OSError as error:
        raise StorageError(f"Cannot write into {destination}: {error.strerror}") from error
    try:
        _fill(backend, entries, directory, progress)
    except BaseException as error:
        _remove(directory, lock)
        if isinstance(error, OSError):
            what = f"Cannot write into {destination}: {error.strerror}"
            raise StorageError(what, hint="None of your files was changed.") from error
        raise
    return Staged(directory, destination, tuple(entries), lock)


def _make_directory(destination: Path) -> tuple[Path, int | None]:
    """A new directory to put files together in, and its lock, where the file system has locks."""
    directory = destination / f"{ignore.STAGING}{os.urandom(8).hex()}"
    directory.mkdir()
    lock = None
    with suppress(OSError):
        lock = locks.try_lock(directory / _LOCK)
    return directory, lock


def _remove(directory: Path, lock: int | None) -> None:
    if lock is not None:
        locks.unlock(lock)
    shutil.rmtree(directory, ignore_errors=True)


def _remove_leftovers(destination: Path) -> None:
    """Remove what checkouts into `destination` have left whose process was killed."""
    for directory in destination.glob(f"{ignore.STAGING}*"):
        # One without a lock is just being made, or nobody can tell.
        with suppress(OSError):
            lock = locks.try_lock(directory / _LOCK, create=False)
            if lock is not None:
                _remove(directory, lock)


def through_link(destination: Path, path: str) -> bool:
    """Whether a link that lies in `destination` would lead `path` elsewhere."""
    return any(place.is_symlink() for place in _above(destination, path))


def _above(destination: Path, path: str) -> Iterator[Path]:
    """The directories between `destination` and `path`."""
    place = destination
    for part in path.split("/")[:-1]:
        place = place / part
        yield place


def _check_room(destination: Path, size: int) -> None:
    """A small repository can describe files that fill any disk: ask before, not when it is full."""
    free = shutil.disk_usage(destination).free
    if size > free:
        raise StorageError(
            f"Cannot write into {destination}: {size_text(size)} do not fit into the "
            f"{size_text(free)} that are free on that disk",
            hint="None of your files was changed. Name the files that you need, or free some "
            "space.",
        )


def _check_place(destination: Path, entry: Entry) -> None:
    """Refuse to write through a link that is already there, or over a directory."""
    for place in _above(destination, entry.path):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise UnsafeTreeError(
                f"{place} is not a directory, but {entry.path} has to go into it",
                hint="Move it away, or check out into another directory with -o.",
            )
    place = destination / entry.path
    if place.is_dir() and not place.is_symlink():
        raise UnsafeTreeError(
            f"{place} is a directory, but the checkpoint has a file there",
            hint="Move it away, or check out into another directory with -o.",
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """Consecutive chunks of one file, and where in it they begin."""

    place: Path
    start: int
    chunks: tuple[tuple[str, int], ...]


def _fill(
    backend: Backend, entries: Sequence[Entry], directory: Path, progress: Progress | None
) -> None:
    """Write each entry into `directory`, under its number.

    That every chunk has the hash and the size which the manifest says is enough: the manifest was
    verified, too.
    """

    def write(part: _Part) -> int:
        with part.place.open("r+b", buffering=0) as file:
            start = part.start
            for hash, size in part.chunks:
                copy_blob(backend, hash, size, file.fileno(), start)
                start += size
        return start - part.start

    places = [directory / str(number) for number in range(len(entries))]
    done, total = 0, sum(entry.size for entry in entries)
    for place, entry in zip(places, entries, strict=True):
        if entry.kind == "link":
            place.symlink_to(entry.target)
        else:
            with place.open("xb") as file:
                file.truncate(entry.size)  # else each write makes the file longer: 3% more time
    parts = (p for e, place in zip(entries, places, strict=True) for p in _parts(e, place))
    for size in each(write, parts, _REMOTE_THREADS if backend.remote else _THREADS):
        done += size
        if progress is not None:
            progress(done, total)
    for place, entry in zip(places, entries, strict=True):
        if entry.kind == "file":
            place.chmod(entry.mode)


def _parts(entry: Entry, place: Path) -> Iterator[_Part]:
    """What is to be written of an entry; of a link or an empty file, nothing."""
    start, size = 0, 0
    chunks: list[tuple[str, int]] = []
    for chunk in entry.blobs:
        chunks.append(chunk)
        size += chunk[1]
        if size >= _PART:
            yield _Part(place, start, tuple(chunks))
            start, size, chunks = start + size, 0, []
    if size:
        yield _Part(place, start, tuple(chunks))


def reader(backend: Backend, entry: Entry) -> Callable[[], bytes]:
    """A function that reads the whole file, verified, each time it is called."""
    return lambda: b"".join(read_blobs(backend, entry.blobs))


def same_file(place: Path, entry: Entry) -> bool:
    """Whether `place` already holds exactly this entry."""
    if entry.kind == "link":
        return place.is_symlink() and os.readlink(place) == entry.target
    if place.is_symlink() or not place.is_file():
        return False
    stat = place.stat()
    if stat.st_size != entry.size or permission_bits(stat.st_mode) != entry.mode:
        return False
    return blake3().update_mmap(place).hexdigest() == entry.hash
