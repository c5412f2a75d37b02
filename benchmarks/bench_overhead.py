"""What recording adds to a script that saves small files: `python benchmarks/bench_overhead.py`.

    python benchmarks/bench_overhead.py [--full] [--directory DIR]

A script of 100 checkpoints, each of a new file of 8 KB and two metrics, runs bare and recorded in
turn, with 10 ms of work before each checkpoint and with none. Times of whole programs are wall
times from the start of the process to its end, when everything is durable. Bare Python is timed
right before what it is compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from timing import await_helpers, compile_package, table, timed

import replicate

SCRIPT = """
import json, os, sys, time

recorded, work = sys.argv[1] == "recorded", float(sys.argv[2])
times = []
if recorded:
    import replicate

    start = time.perf_counter()
    experiment = replicate.init(path=".", params={"learning_rate": 0.01})
    init = time.perf_counter() - start
for step in range(100):
    start = time.perf_counter()
    while time.perf_counter() - start < work:
        sum(range(1000))
    with open("model.bin", "wb") as file:
        file.write(os.urandom(8192))
    if recorded:
        metrics = {"loss": 1 / (step + 1), "accuracy": step / 100}
        start = time.perf_counter()
        experiment.checkpoint("model.bin", step, metrics, ("loss", "minimize"))
        times.append(time.perf_counter() - start)
if recorded:
    print(json.dumps([init, times]))
"""
PYTHON = [sys.executable, "-c"]
REPLICATE = [str(Path(sys.executable).with_name("replicate"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more rounds")
    parser.add_argument("--directory", type=Path, help="where to work; decides the file system")
    options = parser.parse_args()
    compile_package()
    line = table([("", -42), ("median", 10), ("p95", 10), ("target", 12)])
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        project = Path(directory)
        (project / "train.py").write_text(SCRIPT)
        for work in (0.0, 0.01):
            script(project, work, 15 if options.full else 5, line)
        rounds = 41 if options.full else 15
        programs(project, rounds, line)


def script(project: Path, work: float, rounds: int, line: Callable[..., None]) -> None:
    """Measure the script with `work` seconds of work before each checkpoint."""
    extra, inits, times = list[float](), list[float](), list[float]()
    for round in range(-1, rounds):
        walls = {}
        for how in ("recorded", "bare") if round % 2 else ("bare", "recorded"):
            start = time.perf_counter()
            out = run([sys.executable, "train.py", how, str(work)], project)
            walls[how] = time.perf_counter() - start
            if how == "recorded":
                init, found = json.loads(out)
                await_helpers(project)
        if round >= 0:  # the first warms up
            extra.append(walls["recorded"] - walls["bare"])
            inits.append(init)
            times += found
    what = f"{work * 1e3:.0f} ms of work each" if work else "no work between"
    print(f"100 checkpoints, {what}:")
    line("  checkpoint()", *spread(times, "ms"), "< 0.5 ms")
    line("  init()", *spread(inits, "ms"), "")
    line("  whole script, more than bare", *spread(extra, "ms"), "< 300 ms")


def programs(project: Path, rounds: int, line: Callable[..., None]) -> None:
    """Measure what is typed or imported."""
    record_twenty(project)
    print("wall time of a program:")
    bare = [*PYTHON, "pass"]
    imports = [*PYTHON, "import replicate; replicate.init"]
    listing, help = [*REPLICATE, "ls"], [*REPLICATE, "--help"]
    walls = {"bare": list[float](), "import": list[float](), "ls": list[float](), "help": []}
    for round in range(-1, rounds):
        commands = {"bare": bare, "import": imports, "help": help, "ls": listing}
        for name, command in commands.items():
            wall = timed(lambda command=command: run(command, project))
            if round >= 0:
                walls[name].append(wall)
    more = [a - b for a, b in zip(walls["import"], walls["bare"], strict=True)]
    line("  bare Python", *spread(walls["bare"], "ms"), "")
    line("  import of all that init() is, more than that", *spread(more, "ms"), "< 60 ms")
    line("  replicate --help", *spread(walls["help"], "ms"), "< 100 ms")
    line("  replicate ls, of 20 experiments", *spread(walls["ls"], "ms"), "< 250 ms")


def record_twenty(directory: Path) -> None:
    """Twenty experiments of five checkpoints, in place of what is there."""
    run(["rm", "-rf", ".replicate"], directory)
    project = replicate.Project(directory=directory)
    for number in range(20):
        params = {"learning_rate": 10.0**-number, "layers": number}
        experiment = project.init("train.py", params)
        for step in range(5):
            metrics = {"loss": 1 / (1 + step), "accuracy": step / 5}
            experiment.checkpoint(None, step, metrics, ("loss", "minimize"))
        experiment.stop()
    await_helpers(directory)


def run(command: Sequence[str], directory: Path) -> bytes:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REPLICATE_")}
    done = subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True)
    return done.stdout


def spread(times: Sequence[float], unit: str) -> tuple[str, str]:
    """Median and 95th percentile in milliseconds; of few values, the greatest."""
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"{statistics.median(times) * 1e3:.2f} {unit}", f"{p95 * 1e3:.2f} {unit}"


if __name__ == "__main__":
    main()
