"""What counts as a difference, and that the unified diff is one that git takes."""

from __future__ import annotations

import hashlib
import math
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate.diff import (
    MAX_DIFF_BYTES,
    MISSING,
    Change,
    FileChange,
    FileSide,
    Side,
    compare,
    compare_files,
    compare_values,
    unified,
)
from replicate.model import CheckpointRecord, ExperimentRecord, PrimaryMetric

NOON = datetime(2020, 9, 1, 12, tzinfo=UTC)


def file(content: bytes, mode: int = 0o644) -> FileSide:
    return FileSide(hashlib.sha256(content).hexdigest(), len(content), mode, lambda: content)


def side(
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, object] | None = None,
    code: Mapping[str, FileSide] | None = None,
    outputs: Mapping[str, FileSide] | None = None,
    packages: Mapping[str, str] | None = None,
    logged: Mapping[str, Any] | None = None,
) -> Side:
    checkpoint = CheckpointRecord(
        id="c" * 64,
        experiment="e" * 64,
        created=NOON,
        step=1,
        path="model.pth",
        tree=None,
        metrics=metrics or {},
        primary_metric=PrimaryMetric("accuracy", "maximize"),
    )
    experiment = ExperimentRecord(
        id="e" * 64,
        created=NOON,
        params=params or {},
        user="ben",
        host="host",
        command="train.py",
        path=".",
        tree=None,
        packages=packages or {},
        logged=logged or {},
        checkpoints=(checkpoint,),
    )
    return Side(experiment, checkpoint, code or {}, outputs or {})


def only_change(left: bytes | None, right: bytes | None, path: str = "train.py") -> FileChange:
    sides = [{path: file(content)} if content is not None else {} for content in (left, right)]
    [change] = compare_files(*sides)
    return change


def test_only_differing_values_are_changes() -> None:
    changes = compare_values({"a": 1, "b": 2, "old": None}, {"a": 1, "b": 3, "new": 4})
    assert changes == [
        Change("b", 2, 3),
        Change("old", None, MISSING),
        Change("new", MISSING, 4),
    ]


@pytest.mark.parametrize(
    ("left", "right"),
    [(1, 1.0), (math.nan, math.nan), ([1, math.nan], [1, math.nan]), (True, True), ("a", "a")],
)
def test_values_that_mean_the_same_are_no_change(left: object, right: object) -> None:
    assert compare_values({"x": left}, {"x": right}) == []


@pytest.mark.parametrize(("left", "right"), [(1, True), (0, False), (1, "1"), (None, 0), (0.0, "")])
def test_values_of_another_kind_are_a_change(left: object, right: object) -> None:
    assert compare_values({"x": left}, {"x": right}) == [Change("x", left, right)]


def test_nested_params_are_compared_by_their_parts() -> None:
    left = side(params={"optimizer": {"name": "adam", "lr": 0.1}})
    right = side(params={"optimizer": {"name": "adam", "lr": 0.2}})
    assert compare(left, right).params == [Change("optimizer.lr", 0.1, 0.2)]


def test_the_primary_metric_comes_first_and_packages_by_name() -> None:
    left = side(metrics={"loss": 1, "accuracy": 1}, packages={"torch": "1", "PyYAML": "1"})
    right = side(metrics={"loss": 2, "accuracy": 2}, packages={"torch": "2", "PyYAML": "2"})
    comparison = compare(left, right)
    assert [c.name for c in comparison.metrics] == ["accuracy", "loss"]
    assert [c.name for c in comparison.packages] == ["PyYAML", "torch"]


def test_what_was_only_logged_is_compared_as_it_was_last() -> None:
    left = side(metrics={"accuracy": 1, "f1": 1}, logged={"loss": 0.5, "f1": 7, "accuracy": 7})
    right = side(metrics={"accuracy": 2}, logged={"loss": 0.4, "lr": 0.1, "accuracy": 8})
    comparison = compare(left, right)
    assert comparison.logged == [
        Change("loss", 0.5, 0.4),
        Change("f1", 7, MISSING),
        Change("lr", MISSING, 0.1),
    ]
    assert not compare(side(logged={"a": 1}), side(logged={"a": 2})).identical
    assert compare(side(logged={"a": 1}), side(logged={"a": 1})).identical


def test_the_same_on_both_sides_is_identical() -> None:
    one = side(params={"a": math.nan}, code={"x": file(b"1")}, outputs={"y": file(b"2")})
    assert compare(one, one).identical
    assert not compare(one, side(params={"a": 1})).identical


def test_an_output_found_in_the_project_by_the_next_run_is_not_its_code() -> None:
    left = side(code={"train.py": file(b"1")}, outputs={"model.pth": file(b"old")})
    code = {"train.py": file(b"1"), "model.pth": file(b"old")}
    comparison = compare(left, side(code=code, outputs={"model.pth": file(b"new")}))
    assert comparison.code == []
    assert [change.path for change in comparison.outputs] == ["model.pth"]


def test_where_the_files_of_one_are_not_known_none_are_compared() -> None:
    known = side(params={"a": 1}, code={"x": file(b"1")}, outputs={"y": file(b"2")})
    for code, outputs in ((None, {"y": file(b"3")}), ({"x": file(b"3")}, None)):
        unknown = Side(known.experiment, known.checkpoint, code, outputs)
        for pair in ((known, unknown), (unknown, known)):
            comparison = compare(*pair)
            assert (comparison.code, comparison.outputs) == ([], [])
            assert not comparison.has_files
    assert compare(known, known).has_files


def test_an_experiment_without_checkpoints_is_compared_by_what_it_has() -> None:
    right = side(params={"a": 2}, metrics={"accuracy": 1})
    left = Side(side(params={"a": 1}).experiment, None)
    comparison = compare(left, right)
    assert comparison.params == [Change("a", 1, 2)]
    assert comparison.metrics == [Change("accuracy", MISSING, 1)]


def test_files_differ_by_content_existence_or_being_executable() -> None:
    left = {"a": file(b"1"), "b": file(b"1"), "c": file(b"1"), "d": file(b"1", 0o644)}
    right = {"a": file(b"1"), "b": file(b"2"), "d": file(b"1", 0o755), "e": file(b"1")}
    found = [(change.path, change.kind) for change in compare_files(left, right)]
    assert found == [("b", "changed"), ("c", "removed"), ("d", "mode"), ("e", "added")]


def test_another_umask_is_no_difference() -> None:
    assert compare_files({"a": file(b"1", 0o644)}, {"a": file(b"1", 0o664)}) == []


def test_a_change_is_shown_as_git_shows_it() -> None:
    assert unified(only_change(b"a\nb\n", b"a\nc")) == [
        "diff --git a/train.py b/train.py",
        "--- a/train.py",
        "+++ b/train.py",
        "@@ -1,2 +1,2 @@",
        " a",
        "-b",
        "+c",
        "\\ No newline at end of file",
    ]


def test_a_new_file_comes_from_nowhere() -> None:
    assert unified(only_change(None, b"a\n"))[1:4] == [
        "new file mode 100644",
        "--- /dev/null",
        "+++ b/train.py",
    ]


@pytest.mark.parametrize("content", [b"\x00\x01", b"\xff\xfe caf\xe9"])
def test_a_file_that_is_no_text_is_named_only(content: bytes) -> None:
    lines = unified(only_change(b"text\n", content))
    assert lines[-1] == "Binary files a/train.py and b/train.py differ"


def test_a_large_file_is_named_and_not_even_read() -> None:
    def unreadable() -> bytes:
        raise AssertionError("it was read")

    large = FileSide("hash", MAX_DIFF_BYTES + 1, 0o644, unreadable)
    [change] = compare_files({"log.txt": file(b"")}, {"log.txt": large})
    assert unified(change)[-1] == "Files a/log.txt and b/log.txt differ, too large to show"


def test_a_file_of_very_many_lines_is_named_only() -> None:
    change = only_change(b"1\n" * 30_000, b"2\n" * 30_000)
    assert unified(change)[-1].endswith("too large to show")


def test_only_a_newline_ends_a_line() -> None:
    lines = unified(only_change("a\x0cb\u2028c\r\n".encode(), b"x\n"))
    assert "-a\x0cb\u2028c\r" in lines


TEXT = st.none() | st.text(st.sampled_from("ab\n\r\t\x0c\u2028é\\ +-@"), max_size=30).map(
    str.encode
)


@settings(max_examples=40, deadline=None)
@given(
    left=TEXT,
    right=TEXT,
    path=st.sampled_from(["train.py", "with space.py", 'quo"te\\.py', "tab\t.py", "dir/é.py"]),
    modes=st.tuples(*[st.sampled_from([0o644, 0o755])] * 2),
)
def test_git_makes_the_right_side_of_the_left_one(
    tmp_path_factory: pytest.TempPathFactory,
    left: bytes | None,
    right: bytes | None,
    path: str,
    modes: tuple[int, int],
) -> None:
    contents = zip((left, right), modes, strict=True)
    sides = [{path: file(c, mode)} if c is not None else {} for c, mode in contents]
    changes = compare_files(*sides)
    root = tmp_path_factory.mktemp("apply")
    target = root / path
    target.parent.mkdir(exist_ok=True)
    if left is not None:
        target.write_bytes(left)
        target.chmod(modes[0])
    patch = "".join(f"{line}\n" for change in changes for line in unified(change)).encode()
    if patch:
        _apply(root, patch)
    assert (target.read_bytes() if target.exists() else None) == right
    if right is not None:
        assert target.stat().st_mode & 0o100 == modes[1] & 0o100


def _apply(root: Path, patch: bytes) -> None:
    command = ["git", "apply", "--whitespace=nowarn", "-"]
    environment = {"GIT_CEILING_DIRECTORIES": str(root.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, input=patch, cwd=root, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode() + patch.decode()
