"""`replicate tag`: tags are added to experiments and removed from them."""

from __future__ import annotations

import click

from replicate.cli import text
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.errors import UsageError
from replicate.project import Experiment, Project


@click.command()
@click.argument("words", metavar="ID... | ID TAG...", nargs=-1, required=True, type=ID)
@click.option("-a", "--add", multiple=True, metavar="TAG", help="Add a tag. May be repeated.")
@click.option("-r", "--remove", multiple=True, metavar="TAG", help="Remove a tag. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the tags of each experiment.")
@location
@click.pass_obj
def tag(
    output: Output,
    project: Project,
    words: tuple[str, ...],
    add: tuple[str, ...],
    remove: tuple[str, ...],
    as_json: bool,
) -> None:
    """Add tags to experiments, or remove them.

    After one ID come the tags to add; without any, its tags are printed. With --add or --remove
    every word is an ID. The id of a checkpoint stands for its experiment.

    \b
    Examples:
      replicate tag f1b4d2b baseline good
      replicate tag f1b4d2b --remove baseline
      replicate tag --add sweep-3 $(replicate ls --quiet --filter "lr < 0.1")
      replicate tag f1b4d2b
    """
    if not add and not remove:
        words, add = words[:1], words[1:]
    if blank := [tag for tag in (*add, *remove) if not tag.strip()]:
        raise UsageError(f"a tag must not be empty: {blank[0]!r}")
    experiments = project.find_all(words)
    for experiment in experiments:
        if add or remove:
            experiment.retag(add=add, remove=remove)
    if as_json:
        output.json([{"id": e.id, "tags": list(e.tags)} for e in experiments])
    elif add or remove:
        output.message(*(_now(experiment) for experiment in experiments))
    else:
        output.data(text.escape(tag) for e in experiments for tag in e.tags)


def _now(experiment: Experiment) -> str:
    return f"Tags of {experiment.short_id}: {', '.join(experiment.tags) or 'none'}"
