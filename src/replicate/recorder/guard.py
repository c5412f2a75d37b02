"""The guard: a small process that holds the leases on large files until the helper has saved them,
and copies such a file into the spool when somebody waits to write to it, or when the helper dies.

It is a process and not a thread of either side. In the training script it would need the
interpreter's lock, which torch.save keeps while it waits for the very lease that is to end. The
helper may be killed, stopped or busy, and who writes to a file is to notice none of that. It knows
files and copies; it must not know what a job means, nor the repository.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from replicate.backends.files import cause_of
from replicate.errors import StorageError
from replicate.recorder import capture, filesystem
from replicate.recorder.capture import FileState
from replicate.spool import Spool

#: A file from this size on is left where it is while it can be; a smaller one is soon copied.
HOLD_FROM = 8 << 20
#: So many files are held at once, each an open descriptor here and in the helper.
MAX_HELD = 64
#: How the process is called, in place of the interpreter.
NAME = "replicate-guard"

#: What became of a file: it is under its lease, in the spool, or neither.
Outcome = Literal["held", "copied", "failed"]


@dataclass(slots=True)
class _File:
    job: str
    number: int
    state: FileState
    #: Has the lease; None when it is given up.
    fd: int | None
    outcome: Outcome = "held"
    #: Why no copy could be made.
    why: str = ""

    def message(self) -> bytes:
        return json.dumps([self.job, self.number, self.outcome, self.state, self.why]).encode()


class Guard:
    """Holds leases until the helper is gone, and has then copied what was not saved."""

    def __init__(
        self, trainer: socket.socket, helper: socket.socket, spool: Spool, *, hold: bool
    ) -> None:
        """`trainer` sends leases, `helper` what is saved; `hold` says whether that may be soon."""
        self._trainer: socket.socket | None = trainer
        self._helper: socket.socket | None = helper
        self._spool = spool
        self._hold = hold
        self._files: list[_File] = []
        self._untold: deque[_File] = deque()
        self._wakeup, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGURG, lambda number, frame: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        trainer.setblocking(False)
        helper.setblocking(False)

    def run(self) -> None:
        """Return when the helper has ended, and all that it has left is in the spool."""
        while self._helper is not None:
            self._wait()
            self._take_leases()
            self._hear()
            self._copy_those(broken=True)
            self._tell()
        if self._trainer is not None:  # whoever sends a lease from now on learns that it is late
            with suppress(OSError):
                self._trainer.shutdown(socket.SHUT_RD)
        self._take_leases()
        self._copy_those(broken=False)

    def _wait(self) -> None:
        """Until there is a lease, a writer, or a word of the helper."""
        assert self._helper is not None
        reading: list[Any] = [self._wakeup, self._helper]
        if self._trainer is not None:
            reading.append(self._trainer)
        select.select(reading, [self._helper] if self._untold else [], [])
        with suppress(BlockingIOError):
            os.read(self._wakeup, 1 << 10)

    def _take_leases(self) -> None:
        while self._trainer is not None:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._trainer, 1 << 12, 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._trainer = None
                return
            job, number, state = json.loads(data)
            file = _File(job, number, FileState(*state), descriptors[0])
            if not self._can_hold(file, descriptors[0]):
                self._copy(file)
            self._files.append(file)
            self._untold.append(file)

    def _can_hold(self, file: _File, fd: int) -> bool:
        """Whether the file may stay where it is. The helper reads it soon only if it has nothing
        else to do: a writer should not have to wait for what could have been copied before."""
        if not self._hold or file.state.size < HOLD_FROM or len(self._files) >= MAX_HELD:
            return False
        if any(other.job != file.job for other in self._files):
            return False
        with suppress(OSError):
            filesystem.own_lease(fd)
            return filesystem.is_leased(fd)
        return False

    def _hear(self) -> None:
        """Forget the files of the jobs that the helper has saved."""
        while self._helper is not None:
            try:
                job = self._helper.recv(1 << 12).decode()
            except BlockingIOError:
                return
            except OSError:
                job = ""
            if not job:
                self._helper = None
                return
            self._forget(job)

    def _forget(self, job: str) -> None:
        """Let go of the files of a job, and of copies that came too late to be of use."""
        for file in [f for f in self._files if f.job == job]:
            self._files.remove(file)
            if file in self._untold:
                self._untold.remove(file)
            if file.fd is not None:
                filesystem.release_lease(file.fd)
                os.close(file.fd)
            self._spool.beside(file.job, file.number).unlink(missing_ok=True)

    def _copy_those(self, *, broken: bool) -> None:
        """Copy the files that somebody waits to write to, or all."""
        for file in self._files:
            if file.fd is not None and not (broken and filesystem.is_leased(file.fd)):
                self._copy(file)
                self._untold.append(file)

    def _copy(self, file: _File) -> None:
        """Copy a file into the spool, which lets writers to it go on."""
        assert file.fd is not None
        fd, file.fd = file.fd, None
        path = self._spool.beside(file.job, file.number)
        try:
            capture.finish(fd, path, file.state)
        except StorageError as error:
            log_error()
            file.why = cause_of(error)
        # The helper may have made one, while this process was stopped.
        file.outcome = "copied" if path.exists() else "failed"

    def _tell(self) -> None:
        """Tell the helper what is new of each file. It may be stopped: nothing waits for it."""
        while self._untold and self._helper is not None:
            file = self._untold[0]
            held = [] if file.fd is None else [file.fd]
            try:
                socket.send_fds(self._helper, [file.message()], held)
            except BlockingIOError:
                return
            except OSError:
                return  # it is gone, as the next reading will tell
            self._untold.popleft()


def begin(settings: Mapping[str, Any]) -> socket.socket | None:
    """Start the guard of this process, the helper, and return what connects the two; None where no
    more processes can be started, and the trainer copies files itself.

    It takes over the descriptor by which the trainer sends leases, and keeps the spool locked until
    it ends. To be called while there is no other thread: the guard is a fork, which costs less time
    and memory than another interpreter.
    """
    trainer: int = settings["guard"]
    spool = Spool(Path(settings["spool"]))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        with theirs, socket.socket(fileno=trainer) as leases:  # some may have been sent already
            Guard(leases, theirs, spool, hold=False).run()
        return None
    if pid == 0:
        try:
            with suppress(OSError):
                Path("/proc/self/comm").write_text(NAME)
            _close_all_but(0, 1, 2, trainer, settings["lock"], theirs.fileno())
            Guard(socket.socket(fileno=trainer), theirs, spool, hold=settings["hold"]).run()
        except BaseException:
            log_error()
        finally:
            os._exit(0)
    theirs.close()
    os.close(trainer)
    return ours


def _close_all_but(*kept: int) -> None:
    """The others are the helper's: who waits for their end must not wait for this process."""
    try:
        found: Iterable[int] = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        found = range(1024)
    for descriptor in found:
        if descriptor not in kept:
            with suppress(OSError):  # that of the listing itself
                os.close(descriptor)


def log_error() -> None:
    """Write the exception to the log in the spool; a full disk must not end who writes it."""
    with suppress(OSError):
        traceback.print_exc()
