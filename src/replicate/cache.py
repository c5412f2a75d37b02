"""Rows of bytes in a file of this machine's, for what can be had again at a price.

Knows SQLite, and nothing of what the rows are for. Nothing that is wrong with the file is ever
raised: what cannot be read is not there, what cannot be written is not kept, and a file that is
damaged is begun anew. A row says itself whether it is whole, since SQLite does not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")

#: How long another process may keep the file to itself before we do without it.
_PATIENCE_SECONDS = 0.5
# The large column is the last: who reads the others passes over it.
_CREATE = "CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, head BLOB, beat BLOB, ids BLOB)"
#: Primary result codes of SQLite that say nothing against the file: PERM, BUSY, LOCKED, NOMEM,
#: READONLY, INTERRUPT, IOERR, FULL, CANTOPEN.
_HARMLESS = {3, 5, 6, 7, 8, 9, 10, 13, 14}


def seal(content: bytes) -> bytes:
    """`content` with a checksum."""
    return content + zlib.crc32(content).to_bytes(4, "big")


def unseal(sealed: object) -> bytes | None:
    """What was sealed; None when these are other bytes, or something else altogether."""
    if not isinstance(sealed, bytes):
        return None
    content = sealed[:-4]
    return content if zlib.crc32(content).to_bytes(4, "big") == sealed[-4:] else None


class Cache:
    """The rows in one file, by id, for those who agree on `version`: to all others it is empty.
    Without a file nothing is kept.

    Many processes may use it at once. Each call has a connection of its own, so that one is never
    taken across a fork, and no transaction lasts longer than it takes to copy some rows.
    """

    def __init__(self, file: Path | None, version: bytes) -> None:
        self._file = file
        self._version = zlib.crc32(version) >> 1 or 1

    def read(self, *columns: str) -> dict[str, tuple[bytes | None, ...]]:
        """These columns of every row, each unsealed, or None where it is not whole."""

        def select(connection: sqlite3.Connection) -> dict[str, tuple[bytes | None, ...]]:
            if not self._is_ours(connection):
                return {}
            query = f"SELECT id, {', '.join(columns)} FROM rows"
            return {row[0]: tuple(map(unseal, row[1:])) for row in connection.execute(query)}

        return self._attempt(select) or {}

    def write(self, rows: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
        """Keep these columns of these rows; a row that is new has to have all of them."""
        self._change(
            "INSERT INTO rows (id, {names}) VALUES (?, {marks}) "
            "ON CONFLICT (id) DO UPDATE SET {sets}",
            [(id, {name: seal(value) for name, value in row.items()}) for id, row in rows],
        )

    def forget(self, ids: Iterable[str]) -> None:
        """Remove these rows."""
        self._change("DELETE FROM rows WHERE id = ?", [(id, {}) for id in ids])

    # ------------------------------------------------------------ SQLite

    def _change(self, statement: str, rows: list[tuple[str, dict[str, bytes]]]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            if not self._is_ours(connection):
                connection.execute("DROP TABLE IF EXISTS rows")
                connection.execute(f"PRAGMA user_version = {self._version}")
            connection.execute(_CREATE)
            for id, row in rows:
                names = list(row)
                query = statement.format(
                    names=", ".join(names),
                    marks=", ".join("?" for _ in names),
                    sets=", ".join(f"{name} = excluded.{name}" for name in names),
                )
                connection.execute(query, (id, *row.values()))
            connection.execute("COMMIT")

        if rows:
            self._attempt(change)

    def _is_ours(self, connection: sqlite3.Connection) -> bool:
        return bool(connection.execute("PRAGMA user_version").fetchone()[0] == self._version)

    def _attempt(self, act: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `act` makes of the file; None when that fails, whatever the reason is."""
        if self._file is None:
            return None
        try:
            import sqlite3  # some Pythons are built without it, and a training script needs none
        except ImportError:
            return None
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with closing(
                sqlite3.connect(self._file, timeout=_PATIENCE_SECONDS, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA synchronous = OFF")  # what a crash spoils is read again
                return act(connection)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF not in _HARMLESS:
                _remove(self._file)
        except OSError:
            pass  # the directory cannot be made
        except (ValueError, OverflowError, MemoryError):
            _remove(self._file)  # no length, text or number that we have written
        return None


def _remove(file: Path) -> None:
    for name in (file, Path(f"{file}-journal")):
        with suppress(OSError):
            name.unlink()
