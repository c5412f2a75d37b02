"""`replicate import` of another repository of Replicate: what is missing is copied, verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import ProjectDirectory, content_of
from replicate.model import Status

TRAIN = """
    import replicate
    with replicate.init(params={"a": 1}) as experiment:
        for step in range(3):
            open("model.txt", "w").write(f"weights {step}" * 100)
            experiment.checkpoint(path="model.txt", step=step, metrics={"loss": 1 / (step + 1)})
"""


@pytest.fixture
def other(project: ProjectDirectory, tmp_path: Path) -> ProjectDirectory:
    """Another project, which is about to import from the first one."""
    (tmp_path / "other").mkdir()
    return ProjectDirectory(tmp_path / "other")


def test_what_is_imported_is_the_same(
    project: ProjectDirectory, other: ProjectDirectory, tmp_path: Path
) -> None:
    project.run(TRAIN)
    original = project.record()
    assert other.cli("import", str(project.path)).stdout == "1 experiment imported\n"
    copy = other.record()
    assert copy == original
    other.cli("verify", "--full")
    id = copy.checkpoints[1].id
    assert other.files_of(id, tmp_path / "b") == project.files_of(id, tmp_path / "a")


def test_a_second_import_adds_nothing(project: ProjectDirectory, other: ProjectDirectory) -> None:
    project.run(TRAIN)
    project.wait_for_helpers()
    other.cli("import", str(project.repository))
    before = content_of(other.repository)
    again = other.cli("import", str(project.repository))
    assert again.stdout == "0 experiments imported, 1 here already\n"
    assert content_of(other.repository) == before


def test_a_journal_that_has_grown_since_is_completed(
    project: ProjectDirectory, other: ProjectDirectory
) -> None:
    project.run(TRAIN)
    original = project.record()
    (journal,) = project.repository.glob("experiments/*/journal/*")
    whole = journal.read_bytes()
    journal.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + b'{"torn')
    (heartbeat,) = project.repository.glob("experiments/*/heartbeat.json")
    beat = heartbeat.read_bytes()
    heartbeat.unlink()
    other.cli("import", str(project.repository))
    assert len(other.record().checkpoints) == 2
    journal.write_bytes(whole)
    heartbeat.write_bytes(beat)
    again = other.cli("import", str(project.repository))
    assert again.stdout == "0 experiments imported, 1 completed\n"
    assert other.record() == original


def test_a_run_that_nobody_saw_end_does_not_look_alive(
    project: ProjectDirectory, other: ProjectDirectory
) -> None:
    project.run(TRAIN)
    project.wait_for_helpers()
    (journal,) = project.repository.glob("experiments/*/journal/*")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if b'"event":"stop"' not in line))
    writer, id = journal.name.rpartition("-")[0], journal.parents[1].name
    project.open().repository.beat(id, 10.0, {writer: len(lines) - 1})
    assert project.record().status is Status.RUNNING
    other.cli("import", str(project.repository))
    assert other.record().status is Status.LOST


def test_what_is_damaged_is_named_and_the_rest_copied(
    project: ProjectDirectory, other: ProjectDirectory, tmp_path: Path
) -> None:
    project.run(TRAIN)
    first, *rest = project.record().checkpoints
    assert first.tree is not None
    (blob,) = project.open().repository.tree(first.tree).entries
    damaged = project.repository / "blobs" / blob.hash[:2] / blob.hash
    damaged.write_bytes(b"other bytes")
    done = other.cli("import", str(project.repository), expect=1)
    assert str(damaged) in done.stderr
    assert [c.id for c in other.record().checkpoints] == [first.id, *(c.id for c in rest)]
    content = other.files_of(rest[-1].id, tmp_path / "out")["model.txt"]
    assert content == b"weights 2" * 100
    assert damaged.name in other.cli("verify", expect=1).stdout


def test_deleted_experiments_are_not_brought_and_do_not_come_back(
    project: ProjectDirectory, other: ProjectDirectory
) -> None:
    project.run(TRAIN)
    project.run(TRAIN)
    gone, kept = project.records()
    other.cli("import", str(project.repository))
    other.cli("rm", "--force", kept.id)
    project.cli("rm", "--force", gone.id)
    other.cli("import", str(project.repository))
    assert [record.id for record in other.records()] == [gone.id]


def test_a_repository_is_not_imported_into_itself(project: ProjectDirectory) -> None:
    project.run(TRAIN)
    before = len(project.records())
    done = project.cli("import", str(project.repository), expect=2)
    assert "is the repository that it would be imported into" in done.stderr
    assert len(project.records()) == before
