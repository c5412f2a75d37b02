"""What checkpoint() was given is never lost, and half of it is never shown: at every single call by
which a run writes to disk or talks to its helper, the disk is full or broken, or somebody dies."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import ProjectDirectory, linux
from replicate.errors import DamagedError
from replicate.model import ExperimentRecord, Status
from replicate.tree import reader

pytestmark = linux

FAULTS = Path(__file__).parent / "faults"
STEPS = 4
LARGE = 300_000
#: Which call from a place is hit is drawn with this; REPLICATE_TEST_FAULTS=all hits every one.
SEED = 1
#: Runs at a time: many of them wait for a helper that tries again.
AT_ONCE = 4

SCRIPT = f"""
    import os, replicate

    def write(path, content):
        with open(path, "r+b" if os.path.exists(path) else "wb") as file:
            file.write(content)

    os.makedirs("out/several", exist_ok=True)
    experiment = replicate.init(path="code", params={{"lr": 0.1}})
    print("started", flush=True)
    for step in range({STEPS}):
        write("out/small", b"small %d" % step)
        write("out/large", (b"large %d " % step * {LARGE})[:{LARGE}])
        for name in "ab":
            write("out/several/" + name, (b"%s %d" % (name.encode(), step)))
        experiment.checkpoint(
            ["out/small", "out/large", "out/several"], step=step, metrics={{"loss": step}}
        )
        print(step, flush=True)
    print("trained", flush=True)
"""
CODE = {"code/model.py": b"layers = 3\n", "code/lib/data.py": b"rows = 5\n"}

#: As in `faults/sitecustomize.py`: a full disk does not stop the other calls.
NEEDS_ROOM = {"open", "write", "close", "mkdir", "link", "rename", "fsync", "copy"}
LEASE = "lease"
ERRORS = ["disk full once", "disk full for a while", "disk full", "disk error"]
KILLS = ["killed before", "killed after", "both killed before", "both killed after"]


def expected_files(step: int) -> dict[str, bytes]:
    """What the script had written when it called checkpoint()."""
    return {
        "out/small": b"small %d" % step,
        "out/large": (b"large %d " % step * LARGE)[:LARGE],
        "out/several/a": b"a %d" % step,
        "out/several/b": b"b %d" % step,
    }


@dataclass(frozen=True)
class Scenario:
    """A fault at the `number`-th call of one process at a place: what it calls, and from where."""

    fault: str
    role: str
    place: str
    number: int

    def __str__(self) -> str:
        return f"{self.fault}, {self.role}, {self.place} ({self.number})"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "FAULT_KIND": self.fault,
            "FAULT_ROLE": self.role,
            "FAULT_PLACE": self.place,
            "FAULT_AT": str(self.number),
        }

    @property
    def operation(self) -> str:
        return self.place.partition(" ")[0]

    @property
    def can_happen(self) -> bool:
        if self.operation == "send":
            return "killed" in self.fault
        return self.operation in NEEDS_ROOM or "full" not in self.fault

    @property
    def kills_trainer(self) -> bool:
        return "killed" in self.fault and (self.role == "trainer" or "both" in self.fault)


class Run:
    """A run with a fault in it, and what became of it."""

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self.project = ProjectDirectory(directory / "project")
        self.faults = directory / "faults"
        self.faults.mkdir(parents=True)
        for path, content in CODE.items():
            self.project.write(path, content)
        done = self.project.run(
            SCRIPT,
            expect=None,
            PYTHONPATH=os.pathsep.join([str(FAULTS), os.environ.get("PYTHONPATH", "")]),
            FAULT_ROOT=str(self.project.repository),
            FAULT_DIRECTORY=str(self.faults),
            **environ,
        )
        self.exit_code, self.lines = done.returncode, done.stdout.splitlines()
        self.returned = [int(line) for line in self.lines if line.isdigit()]
        #: All that the person was told.
        self.said = done.stderr

    @property
    def fired(self) -> bool:
        """Whether the run came to where its fault was."""
        return (self.faults / "fired").exists()

    def places(self, role: str) -> list[str]:
        """Of every call that this process has made, what it was and from where."""
        self.project.wait_for_helpers()
        lines = (self.faults / "calls").read_text().splitlines()
        made = [line.partition(" ")[2] for line in lines if line.startswith(f"{role} ")]
        return [place for place in made if place != LEASE]

    @property
    def leases(self) -> int:
        """How often a lease was asked for."""
        return (self.faults / "calls").read_text().splitlines().count(f"trainer {LEASE}")

    def repair(self, *, make_room: bool) -> None:
        """What a person does then: make room on the disk, and recover."""
        if make_room:
            for helper in self.project.helpers():  # it would try for another minute
                with suppress(ProcessLookupError):
                    os.kill(helper, signal.SIGKILL)
        self.project.wait_for_helpers()
        self.said += "\n".join(outcome.message for outcome in self.project.open().sync())

    def record(self) -> ExperimentRecord | None:
        """Its experiment; None when it has ended before init() had returned."""
        found = self.project.open().records()
        assert len(found) <= 1
        return found[0] if found else None


def check(run: Run, scenario: Scenario) -> Iterator[str]:
    """Repair, and yield a sentence for each thing that should not be."""
    if scenario.role == "helper" or "killed" not in scenario.fault:
        yield from check_training(run, scenario)
    if "killed" not in scenario.fault and "keeps ending" in run.said:
        yield "every helper has ended, of an error that it should try again"
    run.repair(make_room=scenario.fault == "disk full")
    record = run.record()
    if record is None:
        if "started" in run.lines:
            yield "the experiment is lost"
    else:
        yield from check_record(run, record)
        told = "how the run ended" in run.said
        if "killed" not in scenario.fault and record.status is not Status.FINISHED and not told:
            yield f"the run has ended as {record.status}"
    if run.project.open().repository.exists():
        damage = (
            run.project.open().verify(full=True).damage
            if run.project.open().repository.exists()
            else ()
        )
        yield from (damaged.problem for damaged in damage)
    yield from check_leftovers(run, scenario)


def check_training(run: Run, scenario: Scenario) -> Iterator[str]:
    """The script has gone on as if nothing were. Only init() may raise."""
    if scenario.kills_trainer:
        if run.exit_code not in (0, -signal.SIGKILL):
            yield f"exit code {run.exit_code}"
    elif run.lines == [] and scenario.role == "trainer":
        if not any(error in run.said for error in ("StorageError", "FullError")):
            yield "init() has failed without a word"
    elif run.exit_code != 0 or run.lines != ["started", *map(str, range(STEPS)), "trained"]:
        yield f"training was hurt: exit code {run.exit_code} after {run.lines}"


def check_record(run: Run, record: ExperimentRecord) -> Iterator[str]:
    yield from record.damage
    steps = [c.step for c in record.checkpoints]
    lost = re.search(r"(\d+) checkpoints? .* lost", run.said)
    missing = len(set(run.returned) - set(steps))
    if steps != list(range(len(steps))) or missing != (int(lost[1]) if lost else 0):
        yield f"checkpoints {run.returned} returned, and {steps} are there"
    told = run.said + "\n".join(record.problems)
    yield from check_files(run, "code", record.tree, CODE, told)
    for checkpoint in record.checkpoints:
        step = int(checkpoint.step or 0)
        if checkpoint.metrics != {"loss": step}:
            yield f"checkpoint {step} has the metrics {checkpoint.metrics}"
        yield from check_files(
            run, f"checkpoint {step}", checkpoint.tree, expected_files(step), told
        )


def check_files(
    run: Run, what: str, tree: str | None, expected: Mapping[str, bytes], told: str
) -> Iterator[str]:
    """Each file is there, and what it was; or else somebody was told."""
    repository = run.project.open().repository
    try:
        files = repository.tree(tree).files if tree else {}
        found = {path: reader(repository.backend, entry)() for path, entry in files.items()}
    except DamagedError as error:
        yield f"{what} is listed and damaged: {error}"
        return
    for path in found.keys() | expected.keys():
        if path not in found:
            if path not in told and "files of a checkpoint" not in told:
                yield f"{what} lacks {path}, and nobody was told"
        elif found[path] != expected.get(path):
            yield f"{what} has a {path} that never was"


def check_leftovers(run: Run, scenario: Scenario) -> Iterator[str]:
    """The spool is empty. What a killed process was writing stays in .tmp for an hour, and a spool
    that it was making, which has no name yet, for good."""
    spools = [s for s in run.project.spools() if "killed" not in scenario.fault or s.name[0] != "."]
    yield from (f"{spool} is left" for spool in spools)
    temporary = list((run.project.repository / ".tmp").glob("*"))
    excused = "killed" in scenario.fault or scenario.operation == "unlink"
    if temporary and not excused and scenario.fault != "disk full":
        yield f"{temporary} are left"


# ------------------------------------------------------------ every call, every fault


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which nothing goes wrong."""
    run = Run(tmp_path_factory.mktemp("undisturbed"), {})
    assert run.exit_code == 0, run.said
    return run


def scenarios(run: Run, role: str, faults: Sequence[str]) -> list[Scenario]:
    """Every fault at some call from each place in the code; or at every call there is."""
    chosen = random.Random(f"{SEED} {role} {faults}")
    everything = os.environ.get("REPLICATE_TEST_FAULTS") == "all"
    found = []
    for place, count in sorted(Counter(run.places(role)).items()):
        for fault in faults:
            # Two runs do not make quite the same calls: the first half of them is in every one.
            drawn = chosen.randint(1, (count + 1) // 2)
            numbers = range(1, count + 1) if everything else [drawn]
            found += [Scenario(fault, role, place, number) for number in numbers]
    return [s for s in found if s.can_happen]


@pytest.mark.parametrize("role", ["trainer", "helper"])
@pytest.mark.parametrize("faults", [ERRORS, KILLS], ids=["errors", "kills"])
def test_whatever_goes_wrong_nothing_is_lost_in_silence_and_nothing_half_is_shown(
    tmp_path: Path, undisturbed: Run, role: str, faults: list[str]
) -> None:
    def attempt(number: int, scenario: Scenario) -> tuple[bool, list[str]]:
        directory = tmp_path / f"{number:05d}"
        run = Run(directory, scenario.environ)
        fired = run.fired
        wrong = [f"{scenario}: {sentence}" for sentence in check(run, scenario)]
        if wrong:
            wrong.append(run.said)
        run.project.close()
        shutil.rmtree(directory)
        return fired, wrong

    tried = scenarios(undisturbed, role, faults)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(attempt, range(len(tried)), tried))
    wrong = [sentence for _, found in outcomes for sentence in found]
    assert not wrong, "\n".join(wrong)
    assert sum(fired for fired, _ in outcomes) > 0.7 * len(tried)


# ------------------------------------------------------------ helpers that come to nothing


def assert_finished_whole(run: Run, *, lost: Sequence[str] = ()) -> None:
    """The script was not hurt, and all of the run is there but for these files."""
    assert (run.exit_code, run.lines[-1]) == (0, "trained"), run.said
    run.project.wait_for_helpers()
    record = run.record()
    assert record is not None and record.status is Status.FINISHED
    assert list(check_record(run, record)) == []
    assert [problem for problem in record.problems if not any(f in problem for f in lost)] == []
    assert run.project.spools() == []
    assert run.project.open().verify(full=True).damage == ()


def test_undisturbed_a_large_file_is_leased_and_all_is_saved(undisturbed: Run) -> None:
    assert undisturbed.leases
    assert_finished_whole(undisturbed)


def test_where_no_process_can_be_started_saving_happens_in_the_foreground(tmp_path: Path) -> None:
    run = Run(tmp_path, {"FAULT_KIND": "no processes"})
    assert run.said.count("foreground") == 1
    assert run.leases == 0
    assert "helper" not in {place.split()[0] for place in run.places("helper")}
    assert_finished_whole(run)


def test_where_there_can_be_no_guard_files_are_copied(tmp_path: Path) -> None:
    run = Run(tmp_path, {"FAULT_KIND": "no forks"})
    assert "foreground" not in run.said
    assert "helper" in {line.split()[0] for line in (run.faults / "calls").read_text().splitlines()}
    assert_finished_whole(run)


@pytest.mark.parametrize("operation", ["fsync", "send"])
def test_when_every_helper_dies_saving_goes_on_in_the_foreground(
    tmp_path: Path, undisturbed: Run, operation: str
) -> None:
    places = Counter(p for p in undisturbed.places("helper") if p.startswith(operation))
    for place in [p for p in places if re.search("(guard|held|commit).py", p)]:
        del places[place]  # not every helper comes to talk to its guard, or of a large file
    ((at, _),) = places.most_common(1)
    run = Run(tmp_path, Scenario("each killed before", "helper", at, 1).environ)
    assert run.said.count("The helper process keeps ending") == 1
    assert_finished_whole(run, lost=["out/large"])


def test_a_helper_that_is_killed_while_it_is_idle_is_replaced_and_nothing_is_lost(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    process = project.start("""
        import sys, replicate
        experiment = replicate.init(path=None)
        for step in range(3):
            with open("m", "wb") as file:
                file.write(b"%d" % step * 300_000)
            experiment.checkpoint("m")
            experiment.wait()
            print("idle", flush=True)
            sys.stdin.readline()
    """)
    assert process.stdout is not None and process.stdin is not None
    for _ in range(3):
        assert process.stdout.readline() == "idle\n"
        (helper,) = project.helpers()
        os.kill(helper, signal.SIGKILL)
        while helper in project.helpers():
            pass
        process.stdin.write("go on\n")
        process.stdin.flush()
    process.communicate()
    record = project.record()
    assert (process.returncode, record.status, record.problems) == (0, Status.FINISHED, ())
    for step, checkpoint in enumerate(record.checkpoints):
        out = project.files_of(checkpoint.id, tmp_path / str(step))
        assert out == {"m": b"%d" % step * 300_000}
    assert len(record.checkpoints) == 3


def test_when_the_repository_is_removed_training_goes_on_and_the_loss_is_said(
    project: ProjectDirectory,
) -> None:
    done = project.run("""
        import os, shutil, replicate
        experiment = replicate.init()
        for step in range(6):
            with open("m", "wb") as file:
                file.write(b"%d" % step * 300_000)
            experiment.checkpoint("m", metrics={"step": step})
            if step == 2:
                experiment.wait()
                os.rename(".replicate", "trash")  # at once: the helper writes when it likes
                shutil.rmtree("trash")
        print("trained")
    """)
    assert done.stdout == "trained\n"
    assert "Traceback" not in done.stderr
    assert "lost" in done.stderr
