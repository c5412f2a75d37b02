"""How long a training loop stands still for a file of a checkpoint, next to a plain copy of it.

    python benchmarks/bench_capture.py [--directory DIR] [--mib 64 1024] [--rounds 7]

In every round the file is written anew under the same name, as a training loop does, and the
capture and `shutil.copyfile` of it are timed one after the other, in turn the one first and the
other. The columns are medians; the ratio is the median of the rounds' ratios. Timed is all that
blocks: the capture and sending the descriptor, not what the helper process then does. (A reflink
looks better here than it is right after a save: two untimed copies give the disk time to catch up.)
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from timing import timed

from replicate.recorder import capture

TARGETS = {"lease": 0.05, "reflink": 0.05, "copy": 1.1}

HELPER = """
import os, socket, sys
from pathlib import Path
from replicate.recorder.capture import FileState, finish

if hasattr(os, "SCHED_BATCH"):
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
connection = socket.socket(fileno=int(sys.argv[1]))
while (received := socket.recv_fds(connection, 4096, 1))[0]:
    message, descriptors, _, _ = received
    spooled, *state = message.decode().split("\\0")
    for fd in descriptors:
        finish(fd, Path(spooled), FileState(*map(int, state)))
    connection.sendall(b".")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to work; decides the file system")
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", HELPER, str(theirs.fileno())]
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as directory,
        subprocess.Popen(command, pass_fds=[theirs.fileno()]),
        ours,
    ):
        theirs.close()
        print("   MiB  way         blocked ms   copyfile ms   ratio  target")
        for mib in options.mib:
            for lease in (True, False):
                measure(Path(directory), mib, lease, options.rounds, ours)


def measure(directory: Path, mib: int, lease: bool, rounds: int, helper: socket.socket) -> None:
    """Print one line of the table."""
    source, spooled, copied = directory / "model.pth", directory / "spooled", directory / "copied"
    blocked, copying, method = [], [], ""
    for round in range(-1, rounds):  # one round to warm up
        write(source, mib)
        for _ in range(2):  # so that all of it is in the page cache, and the disk has space mapped
            timed(lambda: shutil.copyfile(source, copied))
            copied.unlink()

        def ours() -> None:
            nonlocal method
            method = capture_and_send(source, spooled, lease, helper)

        def cp() -> None:
            shutil.copyfile(source, copied)

        times: dict[Callable[[], None], float] = {}
        for act in (ours, cp) if round % 2 else (cp, ours):
            times[act] = timed(act)
            if act is ours:
                helper.recv(1)  # so that the helper does not work while the other is timed
            for made in (spooled, copied):  # so that the other finds as much free memory
                made.unlink(missing_ok=True)
        if round >= 0:
            blocked.append(times[ours])
            copying.append(times[cp])
    ratio = statistics.median(a / b for a, b in zip(blocked, copying, strict=True))
    print(
        f"{mib:6}  {method:8} {statistics.median(blocked) * 1e3:13.2f} "
        f"{statistics.median(copying) * 1e3:13.1f} {ratio:7.4f}  {TARGETS[method]}"
    )


def write(path: Path, mib: int) -> None:
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(block)


def capture_and_send(source: Path, spooled: Path, lease: bool, helper: socket.socket) -> str:
    """What a checkpoint does for one of its files; returns which way it took."""
    with capture.take(source, spooled, lease=lease) as view:
        message = "\0".join([str(spooled), *map(str, view.state)]).encode()
        socket.send_fds(helper, [message], [] if view.fd is None else [view.fd])
    return view.method


if __name__ == "__main__":
    main()
