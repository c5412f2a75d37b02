"""Hostile repositories: valid ones in which something was changed by whoever means harm, sealed and
named anew so that checksums and hashes are right. `test_hostile_repository.py` reads them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import zstandard

from replicate.backends.memory import MemoryBackend
from replicate.blobs import Recent, hash_of, tree_key
from replicate.maintenance import compact
from replicate.model import CheckpointRecord, Status, Stop
from replicate.packs import pack_key
from replicate.records import checkpoint_data, encode_time, new_id, stop_data, unseal
from replicate.records.sealed import _digest
from replicate.repository import Repository
from replicate.tree import Source, add_tree
from saving import Run, finished, store

#: What a terminal would act on, or what would disguise a name: none of it may be written to one.
ACTIONS = ("\x1b[2J\x1b]0;owned\x07", "\r", "\x08", "\u202egnp.exe", "\x9b31m", "\x00", "\u2028")
NASTY_TEXT = "nasty" + "".join(ACTIONS)

#: What stands in for a value of a document.
STRANGE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**63, 10**400, -(10**400), 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "x", NASTY_TEXT, "../../etc/passwd", "/etc/passwd", "\ud800", "a" * 100_000, "0" * 64),
    *("NaN", "1e999", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z", "2026-01-01"),
    *("2026-11-23T09:41:00+23:59", "not a time", "-", "<script>alert(1)</script>", "{0.__class__}"),
    *([], {}, [[]], [None], ["x", 1], {"": ""}, {"$float": "x"}, {"$dict": 1}, {"$float": []}),
    *([0.0, 1, {"loss": 1}], {"experiment": "0" * 64, "checkpoint": None}, ["a"] * 10_000),
    {NASTY_TEXT: NASTY_TEXT},
)


def nested(depth: int) -> Any:
    """A list in a list in a list …"""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# ------------------------------------------------------------ a valid repository, and its bytes


def valid_bucket() -> MemoryBackend:
    """The same in a bucket: with packs, and with a snapshot of what is over."""
    bucket = Remote()
    repository = Repository(valid(bucket).forwarded(HOUR))
    compact(repository)
    run = Run(repository)
    batch = repository.batch(compress=True, recent=Recent())
    files = {"model.pth": b"3" * 1000, "log.txt": b"x", "sub/a.txt": b"y" * 50}
    sources = [Source(path, view=memoryview(data)) for path, data in files.items()]
    tree, size = add_tree(batch, sources, None)
    batch.flush()
    made = CheckpointRecord(
        id=new_id(),
        experiment=run.id,
        created=datetime.now(UTC),
        step=0,
        path="model.pth",
        tree=tree,
        metrics={"loss": 1},
        size=size,
        stored=size,
        packs=batch.packs_of(tree),
    )
    run.journal.append([("checkpoint", made.created, checkpoint_data(made))])
    return bucket


class Remote(MemoryBackend):
    """A bucket, whose clock goes forward at will."""

    remote = True

    def __init__(self) -> None:
        self.ahead = 0.0
        super().__init__(lambda: time.time() + self.ahead)

    def forwarded(self, seconds: float) -> Remote:
        self.ahead += seconds
        return self


HOUR = 2 * 3600.0


def valid(backend: Any = None) -> Any:
    """A repository with something of everything: attempts, edits, streams, chunks, a checkout."""
    backend = MemoryBackend() if backend is None else backend
    repository = Repository(backend)
    run = Run(repository, {"train.py": b"print(1)\n", "conf/a.yaml": b"lr: 1\n"})
    first = run.checkpoint({"model.pth": b"0" * 100, "log.txt": b"x"}, 0.5)
    run.checkpoint({"model.pth": b"1" * 100}, 0.25)
    run.beat()
    when = datetime.now(UTC)
    attempt = {
        "id": new_id(),
        "attempt": 2,
        "params": {"lr": 0.1, "deep": {"er": [1, 2]}},
        "command": "train.py",
        "user": "ada",
        "host": "lovelace",
        "path": ["."],
        "tree": None,
        "environment": {"gpus": []},
        "packages": {"torch": "2"},
        "from_step": 0,
        "restored": {"checkpoint": first, "attempt": 1, "time": encode_time(when)},
    }
    author = {"author": "ada@lovelace"}
    events: list[tuple[str, Mapping[str, Any]]] = [
        ("attempt", attempt),
        ("tag", {**author, "add": ["a", "b"], "remove": ["b"]}),
        ("note", {**author, "text": "a note"}),
        ("name", {**author, "name": "baseline"}),
        ("group", {**author, "group": "g"}),
        ("packages", {"packages": {"numpy": "1"}}),
        ("summary", {"metrics": {"loss": 0.1}}),
        ("problem", {"message": "something"}),
        ("drop", {"checkpoints": [new_id()]}),
        ("delete", {"checkpoints": [new_id()]}),
    ]
    for number, (kind, data) in enumerate(events):
        run.journal.append([(kind, when + timedelta(seconds=number), data)])
    stop = {**stop_data(Stop(when, Status.FAILED, exit_code=1)), "attempt": 2}
    error = {"type": "E", "message": "m", "traceback": "t"}
    run.journal.append([("stop", when, {**stop, "exception": error, "signal": "SIGTERM"})])
    _add_streams(repository, run.id, when)
    document = {
        "id": new_id(),
        "created": encode_time(when),
        "directory": "/nowhere",
        "checked_out": run.id,
        "replaced": store(repository, {"old.py": b"1"}),
        "added": ["x"],
        "undoes": None,
    }
    backend.put(f"checkouts/{document['id']}.json", sealed(document))
    finished(repository, {"model.pth": b"2" * 100}, code={"train.py": b"print(2)\n"})
    return backend


def _add_streams(repository: Repository, id: str, when: datetime) -> None:
    log = {"source": "a", "first": 0, "points": [[0.5, 1, {"loss": 1}], None, [1, 2, {"x": 2}]]}
    text = {"stream": "stdout", "source": "a", "first": 0, "end": 1, "text": "hello\n"}
    sample = {"metrics": {"cpu": 1.0, "gpu.0.memory": 1}}
    for stream, kind, data in (
        ("log", "log", log),
        ("console", "output", text),
        ("system", "sample", sample),
    ):
        repository.journal(id, new_id()[:16], stream).append([(kind, when, data)])


def sealed(value: Any) -> bytes:
    """A line or document with a checksum that is right, of whatever can be written as JSON."""
    body = json.dumps(value, separators=(",", ":"))
    body = (body[:-1] if body.endswith("}") else body).encode()
    return body + b',"check":"' + _digest(body) + b'"}\n'


# ------------------------------------------------------------ changes


def changed(value: Any, random: random.Random) -> Any:
    """A copy of a JSON value in which one part was replaced, removed, doubled or added."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        return random.choice(STRANGE)
    copy = value.copy()
    place = random.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    chance = random.random()
    if chance < 0.1:
        del copy[place]
    elif chance < 0.15 and isinstance(copy, dict):
        copy[random.choice((NASTY_TEXT, "", "attempt", "packs", "checkpoints"))] = random.choice(
            STRANGE
        )
    elif chance < 0.2:
        copy[place] = nested(random.choice((50, 150, 900, 5_000)))
    else:
        copy[place] = changed(copy[place], random)
    return copy


def spoilt(data: bytes, random: random.Random) -> bytes:
    """Bytes that some are missing from, or were flipped, doubled or added to."""
    place = random.randrange(len(data) + 1)
    return random.choice(
        (
            data[:place],
            data[:place] + bytes([random.randrange(256)]) + data[place + 1 :],
            data[:place] + data[place // 2 :],
            data + random.randbytes(20),
            b"\xff\xfe" + data,
            b"[" * 100_000,
            b"",
        )
    )


def with_change(key: str, data: bytes, random: random.Random) -> bytes:
    """The bytes of a key with one thing changed, and whatever vouches for them made anew."""
    if random.random() < 0.15:
        return spoilt(data, random)
    if key == "repository.json" or key.startswith("trees/"):
        return _dumped(changed(json.loads(data), random))
    if key.startswith("blobs/"):
        return spoilt(data, random)
    if key.startswith("packs/"):
        line, newline, rest = data.partition(b"\n")
        return _dumped(changed(json.loads(line), random)) + newline + rest
    if key.startswith("snapshots/parts/"):
        return _with_changed_row(data, random)
    if key.startswith("changes/"):
        return data
    if key.endswith(".jsonl"):
        lines = data.splitlines(keepends=True)
        place = random.randrange(len(lines))
        lines[place] = _resealed(lines[place], random)
        return b"".join(random.sample(lines, len(lines)) if random.random() < 0.1 else lines)
    return _resealed(data, random)


def _with_changed_row(data: bytes, random: random.Random) -> bytes:
    """A part of a snapshot; only rows are compressed."""
    if not data.startswith(b"\x28\xb5\x2f\xfd"):
        return spoilt(data, random)
    raw = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    lines = raw.splitlines(keepends=True)
    place = random.randrange(len(lines))
    lines[place] = _resealed(lines[place], random)
    return zstandard.ZstdCompressor().compress(b"".join(lines))


def _resealed(data: bytes, random: random.Random) -> bytes:
    value = changed(unseal(data, ""), random)
    try:
        return sealed(value)
    except RecursionError:
        return sealed({"deep": nested(500)})


def _dumped(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5_000 + b"]" * 5_000


def hostile(base: MemoryBackend, seed: int) -> MemoryBackend:
    """A copy of a repository with some changes, the same for the same seed."""
    chance = random.Random(seed)
    keys = [stat.key for stat in base.list()]
    contents = {key: base.get(key) for key in keys}
    for key in chance.sample(keys, min(len(keys), chance.choice((1, 1, 2, 4)))):
        contents[key] = with_change(key, contents[key], chance)
    _rename(contents, "trees/", tree_key)
    _rename(contents, "packs/", pack_key)
    _rename_parts(contents)
    made = type(base)()
    for key, data in contents.items():
        made.put(key, data)
    return made


def _rename(contents: dict[str, bytes], prefix: str, key_of: Callable[[str], str]) -> None:
    """Put every tree, or pack, under the name of its bytes, and name it so where it is used."""
    for key in [key for key in contents if key.startswith(prefix)]:
        data = contents.pop(key)
        old, new = key.rpartition("/")[2].partition(".")[0], hash_of(data)
        contents[key_of(new)] = data
        if old != new:
            for other in [k for k in contents if k.startswith("experiments/")]:
                contents[other] = replaced(contents[other], old, new)


def _rename_parts(contents: dict[str, bytes]) -> None:
    """The same for the parts of a snapshot, and their sizes in its manifest."""
    for key in [key for key in contents if key.startswith("snapshots/parts/")]:
        data = contents.pop(key)
        new = hash_of(data)
        contents[f"snapshots/parts/{new[:2]}/{new}"] = data
        raw = data
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            raw = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        for manifest in [k for k in contents if k.startswith("snapshots/manifests/")]:
            contents[manifest] = _with_part(
                contents[manifest], key.rpartition("/")[2], [new, len(data), len(raw)]
            )


def _with_part(manifest: bytes, old: str, part: list[Any]) -> bytes:
    """A manifest in which `old` is that part; one that was spoilt stays so."""
    try:
        value = unseal(manifest, "")
        for group in value["groups"]:
            if group["rows"][0] == old:
                group["rows"] = part
            group["ids"] = [[i[0], *part] if i[1] == old else i for i in group["ids"]]
        return sealed(value)
    except Exception:
        return manifest


def replaced(data: bytes, old: str, new: str) -> bytes:
    """Sealed lines or a document in which one text was replaced by another."""
    if old.encode() not in data:
        return data
    lines = data.splitlines(keepends=True) if data.startswith(b'{"event"') else [data]
    return b"".join(map(_swapping(old, new), lines))


def _swapping(old: str, new: str) -> Callable[[bytes], bytes]:
    def swap(line: bytes) -> bytes:
        body, _comma, check = line.rpartition(b",")
        if old.encode() not in body or b'"check"' not in check:
            return line
        body = body.replace(old.encode(), new.encode())
        return body + b',"check":"' + _digest(body) + b'"}\n'

    return swap
