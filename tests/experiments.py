"""Experiments of which a test needs no more than what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from blake3 import blake3

from replicate.backends.memory import MemoryBackend
from replicate.model import CheckpointRecord, ExperimentRecord, PrimaryMetric, Status, Stop
from replicate.project import Experiment, ExperimentList
from replicate.repository import Repository

START = datetime(2024, 3, 1, 12, 30, tzinfo=UTC)
LOSS = PrimaryMetric("loss", "minimize")


def id_of(text: str) -> str:
    """An id, the same for the same text."""
    return blake3(text.encode()).hexdigest()


def record(
    number: int,
    params: Mapping[str, Any] | None = None,
    metrics: Iterable[Mapping[str, Any]] = (),
    primary: PrimaryMetric | None = LOSS,
    **fields: Any,
) -> ExperimentRecord:
    """An experiment that started `number` hours after START and made a checkpoint a minute."""
    id = id_of(f"experiment {number}")
    created = START + timedelta(hours=number)
    checkpoints = tuple(
        CheckpointRecord(
            id=id_of(f"checkpoint {number} {step}"),
            experiment=id,
            created=created + timedelta(minutes=step + 1),
            step=step,
            path=None,
            tree=None,
            metrics=values,
            primary_metric=primary,
        )
        for step, values in enumerate(metrics)
    )
    end = created + timedelta(minutes=len(checkpoints) + 1)
    common: dict[str, Any] = {
        "user": "ada",
        "host": "engine",
        "command": "python train.py",
        "path": None,
        "tree": None,
        "stop": Stop(end, Status.FINISHED),
    }
    return ExperimentRecord(
        id=id, created=created, params=params or {}, checkpoints=checkpoints, **common | fields
    )


def listed(*records: ExperimentRecord) -> ExperimentList:
    """These experiments, as a script or a notebook has them."""
    repository = Repository(MemoryBackend())
    return ExperimentList(Experiment(r, repository) for r in records)


def losses(*values: float) -> list[dict[str, float]]:
    """The metrics of checkpoints that had these losses."""
    return [{"loss": value} for value in values]
