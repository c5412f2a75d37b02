"""The JSON that commands print with --json: others build on it, so it is only ever added to.

Times are RFC 3339 in UTC. A number that JSON cannot hold is the string "NaN", "Infinity" or
"-Infinity". What is not known is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from replicate.diff import Change, Comparison, FileChange, FileSide, Missing, Side, unified
from replicate.model import Attempt, CheckpointRecord, ExperimentRecord, Point, Stop, Value

JsonObject = dict[str, Any]


def value_json(value: Value) -> Value:
    """A param or metric as JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): value_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [value_json(v) for v in value]
    return value


def time_json(when: datetime) -> str:
    """A time in UTC: 2020-09-02T04:42:22.123456Z."""
    return when.astimezone(UTC).isoformat().replace("+00:00", "Z")


def experiment_json(experiment: ExperimentRecord) -> JsonObject:
    """An experiment with its best and latest checkpoint, but without the others."""
    best, latest = experiment.best(), experiment.latest()
    length, parent = experiment.duration, experiment.parent
    return {
        "id": experiment.id,
        "created": time_json(experiment.created),
        "status": experiment.status.value,
        "saved": experiment.saved,
        "user": experiment.user,
        "host": experiment.host,
        "command": experiment.command,
        "path": _path_json(experiment.path),
        "name": experiment.name,
        "tags": list(experiment.tags),
        "notes": experiment.notes,
        "group": experiment.group,
        "params": value_json(experiment.params),
        "parent": parent and {"experiment": parent.experiment, "checkpoint": parent.checkpoint},
        "attempt": experiment.attempt,
        "num_checkpoints": experiment.num_checkpoints,
        "num_superseded": num_superseded(experiment),
        "latest_checkpoint": checkpoint_json(latest) if latest else None,
        "best_checkpoint": checkpoint_json(best) if best else None,
        "stop": _stop_json(experiment.stop) if experiment.stop else None,
        "duration": length.total_seconds() if length is not None else None,
        "environment": value_json(experiment.environment),
        "packages": dict(experiment.packages),
        "size": experiment.size,
        "stored": experiment.stored,
        "imported": value_json(experiment.imported),
        "problems": list(experiment.problems),
        "damage": list(experiment.damage),
    }


def num_superseded(experiment: ExperimentRecord) -> int:
    """How many checkpoints a later attempt has superseded. None of them is loaded for it."""
    return len(experiment.checkpoints) - experiment.num_checkpoints


def experiment_with_checkpoints_json(
    experiment: ExperimentRecord, children: Sequence[ExperimentRecord] = ()
) -> JsonObject:
    """An experiment with all of its checkpoints, oldest first, its attempts if it was resumed, the
    edits of its labels, and the experiments that were forked from it."""
    return {
        **experiment_json(experiment),
        "checkpoints": [checkpoint_json(checkpoint) for checkpoint in experiment.checkpoints],
        "attempts": [_attempt_json(attempt) for attempt in experiment.attempts],
        "edits": [
            {
                "time": time_json(edit.time),
                "author": edit.author,
                "kind": edit.kind,
                **value_json(edit.change),
            }
            for edit in experiment.edits
        ],
        "children": [
            {"experiment": child.id, "checkpoint": child.parent and child.parent.checkpoint}
            for child in children
        ],
    }


def _attempt_json(attempt: Attempt) -> JsonObject:
    return {
        "number": attempt.number,
        "created": time_json(attempt.created),
        "from_step": value_json(attempt.from_step),
        "from_checkpoint": attempt.restored.checkpoint if attempt.restored else None,
        "params": value_json(attempt.params),
        "user": attempt.user,
        "host": attempt.host,
        "command": attempt.command,
        "path": _path_json(attempt.path),
        "environment": value_json(attempt.environment),
        "packages": dict(attempt.packages),
        "stop": _stop_json(attempt.stop) if attempt.stop else None,
    }


def checkpoint_json(checkpoint: CheckpointRecord) -> JsonObject:
    """A checkpoint; its experiment is not part of it."""
    primary = checkpoint.primary_metric
    return {
        "id": checkpoint.id,
        "created": time_json(checkpoint.created),
        "step": value_json(checkpoint.step),
        "path": _path_json(checkpoint.path),
        "metrics": value_json(checkpoint.metrics),
        "primary_metric": {"name": primary.name, "goal": primary.goal} if primary else None,
        "size": checkpoint.size,
        "stored": checkpoint.stored,
        "attempt": checkpoint.attempt,
        "superseded": checkpoint.superseded,
        "dropped": checkpoint.dropped,
        "lost": list(checkpoint.lost),
        "saved": checkpoint.saved,
    }


def point_json(point: Point) -> JsonObject:
    """Metrics at a moment of a run."""
    return {
        "time": time_json(point.time),
        "step": value_json(point.step),
        "metrics": value_json(point.metrics),
    }


def checkpoint_with_experiment_json(
    experiment: ExperimentRecord, checkpoint: CheckpointRecord
) -> JsonObject:
    """A checkpoint with the experiment that it is part of."""
    return {**checkpoint_json(checkpoint), "experiment": experiment_json(experiment)}


def comparison_json(comparison: Comparison) -> JsonObject:
    """What differs. A side that lacks a value has no member for it: null is a value."""
    return {
        "left": _side_json(comparison.left),
        "right": _side_json(comparison.right),
        "params": _changes_json(comparison.params),
        "metrics": _changes_json(comparison.metrics),
        "logged": _changes_json(comparison.logged),
        "packages": _changes_json(comparison.packages),
        "files_compared": comparison.has_files,
        "files": [_file_change_json(change) for change in comparison.outputs],
        "code": [
            {**_file_change_json(change), "diff": "\n".join(unified(change)) + "\n"}
            for change in comparison.code
        ],
    }


def _stop_json(stop: Stop) -> JsonObject:
    exception = stop.exception
    return {
        "time": time_json(stop.time),
        "exception": exception
        and {
            "type": exception.type,
            "message": exception.message,
            "traceback": exception.traceback,
        },
        "signal": stop.signal,
        "exit_code": stop.exit_code,
    }


def _path_json(path: str | tuple[str, ...] | None) -> str | list[str] | None:
    return list(path) if isinstance(path, tuple) else path


def _side_json(side: Side) -> JsonObject:
    checkpoint = side.checkpoint
    return {
        "experiment": side.experiment.id,
        "checkpoint": checkpoint.id if checkpoint else None,
        "step": value_json(checkpoint.step) if checkpoint else None,
    }


def _changes_json(changes: list[Change]) -> JsonObject:
    return {
        change.name: {
            side: value_json(value)
            for side, value in (("left", change.left), ("right", change.right))
            if not isinstance(value, Missing)
        }
        for change in changes
    }


def _file_change_json(change: FileChange) -> JsonObject:
    return {
        "path": change.path,
        "kind": change.kind,
        "left": _file_json(change.left),
        "right": _file_json(change.right),
    }


def _file_json(side: FileSide | None) -> JsonObject | None:
    if side is None:
        return None
    return {"hash": side.hash, "size": side.size, "mode": f"{side.mode:04o}"}
