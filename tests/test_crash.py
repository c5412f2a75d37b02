"""Real training scripts are killed at random moments, and disks fill up: what a call has returned
from is there afterwards, and what is listed is whole."""

from __future__ import annotations

import os
import random
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from blake3 import blake3

import replicate
from conftest import ProjectDirectory, fill, linux
from replicate.errors import RepositoryError
from replicate.model import CheckpointRecord, ExperimentRecord, Status
from replicate.recorder.losses import Losses
from replicate.recorder.recovery import recover
from replicate.spool import Spool, job_header
from replicate.tree import reader

KILLS_IN_A_PROJECT = 5

SCRIPT = """
    import os, sys, replicate
    from blake3 import blake3

    def write(path, content):
        with open(path, "wb") as file:
            file.write(content)

    run, steps = sys.argv[1], int(sys.argv[2])
    os.makedirs(f"{run}/several", exist_ok=True)
    experiment = replicate.init(path=None, params={"run": run})
    print("started", flush=True)
    for step in range(steps):
        write(f"{run}/small", b"small %d" % step)
        write(f"{run}/large", blake3(b"large %d" % step).digest(300_000))
        for name in "ab":
            write(f"{run}/several/{name}", b"%s %d" % (name.encode(), step))
        experiment.checkpoint([f"{run}/small", f"{run}/large", f"{run}/several"], step=step)
        print(step, flush=True)
"""


def expected_files(run: str, step: int) -> dict[str, bytes]:
    """What the script had written when it called checkpoint()."""
    return {
        f"{run}/small": b"small %d" % step,
        f"{run}/large": blake3(b"large %d" % step).digest(300_000),
        f"{run}/several/a": b"a %d" % step,
        f"{run}/several/b": b"b %d" % step,
    }


def saved_files(project: ProjectDirectory, checkpoint: CheckpointRecord) -> dict[str, bytes]:
    """What a checkpoint's tree holds, verified."""
    repository = project.open().repository
    assert checkpoint.tree is not None
    tree = repository.tree(checkpoint.tree)
    return {path: reader(repository.backend, e)() for path, e in tree.files.items()}


class Killed:
    """A run that was killed, and how far it had come."""

    def __init__(self, run: str, returned: list[int]) -> None:
        self.run = run
        self.returned = returned

    def record(self, project: ProjectDirectory) -> ExperimentRecord | None:
        """Its experiment; None when it was killed before init() had returned."""
        found = [r for r in project.records() if r.params["run"] == self.run]
        return found[0] if found else None


def run_and_kill(
    project: ProjectDirectory, random: random.Random, run: str, victims: str, steps: int
) -> Killed:
    """Run the script; after a random number of its lines, and a moment more, kill."""
    process = project.start(SCRIPT, run, str(steps))
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(random.randrange(1, 12))]
    helpers = project.helpers()
    for _ in range(random.randrange(200_000)):
        pass  # the script is somewhere between two lines
    order = [*helpers] if victims != "trainer" else []
    order += [process.pid] if victims != "helper" else []
    random.shuffle(order)
    for pid in order:
        os.kill(pid, signal.SIGKILL)
    rest = process.stdout.read()  # not by communicate(), which knows nothing of what is buffered
    process.wait()
    assert process.stderr is not None and "Traceback" not in process.stderr.read()
    lines = [line for line in "".join([*seen, rest]).splitlines() if line.isdigit()]
    return Killed(run, [int(line) for line in lines])


@linux
@pytest.mark.parametrize("seed", range(4))
def test_after_a_kill_of_the_script_all_that_was_saved_is_there(
    project: ProjectDirectory, seed: int
) -> None:
    moments = random.Random(f"trainer {seed}")
    for number in range(KILLS_IN_A_PROJECT):
        killed = run_and_kill(project, moments, f"run{number}", "trainer", 10_000)
        record = killed.record(project)
        assert record is not None
        assert record.status is Status.KILLED
        assert (record.problems, record.damage) == ((), ())
        steps = [c.step for c in record.checkpoints]
        assert steps == list(range(len(steps)))
        assert set(killed.returned) <= set(steps)
        for checkpoint in record.checkpoints:
            expected = expected_files(killed.run, int(checkpoint.step or 0))
            assert saved_files(project, checkpoint) == expected


@linux
@pytest.mark.parametrize("seed", range(3))
def test_after_a_kill_of_the_helper_the_run_goes_on_and_is_saved_whole(
    project: ProjectDirectory, seed: int
) -> None:
    moments = random.Random(f"helper {seed}")
    for number in range(KILLS_IN_A_PROJECT):
        killed = run_and_kill(project, moments, f"run{number}", "helper", 15)
        record = killed.record(project)
        assert record is not None
        assert record.status is Status.FINISHED
        assert killed.returned == [c.step for c in record.checkpoints] == list(range(15))
        assert record.damage == ()
        for checkpoint in record.checkpoints:
            assert_whole_or_said(project, killed, record, checkpoint)


LARGE, SMALL = 9_000_000, 300_000  # what a guard holds, and what it copies at once


def overwrite(path: Path) -> None:
    path.write_bytes(b"new " * 100_001)


def overwrite_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"new")


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"new " * 100_000)
    path.with_name("new").replace(path)


CHANGES = (overwrite, overwrite_in_place, truncate, replace, Path.unlink)


class Taken:
    """A run whose checkpoint() has returned while its helper was stopped, so that nothing of it is
    in the repository, and whose files somebody changes then, each in another way."""

    def __init__(self, project: ProjectDirectory) -> None:
        self.project = project
        self.files = {
            f"{size} {change.__name__}": (change, bytes([number]) * size)
            for size in (LARGE, SMALL)
            for number, change in enumerate(CHANGES)
        }
        project.write("names", "\n".join(self.files))
        self.process = project.start(
            """
            import os, sys, replicate
            experiment = replicate.init(path=None)
            experiment.wait()
            print("ready", flush=True)
            sys.stdin.readline()
            names = open("names").read().splitlines()
            experiment.checkpoint(names, step=1)
            print("taken", flush=True)
            sys.stdin.readline()
            experiment.wait()
            print("descriptors", sum(os.path.basename(os.readlink(f"/proc/self/fd/{number}"))
                in names for number in range(100) if os.path.lexists(f"/proc/self/fd/{number}")))
            """
        )
        for name, (_, content) in self.files.items():
            project.write(name, content)
        self.read_line("ready\n")
        (self.helper,) = project.helpers()
        (self.guard,) = project.guards()
        os.kill(self.helper, signal.SIGSTOP)
        self.go_on()
        self.read_line("taken\n")

    def read_line(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def kill(self, *victims: int) -> None:
        for victim in victims:
            os.kill(victim, signal.SIGKILL)

    def change(self) -> None:
        for name, (change, _) in self.files.items():
            change(self.project.path / name)

    def end(self) -> ExperimentRecord:
        """Let it come to its end; what is recorded then."""
        said = self.process.communicate("go on\n")
        assert said[0] == "descriptors 0\n"
        record = self.project.record()
        assert record.status is Status.FINISHED
        return record

    def recover(self) -> ExperimentRecord:
        """What is recorded once all processes are gone, and another run finishes what was left."""
        self.process.communicate()
        self.project.wait_for_helpers()
        list(recover(self.project.open().repository))
        assert self.project.spools() == []
        return self.project.record()

    def lost(self, record: ExperimentRecord) -> set[str]:
        """The files that are not saved; each is said to be lost, and all others are whole."""
        (checkpoint,) = record.checkpoints
        found = saved_files(self.project, checkpoint)
        assert found == {name: self.files[name][1] for name in found}
        lost = set(self.files) - set(found)
        assert lost == set(checkpoint.lost)
        checked = self.project.cli("verify").stdout
        for name in lost:
            assert any(f"{name} could not be saved" in problem for problem in record.problems)
            assert f"{name} could not be saved" in checked
        assert len(record.problems) == len(lost)
        return lost


@linux
def test_while_the_helper_is_stopped_its_files_may_be_changed(project: ProjectDirectory) -> None:
    run = Taken(project)
    run.change()
    os.kill(run.helper, signal.SIGCONT)
    assert run.lost(run.end()) == set()


@linux
def test_a_helper_that_is_killed_loses_nothing(project: ProjectDirectory) -> None:
    run = Taken(project)
    run.kill(run.helper)
    run.change()
    assert run.lost(run.end()) == set()


@linux
def test_when_script_and_helper_are_killed_nothing_is_lost(project: ProjectDirectory) -> None:
    run = Taken(project)
    run.kill(run.process.pid, run.helper)
    run.change()
    assert run.lost(run.recover()) == set()


@linux
def test_when_the_guard_is_killed_too_what_is_overwritten_may_be_lost_and_is_never_torn(
    project: ProjectDirectory,
) -> None:
    run = Taken(project)
    run.kill(run.guard, run.helper)
    run.change()
    lost = run.lost(run.end())
    assert lost <= {name for name, (change, _) in run.files.items() if change in CHANGES[:3]}


@linux
def test_when_all_are_killed_what_has_not_changed_is_saved(project: ProjectDirectory) -> None:
    run = Taken(project)
    run.kill(run.guard, run.process.pid, run.helper)
    changed, kept = list(run.files)[:2], list(run.files)[2:5]
    for name in changed:
        run.files[name][0](project.path / name)
    assert run.lost(run.recover()).isdisjoint(kept)


@linux
def test_a_guard_that_is_killed_is_replaced_with_its_helper(project: ProjectDirectory) -> None:
    run = Taken(project)
    run.kill(run.guard)
    os.kill(run.helper, signal.SIGCONT)
    lost = run.lost(run.end())
    assert lost == set()


@linux
@pytest.mark.parametrize("seed", range(4))
def test_after_a_kill_of_both_the_next_run_finishes_what_was_left(
    project: ProjectDirectory, seed: int
) -> None:
    moments = random.Random(f"both {seed}")
    for number in range(KILLS_IN_A_PROJECT):
        killed = run_and_kill(project, moments, f"run{number}", "both", 10_000)
        project.wait_for_helpers()  # until the kernel has ended them
        repository = project.open().repository
        list(recover(repository))
        record = killed.record(project)
        assert record is not None
        assert record.damage == ()
        assert project.spools() == []
        steps = [c.step for c in record.checkpoints]
        assert steps == list(range(len(steps)))
        assert set(killed.returned) <= set(steps)
        for checkpoint in record.checkpoints:
            assert_whole_or_said(project, killed, record, checkpoint)


def assert_whole_or_said(
    project: ProjectDirectory,
    killed: Killed,
    record: ExperimentRecord,
    checkpoint: CheckpointRecord,
) -> None:
    """Its files are what they were. A large one that was given to a helper which was killed before
    its guard had begun, and that was overwritten since, may be missing: then a problem says so."""
    expected = expected_files(killed.run, int(checkpoint.step or 0))
    found = saved_files(project, checkpoint)
    if f"{killed.run}/large" not in found:
        assert any(f"{killed.run}/large" in problem for problem in record.problems)
        del expected[f"{killed.run}/large"]
    assert found == expected


# ------------------------------------------------------------ disks


def test_a_full_disk_is_said_once_and_does_not_stop_the_run(
    project: ProjectDirectory, small_disk: Path
) -> None:
    repository = small_disk / "repository"
    process = project.start(
        """
        import os, sys, replicate
        experiment = replicate.init(path=None)
        experiment.checkpoint(metrics={"i": 0})
        experiment.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        for i in range(1, 6):
            open("m", "wb").write(os.urandom(200_000))
            experiment.checkpoint("m", metrics={"i": i})
        print("trained", flush=True)
        sys.stdin.readline()
        experiment.checkpoint("m", metrics={"i": 6})
        """,
        REPLICATE_REPOSITORY=str(repository),
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    fill(small_disk / "ballast")
    process.stdin.write("the disk is full\n")
    process.stdin.flush()
    assert process.stdout.readline() == "trained\n"
    (small_disk / "ballast").unlink()
    _, errors = process.communicate("there is room again\n")
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert errors.count("Cannot write into") == 1
    opened = replicate.Project(repository)
    (record,) = opened.records()
    assert [c.metrics["i"] for c in record.checkpoints] == [0, 1, 2, 3, 4, 5, 6]
    assert record.problems and record.damage == ()
    assert record.checkpoints[-1].tree is not None
    for checkpoint in record.checkpoints:
        if checkpoint.tree is not None:
            for entry in opened.repository.tree(checkpoint.tree).entries:
                assert len(reader(opened.repository.backend, entry)()) == 200_000


@pytest.mark.parametrize("what", ["experiment", "checkpoint"])
def test_on_a_disk_with_no_byte_free_things_can_be_deleted(
    project: ProjectDirectory, small_disk: Path, what: str
) -> None:
    project.repository = small_disk / "repository"
    opened = replicate.Project(project.repository, project.path)
    for _ in range(2):  # the second time there is what the first has left
        project.write("m.pt", os.urandom(500_000))
        with replicate.Project(project.repository).init(path=None) as experiment:
            experiment.checkpoint("m.pt", metrics={"loss": 1})
            assert experiment.wait()
        project.wait_for_helpers()
        fill(small_disk / "ballast")
        (checkpoint,) = experiment.refresh().checkpoints
        id = experiment.id if what == "experiment" else checkpoint.id
        removed = opened.remove(opened.plan_removal([id]))
        assert removed.bytes >= 500_000 and removed.problem is None
        (small_disk / "ballast").unlink()
    assert [len(e.checkpoints) for e in opened.records()] == (
        [] if what == "experiment" else [0, 0]
    )
    assert opened.verify().damage == ()


@linux
def test_what_a_full_disk_costs_is_said_at_once_and_by_name(
    project: ProjectDirectory, small_disk: Path
) -> None:
    process = project.start(
        """
        import os, sys, time, replicate
        experiment = replicate.init(path=None)
        experiment.checkpoint(metrics={"i": 0})
        experiment.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        for i in range(1, 9):
            open("m.pt", "wb").write(os.urandom(200_000))
            experiment.checkpoint("m.pt", step=i, metrics={"i": i})
        open("m.pt", "wb").close()
        print("trained", flush=True)
        sys.stdin.readline()
        while not experiment.wait():
            time.sleep(0.1)
        """,
        REPLICATE_REPOSITORY=str(small_disk / "repository"),
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    fill(small_disk / "ballast")
    # Room for the jobs, and for no file.
    os.truncate(small_disk / "ballast", (small_disk / "ballast").stat().st_size - 100_000)
    process.stdin.write("the disk is full\n")
    process.stdin.flush()
    assert process.stdout.readline() == "trained\n"
    (small_disk / "ballast").unlink()
    _, said = process.communicate("there is room again\n")
    assert process.returncode == 0, said
    assert re.search(r"m\.pt .*step 1\b.*the disk is full", said)
    (record,) = replicate.Project(small_disk / "repository").records()
    assert [c.lost for c in record.checkpoints] == [(), *[("m.pt",)] * 8]
    reasons = [p for p in record.problems if p.startswith("m.pt could not be saved at step")]
    assert len(reasons) == 8
    assert [r for r in reasons if "could not be copied: the disk is full" not in r] == []


def test_the_first_loss_of_an_outage_is_told_by_its_name_once_its_job_is_there(
    tmp_path: Path,
) -> None:
    spool, told = Spool(tmp_path), list[str]()
    losses = Losses(spool, told.append)
    losses.add("a", 1, "the disk is full")
    losses.add("b", 0, "the disk is full")
    losses.tell()
    assert told == []
    files = [{"path": "code.py", "at": 0}, {"path": "m.pt", "beside": 1}]
    spool.add("a", {**job_header("checkpoint", data={"step": 7}), "files": files}, [])
    for _ in range(2):
        losses.tell()
    (said,) = told
    assert said.startswith("m.pt of the checkpoint of step 7 could not be kept, because the disk")
    losses.over()
    losses.add("a", 1, "the disk is full")
    losses.tell()
    assert told == [said, said] and losses.count == 3


def test_a_file_that_can_never_be_stored_holds_up_none_of_the_others(
    project: ProjectDirectory,
) -> None:
    project.write("small.bin", os.urandom(300_000))
    project.write("large.bin", os.urandom(9 << 20))
    done = project.run("""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        import replicate
        experiment = replicate.init(path=None)
        for path in ("small.bin", "large.bin", "train.py"):
            experiment.checkpoint(path)
    """)
    assert "Not everything could be saved" not in done.stderr
    record = project.record()
    assert record.checkpoints[0].size == 300_000
    assert [c.lost for c in record.checkpoints] == [(), ("large.bin",), ()]
    (problem,) = record.problems
    assert problem.startswith("large.bin could not be saved at step 1: ")
    assert "ulimit -f" in problem and problem.split(": ", 1)[1] in done.stderr
    assert record.status is Status.FINISHED and project.spools() == []


def test_init_names_a_repository_that_cannot_be_written(
    project: ProjectDirectory, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    directory = read_only_directory(tmp_path, request)
    done = project.run(
        "import replicate; replicate.init()",
        expect=1,
        REPLICATE_REPOSITORY=str(directory / "repository"),
    )
    assert str(directory) in done.stderr
    assert "StorageError" in done.stderr.splitlines()[-2] + done.stderr.splitlines()[-1]


def read_only_directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A directory that nobody may write to, root included."""
    if os.geteuid() == 0:
        mount: Path = request.getfixturevalue("small_disk")
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        return mount
    directory = tmp_path / "read only"
    directory.mkdir()
    directory.chmod(stat.S_IRUSR | stat.S_IXUSR)
    return directory


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ('{"format": "replicate", "version": 2, "requires": []}', "version 2"),
        ('{"format": "replicate", "version": 1, "requires": ["packs"]}', "packs"),
        ('{"format": "replic', "damaged"),
        ("", "damaged"),
        ('{"format": "other", "version": 1, "requires": []}', "other"),
        ("[1, 2]", "damaged"),
        ('{"format": "replicate", "version": 1, "requires": 3}', "damaged"),
    ],
)
def test_a_repository_that_this_version_cannot_read_is_left_alone(
    project: ProjectDirectory, description: str, said: str
) -> None:
    project.write(".replicate/repository.json", description)
    for use in (replicate.init, replicate.experiments.list):
        with pytest.raises(RepositoryError, match=said):
            use()
    assert (project.repository / "repository.json").read_text() == description
    assert [p.name for p in project.repository.iterdir()] == ["repository.json"]


def test_a_missing_repository_json_is_not_taken_for_an_empty_repository(
    project: ProjectDirectory,
) -> None:
    project.run("import replicate; replicate.init()")
    project.wait_for_helpers()
    (project.repository / "repository.json").unlink()
    with pytest.raises(RepositoryError, match=r"repository\.json is missing"):
        replicate.experiments.list()
