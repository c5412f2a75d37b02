"""What differs between two checkpoints: params, metrics, what was logged, packages, code, outputs.

Pure values and text: it knows what equal means and how a unified diff is written, and nothing of
storage (a file's bytes come from the `read` that it is given) or of how a difference is shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from replicate.model import CheckpointRecord, ExperimentRecord, Value, flatten, same

#: A text file of more bytes or lines than this is named, not diffed: nobody reads such a diff, and
#: the time to compute it grows with the square of the lines.
MAX_DIFF_BYTES = 1024 * 1024
MAX_DIFF_LINES = 20_000

Kind = Literal["added", "removed", "changed", "mode"]


class Missing:
    """The type of MISSING: the side of a change that has no value (which None would be)."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


@dataclass(frozen=True, slots=True)
class Change:
    """A named value that is not the same on both sides."""

    name: str
    left: Value | Missing
    right: Value | Missing


@dataclass(frozen=True, slots=True)
class FileSide:
    """A file on one side: the hash of its bytes, their number, its mode, and a way to read it."""

    hash: str
    size: int
    mode: int
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that is not the same on both sides; the side that lacks it is None."""

    path: str
    kind: Kind
    left: FileSide | None
    right: FileSide | None


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two things compared: `code` is the experiment's files, `outputs` the checkpoint's,
    None where they cannot be told.

    An experiment that has no checkpoint yet is compared by what it has.
    """

    experiment: ExperimentRecord
    checkpoint: CheckpointRecord | None
    code: Mapping[str, FileSide] | None = field(default_factory=dict)
    outputs: Mapping[str, FileSide] | None = field(default_factory=dict)

    @property
    def has_files(self) -> bool:
        """Whether its files are known."""
        return self.code is not None and self.outputs is not None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that differs between two sides, and nothing that does not. Where the files of one are
    not known, no file is compared."""

    left: Side
    right: Side
    params: list[Change]
    metrics: list[Change]
    logged: list[Change]
    packages: list[Change]
    outputs: list[FileChange]
    code: list[FileChange]

    @property
    def has_files(self) -> bool:
        """Whether files were compared."""
        return self.left.has_files and self.right.has_files

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        values = self.params or self.metrics or self.logged or self.packages
        return not (values or self.outputs or self.code)


def compare(left: Side, right: Side) -> Comparison:
    """All that differs between two sides. Reads no file: hashes and modes decide.

    The primary metric comes before the others, packages come by name, all else in its own order.
    What was logged is compared as it was last, but for what both checkpoints have as a metric.
    A checkpoint's output is no code, even where an experiment found it from an earlier run.
    """
    sides = (left, right)
    known = all(s.has_files for s in sides)
    outputs = [s.outputs or {} if known else {} for s in sides]
    either = outputs[0].keys() | outputs[1].keys()
    all_code = [s.code or {} if known else {} for s in sides]
    code = [{p: f for p, f in files.items() if p not in either} for files in all_code]
    metrics = [flatten(s.checkpoint.metrics) if s.checkpoint else {} for s in sides]
    both = metrics[0].keys() & metrics[1].keys()
    logged = [
        {name: value for name, value in flatten(s.experiment.logged).items() if name not in both}
        for s in sides
    ]
    primary = left.experiment.primary_metric
    return Comparison(
        left=left,
        right=right,
        params=compare_values(flatten(left.experiment.params), flatten(right.experiment.params)),
        metrics=sorted(
            compare_values(*metrics),
            key=lambda change: primary is None or change.name != primary.name,
        ),
        logged=compare_values(*logged),
        packages=sorted(
            compare_values(left.experiment.packages, right.experiment.packages),
            key=lambda change: change.name.lower(),
        ),
        outputs=compare_files(*outputs),
        code=compare_files(*code),
    )


def compare_values(left: Mapping[str, Value], right: Mapping[str, Value]) -> list[Change]:
    """The names whose values differ, in order of first appearance."""
    changes = (
        Change(name, left.get(name, MISSING), right.get(name, MISSING))
        for name in dict.fromkeys([*left, *right])
    )
    return [change for change in changes if not same(change.left, change.right)]


def compare_files(left: Mapping[str, FileSide], right: Mapping[str, FileSide]) -> list[FileChange]:
    """The files that differ in bytes or in being executable, by path. Reads none of them."""
    changes = []
    for path in sorted(left.keys() | right.keys()):
        kind = _kind(left.get(path), right.get(path))
        if kind is not None:
            changes.append(FileChange(path, kind, left.get(path), right.get(path)))
    return changes


def _kind(left: FileSide | None, right: FileSide | None) -> Kind | None:
    if left is None:
        return "added"
    if right is None:
        return "removed"
    if left.hash != right.hash:
        return "changed"
    return "mode" if _git_mode(left) != _git_mode(right) else None


def unified(change: FileChange, context: int = 3) -> list[str]:
    """The lines of a unified diff as git writes it, without their newlines; `git apply` takes it.

    A file that is not UTF-8 text, or is larger than anyone would read, is named and not diffed.
    """
    old, new = _quoted(f"a/{change.path}"), _quoted(f"b/{change.path}")
    header = [f"diff --git {old} {new}", *_mode_lines(change)]
    if change.kind == "mode":
        return header
    old = old if change.left else "/dev/null"
    new = new if change.right else "/dev/null"
    sizes = [side.size for side in (change.left, change.right) if side]
    if max(sizes) > MAX_DIFF_BYTES:
        return [*header, f"Files {old} and {new} differ, too large to show"]
    left, right = _text_lines(change.left), _text_lines(change.right)
    if left is None or right is None:
        return [*header, f"Binary files {old} and {new} differ"]
    if max(len(left), len(right)) > MAX_DIFF_LINES:
        return [*header, f"Files {old} and {new} differ, too large to show"]
    hunks = difflib.unified_diff(left, right, old, new, n=context)
    return header + [line for raw in hunks for line in _without_newline(raw)]


def _mode_lines(change: FileChange) -> list[str]:
    left, right = change.left, change.right
    if left is None:
        return [f"new file mode {_git_mode(right)}"]
    if right is None:
        return [f"deleted file mode {_git_mode(left)}"]
    if _git_mode(left) == _git_mode(right):
        return []
    return [f"old mode {_git_mode(left)}", f"new mode {_git_mode(right)}"]


def _git_mode(side: FileSide | None) -> str:
    """The mode as git has it: whether a file may be executed, and nothing that a umask changes."""
    return "100755" if side is not None and side.mode & 0o100 else "100644"


def _text_lines(side: FileSide | None) -> list[str] | None:
    """The lines with their ends, [] for a file that is not there, None for one that is no text.

    Only a newline ends a line: `str.splitlines` would also cut at form feeds and the like.
    """
    if side is None:
        return []
    content = side.read()
    if b"\0" in content:
        return None
    try:
        return re.findall(r"[^\n]*\n|[^\n]+\Z", content.decode("utf-8"))
    except UnicodeDecodeError:
        return None


def _without_newline(line: str) -> list[str]:
    if line.endswith("\n"):
        return [line[:-1]]
    return [line, "\\ No newline at end of file"]


def _quoted(path: str) -> str:
    """The path as git writes it: in quotes when it holds characters that would break the line."""
    if not re.search(r'[\x00-\x1f\x7f"\\]', path):
        return path
    escaped = re.sub(r'["\\]', r"\\\g<0>", path)
    escaped = re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\{ord(m.group()):03o}", escaped)
    return f'"{escaped}"'
