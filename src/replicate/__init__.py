"""Version control for machine learning. `replicate.init()` and `experiment.checkpoint()` keep every
run; `replicate.experiments` and the `replicate` command get it back."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replicate.api import Project, experiments, init
    from replicate.errors import ReplicateError
    from replicate.project import (
        Checkpoint,
        CheckpointList,
        Experiment,
        ExperimentList,
    )

__version__ = "0.1.0"
__all__ = [
    "Checkpoint",
    "CheckpointList",
    "Experiment",
    "ExperimentList",
    "Project",
    "ReplicateError",
    "experiments",
    "init",
    "load",
]

_HOMES = {
    "experiments": "replicate.api",
    "init": "replicate.api",
    "load": "replicate.api",
    "ReplicateError": "replicate.errors",
    "Checkpoint": "replicate.project",
    "CheckpointList": "replicate.project",
    "Experiment": "replicate.project",
    "ExperimentList": "replicate.project",
    "Project": "replicate.api",
}


def __getattr__(name: str) -> Any:
    """Import what a name needs when it is first used (PEP 562): the command line, which imports
    this package for each `--help`, needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'replicate' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
