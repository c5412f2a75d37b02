"""Manifests and parts: what a snapshot consists of, and how it is found and verified."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from blake3 import blake3

from replicate import checks, compression
from replicate.backends.base import Backend
from replicate.errors import DamagedError, KeyNotFoundError
from replicate.records import decode_time, encode_time, seal_event, unseal

VERSION = 1
MANIFESTS, PARTS = "snapshots/manifests/", "snapshots/parts/"
#: What a writer puts into a part of rows, before it is compressed (bytes): one request and a moment
#: of work for a reader, and some thousand experiments.
PART_BYTES = 16 << 20
#: The last number that a key has digits for.
LAST_NUMBER = 10**10 - 1
#: So many checkpoints a group has at most: that many ids fit into a part, however they begin.
GROUP_IDS = 1_000_000
#: So many ids are kept in one part; more are divided by their first digit.
IDS_TOGETHER = 4096
#: What a reader accepts at most of a manifest, of a part, and of a part as it is stored (bytes).
MAX_MANIFEST, MAX_PART, MAX_STORED = 16 << 20, 64 << 20, 64 << 20
_MANIFEST = re.compile(rf"{MANIFESTS}[0-9]{{10}}\.json")
_DIGITS = "0123456789abcdef"
#: Bytes of a checkpoint's id, and of the start of its experiment's, in a part of ids.
_WHOLE, _START = 32, 8
_ENTRY = _WHOLE + _START


@dataclass(frozen=True, slots=True)
class Part:
    """An immutable object: the hash of its bytes as they are stored, how many these are, and how
    many there are once they are no longer compressed."""

    hash: str
    stored: int
    size: int

    @property
    def key(self) -> str:
        return f"{PARTS}{self.hash[:2]}/{self.hash}"


@dataclass(frozen=True, slots=True)
class Group:
    """Some experiments: a part with their rows, and parts with the ids of their checkpoints, each
    with the digits that these ids begin with."""

    experiments: int
    checkpoints: int
    rows: Part
    ids: tuple[tuple[str, Part], ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.rows, *(part for _, part in self.ids))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot consists of. `writer` tells two of the same number apart."""

    number: int
    created: datetime
    writer: str
    groups: tuple[Group, ...]

    @property
    def key(self) -> str:
        return manifest_key(self.number)

    @property
    def parts(self) -> Iterator[Part]:
        return (part for group in self.groups for part in group.parts)


class UnknownVersionError(DamagedError):
    """The snapshot is of a version that this program does not read."""


def manifest_key(number: int) -> str:
    return f"{MANIFESTS}{number:010}.json"


# ---------------------------------------------------------------- manifests


def encode_manifest(manifest: Manifest) -> bytes:
    groups = [
        {
            "experiments": group.experiments,
            "checkpoints": group.checkpoints,
            "rows": _encode_part(group.rows),
            "ids": [[digits, *_encode_part(part)] for digits, part in group.ids],
        }
        for group in manifest.groups
    ]
    return seal_event(
        {
            "version": VERSION,
            "number": manifest.number,
            "created": encode_time(manifest.created),
            "writer": manifest.writer,
            "groups": groups,
        }
    )


def decode_manifest(data: bytes, name: str) -> Manifest:
    """The inverse of `encode_manifest`. Raises DamagedError, calling it `name`."""
    value = unseal(data, name)
    if value.get("version") != VERSION:
        raise UnknownVersionError(f"{name} is of another version of the format")
    try:
        return Manifest(
            checks.whole(value["number"]),
            decode_time(value["created"]),
            checks.text(value["writer"]),
            tuple(map(_decode_group, value["groups"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedError(f"{name} is not in the format this version reads ({error!r})") from error


def manifest_number(key: str) -> int:
    """The number of the manifest under that key."""
    return int(key.removeprefix(MANIFESTS).removesuffix(".json"))


def latest_key(backend: Backend) -> str | None:
    """The key of the manifest with the highest number; None where there is none."""
    keys = (stat.key for stat in backend.list(MANIFESTS))
    return max((key for key in keys if _MANIFEST.fullmatch(key)), default=None)


def read_manifest(backend: Backend, key: str) -> Manifest:
    """The manifest under that key. Raises DamagedError when it cannot be read."""
    name = f"{backend.url}/{key}"
    try:
        manifest = decode_manifest(backend.get(key, 0, MAX_MANIFEST), name)
    except KeyNotFoundError:
        raise DamagedError(f"{name} is missing") from None
    if manifest.key != key:
        raise DamagedError(f"{name} is of another number")
    return manifest


def _encode_part(part: Part) -> list[Any]:
    return [part.hash, part.stored, part.size]


def _decode_group(value: Mapping[str, Any]) -> Group:
    ids = tuple((_digits(digits), _decode_part(part)) for digits, *part in value["ids"])
    return Group(
        checks.whole(value["experiments"]),
        checks.whole(value["checkpoints"]),
        _decode_part(value["rows"]),
        ids,
    )


def _decode_part(value: Sequence[Any]) -> Part:
    hash, stored, size = value
    part = Part(checks.id(hash), checks.whole(stored), checks.whole(size))
    if part.stored > MAX_STORED or part.size > MAX_PART:
        raise ValueError("no part of a snapshot")
    return part


def _digits(value: Any) -> str:
    if value not in ("", *_DIGITS):
        raise ValueError(f"ids that begin with {value!r}")
    return str(value)


# ---------------------------------------------------------------- parts


def read_part(backend: Backend, part: Part, *, compressed: bool) -> bytes:
    """The bytes of a part, verified. Raises DamagedError when they are not what was written."""
    name = f"{backend.url}/{part.key}"
    try:
        data = backend.get(part.key, 0, part.stored + 1)
    except KeyNotFoundError:
        raise DamagedError(f"{name} is missing") from None
    if len(data) != part.stored or blake3(data).hexdigest() != part.hash:
        raise DamagedError(f"{name} is damaged: its bytes do not match its name")
    try:
        return compression.decode(".zst" if compressed else "", data, part.size)
    except DamagedError as error:
        raise DamagedError(f"{name} is damaged: {error}") from error


def encode_group(
    rows: Sequence[bytes], ids: Iterable[tuple[str, str]], experiments: int
) -> tuple[Group, list[bytes]]:
    """A group of these rows, of so many experiments, and of pairs of ids, each a checkpoint's and
    its experiment's or the first 16 digits of that. Also what its parts hold, as it is stored."""
    entries = sorted(bytes.fromhex(made) + bytes.fromhex(of)[:_START] for made, of in ids)
    divided: dict[str, list[bytes]] = {}
    for entry in entries:
        digits = "" if len(entries) <= IDS_TOGETHER else _DIGITS[entry[0] >> 4]
        divided.setdefault(digits, []).append(entry)
    data = b"".join(rows)
    contents = [compression.encode_as(".zst", data), *map(b"".join, divided.values())]
    sizes = [len(data), *map(len, contents[1:])]
    first, *others = (
        Part(blake3(content).hexdigest(), len(content), size)
        for content, size in zip(contents, sizes, strict=True)
    )
    shards = tuple(zip(divided, others, strict=True))
    return Group(experiments, len(entries), first, shards), contents


def find_checkpoints(backend: Backend, group: Group, prefix: str) -> Iterator[tuple[str, str]]:
    """The ids of checkpoints of a group that begin with `prefix`, each with the beginning of its
    experiment's id. Raises DamagedError."""
    for digits, part in group.ids:
        if not (digits.startswith(prefix) or prefix.startswith(digits)):
            continue
        data = read_part(backend, part, compressed=False)
        for start in _starts(data, prefix):
            entry = data[start : start + _ENTRY].hex()
            yield entry[: 2 * _WHOLE], entry[2 * _WHOLE :]


def _starts(data: bytes, prefix: str) -> Iterator[int]:
    """Where the entries are whose id begins with `prefix`: they are sorted."""
    low, high = 0, len(data) // _ENTRY
    end = high
    while low < high:
        middle = (low + high) // 2
        if data[middle * _ENTRY : middle * _ENTRY + _WHOLE].hex() < prefix:
            low = middle + 1
        else:
            high = middle
    while low < end and data[low * _ENTRY : low * _ENTRY + _WHOLE].hex().startswith(prefix):
        yield low * _ENTRY
        low += 1
