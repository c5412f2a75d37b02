"""How long `replicate ls` takes for many experiments, and how much memory.

    python benchmarks/bench_scale.py --experiments 1000
    python benchmarks/bench_scale.py --experiments 10000 --keep /tmp/big

Each experiment has 100 checkpoints, written as a recorder writes them but without waiting for the
disk. *cold* has no index and has to decode everything; *warm* has one; *one more* is the listing
after one run has saved another checkpoint. Beside them stands a bare Python loop that decodes the
same JSON lines and checks nothing: what is claimed is a ratio to it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from timing import compile_package, table

from replicate.model import CheckpointRecord, ExperimentRecord, PrimaryMetric, Status, Stop
from replicate.records import (
    Event,
    checkpoint_data,
    encode_event,
    encode_experiment,
    encode_time,
    new_id,
    now,
    seal_document,
    stop_data,
)

BARE = """
import json, sys
from pathlib import Path
n = 0
for file in Path(sys.argv[1]).glob("experiments/*/journal/*"):
    for line in file.read_bytes().splitlines():
        n += json.loads(line)["event"] == "checkpoint"
"""
PACKAGES = {f"package-{n}": f"1.{n}.0" for n in range(60)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="make the repository here, or use it again")
    options = parser.parse_args()
    compile_package()
    with tempfile.TemporaryDirectory() as directory:
        root = options.keep or Path(directory, "repository")
        if not root.exists():
            for number in range(options.experiments):
                write_experiment(root, number, options.checkpoints)
            (root / "repository.json").write_text(
                '{"format": "replicate","version": 1,"requires": []}\n'
            )
        report(root, Path(directory, "cache"), options.rounds)


def write_experiment(root: Path, number: int, checkpoints: int) -> None:
    """One finished run of a month ago, with the bytes that a recorder would have written."""
    id, writer = new_id(), new_id()[:16]
    created = now() - timedelta(days=30) + timedelta(minutes=number)
    record = ExperimentRecord(
        id=id,
        created=created,
        params={"learning_rate": random.random(), "layers": number % 5, "seed": {"data": 1}},
        user="ada",
        host="lovelace",
        command="python train.py --lr 0.1",
        path=".",
        tree=new_id(),
        size=10_000,
        stored=100,
        packages=PACKAGES,
    )
    events = [_checkpoint(record, writer, step) for step in range(checkpoints)]
    end = created + timedelta(seconds=checkpoints)
    stop = stop_data(Stop(end, Status.FINISHED))
    events.append(Event("stop", end, writer, checkpoints, stop))
    beat = {"time": encode_time(end), "interval": 10.0, "events": {writer: len(events)}}
    directory = root / "experiments" / id
    (directory / "journal").mkdir(parents=True)
    _write(directory / "experiment.json", encode_experiment(record))
    _write(directory / "journal" / f"{writer}-0.jsonl", b"".join(map(encode_event, events)))
    _write(directory / "heartbeat.json", seal_document(beat))


def _checkpoint(experiment: ExperimentRecord, writer: str, step: int) -> Event:
    record = CheckpointRecord(
        id=new_id(),
        experiment=experiment.id,
        created=experiment.created + timedelta(seconds=step),
        step=step,
        path="model.pth",
        tree=new_id(),
        metrics={"loss": random.random(), "accuracy": random.random()},
        primary_metric=PrimaryMetric("loss", "minimize"),
        size=1_000_000,
        stored=10_000,
    )
    return Event("checkpoint", record.created, writer, step, checkpoint_data(record))


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    old = time.time() - 3600  # what was modified just now is not trusted to keep its version
    os.utime(file, (old, old))


def report(root: Path, cache: Path, rounds: int) -> None:
    ls = [sys.executable, "-m", "replicate", "ls", "-R", str(root)]
    environ = {**os.environ, "REPLICATE_CACHE": str(cache)}

    def forget() -> None:
        for file in cache.glob("index/*"):
            file.unlink()

    def one_more() -> None:
        journal = next(root.glob("experiments/*/journal/*"))
        writer = journal.name.partition("-")[0]
        lines = journal.read_bytes().splitlines()
        record = ExperimentRecord(
            id=journal.parts[-3], created=now(), params={}, user="", host="", command="",
            path=None, tree=None,
        )  # fmt: skip
        event = _checkpoint(record, writer, json.loads(lines[-1])["n"] + 1)
        _write(journal, b"\n".join([*lines, encode_event(event)]))

    line = table([("listing", -10), ("seconds", 8), ("x bare loop", 11), ("peak MiB", 9)])
    bare = statistics.median(
        _run([sys.executable, "-c", BARE, str(root)], environ)[0] for _ in range(rounds)
    )
    before: dict[str, Callable[[], None]] = {
        "cold": forget,
        "warm": lambda: None,
        "one more": one_more,
    }
    line("bare loop", f"{bare:.2f}", "1.00", "")
    for name, prepare in before.items():
        runs = []
        for _ in range(rounds):
            prepare()
            runs.append(_run(ls, environ))
        seconds = statistics.median(r[0] for r in runs)
        line(name, f"{seconds:.2f}", f"{seconds / bare:.2f}", f"{max(r[1] for r in runs):.0f}")


def _run(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Seconds that a process takes, its start included, and the most memory it had, in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return seconds, usage.ru_maxrss / unit


if __name__ == "__main__":
    main()
