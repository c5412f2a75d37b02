"""The storage contract on a file system: one file per key, with plain durable writes and no locks.

Knows directories, hard links and the order of writes. Knows nothing of what the keys are for. Two
hidden directories in the root, which no key can name, are its own: `.tmp/` has files that are
still being written, `.trash/<token>/<key>` has those that a `delete` is judging.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from uuid import uuid4

from replicate.backends.base import (
    MAX_KEY_LENGTH,
    Backend,
    Content,
    Stat,
    is_component,
    validate_key,
    validate_prefix,
)
from replicate.backends.files import (
    NO_FILE,
    Staged,
    explained,
    open_no_link,
    regular_file,
    remove,
    several,
    storage_error,
    sync_directory,
    touch,
    write_all,
    write_file,
)
from replicate.errors import DamagedError, KeyNotFoundError

if sys.platform != "win32":
    import fcntl

# Leftovers in `.tmp` and `.trash` are older than this when their process has certainly crashed.
STALE_SECONDS = 3600.0
# What file systems without hard links (exFAT, some network shares) answer to link().
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class LocalBackend(Backend):
    """A directory. It is created by the first write, so opening one to read changes nothing."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._tmp = self._root / ".tmp"
        self._trash = self._root / ".trash"
        # Directories whose own entry, and those of all above them, this process has synced.
        self._settled: set[Path] = set()
        self.url = str(self._root)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        for path in self._candidates(key):
            with (
                explained("read", path),
                suppress(*NO_FILE),
                open(path, "rb", opener=open_no_link) as file,
            ):
                available = max(0, os.fstat(file.fileno()).st_size - start)
                file.seek(start)
                return file.read(available if length is None else min(length, available))
        raise KeyNotFoundError(f"no {key} in {self.url}")

    def put(self, key: str, content: Content) -> None:
        path = self._path(key)
        temporary = self._temporary()
        with explained("write", path):
            try:
                self._prepare(path.parent)
                write_file(temporary, content)
                temporary.replace(path)
                self._sync_directories({path.parent})
            finally:
                remove([temporary])

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        paths = {key: self._path(key) for key in items}
        temporaries = {key: self._temporary() for key in items}

        def stage(key: str) -> str | None:
            with explained("write", paths[key]):
                self._prepare(paths[key].parent)
                if touch(paths[key]):
                    return None
                write_file(temporaries[key], items[key])
                return key

        try:
            absent = [key for key in several(stage, items) if key is not None]
            created = {k for k in absent if self._create(paths[k], temporaries[k], items[k])}
            # Those that existed too: whoever created them may not have come to this yet.
            self._sync_directories({path.parent for path in paths.values()})
        finally:
            with explained("write", self._tmp):
                remove(temporaries.values())
        return created

    def stage(self, key: str, content: Content) -> Staged | None:
        """Begin to write `key`, of which nothing is to be seen before `publish`; None when it is
        there, and touched. `content` is not needed any more."""
        path = self._path(key)
        with explained("write", path):
            self._prepare(path.parent)
            return None if touch(path) else Staged(self._temporary(), content)

    def publish(self, staged: Mapping[str, Staged | None]) -> set[str]:
        """What `put_if_absent` would do for these keys, all that is slow for all of them at once:
        a journalling file system waits once for many files, if that comes last."""
        absent = {key: file for key, file in staged.items() if file is not None}
        try:
            with explained("write", self._tmp):
                several(Staged.sync, absent.values())
            created = {k for k, file in absent.items() if self._create(self._path(k), file.path)}
            self._sync_directories({self._path(key).parent for key in staged})
        finally:
            with explained("write", self._tmp):
                remove(file.path for file in absent.values())
        return created

    def append(self, key: str, existing: Content, added: Content) -> None:
        path, expected = self._path(key), memoryview(existing).nbytes
        with explained("write", path):
            self._prepare(path.parent)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            with open(open_no_link(str(path), flags), "r+b", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size < expected:
                    raise DamagedError(
                        f"{path} has {size} bytes, but {expected} were written to it",
                        hint="Something else has shortened the file: restore it from a copy.",
                    )
                file.truncate(expected)  # an earlier call failed after a part of its bytes
                file.seek(expected)
                write_all(file.fileno(), added)
                getattr(os, "fdatasync", os.fsync)(file.fileno())
            if not expected:
                self._sync_directories({path.parent})

    def stat(self, key: str) -> Stat | None:
        for path in self._candidates(key):
            with explained("read", path):
                if found := regular_file(path):
                    return _stat(key, found)
        return None

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        validate_prefix(prefix, after)
        return self._walk(prefix, after)

    def outline(self, prefix: str, aside: Container[str]) -> Iterator[Stat]:
        validate_prefix(prefix, "")
        return self._walk(prefix, "", aside)

    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        paths = {key: self._path(key) for key in keys}
        with explained("delete in", self._root):
            if unless_modified_since is None:
                held = self._trashes()
                return {k for k in paths if remove([paths[k], *(trash / k for trash in held)])}
            self._sweep()
            trash = self._trash / uuid4().hex
            try:
                return {k for k in paths if self._discard(k, trash / k, unless_modified_since)}
            finally:
                self._put_back(trash)

    def clock(self) -> float:
        try:
            self._tmp.mkdir(exist_ok=True)
            os.utime(self._tmp)  # the server's time, on a network file system
            return self._tmp.stat().st_mtime
        except OSError as error:
            # Nothing is there yet, or it is not for us to write.
            if error.errno in {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS}:
                return time.time()
            raise storage_error("read the clock of", self._root, error) from error

    # Writing

    def path_of(self, key: str) -> Path:
        """Where the bytes of `key` are, if they are anywhere: for reading them in place."""
        return self._path(key)

    def _path(self, key: str) -> Path:
        return self._root / validate_key(key)

    def _temporary(self) -> Path:
        return self._tmp / uuid4().hex

    def _prepare(self, directory: Path) -> None:
        """`directory` and `.tmp` exist."""
        if new := not self._root.is_dir():
            self._root.mkdir(parents=True, exist_ok=True)
        directory.mkdir(parents=True, exist_ok=True)
        self._tmp.mkdir(exist_ok=True)
        if new:
            sync_directory(self._root.parent)

    def _create(self, path: Path, temporary: Path, content: Content | None = None) -> bool:
        """`path` is there and fresh; True when this call gave it `content`, which is `temporary`.

        The touch comes last also for a new file: whatever the age of the temporary file, a
        collector sees a key that was modified just now, or had it before and we link it again.
        """
        created = False
        with explained("write", path):
            while not touch(path):
                try:
                    self._publish(temporary, path)
                    created = True
                except FileExistsError:
                    created = False
                except FileNotFoundError:  # it was moved, for want of links, and then deleted
                    if content is None:
                        raise
                    write_file(temporary, content)
        return created

    def _publish(self, source: Path, target: Path) -> None:
        """Give `source` the name `target`, or raise FileExistsError. It may keep its own."""
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            self._rename_if_absent(source, target)

    def _rename_if_absent(self, source: Path, target: Path) -> None:
        """As `_publish`, where there are no hard links: exclusive among those who come this way."""
        if sys.platform == "win32":
            source.rename(target)  # refuses to replace
            return
        lock = os.open(self._root, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            source.rename(target)
        finally:
            os.close(lock)

    def _sync_directories(self, directories: set[Path]) -> None:
        """The entries in `directories` are durable, and so is the way to them from the root."""
        above = {
            parent
            for directory in directories
            if directory not in self._settled
            for parent in directory.parents
            if parent == self._root or self._root in parent.parents
        }

        def sync(directory: Path) -> None:
            with explained("write", directory):
                sync_directory(directory)

        several(sync, directories | above)
        self._settled |= directories

    # Reading

    def _candidates(self, key: str) -> Iterator[Path]:
        """Where the file of `key` can be: what is in the trash is being judged, not yet deleted."""
        path = self._path(key)
        yield path
        if trashes := self._trashes():
            yield from (trash / key for trash in trashes)
            yield path  # it was put back while we looked

    def _walk(self, directory: str, after: str, aside: Container[str] = ()) -> Iterator[Stat]:
        """The keys in `directory` ("" or with a final slash) that sort after `after`, in order;
        without those in directories named in `aside`, where they stand beside a file."""
        # One generator for all of it: through one for each directory every key would pass again.
        waiting = [iter(_entries(self._root, directory, aside))]
        while waiting:
            for key, entry in waiting[-1]:
                if not key.endswith("/"):
                    if key > after and (found := self._found(key, entry)):
                        yield found
                elif key > after or after.startswith(key):
                    waiting.append(iter(_entries(self._root, key, aside)))
                    break
            else:
                waiting.pop()

    def _found(self, key: str, entry: os.DirEntry[str]) -> Stat | None:
        try:
            return _stat(key, entry.stat(follow_symlinks=False))
        except FileNotFoundError:  # deleted since we read the directory
            return None
        except OSError as error:
            raise storage_error("read", self._root / key, error) from error

    # Deleting what nobody has touched
    #
    # A writer touches first and then looks whether the file still has its name (`touch`). We take
    # the name away first and then look at the time. So either the writer finds the name gone and
    # writes the key anew, or its touch came before our look and we put the file back. If we crash
    # in between, the file stays readable in the trash, and a later delete puts it back unjudged.

    def _discard(self, key: str, held: Path, limit: float) -> bool:
        """Delete `key` unless it was modified at `limit` or later; meanwhile it is `held`."""
        path = self._path(key)
        found = regular_file(path)
        if found is None or found.st_mtime >= limit:
            return False
        held.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(held)
            if held.stat().st_mtime < limit:
                held.unlink()
                return True
        except FileNotFoundError:  # another delete was faster, or has put back what we held
            return False
        self._restore(held, path)
        return False

    def _restore(self, held: Path, path: Path) -> None:
        """`path` is there again; one that was written meanwhile is newer and stays."""
        self._prepare(path.parent)
        with suppress(FileExistsError, FileNotFoundError):
            self._publish(held, path)
        sync_directory(path.parent)
        held.unlink(missing_ok=True)

    def _put_back(self, trash: Path) -> None:
        """Nothing is held in `trash` any longer, and it is gone."""
        for directory, _, names in os.walk(trash, topdown=False):
            for name in names:
                held = Path(directory, name)
                self._restore(held, self._root / held.relative_to(trash))
            with suppress(FileNotFoundError):
                Path(directory).rmdir()

    def _trashes(self) -> tuple[Path, ...]:
        try:
            return tuple(self._trash.iterdir())
        except (FileNotFoundError, NotADirectoryError):  # nothing was ever deleted here
            return ()

    def _sweep(self) -> None:
        """Undo what crashed processes have left: held files go back, temporary ones away."""
        limit = self.clock() - STALE_SECONDS
        with suppress(FileNotFoundError):  # others sweep too, and temporary files come and go
            for trash in self._trashes():
                if trash.stat().st_mtime < limit:
                    self._put_back(trash)
        self.remove_temporary(limit)

    def remove_temporary(self, limit: float, *, dry_run: bool = False) -> tuple[int, int]:
        """Remove what was being written before `limit`, which must be so long ago that nobody is
        at it any more; how many files that are, and their bytes."""
        count = size = 0
        with explained("delete in", self._tmp), suppress(FileNotFoundError):
            for temporary in self._tmp.iterdir():
                with suppress(FileNotFoundError):  # they come and go
                    found = temporary.stat()
                    if found.st_mtime < limit:
                        count, size = count + 1, size + found.st_size
                        if not dry_run:
                            temporary.unlink()
        return count, size


def _stat(key: str, found: os.stat_result) -> Stat:
    # The inode tells two files apart that `put` has written within one tick of the clock; the time
    # of the last change of any kind tells that bytes were replaced by a tool that keeps the mtime.
    version = f"{found.st_ino}-{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_size}"
    return Stat(key, found.st_size, found.st_mtime, version)


def _entries(root: Path, prefix: str, aside: Container[str]) -> list[tuple[str, os.DirEntry[str]]]:
    """The files and directories at `prefix` in the order of the keys, a directory as `name/`;
    without the directories named in `aside` where a file is.

    The final slash puts `a.json` before `a/b`, as the whole keys are. Links are not followed, and
    what has no valid key is not ours (`.tmp`, `.trash`, `.DS_Store`).
    """
    # A listing of many experiments passes here for each of its directories: no more than it takes.
    files, directories = [], []
    longest = MAX_KEY_LENGTH - len(prefix)
    try:
        with os.scandir(f"{root}/{prefix}") as entries:
            for entry in entries:
                name = entry.name
                if len(name) <= longest and is_component(name):
                    if entry.is_file(follow_symlinks=False):
                        files.append((prefix + name, entry))
                    elif entry.is_dir(follow_symlinks=False):
                        directories.append((f"{prefix}{name}/", entry))
    except NO_FILE:  # it is gone, or was never there
        return []
    except OSError as error:
        raise storage_error("list", root / prefix, error) from error
    if files and aside:
        directories = [(key, entry) for key, entry in directories if entry.name not in aside]
    found = files + directories
    found.sort(key=itemgetter(0))
    return found
