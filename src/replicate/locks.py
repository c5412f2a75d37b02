"""Locks on files that last no longer than the process which has them, however it ends: by them
others know whether somebody is still at work. It knows nothing of what is locked, or why."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def try_lock(path: Path, *, create: bool = True) -> int | None:
    """The lock of a file, a descriptor, or None while another process has it. Raises OSError:
    without `create` also when there is no such file."""
    lock = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
    try:
        if sys.platform == "win32":
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    return lock


def unlock(lock: int) -> None:
    """Give back a lock that no other process was handed. Closing it alone would not do while a
    process that is just being started has a copy."""
    if sys.platform != "win32":
        fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)
