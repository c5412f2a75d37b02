"""Bytes taken apart into planes and put together again: of K planes, plane i holds bytes i, i+K,
i+2K … of the whole, to its very end. So a plane holds the same byte of every number.

With numpy, K bytes are one number: to shift and cast numbers takes two thirds of the time of
copying every K-th byte, and other threads run meanwhile. It knows nothing of compression.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

#: What is put together comes in pieces of so many bytes, which 2 and 4 divide.
PIECE = 256 << 10
#: The bytes of a plane may lie in blocks of so many, with something else between them.
BLOCK = 128 << 10
#: From this length on (bytes) it is worth while to import numpy, for 70 ms.
_LONG = 1 << 20


class Plane(NamedTuple):
    """Where the bytes of a plane are: in `memory` from `start` on, with a `gap` of so many bytes
    after each block."""

    memory: memoryview
    start: int = 0
    gap: int = 0

    def part(self, first: int, length: int) -> memoryview:
        """Some of the bytes, all of one block."""
        start = self.start + first + first // BLOCK * self.gap
        return self.memory[start : start + length]


class _Scratch(threading.local):
    """Memory of one thread, used again and again: to get new memory can take longer than to fill
    it."""

    def __init__(self) -> None:
        self.planes = bytearray()
        self.whole = bytearray(PIECE)
        self.halves = (bytearray(PIECE // 2), bytearray(PIECE // 2))


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
    step = PIECE // count
    for first in range(0, len(numbers), step):
        some = numbers[first : first + step]
        for i, plane in enumerate(into):
            part = plane[first : first + len(some)]
            numpy.right_shift(some, 8 * i, out=part, casting="unsafe")
    for i in range(size % count):
        planes[i][-1] = data[size - size % count + i]


def merged(planes: Sequence[Plane], size: int) -> Iterator[memoryview]:
    """The `size` bytes whose 2 or 4 planes these are, a piece at a time, which a processor's cache
    can hold. Each is valid until this thread asks for another."""
    count, numpy = len(planes), _numpy(size)
    step, end = min(PIECE // count, BLOCK), size // count
    for first in range(0, end, step):
        length = min(step, end - first)
        parts = [plane.part(first, length) for plane in planes]
        if numpy is not None:
            _merge_numbers(numpy, parts)
        else:
            for i, part in enumerate(parts):
                _scratch.whole[i : count * length : count] = part
        yield memoryview(_scratch.whole)[: count * length]
    if size % count:
        yield memoryview(b"".join(plane.part(end, 1) for plane in planes[: size % count]))


def _merge_numbers(numpy: Any, parts: Sequence[memoryview]) -> None:
    """Fill `_scratch.whole` from its start with numbers of which each part has a byte."""
    length = len(parts[0])
    numbers = [numpy.frombuffer(part, numpy.uint8) for part in parts]
    whole = numpy.frombuffer(_scratch.whole, f"<u{len(parts)}", length)
    if len(parts) == 4:
        halves = [numpy.frombuffer(half, "<u2", length) for half in _scratch.halves]
        for half, low, high in zip(halves, numbers[::2], numbers[1::2], strict=True):
            _join(numpy, low, high, half)
        numbers = halves
    _join(numpy, numbers[0], numbers[1], whole)


def _join(numpy: Any, low: Any, high: Any, into: Any) -> None:
    """`into`, an array of numbers twice as wide, has `low` in its lower half."""
    numpy.multiply(high, 1 << 8 * low.itemsize, out=into, dtype=into.dtype)
    numpy.bitwise_or(into, low, out=into)


def _numpy(size: int) -> Any:
    """numpy, where there is one and `size` bytes are worth its import."""
    if size < _LONG:
        return None
    try:
        import numpy
    except ImportError:
        return None
    return numpy
