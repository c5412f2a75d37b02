"""Faults at an exact step of what a run writes: for the PYTHONPATH of a training script.

Python imports this module before the script, and, because the environment is inherited, before the
recorder's helper process too. It counts the calls by which either writes below `FAULT_ROOT`, or
talks to the other, and at one of them does what `FAULT_KIND` says. It must not know what the calls
are for, and needs nothing but the standard library.

`FAULT_DIRECTORY` is for the test to read: `calls` has a line for each call of each process, and
`fired` is there once the fault has happened. `FAULT_ROLE` ("trainer" or "helper") says whose calls
count, `FAULT_PLACE` those of which kind and from where, and `FAULT_AT` which of these, from 1;
without it nothing is disturbed.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = os.environ.get("FAULT_ROOT", "")
DIRECTORY = os.environ.get("FAULT_DIRECTORY", "")
KIND = os.environ.get("FAULT_KIND", "")
PLACE = os.environ.get("FAULT_PLACE", "")
AT = int(os.environ.get("FAULT_AT", "0"))
ROLE = "helper" if any("recorder.helper" in a for a in sys.orig_argv) else "trainer"
MINE = os.environ.get("FAULT_ROLE") == ROLE

#: Calls that need room on the disk. The others free some, or need none.
NEEDS_ROOM = {"open", "write", "close", "mkdir", "link", "rename", "fsync", "copy"}
#: How many calls in a row fail while a disk is full for a while.
A_WHILE = 6

_write, _open, _kill = os.write, os.open, os.kill
_lock = threading.RLock()
#: Calls of the kind that is to be hit, and calls of any kind since one was.
_count = _since = 0
_busy = threading.local()


# ------------------------------------------------------------ what happens at a call


def step(operation: str, path: str, call: Callable[[], Any], half: Callable[[], Any]) -> Any:
    """Make a call, or what the fault makes of it. A call that fails has done `half` of its work."""
    global _count, _since
    if not path.startswith(ROOT + os.sep) or getattr(_busy, "now", False):
        return call()
    _busy.now = True
    try:
        with _lock:
            place = f"{operation} {caller()}"
            log(f"{ROLE} {place}")
            _count += MINE and place == PLACE
            _since += bool(_since) or (MINE and place == PLACE and _count == AT)
            since = _since
        error = fault(since, operation)
        if error is not None:
            half()
            raise error
        result = call()
        if since == 1 and KIND.endswith("killed after") and first():
            kill()
        return result
    finally:
        _busy.now = False


def fault(since: int, operation: str) -> OSError | None:
    """The error that a call ends with, `since` being 1 at the one that is to be hit. Does not
    return when the process is to be killed."""
    if KIND == "disk full":  # for every process, until the test makes room again
        if since == 1:
            first()
        full = operation in NEEDS_ROOM and os.path.exists(f"{DIRECTORY}/fired")
        return no_space() if full else None
    if KIND == "disk full for a while" and operation in NEEDS_ROOM:
        return no_space() if 1 < since <= A_WHILE or (since == 1 and first()) else None
    if since == 1 and KIND == "disk full once" and first():
        return no_space()
    if since == 1 and KIND == "disk error" and operation != "send" and first():
        return OSError(errno.EIO, os.strerror(errno.EIO))
    if since == 1 and KIND.endswith("killed before") and first():
        kill()
    return None


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def first() -> bool:
    """Whether this is where the fault happens: a helper's successor does not repeat it, unless
    every helper is meant."""
    try:
        os.close(_open(f"{DIRECTORY}/fired", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return KIND.startswith("each ")
    return True


def kill() -> None:
    if KIND.startswith("both "):
        if ROLE == "helper":
            others = [os.getppid()] if os.getppid() > 1 else []
        else:
            tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
            others = [int(pid) for t in tasks for pid in (t / "children").read_text().split()]
        for pid in others:
            _kill(pid, signal.SIGKILL)
    _kill(os.getpid(), signal.SIGKILL)


def caller() -> str:
    """The line of the product that the call came from, and the one that led there."""
    frame, found = sys._getframe(1), list[str]()
    while frame is not None and len(found) < 2:
        name = frame.f_code.co_filename
        if "/replicate/" in name and frame.f_code.co_name not in ("several", "_work"):
            found.append(f"{name.rpartition('/')[2]}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return "<".join(found) or "?"


def log(line: str) -> None:
    descriptor = _open(f"{DIRECTORY}/calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


# ------------------------------------------------------------ which calls are counted


def where(path: Any, dir_fd: int | None = None) -> str:
    if isinstance(path, int):
        return descriptor_path(path)
    given = os.fsdecode(path)
    return os.path.join(descriptor_path(dir_fd), given) if dir_fd else os.path.abspath(given)


def descriptor_path(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")
    except OSError:
        return ""


def nothing() -> None:
    """A call that fails as a whole."""


def wrap(operation: str, name: str, position: int = 0) -> None:
    """Count calls of `os.name`; the path or descriptor that is written is at `position`."""
    plain = getattr(os, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        path = where(args[position], kwargs.get("dir_fd") or kwargs.get("dst_dir_fd"))
        return step(operation, path, lambda: plain(*args, **kwargs), nothing)

    setattr(os, name, counted)


def counted_write(descriptor: int, data: Any) -> Any:
    half = memoryview(data).cast("B")[: len(data) // 2]
    return step(
        "write",
        descriptor_path(descriptor),
        lambda: _write(descriptor, data),
        lambda: _write(descriptor, half),
    )


def counted_os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
    def call() -> int:
        return _open(path, flags, *args, **kwargs)

    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    descriptor: int = step("open", where(path), call, nothing) if writes else call()
    return descriptor


class CountedFile(io.FileIO):
    """A file without a buffer."""

    def write(self, data: Any) -> int:
        written: int = counted_write(self.fileno(), data)
        return written

    def truncate(self, size: int | None = None) -> int:
        path = descriptor_path(self.fileno())
        cut: int = step("truncate", path, lambda: io.FileIO.truncate(self, size), nothing)
        return cut


class CountedWriter(io.BufferedWriter):
    """A buffered file, whose bytes may fail to reach the disk when it is closed."""

    def write(self, data: Any) -> int:
        path = descriptor_path(self.fileno())
        written: int = step("write", path, lambda: io.BufferedWriter.write(self, data), nothing)
        return written

    def close(self) -> None:
        if self.closed:
            return
        step("close", descriptor_path(self.fileno()), super().close, self._close_half)

    def _close_half(self) -> None:
        super().flush()
        os.ftruncate(self.fileno(), self.tell() // 2)
        super().close()


_plain_open = builtins.open


def counted_open(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kw: Any) -> Any:
    below = where(file).startswith(ROOT + os.sep)
    if not below or "b" not in mode or not set(mode) & set("wxa+") or "opener" in kw:
        return _plain_open(file, mode, buffering, *args, **kw)
    closefd = kw.get("closefd", True)

    def call() -> CountedFile:
        return CountedFile(file, mode.replace("b", ""), closefd)

    opened = call() if isinstance(file, int) else step("open", where(file), call, nothing)
    return opened if buffering == 0 else CountedWriter(opened)


def wrap_send(name: str) -> None:
    plain = getattr(socket.socket, name)

    def counted(self: socket.socket, *args: Any) -> Any:
        between_us = self.family == socket.AF_UNIX
        path = f"{ROOT}/socket" if between_us else ""
        return step("send", path, lambda: plain(self, *args), nothing)

    setattr(socket.socket, name, counted)


def install() -> None:
    os.write = counted_write  # type: ignore[assignment]
    os.open = counted_os_open  # type: ignore[assignment]
    builtins.open = io.open = counted_open  # type: ignore[assignment]
    for name in ("mkdir", "unlink", "rmdir", "fsync", "fdatasync", "utime"):
        wrap({"fdatasync": "fsync"}.get(name, name), name)
    for name in ("rename", "replace", "link"):
        wrap({"replace": "rename"}.get(name, name), name, 1)
    for name in ("copy_file_range", "sendfile"):
        wrap("copy", name, 1 if name == "copy_file_range" else 0)
    for name in ("send", "sendall", "sendmsg"):
        wrap_send(name)


def forbid_processes() -> None:
    """As in a sandbox: no process can be started."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    subprocess.Popen.__init__ = refuse  # type: ignore[assignment, method-assign]


def forbid_forks() -> None:
    """As where a user has as many processes as are allowed."""

    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    os.fork = refuse


def count_leases() -> None:
    plain = fcntl.fcntl

    def counted(descriptor: Any, command: int, *args: Any) -> Any:
        if command == fcntl.F_SETLEASE:
            log(f"{ROLE} lease")
        return plain(descriptor, command, *args)

    fcntl.fcntl = counted


if ROOT:
    install()
    count_leases()
if KIND == "no processes":
    forbid_processes()
if KIND == "no forks":
    forbid_forks()
