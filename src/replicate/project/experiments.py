"""Experiments and checkpoints as a person holds them in a script or a notebook: the values of
`model` with what can be done to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, overload

from replicate import maintenance
from replicate.errors import NotFoundError
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    PrimaryMetric,
    Status,
    Value,
    short,
)
from replicate.project import checkouts
from replicate.project.recording import UNRECORDED, Paths, Recording
from replicate.repository import Repository
from replicate.tree import Entry, open_entry


class Checkpoint:
    """A version of an experiment's outputs, with the metrics it had."""

    def __init__(
        self, record: CheckpointRecord, experiment: ExperimentRecord, repository: Repository
    ) -> None:
        self.record = record
        self._experiment = experiment
        self._repository = repository

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def short_id(self) -> str:
        return short(self.record.id)

    @property
    def created(self) -> datetime:
        return self.record.created

    @property
    def step(self) -> int | float | None:
        return self.record.step

    @property
    def path(self) -> str | tuple[str, ...] | None:
        """What was passed to `checkpoint()`, relative to the project; None when no files were."""
        return self.record.path

    @property
    def metrics(self) -> Mapping[str, Value]:
        return self.record.metrics

    @property
    def primary_metric(self) -> PrimaryMetric | None:
        return self.record.primary_metric

    def open(self, path: str | None = None) -> BinaryIO:
        """One of the checkpoint's files, or of the experiment's code, open to read and to seek in.

        Only what is read is fetched. `path` may be left out when the checkpoint has one file.
        Raises NotFoundError when there is no such file; reading raises DamagedError when bytes
        are not what was saved.
        """
        files: dict[str, Entry] = {}
        for tree in (self._experiment.tree, self.record.tree):
            if tree is not None:
                files = {**files, **self._repository.tree(tree).files}
        name = self.record.path if path is None else Path(path).as_posix()
        if not isinstance(name, str) or name not in files:
            own = self._repository.tree(self.record.tree).files if self.record.tree else {}
            raise checkouts.let_go(self._experiment, self.record) or NotFoundError(
                f"Checkpoint {self.short_id} has no file {name!r}",
                hint=f"It has {', '.join(sorted(own)) or 'no files'}.",
            )
        return open_entry(self._repository.backend, files[name])

    def checkout(self, directory: str | os.PathLike[str]) -> None:
        """Write the experiment's code and this checkpoint's files into `directory`.

        What it overwrites there is kept in the repository first.
        """
        trees = (self._experiment.tree, self.record.tree)
        target = Path(os.path.abspath(directory))
        with maintenance.announced(self._repository):
            let_go = checkouts.let_go(self._experiment, self.record)
            plan = checkouts.plan(self._repository, self.id, trees, target, let_go=let_go)
            checkouts.perform(self._repository, plan)

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name}={value!r}" for name, value in self.metrics.items())
        return f"<Checkpoint {self.short_id} step={self.step} {metrics}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and other.record == self.record

    def __hash__(self) -> int:
        return hash(self.record.id)


class _Metrics(Mapping[str, list[Value]]):
    """Each metric's values over a list of checkpoints, None where a checkpoint has none."""

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._names = dict.fromkeys(name for c in checkpoints for name in c.metrics)

    def __getitem__(self, name: str) -> list[Value]:
        if name not in self._names:
            raise KeyError(name)
        return [c.metrics.get(name) for c in self._checkpoints]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class CheckpointList(Sequence[Checkpoint]):
    """Checkpoints in the order they were made. A slice is a CheckpointList too."""

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self._checkpoints = list(checkpoints)

    @property
    def metrics(self) -> Mapping[str, list[Value]]:
        """By name, one value for each checkpoint."""
        return _Metrics(self._checkpoints)

    @property
    def step(self) -> list[int | float | None]:
        return [c.step for c in self._checkpoints]

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...
    @overload
    def __getitem__(self, index: slice) -> CheckpointList: ...
    def __getitem__(self, index: int | slice) -> Checkpoint | CheckpointList:
        found = self._checkpoints[index]
        return CheckpointList(found) if isinstance(found, list) else found

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __repr__(self) -> str:
        return f"<CheckpointList of {len(self)}>"


class Experiment:
    """One run of a training script.

    The one that `replicate.init()` returns also records: `checkpoint` and `stop`, or a `with`
    block. What it shows of itself is what the repository has at the last `refresh`.
    """

    def __init__(
        self, record: ExperimentRecord, repository: Repository, recording: Recording | None = None
    ) -> None:
        self.record = record
        self._repository = repository
        self._recording = recording

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def short_id(self) -> str:
        return short(self.record.id)

    @property
    def created(self) -> datetime:
        return self.record.created

    @property
    def name(self) -> str | None:
        return self.record.name

    @property
    def tags(self) -> tuple[str, ...]:
        return self.record.tags

    @property
    def notes(self) -> str | None:
        return self.record.notes

    @property
    def group(self) -> str | None:
        return self.record.group

    @property
    def params(self) -> Mapping[str, Value]:
        return self.record.params

    @property
    def user(self) -> str:
        return self.record.user

    @property
    def host(self) -> str:
        return self.record.host

    @property
    def command(self) -> str:
        return self.record.command

    @property
    def packages(self) -> Mapping[str, str]:
        """Every distribution that the run has imported, and its version."""
        return self._current().packages

    @property
    def status(self) -> Status:
        return self._current().status

    @property
    def duration(self) -> timedelta | None:
        """From the start to the end of the run, or to its last checkpoint while it goes on."""
        return self._current().duration

    @property
    def checkpoints(self) -> CheckpointList:
        record = self._current()
        return CheckpointList([self._checkpoint(c) for c in record.checkpoints])

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best finite value of the primary metric, the latest of equals;
        None when no checkpoint has one."""
        found = self._current().best()
        return self._checkpoint(found) if found else None

    def latest(self) -> Checkpoint | None:
        """The checkpoint made last, or None."""
        found = self._current().latest()
        return self._checkpoint(found) if found else None

    def refresh(self) -> Self:
        """Read the experiment again, to see what has happened since."""
        if self._recording is not None:
            self._recording.wait()
        if self.id != UNRECORDED:
            self.record = self._repository.experiment(self.id)
        return self

    def delete(self, *, force: bool = False) -> None:
        """Delete the experiment and its checkpoints, for good, and free what nothing else needs.

        One that this process records is stopped first. Raises UsageError when another process is
        still recording it, unless `force`.
        """
        ExperimentList([self]).delete(force=force)

    def _checkpoint(self, record: CheckpointRecord) -> Checkpoint:
        return Checkpoint(record, self.record, self._repository)

    def _current(self) -> ExperimentRecord:
        """The record; of a run that this process records, with all that it has saved so far."""
        if self._recording is not None:
            self.refresh()
        return self.record

    # ------------------------------------------------------------ recording

    def checkpoint(
        self,
        path: Paths = None,
        step: int | float | None = None,
        metrics: Mapping[str, Any] | None = None,
        primary_metric: tuple[str, str] | None = None,
        wait: bool = False,
    ) -> None:
        """Save a version of the outputs: the files at `path` and the metrics they gave.

        `path` is a file, a directory, or a list of them, relative to where the script runs; they
        may be changed as soon as this returns. `step` counts by itself when it is left out.
        `primary_metric` is a metric's name and "minimize" or "maximize". With `wait` it returns
        only when the repository has it all.

        Never raises and never stops a run: what cannot be saved is reported, and the rest is.
        """
        if self._recording is not None:
            self._recording.checkpoint(path, step, metrics, primary_metric)
            if wait:
                self._recording.wait()

    def wait(self) -> bool:
        """Return when all that was recorded is in the repository; False when it cannot be."""
        return self._recording is None or self._recording.wait()

    def stop(self) -> None:
        """End the run, and wait until all of it is saved. Without it a run ends with its process,
        so this is for notebooks, and for scripts that go on to something else."""
        if self._recording is not None:
            self._recording.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._recording is not None:
            self._recording.stop(error)

    def __repr__(self) -> str:
        return f"<Experiment {self.short_id} {self.command!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Experiment) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class ExperimentList(Sequence[Experiment]):
    """Experiments, the oldest first. A slice is an ExperimentList too."""

    def __init__(self, experiments: Sequence[Experiment]) -> None:
        self._experiments = list(experiments)

    @overload
    def __getitem__(self, index: int) -> Experiment: ...
    @overload
    def __getitem__(self, index: slice) -> ExperimentList: ...
    def __getitem__(self, index: int | slice) -> Experiment | ExperimentList:
        found = self._experiments[index]
        return ExperimentList(found) if isinstance(found, list) else found

    def delete(self, *, force: bool = False) -> None:
        """Delete all of these, and free what nothing else needs; see `Experiment.delete`."""
        for experiment in self._experiments:
            experiment.stop()
        by_repository: dict[Repository, list[str]] = {}
        for experiment in self._experiments:
            by_repository.setdefault(experiment._repository, []).append(experiment.id)
        for repository, ids in by_repository.items():
            maintenance.delete_experiments(repository, ids, force=force)

    def __len__(self) -> int:
        return len(self._experiments)

    def __repr__(self) -> str:
        return f"<ExperimentList of {len(self)}>"


class Experiments:
    """`replicate.experiments`: the runs that a project has recorded."""

    def __init__(
        self, all: Callable[[], list[Experiment]], find: Callable[[str], Experiment]
    ) -> None:
        self.all = all
        self._find = find

    def get(self, id: str) -> Experiment:
        """The experiment whose id, or one of whose checkpoints' ids, starts with `id`.

        Raises NotFoundError when there is none, AmbiguousIdError when there are several.
        """
        return self._find(id)

    def list(self, filter: Callable[[Experiment], bool] | None = None) -> ExperimentList:
        """All experiments, the oldest first, or those for which `filter` is true."""
        return ExperimentList([e for e in self.all() if filter is None or filter(e)])
