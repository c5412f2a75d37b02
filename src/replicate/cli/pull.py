"""`replicate pull`: experiments from another repository."""

from __future__ import annotations

from typing import Any

import click

from replicate.cli.moving import move, moving
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.project import Project


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("ids", type=ID, metavar="[ID]...", nargs=-1)
@moving
@location
@click.pass_obj
def pull(
    output: Output, project: Project, source: str, ids: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Copy experiments from another repository into the project's.

    SRC is a path or a URL such as s3://bucket/root. Without an ID, all experiments. The same as
    `replicate push` the other way round: only what is missing here is copied, and every byte is
    verified before it is written.

    \b
    Examples:
      replicate pull s3://bucket/root
      replicate pull /mnt/colleague/project 8ee945b
      replicate pull s3://bucket/root --filter "accuracy > 0.9"
    """
    move(output, project.elsewhere(source), project, ids, options)
