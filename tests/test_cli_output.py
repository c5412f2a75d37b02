"""What the command line says: values, tables, the views of experiments and checkpoints, JSON."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from replicate.cli import COMMANDS, LazyGroup, main, text
from replicate.cli.checkout import done_lines, question_lines
from replicate.cli.diff import code_lines, side_by_side
from replicate.cli.facts import checkpoint_lines, experiment_lines
from replicate.cli.listing import reductions, show_table, table_columns
from replicate.cli.output import Output
from replicate.cli.schema import comparison_json, experiment_with_checkpoints_json, value_json
from replicate.cli.show import checkpoint_columns, show_experiment, shown_rows
from replicate.cli.table import Column, cut, fit, render, text_width
from replicate.diff import Comparison, FileSide, Side, compare
from replicate.errors import AmbiguousIdError, DamagedError, ReplicateError, UsageError
from replicate.model import (
    CheckpointRecord,
    ExceptionInfo,
    ExperimentRecord,
    Heartbeat,
    PrimaryMetric,
    Status,
    Stop,
)
from replicate.project import CheckedOut

START = datetime(2020, 9, 2, 4, 42, 22, tzinfo=UTC)
ACCURACY = PrimaryMetric("accuracy", "maximize")


class Stream(io.TextIOWrapper):
    """A stream in memory that may be a terminal, with an encoding of its own."""

    def __init__(self, content: str = "", *, terminal: bool = False, encoding: str = "utf-8"):
        self._terminal = terminal
        super().__init__(io.BytesIO(content.encode()), encoding=encoding, newline="\n")

    def isatty(self) -> bool:
        return self._terminal

    @property
    def text(self) -> str:
        self.flush()
        written = self.buffer
        assert isinstance(written, io.BytesIO)
        return written.getvalue().decode()


class Screen:
    """An Output with what it has written."""

    def __init__(
        self, *, answer: str | None = None, encoding: str = "utf-8", **environment: str
    ) -> None:
        terminal = "COLUMNS" in environment
        stdin = Stream(answer or "", terminal=answer is not None)
        self.stdout = Stream(terminal=terminal, encoding=encoding)
        self.stderr = Stream(terminal=terminal, encoding=encoding)
        self.output = Output(stdin, self.stdout, self.stderr, environment)


def identity(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def experiment(
    key: str = "one",
    accuracies: Sequence[float] = (0.5, 1.0),
    primary: PrimaryMetric | None = ACCURACY,
    **fields: Any,
) -> ExperimentRecord:
    checkpoints = tuple(
        CheckpointRecord(
            id=identity(f"{key} {step}"),
            experiment=identity(key),
            created=START + timedelta(seconds=step + 1),
            step=step,
            path="model.pth",
            tree=None,
            metrics={"loss": 0.11759971082210541, "accuracy": accuracy},
            primary_metric=primary,
        )
        for step, accuracy in enumerate(accuracies)
    )
    known: dict[str, Any] = {
        "params": {"learning_rate": 0.01, "num_epochs": 100},
        "user": "ben",
        "host": "107.133.144.125",
        "command": "train.py",
        "path": ".",
        "tree": None,
        "stop": Stop(START + timedelta(seconds=9), Status.FINISHED),
    }
    return ExperimentRecord(
        id=identity(key), created=START, checkpoints=checkpoints, **(known | fields)
    )


def listing(experiments: Sequence[ExperimentRecord], width: int | None = None) -> list[str]:
    columns = table_columns(experiments, START + timedelta(seconds=13))
    return render(fit(columns, width, reductions(columns))[0])


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "brief", "full"),
    [
        (1.0, "1", "1"),
        (0.9666666388511658, "0.96667", "0.9666666388511658"),
        (0.1176, "0.1176", "0.1176"),
        (1e-05, "1e-05", "1e-05"),
        (123456.78, "123457", "123456.78"),
        (1e22, "1e+22", "1e+22"),
        (12345678901234567890, "12345678901234567890", "12345678901234567890"),
        (math.nan, "nan", "nan"),
        (-math.inf, "-inf", "-inf"),
        (True, "true", "true"),
        (None, "null", "null"),
        ("adam", "adam", "adam"),
        ([64, 0.123456789, "a"], '[64, 0.12346, "a"]', '[64, 0.123456789, "a"]'),
        ({"a": [None]}, '{"a": [null]}', '{"a": [null]}'),
    ],
)
def test_a_value_has_five_digits_in_tables_and_all_elsewhere(
    value: object, brief: str, full: str
) -> None:
    assert text.value(value) == brief
    assert text.value(value, full=True) == full


def test_values_that_differ_never_look_the_same() -> None:
    assert text.values_apart(1, "1") == ("1", '"1"')
    assert text.values_apart("a", "b") == ("a", "b")


@pytest.mark.parametrize(
    ("seconds", "long", "brief"),
    [
        (0, "just now", "now"),
        (-3, "just now", "now"),
        (1, "1 second ago", "1s ago"),
        (119, "1 minute ago", "1m ago"),
        (7200, "2 hours ago", "2h ago"),
        (86_400 * 29, "29 days ago", "29d ago"),
    ],
)
def test_times_are_told_in_one_unit(seconds: int, long: str, brief: str) -> None:
    now = START + timedelta(seconds=seconds)
    assert (text.ago(START, now), text.ago(START, now, brief=True)) == (long, brief)


@pytest.mark.parametrize("days", [60, -2])
def test_what_is_long_ago_or_to_come_is_told_by_its_date(days: int) -> None:
    assert text.ago(START, START + timedelta(days=days)).startswith("2020-09-0")


def test_durations_and_sizes_are_told_in_what_fits() -> None:
    lengths = [0, 59.6, 125, 3600 * 3 + 1200, 86_400 * 2 + 3600 * 4]
    told = [text.duration(timedelta(seconds=length)) for length in lengths]
    assert told == ["0s", "1m 00s", "2m 05s", "3h 20m", "2d 04h"]
    sizes = [0, 1, 999, 8312, 999_960, 123_456_789, 5 * 10**18]
    told = [text.size(size) for size in sizes]
    assert told[:4] == ["0 bytes", "1 byte", "999 bytes", "8.3 KB"]
    assert told[4:] == ["1.0 MB", "123 MB", "5000 PB"]


def test_nothing_that_a_terminal_would_act_on_is_left_in_a_text() -> None:
    hostile = "a\x1b]0;x\x07\r\n\u202eb\x9b\udc80 é👩‍🔬"
    assert text.escape(hostile) == "a\\x1b]0;x\\x07\\r\\n\\u202eb\\x9b\\udc80 é👩‍🔬"
    assert text.escape("a\nb\tc", keep="\n") == "a\nb\\tc"


# ---------------------------------------------------------------- tables


def test_columns_are_two_spaces_apart_with_none_at_the_end() -> None:
    columns = [Column("a", "ID", ["1234", "5"]), Column("b", "NAME", ["x", ""])]
    assert render(columns) == ["ID    NAME", "1234  x", "5"]


def test_wide_characters_and_accents_keep_the_columns_in_line() -> None:
    columns = [Column("a", "N", ["実験", "e\u0301"]), Column("b", "X", ["1", "2"])]
    assert render(columns) == ["N     X", "実験  1", "e\u0301     2"]
    assert text_width("実験") == 4


def test_a_cut_text_says_so_and_is_never_too_wide() -> None:
    assert cut("実験実験", 5) == "実験…"
    assert cut("abcdef", 5, "...") == "ab..."
    assert cut("abc", 3) == "abc"


def test_reductions_are_taken_only_as_far_as_needed() -> None:
    columns = [
        Column(k, k.upper() * 10, ["x"], short=lambda: ["x"], short_heading=k) for k in "abc"
    ]
    steps = [("shorten", "a"), ("hide", "b"), ("hide", "c")]
    kept, hidden = fit(columns, 14, steps)  # type: ignore[arg-type]
    assert [c.heading for c in kept] == ["a", "C" * 10]
    assert [c.key for c in hidden] == ["b"]


def test_the_widest_cells_are_cut_last_and_ids_never() -> None:
    columns = [Column("id", "ID", ["i" * 20], whole=True), Column("b", "B", ["b" * 50])]
    kept, _ = fit(columns, 40)
    assert render(kept)[1] == "i" * 20 + "  " + "b" * 17 + "…"


# ---------------------------------------------------------------- ls


def test_ls_shows_what_differs_and_the_primary_metric_of_latest_and_best() -> None:
    second = experiment(
        "two", [1.0, 0.9666666388511658], params={"learning_rate": 0.2, "num_epochs": 100}
    )
    one = experiment()
    ids = [c.id[:7] for e in (one, second) for c in e.checkpoints]
    assert listing([one, second]) == [
        "EXPERIMENT  STARTED         STATUS    HOST             USER  LEARNING_RATE  "
        "LATEST CHECKPOINT  ACCURACY  BEST CHECKPOINT   ACCURACY",
        f"{one.id[:7]}     13 seconds ago  finished  107.133.144.125  ben   0.01           "
        f"{ids[1]} (step 1)   1         {ids[1]} (step 1)  1",
        f"{second.id[:7]}     13 seconds ago  finished  107.133.144.125  ben   0.2            "
        f"{ids[3]} (step 1)   0.96667   {ids[2]} (step 0)  1",
    ]


def test_ls_without_a_primary_metric_has_no_best_checkpoints() -> None:
    assert listing([experiment(primary=None)])[0].endswith("USER  LATEST CHECKPOINT")


def test_ls_gives_each_primary_metric_its_column() -> None:
    other = experiment("two", primary=PrimaryMetric("loss", "minimize"))
    heading, first, second = listing([experiment(), other])
    assert heading.endswith("BEST CHECKPOINT   ACCURACY  LOSS")
    assert first.endswith("1")
    assert second.endswith(" 0.1176")


def test_ls_hides_params_that_are_objects_and_shows_names_and_tags_where_given() -> None:
    one = experiment(params={"a": {}, "b": [[1]], "c": {"d": 1}}, name="first", tags=("x", "y"))
    heading, *rows = listing([one, experiment("two", params={"c": {"d": 2}})])
    assert heading.split()[:3] == ["EXPERIMENT", "NAME", "TAGS"]
    assert "C.D" in heading
    assert " A " not in heading
    assert " B " not in heading
    assert "first  x, y" in rows[0]


def test_ls_with_all_shows_params_that_are_equal() -> None:
    columns = table_columns([experiment()], START, every=True)
    assert [c.heading for c in columns if c.key.startswith("param:")] == [
        "LEARNING_RATE",
        "NUM_EPOCHS",
    ]


def test_ls_fits_80_columns_and_says_what_had_no_room() -> None:
    screen = Screen(COLUMNS="80", NO_COLOR="1")
    experiments = [
        experiment(),
        experiment("two", params={"learning_rate": 0.2, "path": "/data/" * 20}),
    ]
    show_table(screen.output, experiments, every=False)
    lines = screen.stdout.text.splitlines()
    assert max(map(text_width, lines)) <= 80
    assert lines[0].split() == [
        *("EXPERIMENT", "STARTED", "STATUS", "LEARNING_RATE", "LATEST", "BEST", "ACCURACY")
    ]
    assert screen.stderr.text == (
        "No room for HOST, USER, LATEST ACCURACY, PATH, NUM_EPOCHS: "
        "`replicate ls | less -S` shows everything\n"
    )


def test_ls_is_complete_and_plain_when_piped() -> None:
    screen = Screen()
    show_table(screen.output, [experiment(command="x", host="h" * 300)], every=True)
    assert "h" * 300 in screen.stdout.text
    assert "\x1b" not in screen.stdout.text
    assert screen.stderr.text == ""


def test_ls_paints_the_status_on_a_terminal() -> None:
    screen = Screen(COLUMNS="200")
    running = experiment(stop=None, heartbeat=Heartbeat(1, 10))
    show_table(screen.output, [running], every=False)
    assert "\x1b[32mrunning\x1b[0m  " in screen.stdout.text
    assert "\x1b[1mEXPERIMENT\x1b[0m  " in screen.stdout.text


def test_ls_keeps_what_others_named_from_reaching_the_terminal() -> None:
    one = experiment(params={"a\x1b[2J": 1}, host="\x1b[31m", name="x\ny", tags=("\x07",))
    columns = table_columns([one], START, every=True)
    shown = "".join(render(columns))
    assert shown.isprintable()


# ---------------------------------------------------------------- show


def test_show_experiment_begins_as_in_the_tutorial() -> None:
    lines = experiment_lines(experiment())
    assert lines[:2] == [f"Experiment: {identity('one')}", ""]
    assert lines[2].startswith("Created:        ")
    assert lines[3:] == [
        "Status:         finished",
        "Host:           107.133.144.125",
        "User:           ben",
        "Command:        train.py",
        "Duration:       9s",
        "",
        "Params",
        "learning_rate:  0.01",
        "num_epochs:     100",
    ]


def test_show_leaves_out_what_another_tool_has_not_kept() -> None:
    lines = experiment_lines(experiment(host="", user="", command=""))
    assert not [line for line in lines if line.startswith(("Host", "User", "Command"))]
    assert lines[3:5] == ["Status:         finished", "Duration:       9s"]


def test_show_experiment_has_what_else_is_known() -> None:
    one = experiment(
        name="baseline",
        notes="first\nsecond",
        stop=Stop(
            START + timedelta(seconds=5),
            Status.FAILED,
            ExceptionInfo("ValueError", "bad\x1b", "Traceback:\n  line\x1b"),
        ),
        environment={
            "python": {"version": "3.13.1", "implementation": "CPython"},
            "os": {"system": "Linux", "release": "6.8", "distribution": None},
            "cpu": {"model": None, "count": 8},
            "memory": None,
            "gpus": [{"name": "A100", "memory": 80 * 10**9, "driver": "1"}] * 2,
            "git": {"commit": "abc", "branch": "main", "dirty": True, "remote": None},
        },
        problems=("a checkpoint lacks files",),
    )
    shown = "\n".join(experiment_lines(one))
    for line in (
        "Name:           baseline",
        "Notes:          first\n                second",
        "Ended by:       ValueError: bad\\x1b",
        "Python:         3.13.1 CPython",
        "OS:             Linux 6.8",
        "CPU:            8 cores",
        "GPU:            2 × A100, 80.0 GB",
        "Git:            abc on main (dirty)",
        "Problems\na checkpoint lacks files",
    ):
        assert f"\n{line}" in shown
    assert "Traceback" not in shown
    assert "\nTraceback\nTraceback:\n  line\\x1b" in "\n".join(experiment_lines(one, every=True))


def test_show_names_the_packages_that_say_most() -> None:
    others = {f"package{n}": "1" for n in range(9)}
    one = experiment(packages={"numpy": "2", "torch": "2.13", **others})
    lines = experiment_lines(one)
    assert lines[lines.index("Packages") + 1 :] == [
        "torch:          2.13",
        "numpy:          2",
        "... and 9 more (--all shows them)",
    ]
    assert "package8:       1" in experiment_lines(one, every=True)


def test_show_marks_the_best_checkpoint_and_puts_the_primary_metric_first() -> None:
    one = experiment(accuracies=[0.33333333, 1.0])
    ids = [c.id[:7] for c in one.checkpoints]
    assert render(checkpoint_columns(one, START + timedelta(seconds=62))) == [
        "ID       STEP  CREATED       ACCURACY  LOSS",
        f"{ids[0]}  0     1 minute ago  0.33333   0.1176",
        f"{ids[1]}  1     1 minute ago  1 (best)  0.1176",
    ]


@pytest.mark.parametrize(
    ("best", "rows"),
    [
        (12, [0, 1, 2, 3, 4, None, 12, None, 25, 26, 27, 28, 29]),
        (5, [0, 1, 2, 3, 4, 5, None, 25, 26, 27, 28, 29]),
        (29, [0, 1, 2, 3, 4, None, 25, 26, 27, 28, 29]),
    ],
)
def test_show_shortens_many_checkpoints_but_never_hides_the_best(
    best: int, rows: list[int | None]
) -> None:
    one = experiment(accuracies=[1.0 if n == best else 0.5 for n in range(30)])
    assert shown_rows(one) == rows
    assert render(checkpoint_columns(one, START))[rows.index(None) + 1] == "..."
    assert len(render(checkpoint_columns(one, START, every=True))) == 31


def test_show_writes_twenty_checkpoints_in_full() -> None:
    assert shown_rows(experiment(accuracies=[0.5] * 20)) == list(range(20))


def test_show_checkpoint_has_its_metrics_in_full_and_its_experiment() -> None:
    one = experiment()
    lines = checkpoint_lines(one, one.checkpoints[1])
    assert lines[0] == f"Checkpoint: {one.checkpoints[1].id}"
    assert lines[3:5] == ["Path:               model.pth", "Step:               1"]
    assert lines[6:8] == ["Experiment", f"ID:                 {one.id}"]
    assert lines[-4:] == [
        "",
        "Metrics",
        "accuracy:           1 (primary, maximize)",
        "loss:               0.11759971082210541",
    ]


def test_show_fits_80_columns_and_says_which_metrics_had_no_room() -> None:
    one = experiment(accuracies=[1])
    wide = {f"metric_with_a_long_name_{n}": 0.5 for n in range(5)} | {"accuracy": 1}
    one = replace(one, checkpoints=(replace(one.checkpoints[0], metrics=wide),))
    screen = Screen(COLUMNS="80", NO_COLOR="1")
    show_experiment(screen.output, one, every=False)
    table = screen.stdout.text.partition("Checkpoints\n")[2].splitlines()
    assert max(map(len, table)) <= 80
    assert "ACCURACY" in table[0]
    assert screen.stderr.text.startswith("No room for METRIC_WITH_A_LONG_NAME_4")


# ---------------------------------------------------------------- diff


def file(content: bytes) -> FileSide:
    return FileSide(hashlib.sha256(content).hexdigest(), len(content), 0o644, lambda: content)


def comparison(code: bytes = b"a\n") -> Comparison:
    one, two = experiment(), experiment("two", params={"learning_rate": 0.2, "new": "x" * 90})
    left = Side(one, one.checkpoints[1], {"train.py": file(b"a\n")}, {"model.pth": file(b"1")})
    right = Side(two, two.checkpoints[0], {"train.py": file(code)}, {"model.pth": file(b"2")})
    return compare(left, right)


def test_diff_puts_both_sides_in_columns_and_only_what_differs() -> None:
    found = comparison()
    left, right = found.left.checkpoint, found.right.checkpoint
    assert left is not None
    assert right is not None
    lines = side_by_side(found, width=80)
    gap = " " * 21
    assert lines == [
        f"Checkpoint:               {left.id[:7]}{gap}{right.id[:7]}",
        f"Experiment:               {identity('one')[:7]}{gap}{identity('two')[:7]}",
        "",
        "Params",
        "learning_rate:            0.01                        0.2",
        "num_epochs:               100                         (not set)",
        "new:                      (not set)                   " + "x" * 25 + "…",
        "",
        "Metrics",
        "accuracy:                 1                           0.5",
        "",
        "Files",
        "model.pth:                1 byte (6b86b27)            1 byte (d4735e3)",
    ]
    assert max(map(len, lines)) <= 80


def test_diff_cuts_nothing_when_piped() -> None:
    assert any(line.endswith("x" * 90) for line in side_by_side(comparison()))


def test_diff_paints_and_defuses_code_on_a_terminal_only() -> None:
    found = comparison(b"\x1b[2J\n")
    assert code_lines(found)[-2:] == ["-a", "+\x1b[2J"]
    painted = code_lines(found, lambda text, style: f"<{style}>{text}", terminal=True)
    assert painted[-2:] == ["<red>-a", "<green>+\\x1b[2J"]


def test_diff_of_equal_code_has_no_code_section() -> None:
    assert code_lines(comparison()) == []


# ---------------------------------------------------------------- checkout


def test_checkout_says_what_it_overwrites_and_how_to_undo_it() -> None:
    files = ["a", "b", "c", "d"]
    [first, second] = question_lines(Path("/p"), files, files)
    assert first == ['The directory "/p" is not empty.']
    assert second[0] == "This checkout overwrites 4 files: a, b, c and 1 more"
    assert done_lines("8ee945b" + "0" * 57, CheckedOut(Path("/p"), 4, "backup"), "my dir") == [
        'Checked out 8ee945b to "/p"',
        "To undo: replicate checkout --undo -o 'my dir'",
    ]


# ---------------------------------------------------------------- JSON


def test_numbers_that_json_lacks_are_written_as_strings() -> None:
    value = {"a": [math.nan, math.inf, -math.inf, 1.5]}
    assert value_json(value) == {"a": ["NaN", "Infinity", "-Infinity", 1.5]}


def test_the_json_of_an_experiment_is_valid_and_has_its_checkpoints() -> None:
    screen = Screen()
    one = experiment(accuracies=[math.nan, 0.5], name="größe")
    screen.output.json(experiment_with_checkpoints_json(one))
    written = screen.stdout.text
    assert written.endswith("}\n")
    assert "größe" in written
    found = json.loads(written, parse_constant=pytest.fail)
    assert found["created"] == "2020-09-02T04:42:22Z"
    assert (found["status"], found["num_checkpoints"], found["duration"]) == ("finished", 2, 9.0)
    assert found["checkpoints"][0]["metrics"]["accuracy"] == "NaN"
    assert found["best_checkpoint"] == found["latest_checkpoint"] == found["checkpoints"][1]
    assert found["best_checkpoint"]["primary_metric"] == {"name": "accuracy", "goal": "maximize"}


def test_json_stays_valid_where_stdout_has_no_such_letters() -> None:
    screen = Screen(encoding="ascii")
    screen.output.json({"a": "é\ud800"})
    assert json.loads(screen.stdout.text) == {"a": "é\ud800"}


def test_the_json_of_a_comparison_tells_null_from_nothing() -> None:
    found = comparison_json(comparison(b"b\n"))
    assert found["params"]["num_epochs"] == {"left": 100}
    assert found["files"][0]["kind"] == "changed"
    assert found["code"][0]["diff"].endswith("@@ -1 +1 @@\n-a\n+b\n")


# ---------------------------------------------------------------- the terminal


def test_messages_have_a_mark_that_the_terminal_can_write() -> None:
    screen, old = Screen(), Screen(encoding="ascii")
    for each in (screen, old):
        each.output.message("Checked out é", "more")
    assert screen.stderr.text == "═══╡ Checked out é\n   │ more\n"
    assert old.stderr.text == "===| Checked out \\xe9\n   | more\n"
    assert screen.stdout.text == ""


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "yeah\n", "N\n"])
def test_all_but_a_yes_is_a_no(answer: str) -> None:
    assert not Screen(answer=answer).output.confirm("Go on?")


@pytest.mark.parametrize("answer", ["y\n", "YES\n", "y"])
def test_a_yes_is_a_yes(answer: str) -> None:
    screen = Screen(answer=answer)
    assert screen.output.confirm("Go on?")
    assert screen.stderr.text.startswith("\nGo on? (y/N) ")


def test_with_no_terminal_a_question_names_the_flag() -> None:
    with pytest.raises(UsageError, match="--yes"):
        Screen().output.confirm("Go on?", flag="--yes")


@pytest.mark.parametrize(
    ("when", "environment", "painted"),
    [
        ("auto", {"COLUMNS": "80"}, True),
        ("auto", {}, False),
        ("auto", {"COLUMNS": "80", "NO_COLOR": "1"}, False),
        ("auto", {"COLUMNS": "80", "TERM": "dumb"}, False),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {"COLUMNS": "80"}, False),
    ],
)
def test_colours_are_for_terminals_and_can_be_chosen(
    when: str, environment: dict[str, str], painted: bool
) -> None:
    output = Screen(**environment).output
    output.set_color(when)
    assert (output.paint("x", "red") != "x") is painted


def test_many_warnings_are_counted() -> None:
    screen = Screen()
    screen.output.warn(f"lost {n}\x1b" for n in range(12))
    lines = screen.stderr.text.splitlines()
    assert lines[0] == "warning: lost 0\\x1b"
    assert lines[-1] == "warning: and 2 more like these"
    assert len(lines) == 11


# ---------------------------------------------------------------- the program


def failing(problem: BaseException) -> LazyGroup:
    @click.command()
    def fail() -> None:
        raise problem

    group = LazyGroup("replicate", callback=main.callback, params=main.params)
    group.add_command(fail)
    return group


def run(*words: str, group: LazyGroup = main) -> Result:  # type: ignore[assignment]
    return CliRunner().invoke(group, list(words))


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (DamagedError("trees/ab is damaged", hint="copy it"), 1, "error: trees/ab is damaged\n"),
        (UsageError("wrong"), 2, "error: wrong\n"),
        (AmbiguousIdError("many", ["a1", "a2"]), 2, "error: many\n  a1\n  a2\n"),
        (KeyError("x"), 1, "error: unexpected KeyError: 'x'\nhint: `replicate --verbose …`"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (BrokenPipeError("to a bucket"), 1, "error: unexpected BrokenPipeError: to a bucket"),
        (ReplicateError("\x1b[2J"), 1, "error: \\x1b[2J\n"),
    ],
)
def test_every_failure_is_said_in_words_and_has_its_exit_code(
    problem: BaseException, code: int, said: str
) -> None:
    result = run("fail", group=failing(problem))
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(said)
    assert "Traceback" not in result.stderr


def test_verbose_shows_where_an_error_comes_from() -> None:
    result = run("--verbose", "fail", group=failing(KeyError("x")))
    assert "in fail\n    raise problem\nKeyError: 'x'" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lss"], 'error: there is no command "lss"; did you mean ls?\n'),
        (
            ["completion"],
            "error: Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish\n",
        ),
        (["show"], "error: Missing argument 'ID'\nhint: see `replicate show --help`\n"),
        (["ls", "--nonsense"], "error: No such option '--nonsense'"),
        (["ls", "--quiet", "--json"], "error: --quiet cannot be used together with"),
        (["checkout", "--undo", "--path", "model.pth"], "error: --undo takes no --path"),
    ],
)
def test_wrong_use_is_explained_and_ends_in_2(words: list[str], said: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(said)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 0
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", [*COMMANDS, "list"])
def test_every_command_has_help_with_examples(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Examples:\n    replicate " in result.stdout
    first = main.get_command(click.Context(main), name)
    assert first is not None
    assert first.help is not None
    assert first.help.splitlines()[0] == COMMANDS["ls" if name == "list" else name]


def test_no_experiments_is_said_and_is_no_failure(tmp_path: Path) -> None:
    result = run("ls", "-D", str(tmp_path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("No experiments found\n")


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from replicate.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.startswith('replicate.cli.')))"
    )
    done = subprocess.run(python("-c", code), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['replicate.cli.output', 'replicate.cli.text']"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_failure(unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        python("-m", "replicate", "--help"),
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
