"""What holds whatever is put in: values and files come out as they went in, an experiment is the
same in whatever order its events are read, and no flipped bit goes unseen."""

from __future__ import annotations

import math
import stat
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replicate.backends.memory import MemoryBackend
from replicate.blobs import Batch
from replicate.chunking import LARGE_SPAN
from replicate.errors import DamagedError
from replicate.fold import fold
from replicate.ignore import NEVER
from replicate.model import ExperimentRecord
from replicate.records import (
    Event,
    decode_event,
    decode_experiment,
    decode_value,
    dump,
    encode_event,
    encode_experiment,
    encode_value,
    seal_document,
    seal_event,
    unseal,
)
from replicate.tree import Source, add_tree, read_tree, select, stage
from replicate.values import to_value

# ------------------------------------------------------------ values

texts = st.text(st.characters(), max_size=20)  # lone surrogates too
keys = texts | st.sampled_from(["$float", "$dict", "check", "event", "n"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(keys, values, max_size=5)
START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
EMPTY = ExperimentRecord(
    id="a" * 64, created=START, params={}, user="u", host="h", command="c", path=None, tree=None
)


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types, and with NaN equal to itself."""
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@given(values)
def test_a_value_comes_out_as_it_went_in(value: Any) -> None:
    assert same(to_value(value, "value"), value)
    assert same(decode_value(encode_value(value)), value)


@given(objects)
def test_params_come_out_of_experiment_json_as_they_went_in(params: dict[str, Any]) -> None:
    record = replace(EMPTY, params=params)
    found = decode_experiment(encode_experiment(record), "experiment.json")
    assert same(found.params, params)
    assert replace(found, params={}) == EMPTY


@given(objects)
def test_metrics_come_out_of_a_journal_as_they_went_in(metrics: dict[str, Any]) -> None:
    line = encode_event(checkpoint(0, metrics=metrics))
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    folded = fold(EMPTY, [decode_event(line[:-1], "w0", "line 1")])
    assert same(folded.checkpoints[0].metrics, metrics)


# ------------------------------------------------------------ seals


def flips(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with one bit flipped."""
    whole = int.from_bytes(data)
    bits = st.integers(0, 8 * len(data) - 1)
    return bits.map(lambda bit: (whole ^ (1 << bit)).to_bytes(len(data)))


@given(objects, st.data())
def test_a_flipped_bit_in_a_journal_line_is_detected(value: dict[str, Any], data: Any) -> None:
    line = seal_event(encode_value(value) if value else {"n": 1})[:-1]
    with pytest.raises(DamagedError, match="line 1"):
        unseal(data.draw(flips(line)), "line 1")


@given(objects, st.data())
def test_a_flipped_bit_in_a_document_is_detected_or_changes_nothing(
    value: dict[str, Any], data: Any
) -> None:
    plain = {"value": encode_value(value)}
    try:
        found = unseal(data.draw(flips(seal_document(plain))), "the document")
    except DamagedError:
        return
    assert dump(found) == dump(plain)


@given(st.binary(max_size=60))
def test_bytes_that_were_never_sealed_are_damaged(data: bytes) -> None:
    with pytest.raises(DamagedError):
        unseal(data, "the document")


@given(st.sampled_from([b'{"a"', b'{"a":1}', b"[", b'{"a":' + b"[" * 100_000]))
def test_a_seal_on_what_is_no_json_is_damaged(body: bytes) -> None:
    from blake3 import blake3

    check = blake3(body).hexdigest(length=8).encode()
    with pytest.raises(DamagedError):
        unseal(body + b',"check":"' + check + b'"}', "the document")


# ------------------------------------------------------------ folding


def checkpoint(number: int, **fields: Any) -> Event:
    data = {
        "id": f"{number:064x}",
        "step": number,
        "path": None,
        "tree": None,
        "metrics": encode_value(fields.get("metrics", {"loss": number / 3})),
        "primary_metric": None,
    }
    time = START + timedelta(seconds=fields.get("at", number))
    return Event("checkpoint", time, f"w{number % 3}", number, data)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events of a run, of several writers, with some that came at the same time."""
    count = draw(st.integers(0, 8))
    events = [checkpoint(i, at=draw(st.integers(0, 4))) for i in range(count)]

    def other(kind: str, **data: Any) -> None:
        time = START + timedelta(seconds=draw(st.integers(0, 6)))
        events.append(Event(kind, time, f"w{len(events) % 3}", len(events), data))

    for number in draw(st.lists(st.integers(0, 9), max_size=3)):
        other("delete", checkpoints=[f"{number:064x}"])
    for text in draw(st.lists(st.sampled_from("ab"), max_size=2)):
        other("problem", message=text)
    for status in draw(st.lists(st.sampled_from(["finished", "failed"]), max_size=2)):
        other("stop", status=status)
    for version in draw(st.lists(st.sampled_from(["1", "2"]), max_size=2)):
        other("packages", packages={"numpy": version})
    if draw(st.booleans()):
        other("delete")
    if draw(st.booleans()):
        other("of a later version", anything=[1])
    return events


@given(histories(), st.data())
def test_an_experiment_is_the_same_in_whatever_order_its_events_come(
    events: list[Event], data: Any
) -> None:
    assert fold(EMPTY, data.draw(st.permutations(events))) == fold(EMPTY, events)


@given(histories(), st.data())
def test_a_checkpoint_that_was_written_twice_is_one(events: list[Event], data: Any) -> None:
    checkpoints = [e for e in events if e.kind == "checkpoint"]
    again = [replace(e, writer="z", number=i) for i, e in enumerate(checkpoints)]
    mixed = data.draw(st.permutations(events + again))
    assert fold(EMPTY, mixed) == fold(EMPTY, events)


@given(histories())
def test_what_is_deleted_stays_deleted_whenever_the_deletion_came(events: list[Event]) -> None:
    deleted = {id for e in events if e.kind == "delete" for id in e.data.get("checkpoints", ())}
    folded = fold(EMPTY, events)
    made = {e.data["id"] for e in events if e.kind == "checkpoint"}
    assert {c.id for c in folded.checkpoints} == made - deleted
    assert folded.deleted == any(e.kind == "delete" and "checkpoints" not in e.data for e in events)


@given(histories(), st.sampled_from(["checkpoint", "stop", "packages", "problem"]), objects)
def test_an_event_that_is_malformed_is_named_and_the_others_count(
    events: list[Event], kind: str, data: dict[str, Any]
) -> None:
    known = {"id", "status", "packages", "message"}
    wrong = Event(kind, START, "wrong", 0, {k: v for k, v in data.items() if k not in known})
    folded = fold(EMPTY, [*events, wrong])
    assert "journal wrong" in folded.damage[0]
    assert replace(folded, damage=()) == fold(EMPTY, events)


# ------------------------------------------------------------ files


def _is_taken(name: str) -> bool:
    """Whether snapshots take files of this name, and keep it as it is."""
    return name not in NEVER and name.lower() not in (".git", ".replicate") and ".pyc" not in name


names = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\:"),
    min_size=1,
    max_size=12,
).filter(lambda n: n.strip(".") and _is_taken(n) and len(n.encode()) < 100)
sizes = st.sampled_from([0, 1, 4096, LARGE_SPAN - 1, LARGE_SPAN, LARGE_SPAN + 1, 400_000])
modes = st.sampled_from([0o644, 0o755, 0o600, 0o444])


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.tuples(names, names) | st.tuples(names), st.tuples(sizes, modes)),
    st.integers(0, 255),
    st.booleans(),
)
def test_a_directory_comes_out_as_it_went_in(
    files: dict[tuple[str, ...], tuple[int, int]], byte: int, compress: bool
) -> None:
    with tempfile.TemporaryDirectory() as base:
        before, after = Path(base, "before"), Path(base, "after")
        before.mkdir()
        for number, (parts, (size, mode)) in enumerate(files.items()):
            make_file(before.joinpath(*parts), bytes([byte, number % 256]) * (size // 2 + 1), mode)
        listing = select(before, ["."], use_ignore_files=False)
        backend = MemoryBackend()
        batch = Batch(backend, compress=compress)
        with ExitStack() as stack:
            sources = [
                Source(s.path, s.kind, s.mode, memoryview(s.source.read_bytes()))
                if s.kind == "file"
                else Source(s.path, s.kind, target=s.target)
                for s in listing.selected
            ]
            tree, _ = add_tree(batch, sources, None)
            batch.flush()
            staged = stack.enter_context(stage(backend, read_tree(backend, tree).entries, after))
            staged.move_into_place()
        assert facts_of(after) == facts_of(before)


def make_file(file: Path, content: bytes, mode: int) -> None:
    """Write it, unless a file is where its directory would be, or the other way round."""
    if any(parent.is_file() or parent.is_symlink() for parent in file.parents):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        return
    file.write_bytes(content)
    file.chmod(mode)
    link = file.with_name(f"{file.name} link")
    if mode == 0o755 and not link.exists():
        link.symlink_to(file.name)


def facts_of(directory: Path) -> dict[str, object]:
    return {
        p.relative_to(directory).as_posix(): p.readlink()
        if p.is_symlink()
        else (stat.S_IMODE(p.stat().st_mode), p.read_bytes())
        for p in directory.rglob("*")
        if p.is_symlink() or p.is_file()
    }
