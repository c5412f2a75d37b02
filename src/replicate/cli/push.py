"""`replicate push`: experiments into another repository."""

from __future__ import annotations

from typing import Any

import click

from replicate.cli.moving import move, moving
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.project import Project


@click.command()
@click.argument("target", metavar="DST")
@click.argument("ids", type=ID, metavar="[ID]...", nargs=-1)
@moving
@location
@click.pass_obj
def push(
    output: Output, project: Project, target: str, ids: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Copy experiments into another repository.

    DST is a path or a URL such as s3://bucket/root. Without an ID, all experiments. Only what is
    missing there is copied, and every byte is verified on its way; what was cut off is finished by
    doing it again. A run that goes on is copied as far as it is. Labels that were changed, and
    checkpoints that were deleted, are so in the copy, too. An experiment that was deleted here
    stays there without --delete, and one that was deleted there does not come back. Of experiments
    with an ID also what DST had of their files and has lost is copied.

    \b
    Examples:
      replicate push s3://bucket/root
      replicate push /mnt/backup 8ee945b f1b4d2b
      replicate push s3://bucket/root --filter "status = finished" --dry-run
    """
    move(output, project, project.elsewhere(target), ids, options)
