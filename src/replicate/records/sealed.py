"""JSON with a checksum: values, documents and events as bytes, and back.

A flipped bit in a number is still valid JSON. So *documents* (experiment.json, heartbeat.json,
checkout.json) and *events* (one line of a journal) end with a member `"check"`: the first 16 hex
digits of the BLAKE3 hash of all bytes that stand before the comma in front of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from blake3 import blake3

from replicate import checks
from replicate.errors import DamagedError
from replicate.model import Value

_CHECK = re.compile(rb',\s*"check":\s*"([0-9a-f]{16})"\s*\}\s*\Z')
_SCALARS = frozenset({str, int, float, bool, type(None)})
# What stands in front of a checksum, and behind it, in an event as this library writes it.
_BEFORE_CHECK, _AFTER_CHECK, _CHECK_SIZE = b',"check":"', b'"}', 16
_TAIL_SIZE = len(_BEFORE_CHECK) + _CHECK_SIZE + len(_AFTER_CHECK)
# As json.loads, without its guesses at encodings, which cost as much as the decoding of an event.
_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


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
        raise malformed(name, error) from error


def _split(data: bytes) -> tuple[bytes, bytes] | None:
    """The bytes that are sealed and their checksum, or None where that is not to be seen."""
    # A listing passes here for each event: what this library writes needs no search.
    if data.endswith(_AFTER_CHECK) and data.startswith(_BEFORE_CHECK, -_TAIL_SIZE):
        return data[:-_TAIL_SIZE], data[-_CHECK_SIZE - len(_AFTER_CHECK) : -len(_AFTER_CHECK)]
    found = _CHECK.match(data, max(0, data.rfind(b",")))
    return (data[: found.start()], found[1]) if found else None


def _digest(body: bytes) -> bytes:
    return blake3(body).hexdigest(length=8).encode()


def malformed(name: str, error: Exception) -> DamagedError:
    return DamagedError(f"{name} is not in the format this version reads ({error!r})")
