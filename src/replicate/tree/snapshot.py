"""From files to a tree: which files a snapshot takes, and how their bytes become blobs.

Selecting happens in the training process and reads no file; adding happens in the recorder, from
copies that nobody changes any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from replicate import chunking, ignore
from replicate.backends.files import several
from replicate.blobs import Batch
from replicate.errors import NotFoundError, UsageError
from replicate.readers import MemoryReader, Reader
from replicate.tree.manifest import (
    Entry,
    Kind,
    Tree,
    encode_tree,
    link_stays_inside,
    permission_bits,
    unsafe_path,
    validate,
)

_EMPTY = memoryview(b"")
#: So many chunks are cut before the first of them is hashed: a few, as each takes memory.
_CUT_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Selected:
    """A file or link that a snapshot takes: `path` in the tree, `source` on disk."""

    path: str
    source: Path
    kind: Kind
    mode: int
    size: int
    target: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a snapshot takes, and a sentence for each thing that it cannot take."""

    selected: tuple[Selected, ...]
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all that is taken."""
        return sum(s.size for s in self.selected)


def select(root: Path, paths: Iterable[str], *, use_ignore_files: bool) -> Listing:
    """The files at and below `paths`, which are relative to `root`, with forward slashes.

    Raises NotFoundError when a path is missing and UsageError when it is outside the root. Links
    are kept as links while they stay inside `root`; one to a file outside stands for that file.
    """
    selected: dict[str, Selected] = {}
    left_out: dict[str, str] = {}
    for path in paths:
        for entry in ignore.walk(root, path, use_ignore_files):
            found = _select(root, entry)
            if isinstance(found, str):
                left_out[entry.path] = f"{entry.path}: {found}"
            else:
                selected[entry.path] = found
    return Listing(tuple(selected.values()), tuple(left_out.values()))


def _select(root: Path, entry: ignore.Entry) -> Selected | str:
    """The entry as the snapshot takes it, or why it cannot."""
    if entry.kind == "skipped" or entry.stat is None:
        return entry.problem or "it cannot be read"
    problem = unsafe_path(entry.path)
    if problem:
        return problem
    source = root / entry.path
    if entry.kind == "symlink":
        return _select_link(root, entry.path, source)
    mode = permission_bits(entry.stat.st_mode)
    return Selected(entry.path, source, "file", mode, entry.stat.st_size)


def _select_link(root: Path, path: str, source: Path) -> Selected | str:
    try:
        target = os.readlink(source)
        if link_stays_inside(path, target):
            return Selected(path, source, "link", 0o777, 0, target)
        stat = source.stat()
    except OSError:
        return "it is a link that leads nowhere"
    if not source.is_file():
        return f"it is a link to {target}, outside the project, which is not a file"
    return Selected(path, source, "file", permission_bits(stat.st_mode), stat.st_size)


def path_text(path: object) -> str:
    """A path that a script has passed, as text. Raises UsageError when it is none."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise UsageError(f"a path must be text or a pathlib.Path, not {type(text).__name__}")
    if not text:
        raise UsageError("a path is empty", hint='"." stands for the whole directory.')
    return text


def relative(root: Path, path: str | os.PathLike[str], *, base: Path) -> str:
    """`path` (relative to `base`) as a path inside `root`, with forward slashes; "." is the root.

    Raises UsageError when it is outside the root or no path at all, and NotFoundError when it does
    not exist.
    """
    whole = os.path.abspath(os.path.join(base, path_text(path)))
    if not os.path.lexists(whole):
        raise NotFoundError(f'"{path}" does not exist (looked for {whole})')
    for inside, here in _spellings(whole, str(root)):
        if inside == here:
            return "."
        if inside.startswith(here.rstrip(os.sep) + os.sep):
            return inside[len(here.rstrip(os.sep)) + 1 :].replace(os.sep, "/")
    raise UsageError(
        f'"{path}" is outside the project directory, {root}',
        hint="Save it inside the project, or copy it there before it is recorded.",
    )


def _spellings(path: str, root: str) -> Iterator[tuple[str, str]]:
    """Both as they were given, and, where that does not tell, with every link followed."""
    yield path, root
    yield os.path.realpath(path), os.path.realpath(root)


# ---------------------------------------------------------------- adding


@dataclass(frozen=True, slots=True)
class Source:
    """What goes into a tree. A file's bytes are `view`, or those of `reader`, which need last no
    longer than until the next source is asked for, or those of `saved`, which is an entry whose
    blobs are stored; `target` is a link's. `done` is told what a file has become."""

    path: str
    kind: Kind = "file"
    mode: int = 0o644
    view: memoryview = _EMPTY
    target: str = ""
    reader: Reader | None = None
    saved: Entry | None = None
    done: Callable[[Entry], None] | None = None


#: Told of a file that is left out, because it cannot be read.
Lost = Callable[[Source, OSError], None]


def add_tree(
    batch: Batch, sources: Iterable[Source], owner: Hashable, lost: Lost | None = None
) -> tuple[str, int]:
    """Queue the blobs and the manifest of `sources`; return the tree's hash and size in bytes.

    The same files give the same hash, whatever their order and wherever they were read from. Each
    is read once, when it comes. Where one cannot be read, `lost` is told; without it that is
    raised, as OSError.
    """
    entries = []
    for source in sources:
        try:
            entry = _entry(batch, source, owner)
            entries.append(entry)
            if source.done is not None:
                source.done(entry)
        except OSError as error:
            if lost is None:
                raise
            lost(source, error)
    tree = Tree(tuple(sorted(entries, key=lambda e: e.path)))
    validate(tree)
    blobs = (hash for entry in tree.entries for hash, _ in entry.blobs)
    return batch.add_tree(encode_tree(tree), owner, blobs), tree.size


def _entry(batch: Batch, source: Source, owner: Hashable) -> Entry:
    if source.kind == "link":
        return Entry(source.path, "link", target=source.target)
    if source.saved is not None:
        return replace(source.saved, path=source.path, mode=source.mode)
    reader = source.reader or MemoryReader(source.view)
    whole = blake3(max_threads=blake3.AUTO)

    def add(chunk: memoryview) -> tuple[str, int]:
        if len(chunk) < reader.size:
            whole.update(chunk)
        return batch.add_blob(chunk, owner), len(chunk)

    # Each is hashed while the next ones are read and cut.
    chunks = several(add, chunking.cut(reader), threads=1, ahead=_CUT_AHEAD)
    reader.check()
    if len(chunks) <= 1:
        hash = chunks[0][0] if chunks else batch.add_blob(b"", owner)
        return Entry(source.path, mode=source.mode, size=reader.size, hash=hash)
    hash = whole.hexdigest()
    return Entry(source.path, "file", source.mode, reader.size, hash, tuple(chunks))
