"""A stable view of a file: what it held when the trainer asked, whatever is written to it next.

`take` runs in the trainer and returns as soon as that is certain; `finish` runs in the process that
was given the lease, and makes the copy that `take` may have left to do. This module knows the ways
to such a view and which of them a mount allows; it must not know checkpoints, messages or the
repository.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from replicate.backends.files import FULL
from replicate.errors import FullError, StorageError
from replicate.recorder import filesystem
from replicate.spool import PARTIAL

Method = Literal["lease", "reflink", "copy"]

#: Up to this many bytes a copy is done sooner than a lease is taken, sent and released.
COPY_LIMIT = 64 << 10
#: A file that nobody has written to for so long is settled (nanoseconds); no clock ticks slower.
_SETTLED = 1_000_000_000


class TornCaptureError(StorageError):
    """The file changed while it was being copied: there is no copy, rather than a mixture."""


class FileState(NamedTuple):
    """What tells one content of a file from another without reading it."""

    size: int
    mtime_ns: int
    ino: int


class Seal(NamedTuple):
    """What a file has for as long as nobody writes to it. Others may set its mtime, but no one can
    set its ctime."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(slots=True)
class Capture:
    """How `take` made a view of a file, and of which state of it.

    With the method "lease" nothing is copied yet, and `fd` holds the lease. Send it to the guard,
    which calls `finish`, and close it here at once (`with` does): until then a write to the file by
    this process would wait for this process.
    """

    method: Method
    state: FileState
    fd: int | None = None
    #: With a lease: while it stands, this says which bytes the file holds, once it is `settled`:
    #: no write can have come, nor come yet, in the same tick of the clock as the last one.
    seal: Seal | None = None
    settled: bool = False

    def close(self) -> None:
        """Drop this process's hold on the file. Does nothing the second time."""
        fd, self.fd = self.fd, None
        if fd is not None:
            filesystem.close_private(fd)

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def take(source: Path, spooled: Path, *, lease: bool = True) -> Capture:
    """Later writes to `source` do not change what `spooled` holds, now or after `finish`.

    Tries a read lease, which only delays whoever writes `source` before it is saved or copied;
    then a clone; then copies. The lease comes first because a clone of a file just written waits
    for the disk. `lease=False` is for when no helper can take it: then `spooled` is complete on
    return. Raises TornCaptureError when another process writes to the file meanwhile, and
    StorageError when it cannot be read or `spooled` not be written.
    """
    with _storage_error(f"cannot capture {source}"):
        fd = filesystem.open_private(source)
        capture = None
        try:
            capture = _view(fd, source, spooled, lease)
            return capture
        finally:
            if capture is None or capture.fd is None:
                filesystem.close_private(fd)


def has_changed(source: Path, since: FileState) -> bool:
    """Whether the file certainly is not what it was, which a copy would only tell later."""
    try:
        return _state(source.stat()) != since
    except OSError:
        return False


def finish(fd: int, spooled: Path, expected: FileState) -> None:
    """`spooled` holds exactly what was captured, or there is no such file and this raises.

    For the process that received `fd` from `take`. In every case the lease is then released and
    `fd` closed, also when others still have copies of it. A file named `spooled` is complete but
    not yet durable. Raises TornCaptureError when the file has changed all the same: the kernel
    ends a lease by force after 45 s. Raises StorageError when the copy cannot be written.
    """
    with _storage_error(f"cannot spool {spooled}"):
        try:
            with _whole(spooled) as partial:
                filesystem.copy(fd, partial, expected.size)
                # One that was only touched has kept its lease all along, which says enough.
                if _state(os.fstat(fd)) != expected and not filesystem.release_lease(fd):
                    raise _torn(spooled)
        finally:
            try:
                filesystem.release_lease(fd)
            finally:
                os.close(fd)


def _view(fd: int, source: Path, spooled: Path, lease: bool) -> Capture:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"cannot capture {source}: it is not a regular file")
    large = found.st_size > COPY_LIMIT
    mount = (found.st_dev,)
    if lease and large and _works("lease", mount, lambda: filesystem.take_lease(fd)):
        found = os.fstat(fd)
        settled = time.time_ns() - found.st_ctime_ns > _SETTLED
        return Capture("lease", _state(found), fd, _seal(found), settled)
    state = _state(found)
    mounts = (found.st_dev, spooled.parent.stat().st_dev)
    with _whole(spooled) as partial:
        if large and _works("reflink", mounts, lambda: filesystem.clone(fd, partial)):
            method: Method = "reflink"
        else:
            method = "copy"
            filesystem.copy(fd, partial, state.size)
        _require(fd, state, source)
    return Capture(method, state)


# The ways that mounts have turned down for good, so that each is asked only once.
_refused: set[tuple[Method, tuple[int, ...]]] = set()


def _works(method: Method, mounts: tuple[int, ...], attempt: Callable[[], None]) -> bool:
    """Whether `attempt` succeeded. A refusal that is about this file alone is not remembered."""
    if (method, mounts) in _refused:
        return False
    try:
        attempt()
    except OSError as error:
        if error.errno in filesystem.NEVER_HERE:
            _refused.add((method, mounts))
        return False
    return True


def _state(found: os.stat_result) -> FileState:
    return FileState(found.st_size, found.st_mtime_ns, found.st_ino)


def _seal(found: os.stat_result) -> Seal:
    return Seal(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _require(fd: int, expected: FileState, file: Path) -> None:
    if _state(os.fstat(fd)) != expected:
        raise _torn(file)


def _torn(file: Path) -> TornCaptureError:
    return TornCaptureError(
        f"{file} was written to while it was being copied",
        hint="Call checkpoint() when the file is complete, and nothing writes to it.",
    )


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path to create; it becomes `target` when the block succeeds, and is gone when it fails."""
    # The process is part of the name: one that was given up for dead must not write to ours.
    partial = target.with_name(f"{target.name}.{os.getpid()}{PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _storage_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = FullError if error.errno in FULL else StorageError
        raise kind(f"{what}: {error.strerror or error}") from error
