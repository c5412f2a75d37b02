"""Timing beside a plain copy or a bare run, on a machine where other things run too.

What is claimed is a ratio, and its two sides are measured one right after the other; the medians
are over rounds of such pairs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import replicate

MIB = 1 << 20


def timed(act: Callable[[], object]) -> float:
    """Seconds that `act` takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def ready_memory(size: int) -> None:
    """Use `size` bytes of memory and give them back.

    A virtual machine may have to ask its host for memory that it has not used for a while, and
    that takes up to ten times as long as to copy a file there. Both sides should find it ready.
    """
    used = bytearray(b"1") * size
    del used


def cp(source: Path, *, durable: bool = False) -> float:
    """Seconds that a copy of `source` takes, the faster of two; with `durable`, until it is on
    the disk. What was written before is on the disk already."""
    copied = source.with_name(source.name + ".cp")

    def copy() -> None:
        shutil.copyfile(source, copied)
        if durable:
            with copied.open("rb") as file:
                os.fsync(file.fileno())

    times = []
    for _ in range(2):
        times.append(timed(copy))
        copied.unlink()
    return min(times)


def compile_package() -> None:
    """Have the package's bytecode ready, as after an installation."""
    package = Path(replicate.__file__).parent
    subprocess.run([sys.executable, "-m", "compileall", "-q", package], check=True)


def await_helpers(project: Path) -> None:
    """Wait until the helper processes have ended, so that none runs beside what comes next."""
    spools = project / ".replicate" / ".spool"
    while any(spools.iterdir()):
        time.sleep(0.01)


def table(columns: Sequence[tuple[str, int]]) -> Callable[..., None]:
    """Print a header; return what prints a line of cells. Widths below zero align to the left."""

    def line(*cells: object) -> None:
        padded = [
            str(cell).ljust(-width) if width < 0 else str(cell).rjust(width)
            for cell, (_, width) in zip(cells, columns, strict=True)
        ]
        print("  ".join(padded).rstrip(), flush=True)

    line(*(name for name, _ in columns))
    return line
