"""Starting to record a run: what was asked for is checked, and its files are chosen."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replicate import process
from replicate.config import Config, Keep, parse_keep, redaction
from replicate.errors import UsageError
from replicate.model import ExperimentRecord, Origin, short, with_inputs
from replicate.project.privacy import recorded_command, without_secrets
from replicate.project.recording import Paths, Recording, Report
from replicate.project.resuming import Resumption
from replicate.recorder.client import Recorder
from replicate.recorder.console import Console
from replicate.recorder.leftovers import recover_leftovers
from replicate.records import new_id, now
from replicate.repository import Repository
from replicate.secrets import Redact, hidden_message, left_out_message, redact_values
from replicate.spool import Spool, all_spools, make_spool_root
from replicate.text import size
from replicate.tree import Listing, relative, select
from replicate.values import to_params

#: Of a large snapshot, so many files are named.
_LARGEST_NAMED = 3


def start(
    config: Config,
    repository: Repository,
    path: Paths,
    params: object,
    labels: Mapping[str, Any],
    keep: Mapping[str, int] | None,
    report: Report,
    *,
    parent: Origin | None = None,
    resumed: Resumption | None = None,
    console: Console | None = None,
    show: Report,
) -> Recording:
    """Begin to record a run, or go on with one: every mistake in the set-up is an error here, and
    none later. One that is resumed keeps its labels and its parent, and its params unless there
    are new ones.

    Raises a ReplicateError. When it returns, the run's files are copied and a helper saves them.
    """
    values, hidden = redact_values(to_params(params), config.allow_secrets)
    paths = _relative_paths(config.directory, path, config.directory)
    listing, secret = None, list[str]()
    if paths is not None:
        given = _as_tuple(paths)
        listing = select(config.directory, given, use_ignore_files=True)
        listing, secret = without_secrets(config.directory, listing, given, config.allow_secrets)
    redact = redaction(config.allow_secrets)
    labels = _labels(labels, config, redact)
    kept = config.keep if keep is None else _checked_keep(keep)
    online = not repository.backend.remote or config.mode == "online"
    spools = _spools(repository)
    if not repository.backend.remote:
        repository.create()
        for message in recover_leftovers(repository):
            report(message)
    record = ExperimentRecord(
        id=resumed.experiment.id if resumed else new_id(),
        created=now(),
        params=resumed.experiment.params if resumed and params is None else values,
        user=config.user or process.user(),
        host=config.host or process.host(),
        command=recorded_command(config, hidden),
        path=paths,
        tree=None,
        parent=parent,
        **labels,
    )
    compress = repository.compresses(config.compression)
    settings = {
        "repository": repository.url,
        "directory": str(config.directory),
        "compress": compress,
        "max_pending": config.max_pending,
        "keep": kept and asdict(kept),
        "system_metrics": config.system_metrics,
        "online": online,
        "allow_secrets": config.allow_secrets,
    }
    recorder = Recorder(repository, Spool(spools / record.id), settings, report, console, show)
    modules = process.imported_modules(sys.modules)
    if resumed is None:
        recorder.begin(record, listing, modules)
        begun = f"Experiment {short(record.id)}"
    else:
        attempt = resumed.attempt(record)
        recorder.begin(attempt, listing, modules)
        record = with_inputs(resumed.experiment, attempt)
        begun = (
            f"Experiment {short(record.id)} goes on {resumed.describe()}: attempt {attempt.number}"
        )
    report(f"{begun} {_destination(repository, online=online, reached=recorder.reached)}")
    if hidden:
        report(hidden_message(hidden))
    if secret:
        report(left_out_message(secret))
    if repository.backend.remote:
        _remind(repository, report)
    for message in _remarks(config, listing):
        report(message)
    return Recording(record, recorder, config, modules, redact, resumed)


def _destination(repository: Repository, *, online: bool, reached: bool) -> str:
    """Where the run's data goes, as far as that is known when it begins."""
    if not online:
        return "is kept on this machine, because REPLICATE_MODE is offline"
    if not reached:
        return f"is kept on this machine until {repository.url} answers, which it has not done yet"
    return f"is saved to {repository.url}"


def _spools(repository: Repository) -> Path:
    """Where the run's spool will be."""
    if repository.spools is None:
        raise UsageError(
            "There is no directory in which to keep what is not saved yet",
            hint="Name one with REPLICATE_SPOOL.",
        )
    if repository.backend.remote:
        make_spool_root(repository.spools, repository.backend.identity)
    return repository.spools


def _remind(repository: Repository, report: Report) -> None:
    """Say that earlier runs are not saved yet, where that is not done at the start of the next."""
    left = [s for s in all_spools(repository.spools) if s.names() and not s.is_locked]
    if left:
        one = len(left) == 1
        runs = "1 earlier run is" if one else f"{len(left):,} earlier runs are"
        report(
            f"{runs} only on this machine: `replicate sync` saves {'it' if one else 'them'} to "
            f"{repository.url}"
        )


def _relative_paths(project: Path, path: Paths, base: Path) -> str | tuple[str, ...] | None:
    """What the caller passed as path, relative to the project."""
    if path is None:
        return None
    if isinstance(path, str | bytes | os.PathLike):
        return relative(project, path, base=base)
    paths = [relative(project, p, base=base) for p in path]
    if not paths:
        raise UsageError("path is an empty list", hint="Pass path=None to save no files.")
    return tuple(paths)


def _as_tuple(path: str | tuple[str, ...]) -> tuple[str, ...]:
    return (path,) if isinstance(path, str) else path


def _labels(labels: Mapping[str, Any], config: Config, redact: Redact) -> dict[str, Any]:
    """The labels that were passed, checked, and where there are none those of the environment."""
    for key in ("name", "notes", "group"):
        if labels[key] is not None and not isinstance(labels[key], str):
            raise UsageError(f"{key} must be text, not {labels[key]!r}")
    tags = labels["tags"]
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise UsageError(f"tags must be a list of texts, not {tags!r}")
    default = {"name": config.name, "notes": config.notes, "group": config.group}
    given = {key: default[key] if labels[key] is None else labels[key] for key in default}
    texts = {key: text and redact(text) for key, text in given.items()}
    return {**texts, "tags": tuple(dict.fromkeys(map(redact, (*tags, *config.tags))))}


def _checked_keep(keep: Mapping[str, int]) -> Keep:
    try:
        return parse_keep(keep)
    except ValueError as error:
        raise UsageError(f"keep must be {error}, not {keep!r}") from None


def _remarks(config: Config, listing: Listing | None) -> list[str]:
    """What a person should know of a snapshot: it is large, or leaves things out."""
    if listing is None:
        return []
    remarks = []
    if listing.size > config.max_snapshot_size:
        largest = sorted(listing.selected, key=lambda s: -s.size)[:_LARGEST_NAMED]
        names = ", ".join(f"{s.path} ({size(s.size)})" for s in largest)
        remarks.append(
            f"The run's files are large: {size(listing.size)} in {len(listing.selected):,} "
            f"files, the largest {names}. List what should be left out in .replicateignore."
        )
    if listing.left_out:
        remarks.append("Not saved: " + "; ".join(listing.left_out))
    return remarks
