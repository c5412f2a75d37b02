"""The streams of a run that waits on this machine: what it has logged and printed so far, and how
the machine did, read from its spool as `sync` would save them. Nothing of them is written."""

from __future__ import annotations

from contextlib import suppress

from replicate.backends.memory import MemoryBackend
from replicate.recorder.streams import Streams
from replicate.records import Event
from replicate.repository import Repository
from replicate.spool import Spool
from replicate.streams import StreamReader


class SpooledReader(StreamReader):
    """Reads a stream as far as it has come, and from there on when it is asked again."""

    def __init__(self, spool: Spool, name: str) -> None:
        copy = Repository(MemoryBackend())
        super().__init__(copy.backend, f"experiments/{spool.experiment}/{name}/")
        self._spool = spool
        self._streams = Streams(copy, spool, spool.attempt)
        self._streams.begin()

    def read(self) -> list[Event]:
        """What is new, in the order in which it happened."""
        with suppress(FileNotFoundError):  # it was saved meanwhile
            self._streams.copy(final=not self._spool.is_locked)
        return super().read()
