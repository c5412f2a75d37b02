"""Checking out loses nothing of the person's: what is overwritten can be had back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import replicate
from conftest import ProjectDirectory, content_of, fill, linux, posix
from replicate.backends.memory import MemoryBackend
from replicate.errors import NotFoundError, StorageError, UnsafeTreeError
from replicate.tree import stage


def recorded(project: ProjectDirectory) -> list[str]:
    """Two checkpoints of different code and outputs; their ids."""
    ids = []
    for version in ("1", "2"):
        project.write("train.py", f"version {version}")
        project.write("lib/model.py", f"model {version}")
        if version == "2":
            project.write("new/only_in_2.py", "new")
        with replicate.init() as experiment:
            project.write("weights.bin", version * 200_000)
            experiment.checkpoint("weights.bin", metrics={"version": version})
            ids.append(experiment.checkpoints[0].id)
    return ids


def checkout(project: ProjectDirectory, id: str, target: Path, **options: object) -> str | None:
    opened = project.open()
    plan = opened.plan_checkout(opened.pick(id), target, **options)  # type: ignore[arg-type]
    return opened.checkout(plan).backup_id


@posix
def test_code_and_outputs_come_out_as_they_were(project: ProjectDirectory, tmp_path: Path) -> None:
    project.write("train.sh", "echo", mode=0o755)
    project.write("secret.txt", "x", mode=0o600)
    (project.path / "link").symlink_to("train.sh")
    first, second = recorded(project)
    for id, version in ((first, "1"), (second, "2")):
        target = tmp_path / version
        checkout(project, id, target)
        found = content_of(target)
        assert found["train.py"] == f"version {version}".encode()
        assert found["lib/model.py"] == f"model {version}".encode()
        assert found["weights.bin"] == version.encode() * 200_000
        assert ("new/only_in_2.py" in found) == (version == "2")
        assert (target / "train.sh").stat().st_mode & 0o777 == 0o755
        assert (target / "secret.txt").stat().st_mode & 0o777 == 0o600
        assert os.readlink(target / "link") == "train.sh"


def test_a_plan_says_what_would_be_overwritten_and_changes_nothing(
    project: ProjectDirectory,
) -> None:
    first, _ = recorded(project)
    before = content_of(project.path)
    opened = project.open()
    plan = opened.plan_checkout(opened.pick(first))
    assert sorted(plan.overwrites) == ["lib/model.py", "train.py", "weights.bin"]
    assert sorted(plan.writes) == ["lib/model.py", "train.py", "weights.bin"]
    assert content_of(project.path) == before


def test_what_is_overwritten_comes_back_by_undo(project: ProjectDirectory) -> None:
    first, _ = recorded(project)
    project.write("train.py", "work that was saved nowhere")
    before = content_of(project.path)
    backup = checkout(project, first, project.path)
    assert backup is not None
    assert (project.path / "train.py").read_text() == "version 1"
    project.open().undo_checkout(directory=project.path)
    assert content_of(project.path) == before


def test_undo_removes_the_files_and_directories_that_the_checkout_has_added(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    _, second = recorded(project)
    target = tmp_path / "target"
    target.mkdir()
    (target / "train.py").write_text("mine")
    checkout(project, second, target)
    (target / "lib" / "later.py").write_text("written after the checkout")
    project.open().undo_checkout(directory=target)
    assert content_of(target) == {
        "train.py": b"mine",
        "lib/later.py": b"written after the checkout",
    }
    assert not (target / "new").exists()


def test_a_checkout_into_a_new_directory_needs_no_room_in_the_repository(
    project: ProjectDirectory, small_disk: Path, tmp_path: Path
) -> None:
    first, second = recorded(project)
    moved = replicate.Project(small_disk / "repository", project.path)
    project.open().push(moved)
    fill(small_disk / "ballast")
    target = tmp_path / "new"
    for id in (second, first):
        moved.checkout(moved.plan_checkout(moved.pick(second), target / id))
        moved.resolve(second)
        assert (target / id / "train.py").read_text() == "version 2"
    plan = moved.plan_checkout(moved.pick(first), target / second)
    with pytest.raises(StorageError, match="the disk is full") as raised:
        moved.checkout(plan)
    assert raised.value.message.startswith("Cannot keep what is there before it is overwritten")
    assert raised.value.hint and "-o" in raised.value.hint
    assert (target / second / "train.py").read_text() == "version 2"


@linux
def test_what_a_killed_checkout_has_left_is_removed_by_the_next_one_and_is_no_code(
    project: ProjectDirectory,
) -> None:
    first, second = recorded(project)
    before = content_of(project.path)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_CHECKOUT, first, project.path], env={**os.environ}
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(project.path.glob(".replicate-checkout-*/*"))
    with replicate.init() as experiment:
        pass
    assert set(project.open().plan_checkout(project.open().pick(experiment.id)).writes) == {
        *(name for name in before if not name.startswith(".replicate")),
    }
    with stage(MemoryBackend(), (), project.path) as other:
        checkout(project, second, project.path)
        assert other.directory.is_dir()  # its process is alive
    assert not list(project.path.glob(".replicate-checkout-*"))
    assert content_of(project.path) == before


_KILLED_CHECKOUT = """
import os, signal, sys
from replicate import Project
project = Project(directory=sys.argv[2])
plan = project.plan_checkout(project.pick(sys.argv[1]))
project.checkout(plan, lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_an_undo_can_be_undone(project: ProjectDirectory) -> None:
    first, _ = recorded(project)
    checkout(project, first, project.path)
    after = content_of(project.path)
    undone = project.open().undo_checkout(directory=project.path)
    assert content_of(project.path) != after
    project.open().undo_checkout(undone.backup_id, directory=project.path)
    assert content_of(project.path) == after


def test_what_was_edited_after_the_checkout_comes_back_when_its_undo_is_undone(
    project: ProjectDirectory,
) -> None:
    first, _ = recorded(project)
    checkout(project, first, project.path)
    project.write("train.py", "edited after the checkout")
    undone = project.open().undo_checkout(directory=project.path)
    assert (project.path / "train.py").read_text() == "version 2"
    assert undone.backup_id is not None
    project.open().undo_checkout(undone.backup_id, directory=project.path)
    assert (project.path / "train.py").read_text() == "edited after the checkout"


def test_two_checkouts_are_undone_one_after_the_other(project: ProjectDirectory) -> None:
    first, second = recorded(project)
    project.write("train.py", "mine")
    states = [content_of(project.path)]
    for id in (first, second):
        checkout(project, id, project.path)
        states.append(content_of(project.path))
    for state in (states[1], states[0]):
        project.open().undo_checkout(directory=project.path)
        assert content_of(project.path) == state
    with pytest.raises(NotFoundError):
        project.open().undo_checkout(directory=project.path)


def test_a_checkout_that_changes_nothing_keeps_no_backup(project: ProjectDirectory) -> None:
    _, second = recorded(project)
    assert checkout(project, second, project.path) is None


def test_only_the_named_files_and_directories_are_checked_out(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    _, second = recorded(project)
    checkout(project, second, tmp_path / "a", paths=["lib"])
    assert content_of(tmp_path / "a") == {"lib/model.py": b"model 2"}
    checkout(project, second, tmp_path / "b", paths=["weights.bin", "new/only_in_2.py"])
    assert sorted(content_of(tmp_path / "b")) == ["new/only_in_2.py", "weights.bin"]
    with pytest.raises(NotFoundError, match="missing"):
        checkout(project, second, tmp_path / "c", paths=["missing"])
    assert not (tmp_path / "c").exists()


def test_the_configuration_of_the_directory_stays_unless_it_is_asked_for(
    project: ProjectDirectory,
) -> None:
    project.write("replicate.yaml", "max_snapshot_size: 1MB\n")
    first, _ = recorded(project)
    project.write("replicate.yaml", "max_snapshot_size: 2MB\n")
    checkout(project, first, project.path)
    assert (project.path / "replicate.yaml").read_text() == "max_snapshot_size: 2MB\n"
    checkout(project, first, project.path, with_config=True)
    assert (project.path / "replicate.yaml").read_text() == "max_snapshot_size: 1MB\n"


def test_the_repository_in_the_project_is_never_touched(project: ProjectDirectory) -> None:
    first, _ = recorded(project)
    project.wait_for_helpers()
    before = {
        p: p.read_bytes()
        for top in ("experiments", "trees", "blobs")
        for p in (project.repository / top).rglob("*")
        if p.is_file()
    }
    checkout(project, first, project.path)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(project.records()) == 2


@posix
@pytest.mark.parametrize("what", ["a link elsewhere", "a file", "a dangling link"])
def test_a_directory_that_is_something_else_is_not_written_through(
    project: ProjectDirectory, tmp_path: Path, what: str
) -> None:
    first, _ = recorded(project)
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    target.mkdir()
    elsewhere.mkdir()
    if what == "a file":
        (target / "lib").write_text("mine")
    else:
        (target / "lib").symlink_to(elsewhere if what == "a link elsewhere" else "nowhere")
    with pytest.raises(UnsafeTreeError, match="lib"):
        checkout(project, first, target)
    assert list(elsewhere.iterdir()) == []
    assert [p.name for p in target.iterdir()] == ["lib"]


@posix
def test_a_link_in_place_of_a_file_is_replaced_and_not_written_through(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    first, _ = recorded(project)
    target = tmp_path / "target"
    target.mkdir()
    mine = target / "mine.py"
    mine.write_text("mine")
    (target / "train.py").symlink_to("mine.py")
    checkout(project, first, target)
    assert mine.read_text() == "mine"
    assert (target / "train.py").read_text() == "version 1"
    project.open().undo_checkout(directory=target)
    assert os.readlink(target / "train.py") == "mine.py"


def test_a_directory_in_place_of_a_file_is_left(project: ProjectDirectory, tmp_path: Path) -> None:
    first, _ = recorded(project)
    (tmp_path / "target" / "train.py").mkdir(parents=True)
    with pytest.raises(UnsafeTreeError, match=r"train\.py"):
        checkout(project, first, tmp_path / "target")
    assert content_of(tmp_path / "target") == {}


def test_an_experiment_without_files_cannot_be_checked_out(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    with replicate.init(path=None) as experiment:
        experiment.checkpoint(metrics={"loss": 1})
    with pytest.raises(NotFoundError, match="no files"):
        checkout(project, experiment.id, tmp_path / "target")


def test_checkpoint_checkout_and_open_in_a_notebook(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    first, _ = recorded(project)
    checkpoint = replicate.experiments.get(first).checkpoints[0]
    checkpoint.checkout(tmp_path / "target")
    assert (tmp_path / "target" / "weights.bin").read_bytes() == b"1" * 200_000
    assert checkpoint.open().read() == b"1" * 200_000
    assert checkpoint.open("lib/model.py").read() == b"model 1"
    with pytest.raises(NotFoundError, match=r"weights\.bin"):
        checkpoint.open("missing")
