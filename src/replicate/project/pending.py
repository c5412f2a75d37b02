"""What of the experiments of a repository is only on this machine so far: read from the spools,
without a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from replicate.errors import DamagedError, KeyNotFoundError, UsageError
from replicate.fold import fold
from replicate.model import CheckpointRecord, ExperimentRecord, Heartbeat, short
from replicate.records import Event, decode_experiment, decode_time
from replicate.repository import Repository
from replicate.spool import Spool, all_spools

#: The kinds of jobs that say what happened; the others bring what is known once they are saved.
_EVENTS = frozenset(("checkpoint", "stop", "ending", "problem", "tag", "note", "name", "group"))
#: A run that is being recorded on this machine is alive, whatever its heartbeat elsewhere.
_ALIVE = Heartbeat(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Pending:
    """The jobs of one experiment that wait here: its inputs, if they do, and what happened. `began`
    has its inputs where they are known here, saved or not. `live` says that a process on this
    machine records it, or saves it."""

    id: str
    inputs: ExperimentRecord | None
    began: ExperimentRecord | None
    events: tuple[Event, ...]
    live: bool

    def ids(self) -> Iterator[tuple[str, str | None]]:
        """The ids that are known here: the experiment's with None, and with it those of its
        checkpoints."""
        if self.inputs or self.began:
            yield self.id, None
        yield from ((self.id, e.data["id"]) for e in self.events if e.kind == "checkpoint")

    def added_to(self, record: ExperimentRecord) -> ExperimentRecord:
        """The experiment with all that waits here."""
        folded = fold(replace(record, checkpoints=(), edits=(), problems=()), self.events)
        record = replace(
            record,
            **{name: getattr(folded, name) for name in ("name", "tags", "notes", "group")},
            edits=(*record.edits, *(e for e in folded.edits if e not in record.edits)),
            problems=(*record.problems, *folded.problems),
            stop=record.stop or folded.stop,
            saved=False,
        )
        if self.live and record.stop is None:
            record = replace(record, heartbeat=_ALIVE)
        return with_checkpoints(record, folded.checkpoints)

    def alone(self, *, online: bool) -> ExperimentRecord | None:
        """The experiment, of which the repository has nothing, or where not `online` is not asked;
        None when it is not known here, or its inputs were saved and it was deleted since."""
        inputs = self.inputs if online else self.inputs or self.began
        return self.added_to(inputs) if inputs else None


def with_checkpoints(
    record: ExperimentRecord, made: Sequence[CheckpointRecord]
) -> ExperimentRecord:
    """The experiment with those of these checkpoints that it has not, which are not saved."""
    if not made:
        return record
    known = {c.id for c in record.checkpoints}
    new = [replace(c, saved=False) for c in made if c.id not in known]
    if not new:
        return record
    return replace(record, checkpoints=(*record.checkpoints, *new), saved=False)


def pending(repository: Repository) -> dict[str, Pending]:
    """What waits here for the repository, by the experiment's id. For one on a disk that is only
    what a crash has left, until the next run brings it: what goes on takes milliseconds there."""
    spools = (s for s in all_spools(repository.spools) if _waits(repository, s))
    return {one.id: one for spool in spools if (one := pending_in(spool)) is not None}


def _waits(repository: Repository, spool: Spool) -> bool:
    if repository.backend.remote:
        return True
    try:
        return bool(spool.names()) and not spool.is_locked
    except OSError:  # another user's, or not to be written: nobody can tell from here
        return False


def pending_of(repository: Repository, id: str) -> Pending | None:
    """As `pending`, of one experiment."""
    if repository.spools is None:
        return None
    spool = Spool(repository.spools / id)
    return pending_in(spool) if _waits(repository, spool) else None


def pending_in(spool: Spool) -> Pending | None:
    """What is in this spool; None when that is nothing."""
    inputs: ExperimentRecord | None = None
    events: list[Event] = []
    for number, name in enumerate(spool.names()):
        with suppress(DamagedError, OSError, KeyError):  # it was saved meanwhile, or a crash
            header = spool.header(name)
            if header["kind"] == "experiment":
                inputs = decode_experiment(header["record"].encode(), name)
            elif header["kind"] in _EVENTS:
                events.append(_event(header, number, spool.attempt))
    if inputs is None and not events:
        return None
    began = inputs
    if not began and (kept := spool.settings.get("inputs")):
        began = decode_experiment(kept.encode(), str(spool.directory))
    return Pending(spool.experiment, inputs, began, tuple(_said_once(events)), spool.is_locked)


def _event(header: Mapping[str, Any], number: int, attempt: int) -> Event:
    kind = "stop" if header["kind"] == "ending" else header["kind"]
    files = header.get("files")
    size = sum(_size(file) for file in files) if files is not None else None
    data = {**header["data"], "attempt": attempt}
    if kind == "checkpoint":
        data |= {"tree": None, "size": size, "stored": None}
    return Event(kind, decode_time(header["time"]), "", number, data)


def _size(file: Mapping[str, Any]) -> int:
    size: int = file["size"] if "size" in file else file["state"][0] if "state" in file else 0
    return size


def _said_once(events: Iterable[Event]) -> Iterator[Event]:
    """How a process ended is only worth a word where its script has not said how the run did."""
    stopped = False
    for event in events:
        if event.kind != "stop" or not stopped or event.data["status"] == "failed":
            yield event
        stopped = stopped or event.kind == "stop"


def require_saved(repository: Repository, ids: Iterable[str]) -> None:
    """Raise UsageError when something waits here of an experiment that nobody records any more: it
    would be saved after what is done to the experiment now, and undo that. In a repository on a
    disk nothing undoes a deletion."""
    for id in ids if repository.backend.remote else ():
        left = pending_of(repository, id)
        if left is not None and not left.live:
            raise UsageError(
                f"Experiment {short(id)} has parts that are only on this machine so far",
                hint="Save them first, with `replicate sync`.",
            )


def current(repository: Repository, id: str, *, online: bool = True) -> ExperimentRecord:
    """The experiment with this whole id, as the repository has it, and with what waits here.

    Raises KeyNotFoundError. Where not `online`, only what waits here is known.
    """
    waits = pending_of(repository, id)
    try:
        if not online:
            raise KeyNotFoundError(f"experiment {id} is not on this machine")
        record = repository.experiment(id)
    except KeyNotFoundError:
        if waits is None or (alone := waits.alone(online=online)) is None:
            raise
        return alone
    return waits.added_to(record) if waits else record
