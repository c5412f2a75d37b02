"""What a user writes in `repository:` becomes a backend.

Knows the schemes and how a path is written; knows nothing of what a backend does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from replicate.backends.base import Backend
from replicate.backends.local import LocalBackend
from replicate.config import cloud_settings
from replicate.errors import ConfigError
from replicate.secrets import HIDDEN, redact_text

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://(.*)", re.DOTALL)
_CLOUD = ("s3", "gs", "az")
_ONE_SLASH = re.compile(rf"({'|'.join(_CLOUD)}):/(?!/)(.*)", re.DOTALL | re.IGNORECASE)


def open_backend(location: str, *, relative_to: Path) -> Backend:
    """The backend at `location`: a path or `file://path`, relative ones from `relative_to`.

    `~` is the user's home. Nothing is read or written. Raises ConfigError for anything else.
    """
    match = _SCHEME.fullmatch(location)
    if match is None:
        if short := _ONE_SLASH.fullmatch(location):  # not a directory of that name
            raise ConfigError(
                f"not a bucket's location: {redact_text(location)!r}",
                hint=f"Did you mean {short[1].lower()}://{redact_text(short[2])} ?",
            )
        return _local(location, relative_to)
    scheme, rest = match[1].lower(), match[2]
    if scheme != "file" and ("@" in rest.partition("/")[0] or "?" in rest):
        raise ConfigError(
            f"{scheme}://{HIDDEN}: a repository's URL has no user, password or signature in it",
            hint="It is recorded and shown. Credentials are taken from the environment and the "
            "usual files, as docs/guides/cloud-storage.md says.",
        )
    if scheme == "file":
        return _local(rest, relative_to)
    if scheme in _CLOUD:
        from replicate.backends.cloud import CloudBackend  # 22 ms that a local repository saves

        return CloudBackend(location, cloud_settings())
    raise ConfigError(
        f"unknown kind of repository: {redact_text(location)!r}",
        hint=f"Use a path, file://, {', '.join(f'{name}://' for name in _CLOUD)}.",
    )


def _local(path: str, relative_to: Path) -> LocalBackend:
    if not path.strip():
        raise ConfigError(
            "the repository's location is empty", hint="Use a path, such as .replicate"
        )
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"cannot tell which home directory {path!r} means") from error
    return LocalBackend(Path(os.path.abspath(relative_to / expanded)))
