"""Coming from other tools and going to them: reading what they have stored, and writing what others
can read. Nothing here imports another tool, or runs anything of what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from replicate.errors import NotFoundError, UsageError
from replicate.interop.importing import Imported, Store, bring_all
from replicate.interop.keepsake import KeepsakeRepository
from replicate.interop.mlflow_stores import MlflowDatabase, MlflowFiles
from replicate.interop.replica import ReplicateRepository
from replicate.maintenance import Outcome

__all__ = ["Imported", "Outcome", "Store", "bring_all", "recognise"]


class _Kind(Protocol):
    """A kind of store."""

    def __call__(self, path: Path) -> Store: ...

    def recognises(self, path: Path) -> bool:
        """Whether there is one at this path."""
        ...


_KINDS: tuple[_Kind, ...] = (ReplicateRepository, KeepsakeRepository, MlflowDatabase, MlflowFiles)
_BUCKETS = ("s3://", "gs://", "az://")
#: Where a project's directory has what it has, if the directory itself is nothing known.
_PLACES = (".replicate", ".replicate/storage", ".keepsake", "mlflow.db", "mlruns")


def recognise(source: str, *, but: str | None = None) -> Store:
    """The store that is at a path, or in the project directory that it names, or the repository at
    a bucket's URL.

    `but` is the URL of a repository that is not looked for. Raises NotFoundError when there is
    nothing that can be imported, and UsageError when there are several.
    """
    if source.startswith(_BUCKETS):
        return ReplicateRepository(source)
    path = Path(_plain(source)).expanduser().absolute()
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    found = _stores(path)
    if not found:
        found = [s for name in _PLACES if (path / name).exists() for s in _stores(path / name)]
        found = [store for store in found if but is None or str(store.path) != but]
    if len(found) > 1:
        raise UsageError(
            f"{path} has several stores that can be imported",
            hint=f"Name one of them: {', '.join(str(store.path) for store in found)}",
        )
    if not found:
        raise NotFoundError(
            f"{path} is nothing that can be imported",
            hint="It can be a Keepsake or a Replicate repository, an MLflow file store (mlruns), "
            "or an MLflow SQLite database (mlflow.db).",
        )
    return found[0]


def _plain(source: str) -> str:
    """The path in what other tools call the place: sqlite:///mlflow.db, file:///home/me/mlruns."""
    for scheme in ("sqlite:///", "file://"):
        if source.startswith(scheme):
            return source.removeprefix(scheme)
    if "://" in source:
        raise UsageError(
            f"{source} is no path on this machine", hint="Copy it here first, then import the copy."
        )
    return source


def _stores(path: Path) -> list[Store]:
    return [kind(path) for kind in _KINDS if kind.recognises(path)][:1]
