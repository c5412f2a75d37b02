"""A large file is read where it lies while nobody writes to it, and from a copy from then on: what
is read is what was captured, whatever happens to the file, the guard and who reads, in any order.

The tests are the trainer and the helper; the guard is a process of its own, as in a run.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import linux
from replicate.background import Background
from replicate.errors import StorageError
from replicate.readers import Reader
from replicate.recorder.capture import take
from replicate.recorder.guard import HOLD_FROM, MAX_HELD
from replicate.recorder.held import Held
from replicate.spool import Spool
from test_capture import every_change, held, overwrite, replace, unlink, waiting

# Shorter than the kernel's own limit for a lease: what only the kernel has freed is a failure.
pytestmark = [linux, pytest.mark.timeout(40)]

ORIGINAL = bytes(range(256)) * (HOLD_FROM // 256 + 1)
HALF = len(ORIGINAL) // 2
NUMBER = 7
GUARD = """
import socket, sys
from pathlib import Path
from replicate.recorder.guard import Guard
from replicate.spool import Spool

trainer, helper = (socket.socket(fileno=int(argument)) for argument in sys.argv[1:3])
Guard(trainer, helper, Spool(Path(sys.argv[3])), hold=sys.argv[4] == "True").run()
"""

Change = Callable[[Path], None]


class Recording:
    """A spool with its guard."""

    def __init__(self, directory: Path, *, hold: bool = True) -> None:
        self.spool = Spool(directory)
        directory.mkdir()
        self._trainer, trainer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.helper, helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs = (trainer.fileno(), helper.fileno())
        command = [sys.executable, "-c", GUARD, *map(str, theirs), str(directory), str(hold)]
        self.guard = subprocess.Popen(command, pass_fds=theirs, stderr=subprocess.DEVNULL)
        trainer.close()
        helper.close()
        self.held = Held(self.spool, self.helper, NUMBER)
        self.ended = threading.Event()
        self._listening = threading.Thread(target=self.held.listen, args=[self.ended.set])
        self._listening.start()
        #: The entries of the files in the headers of their jobs.
        self.entries: dict[str, dict[str, Any]] = {}

    def checkpoint(self, job: str, *sources: Path) -> None:
        """Hand these files over, as a trainer does."""
        for number, source in enumerate(sources):
            with take(source, self.spool.beside(job, number)) as taken:
                if taken.fd is None:
                    pytest.skip(f"no read leases in {source.parent}: {taken.method}")
                message = json.dumps([job, number, taken.state]).encode()
                socket.send_fds(self._trainer, [message], [taken.fd])
                self.entries[source.name] = {
                    "beside": number,
                    "helper": NUMBER,
                    "source": str(source),
                    "state": list(taken.state),
                }

    def open(self, job: str, source: Path) -> Any:
        return self.held.open(job, self.entries[source.name], lambda *read: None)

    def read(self, job: str, source: Path) -> bytes:
        """What is saved of the file."""
        with self.open(job, source) as reader:
            return whole(reader)

    def copies(self) -> list[str]:
        return sorted(os.listdir(self.spool.directory))

    def await_guard(self) -> None:
        """Return when the guard has ended, and its helper knows what that means."""
        self.guard.wait()
        self._listening.join()

    def close(self) -> None:
        self.guard.kill()
        self.await_guard()
        self.helper.close()
        self._trainer.close()


def whole(reader: Reader) -> bytes:
    return bytes(reader.read(0, HALF)) + bytes(reader.read(HALF, reader.size))


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    recording = Recording(tmp_path / "spool")
    yield recording
    recording.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A large file that the trainer has written."""
    return write(tmp_path / "model.pth")


def write(path: Path, content: bytes = ORIGINAL) -> Path:
    path.write_bytes(content)
    return path


def test_a_file_that_nobody_touches_is_read_where_it_is(recording: Recording, source: Path) -> None:
    recording.checkpoint("a", source)
    assert recording.read("a", source) == ORIGINAL
    assert recording.held.size == len(ORIGINAL)
    recording.held.forget("a")
    overwrite(source)  # which tells the guard, after it has heard of that
    assert recording.copies() == []
    assert recording.held.size == 0


@every_change
def test_what_was_captured_is_read_whenever_the_file_is_changed(
    change: Change, recording: Recording, source: Path, tmp_path: Path
) -> None:
    recording.checkpoint("a", source)
    change(source)
    assert recording.read("a", source) == ORIGINAL
    other = write(tmp_path / "other")
    recording.held.forget("a")
    recording.checkpoint("b", other)
    with recording.open("b", other) as reader:
        first = bytes(reader.read(0, HALF))
        change(other)
        assert first + bytes(reader.read(HALF, reader.size)) == ORIGINAL
        assert whole(reader) == ORIGINAL


def test_what_is_replaced_or_deleted_is_read_where_it_was(
    recording: Recording, tmp_path: Path
) -> None:
    replaced, deleted = write(tmp_path / "replaced"), write(tmp_path / "deleted")
    recording.checkpoint("a", replaced, deleted)
    replace(replaced)
    unlink(deleted)
    assert recording.read("a", replaced) == recording.read("a", deleted) == ORIGINAL
    assert recording.copies() == []


@waiting
def test_a_writer_who_came_before_the_guard_had_the_lease_is_seen(
    change: Change, recording: Recording, source: Path
) -> None:
    recording.guard.send_signal(signal.SIGSTOP)
    recording.checkpoint("a", source)
    writer = Background(lambda: change(source))
    while not source_is_awaited(source):
        pass
    recording.guard.send_signal(signal.SIGCONT)
    writer.result()
    assert recording.read("a", source) == ORIGINAL


def source_is_awaited(source: Path) -> bool:
    """Whether the kernel says that somebody waits for a lease on the file."""
    inode = source.stat().st_ino
    locks = Path("/proc/locks").read_text().splitlines()
    return any("LEASE" in line and "BREAK" in line and f":{inode} " in line for line in locks)


def test_small_files_and_those_that_have_to_wait_are_copied_at_once(
    recording: Recording, tmp_path: Path
) -> None:
    small = write(tmp_path / "small", ORIGINAL[: HOLD_FROM - 1])
    recording.checkpoint("a", small)
    assert recording.read("a", small) == ORIGINAL[: HOLD_FROM - 1]
    assert recording.copies() == ["a.0"]
    late = write(tmp_path / "late")
    recording.checkpoint("b", late)  # the helper is not done with the other
    assert recording.read("b", late) == ORIGINAL
    assert recording.copies() == ["a.0", "b.0"]
    assert not held(late)


def test_no_more_than_some_files_are_held(recording: Recording, tmp_path: Path) -> None:
    sources = [tmp_path / f"{number}" for number in range(MAX_HELD + 1)]
    for source in sources:
        source.touch()
        os.truncate(source, HOLD_FROM)
    recording.checkpoint("a", *sources)
    assert recording.read("a", sources[-1]) == bytes(HOLD_FROM)
    assert recording.copies() == [f"a.{MAX_HELD}"]
    recording.held.forget("a")


def test_where_nothing_is_saved_soon_there_is_a_copy_at_once(tmp_path: Path, source: Path) -> None:
    recording = Recording(tmp_path / "spool", hold=False)
    try:
        recording.checkpoint("a", source)
        assert recording.read("a", source) == ORIGINAL
        assert recording.copies() == ["a.0"]
    finally:
        recording.close()


@every_change
def test_when_the_helper_ends_the_guard_copies_what_was_not_saved(
    change: Change, recording: Recording, source: Path
) -> None:
    recording.checkpoint("a", source)
    recording.helper.shutdown(socket.SHUT_RDWR)  # as when it is killed
    change(source)
    recording.await_guard()
    assert recording.spool.beside("a", 0).read_bytes() == ORIGINAL


@every_change
def test_when_the_guard_is_killed_the_helper_copies_what_was_held(
    change: Change, recording: Recording, source: Path
) -> None:
    recording.checkpoint("a", source)
    with recording.open("a", source) as reader:
        first = bytes(reader.read(0, HALF))
        recording.guard.kill()
        change(source)
        assert first + bytes(reader.read(HALF, reader.size)) == ORIGINAL
    recording.await_guard()
    assert recording.ended.is_set()
    assert recording.read("a", source) == ORIGINAL
    assert not (source.exists() and held(source))


def test_a_guard_that_is_stopped_keeps_no_writer_from_a_file_that_is_read(
    recording: Recording, source: Path
) -> None:
    recording.checkpoint("a", source)
    with recording.open("a", source) as reader:
        first = bytes(reader.read(0, HALF))
        recording.guard.send_signal(signal.SIGSTOP)
        writer = Background(lambda: overwrite(source))
        while not source_is_awaited(source):
            pass
        assert first + bytes(reader.read(HALF, reader.size)) == ORIGINAL
        writer.result()
    recording.guard.send_signal(signal.SIGCONT)
    assert recording.read("a", source) == ORIGINAL


def test_a_copy_that_comes_after_the_job_was_saved_does_not_stay(
    recording: Recording, source: Path
) -> None:
    recording.checkpoint("a", source)
    assert recording.read("a", source) == ORIGINAL
    overwrite(source)
    assert recording.copies() == ["a.0"]
    recording.held.forget("a")
    recording.checkpoint("b", source)
    recording.read("b", source)  # the guard has heard of the first by now
    assert "a.0" not in recording.copies()


@pytest.mark.parametrize("changed", [False, True])
def test_a_disk_that_has_no_room_for_the_copy_keeps_no_writer_waiting_and_tears_nothing(
    changed: bool, recording: Recording, source: Path
) -> None:
    recording.checkpoint("a", source)
    with recording.open("a", source) as reader:
        first = bytes(reader.read(0, HALF))
        # A limit on the size of files stands for the end of the disk.
        limit = resource.prlimit(0, resource.RLIMIT_FSIZE)
        resource.prlimit(recording.guard.pid, resource.RLIMIT_FSIZE, (1000, limit[1]))
        with source.open("r+b") as file:
            file.write(b"changed" if changed else b"")
        if changed:
            with pytest.raises(OSError, match="it was changed before it was saved") as caught:
                reader.read(HALF, reader.size)
            assert caught.value.errno == errno.EIO
        else:
            assert first + bytes(reader.read(HALF, reader.size)) == ORIGINAL
    assert recording.copies() == ([] if changed else ["a.0"])


def test_while_there_is_no_room_at_all_the_job_is_tried_again(
    recording: Recording, source: Path
) -> None:
    recording.checkpoint("a", source)
    with recording.open("a", source) as reader:
        resource.prlimit(recording.guard.pid, resource.RLIMIT_FSIZE, (1000, -1))
        source.open("r+b").close()
        recording.spool.directory.rename(recording.spool.directory.with_name("away"))
        with pytest.raises(StorageError):
            reader.read(0, HALF)
        recording.spool.directory.with_name("away").rename(recording.spool.directory)
    assert recording.read("a", source) == ORIGINAL
