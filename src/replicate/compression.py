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


def decode(suffix: str, payload: bytes | memoryview, size: int) -> bytes:
    """The `size` bytes that `encode` was given.

    Raises DamagedError when `payload` does not hold exactly that many; a payload that would grow
    beyond `size` is never expanded further. `suffix` is one of `SUFFIXES`; `size`, which is
    allocated, has been checked to be a chunk's.
    """
    if suffix == "":
        if len(payload) != size:
            raise DamagedError(f"a chunk should have {size} bytes but {len(payload)} are stored")
        return bytes(payload)
    planes = _decompress(payload, size)
    return planes if PLANES[suffix] == 1 else _interleave(planes, PLANES[suffix])


def _sample(data: bytes | memoryview) -> bytes:
    """Start, middle and end of `data`, or all of it when short. Each piece starts at a whole
    multiple of 16 bytes, so that numbers lie in it as they do in `data`."""
    if len(data) <= _SAMPLES * _SAMPLE:
        return bytes(data)
    step = (len(data) - _SAMPLE) // (_SAMPLES - 1) & ~15
    return b"".join(data[i * step : i * step + _SAMPLE] for i in range(_SAMPLES))


def _compress(data: bytes | memoryview, planes: int) -> bytes:
    import zstandard  # 12 ms, which a repository that stores raw bytes need not pay

    compressor = zstandard.ZstdCompressor(level=LEVEL)
    if planes == 1:
        return compressor.compress(data)
    whole = bytes(data)  # ten times faster to take every K-th byte of than a memoryview
    return b"".join(compressor.compress(whole[i::planes]) for i in range(planes))


def _decompress(payload: bytes | memoryview, size: int) -> bytes:
    """All frames of `payload` expanded and joined, `size` bytes of them."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    reader = decompressor.stream_reader(payload, read_across_frames=True)
    try:
        # One byte more than there should be tells a longer payload from a right one. What a frame
        # says of its own length is not believed.
        data = reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise DamagedError(f"a compressed chunk cannot be read: {error}") from error
    if len(data) != size:
        held = f"only {len(data)}" if len(data) < size else "more"
        raise DamagedError(f"a compressed chunk should hold {size} bytes but holds {held}")
    return data


def _interleave(planes: bytes, count: int) -> bytes:
    out = bytearray(len(planes))
    start = 0
    for i in range(count):
        end = start + len(range(i, len(out), count))
        out[i::count] = planes[start:end]
        start = end
    return bytes(out)
