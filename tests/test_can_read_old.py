"""Repositories that earlier versions have written stay readable, to the last byte.

`tests/fixtures/repository-1` was written by version 0.1.0, and is never written anew.
"""

from __future__ import annotations

import math
from pathlib import Path

from replicate.model import Status
from replicate.project import Project

FIXTURE = Path(__file__).parent / "fixtures" / "repository-1"


def test_a_repository_of_format_1_is_read_whole(tmp_path: Path) -> None:
    project = Project(repository=FIXTURE, directory=tmp_path)
    (record,) = project.records()
    assert record.damage == ()
    assert (record.name, record.tags, record.status) == ("first", ("baseline",), Status.FINISHED)
    assert record.params == {"learning_rate": 0.01, "layers": [4, 15, 3]}
    assert [c.step for c in record.checkpoints] == [0, 1, 2]
    best = record.best()
    assert best is not None and best.metrics["loss"] == 1 / 3 and math.isnan(best.metrics["odd"])
    (experiment,) = project.experiments.list()
    logged = [point for point in experiment.history() if "train/loss" in point.metrics]
    assert [point.metrics["train/loss"] for point in logged] == [1, 1 / 2, 1 / 3]
    with experiment.checkpoints[1].open() as file:
        assert file.read() == b"weights 1\n" * 1000
    assert record.tree is not None
    assert list(project.repository.tree(record.tree).files) == ["train.py"]
    assert project.verify(full=True).damage == ()
