"""What a run had spooled and could not save: the next run in the project saves it, once, and says
what was lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from conftest import ProjectDirectory, linux
from replicate.errors import NotFoundError
from replicate.model import ExperimentRecord
from replicate.recorder.recovery import recover

pytestmark = linux


def run_until_the_machine_stops(
    project: ProjectDirectory, options: str = "", size: int = 0
) -> Path:
    """A run whose five checkpoints lie in the spool when all its processes end; the spool."""
    process = project.start(f"""
        import sys, replicate
        experiment = replicate.init(path=None{options})
        experiment.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        for i in range(5):
            open("m", "w").write(("version " + str(i)).ljust({size}, "."))
            experiment.checkpoint("m", metrics=dict(i=i))
        print("spooled", flush=True)
        sys.stdin.read()
    """)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    (helper,) = project.helpers()
    os.kill(helper, signal.SIGSTOP)
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "spooled\n"
    os.kill(helper, signal.SIGKILL)
    process.kill()
    process.wait()
    project.wait_for_helpers()
    (spool,) = project.spools()
    assert len(list(spool.glob("*.job"))) == 5
    return spool


def recovered(project: ProjectDirectory) -> tuple[list[str], ExperimentRecord]:
    repository = project.open().repository
    said = [outcome.message for outcome in recover(repository)]
    (record,) = repository.experiments()
    return said, record


def steps(record: ExperimentRecord) -> list[object]:
    return [c.metrics["i"] for c in record.checkpoints]


def test_the_next_run_saves_what_was_left_and_says_so(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    run_until_the_machine_stops(project)
    before = project.open().records()[0]
    assert not before.saved
    done = project.run("import replicate; replicate.init(path=None)")
    assert f"Experiment {before.id[:7]} was cut off" in done.stderr
    first, _ = project.records()
    assert first.id == before.id
    assert steps(first) == [0, 1, 2, 3, 4]
    assert project.files_of(first.checkpoints[3].id, tmp_path / "out") == {"m": b"version 3"}
    assert project.spools() == []


def test_what_the_run_would_have_let_go_is_let_go(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    run_until_the_machine_stops(project, ', keep={"last": 1}')
    done = project.cli("sync")
    assert "is in the repository now" in done.stderr
    (record,) = project.records()
    assert steps(record) == [0, 1, 2, 3, 4]
    assert [c.dropped for c in record.checkpoints] == [True] * 4 + [False]
    last = record.checkpoints[-1].id
    assert project.files_of(last, tmp_path / "out") == {"m": b"version 4"}
    assert len([p for p in (project.repository / "blobs").rglob("*") if p.is_file()]) == 1


def test_what_was_left_on_a_nearly_full_disk_is_saved_one_by_one(
    project: ProjectDirectory, small_disk: Path
) -> None:
    project.repository = small_disk / "repository"
    project.write("replicate.yaml", f"repository: {project.repository}\n")
    run_until_the_machine_stops(project, size=400_000)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 600_000))
    said, record = recovered(project)
    assert len(said) == 1 and record.problems == ()
    assert [c.size for c in record.checkpoints] == [400_000] * 5
    assert project.open().verify(full=True).damage == ()


def test_what_has_changed_and_is_lost_is_not_copied_first(
    project: ProjectDirectory, small_disk: Path
) -> None:
    project.repository = small_disk / "repository"
    project.write("replicate.yaml", f"repository: {project.repository}\n")
    spool = run_until_the_machine_stops(project, size=400_000)
    for copy in spool.glob("*.0"):
        copy.unlink()
    project.write("m", bytes(4_000_000))
    _, record = recovered(project)
    assert [c.lost for c in record.checkpoints] == [("m",)] * 5


def test_what_a_crash_has_left_is_marked_until_it_is_saved(project: ProjectDirectory) -> None:
    run_until_the_machine_stops(project)
    (record,) = project.open().records()
    assert not record.saved and steps(record) == list(range(5))
    assert [(c.saved, c.tree) for c in record.checkpoints] == [(False, None)] * 5
    assert "local" in project.cli("ls").stdout
    assert project.cli("show", record.id).stdout.count("local") >= 5
    assert json.loads(project.cli("ls", "--json").stdout)[0]["saved"] is False
    with pytest.raises(NotFoundError, match="only on this machine"):
        project.open().plan_checkout(project.open().pick(record.checkpoints[0].id))
    recovered(project)
    (record,) = project.open().records()
    assert record.saved and all(c.saved and c.tree for c in record.checkpoints)


def test_what_a_deleted_run_has_left_goes_with_it(project: ProjectDirectory) -> None:
    run_until_the_machine_stops(project)
    opened = project.open()
    (record,) = opened.records()
    opened.remove(opened.plan_removal([record.id], force=True))
    assert opened.records() == []
    (outcome,) = recover(opened.repository)
    assert outcome.message == f"Experiment {record.id[:7]} is deleted, and what it had left."
    assert opened.records() == [] and project.spools() == []


def test_recovering_again_changes_nothing(project: ProjectDirectory) -> None:
    run_until_the_machine_stops(project)
    said, first = recovered(project)
    assert len(said) == 1
    said, second = recovered(project)
    assert said == []
    assert second.checkpoints == first.checkpoints


def test_jobs_that_were_saved_but_not_yet_removed_are_not_saved_twice(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    spool = run_until_the_machine_stops(project)
    shutil.copytree(spool, tmp_path / "copy")
    _, first = recovered(project)
    shutil.copytree(tmp_path / "copy", spool)
    _, second = recovered(project)
    assert [c.id for c in second.checkpoints] == [c.id for c in first.checkpoints]
    assert [c.tree for c in second.checkpoints] == [c.tree for c in first.checkpoints]
    assert second.damage == ()


@pytest.mark.parametrize("damage", ["cut off", "empty", "flipped"])
def test_a_job_of_which_a_crash_has_left_a_part_is_said_to_be_lost_and_the_others_are_saved(
    project: ProjectDirectory, damage: str
) -> None:
    spool = run_until_the_machine_stops(project)
    job = sorted(spool.glob("*.job"))[2]
    content = bytearray(job.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    job.write_bytes({"cut off": content[:-3], "empty": b"", "flipped": content}[damage])
    said, record = recovered(project)
    assert steps(record) == [0, 1, 3, 4]
    what = "of an unknown step" if damage == "empty" else "The checkpoint of step 2 is lost"
    assert any(what in sentence and record.id[:7] in sentence for sentence in said)
    assert any(what in problem for problem in record.problems)
    assert project.spools() == []


def test_sync_does_not_say_that_all_is_saved_where_something_was_lost(
    project: ProjectDirectory,
) -> None:
    spool = run_until_the_machine_stops(project)
    sorted(spool.glob("*.job"))[2].write_bytes(b"")
    said = project.cli("sync", expect=1).stderr.splitlines()
    assert said[-1].endswith(" All is saved but what was lost")
    assert not any("all of it" in line for line in said)
    assert "Nothing was left to save" in project.cli("sync").stderr


@pytest.mark.parametrize("left", [0, 70_000])
@pytest.mark.parametrize("changed", [False, True])
def test_a_copy_that_a_crash_has_cut_off_is_not_taken_for_the_file(
    project: ProjectDirectory, tmp_path: Path, left: int, changed: bool
) -> None:
    spool = run_until_the_machine_stops(project, size=200_000)
    copies = sorted(spool.glob("*.0"))
    assert len(copies) == 5
    os.truncate(copies[-1], left)
    if changed:
        project.write("m", "something else")
    said, record = recovered(project)
    *others, last = record.checkpoints
    assert [c.size for c in others] == [200_000] * 4
    if changed:
        assert last.lost == ("m",)
        assert any("m could not be saved at step 4" in sentence for sentence in said)
        assert any("cut off" in problem for problem in record.problems)
    else:
        assert len(said) == 1 and last.lost == ()
        saved = project.files_of(last.id, tmp_path / "out")["m"]
        assert saved == b"version 4".ljust(200_000, b".")


def test_a_job_that_was_still_being_written_is_no_job(project: ProjectDirectory) -> None:
    spool = run_until_the_machine_stops(project)
    (spool / "000000000099-1.tmp").write_bytes(b'{"kind": "checkpoint"')
    _, record = recovered(project)
    assert steps(record) == [0, 1, 2, 3, 4]
    assert record.problems == ()
    assert project.spools() == []


def test_a_run_that_goes_on_is_left_alone(project: ProjectDirectory) -> None:
    process = project.start("""
        import sys, replicate
        experiment = replicate.init(path=None)
        experiment.checkpoint(metrics={"i": 0})
        print("ready", flush=True)
        sys.stdin.readline()
        experiment.checkpoint(metrics={"i": 1})
    """)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    repository = project.open().repository
    assert {outcome.state for outcome in recover(repository)} <= {"live"}
    assert len(project.spools()) == 1
    process.communicate("go on\n")
    assert steps(project.record()) == [0, 1]


def test_a_run_whose_script_is_gone_is_left_to_its_helper(project: ProjectDirectory) -> None:
    process = project.start("""
        import sys, replicate
        experiment = replicate.init(path=None)
        experiment.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        experiment.checkpoint(metrics={"i": 0})
        print("spooled", flush=True)
        sys.stdin.readline()
    """)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    (helper,) = project.helpers()
    os.kill(helper, signal.SIGSTOP)
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "spooled\n"
    process.kill()
    process.wait()
    repository = project.open().repository
    assert {outcome.state for outcome in recover(repository)} <= {"live"}
    os.kill(helper, signal.SIGCONT)
    assert steps(project.record()) == [0]
