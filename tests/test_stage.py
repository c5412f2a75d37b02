"""Writing the files of a tree beside their destination, several parts at a time."""

from __future__ import annotations

import os
from pathlib import Path

from replicate.backends.memory import MemoryBackend
from replicate.blobs import Batch
from replicate.repository import Repository
from replicate.tree import Source, add_tree, stage

MIB = 1 << 20


def test_files_of_many_parts_come_out_whole_and_progress_reaches_the_end(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "model.bin": os.urandom(9 * MIB + 5),
        "small": b"a few bytes",
        "zeros": bytes(5 * MIB),
    }
    backend = MemoryBackend()
    batch = Batch(backend, compress=True)
    sources = [Source(path, view=memoryview(content)) for path, content in contents.items()]
    tree, size = add_tree(batch, sources, "run")
    batch.flush()
    entries = Repository(backend).tree(tree).entries
    told: list[tuple[int, int]] = []

    with stage(backend, entries, tmp_path, lambda *progress: told.append(progress)) as staged:
        staged.move_into_place()

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents
    assert told == sorted(told)
    assert told[-1] == (size, size)
