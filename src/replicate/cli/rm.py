"""`replicate rm`: experiments and checkpoints are deleted, and their space is freed."""

from __future__ import annotations

from collections.abc import Iterator

import click

from replicate.cli import text
from replicate.cli.options import ID, location
from replicate.cli.output import FAILED, Output
from replicate.maintenance import RemovalPlan, Removed
from replicate.model import CheckpointRecord, ExperimentRecord, Status, short
from replicate.project import Project

_MAX_COMMAND = 40


@click.command()
@click.argument("ids", type=ID, metavar="ID...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Do not ask, and delete running experiments too.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be deleted.")
@location
@click.pass_obj
def rm(output: Output, project: Project, ids: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Delete experiments and checkpoints.

    There is no way back. Deleting an experiment deletes its checkpoints. What other experiments
    need of its files stays, and the rest is removed from the disk: at once, or by `replicate gc` an
    hour later if a run is being recorded meanwhile. In a bucket what is younger than a day waits.
    Bytes are the lengths of files; on the disk each takes whole blocks, and a little more.

    \b
    Examples:
      replicate rm 8ee945b
      replicate rm f1b4d2b 3eb8d9a --dry-run
      replicate rm --force $(replicate ls --quiet)
    """
    plan = project.plan_removal(ids, force=force)
    first, *more = plan_lines(plan, would=dry_run)
    if dry_run:
        output.data([first, *(f"  {line}" for line in more)])
        return
    if not force:
        output.message(first, *more)
        if not output.confirm("Delete them for good?" if len(more) > 2 else "Delete it for good?"):
            output.message("Nothing was deleted")
            raise click.exceptions.Exit(FAILED)
    done = project.remove(plan)
    output.message(*removed_lines(plan, done))
    if done.problem:
        output.warn([f"no space was freed. {done.problem}"])


def plan_lines(plan: RemovalPlan, *, would: bool) -> Iterator[str]:
    """A heading, a line for each thing that goes, and the bytes that come free."""
    yield "This would delete:" if would else "This deletes:"
    for experiment in plan.experiments:
        yield _experiment(experiment)
    for experiment, checkpoint in plan.checkpoints:
        yield _checkpoint(experiment, checkpoint)
    yield f"{text.size(plan.bytes)} that nothing else needs"


def _experiment(experiment: ExperimentRecord) -> str:
    checkpoints = text.count(len(experiment.checkpoints), "checkpoint")
    running = ", still running" if experiment.status is Status.RUNNING else ""
    command = text.escape(experiment.name or experiment.command)
    if len(command) > _MAX_COMMAND:
        command = f"{command[: _MAX_COMMAND - 3]}..."
    return f"experiment {short(experiment.id)} with {checkpoints}{running}: {command}"


def _checkpoint(experiment: ExperimentRecord, checkpoint: CheckpointRecord) -> str:
    found, best = text.checkpoint_name(checkpoint), experiment.best()
    remark = ", its best" if best is not None and best.id == checkpoint.id else ""
    return f"checkpoint {found} of experiment {short(experiment.id)}{remark}"


def removed_lines(plan: RemovalPlan, done: Removed) -> Iterator[str]:
    """What was deleted and how much is free now, and what comes later."""
    counts = ((done.experiments, "experiment"), (done.checkpoints, "checkpoint"))
    what = " and ".join(text.count(number, noun) for number, noun in counts if number)
    yield f"Deleted {what}; {text.size(done.bytes)} freed"
    if done.later_bytes:
        when = f"{text.wait(done.later_seconds)} from now"
        yield (
            f"{text.size(done.later_bytes)} more can be freed {when} with `replicate gc`: somebody "
            "may be saving the same files"
        )
    if any(experiment.status is Status.RUNNING for experiment in plan.experiments):
        yield "What the run goes on to save is freed by `replicate gc` after it has ended"
