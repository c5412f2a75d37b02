"""Processes that decode what a listing has read.

Knows how they are started, asked and ended. Where one cannot be started, or dies, its share is
decoded here: the answer is the same, only slower.
"""

from __future__ import annotations

import marshal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from replicate.index.worker import Request, Row, decoded

_START = (
    "import marshal, sys; sys.path[:] = marshal.load(sys.stdin.buffer); "
    "from replicate.index.worker import main; main(sys.stdin.buffer, sys.stdout.buffer)"
)


class Crew:
    """Processes that decode, until the block ends. Each serves one thread at a time."""

    def __init__(self, processes: int) -> None:
        """Start so many, or as many as can be."""
        self.workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        for _ in range(processes):
            try:
                self.workers.append(_Worker())
            except (OSError, ValueError, subprocess.SubprocessError):
                break
        for worker in self.workers:
            self._idle.put(worker)
        if not self.workers:
            self._idle.put(None)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            worker.end()

    def rows(self, asked: Request) -> list[Row | None]:
        """As `decoded`, by a process that has nothing else to do; waits for one."""
        worker = self._idle.get()
        try:
            rows = worker.rows(asked) if worker else None
        finally:
            self._idle.put(worker)
        return decoded(asked) if rows is None else rows


class _Worker:
    """A process that decodes. It ends with this one, as there is nothing more to read then."""

    def __init__(self) -> None:
        """Raises OSError where none can be started."""
        # Not multiprocessing: that runs the script of a user who does not guard it again, or forks
        # a process that has threads.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-S", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._alive, self._agrees = True, False
        root = str(Path(__file__).parents[2])
        path = [p for p in sys.path if p]
        self._tell(path if root in path else [*path, root])

    @property
    def id(self) -> int:
        return self._process.pid

    def rows(self, asked: Request) -> list[Row | None] | None:
        """As `decoded`; None where the process is dead."""
        self._tell(asked)
        rows = self._answer() if self._alive else None
        self._alive = rows is not None and len(rows) == len(asked[1])
        if rows and self._alive and not self._agrees:
            self._compare(asked, rows)
        return rows if self._alive else None

    def _answer(self) -> list[Row | None] | None:
        assert self._process.stdout
        try:
            rows = marshal.load(self._process.stdout)
        except (OSError, EOFError, ValueError, TypeError):
            return None
        return rows if isinstance(rows, list) else None

    def _compare(self, asked: Request, rows: list[Row | None]) -> None:
        """Once, see whether it makes the rows that we do: it has imported the package just now,
        and another version may have been installed since we did."""
        files, experiments = asked
        whole = [number for number, row in enumerate(rows) if row is not None][:1]
        self._agrees = bool(whole)
        for number in whole:
            self._alive = decoded((files, [experiments[number]])) == [rows[number]]

    def _tell(self, value: list[str] | Request) -> None:
        assert self._process.stdin
        try:
            if self._alive:
                marshal.dump(value, self._process.stdin)
                self._process.stdin.flush()
        except (OSError, ValueError):
            self._alive = False

    def end(self) -> None:
        """It is gone, whatever it does."""
        self._alive = False
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):  # what it did not read
                    pipe.close()
