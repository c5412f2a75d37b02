"""What a run puts out: checkpoints, frozen, and which of several is the best or the latest. Nothing
here reads a file, a clock or the environment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, overload

from replicate.flat import Value

Goal = Literal["minimize", "maximize"]


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
    there were files, and that `keep` has let them go; `lost` are the paths that were asked for and
    could not be saved, without which it is not whole. `attempt` is the number of the attempt that
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
    lost: tuple[str, ...] = ()

    @property
    def has_all_files(self) -> bool:
        """Whether it was made with files, and all of them were saved and not let go."""
        return self.path is not None and not self.dropped and not self.lost

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
    and how many there are, and are current. All are what `load` gives, once somebody asks for
    another."""

    __slots__ = ("_count", "_load", "_loaded", "best", "current", "latest", "primary_metric")

    def __init__(
        self,
        count: int,
        current: int,
        best: CheckpointRecord | None,
        latest: CheckpointRecord | None,
        primary_metric: PrimaryMetric | None,
        load: Callable[[], Sequence[CheckpointRecord]],
    ) -> None:
        self.current = current
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


def count_current(checkpoints: Sequence[CheckpointRecord]) -> int:
    """How many checkpoints no later attempt has superseded."""
    if isinstance(checkpoints, LazyCheckpoints):
        return checkpoints.current
    return sum(not c.superseded for c in checkpoints)
