"""A Keepsake repository, of the last version (0.4) or one before it.

It knows Keepsake's layout and JSON. Metadata of checkpoints are in that of their experiment; before
October 2020 each had a file of its own. Files are packed archives; before that, plain directories.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from replicate.errors import DamagedError
from replicate.interop.files import Archive, Directory, Files
from replicate.interop.importing import Run, Target, Version, adopted_id
from replicate.maintenance import Outcome
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    PrimaryMetric,
    Status,
    Stop,
    Value,
    short,
)

_FLOATS = {"[NaN]": math.nan, "[+Infinity]": math.inf, "[-Infinity]": -math.inf}
#: What can be an id, and so the name of a file.
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*")
_TOOL = "keepsake"


class KeepsakeRepository:
    """The experiments of a Keepsake repository on a disk."""

    kind = "Keepsake repository"

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether a directory is one."""
        return (path / "metadata" / "experiments").is_dir()

    def names(self) -> Sequence[str]:
        """The files with the metadata of experiments, relative to the repository."""
        found = (self.path / "metadata" / "experiments").glob("*.json")
        return sorted(file.relative_to(self.path).as_posix() for file in found)

    def bring(self, name: str, target: Target) -> tuple[str, Outcome]:
        """See `Store.bring`."""
        file = self.path / name
        value = _read(file)
        try:
            run = self._run(value, target)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"{file} does not describe an experiment ({error!r})") from error
        return run.record.id, target.store(run)

    def _run(self, value: Mapping[str, Any], target: Target) -> Run:
        original, id = _ids(value)
        python = value.get("python_version")
        record = ExperimentRecord(
            id=id,
            created=_time(value["created"]),
            params=_decoded(dict(value.get("params") or {})),
            user=value.get("user") or "",
            host=value.get("host") or "",
            command=value.get("command") or "",
            path=value.get("path") or None,
            tree=None,
            environment={"python": {"version": python}} if python else {},
            packages=dict(value.get("python_packages") or {}),
            imported={
                "from": _TOOL,
                "version": value.get("keepsake_version"),
                "id": original,
                "source": str(self.path),
            },
        )
        code = self._files("experiments", original, target) if record.path else None
        versions = self._versions(value, record, target)
        last = max((v.record.created for v in versions), default=record.created)
        stop = Stop(last, Status.FINISHED) if self._has_stopped(value) else None
        return Run(record=record, code=code, versions=versions, stop=stop)

    def _has_stopped(self, value: Mapping[str, Any]) -> bool:
        """Whether the run has called `stop()`, which is what removes its heartbeat. When that was
        is not kept. The versions before there was a "keepsake_version" had no heartbeats."""
        beat = self.path / "metadata" / "heartbeats" / f"{value['id']}.json"
        return "keepsake_version" in value and not beat.exists()

    def _versions(
        self, value: Mapping[str, Any], experiment: ExperimentRecord, target: Target
    ) -> list[Version]:
        found = value.get("checkpoints")
        described = self._separate.get(value["id"], []) if found is None else found
        versions = []
        for number, item in enumerate(described):
            try:
                versions.append(self._version(item, experiment.id, target))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                of = f"checkpoint {number} of experiment {short(experiment.id)}"
                target.report(f"{of} was not imported: it is malformed ({error!r})")
        return sorted(versions, key=lambda v: v.record.created)

    def _version(self, value: Mapping[str, Any], experiment: str, target: Target) -> Version:
        original, id = _ids(value)
        primary = value.get("primary_metric")
        record = CheckpointRecord(
            id=id,
            experiment=experiment,
            created=_time(value["created"]),
            step=value.get("step"),
            path=value.get("path") or None,
            tree=None,
            metrics=_decoded(dict(value.get("metrics") or {})),
            primary_metric=PrimaryMetric(primary["name"], primary["goal"]) if primary else None,
        )
        files = self._files("checkpoints", original, target) if record.path else None
        return Version(record, files)

    def _files(self, kind: str, id: str, target: Target) -> Files:
        plain = self.path / kind / id
        if plain.is_dir() and not plain.is_symlink():
            return Directory(plain)
        return Archive(self.path / kind / f"{id}.tar.gz", target.scratch)

    @cached_property
    def _separate(self) -> dict[str, list[dict[str, Any]]]:
        """Checkpoints that have metadata of their own, by the id of their experiment."""
        found: dict[str, list[dict[str, Any]]] = {}
        for file in sorted((self.path / "metadata" / "checkpoints").glob("*.json")):
            value = _read(file)
            found.setdefault(str(value.get("experiment_id")), []).append(value)
        return found


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{file} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{file} is damaged: it is not a JSON object")
    return value


def _ids(value: Mapping[str, Any]) -> tuple[str, str]:
    """The id there and the id here. Raises ValueError when it could name another file."""
    id = value["id"]
    if not _ID.fullmatch(id):
        raise ValueError(f"{id!r} is no id")
    return id, adopted_id(_TOOL, id)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _decoded(value: Value) -> Value:
    """A value with the texts by which Keepsake writes what JSON lacks."""
    if isinstance(value, dict):
        return {str(name): _decoded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return _FLOATS.get(value, value) if isinstance(value, str) else value
