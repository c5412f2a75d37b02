"""One experiment of a repository brought into another: what is missing there, verified, each part
after what it refers to.

It knows which files an experiment consists of, and what becomes of two copies that differ: files of
events only grow, and nothing that is there is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from replicate import checks
from replicate.backends.base import Stat
from replicate.errors import DamagedError, KeyNotFoundError
from replicate.fold import fold
from replicate.maintenance.copying import Lost, Objects
from replicate.maintenance.references import Reference, references
from replicate.maintenance.sound import (
    FILE,
    Sound,
    journals_without,
    segment_number,
    sound_journals,
    sound_stream,
)
from replicate.model import ExperimentRecord, short
from replicate.records import Event, decode_experiment, unseal
from replicate.repository import Repository

#: So often an experiment is read again that changes while it is read.
_TRIES = 3


class Outcome(StrEnum):
    """What became of one experiment."""

    ADDED = "added"  # it was not in the repository
    COMPLETED = "completed"  # a part of it was
    PRESENT = "present"  # all of it was
    DELETED = "deleted"  # it was, and somebody has deleted it: it does not come back
    LEFT_OUT = "left out"  # it is deleted where it comes from
    REMOVED = "removed"  # the same, and so it was deleted here, too
    FAILED = "failed"  # nothing of it could be brought


class Pair(NamedTuple):
    """An experiment, and what is stored of it in the source and in the target."""

    id: str
    there: Sequence[Stat]
    here: Sequence[Stat]


class _Piece(NamedTuple):
    """What a file of events is to hold that has less in the target, or that is not there."""

    key: str
    data: bytes


@dataclass(frozen=True, slots=True)
class _Read:
    """An experiment as it is in both places: its files, the heartbeat as it was before the journals
    were read, what is sound of these in the source, and the events of the two."""

    id: str
    there: Mapping[str, Stat]
    here: Mapping[str, int]
    beat: bytes | None
    journals: Mapping[str, Sound]
    theirs: Sequence[Event]
    ours: Sequence[Event]

    @property
    def is_new(self) -> bool:
        """Whether the target does not have the experiment."""
        return _inputs(self.id) not in self.here


class Merge:
    """Brings experiments from one repository to another. For use by several threads."""

    def __init__(
        self,
        source: Repository,
        target: Repository,
        *,
        compress: bool,
        deletions: bool = False,
        dry_run: bool = False,
        whole: bool = False,
        count: Callable[[int], None] = lambda objects: None,
    ) -> None:
        """With `whole`, what is missing is also looked for where the experiment is there."""
        self._source = source
        self._target = target
        self._whole = whole
        self._deletions = deletions
        self._dry_run = dry_run
        self.objects = Objects(source, target, compress=compress, dry_run=dry_run, count=count)

    def look(self, id: str) -> Pair:
        """What is stored of one experiment."""
        prefix = f"experiments/{id}/"
        here = list(self._target.backend.list(prefix))
        return Pair(id, list(self._source.backend.list(prefix)), here)

    # ------------------------------------------------------------ one

    def bring(self, pair: Pair) -> tuple[Outcome, list[str]]:
        """Bring an experiment; what became of it, and a sentence for each thing that is lost.

        Raises DamagedError when nothing of it can be brought, and StorageError.
        """
        for _ in range(_TRIES):
            outcome, problems = self._bring(pair)
            if not problems:
                break
            again = self.look(pair.id)
            if _versions(again.there) == _versions(pair.there):
                break
            pair = again  # what was missing may have been deleted while we were reading
        return outcome, problems

    def _bring(self, pair: Pair) -> tuple[Outcome, list[str]]:
        there = {s.key: s for s in pair.there if _is_copied(s.key)}
        here = {s.key: s.size for s in pair.here}
        present = all(here.get(key, -1) >= stat.size for key, stat in there.items())
        if present and not self._whole:
            # Only what is here alone can say that it was deleted.
            others = any(FILE.fullmatch(key) and key not in there for key in here)
            gone = others and _deletes(self._target.events(pair.id))
            return (Outcome.DELETED if gone else Outcome.PRESENT), []
        read = self._read(pair.id, there, here)
        if _deletes(read.ours):
            return Outcome.DELETED, []
        if _deletes(read.theirs):
            return self._delete(read)
        return self._complete(read)

    def _read(self, id: str, there: Mapping[str, Stat], here: Mapping[str, int]) -> _Read:
        # It counts events, so it comes before the journals, which only grow.
        beat = self._get(there.get(_heartbeat(id)))
        contents = {
            key: data
            for key, stat in there.items()
            if _stream(key) == "journal" and (data := self._get(stat)) is not None
        }
        journals = sound_journals(contents, self._source.url)
        theirs = [event for sound in journals.values() for event in sound.events]
        ours = self._target.events(id) if here else []
        return _Read(id, there, here, beat, journals, theirs, ours)

    def _complete(self, read: _Read) -> tuple[Outcome, list[str]]:
        """Bring what is missing: first what is referred to, then what refers to it."""
        inputs = self._read_inputs(read)
        record = decode_experiment(inputs, f"{self._source.url}/{_inputs(read.id)}")
        whole = fold(record, [*read.theirs, *read.ours])
        pieces, problems = self._pieces(read)
        wanted, mended = self._wanted(read, record, whole, news=bool(pieces))
        lost = self.objects.bring([*wanted, *mended])
        if read.is_new and record.tree in lost.trees:
            return Outcome.FAILED, [_not_copied(read.id, lost.trees[record.tree])]
        if lost.trees:
            sound = journals_without(read.journals, lost.trees.keys())
            pieces, problems = self._pieces(replace(read, journals=sound))
        problems += _said(read.id, lost)
        if mended and not (lost.problems or self._dry_run):
            problems += self._unmended(mended)
        if not self._dry_run:
            if read.is_new:
                self._target.announce(read.id)
                self._target.backend.put_if_absent({_inputs(read.id): inputs})
            self._write(read, pieces)
            if whole.stop is not None and not problems:
                self._write_heartbeat(read)
        if read.is_new:
            return Outcome.ADDED, problems
        done = pieces or (mended and not problems)
        return Outcome.COMPLETED if done else Outcome.PRESENT, problems

    def _wanted(
        self, read: _Read, record: ExperimentRecord, whole: ExperimentRecord, *, news: bool
    ) -> tuple[list[Reference], list[Reference]]:
        """What only new events refer to; and what the target should have and lacks, looked for
        where an earlier transfer has lost something, which then wrote no heartbeat."""
        needed = list(references(whole))
        if read.is_new:
            return needed, []
        known = {reference.ref for reference in references(fold(record, read.ours))}
        new = [r for r in needed if r.ref not in known] if news else []
        beat = _heartbeat(read.id)
        unfinished = whole.stop is not None and beat in read.there and beat not in read.here
        if not self._whole and not unfinished:
            return new, []
        return new, self.objects.lacking(r for r in needed if r.ref in known)

    def _unmended(self, mended: Sequence[Reference]) -> list[str]:
        """What is damaged in the target, where nothing that is there is replaced."""
        still = self.objects.lacking(mended)
        return [
            f"{_whose(reference)} in {self._target.url} is damaged, and was left as it is: delete "
            "the files that `replicate verify` names there, and copy it again"
            for reference in still
        ]

    def _delete(self, read: _Read) -> tuple[Outcome, list[str]]:
        """Delete what is deleted in the source, if that is wanted."""
        if not self._deletions or read.is_new:
            return Outcome.LEFT_OUT, []
        pieces, problems = self._pieces(read)
        if not self._dry_run:
            self._write(read, pieces)
        return Outcome.REMOVED, problems

    # ------------------------------------------------------------ files

    def _get(self, stat: Stat | None) -> bytes | None:
        """What the source has; None when it is gone. Raises DamagedError for what nobody writes."""
        if stat is None:
            return None
        try:
            data = self._source.backend.get(stat.key, 0, checks.MAX_EVENTS)
        except KeyNotFoundError:
            return None
        if len(data) == checks.MAX_EVENTS:
            raise DamagedError(f"{self._source.url}/{stat.key} is larger than anybody writes it")
        return data

    def _read_inputs(self, read: _Read) -> bytes:
        """experiment.json, which is the same in both places. Raises DamagedError."""
        key = _inputs(read.id)
        name = f"{self._source.url}/{key}"
        data = self._get(read.there.get(key))
        if data is None:
            raise DamagedError(f"{name} is missing")
        if decode_experiment(data, name).id != read.id:
            raise DamagedError(f"{name} is of another experiment")
        if not read.is_new and self._target.backend.get(key) != data:
            raise DamagedError(
                f"{name} and {self._target.url}/{key} differ, and cannot both be right",
                hint="`replicate verify` may say which one is damaged.",
            )
        return data

    def _pieces(self, read: _Read) -> tuple[list[_Piece], list[str]]:
        """What the files of events have more there than here, and why something cannot be had."""
        pieces: list[_Piece] = []
        problems = [s.problem for s in read.journals.values() if s.problem is not None]
        for key, stat in read.there.items():
            if not FILE.fullmatch(key) or read.here.get(key, -1) >= stat.size:
                continue
            sound = read.journals.get(key) if _stream(key) == "journal" else self._sound(stat)
            if sound is None:
                continue
            if sound.problem is not None and sound.problem not in problems:
                problems.append(sound.problem)
            existing = self._existing(key) if key in read.here else b""
            if not sound.data.startswith(existing[: len(sound.data)]):
                problems.append(
                    f"{self._target.url}/{key} is not the beginning of the longer file in "
                    f"{self._source.url}, and was left as it is"
                )
            elif len(existing) < len(sound.data):
                pieces.append(_Piece(key, sound.data))
        return pieces, problems

    def _sound(self, stat: Stat) -> Sound | None:
        data = self._get(stat)
        return None if data is None else sound_stream(data, stat.key, self._source.url)

    def _existing(self, key: str) -> bytes:
        """The committed lines that the target has of a file."""
        try:
            data = self._target.backend.get(key)
        except KeyNotFoundError:
            return b""
        return data[: data.rfind(b"\n") + 1]

    def _write(self, read: _Read, pieces: Sequence[_Piece]) -> None:
        """Commit events. A writer's second file is never there without its first."""
        if pieces:
            self._target.announce(read.id)
        for _, found in groupby(sorted(pieces, key=_number), key=_number):
            contents = dict(found)
            new = {key: data for key, data in contents.items() if key not in read.here}
            created = self._target.backend.put_if_absent(new)
            for key in contents.keys() - created:
                # Now, and not before we brought what it refers to: others may bring the same.
                existing, data = self._existing(key), contents[key]
                if len(existing) < len(data) and data.startswith(existing):
                    self._target.backend.append(key, existing, data[len(existing) :])

    def _write_heartbeat(self, read: _Read) -> None:
        """Copy the heartbeat of a run that has ended, unless there is a later one: it counts the
        events. That of another would look fresh, and say that the run goes on."""
        key = _heartbeat(read.id)
        if read.beat is None or _beaten(read.beat) is None:
            return
        ours = self._target.backend.get(key) if key in read.here else b""
        if (_beaten(ours) or "") < (_beaten(read.beat) or ""):
            self._target.announce(read.id)
            self._target.backend.put(key, read.beat)


def _not_copied(id: str, why: str) -> str:
    return f"experiment {short(id)} was not copied: {why}"


def _said(id: str, lost: Lost) -> list[str]:
    behind = dict.fromkeys(lost.trees.values(), ": from there on it was not copied")
    files = f"files of experiment {short(id)} are lost"
    return [f"{files}: {why}{behind.get(why, '')}" for why in lost.problems]


def _whose(reference: Reference) -> str:
    held = reference.holder
    if held.checkpoint is not None:
        return f"checkpoint {short(held.checkpoint)}"
    return f"the code of experiment {short(held.experiment or '')}"


def _inputs(id: str) -> str:
    return f"experiments/{id}/experiment.json"


def _heartbeat(id: str) -> str:
    return f"experiments/{id}/heartbeat.json"


def _is_copied(key: str) -> bool:
    """Whether a file is a part of an experiment as this version knows it."""
    return FILE.fullmatch(key) is not None or key.endswith(("/experiment.json", "/heartbeat.json"))


def _stream(key: str) -> str:
    found = FILE.fullmatch(key)
    return found["stream"] if found else ""


def _number(piece: _Piece) -> int:
    return segment_number(piece.key)


def _deletes(events: Iterable[Event]) -> bool:
    """Whether one of the events deletes the whole experiment."""
    return any(e.kind == "delete" and "checkpoints" not in e.data for e in events)


def _versions(stats: Iterable[Stat]) -> dict[str, str]:
    """What tells whether the files have changed, but for the heartbeat."""
    return {s.key: s.version for s in stats if not s.key.endswith("/heartbeat.json")}


def _beaten(data: bytes) -> str | None:
    """When a heartbeat was written; None for what is none."""
    try:
        time = unseal(data, "the heartbeat").get("time")
    except DamagedError:
        return None
    return time if isinstance(time, str) else None
