"""Events: the lines of journals, and what each kind of them says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Any

from replicate import checks
from replicate.model import (
    Attempt,
    CheckpointRecord,
    ExceptionInfo,
    PrimaryMetric,
    Restored,
    Status,
    Stop,
    Value,
)
from replicate.records.experiments import (
    decode_inputs,
    decode_packs,
    encode_packs,
    encode_path,
)
from replicate.records.sealed import (
    decode_time,
    decode_value,
    encode_time,
    encode_value,
    malformed,
    seal_event,
    unseal,
)


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
        raise malformed(name, error) from error
    return Event(kind, time, writer, number, value)


def checkpoint_data(record: CheckpointRecord) -> dict[str, Value]:
    """The data of a `checkpoint` event, whose time is the checkpoint's."""
    primary = record.primary_metric
    return {
        "id": record.id,
        "step": encode_value(record.step),
        "path": encode_path(record.path),
        "tree": record.tree,
        "metrics": encode_value(record.metrics),
        "primary_metric": primary and {"name": primary.name, "goal": primary.goal},
        "size": record.size,
        "stored": record.stored,
        **encode_packs(record.packs),
        **encode_lost(record.lost),
    }


def encode_lost(paths: Sequence[str]) -> dict[str, Value]:
    """What a `checkpoint` event says of the paths that could not be saved."""
    return {"lost": list(paths)} if paths else {}


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
        tuple(checks.texts(data["lost"])) if "lost" in data else (),
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
        "path": encode_path(attempt.path),
        "tree": attempt.tree,
        "size": attempt.size,
        "stored": attempt.stored,
        **encode_packs(attempt.packs),
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
        **decode_inputs(data),
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
