"""Many experiments at once, as a person holds them in a script or a notebook."""

from __future__ import annotations

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

    def list(self, filter: Callable[[Experiment], bool] | None = None) -> ExperimentList:
        """All experiments, the oldest first, or those for which `filter` is true."""
        return ExperimentList([e for e in self.all() if filter is None or filter(e)])
