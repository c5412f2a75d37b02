"""Many experiments at once, as a person holds them in a script or a notebook."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import overload

from replicate import maintenance
from replicate.project.experiments import Experiment
from replicate.repository import Repository


class ExperimentList(Sequence[Experiment]):
    """Experiments, the oldest first. A slice is an ExperimentList too."""

    def __init__(self, experiments: Sequence[Experiment]) -> None:
        self._experiments = list(experiments)

    @overload
    def __getitem__(self, index: int) -> Experiment: ...
    @overload
    def __getitem__(self, index: slice) -> ExperimentList: ...
    def __getitem__(self, index: int | slice) -> Experiment | ExperimentList:
        found = self._experiments[index]
        return ExperimentList(found) if isinstance(found, list) else found

    def delete(self, *, force: bool = False) -> None:
        """Delete all of these, and free what nothing else needs; see `Experiment.delete`."""
        for experiment in self._experiments:
            experiment.stop()
        by_repository: dict[Repository, list[str]] = {}
        for experiment in self._experiments:
            by_repository.setdefault(experiment._repository, []).append(experiment.id)
        for repository, ids in by_repository.items():
            maintenance.delete_experiments(repository, ids, force=force)

    def __len__(self) -> int:
        return len(self._experiments)

    def __repr__(self) -> str:
        return f"<ExperimentList of {len(self)}>"


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

    def list(
        self, filter: Callable[[Experiment], bool] | str | Sequence[str] | None = None
    ) -> ExperimentList:
        """All experiments, the oldest first, or those for which `filter` is true.

        `filter` is a function of an experiment, or what `replicate ls --filter` takes, such as
        "val/loss < 0.2"; of a list of texts all must hold. Raises UsageError for a text that is no
        filter. An experiment for which a function raises is left out, with a warning; when it
        raises for every one, so does this.
        """
        every = self.all()
        if filter is None:
            return ExperimentList(every)
        if callable(filter):
            return ExperimentList(_passing(every, filter))
        from replicate.query import parse_filter, select

        texts = [filter] if isinstance(filter, str) else filter
        chosen = {r.id for r in select([e.record for e in every], [*map(parse_filter, texts)])}
        return ExperimentList([e for e in every if e.id in chosen])


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
            stacklevel=3,
        )
    return found
