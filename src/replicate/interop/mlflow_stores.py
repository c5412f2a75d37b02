"""Reading MLflow's stores: a directory of files, and an SQLite database. Neither is written to.

It knows where each of them keeps what; what a run means here is `mlflow`'s.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from replicate.errors import DamagedError
from replicate.interop.files import Directory, Report
from replicate.interop.importing import Target, adopted_id
from replicate.interop.mlflow import (
    TOOL,
    Metric,
    MlflowRun,
    artifact_directory,
    experiment_of,
    stored_number,
)
from replicate.maintenance import Outcome

_STATUS_NUMBERS = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
_MAGIC = b"SQLite format 3\0"


def _bring(run: MlflowRun | None, name: str, store: Path, target: Target) -> tuple[str, Outcome]:
    """Write a run into the target; None is one that was deleted in MLflow."""
    if run is None:
        return adopted_id(TOOL, name.rpartition("/")[2]), Outcome.LEFT_OUT
    found = experiment_of(run, store)
    return found.record.id, target.store(found)


class MlflowFiles:
    """The runs of an MLflow file store: `mlruns/`, a directory for each experiment."""

    kind = "MLflow file store"

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether a directory is one."""
        described = (file.parent for file in path.glob("*/meta.yaml"))
        return any((run / "meta.yaml").is_file() for d in described for run in (d, *d.glob("*/")))

    def names(self) -> Sequence[str]:
        """The directories of runs, relative to the store."""
        found = (file.parent.relative_to(self.path) for file in self.path.glob("*/*/meta.yaml"))
        return sorted(name.as_posix() for name in found if not name.parts[0].startswith("."))

    def bring(self, name: str, target: Target) -> tuple[str, Outcome]:
        """See `Store.bring`."""
        return _bring(self._read(name, target), name, self.path, target)

    def _read(self, name: str, target: Target) -> MlflowRun | None:
        directory = self.path / name
        meta = _yaml(directory / "meta.yaml")
        if meta.get("lifecycle_stage") == "deleted":
            return None
        id = str(meta.get("run_id") or meta.get("run_uuid") or "")
        if id != directory.name:
            raise DamagedError(f"{directory / 'meta.yaml'} is of another run, {id!r}")
        parent = _yaml(directory.parent / "meta.yaml")
        status = meta.get("status")
        return MlflowRun(
            id=id,
            group=_text(parent.get("name")),
            name=_text(meta.get("run_name") or meta.get("name")),
            user=_text(meta.get("user_id")),
            source=_text(meta.get("source_name")),
            status=_STATUS_NUMBERS.get(status, str(status)) if status is not None else "",
            start=_number(meta.get("start_time")),
            end=_number(meta.get("end_time")),
            params=_texts(directory / "params"),
            tags=_texts(directory / "tags"),
            metrics=partial(_metrics, directory / "metrics", _once(target.report)),
            artifacts=(*self._artifacts(directory, meta, target), *self._models(directory, id)),
        )

    def _artifacts(
        self, directory: Path, meta: Mapping[str, Any], target: Target
    ) -> Iterator[Directory]:
        own = directory / "artifacts"
        if own.is_dir():
            yield Directory(own)
        else:
            uri = _text(meta.get("artifact_uri")) or ""
            yield from _artifacts(uri, directory.name, self.path, target)

    def _models(self, directory: Path, id: str) -> Iterator[Directory]:
        """What the run has logged as models, which MLflow 3 keeps beside the runs."""
        for file in sorted(directory.parent.glob("models/*/meta.yaml")):
            meta = _yaml(file)
            if meta.get("source_run_id") == id and (file.parent / "artifacts").is_dir():
                yield Directory(file.parent / "artifacts", f"{meta['name']}/")


class MlflowDatabase:
    """The runs of an MLflow tracking server that keeps them in an SQLite database."""

    kind = "MLflow database"

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether a file is one."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return False
        rows = _rows(path, "SELECT name FROM sqlite_master WHERE name IN ('runs', 'experiments')")
        return len(rows) == 2

    def names(self) -> Sequence[str]:
        """The ids of the runs, the oldest first."""
        return [r["id"] for r in _rows(self.path, f"{_RUNS} ORDER BY start_time, run_uuid")]

    def bring(self, name: str, target: Target) -> tuple[str, Outcome]:
        """See `Store.bring`."""
        return _bring(self._read(name, target), name, self.path, target)

    def _read(self, id: str, target: Target) -> MlflowRun | None:
        (row,) = _rows(self.path, f"{_RUNS} WHERE run_uuid = ?", id)
        if row["lifecycle_stage"] == "deleted":
            return None
        return MlflowRun(
            id=id,
            group=row["experiment"],
            name=row["name"] or None,
            user=row["user_id"],
            source=row["source_name"],
            status=row["status"] or "",
            start=row["start_time"],
            end=row["end_time"],
            params=self._texts("params", id),
            tags=self._texts("tags", id),
            metrics=partial(self._metrics, id),
            artifacts=(
                *_artifacts(row["artifact_uri"] or "", id, self.path, target),
                *self._models(id),
            ),
        )

    def _texts(self, table: str, id: str) -> dict[str, str]:
        query = f"SELECT key, value FROM {table} WHERE run_uuid = ? ORDER BY key"
        return {row["key"]: row["value"] or "" for row in _rows(self.path, query, id)}

    def _metrics(self, id: str) -> Iterator[Metric]:
        query = (
            "SELECT key, value, timestamp, step, is_nan FROM metrics WHERE run_uuid = ? "
            "ORDER BY timestamp, step, key"
        )
        with _reading(self.path) as database:
            for row in database.execute(query, [id]):
                value = stored_number(row["value"], bool(row["is_nan"]))
                yield Metric(row["key"], value, row["timestamp"], row["step"])

    def _models(self, id: str) -> Iterator[Directory]:
        if not _rows(self.path, "SELECT 1 FROM sqlite_master WHERE name = 'logged_models'"):
            return  # before MLflow 3
        query = (
            "SELECT model_id, name, artifact_location FROM logged_models "
            "WHERE source_run_id = ? ORDER BY creation_timestamp_ms, model_id"
        )
        for row in _rows(self.path, query, id):
            end = (row["model_id"], "artifacts")
            found = artifact_directory(row["artifact_location"], self.path.parent, end)
            if found is not None:
                yield Directory(found, f"{row['name']}/")


_RUNS = (
    "SELECT run_uuid AS id, runs.name, source_name, user_id, status, start_time, end_time, "
    "runs.lifecycle_stage, artifact_uri, experiments.name AS experiment "
    "FROM runs LEFT JOIN experiments ON experiments.experiment_id = runs.experiment_id"
)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, to be read only. Raises DamagedError when it cannot be."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            yield database
    except sqlite3.Error as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error


def _rows(path: Path, query: str, *values: str) -> list[sqlite3.Row]:
    with _reading(path) as database:
        return database.execute(query, values).fetchall()


def _artifacts(uri: str, run: str, store: Path, target: Target) -> Iterator[Directory]:
    """The artifacts of a run. One that has none has no directory; so it is only said when there is
    no directory of its experiment's either."""
    end = (run, "artifacts")
    if found := artifact_directory(uri, store.parent, end):
        yield Directory(found)
        return
    root = uri.removesuffix("/").removesuffix("/".join(("", *end)))
    if root == uri or artifact_directory(root, store.parent, (root.rpartition("/")[2],)) is None:
        target.remark(
            f"artifacts of runs at {root} were not looked at, as that is no directory here: if "
            f"there are any, put them beside {store} and import it again"
        )


def _metrics(directory: Path, report: Report) -> Iterator[Metric]:
    """The histories below a directory, a file for each metric, read line by line."""
    for name, file in _files(directory):
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    time, value, *rest = line.split()
                    yield Metric(name, float(value), int(time), int(rest[0]) if rest else 0)
                except ValueError:
                    report(f"line {number} of {file} is damaged: one value is lost")


def _texts(directory: Path) -> dict[str, str]:
    """Names and texts of the files below a directory."""
    return {n: f.read_text(encoding="utf-8", errors="replace") for n, f in _files(directory)}


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Files by the names that they stand for; links are not followed."""
    for parent, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            file = Path(parent, name)
            if file.is_file() and not file.is_symlink():
                yield file.relative_to(directory).as_posix(), file


def _yaml(file: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DamagedError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{file} is damaged: it holds no names and values")
    return value


def _text(value: object) -> str | None:
    return str(value) if value else None


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int | float | str) and value != "" else None


def _once(report: Report) -> Report:
    """A report that says the same only once: histories are read more than once."""
    said: set[str] = set()

    def tell(message: str) -> None:
        if message not in said:
            said.add(message)
            report(message)

    return tell
