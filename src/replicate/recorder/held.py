"""The large files of a run, as whoever saves them reads them: where they are, while the guard holds
their leases, or from the copy in the spool, and from the one to the other in the middle of a file.

It knows leases and copies, and waits for the guard; it must not know what becomes of the bytes.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicate.backends.files import cause_of, is_too_large
from replicate.errors import StorageError
from replicate.readers import FileReader, Reader, opened
from replicate.recorder import capture, filesystem
from replicate.recorder.capture import FileState, TornCaptureError
from replicate.recorder.guard import Outcome, log_error
from replicate.spool import Spool

#: So long the guard may take to begin with a copy that somebody waits for, before it is made here.
_PATIENCE = 1.0


@dataclass(slots=True)
class _File:
    job: str
    state: FileState
    outcome: Outcome
    #: With a part in the lease. Closed by whoever reads it, so that no number is taken for another.
    fd: int | None = None
    #: Why no copy could be made.
    why: str = ""


class Held:
    """The large files of one spool. One thread may listen while another opens and forgets."""

    def __init__(
        self,
        spool: Spool,
        guard: socket.socket | None = None,
        number: int = -1,
        lost: Callable[[str, int, str], None] = lambda job, number, why: None,
    ) -> None:
        """`guard` belongs to the helper with this number; without one, there are only copies.
        `lost` is told of a file that the guard could not copy: its job, its number there, and
        why."""
        self._spool = spool
        self._lost = lost
        self._guard = guard
        self._number = number
        self._files: dict[Path, _File] = {}
        self._news = threading.Condition()

    @property
    def size(self) -> int:
        """Bytes of the files that are neither saved nor in the spool."""
        with self._news:
            return sum(f.state.size for f in self._files.values() if f.outcome == "held")

    def take_over(self, held: Mapping[str, Any]) -> None:
        """Copy a file that a helper which has died may have left to its successor."""
        path = self._spool.beside(held["job"], held["number"])
        try:
            capture.finish(held["fd"], path, FileState(*held["state"]))
        except StorageError:
            log_error()  # the guard of the other has made one, or it is found missing

    def listen(self, ended: Callable[[], None]) -> None:
        """Hear of the guard what there is, until it has ended. Then all is copied here, which ends
        the leases, and `ended` is called, before anybody may call a file lost."""
        guard = self._guard
        assert guard is not None
        while message := _receive(guard):
            (job, number, outcome, state, why), fd = message
            with self._news:
                path = self._spool.beside(job, number)
                file = self._files.setdefault(path, _File(job, FileState(*state), outcome, fd))
                file.outcome, file.why = outcome, why
                self._news.notify_all()
            if why:
                self._lost(job, number, why)
        with self._news:
            for path, file in self._files.items():
                if file.outcome == "held":
                    self._copy(path, file)
        ended()
        with self._news:
            self._guard = None
            self._news.notify_all()

    @contextmanager
    def open(
        self, job: str, entry: Mapping[str, Any], progress: Callable[[int], None]
    ) -> Iterator[Reader]:
        """A file of a job, by its entry in the job's header. Raises TornCaptureError when it is
        lost, and StorageError when a copy of it cannot be made now."""
        path = self._spool.beside(job, entry["beside"])
        file = self._await_word(path) if entry.get("helper") == self._number else None
        with ExitStack() as stack:
            if file is not None and file.outcome == "held":
                yield _Leased(self, path, file, entry, progress, stack)
            else:
                _complete(entry, path, file.why if file else "")
                yield stack.enter_context(opened(path, progress))

    def _await_word(self, path: Path) -> _File | None:
        """What the guard says of a file. The trainer has sent it the lease before the job was in
        the spool, but the job may be found first."""
        with self._news:
            self._news.wait_for(lambda: path in self._files or self._guard is None)
            return self._files.get(path)

    def await_copy(self, path: Path, file: _File) -> None:
        """The guard is making a copy, because somebody waits to write to the file; if it does not,
        as when it is stopped, one is made here. It may have failed."""
        with self._news:
            if not self._news.wait_for(lambda: file.outcome != "held", _PATIENCE):
                self._copy(path, file)

    def _copy(self, path: Path, file: _File) -> None:
        assert file.fd is not None
        file.outcome = "failed"
        try:
            capture.finish(os.dup(file.fd), path, file.state)
            file.outcome = "copied"
        except StorageError as error:
            file.why = cause_of(error)

    def forget(self, job: str) -> None:
        """The job is saved: its files may be written again, and need no copy."""
        with self._news:
            known = [path for path, file in self._files.items() if file.job == job]
            for path in known:
                file = self._files.pop(path)
                if file.fd is not None:
                    os.close(file.fd)
            if known and self._guard is not None:
                with suppress(OSError):  # it is stopped, or gone: at worst it copies in vain
                    self._guard.send(job.encode(), socket.MSG_DONTWAIT)


class _Leased:
    """A file that is read where it is. What is read while the lease stands is what was captured:
    who opens a file for writing, or cuts it, waits before that. What is read any later is read
    again, from the copy that was made before the writer went on."""

    def __init__(
        self,
        held: Held,
        path: Path,
        file: _File,
        entry: Mapping[str, Any],
        progress: Callable[[int], None],
        stack: ExitStack,
    ) -> None:
        assert file.fd is not None
        self.size = file.state.size
        self._held, self._path, self._file, self._entry = held, path, file, entry
        self._progress, self._stack = progress, stack
        self._fd = file.fd
        self._original = FileReader(file.fd, self.size, progress=progress)
        self._copied: Reader | None = None

    def read(self, start: int, length: int) -> memoryview:
        if self._copied is None:
            found = self._read_original(start, length)
            if found is not None:
                return found
            self._copied = self._open_copy()
        return self._copied.read(start, length)

    def _read_original(self, start: int, length: int) -> memoryview | None:
        """None where somebody may have written to the file before it was read."""
        try:
            found = self._original.read(start, length)
        except OSError:
            if filesystem.is_leased(self._fd):
                raise
            return None
        return found if filesystem.is_leased(self._fd) else None

    def _open_copy(self) -> Reader:
        self._held.await_copy(self._path, self._file)
        try:
            _complete(self._entry, self._path, self._file.why)
        except TornCaptureError as error:  # concerns this file alone
            raise OSError(errno.EIO, str(error)) from error
        return self._stack.enter_context(opened(self._path, self._progress))

    def check(self) -> None: ...


def _receive(guard: socket.socket) -> tuple[Any, int | None] | None:
    """A message and the descriptor that came with it; None at the end of the guard."""
    try:
        data, descriptors, _, _ = socket.recv_fds(guard, 1 << 12, 1)
    except OSError:
        return None
    return (json.loads(data), descriptors[0] if descriptors else None) if data else None


def _complete(entry: Mapping[str, Any], path: Path, why: str = "") -> None:
    """See to it that there is a copy: of the file itself, if that still is what it was.

    A crash of the machine may have cut off one that was complete: that is none. Raises
    TornCaptureError when there is no other; `why` the guard could not make it is told then.
    """
    state = FileState(*entry["state"])
    cut_off = False
    with suppress(FileNotFoundError):
        if path.stat().st_size == state.size:
            return
        path.unlink()
        cut_off = True
    lost = ", and a crash of the machine has cut off its copy" if cut_off else ""
    source = Path(entry["source"])
    try:
        if not capture.has_changed(source, state):
            with capture.take(source, path, lease=False) as taken:
                if taken.state == state:
                    return
    except TornCaptureError:
        pass
    except StorageError as error:
        if is_too_large(error):
            raise TornCaptureError(f"it could not be copied: {cause_of(error)}") from error
        if source.exists():
            raise
        raise TornCaptureError(f"it was removed before it was saved{lost}") from error
    path.unlink(missing_ok=True)
    copied = f", and could not be copied: {why}" if why else ""
    held = lost or copied or ", and nobody held it still any more"
    raise TornCaptureError(f"it was changed before it was saved{held}")
