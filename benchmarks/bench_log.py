"""What `experiment.log()` costs a training loop: `python benchmarks/bench_log.py`.

A loop of 100,000 steps runs bare and with a call of `log()` in each, in turn, in processes of their
own. The bare loop does the same but for that call. Then it is measured how long it takes until
another process can read what was logged, from the moment that `log()` returns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from timing import compile_package, table

import replicate

STEPS = 100_000
LOOP = """
import json, sys, time

how, steps = sys.argv[1], int(sys.argv[2])
if how == "logged":
    import replicate

    log = replicate.init(path=None).log
else:
    def log(metrics, step):
        pass
clock, times = time.perf_counter, [0.0] * steps
start = clock()
for step in range(steps):
    metrics = {"train/loss": 1.0 / (step + 1), "learning_rate": 0.001}
    before = clock()
    log(metrics, step)
    times[step] = clock() - before
total = clock() - start
times.sort()
print(json.dumps([total, times[steps // 2], times[int(0.99 * steps)], times[-1]]))
"""


def main() -> None:
    compile_package()
    with tempfile.TemporaryDirectory() as directory:
        line = table([(f"a loop of {STEPS:,} steps", -34), ("bare", 10), ("log()", 10), ("", 12)])
        loops(Path(directory), line)
        seconds = [readable(Path(directory)) for _ in range(7)]
        found = f"{statistics.median(seconds):.2f} s"
        line("until another process can read it", "", found, "< 2 s")


def loops(directory: Path, line: Callable[..., None]) -> None:
    """Time both loops in turn; the medians over rounds."""
    found: dict[str, list[list[float]]] = {"bare": [], "logged": []}
    for _ in range(5):
        for how, results in found.items():
            command = [sys.executable, "-c", LOOP, how, str(STEPS)]
            done = subprocess.run(command, cwd=directory, check=True, capture_output=True)
            results.append(json.loads(done.stdout))
            wait_for_helpers(directory)
    bare, logged = (
        [statistics.median(r[i] for r in found[how]) for i in range(4)] for how in found
    )
    line("a call, median", micro(bare[1]), micro(logged[1]), "< 20 µs")
    line("a call, 99 of 100 within", micro(bare[2]), micro(logged[2]), "")
    line("a call, the longest", micro(bare[3]), micro(logged[3]), "")
    line("the whole loop", f"{bare[0]:.2f} s", f"{logged[0]:.2f} s", "")


def readable(directory: Path) -> float:
    """Seconds from a call of log() to when it can be read in the repository."""
    project = replicate.Project(directory=directory)
    experiment = project.init(None, console=False)
    experiment.log({"loss": 2.0})  # the first one rings
    experiment.wait()
    time.sleep(0.1 + int.from_bytes(os.urandom(1)) / 256)  # anywhere between two looks
    start = time.perf_counter()
    experiment.log({"loss": 1.0})
    while len(project.repository.history(experiment.record)) < 2:
        time.sleep(0.005)
    found = time.perf_counter() - start
    experiment.stop()
    return found


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs"


def wait_for_helpers(directory: Path) -> None:
    """Return when nothing runs beside what comes next."""
    spools = directory / ".replicate" / ".spool"
    while spools.is_dir() and any(spools.iterdir()):
        time.sleep(0.01)


if __name__ == "__main__":
    main()
