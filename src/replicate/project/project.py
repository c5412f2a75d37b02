"""A project and its repository, as the command line and the notebook use them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from replicate import config, maintenance, process
from replicate.backends.cached import cached, uncached
from replicate.backends.location import open_backend
from replicate.backends.offline import offline, online
from replicate.diff import Comparison, compare
from replicate.errors import NotFoundError, UsageError
from replicate.index import Match, unseen
from replicate.index import Progress as Counted
from replicate.model import (
    ExperimentRecord,
    Origin,
    Point,
)
from replicate.project import checkouts, lineage, resuming
from replicate.project import pending as waiting
from replicate.project.checkouts import CheckedOut, CheckoutPlan
from replicate.project.checkpoints import Checkpoint
from replicate.project.comparing import side
from replicate.project.elsewhere import location_of
from replicate.project.experiments import Experiment
from replicate.project.lineage import Relative
from replicate.project.lists import Experiments
from replicate.project.lookup import Found, Lookup, Picked, pick
from replicate.project.privacy import recorded_command
from replicate.project.recording import Paths, unrecorded
from replicate.project.resuming import Resumption
from replicate.project.starting import start
from replicate.recorder.client import live_recorders
from replicate.recorder.console import Console
from replicate.repository import Repository
from replicate.spool import Spool, all_spools, known_repositories, spool_root, spools_for
from replicate.streams import OutputReader, StreamReader, history, samples

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


def _unheard(message: str) -> None:
    """Where nobody asked to be told."""


class Project:
    """The directory of a model's code, and the repository that its runs are kept in.

    `repository` is a path or URL, and `directory` where to look for the project, from there
    upwards; each is found as the configuration says when it is left out. `report` is told what a
    person should know of a run that is recorded, one message at a time, and `show` what only
    holds until it is told the next, "" when nothing does. `streams` has the stdout
    and stderr of this process, where what is printed to them may be kept. `progress` is told what
    is read of the repository, how many of them are done, and how many there are.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
        *,
        report: Report = _unheard,
        show: Report = _unheard,
        streams: Callable[[], Sequence[TextIO | None]] | None = None,
        progress: Counted = unseen,
    ) -> None:
        self._report, self._show = report, show
        self._streams = streams
        self.config = config.load(
            None if directory is None else Path(directory),
            repository=None if repository is None else os.fspath(repository),
        )
        self.directory = self.config.directory
        backend = open_backend(self.config.repository, relative_to=self.directory)
        spools = spool_root(backend, self.config.spool)
        if self.config.mode == "offline":
            backend = offline(backend)
        backend = cached(backend, self.config.cache, self.config.cache_size)
        self.repository = Repository(backend, spools)
        self._lookup = Lookup(self.repository, self.config, progress)

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
        if self.config.mode == "disabled" or config.rank() > 0 or process.is_prepared():
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
            show=self._show,
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
        if not self._lookup.online:
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
        return self._lookup.records()

    def resolve(self, prefix: str) -> Found:
        """The experiment or checkpoint whose id starts with `prefix`.

        Raises NotFoundError when there is none, AmbiguousIdError when there are several.
        """
        return self.resolve_all([prefix])[0]

    def resolve_all(self, prefixes: Sequence[str]) -> list[Found]:
        """What each of these prefixes stands for. Raises like `resolve`."""
        return self._lookup.resolve_all(prefixes)

    def matches(self, prefix: str) -> list[Match]:
        """The ids of experiments and checkpoints that start with `prefix`; none for no prefix."""
        return self._lookup.matches(prefix)

    def pick(self, prefix: str, *, with_files: bool = False) -> Picked:
        """The checkpoint that `prefix` names; for an experiment its best, else its latest. With
        `with_files` the best, or latest, of those that have all their files, if there is one."""
        return pick(self.resolve(prefix), with_files=with_files)

    def logged(self, experiment: ExperimentRecord) -> list[Point]:
        """Every point of an experiment that has logged any: what was logged, and the metrics of
        its checkpoints, without what a later attempt has superseded, in the order of time."""
        points = history(self._stream(experiment, "log").read(), experiment)
        with_metrics = sum(bool(c.metrics) for c in experiment.current)
        return points if len(points) > with_metrics else []

    def samples(self, experiment: ExperimentRecord) -> list[Point]:
        """How the machine did while the experiment ran, in the order of time."""
        return samples(self._stream(experiment, "system").read())

    def output(self, experiment: ExperimentRecord) -> OutputReader:
        """A reader of what the experiment has printed."""
        return OutputReader(self._stream(experiment, "console"))

    def _stream(self, experiment: ExperimentRecord, name: str) -> StreamReader:
        """A stream of events: of what is on this machine alone, where nothing else may be asked."""
        if self._lookup.online:
            return self.repository.stream(experiment.id, name)
        # Only who looks at a run offline reads it so.
        from replicate.project.spooled import SpooledReader

        assert self.repository.spools is not None  # or nothing of it would be known
        return SpooledReader(Spool(self.repository.spools / experiment.id), name)

    def current(self, experiment: ExperimentRecord) -> ExperimentRecord:
        """The experiment as it is now, as far as the repository may be asked."""
        return waiting.current(self.repository, experiment.id, online=self._lookup.online)

    def is_known_in_part(self, experiment: ExperimentRecord) -> bool:
        """Whether the repository may have more of it than can be told, as it may not be asked."""
        if self._lookup.online:
            return False
        here = waiting.pending_of(self.repository, experiment.id)
        return here is None or here.inputs is None

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

        there = _reached(self.repository)
        there.create()
        yield from recover(there, progress or (lambda done, total: None))

    def others_with_spools(self) -> list[str]:
        """The other repositories for which runs may wait on this machine."""
        return [url for url, _, reached in self._known() if reached]

    def out_of_reach(self) -> list[tuple[str, str]]:
        """The URLs, and the servers, of repositories for which runs wait on this machine, while
        the environment leads from that URL to another server. "" is the cloud's own."""
        return [
            (url, server)
            for url, server, reached in self._known()
            if not reached and any(s.names() for s in self._waiting(url, server))
        ]

    def _known(self) -> Iterator[tuple[str, str, bool]]:
        """The other repositories with spools, and whether the environment leads there now."""
        for identity in known_repositories(self.config.spool):
            if identity != self.repository.backend.identity:
                url, _, server = identity.partition("\n")
                there = open_backend(url, relative_to=self.directory)
                yield url, server, there.identity == identity

    def _waiting(self, url: str, server: str) -> list[Spool]:
        assert self.config.spool is not None
        identity = "\n".join(filter(None, (url, server)))
        return all_spools(spools_for(identity, self.config.spool))

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
        return compare(*(side(self.repository, one) for one in (left, right)))

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
            lost=checkpoint.lost if checkpoint else (),
            missing=checkouts.missing(picked.experiment, checkpoint),
        )

    def checkout(
        self, plan: CheckoutPlan, progress: Callable[[int, int], None] | None = None
    ) -> CheckedOut:
        """Carry out a plan. What it overwrites is kept in the repository before, or on this machine
        where that is remote. `progress` is called now and again with the bytes that are done and
        those there are in all."""
        return checkouts.perform(self.repository, plan, progress)

    def undo_checkout(
        self, id: str | None = None, directory: str | os.PathLike[str] | None = None
    ) -> CheckedOut:
        """Put back what the last checkout into a directory, or the one with the backup `id`, has
        overwritten, and remove what it added. That can be undone in the same way."""
        return checkouts.undo(self.repository.backups, self._target(directory), id)

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


def _reached(repository: Repository) -> Repository:
    """The same, asked also where REPLICATE_MODE is offline: whoever saves wants the network."""
    return Repository(online(uncached(repository.backend)), repository.spools)
