"""The key layout of a repository, and reading and writing experiments in it.

`docs/format.md` is the contract of what this module puts on disk. It knows nothing of a project's
directory, of processes, or of people.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from replicate.backends.base import Backend, Stat
from replicate.blobs import Batch
from replicate.errors import DamagedError, KeyNotFoundError, RepositoryError
from replicate.fold import fold
from replicate.model import ExperimentRecord, Heartbeat, Value
from replicate.records import (
    Event,
    decode_event,
    decode_experiment,
    dump,
    encode_event,
    encode_experiment,
    encode_time,
    now,
    seal_document,
    unseal,
)
from replicate.tree import Tree, read_tree

VERSION = 1
#: Names of optional parts of the format that this version can read.
FEATURES: frozenset[str] = frozenset()
SEGMENT_SIZE = 256 << 10
_DESCRIPTION = {"format": "replicate", "version": VERSION, "requires": []}
_DESCRIPTION_KEY = "repository.json"


class Repository:
    """A repository on a backend. Opening one reads and writes nothing: see `check` and `create`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def url(self) -> str:
        return self.backend.url

    # ------------------------------------------------------------ the repository as a whole

    def exists(self) -> bool:
        """Whether there is a repository here; raises RepositoryError when it cannot be read."""
        try:
            data = self.backend.get(_DESCRIPTION_KEY)
        except KeyNotFoundError:
            if next(iter(self.backend.list("experiments/")), None) is None:
                return False
            raise RepositoryError(
                f"{self.url} holds experiments, but its {_DESCRIPTION_KEY} is missing",
                hint=f"If it was lost, write it again: {dump(_DESCRIPTION).decode()}",
            ) from None
        self._check_description(data)
        return True

    def create(self) -> None:
        """Make a repository here unless there is one. Raises like `exists`."""
        if not self.exists():
            self.backend.put_if_absent({_DESCRIPTION_KEY: dump(_DESCRIPTION) + b"\n"})

    def _check_description(self, data: bytes) -> None:
        name = f"{self.url}/{_DESCRIPTION_KEY}"
        try:
            value = json.loads(data)
            kind, version, requires = value["format"], value["version"], set(value["requires"])
        except (KeyError, TypeError, ValueError) as error:
            raise RepositoryError(
                f"{name} is damaged ({error!r})",
                hint=f"If this is a repository, it should read: {dump(_DESCRIPTION).decode()}",
            ) from error
        if kind != "replicate":
            raise RepositoryError(f"{name} describes a {kind!r}, not a replicate repository")
        missing = ", ".join(sorted(str(r) for r in requires - FEATURES))
        if version != VERSION or missing:
            what = f"version {version}" + (f" with {missing}" if missing else "")
            raise RepositoryError(
                f"{name} is of {what}; this replicate reads version {VERSION}",
                hint="Nothing was changed. Upgrade replicate to use this repository.",
            )

    # ------------------------------------------------------------ writing

    def batch(self, *, compress: bool = False) -> Batch:
        """Where blobs and trees are put on their way into the repository."""
        return Batch(self.backend, compress=compress)

    def create_experiment(self, record: ExperimentRecord) -> None:
        """Write experiment.json, once: the experiment exists from then on. A second time is no
        error and changes nothing, so that recovery may repeat it."""
        self.backend.put_if_absent({_experiment_key(record.id): encode_experiment(record)})

    def journal(
        self, experiment: str, writer: str, stream: str = "journal", *, attempt: int = 1
    ) -> JournalWriter:
        """A journal of an experiment, or another of its streams of events, for a writer that
        nobody else is: a new random name. Its events belong to that attempt of the run."""
        return JournalWriter(self.backend, experiment, writer, stream, attempt)

    def beat(self, experiment: str, interval: float, events: Mapping[str, int]) -> None:
        """Say that the experiment's recorder is alive, and how many events it has written."""
        document = {"time": encode_time(now()), "interval": interval, "events": dict(events)}
        self.backend.put(_heartbeat_key(experiment), seal_document(document))

    # ------------------------------------------------------------ reading

    def ids(self) -> list[str]:
        """The ids of all experiments, deleted ones included."""
        return list(self._keys())

    def experiments(self) -> list[ExperimentRecord]:
        """All experiments that are not deleted, the oldest first.

        One that is damaged is there with what can be read of it, and `damage` says what cannot.
        """
        found = (self._read(id, keys) for id, keys in self._keys().items())
        return sorted((e for e in found if not e.deleted), key=lambda e: (e.created, e.id))

    def has(self, id: str) -> bool:
        """Whether the experiment with this whole id has been created."""
        return self.backend.stat(_experiment_key(id)) is not None

    def experiment(self, id: str) -> ExperimentRecord:
        """The experiment with this whole id, deleted or not. Raises KeyNotFoundError."""
        stats = list(self.backend.list(f"experiments/{id}/"))
        if not stats:
            raise KeyNotFoundError(f"there is no experiment {id} in {self.url}")
        return self._read(id, stats)

    def tree(self, hash: str) -> Tree:
        """The tree named `hash`. Raises DamagedError or UnsafeTreeError."""
        return read_tree(self.backend, hash)

    def _keys(self) -> dict[str, list[Stat]]:
        keys: dict[str, list[Stat]] = defaultdict(list)
        for stat in self.backend.list("experiments/"):
            parts = stat.key.split("/")
            if len(parts) > 2:
                keys[parts[1]].append(stat)
        return keys

    def _read(self, id: str, stats: Iterable[Stat]) -> ExperimentRecord:
        record, lost = self._read_once(id, stats)
        if lost:  # perhaps only written since we listed: look again before calling it a loss
            record, lost = self._read_once(id, self.backend.list(f"experiments/{id}/"))
        return replace(record, damage=record.damage + tuple(lost))

    def _read_once(self, id: str, stats: Iterable[Stat]) -> tuple[ExperimentRecord, list[str]]:
        damage: list[str] = []
        events: list[Event] = []
        unreadable: Counter[str] = Counter()
        by_key = {stat.key: stat for stat in stats}
        beat = by_key.get(_heartbeat_key(id))
        # Before the journals: it counts events, and they may only grow after they were counted.
        heartbeat = self._read_heartbeat(beat, damage) if beat else None
        inputs = self._read_inputs(id, damage)
        for key in by_key:
            if "/journal/" in key:
                events += self._read_journal(key, damage, unreadable)
        folded = fold(inputs, events)
        if heartbeat is not None and beat is not None and folded.stop is None:
            heartbeat = replace(heartbeat, age=max(0.0, self.backend.clock() - beat.modified))
        lost = _missing_events(id, events, unreadable, heartbeat.events if heartbeat else {})
        record = replace(folded, heartbeat=heartbeat, damage=(*folded.damage, *damage))
        return record, lost

    def _read_inputs(self, id: str, damage: list[str]) -> ExperimentRecord:
        key = _experiment_key(id)
        try:
            record = decode_experiment(self.backend.get(key), f"{self.url}/{key}")
            if record.id != id:
                raise DamagedError(f"{self.url}/{key} is of another experiment, {record.id}")
            return record
        except KeyNotFoundError:
            damage.append(f"{self.url}/{key} is missing: the run's inputs are lost")
        except DamagedError as error:
            damage.append(f"{error}: the run's inputs are lost")
        epoch = datetime.fromisoformat("1970-01-01T00:00:00Z")
        return ExperimentRecord(
            id=id, created=epoch, params={}, user="", host="", command="", path=None, tree=None
        )

    def _read_journal(
        self, key: str, damage: list[str], unreadable: Counter[str]
    ) -> Iterator[Event]:
        writer = key.rpartition("/")[2].rpartition("-")[0]
        try:
            data = self.backend.get(key)
        except KeyNotFoundError:
            return
        # What stands behind the last newline is a line that is being written, or that a crash cut
        # off before it was committed. If it had been, the count in the heartbeat says so.
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            try:
                yield decode_event(line, writer, f"line {number} of {self.url}/{key}")
            except DamagedError as error:
                damage.append(f"{error}: one event is lost")
                unreadable[writer] += 1

    def _read_heartbeat(self, stat: Stat, damage: list[str]) -> Heartbeat | None:
        name = f"{self.url}/{stat.key}"
        try:
            value: dict[str, Any] = unseal(self.backend.get(stat.key), name)
            return Heartbeat(math.inf, float(value["interval"]), dict(value["events"]))
        except KeyNotFoundError:
            return None
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            damage.append(f"{error}: when the run was last alive cannot be told")
            return None


class JournalWriter:
    """Appends events to files that nobody else writes to."""

    def __init__(
        self, backend: Backend, experiment: str, writer: str, stream: str, attempt: int = 1
    ) -> None:
        self._backend = backend
        # The first attempt goes without saying: most runs have no other.
        self._common = {"attempt": attempt} if attempt > 1 else {}
        self._directory = f"experiments/{experiment}/{stream}"
        self.writer = writer
        self.count = 0
        self._segment = 0
        self._written = b""

    def append(self, events: Iterable[tuple[str, datetime, Mapping[str, Value]]]) -> None:
        """Commit events, given as (kind, time, data). When it returns they are durable.

        After an error nothing is counted as written, and the same call may be made again.
        """
        lines = [
            encode_event(Event(kind, time, self.writer, self.count + i, {**self._common, **data}))
            for i, (kind, time, data) in enumerate(events)
        ]
        if not lines:
            return
        if len(self._written) >= SEGMENT_SIZE:
            self._segment, self._written = self._segment + 1, b""
        added = b"".join(lines)
        key = f"{self._directory}/{self.writer}-{self._segment}.jsonl"
        self._backend.append(key, self._written, added)
        self._written += added
        self.count += len(lines)


def _missing_events(
    id: str, events: Iterable[Event], unreadable: Mapping[str, int], written: Mapping[str, int]
) -> list[str]:
    """A sentence for each writer of whose events some are gone without leaving a damaged line."""
    seen: dict[str, set[int]] = defaultdict(set)
    for event in events:
        seen[event.writer].add(event.number)
    lost = []
    for writer in sorted(seen.keys() | written.keys()):
        expected = max(max(seen[writer], default=-1) + 1, written.get(writer, 0))
        missing = expected - len(seen[writer]) - unreadable.get(writer, 0)
        if missing > 0:
            files = f"experiments/{id}/journal/{writer}-*.jsonl"
            lost.append(f"{missing} of {expected} events are missing from {files}")
    return lost


def _experiment_key(id: str) -> str:
    return f"experiments/{id}/experiment.json"


def _heartbeat_key(id: str) -> str:
    return f"experiments/{id}/heartbeat.json"
