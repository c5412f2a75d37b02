"""What the user has configured: finds and reads `replicate.yaml` and the `REPLICATE_*` variables.

Knows nothing of repositories or experiments, opens no network, and is the only module below the
faces that reads the environment. A value is never silently ignored: what cannot be meant is a
ConfigError that says where it stands.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from replicate.errors import ConfigError
from replicate.secrets import Allowed, Redact, environment_secrets, redactor

Compression = Literal["auto", "none", "zstd"]
#: How much is kept of what a run prints: "all" also what C code prints on a terminal.
ConsoleExtent = Literal["on", "all", "off"]
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
#: Variables of this prefix belong to the client of replicate.com, which shares our name.
_FOREIGN_PREFIX = "REPLICATE_API_"
#: What launchers set: torchrun and its kind, Slurm, Open MPI. The nearest to the process is first.
_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
#: What says who asks AWS, before any file: keys, a web identity, a container's role, or nobody.
_AWS_IDENTITY = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_AWS_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
}
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}".lower(): base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024), ("", 1000))
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Which checkpoints of a run keep their files: the best so many by the primary metric, the last
    so many, and those whose step is a multiple of `every`. One that any of these names stays."""

    best: int | None = None
    last: int | None = None
    every: int | None = None


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
    and `resume` names the one to go on with instead. `spool` is where runs wait for a repository
    that is not on this machine's disks.
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
    values = _read(file) if file else {}
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
        cache=_cache(environ),
        spool=_spool(environ),
        **values,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """What the standard variables of the clouds say, as far as obstore does not read it itself.

    `aws_profile` is the one that was named. Without a name, and unless `aws_knows` (the environment
    itself says who asks), the default profile in `aws_files` holds.
    """

    allow_http: bool = False
    s3_endpoint: str | None = None
    aws_profile: str | None = None
    aws_knows: bool = False
    aws_files: tuple[Path, ...] = ()
    aws_region: str | None = None
    gcs_emulator: str | None = None
    azure_connection: str | None = field(default=None, repr=False)


def cloud_settings(environ: Mapping[str, str] = os.environ) -> CloudSettings:
    def first(*names: str) -> str | None:
        return next((value for name in names if (value := environ.get(name))), None)

    return CloudSettings(
        allow_http=environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"),
        s3_endpoint=first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        aws_profile=first("AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
        aws_knows=first(*_AWS_IDENTITY) is not None,
        aws_files=tuple(
            Path(os.path.expanduser(environ.get(name) or usual))
            for name, usual in _AWS_FILES.items()
        ),
        aws_region=first("AWS_REGION", "AWS_DEFAULT_REGION"),
        gcs_emulator=first("STORAGE_EMULATOR_HOST"),
        azure_connection=first("AZURE_STORAGE_CONNECTION_STRING"),
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


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The `REPLICATE_*` variables that nothing reads, sorted: most likely misspelt."""
    return sorted(
        name
        for name in environ
        if name.startswith("REPLICATE_")
        and not name.startswith(_FOREIGN_PREFIX)
        and name not in ENVIRONMENT
    )


def _read(file: Path) -> dict[str, Any]:
    """The settings in `file`, checked; only those that it has."""
    values: dict[str, Any] = {}
    for key, value, line in _entries(file):
        where = f"{file}, line {line}"
        if key not in _SETTINGS:
            near = difflib.get_close_matches(str(key), list(_SETTINGS), n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(_SETTINGS)}."
            raise ConfigError(f"Unknown key `{key}` ({where})", hint=hint)
        if key in values:
            raise ConfigError(f"`{key}` is given twice ({where})")
        try:
            values[key] = _SETTINGS[key](value)
        except ValueError as error:
            raise ConfigError(f"`{key}` must be {error}, not {value!r} ({where})") from None
    return values


def _entries(file: Path) -> Iterator[tuple[Any, Any, int]]:
    """Each key of a YAML mapping, its value, and its line."""
    import yaml  # 20 ms that only those with a replicate.yaml pay

    try:
        loader = yaml.SafeLoader(file.read_bytes())
        root = loader.get_single_node()
        if root is None:
            return
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{file} must hold lines of `key: value`")
        for key, value in root.value:
            yield _plain(loader, key), _plain(loader, value), key.start_mark.line + 1
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error


def _plain(loader: Any, node: Any) -> Any:
    """A node's value: a scalar, or a list or mapping of them. No setting is anything deeper."""
    if node.id == "sequence":
        return _List(_Nested.unless_scalar(loader, item) for item in node.value)
    if node.id == "mapping":
        return {_plain(loader, k): _Nested.unless_scalar(loader, v) for k, v in node.value}
    return _Nested.unless_scalar(loader, node)


class _Nested:
    """A list or a mapping, where neither is meant: it is named, and not built."""

    @classmethod
    def unless_scalar(cls, loader: Any, node: Any) -> Any:
        return loader.construct_object(node) if node.id == "scalar" else cls()

    def __repr__(self) -> str:
        return "a list or a mapping"


class _List(tuple[Any, ...]):
    """A list, where most settings are none."""

    def __repr__(self) -> str:
        return "a list or a mapping"


def _repository(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError("a path or a URL such as s3://bucket/root")


def _compression(value: object) -> Compression:
    if value in get_args(Compression):
        return cast(Compression, value)
    raise ValueError("one of auto, none, zstd")


def parse_size(value: object) -> int:
    """Bytes from `500MB`, `1.5 GiB` or a number of bytes. ValueError says what was expected."""
    text = "" if isinstance(value, bool) else str(value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    size = 0
    if match and match[2] in _UNITS:
        size = int(float(match[1]) * _UNITS[match[2]])
    if size > 0:
        return size
    raise ValueError("a size such as 500MB")


def parse_keep(value: object) -> Keep:
    """`Keep` from {"best": 3, "last": 2, "every": 10}. ValueError says what was expected."""
    expected = "a mapping such as {best: 3, last: 2, every: 10}"
    if isinstance(value, Keep):
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueError(expected)
    for key, number in value.items():
        if key not in ("best", "last", "every"):
            raise ValueError(f"{expected} (`{key}` is none of its keys)")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{expected}, of whole numbers from 1 (`{key}` is something else)")
    return Keep(**value)


def parse_console(value: object) -> ConsoleExtent:
    """`on`, `off` or `all`, or a truth value. ValueError says what was expected."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in get_args(ConsoleExtent):
        return cast(ConsoleExtent, value)
    raise ValueError("one of on, off, all")


def _allowed(value: object) -> Allowed:
    if isinstance(value, bool):
        return value
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, tuple) and all(isinstance(name, str) and name for name in names):
        return tuple(names)
    raise ValueError("true, or a list of names such as [hub_token, .env]")


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


#: The keys of replicate.yaml, and how each is read.
_SETTINGS: Mapping[str, Callable[[object], Any]] = {
    "repository": _repository,
    "compression": _compression,
    "max_snapshot_size": parse_size,
    "max_pending": parse_size,
    "cache_size": parse_size,
    "keep": parse_keep,
    "console": parse_console,
    "system_metrics": _truth,
    "allow_secrets": _allowed,
}


def _tags(text: str) -> tuple[str, ...]:
    return tuple(tag for part in text.split(",") if (tag := part.strip()))


def _cache(environ: Mapping[str, str]) -> Path | None:
    """Where to keep what can be had again; None where there is no such place."""
    if named := environ.get("REPLICATE_CACHE"):
        return Path(named).absolute()
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        found = Path(environ.get(name, ""))
        if found.is_absolute():
            return found / "replicate"
    home = Path(os.path.expanduser("~"))
    return home / ".cache" / "replicate" if home.is_absolute() else None


def _spool(environ: Mapping[str, str]) -> Path | None:
    """Where to keep what must not be lost; None where there is no such place."""
    if named := environ.get("REPLICATE_SPOOL"):
        return Path(named).absolute()
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        found = Path(environ.get(name, ""))
        if found.is_absolute():
            return found / "replicate" / "spool"
    home = Path(os.path.expanduser("~"))
    return home / ".local" / "state" / "replicate" / "spool" if home.is_absolute() else None


def _mode(environ: Mapping[str, str]) -> Mode:
    mode = environ.get("REPLICATE_MODE") or "online"
    if mode not in get_args(Mode):
        raise ConfigError(
            f"REPLICATE_MODE must be `online`, `offline`, `disabled` or unset, not {mode!r}"
        )
    return cast(Mode, mode)
