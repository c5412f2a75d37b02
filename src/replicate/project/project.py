"""A project and its repository, as the command line and the notebook use them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from replicate import config, maintenance, process
from replicate.backends.cached import cached, uncached
from replicate.backends.location import open_backend
from replicate.diff import Comparison, FileSide, Side, compare
from replicate.errors import AmbiguousIdError, NotFoundError, StorageError, UsageError
from replicate.index import Index, Match, unseen
from replicate.index import Progress as Counted
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    Origin,
    Point,
    TreeRef,
    ranking,
    short,
)
from replicate.project import checkouts, lineage, resuming
from replicate.project import pending as waiting
from replicate.project.checkouts import CheckedOut, CheckoutPlan
from replicate.project.checkpoints import Checkpoint
from replicate.project.elsewhere import location_of
from replicate.project.experiments import Experiment
from replicate.project.lineage import Relative
from replicate.project.lists import Experiments
from replicate.project.privacy import recorded_command
from replicate.project.recording import Paths, start, unrecorded
from replicate.project.resuming import Resumption
from replicate.recorder.client import live_recorders
from replicate.recorder.console import Console
from replicate.repository import Repository
from replicate.spool import all_spools, known_repositories, spool_root
from replicate.streams import OutputReader, samples
from replicate.tree import reader

if TYPE_CHECKING:
    from replicate.maintenance import (
        Collected,
        Compacted,
        Progress,
        RemovalPlan,
        Removed,
        Transferred,
        Usage,
        Verification,
    )
    from replicate.recorder.recovery import Outcome

Report = Callable[[str], None]
#: Of ids that a prefix might mean, so many are described.
_DESCRIBED = 20

Found = ExperimentRecord | tuple[ExperimentRecord, CheckpointRecord]


@dataclass(frozen=True, slots=True)
class Picked:
    """What an id stands for: a checkpoint, and how it was chosen when the id is an experiment's.
    An experiment that has no checkpoint is picked with none. Its inputs are those of the attempt
    that made the checkpoint."""

    experiment: ExperimentRecord
    checkpoint: CheckpointRecord | None
    how: Literal["named", "best", "latest", "none"]
    #: Whether one that ranks before it was passed over, because its files were let go.
    passed_over: bool = False


def _unheard(message: str) -> None:
    """Where nobody asked to be told."""


class Project:
    """The directory of a model's code, and the repository that its runs are kept in.

    `repository` is a path or URL, and `directory` where to look for the project, from there
    upwards; each is found as the configuration says when it is left out. `report` is told what a
    person should know of a run that is recorded, one message at a time. `streams` has the stdout
    and stderr of this process, where what is printed to them may be kept. `progress` is told what
    is read of the repository, how many of them are done, and how many there are.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
        *,
        report: Report = _unheard,
        streams: Callable[[], Sequence[TextIO | None]] | None = None,
        progress: Counted = unseen,
    ) -> None:
        self._report = report
        self._progress = progress
        self._streams = streams
        self.config = config.load(
            None if directory is None else Path(directory),
            repository=None if repository is None else os.fspath(repository),
        )
        self.directory = self.config.directory
        backend = open_backend(self.config.repository, relative_to=self.directory)
        spools = spool_root(backend, self.config.spool)
        backend = cached(backend, self.config.cache, self.config.cache_size)
        self.repository = Repository(backend, spools)

    def init(
        self,
        path: Paths = ".",
        params: object = None,
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        group: str | None = None,
        keep: Mapping[str, int] | None = None,
        parent: Experiment | Checkpoint | str | None = None,
        resume: Experiment | Checkpoint | str | None = None,
        from_step: float | None = None,
        console: bool | str | None = None,
    ) -> Experiment:
        """Start to record this run, or go on with one; see `replicate.init`."""
        if self.config.mode == "disabled" or config.rank() > 0:
            return Experiment(unrecorded(self.config, params), self.repository, home=self)
        labels: Mapping[str, Any] = {"name": name, "tags": tags, "notes": notes, "group": group}
        wanted = self.config.resume if resume is None else resume
        recording = start(
            self.config,
            self.repository,
            path,
            params,
            labels,
            keep,
            self._report,
            parent=self._origin(parent),
            resumed=self._resumption(wanted, from_step),
            console=self._console(console),
        )
        return Experiment(recording.record, self.repository, recording, self)

    def _console(self, wanted: bool | str | None) -> Console | None:
        try:
            extent = self.config.console if wanted is None else config.parse_console(wanted)
        except ValueError as error:
            raise UsageError(f"console must be {error}, not {wanted!r}") from None
        if self._streams is None or extent == "off":
            return None
        copied = self.repository.backend.remote
        return Console(self._streams(), all=extent == "all", copied=copied)

    @property
    def author(self) -> str:
        """Whoever edits labels here: user@host."""
        return f"{self.config.user or process.user()}@{self.config.host or process.host()}"

    def _origin(self, parent: Experiment | Checkpoint | str | None) -> Origin | None:
        if parent is None:
            return None
        if isinstance(parent, Experiment):
            return Origin(parent.id)
        if isinstance(parent, Checkpoint):
            return Origin(parent.record.experiment, parent.id)
        found = self.resolve(parent)
        if isinstance(found, ExperimentRecord):
            return Origin(found.id)
        return Origin(found[0].id, found[1].id)

    def _resumption(
        self, wanted: Experiment | Checkpoint | str | None, from_step: float | None
    ) -> Resumption | None:
        """The run to go on with, once nobody records it any more; None to begin a new one."""
        if from_step is not None and wanted is None:
            raise UsageError(
                "from_step is a step of the run that `resume` names, and there is none"
            )
        if wanted is None:
            return None
        if not self._online:
            raise UsageError(
                "To resume a run takes the repository, and REPLICATE_MODE is `offline`",
                hint="Unset it for this run, or start a new experiment.",
            )
        resuming.settle(self.repository, self._report)
        if wanted == resuming.LATEST:
            command = recorded_command(self.config, [])
            return resuming.latest(
                self.repository, self.records(), command, from_step, self._report
            )
        found = self.resolve(wanted if isinstance(wanted, str) else wanted.id)
        record, checkpoint = (found, None) if isinstance(found, ExperimentRecord) else found
        return resuming.named(self.repository, record, checkpoint, from_step, self._report)

    @cached_property
    def experiments(self) -> Experiments:
        """The experiments of this project."""
        return Experiments(
            lambda: [Experiment(record, self.repository, home=self) for record in self.records()],
            self.find,
        )

    def find(self, prefix: str) -> Experiment:
        """The experiment whose id, or one of whose checkpoints' ids, starts with `prefix`."""
        return self.find_all([prefix])[0]

    def find_all(self, prefixes: Sequence[str]) -> list[Experiment]:
        """The experiment that each of these prefixes stands for, each one once."""
        found = [
            match if isinstance(match, ExperimentRecord) else match[0]
            for match in self.resolve_all(prefixes)
        ]
        records = {record.id: record for record in found}
        return [Experiment(record, self.repository, home=self) for record in records.values()]

    def children(self, experiment: ExperimentRecord) -> list[ExperimentRecord]:
        """The experiments that were forked from this one, the oldest first."""
        return lineage.children(experiment.id, self.records())

    def lineage(self, experiment: ExperimentRecord) -> Relative:
        """The family tree of an experiment; see `lineage.lineage`."""
        return lineage.lineage(experiment, self.records())

    def records(self) -> list[ExperimentRecord]:
        """All experiments that are not deleted, the oldest first.

        What this process has recorded so far is in it, and what waits on this machine for a
        remote repository. No repository yet means no experiments.
        """
        left = waiting.pending(self.repository)  # before the rest: what is saved meanwhile is there
        index = self._index(left)
        records = index.records() if index else []
        if not left:
            return records
        found = [waits.added_to(r) if (waits := left.pop(r.id, None)) else r for r in records]
        found += [record for one in left.values() if (record := one.alone(online=self._online))]
        return sorted(found, key=lambda e: (e.created, e.id))

    def _index(self, here: Mapping[str, waiting.Pending]) -> Index | None:
        """What is in the repository; in one that is not remote, with all that this process has
        recorded so far. None where there is none, or the network is not to be used."""
        if not self._online:
            return None
        for recorder in live_recorders():
            if not recorder.remote:
                recorder.wait()
        try:
            there = self.repository.exists()
        except StorageError as error:
            if here:
                more = "REPLICATE_MODE=offline shows what waits for it on this machine."
                error.hint = f"{error.hint} {more}" if error.hint else more
            raise
        return Index(self.repository, self.config.cache, self._progress) if there else None

    @property
    def _online(self) -> bool:
        return self.config.mode != "offline" or not self.repository.backend.remote

    def resolve(self, prefix: str) -> Found:
        """The experiment or checkpoint whose id starts with `prefix`.

        Raises NotFoundError when there is none, AmbiguousIdError when there are several.
        """
        return self.resolve_all([prefix])[0]

    def matches(self, prefix: str) -> list[Match]:
        """The ids of experiments and checkpoints that start with `prefix`; none for no prefix."""
        return self._matches([prefix])[0]

    def resolve_all(self, prefixes: Sequence[str]) -> list[Found]:
        """What each of these prefixes stands for. Raises like `resolve`."""
        found = self._matches(prefixes)
        return [self._resolve(*pair) for pair in zip(prefixes, found, strict=True)]

    def _matches(self, prefixes: Sequence[str]) -> list[list[Match]]:
        left = waiting.pending(self.repository)  # before the rest, as in `records`
        index = self._index(left)
        found = index.matches(prefixes) if index else [[] for _ in prefixes]
        here = [Match(*ids) for one in left.values() for ids in one.ids()]
        for prefix, matches in zip(prefixes, found, strict=True):
            new = [m for m in here if prefix and (m.checkpoint or m.experiment).startswith(prefix)]
            matches += [match for match in new if match not in matches]
        return found

    def _resolve(self, prefix: str, matches: Sequence[Match]) -> Found:
        if len(matches) == 1:
            return self._found(matches[0])
        if not prefix:
            raise NotFoundError(
                "An id is needed here, or the first characters of one",
                hint=f"`replicate ls` lists those in {self.repository.url}",
            )
        if not matches:
            raise NotFoundError(
                f"No experiment or checkpoint has an id that starts with {prefix!r}",
                hint=f"`replicate ls` lists those in {self.repository.url}",
            )
        raise AmbiguousIdError(
            f"{prefix!r} matches {len(matches)} ids; give more of its digits",
            [_describe(self._found(match)) for match in matches[:_DESCRIBED]],
        )

    def _found(self, match: Match) -> Found:
        record = waiting.current(self.repository, match.experiment, online=self._online)
        if match.checkpoint is None:
            return record
        return record, next(c for c in record.checkpoints if c.id == match.checkpoint)

    def pick(self, prefix: str, *, with_files: bool = False) -> Picked:
        """The checkpoint that `prefix` names; for an experiment its best, else its latest. With
        `with_files` the best of those whose files were not let go, where there is one."""
        found = self.resolve(prefix)
        if not isinstance(found, ExperimentRecord):
            return Picked(found[0].at(found[1]), found[1], "named")
        best = found.best()
        if with_files and best is not None and best.dropped:
            left = ranking([c for c in found.checkpoints if not c.dropped])
            if left:  # else the error says which checkpoints have files
                return Picked(found.at(left[0]), left[0], "best", passed_over=True)
        if best is not None:
            return Picked(found.at(best), best, "best")
        latest = found.latest()
        return Picked(found.at(latest), latest, "latest" if latest else "none")

    def logged(self, experiment: ExperimentRecord) -> list[Point]:
        """Every point of an experiment that has logged any; see `Repository.history`. None where
        the network is not to be used."""
        if not self._online:
            return []
        points = self.repository.history(experiment)
        with_metrics = sum(bool(c.metrics) for c in experiment.current)
        return points if len(points) > with_metrics else []

    def samples(self, experiment: ExperimentRecord) -> list[Point]:
        """How the machine did while the experiment ran, in the order of time."""
        return samples(self.repository.stream(experiment.id, "system").read())

    def output(self, experiment: ExperimentRecord) -> OutputReader:
        """A reader of what the experiment has printed."""
        return OutputReader(self.repository.stream(experiment.id, "console"))

    def sync(self, progress: Callable[[int, int], None] | None = None) -> Iterator[Outcome]:
        """Bring into the repository what runs have left on this machine: those that were cut off,
        that were recorded offline, or that could not reach it. Yields what became of each.

        `progress` is called with the bytes that are saved and those there are in all. Raises
        StorageError when the repository cannot be used at all. Without anything left it is not
        looked at.
        """
        if not all_spools(self.repository.spools):
            return
        # A training script does not come here, and need not import the committer.
        from replicate.recorder.recovery import recover

        self.repository.create()
        yield from recover(self.repository, progress or (lambda done, total: None))

    def others_with_spools(self) -> list[str]:
        """The other repositories for which runs may wait on this machine."""
        known = known_repositories(self.config.spool)
        return [url for url in known if url != self.repository.url]

    # ------------------------------------------------------------ other repositories

    def elsewhere(self, repository: str | os.PathLike[str]) -> Project:
        """This project with another repository: a URL, a path from the working directory, or a
        directory that has a repository in `.replicate`."""
        return Project(location_of(repository), self.directory, report=self._report)

    def push(
        self,
        target: str | os.PathLike[str] | Project,
        experiments: Iterable[Experiment | str] | None = None,
        *,
        deletions: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Transferred:
        """Bring experiments, by default all, into another repository; see `maintenance.transfer`.
        `target` is as for `elsewhere`; an experiment may be given by the beginning of its id."""
        other = target if isinstance(target, Project) else self.elsewhere(target)
        for recorder in live_recorders():
            recorder.wait()
        return maintenance.transfer(
            _as_stored(self.repository),
            _as_stored(other.repository),
            None if experiments is None else self._ids(experiments),
            compress=other.repository.compresses(self.config.compression),
            deletions=deletions,
            dry_run=dry_run,
            progress=progress or maintenance.silent,
        )

    def pull(
        self,
        source: str | os.PathLike[str] | Project,
        experiments: Iterable[Experiment | str] | None = None,
        **options: Any,
    ) -> Transferred:
        """Bring experiments from another repository into this project's; options as of `push`."""
        other = source if isinstance(source, Project) else self.elsewhere(source)
        return other.push(self, experiments, **options)

    def _ids(self, experiments: Iterable[Experiment | str]) -> list[str]:
        """The whole ids of experiments that are given as such, or by the beginnings of theirs."""
        given = list(experiments)
        named = [one for one in given if isinstance(one, str)]
        found = [one.id for one in given if not isinstance(one, str)]
        return list(dict.fromkeys([*found, *(e.id for e in self.find_all(named))]))

    # ------------------------------------------------------------ comparing

    def compare(self, left: Picked, right: Picked) -> Comparison:
        """All that differs between two checkpoints: params, metrics, packages, code, outputs."""
        return compare(self._side(left), self._side(right))

    def _side(self, picked: Picked) -> Side:
        checkpoint = picked.checkpoint
        return Side(
            picked.experiment,
            checkpoint,
            code=self._files(picked.experiment.tree_ref),
            outputs=self._files(checkpoint.tree_ref if checkpoint else None),
        )

    def _files(self, ref: TreeRef | None) -> dict[str, FileSide]:
        if ref is None:
            return {}
        backend = self.repository.objects(ref.packs)
        return {
            path: FileSide(entry.hash, entry.size, entry.mode, reader(backend, entry))
            for path, entry in self.repository.tree(*ref).files.items()
        }

    # ------------------------------------------------------------ checking out

    def plan_checkout(
        self,
        picked: Picked,
        directory: str | os.PathLike[str] | None = None,
        paths: Sequence[str] = (),
        *,
        with_config: bool = False,
    ) -> CheckoutPlan:
        """What checking out `picked` would write and overwrite. Changes nothing.

        Raises UnsafeTreeError when the checkpoint's files cannot be written safely.
        """
        checkpoint = picked.checkpoint
        trees = [picked.experiment.tree_ref, checkpoint.tree_ref if checkpoint else None]
        id = (picked.checkpoint or picked.experiment).id
        return checkouts.plan(
            self.repository,
            id,
            trees,
            self._target(directory),
            paths,
            with_config=with_config,
            let_go=checkouts.let_go(picked.experiment, picked.checkpoint),
        )

    def checkout(
        self, plan: CheckoutPlan, progress: Callable[[int, int], None] | None = None
    ) -> CheckedOut:
        """Carry out a plan. What it overwrites is kept in the repository before, or on this machine
        where that is remote. `progress` is called now and again with the bytes that are done and
        those there are in all."""
        with maintenance.announced(self.repository.backups):
            return checkouts.perform(self.repository, plan, progress)

    def undo_checkout(
        self, id: str | None = None, directory: str | os.PathLike[str] | None = None
    ) -> CheckedOut:
        """Put back what the last checkout into a directory, or the one with the backup `id`, has
        overwritten, and remove what it added. That can be undone in the same way."""
        backups = self.repository.backups
        with maintenance.announced(backups):
            return checkouts.undo(backups, self._target(directory), id)

    def _target(self, directory: str | os.PathLike[str] | None) -> Path:
        return self.directory if directory is None else Path(os.path.abspath(directory))

    # ------------------------------------------------------------ keeping it in order

    def plan_removal(self, prefixes: Sequence[str], *, force: bool = False) -> RemovalPlan:
        """What deleting the experiments and checkpoints with these ids would do. Changes nothing.

        Raises like `resolve`, and UsageError when an experiment is still running, unless `force`,
        or is not saved whole.
        """
        found = self.resolve_all(prefixes)
        ids = [f.id if isinstance(f, ExperimentRecord) else f[0].id for f in found]
        waiting.require_saved(self.repository, ids)
        return maintenance.plan_removal(self.repository, found, force=force)

    def remove(self, plan: RemovalPlan) -> Removed:
        """Delete what is planned, for good, and free what nothing needs any more."""
        return maintenance.remove(self.repository, plan)

    def gc(self, *, dry_run: bool = False, alone: bool = False) -> Collected:
        """Remove what nothing refers to; see `maintenance.collect`. What checkouts of a remote
        repository have kept on this machine is part of it."""
        there, backups = self._existing(), self.repository.backups
        done = maintenance.collect(there, dry_run=dry_run, alone=alone)
        if backups is not there and backups.exists():
            done = done.with_backups(maintenance.collect(backups, dry_run=dry_run))
        return done

    def compact(self, *, dry_run: bool = False, progress: Progress | None = None) -> Compacted:
        """Bring the listing that all share up to date; see `maintenance.compact`."""
        return maintenance.compact(self._existing(), dry_run=dry_run, progress=progress)

    def usage(self) -> Usage:
        """How many bytes the experiments take."""
        return maintenance.measure(self._existing())

    def verify(
        self,
        prefixes: Sequence[str] = (),
        *,
        full: bool = False,
        progress: Progress | None = None,
    ) -> Verification:
        """Check that the repository, or what has these ids, is whole; see `maintenance.check`."""
        repository = self._existing()
        found = self.resolve_all(prefixes) if prefixes else []
        ids = {f.id if isinstance(f, ExperimentRecord) else f[1].id for f in found}
        there = _as_stored(repository)
        return maintenance.check(there, ids, full=full, progress=progress or maintenance.silent)

    def _existing(self) -> Repository:
        if not self.repository.exists():
            raise NotFoundError(
                f"There is no repository at {self.repository.url}",
                hint="`replicate.init()` in a training script makes one.",
            )
        return self.repository


def _as_stored(repository: Repository) -> Repository:
    """The repository without what this machine keeps of it."""
    return Repository(uncached(repository.backend), repository.spools)


def _describe(found: Found) -> str:
    if isinstance(found, ExperimentRecord):
        return f"experiment {found.id[:12]} ({found.command})"
    experiment, checkpoint = found
    step = "" if checkpoint.step is None else f", step {checkpoint.step}"
    return f"checkpoint {checkpoint.id[:12]} (experiment {short(experiment.id)}{step})"
