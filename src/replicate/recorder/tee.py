"""The process between a training script and the reader of its output: what it reads it passes on
unchanged, and keeps a copy in the spool.

It stands in the way of the script's output, so it must not end or halt before that does. The
process that is started only watches over others, one for each pipe, and starts those again that
are killed or stopped. This module imports little, because every run waits for it.
"""

from __future__ import annotations

import codecs
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress

from replicate.recorder.segments import SegmentWriter

_CHUNK = 64 << 10


def output_line(text: str) -> bytes:
    """A line of the spool's for text that was written now: `[seconds since the epoch, text]`."""
    return json.dumps((time.time(), text), separators=(",", ":")).encode() + b"\n"


class Pump:
    """Passes on what comes out of one pipe until nobody has its other end any more."""

    def __init__(self, pipe: int, original: int, kind: str, directory: str) -> None:
        self._pipe, self._original = pipe, original
        self._writer = SegmentWriter(directory, kind)
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def run(self) -> None:
        self._writer.renew()  # in this process, which may follow one that was killed
        while data := self._read():
            self._pass_on(data)
            self._keep(self._decode(data))
        self._keep(self._decode(b"", final=True))

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._pipe, _CHUNK)
            except BlockingIOError:  # the script reads it too, because it has missed us
                select.select([self._pipe], [], [])

    def _pass_on(self, data: bytes) -> None:
        """Where the reader has gone away, the script goes on: its output is kept all the same."""
        view = memoryview(data)
        while view and self._original >= 0:
            try:
                view = view[os.write(self._original, view) :]
            except BlockingIOError:  # whoever shares it has made it so
                select.select([], [self._original], [])
            except OSError:
                os.close(self._original)
                self._original = -1

    def _keep(self, text: str) -> None:
        if text:
            with suppress(OSError):  # a full disk: tried again with what comes next
                self._writer.append(output_line(text))


def supervise(pumps: list[Pump]) -> None:
    """Run each in a process of its own, as long as its pipe is open. What was read and not passed
    on yet is lost with a process that is killed, and nothing else."""
    running = {_start(pump): pump for pump in pumps}
    while running:
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGKILL)
            continue
        pump = running.pop(pid)
        if os.WIFSIGNALED(status):
            running[_start(pump)] = pump


def _start(pump: Pump) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        pump.run()
    finally:
        os._exit(0)


def main() -> None:
    """The entry point: the spool, then `pipe:original:kind` for each pipe."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    directory, *pipes = sys.argv[1:]
    pumps = []
    for pipe in pipes:
        read, original, kind = pipe.split(":")
        pumps.append(Pump(int(read), int(original), kind, directory))
    supervise(pumps)
