"""The trainer's end of the helper process: to start it, wake it, pass it files, and wait for it.

Where no helper can be started, `foreground` does its work in the trainer, with the same methods.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from replicate.errors import RepositoryError
from replicate.recorder.capture import Capture
from replicate.recorder.ending import watch_this_process
from replicate.spool import Spool

# Without this, a script that has restored SIGPIPE's default would be killed by a dead helper.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
#: The interpreter's own libraries come before the script's directory, so that a file of the user's
#: called `queue.py` is not taken for the standard library's.
_START = (
    "import json, sys; settings = json.loads(sys.argv[1]); sys.path[:] = settings['path']; "
    "from replicate.recorder.helper import main; main()"
)


#: While a thread is in a block of this, it does not keep the others from recording.
Aside = Callable[[], AbstractContextManager[None]]


class HelperGone(Exception):
    """The helper process has ended, or does not answer."""


class Saver(Protocol):
    """What gets jobs out of the spool and into the repository."""

    def notify(self) -> list[str]:
        """Say that there is a new job. Returns what went wrong since the last time."""

    def problems(self) -> list[str]:
        """What went wrong since the last time, as far as it was heard of in a call of these."""

    def wait(
        self, tick: Callable[[], None], below: int = 0, aside: Aside = nullcontext
    ) -> str | None:
        """Return when all that was spooled before the call is in the repository, or what keeps it
        from there; with `below`, when that is no more than so many bytes. Calls `tick` several
        times a second. In a block of `aside` other threads may call everything here."""

    def close(self, *, at_exit: bool) -> None:
        """Say that no more jobs will come."""


class HelperLink:
    """A helper process that is running. Raises HelperGone when it is not any more."""

    def __init__(
        self,
        number: int,
        spool: Spool,
        lock: int,
        settings: Mapping[str, Any],
        descriptors: Sequence[int] = (),
    ) -> None:
        """Start one; `number` tells it from those before it, and it inherits the descriptors that
        its settings name. Raises OSError where it cannot be."""
        self.number = number
        self._token = 0
        self._pending = b""
        self._problems: list[str] = []
        #: What those who wait were told, by their tokens.
        self._answers: dict[int, str | None] = {}
        #: Grows while the helper saves something that takes long; and how much of it was read, of
        #: what is still in the spool.
        self.progress, self.read = 0, 0
        #: How many large files could not be kept until they were saved.
        self.lost = 0
        #: Whether the repository cannot be reached at present.
        self.failing = False
        self._reached: bool | None = None
        self._refused: tuple[str, str | None] | None = None
        ours, theirs = socket.socketpair()
        guard, guards = _guard_sockets()
        watch = watch_this_process()
        path = [p for p in sys.path[1:] if p] + sys.path[:1]
        package_root = str(Path(__file__).parents[2])
        settings = {
            **settings,
            "number": number,
            "path": path if package_root in path else [*path, package_root],
            "spool": str(spool.directory),
            "socket": theirs.fileno(),
            "guard": guards and guards.fileno(),
            "lock": lock,
            "watch": watch,
            "pid": os.getpid(),
        }
        try:
            with open(spool.directory / "helper.log", "ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, json.dumps(settings)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=[
                        *(theirs.fileno(), lock, *descriptors),
                        *([] if watch is None else [watch]),
                        *([] if guards is None else [guards.fileno()]),
                    ],
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            if guard is not None:
                guard.close()
            raise
        finally:
            theirs.close()
            if guards is not None:
                guards.close()
            if watch is not None:
                os.close(watch)
        self._socket, self._guard = ours, guard
        _reap()

    def notify(self) -> list[str]:
        # A socket that is full is no loss: the helper is awake, and looks for jobs by itself.
        with suppress(BlockingIOError):
            self._send({"op": "job"})
        self._receive(timeout=0)
        return self.problems()

    def problems(self) -> list[str]:
        problems, self._problems = self._problems, []
        return problems

    def await_repository(self, timeout: float) -> bool | None:
        """Whether the repository can be reached; None when that is not known yet after so many
        seconds. Raises RepositoryError where it could be, and cannot be used."""
        end = time.monotonic() + timeout
        while self._reached is None and (left := end - time.monotonic()) > 0:
            self._receive(left)
        if self._refused is not None:
            message, hint = self._refused
            raise RepositoryError(message, hint=hint)
        return self._reached

    def pass_lease(self, capture: Capture, job: str, number: int) -> bool:
        """Hand over a leased file, or return False when that is not possible now."""
        if self._guard is None or capture.fd is None:
            return False
        message = json.dumps([job, number, capture.state]).encode()
        try:
            socket.send_fds(self._guard, [message], [capture.fd], _NO_SIGNAL)
        except OSError:  # it is gone, or has much to do
            return False
        return True

    def wait(
        self, tick: Callable[[], None], below: int = 0, aside: Aside = nullcontext
    ) -> str | None:
        self._token += 1
        token = self._token
        self._send({"op": "wait", "token": token, "below": below}, blocking=True)
        while token not in self._answers:
            with aside():
                _await_readable(self._socket, 0.05)
            if self._socket.fileno() < 0:
                raise HelperGone("another thread has let it go")
            self._receive(timeout=0)
            tick()
        return self._answers.pop(token)

    def close(self, *, at_exit: bool) -> None:
        with suppress(HelperGone, OSError):
            self._send({"op": "bye", "at_exit": at_exit}, blocking=True)
        self._socket.close()
        if self._guard is not None:
            self._guard.close()
        # It outlives this object, and perhaps this process, on purpose: no warning is due.
        self._process.returncode = 0
        _ending.add(self._process.pid)

    def _send(self, message: Mapping[str, Any], *, blocking: bool = False) -> None:
        data = json.dumps(message).encode() + b"\n"
        self._socket.setblocking(blocking)
        try:
            self._socket.send(data, _NO_SIGNAL)
        except BlockingIOError:
            raise
        except OSError as error:
            raise HelperGone(str(error)) from error

    def _receive(self, timeout: float) -> None:
        """Take note of what has come; problems are put aside for `notify`, and answers for those
        who wait."""
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(1 << 16)
        except (BlockingIOError, TimeoutError):
            return
        except OSError as error:
            raise HelperGone(str(error)) from error
        if not data:
            raise HelperGone("it has ended")
        *lines, self._pending = (self._pending + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self._problems += [m["problem"] for m in messages if "problem" in m]
        self.progress += sum("read" in m for m in messages)
        for message in messages:
            self.read = message.get("read", self.read)
            self.lost = message.get("lost", self.lost)
            self.failing = message.get("failing", self.failing)
            self._reached = message.get("reached", self._reached)
            if "refused" in message:
                self._reached, self._refused = False, message["refused"]
        self._answers |= {m["idle"]: m["trouble"] for m in messages if "idle" in m}


def _await_readable(connection: socket.socket, seconds: float) -> None:
    """Return when there is something to read, or so much later. It reads nothing, and changes
    nothing of the socket, which other threads may be using."""
    if sys.platform == "win32":
        select.select([connection], [], [], seconds)
    else:  # select() knows no descriptors above 1023
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.poll(1000 * seconds)


def _guard_sockets() -> tuple[socket.socket, socket.socket] | tuple[None, None]:
    """What connects this process with a guard, where there are leases: each message is one file."""
    if sys.platform != "linux":
        return None, None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


#: Helpers that were told to end. In a process that goes on, somebody has to take note of that.
_ending: set[int] = set()


def _reap() -> None:
    for pid in list(_ending):
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            ended = pid
        if ended:
            _ending.discard(pid)
