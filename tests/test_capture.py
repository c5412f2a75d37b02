"""What was captured is what is kept, whatever the trainer does next and whatever becomes of the
helper process: a copy is whole or reported as failed, and the trainer is never left waiting.

The tests are the trainer. Nothing here measures or waits for time: a helper starts its copy when it
is let, or when the kernel tells it that a writer waits; whether a lease is held is asked with an
open that does not wait. (The time limit is shorter than the kernel's own limit for a lease, so that
a trainer that only the kernel has freed is a failure.)
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from replicate.errors import StorageError
from replicate.recorder import filesystem
from replicate.recorder.capture import COPY_LIMIT, Capture, TornCaptureError, take

pytestmark = pytest.mark.timeout(40)
linux = pytest.mark.skipif(sys.platform != "linux", reason="read leases exist on Linux only")
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, signals and pipes of POSIX")

ORIGINAL = bytes(range(256)) * 4096  # 1 MiB
CHANGED = b"changed" * 100_000

Start = Literal["at once", "when let", "when a writer waits"]

HELPER = """
import fcntl, json, os, signal, socket, sys
from pathlib import Path
from replicate.recorder.capture import FileState, StorageError, finish

def wait_for_writer(fd):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    if fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
        signal.sigwait([signal.SIGURG])

connection = socket.socket(fileno=int(sys.argv[1]))
message, (fd,), _, _ = socket.recv_fds(connection, 4096, 1)
job = json.loads(message)
connection.sendall(b"received\\n")
if job["start"] == "when let":
    sys.stdin.read(1)
elif job["start"] == "when a writer waits":
    wait_for_writer(fd)
try:
    finish(fd, Path(job["spooled"]), FileState(*job["state"]))
    connection.sendall(b"complete\\n")
except StorageError as error:
    connection.sendall(type(error).__name__.encode() + b"\\n")
"""


class Helper:
    """A helper process for one file."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-c", HELPER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
        )
        theirs.close()
        self._replies = self._socket.makefile("r")
        self._stopped = False

    def send(self, view: Capture, spooled: Path, start: Start) -> None:
        """Hand over a leased file, and return when the helper has it (unless it is stopped)."""
        assert view.fd is not None
        job = {"spooled": str(spooled), "state": view.state, "start": start}
        socket.send_fds(self._socket, [json.dumps(job).encode()], [view.fd])
        view.close()
        if not self._stopped:
            assert self._replies.readline() == "received\n"

    def let(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def outcome(self) -> str:
        return next(reply for reply in map(str.strip, self._replies) if reply != "received")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        self._stopped = True

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._stopped = False

    def close(self) -> None:
        self.kill()
        self._replies.close()
        self._socket.close()
        assert self._process.stdin is not None
        self._process.stdin.close()


@pytest.fixture
def helper() -> Iterator[Helper]:
    helper = Helper()
    yield helper
    helper.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint file that the trainer has written."""
    path = tmp_path / "model.pth"
    path.write_bytes(ORIGINAL)
    return path


@pytest.fixture
def spooled(tmp_path: Path) -> Path:
    spool = tmp_path / "spool"
    spool.mkdir()
    return spool / "0"


def held(source: Path) -> bool:
    """Whether a writer would have to wait for a lease."""
    try:
        os.close(os.open(source, os.O_WRONLY | os.O_NONBLOCK))
    except BlockingIOError:
        return True
    return False


def leased(source: Path, spooled: Path) -> Capture:
    view = take(source, spooled)
    if view.method != "lease":
        view.close()
        pytest.skip(f"no read leases in {source.parent}: {view.method}")
    return view


# What a training script may do to the file next.


def overwrite(path: Path) -> None:
    path.write_bytes(CHANGED)


def overwrite_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(CHANGED)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(CHANGED)


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(CHANGED)
    new.replace(path)


def unlink(path: Path) -> None:
    path.unlink()


Change = Callable[[Path], None]
waiting = pytest.mark.parametrize("change", [overwrite, overwrite_in_place, append, truncate])
passing = pytest.mark.parametrize("change", [replace, unlink])
every_change = pytest.mark.parametrize(
    "change", [overwrite, overwrite_in_place, append, truncate, replace, unlink]
)


def changed_by(change: Change, directory: Path) -> bytes | None:
    """What `change` makes of the original when nobody captures it."""
    path = directory / "alone" / "model.pth"
    path.parent.mkdir()
    path.write_bytes(ORIGINAL)
    change(path)
    return contents(path)


def contents(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@linux
class TestLease:
    @waiting
    def test_a_writer_waits_until_the_helper_has_its_copy(
        self, change: Change, source: Path, spooled: Path, helper: Helper
    ) -> None:
        helper.send(leased(source, spooled), spooled, "when a writer waits")
        change(source)
        assert spooled.read_bytes() == ORIGINAL
        assert helper.outcome() == "complete"
        assert contents(source) == changed_by(change, spooled.parent)

    @passing
    def test_a_file_that_is_replaced_or_removed_is_copied_as_it_was(
        self, change: Change, source: Path, spooled: Path, helper: Helper
    ) -> None:
        helper.send(leased(source, spooled), spooled, "when let")
        change(source)
        assert contents(source) == changed_by(change, spooled.parent)
        helper.let()
        assert helper.outcome() == "complete"
        assert spooled.read_bytes() == ORIGINAL

    @every_change
    def test_a_helper_that_is_stopped_and_resumed_still_copies_the_original(
        self, change: Change, source: Path, spooled: Path, helper: Helper
    ) -> None:
        helper.stop()
        helper.send(leased(source, spooled), spooled, "at once")
        assert held(source)
        helper.resume()
        change(source)
        assert helper.outcome() == "complete"
        assert spooled.read_bytes() == ORIGINAL
        assert contents(source) == changed_by(change, spooled.parent)

    @every_change
    def test_a_helper_that_dies_frees_the_trainer(
        self, change: Change, source: Path, spooled: Path, helper: Helper
    ) -> None:
        view = leased(source, spooled)
        helper.send(view, spooled, "when let")
        assert held(source)
        helper.kill()
        assert not held(source)
        change(source)
        assert contents(source) == changed_by(change, spooled.parent)
        assert contents(spooled) is None

    def test_a_helper_that_dies_with_the_file_unread_frees_the_trainer(
        self, source: Path, spooled: Path, helper: Helper
    ) -> None:
        helper.stop()
        helper.send(leased(source, spooled), spooled, "at once")
        helper.kill()
        assert not held(source)

    def test_after_a_helper_died_the_same_file_can_be_captured_again(
        self, source: Path, spooled: Path, helper: Helper
    ) -> None:
        view = leased(source, spooled)
        helper.send(view, spooled, "when let")
        helper.kill()
        again = take(source, spooled, lease=False)
        assert again.state == view.state
        assert spooled.read_bytes() == ORIGINAL

    def test_a_helper_that_dies_in_its_copy_leaves_all_or_nothing(
        self, source: Path, spooled: Path, helper: Helper
    ) -> None:
        source.write_bytes(ORIGINAL * 64)
        helper.send(leased(source, spooled), spooled, "at once")
        helper.kill()
        assert contents(spooled) in (None, ORIGINAL * 64)
        assert not held(source)

    @waiting
    def test_a_lease_that_was_ended_by_force_fails_the_capture_rather_than_tears_it(
        self, change: Change, source: Path, spooled: Path, helper: Helper
    ) -> None:
        view = leased(source, spooled)
        assert view.fd is not None
        kept = os.dup(view.fd)
        helper.send(view, spooled, "when let")
        filesystem.release_lease(kept)  # as the kernel does when its patience is over
        os.close(kept)
        change(source)
        helper.let()
        assert helper.outcome() == "TornCaptureError"
        assert list(spooled.parent.iterdir()) == []

    def test_the_helper_ends_the_lease_even_if_a_copy_of_the_descriptor_leaked(
        self, source: Path, spooled: Path, helper: Helper
    ) -> None:
        view = leased(source, spooled)
        assert view.fd is not None
        leaked = os.dup(view.fd)
        helper.send(view, spooled, "at once")
        assert helper.outcome() == "complete"
        assert not held(source)
        os.close(leaked)

    def test_two_checkpoints_of_one_file_can_be_under_way(
        self, source: Path, spooled: Path, helper: Helper
    ) -> None:
        first = leased(source, spooled)
        second = leased(source, spooled)
        helper.send(first, spooled, "at once")
        assert helper.outcome() == "complete"
        assert held(source)
        second.close()
        assert not held(source)

    def test_the_trainer_gets_no_signal_when_a_writer_comes(
        self, source: Path, spooled: Path, helper: Helper
    ) -> None:
        got: list[int] = []
        numbers = [signal.SIGURG, signal.SIGIO]
        before = [signal.signal(number, lambda number, _: got.append(number)) for number in numbers]
        try:
            with leased(source, spooled):
                assert held(source)
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
        assert got == []

    def test_what_torch_saves_next_waits_without_a_dead_lock(
        self, tmp_path: Path, spooled: Path, helper: Helper
    ) -> None:
        torch = pytest.importorskip("torch")
        source = tmp_path / "large.pth"
        torch.save({"weight": torch.arange(16 << 20, dtype=torch.float32)}, source)  # 64 MiB
        original = source.read_bytes()
        helper.send(leased(source, spooled), spooled, "when a writer waits")
        torch.save({"weight": torch.zeros(16 << 20)}, source)  # opens with the interpreter locked
        assert helper.outcome() == "complete"
        assert spooled.read_bytes() == original
        assert not torch.load(source)["weight"].any()

    @pytest.mark.parametrize("moment", ["before", "meanwhile", "after"])
    def test_a_forked_worker_does_not_keep_the_lease(
        self, moment: str, source: Path, spooled: Path
    ) -> None:
        assert run(FORKING_TRAINER, source, spooled, moment) in ("lease: free", "copy: free")

    def test_a_file_that_is_open_for_writing_is_copied_and_leased_again_later(
        self, source: Path, spooled: Path
    ) -> None:
        leased(source, spooled).close()
        with source.open("r+b"):
            assert take(source, spooled).method in ("copy", "reflink")
            assert spooled.read_bytes() == ORIGINAL
        with take(source, spooled) as view:
            assert view.method == "lease"

    def test_a_file_that_is_mapped_for_writing_is_copied(self, source: Path, spooled: Path) -> None:
        with source.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        with mapped:
            assert take(source, spooled).method in ("copy", "reflink")
            mapped[:7] = b"changed"
        assert spooled.read_bytes() == ORIGINAL

    def test_a_small_file_is_copied_at_once(self, source: Path, spooled: Path) -> None:
        source.write_bytes(ORIGINAL[:COPY_LIMIT])
        assert take(source, spooled).method == "copy"
        assert spooled.read_bytes() == ORIGINAL[:COPY_LIMIT]


FORKING_TRAINER = """
import os, sys
from pathlib import Path
from replicate.recorder.capture import take

source, spooled, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
ended, end = os.pipe()
started, start = os.pipe()

def start_worker():  # as a DataLoader does; it lives until this process ends
    if os.fork() == 0:
        os.close(end)
        os.write(start, b".")
        os.read(ended, 1)
        os._exit(0)
    os.read(started, 1)

if moment == "before":
    start_worker()
with take(source, spooled) as view:
    if moment == "meanwhile":
        start_worker()
if moment == "after":
    start_worker()
try:
    os.open(source, os.O_WRONLY | os.O_NONBLOCK)
    print(view.method + ": free")
except BlockingIOError:
    print(view.method + ": held")
"""


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class TestCopy:
    @every_change
    def test_it_is_complete_on_return(self, change: Change, source: Path, spooled: Path) -> None:
        view = take(source, spooled, lease=False)
        change(source)
        assert view.fd is None
        assert spooled.read_bytes() == ORIGINAL
        assert list(spooled.parent.iterdir()) == [spooled]

    @pytest.mark.parametrize("size", [0, 1, COPY_LIMIT + 1, (64 << 20) + 1])
    def test_files_of_any_size_are_kept(self, size: int, source: Path, spooled: Path) -> None:
        source.write_bytes((ORIGINAL * (size // len(ORIGINAL) + 1))[:size])
        view = take(source, spooled, lease=False)
        assert spooled.read_bytes() == source.read_bytes()
        assert view.state.size == size

    def test_a_file_with_holes_is_kept(self, source: Path, spooled: Path) -> None:
        os.truncate(source, 32 << 20)
        with source.open("ab") as file:
            file.write(b"the end")
        take(source, spooled, lease=False)
        assert spooled.read_bytes() == source.read_bytes()

    def test_the_spool_may_be_on_another_file_system(self, source: Path, spooled: Path) -> None:
        memory = Path("/dev/shm")
        if not memory.is_dir() or memory.stat().st_dev == source.stat().st_dev:
            pytest.skip("there is no second file system")
        elsewhere = memory / f"replicate-test-{os.getpid()}"
        try:
            assert take(source, elsewhere, lease=False).method == "copy"
            assert elsewhere.read_bytes() == ORIGINAL
        finally:
            elsewhere.unlink(missing_ok=True)

    @posix
    @pytest.mark.parametrize("side", ["trainer", "helper"])
    def test_a_change_during_the_copy_fails_the_capture(
        self, side: str, source: Path, spooled: Path
    ) -> None:
        assert run(DISTURBED_COPY, source, spooled, side) == "TornCaptureError"
        assert list(spooled.parent.iterdir()) == []

    @posix
    def test_no_descriptor_is_left_open(self, source: Path, spooled: Path) -> None:
        before = os.listdir("/dev/fd")
        take(source, spooled).close()
        take(source, spooled, lease=False)
        with pytest.raises(StorageError):
            take(source, spooled.parent, lease=False)
        assert os.listdir("/dev/fd") == before

    @linux
    def test_a_way_that_the_mount_refuses_is_tried_once(self, source: Path, spooled: Path) -> None:
        method, tried = run(COUNTING_TRAINER, source, spooled).split()
        if method == "reflink":
            pytest.skip("this file system refuses nothing")
        assert tried == "1"

    def test_it_works_without_the_calls_of_posix(self, source: Path, spooled: Path) -> None:
        assert run(BARE_TRAINER, source, spooled) == "copy"
        assert spooled.read_bytes() == ORIGINAL


# Every open of a file can be observed; that of the copy's target is the beginning of the copy.
DISTURBED_COPY = """
import os, sys
from pathlib import Path
from replicate.recorder.capture import FileState, StorageError, finish, take

source, spooled, side = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def disturb(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".partial"):
        os.truncate(source, 10)

found = source.stat()
fd = os.open(source, os.O_RDONLY)
sys.addaudithook(disturb)
try:
    if side == "trainer":
        take(source, spooled, lease=False)
    else:
        finish(fd, spooled, FileState(found.st_size, found.st_mtime_ns, found.st_ino))
    print("complete")
except StorageError as error:
    print(type(error).__name__)
"""

COUNTING_TRAINER = """
import sys
from pathlib import Path
from replicate.recorder.capture import take

tried = 0

def count(event, arguments):
    global tried
    tried += event == "fcntl.ioctl"

sys.addaudithook(count)
for _ in range(3):
    view = take(Path(sys.argv[1]), Path(sys.argv[2]), lease=False)
print(view.method, tried)
"""

BARE_TRAINER = """
import importlib, os, sys
from pathlib import Path
from replicate.recorder import capture, filesystem

sys.platform, sys.modules["fcntl"] = "win32", None
vars(filesystem).pop("fcntl", None)
for name in ("copy_file_range", "register_at_fork", "O_NONBLOCK"):
    vars(os).pop(name, None)
importlib.reload(filesystem)
print(capture.take(Path(sys.argv[1]), Path(sys.argv[2])).method)
"""


@pytest.fixture(scope="module")
def cloning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory whose file system shares blocks: the temporary one, or else an image of XFS."""
    directory = tmp_path_factory.mktemp("cloning")
    probe = directory / "probe"
    probe.write_bytes(ORIGINAL)
    if take(probe, directory / "spooled", lease=False).method == "reflink":
        yield directory
        return
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mkfs.xfs"):
        pytest.skip("no reflinks here, and no means to mount a file system that has them")
    image, mounted = directory / "image", directory / "mounted"
    image.touch()
    os.truncate(image, 512 << 20)
    mounted.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, mounted]).returncode != 0:
        pytest.skip("no reflinks here, and XFS cannot be mounted")
    # Unmounted at once, it lives as long as it is open: nothing is left when the tests are killed.
    fd = os.open(mounted, os.O_RDONLY)
    subprocess.run(["umount", "--lazy", mounted], check=True)
    yield Path(f"/proc/{os.getpid()}/fd/{fd}")
    os.close(fd)


@posix
class TestReflink:
    @every_change
    def test_it_is_complete_on_return(self, change: Change, cloning: Path) -> None:
        source, spooled = cloning / "model.pth", cloning / change.__name__
        source.write_bytes(ORIGINAL)
        assert take(source, spooled, lease=False).method == "reflink"
        change(source)
        assert spooled.read_bytes() == ORIGINAL

    @linux
    def test_a_lease_comes_first_and_the_helper_clones(self, cloning: Path, helper: Helper) -> None:
        source, spooled = cloning / "model.pth", cloning / "leased"
        source.write_bytes(ORIGINAL)
        helper.send(leased(source, spooled), spooled, "when a writer waits")
        overwrite(source)
        assert helper.outcome() == "complete"
        assert spooled.read_bytes() == ORIGINAL


class TestRefusals:
    def test_a_missing_file_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"nowhere\.pth: No such file"):
            take(tmp_path / "nowhere.pth", tmp_path / "spooled")

    @posix
    def test_a_pipe_is_an_error_and_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(StorageError, match="not a regular file"):
            take(tmp_path / "pipe", tmp_path / "spooled")

    @posix
    def test_a_full_disk_leaves_nothing_behind(self, source: Path, spooled: Path) -> None:
        assert run(FULL_DISK, source, spooled) == f"StorageError {os.strerror(errno.EFBIG)}"
        assert list(spooled.parent.iterdir()) == []

    def test_a_torn_capture_is_a_failure_of_storage(self) -> None:
        assert issubclass(TornCaptureError, StorageError)


# A limit on the size of files stands for the end of the disk.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from replicate.recorder.capture import StorageError, take

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    take(Path(sys.argv[1]), Path(sys.argv[2]), lease=False)
except StorageError as error:
    print(type(error).__name__, str(error).split(": ")[-1])
"""
