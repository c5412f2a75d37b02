"""Runs of MLflow as experiments: what each of MLflow's words means here.

It knows what a run is, whichever store it was read from; `mlflow_stores` reads the stores. The
history of the metrics becomes points; their last values, and the artifacts, become a checkpoint.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from blake3 import blake3

from replicate.errors import DamagedError
from replicate.interop.files import Directory, Several
from replicate.interop.importing import Run, Version, adopted_id
from replicate.model import CheckpointRecord, ExperimentRecord, Point, Status, Stop, Value
from replicate.records import dump, encode_value

TOOL = "mlflow"
_STATUS = {"FINISHED": Status.FINISHED, "FAILED": Status.FAILED, "KILLED": Status.KILLED}
#: Where a server keeps artifacts, beside its database, unless it was told otherwise.
_USUAL = ("", "mlruns", "mlartifacts")


@dataclass(frozen=True, slots=True)
class Metric:
    """One value of a metric's history; `time` in milliseconds since the epoch."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowRun:
    """A run as MLflow keeps it. Times are in milliseconds since the epoch.

    `artifacts` are places and what stands before the paths of the files in them; `metrics` yields
    the history of all metrics anew at each call.
    """

    id: str
    group: str | None
    name: str | None
    user: str | None
    source: str | None
    status: str
    start: int | None
    end: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Callable[[], Iterator[Metric]]
    artifacts: tuple[Directory, ...] = field(default=())


def experiment_of(run: MlflowRun, store: Path) -> Run:
    """A run as an experiment. Raises DamagedError when it has no start."""
    if run.start is None:
        raise DamagedError(f"run {run.id} does not say when it began")
    tags = run.tags
    commit = tags.get("mlflow.source.git.commit")
    git = {
        "commit": commit,
        "branch": tags.get("mlflow.source.git.branch"),
        "dirty": None,
        "remote": tags.get("mlflow.source.git.repoURL"),
    }
    own = {name: text for name, text in tags.items() if name.startswith("mlflow.")}
    record = ExperimentRecord(
        id=adopted_id(TOOL, run.id),
        created=_time(run.start),
        name=run.name or tags.get("mlflow.runName") or None,
        group=run.group,
        notes=tags.get("mlflow.note.content") or None,
        tags=tuple(f"{name}={text}" for name, text in sorted(tags.items()) if name not in own),
        params={name: typed(text) for name, text in run.params.items()},
        user=tags.get("mlflow.user") or run.user or "",
        host="",
        command=tags.get("mlflow.source.name") or run.source or "",
        path=None,
        tree=None,
        environment={"git": git} if commit else {},
        imported={"from": TOOL, "id": run.id, "source": str(store), "tags": own},
    )
    version = _outcome(run, record)
    status = _STATUS.get(run.status)
    return Run(
        record=record,
        versions=[version] if version else [],
        points=lambda: _points(run.metrics()),
        stop=Stop(_time(run.end or run.start), status) if status else None,
    )


def _outcome(run: MlflowRun, record: ExperimentRecord) -> Version | None:
    """The last values of the metrics, and the artifacts. What it contains makes its id, so that a
    run which has gone on since it was imported has another one."""
    last: dict[str, Metric] = {}
    for metric in run.metrics():
        before = last.get(metric.name)
        if before is None or (before.step, before.time) <= (metric.step, metric.time):
            last[metric.name] = metric
    listing = [entry for place in run.artifacts for entry in place.listing()]
    if not last and not listing:
        return None
    end = run.end or max((m.time for m in last.values()), default=run.start)
    metrics = {name: metric.value for name, metric in last.items()}
    content = dump({"end": end, "metrics": encode_value(metrics), "files": listing})
    return Version(
        CheckpointRecord(
            id=blake3(f"{record.id}\0".encode() + content).hexdigest(),
            experiment=record.id,
            created=_time(end or 0),
            step=max((metric.step for metric in last.values()), default=None),
            path=_path({path.partition("/")[0] for path, _ in listing}),
            tree=None,
            metrics=metrics,
        ),
        Several(run.artifacts) if listing else None,
    )


def _path(names: Iterable[str]) -> str | tuple[str, ...] | None:
    every = sorted(names)
    return every[0] if len(every) == 1 else tuple(every) or None


def _points(metrics: Iterable[Metric]) -> Iterator[Point]:
    return (Point(_time(m.time), m.step, {m.name: m.value}) for m in metrics)


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def typed(text: str) -> Value:
    """The value that MLflow has made this text of: a number, a truth value or None if Python
    writes that value as exactly this text, else the text. So nothing is lost."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if str(value) == text:
            return value
    return text


def stored_number(value: float, is_nan: bool) -> float:
    """A metric's value from a database, which holds neither NaN nor infinities: MLflow writes the
    largest float for an infinity."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) >= 1.7976931348623157e308 else value


def artifact_directory(uri: str, store: Path, end: tuple[str, ...]) -> Path | None:
    """The directory on this disk that an artifact URI means, or None.

    Where the store was moved it is looked for beside the store, under ever less of its path. The
    path has to end with `end`, so that no store can pass off other directories as its own.
    """
    split = urlsplit(uri)
    parts = tuple(part for part in unquote(split.path).split("/") if part not in ("", "."))
    if parts[-len(end) :] != end or ".." in parts:
        return None
    is_here = split.scheme == "file" or uri.startswith("/")
    tails = [parts[start:] for start in range(len(parts) - len(end) + 1)]
    places = [Path("/", *parts)] if is_here else []
    places += [store.joinpath(usual, *tail) for usual in _USUAL for tail in tails]
    return next((place for place in places if os.path.isdir(place)), None)
