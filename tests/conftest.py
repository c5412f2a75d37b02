"""What the tests of the whole product share: a project directory in which real training scripts
run as real processes, and the `replicate` command as a person types it."""

from __future__ import annotations

import compileall
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import replicate
from fault_proxy import s3_proxy as s3_proxy
from replicate.model import ExperimentRecord, Status, Stop
from replicate.project import Project
from replicate.recorder.client import live_recorders
from replicate.recorder.guard import NAME
from replicate.records import now
from servers import azurite as azurite
from servers import gcs as gcs
from servers import ministack as ministack
from servers import moto as moto
from servers import s3_url as s3_url

if os.name == "posix":
    import fcntl

#: No test asserts a time: the machine that runs them may be slow.
settings.register_profile("replicate", deadline=None)
settings.load_profile("replicate")

#: What a launcher of distributed runs sets, and would keep these tests from recording.
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")

linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals of POSIX")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have bytecode for the thousands of processes of the tests, also where Python writes none."""
    if not hasattr(session.config, "workerinput"):
        for directory in (Path(replicate.__file__).parent, Path(__file__).with_name("faults")):
            compileall.compile_dir(directory, quiet=2)


class ProjectDirectory:
    """The directory of a model's code, with what a person does in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repository = path / ".replicate"
        self.state = path.with_name("state")
        self._processes: list[subprocess.Popen[str]] = []

    def write(self, name: str, content: str | bytes, mode: int | None = None) -> Path:
        """A file of the project, with the directories it needs."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        if mode is not None:
            file.chmod(mode)
        return file

    def run(
        self, script: str, *arguments: str, expect: int | None = 0, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a training script to its end; `expect` is its exit code, None for any."""
        process = self.start(script, *arguments, **environ)
        out, err = process.communicate()
        if expect is not None:
            assert process.returncode == expect, f"exit code {process.returncode}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, script: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """Start a training script, with pipes for all it reads and writes."""
        self.write("train.py", textwrap.dedent(script))
        return self._start([sys.executable, "train.py", *arguments], environ)

    def cli(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the `replicate` command."""
        process = self.type(*arguments)
        out, err = process.communicate()
        assert process.returncode == expect, f"exit code {process.returncode}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def type(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the `replicate` command, with pipes for all it reads and writes."""
        return self._start([sys.executable, "-m", "replicate", *arguments], {})

    def _start(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=self.path,
            env={**os.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def open(self) -> Project:
        """The project, as the command line and a notebook see it."""
        return Project(directory=self.path)

    def records(self) -> list[ExperimentRecord]:
        """All experiments, once every helper process has done its work."""
        self.wait_for_helpers()
        return self.open().records()

    def record(self) -> ExperimentRecord:
        """The only experiment there is."""
        (record,) = self.records()
        return record

    def spools(self) -> list[Path]:
        """The directories of what is not saved yet, in this repository and in remote ones."""
        remote = (path for path in self.state.glob("replicate/spool/*/*") if path.is_dir())
        return sorted([*(self.repository / ".spool").glob("*"), *remote])

    def wait_for_helpers(self) -> None:
        """Return when no process records into this project any more."""
        for spool in self.spools():
            try:
                with open(spool / "lock", "rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)  # held by the trainer and by its helper
                    # Not by closing: a process that another thread is starting has a copy.
                    fcntl.flock(lock, fcntl.LOCK_UN)
            except FileNotFoundError:
                continue

    def helpers(self) -> list[int]:
        """The process ids of the helpers that record into this project."""
        return [pid for pid, name in self._recording() if name != NAME]

    def guards(self) -> list[int]:
        """Those of the processes that hold leases for these helpers, or for one that has ended."""
        return [pid for pid, name in self._recording() if name == NAME]

    def _recording(self) -> Iterator[tuple[int, str]]:
        """The helpers and their guards, each with its name."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                    name = (entry / "comm").read_text().strip()
                except OSError:
                    continue
                if b"replicate.recorder.helper" in command and f'"{self.path}'.encode() in command:
                    yield int(entry.name), name

    def files_of(self, id: str, target: Path) -> dict[str, bytes]:
        """What a checkout of `id` into the new directory `target` writes."""
        project = self.open()
        project.checkout(project.plan_checkout(project.pick(id), target))
        return content_of(target)

    def close(self) -> None:
        """End what a test that failed has left running. Waits for nothing that might not end."""
        for recorder in live_recorders():
            recorder.stop(Stop(now(), Status.FINISHED))
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
        if sys.platform == "linux":
            for process_id in [*self.helpers(), *self.guards()]:
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)


def content_of(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` but the repository's, by its path."""
    found = {}
    for root, directories, names in os.walk(directory):
        # Not entered: a helper that comes to its end is removing things there.
        directories[:] = [name for name in directories if name != ".replicate"]
        for file in (Path(root, name) for name in names):
            if file.is_file():
                found[file.relative_to(directory).as_posix()] = file.read_bytes()
    return found


def fill(ballast: Path) -> None:
    """Take all the space of a disk."""
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep listings of the tests' repositories out of the person's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProjectDirectory]:
    """A new project, which is the working directory of the test and of its scripts."""
    for name in [n for n in os.environ if n.startswith("REPLICATE_") or n in _RANKS]:
        monkeypatch.delenv(name)
    path = tmp_path / "project"
    path.mkdir()
    monkeypatch.chdir(path)
    directory = ProjectDirectory(path)
    monkeypatch.setenv("XDG_STATE_HOME", str(directory.state))
    yield directory
    directory.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB of its own; skips where none can be mounted."""
    mount = tmp_path / "small disk"
    mount.mkdir()
    command: list[Any] = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes Linux and root")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)
