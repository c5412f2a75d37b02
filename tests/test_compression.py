"""What is encoded is decoded to the same bytes, by this library and by plain zstd; what is not an
encoding of so many bytes is refused without being expanded."""

from __future__ import annotations

import contextlib
import random
import re
import struct
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate import compression
from replicate.compression import PLANES, decode, encode
from replicate.errors import DamagedError
from replicate.planes import BLOCK

COMPRESSED = st.sampled_from(sorted(PLANES))


def by_definition(suffix: str, data: bytes) -> bytes:
    """The payload as the module's docstring defines it."""
    count = PLANES[suffix]
    return b"".join(zstandard.compress(data[i::count]) for i in range(count))


def weights(count: int = 100_000) -> bytes:
    return (np.random.default_rng(0).standard_normal(count) * 0.02).astype(np.float32).tobytes()


def bfloat16(count: int = 100_000) -> bytes:
    return np.frombuffer(weights(count), dtype=np.uint16)[1::2].tobytes()


@given(st.binary(max_size=2000), st.integers(1, 300))
def test_what_went_in_comes_out(data: bytes, times: int) -> None:
    suffix, payload = encode(memoryview(data * times))
    assert decode(suffix, payload, len(data) * times) == data * times


@given(COMPRESSED, st.binary(max_size=100))
def test_an_encoding_made_by_its_definition_is_decoded(suffix: str, data: bytes) -> None:
    assert decode(suffix, by_definition(suffix, data), len(data)) == data


@pytest.mark.parametrize("extra", range(5))
def test_a_length_that_the_planes_do_not_divide_comes_out_whole(extra: int) -> None:
    data = weights() + b"tail"[:extra]
    suffix, payload = encode(data)
    assert suffix == ".p4.zst"
    assert decode(suffix, payload, len(data)) == data


@pytest.mark.parametrize("with_numpy", [True, False])
@pytest.mark.parametrize("suffix", sorted(PLANES))
@pytest.mark.parametrize("extra", [-1, 0, 1, 3])
def test_long_chunks_are_decoded_with_numpy_and_without(
    monkeypatch: pytest.MonkeyPatch, suffix: str, extra: int, with_numpy: bool
) -> None:
    if not with_numpy:
        monkeypatch.setitem(sys.modules, "numpy", None)
    for size in (BLOCK + extra, 10 * BLOCK + extra):
        data = random.Random(size).randbytes(size)
        assert decode(suffix, by_definition(suffix, data), size) == data


@pytest.mark.parametrize("with_numpy", [True, False])
@pytest.mark.parametrize("suffix", sorted(PLANES))
@pytest.mark.parametrize("extra", range(5))
def test_long_chunks_are_encoded_as_defined_with_numpy_and_without(
    monkeypatch: pytest.MonkeyPatch, suffix: str, extra: int, with_numpy: bool
) -> None:
    if not with_numpy:
        monkeypatch.setitem(sys.modules, "numpy", None)
    data = weights(300_000) + b"tail"[:extra]
    payload = compression.encode_as(suffix, data)
    reader = zstandard.ZstdDecompressor().stream_reader(payload, read_across_frames=True)
    assert reader.read() == b"".join(data[i :: PLANES[suffix]] for i in range(PLANES[suffix]))


def test_a_chunk_that_begins_anywhere_in_memory_is_encoded_alike() -> None:
    data = weights(300_000)
    for shift in range(1, 4):
        assert encode(memoryview(bytes(shift) + data)[shift:]) == encode(data)


def frame_of_blocks(plane: bytes, length: int, *, checksum: bool = False) -> bytes:
    """A frame whose blocks hold `length` bytes as they are, of a length that it does not say."""
    blocks = [plane[at : at + length] for at in range(0, len(plane), length)] or [b""]
    head = struct.pack("<LBB", zstandard.MAGIC_NUMBER, checksum << 2, (20 - 10) << 3)
    for number, block in enumerate(blocks, 1):
        head += (len(block) << 3 | (number == len(blocks))).to_bytes(3, "little") + block
    return head + b"none" * checksum


@pytest.mark.parametrize("size", [3, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 9 * BLOCK + 2])
@pytest.mark.parametrize("length", [BLOCK // 2, BLOCK - 1, BLOCK])
def test_planes_that_zstd_left_as_they_are_come_out_whatever_their_blocks(
    size: int, length: int
) -> None:
    data = random.Random(size).randbytes(2 * size - 1)
    planes = [data[0::2], data[1::2]]
    payload = b"".join(frame_of_blocks(plane, length) for plane in planes)
    assert decode(".p2.zst", payload, len(data)) == data
    mixed = frame_of_blocks(planes[0], length) + zstandard.compress(planes[1])
    assert decode(".p2.zst", mixed, len(data)) == data


def test_a_plane_with_a_checksum_is_checked() -> None:
    data = random.Random(0).randbytes(1000)
    checked = zstandard.ZstdCompressor(write_checksum=True)
    planes = data[0::2], data[1::2]
    assert decode(".p2.zst", b"".join(map(checked.compress, planes)), 1000) == data
    wrong = frame_of_blocks(planes[0], BLOCK, checksum=True) + checked.compress(planes[1])
    with pytest.raises(DamagedError):
        decode(".p2.zst", wrong, 1000)


def test_planes_of_other_lengths_are_damage() -> None:
    for first, second in ((b"abc", b"d"), (b"a", b"bcd"), (b"abcd", b""), (b"", b"abcd")):
        for frame in (zstandard.compress, lambda plane: frame_of_blocks(plane, BLOCK)):
            with pytest.raises(DamagedError):
                decode(".p2.zst", frame(first) + frame(second), 4)


def test_several_threads_decode_at_once_each_in_its_own_memory() -> None:
    several = [weights(400_000 + i) for i in range(8)]
    encoded = [encode(data) for data in several]
    with ThreadPoolExecutor(4) as pool:
        decoded = pool.map(lambda e, data: decode(*e, len(data)), encoded, several)
        assert list(decoded) == several


@pytest.mark.parametrize(
    ("data", "suffix", "ratio"),
    [
        (weights(), ".p4.zst", 0.86),
        (bfloat16(), ".p2.zst", 0.75),
        (b"epoch 17: loss 0.25, accuracy 0.97\n" * 5000, ".zst", 0.01),
        (bytes(100_000), ".zst", 0.01),
    ],
    ids=["float32", "bfloat16", "text", "zeros"],
)
def test_each_kind_of_content_gets_the_encoding_that_suits_it(
    data: bytes, suffix: str, ratio: float
) -> None:
    chosen, payload = encode(data)
    assert chosen == suffix
    assert len(payload) <= ratio * len(data)


@pytest.mark.parametrize("size", [0, 1, 50, 100_000])
def test_what_does_not_compress_stays_raw_and_is_not_copied(size: int) -> None:
    data = memoryview(random.Random(0).randbytes(size))
    suffix, payload = encode(data)
    assert suffix == ""
    assert payload is data


def test_a_compressible_sample_of_noise_does_not_make_it_longer() -> None:
    data = bytearray(random.Random(0).randbytes(4 << 20))
    data[: 16 << 10] = bytes(16 << 10)
    assert encode(bytes(data)) == ("", bytes(data))


def test_a_zst_payload_is_a_plain_zstd_frame() -> None:
    text = b"plain text " * 10_000
    suffix, payload = encode(text)
    assert suffix == ".zst"
    assert zstandard.ZstdDecompressor().decompress(payload) == text


def test_the_decoder_in_the_docstring_works(tmp_path: Path) -> None:
    data = weights() + b"odd"
    blob = tmp_path / "blob.p4.zst"
    blob.write_bytes(encode(data)[1])
    assert compression.__doc__ is not None
    recipe = "".join(re.findall(r"^    (.* = open.*\n(?:    .*\n)+)", compression.__doc__, re.M))
    names: dict[str, Any] = {"name": str(blob), "zstandard": zstandard}
    exec(textwrap.dedent("    " + recipe), names)
    names["frames"].close()
    assert names["out"] == data


# Damage


@pytest.mark.parametrize("suffix", ["", *PLANES])
def test_a_payload_of_another_length_is_damaged(suffix: str) -> None:
    payload = by_definition(suffix, b"four") if suffix else b"four"
    for size in (0, 3, 5, 1000):
        with pytest.raises(DamagedError):
            decode(suffix, payload, size)


@pytest.mark.parametrize("suffix", sorted(PLANES))
def test_bytes_missing_from_or_added_to_a_payload_are_damage(suffix: str) -> None:
    data = weights(1000)
    payload = by_definition(suffix, data)
    for damaged in (payload[:-20], payload[20:], payload + payload, payload + b"rest", b""):
        with pytest.raises(DamagedError):
            decode(suffix, damaged, len(data))


@settings(max_examples=300)
@given(COMPRESSED, st.integers(0, 900), st.binary(min_size=1, max_size=9), st.integers(0, 2000))
def test_a_damaged_payload_gives_so_many_bytes_or_damage(
    suffix: str, at: int, value: bytes, size: int
) -> None:
    payload = bytearray(by_definition(suffix, b"some text " * 20 + weights(100)))
    payload[at : at + len(value)] = value
    with contextlib.suppress(DamagedError):
        assert len(decode(suffix, bytes(payload), size)) == size


def bomb() -> bytes:
    """A hundred megabytes of zeros in a few kilobytes."""
    return zstandard.compress(bytes(100 << 20))


def says_a_terabyte() -> bytes:
    """A frame in one segment that says it holds a terabyte, and has one block of zeros."""
    block = (1 | 1 << 1 | 100_000 << 3).to_bytes(3, "little") + b"\0"
    return struct.pack("<LBQ", zstandard.MAGIC_NUMBER, 0b1110_0000, 1 << 40) + block


def wants_a_huge_window() -> bytes:
    """A frame of unknown length that asks for a window of 2 GiB."""
    block = (1 | 1 << 1 | 100_000 << 3).to_bytes(3, "little") + b"\0"
    return struct.pack("<LBB", zstandard.MAGIC_NUMBER, 0, (31 - 10) << 3) + block


@pytest.mark.parametrize("suffix", sorted(PLANES))
@pytest.mark.parametrize("hostile", [bomb, says_a_terabyte, wants_a_huge_window])
def test_a_payload_that_would_grow_is_refused_before_it_does(
    hostile: Callable[[], bytes], suffix: str
) -> None:
    payload = hostile()
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            decode(suffix, payload, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
