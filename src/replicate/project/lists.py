"""Many experiments at once, as a person holds them in a script or a notebook."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, overload

from replicate import analysis, maintenance
from replicate.errors import NotFoundError, UsageError
from replicate.model import ExperimentRecord, best
from replicate.project.checkpoints import CheckpointList, listed
from replicate.project.experiments import Experiment
from replicate.project.pending import require_saved
from replicate.repository import Repository

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

#: What chooses experiments: a function of one, or what `replicate ls --filter` takes, once or
#: several times.
Filter = Callable[[Experiment], bool] | str | Sequence[str]


class ExperimentList(Sequence[Experiment]):
    """Experiments, the oldest first unless sorted. A slice, a choice and a sum are ExperimentLists
    too; none of them changes the list that it was made from."""

    def __init__(self, experiments: Iterable[Experiment]) -> None:
        self._experiments = list(experiments)

    @overload
    def __getitem__(self, index: int) -> Experiment: ...
    @overload
    def __getitem__(self, index: slice) -> ExperimentList: ...
    def __getitem__(self, index: int | slice) -> Experiment | ExperimentList:
        found = self._experiments[index]
        return ExperimentList(found) if isinstance(found, list) else found

    def __add__(self, other: Sequence[Experiment]) -> ExperimentList:
        if not isinstance(other, ExperimentList | list | tuple):
            return NotImplemented
        return ExperimentList([*self, *other])

    def __len__(self) -> int:
        return len(self._experiments)

    def __repr__(self) -> str:
        return listed("ExperimentList", self._experiments)

    def _repr_html_(self) -> str:
        return analysis.experiments_html(self._records())

    # ------------------------------------------------------------ choosing

    def filter(self, filter: Filter) -> ExperimentList:
        """Those for which `filter` is true; see `Experiments.list`."""
        if callable(filter):
            return ExperimentList(_passing(self._experiments, filter))
        from replicate.query import parse_filter, select

        texts = [filter] if isinstance(filter, str) else filter
        chosen = {r.id for r in select(self._records(), [*map(parse_filter, texts)])}
        return ExperimentList(e for e in self if e.id in chosen)

    def sort(self, key: str | Callable[[Experiment], Any], reverse: bool = False) -> ExperimentList:
        """These experiments in another order, equal ones as they were.

        `key` is a function of an experiment, or the name of a field, param or metric, as for
        `replicate ls --sort`: then those without a value come last, whatever the direction. Raises
        NotFoundError for a name that none of them has.
        """
        if callable(key):
            return ExperimentList(sorted(self, key=key, reverse=reverse))
        from replicate.query import Sort, arrange, check_names

        records = self._records()
        try:
            check_names([key], records)
        except NotFoundError as error:
            name, _, direction = key.rpartition("-")
            if direction in ("asc", "desc"):
                error.hint = f'In Python that is sort("{name}", reverse={direction == "desc"}).'
            raise
        ordered = arrange(records, Sort(key, reverse))
        by_id = {e.id: e for e in self}
        return ExperimentList(by_id[record.id] for record in ordered)

    def best(self) -> Experiment | None:
        """The experiment with the best checkpoint, the latest of equals; None when no checkpoint
        is best. Raises UsageError when they have different primary metrics: 0.9 accuracy is not
        better than 0.1 loss."""
        ranked = [(e, found) for e in self if (found := e.best())]
        primary = {b.primary_metric for _, b in ranked}
        if len(primary) > 1:
            named = sorted(f"{p.name} ({p.goal})" for p in primary if p)
            raise UsageError(
                f"These experiments have different primary metrics: {', '.join(named)}",
                hint="Choose those with one of them first, with filter().",
            )
        first = best([b.record for _, b in ranked])
        return next((e for e, b in ranked if first and b.id == first.id), None)

    def latest(self) -> Experiment | None:
        """The experiment that was started last, or None when there is none."""
        return max(self, key=lambda e: e.created, default=None)

    @property
    def checkpoints(self) -> CheckpointList:
        """The checkpoints of all of them, those of one experiment after those of the other."""
        return CheckpointList([c for e in self for c in e.checkpoints])

    # ------------------------------------------------------------ looking closer

    def runs(self) -> list[analysis.Run]:
        """Each of them with its history, as charts are made of."""
        return [e.run() for e in self]

    def to_dataframe(self) -> DataFrame:
        """A row for each experiment: what it is, `params.*`, and `metrics.*` of its best
        checkpoint, or of its latest where none is best.

        Raises UsageError when pandas is not installed.
        """
        return analysis.runs_frame(self._records())

    def history(self, metric: str | None = None) -> DataFrame:
        """A row for each number that they have recorded: experiment, time, step, metric, value.

        With `metric` only that one. Raises NotFoundError for one that none of them has ever had,
        once they have any, and UsageError when pandas is not installed.
        """
        runs = self.runs()
        if metric is not None:
            analysis.check_metric(runs, metric)
        return analysis.history_frame(runs, metric)

    def plot(
        self,
        metric: str | None = None,
        *,
        x: str = "step",
        logx: bool = False,
        logy: bool = False,
        smoothing: float = 0.0,
        color: str | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw how a metric went in each of them, by default the primary one.

        `x` is "step", "time" (since the start of each run) or "date". `smoothing`, from 0 to less
        than 1, draws a moving average above the recorded values. More than ten experiments are
        told apart by a colour scale: of `color`, a param or metric, or of what suits. `ax` is
        where to draw, by default a new figure. Raises NotFoundError for a name that none of them
        has, UsageError when matplotlib is not installed.
        """
        return analysis.plot(
            self.runs(),
            metric,
            x=x,
            logx=logx,
            logy=logy,
            smoothing=smoothing,
            color=color,
            ax=ax,
        )

    def scatter(
        self,
        param: str,
        metric: str | None = None,
        *,
        logx: bool | None = None,
        logy: bool | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw a metric over a param, a dot for each experiment: of its best checkpoint, else of
        its latest, else what it has logged last. Axes are logarithmic where that suits the numbers,
        unless told otherwise. Raises like `plot`."""
        return analysis.scatter(self.runs(), param, metric, logx=logx, logy=logy, ax=ax)

    def parallel(
        self,
        params: Sequence[str] | None = None,
        metric: str | None = None,
        *,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw params and a metric as upright axes side by side, and each experiment as a line
        through them. `params` are by default those that differ. Raises like `plot`."""
        return analysis.parallel(self.runs(), params, metric, ax=ax)

    # ------------------------------------------------------------ doing

    def refresh(self) -> Self:
        """Read all of them again, to see what has happened since."""
        for experiment in self:
            experiment.refresh()
        return self

    def delete(self, *, force: bool = False) -> None:
        """Delete all of these, and free what nothing else needs; see `Experiment.delete`."""
        for experiment in self._experiments:
            experiment.stop()
        by_repository: dict[Repository, list[str]] = {}
        for experiment in self._experiments:
            by_repository.setdefault(experiment._repository, []).append(experiment.id)
        for repository, ids in by_repository.items():
            require_saved(repository, ids)
            maintenance.delete_experiments(repository, ids, force=force)

    def _records(self) -> list[ExperimentRecord]:
        return [e._current() for e in self]


class Experiments:
    """`replicate.experiments`: the runs that a project has recorded."""

    def __init__(
        self, all: Callable[[], list[Experiment]], find: Callable[[str], Experiment]
    ) -> None:
        self.all = all
        self._find = find

    def get(self, id: str) -> Experiment:
        """The experiment whose id, or one of whose checkpoints' ids, starts with `id`.

        Raises NotFoundError when there is none, AmbiguousIdError when there are several.
        """
        return self._find(id)

    def list(self, filter: Filter | None = None) -> ExperimentList:
        """All experiments, the oldest first, or those for which `filter` is true.

        `filter` is a function of an experiment, or what `replicate ls --filter` takes, such as
        "val/loss < 0.2"; of a list of texts all must hold. Raises UsageError for a text that is no
        filter. An experiment for which a function raises is left out, with a warning; when it
        raises for every one, so does this.
        """
        every = ExperimentList(self.all())
        return every if filter is None else every.filter(filter)


def _passing(
    experiments: Sequence[Experiment], filter: Callable[[Experiment], bool]
) -> list[Experiment]:
    """Those for which the function is true. One that only some runs have an answer for, such as a
    best checkpoint's metric, still finds the others."""
    found: list[Experiment] = []
    failed: list[tuple[Experiment, Exception]] = []
    for experiment in experiments:
        try:
            if filter(experiment):
                found.append(experiment)
        except Exception as raised:
            failed.append((experiment, raised))
    if failed:
        experiment, error = failed[0]
        if len(failed) == len(experiments):
            raise error
        warnings.warn(
            f"left out {len(failed)} of {len(experiments)} experiments, for which the filter "
            f"raised; the first is {experiment.short_id} with {error!r}",
            stacklevel=4,
        )
    return found
