"""`replicate du`: how many bytes the experiments take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from replicate.cli import text
from replicate.cli.options import location
from replicate.cli.output import Output
from replicate.cli.schema import num_superseded
from replicate.cli.table import Column, fit, render
from replicate.maintenance import ExperimentUsage, Usage
from replicate.model import short
from replicate.project import Project


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location
@click.pass_obj
def du(output: Output, project: Project, as_json: bool) -> None:
    """Show how many bytes the experiments take.

    The largest comes first. FILES is what their files would take as plain copies, STORED what they
    take as they are stored, and UNSHARED what deleting the experiment would free: the rest it
    shares with others. These are the lengths of files: on the disk each takes whole blocks, and a
    little more. CHECKPOINTS counts superseded ones, too: their files are kept.

    \b
    Examples:
      replicate du
      replicate du --json
    """
    usage = project.usage()
    if as_json:
        output.json(usage_json(usage))
    else:
        if usage.experiments:
            columns, _ = fit(table_columns(usage.experiments), output.width, [("hide", "name")])
            output.data([*render(columns, output.paint), ""])
        output.data(total_lines(usage, remote=project.repository.backend.remote))
    output.warn(f"not counted: {sentence}" for sentence in usage.damage)


def table_columns(rows: Sequence[ExperimentUsage]) -> list[Column]:
    """A row for each experiment."""
    names = [text.escape(row.experiment.name or "") for row in rows]
    checkpoints = [f"{len(row.experiment.checkpoints):,}" for row in rows]
    columns = [
        Column("id", "EXPERIMENT", [short(row.experiment.id) for row in rows], whole=True),
        Column("name", "NAME", names),
        Column("checkpoints", "CHECKPOINTS", checkpoints, whole=True),
        Column("files", "FILES", [text.size(row.logical) for row in rows], whole=True),
        Column("stored", "STORED", [text.size(row.stored) for row in rows], whole=True),
        Column("only", "UNSHARED", [text.size(row.exclusive) for row in rows], whole=True),
    ]
    return [column for column in columns if column.key != "name" or any(names)]


def total_lines(usage: Usage, *, remote: bool) -> Iterator[str]:
    """The sums, and what belongs to no experiment."""
    saved = ""
    if usage.logical > usage.stored:
        saved = f", {100 * (1 - usage.stored / usage.logical):.0f}% less"
    yield (
        f"{text.count(len(usage.experiments), 'experiment')}: {text.size(usage.logical)} of files "
        f"in {text.size(usage.stored)} {'in the bucket' if remote else 'on disk'}{saved}"
    )
    if usage.backups:
        yield f"{text.size(usage.backups)} of that is kept to undo checkouts"
    if usage.unreferenced:
        yield f"{text.size(usage.unreferenced)} of that nothing refers to: `replicate gc` frees it"


def usage_json(usage: Usage) -> dict[str, Any]:
    """The result for a program, in bytes."""
    return {
        "experiments": [
            {
                "id": row.experiment.id,
                "name": row.experiment.name,
                "num_checkpoints": len(row.experiment.checkpoints),
                "num_superseded": num_superseded(row.experiment),
                "logical": row.logical,
                "stored": row.stored,
                "only_here": row.exclusive,
            }
            for row in usage.experiments
        ],
        "logical": usage.logical,
        "stored": usage.stored,
        "backups": usage.backups,
        "unreferenced": usage.unreferenced,
        "damage": list(usage.damage),
    }
