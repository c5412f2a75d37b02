"""The values of the product: experiments and checkpoints, frozen, with the rules that follow from
them. Nothing here reads a file, a clock or the environment.

`status` is defined here once, as `best` and `latest` are in `outputs`; the command line, the
notebook, JSON and the dashboard all call them. Other modules take all of these names from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from replicate.flat import Value as Value
from replicate.flat import differing as differing
from replicate.flat import flatten as flatten
from replicate.flat import same as same
from replicate.outputs import CheckpointRecord as CheckpointRecord
from replicate.outputs import Goal as Goal
from replicate.outputs import LazyCheckpoints as LazyCheckpoints
from replicate.outputs import PrimaryMetric as PrimaryMetric
from replicate.outputs import TreeRef as TreeRef
from replicate.outputs import all_packs as all_packs
from replicate.outputs import best as best
from replicate.outputs import count_current as count_current
from replicate.outputs import latest as latest
from replicate.outputs import primary_metric as primary_metric
from replicate.outputs import ranking as ranking

SHORT_ID = 7
#: A heartbeat is missed when it is older than this many of its own intervals.
MISSED_BEATS = 3
#: A run has so long for its first heartbeat, which comes after its inputs.
FIRST_BEAT = timedelta(seconds=10)


def short(id: str) -> str:
    """The form of an id that people see: its first seven digits."""
    return id[:SHORT_ID]


class Status(StrEnum):
    """How a run is doing, as far as the repository knows; never a guess shown as a fact."""

    RUNNING = "running"  # its heartbeat is fresh
    FINISHED = "finished"  # it stopped by itself
    FAILED = "failed"  # it raised, or ended with an exit code other than 0
    KILLED = "killed"  # a signal ended it, or its process vanished while the recorder lived on
    LOST = "lost"  # the heartbeat stopped and nobody said why: the machine may be gone


@dataclass(frozen=True, slots=True)
class Point:
    """Metrics at a moment of a run: one call of `log()`, or what a checkpoint had."""

    time: datetime
    step: int | float | None
    metrics: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Printed:
    """Text that a run has printed, to "stdout" or "stderr". It may end within a line, which then
    goes on in the next text of that stream. None: from here on nothing was kept."""

    time: datetime
    stream: str
    text: str | None


@dataclass(frozen=True, slots=True)
class ExceptionInfo:
    """The exception that ended a run."""

    type: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Stop:
    """How and when a run ended. `signal` is a name such as "SIGKILL", where it is known."""

    time: datetime
    status: Status
    exception: ExceptionInfo | None = None
    signal: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run starts from: an experiment, or one of its checkpoints."""

    experiment: str
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """The checkpoint that an attempt goes on from: its id, and its place in the run."""

    checkpoint: str
    attempt: int
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One go at a run: from a start of its script to the end of that process. The first is the
    experiment's own start; each resume is another, with inputs of its own.

    `from_step` is the step that it goes on after, and `restored` the checkpoint; when neither is
    known it has begun again from the start.
    """

    number: int
    created: datetime
    params: Mapping[str, Value]
    user: str
    host: str
    command: str
    path: str | tuple[str, ...] | None
    tree: str | None
    size: int | None = None
    stored: int | None = None
    environment: Mapping[str, Value] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    from_step: int | float | None = None
    restored: Restored | None = None
    stop: Stop | None = None
    packs: tuple[str, ...] = ()

    @property
    def tree_ref(self) -> TreeRef | None:
        """Where its code is; None when none was saved."""
        return None if self.tree is None else TreeRef(self.tree, self.packs)

    @property
    def predecessor(self) -> int | None:
        """The number of the attempt that this one goes on from; None when it begins again."""
        if self.restored is not None:
            return self.restored.attempt
        return None if self.from_step is None else self.number - 1

    def redoes(self, time: datetime, step: int | float | None) -> bool:
        """Whether it does again what its predecessor recorded at `time` for `step`.

        That is what was done after the restored checkpoint, and for a later step: a metric of the
        restored step itself is often logged just after the checkpoint, and one that is counted in
        batches may have a larger step than a checkpoint that is counted in epochs.
        """
        if self.restored is not None and time <= self.restored.created:
            return False
        return self.from_step is None or step is None or not step <= self.from_step


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of an experiment's labels by a person: `kind` is tag, note, name or group, and
    `change` what the event says of it."""

    time: datetime
    author: str
    kind: str
    change: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last sign of life: how long ago, and how often one is due, both in seconds, by the
    storage's own clock. `events` counts the journal lines that each writer says it has written."""

    age: float
    interval: float
    events: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecord:
    """One run of a training script: its inputs, and the fold of all that happened since.

    Of a run that was resumed, `attempts` has every attempt, the first one too, and the inputs are
    those of the last; of any other it is empty. `imported` says which tool a run comes from, and
    what it was there. `edits` are the changes of its labels. `damage` has
    one sentence for each part of it that is stored but cannot be read. One that is not `saved` has
    parts that are only on the machine that this is read on.
    """

    id: str
    created: datetime
    params: Mapping[str, Value]
    user: str
    host: str
    command: str
    path: str | tuple[str, ...] | None
    tree: str | None
    name: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    group: str | None = None
    environment: Mapping[str, Value] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    stored: int | None = None
    checkpoints: Sequence[CheckpointRecord] = ()
    logged: Mapping[str, Value] = field(default_factory=dict)
    stop: Stop | None = None
    heartbeat: Heartbeat | None = None
    problems: tuple[str, ...] = ()
    deleted: bool = False
    damage: tuple[str, ...] = ()
    parent: Origin | None = None
    imported: Mapping[str, Value] | None = None
    attempts: tuple[Attempt, ...] = ()
    edits: tuple[Edit, ...] = ()
    packs: tuple[str, ...] = ()
    saved: bool = True

    @property
    def tree_ref(self) -> TreeRef | None:
        """Where its code is; None when none was saved."""
        return None if self.tree is None else TreeRef(self.tree, self.packs)

    @property
    def status(self) -> Status:
        """What is known of the run's end, else what its heartbeat says."""
        if self.stop is not None:
            return self.stop.status
        beat = self.heartbeat
        if beat is None:
            begun = abs(datetime.now(UTC) - self.created) <= FIRST_BEAT
            # Of a deleted one there may be nothing left but the event that says so, and one that
            # was imported is over, whatever became of it.
            alive = begun and not (self.checkpoints or self.deleted or self.imported)
        else:
            alive = beat.age <= MISSED_BEATS * beat.interval
        return Status.RUNNING if alive else Status.LOST

    @property
    def duration(self) -> timedelta | None:
        """From the start to the end of the run, or to its last checkpoint while it goes on."""
        latest = self.latest()
        end = self.stop.time if self.stop else latest.created if latest else None
        return end - self.created if end else None

    def best(self) -> CheckpointRecord | None:
        """See `best`."""
        return best(self.checkpoints)

    def latest(self) -> CheckpointRecord | None:
        """See `latest`."""
        return latest(self.checkpoints)

    @property
    def primary_metric(self) -> PrimaryMetric | None:
        """The primary metric that the latest checkpoint with one has named."""
        return primary_metric(self.checkpoints)

    @property
    def current(self) -> Sequence[CheckpointRecord]:
        """The checkpoints that no later attempt has superseded."""
        if not self.attempts:  # then there is nothing to look for, and nothing to load
            return self.checkpoints
        return tuple(c for c in self.checkpoints if not c.superseded)

    @property
    def num_checkpoints(self) -> int:
        """How many `current` checkpoints there are. None of them is loaded for it."""
        return count_current(self.checkpoints)

    @property
    def attempt(self) -> int:
        """The number of the last attempt, from 1."""
        return self.attempts[-1].number if self.attempts else 1

    def supersedes(self, attempt: int, time: datetime, step: int | float | None) -> bool:
        """Whether what `attempt` recorded at `time` for `step` is not on the way from the start of
        the run to its last attempt: later ones have gone back to before it."""
        by_number = {a.number: a for a in self.attempts}
        last = by_number.get(self.attempt)
        while last is not None and attempt < last.number:
            before = last.predecessor
            if before is None or attempt > before:
                return True
            # Without a known checkpoint only steps can tell, and those of every earlier attempt.
            if (attempt == before or last.restored is None) and last.redoes(time, step):
                return True
            last = by_number.get(before)
        return False

    def at(self, checkpoint: CheckpointRecord | None) -> ExperimentRecord:
        """The experiment with the inputs of the attempt that made the checkpoint: its params, its
        code, its machine. Without a checkpoint those of the last attempt."""
        for made in self.attempts if checkpoint else ():
            if checkpoint and made.number == checkpoint.attempt:
                return with_inputs(self, made)
        return self


def with_inputs(experiment: ExperimentRecord, attempt: Attempt) -> ExperimentRecord:
    """The experiment with the inputs of one of its attempts."""
    return replace(
        experiment,
        params=attempt.params,
        user=attempt.user,
        host=attempt.host,
        command=attempt.command,
        path=attempt.path,
        tree=attempt.tree,
        size=attempt.size,
        stored=attempt.stored,
        packs=attempt.packs,
        environment=attempt.environment,
        packages=attempt.packages,
    )


def differing_params(experiments: Iterable[ExperimentRecord]) -> list[str]:
    """Names of the params, dotted where nested, whose values are not the same in all experiments.

    A param that only some experiments have differs. In order of first appearance.
    """
    # One that is damaged may have had any: it says nothing about what differs.
    return differing([flatten(e.params) for e in experiments if e.params or not e.damage])
