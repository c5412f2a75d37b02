"""Model values to and from the JSON of the repository's format: the one place that knows the names
of fields on disk. It reads and writes bytes that others fetch and store.

Two forms carry a checksum, because a flipped bit in a number is still valid JSON: *documents*
(experiment.json, heartbeat.json, checkout.json) and *events* (one line of a journal). The last
member of each is `"check"`: the first 16 hex digits of the BLAKE3 hash of all bytes that stand
before the comma in front of it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from blake3 import blake3

from replicate import checks
from replicate.errors import DamagedError
from replicate.model import (
    Attempt,
    CheckpointRecord,
    ExceptionInfo,
    ExperimentRecord,
    Origin,
    PrimaryMetric,
    Restored,
    Status,
    Stop,
    Value,
)

_CHECK = re.compile(rb',\s*"check":\s*"([0-9a-f]{16})"\s*\}\s*\Z')
_SCALARS = frozenset({str, int, float, bool, type(None)})
# What stands in front of a checksum, and behind it, in an event as this library writes it.
_BEFORE_CHECK, _AFTER_CHECK, _CHECK_SIZE = b',"check":"', b'"}', 16
_TAIL_SIZE = len(_BEFORE_CHECK) + _CHECK_SIZE + len(_AFTER_CHECK)
# As json.loads, without its guesses at encodings, which cost as much as the decoding of an event.
_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def new_id() -> str:
    """An id that nobody else has: 64 hex digits."""
    return os.urandom(32).hex()


def now() -> datetime:
    """The time for a record: UTC, to the microsecond."""
    return datetime.now(UTC)


# ---------------------------------------------------------------- values


def encode_value(value: Value) -> Value:
    """`value` with what JSON lacks made explicit: a non-finite float is `{"$float": "NaN"}`.

    A dict of the user's that has the single key "$float" or "$dict" is wrapped as {"$dict": …}, so
    that what went in comes out.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": next(name for name, v in _NONFINITE.items() if repr(v) == repr(value))}
    if isinstance(value, Mapping):
        plain = {k: encode_value(v) for k, v in value.items()}
        return (
            {"$dict": plain} if len(plain) == 1 and plain.keys() <= {"$float", "$dict"} else plain
        )
    if isinstance(value, list | tuple):
        return [encode_value(v) for v in value]
    return value


def decode_value(value: Value, depth: int = checks.DEEPEST) -> Value:
    """The inverse of `encode_value`. Raises ValueError for what is nested deeper than `depth`."""
    if type(value) in _SCALARS:
        return value
    if depth == 0:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        if len(value) == 1:
            if "$float" in value:
                return _NONFINITE[value["$float"]]
            if "$dict" in value:
                return {k: decode_value(v, depth - 1) for k, v in value["$dict"].items()}
        # Most values are scalars, and a journal has hundreds: they are not worth a call each.
        if _SCALARS.issuperset(map(type, value.values())):
            return value
        return {k: decode_value(v, depth - 1) for k, v in value.items()}
    if isinstance(value, list):
        return [decode_value(v, depth - 1) for v in value]
    return value


def encode_time(time: datetime) -> str:
    """RFC 3339 in UTC with microseconds, so that text order is time order."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def decode_time(text: str) -> datetime:
    """The inverse of `encode_time`. Raises ValueError or TypeError."""
    return checks.time(text)


# ---------------------------------------------------------------- documents and events


def dump(value: Mapping[str, Value], *, indent: int | None = None) -> bytes:
    """JSON as UTF-8, without a final newline. Non-finite numbers must have been encoded."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(
        value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False
    )
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, as in an undecodable file name: escape it
        return json.dumps(value, indent=indent, separators=separators, allow_nan=False).encode()


def seal_document(value: Mapping[str, Value]) -> bytes:
    """A document that a person can read, ending with its checksum."""
    body = dump(value, indent=2).removesuffix(b"\n}")
    return body + b',\n  "check": "' + _digest(body) + b'"\n}\n'


def seal_event(value: Mapping[str, Value]) -> bytes:
    """A journal line with its checksum and the newline that completes it."""
    body = dump(value)[:-1]
    return body + b',"check":"' + _digest(body) + b'"}\n'


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """The value of a sealed document or event. Raises DamagedError, calling it `name`."""
    found = _split(data)
    if found is None:
        raise DamagedError(f"{name} is damaged: it does not end with a checksum")
    body, check = found
    if _digest(body) != check:
        raise DamagedError(f"{name} is damaged: its checksum does not match")
    try:
        text = body.decode().lstrip() + "}"
        value, end = _parse(text, 0)
        if end != len(text) or not isinstance(value, dict):
            raise ValueError("not one JSON object")
        return value
    except (ValueError, StopIteration, RecursionError) as error:  # sealed, but not by this library
        raise _malformed(name, error) from error


def _split(data: bytes) -> tuple[bytes, bytes] | None:
    """The bytes that are sealed and their checksum, or None where that is not to be seen."""
    # A listing passes here for each event: what this library writes needs no search.
    if data.endswith(_AFTER_CHECK) and data.startswith(_BEFORE_CHECK, -_TAIL_SIZE):
        return data[:-_TAIL_SIZE], data[-_CHECK_SIZE - len(_AFTER_CHECK) : -len(_AFTER_CHECK)]
    found = _CHECK.match(data, max(0, data.rfind(b",")))
    return (data[: found.start()], found[1]) if found else None


def _digest(body: bytes) -> bytes:
    return blake3(body).hexdigest(length=8).encode()


# ---------------------------------------------------------------- experiments


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
            "path": _encode_path(record.path),
            "tree": record.tree,
            "size": record.size,
            "stored": record.stored,
            **_encode_packs(record.packs),
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
            **_decode_inputs(value),
            parent=_decode_parent(value.get("parent")),
            imported=checks.optional(_decode_members, value.get("imported")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(name, error) from error


def _encode_path(path: str | tuple[str, ...] | None) -> Value:
    return list(path) if isinstance(path, tuple) else path


def _decode_inputs(value: Mapping[str, Any]) -> dict[str, Any]:
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


def _encode_packs(packs: tuple[str, ...]) -> dict[str, Value]:
    return {"packs": list(packs)} if packs else {}


def decode_packs(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The packs that an event or a document names beside a tree. Raises TypeError."""
    packs = data.get("packs")
    if not packs:
        return ()
    if not isinstance(packs, list) or not all(isinstance(pack, str) for pack in packs):
        raise TypeError(f"{packs!r} are not the hashes of packs")
    return tuple(packs)


def _decode_parent(parent: Mapping[str, Any] | None) -> Origin | None:
    if not parent:
        return None
    return Origin(
        checks.id(parent["experiment"]), checks.optional(checks.id, parent.get("checkpoint"))
    )


def _malformed(name: str, error: Exception) -> DamagedError:
    return DamagedError(f"{name} is not in the format this version reads ({error!r})")


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a journal. `number` counts the lines of its `writer`, from 0."""

    kind: str
    time: datetime
    writer: str
    number: int
    data: Mapping[str, Any]

    @property
    def attempt(self) -> int:
        """Which attempt of the run it belongs to, from 1."""
        return checks.attempt(self.data.get("attempt", 1))


def encode_event(event: Event) -> bytes:
    head = {"event": event.kind, "time": encode_time(event.time), "n": event.number}
    return seal_event({**head, **event.data})


def decode_event(line: bytes, writer: str, name: str) -> Event:
    """The event of one journal line. Raises DamagedError, calling the line `name`."""
    value = unseal(line, name)
    pop = value.pop
    try:
        kind, time, number = pop("event"), checks.time(pop("time")), checks.whole(pop("n"))
        checks.text(kind)
        if "attempt" in value:
            checks.attempt(value["attempt"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _malformed(name, error) from error
    return Event(kind, time, writer, number, value)


def checkpoint_data(record: CheckpointRecord) -> dict[str, Value]:
    """The data of a `checkpoint` event, whose time is the checkpoint's."""
    primary = record.primary_metric
    return {
        "id": record.id,
        "step": encode_value(record.step),
        "path": _encode_path(record.path),
        "tree": record.tree,
        "metrics": encode_value(record.metrics),
        "primary_metric": primary and {"name": primary.name, "goal": primary.goal},
        "size": record.size,
        "stored": record.stored,
        **_encode_packs(record.packs),
    }


# A run names the same one at each of its checkpoints.
@lru_cache(maxsize=64)
def _primary_metric(name: Any, goal: Any) -> PrimaryMetric:
    if goal not in ("minimize", "maximize"):
        raise ValueError("that is no goal")
    return PrimaryMetric(checks.text(name), goal)


_CHECKPOINT_SLOTS = [getattr(CheckpointRecord, f.name).__set__ for f in fields(CheckpointRecord)]


def decode_checkpoint(experiment: str, time: datetime, data: Mapping[str, Any]) -> CheckpointRecord:
    """The checkpoint of a `checkpoint` event."""
    checks.checkpoint(data)
    primary = data.get("primary_metric")
    path = data["path"]
    values = (
        data["id"],
        experiment,
        time,
        checks.step(decode_value(data["step"])),
        tuple(path) if type(path) is list else path,
        data["tree"],
        decode_value(data["metrics"]),
        decode_primary_metric(primary),
        data.get("size"),
        data.get("stored"),
        False,
        data.get("attempt", 1),
        False,
        decode_packs(data),
        True,
    )
    # As __init__ does for a frozen class with slots, in half the time: journals have thousands.
    made: CheckpointRecord = object.__new__(CheckpointRecord)
    for assign, value in zip(_CHECKPOINT_SLOTS, values, strict=True):
        assign(made, value)
    return made


def decode_primary_metric(value: Mapping[str, Any] | None) -> PrimaryMetric | None:
    """The primary metric that a checkpoint names. Raises KeyError, TypeError or ValueError."""
    return _primary_metric(value["name"], value["goal"]) if value else None


def attempt_data(attempt: Attempt) -> dict[str, Value]:
    """The data of an `attempt` event but for its number, which every event of an attempt has."""
    back = attempt.restored
    return {
        "params": encode_value(attempt.params),
        "command": attempt.command,
        "user": attempt.user,
        "host": attempt.host,
        "path": _encode_path(attempt.path),
        "tree": attempt.tree,
        "size": attempt.size,
        "stored": attempt.stored,
        **_encode_packs(attempt.packs),
        "environment": encode_value(attempt.environment),
        "packages": dict(attempt.packages),
        "from_step": encode_value(attempt.from_step),
        "restored": back
        and {
            "checkpoint": back.checkpoint,
            "attempt": back.attempt,
            "time": encode_time(back.created),
        },
    }


def decode_attempt(time: datetime, data: Mapping[str, Any]) -> Attempt:
    """The attempt of an `attempt` event."""
    back, number = data.get("restored"), checks.attempt(data["attempt"])
    if number == 1:
        raise ValueError("the first attempt is the experiment itself")
    return Attempt(
        number=number,
        created=time,
        **_decode_inputs(data),
        from_step=checks.step(decode_value(data.get("from_step"))),
        restored=_decode_restored(back, number) if back else None,
    )


def _decode_restored(back: Mapping[str, Any], number: int) -> Restored:
    """What attempt `number` goes back to: an earlier one, so that no way leads in a circle."""
    earlier = checks.attempt(back["attempt"])
    if earlier >= number:
        raise ValueError(f"attempt {number} goes on from attempt {earlier}")
    return Restored(checks.id(back["checkpoint"]), earlier, decode_time(back["time"]))


def stop_data(stop: Stop) -> dict[str, Value]:
    """The data of a `stop` event."""
    exception = stop.exception
    return {
        "status": str(stop.status),
        "exception": exception
        and {
            "type": exception.type,
            "message": exception.message,
            "traceback": exception.traceback,
        },
        "signal": stop.signal,
        "exit_code": stop.exit_code,
    }


def decode_stop(time: datetime, data: Mapping[str, Any]) -> Stop:
    exception = data.get("exception")
    return Stop(
        time=time,
        status=Status(data["status"]),
        exception=_decode_exception(exception) if exception else None,
        signal=checks.optional(checks.text, data.get("signal")),
        exit_code=checks.optional(_exit_code, data.get("exit_code")),
    )


def _decode_exception(value: Mapping[str, Any]) -> ExceptionInfo:
    return ExceptionInfo(*(checks.text(value[name]) for name in ("type", "message", "traceback")))


def _exit_code(value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 32:
        raise ValueError("that is no exit code")
    return value
