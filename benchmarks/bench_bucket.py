"""Saving large files to a bucket and getting them back, next to obstore's own put and get:
`python benchmarks/bench_bucket.py [--size 1GiB] [--rounds 3]`.

Both sides use the same S3 server on this machine, one right after the other, with the same bytes:
float32 noise in a `.npy`, raw and as `compression: auto` stores it in a bucket. *saved* is from the
call of `checkpoint()` until `wait()` returns, *blocked* the call alone, next to the same call on a
repository on disk. Speeds are medians over the rounds; the server takes most of the time, and the
processor that it shares with what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import obstore
from bench_storage import size
from obstore.store import S3Store
from timing import MIB, compile_package, ready_memory, table, timed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers import Server, serve_ministack

SAVE = """
import json, sys, time
import replicate

experiment = replicate.init(path=None, console=False)
experiment.wait()
start = time.perf_counter()
experiment.checkpoint("model.npy", step=0)
blocked = time.perf_counter() - start
experiment.wait()
print(json.dumps({"blocked": blocked, "saved": time.perf_counter() - start, "id": experiment.id}))
"""
COLUMNS = [("", -28), ("obstore", 10), ("replicate", 10), ("speed", 7), ("target", 7)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=size, default=256 * MIB, help="such as 1GiB")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    compile_package()
    with tempfile.TemporaryDirectory() as name, serve_ministack(Path(name)) as server:
        os.environ |= server.environment
        print(f"{options.size // MIB} MiB, {options.rounds} rounds:")
        line = table(COLUMNS)
        for compression in ("none", "auto"):
            measured = [
                one_round(server, Path(name), options.size, compression)
                for _ in range(options.rounds)
            ]
            show(line, compression, measured)


def one_round(server: Server, directory: Path, size: int, compression: str) -> dict[str, float]:
    """Seconds of each step, with a new file and a new bucket."""
    project = Path(tempfile.mkdtemp(dir=directory))
    url = server.new_bucket()
    (project / "replicate.yaml").write_text(f"repository: {url}\ncompression: {compression}\n")
    model = project / "model.npy"
    np.save(model, np.random.default_rng().standard_normal(size // 4, dtype=np.float32))
    bucket, _, root = url.removeprefix("s3://").partition("/")
    store = S3Store(bucket, prefix=root, client_options={"allow_http": True})
    # In parts, as it does by default; this server takes long to put them together.
    seconds = {"put": timed(lambda: obstore.put(store, "raw", model))}
    environment = os.environ | {
        "XDG_STATE_HOME": str(project / "state"),
        "REPLICATE_CACHE": str(project / "cache"),
    }

    def run(*command: str, **more: str) -> str:
        return subprocess.run(
            [sys.executable, *command],
            cwd=project,
            env=environment | more,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    on_disk = json.loads(run("-c", SAVE, REPLICATE_REPOSITORY=str(project / "disk")))
    saved = json.loads(run("-c", SAVE))
    seconds |= {"blocked": saved["blocked"], "blocked on disk": on_disk["blocked"]}
    seconds["saved"] = saved["saved"]
    ready_memory(size)
    seconds["get"] = timed(lambda: fetch(store, project / "raw"))
    seconds["checkout"] = timed(
        lambda: run("-m", "replicate", "checkout", saved["id"], "-o", "out", "--force")
    )
    assert (project / "out" / "model.npy").stat().st_size == model.stat().st_size
    for file in (model, project / "raw", project / "out" / "model.npy"):
        file.unlink()
    return seconds


def fetch(store: S3Store, path: Path) -> None:
    """The object as a file, piece by piece."""
    with path.open("wb") as file:
        for piece in obstore.get(store, "raw").stream(min_chunk_size=4 * MIB):
            file.write(piece)


def show(line: Callable[..., None], compression: str, rounds: list[dict[str, float]]) -> None:
    pairs = defaultdict(list)
    for seconds in rounds:
        for ours, theirs in (("saved", "put"), ("checkout", "get"), ("blocked", "blocked on disk")):
            pairs[ours].append((seconds[theirs], seconds[ours]))
    for what, found in pairs.items():
        theirs, ours = (statistics.median(side) for side in zip(*found, strict=True))
        speed = statistics.median(a / b for a, b in found)
        target = "1.0" if what == "blocked" else "0.8"
        line(
            f"{what}, compression {compression}",
            f"{theirs:.4f} s" if what == "blocked" else f"{theirs:.2f} s",
            f"{ours:.4f} s" if what == "blocked" else f"{ours:.2f} s",
            f"{speed:.2f}",
            target,
        )


if __name__ == "__main__":
    main()
