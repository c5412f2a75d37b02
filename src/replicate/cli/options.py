"""The options that commands share: where the project and its repository are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from replicate.project import Project


def location(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command -R and -D, and pass it the project that they name as `project`."""

    @click.option("-R", "--repository", metavar="URL", help="The repository, if not the project's.")
    @click.option(
        "-D", "--directory", metavar="DIR", help="The project's directory, if not found from here."
    )
    @functools.wraps(command)
    def with_project(
        *args: Any, repository: str | None, directory: str | None, **options: Any
    ) -> Any:
        project = Project(repository=repository, directory=directory)
        return command(*args, project=project, **options)

    return with_project
