"""The two sides of a comparison, as a repository has them."""

from __future__ import annotations

from replicate.diff import FileSide, Side
from replicate.model import TreeRef
from replicate.project.lookup import Picked
from replicate.repository import Repository
from replicate.tree import reader


def side(repository: Repository, picked: Picked) -> Side:
    """What a checkpoint is compared by; of an experiment without one, its inputs."""
    checkpoint = picked.checkpoint
    return Side(
        picked.experiment,
        checkpoint,
        code=_files(repository, picked.experiment.tree_ref),
        outputs=_files(repository, checkpoint.tree_ref if checkpoint else None),
    )


def _files(repository: Repository, ref: TreeRef | None) -> dict[str, FileSide]:
    if ref is None:
        return {}
    backend = repository.objects(ref.packs)
    return {
        path: FileSide(entry.hash, entry.size, entry.mode, reader(backend, entry))
        for path, entry in repository.tree(*ref).files.items()
    }
