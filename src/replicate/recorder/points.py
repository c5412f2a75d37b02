"""The points that `log()` is given, on their way into the spool.

This runs for every batch of a training loop: a call costs some microseconds, and waits for nobody.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from replicate.model import Value
from replicate.recorder.segments import SegmentWriter
from replicate.values import to_value

#: The kind of these lines: `[seconds since the epoch, step, {name: number}]`, NaN as Python does.
POINTS = "points"
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_PLAIN = frozenset((float, int))
#: A script that does something wrong in a new way each time is not told of it for ever.
_MAX_SAID = 50


class PointLog:
    """Numbers by name, at steps of a run. Never raises; what is wrong is told to `problem`."""

    def __init__(self, directory: str, problem: Callable[[str], None]) -> None:
        self._writer = SegmentWriter(directory, POINTS)
        self._problem = problem
        self._said: set[str] = set()
        self._lock = threading.RLock()
        self._next_step: int | float = 0

    def add(self, metrics: Any, step: Any) -> None:
        """Keep a point: it survives the death of every process from when this returns."""
        try:
            if type(metrics) is not dict or not _PLAIN.issuperset(map(type, metrics.values())):
                metrics = self._numbers(metrics)
            if type(step) is not int:
                step = self._step(step)
            else:
                self._next_step = step + 1
            if metrics:
                self._writer.append(f"{_encode((time.time(), step, metrics))}\n".encode())
        except OSError as error:
            self._say(f"What is logged cannot be written now and is kept in memory: {error}")
        except Exception as error:  # any object may raise when it is asked for its value
            self._say(f"A call of log() was not recorded: {type(error).__name__}: {error}")

    def renew(self) -> None:
        """In a forked child: its points are its own, and it goes on counting where it was."""
        self._lock = threading.RLock()
        self._writer.renew()

    def close(self) -> None:
        """Write what could not be written before."""
        try:
            self._writer.close()
        except OSError as error:
            self._say(f"The last that was logged is lost: {error}")

    # ------------------------------------------------------------ what was passed, as numbers

    def _step(self, step: Any) -> int | float:
        """The step as a number; counted on from the last one when it is left out."""
        with self._lock:
            value = None if step is None else _number(step)
            if step is not None and (value is None or not math.isfinite(value)):
                self._say(f"log(): step must be a number, not {_kind(step)}: it was counted")
                value = None
            found = self._next_step if value is None else value
            self._next_step = found + 1
            return found

    def _numbers(self, metrics: Any) -> dict[str, int | float]:
        if not isinstance(metrics, Mapping):
            self._say(f"log() takes a dict of metrics, not {_kind(metrics)}")
            return {}
        numbers: dict[str, int | float] = {}
        for name, value in metrics.items():
            number = _number(value)
            if number is None:
                self._say(f"log(): {str(name)[:80]!r} is no number but {_kind(value)}: left out")
            else:
                numbers[str(name)] = number
        return numbers

    def _say(self, message: str) -> None:
        if message not in self._said and len(self._said) < _MAX_SAID:
            self._said.add(message)
            self._problem(message)


def _number(value: Any) -> int | float | None:
    """A number of any library as Python's; True and False as 1 and 0; None when it is none."""
    try:
        plain: Value = to_value(value, "metric")
    except Exception:
        return None
    if isinstance(plain, list) and len(plain) == 1:  # a tensor of one element
        plain = plain[0]
    if isinstance(plain, bool):
        return int(plain)
    return plain if isinstance(plain, int | float) else None


def _kind(value: object) -> str:
    return type(value).__name__
