"""`replicate show`: everything about an experiment or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import click

from replicate.cli import text
from replicate.cli.facts import checkpoint_lines, experiment_lines
from replicate.cli.metrics import metric_columns, metrics_json, system_columns
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.cli.provenance import attempt_lines, edit_lines, lineage_lines
from replicate.cli.schema import (
    checkpoint_with_experiment_json,
    experiment_with_checkpoints_json,
    time_json,
)
from replicate.cli.table import Column, Reduction, fit, render
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    Point,
    short,
)
from replicate.project import Project
from replicate.project.lineage import Relative
from replicate.streams import Summary, summaries

#: Up to this many checkpoints are all shown; of more, some at each end, and the best one.
MAX_CHECKPOINTS = 20
_ENDS = 5
_GAP_ROW = "..."


@click.command()
@click.argument("id", type=ID, metavar="ID")
@click.option("-a", "--all", "every", is_flag=True, help="Leave nothing out.")
@click.option("--system", is_flag=True, help="Show how busy the machine was while it ran.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location
@click.pass_obj
def show(
    output: Output, project: Project, id: str, every: bool, system: bool, as_json: bool
) -> None:
    """Show everything about an experiment or a checkpoint.

    \b
    Examples:
      replicate show f1b4d2b
      replicate show 8ee --json
      replicate show f1b4d2b --system
    """
    found = project.resolve(id)
    if system:
        experiment = found if isinstance(found, ExperimentRecord) else found[0]
        show_system(output, experiment, project.samples(experiment), as_json)
    elif isinstance(found, ExperimentRecord):
        experiment = found
        if as_json:
            children = project.children(experiment)
            logged = metrics_json(summaries(project.logged(experiment)))
            shown = experiment_with_checkpoints_json(experiment, children)
            output.json({**shown, "metrics": logged})
        else:
            logged_metrics = summaries(project.logged(experiment))
            show_experiment(output, experiment, every, project.lineage(experiment), logged_metrics)
    else:
        experiment, checkpoint = found[0].at(found[1]), found[1]
        if as_json:
            output.json(checkpoint_with_experiment_json(experiment, checkpoint))
        else:
            output.data(checkpoint_lines(experiment, checkpoint, output.paint))
    if project.is_known_in_part(experiment):
        output.note(text.unseen_note(experiment.id))
    output.warn(experiment.damage)


def show_system(
    output: Output, experiment: ExperimentRecord, samples: Sequence[Point], as_json: bool
) -> None:
    """Write what the machine did while an experiment ran."""
    metrics = summaries(samples)
    if as_json:
        times = [time_json(sample.time) for sample in samples]
        first, last = (times[0], times[-1]) if times else (None, None)
        numbers = {"samples": len(samples), "first": first, "last": last}
        output.json({"id": experiment.id, **numbers, "metrics": metrics_json(metrics)})
    elif samples:
        columns, _ = fit(system_columns(metrics), output.width, (), output.ellipsis)
        over = text.duration(samples[-1].time - samples[0].time)
        output.data([f"{text.count(len(samples), 'sample')} over {over}", ""])
        output.data(render(columns, output.paint))
    else:
        output.note(f"Nothing is known of the machine while {short(experiment.id)} ran")


def show_experiment(
    output: Output,
    experiment: ExperimentRecord,
    every: bool,
    family: Relative | None = None,
    logged: Mapping[str, Summary] | None = None,
) -> None:
    """Write all about an experiment, its checkpoints in a table as wide as the terminal takes."""
    output.data(experiment_lines(experiment, every=every, paint=output.paint))
    sections = {
        "Attempts": attempt_lines(experiment, every=every),
        "Lineage": lineage_lines(family, experiment.id, plain=output.ellipsis == "..."),
        "Edits": edit_lines(experiment.edits) if every else [],
    }
    for title, lines in sections.items():
        if lines:
            output.data(["", output.paint(title, "bold"), *lines])
    if logged:
        columns, _ = fit(metric_columns(logged), output.width, (), output.ellipsis)
        output.data(["", output.paint("Metrics", "bold"), *render(columns, output.paint)])
    if not every:
        experiment = replace(experiment, checkpoints=experiment.current)
    if not experiment.checkpoints:
        return
    columns = checkpoint_columns(experiment, datetime.now(UTC), every=every)
    columns, hidden = fit(columns, output.width, _reductions(columns), output.ellipsis)
    output.data(["", output.paint("Checkpoints", "bold"), *render(columns, output.paint)])
    if hidden:
        names = text.shortened_list([column.heading for column in hidden], 5)
        command = f"replicate show {short(experiment.id)} | less -S"
        output.note(f"No room for {names}: `{command}` shows everything")


def checkpoint_columns(
    experiment: ExperimentRecord, now: datetime, *, every: bool = False
) -> list[Column]:
    """The table of checkpoints: the primary metric first, and which one is best."""
    checkpoints = experiment.checkpoints
    shown = range(len(checkpoints)) if every else shown_rows(experiment)
    rows = [None if i is None else checkpoints[i] for i in shown]
    ids = [_GAP_ROW if c is None else short(c.id) for c in rows]
    created = [c and c.created for c in rows]
    columns = [
        Column("id", "ID", ids, whole=True),
        Column("step", "STEP", [text.step(c.step) if c else "" for c in rows]),
        Column(
            "created",
            "CREATED",
            [text.ago(when, now) if when else "" for when in created],
            short=lambda: [text.ago(when, now, brief=True) if when else "" for when in created],
        ),
    ]
    if every and experiment.attempts:
        columns.append(Column("attempt", "ATTEMPT", [_attempt(c) if c else "" for c in rows]))
    if not experiment.saved:
        saved = ["local" if c and not c.saved else "" for c in rows]
        columns.append(Column("saved", "SAVED", saved))
    if any(c and (c.dropped or c.lost) for c in rows):
        columns.append(Column("files", "FILES", [_files(c) if c else "" for c in rows]))
    return columns + [
        Column(f"metric:{name}", text.heading(name), _metric_cells(experiment, rows, name))
        for name in _metric_names(experiment)
    ]


def _files(checkpoint: CheckpointRecord) -> str:
    """What became of the files, where they cannot all be had."""
    if checkpoint.lost:
        return f"lacks {text.shortened_list([text.escape(p) for p in checkpoint.lost], 1)}"
    return "let go" if checkpoint.dropped else ""


def _attempt(checkpoint: CheckpointRecord) -> str:
    return f"{checkpoint.attempt}{' (superseded)' if checkpoint.superseded else ''}"


def shown_rows(experiment: ExperimentRecord) -> list[int | None]:
    """Which checkpoints to show, by their place; None stands for those that are left out."""
    total = len(experiment.checkpoints)
    if total <= MAX_CHECKPOINTS:
        return list(range(total))
    best = experiment.best()
    kept = {*range(_ENDS), *range(total - _ENDS, total)}
    kept |= {i for i, c in enumerate(experiment.checkpoints) if c == best}
    rows: list[int | None] = []
    for place in sorted(kept):
        if rows and rows[-1] is not None and place != rows[-1] + 1:
            rows.append(None)
        rows.append(place)
    return rows


def _metric_names(experiment: ExperimentRecord) -> list[str]:
    primary = experiment.primary_metric
    first: Iterable[str] = [primary.name] if primary else []
    return list(dict.fromkeys([*first, *(n for c in experiment.checkpoints for n in c.metrics)]))


def _metric_cells(
    experiment: ExperimentRecord, rows: Sequence[CheckpointRecord | None], name: str
) -> list[str]:
    best, primary = experiment.best(), experiment.primary_metric
    cells = []
    for checkpoint in rows:
        found = name in checkpoint.metrics if checkpoint else False
        cell = text.value(checkpoint.metrics[name]) if checkpoint and found else ""
        is_best = checkpoint is not None and checkpoint == best
        cells.append(f"{cell} (best)" if is_best and primary and primary.name == name else cell)
    return cells


def _reductions(columns: Sequence[Column]) -> list[Reduction]:
    """What a narrow terminal does without: the metrics from the last on, but not the first."""
    metrics = [c.key for c in columns if c.key.startswith("metric:")]
    return [("shorten", "created"), *(("hide", key) for key in reversed(metrics[1:]))]
