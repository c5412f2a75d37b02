"""What there is to say about an experiment or a checkpoint, in lines of `label:  fact`.

It writes nowhere, and knows nothing of tables of checkpoints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from replicate.cli import text
from replicate.cli.table import Paint, pad, text_width, unpainted
from replicate.model import (
    CheckpointRecord,
    ExperimentRecord,
    PrimaryMetric,
    Stop,
    Value,
    flatten,
)

Fact = tuple[str, str]

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
        *([("Files", "let go, as `keep` says")] if checkpoint.dropped else []),
        *([("Lacks", _lacks(checkpoint))] if checkpoint.lost else []),
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
    facts = [
        ("Created", text.date(experiment.created)),
        ("Status", text.status(experiment)),
        ("Host", text.escape(experiment.host)),
        ("User", text.escape(experiment.user)),
        ("Command", text.escape(experiment.command)),
    ]
    return [fact for fact in facts if fact[1]]  # other tools do not keep all of them


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


def _lacks(checkpoint: CheckpointRecord) -> str:
    return f"{text.lost_paths(checkpoint)}, which could not be saved"


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
