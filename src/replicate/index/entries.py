"""An experiment as a listing has it: read just now, or kept in a row of the cache on this machine.

It knows what a row holds and when it is good: as long as the backend gives the experiment's files
the versions that they were read at.
"""

from __future__ import annotations

import json
import marshal
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from replicate.backends.base import Stat
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    Heartbeat,
    LazyCheckpoints,
    PrimaryMetric,
)
from replicate.positional import pack, unpack
from replicate.repository import Listed, Reading, Repository

#: A file that was modified less than this before it was read may be modified again within the same
#: tick of the storage's clock, and keep its version: FAT counts in steps of two seconds.
RACY_SECONDS = 2.0


@dataclass(slots=True)
class Damaged:
    """An experiment that was read, and of which something is lost. It is not kept."""

    listed: Listed
    whole: ExperimentRecord
    fingerprint: bytes = b""
    shared: bool = False

    @property
    def id(self) -> str:
        return self.listed.id

    @property
    def deleted(self) -> bool:
        return self.whole.deleted

    def record(self) -> ExperimentRecord:
        return self.whole


@dataclass(slots=True)
class Kept:
    """An experiment as the cache has it. `events` counts the events of each writer that it was
    folded from. What is `shared` comes from a snapshot, which keeps its checkpoints' ids apart."""

    listed: Listed
    fingerprint: bytes
    events: bytes
    deleted: bool
    stopped: bool
    parts: list[bytes]
    repository: Repository
    clock: Callable[[], float]
    beat: bytes = b""
    heartbeat: Heartbeat | None = None
    shared: bool = False

    @classmethod
    def of(
        cls,
        listed: Listed,
        head: bytes | None,
        repository: Repository,
        clock: Callable[[], float],
    ) -> Kept | None:
        """What is kept of the experiment, or None when that is not what is listed."""
        if head is None:
            return None
        fingerprint, flags, events, *parts = head.split(b"\n", 5)
        if fingerprint != _fingerprint(listed):
            return None
        return cls(
            listed, fingerprint, events, b"d" in flags, b"s" in flags, parts, repository, clock
        )

    @property
    def id(self) -> str:
        return self.listed.id

    def knows(self, stat: Stat, beat: bytes | None) -> bool:
        """Whether the heartbeat with these numbers is kept, as one that was accepted before."""
        version, _, self.beat = (beat or b"").partition(b"\n")
        return version == stat.version.encode()

    def accept(self, heartbeat: Heartbeat) -> bool:
        """Whether we have all the events that the heartbeat counts; then it is this entry's."""
        events = json.loads(self.events)
        if any(events.get(writer, 0) < n for writer, n in heartbeat.events.items()):
            return False
        self.heartbeat = heartbeat
        return True

    def record(self) -> ExperimentRecord:
        """The record as a read of the repository gives it, decoded as far as listings need."""
        environment, packages, summary = self.parts
        packed, count, current, best, latest, primary = marshal.loads(summary)
        checkpoints = LazyCheckpoints(
            count,
            current,
            best and unpack(CheckpointRecord, best),
            latest and unpack(CheckpointRecord, latest),
            primary and unpack(PrimaryMetric, primary),
            partial(_checkpoints, self.repository, self.id),
        )
        return unpack(
            ExperimentRecord,
            packed,
            checkpoints=checkpoints if count else (),
            environment=_Packed(environment),
            packages=_Packed(packages),
            heartbeat=self._aged(),
        )

    def _aged(self) -> Heartbeat | None:
        stat, heartbeat = self.listed.heartbeat, self.heartbeat
        if heartbeat is None and self.beat:
            heartbeat = Heartbeat(math.inf, *marshal.loads(self.beat))
        if heartbeat is None or stat is None or self.stopped:
            return heartbeat
        return replace(heartbeat, age=max(0.0, self.clock() - stat.modified))


Entry = Kept | Damaged


def _checkpoints(repository: Repository, id: str) -> Sequence[CheckpointRecord]:
    return repository.experiment(id).checkpoints


class _Packed(Mapping[str, Any]):
    """A mapping that is decoded when it is first looked into."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    @cached_property
    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self._packed)
        return values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


# ---------------------------------------------------------------- the rows of the cache


def packed(reading: Reading, ids: str) -> dict[str, bytes]:
    """The row of an experiment with these ids, each behind a newline. Of the parts of its head only
    the last may have one: JSON escapes those of values."""
    record, listed = reading.record, reading.listed
    fingerprint = _fingerprint(listed)
    bare = replace(record, checkpoints=(), environment={}, packages={}, heartbeat=None)
    ends = (record.best(), record.latest(), record.primary_metric)
    head = (
        fingerprint,
        (b"d" if record.deleted else b"") + (b"s" if record.stop else b""),
        _json(dict(reading.events)),
        _json(dict(record.environment)),
        _json(dict(record.packages)),
        _plain([pack(bare), len(record.checkpoints), record.num_checkpoints, *map(pack, ends)]),
    )
    stat, heartbeat = listed.heartbeat, record.heartbeat
    return {
        "head": b"\n".join(head),
        "beat": packed_beat(stat, heartbeat) if stat and heartbeat else b"",
        "ids": fingerprint + ids.encode(),
    }


def packed_beat(stat: Stat, heartbeat: Heartbeat) -> bytes:
    kept = _plain([heartbeat.interval, dict(heartbeat.events)])
    return b"\n".join([stat.version.encode(), kept])


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _json(value: Any) -> bytes:
    return _encode(value).encode()


def _plain(value: Any) -> bytes:
    # It is read in half the time that JSON takes, and every Python reads version 2. Damage of it,
    # which it does not notice, is noticed before: the row has a checksum.
    return marshal.dumps(value, 2)


def _fingerprint(listed: Listed) -> bytes:
    """What tells whether the files of an experiment, but for its heartbeat, are still the same."""
    stats = [listed.inputs, *listed.journals] if listed.inputs else listed.journals
    return " ".join([listed.id, *(f"{s.key}={s.version}" for s in stats)]).encode()


def is_racy(listed: Listed, now: float) -> bool:
    """Whether one of the files may yet change without getting another version."""
    stats = [listed.inputs, *listed.journals] if listed.inputs else listed.journals
    return any(now - stat.modified < RACY_SECONDS for stat in stats)


def ids_of(record: ExperimentRecord) -> str:
    """The ids of all checkpoints, each behind a newline."""
    return "".join(f"\n{checkpoint.id}" for checkpoint in record.checkpoints)


def kept_ids(row: tuple[bytes | None, ...] | None, fingerprint: bytes) -> str | None:
    """The ids in a row of the cache, when they are of the experiment as it is."""
    content = row[0] if row else None
    head, newline, ids = (content or b"").partition(b"\n")
    return (newline + ids).decode() if content and head == fingerprint else None
