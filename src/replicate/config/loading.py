"""The configuration that holds in a directory, and what the environment says of this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from replicate.config.file import (
    Compression,
    ConsoleExtent,
    Keep,
    parse_console,
    parse_size,
    read,
)
from replicate.errors import ConfigError
from replicate.secrets import Allowed, Redact, environment_secrets, redactor

#: Whether a run is saved while it goes on, kept on this machine until `sync`, or not recorded.
Mode = Literal["online", "offline", "disabled"]

CONFIG_NAMES = ("replicate.yaml", "replicate.yml")
DEFAULT_REPOSITORY = ".replicate"
DEFAULT_MAX_SNAPSHOT_SIZE = 100_000_000
DEFAULT_MAX_PENDING = 8_000_000_000
DEFAULT_CACHE_SIZE = 10_000_000_000

#: Every variable that is read, and what it means. The documentation is generated from this.
ENVIRONMENT: Mapping[str, str] = {
    "REPLICATE_REPOSITORY": "The repository; overrides `repository:` in replicate.yaml",
    "REPLICATE_DIRECTORY": "Where to look for the project, instead of the working directory",
    "REPLICATE_HOST": "The host that is recorded, instead of this machine's name",
    "REPLICATE_USER": "The user that is recorded, instead of the one that is logged in",
    "REPLICATE_COMMAND": "The command that is recorded, instead of the process's own",
    "REPLICATE_NAME": "The experiment's name, where `init()` is given none",
    "REPLICATE_TAGS": "Tags, separated by commas, added to those that `init()` is given",
    "REPLICATE_NOTES": "The experiment's notes, where `init()` is given none",
    "REPLICATE_GROUP": "The experiment's group, where `init()` is given none",
    "REPLICATE_RESUME": "The experiment to go on with where `init()` names none: an id or `latest`",
    "REPLICATE_MODE": "`disabled`: record nothing. `offline`: save to a bucket only with "
    "`replicate sync`, and use no network until then",
    "REPLICATE_SPOOL": "Where runs wait that are to be saved to a bucket, instead of "
    "`~/.local/state/replicate/spool`",
    "REPLICATE_CACHE": "Where listings, and files from buckets, are cached, instead of "
    "`~/.cache/replicate`",
    "REPLICATE_CACHE_SIZE": "How much of the files is kept there; overrides `cache_size`",
    "REPLICATE_CONSOLE": "`off`: keep nothing of what a run prints; `all`: see `console`",
    "REPLICATE_ALL_RANKS": "`1`: record every process of a distributed run, not only rank 0",
}
#: What launchers set: torchrun and its kind, Slurm, Open MPI. The nearest to the process is first.
_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the user has decided, with the defaults filled in.

    `repository` is as it was written: a relative path is relative to `directory`, the project's.
    `source` says who wrote it: "argument", "REPLICATE_REPOSITORY", "default", or the file's path.
    `cache_size` is what files from buckets may take below `cache`, in bytes.
    `max_snapshot_size` is in bytes, and so is `max_pending`: what may lie in the spool before
    `checkpoint()` waits. `keep` says which checkpoints keep their files, `console` how much is kept
    of what a run prints. `host`, `user` and
    `command` override what is recorded; `name`, `tags`, `notes` and `group` label a new experiment,
    and `resume` names the one to go on with instead. `cache` is where to keep what can be had
    again, and `spool` where runs wait for a repository that is not on this machine's disks.
    """

    directory: Path
    file: Path | None = None
    repository: str = DEFAULT_REPOSITORY
    source: str = "default"
    compression: Compression = "auto"
    max_snapshot_size: int = DEFAULT_MAX_SNAPSHOT_SIZE
    max_pending: int = DEFAULT_MAX_PENDING
    cache_size: int = DEFAULT_CACHE_SIZE
    keep: Keep | None = None
    console: ConsoleExtent = "on"
    system_metrics: bool = True
    allow_secrets: Allowed = ()
    host: str | None = None
    user: str | None = None
    command: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    group: str | None = None
    resume: str | None = None
    mode: Mode = "online"
    cache: Path | None = None
    spool: Path | None = None


def find_project(start: Path) -> tuple[Path, Path | None]:
    """The project that `start` is in, and its configuration file if it has one.

    The nearest directory, from `start` upwards, with a `replicate.yaml`; else the nearest with a
    `.replicate/`; else `start`. A `.replicate/` in the home directory counts only for scripts that
    run right there: one such run must not adopt every other directory of the user.
    """
    start = start.resolve()
    parents = (start, *start.parents)
    for directory in parents:
        for name in CONFIG_NAMES:
            if (directory / name).is_file():
                return directory, directory / name
    home = Path(os.path.expanduser("~")).resolve()
    for directory in parents:
        if directory == home and directory != start:
            continue
        if (directory / DEFAULT_REPOSITORY).is_dir():
            return directory, None
    return start, None


def load(
    directory: Path | None = None,
    *,
    repository: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration that holds in `directory`: argument, then environment, file, default.

    Raises ConfigError for a file or a variable that cannot be meant.
    """
    start = directory or Path(environ.get("REPLICATE_DIRECTORY") or ".")
    if not start.is_dir():
        raise ConfigError(f"The project's directory does not exist: {start}")
    project, file = find_project(start)
    values = read(file) if file else {}
    source = str(file) if "repository" in values else "default"
    if variable := environ.get("REPLICATE_REPOSITORY"):
        values["repository"], source = variable, "REPLICATE_REPOSITORY"
    if repository is not None:
        values["repository"], source = repository, "argument"
    values |= _overriding(environ)
    return Config(
        directory=project,
        file=file,
        source=source,
        host=environ.get("REPLICATE_HOST") or None,
        user=environ.get("REPLICATE_USER") or None,
        command=environ.get("REPLICATE_COMMAND") or None,
        name=environ.get("REPLICATE_NAME") or None,
        tags=_tags(environ.get("REPLICATE_TAGS", "")),
        notes=environ.get("REPLICATE_NOTES") or None,
        group=environ.get("REPLICATE_GROUP") or None,
        resume=environ.get("REPLICATE_RESUME") or None,
        mode=_mode(environ),
        cache=_place(environ, "REPLICATE_CACHE", "XDG_CACHE_HOME", ".cache", "replicate"),
        spool=_place(
            environ, "REPLICATE_SPOOL", "XDG_STATE_HOME", ".local/state", "replicate/spool"
        ),
        **values,
    )


def _overriding(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings for which a variable stands that has to be parsed."""
    values: dict[str, Any] = {}
    for name, parse in {"console": parse_console, "cache_size": parse_size}.items():
        variable = f"REPLICATE_{name.upper()}"
        if text := environ.get(variable):
            try:
                values[name] = parse(text)
            except ValueError as error:
                raise ConfigError(f"{variable} must be {error}, not {text!r}") from None
    return values


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's number in a distributed run; 0 when it is alone or every rank is wanted.

    Slurm numbers a single task 0 too, so a step of one task records as any other script.
    """
    if environ.get("REPLICATE_ALL_RANKS") == "1":
        return 0
    for name in _RANK_VARIABLES:
        value = environ.get(name, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return 0


def redaction(allowed: Allowed, environ: Mapping[str, str] = os.environ) -> Redact:
    """A function from text to the same text without secrets: those that this process was given in
    variables, and all that looks like one; but for those that are `allowed`."""
    return str if allowed is True else redactor(environment_secrets(environ, allowed))


def _tags(text: str) -> tuple[str, ...]:
    return tuple(tag for part in text.split(",") if (tag := part.strip()))


def _place(
    environ: Mapping[str, str], own: str, standard: str, usual: str, inside: str
) -> Path | None:
    """The directory that the variable `own` names; else `inside` of the one that `standard` names,
    or of `usual` in the home directory. None where there is no such place."""
    if named := environ.get(own):
        return Path(named).absolute()
    for name in (standard, "LOCALAPPDATA"):
        found = Path(environ.get(name, ""))
        if found.is_absolute():
            return found / inside
    home = Path(os.path.expanduser("~"))
    return home / usual / inside if home.is_absolute() else None


def _mode(environ: Mapping[str, str]) -> Mode:
    mode = environ.get("REPLICATE_MODE") or "online"
    if mode not in get_args(Mode):
        raise ConfigError(
            f"REPLICATE_MODE must be `online`, `offline`, `disabled` or unset, not {mode!r}"
        )
    return cast(Mode, mode)
