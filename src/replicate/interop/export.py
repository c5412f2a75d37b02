"""Experiments as files that need no Replicate to be read: a directory of JSON and plain files, or
JSON lines. It knows how they are laid out; how a value looks in JSON is told by the caller, so that
it looks as it does everywhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicate.backends.files import explained
from replicate.errors import DamagedError, UnsafeTreeError, UsageError
from replicate.maintenance import Progress
from replicate.model import ExperimentRecord, Point, TreeRef, short
from replicate.repository import Repository
from replicate.tree import stage

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Forms:
    """How an experiment, with all its `checkpoints`, and a point look in JSON."""

    experiment: Callable[[ExperimentRecord], JsonObject]
    point: Callable[[Point], JsonObject]


def lines(
    repository: Repository, records: Iterable[ExperimentRecord], forms: Forms
) -> Iterator[str]:
    """A line of JSON for each experiment, with all its checkpoints and its history in it."""
    for record in records:
        history = [forms.point(point) for point in repository.history(record)]
        yield _json({**forms.experiment(record), "history": history})


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file whole or not at all. Raises StorageError."""
    partial = path.with_name(f".{path.name}.partial")
    with explained("write", path):
        try:
            with partial.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def export_directory(
    repository: Repository,
    records: Sequence[ExperimentRecord],
    target: Path,
    forms: Forms,
    progress: Progress,
) -> list[str]:
    """Write a directory for each experiment into `target`, each of them whole or not at all;
    return a sentence for each thing that is lost.

    Raises UsageError when there is something in `target`, StorageError when it cannot be written.
    """
    check_empty(target)
    problems: list[str] = []
    for number, record in enumerate(records):
        progress("experiments", number, len(records))
        partial = target / f".{record.id}.partial"
        with explained("write", target):
            partial.mkdir(parents=True)
        problems += _write_experiment(repository, record, partial, forms)
        with explained("write", target):
            os.rename(partial, target / record.id)
    return problems


def check_empty(target: Path) -> None:
    """Raise UsageError unless `target` is an empty directory, or nothing yet."""
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(
            f"{target} is there already", hint="Name a new directory, or an empty one."
        )


def _write_experiment(
    repository: Repository, record: ExperimentRecord, directory: Path, forms: Forms
) -> Iterator[str]:
    value = forms.experiment(record)
    checkpoints = value.pop("checkpoints")
    history = (_json(forms.point(point)) for point in repository.history(record))
    write_lines(directory / "experiment.json", [_json(value, indent=2)])
    write_lines(directory / "checkpoints.jsonl", map(_json, checkpoints))
    write_lines(directory / "history.jsonl", history)
    for place, (tree, packs) in _trees(record).items():
        try:
            entries = repository.tree(tree, packs).entries
            with stage(repository.objects(packs), entries, directory / place) as staged:
                staged.move_into_place()
        except (DamagedError, UnsafeTreeError) as error:
            yield f"{place} of experiment {short(record.id)} is lost: {error}"


def _trees(record: ExperimentRecord) -> dict[str, TreeRef]:
    """Where the files of an experiment go: its code, and the files of each checkpoint."""
    others = [a for a in record.attempts if a.tree != record.tree]
    trees = {"code": record.tree_ref}
    trees |= {f"attempts/{a.number}/code": a.tree_ref for a in others}
    trees |= {f"checkpoints/{c.id}": c.tree_ref for c in record.checkpoints}
    return {place: ref for place, ref in trees.items() if ref is not None}


def _json(value: JsonObject, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
