"""What listing a bucket costs: seconds against a server on this machine, and requests for more
experiments than one would store to find out.

    python benchmarks/bench_remote_listing.py server --experiments 1000
    python benchmarks/bench_remote_listing.py requests --experiments 10000 100000

`server` starts ministack; it is meant when nothing is said. *raw* reads the same files with obstore
and as many threads, and does nothing with them: what is claimed is a ratio to it. *cold* has no
cache on this machine, *warm* has one, *compact* is cold with a snapshot. `requests` counts those of
the same code over a storage that makes up each experiment when it is read; a listing gets 1,000
keys with a request.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
from bench_requests import dollars
from obstore.store import S3Store
from timing import table, timed

from replicate.backends.base import Stat
from replicate.backends.location import open_backend
from replicate.blobs import hash_of
from replicate.index import Index
from replicate.maintenance import compact, compaction
from replicate.model import CheckpointRecord, ExperimentRecord, PrimaryMetric, Status, Stop
from replicate.records import Event, checkpoint_data, encode_event, encode_experiment, stop_data
from replicate.repository import Repository

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from buckets import Bucket
from servers import serve_ministack

START = datetime(2026, 1, 1, tzinfo=UTC)
PACKAGES = {f"package-{n}": f"1.{n}.0" for n in range(60)}
OLD = 1e9
THREADS = 32
COUNTED = [("experiments", 11), ("listing", -18), ("LIST", 6), ("GET", 7), ("MB", 7), ("$", 7)]
COUNTED += [("seconds here", 12)]
MEASURED = [("", -11), ("raw", 7), ("cold", 7), ("cold/raw", 8), ("warm", 7)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind")
    server = kinds.add_parser("server")
    server.add_argument("--experiments", type=int, default=1000)
    server.add_argument("--checkpoints", type=int, default=100)
    server.add_argument("--rounds", type=int, default=3)
    requests = kinds.add_parser("requests")
    requests.add_argument("--experiments", type=int, nargs="+", default=[1000, 10_000])
    requests.add_argument("--checkpoints", type=int, default=10)
    options = parser.parse_args(sys.argv[1:] or ["server"])
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
    with tempfile.TemporaryDirectory() as directory, serve_ministack(Path(directory)) as server:
        os.environ |= server.environment
        url = server.new_bucket()
        bucket, _, root = url.removeprefix("s3://").partition("/")
        store = S3Store(bucket, prefix=root, client_options={"allow_http": True})
        repository = Repository(open_backend(url, relative_to=Path()))
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
    wanted = [keys(n)[kind] for n in range(experiments) for kind in kinds]
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


def fetch(store: S3Store, key: str) -> int:
    return len(obstore.get(store, key).bytes())


def fill(store: S3Store, experiments: int, checkpoints: int) -> None:
    def put(number: int) -> None:
        at = keys(number)
        obstore.put(store, at["experiment"], inputs(number))
        obstore.put(store, at["journal"], journal(number, checkpoints))
        obstore.put(store, at["heartbeat"], b"{}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(experiments)))


# ---------------------------------------------------------------- requests


class MadeUp(Bucket):
    """A bucket with so many experiments, each made when it is read. What is written is kept."""

    def __init__(self, experiments: int, checkpoints: int) -> None:
        super().__init__()
        self.time = time.time()
        self.bytes = 0
        self._checkpoints = checkpoints
        self._numbers = {identified(n, "experiment"): n for n in range(experiments)}
        self._sizes = {"experiment": len(inputs(0)), "journal": len(journal(0, checkpoints))}

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        made = self._make(key)
        if made is None:
            data = super().get(key, start, length)
        else:
            self._count("GET", [key])
            data = made
        self.bytes += len(data)
        return data

    def _make(self, key: str) -> bytes | None:
        parts = key.split("/")
        if parts[0] != "experiments" or parts[1] not in self._numbers:
            return None
        number = self._numbers[parts[1]]
        return inputs(number) if len(parts) == 3 else journal(number, self._checkpoints)

    def _listed(self, prefix: str, after: str) -> Iterator[Stat]:
        yield from super()._listed(prefix, after)
        if prefix.startswith("experiments/"):
            one = prefix.split("/")[1]
            for id in [one] if one else sorted(self._numbers):
                for kind, key in sorted(keys(self._numbers[id]).items(), key=lambda item: item[1]):
                    yield Stat(key, self._sizes.get(kind, 100), OLD, "1")


def count(experiments: int, checkpoints: int) -> Iterator[list[str]]:
    """The requests of listings of so many experiments."""
    bucket = MadeUp(experiments, checkpoints)
    repository = Repository(bucket)
    directory = Path(tempfile.mkdtemp())

    def counted(name: str, act: Callable[[], object]) -> list[str]:
        bucket.forget()
        bucket.bytes = 0
        seconds = timed(act)
        lists, gets = bucket.requests["LIST"], bucket.requests["GET"]
        size = f"{bucket.bytes / 1e6:,.1f}"
        requests = (f"{lists:,}", f"{gets:,}")
        return [
            f"{experiments:,}",
            name,
            *requests,
            size,
            f"{dollars(bucket.requests):.4f}",
            f"{seconds:.1f}",
        ]

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
