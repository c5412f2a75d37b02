"""How much of a series of checkpoints has to be stored: `python benchmarks/bench_stored.py`.

Cuts, hashes and encodes every version as the recorder does, and counts what is new. Stored is
relative to the bytes of all versions together, the first included. The options try other sizes
than the product's; `docs/decisions/0002-chunk-sizes.md` has what they gave.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from series import SERIES

from replicate import chunking, compression
from replicate.readers import Reader, opened


@dataclass
class Totals:
    """What was counted over a series, in bytes and chunks."""

    versions: int = 0
    logical: int = 0
    raw: int = 0
    compressed: int = 0
    chunks: int = 0


def measure(paths: Iterable[Path], *, compress: bool) -> Totals:
    """Store every version in a set of hashes."""
    totals, known = Totals(), set[bytes]()
    for path in paths:
        with opened(path) as reader:
            add(reader, totals, known, compress)
    return totals


def add(reader: Reader, totals: Totals, known: set[bytes], compress: bool) -> None:
    """Count one file and remember its chunks."""
    totals.versions += 1
    totals.logical += reader.size
    for chunk in chunking.cut(reader):
        totals.chunks += 1
        digest = blake3(chunk).digest()
        if digest not in known:
            known.add(digest)
            totals.raw += len(chunk)
            totals.compressed += len(compression.encode(chunk)[1]) if compress else 0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("series", nargs="*", help="part of a series' name; all when left out")
    parser.add_argument("--large-span", type=int, metavar="KIB", help="least size of own chunks")
    parser.add_argument("--grid", type=int, metavar="KIB", help="cuts within a tensor")
    parser.add_argument("--content", type=int, metavar="KIB", help="typical size without tensors")
    parser.add_argument("--raw", action="store_true", help="measure no compression")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    if chosen.large_span:
        chunking.LARGE_SPAN = chosen.large_span << 10
    if chosen.grid:
        chunking.GRID = chosen.grid << 10
    if chosen.content:
        typical = chosen.content << 10
        sizes = (typical // 4, typical, min(16 * typical, chunking.MAX_CHUNK))
        chunking.CONTENT_SIZES = ((0, sizes),)
    print(f"{'series':30}{'MB':>7}{'versions':>10}{'raw':>8}{'compressed':>12}{'chunks each':>13}")
    for name, series in SERIES.items():
        if chosen.series and not any(part in name for part in chosen.series):
            continue
        with tempfile.TemporaryDirectory() as directory:
            found = measure(series(Path(directory)), compress=not chosen.raw)
        compressed = "-" if chosen.raw else f"{found.compressed / found.logical:.3f}"
        print(
            f"{name:30}{found.logical / found.versions / 1e6:7.1f}{found.versions:10}"
            f"{found.raw / found.logical:8.3f}{compressed:>12}"
            f"{found.chunks / found.versions:13.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
