"""`replicate show`: everything about an experiment or a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import click

from replicate.cli import text
from replicate.cli.metrics import metric_columns, metrics_json, system_columns
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.cli.provenance import attempt_lines, edit_lines, lineage_lines
from replicate.cli.schema import (
    checkpoint_with_experiment_json,
    experiment_with_checkpoints_json,
    time_json,
)
from replicate.cli.table import Column, Paint, Reduction, fit, pad, render, text_width, unpainted
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    Point,
    PrimaryMetric,
    Stop,
    Value,
    flatten,
    short,
)
from replicate.project import Project
from replicate.project.lineage import Relative
from replicate.streams import Summary, summaries

Fact = tuple[str, str]

#: Up to this many checkpoints are all shown; of more, some at each end, and the best one.
MAX_CHECKPOINTS = 20
_ENDS = 5
_GAP_ROW = "..."
#: The packages that say most about a result, the most telling first.
_TELLING_PACKAGES = (
    "torch",
    "tensorflow",
    "jax",
    "keras",
    "lightning",
    "pytorch-lightning",
    "transformers",
    "accelerate",
    "flax",
    "xgboost",
    "lightgbm",
    "scikit-learn",
    "numpy",
    "pandas",
)
_MAX_PACKAGES = 5


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


def experiment_lines(
    experiment: ExperimentRecord, *, every: bool = False, paint: Paint = unpainted
) -> list[str]:
    """All about an experiment but its checkpoints."""
    sections: list[tuple[str, list[Fact]]] = [
        ("", [*_run_facts(experiment), *_other_facts(experiment)]),
        ("Params", _value_facts(experiment.params)),
        ("System", _system_facts(experiment.environment)),
        ("Packages", _package_facts(experiment.packages, every)),
    ]
    lines = [f"{paint('Experiment:', 'bold')} {experiment.id}"]
    lines += _section_lines(sections, 16, paint)
    if every and experiment.stop and experiment.stop.exception:
        traceback = text.escape(experiment.stop.exception.traceback.rstrip(), keep="\n")
        lines += ["", paint("Traceback", "bold"), *traceback.split("\n")]
    if experiment.problems:
        lines += ["", paint("Problems", "bold"), *map(text.escape, experiment.problems)]
    return lines


def checkpoint_lines(
    experiment: ExperimentRecord, checkpoint: CheckpointRecord, paint: Paint = unpainted
) -> list[str]:
    """All about a checkpoint, with what matters of its experiment."""
    facts = [
        ("Created", text.date(checkpoint.created)),
        ("Path", _path(checkpoint.path)),
        ("Step", text.step(checkpoint.step) or "none"),
        *([("Superseded", "by a later attempt")] if checkpoint.superseded else []),
        *([] if checkpoint.saved else [("Saved", "no, it is only on this machine")]),
        *_size_facts(checkpoint.size, checkpoint.stored),
    ]
    primary = checkpoint.primary_metric
    metrics = [
        (name, found + _goal(name, primary)) for name, found in _value_facts(checkpoint.metrics)
    ]
    metrics.sort(key=lambda metric: primary is None or metric[0] != primary.name)
    sections: list[tuple[str, list[Fact]]] = [
        ("", facts),
        ("Experiment", [("ID", experiment.id), *_run_facts(experiment)]),
        ("Params", _value_facts(experiment.params)),
        ("Metrics", metrics),
    ]
    lines = [f"{paint('Checkpoint:', 'bold')} {checkpoint.id}"]
    return lines + _section_lines(sections, 20, paint)


def _section_lines(
    sections: Sequence[tuple[str, Sequence[Fact]]], width: int, paint: Paint
) -> list[str]:
    """Titled lists of `label:  fact`, the facts one below the other; empty ones are left out."""
    labels = [label for _, facts in sections for label, fact in facts if fact]
    width = max(width, len(":  ") + max(map(text_width, labels)))
    lines: list[str] = []
    for title, facts in sections:
        if facts:
            lines += ["", paint(title, "bold")] if title else [""]
            lines += [_fact_line(label, fact, width, paint) for label, fact in facts]
    return lines


def _fact_line(label: str, fact: str, width: int, paint: Paint) -> str:
    """A label with its fact; without one it says something about the list that it stands in."""
    if not fact:
        return label
    style = text.STATUS_STYLES.get(fact, "") if label == "Status" else ""
    first, *more = fact.split("\n")
    return "\n".join(
        [pad(f"{label}:", width) + paint(first, style), *(" " * width + line for line in more)]
    )


def _run_facts(experiment: ExperimentRecord) -> list[Fact]:
    return [
        ("Created", text.date(experiment.created)),
        ("Status", text.status(experiment)),
        ("Host", text.escape(experiment.host)),
        ("User", text.escape(experiment.user)),
        ("Command", text.escape(experiment.command)),
    ]


def _other_facts(experiment: ExperimentRecord) -> list[Fact]:
    """The facts that only some experiments have."""
    stop, length = experiment.stop, experiment.duration
    facts = [
        ("Name", text.escape(experiment.name or "")),
        ("Tags", text.escape(", ".join(experiment.tags))),
        ("Group", text.escape(experiment.group or "")),
        ("Notes", text.escape(experiment.notes or "", keep="\n")),
        ("Duration", text.duration(length) if length is not None else ""),
        ("Ended by", _end(stop) if stop else ""),
        ("Imported", _origin(experiment.imported or {})),
    ]
    return [fact for fact in facts if fact[1]]


def _origin(imported: Mapping[str, Value]) -> str:
    """Which tool a run comes from, and what its id was there."""
    return text.escape(f"from {imported['from']}, {imported['id']}") if imported else ""


def _end(stop: Stop) -> str:
    """What ended the run, if it was more than reaching its end."""
    if stop.exception:
        return text.escape(f"{stop.exception.type}: {stop.exception.message}")
    if stop.signal:
        return text.escape(stop.signal)
    return f"exit code {stop.exit_code}" if stop.exit_code else ""


def _size_facts(size: int | None, stored: int | None) -> list[Fact]:
    if size is None:
        return []
    new = "" if stored is None or stored == size else f", {text.size(stored)} of it new"
    return [("Size", text.size(size) + new)]


def _path(path: str | tuple[str, ...] | None) -> str:
    if path is None:
        return "none"
    return text.escape(path if isinstance(path, str) else ", ".join(path))


def _goal(name: str, primary: PrimaryMetric | None) -> str:
    return f" (primary, {primary.goal})" if primary and primary.name == name else ""


def _value_facts(values: Mapping[str, Value]) -> list[Fact]:
    flat = flatten(values)
    # A value that is empty text still has its line.
    return [(text.escape(name), text.value(v, full=True) or '""') for name, v in flat.items()]


def _system_facts(environment: Mapping[str, Value]) -> list[Fact]:
    """The machine in words. What is not known about it is left out."""
    python, system, cpu = (environment.get(name) or {} for name in ("python", "os", "cpu"))
    memory = environment.get("memory")
    facts = [
        ("Python", _joined(" ", python.get("version"), python.get("implementation"))),
        ("OS", _joined(", ", system.get("distribution"), _kernel(system))),
        ("CPU", _joined(", ", cpu.get("model"), _cores(cpu.get("count")))),
        ("Memory", text.size(memory) if memory else ""),
        ("GPU", _gpus(environment.get("gpus") or [])),
        ("Git", _git(environment.get("git") or {})),
    ]
    return [fact for fact in facts if fact[1]]


def _joined(between: str, *parts: Value) -> str:
    return between.join(text.value(part) for part in parts if part)


def _kernel(system: Mapping[str, Value]) -> str:
    return _joined(" ", system.get("system"), system.get("release"))


def _cores(count: int | None) -> str:
    return text.count(count, "core") if count else ""


def _gpus(gpus: Sequence[Mapping[str, Value]]) -> str:
    """GPUs by name, those of the same kind counted."""
    counts = Counter(_joined(", ", g.get("name"), text.size(g.get("memory") or 0)) for g in gpus)
    return "; ".join(name if n == 1 else f"{n} × {name}" for name, n in counts.items())


def _git(git: Mapping[str, Value]) -> str:
    if not git.get("commit"):
        return ""
    branch = f"on {text.value(git['branch'])}" if git.get("branch") else ""
    return _joined(" ", git["commit"], branch, "(dirty)" if git.get("dirty") else "")


def _package_facts(packages: Mapping[str, str], every: bool) -> list[Fact]:
    """The versions of all packages, or of the few that say most."""
    names = sorted(packages, key=str.lower)
    if not every and len(names) > _MAX_PACKAGES:
        by_name = {name.lower().replace("_", "-"): name for name in names}
        telling = [by_name[name] for name in _TELLING_PACKAGES if name in by_name]
        names = (telling or names)[:_MAX_PACKAGES]
    facts = [(text.escape(name), text.escape(packages[name])) for name in names]
    if left := len(packages) - len(names):
        facts.append((f"... and {left:,} more (--all shows them)", ""))
    return facts


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
    return columns + [
        Column(f"metric:{name}", text.heading(name), _metric_cells(experiment, rows, name))
        for name in _metric_names(experiment)
    ]


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
