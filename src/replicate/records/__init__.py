"""Model values to and from the JSON of the repository's format: the one place that knows the names
of fields on disk. It reads and writes bytes that others fetch and store."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from replicate.records.events import (
    Event,
    attempt_data,
    checkpoint_data,
    decode_attempt,
    decode_checkpoint,
    decode_event,
    decode_primary_metric,
    decode_stop,
    encode_event,
    encode_lost,
    stop_data,
)
from replicate.records.experiments import (
    decode_experiment,
    decode_packs,
    encode_experiment,
)
from replicate.records.sealed import (
    decode_time,
    decode_value,
    dump,
    encode_time,
    encode_value,
    seal_document,
    seal_event,
    unseal,
)

__all__ = [
    "Event",
    "attempt_data",
    "checkpoint_data",
    "decode_attempt",
    "decode_checkpoint",
    "decode_event",
    "decode_experiment",
    "decode_packs",
    "decode_primary_metric",
    "decode_stop",
    "decode_time",
    "decode_value",
    "dump",
    "encode_event",
    "encode_experiment",
    "encode_lost",
    "encode_time",
    "encode_value",
    "new_id",
    "now",
    "seal_document",
    "seal_event",
    "stop_data",
    "unseal",
]


def new_id() -> str:
    """An id that nobody else has: 64 hex digits."""
    return os.urandom(32).hex()


def now() -> datetime:
    """The time for a record: UTC, to the microsecond."""
    return datetime.now(UTC)
