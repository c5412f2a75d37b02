"""How a run ended, as the repository tells it: what is known is said, and nothing is guessed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

import replicate
from conftest import ProjectDirectory, linux, posix
from replicate.model import FIRST_BEAT, MISSED_BEATS, Status
from replicate.recorder.commit import INTERVAL
from replicate.recorder.ending import ending_of

SLEEPER = """
    import sys, replicate
    experiment = replicate.init()
    experiment.checkpoint("train.py", metrics={"loss": 1})
    experiment.wait()
    print("ready", flush=True)
    sys.stdin.read()
"""


def kernel_tells_exit_codes() -> bool:
    """Whether the kernel says how a process ended to one that is not its parent."""
    if not hasattr(os, "pidfd_open"):
        return False
    process = subprocess.Popen(["sh", "-c", "read line; exit 3"], stdin=subprocess.PIPE)
    watch = os.pidfd_open(process.pid)
    process.communicate(b"\n")
    code = ending_of(watch).exit_code
    os.close(watch)
    return code == 3


exit_codes = pytest.mark.skipif(
    not kernel_tells_exit_codes(), reason="takes a Linux that tells exit codes (6.15 or later)"
)


def start_sleeper(project: ProjectDirectory) -> subprocess.Popen[str]:
    process = project.start(SLEEPER)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def make_heartbeat_old(project: ProjectDirectory, seconds: float) -> None:
    (beat,) = project.repository.glob("experiments/*/heartbeat.json")
    then = time.time() - seconds
    os.utime(beat, (then, then))


def test_a_script_that_ends_has_finished(project: ProjectDirectory) -> None:
    project.run("import replicate; replicate.init()")
    record = project.record()
    assert record.status is Status.FINISHED
    assert record.stop is not None and record.stop.exception is None


def test_a_script_that_exits_with_0_has_finished(project: ProjectDirectory) -> None:
    project.run("import sys, replicate; replicate.init(); sys.exit()")
    assert project.record().status is Status.FINISHED


def test_an_exception_is_kept_and_reaches_the_terminal_as_ever(project: ProjectDirectory) -> None:
    script = """
        {}
        def train():
            raise ValueError("loss is NaN")
        train()
    """
    plain = project.run(script.format("0"), expect=1)
    recorded = project.run(script.format("import replicate; replicate.init()"), expect=1)
    record = project.record()
    assert record.status is Status.FAILED
    assert record.stop is not None and record.stop.exception is not None
    assert record.stop.exception.type == "ValueError"
    assert record.stop.exception.message == "loss is NaN"
    assert "in train\n" in record.stop.exception.traceback
    lines = recorded.stderr.splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("═══╡")) == plain.stderr


def test_with_an_experiment_an_exception_ends_it_as_failed(project: ProjectDirectory) -> None:
    class Diverged(Exception):
        pass

    with pytest.raises(Diverged), replicate.init(path=None) as experiment:
        raise Diverged("at epoch 3")
    assert experiment.status is Status.FAILED
    stop = project.record().stop
    assert stop is not None and stop.exception is not None
    assert stop.exception.type.endswith("Diverged") and stop.exception.message == "at epoch 3"


def test_an_exception_whose_text_cannot_be_had_does_not_hide_itself(
    project: ProjectDirectory,
) -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(Silent), replicate.init(path=None):
        raise Silent
    assert project.record().status is Status.FAILED


@exit_codes
@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(3)"])
def test_a_script_that_exits_with_another_code_has_failed(
    project: ProjectDirectory, end: str
) -> None:
    project.run(f"import os, sys, replicate; replicate.init(); {end}", expect=3)
    record = project.record()
    assert record.status is Status.FAILED
    assert record.stop is not None and record.stop.exit_code == 3


@linux
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGSEGV"])
def test_a_signal_that_ends_a_run_is_named(project: ProjectDirectory, name: str) -> None:
    process = start_sleeper(project)
    process.send_signal(signal.Signals[name])
    process.wait()
    record = project.record()
    assert record.status is Status.KILLED
    assert record.stop is not None
    assert record.stop.signal == (name if kernel_tells_exit_codes() else None)
    assert len(record.checkpoints) == 1


@posix
def test_ctrl_c_ends_a_run_as_killed_and_all_of_it_is_saved(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    project.write("model.bin", os.urandom(1 << 20))
    process = project.start("""
        import sys, replicate
        experiment = replicate.init()
        for i in range(5):
            experiment.checkpoint("model.bin", metrics={"i": i})
        print("ready", flush=True)
        sys.stdin.read()
    """)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all in the foreground
    process.communicate()
    record = project.record()
    assert record.status is Status.KILLED
    assert record.stop is not None and record.stop.signal == "SIGINT"
    assert [c.metrics["i"] for c in record.checkpoints] == [0, 1, 2, 3, 4]
    files = project.files_of(record.checkpoints[4].id, tmp_path / "out")
    assert files["model.bin"] == (project.path / "model.bin").read_bytes()


def test_a_run_is_running_while_it_runs(project: ProjectDirectory) -> None:
    process = start_sleeper(project)
    (record,) = project.open().records()
    assert record.status is Status.RUNNING
    process.communicate("")
    assert project.record().status is Status.FINISHED


@linux
def test_a_run_is_lost_when_its_machine_vanishes(project: ProjectDirectory) -> None:
    process = start_sleeper(project)
    (helper,) = project.helpers()
    os.kill(helper, signal.SIGKILL)
    process.kill()
    process.wait()
    make_heartbeat_old(project, INTERVAL * MISSED_BEATS - 5)
    assert project.record().status is Status.RUNNING  # as far as anybody knows
    make_heartbeat_old(project, INTERVAL * MISSED_BEATS + 5)
    assert project.record().status is Status.LOST
    assert len(project.record().checkpoints) == 1


@linux
def test_a_run_whose_helper_is_killed_goes_on_with_another(project: ProjectDirectory) -> None:
    process = project.start("""
        import sys, replicate
        experiment = replicate.init()
        for i in range(3):
            open("m", "wb").write(bytes([i]) * 300_000)
            experiment.checkpoint("m", metrics={"i": i})
            print("saved", flush=True)
            sys.stdin.readline()
    """)
    assert process.stdout is not None and process.stdin is not None
    for _ in range(3):
        assert process.stdout.readline() == "saved\n"
        for helper in project.helpers():
            os.kill(helper, signal.SIGKILL)
        process.stdin.write("go on\n")
        process.stdin.flush()
    process.communicate("")
    assert process.returncode == 0
    record = project.record()
    assert record.status is Status.FINISHED
    assert [c.metrics["i"] for c in record.checkpoints] == [0, 1, 2]
    assert record.damage == ()


def test_a_run_that_has_only_begun_is_not_lost(project: ProjectDirectory) -> None:
    project.run("import os, replicate; replicate.init().wait(); os._exit(0)")
    record = replace(project.record(), stop=None, heartbeat=None)
    assert record.status is Status.RUNNING  # its first heartbeat comes after its inputs
    earlier = record.created - 2 * FIRST_BEAT
    assert replace(record, created=earlier).status is Status.LOST
