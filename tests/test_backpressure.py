"""When saving is slower than the run, checkpoint() waits and says so, and nothing is dropped. And
at the end of a run, Ctrl-C leaves what is pending to the helper."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from conftest import ProjectDirectory, linux
from replicate.backends.local import LocalBackend
from replicate.model import Status
from replicate.recorder.commit import Committer
from replicate.repository import Repository
from replicate.spool import Spool

pytestmark = linux

STEPS = 8
#: A checkpoint of about half of what may be pending, in files that are spooled by the script.
FILES, SIZE = 8, 60_000
SCRIPT = f"""
    import os, sys, replicate
    experiment = replicate.init(path=None)
    experiment.wait()
    print("ready", flush=True)
    sys.stdin.readline()
    os.mkdir("out")
    for step in range({STEPS}):
        for number in range({FILES}):
            with open(f"out/{{number}}", "wb") as file:
                file.write(b"%02d%04d" % (number, step) * ({SIZE} // 6))
        experiment.checkpoint("out", metrics={{"step": step}})
        print(step, flush=True)
"""


def start(project: ProjectDirectory) -> tuple[subprocess.Popen[str], int]:
    """The script, once its experiment is there and nothing is pending; and its helper."""
    process = project.start(SCRIPT)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (helper,) = project.helpers()
    return process, helper


@contextmanager
def stopped(helper: int) -> Iterator[None]:
    """The helper stands still until the block ends."""
    os.kill(helper, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(helper, signal.SIGCONT)


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the script says on stderr, to the line with this text."""
    assert process.stderr is not None
    said = ""
    while text not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def assert_all_is_saved(project: ProjectDirectory, tmp_path: Path) -> None:
    record = project.record()
    assert record.problems == ()
    assert [c.metrics["step"] for c in record.checkpoints] == list(range(STEPS))
    for step, checkpoint in enumerate(record.checkpoints):
        assert project.files_of(checkpoint.id, tmp_path / f"out {step}") == {
            f"out/{number}": b"%02d%04d" % (number, step) * (SIZE // 6) for number in range(FILES)
        }
    assert project.spools() == []


def test_checkpoint_waits_while_too_much_is_pending_and_says_so(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    project.write("replicate.yaml", "max_pending: 1MB\n")
    process, helper = start(project)
    with stopped(helper):
        go_on(process)
        said = read_until(process, "Saving is slower than the run")
        assert "1.0 MB" in said and "max_pending" in said
        (spool,) = project.spools()
        assert FILES * SIZE < sum(file.stat().st_size for file in spool.iterdir()) < 1_000_000
    out, rest = process.communicate()
    assert process.returncode == 0
    assert out.split() == [str(step) for step in range(STEPS)]
    assert "slower" not in rest and "Traceback" not in rest
    assert project.record().status is Status.FINISHED
    assert_all_is_saved(project, tmp_path)


def test_a_checkpoint_that_is_larger_than_what_may_be_pending_is_saved(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    project.write("replicate.yaml", "max_pending: 100KB\n")
    process, _ = start(project)
    process.communicate("go\n")
    assert process.returncode == 0
    assert_all_is_saved(project, tmp_path)


@linux
def test_a_thread_records_while_another_waits(project: ProjectDirectory) -> None:
    process = project.start("""
        import threading, replicate
        experiment = replicate.init(path=None)
        experiment.wait()
        print("ready", flush=True)
        input()
        experiment.checkpoint(step=-1)
        waiting = threading.Thread(target=lambda: print(experiment.wait(), flush=True))
        waiting.start()
        for step in range(500):
            experiment.checkpoint(step=step)
        print("made", flush=True)
        input()
        waiting.join()
    """)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (helper,) = project.helpers()
    os.kill(helper, signal.SIGSTOP)
    print(file=process.stdin, flush=True)
    assert process.stdout.readline() == "made\n"  # and not what wait() says, which comes later
    os.kill(helper, signal.SIGCONT)
    out, err = process.communicate("\n")
    assert (out, err.count("could be saved")) == ("True\n", 0)
    assert len(project.record().checkpoints) == 501


def test_a_run_goes_on_when_its_helper_is_killed_while_checkpoint_waits(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    project.write("replicate.yaml", "max_pending: 1MB\n")
    process, helper = start(project)
    os.kill(helper, signal.SIGSTOP)
    go_on(process)
    read_until(process, "Saving is slower than the run")
    os.kill(helper, signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out.split() == [str(step) for step in range(STEPS)]
    assert_all_is_saved(project, tmp_path)


def test_ctrl_c_at_the_end_leaves_at_once_and_the_helper_finishes(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    process, helper = start(project)
    with stopped(helper):
        go_on(process)
        read_until(process, "Ctrl-C leaves it to the helper")
        process.send_signal(signal.SIGINT)
        process.wait()  # although the helper stands still
        assert process.stderr is not None
        said = process.stderr.read()
        assert "Left what is not saved yet to the helper process" in said
        assert "Traceback" not in said
        assert process.returncode == 0
    assert project.record().status is Status.FINISHED
    assert_all_is_saved(project, tmp_path)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_helper_is_not_ended_by_what_ends_the_script(
    project: ProjectDirectory, tmp_path: Path, name: str
) -> None:
    process, helper = start(project)
    os.kill(helper, signal.Signals[name])
    process.communicate("go\n")
    assert process.returncode == 0
    assert_all_is_saved(project, tmp_path)


def test_a_file_that_is_being_copied_is_pending_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (tmp_path / "000000000001-7.0").write_bytes(bytes(10))
    (tmp_path / "000000000002-7.0.9.partial").write_bytes(bytes(3))
    assert (spool.size(), spool.copying()) == (10, 3)


def test_on_a_terminal_one_line_says_how_much_is_left_and_is_gone_at_the_end(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    project.write("train.py", textwrap.dedent(SCRIPT))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "train.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (helper,) = project.helpers()
    said = ""
    with stopped(helper):
        go_on(process)
        while said.count("\r\x1b[K═══╡ Still saving: 3.8 MB to go.") < 2:
            said += os.read(ours, 1 << 12).decode()
    with suppress(OSError):  # the end of a terminal
        while more := os.read(ours, 1 << 12).decode():
            said += more
    process.communicate()
    os.close(ours)
    assert said.rpartition("Still saving")[2].endswith("\r\x1b[K")
    assert_all_is_saved(project, tmp_path)


def test_what_was_read_of_a_large_file_is_told_while_it_is_being_saved(
    project: ProjectDirectory,
) -> None:
    project.write("large.bin", os.urandom(3 << 20))
    project.run(
        """
        import replicate
        experiment = replicate.init(path=None)
        experiment.checkpoint("large.bin")
        """,
        REPLICATE_MODE="offline",
        REPLICATE_REPOSITORY="s3://bucket/root",
    )
    (directory,) = project.spools()
    repository = Repository(LocalBackend(project.path / "repository"), directory.parent)
    told: list[int] = []
    list(Committer(repository, Spool(directory), progress=told.append).commit())
    growing = told[: told.index(0)]
    assert len(growing) > 1 and growing == sorted(growing)
    assert growing[-1] >= 3 << 20 and told[-1] == 0
