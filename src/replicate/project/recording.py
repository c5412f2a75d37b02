"""Starting to record a run, and the calls of a training script once it has started."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from replicate import process
from replicate.config import Config, Keep, parse_keep, redaction
from replicate.errors import ReplicateError, UsageError
from replicate.model import (
    CheckpointRecord,
    ExceptionInfo,
    ExperimentRecord,
    Goal,
    Origin,
    PrimaryMetric,
    Status,
    Stop,
    Value,
    short,
    with_inputs,
)
from replicate.project.privacy import recorded_command, without_secrets
from replicate.project.resuming import Resumption
from replicate.recorder.client import Recorder
from replicate.recorder.console import Console
from replicate.recorder.leftovers import recover_leftovers
from replicate.records import new_id, now
from replicate.repository import Repository
from replicate.secrets import (
    Redact,
    hidden_message,
    left_out_message,
    redact_values,
)
from replicate.spool import Spool, all_spools, make_spool_root
from replicate.tree import Listing, relative, select
from replicate.values import to_params, to_value

Report = Callable[[str], None]
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
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
    recorder = Recorder(repository, Spool(spools / record.id), settings, report, console)
    modules = process.imported_modules(sys.modules)
    if resumed is None:
        recorder.begin(record, listing, modules)
        report(f"Experiment {short(record.id)} is saved to {repository.url}")
    else:
        attempt = resumed.attempt(record)
        recorder.begin(attempt, listing, modules)
        record = with_inputs(resumed.experiment, attempt)
        report(
            f"Experiment {short(record.id)} goes on {resumed.describe()}: attempt "
            f"{attempt.number} is saved to {repository.url}"
        )
    if hidden:
        report(hidden_message(hidden))
    if secret:
        report(left_out_message(secret))
    if repository.backend.remote:
        _remind(repository, report)
    for message in _remarks(config, listing):
        report(message)
    return Recording(record, recorder, config, modules, redact, resumed)


def _spools(repository: Repository) -> Path:
    """Where the run's spool will be."""
    if repository.spools is None:
        raise UsageError(
            "There is no directory in which to keep what is not saved yet",
            hint="Name one with REPLICATE_SPOOL.",
        )
    if repository.backend.remote:
        make_spool_root(repository.spools, repository.url)
    return repository.spools


def _remind(repository: Repository, report: Report) -> None:
    """Say that earlier runs are not saved yet, where that is not done at the start of the next."""
    left = [s for s in all_spools(repository.spools) if s.names() and not s.is_locked]
    if left:
        runs = "1 earlier run is" if len(left) == 1 else f"{len(left)} earlier runs are"
        report(f"{runs} only on this machine: `replicate sync` saves them to {repository.url}")


def _relative_paths(project: Path, path: Paths, base: Path) -> str | tuple[str, ...] | None:
    """What the caller passed as path, relative to the project."""
    if path is None:
        return None
    if isinstance(path, str | os.PathLike):
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
        names = ", ".join(f"{s.path} ({s.size / 1e6:,.0f} MB)" for s in largest)
        remarks.append(
            f"The run's files are large: {listing.size / 1e6:,.0f} MB in {len(listing.selected):,} "
            f"files, the largest {names}. List what should be left out in .replicateignore."
        )
    if listing.left_out:
        remarks.append("Not saved: " + "; ".join(listing.left_out))
    return remarks


class Recording:
    """A run that is being recorded. None of its methods raises into the training script."""

    def __init__(
        self,
        record: ExperimentRecord,
        recorder: Recorder,
        config: Config,
        modules: list[str],
        redact: Redact,
        resumed: Resumption | None = None,
    ) -> None:
        self.record = record
        self.resumed = resumed
        #: The checkpoints that were made, whether or not they are saved.
        self.made: list[CheckpointRecord] = []
        self._recorder = recorder
        self._project = config.directory
        self._allowed = config.allow_secrets
        self._redact = redact
        self._modules = set(modules)
        after = resumed.from_step if resumed else None
        self._next_step: int | float = 0 if after is None else after + 1
        atexit.register(self._stop_at_exit)

    def checkpoint(
        self, path: Paths, step: Any, metrics: Mapping[str, Any] | None, primary_metric: Any
    ) -> str | None:
        """Save a checkpoint and return its id; None when even its metrics could not be saved."""
        if self._recorder.stopped:
            self._recorder.report("checkpoint() was called after stop(): it is not recorded")
            return None
        paths, listing = self._listing(path)
        record = CheckpointRecord(
            id=new_id(),
            experiment=self.record.id,
            created=now(),
            step=self._step(step),
            path=paths,
            tree=None,
            metrics=self._metrics(metrics),
            primary_metric=self._primary_metric(primary_metric),
        )
        self._recorder.checkpoint(record, listing)
        if self.remote:
            self.made.append(replace(record, size=listing.size if listing else None))
        return record.id

    def log(self, metrics: Any, step: Any) -> None:
        """See `Recorder.log`."""
        self._recorder.log(metrics, step)

    @property
    def stopped(self) -> bool:
        """Whether the run has ended."""
        return self._recorder.stopped

    @property
    def remote(self) -> bool:
        """See `Recorder.remote`."""
        return self._recorder.remote

    def edit(self, kind: str, change: Mapping[str, Value]) -> None:
        """See `Recorder.edit`."""
        self._recorder.edit(kind, change)

    def wait(self) -> bool:
        """See `Recorder.wait`."""
        return self._recorder.wait()

    def stop(self, error: BaseException | None = None, *, at_exit: bool = False) -> None:
        """Record that the run has ended, by `error` if there is one, and wait until it is saved."""
        if self._recorder.stopped:
            return
        imported = set(process.imported_modules(sys.modules))
        if imported - self._modules:
            self._recorder.packages(sorted(imported - self._modules))
        self._recorder.stop(_stop(error, self._redact), at_exit=at_exit)
        if not at_exit:
            atexit.unregister(self._stop_at_exit)

    def _stop_at_exit(self) -> None:
        """The script is over. The interpreter keeps the exception that ended it, if one did; at a
        prompt that is only the last one that a person has seen."""
        interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
        error = None if interactive else getattr(sys, "last_value", None)
        self.stop(error, at_exit=True)

    # ------------------------------------------------------------ what was passed, as values

    def _listing(self, path: Paths) -> tuple[str | tuple[str, ...] | None, Listing | None]:
        """The checkpoint's files. A path that cannot be saved is reported, the others are saved."""
        if path is None:
            return None, None
        found = []
        try:
            given = [path] if isinstance(path, str | os.PathLike) else list(path)
        except Exception:  # any object may raise when it is taken apart
            given = []
            self._recorder.problem(f"path must be text or a list of texts, not {_shown(path)}")
        for one in given:
            try:
                found.append(self._locate(one))
            except (ReplicateError, OSError, TypeError, ValueError) as error:
                self._recorder.problem(f"A checkpoint lacks files: {error}")
        if not found:
            return None, None
        try:
            listing = select(self._project, found, use_ignore_files=False)
            listing, secret = without_secrets(self._project, listing, found, self._allowed)
        except (ReplicateError, OSError) as error:
            self._recorder.problem(f"A checkpoint lacks files: {error}")
            return None, None
        if secret:
            self._recorder.problem(left_out_message(secret))
        if listing.left_out:
            self._recorder.problem("Not saved: " + "; ".join(listing.left_out))
        single = isinstance(path, str | os.PathLike)
        return (found[0] if single else tuple(found)), listing

    def _locate(self, path: str | os.PathLike[str]) -> str:
        """A script names files from where it runs; from the project's directory will do, too."""
        here = Path.cwd()
        in_project = not os.path.lexists(here / path) and os.path.lexists(self._project / path)
        return relative(self._project, path, base=self._project if in_project else here)

    def _step(self, step: Any) -> int | float:
        """The step as a number; counted on from the last one when it is left out."""
        if step is not None:
            try:
                value = to_value(step, "step")
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._next_step = value + 1
                    return value
            except Exception:  # any object may raise when it is asked for its value
                pass
            self._recorder.problem(f"step must be a number, not {_shown(step)}: it was counted")
        value = self._next_step
        self._next_step = value + 1
        return value

    def _metrics(self, metrics: Any) -> dict[str, Value]:
        if metrics is None:
            return {}
        if not isinstance(metrics, Mapping):
            self._recorder.problem(f"metrics must be a dict, not {type(metrics).__name__}")
            return {}
        values: dict[str, Value] = {}
        for name, value in metrics.items():
            try:
                values[str(name)] = to_value(value, f"metrics[{name!r}]")
            except Exception as error:  # any object may raise when it is asked for its value
                self._recorder.problem(f"A metric was not recorded: {error}")
        return values

    def _primary_metric(self, primary: Any) -> PrimaryMetric | None:
        if primary is None:
            return None
        try:
            name, goal = primary
            if isinstance(name, str) and goal in get_args(Goal):
                return PrimaryMetric(name, goal)
        except Exception:  # any object may raise when it is taken apart
            pass
        self._recorder.problem(
            f'primary_metric must be (name, "minimize") or (name, "maximize"), not '
            f"{_shown(primary)}"
        )
        return None


def _shown(value: object) -> str:
    """The value as a message names it, of whatever kind it is."""
    try:
        return repr(value)[:80]
    except Exception:
        return f"a {type(value).__name__}"


def _stop(error: BaseException | None, redact: Redact) -> Stop:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return Stop(now(), Status.FINISHED)
    text = "".join(traceback.format_exception(error))
    try:
        message = str(error)
    except Exception:
        message = ""
    info = ExceptionInfo(type(error).__qualname__, redact(message), redact(text))
    if isinstance(error, KeyboardInterrupt):
        return Stop(now(), Status.KILLED, info, signal="SIGINT")
    return Stop(now(), Status.FAILED, info)


#: The id of every run that nobody keeps.
UNRECORDED = "0" * 64


def unrecorded(config: Config, params: object) -> ExperimentRecord:
    """The record of a run that nobody keeps: of another rank, or with recording switched off."""
    empty = ExperimentRecord(
        id=UNRECORDED,
        created=now(),
        params={},
        user=config.user or process.user(),
        host=config.host or process.host(),
        command="",
        path=None,
        tree=None,
    )
    return replace(empty, params=to_params(params))
