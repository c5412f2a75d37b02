"""`replicate verify`: whether everything that was saved can be had back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from replicate.cli import text
from replicate.cli.options import ID, location
from replicate.cli.output import FAILED, Output
from replicate.cli.progress import counter
from replicate.maintenance import Damage, Holder, Unrecorded, Verification
from replicate.model import short
from replicate.project import Project

_MAX_HURT = 5


@click.command()
@click.argument("ids", type=ID, metavar="[ID]...", nargs=-1)
@click.option("--full", is_flag=True, help="Read and hash every byte, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location
@click.pass_obj
def verify(
    output: Output, project: Project, ids: tuple[str, ...], full: bool, as_json: bool
) -> None:
    """Check that everything that was saved can be had back.

    Reads every journal and every list of files, and looks for each of the contents with its size.
    The exit code is 1 if something is missing or damaged. What a run could not save in the first
    place, and has said so, is listed, too, with the checkpoints that lack files; that is no damage.

    \b
    Examples:
      replicate verify
      replicate verify --full
      replicate verify 8ee945b f1b4d2b
    """
    with counter(sys.stderr) as progress:
        found = project.verify(ids, full=full, progress=progress)
    if as_json:
        output.json(verification_json(found))
    else:
        for damage in found.damage:
            output.data(damage_lines(damage))
        output.data(unrecorded_lines(found.unrecorded))
        output.data([summary(found)])
    if found.damage:
        where = project.repository.url
        output.error(
            f"{text.count(len(found.damage), 'thing')} in {where} "
            f"{'is' if len(found.damage) == 1 else 'are'} damaged",
            "copy the files that are named from another copy of the repository, if there is one; "
            "else `replicate rm` gives up what they hurt, and the rest is whole",
        )
        raise click.exceptions.Exit(FAILED)


def damage_lines(damage: Damage) -> Iterator[str]:
    """What is damaged, and whom it hurts."""
    yield text.escape(damage.problem)
    if damage.hurts:
        named = [_name(holder) for holder in damage.hurts]
        yield f"  hurts {text.shortened_list(named, _MAX_HURT)}"


def unrecorded_lines(unrecorded: Sequence[Unrecorded]) -> Iterator[str]:
    """What runs have said that they could not record: no damage, but not to be had back either."""
    for one in unrecorded:
        yield f"experiment {short(one.experiment)} was not recorded whole: " + text.escape(
            one.problem
        )


def _name(holder: Holder) -> str:
    if holder.checkpoint is not None:
        return f"checkpoint {short(holder.checkpoint)} of {short(holder.experiment or '')}"
    if holder.experiment is not None:
        return f"experiment {short(holder.experiment)}"
    return f"what `replicate checkout --undo` can put back ({short(holder.checkout or '')})"


def summary(found: Verification) -> str:
    """What was checked, in a line."""
    things = (
        text.count(found.experiments, "experiment"),
        text.count(found.checkpoints, "checkpoint"),
        text.count(found.trees, "tree"),
        f"{text.count(found.blobs, 'blob')} ({text.size(found.bytes)})",
    )
    how = "every byte read" if found.full else "sizes only; --full reads every byte"
    return f"Checked {', '.join(things)}: {how}"


def verification_json(found: Verification) -> dict[str, Any]:
    """The result for a program."""
    return {
        "full": found.full,
        "experiments": found.experiments,
        "checkpoints": found.checkpoints,
        "trees": found.trees,
        "blobs": found.blobs,
        "bytes": found.bytes,
        "damage": [
            {
                "kind": damage.kind,
                "key": damage.key,
                "problem": damage.problem,
                "hurts": _hurts_json(damage.hurts),
            }
            for damage in found.damage
        ],
        "unrecorded": [
            {
                "experiment": one.experiment,
                "checkpoint": one.checkpoint,
                "problem": one.problem,
                "lost": list(one.lost),
            }
            for one in found.unrecorded
        ],
    }


def _hurts_json(hurts: Sequence[Holder]) -> list[dict[str, str | None]]:
    return [
        {"experiment": h.experiment, "checkpoint": h.checkpoint, "checkout": h.checkout}
        for h in hurts
    ]
