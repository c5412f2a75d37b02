"""How a process ended, as seen from another that is not its parent. Nothing is guessed: what the
system does not tell is None."""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from replicate.model import Status, Stop
from replicate.records import now

if sys.platform == "linux":
    import fcntl

# struct pidfd_info and its ioctl, include/uapi/linux/pidfd.h (Linux 6.15 and later).
_PIDFD_INFO_SIZE = 72
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO_SIZE << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3
_EXIT_CODE_OFFSET = 60


@dataclass(frozen=True, slots=True)
class Ending:
    """The exit code of a process, or the name of the signal that ended it, where it is known."""

    exit_code: int | None = None
    signal: str | None = None

    def stop(self) -> Stop:
        """The end of a run whose process ended like this, without having said that it would."""
        if self.exit_code == 0:
            return Stop(now(), Status.FINISHED, exit_code=0)
        if self.exit_code is not None:
            return Stop(now(), Status.FAILED, exit_code=self.exit_code)
        return Stop(now(), Status.KILLED, signal=self.signal)


def watch_this_process() -> int | None:
    """A descriptor by which another process can tell when and how this one ends (Linux), or None.
    Unlike the end of a socket, it is not kept open by children that were forked meanwhile."""
    try:
        return os.pidfd_open(os.getpid()) if sys.platform == "linux" else None
    except OSError:
        return None


def has_ended(watch: int | None, pid: int) -> bool:
    """Whether the process ended; `watch` is its descriptor, or None where this is its child."""
    if watch is None:
        return os.getppid() != pid
    return bool(select.select([watch], [], [], 0)[0])


def ending_of(watch: int | None) -> Ending:
    """How the process that `watch` is for has ended, as far as the kernel tells."""
    if sys.platform != "linux" or watch is None:
        return Ending()
    # The descriptor tells only once the parent has reaped the process, and /proc only until then.
    for status in (_status_of_reaped(watch), _status_of_zombie(watch), _status_of_reaped(watch)):
        if status is not None:
            break
    else:
        return Ending()
    if os.WIFSIGNALED(status):
        return Ending(signal=_signal_name(os.WTERMSIG(status)))
    return Ending(exit_code=os.WEXITSTATUS(status))


def _status_of_reaped(watch: int) -> int | None:
    """The wait status of a process that is gone; None on a kernel before Linux 6.15."""
    info = bytearray(_PIDFD_INFO_SIZE)
    struct.pack_into("Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(watch, _PIDFD_GET_INFO, info)
    except OSError:  # an older kernel
        return None
    if not struct.unpack_from("Q", info, 0)[0] & _PIDFD_INFO_EXIT:
        return None
    status: int = struct.unpack_from("i", info, _EXIT_CODE_OFFSET)[0]
    return status


def _status_of_zombie(watch: int) -> int | None:
    """The wait status of a process that has ended and is not reaped yet; None otherwise."""
    try:
        facts = Path(f"/proc/self/fdinfo/{watch}").read_text().split()
        pid = facts[facts.index("Pid:") + 1]
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return int(fields[-1]) if fields[0] == "Z" else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
