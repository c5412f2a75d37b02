"""What `replicate.yaml` may say, and how each of its settings is read and checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from replicate.errors import ConfigError
from replicate.secrets import Allowed

Compression = Literal["auto", "none", "zstd"]
#: How much is kept of what a run prints: "all" also what C code prints on a terminal.
ConsoleExtent = Literal["on", "all", "off"]

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


def read(file: Path) -> dict[str, Any]:
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
