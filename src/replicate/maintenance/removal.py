"""Deleting experiments and checkpoints: what would go, and how much of the disk comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from replicate.backends.reserve import reserve_released
from replicate.errors import DamagedError, UsageError
from replicate.maintenance.gc import collect
from replicate.maintenance.references import (
    Reference,
    backups,
    objects,
    records,
    references,
    stored,
    trees,
)
from replicate.model import CheckpointRecord, ExperimentRecord, Status, short
from replicate.records import new_id, now
from replicate.repository import Repository

#: What an id stands for.
Named = ExperimentRecord | tuple[ExperimentRecord, CheckpointRecord]


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """What would be deleted: experiments with all of their checkpoints, and checkpoints alone, each
    with its experiment. `objects` are the trees, blobs and packs that nothing needs afterwards,
    and `bytes` what they take."""

    experiments: tuple[ExperimentRecord, ...]
    checkpoints: tuple[tuple[ExperimentRecord, CheckpointRecord], ...]
    objects: frozenset[str]
    bytes: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What was deleted, and the bytes that came free. `later_bytes` come free with the first
    garbage collection after `later_seconds`. `problem` says why nothing could come free."""

    experiments: int
    checkpoints: int
    bytes: int
    later_bytes: int
    later_seconds: float
    problem: str | None = None


def plan_removal(
    repository: Repository, named: Iterable[Named], *, force: bool = False
) -> RemovalPlan:
    """What deleting these would do. Changes nothing.

    Raises UsageError when an experiment is still running, unless `force`: its run would go on and
    store what nobody sees.
    """
    found = list(named)
    experiments = {e.id: e for e in found if isinstance(e, ExperimentRecord)}
    running = [e for e in experiments.values() if e.status is Status.RUNNING]
    if running and not force:
        names = ", ".join(short(e.id) for e in running)
        raise UsageError(
            f"Still running: {names}",
            hint="Stop the run first. If it is deleted now, by force, it goes on, and what it "
            "still saves is lost too.",
        )
    checkpoints = {
        c[1].id: c
        for c in found
        if not isinstance(c, ExperimentRecord) and c[0].id not in experiments
    }
    gone = [r for e in experiments.values() for r in references(e)]
    for experiment, checkpoint in checkpoints.values():
        gone += [r for r in references(experiment) if r.holder.checkpoint == checkpoint.id]
    doomed = _only_needed_by(repository, gone)
    return RemovalPlan(
        experiments=tuple(experiments.values()),
        checkpoints=tuple(checkpoints.values()),
        objects=frozenset(doomed),
        bytes=sum(stat.size for _, stat in stored(repository, doomed)),
    )


def remove(repository: Repository, plan: RemovalPlan) -> Removed:
    """Delete what is planned, for good, and free what nothing needs any more.

    Everything is gone for readers at once, also where its bytes stay for a while or, as damage
    leaves it unclear what is needed, until that is repaired. It works on a full disk, too.
    """
    with reserve_released(repository.backend):
        return _remove(repository, plan)


def _remove(repository: Repository, plan: RemovalPlan) -> Removed:
    for experiment in plan.experiments:
        _append(repository, experiment.id, {})
    for id, checkpoints in _by_experiment(plan).items():
        _append(repository, id, {"checkpoints": checkpoints})
    counts = len(plan.experiments), len(plan.checkpoints)
    try:
        freed = collect(repository, among=plan.objects)
    except DamagedError as error:
        return Removed(*counts, bytes=0, later_bytes=0, later_seconds=0.0, problem=str(error))
    return Removed(*counts, freed.bytes, freed.later_bytes, freed.grace)


def delete_experiments(
    repository: Repository, ids: Iterable[str], *, force: bool = False
) -> Removed:
    """Delete the experiments with these whole ids; one that is gone already is no error."""
    known = set(repository.ids())
    found = [repository.experiment(id) for id in ids if id in known]
    named = [experiment for experiment in found if not experiment.deleted]
    return remove(repository, plan_removal(repository, named, force=force))


def _append(repository: Repository, experiment: str, data: dict[str, list[str]]) -> None:
    journal = repository.journal(experiment, new_id()[:16])
    journal.append([("delete", now(), data)])


def _by_experiment(plan: RemovalPlan) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for experiment, checkpoint in plan.checkpoints:
        found.setdefault(experiment.id, []).append(checkpoint.id)
    return found


def _only_needed_by(repository: Repository, gone: list[Reference]) -> set[str]:
    """The objects that `gone` needs and nothing else does, as far as all trees can be read."""
    names: set[str] = set()
    for reference, tree in trees(repository, gone):
        names |= objects(reference.ref, tree)
    for reference, tree in trees(repository, _others(repository, gone)):
        names -= objects(reference.ref, tree)
    return names


def _others(repository: Repository, gone: list[Reference]) -> Iterator[Reference]:
    holders = {reference.holder for reference in gone}
    for record in records(repository):
        if not record.deleted:
            yield from (r for r in references(record) if r.holder not in holders)
    yield from (b.reference for b in backups(repository) if b.reference is not None)
