"""How a collector and the writers of a bucket agree on what is deleted, with no conditional delete.

One hidden object, `.condemned`, says which keys a collector is judging. It is only ever replaced by
compare-and-swap and never removed, so each of its versions is seen once, and one collector at a
time judges.

- A collector writes the keys there, *then* looks at their modified times, deletes the old ones, and
  at last writes that it is done.
- A writer touches (or creates) its keys, *then* reads `.condemned`. If it is the version that the
  writer knew before the touch and none of the keys is in it, no collector can have judged them by
  their time before the touch and deleted them after it. Otherwise the writer waits until none of
  them is condemned, and does it all again.

A collector that crashed stops counting after `LEASE` seconds by the storage's clock; one that is
alive deletes nothing in the second half of that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from replicate.backends.failures import asked
from replicate.backends.stores import Stores
from replicate.errors import KeyNotFoundError, StorageError

KEY = ".condemned"
#: For how long a list counts (seconds by the storage's clock).
LEASE = 180.0
#: The first and the longest pause between two looks at a list that names our keys (seconds).
_PAUSES = (0.05, 1.0)


@dataclass(frozen=True, slots=True)
class Sentence:
    """What `.condemned` says: by whom, for which keys, and which version of it this is.

    `version` is None when nobody ever wrote one; it is what the storage compares and swaps.
    """

    version: tuple[str | None, str | None] | None
    by: str = ""
    keys: frozenset[str] = frozenset()

    @property
    def mode(self) -> Any:
        """How to replace exactly this version."""
        if self.version is None:
            return "create"
        names = ("e_tag", "version")
        return {name: v for name, v in zip(names, self.version, strict=True) if v is not None}


class Condemned:
    """`.condemned` in one bucket. `clock` is the storage's."""

    def __init__(self, stores: Callable[[], Stores], url: str, clock: Callable[[], float]) -> None:
        self._stores = stores
        self._url = url
        self._clock = clock

    def read(self) -> Sentence:
        """What is condemned now; the list of a collector that crashed condemns nothing."""
        try:
            meta, content = asked("read", self._url, KEY, self._get)
            document = json.loads(content)
            keys = frozenset(map(str, document["keys"]))
            sentence = Sentence((meta["e_tag"], meta["version"]), str(document["by"]), keys)
        except KeyNotFoundError:
            return Sentence(None)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{self._url}/{KEY} is damaged", hint="Remove it.") from error
        if keys and self._clock() - meta["last_modified"].timestamp() > LEASE:
            return replace(sentence, keys=frozenset())
        return sentence

    def _get(self) -> tuple[Any, bytes]:
        found = obstore.get(self._stores().quick, KEY)
        return found.meta, found.bytes().to_bytes()

    def wait(self, keys: Collection[str]) -> Sentence:
        """What is condemned, as soon as none of `keys` is."""
        pauses = _pauses()
        while not (sentence := self.read()).keys.isdisjoint(keys):
            time.sleep(next(pauses))
        return sentence

    @contextmanager
    def judging(self, keys: Collection[str]) -> Iterator[Callable[[], bool]]:
        """All writers know that `keys` are being judged; no other collector judges meanwhile.

        The value tells whether there is still time to delete something.
        """
        deadline = _Deadline(LEASE / 2)
        sentence = self._take(keys, deadline)
        try:
            yield deadline.is_ahead
        finally:
            self._write(Sentence(sentence.version, uuid4().hex))

    def _take(self, keys: Collection[str], deadline: _Deadline) -> Sentence:
        mine, pauses = uuid4().hex, _pauses()
        while True:
            sentence = self.read()
            if sentence.by == mine:  # also when the answer to our write was lost
                return sentence
            if sentence.keys:
                time.sleep(next(pauses))
                continue
            deadline.restart()
            self._write(replace(sentence, by=mine, keys=frozenset(keys)))

    def _write(self, sentence: Sentence) -> None:
        """Replace the version that `sentence` has; nothing happens if it is replaced already."""
        document = {"by": sentence.by, "keys": sorted(sentence.keys)}
        content = json.dumps(document).encode()
        try:
            asked("write", self._url, KEY, lambda: self._swap(content, sentence.mode))
        except (AlreadyExistsError, PreconditionError):
            return

    def _swap(self, content: bytes, mode: Any) -> None:
        obstore.put(self._stores().quick, KEY, content, mode=mode, use_multipart=False)


class _Deadline:
    """So many seconds from now, whether the machine is awake or not."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        # A machine that sleeps may stop the first of these, and one that is set back the second.
        self._start = time.monotonic(), time.time()

    def is_ahead(self) -> bool:
        passed = max(time.monotonic() - self._start[0], time.time() - self._start[1])
        return passed < self._seconds


def _pauses() -> Iterator[float]:
    pause, longest = _PAUSES
    while True:
        yield pause
        pause = min(pause * 2, longest)
