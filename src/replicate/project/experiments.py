"""An experiment as a person holds it in a script or a notebook: the value of `model` with what can
be done to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from replicate import analysis, maintenance, process
from replicate.errors import UsageError
from replicate.model import (
    Attempt,
    CheckpointRecord,
    ExperimentRecord,
    Origin,
    Point,
    Status,
    Value,
    short,
)
from replicate.project import labels
from replicate.project import pending as waiting
from replicate.project.checkpoints import Checkpoint, CheckpointList, described, with_id
from replicate.project.history import History
from replicate.project.recording import UNRECORDED, Paths, Recording
from replicate.repository import Repository
from replicate.text import escape
from replicate.values import to_params

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_NOBODY_KEEPS = "this process records nothing"


class Home(Protocol):
    """The project of an experiment, as far as the experiment needs it."""

    @property
    def author(self) -> str:
        """Who edits labels: user@host."""

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
    ) -> Experiment:
        """Start to record a run."""


class Experiment:
    """One run of a training script.

    The one that `replicate.init()` returns also records: `checkpoint` and `stop`, or a `with`
    block. What it shows of itself is what the repository has at the last `refresh`.
    """

    def __init__(
        self,
        record: ExperimentRecord,
        repository: Repository,
        recording: Recording | None = None,
        home: Home | None = None,
    ) -> None:
        self.record = record
        self._repository = repository
        self._recording = recording
        self._home = home

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
        return self._current().name

    @property
    def tags(self) -> tuple[str, ...]:
        return self._current().tags

    @property
    def notes(self) -> str | None:
        return self._current().notes

    @property
    def group(self) -> str | None:
        return self._current().group

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
        """All checkpoints but those that are `superseded`."""
        return CheckpointList([self._checkpoint(c) for c in self._current().current])

    @property
    def superseded(self) -> CheckpointList:
        """The checkpoints of a resumed run that it has gone back to before."""
        found = [c for c in self._current().checkpoints if c.superseded]
        return CheckpointList([self._checkpoint(c) for c in found])

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt of a run that was resumed, the first one too; none of any other."""
        return self._current().attempts

    @property
    def parent(self) -> Origin | None:
        """The ids of the experiment, and of its checkpoint, that this was forked from."""
        return self.record.parent

    @property
    def resumed_from(self) -> Checkpoint | None:
        """The checkpoint to restore before training goes on, in a script whose `init()` has resumed
        a run; None in a run that begins."""
        resumed = self._recording.resumed if self._recording else None
        if resumed is None or resumed.checkpoint is None:
            return None
        found = resumed.experiment.at(resumed.checkpoint)
        return Checkpoint(resumed.checkpoint, found, self._repository)

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best finite value of the primary metric, the latest of equals;
        None when no checkpoint has one."""
        found = self._current().best()
        return self._checkpoint(found) if found else None

    def latest(self) -> Checkpoint | None:
        """The checkpoint made last, or None."""
        found = self._current().latest()
        return self._checkpoint(found) if found else None

    def history(self, name: str | None = None) -> History:
        """Every point of the run, in the order in which they were recorded: what was logged, and
        the metrics of the checkpoints. With `name` those that have this metric, and it alone.

        Raises NotFoundError for a metric that the run has never had, once it has any.
        """
        points: Iterable[Point] = self._repository.history(self._current())
        if name is not None:
            points = list(points)
            analysis.check_metric([analysis.Run(self.record, points)], name)
            points = [
                Point(p.time, p.step, {name: p.metrics[name]}) for p in points if name in p.metrics
            ]
        return History(points, self.record)

    def plot(
        self,
        metric: str | None = None,
        *,
        x: str = "step",
        logx: bool = False,
        logy: bool = False,
        smoothing: float = 0.0,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw how a metric went, by default the primary one; see `ExperimentList.plot`."""
        return analysis.plot(
            [self.run()], metric, x=x, logx=logx, logy=logy, smoothing=smoothing, ax=ax
        )

    def run(self) -> analysis.Run:
        """The experiment with its history, as charts are made of."""
        history = self.history()
        return analysis.Run(self.record, history)

    def refresh(self) -> Self:
        """Read the experiment again, to see what has happened since."""
        recording = self._recording
        if recording is not None and not recording.wait() and recording.remote:
            self.record = self._on_this_machine(recording)  # the network is down, or not to be used
        elif self.id != UNRECORDED:
            self.record = waiting.current(self._repository, self.id)
        return self

    def _on_this_machine(self, recording: Recording) -> ExperimentRecord:
        """What this process knows of the run that it records, without a network."""
        left = waiting.pending_of(self._repository, self.id)
        record = left.added_to(self.record) if left else self.record
        return waiting.with_checkpoints(record, recording.made)

    def delete(self, *, force: bool = False) -> None:
        """Delete the experiment and its checkpoints, for good, and free what nothing else needs.

        One that this process records is stopped first. Raises UsageError when another process is
        still recording it, unless `force`.
        """
        self.stop()
        waiting.require_saved(self._repository, [self.id])
        maintenance.delete_experiments(self._repository, [self.id], force=force)

    def _checkpoint(self, record: CheckpointRecord) -> Checkpoint:
        wait = self._recording.wait if self._recording else None
        return Checkpoint(record, self.record.at(record), self._repository, wait)

    def _current(self) -> ExperimentRecord:
        """The record; of a run that this process records, with all that it has recorded so far: it
        does not wait for a network to tell what this process knows itself."""
        recording = self._recording
        if recording is not None and recording.remote and not recording.stopped:
            self.record = self._on_this_machine(recording)
        elif recording is not None:
            self.refresh()
        return self.record

    # ------------------------------------------------------------ labels and forks

    def tag(self, *tags: str) -> None:
        """Add tags."""
        self._edit("tag", labels.tagging(add=tags))

    def untag(self, *tags: str) -> None:
        """Remove tags; one that it has not is no error."""
        self._edit("tag", labels.tagging(remove=tags))

    def retag(self, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Add some tags and remove others, in one edit."""
        self._edit("tag", labels.tagging(add, remove))

    def note(self, text: str | None) -> None:
        """Replace the notes by this text; None removes them."""
        self._edit("note", {"text": labels.text("note", text)})

    def rename(self, name: str | None) -> None:
        """Give it another name; None takes its name away."""
        self._edit("name", {"name": labels.text("name", name)})

    def regroup(self, group: str | None) -> None:
        """Put it in a group; None takes it out of its group."""
        self._edit("group", {"group": labels.text("group", group)})

    def _edit(self, kind: str, change: Mapping[str, Value]) -> None:
        """Commit an event; in a run that this process records, along with its checkpoints."""
        author = self._home.author if self._home else f"{process.user()}@{process.host()}"
        if self._recording is not None and not self._recording.stopped:
            self._recording.edit(kind, {"author": author, **change})
            if self._recording.remote:
                self._current()  # before it is saved: from then on only a refresh would tell
        elif self.id != UNRECORDED:
            waiting.require_saved(self._repository, [self.id])
            labels.edit(self._repository, self.id, kind, author, change)
            self.refresh()

    def fork(
        self,
        checkpoint: Checkpoint | str | None = None,
        params: object = None,
        *,
        path: Paths | EllipsisType = ...,
        name: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        group: str | None = None,
        keep: Mapping[str, int] | None = None,
    ) -> Experiment:
        """Start to record a new run that comes from this one, or from one of its checkpoints,
        which may be named by its id. Raises NotFoundError for an id of none of them.

        It has the params of this one, but for those in `params`, and saves the same `path` unless
        there is another. Which files it starts from is up to the script: `checkpoint.open()` has
        them. The rest is as in `replicate.init`.
        """
        if self._home is None:
            raise UsageError("This experiment belongs to no project: pass it to replicate.init()")
        known = [self._checkpoint(c) for c in self._current().checkpoints]
        origin = with_id(known, checkpoint) if isinstance(checkpoint, str) else checkpoint
        inputs = self._current().at(origin.record if origin else None)
        if isinstance(path, EllipsisType):
            # What another tool has saved is not known to be what a run here should save.
            path = "." if inputs.imported else inputs.path
        return self._home.init(
            path,
            {**inputs.params, **to_params(params)},
            name=name,
            tags=tags,
            notes=notes,
            group=group,
            keep=keep,
            parent=origin or self,
        )

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

    def log(self, metrics: Mapping[str, Any], step: int | float | None = None) -> None:
        """Record metrics alone. It costs some microseconds: call it for every batch.

        Steps may come in any order; one that is left out counts on from the last that was logged.
        What is no number is reported once and left out; NaN and infinities are kept. Never raises,
        and never stops or delays a run.
        """
        if self._recording is not None:
            self._recording.log(metrics, step)

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
        if self.id == UNRECORDED:
            return f"<Experiment: {_NOBODY_KEEPS}>"
        record = self.record
        if self._recording is not None and self._recording.stopped:
            record = self._current()
        # A run that goes on is not asked what it has saved: that may take a while.
        running = self._recording is not None and not self._recording.stopped
        status = Status.RUNNING if running else record.status
        name = f" {escape(record.name)}" if record.name else ""
        best = record.best()
        came_to = f", best{described(best.metrics)}" if best else ""
        return f"<Experiment {self.short_id}{name} {status}: {escape(record.command)}{came_to}>"

    def _repr_html_(self) -> str:
        if self.id == UNRECORDED:
            return f"<i>{_NOBODY_KEEPS}</i>"
        return analysis.experiment_html(self._current())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Experiment) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)
