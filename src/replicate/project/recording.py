"""A run that is being recorded: the calls of a training script, and what it passed as values."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from replicate import process
from replicate.config import Config
from replicate.errors import ReplicateError
from replicate.model import (
    CheckpointRecord,
    ExceptionInfo,
    ExperimentRecord,
    Goal,
    PrimaryMetric,
    Status,
    Stop,
    Value,
)
from replicate.project.privacy import without_secrets
from replicate.project.resuming import Resumption
from replicate.project.slips import PrimaryNames
from replicate.recorder.client import Recorder
from replicate.records import new_id, now
from replicate.secrets import Redact, left_out_message
from replicate.tree import Listing, path_text, relative, select
from replicate.values import to_params, to_value

Report = Callable[[str], None]
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


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
        self._primary_names = PrimaryNames(self._had_before)
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
        paths, listing, lost = self._listing(path)
        record = CheckpointRecord(
            id=new_id(),
            experiment=self.record.id,
            created=now(),
            step=self._step(step),
            path=paths,
            tree=None,
            metrics=self._metrics(metrics),
            primary_metric=self._primary_metric(primary_metric),
            lost=lost,
        )
        self._recorder.checkpoint(record, listing)
        self._tell(self._primary_names.seen(record))
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
        self._tell(self._primary_names.ended())
        self._recorder.stop(_stop(error, self._redact), at_exit=at_exit)
        if not at_exit:
            atexit.unregister(self._stop_at_exit)

    def _stop_at_exit(self) -> None:
        """The script is over. The interpreter keeps the exception that ended it, if one did; at a
        prompt that is only the last one that a person has seen."""
        interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
        error = None if interactive else getattr(sys, "last_value", None)
        self.stop(error, at_exit=True)

    def _tell(self, slip: str | None) -> None:
        if slip is not None:
            self._recorder.problem(slip)

    def _had_before(self, metric: str) -> bool:
        """Whether an earlier attempt at this run has had a metric."""
        earlier = self.resumed.experiment.checkpoints if self.resumed else ()
        return any(metric in checkpoint.metrics for checkpoint in earlier)

    # ------------------------------------------------------------ what was passed, as values

    def _listing(
        self, path: Paths
    ) -> tuple[str | tuple[str, ...] | None, Listing | None, tuple[str, ...]]:
        """The checkpoint's path and files, and what was asked for and cannot be saved, which is
        reported, while the others are saved."""
        if path is None:
            return None, None, ()
        found, lost = [], list[str]()
        try:
            given = [path] if isinstance(path, str | bytes | os.PathLike) else list(path)
        except Exception:  # any object may raise when it is taken apart
            given, lost = [], [_shown(path)]
            self._recorder.problem(f"path must be text or a list of texts, not {_shown(path)}")
        for one in given:
            try:
                found.append(self._locate(one))
            except (ReplicateError, OSError, TypeError, ValueError) as error:
                lost.append(_path_shown(one))
                self._recorder.problem(f"A checkpoint lacks files: {error}")
        if not found:
            return None, None, tuple(lost)
        try:
            listing = select(self._project, found, use_ignore_files=False)
            lost += self._empty(found, listing)
            listing, secret = without_secrets(self._project, listing, found, self._allowed)
        except (ReplicateError, OSError) as error:
            self._recorder.problem(f"A checkpoint lacks files: {error}")
            return None, None, (*lost, *found)
        if secret:
            self._recorder.problem(left_out_message(secret))
        if listing.left_out:
            self._recorder.problem("Not saved: " + "; ".join(listing.left_out))
        single = isinstance(path, str | os.PathLike)
        return (found[0] if single else tuple(found)), listing, tuple(lost)

    def _empty(self, paths: Sequence[str], listing: Listing) -> list[str]:
        """The paths of which there is nothing to save. A directory without files is most often
        another than was meant: that is told, too."""
        empty = []
        for path in paths:
            above = "" if path == "." else f"{path}/"
            if not any(s.path == path or s.path.startswith(above) for s in listing.selected):
                empty.append(path)
        for path in empty if not listing.left_out else ():
            self._recorder.problem(f'A checkpoint lacks files: there are none in "{path}"')
        return empty

    def _locate(self, path: str | os.PathLike[str]) -> str:
        """A script names files from where it runs; from the project's directory will do, too."""
        here, text = Path.cwd(), path_text(path)
        in_project = not os.path.lexists(here / text) and os.path.lexists(self._project / text)
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


def _path_shown(path: object) -> str:
    """What was passed as a path, as text that can be written down."""
    text = str(path) if isinstance(path, str | Path) else _shown(path)
    return text.encode(errors="backslashreplace").decode()


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
