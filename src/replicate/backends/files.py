"""Files as the local storage needs them: written durably, and failing in words.

Knows fsync, links and what an OSError means to a person. Knows nothing of keys.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from replicate.backends.base import Content
from replicate.errors import FullError, StorageError

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

# Files are synced a few at a time, so that the file system puts several into one commit. On ext4,
# against one after another: 200 files of 8 KB in 200 directories take 0.4 of the time with 8
# threads (0.45 with 4, 0.42 with 16), 64 of 4 MiB take 0.7 (0.87, 0.7). One syncfs() takes 0.1 and
# 0.94, but waits for everything that other programs have written to the same disk, which beside
# a training run can be many gigabytes.
SYNC_THREADS = 8
#: A large file is written so many bytes at a time. Linux takes as much memory in one run for a call
#: and such a run can be hard to find: to write 512 MiB by 1 MiB has taken 3 times as long as so,
#: and by 128 KiB 1.1 times.
PIECE = 512 << 10
#: So many items for each thread are begun before the result of the first is waited for.
_AHEAD = 8
# What says that a path names no file; a directory is not one.
NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

# What an OSError means


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Raise StorageError, with the path and the cause in words, in place of OSError."""
    try:
        yield
    except OSError as error:
        raise storage_error(action, path, error) from error


_WRITABLE = "Check who owns the directory and its mode; a team's needs group write (umask 002)."
_FREE = (
    "Free some space: `replicate gc` removes what nothing refers to, while a run goes on only what "
    "is an hour old. Then try again."
)
#: What says that there is no room.
FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_OTHER_KIND = "Something that is not Replicate's may be in the repository: move it away."
_CAUSES = {
    errno.ENOSPC: ("the disk is full", _FREE),
    errno.EDQUOT: ("your disk quota is used up", _FREE),
    errno.EFBIG: ("the file is larger than the file system or `ulimit -f` allows", None),
    errno.EACCES: ("permission denied", _WRITABLE),
    errno.EPERM: ("permission denied", _WRITABLE),
    errno.EROFS: ("the file system is not writable (mounted read-only)", None),
    errno.EISDIR: ("a directory is where a file should be", _OTHER_KIND),
    errno.EEXIST: ("a file is where a directory should be", _OTHER_KIND),
    errno.ENOTDIR: ("a file is where a directory should be", _OTHER_KIND),
    errno.ELOOP: ("it is a symbolic link, which a repository does not follow", _OTHER_KIND),
    errno.EXDEV: ("it is on another disk than the repository's root", None),
    errno.EIO: ("the disk reports an error", "Copy what can still be read to another disk."),
    errno.ESTALE: ("the network file system has lost the file", "Try again."),
    errno.EMFILE: ("this process has too many open files", "Raise the limit: `ulimit -n`."),
}


def storage_error(action: str, path: Path, error: OSError) -> StorageError:
    cause, hint = _cause(error)
    kind = FullError if error.errno in FULL else StorageError
    return kind(f"cannot {action} {path}: {cause}", hint=hint)


def cause_of(error: StorageError) -> str:
    """What the system has said, in words; "" where it was not the system that refused."""
    return _cause(error.__cause__)[0] if isinstance(error.__cause__, OSError) else ""


def is_too_large(error: StorageError) -> bool:
    """Whether it concerns one file alone, and will not do better next time."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EFBIG


def _cause(error: OSError) -> tuple[str, str | None]:
    return _CAUSES.get(error.errno or 0, (error.strerror or str(error), None))


# Files

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def open_no_link(path: str, flags: int) -> int:
    """An opener for `open` that does not follow a symbolic link out of the repository."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_file(path: Path, content: Content) -> None:
    """A new file `path` holds `content`, durably; its entry in the directory need not be yet."""
    with open(path, "xb", buffering=0) as file:
        write_all(file.fileno(), content)
        os.fsync(file.fileno())


class Staged:
    """A new file `path` with `content`, which is on its way to the disk: `sync` waits for that. It
    is gone again when nobody refers to this any more."""

    def __init__(self, path: Path, content: Content) -> None:
        self.path = path
        self._descriptor: int | None = os.open(path, _NEW, 0o666)
        try:
            write_all(self._descriptor, content)
            with suppress(AttributeError, OSError):  # it is only a hint, and not known everywhere
                # The system begins to write what it is to forget, and cannot forget it before.
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            self.discard()
            raise

    def sync(self) -> None:
        """The content is durable. The descriptor is the one that wrote it, which is sure to be
        told of an error that came before."""
        assert self._descriptor is not None
        try:
            os.fsync(self._descriptor)
        finally:
            self._close()

    def discard(self) -> None:
        """The file has this name no longer."""
        self._close()
        remove([self.path])

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it was never made, or the disk fails
            self.discard()


def write_all(descriptor: int, content: Content) -> None:
    with memoryview(content) as given, given.cast("B") as view:
        done = 0
        while done < len(view):
            done += os.write(descriptor, view[done:])


def write_at(descriptor: int, content: Content, offset: int) -> None:
    """Write all of `content` at `offset`, wherever the file's own position is."""
    with memoryview(content) as given, given.cast("B") as view:
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done : done + PIECE], offset + done)


def sync_directory(directory: Path) -> None:
    """The entries in `directory` are durable, as far as the system can do it."""
    if sys.platform == "win32":  # a directory cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network shares do without
            raise
    finally:
        os.close(descriptor)


def touch(path: Path) -> bool:
    """True if `path` is there and modified now; every later look at its time will see that.

    We look again after the touch: it may have met a file that a `delete` had just taken away.
    """
    try:
        os.utime(path, follow_symlinks=sys.platform == "win32")
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EISDIR if path.is_dir() else errno.ELOOP, "not a file", str(path))
    return True


def remove(paths: Iterable[Path]) -> bool:
    """None of `paths` is a file any longer; True if one was."""
    removed = False
    for path in paths:
        with suppress(*NO_FILE):
            path.unlink()
            removed = True
    return removed


def regular_file(path: Path) -> os.stat_result | None:
    try:
        found = path.lstat()
    except NO_FILE:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def several(
    work: Callable[[T], R], items: Iterable[T], threads: int = SYNC_THREADS, ahead: int = 0
) -> list[R]:
    """`work` of each item, in their order, a few at a time. The first failure is raised."""
    return list(each(work, items, threads, ahead))


def each(
    work: Callable[[T], R], items: Iterable[T], threads: int = SYNC_THREADS, ahead: int = 0
) -> Generator[R, None, None]:
    """As `several`, while it goes on. After a failure nothing more is begun. So many items as
    `ahead` says, or some for each thread, are taken before the result of the first is waited for:
    what is only begun takes memory."""
    items = iter(items)
    first = list(islice(items, 2))
    if len(first) < 2:
        yield from map(work, first)
        return
    items = chain(first, items)
    try:
        # It costs 8 ms, which a training script that only spools need not pay.
        from concurrent.futures import ThreadPoolExecutor
    except RuntimeError:  # the interpreter is shutting down, as below
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads)  # it starts no more than there are items
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            try:
                begun.append(pool.submit(work, item))
            except RuntimeError:  # the interpreter is shutting down, and starts no thread any more
                yield from (begun.popleft().result() for _ in range(len(begun)))
                yield work(item)
            if len(begun) > (ahead or _AHEAD * threads):
                yield begun.popleft().result()
        yield from (begun.popleft().result() for _ in range(len(begun)))
    finally:
        pool.shutdown(cancel_futures=True)
