"""The experiments of a repository, without reading again what has not changed.

Knows what a listing costs: the record of an experiment is kept in a cache on this machine, and is
good as long as the backend gives its files the versions that they were read at. The truth stays in
the repository. Whatever is wrong with the cache, the answer is the same, only slower.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3

from replicate.backends.base import Stat
from replicate.backends.files import several
from replicate.backends.local import LocalBackend
from replicate.cache import Cache
from replicate.compact import pack, unpack
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    Heartbeat,
    LazyCheckpoints,
    PrimaryMetric,
)
from replicate.repository import Listed, Reading, Repository

T = TypeVar("T")
R = TypeVar("R")

#: A file that was modified less than this before it was read may be modified again within the same
#: tick of the storage's clock, and keep its version: FAT counts in steps of two seconds.
RACY_SECONDS = 2.0
#: So many experiments are read, and then kept, at a time.
_WINDOW = 128
#: The code that decides what a record is: when it changes, what was kept before is worth nothing.
_DECIDES = ("model", "records", "fold", "repository", "compact", "index")


@dataclass(frozen=True, slots=True)
class Match:
    """An id that starts with what was asked for: an experiment's, or one of its checkpoints'."""

    experiment: str
    checkpoint: str | None = None


class Index:
    """The experiments of a repository, with what is kept of them below `directory`, if any."""

    def __init__(self, repository: Repository, directory: Path | None) -> None:
        self._repository = repository
        name = blake3(repository.url.encode("utf-8", "surrogatepass")).hexdigest(length=16)
        file = directory / "index" / f"{name}.sqlite" if directory else None
        self._cache = Cache(file, _version())

    def records(self) -> list[ExperimentRecord]:
        """As `Repository.experiments`; checkpoints and packages are decoded once asked for."""
        found = [entry.record() for entry in self._entries() if not entry.deleted]
        return sorted(found, key=lambda e: (e.created, e.id))

    def matches(self, prefixes: Sequence[str]) -> list[list[Match]]:
        """For each of the prefixes, the ids that start with it: of experiments that are not
        deleted, and of their checkpoints."""
        entries = [entry for entry in self._entries() if not entry.deleted]
        kept = self._cache.read("ids")
        found: list[list[Match]] = [[] for _ in prefixes]
        for entry in entries:
            ids = _kept_ids(kept.get(entry.id), entry.fingerprint)
            if ids is None:  # it was not kept, or is another by now
                ids = _ids(self._repository.read(entry.listed).record)
            for prefix, matches in zip(prefixes, found, strict=True):
                if prefix and entry.id.startswith(prefix):
                    matches.append(Match(entry.id))
                if prefix and f"\n{prefix}" in ids:
                    matches += (Match(entry.id, i) for i in ids.split() if i.startswith(prefix))
        return found

    # ------------------------------------------------------------ what is kept, and what is read

    def _entries(self) -> Iterator[_Entry]:
        """Every experiment, deleted ones too, in no order."""
        listing = self._repository.listing()
        kept = self._cache.read("head", "beat")
        self._cache.forget(kept.keys() - listing.keys())
        clock = cache(self._repository.backend.clock)  # of this listing: asked once, if at all
        stale: list[Listed] = []
        alive: list[tuple[_Kept, Stat]] = []
        for id, listed in listing.items():
            head, beat = kept.get(id, (None, None))
            entry = _Kept.of(listed, head, self._repository, clock)
            if entry is None:
                stale.append(listed)
            elif listed.heartbeat is not None and not entry.knows(listed.heartbeat, beat):
                alive.append((entry, listed.heartbeat))
            else:
                yield entry
        stale += [entry.listed for entry in self._refresh(alive)]
        yield from (entry for entry, _ in alive if entry.heartbeat is not None)
        yield from self._read(stale, clock)

    def _refresh(self, alive: Sequence[tuple[_Kept, Stat]]) -> list[_Kept]:
        """Read the heartbeats with these numbers. Returns those that there is more to say of: the
        heartbeat is damaged, or counts more events than we have."""
        read = self._repository.heartbeat
        odd, beats = [], []
        for (entry, stat), heartbeat in zip(
            alive, self._each(read, [stat for _, stat in alive]), strict=True
        ):
            if heartbeat is None or not entry.accept(heartbeat):
                odd.append(entry)
            else:
                beats.append((entry.id, {"beat": _packed_beat(stat, heartbeat)}))
        self._cache.write(beats)
        return odd

    def _read(self, stale: Sequence[Listed], clock: Callable[[], float]) -> Iterator[_Entry]:
        """Read these from the repository, and keep those that are whole."""
        rest = iter(stale)
        while window := list(islice(rest, _WINDOW)):
            now = self._repository.backend.clock()  # before the first is read
            rows = []
            for reading in self._each(self._repository.read, window):
                if reading.record.damage:
                    yield _Damaged(reading.listed, reading.record)
                    continue
                row = _packed(reading)
                entry = _Kept.of(reading.listed, row["head"], self._repository, clock)
                assert entry is not None
                entry.heartbeat = reading.record.heartbeat
                if not _is_racy(reading.listed, now):
                    rows.append((entry.id, row))
                yield entry
            self._cache.write(rows)

    def _each(self, work: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
        """`work` of each item, in their order; by several threads where that means waiting."""
        local = isinstance(self._repository.backend, LocalBackend)
        return map(work, items) if local else several(work, items)


@cache
def _version() -> bytes:
    """A hash of the code that decides what a record is."""
    hashed = blake3()
    for module in _DECIDES:
        hashed.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    return hashed.digest()


# ---------------------------------------------------------------- an experiment


@dataclass(slots=True)
class _Damaged:
    """An experiment that was read, and of which something is lost. It is not kept."""

    listed: Listed
    whole: ExperimentRecord
    fingerprint: bytes = b""

    @property
    def id(self) -> str:
        return self.listed.id

    @property
    def deleted(self) -> bool:
        return self.whole.deleted

    def record(self) -> ExperimentRecord:
        return self.whole


@dataclass(slots=True)
class _Kept:
    """An experiment as the cache has it. `events` counts the events of each writer that it was
    folded from."""

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

    @classmethod
    def of(
        cls,
        listed: Listed,
        head: bytes | None,
        repository: Repository,
        clock: Callable[[], float],
    ) -> _Kept | None:
        """What is kept of the experiment, or None when that is not what is listed."""
        if head is None:
            return None
        fingerprint, flags, events, *parts = head.split(b"\n")
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
        summary, environment, packages = self.parts
        packed, count, best, latest, primary = json.loads(summary.decode())
        checkpoints = LazyCheckpoints(
            count,
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
            heartbeat = Heartbeat(math.inf, *json.loads(self.beat.decode()))
        if heartbeat is None or stat is None or self.stopped:
            return heartbeat
        return replace(heartbeat, age=max(0.0, self.clock() - stat.modified))


_Entry = _Kept | _Damaged


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


def _packed(reading: Reading) -> dict[str, bytes]:
    """The row of an experiment. No part has a newline: JSON escapes those of values."""
    record, listed = reading.record, reading.listed
    fingerprint = _fingerprint(listed)
    bare = replace(record, checkpoints=(), environment={}, packages={}, heartbeat=None)
    ends = (record.best(), record.latest(), record.primary_metric)
    head = (
        fingerprint,
        (b"d" if record.deleted else b"") + (b"s" if record.stop else b""),
        _json(dict(reading.events)),
        _json([pack(bare), len(record.checkpoints), *map(pack, ends)]),
        _json(dict(record.environment)),
        _json(dict(record.packages)),
    )
    stat, heartbeat = listed.heartbeat, record.heartbeat
    return {
        "head": b"\n".join(head),
        "beat": _packed_beat(stat, heartbeat) if stat and heartbeat else b"",
        "ids": fingerprint + _ids(record).encode(),
    }


def _packed_beat(stat: Stat, heartbeat: Heartbeat) -> bytes:
    kept = _json([heartbeat.interval, dict(heartbeat.events)])
    return b"\n".join([stat.version.encode(), kept])


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _json(value: Any) -> bytes:
    return _encode(value).encode()


def _fingerprint(listed: Listed) -> bytes:
    """What tells whether the files of an experiment, but for its heartbeat, are still the same."""
    stats = [listed.inputs, *listed.journals] if listed.inputs else listed.journals
    return " ".join([listed.id, *(f"{s.key}={s.version}" for s in stats)]).encode()


def _is_racy(listed: Listed, now: float) -> bool:
    """Whether one of the files may yet change without getting another version."""
    stats = [listed.inputs, *listed.journals] if listed.inputs else listed.journals
    return any(now - stat.modified < RACY_SECONDS for stat in stats)


def _ids(record: ExperimentRecord) -> str:
    """The ids of all checkpoints, each behind a newline."""
    return "".join(f"\n{checkpoint.id}" for checkpoint in record.checkpoints)


def _kept_ids(row: tuple[bytes | None, ...] | None, fingerprint: bytes) -> str | None:
    """The ids in a row of the cache, when they are of the experiment as it is."""
    content = row[0] if row else None
    head, newline, ids = (content or b"").partition(b"\n")
    return (newline + ids).decode() if content and head == fingerprint else None
