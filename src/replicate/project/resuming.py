"""Going on with a run: which one is meant, from which of its checkpoints, and whether the process
that recorded it before is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from replicate.errors import UsageError
from replicate.model import (
    MISSED_BEATS,
    Attempt,
    CheckpointRecord,
    ExperimentRecord,
    Restored,
    Status,
    short,
)
from replicate.recorder.leftovers import recover_leftovers
from replicate.repository import Repository
from replicate.spool import Spool, all_spools

#: What `resume` says to go on with the newest run of the same command that has not finished.
LATEST = "latest"
#: How long a helper process is given to save what a run that has ended has left (seconds).
_PATIENCE = 10.0
#: So many steps before and after the one that is wanted are named where that has no checkpoint.
_NEAREST = 3

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Resumption:
    """A run to go on with, and the checkpoint and the step after which that is."""

    experiment: ExperimentRecord
    checkpoint: CheckpointRecord | None
    from_step: int | float | None

    def attempt(self, inputs: ExperimentRecord) -> Attempt:
        """The next attempt at the run, with these inputs."""
        made = self.checkpoint
        return Attempt(
            number=self.experiment.attempt + 1,
            created=inputs.created,
            params=inputs.params,
            user=inputs.user,
            host=inputs.host,
            command=inputs.command,
            path=inputs.path,
            tree=None,
            from_step=self.from_step,
            restored=Restored(made.id, made.attempt, made.created) if made else None,
        )

    def describe(self) -> str:
        """Where it goes on, in words."""
        if self.from_step is None and self.checkpoint is None:
            return "from the start: it has no checkpoint"
        step = "" if self.from_step is None else f"after step {self.from_step}"
        made = "" if self.checkpoint is None else f"from checkpoint {short(self.checkpoint.id)}"
        return " ".join(part for part in (made, step) if part)


def settle(repository: Repository, report: Report) -> None:
    """See to it that runs which have ended can be found: one that was killed in its first moments
    may only be in its spool, from where its helper, or else this call, brings it."""
    deadline = time.monotonic() + _PATIENCE
    for spool in all_spools(repository.spools):
        while spool.names() and not repository.has(spool.experiment) and spool.is_locked:
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
    if repository.exists():
        for message in recover_leftovers(repository):
            report(message)


def named(
    repository: Repository,
    record: ExperimentRecord,
    checkpoint: CheckpointRecord | None,
    from_step: float | None,
    report: Report,
) -> Resumption:
    """How to go on with this run. Raises UsageError when somebody still records it."""
    if not _is_gone(repository, record.id, report):
        raise UsageError(
            f"Experiment {short(record.id)} is still being recorded, by a process on {record.host}",
            hint="End that process first; in a notebook, experiment.stop() does. Without `resume` "
            "a new experiment is started.",
        )
    return _plan(repository.experiment(record.id), checkpoint, from_step)


def latest(
    repository: Repository,
    records: Sequence[ExperimentRecord],
    command: str,
    from_step: float | None,
    report: Report,
) -> Resumption | None:
    """How to go on with the newest run of this command that has not finished; None when there is
    none, or it goes on by itself."""
    found = [r for r in records if r.command == command and r.status is not Status.FINISHED]
    if not found:
        report(f"Nothing to resume: no run of `{command}` is unfinished")
        return None
    if not _is_gone(repository, found[-1].id, report):
        report(f"Nothing to resume: experiment {short(found[-1].id)} is still being recorded")
        return None
    record = repository.experiment(found[-1].id)
    return None if record.status is Status.FINISHED else _plan(record, None, from_step)


def _plan(
    experiment: ExperimentRecord,
    checkpoint: CheckpointRecord | None,
    from_step: float | None,
) -> Resumption:
    """Where to go on: at the checkpoint or the step that is named, else at the latest checkpoint
    whose files can be had, else at the latest."""
    if isinstance(from_step, bool) or not isinstance(from_step, int | float | None):
        raise UsageError(f"from_step must be a number, not {from_step!r}")
    if checkpoint is None and from_step is None:
        latest_first = [*reversed(experiment.current)]
        checkpoint = max(latest_first, key=_files, default=None)
    elif checkpoint is None:
        checkpoint = _at_step(experiment, from_step)
    if from_step is None and checkpoint is not None:
        from_step = checkpoint.step
    return Resumption(experiment, checkpoint, from_step)


def _files(checkpoint: CheckpointRecord) -> int:
    """How much there is to go on from: all files, some, or none."""
    return 0 if checkpoint.tree is None else 1 if checkpoint.lost else 2


def _at_step(experiment: ExperimentRecord, step: float | None) -> CheckpointRecord | None:
    """The checkpoint of that step, where there are several one with files. None when the run has no
    checkpoint at all: its script keeps the state elsewhere. Raises UsageError when it has others
    only, since the script would begin again from nothing while the record says that it goes on."""
    made = [c for c in experiment.current if c.step is not None]
    there = [c for c in made if c.step == step]
    if there or not made:
        return max(there, key=_files, default=None)
    steps = sorted({c.step for c in made if c.step is not None})
    before = [s for s in steps if step is not None and s <= step]
    if before:
        hint = f"The last one before it is of step {before[-1]}: pass from_step={before[-1]}."
    else:
        hint = f"The first one is of step {steps[0]}: pass from_step={steps[0]}."
    near = steps[max(0, len(before) - _NEAREST) : len(before) + _NEAREST]
    raise UsageError(
        f"Experiment {short(experiment.id)} has no checkpoint of step {step}; the nearest steps "
        f"with one are {', '.join(map(str, near))}",
        hint=hint,
    )


def _is_gone(repository: Repository, id: str, report: Report) -> bool:
    """Whether nobody records the experiment any more.

    What is unclear becomes clear by waiting: a helper process that is still saving ends, and a
    heartbeat that was fresh grows old or is followed by the next.
    """
    return _spool_is_free(repository, id, report) and _heartbeat_stops(repository, id, report)


def _spool_is_free(repository: Repository, id: str, report: Report) -> bool:
    """Wait for whoever holds the lock of the spool here; save what a crash has left in it."""
    if repository.spools is None:
        return True
    spool = Spool(repository.spools / id)
    deadline = time.monotonic() + _PATIENCE
    if spool.is_locked:
        report(f"Waiting for the process that records experiment {short(id)} to end")
    while spool.is_locked:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    for message in recover_leftovers(repository):
        report(message)
    return True


def _heartbeat_stops(repository: Repository, id: str, report: Report) -> bool:
    """Whether no new sign of life comes from elsewhere."""
    record = repository.experiment(id)
    youngest: float | None = None
    while record.status is Status.RUNNING and record.heartbeat is not None:
        beat = record.heartbeat
        if youngest is not None and beat.age < youngest:
            return False
        left = max(0.0, MISSED_BEATS * beat.interval - beat.age)
        if youngest is None:
            report(
                f"Experiment {short(id)} was alive {beat.age:.0f} s ago on {record.host}: waiting "
                f"up to {left:.0f} s for another sign of life"
            )
        youngest = beat.age
        time.sleep(min(left, beat.interval / 20) + 0.01)
        record = repository.experiment(id)
    return True
