"""Files of another tool's store on their way into a tree: those of a directory, or of a packed
archive. Whoever wrote the store is not trusted: nothing is followed, nothing is unpacked to a path,
and no file is held in memory that a batch would not hold. It knows no tool.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from replicate.errors import DamagedError, StorageError
from replicate.readers import FileReader, opened
from replicate.tree import Source
from replicate.tree.manifest import link_stays_inside, permission_bits, unsafe_path

_PIECE = 1 << 20

#: Told, in a sentence, of what is left out.
Report = Callable[[str], None]


class Files(Protocol):
    """Files that can be added to a tree, once or again."""

    def sources(self, report: Report) -> Iterator[Source]:
        """Each file and link, one at a time; what is unsafe or no file is reported and left out.

        Each has to be read before the next one is asked for. Raises DamagedError when they cannot
        be read, StorageError when there is no room for them.
        """
        ...


@dataclass(frozen=True, slots=True)
class Directory:
    """The files below `root`, whose paths get `prefix` (such as "model/") before them."""

    root: Path
    prefix: str = ""

    def listing(self) -> list[tuple[str, int]]:
        """Path and size of everything that is there, in order."""
        return sorted((path, os.lstat(file).st_size) for path, file in self._walk())

    def sources(self, report: Report) -> Iterator[Source]:
        for path, file in self._walk():
            try:
                yield from self._source(path, file, report)
            except OSError as error:
                raise DamagedError(f"{file} cannot be read: {error.strerror}") from error

    def _walk(self) -> Iterator[tuple[str, Path]]:
        for parent, directories, names in os.walk(self.root):
            links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
            for name in sorted([*names, *links]):
                file = Path(parent, name)
                yield self.prefix + file.relative_to(self.root).as_posix(), file
            directories.sort()

    def _source(self, path: str, file: Path, report: Report) -> Iterator[Source]:
        found = file.lstat()
        mode = permission_bits(found.st_mode)
        link = os.readlink(file) if stat.S_ISLNK(found.st_mode) else None
        problem = _refused(path, stat.S_ISREG(found.st_mode), link)
        if problem:
            report(f"{file} is left out: {problem}")
        elif link is not None:
            yield Source(path, "link", target=link)
        else:
            with opened(file) as reader:
                yield Source(path, "file", mode, reader=reader)


@dataclass(frozen=True, slots=True)
class Several:
    """The files of several places together."""

    parts: tuple[Files, ...]

    def sources(self, report: Report) -> Iterator[Source]:
        for part in self.parts:
            yield from part.sources(report)


@dataclass(frozen=True, slots=True)
class Archive:
    """The members of a .tar.gz, without the first component of their names.

    It is decompressed to a file without a name in `scratch`, which is gone whatever happens, and
    checked as a whole before the first member is handed out.
    """

    path: Path
    scratch: Path | None = None

    def sources(self, report: Report) -> Iterator[Source]:
        with self._decompressed() as plain:
            for member in self._members(plain):
                source = _member_source(member, member.name.partition("/")[2], plain.fileno())
                if isinstance(source, str):
                    report(f"{member.name} in {self.path} is left out: {source}")
                else:
                    yield source

    @contextmanager
    def _decompressed(self) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryFile(dir=self.scratch) as plain:
            try:
                with gzip.open(self.path) as packed:
                    shutil.copyfileobj(packed, plain, _PIECE)
                plain.flush()
            except FileNotFoundError:
                raise DamagedError(f"{self.path} is missing") from None
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DamagedError(f"{self.path} is damaged: {error}") from error
            except OSError as error:
                raise StorageError(f"Cannot unpack {self.path}: {error.strerror}") from error
            yield plain

    def _members(self, plain: IO[bytes]) -> Iterator[tarfile.TarInfo]:
        plain.seek(0)
        last: dict[str, tarfile.TarInfo] = {}  # of members with the same name the last one counts
        try:
            with tarfile.open(fileobj=plain, mode="r:") as archive:
                last.update((m.name, m) for m in archive if not m.isdir())
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise DamagedError(f"{self.path} is damaged: {error}") from error
        return iter(last.values())


def _member_source(member: tarfile.TarInfo, path: str, descriptor: int) -> Source | str:
    """The member as it goes into a tree, or why it must not."""
    link = member.linkname if member.issym() else None
    problem = _refused(path, member.isreg() and not member.issparse(), link)
    if problem:
        return problem
    if link is not None:
        return Source(path, "link", target=link)
    if member.offset_data + member.size > os.fstat(descriptor).st_size:
        return "the archive ends before it does"
    reader = FileReader(descriptor, member.size, member.offset_data)
    return Source(path, "file", permission_bits(member.mode), reader=reader)


def _refused(path: str, is_file: bool, link: str | None) -> str | None:
    """Why a file or a link at `path` cannot be taken, or None when it can."""
    if problem := unsafe_path(path):
        return problem
    if link is not None:
        return None if link_stays_inside(path, link) else "it is a link that leads outside"
    return None if is_file else "it is neither a file nor a link"
