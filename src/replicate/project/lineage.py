"""Which run came from which: the ancestors and the descendants of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replicate.model import CheckpointRecord, ExperimentRecord

#: So many are followed up, and down: what is made of them recurses.
_GENERATIONS = 100


@dataclass(frozen=True, slots=True)
class Relative:
    """An experiment in a family tree. `record` is None when it was deleted; `origin` is the
    checkpoint of its parent that it came from, by its id, and by its record where that is there."""

    id: str
    record: ExperimentRecord | None
    origin: str | None = None
    checkpoint: CheckpointRecord | None = None
    children: tuple[Relative, ...] = ()


def lineage(experiment: ExperimentRecord, records: Sequence[ExperimentRecord]) -> Relative:
    """The oldest ancestor that is known, with the line that leads to `experiment` and all that came
    from it; of many generations the nearest 100, both ways. One without relatives is alone."""
    known = {record.id: record for record in records}
    forks: dict[str, list[ExperimentRecord]] = {}
    for record in records:
        if record.parent is not None:
            forks.setdefault(record.parent.experiment, []).append(record)
    found = _with_descendants(experiment, known, forks, (experiment.id,))
    seen = {experiment.id}
    youngest: ExperimentRecord | None = experiment
    while (
        youngest is not None
        and youngest.parent
        and youngest.parent.experiment not in seen
        and len(seen) <= _GENERATIONS
    ):
        seen.add(youngest.parent.experiment)
        above = known.get(youngest.parent.experiment)
        found = _relative(youngest.parent.experiment, above, known, (found,))
        youngest = above
    return found


def children(id: str, records: Sequence[ExperimentRecord]) -> list[ExperimentRecord]:
    """The experiments that were forked from this one, the oldest first."""
    return [r for r in records if r.parent is not None and r.parent.experiment == id]


def _with_descendants(
    record: ExperimentRecord,
    known: Mapping[str, ExperimentRecord],
    forks: Mapping[str, Sequence[ExperimentRecord]],
    line: tuple[str, ...],
) -> Relative:
    """`line` has the ids from the first experiment to this one: damage or a forgery may have made
    a circle."""
    below = forks.get(record.id, ()) if len(line) <= _GENERATIONS else ()
    found = (
        _with_descendants(child, known, forks, (*line, child.id))
        for child in below
        if child.id not in line
    )
    return _relative(record.id, record, known, tuple(found))


def _relative(
    id: str,
    record: ExperimentRecord | None,
    known: Mapping[str, ExperimentRecord],
    children: tuple[Relative, ...],
) -> Relative:
    parent = record.parent if record else None
    origin = parent.checkpoint if parent else None
    source = known.get(parent.experiment) if parent else None
    checkpoint = next((c for c in source.checkpoints if c.id == origin), None) if source else None
    return Relative(id, record, origin, checkpoint, children)
