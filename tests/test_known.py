"""A file that nobody has written to since it was saved is not read again; one that may have been
written to is, whatever it looks like."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import ProjectDirectory, content_of, linux
from replicate.readers import MemoryReader
from replicate.recorder.capture import take
from replicate.recorder.known import Known
from replicate.repository import Repository
from replicate.tree import add_tree
from saving import garbage, local, objects

pytestmark = linux

CONTENT = bytes(range(256)) * 4096
OTHER = CONTENT[::-1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return local(tmp_path / "repository")


class Counted(MemoryReader):
    """Bytes of which it is known how many were read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.asked = 0

    def read(self, start: int, length: int) -> memoryview:
        self.asked += length
        return super().read(start, length)


def header(source: Path) -> dict[str, Any]:
    """What a job says of the file, which was settled."""
    with take(source, source.with_name("spooled")) as taken:
        if taken.seal is None:
            pytest.skip(f"no read leases in {source.parent}: {taken.method}")
        return {"path": source.name, "mode": 0o644, "seal": list(taken.seal), "settled": True}


def save(repository: Repository, known: Known, file: Mapping[str, Any], content: bytes) -> int:
    """Save a file that holds `content`; how many bytes of it were read."""
    batch = repository.batch(compress=False)
    reader = Counted(content)
    tree, size = add_tree(batch, [known.source(file, reader)], None)
    batch.flush()
    (entry,) = repository.tree(tree).entries
    assert (entry.path, entry.size, size) == (file["path"], len(content), len(content))
    return reader.asked


def test_what_is_unchanged_is_read_once(repository: Repository, source: Path) -> None:
    known = Known(repository.backend)
    assert save(repository, known, header(source), CONTENT) >= len(CONTENT)
    assert save(repository, known, header(source), CONTENT) == 0
    renamed = source.rename(source.with_name("renamed"))  # which changes its ctime
    assert save(repository, known, header(renamed), CONTENT) >= len(CONTENT)


def test_the_same_bytes_under_two_names_are_read_once(repository: Repository, source: Path) -> None:
    known = Known(repository.backend)
    os.link(source, source.with_name("link"))
    assert save(repository, known, header(source), CONTENT) >= len(CONTENT)
    assert save(repository, known, header(source.with_name("link")), CONTENT) == 0


def test_a_change_that_size_and_mtime_do_not_show_is_read(
    repository: Repository, source: Path
) -> None:
    known = Known(repository.backend)
    before = source.stat()
    save(repository, known, header(source), CONTENT)
    while time.time_ns() == before.st_ctime_ns:
        pass
    with source.open("r+b") as file:
        file.write(OTHER)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_mtime_ns == before.st_mtime_ns
    assert save(repository, known, header(source), OTHER) >= len(OTHER)


def test_a_file_that_was_just_written_is_not_remembered(
    repository: Repository, source: Path
) -> None:
    known = Known(repository.backend)
    with take(source, source.with_name("spooled")) as taken:
        assert not taken.settled  # another write might come in the same tick of the clock
    file = {**header(source), "settled": False}
    assert save(repository, known, file, CONTENT) >= len(CONTENT)
    assert save(repository, known, file, CONTENT) >= len(CONTENT)


def test_a_file_without_a_lease_is_never_known(repository: Repository) -> None:
    known = Known(repository.backend)
    file = {"path": "model.pth", "mode": 0o644}
    assert save(repository, known, file, CONTENT) >= len(CONTENT)
    assert save(repository, known, file, OTHER) >= len(OTHER)


def test_what_a_collector_has_taken_meanwhile_is_read_and_stored_again(
    repository: Repository, source: Path
) -> None:
    known = Known(repository.backend)
    save(repository, known, header(source), CONTENT)
    blobs = [key for key in objects(repository.backend) if key.startswith("blobs/")]
    repository.backend.delete(blobs[:1])
    assert save(repository, known, header(source), CONTENT) >= len(CONTENT)
    assert set(blobs) <= set(objects(repository.backend))


def test_what_is_not_read_is_as_safe_from_a_collector_as_what_is(
    repository: Repository, source: Path
) -> None:
    known = Known(repository.backend)
    save(repository, known, header(source), CONTENT)
    garbage(repository, {})  # so that what happens next happens later
    before = repository.backend.clock()
    save(repository, known, header(source), CONTENT)
    assert all(stat.modified >= before for stat in repository.backend.list("blobs/"))


def test_a_run_that_saves_a_file_again_reads_none_of_it(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    size = 16 << 20
    project.write("model", os.urandom(size))
    settled = (project.path / "model").stat().st_ctime + 1.1
    process = project.start("""
        import sys, replicate
        experiment = replicate.init(path=None)
        for step in range(3):
            sys.stdin.readline()
            experiment.checkpoint("model", step=step)
            experiment.wait()
            print(step, flush=True)
        sys.stdin.readline()
    """)
    assert process.stdin is not None and process.stdout is not None
    read = []
    while time.time() < settled:
        pass
    for _ in range(3):
        process.stdin.write("go on\n")
        process.stdin.flush()
        process.stdout.readline()
        (helper,) = project.helpers()
        io = Path(f"/proc/{helper}/io").read_text()
        read.append(int(io.split()[1]))  # rchar
    process.communicate("end\n")
    assert read[0] > size > 4 * (read[2] - read[0])
    record = project.record()
    assert len({c.tree for c in record.checkpoints}) == 1
    assert (
        content_of(project.path)["model"]
        == project.files_of(record.checkpoints[-1].id, tmp_path / "out")["model"]
    )
