"""Two versions of a file share the chunks of what they have in common, and no file, however odd or
hostile, is cut into anything but itself."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate import chunking
from replicate.chunking import GRID, KIB, LARGE_SPAN, MAX_CHUNK, MIB, containers
from replicate.readers import MemoryReader, opened

Tensors = dict[str, bytes]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def chunks(data: bytes) -> list[bytes]:
    """The chunks of a file, checked to be what `cut` promises for every file."""
    found = [bytes(chunk) for chunk in chunking.cut(MemoryReader(data))]
    assert b"".join(found) == data
    assert all(0 < len(chunk) <= MAX_CHUNK for chunk in found)
    return found


def shared(old: bytes, new: bytes) -> float:
    """The part of `new` that need not be stored when `old` is."""
    known = set(chunks(old))
    return sum(len(chunk) for chunk in chunks(new) if chunk in known) / len(new)


def torch_file(stem: str, tensors: list[bytes], pickle: bytes = b"pickle") -> bytes:
    """A file laid out as `torch.save` does: stored members under the stem, data aligned to 64."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{stem}/data.pkl", pickle)
        for i, tensor in enumerate(tensors):
            info = zipfile.ZipInfo(f"{stem}/data/{i}")
            padding = -(out.tell() + 30 + len(info.filename) + 4) % 64
            info.extra = struct.pack("<2s H", b"FB", padding) + b"Z" * padding
            archive.writestr(info, tensor)
        archive.writestr(f"{stem}/version", b"3\n")
    return out.getvalue()


def safetensors_file(tensors: Tensors, **metadata: str) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + len(tensor)
        header[name] = {"dtype": "U8", "shape": [len(tensor)], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def archive_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


LARGE = [noise(size, seed=size) for size in (200 * KIB, 9 * MIB, 1 * MIB)]


# What is shared


def test_a_short_file_is_one_chunk_and_an_empty_one_none() -> None:
    assert chunks(b"") == []
    assert len(chunks(noise(64 * KIB))) == 1
    assert len(chunks(torch_file("m", [noise(50 * KIB)] * 2))) == 1


def test_the_same_weights_saved_under_two_names_share_their_chunks() -> None:
    best, last = torch_file("best", LARGE), torch_file("model_last", LARGE)
    assert shared(best, last) > 0.99


def test_small_tensors_that_change_leave_the_large_ones_between_them_alone() -> None:
    def model(seed: int) -> list[bytes]:
        return [t for i, large in enumerate(LARGE) for t in (large, noise(4 * KIB, seed + i))]

    assert shared(torch_file("m", model(100)), torch_file("m", model(200))) > 0.99


def test_an_unchanged_tensor_keeps_its_chunks_when_it_moves() -> None:
    old = torch_file("m", LARGE)
    new = torch_file("m", [noise(300 * KIB, seed=9), *LARGE], pickle=b"a longer pickle" * 999)
    assert set(LARGE[0:1]) <= set(chunks(old)) & set(chunks(new))
    assert shared(new, old) > 0.99


def test_a_tensor_is_cut_the_same_in_a_small_file_and_in_a_large_one() -> None:
    more = [noise(3 * MIB, seed=i) for i in range(12)]
    assert shared(torch_file("m", LARGE + more), torch_file("m", LARGE)) > 0.99


def test_rows_appended_to_a_tensor_leave_its_full_chunks() -> None:
    table = noise(5 * GRID)
    old, new = (safetensors_file({"table": t}) for t in (table, table + noise(MIB, seed=1)))
    assert shared(old, new) > 0.9


def test_safetensors_share_tensors_whatever_the_metadata_says() -> None:
    tensors = {str(i): tensor for i, tensor in enumerate(LARGE)}
    old, new = safetensors_file(tensors), safetensors_file(tensors, epoch="12", note="n" * 999)
    assert shared(old, new) > 0.99
    assert set(LARGE[:1]) <= set(chunks(new))


def test_arrays_of_numpy_savez_are_found() -> None:
    arrays = [np.frombuffer(tensor, dtype=np.float32) for tensor in LARGE]
    old, new = io.BytesIO(), io.BytesIO()
    np.savez(old, *arrays)
    np.savez(new, np.arange(100), *arrays)
    assert shared(old.getvalue(), new.getvalue()) > 0.95


def test_what_torch_writes_is_cut_at_its_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    state = {
        str(i): torch.frombuffer(bytearray(t), dtype=torch.float32) for i, t in enumerate(LARGE)
    }
    torch.save(state, path)
    assert {LARGE[0], LARGE[2]} <= set(chunks(path.read_bytes()))


def test_bytes_inserted_into_an_opaque_file_cost_a_chunk_or_two() -> None:
    old = noise(30 * MIB)
    assert shared(old, old[:5000] + noise(4 * KIB, seed=1) + old[5000:]) > 0.9


def test_long_content_is_cut_into_fewer_chunks() -> None:
    content = noise(64 * MIB)
    short, long = (chunks(c) for c in (content[:-1], content))
    assert 150 < len(short) < 300
    assert 35 < len(long) < 75


def test_an_opaque_stored_member_is_cut_by_content() -> None:
    weights = noise(20 * MIB)
    old = archive_of({"config.json": b"{}", "model.weights.h5": weights})
    new = archive_of({"config.json": b"{}", "model.weights.h5": b"inserted" + weights})
    assert shared(old, new) > 0.9


def test_only_stored_members_of_an_archive_are_spans() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("stored.npy", b"s" * 500)
        archive.writestr("deflated.npy", b"d" * 500, zipfile.ZIP_DEFLATED)
    data = out.getvalue()
    found = containers.find_spans(MemoryReader(data))
    assert [data[s.start : s.end] for s in found] == [b"s" * 500]


def test_archives_with_64_bit_numbers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [noise(300), noise(400), noise(500)]
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 200)  # from where zipfile uses the long form
    data = torch_file("m", tensors)
    assert b"PK\6\6" in data
    found = [data[s.start : s.end] for s in containers.find_spans(MemoryReader(data)) if s.is_array]
    assert found == tensors


def test_many_small_tensors_merge_into_chunks_of_some_size() -> None:
    data = safetensors_file({f"layer{i}": noise(5 * KIB, seed=i) for i in range(400)})
    assert all(LARGE_SPAN <= len(c) < 2 * LARGE_SPAN for c in chunks(data)[:-1])


def test_without_the_content_cutter_opaque_files_are_cut_on_a_grid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyfastcdc.cy", None)
    assert [len(c) for c in chunks(noise(2 * GRID + MIB))] == [GRID, GRID, MIB]
    assert [len(c) for c in chunks(noise(2 * GRID + KIB))] == [GRID, GRID + KIB]


def test_a_file_that_never_varies_is_cut_too() -> None:
    assert len(set(chunks(bytes(40 * MIB)))) <= 2


# Hostile files


@pytest.mark.parametrize("size", [100 * KIB, 3 * MIB, 63 * MIB, 65 * MIB])
def test_content_is_cut_the_same_a_window_at_a_time_as_in_one_piece(size: int) -> None:
    fastcdc = pytest.importorskip("pyfastcdc.cy")
    content = noise(size, seed=size)
    least, typical, greatest = next(s for at, s in chunking.CONTENT_SIZES if size >= at)
    cutter = fastcdc.FastCDC(typical, min_size=least, max_size=greatest)
    whole = [chunk.length for chunk in cutter.cut_buf(content)]
    assert [len(chunk) for chunk in chunks(content)] == (whole if size >= LARGE_SPAN else [size])


SIZES = st.integers(1, 300)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 9), SIZES, SIZES, SIZES)
def test_where_the_windows_end_moves_no_cut(
    content: bytes, repeated: int, least: int, typical: int, more: int
) -> None:
    fastcdc = pytest.importorskip("pyfastcdc.cy")
    content = content * 2**repeated
    least, typical = 64 + least, 256 + least + typical
    sizes = (least, typical, max(1024, typical + more))
    cutter = fastcdc.FastCDC(typical, min_size=least, max_size=sizes[2])
    whole = [chunk.length for chunk in cutter.cut_buf(content)] if content else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "LARGE_SPAN", 1)
        patch.setattr(chunking, "CONTENT_SIZES", ((0, sizes),))
        patch.setattr(chunking, "WINDOW", sizes[2] + more)
        patch.setattr(chunking, "find_spans", lambda reader: [])
        assert [len(chunk) for chunk in chunks(content)] == whole


def test_a_file_that_is_cut_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(torch_file("m", [noise(9 * MIB, seed=i) for i in range(8)]))
    with opened(path) as reader:
        tracemalloc.start()
        for _ in chunking.cut(reader):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 36 * MIB


def test_what_was_read_stays_as_it_is_while_anybody_looks_at_it(tmp_path: Path) -> None:
    path = tmp_path / "model.npy"
    np.save(path, np.frombuffer(noise(80 * MIB), np.uint8))
    with opened(path) as reader:
        every_fifth = [chunk for n, chunk in enumerate(chunking.cut(reader)) if n % 5 == 0]
    with opened(path) as reader:
        again = [bytes(chunk) for n, chunk in enumerate(chunking.cut(reader)) if n % 5 == 0]
    assert every_fifth == again


def test_a_file_that_is_cut_short_meanwhile_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(noise(65 * MIB))
    with opened(path) as reader, pytest.raises(OSError, match="shorter"):
        for number, _ in enumerate(chunking.cut(reader)):
            if not number:
                os.truncate(path, 1000)


def test_a_file_of_very_many_members_is_looked_at_only_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(containers, "MAX_PARTS", 10)
    for data in (
        archive_of({f"{i}.npy": b"content" for i in range(20)}),
        safetensors_file({str(i): b"content" for i in range(20)}),
    ):
        assert len(containers.find_spans(MemoryReader(data))) == 10


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"data_offsets": [-5, 1000000]}}',
        b'{"a": {"data_offsets": [0, 99999999999999999999999999]}}',
        b'{"a": {"data_offsets": [500, 3]}}',
        b'{"a": {"data_offsets": [7, 7]}}',
        b'{"a": {"data_offsets": [0.5, 1e300]}}',
        b'{"a": {"data_offsets": "no"}, "b": 5}',
        b'{"\xff\xfe": {"data_offsets": [0, 5]}}',
        b'{"a": ' + b"[" * 200_000,
        b'{"a": ' + b'{"b":' * 200_000,
        b'{"a": {"data_offsets": [0, 200000]}, "b": {"data_offsets": [100000, 300000]}}',
    ],
)
def test_a_safetensors_header_that_makes_no_sense_is_survived(header: bytes) -> None:
    chunks(len(header).to_bytes(8, "little") + header + noise(400 * KIB))


@pytest.mark.parametrize("length", [0, 1, 1 << 20, (1 << 63) - 1, (1 << 64) - 1])
def test_a_safetensors_length_that_lies_is_survived(length: int) -> None:
    chunks(length.to_bytes(8, "little") + b"{" + noise(400 * KIB))


def test_members_that_overlap_are_cut_once() -> None:
    """A directory that lists one member a thousand times, as in a decompression bomb."""
    data = archive_of({"a.npy": noise(300 * KIB)})
    start = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    entry = data[start:end]
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1000, 1000, 1000 * len(entry), start, 0)
    hostile = data[:start] + entry * 1000 + last
    assert len(containers.find_spans(MemoryReader(hostile))) == 1
    chunks(hostile)


BASES = {
    "torch": torch_file("m", [noise(140 * KIB), noise(100), noise(10), noise(150 * KIB)]),
    "safetensors": safetensors_file({"a": noise(140 * KIB), "b": noise(9), "c": noise(150 * KIB)}),
}
VALUES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\xff" * 2, b"\xff" * 4, b"\xff" * 8, b"\0" * 4, b"PK\6\6", b"PK\6\7"]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(BASES)),
    # Positions from either end: headers are in front, the directory is at the back.
    st.lists(st.tuples(st.integers(-700, 400), VALUES), max_size=6),
    st.integers(0, 500),
    st.booleans(),
)
def test_a_damaged_container_is_cut_into_itself(
    base: str, changes: list[tuple[int, bytes]], cut_off: int, long_form: bool
) -> None:
    data = bytearray(BASES[base])
    for at, value in changes:
        at %= len(data)
        data[at : at + len(value)] = value
    if long_form:
        data[-22:-22] = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 200, 1)
    chunks(bytes(data[: len(data) - cut_off]))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"", b"PK\3\4", b"\x30\0\0\0\0\0\0\0{"]), st.binary(), st.binary())
def test_parsers_take_any_bytes(magic: bytes, content: bytes, tail: bytes) -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 99, len(magic), 0)
    data = magic + content + end + tail
    spans = containers.find_spans(MemoryReader(data))
    ends = [offset for span in spans for offset in span[:2]]
    assert ends == sorted(ends)
    assert not ends or ends[-1] <= len(data)
