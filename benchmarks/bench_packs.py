"""Up to which size blobs should go into packs: `python benchmarks/bench_packs.py`.

Saves series of checkpoints and of code into a bucket in memory, and counts what a version costs:
objects that are put, and bytes that are stored. "often": the next version comes while the last one
is remembered; "seldom": it does not, and what has not changed is packed again.
`docs/decisions/0008-packs.md` has what this prints.
"""

from __future__ import annotations

import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from series import SERIES
from timing import MIB, table

from replicate import blobs
from replicate.backends.base import Content
from replicate.backends.memory import MemoryBackend
from replicate.repository import Repository
from replicate.tree import Source, add_tree

LIMITS = (0, 16 << 10, 64 << 10, 256 << 10)
Version = Mapping[str, bytes]


class Bucket(MemoryBackend):
    """Counts what is put."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.puts = 0

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        created = super().put_if_absent(items, fresh=fresh)
        self.puts += len(created)
        return created


def code() -> Iterator[Version]:
    """1,000 files of Python's own library; from one run to the next one of them changes."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in library.rglob("*.py") if "site-packages" not in p.parts)[:1000]
    version = {str(p.relative_to(library)): p.read_bytes() for p in files}
    for number in range(8):
        changed = list(version)[number * 100]
        version = {**version, changed: version[changed] + b"# another line\n"}
        yield version


def checkpoints(name: str, directory: Path) -> Iterator[Version]:
    for path in SERIES[name](directory):
        yield {path.name: path.read_bytes()}


def save(versions: Iterable[Version], *, often: bool) -> tuple[float, float]:
    """Objects that are put for a version, and MB that are stored."""
    bucket, recent, count = Bucket(), blobs.Recent(), 0
    for version in versions:
        recent = recent if often else blobs.Recent()
        batch = Repository(bucket).batch(compress=True, recent=recent)
        add_tree(batch, [Source(p, view=memoryview(d)) for p, d in version.items()], None)
        batch.flush()
        count += 1
    return bucket.puts / count, sum(stat.size for stat in bucket.list()) / count / MIB


def main() -> None:
    columns = [("objects put and MB stored, a version", -36), ("", -6)]
    line = table([*columns, *((f"≤ {limit >> 10} KiB", 15) for limit in LIMITS)])
    with tempfile.TemporaryDirectory() as directory:
        series = {"code, 1,000 files": list(code())}
        series |= {name: list(checkpoints(name, Path(directory))) for name in SERIES}
        for name, versions in series.items():
            for often in (True, False):
                cells = []
                for limit in LIMITS:
                    blobs._SMALL_BLOB = limit
                    blobs._SMALL_TREE = 256 << 10 if limit else -1
                    puts, size = save(versions, often=often)
                    cells.append(f"{puts:,.1f} {size:7.2f}")
                line(name, "often" if often else "seldom", *cells)


if __name__ == "__main__":
    main()
