"""What the product asks of a bucket: `python benchmarks/bench_requests.py`.

Scripts and commands as people run them, against an S3 server on loopback behind a proxy that counts
each request. `--long` saves a checkpoint each second for 1,000 seconds. The dollars are those of
S3 Standard; `docs/cloud-costs.md` has what this prints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from timing import compile_package, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fault_proxy import FaultProxy
from servers import Server, s3_environment, serve_moto

TRAIN = """
import os, sys, time
import replicate

count, size, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
experiment = replicate.init(path="." if count == 0 else None, console=False)
for step in range(count):
    with open("model.pth", "wb") as file:
        for start in range(0, size, 1 << 24):
            file.write(os.urandom(min(size - start, 1 << 24)))
    experiment.checkpoint("model.pth", step=step, metrics={"loss": 1 / (step + 1)})
    time.sleep(pause)
time.sleep(0 if count else pause)
experiment.stop()
"""
#: The files of a project, as many as there are and of such sizes: bytes.
FILES, FILE = 1000, 4000


#: What copies, the parts of an upload and looks at an object are in the bill.
BILLED = {"COPY": "PUT", "POST": "PUT", "HEAD": "GET"}
#: Dollars for 1,000 requests, S3 Standard in us-east-1. Deleting costs nothing.
PRICES = {"PUT": 0.005, "LIST": 0.005, "GET": 0.0004, "DELETE": 0.0}


def dollars(kinds: Mapping[str, int]) -> float:
    """What these requests cost."""
    return sum(PRICES[BILLED.get(kind, kind)] * n for kind, n in kinds.items()) / 1000


class Bench:
    """Projects that save into buckets of their own, and a line of the table for what each did."""

    def __init__(self, server: Server, proxy: FaultProxy, directory: Path) -> None:
        self._server = server
        self._proxy = proxy
        self._directory = directory
        self._line = table(
            [("", -44), ("PUT", 7), ("LIST", 6), ("GET", 7), ("DELETE", 7), ("dollars", 11)]
        )
        self.projects = 0

    def project(self) -> Path:
        """A new project with a bucket of its own."""
        self.projects += 1
        project = self._directory / str(self.projects)
        project.mkdir()
        (project / "replicate.yaml").write_text(f"repository: {self._server.new_bucket()}\n")
        return project

    def run(self, project: Path, *command: str) -> str:
        """Run a command in a project, with a cache of its own; what it prints."""
        environment = os.environ | s3_environment(self._proxy.endpoint)
        environment |= {
            "XDG_STATE_HOME": str(self._directory / "state"),
            "REPLICATE_CACHE": str(project / ".cache"),
        }
        done = subprocess.run(
            [sys.executable, *command],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{command} has failed: {done.stdout}{done.stderr}")
        return done.stdout

    def train(self, project: Path, count: int, size: int, pause: float) -> None:
        self.run(project, "-c", TRAIN, str(count), str(size), str(pause))
        before = -1
        while (now := len(self._proxy.requests)) != before:  # the helper outlives its trainer
            before = now
            time.sleep(3)

    def count(self, what: str, *command: str, project: Path) -> None:
        """Run a command and print what it has asked."""
        self._proxy.requests.clear()
        if command[0] == "train":
            self.train(project, int(command[1]), int(command[2]), float(command[3]))
        else:
            self.run(project, "-m", "replicate", *command)
        requests = [*self._proxy.requests]
        self.show(what, Counter(BILLED.get(r.kind, r.kind) for r in requests))
        if "--trace" in sys.argv:
            print("\n".join(f"{r.kind} {r.key}" for r in requests))

    def show(self, what: str, kinds: Counter[str]) -> None:
        counts = (f"{kinds[kind]:,}" for kind in ("PUT", "LIST", "GET", "DELETE"))
        self._line(what, *counts, f"{dollars(kinds):.6f}")


def main() -> None:
    compile_package()
    with (
        serve_moto() as server,
        closing(FaultProxy(server.endpoint)) as proxy,
        tempfile.TemporaryDirectory() as directory,
    ):
        bench = Bench(server, proxy, Path(directory))
        if "--long" in sys.argv:
            bench.count(
                "1,000 checkpoints of 8 KB, one a second",
                "train",
                "1000",
                "8000",
                "1",
                project=bench.project(),
            )
            return
        recording(bench)
        reading(bench)


def recording(bench: Bench) -> None:
    """What runs ask, from their start to their end."""
    bench.count("a run that saves nothing", "train", "0", "0", "0", project=bench.project())
    bench.count("the same for 5 minutes", "train", "0", "0", "300", project=bench.project())
    project = bench.project()
    for number in range(FILES):
        (project / f"module{number}.py").write_bytes(os.urandom(FILE // 2).hex().encode())
    for what in (f"a run with {FILES:,} files of code", "the same code again"):
        bench.count(what, "train", "0", "0", "0", project=project)
    for what, count, size, pause in (
        ("1 checkpoint of 8 KB", 1, 8000, 0.0),
        ("100 checkpoints of 8 KB in a second", 100, 8000, 0.01),
        ("1,000 checkpoints of 8 KB in 10 seconds", 1000, 8000, 0.01),
        ("60 checkpoints of 8 KB, one a second", 60, 8000, 1.0),
        ("10 checkpoints of 8 KB, one each 10 s", 10, 8000, 10.0),
        ("1 checkpoint of 1 GiB", 1, 1 << 30, 0.0),
    ):
        project = bench.project()
        bench.count(what, "train", str(count), str(size), str(pause), project=project)


def reading(bench: Bench) -> None:
    """What commands ask."""
    project = bench.project()
    for _ in range(20):
        bench.train(project, 20, 8000, 0.0)
    listed = bench.run(project, "-m", "replicate", "ls", "--json")
    (project / ".cache").rename(project / ".cache-before")
    id = json.loads(listed)[0]["id"]
    for what, *command in (
        ("ls of 20 runs, cold", "ls"),
        ("ls, warm", "ls"),
        ("checkout of a checkpoint", "checkout", id, "-o", "out"),
        ("verify", "verify"),
        ("du", "du"),
        ("gc", "gc"),
    ):
        bench.count(what, *command, project=project)


if __name__ == "__main__":
    main()
