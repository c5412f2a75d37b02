"""Saving experiments without a training script, as its recorder does: for tests that need many, or
need them at an exact moment."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from backend_contract import next_tick
from replicate.backends.base import Backend
from replicate.backends.local import LocalBackend
from replicate.errors import DamagedError
from replicate.model import Attempt, CheckpointRecord, ExperimentRecord, PrimaryMetric, Status, Stop
from replicate.records import attempt_data, checkpoint_data, new_id, now, stop_data
from replicate.repository import Repository
from replicate.tree import Source, add_tree, reader

Files = Mapping[str, bytes]


class Run:
    """An experiment that is being recorded, step by step."""

    def __init__(self, repository: Repository, code: Files | None = None) -> None:
        self.repository = repository
        self.id = new_id()
        self.journal = repository.journal(self.id, new_id()[:16])
        record = ExperimentRecord(
            id=self.id,
            created=now(),
            params={},
            user="ada",
            host="lovelace",
            command="train.py",
            path="." if code else None,
            tree=store(repository, code) if code else None,
        )
        repository.create()
        repository.create_experiment(record)

    def checkpoint(self, files: Files, loss: float = 1.0) -> str:
        """Save a checkpoint and return its id."""
        return self.commit(store(self.repository, files), loss)

    def commit(self, tree: str, loss: float = 1.0, packs: tuple[str, ...] = ()) -> str:
        """Write the journal line of a checkpoint whose files are stored."""
        record = CheckpointRecord(
            id=new_id(),
            experiment=self.id,
            created=now(),
            step=self.journal.count,
            path="model.pth",
            tree=tree,
            packs=packs,
            metrics={"loss": loss},
            primary_metric=PrimaryMetric("loss", "minimize"),
        )
        self.journal.append([("checkpoint", record.created, checkpoint_data(record))])
        return record.id

    def beat(self) -> None:
        """Say that the run is alive."""
        self.repository.beat(self.id, 10.0, {self.journal.writer: self.journal.count})

    def resume(self, step: int) -> None:
        """Begin a second attempt, which goes on after that step."""
        attempt = Attempt(
            number=2,
            created=now(),
            params={},
            user="ada",
            host="lovelace",
            command="train.py",
            path=None,
            tree=None,
            from_step=step,
        )
        journal = self.repository.journal(self.id, new_id()[:16], attempt=2)
        journal.append([("attempt", attempt.created, {**attempt_data(attempt), "id": new_id()})])

    def stop(self) -> None:
        """End the run; whatever happens next happens later."""
        stop = Stop(now(), Status.FINISHED)
        self.journal.append([("stop", stop.time, stop_data(stop))])
        next_tick(self.repository.backend)


def finished(repository: Repository, *checkpoints: Files, code: Files | None = None) -> str:
    """A run that has ended, with these checkpoints; its id."""
    run = Run(repository, code)
    for files in checkpoints:
        run.checkpoint(files)
    run.stop()
    return run.id


def store(repository: Repository, files: Files, *, compress: bool = False) -> str:
    """Store blobs and a tree that nothing refers to yet; the tree's hash."""
    batch = repository.batch(compress=compress)
    sources = [Source(path, view=memoryview(data)) for path, data in files.items()]
    tree, _ = add_tree(batch, sources, None)
    batch.flush()
    return tree


def garbage(repository: Repository, files: Files) -> None:
    """Store what nothing will ever refer to; whatever happens next happens later."""
    store(repository, files)
    next_tick(repository.backend)


def contents(repository: Repository, checkpoint: CheckpointRecord) -> dict[str, bytes]:
    """All files of a checkpoint. Raises DamagedError when any byte of them is not there."""
    assert checkpoint.tree is not None
    files = repository.tree(checkpoint.tree, checkpoint.packs).files
    backend = repository.objects(checkpoint.packs)
    return {path: reader(backend, entry)() for path, entry in files.items()}


def broken(repository: Repository) -> dict[str, str]:
    """What a reader can see and cannot have: by the id of a checkpoint or experiment, why. What is
    deleted by the time that it is missed is no loss."""
    found: dict[str, str] = {}
    for experiment in repository.experiments():
        if experiment.damage:
            current = repository.experiment(experiment.id)
            if current.damage and not current.deleted:
                found[experiment.id] = current.damage[0]
        for checkpoint in experiment.checkpoints:
            try:
                contents(repository, checkpoint)
            except DamagedError as error:
                current = repository.experiment(experiment.id)
                if not current.deleted and checkpoint in current.checkpoints:
                    found[checkpoint.id] = str(error)
    return found


def local(directory: Path) -> Repository:
    """A repository on disk."""
    repository = Repository(LocalBackend(directory))
    repository.create()
    return repository


def objects(backend: Backend) -> dict[str, int]:
    """Sizes of all that is stored of trees and blobs."""
    return {s.key: s.size for prefix in ("blobs/", "trees/") for s in backend.list(prefix)}


def age(repository: Repository, seconds: float, prefix: str = "") -> None:
    """Make everything on disk as if it had been written so much earlier."""
    for stat in list(repository.backend.list(prefix)):
        path = Path(repository.url, stat.key)
        os.utime(path, (time.time() - seconds,) * 2)
