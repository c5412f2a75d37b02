"""Bringing runs of another store into a repository: what is there already is left as it is, what is
missing is added, and what cannot be read is reported while the rest goes on.

It knows how a run becomes an experiment, and in which order its parts are written, so that an
import that was cut off goes on where it was; it knows no tool whose runs these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from blake3 import blake3

from replicate import maintenance
from replicate.backends.local import LocalBackend
from replicate.blobs import Recent
from replicate.errors import DamagedError, UnsafeTreeError, UsageError
from replicate.interop.files import Files
from replicate.journal import JournalWriter
from replicate.maintenance import Outcome, Progress
from replicate.model import CheckpointRecord, ExperimentRecord, Point, Stop, Value, short
from replicate.records import checkpoint_data, encode_value, new_id, now, stop_data
from replicate.repository import Repository
from replicate.tree import Source, add_tree

Event = tuple[str, datetime, Mapping[str, Value]]

#: What can become of a run that is imported.
OUTCOMES = (
    Outcome.ADDED,
    Outcome.COMPLETED,
    Outcome.PRESENT,
    Outcome.DELETED,
    Outcome.LEFT_OUT,
)
#: So many checkpoints are committed together, and so many points are one event.
_TOGETHER = 64
_POINTS = 1000

T = TypeVar("T")


@dataclass(slots=True)
class Imported:
    """What an import did: the ids of experiments by what became of them, and what was lost."""

    kind: str
    source: str
    ids: dict[Outcome, list[str]] = field(default_factory=lambda: {o: [] for o in OUTCOMES})
    problems: list[str] = field(default_factory=list)
    #: What a person should know that may be no loss.
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Version:
    """A checkpoint as another tool has it: a record without a tree, and its files."""

    record: CheckpointRecord
    files: Files | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as another tool has it. `points` yields its metrics anew at each call."""

    record: ExperimentRecord
    code: Files | None = None
    versions: Sequence[Version] = ()
    points: Callable[[], Iterable[Point]] = tuple
    stop: Stop | None = None


class Store(Protocol):
    """Where another tool keeps its runs."""

    #: What it is, for people: "Keepsake repository".
    kind: str

    @property
    def path(self) -> Path | str:
        """Where it is."""
        ...

    def names(self) -> Sequence[str]:
        """What `bring` takes, one for each run."""
        ...

    def bring(self, name: str, target: Target) -> tuple[str, Outcome]:
        """Write one run into the target; return the experiment's id and what became of it.

        Raises DamagedError or UnsafeTreeError when nothing of it can be read.
        """
        ...


def bring_all(
    store: Store, repository: Repository, *, compress: bool, progress: Progress
) -> Imported:
    """Bring every run of a store into a repository, which is made when it is not there.

    A second time nothing is added twice. Raises StorageError when the repository cannot be
    written; what is there by then is whole, and the next import goes on from it.
    """
    if str(store.path) == repository.url or _same(repository, store.path):
        raise UsageError(f"{store.path} is the repository that it would be imported into")
    result = Imported(store.kind, str(store.path))
    repository.create()
    names = store.names()
    with maintenance.announced(repository):
        target = Target(repository, compress, result)
        for number, name in enumerate(names):
            progress("experiments", number, len(names))
            try:
                id, outcome = store.bring(name, target)
                result.ids[outcome].append(id)
            except (DamagedError, UnsafeTreeError) as error:
                target.report(f"{name} was not imported: {error}")
            except OSError as error:
                target.report(f"{name} was not imported: {error.filename}: {error.strerror}")
    return result


def _same(repository: Repository, path: Path | str) -> bool:
    local = not repository.backend.remote and isinstance(path, Path)
    return local and Path(repository.url).resolve() == Path(path).resolve()


class Target:
    """The repository that runs are written into."""

    def __init__(self, repository: Repository, compress: bool, result: Imported) -> None:
        self.repository = repository
        self.compress = compress
        self._result = result
        self._recent = Recent()

    def report(self, problem: str) -> None:
        """Say that something could not be imported."""
        self._result.problems.append(problem)

    def remark(self, text: str) -> None:
        """Say, once, what a person should know."""
        if text not in self._result.remarks:
            self._result.remarks.append(text)

    @property
    def scratch(self) -> Path | None:
        """A directory on the repository's own disk, where it has one: there is room for a file
        there, or the import would fail anyway."""
        local = isinstance(self.repository.backend, LocalBackend)
        return Path(self.repository.url) if local else None

    def store(self, run: Run) -> Outcome:
        """Write what is missing of a run. What cannot be read of it is reported, and said in the
        experiment's own problems."""
        id = run.record.id
        before = self.repository.experiment(id) if self.repository.has(id) else None
        if before is not None and before.deleted:
            return Outcome.DELETED
        problems: list[str] = []
        if before is None:
            kept = self._keep(run.code, problems)
            self.repository.create_experiment(replace(run.record, **kept))
        journal = self.repository.journal(id, new_id()[:16])
        self._add_problems(journal, problems, f"the code of experiment {short(id)}")
        added = self._add_versions(run, journal)
        added = self._add_points(run, before) or added
        if run.stop is not None and (before is None or before.stop is None):
            journal.append([("stop", run.stop.time, stop_data(run.stop))])
            added = True
        if before is None:
            return Outcome.ADDED
        return Outcome.COMPLETED if added else Outcome.PRESENT

    def _add_versions(self, run: Run, journal: JournalWriter) -> bool:
        known = {
            event.data.get("id")
            for event in self.repository.events(run.record.id)
            if event.kind == "checkpoint"
        }
        new = [v for v in run.versions if v.record.id not in known]
        for some in _groups(new, _TOGETHER):
            events: list[Event] = []
            for version in some:
                record, problems = version.record, list[str]()
                record = replace(record, **self._keep(version.files, problems))
                events.append(("checkpoint", record.created, checkpoint_data(record)))
                events += self._problems(problems, f"checkpoint {short(record.id)}")
            journal.append(events)
        return bool(new)

    def _add_points(self, run: Run, before: ExperimentRecord | None) -> bool:
        """Append the points that are not there yet."""
        known = set(_parts(self.repository.history(before))) if before else set()
        new = (p for p in run.points() if not known or not known.issuperset(_parts([p])))
        journal = self.repository.journal(run.record.id, new_id()[:16], stream="log")
        first = 0
        for some in _groups(new, _POINTS):
            journal.append([_log_event(f"import-{journal.writer}", first, some)])
            first += len(some)
        return first > 0

    def _keep(self, files: Files | None, problems: list[str]) -> dict[str, Value]:
        """Store files; return the fields of a record that say where they are."""
        if files is None:
            return {}
        batch = self.repository.batch(compress=self.compress, recent=self._recent)
        try:
            tree, size = add_tree(batch, files.sources(problems.append), None, _unreadable)
            batch.flush()
        except (DamagedError, UnsafeTreeError) as error:
            problems.append(str(error))
            return {}
        packs = batch.packs_of(tree)
        return {"tree": tree, "size": size, "stored": batch.stored[None], "packs": packs}

    def _add_problems(self, journal: JournalWriter, problems: Sequence[str], of: str) -> None:
        journal.append(self._problems(problems, of))

    def _problems(self, problems: Sequence[str], of: str) -> list[Event]:
        """Report what was lost; return the events that say it in the experiment itself."""
        messages = [f"not all files of {of} could be imported: {problem}" for problem in problems]
        for message in messages:
            self.report(message)
        return [("problem", now(), {"message": message}) for message in messages]


def _unreadable(source: Source, error: OSError) -> None:
    raise DamagedError(f"{source.path} cannot be read: {error.strerror}") from error


def adopted_id(tool: str, id: str) -> str:
    """The id here of what has another id elsewhere: the same one if it has the form of ours, else
    one that begins with it, so that it still can be found by it, else one made from it."""
    digits = len(id) if id and set(id) <= set("0123456789abcdef") else 0
    if digits == 64:
        return id
    made = blake3(f"{tool}\0{id}".encode()).hexdigest()
    return id + made[digits:] if 16 <= digits < 64 else made


def _log_event(source: str, first: int, points: Sequence[Point]) -> Event:
    """Points as an event of the stream `log`; `first` is the number of the first of them."""
    start = points[0].time
    rows = [
        [(p.time - start).total_seconds(), encode_value(p.step), encode_value(p.metrics)]
        for p in points
    ]
    return "log", start, {"source": source, "first": first, "points": rows}


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some


def _parts(points: Iterable[Point]) -> Iterator[tuple[datetime, object, str, str]]:
    """Each single value of points, in a form that NaN equals itself in."""
    for point in points:
        for name, value in point.metrics.items():
            yield point.time, point.step, name, repr(value)
