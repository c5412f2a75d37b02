"""What listing a bucket costs: seconds against a server on this machine, and requests for more
experiments than one would store to find out.

    python benchmarks/bench_remote_listing.py server --experiments 1000
    python benchmarks/bench_remote_listing.py requests --experiments 10000 100000

`server` starts ministack. *raw* reads the same files with obstore and as many threads, and does
nothing with them: what is claimed is a ratio to it. *cold* has no cache on this machine, *warm* has
one, *compact* is cold with a snapshot. `requests` counts those of the same code over a storage that
makes up each experiment when it is read; a listing gets 1,000 keys with a request.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store
from timing import table

from replicate.backends.base import Content, Stat
from replicate.backends.location import open_backend
from replicate.backends.memory import MemoryBackend
from replicate.blobs import hash_of
from replicate.index import Index
from replicate.maintenance import compact, compaction
from replicate.model import CheckpointRecord, ExperimentRecord, PrimaryMetric, Status, Stop
from replicate.records import Event, checkpoint_data, encode_event, encode_experiment, stop_data
from replicate.repository import Repository

START = datetime(2026, 1, 1, tzinfo=UTC)
PACKAGES = {f"package-{n}": f"1.{n}.0" for n in range(60)}
PAGE, OLD = 1000, 1e9
THREADS = 32
COUNTED = [("experiments", 11), ("listing", -18), ("LIST", 6), ("GET", 7), ("MB", 7), ("$", 7)]
COUNTED += [("seconds here", 12)]
MEASURED = [("", -11), ("raw", 7), ("cold", 7), ("cold/raw", 8), ("warm", 7)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    server = kinds.add_parser("server")
    server.add_argument("--experiments", type=int, default=1000)
    server.add_argument("--checkpoints", type=int, default=100)
    server.add_argument("--rounds", type=int, default=3)
    requests = kinds.add_parser("requests")
    requests.add_argument("--experiments", type=int, nargs="+", default=[1000, 10_000])
    requests.add_argument("--checkpoints", type=int, default=10)
    options = parser.parse_args()
    if options.kind == "server":
        measure(options.experiments, options.checkpoints, options.rounds)
    else:
        line = table(COUNTED)
        for experiments in options.experiments:
            for row in count(experiments, options.checkpoints):
                line(*row)


# ---------------------------------------------------------------- experiments


def identified(number: int, what: str) -> str:
    return hash_of(f"{what} {number}".encode())


def inputs(number: int) -> bytes:
    """experiment.json of one of many similar runs."""
    return encode_experiment(
        ExperimentRecord(
            id=identified(number, "experiment"),
            created=START + timedelta(minutes=number),
            params={"learning_rate": number / 1e4, "depth": number % 7, "optimizer": "adam"},
            user="ada",
            host=f"node-{number % 40}",
            command="train.py --config base.yaml",
            path=".",
            tree=identified(number // 10, "tree"),
            packages=PACKAGES,
        )
    )


def journal(number: int, checkpoints: int) -> bytes:
    """What such a run wrote: its checkpoints, and its end."""
    id, began = identified(number, "experiment"), START + timedelta(minutes=number)
    made = [
        CheckpointRecord(
            id=identified(number * 1000 + step, "checkpoint"),
            experiment=id,
            created=began + timedelta(seconds=step),
            step=step,
            path="model.pth",
            tree=identified(number * 1000 + step, "tree"),
            metrics={"loss": 1 / (step + 1), "accuracy": step / 200},
            primary_metric=PrimaryMetric("loss", "minimize"),
            size=8192,
            stored=8192,
        )
        for step in range(checkpoints)
    ]
    stop = Stop(began + timedelta(seconds=checkpoints), Status.FINISHED)
    events = [("checkpoint", c.created, checkpoint_data(c)) for c in made]
    events.append(("stop", stop.time, stop_data(stop)))
    writer = id[:16]
    return b"".join(
        encode_event(Event(kind, at, writer, n, data)) for n, (kind, at, data) in enumerate(events)
    )


def keys(number: int) -> dict[str, str]:
    """By kind, where the files of an experiment are."""
    id = identified(number, "experiment")
    names = {"console": "0", "journal": "0", "log": "0", "system": "0"}
    streams = {k: f"experiments/{id}/{k}/{id[:16]}-{n}.jsonl" for k, n in names.items()}
    own = {k: f"experiments/{id}/{k}.json" for k in ("experiment", "heartbeat")}
    return streams | own


# ---------------------------------------------------------------- seconds


def measure(experiments: int, checkpoints: int, rounds: int) -> None:
    """Seconds of listings beside those of reading the same files."""
    compaction.STALE = -60.0  # as if all had ended an hour ago
    with Server() as server:
        os.environ |= server.environment
        store = server.bucket()
        repository = Repository(open_backend("s3://bench/root", relative_to=Path()))
        repository.create()
        fill(store, experiments, checkpoints)
        line = table(MEASURED)
        line(*timings(repository, store, experiments, "no snapshot", rounds))
        compact(repository)
        line(*timings(repository, store, experiments, "compact", rounds))


def timings(
    repository: Repository, store: S3Store, experiments: int, name: str, rounds: int
) -> list[str]:
    kinds = ("experiment", "journal")
    wanted = [f"root/{keys(n)[kind]}" for n in range(experiments) for kind in kinds]
    raw, cold, warm = [], [], []
    for _ in range(rounds):
        with ThreadPoolExecutor(THREADS) as pool:
            raw.append(timed(lambda: [*pool.map(lambda key: fetch(store, key), wanted)]))
        directory = Path(tempfile.mkdtemp())
        index = Index(repository, directory)
        cold.append(timed(index.records))
        warm.append(timed(index.records))
        assert len(index.records()) == experiments
        shutil.rmtree(directory)
    best = [min(times) for times in (raw, cold, warm)]
    ratio = f"{best[1] / best[0]:.2f}"
    return [name, f"{best[0]:.2f} s", f"{best[1]:.2f} s", ratio, f"{best[2]:.2f} s"]


def timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def fetch(store: S3Store, key: str) -> int:
    return len(obstore.get(store, key).bytes())


def fill(store: S3Store, experiments: int, checkpoints: int) -> None:
    def put(number: int) -> None:
        at = keys(number)
        obstore.put(store, f"root/{at['experiment']}", inputs(number))
        obstore.put(store, f"root/{at['journal']}", journal(number, checkpoints))
        obstore.put(store, f"root/{at['heartbeat']}", b"{}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(experiments)))


class Server:
    """ministack on a free port, until the block ends."""

    def __enter__(self) -> Server:
        port = self._free_port()
        environ = {**os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
        command = [str(Path(sys.executable).with_name("ministack"))]
        self._process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if re.search("Running on", line):
                break
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        return self

    @staticmethod
    def _free_port() -> int:
        import socket

        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            return int(found.getsockname()[1])

    def bucket(self) -> S3Store:
        import boto3

        boto3.client("s3").create_bucket(Bucket="bench")
        return S3Store(
            "bench",
            endpoint=self.environment["AWS_ENDPOINT_URL"],
            client_options={"allow_http": True},
        )

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


# ---------------------------------------------------------------- requests


class MadeUp(MemoryBackend):
    """A bucket with so many experiments, each made when it is read. What is written is kept."""

    remote = True

    def __init__(self, experiments: int, checkpoints: int) -> None:
        super().__init__()
        self.url = "memory://made-up"
        self.requests: Counter[str] = Counter()
        self.bytes = 0
        self._checkpoints = checkpoints
        self._numbers = {identified(n, "experiment"): n for n in range(experiments)}
        self._sizes = {"experiment": len(inputs(0)), "journal": len(journal(0, checkpoints))}

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.requests["GET"] += 1
        made = self._make(key)
        data = super().get(key, start, length) if made is None else made
        self.bytes += len(data)
        return data

    def _make(self, key: str) -> bytes | None:
        parts = key.split("/")
        if parts[0] != "experiments" or parts[1] not in self._numbers:
            return None
        number = self._numbers[parts[1]]
        return inputs(number) if len(parts) == 3 else journal(number, self._checkpoints)

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        self.requests["PUT"] += len(items)
        return super().put_if_absent(items, fresh=fresh)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        found = [*super().list(prefix, after)]
        if prefix.startswith("experiments/"):
            one = prefix.split("/")[1]
            for id in [one] if one else sorted(self._numbers):
                for kind, key in sorted(keys(self._numbers[id]).items(), key=lambda item: item[1]):
                    found.append(Stat(key, self._sizes.get(kind, 100), OLD, "1"))
        self.requests["LIST"] += max(1, -(-len(found) // PAGE))
        return iter(found)


def count(experiments: int, checkpoints: int) -> Iterator[list[str]]:
    """The requests of listings of so many experiments."""
    bucket = MadeUp(experiments, checkpoints)
    repository = Repository(bucket)
    directory = Path(tempfile.mkdtemp())

    def counted(name: str, act: Callable[[], object]) -> list[str]:
        bucket.requests.clear()
        bucket.bytes = 0
        seconds = timed(act)
        lists, gets = bucket.requests["LIST"], bucket.requests["GET"]
        dollars = lists * 5e-6 + gets * 4e-7  # of S3 in us-east-1
        size = f"{bucket.bytes / 1e6:,.1f}"
        requests = (f"{lists:,}", f"{gets:,}")
        return [f"{experiments:,}", name, *requests, size, f"{dollars:.4f}", f"{seconds:.1f}"]

    index = Index(repository, directory)
    yield counted("cold", index.records)
    yield counted("warm", index.records)
    compact(repository)
    index = Index(repository, directory / "compacted")
    yield counted("cold, compacted", index.records)
    yield counted("warm, compacted", index.records)
    for number in range(100):
        repository.announce(identified(number, "experiment"))
    yield counted("100 changed", index.records)
    some = identified(200_001, "checkpoint")[:7]
    yield counted("a checkpoint's id", lambda: index.matches([some]))
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
