"""How the command line writes values: as `replicate.text` does, and names and notes of its own.

Pure functions from values to text. It knows nothing of terminals, tables or commands.
"""

from __future__ import annotations

from collections.abc import Sequence

from replicate.model import CheckpointRecord, ExperimentRecord, Status, short
from replicate.text import ago, date, duration, escape, escape_json, size, step, value, values_apart

__all__ = [
    "STATUS_STYLES",
    "ago",
    "checkpoint_name",
    "count",
    "date",
    "duration",
    "escape",
    "escape_json",
    "heading",
    "lost_paths",
    "picked_note",
    "shortened_list",
    "size",
    "status",
    "step",
    "unseen_note",
    "value",
    "values_apart",
]

#: How each status looks on a terminal, where all of the run is saved.
_STYLES = {
    Status.RUNNING.value: "green",
    Status.FAILED.value: "red",
    Status.KILLED.value: "red",
    Status.LOST.value: "yellow",
}
#: So many paths are named that could not be saved.
_MAX_LOST = 5
#: What is added to the status of a run of which not all is saved yet.
_LOCAL = ", local"
#: The same, and how those look that are only on this machine.
STATUS_STYLES = _STYLES | {status + _LOCAL: style for status, style in _STYLES.items()}


def status(experiment: ExperimentRecord) -> str:
    """The status, and whether parts of the run are only on this machine."""
    return experiment.status.value + ("" if experiment.saved else _LOCAL)


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened_list(names: Sequence[str], limit: int) -> str:
    """The names in a row, of which no more than the limit are spelt out."""
    shown = ", ".join(names[:limit])
    left = len(names) - limit
    return f"{shown} and {left:,} more" if left > 0 else shown


def checkpoint_name(checkpoint: CheckpointRecord) -> str:
    """A checkpoint as people know it: 8ee945b (step 99)."""
    named = short(checkpoint.id)
    return named if checkpoint.step is None else f"{named} (step {step(checkpoint.step)})"


def unseen_note(experiment_id: str) -> str:
    """That there may be more of an experiment than is shown."""
    return (
        f"{short(experiment_id)}: what is saved already is not shown, as REPLICATE_MODE is offline"
    )


def picked_note(
    experiment_id: str,
    checkpoint: CheckpointRecord | None,
    how: str,
    *,
    passed_over: CheckpointRecord | None = None,
) -> str | None:
    """Which checkpoint stands for the experiment that was named; None when it was named itself.
    `passed_over` is the one before it of which not all files can be had."""
    if how == "named":
        return None
    if checkpoint is None:
        return f"{short(experiment_id)}: it has no checkpoints, only its code and params"
    named = checkpoint_name(checkpoint)
    if passed_over is not None:
        why = f"those of {short(passed_over.id)} were let go, as `keep` says"
        if passed_over.lost:
            why = (
                f"{short(passed_over.id)} lacks {lost_paths(passed_over)}, which could not be saved"
            )
        return f"{short(experiment_id)}: using {named}, the {how} checkpoint that has files: {why}"
    return f"{short(experiment_id)}: using its {how} checkpoint {named}"


def lost_paths(checkpoint: CheckpointRecord) -> str:
    """The paths of a checkpoint that could not be saved."""
    return shortened_list([escape(path) for path in checkpoint.lost], _MAX_LOST)


def heading(name: str) -> str:
    """The heading of a column for a param or metric."""
    return escape(name.upper())


def wait(seconds: float) -> str:
    """A time to wait, in round numbers: 60 minutes, 24 hours."""
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"
