"""Files in the spool that grow while a run goes on, such as the points that `log()` is given: a
JSON array on a line for each entry, appended with one system call, so that it outlives its writer.

A file is called `<kind>-<source>-<start>.lines`. The source is one process that writes, and `start`
the number of the file's first line among all lines of that source: a line has the same number
whoever reads it, and however often. Nothing here knows what a line means.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise

_SUFFIX = ".lines"
#: A file that has passed this size is followed by another, so that it can go once it is read.
_SEGMENT = 1 << 20
#: What could not be written is kept in memory up to this size, and then lost.
_MAX_KEPT = 16 << 20
#: How much is read at a time.
_READ = 256 << 10


class SegmentWriter:
    """Appends lines of one kind. Safe to use from several threads, and from signal handlers."""

    def __init__(self, directory: str, kind: str) -> None:
        self._prefix = os.path.join(directory, kind)
        self._descriptor = -1
        self.renew()

    def renew(self) -> None:
        """Become a new source: in a forked child, where the lock and the file are the parent's."""
        self._lock = threading.RLock()
        self._source = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._count = self._size = 0
        self._kept = b""
        self._torn = False
        self._close()

    def append(self, line: bytes) -> None:
        """Add a line, newline included. Raises OSError when it cannot be written now; it is then
        written by a later call, unless too much is waiting for that already."""
        with self._lock:
            if len(self._kept) > _MAX_KEPT:
                self._write()
            self._kept += line
            self._count += 1
            self._write()

    def close(self) -> None:
        """Write what could not be written before, and let go of the file. Raises OSError."""
        with self._lock:
            try:
                self._write()
            finally:
                self._close()

    def _write(self) -> None:
        while self._kept:
            if self._descriptor < 0 or (self._size >= _SEGMENT and not self._torn):
                self._open()
            written = os.write(self._descriptor, self._kept)
            self._size += written
            self._torn = written < len(self._kept) and self._kept[written - 1] != ord("\n")
            self._kept = self._kept[written:]

    def _open(self) -> None:
        """Begin the next file, or go on with a line that has been torn."""
        self._close()
        start = self._count - self._kept.count(b"\n")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        path = f"{self._prefix}-{self._source}-{start:012d}{_SUFFIX}"
        self._descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)
        self._size = 0

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Segment:
    """One of these files, as far as it has been read. `next` is the number of the next line."""

    def __init__(self, path: str, kind: str, source: str, start: int) -> None:
        self.path = path
        self.kind = kind
        self.source = source
        self.next = start
        self._offset = 0
        self._seen = 0

    def lines(self) -> list[bytes]:
        """Lines that have not been passed yet, up to a limit."""
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            data = file.read(_READ)
            while b"\n" not in data and (more := file.read(_READ)):
                data += more
        self._seen = self._offset + len(data)
        return data.split(b"\n")[:-1]

    def advance(self, lines: Sequence[bytes]) -> None:
        """Pass lines: they are in the repository."""
        self.next += len(lines)
        self._offset += sum(map(len, lines)) + len(lines)

    @property
    def has_more(self) -> bool:
        """Whether there is something in it that nobody has looked at."""
        return os.path.getsize(self.path) > max(self._seen, self._offset)

    @property
    def is_passed(self) -> bool:
        """Whether every byte in it has been passed."""
        return os.path.getsize(self.path) == self._offset


class Segments:
    """All such files in a directory, found as they appear and removed when they are read."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._known: dict[str, Segment] = {}

    def look(self) -> list[Segment]:
        """Those that are there now, the lines of a source in their order."""
        try:
            names = sorted(n for n in os.listdir(self._directory) if n.endswith(_SUFFIX))
        except FileNotFoundError:
            names = []
        for name in names:
            if name not in self._known:
                kind, source, start = _parse(name)
                path = os.path.join(self._directory, name)
                self._known[name] = Segment(path, kind, source, start)
        self._known = {name: self._known[name] for name in names}
        return list(self._known.values())

    def skip(self, done: Mapping[tuple[str, str], int]) -> None:
        """Pass the lines before these numbers, by kind and source: another has read them."""
        for segment in self.look():
            until = done.get((segment.kind, segment.source), 0)
            while segment.next < until and (lines := segment.lines()):
                segment.advance(lines[: until - segment.next])

    def remove_passed(self) -> None:
        """Remove the files that have been passed and are not the last of their source."""
        found = self.look()
        for segment, following in pairwise(found):
            same = (segment.kind, segment.source) == (following.kind, following.source)
            if same and segment.is_passed:
                os.unlink(segment.path)


def _parse(name: str) -> tuple[str, str, int]:
    kind, _, rest = name.removesuffix(_SUFFIX).partition("-")
    source, _, start = rest.rpartition("-")
    return kind, source, int(start)
