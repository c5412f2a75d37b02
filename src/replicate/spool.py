"""The spool: what a run has saved locally and what is not yet in the repository.

Each experiment that is being recorded has a directory of *jobs*. A job is one file that appears
whole, by a rename: a header line (JSON with a checksum), then the bytes of small files. Large files
lie beside it. Nothing here knows what a job means; `commit` does.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from replicate import locks
from replicate.backends.base import Backend, Content
from replicate.backends.local import LocalBackend
from replicate.errors import DamagedError
from replicate.model import Value
from replicate.records import encode_time, now, seal_event, unseal

_SUFFIX = ".job"
#: How the name of a copy ends that is being made.
PARTIAL = ".partial"
#: The file with the number of the attempt, where that is not the first.
_ATTEMPT = "attempt"
#: The file that says how its jobs are to be committed by whoever does that in the end.
_SETTINGS = "settings.json"
#: The file by which somebody asks for a try now, while pauses are made between tries.
_HURRY = "hurry"
#: The file beside the spools of a remote repository that says which one that is.
_URL = "repository"


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was spooled: its name, its header, and the bytes of its small files."""

    name: str
    header: Mapping[str, Any]
    data: memoryview


def job_header(kind: str, **fields: Value) -> dict[str, Value]:
    """The start of a job's header: its kind and the time at which it was made."""
    return {"kind": kind, "time": encode_time(now()), **fields}


class Spool:
    """The jobs of one experiment, in a directory on a local disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._count = 0

    @property
    def experiment(self) -> str:
        """The id of the experiment that these jobs belong to."""
        return self.directory.name

    @property
    def attempt(self) -> int:
        """Which attempt of the run these jobs belong to, from 1."""
        try:
            return int((self.directory / _ATTEMPT).read_text())
        except FileNotFoundError:
            return 1

    @property
    def settings(self) -> Mapping[str, Any]:
        """What `create` was given; nothing where a crash of the machine has lost it."""
        try:
            found = json.loads((self.directory / _SETTINGS).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def create(self, attempt: int = 1, settings: Mapping[str, Any] | None = None) -> int:
        """Make the directory and lock it; return the lock, a descriptor that holds it until the
        last process that has it closes it or dies. `settings` stay with the jobs. Raises OSError
        when there is one already, and leaves that as it is."""
        # Under a name that nobody looks at, so that it is locked before it can be found.
        name = f".{self.directory.name}-{os.urandom(4).hex()}"
        hidden = Spool(self.directory.with_name(name))
        hidden.directory.mkdir(parents=True)
        lock = None
        try:
            lock = hidden.try_lock()
            assert lock is not None
            if attempt > 1:
                (hidden.directory / _ATTEMPT).write_text(str(attempt))
            if settings is not None:
                (hidden.directory / _SETTINGS).write_text(json.dumps(settings))
            os.rename(hidden.directory, self.directory)
        except BaseException:
            if lock is not None:
                os.close(lock)
            hidden.destroy()
            raise
        return lock

    def try_lock(self) -> int | None:
        """The lock, or None while another process has it: then the run is being recorded."""
        return locks.try_lock(self.directory / "lock")

    @property
    def is_locked(self) -> bool:
        """Whether a process records into it, or saves what is in it."""
        try:
            lock = self.try_lock()
        except FileNotFoundError:
            return False
        if lock is None:
            return True
        self.unlock(lock)
        return False

    @staticmethod
    def unlock(lock: int) -> None:
        """Give back a lock that no other process was handed."""
        locks.unlock(lock)

    def hurry(self) -> None:
        """Ask the process that records into it to try now what has failed."""
        with suppress(OSError):
            (self.directory / _HURRY).touch()

    def take_hurry(self) -> bool:
        """Whether that was asked since the last time."""
        try:
            (self.directory / _HURRY).unlink()
        except OSError:
            return False
        return True

    def next_name(self) -> str:
        """A name for a new job, after all that this process has named. Processes that were forked
        from each other never make the same one."""
        self._count += 1
        return f"{self._count:012d}-{os.getpid()}"

    def last_name(self) -> str:
        """A name for the job that comes after all others: how the run ended."""
        return f"{'9' * 12}-{os.getpid()}"

    def beside(self, name: str, number: int) -> Path:
        """Where the `number`-th large file of job `name` lies."""
        return self.directory / f"{name}.{number}"

    def add(self, name: str, header: Mapping[str, Any], data: Sequence[Content]) -> None:
        """Spool a job. It survives the death of every process at once, and of the machine once
        the recorder has made it durable. Raises OSError, leaving nothing, when it cannot."""
        checksum = 0
        for content in data:
            checksum = zlib.crc32(content, checksum)
        line = seal_event({**header, "size": sum(map(len, data)), "crc32": checksum})
        temporary = self.directory / f"{name}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(line)
                for content in data:
                    file.write(content)
            os.rename(temporary, self.directory / (name + _SUFFIX))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def names(self) -> list[str]:
        """The jobs, in the order they were made; none when the directory is gone."""
        try:
            found = [n for n in os.listdir(self.directory) if n.endswith(_SUFFIX)]
        except FileNotFoundError:
            return []
        return sorted(n.removesuffix(_SUFFIX) for n in found)

    @contextmanager
    def open(self, name: str) -> Iterator[Job]:
        """The job, with its bytes mapped until the block ends. Raises DamagedError when a crash
        of the machine has left only a part of it."""
        path = self.directory / (name + _SUFFIX)
        with mapped(path) as file:
            view = file.view
            end = _find_newline(view)
            header = unseal(bytes(view[:end]), str(path))
            data = view[end + 1 :]
            if len(data) != header["size"] or zlib.crc32(data) != header["crc32"]:
                raise DamagedError(f"{path} is damaged: only a part of it was written")
            try:
                yield Job(name, header, data)
            finally:
                data.release()

    def header(self, name: str) -> Mapping[str, Any]:
        """The header of a job. Raises DamagedError, and OSError when it is gone."""
        path = self.directory / (name + _SUFFIX)
        with open(path, "rb") as file:
            return unseal(file.readline().rstrip(b"\n"), str(path))

    def has(self, name: str) -> bool:
        """Whether a job is in it, and not committed yet."""
        return (self.directory / (name + _SUFFIX)).exists()

    def size(self) -> int:
        """Bytes of all that is in it now, but for copies that are being made."""
        return self._size(copies=False)

    def copying(self) -> int:
        """Bytes that there are so far of the copies that are being made."""
        return self._size(copies=True)

    def _size(self, *, copies: bool) -> int:
        total = 0
        with suppress(FileNotFoundError), os.scandir(self.directory) as found:
            for entry in found:
                if entry.name.endswith(PARTIAL) == copies:
                    with suppress(FileNotFoundError):  # committed meanwhile
                        total += entry.stat().st_size
        return total

    def remove(self, name: str) -> None:
        """Forget a job and the large files beside it."""
        for path in self.directory.glob(f"{name}.*"):
            path.unlink(missing_ok=True)

    def destroy(self) -> None:
        """Remove the whole directory."""
        shutil.rmtree(self.directory, ignore_errors=True)


class Mapped:
    """The bytes of a file, mapped and not read."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._map: mmap.mmap | None = None
        self.view = memoryview(b"")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.view = memoryview(self._map)

    def close(self) -> None:
        """Let go of the file. Where an error still holds a view, its end does that."""
        self.view.release()
        if self._map is not None:
            with suppress(BufferError):
                self._map.close()


@contextmanager
def mapped(path: Path) -> Iterator[Mapped]:
    """A file's bytes for the time of a block. Raises OSError."""
    found = Mapped(path)
    try:
        yield found
    finally:
        found.close()


def _find_newline(view: memoryview) -> int:
    size = 4096
    while True:
        found = bytes(view[:size]).find(b"\n")
        if found >= 0 or size >= len(view):
            return found if found >= 0 else len(view)
        size *= 4


def all_spools(root: Path | None) -> list[Spool]:
    """The spools of every experiment under `root`."""
    if root is None or not root.is_dir():
        return []
    found = (p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith("."))
    return [Spool(path) for path in found]


def spool_root(backend: Backend, state: Path | None = None) -> Path | None:
    """Where the spools of a repository are: inside one on disk, so that its file system is the
    same; no key can name a hidden directory. Those of a remote one are below `state`, which is
    this machine's; None where that is not known."""
    if isinstance(backend, LocalBackend):
        return Path(backend.url) / ".spool"
    if state is None:
        return None
    return spools_for(backend.identity, state)


def spools_for(identity: str, state: Path) -> Path:
    """Where the spools of the remote repository with this `Backend.identity` are."""
    return state / blake3(identity.encode("utf-8", "surrogatepass")).hexdigest(length=16)


def make_spool_root(root: Path, identity: str) -> None:
    """Make a directory of spools that lies outside of its repository, for this user alone, with
    that repository's `Backend.identity` in it, so that whoever finds it knows where its jobs
    belong."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    named = root / _URL
    if not named.exists():
        temporary = root / f".{_URL}-{os.urandom(4).hex()}"
        temporary.write_text(identity, "utf-8")
        temporary.replace(named)


def known_repositories(state: Path | None) -> list[str]:
    """The repositories that have, or have had, spools below `state`: the identity of each."""
    if state is None or not state.is_dir():
        return []
    files = (directory / _URL for directory in sorted(state.iterdir()))
    return [file.read_text("utf-8") for file in files if file.is_file()]
