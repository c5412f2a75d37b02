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
from typing import NamedTuple

from replicate import planes
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
#: Of a zstd frame, in bytes: the most there are before its first block, what is before each, and
#: behind the last with a checksum. A block can be bytes as they are, or one that is repeated.
_LONGEST_HEAD, _BLOCK_HEAD, _CHECKSUM = 18, 3, 4
_RAW, _RLE = 0, 1


def encode(data: bytes | memoryview) -> tuple[str, bytes | memoryview]:
    """The suffix and bytes of the encoding that suits `data`; `data` itself where none pays.

    `decode` undoes it exactly. Costs a few percent of the compression where it stays raw.
    """
    sample = _sample(data)
    sizes = {suffix: len(_compress(sample, count)) for suffix, count in PLANES.items()}
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
    """The `size` bytes that `encode` was given. Raises as `decoded` does."""
    return bytes(decoded(suffix, payload, size))


def decoded(suffix: str, payload: bytes | memoryview, size: int) -> memoryview:
    """The `size` bytes that `encode` was given, valid until this thread decodes something else.

    Raises DamagedError when `payload` does not hold exactly that many; a payload that would grow
    beyond `size` is never expanded further. `suffix` is one of `SUFFIXES`; `size`, for which memory
    is kept as long as the thread lives, has been checked to be a chunk's.
    """
    count = PLANES.get(suffix, 0)
    if count > 1:
        return planes.merged(_planes(memoryview(payload), size, count), size)
    if count:
        return _expand(payload, _memory(size + 1))
    if len(payload) != size:
        raise DamagedError(f"a chunk should have {size} bytes but {len(payload)} are stored")
    return memoryview(payload)


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
        self.expanded = bytearray()


_scratch = _Scratch()


def _memory(size: int) -> memoryview:
    """`size` bytes of this thread's memory."""
    if len(_scratch.expanded) < size:
        _scratch.expanded = bytearray(size)
    return memoryview(_scratch.expanded)[:size]


def _compress(data: bytes | memoryview, count: int) -> bytes:
    """One zstd frame for each of the planes of `data`, one after another."""
    import zstandard  # 12 ms, which a repository that stores raw bytes need not pay

    if count == 1:
        return zstandard.ZstdCompressor(level=LEVEL).compress(data)
    # In a plane of numbers almost nothing repeats: hardly to look for it makes the frames smaller,
    # since what is found by chance costs more than it saves, and takes a third of the time.
    parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, hash_log=6, min_match=7)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    return b"".join(compressor.compress(plane) for plane in planes.split(data, count))


def _expand(payload: bytes | memoryview, into: memoryview) -> memoryview:
    """All frames of `payload` expanded and joined. That must give one byte less than `into` has
    room for, which tells a longer payload from a right one: what a frame says of its own length
    is not believed."""
    import zstandard

    size, done = len(into) - 1, 0
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


def _planes(payload: memoryview, size: int, count: int) -> list[planes.Plane]:
    """Where the bytes of each plane are: in `payload`, where zstd has stored them as they are, as
    it does with most of a model; else in this thread's memory."""
    found, start, memory = [], 0, _memory(size + 1)
    for length in planes.lengths(size, count):
        frame = _frame(payload, start)
        if frame.stored == length:
            found.append(planes.Plane(payload, frame.first, gap=_BLOCK_HEAD))
        else:
            into, memory = memory[: length + 1], memory[length:]
            found.append(planes.Plane(_expand(payload[start : frame.end], into)))
        start = frame.end
    if start != len(payload):
        raise DamagedError("a compressed chunk is longer than its planes")
    return found


class _Frame(NamedTuple):
    """Where a frame ends, and its first block's bytes begin. How many bytes it holds, where they
    are all stored as they are, in blocks that are full but for the last; else None."""

    end: int
    first: int
    stored: int | None


def _frame(payload: memoryview, start: int) -> _Frame:
    """The frame that begins at `start`. RFC 8878, 3.1.1, has the format."""
    import zstandard

    head = payload[start : start + _LONGEST_HEAD]
    try:
        checked = zstandard.get_frame_parameters(head).has_checksum
        at = start + zstandard.frame_header_size(head)
    except zstandard.ZstdError as error:
        raise DamagedError(f"a compressed chunk cannot be read: {error}") from error
    first, stored, last, as_they_are = at + _BLOCK_HEAD, 0, 0, not checked
    while not last and at < len(payload):
        block = int.from_bytes(payload[at : at + _BLOCK_HEAD], "little")
        last, kind, length = block & 1, block >> 1 & 3, block >> 3
        as_they_are = as_they_are and kind == _RAW and bool(last or length == planes.BLOCK)
        stored += length
        at += _BLOCK_HEAD + (1 if kind == _RLE else length)
    at += _CHECKSUM if checked else 0
    if not last or at > len(payload):
        raise DamagedError("a compressed chunk ends too early")
    return _Frame(at, first, stored if as_they_are else None)
