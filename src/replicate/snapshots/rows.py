"""Rows: what a listing needs of one experiment, encoded as it is where it comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from replicate import checks
from replicate.backends.base import is_component
from replicate.errors import DamagedError
from replicate.fold import fold
from replicate.model import CheckpointRecord, ExperimentRecord, Heartbeat, PrimaryMetric
from replicate.records import (
    Event,
    decode_event,
    decode_experiment,
    decode_primary_metric,
    encode_event,
    encode_experiment,
    seal_event,
    unseal,
)

#: An experiment with a larger row is not taken into a snapshot (bytes).
MAX_ROW = 1 << 20
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Row:
    """What a listing needs of one experiment.

    `files` has the size of each file that it was folded from, by its name in the experiment's
    directory. `record` has no checkpoints: `best` and `latest` are two of the `checkpoints` that
    there are, of which `current` many are not superseded. `beat` is the time of its heartbeat by
    the storage's clock, where the run has no end.
    """

    id: str
    files: Mapping[str, int]
    record: ExperimentRecord
    events: Mapping[str, int]
    checkpoints: int
    current: int
    best: CheckpointRecord | None
    latest: CheckpointRecord | None
    primary_metric: PrimaryMetric | None
    beat: float | None


def encode_row(
    record: ExperimentRecord,
    inputs: ExperimentRecord,
    events: Iterable[Event],
    files: Mapping[str, int],
    beat: float | None,
) -> bytes | None:
    """The row of an experiment: what it is, the inputs that it began with, and all its events.

    None when it has no place in a snapshot: it, or an id in it, is not as this program makes them.
    """
    ids = (record.id, *(checkpoint.id for checkpoint in record.checkpoints))
    if not all(isinstance(id, str) and _ID.fullmatch(id) for id in ids):
        return None
    record = replace(record, heartbeat=None) if record.stop else record
    every = sorted(events, key=lambda e: (e.writer, e.number))
    best, last, primary = record.best(), record.latest(), record.primary_metric
    kept = {checkpoint.id for checkpoint in (best, last) if checkpoint}
    shown = [event for e in every if (event := _needed(e, kept))]
    heartbeat = record.heartbeat
    head = {
        "id": record.id,
        "files": dict(files),
        "events": dict(_counted(every)),
        "writers": [event.writer for event in shown],
        "checkpoints": len(record.checkpoints),
        "current": record.num_checkpoints,
        "best": best and best.id,
        "latest": last and last.id,
        "primary_metric": primary and {"name": primary.name, "goal": primary.goal},
        "heartbeat": None
        if heartbeat is None or beat is None
        else {
            "interval": heartbeat.interval,
            "events": dict(heartbeat.events),
            "modified": beat,
        },
    }
    document = unseal(encode_experiment(inputs), "")
    lines = [seal_event(head), seal_event(document), *map(encode_event, shown)]
    row = b"".join(lines)
    return row if len(row) <= MAX_ROW else None


def encode_deleted(id: str, files: Mapping[str, int]) -> bytes | None:
    """The row of a deleted experiment, which is all that there is to say of it."""
    if not _ID.fullmatch(id):
        return None
    return seal_event({"id": id, "files": dict(files), "deleted": True})


def _needed(event: Event, kept: set[str]) -> Event | None:
    """The event as far as a listing needs it, which shows only the checkpoints in `kept`."""
    if event.kind == "checkpoint":
        return event if event.data["id"] in kept else None
    if event.kind in ("drop", "delete"):
        ids = [id for id in event.data.get("checkpoints", ()) if id in kept]
        return replace(event, data={**event.data, "checkpoints": ids}) if ids else None
    return event


def _counted(events: Iterable[Event]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for event in events:
        counts[event.writer] = counts.get(event.writer, 0) + 1
    return counts


def split_rows(data: bytes, name: str) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """The head of each row of a part, and its lines from the head on: one where the experiment is
    deleted. Raises DamagedError."""
    lines = data.split(b"\n")
    if lines.pop():
        raise DamagedError(f"{name} does not end with a line")
    at = 0
    while at < len(lines):
        head = unseal(lines[at], name)
        id, writers = head.get("id"), head.get("writers")
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise DamagedError(f"{name} has a row that this version cannot read")
        if head.get("deleted") is True:
            end = at + 1
        elif isinstance(writers, list):
            end = at + 2 + len(writers)
        else:
            raise DamagedError(f"{name} has a row that this version cannot read")
        if end > len(lines):
            raise DamagedError(f"{name} ends within a row")
        yield head, lines[at:end]
        at = end


def decode_row(head: Mapping[str, Any], lines: Sequence[bytes], name: str) -> Row:
    """A row of a part as `split_rows` gives it. Raises DamagedError, calling the part `name`."""
    inputs = decode_experiment(lines[1], name)
    try:
        writers = [_component(writer) for writer in head["writers"]]
        events = [
            decode_event(line, writer, name)
            for writer, line in zip(writers, lines[2:], strict=True)
        ]
        record = fold(inputs, events)
        if record.id != head["id"] or record.damage or record.deleted:
            raise ValueError("a row that no snapshot has")
        made = {checkpoint.id: checkpoint for checkpoint in record.checkpoints}
        primary, beat = head["primary_metric"], head["heartbeat"]
        return Row(
            id=record.id,
            files={str(key): checks.whole(size) for key, size in head["files"].items()},
            record=replace(record, checkpoints=(), heartbeat=beat and _heartbeat(beat)),
            events={str(writer): checks.whole(n) for writer, n in head["events"].items()},
            checkpoints=checks.whole(head["checkpoints"]),
            current=checks.whole(head["current"]),
            best=made[head["best"]] if head["best"] else None,
            latest=made[head["latest"]] if head["latest"] else None,
            primary_metric=decode_primary_metric(primary),
            beat=checks.finite(beat["modified"]) if beat else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedError(f"{name} has a row that this version cannot read ({error!r})") from error


def _heartbeat(value: Mapping[str, Any]) -> Heartbeat:
    events = checks.counts(value["events"])
    return Heartbeat(math.inf, checks.interval(value["interval"]), events)


def _component(writer: Any) -> str:
    if not isinstance(writer, str) or not is_component(writer):
        raise ValueError(f"{writer!r} is not a writer")
    return writer
