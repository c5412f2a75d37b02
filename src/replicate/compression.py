"""How a chunk's bytes are encoded: raw, zstd, or zstd over byte planes, whichever a sample favours.

Floats hardly compress as they stand, because their noisy low bytes hide the regular high ones.
Plane i of K holds bytes i, i+K, i+2K … of the chunk, to its very end: a length that K does not
divide makes the first planes one byte longer. A suffix names the encoding:

    ""          the bytes themselves
    ".zst"      one zstd frame
    ".p2.zst"   2 zstd frames one after another, frame i holding plane i
    ".p4.zst"   4 of them

So `zstd -dc` opens every one; for planes, their bytes are then in turn. In Python, with K = 4:

    frames = open(name, "rb")
    reader = zstandard.ZstdDecompressor().stream_reader(frames, read_across_frames=True)
    planes, start = reader.readall(), 0
    out = bytearray(len(planes))
    for i in range(4):
        out[i::4] = planes[start : (start := start + len(out[i::4]))]

Nothing here knows of hashes, keys or repositories.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from replicate.errors import DamagedError

#: Number of byte planes of each compressed encoding; raw bytes have the suffix "".
PLANES = {".zst": 1, ".p2.zst": 2, ".p4.zst": 4}
SUFFIXES = ("", *PLANES)

#: Higher levels are slower and no better on numbers.
LEVEL = 1
#: A compressed form is kept when it is no longer than this part of the raw bytes.
WORTHWHILE = 0.96
#: More memory than this for its own window no frame may ask for; the longest chunk needs no more.
_MAX_WINDOW = 16 << 20
_SAMPLE = 16 << 10
_SAMPLES = 3
#: What is decoded comes in pieces of so many bytes, which 2 and 4 divide.
PIECE = 256 << 10
#: From this length on (bytes) it is worth while to import numpy.
_LONG = 1 << 20


def encode(data: bytes | memoryview) -> tuple[str, bytes | memoryview]:
    """The suffix and bytes of the encoding that suits `data`; `data` itself where none pays.

    `decode` undoes it exactly. Costs a few percent of the compression where it stays raw.
    """
    sample = _sample(data)
    sizes = {suffix: len(_compress(sample, planes)) for suffix, planes in PLANES.items()}
    suffix = min(sizes, key=sizes.__getitem__)
    if sizes[suffix] <= WORTHWHILE * len(sample):
        payload = _compress(data, PLANES[suffix])
        if len(payload) <= WORTHWHILE * len(data):
            return suffix, payload
    return "", data


def encode_as(suffix: str, data: bytes) -> bytes:
    """The bytes of `data` in the encoding that `suffix`, one of `SUFFIXES`, stands for."""
    return _compress(data, PLANES[suffix]) if suffix else data


def decode(suffix: str, payload: bytes | memoryview, size: int) -> bytes:
    """The `size` bytes that `encode` was given. Raises as `pieces` does."""
    return b"".join(bytes(piece) for piece in pieces(suffix, payload, size))


def pieces(suffix: str, payload: bytes | memoryview, size: int) -> Iterator[memoryview]:
    """The `size` bytes that `encode` was given, in turn. Each piece is valid until the next one, or
    until this thread decodes something else.

    Raises DamagedError, before the first of them, when `payload` does not hold exactly that many; a
    payload that would grow beyond `size` is never expanded further. `suffix` is one of `SUFFIXES`;
    `size`, for which memory is kept as long as the thread lives, has been checked to be a chunk's.
    """
    if suffix == "":
        if len(payload) != size:
            raise DamagedError(f"a chunk should have {size} bytes but {len(payload)} are stored")
        joined = memoryview(payload)
    else:
        joined = _decompress(payload, size)
    if PLANES.get(suffix, 1) > 1:
        yield from _interleaved(joined, PLANES[suffix])
    else:
        yield from (joined[start : start + PIECE] for start in range(0, size, PIECE))


def _sample(data: bytes | memoryview) -> bytes:
    """Start, middle and end of `data`, or all of it when short. Each piece starts at a whole
    multiple of 16 bytes, so that numbers lie in it as they do in `data`."""
    if len(data) <= _SAMPLES * _SAMPLE:
        return bytes(data)
    step = (len(data) - _SAMPLE) // (_SAMPLES - 1) & ~15
    return b"".join(data[i * step : i * step + _SAMPLE] for i in range(_SAMPLES))


class _Scratch(threading.local):
    """Memory of one thread, used again and again: to get new memory can take longer than to fill
    it."""

    def __init__(self) -> None:
        self.planes = bytearray()
        self.whole = bytearray()
        self.piece = bytearray(PIECE)


_scratch = _Scratch()


def _compress(data: bytes | memoryview, count: int) -> bytes:
    """One zstd frame for each of the planes of `data`, one after another."""
    import zstandard  # 12 ms, which a repository that stores raw bytes need not pay

    if count == 1:
        return zstandard.ZstdCompressor(level=LEVEL).compress(data)
    # In a plane of numbers almost nothing repeats: hardly to look for it makes the frames smaller,
    # since what is found by chance costs more than it saves, and takes a third of the time.
    parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, hash_log=6, min_match=7)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    whole = _scratch.whole  # ten times faster to take every K-th byte of than a memoryview
    whole[: len(data)] = data
    planes = (whole[i : len(data) : count] for i in range(count))
    return b"".join(compressor.compress(plane) for plane in planes)


def _decompress(payload: bytes | memoryview, size: int) -> memoryview:
    """All frames of `payload` expanded and joined, `size` bytes, in this thread's memory."""
    import zstandard

    if len(_scratch.planes) <= size:
        _scratch.planes = bytearray(size + 1)
    # One byte more than there should be tells a longer payload from a right one. What a frame
    # says of its own length is not believed.
    into, done = memoryview(_scratch.planes)[: size + 1], 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    reader = decompressor.stream_reader(payload, read_across_frames=True)
    try:
        while done <= size and (read := reader.readinto(into[done:])):
            done += read
    except zstandard.ZstdError as error:
        raise DamagedError(f"a compressed chunk cannot be read: {error}") from error
    if done != size:
        held = f"only {done}" if done < size else "more"
        raise DamagedError(f"a compressed chunk should hold {size} bytes but holds {held}")
    return into[:size]


def _interleaved(planes: memoryview, count: int) -> Iterator[memoryview]:
    """The bytes whose planes these are, a piece at a time, which a processor's cache can hold."""
    size, whole = len(planes), memoryview(_scratch.piece)
    starts = list(accumulate((len(range(i, size, count)) for i in range(count)), initial=0))
    source, piece = planes, _scratch.piece
    if (numpy := _numpy(size)) is not None:
        source, piece = numpy.frombuffer(source, numpy.uint8), numpy.frombuffer(piece, numpy.uint8)
    for done in range(0, size, PIECE):
        length = min(PIECE, size - done)
        for i in range(min(count, length)):
            start = starts[i] + done // count
            piece[i:length:count] = source[start : start + len(range(i, length, count))]
        yield whole[:length]


def _numpy(size: int) -> Any:
    """numpy, where there is one and `size` bytes are worth its import: it copies every K-th byte
    as fast as Python does, but other threads run meanwhile."""
    if size < _LONG:
        return None
    try:
        import numpy  # 70 ms
    except ImportError:
        return None
    return numpy
