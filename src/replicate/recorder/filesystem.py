"""What the kernel offers for a stable view of a file: read leases, clones, copies without a detour
through this process, and descriptors that a fork does not inherit. It knows system calls and on
which platform they exist; it must not know what is captured, when, or by whom.

Every function raises OSError, with the errno that the kernel gave or would have given.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

if sys.platform == "linux":
    import fcntl

#: Answers of the kernel that will not change: asking again on the same mount is of no use.
NEVER_HERE = frozenset(
    {
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.ENOTTY,
        errno.EOPNOTSUPP,
        errno.EPERM,  # a sandbox that forbids the call
        errno.EXDEV,
    }
)

_BINARY = getattr(os, "O_BINARY", 0)
# A file that became a pipe, or that a file server holds, must fail rather than hang the caller.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_KERNEL_STEP = 64 << 20  # so that a signal can come between; a multiple of any block size
_MEMORY_STEP = 256 << 10  # stays in the processor's cache

# Descriptors whose copies in a forked child would outlive ours and keep a lease alive.
_private: set[int] = set()
_private_lock = threading.RLock()


def open_private(path: Path) -> int:
    """A descriptor for reading that neither an exec nor a fork of this process passes on."""
    with _private_lock:
        fd = os.open(path, os.O_RDONLY | _NO_WAIT | _BINARY)
        _private.add(fd)
    return fd


def reopen_private(fd: int) -> int:
    """Another such descriptor of the same file, whatever its name is by now, that has no part in
    a lease of the first."""
    if sys.platform == "linux":
        return open_private(Path(f"/proc/self/fd/{fd}"))
    raise OSError(errno.ENOSYS, "no leases on this platform")


def close_private(fd: int) -> None:
    """Close what `open_private` or `reopen_private` returned."""
    with _private_lock:
        _private.discard(fd)
        os.close(fd)


def _close_inherited() -> None:
    try:
        for fd in _private:
            os.close(fd)
    finally:
        _private.clear()
        _private_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_private_lock.acquire,
        after_in_parent=_private_lock.release,
        after_in_child=_close_inherited,
    )


def take_lease(fd: int) -> None:
    """Who opens the file for writing, or truncates it, now waits until the lease is released.

    The lease belongs to the open file, not to the process: it goes where the descriptor is sent,
    and ends with `release_lease` on any copy of it or when the last copy is closed. It must not
    stay in a process that may itself write the file. After /proc/sys/fs/lease-break-time (45 s)
    the kernel ends it by force. Raises EAGAIN while somebody has the file open for writing, and
    EACCES when it belongs to another user.
    """
    if sys.platform == "linux":
        # The kernel announces a writer by SIGIO, which would end this process: ask for a signal
        # that is ignored by default, then for nobody to get it (a lease sets an owner if there is
        # none, so this comes last).
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
    else:
        raise OSError(errno.ENOSYS, "no read leases on this platform")


def own_lease(fd: int) -> None:
    """This process gets SIGURG when somebody waits for the lease. One who came before this call
    gives no signal: look at `is_leased` after it."""
    if sys.platform == "linux":
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())


def is_leased(fd: int) -> bool:
    """Whether nobody has written to the file since `take_lease`, nor waits to do so."""
    return sys.platform == "linux" and fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def release_lease(fd: int) -> bool:
    """The file may be written again, whoever else still holds a copy of the descriptor. Whether
    there was a lease until now: False when the kernel, or another process, has ended it."""
    if sys.platform == "linux":
        with suppress(BlockingIOError):
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return True
    return False


def clone(source: int, target: Path) -> None:
    """Create `target` with the bytes of `source`, sharing its blocks until one of them is written.

    On XFS and btrfs this waits until what was just written to `source` has reached the disk.
    """
    if sys.platform == "linux":
        fd = _create(target)
        try:
            fcntl.ioctl(fd, getattr(fcntl, "FICLONE", 0x40049409), source)
        except OSError:
            target.unlink()
            raise
        finally:
            os.close(fd)
    elif sys.platform == "darwin":
        libc = ctypes.CDLL(None, use_errno=True)
        here = -2  # AT_FDCWD
        if libc.fclonefileat(source, here, os.fsencode(target), 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    else:
        raise OSError(errno.ENOSYS, "no clones on this platform")


def copy(source: int, target: Path, size: int) -> None:
    """Create `target` with the first `size` bytes of `source`, or with all if there are fewer.

    Uses a constant amount of memory. Where the file system can, blocks are shared.
    """
    fd = _create(target)
    try:
        if not _copy_in_kernel(source, fd, size):
            _copy_through_memory(source, fd, size)
    finally:
        os.close(fd)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)


def _copy_in_kernel(source: int, target: int, size: int) -> bool:
    """Whether the kernel copied all. It leaves both descriptors at their beginning."""
    done = 0
    if sys.platform == "linux":
        try:
            while done < size:
                step = min(_KERNEL_STEP, size - done)
                copied = os.copy_file_range(source, target, step, done, done)
                if copied == 0:
                    break
                done += copied
        except OSError as error:
            if error.errno not in NEVER_HERE:
                raise
    return done == size


def _copy_through_memory(source: int, target: int, size: int) -> None:
    with (
        open(source, "rb", buffering=0, closefd=False) as reader,
        open(target, "wb", closefd=False) as writer,
    ):
        while size and (piece := reader.read(min(_MEMORY_STEP, size))):
            writer.write(piece)
            size -= len(piece)
