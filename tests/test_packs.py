"""Small objects go into packs where that saves requests, and come out again whatever happened."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from replicate import blobs
from replicate.backends.base import Backend, Content
from replicate.backends.local import LocalBackend
from replicate.backends.location import open_backend
from replicate.backends.memory import MemoryBackend
from replicate.blobs import FRESH, TOUCHED, Recent, blob_key, read_blob
from replicate.errors import DamagedError, KeyNotFoundError, UsageError
from replicate.index import Index
from replicate.maintenance import check, collect, measure, plan_removal, remove
from replicate.maintenance.gc import GRACE, REMOTE_GRACE
from replicate.model import Attempt, CheckpointRecord, ExperimentRecord
from replicate.packs import (
    MAX_PACK,
    PACK_BYTES,
    PACK_OBJECTS,
    Packs,
    decode_header,
    encode_pack,
    pack_key,
)
from replicate.project import checkouts
from replicate.records import attempt_data, checkpoint_data, new_id, now
from replicate.repository import Repository
from replicate.tree import Source, add_tree, reader

Files = Mapping[str, bytes]


class Bucket(MemoryBackend):
    """A bucket in memory that counts its requests and touches what is there as seldom as it may,
    with a clock that only goes when told."""

    remote = True

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.requests: Counter[str] = Counter()
        super().__init__(clock=lambda: self.time)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.requests["get"] += 1
        return super().get(key, start, length)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        self.requests["put"] += len(items)
        young = {k for k in items if (s := self.stat(k)) and self.time - s.modified < fresh}
        return super().put_if_absent({k: c for k, c in items.items() if k not in young})


class Run:
    """A run that saves into a bucket, as its recorder does."""

    def __init__(self, repository: Repository, code: Files | None = None) -> None:
        self.repository = repository
        self.recent = Recent()
        self.id = new_id()
        self.journal = repository.journal(self.id, new_id()[:16])
        tree, packs = self.store([code])[0] if code else (None, ())
        repository.create()
        repository.create_experiment(
            ExperimentRecord(
                id=self.id,
                created=now(),
                params={},
                user="ada",
                host="lovelace",
                command="train.py",
                path=".",
                tree=tree,
                packs=packs,
            )
        )

    def store(self, versions: Iterable[Files]) -> list[tuple[str, tuple[str, ...]]]:
        """Store each of these in one go; the trees, and the packs that they are in."""
        batch = self.repository.batch(compress=True, recent=self.recent)
        trees = [
            add_tree(batch, [Source(p, view=memoryview(d)) for p, d in files.items()], None)[0]
            for files in versions
        ]
        batch.flush()
        return [(tree, batch.packs_of(tree)) for tree in trees]

    def checkpoints(self, *versions: Files) -> list[CheckpointRecord]:
        """Save checkpoints together."""
        made = [
            CheckpointRecord(
                id=new_id(),
                experiment=self.id,
                created=now(),
                step=None,
                path="model.pth",
                tree=tree,
                packs=packs,
                metrics={},
            )
            for tree, packs in self.store(versions)
        ]
        self.journal.append([("checkpoint", c.created, checkpoint_data(c)) for c in made])
        return made


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def repository(bucket: Bucket) -> Repository:
    return Repository(bucket)


def contents(repository: Repository, checkpoint: CheckpointRecord) -> dict[str, bytes]:
    """All files of a checkpoint, by somebody who has nothing in memory."""
    fresh = Repository(repository.backend)
    assert checkpoint.tree_ref is not None
    files = fresh.tree(*checkpoint.tree_ref).files
    objects = fresh.objects(checkpoint.packs)
    return {path: reader(objects, entry)() for path, entry in files.items()}


def keys(backend: Backend) -> Counter[str]:
    """How many objects there are of each kind."""
    stored = (stat.key.partition("/")[0] for stat in backend.list())
    return Counter(kind for kind in stored if kind in ("blobs", "trees", "packs"))


def small(number: int) -> dict[str, bytes]:
    return {"model.pth": b"%d" % number * 3000}


# ---------------------------------------------------------------- what is packed


def test_a_hundred_small_checkpoints_are_one_object(bucket: Bucket, repository: Repository) -> None:
    run = Run(repository)
    bucket.requests.clear()
    made = run.checkpoints(*(small(n) for n in range(100)))
    assert keys(bucket) == {"packs": 1}
    assert bucket.requests["put"] == 1
    assert {c.packs for c in made} == {made[0].packs}
    assert [contents(repository, c) for c in made] == [small(n) for n in range(100)]


def test_reading_a_small_checkpoint_is_one_request(bucket: Bucket, repository: Repository) -> None:
    (made,) = Run(repository).checkpoints({f"{n}.txt": b"%d" % n * 1000 for n in range(50)})
    bucket.requests.clear()
    assert len(contents(repository, made)) == 50
    assert bucket.requests == {"get": 1}


def test_large_files_stay_objects_of_their_own(bucket: Bucket, repository: Repository) -> None:
    large = blake3(b"noise").digest(length=100_000)
    (made,) = Run(repository).checkpoints({"model.pth": large, "config.json": b"{}"})
    assert keys(bucket)["packs"] == 1 and keys(bucket)["blobs"] >= 1
    assert contents(repository, made) == {"model.pth": large, "config.json": b"{}"}


def test_a_pack_of_one_is_not_made(bucket: Bucket, repository: Repository) -> None:
    (made,) = Run(repository).checkpoints({"model.pth": blake3(b"noise").digest(length=100_000)})
    assert made.packs == () and keys(bucket)["packs"] == 0 and keys(bucket)["trees"] == 1


def test_what_has_not_changed_is_not_stored_again(bucket: Bucket, repository: Repository) -> None:
    run = Run(repository)
    files = {"frozen": blake3(b"noise").digest(length=100_000), "tokens": b"t" * 5000}
    (first,) = run.checkpoints({**files, "head": b"1"})
    bucket.requests.clear()
    (second,) = run.checkpoints({**files, "head": b"2"})
    assert bucket.requests["put"] == 1  # the new pack: `tokens` is in the first one
    assert set(first.packs) < set(second.packs)
    assert contents(repository, second) == {**files, "head": b"2"}
    bucket.requests.clear()
    (third,) = run.checkpoints({**files, "head": b"2"})
    assert bucket.requests["put"] == 0 and third.packs == second.packs


def test_what_is_only_remembered_is_stored_again_in_time(
    bucket: Bucket, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(repository)
    run.checkpoints(small(1))
    monkeypatch.setattr("replicate.blobs._RECENT", 0.0)
    bucket.time += 1000
    run.checkpoints(small(1))
    (pack,) = bucket.list("packs/")
    assert pack.modified == bucket.time


def test_the_same_files_of_another_run_are_the_same_pack(
    bucket: Bucket, repository: Repository
) -> None:
    code = {f"src/{n}.py": b"import os\n" * n for n in range(300)}
    first, second = Run(repository, code), Run(repository, code)
    assert keys(bucket) == {"packs": 1}
    assert first.id != second.id


def test_what_a_file_has_stored_counts_once(repository: Repository) -> None:
    stored = []
    for _ in range(2):
        batch = repository.batch(recent=Recent())
        for owner in ("first", "second"):
            batch.add_blob(b"the same", owner)
            batch.add_blob(owner.encode(), owner)
        batch.flush()
        stored.append(dict(batch.stored))
    assert stored == [{"first": 13, "second": 6}, {}]


def test_a_listing_keeps_where_files_are(
    bucket: Bucket, repository: Repository, tmp_path: Path
) -> None:
    run = Run(repository, {"train.py": b"import replicate\n", "model.py": b"pass\n"})
    (made,) = run.checkpoints(small(1))
    for _ in ("cold", "warm"):
        (listed,) = Index(Repository(bucket), tmp_path).records()
        assert listed.packs == repository.experiment(run.id).packs != ()
        assert [c.packs for c in listed.checkpoints] == [made.packs]
        assert listed.latest() == made
        bucket.time += 60  # until what was listed is old enough to be kept


def test_a_run_that_is_resumed_names_the_packs_of_its_code(repository: Repository) -> None:
    run = Run(repository, {"train.py": b"import replicate\n", "model.py": b"pass\n"})
    (again,) = run.store([{"train.py": b"import os\n", "model.py": b"pass\n"}])
    attempt = Attempt(
        number=2,
        created=now(),
        params={},
        user="ada",
        host="lovelace",
        command="train.py",
        path=".",
        tree=again[0],
        packs=again[1],
    )
    data = {**attempt_data(attempt), "id": new_id()}
    journal = repository.journal(run.id, new_id()[:16], attempt=2)
    journal.append([("attempt", attempt.created, data)])
    record = repository.experiment(run.id)
    assert record.tree_ref == again
    assert [len(a.packs) for a in record.attempts] == [1, 2]
    assert check(repository, full=True).damage == ()


def test_a_repository_on_a_disk_has_no_packs(tmp_path: Path) -> None:
    repository = Repository(LocalBackend(tmp_path))
    (made,) = Run(repository).checkpoints(small(1))
    assert made.packs == () and keys(repository.backend)["packs"] == 0


def test_packs_are_bounded(bucket: Bucket, repository: Repository) -> None:
    run = Run(repository)
    noise = blake3(b"noise").digest(length=6 << 20)
    files = {f"{n}": noise[n << 15 : (n + 1) << 15] for n in range(192)}
    many = {f"{n}": b"%d" % n for n in range(PACK_OBJECTS + 10)}
    made = run.checkpoints(files, many)
    packs = list(bucket.list("packs/"))
    assert len(packs) == 3 and all(p.size < PACK_BYTES + (1 << 20) for p in packs)
    assert [contents(repository, c) for c in made] == [files, many]


# ---------------------------------------------------------------- deleting


def test_a_pack_comes_free_with_the_last_that_needs_it(
    bucket: Bucket, repository: Repository
) -> None:
    run = Run(repository)
    first, second = run.checkpoints(small(1), small(2))
    size = next(bucket.list("packs/")).size
    experiment = repository.experiment(run.id)
    plan = plan_removal(repository, [(experiment, first)], force=True)
    assert plan.bytes == 0
    remove(repository, plan)
    bucket.time += 2 * REMOTE_GRACE
    assert collect(repository).bytes == 0
    assert contents(repository, second) == small(2)
    plan = plan_removal(repository, [(experiment, second)], force=True)
    assert (plan.bytes, len(plan.objects)) == (size, 1 + 2)
    assert remove(repository, plan).bytes == size
    assert keys(bucket)["packs"] == 0


def test_what_only_dropped_checkpoints_need_comes_free(
    bucket: Bucket, repository: Repository
) -> None:
    run = Run(repository)
    (first,) = run.checkpoints(small(1))
    (second,) = run.checkpoints(small(2))
    run.journal.append([("drop", now(), {"checkpoints": [first.id]})])
    kept = repository.experiment(run.id).checkpoints
    assert [c.packs for c in kept] == [(), second.packs]
    bucket.time += 2 * REMOTE_GRACE
    assert collect(repository).objects == 1
    assert contents(repository, second) == small(2)


def test_usage_counts_packs(bucket: Bucket, repository: Repository) -> None:
    first, second = Run(repository), Run(repository)
    first.checkpoints(small(1), small(2))
    second.checkpoints(small(3))
    sizes = [stat.size for stat in bucket.list("packs/")]
    usage = measure(repository)
    assert usage.stored == sum(sizes) and usage.unreferenced == 0
    assert sorted(e.exclusive for e in usage.experiments) == sorted(sizes)


def test_what_was_overwritten_can_be_put_back(repository: Repository, tmp_path: Path) -> None:
    (made,) = Run(repository).checkpoints(small(1))
    (tmp_path / "model.pth").write_bytes(b"mine")
    (tmp_path / "other").write_bytes(b"stays")
    plan = checkouts.plan(repository, made.id, [made.tree_ref], tmp_path)
    checkouts.perform(repository, plan)
    assert (tmp_path / "model.pth").read_bytes() == small(1)["model.pth"]
    assert collect(repository).objects == 0
    checkouts.undo(repository, tmp_path)
    assert (tmp_path / "model.pth").read_bytes() == b"mine"


# ---------------------------------------------------------------- damage


def cut(bucket: Bucket, key: str) -> None:
    bucket.put(key, bucket.get(key)[:-1])


def flip(bucket: Bucket, key: str) -> None:
    data = bytearray(bucket.get(key))
    data[-1] ^= 1
    bucket.put(key, bytes(data))


def lose(bucket: Bucket, key: str) -> None:
    bucket.delete([key])


@pytest.mark.parametrize("harm", [cut, flip, lose])
def test_verify_names_the_pack_and_whom_it_hurts(
    bucket: Bucket, repository: Repository, harm: Callable[[Bucket, str], None]
) -> None:
    run = Run(repository)
    first, second = run.checkpoints(small(1), small(2))
    (other,) = run.checkpoints(small(3))
    assert check(repository, full=True).damage == ()
    key = pack_key(first.packs[0])
    harm(bucket, key)
    for full in (False, True):
        (damage,) = check(Repository(bucket), full=full).damage
        assert (damage.kind, damage.key) == ("pack", key) and key in damage.problem
        assert {h.checkpoint for h in damage.hurts} == {first.id, second.id}
    with pytest.raises(DamagedError, match=key):
        contents(repository, first)
    assert contents(repository, other) == small(3)
    with pytest.raises(DamagedError, match=key):
        collect(Repository(bucket))


def test_a_long_pack_is_verified_by_its_size_or_its_bytes(
    bucket: Bucket, repository: Repository
) -> None:
    noise = blake3(b"noise").digest(length=1 << 20)
    files = {f"{n}": noise[n << 15 : (n + 1) << 15] for n in range(32)}
    (made,) = Run(repository).checkpoints(files)
    key = pack_key(made.packs[0])
    whole = bucket.get(key)
    flip(bucket, key)
    assert check(Repository(bucket)).damage == ()
    assert [d.key for d in check(Repository(bucket), full=True).damage] == [key]
    for other in (whole[:-1], whole + b"more"):
        bucket.put(key, other)
        for full in (False, True):
            assert [d.key for d in check(Repository(bucket), full=full).damage] == [key]


def test_objects_under_their_own_keys_stand_in_for_a_pack(
    bucket: Bucket, repository: Repository
) -> None:
    run = Run(repository)
    (made,) = run.checkpoints(small(1))
    lose(bucket, pack_key(made.packs[0]))
    batch = repository.batch(compress=True)
    add_tree(batch, [Source("model.pth", view=memoryview(small(1)["model.pth"]))], None)
    batch.flush()
    assert contents(repository, made) == small(1)
    assert check(Repository(bucket), full=True).damage == ()
    assert check(Repository(bucket)).damage == ()


# ---------------------------------------------------------------- hostile repositories

BLOB = blob_key("ab" * 32)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"no JSON\n",
        b"[]\n",
        b'{"objects":7}\n',
        b'{"objects":[["' + BLOB.encode() + b'"]]}\n',
        json.dumps({"objects": [[BLOB, -1]]}).encode() + b"\n",
        json.dumps({"objects": [[BLOB, True]]}).encode() + b"\n",
        json.dumps({"objects": [[BLOB, 1.0]]}).encode() + b"\n",
        json.dumps({"objects": [[BLOB, MAX_PACK + 1]]}).encode() + b"\n",
        json.dumps({"objects": [[BLOB, 1], [BLOB, 1]]}).encode() + b"\n",
        json.dumps({"objects": [[BLOB, 1], [f"{BLOB}.zst", 1]]}).encode() + b"\n",
        json.dumps({"objects": [["repository.json", 1]]}).encode() + b"\n",
        json.dumps({"objects": [["experiments/a/experiment.json", 1]]}).encode() + b"\n",
        json.dumps({"objects": [["blobs/aa/" + "ab" * 32, 1]]}).encode() + b"\n",
        json.dumps({"objects": [["../" + BLOB, 1]]}).encode() + b"\n",
        json.dumps({"objects": [[[BLOB], 1]]}).encode() + b"\n",
        b'{"objects":' + b"[" * 100_000 + b"\n",
        b'{"objects":[["' + BLOB.encode() + b'",' + b"9" * 5000 + b"]]}\n",
        b"x" * (2 << 20),
    ],
)
def test_a_pack_that_no_writer_writes_is_refused(bucket: Bucket, line: bytes) -> None:
    data = line + b"x"
    hash = blake3(data).hexdigest()
    bucket.put(pack_key(hash), data)
    with pytest.raises(DamagedError, match=pack_key(hash)):
        Packs(bucket).directory(hash)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "AB" * 32, "a" * 63, "é" * 64])
def test_a_name_that_is_none_is_refused(bucket: Bucket, name: str) -> None:
    with pytest.raises(DamagedError):
        Packs(bucket).directory(name)


def test_wrong_bytes_in_a_pack_are_not_handed_out(bucket: Bucket, repository: Repository) -> None:
    wanted = blake3(b"right").hexdigest()
    hash, data = encode_pack({blob_key(wanted): b"wrong"})
    bucket.put(pack_key(hash), data)
    with pytest.raises(DamagedError, match="do not match"):
        read_blob(repository.objects([hash]), wanted, 5)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(line: bytes) -> None:
    with suppress(DamagedError):
        decode_header(line, "a pack")


# ---------------------------------------------------------------- the format


@given(st.lists(st.binary(max_size=200), unique=True, max_size=20), st.randoms())
def test_what_went_in_comes_out(blobs: list[bytes], random: object) -> None:
    objects = {blob_key(blake3(data).hexdigest()): data for data in blobs}
    hash, data = encode_pack(objects)
    assert encode_pack(dict(reversed(objects.items()))) == (hash, data)
    bucket = Bucket()
    bucket.put(pack_key(hash), data)
    view = Repository(bucket).objects([hash])
    for key, content in objects.items():
        assert view.get(key) == content
        assert view.get(key, 3, 5) == content[3:8]
        stat = view.stat(key)
        assert stat is not None and stat.size == len(content)


def test_a_view_can_only_be_read(bucket: Bucket, repository: Repository) -> None:
    view = repository.objects(["ab" * 32])
    for act in (
        lambda: view.put("a", b""),
        lambda: view.put_if_absent({"a": b""}),
        lambda: view.append("a", b"", b""),
        lambda: view.delete(["a"]),
    ):
        with pytest.raises(UsageError):
            act()
    assert list(bucket.list()) == []


def test_other_keys_are_read_as_ever(bucket: Bucket, repository: Repository) -> None:
    repository.create()
    view = repository.objects(["ab" * 32])
    assert view.get("repository.json") == bucket.get("repository.json")
    assert [s.key for s in view.list()] == ["repository.json"]
    with pytest.raises(KeyNotFoundError):
        view.get("experiments/none")


def test_a_real_bucket_keeps_and_gives_back_packs(s3_url: str, tmp_path: Path) -> None:
    bucket = open_backend(s3_url, relative_to=tmp_path)
    run = Run(Repository(bucket), {"train.py": b"import replicate\n", "model.py": b"pass\n"})
    large = blake3(b"noise").digest(length=200_000)
    made = run.checkpoints(*(small(n) for n in range(20)), {"model.pth": large, "log": b"x"})
    assert keys(bucket)["packs"] == 2
    assert [contents(run.repository, c) for c in made[:20]] == [small(n) for n in range(20)]
    assert contents(run.repository, made[20]) == {"model.pth": large, "log": b"x"}
    assert check(Repository(bucket)).damage == check(Repository(bucket), full=True).damage == ()
    found = measure(Repository(bucket))
    assert found.unreferenced == 0 and found.stored == sum(
        stat.size for kind in ("blobs/", "trees/", "packs/") for stat in bucket.list(kind)
    )
    experiment = run.repository.experiment(run.id)
    plan = plan_removal(run.repository, [experiment], force=True)
    assert plan.bytes == found.stored
    assert remove(run.repository, plan).problem is None


# ---------------------------------------------------------------- beside a collector


class Writers(RuleBasedStateMachine):
    """Runs that save the same few files, people who delete, a collector with the shortest grace
    that there is, and time that passes in between: whatever is committed can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.bucket = Bucket()
        self.repository = Repository(self.bucket)
        self.runs = [Run(self.repository), Run(self.repository)]
        self.stored: dict[int, tuple[float, CheckpointRecord]] = {}
        self.live: list[tuple[Run, CheckpointRecord, Files]] = []
        self.contents: dict[str, Files] = {}
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(blobs, "time", SimpleNamespace(time=lambda: self.bucket.time))

    @rule(run=st.integers(0, 1), files=st.sampled_from(["a", "b", "ab"]))
    def store(self, run: int, files: str) -> None:
        began = self.bucket.time
        version = {name: name.encode() * 1000 for name in files}
        ((tree, packs),) = self.runs[run].store([version])
        made = CheckpointRecord(
            id=new_id(),
            experiment=self.runs[run].id,
            created=now(),
            step=None,
            path=".",
            tree=tree,
            packs=packs,
            metrics={},
        )
        self.stored[run] = began, made
        self.contents[made.id] = version

    @rule(run=st.integers(0, 1))
    def commit(self, run: int) -> None:
        began, made = self.stored.pop(run, (0.0, None))
        if made is not None and self.bucket.time - began <= FRESH:  # else it is stored again
            data = checkpoint_data(made)
            self.runs[run].journal.append([("checkpoint", made.created, data)])
            self.live.append((self.runs[run], made, self.contents[made.id]))

    @rule()
    def delete(self) -> None:
        for run, made, _ in self.live:
            run.journal.append([("delete", now(), {"checkpoints": [made.id]})])
        self.live.clear()

    @rule(seconds=st.sampled_from([590, 890, 1790]))
    def wait(self, seconds: float) -> None:
        self.bucket.time += seconds

    @rule()
    def collect(self) -> None:
        collect(self.repository, grace=GRACE)

    @invariant()
    def all_is_there(self) -> None:
        for _, made, files in self.live:
            assert contents(self.repository, made) == files

    def teardown(self) -> None:
        self.patch.undo()


def test_what_is_remembered_for_longest_outlives_a_collector() -> None:
    runs = Writers()
    try:
        runs.store(run=0, files="a")
        runs.commit(run=0)
        runs.delete()
        runs.wait(TOUCHED - 1)
        runs.store(run=1, files="a")  # it is there, and young enough not to be touched
        runs.wait(FRESH / 2 - 1)
        asked = Counter(runs.bucket.requests)
        runs.store(run=1, files="a")  # it is remembered
        assert runs.bucket.requests == asked
        runs.wait(FRESH)
        runs.collect()
        runs.commit(run=1)
        assert len(runs.live) == 1
        runs.all_is_there()
        assert (
            runs.bucket.requests["put"] == len(["repository.json", "the pack", "found again"]) + 4
        )
    finally:
        runs.teardown()


TestWriters = Writers.TestCase
TestWriters.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_memory_does_not_grow_with_the_packs_that_are_read(
    bucket: Bucket, repository: Repository
) -> None:
    noise = blake3(b"noise").digest(length=1 << 20)
    made = []
    for number in range(60):
        objects = {blob_key(f"{number:02}" * 32): noise, blob_key("ab" * 32): b"x"}
        hash, data = encode_pack(objects)
        bucket.put(pack_key(hash), data)
        made.append(hash)
    packs = Packs(bucket)
    for hash in made:
        place = packs.directory(hash).places[blob_key(f"{made.index(hash):02}" * 32)]
        assert packs.read(hash, place) == noise
    held = sum(pack.memory for pack in packs._packs.values())
    assert 16 << 20 < held <= 32 << 20
    bucket.requests.clear()
    packs.directory(made[-1])
    assert bucket.requests == {}
    packs.directory(made[0])
    assert bucket.requests == {"get": 1}
