"""Saving large files and getting them back, next to `cp`: `python benchmarks/bench_storage.py`.

    python benchmarks/bench_storage.py [--full] [--size 1GiB] [--rounds 3] [--directory DIR]

Without --full the files have 128 MiB and there are few rounds. Every round writes a new file of
float32 noise (nothing repeats, so nothing is saved by storing it once) and waits until it is on
the disk; it is then in the page cache. Right before each timing `cp` of the same file is timed
twice, and the faster one counts. Times and ratios are medians over
the rounds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from timing import MIB, await_helpers, compile_package, cp, table, timed

import replicate

UNITS = {"MiB": MIB, "GiB": 1 << 30}
COLUMNS = [("", -42), ("cp", 9), ("replicate", 9), ("ratio", 7), ("target", 7)]
Line = Callable[..., None]
Write = Callable[[Path, int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="1 GiB, more rounds, 4 GiB for memory")
    parser.add_argument("--size", type=size, help="size of a file, such as 256MiB")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--directory", type=Path, help="where to work; decides the file system")
    options = parser.parse_args()
    large = options.size or (1 << 30 if options.full else 128 * MIB)
    rounds = options.rounds or (5 if options.full else 2)
    compile_package()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        print(f"files of {large // MIB} MiB, {rounds} rounds:")
        line = table(COLUMNS)
        for kind, write in FILES.items():
            with_cp(directory, kind, write, large, rounds, line)
        with_cp(directory, ".pth, zstd", save_pth, large, rounds, line, compression="zstd")
        memory(directory, 4 << 30 if options.full else large)
        training(directory, 6 if options.full else 2)
        code(directory)


def size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([MG]iB)", text)
    if not found:
        raise argparse.ArgumentTypeError("a number and MiB or GiB, without a space")
    return int(found[1]) * UNITS[found[2]]


# ---------------------------------------------------------------- files


def noise(size: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(size // 4, dtype=np.float32)


def save_pth(path: Path, size: int) -> None:
    """A state_dict of tensors of 16 MiB."""
    parts = np.array_split(noise(size), max(1, size // (16 * MIB)))
    torch.save({f"layer{i}": torch.from_numpy(part) for i, part in enumerate(parts)}, path)


def save_npy(path: Path, size: int) -> None:
    with path.open("wb") as file:
        np.save(file, noise(size))


def save_opaque(path: Path, size: int) -> None:
    noise(size).tofile(path)


FILES: dict[str, Write] = {
    "model.pth": save_pth,
    "model.npy": save_npy,
    "model.bin": save_opaque,
}


# ---------------------------------------------------------------- next to cp


def with_cp(
    directory: Path,
    kind: str,
    write: Write,
    size: int,
    rounds: int,
    line: Line,
    *,
    compression: str = "none",
) -> None:
    """Print what saving and checking out files of one kind takes."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(rounds):
        with project(directory, compression) as (root, experiment):
            found["blocked, no lease"].append(blocked_by_copying(root, experiment, write, size))
        with project(directory, compression) as (root, experiment):
            for what, pair in save_and_check_out(root, experiment, write, size).items():
                found[what].append(pair)
    back = "2.0" if compression == "zstd" else "1.3"
    targets = {"blocked, lease": "0.05", "blocked, no lease": "1.1", "durable": "2.0"}
    for what, pairs in found.items():
        copying, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        line(
            f"{kind}: {what}",
            f"{copying * 1e3:.0f} ms",
            f"{ours * 1e3:.0f} ms" if ours > 0.01 else f"{ours * 1e3:.2f} ms",
            f"{ratio:.3f}",
            targets.get(what, back),
        )


def blocked_by_copying(
    root: Path, experiment: replicate.Experiment, write: Write, size: int
) -> tuple[float, float]:
    """Seconds of `cp`, and of checkpoint() for a file that somebody has open for writing, so that
    the kernel refuses a lease."""
    model = root / "model"
    write(model, size)
    os.sync()
    copying = cp(model)
    with model.open("r+b"):
        return copying, timed(lambda: experiment.checkpoint(model))


def save_and_check_out(
    root: Path, experiment: replicate.Experiment, write: Write, size: int
) -> dict[str, tuple[float, float]]:
    """Seconds of `cp` and of ours for each thing that a person waits for."""
    times = {}
    model, back = root / "model", root / "back"
    write(model, size)
    os.sync()
    copying, durably = cp(model), cp(model, durable=True)
    start = time.perf_counter()
    experiment.checkpoint(model)
    times["blocked, lease"] = copying, time.perf_counter() - start
    experiment.wait()
    times["durable"] = durably, time.perf_counter() - start
    checkpoint = experiment.latest()
    assert checkpoint is not None
    os.sync()
    copying = cp(model)
    times["checkout"] = copying, timed(lambda: checkpoint.checkout(back))
    assert (back / "model").stat().st_size == model.stat().st_size
    return times


@contextmanager
def project(
    directory: Path, compression: str = "none"
) -> Iterator[tuple[Path, replicate.Experiment]]:
    """A project, and an experiment that is recorded in it; both are gone afterwards."""
    root = directory / "project"
    root.mkdir()
    (root / "replicate.yaml").write_text(f"compression: {compression}\n")
    opened = replicate.Project(directory=root)
    with opened.init(path=None) as experiment:
        experiment.wait()
        yield root, experiment
    await_helpers(root)
    shutil.rmtree(root)


# ---------------------------------------------------------------- the rest


def memory(directory: Path, size: int) -> None:
    """How much memory the helper process takes to save one large file."""
    if shutil.disk_usage(directory).free < 4 * size:
        print(f"memory of the helper: not measured, {4 * size // MIB} MiB of disk are not free")
        return
    with project(directory) as (root, experiment):
        before = peak(helper())
        model = root / "model.bin"
        with model.open("wb") as file:
            for _ in range(size // (64 * MIB)):
                noise(64 * MIB).tofile(file)
        experiment.checkpoint(model)
        experiment.wait()
        more = peak(helper()) - before
    print(f"memory of the helper for {size // MIB} MiB: {more // MIB} MiB more (target < 256)")


def helper() -> Path:
    """The directory in /proc of this process's helper."""
    for status in Path("/proc").glob("[0-9]*/status"):
        parent = f"PPid:\t{os.getpid()}\n" in status.read_text()
        if parent and b"replicate.recorder.helper" in (status.parent / "cmdline").read_bytes():
            return status.parent
    raise LookupError("no helper process")


def peak(process: Path) -> int:
    """The most bytes of memory that a process has had at once."""
    found = re.search(r"VmHWM:\s*(\d+) kB", (process / "status").read_text())
    assert found
    return int(found[1]) * 1024


def training(directory: Path, rounds: int) -> None:
    """A loop that trains with one thread and saves 50 MB every 12 steps, recorded or not."""
    torch.set_num_threads(1)
    ratios, bare_times = [], []
    for round in range(-1, rounds):
        walls = {}
        for recorded in (True, False) if round % 2 else (False, True):
            with project(directory) as (root, experiment):
                walls[recorded] = timed(
                    lambda root=root, e=experiment if recorded else None: train(root, e)
                )
        if round < 0:  # it warms up
            continue
        bare_times.append(walls[False])
        ratios.append(walls[True] / walls[False])
    print(
        f"training, 50 MB every 12 steps, until all is durable: "
        f"{statistics.median(ratios):.3f} of {statistics.median(bare_times):.1f} s "
        "without replicate (target 1.10)"
    )


def train(root: Path, experiment: replicate.Experiment | None) -> None:
    torch.manual_seed(0)
    width = 2048
    model = torch.nn.Sequential(
        *(torch.nn.Linear(width, width) for _ in range(3)), torch.nn.Linear(width, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(128, width)
    for step in range(48):
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        if step % 12 == 11:
            torch.save(model.state_dict(), root / "model.pth")
            if experiment is not None:
                experiment.checkpoint(root / "model.pth", step, {"loss": loss})
    if experiment is not None:
        experiment.stop()


def code(directory: Path) -> None:
    """What a second run of a project of 1,000 files stores when one of them was changed."""
    root = directory / "code"
    for number in range(1000):
        file = root / f"package{number // 50}" / f"module{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"value = {number}\n" * 100)
    counts, times = [(0, 0)], []
    for _ in range(2):
        opened = replicate.Project(directory=root)
        start = time.perf_counter()
        with opened.init("."):
            times.append(time.perf_counter() - start)
        blobs, trees = (len(list(root.glob(f".replicate/{k}/*/*"))) for k in ("blobs", "trees"))
        counts.append((blobs, trees))
        (root / "package7" / "module350.py").write_text("value = None\n")
    blobs, trees = (new - old for new, old in zip(counts[2], counts[1], strict=True))
    assert counts[1] == (1000, 1)
    print(
        f"1,000 files, one changed: {blobs} new blob, {trees} new tree (target 1, 1); "
        f"init() took {times[1] * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
