"""Another repository of Replicate, as something to import from: its experiments are brought as by a
`pull`, in the way that `maintenance` knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from replicate.backends.location import open_backend
from replicate.errors import NotFoundError
from replicate.interop.importing import Target
from replicate.maintenance import Merge, Outcome
from replicate.repository import Repository


class ReplicateRepository:
    """The experiments of another repository, on a disk or in a bucket."""

    kind = "Replicate repository"

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._source = Repository(open_backend(str(path), relative_to=Path.cwd()))
        self._merge: Merge | None = None

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether a directory is one."""
        description = path / "repository.json"
        return description.is_file() and b'"format"' in description.read_bytes()[:64]

    def names(self) -> Sequence[str]:
        """The ids of its experiments. Raises NotFoundError."""
        if not self._source.exists():
            raise NotFoundError(f"There is no repository at {self._source.url}")
        return self._source.ids()

    def bring(self, name: str, target: Target) -> tuple[str, Outcome]:
        """See `Store.bring`."""
        if self._merge is None:
            self._merge = Merge(self._source, target.repository, compress=target.compress)
        outcome, problems = self._merge.bring(self._merge.look(name))
        for problem in problems:
            target.report(problem)
        return name, outcome
