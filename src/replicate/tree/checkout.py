"""From a tree to files: everything is written and verified beside its destination first, so that
damage is found before the first of the user's files is touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from replicate.backends.base import Backend
from replicate.blobs import read_blobs
from replicate.errors import DamagedError, StorageError, UnsafeTreeError
from replicate.tree.manifest import Entry, permission_bits


@dataclass(frozen=True, slots=True)
class Staged:
    """Entries that lie verified in a directory of their own, on the disk of `destination`."""

    directory: Path
    destination: Path
    entries: tuple[Entry, ...]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def move_into_place(self) -> None:
        """Put every entry where it belongs, replacing what is there, each in one step."""
        for number, entry in enumerate(self.entries):
            target = self.destination / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.directory / str(number), target)


def stage(backend: Backend, entries: Sequence[Entry], destination: Path) -> Staged:
    """Write `entries` into a temporary directory inside `destination`, verifying every byte.

    `destination` is made when it is not there. Raises DamagedError naming what is lost, and
    UnsafeTreeError when something that lies in `destination` would lead the files elsewhere; then
    nothing but the temporary directory was written, and that is gone again.
    """
    for entry in entries:
        _check_place(destination, entry)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        directory = destination / f".replicate-checkout-{os.urandom(8).hex()}"
        directory.mkdir()
    except OSError as error:
        raise StorageError(f"Cannot write into {destination}: {error.strerror}") from error
    try:
        for number, entry in enumerate(entries):
            _write(backend, entry, directory / str(number))
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, OSError):
            what = f"Cannot write {entry.path} into {destination}: {error.strerror}"
            raise StorageError(what, hint="None of your files was changed.") from error
        raise
    return Staged(directory, destination, tuple(entries))


def _check_place(destination: Path, entry: Entry) -> None:
    """Refuse to write through a link that is already there, or over a directory."""
    place = destination
    for part in entry.path.split("/")[:-1]:
        place = place / part
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


def _write(backend: Backend, entry: Entry, place: Path) -> None:
    if entry.kind == "link":
        place.symlink_to(entry.target)
        return
    with place.open("xb") as file:
        whole = blake3()
        for chunk in read_blobs(backend, entry.blobs):
            whole.update(chunk)
            file.write(chunk)
    if whole.hexdigest() != entry.hash:
        raise DamagedError(f"{entry.path} is damaged: its chunks do not make up the file's hash")
    place.chmod(entry.mode)


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
