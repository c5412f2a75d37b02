"""Whatever file of a repository is deleted, cut off or flipped: the loss is named, nothing damaged
is presented as whole, and all the rest is still there."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import replicate
from conftest import ProjectDirectory
from replicate.errors import DamagedError, RepositoryError
from replicate.model import ExperimentRecord
from replicate.tree import reader

Damage = Callable[[Path, random.Random], None]
Files = dict[str, bytes]

KINDS = {
    "experiment.json": "experiments/*/experiment.json",
    "journal": "experiments/*/journal/*.jsonl",
    "heartbeat": "experiments/*/heartbeat.json",
    "tree": "trees/*/*.json",
    "blob": "blobs/*/*",
}
SEEDS = range(6)


def delete(file: Path, moments: random.Random) -> None:
    file.unlink()


def truncate(file: Path, moments: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: moments.randrange(len(content))])


def truncate_at_a_line(file: Path, moments: random.Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: moments.randrange(len(lines))]))


def flip_a_bit(file: Path, moments: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    file.write_bytes(content)


DAMAGES = [delete, truncate, truncate_at_a_line, flip_a_bit]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with three runs, of which nothing is damaged."""
    path = tmp_path_factory.mktemp("recorded")
    project = ProjectDirectory(path)
    for seed in range(3):
        project.run(
            """
            import os, sys, replicate
            experiment = replicate.init("train.py", params={"seed": sys.argv[1]})
            for i in range(3):
                os.makedirs("out", exist_ok=True)
                open("out/m", "wb").write(os.urandom(150_000))
                open("out/n", "w").write(f"{sys.argv[1]} {i}")
                experiment.checkpoint("out", metrics={"loss": 1 / (i + 1)})
            """,
            str(seed),
            REPLICATE_DIRECTORY=str(path),
        )
    project.wait_for_helpers()
    return path


@pytest.fixture
def project(recorded: Path, tmp_path: Path) -> ProjectDirectory:
    """A copy of it, to be damaged."""
    shutil.copytree(recorded, tmp_path / "project")
    return ProjectDirectory(tmp_path / "project")


def files_of(project: replicate.Project, tree: str | None) -> Files:
    assert tree is not None
    repository = project.repository
    return {p: reader(repository.backend, e)() for p, e in repository.tree(tree).files.items()}


def contents(project: replicate.Project) -> dict[str, ExperimentRecord]:
    """Every experiment by its id, without what reading depends on."""
    return {r.id: replace(r, heartbeat=None) for r in project.records()}


def test_the_repository_is_whole_before_it_is_damaged(project: ProjectDirectory) -> None:
    records = contents(project.open()).values()
    assert len(records) == 3
    assert all(r.damage == () and len(r.checkpoints) == 3 for r in records)
    for kind, pattern in KINDS.items():
        assert list(project.repository.glob(pattern)), kind


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_named_and_the_rest_is_there(
    project: ProjectDirectory, kind: str, damage: Damage, seed: int
) -> None:
    moments = random.Random(f"{kind} {damage.__name__} {seed}")
    opened = project.open()
    before = contents(opened)
    saved = {
        tree: files_of(opened, tree)
        for record in before.values()
        for tree in (record.tree, *(c.tree for c in record.checkpoints))
    }
    file = moments.choice(sorted(project.repository.glob(KINDS[kind])))
    damage(file, moments)
    name = file.relative_to(project.repository).as_posix()

    after = contents(opened)
    assert after.keys() == before.keys() or name.endswith("experiment.json")
    changed = [id for id in before if after.get(id) != before[id]]
    assert all(id in name for id in changed), "another experiment has changed"
    for id in changed:
        assert after[id].damage, "what has changed is not said to be damaged"
    if kind in ("tree", "blob"):
        assert_named_when_read(opened, before, saved, name)
    elif not changed:
        assert_nothing_was_lost(kind, name, file, before)
    for record in after.values():
        if record.id not in name:
            for checkpoint in record.checkpoints:
                if kind not in ("tree", "blob"):
                    assert files_of(opened, checkpoint.tree) == saved[checkpoint.tree]


def assert_named_when_read(
    opened: replicate.Project,
    before: dict[str, ExperimentRecord],
    saved: dict[str | None, Files],
    name: str,
) -> None:
    """Whoever reads the damaged file is told its name; all others read what was saved."""
    told = 0
    for record in before.values():
        for tree in (record.tree, *(c.tree for c in record.checkpoints)):
            try:
                assert files_of(opened, tree) == saved[tree]
            except DamagedError as error:
                assert name in str(error)
                told += 1
    assert told > 0


def assert_nothing_was_lost(
    kind: str, name: str, file: Path, before: dict[str, ExperimentRecord]
) -> None:
    """The only damage that changes nothing: a heartbeat that is gone from a run that has ended, or
    a flip that made one kind of white space into another."""
    assert kind == "heartbeat" or (file.exists() and file.stat().st_size > 0)
    (record,) = (r for r in before.values() if r.id in name)
    assert record.stop is not None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_repository_json_is_named(project: ProjectDirectory, damage: Damage) -> None:
    moments = random.Random(damage.__name__)
    before = contents(project.open())
    damage(project.repository / "repository.json", moments)
    with pytest.raises(RepositoryError, match=r"repository\.json"):
        project.open().records()
    (project.repository / "repository.json").write_text(
        '{"format":"replicate","version":1,"requires":[]}'
    )
    assert contents(project.open()) == before


def test_a_checkout_of_a_damaged_checkpoint_names_it_and_touches_no_file(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    opened = project.open()
    record = opened.records()[0]
    tree = record.checkpoints[0].tree
    assert tree is not None
    entry = opened.repository.tree(tree).files["out/n"]
    blob = project.repository / "blobs" / entry.hash[:2] / entry.hash
    flip_a_bit(blob, random.Random(0))
    target = tmp_path / "target"
    (target / "out").mkdir(parents=True)
    (target / "out" / "m").write_text("mine")
    plan = opened.plan_checkout(opened.pick(record.checkpoints[0].id), target)
    with pytest.raises(DamagedError, match=entry.hash):
        opened.checkout(plan)
    assert [p.relative_to(target).as_posix() for p in sorted(target.rglob("*"))] == [
        "out",
        "out/m",
    ]
    assert (target / "out" / "m").read_text() == "mine"
    sound = opened.plan_checkout(opened.pick(record.checkpoints[1].id), target)
    opened.checkout(sound)
    assert (target / "out" / "n").read_text() == "0 1"


def test_garbage_among_the_repositorys_files_does_not_hide_the_rest(
    project: ProjectDirectory,
) -> None:
    before = contents(project.open())
    id = next(iter(before))
    (project.repository / "experiments" / "notes.txt").write_text("mine")
    (project.repository / "experiments" / id / "journal" / "mine.jsonl").write_text("mine\n")
    after = contents(project.open())
    assert after.keys() == before.keys()
    assert after[id].checkpoints == before[id].checkpoints
    assert "mine.jsonl" in after[id].damage[0]
