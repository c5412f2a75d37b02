"""Keeping a repository in order: what is damaged is named, what is deleted is gone and its space is
back, and what anybody needs stays."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from backend_contract import next_tick
from replicate.backends.base import Content, Stat
from replicate.backends.local import LocalBackend
from replicate.backends.memory import MemoryBackend
from replicate.blobs import tree_key
from replicate.errors import DamagedError, NotFoundError, UsageError
from replicate.maintenance import (
    Damage,
    Verification,
    announced,
    check,
    collect,
    delete_experiments,
    measure,
)
from replicate.maintenance.gc import GRACE, UNDO_KEPT
from replicate.model import ExperimentRecord
from replicate.project import Project
from replicate.records import encode_time, new_id, now, seal_document
from replicate.repository import Repository
from replicate.spool import Spool
from saving import Run, age, broken, contents, finished, garbage, local, objects, store

CODE = {"train.py": b"import replicate"}
HOUR = 3600.0


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return local(tmp_path / "repository")


@pytest.fixture
def project(repository: Repository, tmp_path: Path) -> Project:
    directory = tmp_path / "project"
    directory.mkdir()
    return Project(repository=repository.url, directory=directory)


def spools_of(repository: Repository) -> Path:
    """Where runs that are recorded into it wait to be saved."""
    assert repository.spools is not None
    return repository.spools


def backup(repository: Repository, files: dict[str, bytes]) -> str:
    """The record of a checkout that has overwritten `files`."""
    id = new_id()
    value: dict[str, object] = {
        "id": id,
        "created": encode_time(now()),
        "directory": "/tmp",
        "checked_out": id,
        "replaced": store(repository, files),
        "added": [],
        "undoes": None,
    }
    repository.backend.put_if_absent({f"checkouts/{id}.json": seal_document(value)})
    return id


def path_of(repository: Repository, pattern: str) -> Path:
    """The only file of the repository that matches."""
    (found,) = Path(repository.url).glob(pattern)
    return found


def blob_path(repository: Repository, data: bytes) -> Path:
    return next(p for p in Path(repository.url).glob("blobs/*/*") if p.read_bytes() == data)


# ------------------------------------------------------------ verify


def test_a_whole_repository_has_no_damage_and_is_counted(repository: Repository) -> None:
    finished(repository, {"model.pth": b"one"}, {"model.pth": b"two"}, code=CODE)
    finished(repository, {"model.pth": b"one"}, code=CODE)
    backup(repository, {"notes.txt": b"mine"})
    for full in (False, True):
        found = check(repository, full=full)
        assert found.damage == ()
        counted = (found.experiments, found.checkpoints, found.trees, found.blobs, found.bytes)
        assert counted == (2, 3, 4, 4, len(CODE["train.py"]) + 3 + 3 + 4)


def remove_file(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_a_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


@pytest.mark.parametrize(
    ("pattern", "harm", "kind", "needs_full"),
    [
        ("blobs/*/*", remove_file, "blob", False),
        ("blobs/*/*", shorten, "blob", False),
        ("blobs/*/*", flip, "blob", True),
        ("trees/*/*", remove_file, "tree", False),
        ("trees/*/*", flip, "tree", False),
        ("experiments/*/experiment.json", remove_file, "experiment", False),
        ("experiments/*/experiment.json", flip, "experiment", False),
        ("experiments/*/journal/*", flip, "experiment", False),
        ("experiments/*/journal/*", lose_a_line, "experiment", False),
        ("experiments/*/heartbeat.json", flip, "experiment", False),
        ("checkouts/*", flip, "checkout", False),
    ],
)
def test_verify_names_what_is_damaged(
    repository: Repository,
    pattern: str,
    harm: Callable[[Path], None],
    kind: str,
    needs_full: bool,
) -> None:
    run = Run(repository)
    run.checkpoint({"model.pth": b"weights"})
    run.stop()
    run.beat()
    if kind == "checkout":
        backup(repository, {"model.pth": b"weights"})
    damaged = path_of(repository, pattern)
    harm(damaged)
    quick, full = check(repository), check(repository, full=True)
    assert bool(quick.damage) != needs_full
    (damage,) = full.damage
    assert damage.kind == kind
    names = damaged.relative_to(repository.url).as_posix()
    missing_journal_lines = "-*.jsonl" in damage.problem
    assert names in damage.problem or (missing_journal_lines and "journal" in names)
    if kind != "checkout":
        assert [h.experiment for h in damage.hurts] == [run.id]


def test_a_journal_that_is_lost_whole_is_damage(repository: Repository) -> None:
    run = Run(repository)
    run.checkpoint({"model.pth": b"weights"})
    run.beat()
    path_of(repository, "experiments/*/journal/*").unlink()
    (damage,) = check(repository).damage
    assert "1 of 1 events are missing" in damage.problem


def hurt_checkpoints(damage: Damage) -> set[str | None]:
    return {holder.checkpoint for holder in damage.hurts}


def test_a_lost_blob_hurts_every_checkpoint_that_needs_it_and_no_other(
    repository: Repository,
) -> None:
    run = Run(repository)
    one = run.checkpoint({"model.pth": b"shared", "log": b"1"})
    two = run.checkpoint({"model.pth": b"shared", "log": b"2"})
    run.checkpoint({"model.pth": b"other"})
    blob_path(repository, b"shared").unlink()
    (damage,) = check(repository).damage
    assert hurt_checkpoints(damage) == {one, two}


def test_verify_of_one_checkpoint_is_not_concerned_with_the_others(
    repository: Repository, project: Project
) -> None:
    run = Run(repository, CODE)
    one, two = run.checkpoint({"m": b"one"}), run.checkpoint({"m": b"two"})
    blob_path(repository, b"one").unlink()
    assert project.verify([two]).damage == ()
    assert (project.verify([two]).checkpoints, project.verify([run.id]).checkpoints) == (1, 2)
    for id in (one, run.id):
        (damage,) = project.verify([id[:12]]).damage
        assert hurt_checkpoints(damage) == {one}
    blob_path(repository, CODE["train.py"]).unlink()
    assert len(project.verify([two]).damage) == 1  # a checkpoint is of no use without its code


@pytest.mark.parametrize("harm", [remove_file, flip])
def test_compressed_blobs_are_verified(
    repository: Repository, harm: Callable[[Path], None]
) -> None:
    run = Run(repository)
    run.commit(store(repository, {"zeros": bytes(100_000)}, compress=True))
    assert check(repository, full=True).damage == ()
    harm(path_of(repository, "blobs/*/*zst"))
    assert len(check(repository, full=True).damage) == 1


def test_what_is_missing_of_a_deleted_checkpoint_is_no_damage(
    repository: Repository, project: Project
) -> None:
    run = Run(repository)
    checkpoint = run.checkpoint({"m": b"one"})
    run.stop()
    blob_path(repository, b"one").unlink()
    project.remove(project.plan_removal([checkpoint]))
    assert check(repository, full=True).damage == ()


def test_maintenance_of_no_repository_says_that_there_is_none(tmp_path: Path) -> None:
    project = Project(repository=str(tmp_path / "nothing"), directory=tmp_path)
    for command in (project.verify, project.gc, project.usage):
        with pytest.raises(NotFoundError, match="no repository"):
            command()
    assert not (tmp_path / "nothing").exists()


# ------------------------------------------------------------ deleting


def test_deleting_frees_exactly_what_was_announced_and_nothing_that_others_need(
    repository: Repository, project: Project
) -> None:
    shared = {"backbone.pth": b"frozen" * 50_000}
    kept = finished(repository, {**shared, "head.pth": b"kept"}, code=CODE)
    gone = finished(repository, {**shared, "head.pth": b"gone" * 100}, code=CODE)
    before = objects(repository.backend)
    plan = project.plan_removal([gone])
    done = project.remove(plan)
    after = objects(repository.backend)
    assert done.bytes == plan.bytes == sum(before.values()) - sum(after.values()) > 0
    assert set(after) == set(before) - plan.objects
    assert [e.id for e in project.records()] == [kept]
    assert broken(repository) == {}


def test_the_best_checkpoint_is_another_one_once_it_is_deleted(
    repository: Repository, project: Project
) -> None:
    run = Run(repository)
    good = run.checkpoint({"m": b"1"}, loss=0.2)
    best = run.checkpoint({"m": b"2"}, loss=0.1)
    run.stop()
    project.remove(project.plan_removal([best]))
    experiment = project.find(run.id)
    found = (experiment.best(), experiment.latest())
    assert [c.id for c in found if c] == [good, good]
    with pytest.raises(NotFoundError):
        project.resolve(best)


def test_a_checkpoint_of_an_experiment_that_goes_too_is_not_named_twice(
    repository: Repository, project: Project
) -> None:
    run = Run(repository)
    checkpoint = run.checkpoint({"m": b"1"})
    plan = project.plan_removal([checkpoint, run.id, run.id, checkpoint])
    assert ([e.id for e in plan.experiments], plan.checkpoints) == ([run.id], ())


def test_an_unknown_id_deletes_nothing(repository: Repository, project: Project) -> None:
    id = finished(repository)
    with pytest.raises(NotFoundError):
        project.plan_removal([id, "nonesuch"])
    assert [e.id for e in project.records()] == [id]


def test_a_running_experiment_is_deleted_by_force_only_and_stays_deleted(
    repository: Repository, project: Project
) -> None:
    run = Run(repository)
    run.checkpoint({"m": b"1"})
    run.beat()
    with pytest.raises(UsageError, match="running"):
        project.plan_removal([run.id])
    with pytest.raises(UsageError, match="running"):
        project.find(run.id).delete()
    project.remove(project.plan_removal([run.id], force=True))
    run.checkpoint({"m": b"2"})  # the run does not know
    assert project.records() == []
    age(repository, 2 * HOUR)
    run.beat()
    project.gc()
    run.stop()  # its journal is still its own to write to
    assert project.records() == []


def test_experiments_are_deleted_from_python(repository: Repository, project: Project) -> None:
    ids = [finished(repository, {"m": bytes([i])}) for i in range(4)]
    experiments = project.experiments.list()
    experiments[0].delete()
    experiments[0].delete()  # gone already: no error
    assert [e.id for e in project.records()] == ids[1:]
    experiments[1:3].delete()
    experiments[:0].delete()
    assert [e.id for e in project.records()] == ids[3:]
    assert len(objects(repository.backend)) == 2


def test_what_damage_makes_unclear_is_deleted_but_not_freed(
    repository: Repository, project: Project
) -> None:
    finished(repository, {"m": b"damaged"})
    path_of(repository, "trees/*/*").unlink()
    gone = finished(repository, {"m": b"gone"})
    done = project.remove(project.plan_removal([gone]))
    assert done.bytes == 0 and done.problem is not None and "trees/" in done.problem
    assert gone not in [e.id for e in project.records()]
    assert blob_path(repository, b"gone").exists()


# ------------------------------------------------------------ garbage


def test_gc_removes_what_nothing_refers_to_and_leaves_the_rest(repository: Repository) -> None:
    finished(repository, {"m": b"kept"}, code=CODE)
    kept = objects(repository.backend)
    garbage(repository, {"m": b"garbage", "log": b"more"})
    assert collect(repository, dry_run=True).objects == 3
    assert len(objects(repository.backend)) == len(kept) + 3
    done = collect(repository)
    assert (done.objects, done.later_objects) == (3, 0)
    assert objects(repository.backend) == kept
    assert collect(repository).objects == 0


def test_gc_removes_what_is_half_written_once_nobody_can_be_at_it(repository: Repository) -> None:
    finished(repository)
    half = Path(repository.url, ".tmp", "half")
    half.write_bytes(bytes(70))
    next_tick(repository.backend)
    with announced(repository):
        assert collect(repository).objects == 0
    assert collect(repository, dry_run=True).bytes == 70 and half.exists()
    done = collect(repository)
    assert (done.objects, done.bytes, half.exists()) == (1, 70, False)


def test_gc_leaves_files_that_are_not_ours(repository: Repository) -> None:
    foreign = Path(repository.url, "blobs", "ab", "README.txt")
    foreign.parent.mkdir(parents=True)
    foreign.write_text("what is this?")
    collect(repository)
    assert foreign.exists()


def test_all_encodings_of_a_blob_are_one_object(repository: Repository) -> None:
    run = Run(repository)
    files = {"zeros": bytes(100_000)}
    run.commit(store(repository, files, compress=True))
    run.commit(store(repository, files))
    run.stop()
    assert len(list(Path(repository.url).glob("blobs/*/*"))) == 2
    assert collect(repository).objects == 0
    run.repository.journal(run.id, new_id()[:16]).append([("delete", now(), {})])
    assert collect(repository).objects == 3


@pytest.mark.parametrize("sign", ["heartbeat", "spool", "new spool", "checkout"])
def test_while_anybody_may_be_writing_what_is_young_stays(
    repository: Repository, sign: str
) -> None:
    finished(repository)
    garbage(repository, {"m": b"young"})
    garbage(repository, {"m": b"old"})
    os.utime(blob_path(repository, b"old"), (0, 0))
    if sign == "heartbeat":
        Run(repository).beat()
    elif sign == "spool":
        lock = Spool(spools_of(repository) / new_id()).create()
    elif sign == "new spool":
        (spools_of(repository) / new_id()).mkdir(parents=True)
    if sign == "checkout":
        with announced(repository):
            done = collect(repository)
    else:
        done = collect(repository)
    if sign == "spool":
        os.close(lock)
    assert (done.objects, done.later_objects, done.grace) == (1, 3, GRACE)


def test_what_was_announced_is_free_to_go_once_it_is_over(repository: Repository) -> None:
    finished(repository)
    with announced(repository):
        garbage(repository, {"m": b"abandoned"})
    assert collect(repository).objects == 2
    assert list(spools_of(repository).iterdir()) == []


def test_a_dead_run_that_left_a_spool_is_nobody(repository: Repository) -> None:
    spool = Spool(spools_of(repository) / new_id())
    os.close(spool.create())
    garbage(repository, {"m": b"abandoned"})
    assert collect(repository).grace == 0


def test_elsewhere_than_on_a_local_disk_there_is_always_a_grace_period() -> None:
    time = [1_000_000.0]
    repository = Repository(MemoryBackend(clock=lambda: time[0]))
    repository.create()
    store(repository, {"m": b"garbage"})
    time[0] += GRACE
    assert collect(repository).later_objects == 2
    time[0] += 1
    assert collect(repository).objects == 2


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("trees/*/*", remove_file),
        ("trees/*/*", flip),
        ("experiments/*/experiment.json", flip),
        ("experiments/*/journal/*", flip),
        ("experiments/*/journal/*", lose_a_line),
    ],
)
def test_gc_refuses_while_it_cannot_tell_what_is_needed_and_rm_is_the_way_out(
    repository: Repository, project: Project, pattern: str, harm: Callable[[Path], None]
) -> None:
    id = finished(repository, {"m": b"needed"})
    harm(path_of(repository, pattern))
    garbage(repository, {"m": b"garbage"})
    before = objects(repository.backend)
    with pytest.raises(DamagedError, match="Nothing was removed") as refused:
        collect(repository)
    assert pattern.split("/")[0] in refused.value.message and refused.value.hint is not None
    assert objects(repository.backend) == before
    project.remove(project.plan_removal([id]))
    collect(repository)
    assert objects(repository.backend) == {}


def test_who_cannot_collect_is_told_what_to_give_up(
    repository: Repository, project: Project
) -> None:
    id = finished(repository, {"m": b"1"}, {"m": b"2"}, {"n": b"2"}, {"m": b"2"})
    finished(repository, {"m": b"3"})
    hurt = repository.experiment(id).checkpoints[1::2]
    remove_file(Path(repository.url, tree_key(hurt[0].tree or "")))
    with pytest.raises(DamagedError) as refused:
        collect(repository)
    command = re.search("`replicate rm (.*?)`", refused.value.hint or "")
    assert command is not None and command[1].split() == [c.id[:7] for c in hurt]
    project.remove(project.plan_removal(command[1].split()))
    assert collect(repository).experiments == 0
    assert len(repository.experiment(id).checkpoints) == 2


def test_gc_refuses_while_the_record_of_a_checkout_is_damaged(repository: Repository) -> None:
    finished(repository)
    backup(repository, {"notes.txt": b"mine"})
    flip(path_of(repository, "checkouts/*"))
    with pytest.raises(DamagedError, match="checkouts/"):
        collect(repository)
    assert blob_path(repository, b"mine").exists()


def test_what_a_checkout_overwrote_is_kept_for_a_month(repository: Repository) -> None:
    finished(repository)
    backup(repository, {"notes.txt": b"mine"})
    age(repository, UNDO_KEPT - HOUR)
    assert (collect(repository).objects, collect(repository).backups) == (0, 0)
    age(repository, UNDO_KEPT + HOUR)
    done = collect(repository)
    assert (done.objects, done.backups) == (2, 1)
    assert list(repository.backend.list("checkouts/")) == []


def test_a_real_checkout_is_undone_after_a_collection(project: Project) -> None:
    id = finished(project.repository, {"model.pth": b"new"})
    mine = project.directory / "model.pth"
    mine.write_bytes(b"mine")
    project.checkout(project.plan_checkout(project.pick(id)))
    project.gc()
    project.undo_checkout()
    assert mine.read_bytes() == b"mine"


class DeletedMeanwhile(LocalBackend):
    """A repository in which another process deletes an experiment, and collects its garbage, just
    before its tree or the list of the blobs is read."""

    def __init__(self, root: Path, doomed: str, moment: str) -> None:
        super().__init__(root)
        self.doomed = [doomed]
        (tree,) = {c.tree for c in local(root).experiment(doomed).checkpoints}
        self.moment = tree_key(tree or "") if moment == "tree" else "blobs/"

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._delete(key)
        return super().get(key, start, length)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        self._delete(prefix)
        return super().list(prefix, after)

    def _delete(self, read: str) -> None:
        if self.doomed and read.startswith(self.moment):
            delete_experiments(local(Path(self.url)), [self.doomed.pop()])


@pytest.mark.parametrize("moment", ["tree", "blobs"])
def test_what_others_delete_and_collect_meanwhile_is_no_damage(
    repository: Repository, moment: str
) -> None:
    finished(repository, {"m": b"kept"})
    for command in (check, collect):
        doomed = finished(repository, {"m": b"doomed"})
        backend = DeletedMeanwhile(Path(repository.url), doomed, moment)
        result = command(Repository(backend))
        assert backend.doomed == []
        assert not isinstance(result, Verification) or result.damage == ()


class CollectedMeanwhile(LocalBackend):
    """A repository of which the garbage is collected just before a checkout is recorded in it."""

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        if any(key.startswith("checkouts/") for key in items):
            next_tick(self)
            collect(local(Path(self.url)))
        return super().put_if_absent(items)


@pytest.mark.parametrize("how", ["command", "python"])
def test_what_a_checkout_overwrites_survives_a_collection_in_its_midst(
    project: Project, how: str
) -> None:
    id = finished(project.repository, {"model.pth": b"new"})
    mine = project.directory / "model.pth"
    mine.write_bytes(b"mine")
    project.repository = Repository(CollectedMeanwhile(Path(project.repository.url)))
    if how == "command":
        project.checkout(project.plan_checkout(project.pick(id)))
    else:
        project.find(id).checkpoints[0].checkout(project.directory)
    assert mine.read_bytes() == b"new"
    project.undo_checkout()
    assert mine.read_bytes() == b"mine"


# ------------------------------------------------------------ what is left of a deleted experiment


def metadata(repository: Repository, id: str) -> list[str]:
    return [stat.key for stat in repository.backend.list(f"experiments/{id}/")]


def delete(project: Project, id: str) -> None:
    project.remove(project.plan_removal([id]))


def test_the_files_of_a_deleted_experiment_go_after_an_hour_but_for_the_deletion(
    repository: Repository, project: Project
) -> None:
    id = finished(repository, {"m": b"1"})
    whole = metadata(repository, id)
    checkpoint = project.find(id).checkpoints[0].id
    project.remove(project.plan_removal([checkpoint]))
    delete(project, id)
    assert len(metadata(repository, id)) == len(whole) + 2
    age(repository, HOUR + 60)
    assert collect(repository).experiments == 1
    (left,) = metadata(repository, id)
    (event,) = Path(repository.url, left).read_bytes().splitlines()
    assert b'"event":"delete"' in event and checkpoint.encode() not in event
    age(repository, HOUR + 60)
    assert collect(repository).experiments == 0
    assert project.records() == [] and check(repository).damage == ()


def test_a_deleted_experiment_never_shows_up_however_much_of_it_is_left(
    repository: Repository, project: Project, tmp_path: Path
) -> None:
    id = finished(repository, {"m": b"1"})
    before = metadata(repository, id)
    delete(project, id)
    for number in range(2 ** len(before)):  # each way in which removing may have been cut off
        copy = tmp_path / str(number)
        shutil.copytree(repository.url, copy)
        for place, key in enumerate(before):
            if number >> place & 1:
                (copy / key).unlink()
        found = local(copy)
        assert found.experiments() == []
        assert (check(found).damage, collect(found).objects) == ((), 0)


def test_a_deleted_experiment_stays_deleted_when_a_copy_that_has_it_is_merged(
    repository: Repository, project: Project, tmp_path: Path
) -> None:
    id = finished(repository, {"m": b"1"})
    shutil.copytree(repository.url, tmp_path / "copy")
    delete(project, id)
    age(repository, HOUR + 60)
    collect(repository)
    shutil.copytree(tmp_path / "copy", repository.url, dirs_exist_ok=True)
    assert repository.experiments() == []
    assert collect(repository).objects == 2


def test_a_spool_that_is_committed_late_does_not_bring_it_back(
    repository: Repository, project: Project
) -> None:
    run = Run(repository)
    run.checkpoint({"m": b"1"})
    delete(project, run.id)
    age(repository, HOUR + 60)
    spool = Spool(spools_of(repository) / run.id)
    os.close(spool.create())  # the run is dead, and has left work
    assert collect(repository).experiments == 0
    spool.destroy()
    assert collect(repository).experiments == 1
    late = repository.journal(run.id, new_id()[:16])
    late.append([("problem", now(), {"message": "late"})])
    assert repository.experiments() == []


# ------------------------------------------------------------ usage


def test_usage_counts_files_what_is_stored_and_what_deleting_would_free(
    repository: Repository, project: Project
) -> None:
    shared = b"frozen" * 1000
    for head in (b"one", b"two" * 100):
        finished(repository, {"backbone": shared, "head": head}, {"backbone": shared}, code=CODE)
    usage = measure(repository)
    large, small = usage.experiments
    assert (large.logical, small.logical) == tuple(
        2 * len(shared) + size + len(CODE["train.py"]) for size in (300, 3)
    )
    assert usage.logical == large.logical + small.logical
    assert usage.stored == sum(objects(repository.backend).values())
    for row in usage.experiments:
        assert row.exclusive == project.plan_removal([row.experiment.id]).bytes < row.stored
    common = large.stored - large.exclusive
    assert common == small.stored - small.exclusive
    assert usage.stored == common + large.exclusive + small.exclusive
    assert (usage.backups, usage.unreferenced, usage.damage) == (0, 0, ())


def test_usage_tells_backups_and_garbage_apart(repository: Repository) -> None:
    finished(repository, {"m": b"needed"})
    before = sum(objects(repository.backend).values())
    backup(repository, {"notes.txt": b"mine"})
    kept = sum(objects(repository.backend).values())
    garbage(repository, {"m": b"garbage"})
    total = sum(objects(repository.backend).values())
    usage = measure(repository)
    assert (usage.backups, usage.unreferenced) == (kept - before, total - kept)
    assert usage.unreferenced == collect(repository).bytes


def test_usage_names_a_tree_that_it_cannot_count(repository: Repository) -> None:
    finished(repository, {"m": b"needed"})
    path_of(repository, "trees/*/*").unlink()
    usage = measure(repository)
    assert len(usage.experiments) == 1 and "trees/" in usage.damage[0]


def test_reading_back_what_others_share_after_every_deletion(
    repository: Repository, project: Project
) -> None:
    parts = [bytes([i]) * 1000 for i in range(5)]
    files = [{"a": parts[i], "b": parts[(i + 1) % 5]} for i in range(5)]
    ids = [finished(repository, files[i], code=CODE) for i in range(5)]
    for i, id in enumerate(ids):
        project.remove(project.plan_removal([id]))
        left: list[ExperimentRecord] = project.records()
        found = [contents(repository, e.checkpoints[0]) for e in left]
        assert found == files[i + 1 :]
    assert objects(repository.backend) == {}
