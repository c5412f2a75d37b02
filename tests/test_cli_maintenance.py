"""`replicate verify`, `rm`, `gc` and `du`, as a person types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from replicate.cli import main
from replicate.project import Project
from replicate.repository import Repository
from saving import Run, age, finished, garbage, local, objects

CODE = {"train.py": b"import replicate"}

posix = pytest.mark.skipif(os.name != "posix", reason="needs a terminal of POSIX")


class Typed:
    """A project, and the command line in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.repository: Repository = local(directory / ".replicate")

    def __call__(self, command: str, *words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [command, *words, "-D", str(self.directory)])
        assert result.exit_code == code, result.output
        return result

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code).stdout)

    def ids(self) -> list[str]:
        return self("ls", "--quiet").stdout.split()

    def at_a_terminal(self, answer: str, *words: str) -> tuple[int, str]:
        """Run a command whose questions a person answers; its exit code and what it says."""
        person, terminal = os.openpty()
        os.write(person, answer.encode())
        command = [sys.executable, "-m", "replicate", *words, "-D", str(self.directory)]
        done = subprocess.run(command, stdin=terminal, capture_output=True, encoding="utf-8")
        os.close(person)
        os.close(terminal)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def replicate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    for name in [n for n in os.environ if n.startswith("REPLICATE_")]:
        monkeypatch.delenv(name)
    return Typed(tmp_path)


# ------------------------------------------------------------ rm


def test_rm_says_exactly_what_goes(replicate: Typed) -> None:
    run = Run(replicate.repository)
    kept = run.checkpoint({"m": b"1" * 2000}, loss=0.5)
    best = run.checkpoint({"m": b"2" * 2000}, loss=0.1)
    run.stop()
    other = finished(replicate.repository, {"m": b"3" * 2000}, {"m": b"1" * 2000}, code=CODE)
    lines = replicate("rm", best[:9], other[:9], "--dry-run").stdout.splitlines()
    assert lines[:3] == [
        "This would delete:",
        f"  experiment {other[:7]} with 2 checkpoints: train.py",
        f"  checkpoint {best[:7]} (step 1) of experiment {run.id[:7]}, its best",
    ]
    assert lines[3].endswith(" KB that nothing else needs") and len(lines) == 4
    before = sum(objects(replicate.repository.backend).values())
    assert replicate.ids() == [run.id, other]
    said = replicate("rm", best, other, "--force").stderr
    freed = before - sum(objects(replicate.repository.backend).values())
    assert f"Deleted 1 experiment and 1 checkpoint; {freed / 1000:.1f} KB freed" in said
    assert f"  {freed / 1000:.1f} KB that" in lines[3]
    assert replicate.ids() == [run.id]
    assert replicate.json("show", run.id)["best_checkpoint"]["id"] == kept


def test_delete_is_another_name_for_rm(replicate: Typed) -> None:
    id = finished(replicate.repository)
    replicate("delete", "-f", id)
    assert replicate.ids() == []


def test_rm_without_a_terminal_deletes_nothing_and_names_the_flag(replicate: Typed) -> None:
    id = finished(replicate.repository, {"m": b"1"})
    result = replicate("rm", id, code=2)
    assert "--force" in result.stderr
    assert replicate.ids() == [id]


@posix
@pytest.mark.parametrize(
    ("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 1), ("\n", 1, 1), ("maybe\n", 1, 1)]
)
def test_rm_asks_and_takes_only_a_yes_for_a_yes(
    replicate: Typed, answer: str, code: int, left: int
) -> None:
    id = finished(replicate.repository, {"m": b"1"})
    done, said = replicate.at_a_terminal(answer, "rm", id)
    assert (done, len(replicate.ids())) == (code, left)
    assert f"experiment {id[:7]} with 1 checkpoint" in said and "(y/N)" in said


def test_rm_of_what_is_unknown_ambiguous_or_nothing_is_wrong_use(replicate: Typed) -> None:
    ids = [finished(replicate.repository) for _ in range(17)]  # two begin with the same digit
    digits = [id[0] for id in ids]
    twice = next(d for d in digits if digits.count(d) > 1)
    for words in ([ids[0], "nonesuch"], [ids[0], twice], []):
        replicate("rm", "--force", *words, code=2)
    assert len(replicate.ids()) == len(ids)


def test_rm_of_a_running_experiment_takes_force_and_says_what_follows(replicate: Typed) -> None:
    run = Run(replicate.repository)
    run.checkpoint({"m": b"1"})
    run.beat()
    for words in ([], ["--dry-run"]):
        result = replicate("rm", run.id, *words, code=2)
        assert "Still running" in result.stderr and run.id[:7] in result.stderr
    said = replicate("rm", "-f", run.id).stderr
    assert "60 minutes from now" in said and "after it has ended" in said
    assert replicate.ids() == []


def test_rm_deletes_also_where_damage_keeps_the_space_from_coming_back(replicate: Typed) -> None:
    damaged = finished(replicate.repository, {"m": b"1"})
    for tree in Path(replicate.repository.url).glob("trees/*/*"):
        tree.unlink()
    id = finished(replicate.repository, {"m": b"2"})
    said = replicate("rm", "-f", id).stderr
    assert "0 bytes freed" in said and "warning: no space was freed" in said and "trees/" in said
    assert replicate.ids() == [damaged]


# ------------------------------------------------------------ verify


def test_verify_of_what_is_whole_says_how_much_it_looked_at(replicate: Typed) -> None:
    finished(replicate.repository, {"m": b"1"}, {"m": b"2"}, code=CODE)
    said = replicate("verify").stdout
    assert said.startswith("Checked 1 experiment, 2 checkpoints, 3 trees, 3 blobs (18 bytes)")
    assert "every byte read" in replicate("verify", "--full").stdout
    assert replicate.json("verify", "--full")["damage"] == []


def test_verify_fails_and_names_the_file_and_the_checkpoint_that_it_hurts(
    replicate: Typed,
) -> None:
    run = Run(replicate.repository)
    checkpoint = run.checkpoint({"m": b"1"})
    (blob,) = Path(replicate.repository.url).glob("blobs/*/*")
    blob.write_bytes(b"x")
    assert replicate.json("verify")["damage"] == []  # the size is right
    result = replicate("verify", "--full", code=1)
    assert f"{blob} is damaged" in result.stdout
    assert f"hurts checkpoint {checkpoint[:7]} of {run.id[:7]}" in result.stdout
    assert "error: 1 thing in" in result.stderr and "hint: copy the files" in result.stderr
    (damage,) = replicate.json("verify", "--full", checkpoint, code=1)["damage"]
    assert damage["kind"] == "blob"
    assert damage["key"] == blob.relative_to(replicate.repository.url).as_posix()
    assert damage["hurts"] == [{"experiment": run.id, "checkpoint": checkpoint, "checkout": None}]


@posix
def test_verify_counts_on_a_terminal_and_leaves_the_line_empty(replicate: Typed) -> None:
    finished(replicate.repository, {"m": b"1"})
    person, terminal = os.openpty()
    command = [sys.executable, "-m", "replicate", "verify", "-D", str(replicate.directory)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, encoding="utf-8")
    os.close(terminal)
    shown = os.read(person, 10_000).decode()
    os.close(person)
    assert "checking trees: 1" in shown and shown.endswith("\r\x1b[K")
    assert done.stdout.startswith("Checked") and "checking" not in done.stdout
    assert "checking" not in replicate("verify").stderr


# ------------------------------------------------------------ gc and du


def test_gc_says_what_it_removes_and_a_dry_run_removes_nothing(replicate: Typed) -> None:
    finished(replicate.repository, {"m": b"1"})
    garbage(replicate.repository, {"m": b"garbage"})
    before = objects(replicate.repository.backend)
    predicted = replicate("gc", "--dry-run").stdout
    assert predicted.startswith("Would remove 2 objects (")
    assert objects(replicate.repository.backend) == before
    assert replicate("gc").stdout == predicted.replace("Would remove", "Removed")
    assert replicate("gc").stdout == "Removed 0 objects (0 bytes)\n"


def test_gc_says_what_it_keeps_while_a_run_is_alive(replicate: Typed) -> None:
    Run(replicate.repository).beat()
    garbage(replicate.repository, {"m": b"garbage"})
    assert "Kept 2 objects" in replicate("gc").stdout
    found = replicate.json("gc", "--dry-run")
    assert (found["dry_run"], found["later_objects"], found["grace"]) == (True, 2, 3600)
    age(replicate.repository, 3700, "blobs/")
    age(replicate.repository, 3700, "trees/")
    assert replicate.json("gc")["objects"] == 2


def test_gc_refuses_damage_and_says_what_to_do(replicate: Typed) -> None:
    finished(replicate.repository, {"m": b"1"})
    (tree,) = Path(replicate.repository.url).glob("trees/*/*")
    tree.unlink()
    result = replicate("gc", code=1)
    assert str(tree) in result.stderr and "replicate verify" in result.stderr


def test_du_lists_the_largest_first_in_80_columns(replicate: Typed) -> None:
    small = finished(replicate.repository, {"m": b"1" * 10_000})
    large = finished(replicate.repository, {"m": b"1" * 10_000, "n": b"2" * 2_000_000})
    garbage(replicate.repository, {"m": b"garbage"})
    said = replicate("du").stdout.splitlines()
    assert [line.split()[0] for line in said[:3]] == ["EXPERIMENT", large[:7], small[:7]]
    assert all(len(line) <= 80 for line in said)
    assert said[4].startswith("2 experiments: 2.0 MB of files in 2.0 MB on disk")
    assert said[5].endswith("of that nothing refers to: `replicate gc` frees it")
    found = replicate.json("du")
    assert [e["id"] for e in found["experiments"]] == [large, small]
    first = found["experiments"][0]
    assert first["num_checkpoints"] == 1 and first["logical"] == 2_010_000
    plan = Project(directory=replicate.directory).plan_removal([large])
    assert first["only_here"] == plan.bytes < first["stored"]


def test_du_of_an_empty_repository_and_of_none(replicate: Typed, tmp_path: Path) -> None:
    assert replicate("du").stdout.startswith("0 experiments")
    result = replicate("du", "-R", str(tmp_path / "nothing"), code=2)
    assert "There is no repository" in result.stderr


@pytest.mark.parametrize("command", ["verify", "rm", "gc", "du", "delete"])
def test_the_help_of_each_command_has_examples(replicate: Typed, command: str) -> None:
    assert f"replicate {command.replace('delete', 'rm')}" in replicate(command, "--help").stdout
