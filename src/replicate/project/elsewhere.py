"""Other repositories than the project's, as a person names them."""

from __future__ import annotations

import os
from pathlib import Path

from replicate.config import DEFAULT_REPOSITORY


def location_of(named: str | os.PathLike[str]) -> str:
    """Where the repository is that is named by a URL, by a path from the working directory, or by a
    directory that has one in `.replicate`."""
    location = os.fspath(named)
    if "://" in location:
        return location
    path = Path(location).expanduser().absolute()
    inner = path / DEFAULT_REPOSITORY
    is_inside = not _is_repository(path) and _is_repository(inner)
    return str(inner if is_inside else path)


def _is_repository(path: Path) -> bool:
    return (path / "repository.json").is_file()
