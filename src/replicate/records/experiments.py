"""experiment.json, and what an attempt shares with it: the inputs of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replicate import checks
from replicate.model import ExperimentRecord, Origin, Value
from replicate.records.sealed import (
    decode_time,
    decode_value,
    encode_time,
    encode_value,
    malformed,
    seal_document,
    unseal,
)


def encode_experiment(record: ExperimentRecord) -> bytes:
    """experiment.json: the inputs of the run. What happens later is in the journal."""
    return seal_document(
        {
            "id": record.id,
            "created": encode_time(record.created),
            "name": record.name,
            "tags": list(record.tags),
            "notes": record.notes,
            "group": record.group,
            "params": encode_value(record.params),
            "command": record.command,
            "user": record.user,
            "host": record.host,
            "path": encode_path(record.path),
            "tree": record.tree,
            "size": record.size,
            "stored": record.stored,
            **encode_packs(record.packs),
            "environment": encode_value(record.environment),
            "packages": dict(record.packages),
            "parent": record.parent
            and {"experiment": record.parent.experiment, "checkpoint": record.parent.checkpoint},
            **({} if record.imported is None else {"imported": encode_value(record.imported)}),
        }
    )


def decode_experiment(data: bytes, name: str) -> ExperimentRecord:
    """The inverse of `encode_experiment`. Raises DamagedError, calling the document `name`."""
    value = unseal(data, name)
    try:
        return ExperimentRecord(
            id=checks.text(value["id"]),
            created=decode_time(value["created"]),
            name=checks.optional(checks.text, value.get("name")),
            tags=tuple(checks.texts(value.get("tags", []))),
            notes=checks.optional(checks.text, value.get("notes")),
            group=checks.optional(checks.text, value.get("group")),
            **decode_inputs(value),
            parent=_decode_parent(value.get("parent")),
            imported=checks.optional(_decode_members, value.get("imported")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise malformed(name, error) from error


def encode_path(path: str | tuple[str, ...] | None) -> Value:
    return list(path) if isinstance(path, tuple) else path


def decode_inputs(value: Mapping[str, Any]) -> dict[str, Any]:
    """What a run and another attempt at it begin with. Raises KeyError, TypeError, ValueError."""
    return {
        "params": _decode_members(value["params"]),
        "command": checks.text(value["command"]),
        "user": checks.text(value["user"]),
        "host": checks.text(value["host"]),
        "path": checks.path(value["path"]),
        "tree": checks.optional(checks.id, value["tree"]),
        "size": checks.optional(checks.whole, value.get("size")),
        "stored": checks.optional(checks.whole, value.get("stored")),
        "packs": decode_packs(value),
        "environment": _decode_members(value.get("environment", {})),
        "packages": checks.named_texts(value.get("packages", {})),
    }


def _decode_members(value: Any) -> dict[str, Value]:
    return checks.members(decode_value(checks.members(value)))


def encode_packs(packs: tuple[str, ...]) -> dict[str, Value]:
    return {"packs": list(packs)} if packs else {}


def decode_packs(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The packs that an event or a document names beside a tree. Raises TypeError or ValueError."""
    packs = data.get("packs")
    if not packs:
        return ()
    return tuple(checks.id(pack) for pack in checks.texts(packs))


def _decode_parent(parent: Mapping[str, Any] | None) -> Origin | None:
    if not parent:
        return None
    return Origin(
        checks.id(parent["experiment"]), checks.optional(checks.id, parent.get("checkpoint"))
    )
