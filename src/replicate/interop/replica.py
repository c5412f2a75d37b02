"""Another repository of Replicate: its experiments are copied, each object verified on its way.

It knows which keys an experiment consists of. Journals only grow, so of one that is shorter here
the rest is added; what has been deleted there is not brought, and what was deleted here not again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from replicate.backends.base import Backend
from replicate.backends.local import LocalBackend
from replicate.blobs import read_blob, tree_key
from replicate.errors import DamagedError, KeyNotFoundError, UnsafeTreeError
from replicate.interop.importing import Outcome, Target
from replicate.maintenance.references import references
from replicate.model import ExperimentRecord, short
from replicate.records import decode_experiment
from replicate.repository import Repository

_HEARTBEAT = "heartbeat.json"


class ReplicateRepository:
    """The experiments of another repository on a disk."""

    kind = "Replicate repository"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source = Repository(LocalBackend(path))

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether a directory is one."""
        description = path / "repository.json"
        return description.is_file() and b'"format"' in description.read_bytes()[:64]

    def names(self) -> Sequence[str]:
        """The ids of its experiments."""
        return self._source.ids() if self._source.exists() else []

    def bring(self, name: str, target: Target) -> tuple[str, Outcome]:
        """See `Store.bring`."""
        record = self._source.experiment(name)
        if record.deleted:
            return name, Outcome.LEFT_OUT
        ours = target.repository.experiment(name) if target.repository.has(name) else None
        if ours is not None and ours.deleted:
            return name, Outcome.DELETED
        inputs = self._inputs(name)
        rest = dict(self._missing(name, target.repository.backend))
        if ours is not None and not rest:
            return name, Outcome.PRESENT
        for damage in record.damage:
            target.report(damage)
        self._copy_objects(record, ours, target)
        if ours is None:
            target.repository.backend.put_if_absent({f"experiments/{name}/experiment.json": inputs})
        for key, (existing, added) in rest.items():
            target.repository.backend.append(key, existing, added)
        self._copy_heartbeat(record, target)
        return name, Outcome.ADDED if ours is None else Outcome.COMPLETED

    def _inputs(self, id: str) -> bytes:
        """experiment.json, verified. Raises DamagedError."""
        key = f"experiments/{id}/experiment.json"
        name = f"{self._source.url}/{key}"
        try:
            data = self._source.backend.get(key)
        except KeyNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        decode_experiment(data, name)
        return data

    def _missing(self, id: str, backend: Backend) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
        """Each journal, or other stream, that has more lines there than here: what is here, and
        the complete lines that follow."""
        for stat in self._source.backend.list(f"experiments/{id}/"):
            if stat.key.count("/") != 3:  # not experiments/<id>/<stream>/<file>
                continue
            data = self._source.backend.get(stat.key)
            data = data[: data.rfind(b"\n") + 1]
            try:
                here = backend.get(stat.key)
            except KeyNotFoundError:
                here = b""
            here = here[: here.rfind(b"\n") + 1]
            if len(here) < len(data):
                if not data.startswith(here):
                    raise DamagedError(f"{backend.url}/{stat.key} is not the beginning of the one")
                yield stat.key, (here, data[len(here) :])

    def _copy_objects(
        self, record: ExperimentRecord, ours: ExperimentRecord | None, target: Target
    ) -> None:
        """Copy what the experiment refers to there and not yet here. What is lost is reported: the
        experiment refers to it here as it does there, and `verify` names it."""
        here = {reference.tree for reference in references(ours)} if ours else set()
        batch = target.repository.batch(compress=target.compress)
        for tree in {r.tree: None for r in references(record) if r.tree not in here}:
            try:
                entries = self._source.tree(tree).entries
            except (DamagedError, UnsafeTreeError) as error:
                target.report(f"files of experiment {short(record.id)} are lost: {error}")
                continue
            for hash, size in (blob for entry in entries for blob in entry.blobs):
                try:
                    batch.add_blob(read_blob(self._source.backend, hash, size), None)
                except DamagedError as error:
                    target.report(f"files of experiment {short(record.id)} are lost: {error}")
            batch.add_tree(self._source.backend.get(tree_key(tree)), None)
        batch.flush()

    def _copy_heartbeat(self, record: ExperimentRecord, target: Target) -> None:
        """Copy the heartbeat of a run that has ended: it counts the events. That of another would
        look fresh, and say that the run goes on."""
        key = f"experiments/{record.id}/{_HEARTBEAT}"
        if record.stop is not None and self._source.backend.stat(key) is not None:
            target.repository.backend.put(key, self._source.backend.get(key))
