"""Checkpoints as a person holds them in a script or a notebook: the values of `model` with what can
be done to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, overload

from replicate import analysis
from replicate.errors import AmbiguousIdError, KeyNotFoundError, NotFoundError
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    PrimaryMetric,
    Value,
    all_packs,
    short,
)
from replicate.project import checkouts
from replicate.repository import Repository
from replicate.text import escape, value
from replicate.tree import Entry, open_entry

if TYPE_CHECKING:
    from pandas import DataFrame


class Checkpoint:
    """A version of an experiment's outputs, with the metrics it had."""

    def __init__(
        self,
        record: CheckpointRecord,
        experiment: ExperimentRecord,
        repository: Repository,
        wait: Callable[[], bool] | None = None,
    ) -> None:
        """`wait` is what brings into the repository what this process has recorded."""
        self.record = record
        self._experiment = experiment
        self._repository = repository
        self._wait = wait

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

    @property
    def attempt(self) -> int:
        """The number of the attempt of the run that made it, from 1."""
        return self.record.attempt

    def open(self, path: str | None = None) -> BinaryIO:
        """One of the checkpoint's files, or of the experiment's code, open to read and to seek in.

        Only what is read is fetched. `path` may be left out when the checkpoint has one file.
        Raises NotFoundError when there is no such file; reading raises DamagedError when bytes
        are not what was saved.
        """
        self._settle()
        files: dict[str, Entry] = {}
        refs = [r for r in (self._experiment.tree_ref, self.record.tree_ref) if r is not None]
        for ref in refs:
            files = {**files, **self._repository.tree(*ref).files}
        name = self.record.path if path is None else Path(path).as_posix()
        if not isinstance(name, str) or name not in files or name in self.record.lost:
            own = self._repository.tree(*self.record.tree_ref).files if self.record.tree_ref else {}
            raise checkouts.missing(self._experiment, self.record) or NotFoundError(
                f"Checkpoint {self.short_id} has no file {name!r}",
                hint=f"It has {', '.join(sorted(own)) or 'no files'}.",
            )
        return open_entry(self._repository.objects(all_packs(refs)), files[name])

    def checkout(self, directory: str | os.PathLike[str]) -> None:
        """Write the experiment's code and this checkpoint's files into `directory`.

        What it overwrites there is kept first, as `Project.checkout` does.
        """
        self._settle()
        trees = (self._experiment.tree_ref, self.record.tree_ref)
        target = Path(os.path.abspath(directory))
        missing = checkouts.missing(self._experiment, self.record)
        plan = checkouts.plan(self._repository, self.id, trees, target, missing=missing)
        checkouts.perform(self._repository, plan)

    def _settle(self) -> None:
        """If it was only on this machine when it was looked at, look again."""
        if self.record.saved:
            return
        if self._wait is not None:
            self._wait()
        with suppress(KeyNotFoundError):
            experiment = self._repository.experiment(self.record.experiment)
            found = [c for c in experiment.checkpoints if c.id == self.id]
            if found:
                self.record, self._experiment = found[0], experiment.at(found[0])

    def __repr__(self) -> str:
        step = "" if self.step is None else f" step={self.step}"
        return f"<Checkpoint {self.short_id}{step}{described(self.metrics)}>"

    def _repr_html_(self) -> str:
        return analysis.checkpoint_html(self.record)

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

    def __repr__(self) -> str:
        return repr(dict(self))

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._names)


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

    def __add__(self, other: Sequence[Checkpoint]) -> CheckpointList:
        if not isinstance(other, CheckpointList | list | tuple):
            return NotImplemented
        return CheckpointList([*self, *other])

    def to_dataframe(self) -> DataFrame:
        """A row for each checkpoint: id, experiment, created, step, path, superseded (by a
        later attempt of the run) and `metrics.*`.

        Raises UsageError when pandas is not installed.
        """
        return analysis.checkpoints_frame([c.record for c in self._checkpoints])

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __repr__(self) -> str:
        return listed("CheckpointList", self._checkpoints)

    def _repr_html_(self) -> str:
        return analysis.checkpoints_html([c.record for c in self._checkpoints])


def listed(name: str, items: Sequence[object]) -> str:
    """The representation of a list of that name: a line for each item, of many the first and last
    ones."""
    if not items:
        return f"<{name} of 0>"
    half = _MAX_LISTED // 2
    many = len(items) > _MAX_LISTED
    parts = [*items[:half], ..., *items[-half:]] if many else items
    lines = ["…" if part is ... else repr(part) for part in parts]
    return "\n".join([f"<{name} of {len(items):,}:", *(f"  {line}" for line in lines)]) + ">"


def described(metrics: Mapping[str, Value]) -> str:
    """Metrics in a few words of a representation."""
    shown = [f" {escape(name)}={value(v)}" for name, v in list(metrics.items())[:_MAX_DESCRIBED]]
    return "".join(shown) + (" …" if len(metrics) > _MAX_DESCRIBED else "")


_MAX_LISTED = 20
_MAX_DESCRIBED = 5


def with_id(checkpoints: Sequence[Checkpoint], id: str) -> Checkpoint:
    """The only one of these checkpoints whose id starts so. Raises NotFoundError where there is
    none, AmbiguousIdError where there are several."""
    found = [c for c in checkpoints if id and c.id.startswith(id)]
    if not found:
        raise NotFoundError(f"None of the checkpoints has an id that starts with {id!r}")
    if len(found) > 1:
        raise AmbiguousIdError(
            f"{id!r} matches {len(found)} ids; give more of its digits", [c.id for c in found]
        )
    return found[0]
