"""How many bytes a repository takes, and which experiment takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from replicate.maintenance.references import (
    Reference,
    Unreadable,
    backups,
    each,
    objects,
    read_tree,
    records,
    references,
    stored,
)
from replicate.model import ExperimentRecord, TreeRef
from replicate.repository import Repository
from replicate.tree import Tree

#: Who needs an object that several need, and one that only what can be undone needs.
_SEVERAL, _BACKUPS = "several", "backups"
#: Trees that are kept in memory: the code of one project is in many experiments.
_TREES_KEPT = 256


@dataclass(frozen=True, slots=True)
class ExperimentUsage:
    """The bytes of an experiment's code and checkpoints.

    `logical` is what they would take as plain copies. `stored` is what the trees and blobs take
    that it needs, and `exclusive` those that nothing else needs: deleting it frees them.
    """

    experiment: ExperimentRecord
    logical: int
    stored: int
    exclusive: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The experiments, the largest first, and totals in bytes.

    `stored` is all trees, blobs and packs. Of them `backups` are only needed to undo a checkout,
    and `unreferenced` are needed by nothing, or by what is being saved now. `damage` has a sentence
    for each tree that cannot be counted.
    """

    experiments: tuple[ExperimentUsage, ...]
    logical: int
    stored: int
    backups: int
    unreferenced: int
    damage: tuple[str, ...]


def measure(repository: Repository) -> Usage:
    """Count the bytes of all experiments that are not deleted."""
    counting = _Counting(repository)
    rows = [(r, *counting.add(r.id, references(r))) for r in records(repository) if not r.deleted]
    kept = [b.reference for b in backups(repository) if b.reference is not None]
    counting.add(_BACKUPS, kept)
    exclusive = counting.exclusive()
    total = sum(counting.sizes.values())
    experiments = (ExperimentUsage(r, logical, held, exclusive[r.id]) for r, logical, held in rows)
    return Usage(
        experiments=tuple(sorted(experiments, key=lambda e: (-e.stored, e.experiment.id))),
        logical=sum(logical for _, logical, _ in rows),
        stored=total,
        backups=exclusive[_BACKUPS],
        unreferenced=total - exclusive.total(),
        damage=tuple(dict.fromkeys(counting.damage)),
    )


class _Counting:
    """The sizes of all objects, and who needs each: an experiment's id, or `_SEVERAL`."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.sizes: Counter[str] = Counter()
        for name, stat in stored(repository):
            self.sizes[name] += stat.size
        self.owners: dict[str, str] = {}
        self.damage: list[str] = []

        @lru_cache(maxsize=_TREES_KEPT)
        def read(ref: TreeRef) -> Tree | Unreadable:
            return read_tree(repository, ref)

        self._read = read

    def add(self, owner: str, needed: Iterable[Reference]) -> tuple[int, int]:
        """Count what `owner` needs; return the logical and the stored bytes."""
        times = Counter(reference.ref for reference in needed)
        held: set[str] = set()
        logical = 0
        for ref, tree in zip(times, each(self._repository, self._read, times), strict=True):
            held |= objects(ref, tree)
            if isinstance(tree, Tree):
                logical += times[ref] * tree.size
            else:
                self.damage.append(tree.message)
        for name in held:
            self.owners[name] = owner if self.owners.get(name, owner) == owner else _SEVERAL
        return logical, sum(self.sizes[name] for name in held)

    def exclusive(self) -> Counter[str]:
        """The bytes of the objects that only one needs, by who that is; the rest as `_SEVERAL`."""
        totals: Counter[str] = Counter()
        for name, owner in self.owners.items():
            totals[owner] += self.sizes[name]
        return totals
