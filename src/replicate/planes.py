"""Bytes taken apart into planes and put together again: of K planes, plane i holds bytes i, i+K,
i+2K … of the whole, to its very end. So a plane holds the same byte of every number.

With numpy other threads run meanwhile, and there are few calls for each chunk: when two threads go
on in Python at once, one sleeps, and to wake it takes longer than to copy 64 KiB. It knows nothing
of compression.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

#: The bytes of a plane may lie in blocks of so many, with something else between them.
BLOCK = 128 << 10
#: So many bytes are taken apart at a time, which a processor's cache can hold.
_AT_ONCE = 256 << 10
#: From this length on (bytes) it is worth while to import numpy, for 70 ms.
_LONG = 1 << 20


class Plane(NamedTuple):
    """Where the bytes of a plane are: in `memory` from `start` on, with a `gap` of so many bytes
    after each block."""

    memory: memoryview
    start: int = 0
    gap: int = 0


class _Scratch(threading.local):
    """Memory of one thread, used again and again: to get new memory can take longer than to fill
    it."""

    def __init__(self) -> None:
        self.planes = bytearray()
        self.whole = bytearray()


_scratch = _Scratch()


def lengths(size: int, count: int) -> list[int]:
    """The lengths of the planes: where `count` does not divide `size`, the first are longer."""
    return [len(range(i, size, count)) for i in range(count)]


def split(data: bytes | memoryview, count: int) -> list[memoryview]:
    """The 2 or 4 planes of `data`, valid until this thread splits something else."""
    size = len(data)
    if len(_scratch.planes) < size:
        _scratch.planes = bytearray(size)
    planes, start = [], 0
    for length in lengths(size, count):
        planes.append(memoryview(_scratch.planes)[start : start + length])
        start += length
    if (numpy := _numpy(size)) is not None:
        _split_numbers(numpy, data, planes)
    else:
        whole = bytearray(data)  # ten times faster to take every K-th byte of than a memoryview
        for i, plane in enumerate(planes):
            plane[:] = whole[i::count]
    return planes


def _split_numbers(numpy: Any, data: bytes | memoryview, planes: Sequence[memoryview]) -> None:
    count, size = len(planes), len(data)
    numbers = numpy.frombuffer(data, f"<u{count}", size // count)
    into = [numpy.frombuffer(plane, numpy.uint8) for plane in planes]
    step = _AT_ONCE // count
    for first in range(0, len(numbers), step):
        some = numbers[first : first + step]
        for i, plane in enumerate(into):
            part = plane[first : first + len(some)]
            numpy.right_shift(some, 8 * i, out=part, casting="unsafe")
    for i in range(size % count):
        planes[i][-1] = data[size - size % count + i]


def merged(planes: Sequence[Plane], size: int) -> memoryview:
    """The `size` bytes whose 2 or 4 planes these are, valid until this thread merges others."""
    if len(_scratch.whole) < size:
        _scratch.whole = bytearray(size)
    count, numpy = len(planes), _numpy(size)
    for i, (plane, length) in enumerate(zip(planes, lengths(size, count), strict=True)):
        blocks, rest = divmod(length, BLOCK)
        if numpy is not None:
            shape, apart = (blocks, BLOCK), BLOCK + plane.gap
            source = numpy.ndarray(shape, "u1", plane.memory, plane.start, (apart, 1))
            into = numpy.ndarray(shape, "u1", _scratch.whole, i, (BLOCK * count, count))
            numpy.copyto(into, source)
        else:
            for block in range(blocks):
                _place(plane, block, BLOCK, i, count)
        _place(plane, blocks, rest, i, count)
    return memoryview(_scratch.whole)[:size]


def _place(plane: Plane, block: int, length: int, i: int, count: int) -> None:
    """Put a block of plane `i`, or what there is of it, among the bytes of the whole."""
    source = plane.start + block * (BLOCK + plane.gap)
    first = i + block * BLOCK * count
    part = plane.memory[source : source + length]
    _scratch.whole[first : first + length * count : count] = part


def _numpy(size: int) -> Any:
    """numpy, where there is one and `size` bytes are worth its import."""
    if size < _LONG:
        return None
    try:
        import numpy
    except ImportError:
        return None
    return numpy
