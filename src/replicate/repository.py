"""The key layout of a repository, and reading and writing experiments in it.

`docs/format.md` is the contract of what this module puts on disk. It knows nothing of a project's
directory, of processes, or of people.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

from replicate import checks
from replicate.backends.base import Backend, Stat
from replicate.backends.local import LocalBackend
from replicate.backends.reserve import keep_reserve
from replicate.blobs import Batch, Recent
from replicate.changes import Announcements
from replicate.config import Compression
from replicate.errors import DamagedError, KeyNotFoundError, RepositoryError
from replicate.fold import fold
from replicate.journal import JournalWriter, missing_events
from replicate.model import ExperimentRecord, Heartbeat, Point
from replicate.packs import Directory, PackedView, Packs
from replicate.records import (
    Event,
    decode_event,
    decode_experiment,
    dump,
    encode_experiment,
    encode_time,
    now,
    seal_document,
    unseal,
)
from replicate.spool import spool_root
from replicate.streams import StreamReader, history
from replicate.tree import Tree, read_tree

VERSION = 1
#: Names of optional parts of the format that this version can read.
FEATURES: frozenset[str] = frozenset()
#: Stands for a time that is lost.
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00Z")
_DESCRIPTION = {"format": "replicate", "version": VERSION, "requires": []}
_DESCRIPTION_KEY = "repository.json"
#: What a reader accepts at most of it (bytes).
_MAX_DESCRIPTION = 1 << 20
_INPUTS, _HEARTBEAT = "experiment.json", "heartbeat.json"
#: The streams of events that no record is made of.
_ASIDE = frozenset({"console", "log", "system"})


@dataclass(frozen=True, slots=True)
class Listed:
    """What is stored of an experiment, as far as its record is made of it: `inputs` is
    experiment.json, which may be lost. Streams of events other than the journal are not here."""

    id: str
    inputs: Stat | None
    journals: tuple[Stat, ...]
    heartbeat: Stat | None

    @classmethod
    def of(cls, id: str, stats: Iterable[Stat]) -> Listed:
        """What matters of all that is stored of the experiment."""
        inputs, journals, heartbeat = None, [], None
        start = len(_directory(id))
        for stat in stats:
            name = stat.key[start:]
            if name.startswith("journal/"):
                journals.append(stat)
            elif name == _INPUTS:
                inputs = stat
            elif name == _HEARTBEAT:
                heartbeat = stat
        return cls(id, inputs, tuple(journals), heartbeat)


@dataclass(frozen=True, slots=True)
class Reading:
    """An experiment, the files that it was read from, and how many events of each writer. It is
    what `inputs` became through `journal`."""

    listed: Listed
    record: ExperimentRecord
    events: Mapping[str, int]
    inputs: ExperimentRecord
    journal: Sequence[Event]


class Repository:
    """A repository on a backend. Opening one reads and writes nothing: see `check` and `create`."""

    def __init__(self, backend: Backend, spools: Path | None = None) -> None:
        """`spools` is where what is recorded on this machine waits to be saved: beside a
        repository on disk where it is left out, nowhere for any other."""
        self.backend = backend
        self.spools = spool_root(backend) if spools is None else spools
        self._packs = Packs(backend)
        self._announcements = Announcements(backend)

    @property
    def url(self) -> str:
        return self.backend.url

    @cached_property
    def backups(self) -> Repository:
        """Where checkouts keep what they overwrite: here, or where this is remote on this machine,
        whose files they are. Who may only read a bucket can check out of it."""
        if not self.backend.remote or self.spools is None:
            return self
        return Repository(LocalBackend(self.spools / ".undo"))

    # ------------------------------------------------------------ the repository as a whole

    def exists(self) -> bool:
        """Whether there is a repository here; raises RepositoryError when it cannot be read."""
        try:
            data = self.backend.get(_DESCRIPTION_KEY, 0, _MAX_DESCRIPTION)
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
            keep_reserve(self.backend)

    def _check_description(self, data: bytes) -> None:
        name = f"{self.url}/{_DESCRIPTION_KEY}"
        try:
            value = json.loads(data)
            kind, version = value["format"], value["version"]
            requires = set(checks.texts(value["requires"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise RepositoryError(
                f"{name} is damaged ({error!r})",
                hint=f"If this is a repository, it should read: {dump(_DESCRIPTION).decode()}",
            ) from error
        if kind != "replicate":
            raise RepositoryError(f"{name} describes a {kind!r:.80}, not a replicate repository")
        missing = ", ".join(sorted(requires - FEATURES))
        if version != VERSION or missing:
            what = f"version {version!r:.80}" + (f" with {missing:.200}" if missing else "")
            raise RepositoryError(
                f"{name} is of {what}; this replicate reads version {VERSION}",
                hint="Nothing was changed. Upgrade replicate to use this repository.",
            )

    # ------------------------------------------------------------ writing

    def compresses(self, setting: Compression) -> bool:
        """Whether blobs are compressed under this setting: by `auto` not on a local disk, where
        it costs more time than the bytes are worth."""
        return setting == "zstd" or (
            setting == "auto" and not isinstance(self.backend, LocalBackend)
        )

    def batch(self, *, compress: bool = False, recent: Recent | None = None) -> Batch:
        """Where blobs and trees are put on their way into the repository.

        Who passes `recent`, which lives for as many batches as the caller likes, lets small ones go
        into packs where that saves requests, and writes `packs_of` each tree beside its hash.
        """
        recent = recent if self.backend.remote else None
        return Batch(self.backend, compress=compress, recent=recent)

    def create_experiment(self, record: ExperimentRecord) -> None:
        """Write experiment.json, once: the experiment exists from then on. A second time is no
        error and changes nothing, so that recovery may repeat it."""
        self.announce(record.id)
        self.backend.put_if_absent({_experiment_key(record.id): encode_experiment(record)})

    def journal(
        self, experiment: str, writer: str, stream: str = "journal", *, attempt: int = 1
    ) -> JournalWriter:
        """A journal of an experiment, or another of its streams of events, for a writer that
        nobody else is: a new random name. Its events belong to that attempt of the run."""
        directory = _directory(experiment) + stream
        announce = partial(self.announce, experiment)
        return JournalWriter(self.backend, directory, writer, announce, attempt)

    def announce(self, experiment: str) -> None:
        """In a bucket, mark the experiment as changed, unless that was done a moment ago.

        Listings read again only what is marked, so whoever writes what an experiment is made of
        calls this first. The writers of this class do.
        """
        self._announcements.announce(experiment)

    def beat(self, experiment: str, interval: float, events: Mapping[str, int]) -> None:
        """Say that the experiment's recorder is alive, and how many events it has written."""
        self.announce(experiment)
        document = {"time": encode_time(now()), "interval": interval, "events": dict(events)}
        self.backend.put(_heartbeat_key(experiment), seal_document(document))

    # ------------------------------------------------------------ reading

    def ids(self) -> list[str]:
        """The ids of all experiments, deleted ones included."""
        return list(self.listing())

    def listing(self) -> dict[str, Listed]:
        """What is stored of each experiment, by its id; nothing is read."""
        stats: dict[str, list[Stat]] = {}
        for stat in self.backend.outline("experiments/", _ASIDE):
            id, _, name = stat.key.removeprefix("experiments/").partition("/")
            if name:
                stats.setdefault(id, []).append(stat)
        return {id: Listed.of(id, found) for id, found in stats.items()}

    def listed(self, id: str) -> Listed:
        """What is stored of the experiment with this whole id; nothing is read."""
        return Listed.of(id, self.backend.list(_directory(id)))

    def experiments(self) -> list[ExperimentRecord]:
        """All experiments that are not deleted, the oldest first.

        One that is damaged is there with what can be read of it, and `damage` says what cannot.
        """
        found = (self.read(listed).record for listed in self.listing().values())
        return sorted((e for e in found if not e.deleted), key=lambda e: (e.created, e.id))

    def has(self, id: str) -> bool:
        """Whether the experiment with this whole id has been created."""
        return self.backend.stat(_experiment_key(id)) is not None

    def experiment(self, id: str) -> ExperimentRecord:
        """The experiment with this whole id, deleted or not. Raises KeyNotFoundError."""
        stats = list(self.backend.list(f"experiments/{id}/"))
        if not stats:
            raise KeyNotFoundError(f"there is no experiment {id} in {self.url}")
        return self.read(Listed.of(id, stats)).record

    def read(self, listed: Listed) -> Reading:
        """The experiment of which these files are listed, and what it was read from.

        One that is damaged is there with what can be read of it, and `damage` says what cannot.
        """
        reading, lost = self._read_once(listed)
        if lost:  # perhaps only written since we listed: look again before calling it a loss
            reading, lost = self._read_once(self.listed(listed.id))
        damage = reading.record.damage + tuple(lost)
        return replace(reading, record=replace(reading.record, damage=damage))

    def heartbeat(self, stat: Stat) -> Heartbeat | None:
        """The heartbeat with these numbers; None when it is gone or damaged. Its age is infinite:
        see `aged`."""
        return self._read_heartbeat(stat, [])

    def aged(self, heartbeat: Heartbeat, stat: Stat) -> Heartbeat:
        """The heartbeat as it is now, by the storage's own clock."""
        return replace(heartbeat, age=max(0.0, self.backend.clock() - stat.modified))

    def events(self, id: str) -> list[Event]:
        """The events of an experiment as they stand in its journals, without the damaged ones:
        what was deleted is there, and so is the event that says so."""
        keys = [stat.key for stat in self.backend.list(f"experiments/{id}/journal/")]
        return [e for key in keys for e in self._read_journal(key, [], Counter())]

    def stream(self, id: str, name: str) -> StreamReader:
        """One of the streams of events that an experiment has beside its journal: `log`, `console`
        or `system`. One that it has not is empty."""
        return StreamReader(self.backend, f"experiments/{id}/{name}/")

    def history(self, record: ExperimentRecord) -> list[Point]:
        """Every point of an experiment in the order of time: what was logged, and the metrics of
        its checkpoints. What a later attempt has superseded is left out."""
        return history(self.stream(record.id, "log").read(), record)

    def tree(self, hash: str, packs: Sequence[str] = ()) -> Tree:
        """The tree named `hash`, which these packs hold. Raises DamagedError or UnsafeTreeError."""
        return read_tree(self.objects(packs), hash)

    def objects(self, packs: Sequence[str]) -> Backend:
        """Where to read trees and blobs from, those that these packs hold as well."""
        return PackedView(self.backend, self._packs, packs) if packs else self.backend

    def check_pack(self, hash: str, *, full: bool) -> Directory:
        """What a pack holds. Raises DamagedError when it is missing or does not have the size that
        its first line says; with `full` when any byte of it is not what was written."""
        return self._packs.check(hash, full=full)

    def _read_once(self, listed: Listed) -> tuple[Reading, list[str]]:
        id, beat = listed.id, listed.heartbeat
        damage: list[str] = []
        events: list[Event] = []
        unreadable: Counter[str] = Counter()
        # Before the journals: it counts events, and they may only grow after they were counted.
        heartbeat = self._read_heartbeat(beat, damage) if beat else None
        inputs = self._read_inputs(id, damage)
        for stat in listed.journals:
            events += self._read_journal(stat.key, damage, unreadable)
        if inputs.created == _EPOCH and events:  # lost, but no event is older than its run
            inputs = replace(inputs, created=min(event.time for event in events))
        folded = fold(inputs, events)
        if heartbeat is not None and beat is not None and folded.stop is None:
            heartbeat = self.aged(heartbeat, beat)
        lost = missing_events(id, events, unreadable, heartbeat.events if heartbeat else {})
        record = replace(folded, heartbeat=heartbeat, damage=(*folded.damage, *damage))
        return Reading(listed, record, Counter(e.writer for e in events), inputs, events), lost

    def _read_inputs(self, id: str, damage: list[str]) -> ExperimentRecord:
        key = _experiment_key(id)
        try:
            data = self.backend.get(key, 0, checks.MAX_DOCUMENT)
            record = decode_experiment(data, f"{self.url}/{key}")
            if record.id != id:
                raise DamagedError(f"{self.url}/{key} is of another experiment, {record.id}")
            return record
        except KeyNotFoundError:
            damage.append(f"{self.url}/{key} is missing: the run's inputs are lost")
        except DamagedError as error:
            damage.append(f"{error}: the run's inputs are lost")
        return ExperimentRecord(
            id=id, created=_EPOCH, params={}, user="", host="", command="", path=None, tree=None
        )

    def _read_journal(
        self, key: str, damage: list[str], unreadable: Counter[str]
    ) -> Iterator[Event]:
        writer = key.rpartition("/")[2].rpartition("-")[0]
        try:
            data = self.backend.get(key, 0, checks.MAX_EVENTS)
        except KeyNotFoundError:
            return
        if len(data) == checks.MAX_EVENTS:
            damage.append(f"{self.url}/{key} is too large: what follows its first part is lost")
        # What stands behind the last newline is a line that is being written, or that a crash cut
        # off before it was committed. If it had been, the count in the heartbeat says so.
        name = f"{self.url}/{key}"
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            try:
                yield decode_event(line, writer, name)
            except DamagedError as error:
                damage.append(f"line {number} of {error}: one event is lost")
                unreadable[writer] += 1

    def _read_heartbeat(self, stat: Stat, damage: list[str]) -> Heartbeat | None:
        name = f"{self.url}/{stat.key}"
        try:
            value = unseal(self.backend.get(stat.key, 0, checks.MAX_DOCUMENT), name)
            interval, events = checks.interval(value["interval"]), checks.counts(value["events"])
            return Heartbeat(math.inf, interval, events)
        except KeyNotFoundError:
            return None
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            damage.append(f"{error}: when the run was last alive cannot be told")
            return None


def _directory(id: str) -> str:
    return f"experiments/{id}/"


def _experiment_key(id: str) -> str:
    return _directory(id) + _INPUTS


def _heartbeat_key(id: str) -> str:
    return _directory(id) + _HEARTBEAT
