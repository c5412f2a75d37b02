"""What a run prints, kept as it is printed: how to get hold of it without getting in its way.

* Where stdout or stderr is a *file*, the script writes to it as ever, and the helper reads it too.
* Where it is a *pipe* or the like, a process in between passes everything on; see `tee`. A file
  and a pipe both have all that is printed, by C code and by child processes too.
* On a *terminal* the script keeps its terminal, with colours and progress bars, and what Python
  code prints in this process is kept. So it is in a notebook, and whatever else stands in for
  stdout.

Nothing here raises into the script, and each of these can be undone at any time.
"""

from __future__ import annotations

import io
import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from replicate.recorder.segments import SegmentWriter
from replicate.recorder.tee import output_line

if sys.platform != "win32":
    import fcntl

KINDS = ("stdout", "stderr")
#: What fits into a pipe: how far a script gets when every process that reads it has been killed.
_PIPE_SIZE = 1 << 20
#: How long the end of a run waits for what is on its way through the pipe (seconds).
_DRAIN = 2.0
#: It looks as often as this, and takes a pipe that was empty for as long as that for finished.
_LOOK, _IDLE = 0.002, 0.02
_START = (
    "import sys; sys.path.append(sys.argv.pop(1)); from replicate.recorder.tee import main; main()"
)


class _Print:
    """Keeps what is written to a stream object of Python's, by way of its `write`; or of its
    `echo`, which those of a notebook have: IPython replaces their `write` for each cell."""

    def __init__(self, stream: TextIO, kind: str, directory: str) -> None:
        self._stream = stream
        self._writer = SegmentWriter(directory, kind)
        self._original: Callable[[str], int] = stream.write
        self._owner = os.getpid()
        self._on = True
        if getattr(stream, "echo", self) is None:
            vars(stream)["echo"] = self
        else:
            stream.write = self._write  # type: ignore[method-assign]

    def write(self, text: str) -> None:
        """Keep the text."""
        if not self._on or not text:
            return
        try:
            if os.getpid() != self._owner:
                self._owner = os.getpid()
                self._writer.renew()
            self._writer.append(output_line(text))
        except Exception:  # a full disk, or something that is no text: the next may do
            pass

    def flush(self) -> None:
        """Nothing is held back."""

    def _write(self, text: str) -> int:
        written = self._original(text)
        self.write(text)
        return written

    def release(self) -> None:
        """Leave the stream as it was; where somebody else has replaced `write` since, keep no
        more."""
        self._on = False
        attributes = vars(self._stream)
        if attributes.get("echo") is self:
            attributes["echo"] = None
        if attributes.get("write") == self._write:
            del attributes["write"]
        with suppress(OSError):
            self._writer.close()


class _Pipe:
    """Has one or two descriptors lead through a pipe, and knows where they led before."""

    def __init__(self, descriptors: Sequence[int], kind: str) -> None:
        self._descriptors = descriptors
        self.original = os.dup(descriptors[0])
        # This end stays open here, so that a write never fails because nobody reads.
        self.read, self._write = os.pipe()
        self.argument = f"{self.read}:{self.original}:{kind}"
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(OSError):  # more than this user may have
                fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)

    def lead_through(self) -> None:
        for descriptor in self._descriptors:
            os.dup2(self._write, descriptor)
        os.close(self._write)
        self._write = -1

    def lead_back(self) -> None:
        for descriptor in self._descriptors:
            os.dup2(self.original, descriptor)

    @property
    def is_empty(self) -> bool:
        poll = select.poll()
        poll.register(self.read, select.POLLIN)
        return not any(events & select.POLLIN for _, events in poll.poll(0))

    def drain(self) -> None:
        """Pass on what is in it, in place of a process that is gone; another may still read too."""
        with suppress(OSError):
            os.set_blocking(self.read, False)
            while data := os.read(self.read, _PIPE_SIZE):
                os.write(self.original, data)

    def close(self) -> None:
        for descriptor in (self.read, self.original, self._write):
            if descriptor >= 0:
                os.close(descriptor)


class Console:
    """The output of this process, from `begin` to `release`. One at a time: the experiment that was
    begun last has it. With `all`, a terminal is led through a pipe too, and with `copied` a file,
    for where it may be long until somebody saves what was printed to it."""

    def __init__(
        self, streams: Sequence[TextIO | None], *, all: bool = False, copied: bool = False
    ) -> None:
        self._streams = dict(zip(KINDS, streams, strict=True))
        self._all = all
        self._copied = copied
        self._prints: list[_Print] = []
        self._pipes: list[_Pipe] = []
        self._tee: subprocess.Popen[bytes] | None = None
        self._tails: list[dict[str, Any]] = []
        self._watch: int | None = None
        self._owner = os.getpid()

    def begin(self, directory: Path) -> None:
        """Start to keep what is printed, in the spool's directory. Raises OSError, with all as it
        was, when that is not possible."""
        global _current
        if _current is not None:
            _current.release()
        _current = self
        try:
            self._begin(str(directory))
        except BaseException:
            self.release()
            self.close()
            raise

    def _begin(self, directory: str) -> None:
        ways: dict[tuple[str, tuple[int, int]], list[int]] = {}
        for number, kind in enumerate(KINDS, 1):
            ways.setdefault(self._way_to(self._streams[kind], number), []).append(number)
        for (how, _), numbers in ways.items():
            if how == "file":
                self._tails.append({"kind": KINDS[numbers[0] - 1], **_reopened(numbers[0])})
        pipes = [numbers for (how, _), numbers in ways.items() if how == "pipe"]
        printed = [number for (how, _), ns in ways.items() if how == "print" for number in ns]
        if pipes and not self._redirect(pipes, directory):
            printed += [number for numbers in pipes for number in numbers]
        for number in printed:
            self._print(KINDS[number - 1], directory)

    def _way_to(self, stream: TextIO | None, number: int) -> tuple[str, tuple[int, int]]:
        """How to get hold of a stream, and what tells the place that it leads to from others."""
        if stream is None:
            return "none", (0, 0)
        try:
            # A subclass, and another descriptor, are somebody else's arrangements.
            if sys.platform == "win32" or type(stream) is not io.TextIOWrapper:
                return "print", (0, 0)
            if stream.fileno() != number:
                return "print", (0, 0)
            found = os.fstat(number)
        except (OSError, ValueError):
            return "print", (0, 0)
        place = (found.st_dev, found.st_ino)
        if stat.S_ISREG(found.st_mode):
            if self._copied:
                return "pipe", place
            return ("file" if _can_reopen(number) else "print"), place
        terminal = os.isatty(number) and not self._all
        return ("print" if terminal else "pipe"), place

    def _print(self, kind: str, directory: str) -> None:
        stream = self._streams[kind]
        if stream is not None:
            with suppress(AttributeError, TypeError):  # an object that takes no attributes
                self._prints.append(_Print(stream, kind, directory))

    def _redirect(self, groups: Sequence[Sequence[int]], directory: str) -> bool:
        """Put a process between this one and the readers of these descriptors; False when none
        can be started."""
        for numbers in groups:
            self._pipes.append(_Pipe(numbers, KINDS[numbers[0] - 1]))
        root = str(Path(__file__).parents[2])
        arguments = [root, directory, *(pipe.argument for pipe in self._pipes)]
        try:
            self._tee = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[fd for pipe in self._pipes for fd in (pipe.read, pipe.original)],
                start_new_session=True,
            )
        except OSError:
            self._close_pipes()
            return False
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):
                self._watch = os.pidfd_open(self._tee.pid)
        self._flush()
        for pipe in self._pipes:
            pipe.lead_through()
        return True

    # ------------------------------------------------------------ for the helper

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the helper has to know: the files that it reads, and how to tell that the process
        in between has come to its end."""
        return {"tails": self._tails, "watch": self._watch}

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that `settings` names."""
        watch = [] if self._watch is None else [self._watch]
        return [*(tail["fd"] for tail in self._tails), *watch]

    # ------------------------------------------------------------ the end

    def check(self) -> None:
        """If the process in between has been killed, print without it from now on."""
        if os.getpid() == self._owner and self._tee is not None and self._tee.poll() is not None:
            self._lead_back()

    def release(self) -> None:
        """Let everything be as it was before, once what was printed is on its way."""
        global _current
        if os.getpid() != self._owner:
            return
        if _current is self:
            _current = None
        for printed in self._prints:
            printed.release()
        self._prints = []
        self._flush()
        for tail in self._tails:
            _end_output(tail["fd"])
        if self._tee is not None:
            self._lead_back()

    def after_fork(self) -> None:
        """In a forked child: whoever reads its output must not wait for what it never uses."""
        self._close_pipes()
        self.close()

    def close(self) -> None:
        """Let go of all descriptors; `release` comes before, and nobody needs `settings` after."""
        for tail in self._tails:
            os.close(tail["fd"])
        self._tails = []

    def _lead_back(self) -> None:
        tee, self._tee = self._tee, None
        self._flush()
        for pipe in self._pipes:
            pipe.lead_back()
        try:
            if tee is not None:
                self._await(tee)
                if tee.poll() is not None:
                    for pipe in self._pipes:
                        pipe.drain()
                else:  # a child process prints on
                    _closing.append(tee)
        finally:
            self._close_pipes()
            _closing[:] = [process for process in _closing if process.poll() is None]

    def _await(self, tee: subprocess.Popen[bytes]) -> None:
        """Wait until what was printed has been passed on."""
        end = time.monotonic() + _DRAIN
        idle = 0.0
        while tee.poll() is None and time.monotonic() < end and idle < _IDLE:
            time.sleep(_LOOK)
            idle = idle + _LOOK if all(pipe.is_empty for pipe in self._pipes) else 0.0

    def _close_pipes(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        self._pipes = []
        if self._watch is not None:
            os.close(self._watch)
            self._watch = None

    def _flush(self) -> None:
        for stream in self._streams.values():
            with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it
                if stream is not None:
                    stream.flush()


#: Which console has the output of this process.
_current: Console | None = None
#: Processes in between that still pass on what child processes print.
_closing: list[subprocess.Popen[bytes]] = []


def _can_reopen(descriptor: int) -> bool:
    try:
        os.close(_open_again(descriptor))
    except OSError:
        return False
    return True


def _reopened(descriptor: int) -> dict[str, int]:
    """A descriptor that reads the file which another writes, and where it stands now."""
    return {"fd": _open_again(descriptor), "offset": os.fstat(descriptor).st_size}


# How far a file is this run's is told by the position of the descriptor that reads it, which the
# helper process shares, and which nobody reads at: what is printed next cannot be faster than it.


def _end_output(descriptor: int) -> None:
    """What is added to the file from here on is not this run's."""
    if end_of_output(descriptor) is None:
        os.lseek(descriptor, os.fstat(descriptor).st_size + 1, os.SEEK_SET)


def end_of_output(descriptor: int) -> int | None:
    """How many bytes of the file are the run's; None while it prints on."""
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    return position - 1 if position else None


def _open_again(descriptor: int) -> int:
    """The file behind a descriptor, open for reading. Raises OSError where that is not allowed."""
    if sys.platform == "darwin":
        path = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")
    else:
        path = b"/proc/self/fd/%d" % descriptor
    found = os.open(path, os.O_RDONLY)
    if not os.path.samestat(os.fstat(found), os.fstat(descriptor)):
        os.close(found)
        raise FileNotFoundError(path)
    return found
