"""What a run prints is kept, whoever prints it and wherever it goes, and the run prints as ever."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nbclient
import nbformat
import pytest

import replicate
from conftest import ProjectDirectory, linux, posix
from replicate.cli.logs import printable
from replicate.recorder.streams import without_overwritten

pytestmark = posix

PRINTER = """
    import ctypes, os, sys, subprocess, replicate
    replicate.init(path=None)
    print("from Python")
    sys.stdout.flush()
    ctypes.CDLL(None).puts(b"from C"), ctypes.CDLL(None).fflush(None)
    subprocess.run(["sh", "-c", "echo from a child; echo complaint >&2"])
    print("at the end")
    raise ValueError("as planned")
"""
PRINTED = ["from Python", "from C", "from a child", "at the end"]


def logs(project: ProjectDirectory, *options: str) -> list[str]:
    """What `replicate logs` shows of the only experiment, without Replicate's own words."""
    shown = project.cli("logs", project.record().id, *options).stdout.splitlines()
    return [line for line in shown if not line.startswith("═══╡")]


def tees(project: ProjectDirectory) -> list[int]:
    """The processes between the scripts of a project and the readers of their output."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if b"replicate.recorder.tee" in command and bytes(project.path) in command:
                    found.append(int(entry.name))
    return found


def end(how: signal.Signals, *processes: int) -> None:
    """Kill or stop processes, the latter of which others then kill, and wait until they are gone:
    what one has read and has not passed on yet would be lost with it."""
    watches = [os.pidfd_open(pid) for pid in processes]
    for pid in processes:
        os.kill(pid, how)
    for watch in watches:
        select.select([watch], [], [])
        os.close(watch)


def start(project: ProjectDirectory, script: str) -> subprocess.Popen[str]:
    """Start a script that prints "ready" when it has come so far."""
    process = project.start(script)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


# ---------------------------------------------------------------- where output goes


def test_what_goes_to_pipes_is_kept_and_reaches_them_as_ever(project: ProjectDirectory) -> None:
    done = project.run(PRINTER, expect=1)
    assert done.stdout.splitlines() == PRINTED
    assert done.stderr.count("\nValueError: as planned\n") == 1
    kept = logs(project)
    assert [line for line in kept if line in PRINTED] == PRINTED
    errors = logs(project, "--stderr")
    assert errors[0] == "complaint" and errors[-1] == "ValueError: as planned"
    assert "Traceback (most recent call last):" in errors
    assert sorted([*PRINTED, *errors]) == sorted(kept)


@linux
def test_what_goes_to_files_is_kept_without_a_process_in_between(
    project: ProjectDirectory,
) -> None:
    script = project.write("train.py", textwrap.dedent(PRINTER))
    out, err = project.path / "out.txt", project.path / "err.txt"
    out.write_text("from before\n")
    with open(out, "a") as stdout, open(err, "w") as stderr:
        subprocess.run([sys.executable, script], cwd=project.path, stdout=stdout, stderr=stderr)
    assert out.read_text().splitlines() == ["from before", *PRINTED]
    kept = logs(project)
    assert [line for line in kept if line in PRINTED] == PRINTED
    assert "from before" not in kept
    assert logs(project, "--stderr")[-1] == "ValueError: as planned"


def test_one_place_for_both_streams_keeps_their_order(project: ProjectDirectory) -> None:
    script = project.write(
        "train.py",
        "import os, replicate\nreplicate.init(path=None)\n"
        "for i in range(20): os.write(1 + i % 2, b'%d\\n' % i)\n",
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=project.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    numbers = [str(i) for i in range(20)]
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == numbers
    assert logs(project) == numbers
    apart = project.cli("logs", project.record().id, "--stderr")
    assert apart.stdout == "" and "shows all that was kept" in apart.stderr


def test_a_terminal_stays_one_and_what_python_prints_is_kept(project: ProjectDirectory) -> None:
    script = project.write(
        "train.py",
        "import os, sys, replicate\nreplicate.init(path=None)\n"
        "print(sys.stdout.isatty(), os.isatty(1), os.isatty(2))\nos._exit(0)\n",
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-u", script], cwd=project.path, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the terminal is gone with the last process that has it
            while data := os.read(ours, 1 << 16):
                shown += data
    os.close(ours)
    assert process.returncode == 0 and b"True True True\r\n" in shown
    assert logs(project) == ["True True True"]


def test_what_stands_in_for_stdout_is_left_as_it_was_found(
    project: ProjectDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.stdout
    with replicate.init(path=None):
        print("while it is recorded")
    print("after it")
    assert sys.stdout is before and "write" not in vars(before)
    assert capsys.readouterr().out == "while it is recorded\nafter it\n"
    assert logs(project) == ["while it is recorded"]


def test_what_the_cells_of_a_notebook_print_is_kept_and_shown_as_ever(
    project: ProjectDirectory,
) -> None:
    cells = (
        "import sys, replicate\nexperiment = replicate.init(path=None)",
        "print('in a cell')\nprint('in red', file=sys.stderr)",
        "experiment.stop()\nprint('after it')",
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    shown = [output["text"] for cell in notebook.cells[1:] for output in cell.outputs]
    assert [text for text in shown if "═" not in text] == ["in a cell\n", "in red\n", "after it\n"]
    assert sorted(logs(project)) == ["in a cell", "in red"]


def test_the_experiment_that_was_begun_last_has_the_output(project: ProjectDirectory) -> None:
    project.run("""
        import replicate
        first = replicate.init(path=None, name="first")
        print("one", flush=True)
        second = replicate.init(path=None, name="second")
        print("two", flush=True)
        first.stop()
        print("three", flush=True)
        second.stop()
        print("four")
    """)
    first, second = project.records()
    assert "one" in project.cli("logs", first.id).stdout.split()
    kept = project.cli("logs", second.id).stdout.splitlines()
    assert [line for line in kept if "═" not in line] == ["two", "three"]


TWO_RUNS = """
    import os, replicate
    print("before any")
    for name in ("first", "second"):
        with replicate.init(path=None, name=name):
            print("in", name, flush=True)
            if not os.isatty(1):
                os.system("echo a child in " + name)
        print("after", name, flush=True)
        os.system("echo a child after " + name)
"""


def _into_file(script: str, project: ProjectDirectory) -> None:
    with open(project.path / "out.txt", "wb") as out:
        subprocess.run(
            [sys.executable, script], cwd=project.path, stdout=out, stderr=out, check=True
        )


def _into_pipe(script: str, project: ProjectDirectory) -> None:
    subprocess.run([sys.executable, script], cwd=project.path, capture_output=True, check=True)


def _into_terminal(script: str, project: ProjectDirectory) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, script], cwd=project.path, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        with suppress(OSError):  # the terminal is gone with the last process that has it
            while os.read(ours, 1 << 16):
                pass
    os.close(ours)
    assert process.returncode == 0


@pytest.mark.parametrize("run", [_into_file, _into_pipe, _into_terminal])
def test_what_is_printed_after_a_run_belongs_to_none_and_to_no_earlier_one(
    project: ProjectDirectory, run: Callable[[str, ProjectDirectory], None]
) -> None:
    script = project.write("train.py", textwrap.dedent(TWO_RUNS))
    run(script, project)
    for record in project.records():
        kept = project.cli("logs", record.id).stdout.splitlines()
        printed = [line for line in kept if "═" not in line]
        assert printed[0] == f"in {record.name}"
        assert printed[1:] in ([], [f"a child in {record.name}"])
        assert len(printed) == (1 if run is _into_terminal else 2)


# ---------------------------------------------------------------- turned off


@pytest.mark.parametrize("how", ["argument", "variable", "file"])
def test_it_can_be_turned_off(project: ProjectDirectory, how: str) -> None:
    if how == "file":
        project.write("replicate.yaml", "console: off\n")
    environ = {"REPLICATE_CONSOLE": "off"} if how == "variable" else {}
    argument = "console=False" if how == "argument" else ""
    done = project.run(f"import replicate; replicate.init({argument}); print('x')", **environ)
    assert done.stdout == "x\n"
    shown = project.cli("logs", project.record().id)
    assert (shown.stdout, shown.stderr) == ("", "Nothing that it has printed was kept\n")


# ---------------------------------------------------------------- what survives


@linux
def test_a_kill_of_the_script_loses_nothing_that_it_has_printed(project: ProjectDirectory) -> None:
    process = start(
        project,
        """
        import os, signal, replicate
        replicate.init(path=None).wait()
        print("ready", flush=True)
        print("the last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    process.communicate()
    assert logs(project) == ["ready", "the last words"]


@linux
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victims", ["those that pass it on", "the helper"])
def test_a_run_prints_on_whatever_happens_to_the_processes_beside_it(
    project: ProjectDirectory, victims: str, how: signal.Signals
) -> None:
    process = start(
        project,
        """
        import sys, replicate
        replicate.init(path=None)
        print("ready", flush=True)
        sys.stdin.readline()
        for i in range(100_000):
            print(f"line {i} of a script that prints a lot")
        """,
    )
    found = project.helpers() if victims == "the helper" else tees(project)
    first, *children = sorted(found)
    if children:
        end(how, *children)
    else:
        os.kill(first, how)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(100_000)]
    assert lines[-1] == "line 99999 of a script that prints a lot\n"
    assert len(set(lines)) == 100_000
    if victims == "the helper" and how == signal.SIGSTOP:
        os.kill(first, signal.SIGCONT)
    process.communicate()
    assert logs(project)[-1] == "line 99999 of a script that prints a lot"


@linux
def test_after_a_kill_of_all_of_them_a_run_prints_directly(project: ProjectDirectory) -> None:
    process = start(
        project,
        """
        import sys, replicate
        experiment = replicate.init(path=None)
        print("ready", flush=True)
        sys.stdin.readline()
        print("meanwhile", flush=True)
        experiment.checkpoint(metrics={"loss": 1})
        for i in range(100_000):
            print(f"line {i} of a script that prints a lot")
        """,
    )
    end(signal.SIGKILL, *tees(project), *project.helpers())
    out, _ = process.communicate("\n")
    assert process.returncode == 0
    assert out.splitlines()[0] == "meanwhile" and len(out.splitlines()) == 100_001


@linux
def test_a_reader_that_goes_away_does_not_end_the_run(project: ProjectDirectory) -> None:
    process = start(
        project,
        """
        import sys, replicate
        replicate.init(path=None)
        print("ready", flush=True)
        sys.stdin.readline()
        for i in range(50_000):
            print(f"line {i} of a script that prints a lot")
        """,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait() == 0
    assert logs(project)[-1] == "line 49999 of a script that prints a lot"


# ---------------------------------------------------------------- how it is kept and shown


def test_a_progress_bar_is_kept_in_its_last_state(project: ProjectDirectory) -> None:
    project.run("""
        import replicate
        replicate.init(path=None)
        for i in range(1001):
            print(f"\\r{i / 10:.0f}%", end="", flush=True)
        print()
        print("done")
    """)
    assert logs(project) == ["100%", "done"]
    (file,) = project.repository.glob("experiments/*/console/*")
    assert file.stat().st_size < 5000


@pytest.mark.parametrize(
    "text, kept",
    [
        ("a\rb\rc\nd", "\rc\nd"),
        ("windows\r\nline\r\n", "windows\r\nline\r\n"),
        ("10%\r20%\r", "\r20%\r"),
        ("plain\n", "plain\n"),
    ],
)
def test_what_a_carriage_return_has_overwritten_is_left_out(text: str, kept: str) -> None:
    assert without_overwritten(text) == kept


def test_colours_are_kept_for_a_terminal_and_nothing_else_that_would_act_on_it() -> None:
    line = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[2Jend\x08"
    assert printable(line, colored=False) == "red end\\x08"
    assert printable(line, colored=True) == "\x1b[31mred\x1b[0m end\\x08\x1b[0m"


def test_lines_as_json_and_the_last_ones(project: ProjectDirectory) -> None:
    project.run("import os, replicate; replicate.init(path=None); os.write(2, b'a\\nb\\nc')")
    id = project.record().id
    assert project.cli("logs", id, "-n", "2").stdout == "b\nc\n"
    found = json.loads(project.cli("logs", id, "--json").stdout)[-3:]
    assert [(line["stream"], line["text"]) for line in found] == [
        *(("stderr", "a"), ("stderr", "b"), ("stderr", "c"))
    ]


@linux
def test_following_shows_what_comes_and_ends_with_the_run(project: ProjectDirectory) -> None:
    process = start(
        project,
        """
        import sys, replicate
        replicate.init(path=None).wait()
        print("ready", flush=True)
        for line in sys.stdin:
            print("got", line, end="", flush=True)
        """,
    )
    (id,) = project.open().repository.ids()
    follower = project._start([sys.executable, "-m", "replicate", "logs", id, "-f"], {})
    assert follower.stdout is not None and process.stdin is not None
    shown = iter(follower.stdout.readline, "")
    assert "ready\n" in shown
    process.stdin.write("this\n")
    process.stdin.flush()
    assert next(shown) == "got this\n"
    process.stdin.close()
    assert list(shown) == []
    assert follower.wait() == 0


@linux
def test_ctrl_c_ends_following_quietly(project: ProjectDirectory) -> None:
    start(
        project,
        """
        import sys, replicate
        replicate.init(path=None).wait()
        print("ready", flush=True)
        sys.stdin.read()
        """,
    )
    (id,) = project.open().repository.ids()
    follower = project._start([sys.executable, "-m", "replicate", "logs", id, "-f"], {})
    assert follower.stdout is not None
    assert "ready\n" in iter(follower.stdout.readline, "")
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate()
    assert (follower.returncode, err) == (0, "")
