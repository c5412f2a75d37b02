"""What experiments have in common and how they differ: as plain numbers, data frames, figures and
HTML. All of it is made of the values of `model`; nothing here knows where they are kept, and pandas
and matplotlib are imported only by what needs them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replicate.analysis.frames import checkpoints_frame, history_frame, runs_frame
    from replicate.analysis.html import (
        checkpoint_html,
        checkpoints_html,
        experiment_html,
        experiments_html,
    )
    from replicate.analysis.loading import read
    from replicate.analysis.plots import parallel, plot, scatter
    from replicate.analysis.series import Run, check_metric

__all__ = [
    "Run",
    "check_metric",
    "checkpoint_html",
    "checkpoints_frame",
    "checkpoints_html",
    "experiment_html",
    "experiments_html",
    "history_frame",
    "parallel",
    "plot",
    "read",
    "runs_frame",
    "scatter",
]

_HOMES = {
    "frames": ("checkpoints_frame", "history_frame", "runs_frame"),
    "html": ("checkpoint_html", "checkpoints_html", "experiment_html", "experiments_html"),
    "loading": ("read",),
    "plots": ("parallel", "plot", "scatter"),
    "series": ("Run", "check_metric"),
}


def __getattr__(name: str) -> Any:
    """Import what a name needs when it is first used (PEP 562): a training script, which imports
    this package with `project`, needs none of it."""
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
