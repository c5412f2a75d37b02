"""What can go wrong, grouped by what the caller would do about it.

Every error carries a message that says what happened and where, and, where there is one,
a `hint` that says what to do next. Faces print both; nobody parses either.
"""

from __future__ import annotations

from collections.abc import Sequence


class ReplicateError(Exception):
    """Base of every error that this library raises on purpose."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(ReplicateError):
    """The request itself is wrong: correct the call and try again."""


class ConfigError(UsageError):
    """`replicate.yaml` or an environment variable says something that cannot be meant."""


class NotFoundError(UsageError):
    """No experiment, checkpoint or file has the name that was asked for."""


class AmbiguousIdError(UsageError):
    """A prefix matches several ids; `matches` holds one line for each."""

    def __init__(self, message: str, matches: Sequence[str], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.matches = tuple(matches)


class RepositoryError(ReplicateError):
    """The repository cannot be used as a whole: it is missing, foreign, or of a newer version."""


class StorageError(ReplicateError):
    """The backend could not read or write: full disk, permission, network. Try again later."""


class FullError(StorageError):
    """The disk is full, or the quota used up: trying again helps once something was removed."""


class OfflineError(StorageError):
    """Only the network could tell, and it is not to be used: unset `REPLICATE_MODE`."""


class RefusedError(StorageError):
    """The storage has answered, and does not let us: no such bucket, no right, wrong credentials.
    Trying again does not help before somebody has corrected that."""


class KeyNotFoundError(StorageError):
    """A key that was asked for is not in the backend."""


class DamagedError(ReplicateError):
    """Stored bytes are not what was written; the message names the key. Restore it from a copy."""


class UnsafeTreeError(ReplicateError):
    """A manifest would write outside its directory, or is hostile. Nothing was written."""
