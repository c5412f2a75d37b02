"""An experiment as a person holds it in a script or a notebook: the value of `model` with what can
be done to it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from replicate import maintenance
from replicate.model import CheckpointRecord, ExperimentRecord, Status, Value, short
from replicate.project.checkpoints import Checkpoint, CheckpointList
from replicate.project.recording import UNRECORDED, Paths, Recording
from replicate.repository import Repository


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
        self.stop()
        maintenance.delete_experiments(self._repository, [self.id], force=force)

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
