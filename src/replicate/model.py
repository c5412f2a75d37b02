"""The values of the product: experiments and checkpoints, frozen, with the rules that follow from
them. Nothing here reads a file, a clock or the environment.

`best`, `latest` and `status` are each defined here once; the command line, the notebook, JSON and
the dashboard all call them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, NamedTuple, overload

#: What JSON can hold, with NaN and the infinities.
Value = Any
Goal = Literal["minimize", "maximize"]

_SCALARS = frozenset({str, int, float, bool, type(None)})
SHORT_ID = 7
#: A heartbeat is missed when it is older than this many of its own intervals.
MISSED_BEATS = 3


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
class PrimaryMetric:
    """The metric that decides which checkpoint is best."""

    name: str
    goal: Goal


class TreeRef(NamedTuple):
    """The hash of a tree, and the hashes of the packs that hold it or some of its blobs."""

    tree: str
    packs: tuple[str, ...] = ()


def all_packs(refs: Iterable[TreeRef | None]) -> tuple[str, ...]:
    """The packs of several trees: what reading files of all of them needs."""
    return tuple(dict.fromkeys(pack for ref in refs if ref for pack in ref.packs))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A version of an experiment's outputs.

    `path` is what was passed to `checkpoint()`, relative to the project (None: no files); `tree`
    is the hash of the manifest of those files. `size` is their bytes; `stored` is how many bytes
    were new to the repository. Neither is None unless there are no files. `dropped` says that
    there were files, and that `keep` has let them go. `attempt` is the number of the attempt that
    made it; `superseded` says that a later attempt went back to before it: it is kept, and is never
    best or latest. One that is not `saved` is only on the machine that this is read on.
    """

    id: str
    experiment: str
    created: datetime
    step: int | float | None
    path: str | tuple[str, ...] | None
    tree: str | None
    metrics: Mapping[str, Value]
    primary_metric: PrimaryMetric | None = None
    size: int | None = None
    stored: int | None = None
    dropped: bool = False
    attempt: int = 1
    superseded: bool = False
    packs: tuple[str, ...] = ()
    saved: bool = True

    @property
    def tree_ref(self) -> TreeRef | None:
        """Where its files are; None without files."""
        return None if self.tree is None else TreeRef(self.tree, self.packs)

    @property
    def primary_value(self) -> float | None:
        """The primary metric's value, or None when it is absent, not a number, or not finite."""
        if self.primary_metric is None:
            return None
        value = self.metrics.get(self.primary_metric.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:  # an integer beyond every float
            return None


class LazyCheckpoints(Sequence[CheckpointRecord]):
    """Checkpoints of which those that a list of experiments shows are at hand: the best, the latest
    and their number. All of them are what `load` gives, once somebody asks for another."""

    __slots__ = ("_count", "_load", "_loaded", "best", "latest", "primary_metric")

    def __init__(
        self,
        count: int,
        best: CheckpointRecord | None,
        latest: CheckpointRecord | None,
        primary_metric: PrimaryMetric | None,
        load: Callable[[], Sequence[CheckpointRecord]],
    ) -> None:
        self.best = best
        self.latest = latest
        self.primary_metric = primary_metric
        self._count = count
        self._load = load
        self._loaded: Sequence[CheckpointRecord] | None = None

    def _all(self) -> Sequence[CheckpointRecord]:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @overload
    def __getitem__(self, index: int) -> CheckpointRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CheckpointRecord]: ...
    def __getitem__(self, index: int | slice) -> CheckpointRecord | Sequence[CheckpointRecord]:
        return self._all()[index]

    def __iter__(self) -> Iterator[CheckpointRecord]:
        return iter(self._all())

    def __len__(self) -> int:
        return self._count if self._loaded is None else len(self._loaded)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<LazyCheckpoints of {len(self)}>"


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
        if beat is not None and beat.age <= MISSED_BEATS * beat.interval:
            return Status.RUNNING
        return Status.LOST

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


def primary_metric(checkpoints: Sequence[CheckpointRecord]) -> PrimaryMetric | None:
    """The primary metric named last: a person who changes their mind in a run means the new one."""
    if isinstance(checkpoints, LazyCheckpoints):
        return checkpoints.primary_metric
    for checkpoint in reversed(checkpoints):
        if checkpoint.primary_metric is not None and not checkpoint.superseded:
            return checkpoint.primary_metric
    return None


def best(checkpoints: Sequence[CheckpointRecord]) -> CheckpointRecord | None:
    """The checkpoint with the best finite value of the primary metric, the latest of equals.

    None when no checkpoint has one; see `ranking`.
    """
    if isinstance(checkpoints, LazyCheckpoints):
        return checkpoints.best
    ranked = ranking(checkpoints)
    return ranked[0] if ranked else None


def ranking(checkpoints: Sequence[CheckpointRecord]) -> list[CheckpointRecord]:
    """The checkpoints that have a finite value of the primary metric, the best first, of equals
    the latest first.

    Only those that name the same primary metric as the last one that names any are compared: 0.9
    accuracy is not better than 0.1 loss.
    """
    primary = primary_metric(checkpoints)
    if primary is None:
        return []
    sign = 1 if primary.goal == "minimize" else -1
    ranked = [
        (sign * value, -number, c)
        for number, c in enumerate(checkpoints)
        if (c.primary_metric is primary or c.primary_metric == primary)
        and not c.superseded
        and (value := c.primary_value) is not None
    ]
    return [c for _, _, c in sorted(ranked, key=lambda r: r[:2])]


def latest(checkpoints: Sequence[CheckpointRecord]) -> CheckpointRecord | None:
    """The checkpoint made last (not the one with the highest step: steps may go back)."""
    if isinstance(checkpoints, LazyCheckpoints):
        return checkpoints.latest
    return next((c for c in reversed(checkpoints) if not c.superseded), None)


def differing_params(experiments: Iterable[ExperimentRecord]) -> list[str]:
    """Names of the params, dotted where nested, whose values are not the same in all experiments.

    A param that only some experiments have differs. In order of first appearance.
    """
    # One that is damaged may have had any: it says nothing about what differs.
    return differing([flatten(e.params) for e in experiments if e.params or not e.damage])


def differing(flat: Sequence[Mapping[str, Value]]) -> list[str]:
    """The names whose values are not the same in all of these flat mappings."""
    names = dict.fromkeys(name for values in flat for name in values)
    missing = object()
    return [
        n for n in names if any(not same(p.get(n, missing), flat[0].get(n, missing)) for p in flat)
    ]


def same(left: Value, right: Value) -> bool:
    """Whether two values mean the same: 1 and 1.0 do, NaN and NaN do, 1 and True do not."""
    if isinstance(left, bool) is not isinstance(right, bool):
        return False
    return bool(left == right) or repr(left) == repr(right)


def flatten(params: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """Nested params under dotted names: {"a": {"b": 1}} is {"a.b": 1}. Lists stay whole."""
    flat: dict[str, Value] = {}
    for name, value in params.items():
        if type(value) not in _SCALARS and isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
