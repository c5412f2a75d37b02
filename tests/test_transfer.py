"""`replicate push`, `pull` and `cp`: experiments between any two repositories. What is missing is
brought, verified, and whatever cuts it off, the next time finishes it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ProjectDirectory
from replicate.backends.base import Content
from replicate.backends.local import LocalBackend
from replicate.backends.location import open_backend
from replicate.backends.memory import MemoryBackend
from replicate.blobs import Recent, blob_key, hash_of, tree_key
from replicate.cli import main
from replicate.errors import NotFoundError, StorageError, UsageError
from replicate.maintenance import Outcome, Transferred, check, collect, copying, remove, transfer
from replicate.maintenance.removal import plan_removal
from replicate.model import ExperimentRecord, Status
from replicate.records import new_id, now, seal_event
from replicate.repository import Repository
from replicate.tree import Source, add_tree, decode_tree
from saving import Run, broken, contents, finished, objects, store

CODE = {"train.py": b"import replicate"}
LARGE = bytes(range(256)) * 400  # it compresses
_numbers = itertools.count()


class Bucket(MemoryBackend):
    """A store that behaves as a bucket does to those who use it: many requests at once."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.url = f"memory:{next(_numbers)}"
        self.written: list[str] = []

    def put(self, key: str, content: Content) -> None:
        self.written.append(key)
        super().put(key, content)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        created = super().put_if_absent(items, fresh=fresh)
        self.written += sorted(created)
        return created


def memory(directory: Path) -> Repository:
    return Repository(Bucket())


def disk(directory: Path) -> Repository:
    return Repository(LocalBackend(directory / f"repository {next(_numbers)}"))


KINDS: Mapping[str, Callable[[Path], Repository]] = {"disk": disk, "bucket": memory}
PAIRS = list(itertools.product(KINDS, KINDS))


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Repository, Repository]:
    """Two repositories, of which the first exists."""
    source, target = (KINDS[kind](tmp_path) for kind in request.param)
    source.create()
    return source, target


def push(source: Repository, target: Repository, *ids: str, **options: Any) -> Transferred:
    compress = target.compresses("auto")
    return transfer(source, target, ids or None, compress=compress, **options)


def counts(done: Transferred) -> dict[str, int]:
    return {outcome.value: len(ids) for outcome, ids in done.ids.items() if ids}


def records(repository: Repository) -> list[ExperimentRecord]:
    return repository.experiments()


def files(repository: Repository) -> list[dict[str, bytes]]:
    """All files of all checkpoints, in their order."""
    found = (c for e in repository.experiments() for c in e.checkpoints if c.tree)
    return [contents(repository, checkpoint) for checkpoint in found]


def everything(repository: Repository) -> dict[str, bytes]:
    backend = repository.backend
    return {stat.key: backend.get(stat.key) for stat in backend.list()}


# ------------------------------------------------------------ what is copied


def test_a_copy_is_the_same(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    finished(source, {"m": b"1"}, {"m": LARGE, "n/o": b"2"}, code=CODE)
    running = Run(source)
    running.checkpoint({"m": LARGE})
    running.beat()
    done = push(source, target)
    assert counts(done) == {"added": 2} and done.problems == []
    assert [e.checkpoints for e in records(target)] == [e.checkpoints for e in records(source)]
    assert files(target) == files(source)
    assert check(target, full=True).damage == ()
    assert [e.status for e in records(target)] == [Status.FINISHED, Status.LOST]


def test_a_second_time_nothing_is_written(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    finished(source, {"m": b"1"}, {"m": LARGE}, code=CODE)
    lost = Run(source)
    lost.checkpoint({"m": b"3"})
    lost.beat()
    push(source, target)
    before = everything(target)
    done = push(source, target)
    assert counts(done) == {"present": 2} and done.objects == 0
    assert everything(target) == before


def test_what_has_happened_since_is_added(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    run = Run(source)
    run.checkpoint({"m": b"1"})
    push(source, target)
    run.checkpoint({"m": LARGE})
    label = source.journal(run.id, new_id()[:16])
    label.append([("tag", now(), {"author": "ada@host", "add": ["good"], "remove": []})])
    points = source.journal(run.id, new_id()[:16], "log")
    points.append([("log", now(), {"source": "s", "first": 0, "points": [[0, 1, {"x": 1}]]})])
    run.stop()
    run.beat()
    assert counts(push(source, target)) == {"completed": 1}
    assert records(target) == records(source)
    assert records(target)[0].tags == ("good",)
    assert files(target) == files(source)
    assert target.history(records(target)[0]) == source.history(records(source)[0])


def test_both_sides_keep_what_only_they_have(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    id = finished(source, {"m": b"1"})
    push(source, target)
    for repository, tag in ((source, "here"), (target, "there")):
        label = repository.journal(id, new_id()[:16])
        label.append([("tag", now(), {"author": "a@h", "add": [tag], "remove": []})])
    other = finished(target, {"m": b"2"})
    assert counts(push(source, target)) == {"completed": 1}
    assert counts(push(target, source)) == {"completed": 1, "added": 1}
    assert records(source) == records(target)
    assert set(records(source)[0].tags) == {"here", "there"}
    assert other in source.ids()


def test_only_the_experiments_that_were_named(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    finished(source, {"m": b"1"})
    wanted = finished(source, {"m": b"2"})
    assert counts(push(source, target, wanted)) == {"added": 1}
    assert target.ids() == [wanted]
    assert len(objects(target.backend)) == 2


def test_only_what_is_missing_is_read(tmp_path: Path) -> None:
    source, target = Repository(Bucket()), Repository(Bucket())
    finished(source, {"m": LARGE}, {"m": b"2"})
    for repository in (source, target):
        store(repository, {"other": LARGE}, compress=repository is target)
    read: list[str] = []
    get = source.backend.get

    def watched(key: str, start: int = 0, length: int | None = None) -> bytes:
        read.append(key)
        return get(key, start, length)

    source.backend.get = watched  # type: ignore[method-assign]
    push(source, target)
    assert len([key for key in read if key.startswith("blobs/")]) == 1
    assert files(target) == files(source)


def test_what_a_large_target_has_is_found_without_listing_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "_FEW", 10)
    monkeypatch.setattr(copying, "_PAGE", 3)
    source, target = Repository(Bucket()), Repository(Bucket())
    contents = [{f"{i}": f"{i} {part}".encode() * 9 for i in range(100)} for part in range(3)]
    finished(source, *contents)
    for part in (0, 2):
        store(target, contents[part], compress=True)
    done = push(source, target)
    assert files(target) == files(source)
    assert done.objects == 100 + 1  # the part that was not there, and its tree
    assert check(target, full=True).damage == ()


def test_what_is_there_is_touched_like_by_every_writer(tmp_path: Path) -> None:
    """Or a collector would take it between our look and our journal line."""
    time = [1_000_000.0]
    backend = MemoryBackend(clock=lambda: time[0])
    backend.url = "other"
    source, target = memory(tmp_path), Repository(backend)
    finished(source, {"m": LARGE})
    target.create()
    store(target, {"m": LARGE})
    time[0] += 7200

    class Collecting(Repository):
        """Collects garbage at the last moment before something refers to what was stored."""

        def announce(self, experiment: str) -> None:
            collect(Repository(backend))

    push(source, Collecting(backend))
    assert files(target) == files(source)


def test_compression_is_up_to_the_target(tmp_path: Path) -> None:
    raw, compressed = disk(tmp_path), memory(tmp_path)
    raw.create()
    finished(raw, {"m": LARGE})
    push(raw, compressed)
    again, far = disk(tmp_path), memory(tmp_path)
    push(compressed, again)
    push(compressed, far)
    assert objects(again.backend) == objects(raw.backend)
    assert objects(far.backend) == objects(compressed.backend) != objects(raw.backend)
    assert files(again) == files(far) == files(raw)


# ------------------------------------------------------------ deletions


def test_what_was_deleted_here_does_not_come_back(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    finished(source, {"m": b"1"})
    push(source, target)
    remove(target, plan_removal(target, records(target)))
    assert counts(push(source, target)) == {"deleted": 1}
    collect(target, grace=0)
    assert counts(push(source, target)) == {"deleted": 1}
    assert records(target) == [] == list(objects(target.backend))


def test_what_is_deleted_there_stays_here_unless_asked(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    finished(source, {"m": b"1"})
    push(source, target)
    finished(source, {"m": b"2"})
    remove(source, plan_removal(source, records(source)))
    assert counts(push(source, target)) == {"left out": 2}
    assert len(records(target)) == 1
    assert counts(push(source, target, deletions=True)) == {"removed": 1, "left out": 1}
    assert records(target) == []
    assert counts(push(source, target, deletions=True)) in (
        {"deleted": 1, "left out": 1},
        {"present": 1, "left out": 1},
    )


def test_a_deleted_checkpoint_is_deleted_in_the_copy_and_its_files_are_not_needed(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    run = Run(source)
    first = run.checkpoint({"m": b"1"})
    run.checkpoint({"m": b"2"})
    run.stop()
    (record,) = records(source)
    gone = [(record, c) for c in record.checkpoints if c.id == first]
    remove(source, plan_removal(source, gone))
    collect(source, grace=0)
    done = push(source, target)
    assert done.problems == []
    assert records(target) == records(source)
    assert check(target, full=True).damage == ()


def test_of_two_at_once_the_one_that_knows_less_takes_nothing_away(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    run = Run(source)
    run.checkpoint({"m": b"1"})
    push(source, target)
    run.checkpoint({"m": b"2"})
    announce = target.announce

    def meanwhile(experiment: str) -> None:
        """Before the slow one writes events, another brings these and one more."""
        target.announce = announce  # type: ignore[method-assign]
        run.checkpoint({"m": b"3"})
        push(source, Repository(target.backend))
        announce(experiment)

    target.announce = meanwhile  # type: ignore[method-assign]
    push(source, target)
    assert [len(e.checkpoints) for e in records(target)] == [3]
    assert files(target) == files(source)


# ------------------------------------------------------------ interruptions


class Failing(Bucket):
    """A bucket that takes so many writes and then is out of reach."""

    def __init__(self, store: dict[str, Any], writes: int) -> None:
        super().__init__()
        self.url = "failing"
        self._objects = store
        self.left = writes

    def _spend(self) -> None:
        if self.left == 0:
            raise StorageError("the network is gone")
        self.left -= 1

    def put(self, key: str, content: Content) -> None:
        self._spend()
        super().put(key, content)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        created: set[str] = set()
        for key in items:  # each of its own, as in a bucket: some are there when it fails
            if super().stat(key) is None:
                self._spend()
            created |= super().put_if_absent({key: items[key]})
        return created


def test_whatever_cuts_it_off_nothing_is_half_there_and_the_next_time_finishes_it() -> None:
    source = Repository(Bucket())
    finished(source, {"m": b"1"}, {"m": LARGE, "n": b"2"}, code=CODE)
    run = Run(source)
    run.checkpoint({"m": b"3"})
    extra = source.journal(run.id, new_id()[:16], "console")
    extra.append([("output", now(), {"stream": "stdout", "source": "s", "first": 0, "end": 1})])
    run.stop()
    run.beat()
    whole = Repository(Bucket())
    push(source, whole)
    for writes in itertools.count():
        store: dict[str, Any] = {}
        target = Repository(Failing(store, writes))
        try:
            push(source, target)
            break
        except StorageError:
            pass
        seen = Repository(Failing(store, 0))
        assert broken(seen) == {}
        assert check(seen, full=True).damage == ()
        assert counts(push(source, Repository(Failing(store, 10_000)))).keys() <= {
            "added",
            "completed",
            "present",
        }
        assert everything(seen) == everything(whole)
    assert writes > 8


# ------------------------------------------------------------ packs


def test_packs_are_copied_as_they_are(tmp_path: Path) -> None:
    source = memory(tmp_path)
    run = Run(source)
    recent = Recent()
    for number in range(3):
        parts = {f"part {i}": b"%d " % (number + i) * 20 for i in range(3)}
        _packed_checkpoint(run, recent, {**parts, "large": LARGE * 2})
    run.stop()
    packs = [key for key in everything(source) if key.startswith("packs/")]
    assert packs
    near, far = disk(tmp_path), memory(tmp_path)
    for target in (near, far):
        assert push(source, target).problems == []
        assert files(target) == files(source)
        assert check(target, full=True).damage == ()
        assert [key for key in everything(target) if key.startswith("packs/")] == packs
    again = memory(tmp_path)
    push(near, again)
    assert everything(again).keys() == everything(far).keys()
    far.backend.delete(packs[:1])
    assert push(source, Repository(far.backend), run.id).problems == []
    assert everything(far).keys() == everything(again).keys()


def _packed_checkpoint(run: Run, recent: Recent, parts: Mapping[str, bytes]) -> None:
    batch = run.repository.batch(compress=True, recent=recent)
    sources = [Source(path, view=memoryview(data)) for path, data in parts.items()]
    tree, _ = add_tree(batch, sources, None)
    batch.flush()
    run.commit(tree, packs=batch.packs_of(tree))


# ------------------------------------------------------------ damage, and those who mean harm


def test_a_damaged_line_and_what_follows_stays_behind_and_comes_once_it_is_mended(
    tmp_path: Path,
) -> None:
    source, target = disk(tmp_path), memory(tmp_path)
    id = finished(source, {"m": b"1"}, {"m": b"2"}, {"m": b"3"})
    (journal,) = Path(source.url).glob("experiments/*/journal/*")
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], lines[1].replace(b'"n":1', b'"n":7'), *lines[2:]]))
    done = push(source, target)
    assert "line 2 of" in done.problems[0] and journal.name in done.problems[0]
    assert len(target.experiment(id).checkpoints) == 1
    assert check(target, full=True).damage == ()
    journal.write_bytes(whole)
    assert counts(push(source, target)) == {"completed": 1}
    assert records(target) == records(source)
    journal.write_bytes(b"".join(lines[:1]))
    assert counts(push(source, target)) == {"present": 1}
    assert len(target.experiment(id).checkpoints) == 3


def test_a_lost_file_is_named_and_the_rest_is_copied(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    lost = finished(source, {"m": b"1"}, {"m": b"2"})
    whole = finished(source, {"m": b"3"})
    (tree, _) = (c.tree for c in source.experiment(lost).checkpoints)
    assert tree is not None
    (entry,) = source.tree(tree).entries
    source.backend.delete([blob_key(entry.hash)])
    done = push(source, target)
    assert counts(done) == {"added": 2}
    assert (
        len(done.problems) == 1 and entry.hash in done.problems[0] and lost[:7] in done.problems[0]
    )
    assert {id for id, why in broken(target).items()} == {source.experiment(lost).checkpoints[0].id}
    assert target.experiment(whole).damage == ()


def test_what_was_lost_comes_with_the_next_push_once_it_is_mended(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    run = Run(source)
    tree = run.checkpoint({"m": b"1"})
    run.checkpoint({"m": LARGE})
    run.beat()
    run.stop()
    blob = blob_key(hash_of(b"1"))
    source.backend.delete([blob])
    push(source, target)
    again = push(source, target)
    assert counts(again) == {"present": 1} and hash_of(b"1") in again.problems[0]
    assert broken(target).keys() == {tree}
    source.backend.put(blob, b"1")
    assert push(source, target, dry_run=True).objects == 1
    done = push(source, target)
    assert (counts(done), done.objects, done.problems) == ({"completed": 1}, 1, [])
    assert files(target) == files(source)
    assert counts(push(source, target)) == {"present": 1}


def test_what_the_target_has_lost_comes_again_for_an_experiment_that_is_named(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    id = finished(source, {"m": b"1"}, {"m": LARGE}, code=CODE)
    push(source, target)
    lost = [key for key in objects(target.backend) if key.startswith("trees/")][:2]
    lost += [key for key in objects(target.backend) if key.startswith("blobs/")][:1]
    target.backend.delete(lost)
    done = push(source, target, id)
    assert (counts(done), done.objects, done.problems) == ({"completed": 1}, len(lost), [])
    assert check(target, full=True).damage == ()
    done = push(source, target, id)
    assert (counts(done), done.objects) == ({"present": 1}, 0)


def test_what_is_damaged_in_the_target_is_not_called_complete(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    id = finished(source, {"m": b"1"})
    push(source, target)
    (tree,) = target.backend.list("trees/")
    target.backend.put(tree.key, b"damaged")
    done = push(source, target, id)
    assert counts(done) == {"present": 1} and "is damaged, and was left" in done.problems[0]
    target.backend.delete([tree.key])
    assert push(source, target, id).problems == []
    assert files(target) == files(source)


def test_a_damaged_tree_stays_behind_with_what_follows_and_comes_once_it_is_mended(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    id = finished(source, {"m": b"1"}, {"m": b"2"}, {"m": b"3"}, code=CODE)
    other = finished(source, {"m": b"4"})
    second = source.experiment(id).checkpoints[1]
    assert second.tree is not None
    key = tree_key(second.tree)
    whole = source.backend.get(key)
    source.backend.put(key, b"damaged")
    done = push(source, target)
    assert counts(done) == {"added": 2}
    (problem,) = done.problems
    assert id[:7] in problem and second.tree in problem and "from there on" in problem
    assert len(target.experiment(id).checkpoints) == 1
    assert files(Repository(_only(target, other))) == [{"m": b"4"}]
    assert check(target, full=True).damage == ()
    collect(target, grace=0)
    source.backend.put(key, whole)
    assert counts(push(source, target)) == {"completed": 1, "present": 1}
    assert files(target) == files(source)


def test_a_checkpoint_that_is_given_up_holds_up_the_others_no_more(tmp_path: Path) -> None:
    source, target = disk(tmp_path), memory(tmp_path)
    source.create()
    id = finished(source, {"m": b"1"}, {"m": b"2"}, {"m": b"3"})
    record = source.experiment(id)
    second = record.checkpoints[1]
    assert second.tree is not None
    source.backend.delete([tree_key(second.tree)])
    push(source, target)
    remove(source, plan_removal(source, [(record, second)]))
    assert push(source, target).problems == []
    assert files(target) == [{"m": b"1"}, {"m": b"3"}]


def test_an_experiment_whose_code_cannot_be_read_is_named_and_the_others_go_on(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    bad = finished(source, {"m": b"1"}, code=CODE)
    good = finished(source, {"m": b"2"})
    tree = source.experiment(bad).tree
    assert tree is not None
    source.backend.delete([tree_key(tree)])
    done = push(source, target)
    assert (done.ids[Outcome.FAILED], done.ids[Outcome.ADDED]) == ([bad], [good])
    assert bad[:7] in done.problems[0] and tree in done.problems[0]
    assert target.ids() == [good]


def test_inputs_that_differ_are_an_error_and_the_others_go_on(
    pair: tuple[Repository, Repository],
) -> None:
    source, target = pair
    odd, other = Run(source), Run(source)
    push(source, target)
    for run in (odd, other):
        run.checkpoint({"m": b"1"})
    key = f"experiments/{odd.id}/experiment.json"
    target.backend.put(key, source.backend.get(key).replace(b'"ada"', b'"eve"'))
    before = target.backend.get(key)
    done = push(source, target)
    assert counts(done) == {"failed": 1, "completed": 1}
    assert odd.id[:7] in done.problems[0]
    assert target.backend.get(key) == before


EVIL: Mapping[str, Callable[[Repository, str], None]] = {
    "a path that leads outside": lambda repository, id: _evil_tree(
        repository, id, b'{"entries":[\n{"path":"../x","mode":"0644","size":0,"hash":"%s"}\n]}\n'
    ),
    "a tree that is none": lambda repository, id: _evil_tree(repository, id, b"[[[[[["),
    "a tree without a hash": lambda repository, id: _event(repository, id, {"tree": "../../x"}),
    "a tree that is a number": lambda repository, id: _event(repository, id, {"tree": 5}),
    "an event without its keys": lambda repository, id: _append(
        repository, id, {"event": "checkpoint", "time": "2026-01-01T00:00:00.000000Z", "n": 0}
    ),
    "an event that is not the next": lambda repository, id: _append(
        repository, id, {"event": "note", "time": "2026-01-01T00:00:00.000000Z", "n": 10**9}
    ),
    "a time of no day": lambda repository, id: _append(
        repository, id, {"event": "note", "time": "yesterday", "n": 0}
    ),
    "a journal of nothing": lambda repository, id: repository.backend.put(
        f"experiments/{id}/journal/{'0' * 16}-0.jsonl", b"\n\n\0\xff\n" * 99
    ),
    "a pack that is none": lambda repository, id: _evil_pack(repository, id),
}


def _append(repository: Repository, id: str, event: dict[str, Any]) -> None:
    key = f"experiments/{id}/journal/{new_id()[:16]}-0.jsonl"
    repository.backend.put(key, seal_event(event))


def _event(repository: Repository, id: str, data: dict[str, Any]) -> None:
    whole = {"id": new_id(), "step": 1, "path": "m", "metrics": {}, "primary_metric": None, **data}
    time = "2026-01-01T00:00:00.000000Z"
    _append(repository, id, {"event": "checkpoint", "time": time, "n": 0, **whole})


def _evil_tree(repository: Repository, id: str, manifest: bytes) -> None:
    data = manifest.replace(b"%s", hash_of(b"").encode())
    repository.backend.put(tree_key(hash_of(data)), data)
    repository.backend.put(blob_key(hash_of(b"")), b"")
    _event(repository, id, {"tree": hash_of(data)})


def _evil_pack(repository: Repository, id: str) -> None:
    data = b'{"objects":[["../../x",3]]}\nabc'
    repository.backend.put(f"packs/{hash_of(data)[:2]}/{hash_of(data)}.pack", data)
    _event(repository, id, {"tree": hash_of(b"x"), "packs": [hash_of(data)]})


@pytest.mark.parametrize("evil", EVIL)
def test_a_hostile_source_harms_nothing(tmp_path: Path, evil: str) -> None:
    """What cannot be read is not written, and the rest is copied."""
    source, target = disk(tmp_path), memory(tmp_path)
    good = finished(source, {"m": b"1"})
    bad = finished(source, {"m": b"2"})
    EVIL[evil](source, bad)
    done = push(source, target)
    assert done.problems
    assert good in done.ids[Outcome.ADDED]
    assert files(Repository(_only(target, good))) == [{"m": b"1"}]
    for key, data in everything(target).items():
        if key.startswith("trees/"):
            decode_tree(data, key)
    collect(target, grace=0)
    assert push(source, target).objects == 0


def _only(repository: Repository, id: str) -> MemoryBackend:
    """A copy of a repository with no other experiment than this one."""
    backend = MemoryBackend()
    for key, data in everything(repository).items():
        if not key.startswith("experiments/") or id in key:
            backend.put(key, data)
    return backend


# ------------------------------------------------------------ laws

_steps = st.lists(
    st.tuples(
        st.sampled_from(["run", "checkpoint", "tag", "delete", "stop", "push", "pull"]),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(_steps)
def test_whatever_was_done_on_two_sides_a_push_and_a_pull_make_them_equal(
    steps: list[tuple[str, int, bool]],
) -> None:
    left, right = Repository(Bucket()), Repository(Bucket())
    left.create()
    right.create()
    runs: list[Run] = []
    for step, number, there in steps:
        repository = right if there else left
        if step == "run":
            runs.append(Run(repository))
        elif step in ("push", "pull"):
            push(*((left, right) if step == "push" else (right, left)))
        elif runs:
            _act(step, runs[number % len(runs)], repository, number)
    first = push(left, right, deletions=True)
    second = push(right, left, deletions=True)
    assert first.problems == second.problems == []
    # One that only one side ever had, and has deleted, is not brought.
    assert [replace(e, heartbeat=None) for e in records(left)] == [
        replace(e, heartbeat=None) for e in records(right)
    ]
    assert files(left) == files(right)
    for source, target in ((left, right), (right, left)):
        before = everything(target)
        assert push(source, target, deletions=True).objects == 0
        assert everything(target) == before


def _act(step: str, run: Run, repository: Repository, number: int) -> None:
    if step == "checkpoint":
        run.checkpoint({"m": b"%d" % number})
    elif step == "stop":
        run.stop()
    elif repository.has(run.id):
        journal = repository.journal(run.id, new_id()[:16])
        if step == "tag":
            tags = {"author": "a@h", "add": [str(number)], "remove": []}
            journal.append([("tag", now(), tags)])
        else:
            ids = [c.id for c in repository.experiment(run.id).checkpoints]
            whole = number == 3 or not ids
            journal.append([("delete", now(), {} if whole else {"checkpoints": ids[:1]})])


def test_a_repository_is_not_copied_into_itself(tmp_path: Path) -> None:
    source = disk(tmp_path)
    source.create()
    with pytest.raises(UsageError, match="would be copied into"):
        push(source, Repository(LocalBackend(Path(source.url, "..", Path(source.url).name))))


def test_a_source_that_is_not_there_is_an_error_and_makes_no_target(tmp_path: Path) -> None:
    source, target = disk(tmp_path), disk(tmp_path)
    with pytest.raises(NotFoundError):
        push(source, target)
    assert not Path(target.url).exists()


def test_a_dry_run_counts_and_writes_nothing(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    finished(source, {"m": LARGE}, {"m": LARGE, "n": b"2"}, code=CODE)
    would = push(source, target, dry_run=True)
    assert everything(target) == {}
    done = push(source, target)
    assert (would.objects, counts(would)) == (done.objects, counts(done))
    assert would.objects == len(objects(target.backend))


# ------------------------------------------------------------ as a person types it


def typed(*words: str, code: int = 0) -> str:
    """Run a command; what it prints."""
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    return result.stdout


def test_everything_that_keeps_a_repository_in_order_works_on_a_bucket(
    project: ProjectDirectory, s3_url: str, tmp_path: Path
) -> None:
    here = Repository(LocalBackend(project.repository))
    here.create()
    first = finished(here, {"m": b"1"}, {"m": LARGE}, code=CODE)
    second = finished(here, {"m": LARGE}, {"m": b"3"}, code=CODE)
    bucket, copy = f"{s3_url}/team", f"{s3_url}/copy"
    assert typed("push", bucket, "--dry-run").startswith("Would copy 2 experiments, 8 objects")
    assert typed("push", bucket, first).startswith("Copied 1 experiment, 6 objects")
    assert typed("push", bucket).startswith("Copied 1 experiment, 2 objects (")
    assert typed("push", bucket) == "Copied 0 experiments, 0 objects (0 bytes), 2 there already\n"
    assert typed("ls", "-q", "-R", bucket).split() == [first, second]
    assert "4 checkpoints" in typed("verify", "--full", "-R", bucket)
    usage = json.loads(typed("du", "--json", "-R", bucket))
    assert [e["logical"] for e in usage["experiments"]] == [
        len(LARGE) + 1 + len(CODE["train.py"])
    ] * 2
    assert typed("cp", bucket, copy, "--filter", "status = finished").startswith("Copied 2 exp")
    typed("rm", "--force", first, "-R", bucket)
    assert typed("ls", "-q", "-R", bucket).split() == [second]
    assert json.loads(typed("gc", "--json", "-R", bucket))["grace"] == 86_400
    typed("verify", "--full", "-R", bucket)
    assert typed("push", bucket) == (
        "Copied 0 experiments, 0 objects (0 bytes), 1 there already, 1 deleted there before\n"
    )
    other = str(tmp_path / "other")
    assert typed("import", copy, "-R", other) == "2 experiments imported\n"
    assert typed("pull", copy, "-R", other).endswith("2 there already\n")
    assert files(Repository(LocalBackend(Path(other)))) == files(here)
    typed("export", str(tmp_path / "exported"), "-R", bucket)
    assert (tmp_path / "exported" / second / "experiment.json").is_file()
    problem = json.loads(typed("push", copy, "--json", "-n"))
    assert problem["present"] == sorted([first, second]) and problem["problems"] == []


def test_a_push_names_what_is_lost_and_fails(project: ProjectDirectory, tmp_path: Path) -> None:
    here = Repository(LocalBackend(project.repository))
    here.create()
    finished(here, {"m": b"1"})
    for blob in here.backend.list("blobs/"):
        here.backend.delete([blob.key])
    assert typed("push", str(tmp_path / "copy"), code=1).startswith("Copied 1 experiment, 1 object")
    assert typed("pull", str(tmp_path / "nowhere"), code=2) == ""
    assert typed("push", str(tmp_path / "copy"), "--filter", "status = failed", code=2) == ""


@pytest.mark.parametrize("chosen", [[], ["abc"], ["--filter", "status = finished"]])
def test_whoever_mistypes_the_source_is_told_that_there_is_none(
    project: ProjectDirectory, tmp_path: Path, chosen: list[str]
) -> None:
    done = project.cli("pull", str(tmp_path / "nowhere"), *chosen, expect=2)
    assert f"There is no repository at {tmp_path / 'nowhere'}\n" in done.stderr


def test_a_push_that_was_killed_is_finished_by_another(
    project: ProjectDirectory, s3_url: str
) -> None:
    here = Repository(LocalBackend(project.repository))
    here.create()
    for run in range(3):
        parts = {f"{i}": f"{run} {i} ".encode() * 100 for i in range(40)}
        finished(here, parts, {**parts, "0": b"other"})
    bucket = Repository(open_backend(s3_url, relative_to=project.path))
    for least in (1, 60, 120):
        process = project.type("push", s3_url)
        while process.poll() is None and len(objects(bucket.backend)) < least:
            pass
        process.kill()
        process.wait()
        assert broken(bucket) == {}
    typed("push", s3_url)
    assert files(bucket) == files(here)
    assert check(bucket, full=True).damage == ()
    assert "3 there already" in typed("push", s3_url)


def test_a_script_pushes_and_pulls_what_it_has_chosen(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    here = Repository(LocalBackend(project.repository))
    here.create()
    first, second = finished(here, {"m": b"1"}), finished(here, {"m": b"2"})
    mine = project.open()
    done = mine.push(tmp_path / "copy", [mine.experiments.get(first)])
    assert done.ids[Outcome.ADDED] == [first]
    other = mine.elsewhere(tmp_path / "copy")
    assert [e.id for e in other.experiments.list()] == [first]
    assert other.pull(mine, [second[:10]]).ids[Outcome.ADDED] == [second]
    assert other.pull(project.path).ids[Outcome.PRESENT] == sorted([first, second])
