"""What a run has logged, as a notebook has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from replicate import analysis
from replicate.model import ExperimentRecord, Point

if TYPE_CHECKING:
    from pandas import DataFrame


class History(list[Point]):
    """The points of an experiment, the first recorded first."""

    def __init__(self, points: Iterable[Point], experiment: ExperimentRecord) -> None:
        super().__init__(points)
        self._experiment = experiment

    def to_dataframe(self) -> DataFrame:
        """A row for each number: experiment, time, step, metric, value.

        Raises UsageError when pandas is not installed.
        """
        return analysis.history_frame([analysis.Run(self._experiment, self)])
