"""Where the tensors lie: in zip archives with stored members (torch.save, .npz, .keras), in
safetensors and in .npy files, which are told by their content.

Only the headers are read. Nothing is unpickled or decompressed, no member is trusted: what lies
outside the file, overlaps another or makes no sense is left out, and no number in a header decides
how much is allocated or how long this takes. What to do with the spans is not known here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from replicate.readers import Reader

#: Parts of one file that are looked at; more are treated as one stretch of unknown content.
MAX_PARTS = 1 << 17
#: Longest header of a safetensors file that is parsed; it has room for some 60,000 tensors.
MAX_JSON_HEADER = 8 << 20


class Span(NamedTuple):
    """A stretch of a file: what one member or tensor occupies, without any header."""

    start: int
    end: int
    is_array: bool  # numbers of a fixed size, in which an insertion is not to be expected


def find_spans(reader: Reader) -> list[Span]:
    """The stored members or tensors of a container in order of position, none overlapping another.

    Empty for any other file. Raises as `reader` does, never for what the bytes are.
    """
    magic = bytes(reader.read(0, 6))
    if magic[:4] == _LOCAL_MAGIC:
        found = _zip_members(reader)
    elif magic == _NPY_MAGIC:
        found = _npy(reader)
    else:
        found = _safetensors(reader)
    return list(_disjoint(islice(found, MAX_PARTS), reader.size))


def _disjoint(spans: Iterable[Span], size: int) -> Iterator[Span]:
    covered = 0
    for span in sorted(spans):
        if covered <= span.start < span.end <= size:
            yield span
            covered = span.end


# Safetensors: the header's length as 8 bytes, the header as JSON, then the tensors.


def _safetensors(reader: Reader) -> Iterator[Span]:
    head = reader.read(0, 9)
    length = int.from_bytes(head[:8], "little")
    data = 8 + length
    if length > MAX_JSON_HEADER or data > reader.size or bytes(head[8:]) != b"{":
        return
    try:
        header = json.loads(bytes(reader.read(8, length)))
    except (ValueError, RecursionError):
        return
    for tensor in header.values():
        # `__metadata__` has no offsets. Anything else may be hostile: whole numbers or nothing.
        match tensor:
            case {"data_offsets": [int(start), int(end)]}:
                yield Span(data + start, data + end, is_array=True)


# Npy (NEP 1): magic, version, the length of the header, the header, one array to the end.

_NPY_MAGIC = b"\x93NUMPY"


def _npy(reader: Reader) -> Iterator[Span]:
    head = reader.read(0, 12)
    size = 2 if bytes(head[6:7]) == b"\1" else 4  # of the header's length, from version 2 on
    start = 8 + size + int.from_bytes(head[8 : 8 + size], "little")
    yield Span(start, reader.size, is_array=True)


# Zip: APPNOTE 6.3, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14-16 (its end), 4.5.3.

_LOCAL_MAGIC = b"PK\3\4"
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_MAX_COMMENT = 0xFFFF
_STORED = 0
#: "The number is in the zip64 field."
_ELSEWHERE = 0xFFFFFFFF
_ZIP64_FIELD = 1
_MAX_FIELDS = 16


def _read(layout: struct.Struct, magic: bytes, reader: Reader, at: int) -> tuple[Any, ...] | None:
    """The record at `at`, or None where there is none, be it that the file ends before it."""
    if at + layout.size > reader.size:
        return None
    fields = layout.unpack(reader.read(at, layout.size))
    return fields if fields[0] == magic else None


def _zip_members(reader: Reader) -> Iterator[Span]:
    """The stored members, in the directory's order."""
    at, count = _directory(reader)
    for _ in range(min(count, MAX_PARTS)):
        entry = _read(_ENTRY, b"PK\1\2", reader, at)
        if entry is None:
            return
        method, packed, size, name_length, extra_length = entry[4], *entry[8:12]
        at += _ENTRY.size
        if method == _STORED:
            rest = reader.read(at, name_length + extra_length)
            name, extra = bytes(rest[:name_length]), rest[name_length:]
            size, packed, local = _long_form(extra, size, packed, entry[16])
            header = _read(_LOCAL, _LOCAL_MAGIC, reader, local)
            if header is not None and packed == size:
                start = local + _LOCAL.size + header[9] + header[10]
                yield Span(start, start + size, _is_array(name))
        at += name_length + extra_length + entry[12]


def _is_array(name: bytes) -> bool:
    """Whether a member holds bare numbers: a storage of torch.save or an array of numpy.savez."""
    return b"/data/" in name or name.endswith(b".npy")


def _directory(reader: Reader) -> tuple[int, int]:
    """Position of the first directory entry and how many there are said to be; (0, 0) for none."""
    longest = _END.size + _MAX_COMMENT
    tail = max(0, reader.size - longest)
    at = tail + bytes(reader.read(tail, longest)).rfind(b"PK\5\6")
    end = _read(_END, b"PK\5\6", reader, at) if at >= tail else None
    if end is None:
        return 0, 0
    before = at - _LOCATOR.size
    locator = _read(_LOCATOR, b"PK\6\7", reader, before) if before >= 0 else None
    end64 = _read(_END64, b"PK\6\6", reader, locator[2]) if locator is not None else None
    if end64 is not None:
        return end64[9], end64[7]
    return end[6], end[4]


def _long_form(extra: memoryview, *numbers: int) -> list[int]:
    """The numbers, each that says `_ELSEWHERE` replaced by the next one of the zip64 field."""
    found = list(numbers)
    wanted = [i for i, number in enumerate(found) if number == _ELSEWHERE]
    for _ in range(_MAX_FIELDS if wanted else 0):
        if len(extra) < 4:
            break
        kind, length = struct.unpack_from("<2H", extra)
        if kind == _ZIP64_FIELD:
            for i, at in zip(wanted, range(4, min(4 + length, len(extra)) - 7, 8), strict=False):
                (found[i],) = struct.unpack_from("<Q", extra, at)
            break
        extra = extra[4 + length :]
    return found
