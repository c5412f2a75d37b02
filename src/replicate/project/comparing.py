"""The two sides of a comparison, as a repository has them."""

from __future__ import annotations

from replicate.diff import FileSide, Side
from replicate.errors import OfflineError
from replicate.model import CheckpointRecord, ExperimentRecord
from replicate.project.lookup import Picked
from replicate.repository import Repository
from replicate.tree import reader


def side(repository: Repository, picked: Picked) -> Side:
    """What a checkpoint is compared by; of an experiment without one, its inputs."""
    checkpoint = picked.checkpoint
    return Side(
        picked.experiment,
        checkpoint,
        code=_files(repository, picked.experiment),
        outputs=_files(repository, checkpoint) if checkpoint else {},
    )


def _files(
    repository: Repository, of: ExperimentRecord | CheckpointRecord
) -> dict[str, FileSide] | None:
    """The files that were saved; None where that cannot be told, as they are not saved yet, or the
    repository may not be asked."""
    ref = of.tree_ref
    if ref is None:
        return {} if of.saved or of.path is None else None
    backend = repository.objects(ref.packs)
    try:
        files = repository.tree(*ref).files
    except OfflineError:
        return None
    return {
        path: FileSide(entry.hash, entry.size, entry.mode, reader(backend, entry))
        for path, entry in files.items()
    }
