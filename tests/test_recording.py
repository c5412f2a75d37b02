"""What a run records, as the person who runs it sees it: in the repository, and on the terminal."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import math
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

import replicate
from conftest import ProjectDirectory, content_of, posix
from replicate.errors import NotFoundError, UsageError
from replicate.model import Status


def journal_lines(project: ProjectDirectory) -> list[dict[str, object]]:
    project.wait_for_helpers()
    journals = sorted(project.repository.glob("experiments/*/journal/*.jsonl"))
    return [json.loads(line) for j in journals for line in j.read_text().splitlines()]


def problems(project: ProjectDirectory) -> tuple[str, ...]:
    return project.record().problems


# ------------------------------------------------------------ the format on disk


def test_a_run_makes_the_repository_that_the_format_describes(project: ProjectDirectory) -> None:
    project.run("""
        import replicate
        experiment = replicate.init(params={"learning_rate": 0.1})
        open("model.pth", "wb").write(b"weights")
        experiment.checkpoint("model.pth", metrics={"loss": 0.5})
    """)
    repository = project.repository
    record = project.record()
    assert json.loads((repository / "repository.json").read_text()) == {
        "format": "replicate",
        "version": 1,
        "requires": [],
    }
    inputs = json.loads((repository / "experiments" / record.id / "experiment.json").read_text())
    assert inputs["params"] == {"learning_rate": 0.1}
    assert inputs["id"] == record.id and len(record.id) == 64
    assert [line["event"] for line in journal_lines(project)] == ["checkpoint", "stop"]
    assert (repository / "experiments" / record.id / "heartbeat.json").exists()


def test_blobs_and_trees_are_named_by_the_hash_of_their_bytes(project: ProjectDirectory) -> None:
    project.write("large.bin", os.urandom(5_000_000))  # more than the longest chunk
    project.run("import replicate; replicate.init().checkpoint('train.py')")
    project.wait_for_helpers()
    blobs = [p for p in project.repository.glob("blobs/*/*") if p.is_file()]
    trees = list(project.repository.glob("trees/*/*.json"))
    assert len(blobs) >= 3 and len(trees) == 2
    for file in blobs + trees:
        assert file.stem == blake3(file.read_bytes()).hexdigest()
        assert file.parent.name == file.stem[:2]


def test_nothing_is_left_in_the_spool_of_a_run_that_has_ended(project: ProjectDirectory) -> None:
    project.run("import replicate; replicate.init().checkpoint('train.py')")
    project.wait_for_helpers()
    assert project.spools() == []


# ------------------------------------------------------------ path


def test_init_saves_the_whole_project_by_default(project: ProjectDirectory, tmp_path: Path) -> None:
    project.write("lib/model code.py", "x = 1")
    project.write("naïve.txt", "")
    project.run("import replicate; replicate.init()")
    assert project.files_of(project.record().id, tmp_path / "out") == content_of(project.path)


def test_path_none_saves_no_files(project: ProjectDirectory) -> None:
    project.run("import replicate; replicate.init(path=None).checkpoint(metrics={'loss': 1})")
    record = project.record()
    assert (record.path, record.tree) == (None, None)
    assert record.checkpoints[0].tree is None
    assert not list(project.repository.glob("blobs/*/*"))


@pytest.mark.parametrize(
    ("path", "saved"),
    [
        ("'a.txt'", ["a.txt"]),
        ("'data'", ["data/b.txt", "data/c.txt"]),
        ("['a.txt', 'data/b.txt']", ["a.txt", "data/b.txt"]),
        ("__import__('pathlib').Path('a.txt')", ["a.txt"]),
        ("__import__('pathlib').Path('a.txt').resolve()", ["a.txt"]),
        ("'.'", ["a.txt", "data/b.txt", "data/c.txt", "train.py"]),
    ],
)
def test_a_checkpoint_has_the_file_directory_or_list_that_was_named(
    project: ProjectDirectory, path: str, saved: list[str]
) -> None:
    for name in ("a.txt", "data/b.txt", "data/c.txt"):
        project.write(name, name)
    project.run(f"import replicate; replicate.init(path=None).checkpoint({path})")
    tree = project.record().checkpoints[0].tree
    assert tree is not None
    assert sorted(project.open().repository.tree(tree).files) == saved


@pytest.mark.parametrize("path", ["missing.txt", "../outside.txt", ["train.py", "missing.txt"]])
def test_init_refuses_a_path_that_is_missing_or_outside_and_records_nothing(
    project: ProjectDirectory, path: str | list[str]
) -> None:
    (project.path.parent / "outside.txt").write_text("secret")
    project.write("train.py", "")
    with pytest.raises(UsageError, match=r"missing\.txt|outside"):
        replicate.init(path=path)
    assert not project.repository.exists()


@pytest.mark.parametrize("path", ["missing.txt", "../outside.txt"])
def test_a_checkpoint_of_a_path_that_cannot_be_saved_keeps_its_metrics(
    project: ProjectDirectory, path: str
) -> None:
    (project.path.parent / "outside.txt").write_text("secret")
    done = project.run(f"""
        import replicate
        experiment = replicate.init()
        for i in range(3):
            experiment.checkpoint({path!r}, metrics={{"loss": i}})
        print("trained")
    """)
    assert done.stdout == "trained\n"
    assert done.stderr.count("A checkpoint lacks files") == 1
    record = project.record()
    assert [c.metrics["loss"] for c in record.checkpoints] == [0, 1, 2]
    assert [c.tree for c in record.checkpoints] == [None] * 3
    assert [c.lost for c in record.checkpoints] == [(path,)] * 3
    assert len(record.problems) == 3 and path in record.problems[0]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (b"model.pth", "a path must be text or a pathlib.Path, not bytes"),
        ("", 'a path is empty\n"." stands for the whole directory.'),
        ("empty", 'there are none in "empty"'),
    ],
)
def test_a_path_that_cannot_be_meant_is_said_in_one_sentence(
    project: ProjectDirectory, path: object, said: str
) -> None:
    project.write("model.pth", "weights")
    (project.path / "empty").mkdir()
    done = project.run(f"""
        import replicate
        experiment = replicate.init()
        for i in range(3):
            experiment.checkpoint({path!r}, metrics={{"loss": i}})
    """)
    assert done.stderr.count(f"A checkpoint lacks files: {said}\n") == 1
    assert done.stderr.count("lacks files") == 1
    assert [c.size for c in project.record().checkpoints] in ([None] * 3, [0] * 3)


@pytest.mark.parametrize("path", [b"train.py", [b"train.py"], "", 3])
def test_init_refuses_what_is_no_path(project: ProjectDirectory, path: Any) -> None:
    with pytest.raises((UsageError, TypeError), match=r"a path|iterable"):
        replicate.init(path=path)
    assert not project.repository.exists()


def test_the_files_that_exist_are_saved_beside_one_that_does_not(
    project: ProjectDirectory,
) -> None:
    project.run("""
        import replicate
        replicate.init().checkpoint(["train.py", "missing.txt"])
    """)
    record = project.record()
    tree = record.checkpoints[0].tree
    assert tree is not None and list(project.open().repository.tree(tree).files) == ["train.py"]
    assert "missing.txt" in record.problems[0]


@pytest.mark.parametrize(
    "arguments",
    [
        "path=5",
        "path=[None]",
        "path={'a': 1}",
        "path='nul\\0byte'",
        "path=b'bytes'",
        "step='first'",
        "step=Strange()",
        "step=[1]",
        "metrics=[1, 2]",
        "metrics=3",
        "metrics={'loss': Strange()}",
        "metrics={Strange(): 1}",
        "primary_metric='loss'",
        "primary_metric=('loss', 'smallest')",
        "primary_metric=Strange()",
        "metrics={'loss': 10 ** 6000}",
        "step=10 ** 6000",
    ],
)
def test_no_argument_of_checkpoint_can_stop_a_run(
    project: ProjectDirectory, arguments: str
) -> None:
    done = project.run(f"""
        import replicate
        class Strange:
            def item(self): raise RuntimeError("no item here")
            def tolist(self): raise RuntimeError("no list here")
            def __str__(self): raise RuntimeError("no text here")
            def __iter__(self): raise RuntimeError("nothing in here")
        experiment = replicate.init()
        experiment.checkpoint({arguments})
        experiment.checkpoint("train.py", metrics={{"loss": 0.5}})
        print("trained")
    """)
    assert done.stdout == "trained\n"
    assert "Traceback" not in done.stderr
    record = project.record()
    assert record.status is Status.FINISHED
    assert record.checkpoints[-1].metrics == {"loss": 0.5}
    assert record.checkpoints[-1].tree is not None
    assert record.problems


def test_a_problem_is_kept_in_whole_sentences(project: ProjectDirectory) -> None:
    with replicate.init(path=None) as experiment:
        experiment.checkpoint(metrics={"loss": object()})
    (problem,) = project.record().problems
    assert re.search(r"can be kept\. [A-Z]", problem), problem


# ------------------------------------------------------------ step and metrics


def test_steps_count_by_themselves_and_go_on_from_one_that_is_given(
    project: ProjectDirectory,
) -> None:
    experiment = replicate.init(path=None)
    for step in (None, None, 10, None, 2, None, 0.5, np.int64(7)):
        experiment.checkpoint(step=step)
    assert experiment.checkpoints.step == [0, 1, 10, 11, 2, 3, 0.5, 7]
    experiment.stop()


def test_nan_and_infinities_are_kept_and_never_best(project: ProjectDirectory) -> None:
    experiment = replicate.init(path=None)
    for loss in (math.nan, 0.5, -math.inf, math.inf):
        experiment.checkpoint(metrics={"loss": loss}, primary_metric=("loss", "minimize"))
    values = experiment.checkpoints.metrics["loss"]
    experiment.stop()
    assert math.isnan(values[0]) and values[1:] == [0.5, -math.inf, math.inf]
    best = experiment.best()
    assert best is not None and best.metrics["loss"] == 0.5


@pytest.mark.parametrize(
    ("metric", "slip"), [("accuracy", "acuracy"), ("val/loss", "val_loss"), ("accuracy", "Acc")]
)
def test_a_slip_in_the_primary_metric_is_reported_once_and_kept(
    project: ProjectDirectory, metric: str, slip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with replicate.init(path=None) as experiment:
        for epoch in range(3):
            experiment.checkpoint(
                metrics={"other": 1, metric: epoch}, primary_metric=(slip, "maximize")
            )
            said = capsys.readouterr().err
            assert (f'"{slip}"' in said and f'mean "{metric}"?' in said) is (epoch == 0)
    assert experiment.best() is None
    assert [f'mean "{metric}"?' in problem for problem in project.record().problems] == [True]
    assert slip not in capsys.readouterr().err


def test_a_primary_metric_that_never_came_is_reported_when_the_run_ends(
    project: ProjectDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with replicate.init(path=None) as experiment:
        for _ in range(3):
            experiment.checkpoint(metrics={"loss": 1.0}, primary_metric=("f1", "maximize"))
        assert '"f1"' not in capsys.readouterr().err
    (problem,) = project.record().problems
    assert '"f1"' in problem and "loss" in problem


def test_a_primary_metric_that_comes_now_and_again_is_no_slip(project: ProjectDirectory) -> None:
    primary = ("val/accuracy", "maximize")
    with replicate.init(path=None) as experiment:
        experiment.checkpoint(primary_metric=primary)
        for epoch in range(6):
            metrics = {"train/loss": 1.0, "learning_rate": 0.1}
            measured = {"val/accuracy": 0.5} if epoch % 3 == 2 else {}
            experiment.checkpoint(metrics=metrics | measured, primary_metric=primary)
    with replicate.init(path=None, resume=experiment) as experiment:
        experiment.checkpoint(metrics={"accuracy": 1.0}, primary_metric=primary)
    assert project.record().problems == ()


def test_an_integer_beyond_every_float_can_be_the_primary_metric(
    project: ProjectDirectory,
) -> None:
    experiment = replicate.init(path=None)
    for value in (10**400, 3):
        experiment.checkpoint(metrics={"count": value}, primary_metric=("count", "minimize"))
    experiment.stop()
    best = experiment.best()
    assert best is not None and best.metrics["count"] == 3
    assert experiment.checkpoints.metrics["count"] == [10**400, 3]


def test_numpy_and_torch_scalars_are_plain_numbers(project: ProjectDirectory) -> None:
    torch = pytest.importorskip("torch")
    experiment = replicate.init(
        path=None, params={"seed": np.int64(3), "betas": np.array([0.9, 0.99])}
    )
    experiment.checkpoint(
        metrics={
            "float32": np.float32(0.5),
            "array": np.array(2.0),
            "tensor": torch.tensor(0.25, requires_grad=True),
            "bfloat16": torch.tensor(0.5, dtype=torch.bfloat16),
            "count": torch.tensor(3),
            "right": np.bool_(True),
        }
    )
    experiment.stop()
    assert experiment.params == {"seed": 3, "betas": [0.9, 0.99]}
    assert experiment.checkpoints[0].metrics == {
        "float32": 0.5,
        "array": 2.0,
        "tensor": 0.25,
        "bfloat16": 0.5,
        "count": 3,
        "right": True,
    }


def test_a_metric_that_cannot_be_kept_is_reported_and_the_others_are_kept(
    project: ProjectDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = replicate.init(path=None)
    experiment.checkpoint(metrics={"loss": 0.5, "model": object(), "accuracy": 0.9})
    experiment.stop()
    assert experiment.checkpoints[0].metrics == {"loss": 0.5, "accuracy": 0.9}
    assert "metrics['model']" in capsys.readouterr().err
    assert "metrics['model']" in problems(project)[0]


# ------------------------------------------------------------ params


class Optimizer(enum.Enum):
    ADAM = "adam"


@dataclasses.dataclass
class Settings:
    learning_rate: float = 0.1
    layers: tuple[int, ...] = (1, 2)
    optimizer: Optimizer = Optimizer.ADAM


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (None, {}),
        ({"a": {"b": [1, None, True]}}, {"a": {"b": [1, None, True]}}),
        (argparse.Namespace(epochs=3, data=Path("x")), {"epochs": 3, "data": "x"}),
        (Settings(), {"learning_rate": 0.1, "layers": [1, 2], "optimizer": "adam"}),
        ({1: "one", "$float": "NaN"}, {"1": "one", "$float": "NaN"}),
        ({"name": "\ud800 lone"}, {"name": "\ud800 lone"}),
    ],
)
def test_params_of_every_usual_kind(
    project: ProjectDirectory, params: object, kept: dict[str, object]
) -> None:
    with replicate.init(path=None, params=params) as experiment:
        pass
    assert experiment.params == kept
    assert project.record().params == kept


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"model": object()}, "params['model']"),
        ({"a": {"b": [0, object()]}}, "params['a']['b'][1]"),
        ({"seed": 10**6000}, "params['seed']"),
        ({"data": b"bytes"}, "params['data']"),
        ({"weights": np.zeros(20_000)}, "params['weights']"),
        ([1, 2], "params"),
    ],
)
def test_a_param_that_cannot_be_kept_is_named(
    project: ProjectDirectory, params: object, named: str
) -> None:
    with pytest.raises(UsageError) as error:
        replicate.init(params=params)
    assert named in str(error.value)
    assert not project.repository.exists()


def test_params_that_contain_themselves_are_refused(project: ProjectDirectory) -> None:
    params: dict[str, object] = {}
    params["self"] = params
    with pytest.raises(UsageError, match="contains itself"):
        replicate.init(params=params)


def test_labels_are_kept_and_those_of_a_wrong_type_are_refused(project: ProjectDirectory) -> None:
    with replicate.init(path=None, name="n", tags=["a", "b"], notes="why", group="g") as e:
        pass
    found = replicate.experiments.get(e.id)
    assert (found.name, found.tags, found.notes, found.group) == ("n", ("a", "b"), "why", "g")
    with pytest.raises(UsageError, match="tags"):
        replicate.init(tags="ab")
    with pytest.raises(UsageError, match="name"):
        replicate.init(name=3)  # type: ignore[arg-type]


# ------------------------------------------------------------ what is recorded of the machine


def test_user_host_command_python_os_and_processor_are_recorded(
    project: ProjectDirectory,
) -> None:
    project.run(
        "import replicate; replicate.init()",
        "--epochs",
        "3",
        REPLICATE_USER="ada",
        REPLICATE_HOST="node7",
    )
    record = project.record()
    assert (record.user, record.host) == ("ada", "node7")
    assert record.command == "train.py --epochs 3"
    assert record.environment["python"]["version"] == platform.python_version()
    assert record.environment["os"] and record.environment["cpu"]


def test_packages_have_the_names_they_are_installed_by_and_later_imports_count(
    project: ProjectDirectory,
) -> None:
    pytest.importorskip("sklearn")
    project.run("""
        import replicate, numpy
        experiment = replicate.init()
        import yaml, sklearn
    """)
    packages = project.record().packages
    assert packages["numpy"] == np.__version__
    assert {"scikit-learn", "PyYAML"} <= packages.keys()
    assert "torch" not in packages


def test_the_commit_branch_and_state_of_git_are_recorded(project: ProjectDirectory) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        done = subprocess.run(["git", *identity, *arguments], capture_output=True, check=True)
        return done.stdout.decode().strip()

    git("init", "--quiet", "--initial-branch", "topic")
    project.write("train.py", "import replicate; replicate.init()\n")
    git("add", "train.py")
    git("commit", "--quiet", "--message", "first")
    project.run("import replicate; replicate.init()\n")
    project.run("import replicate; replicate.init()  # changed\n")
    clean, dirty = (record.environment["git"] for record in project.records())
    assert clean["commit"] == git("rev-parse", "HEAD")
    assert clean["branch"] == "topic"
    assert (clean["dirty"], dirty["dirty"]) == (False, True)


# ------------------------------------------------------------ several at once


def test_several_experiments_in_one_process(project: ProjectDirectory) -> None:
    with replicate.init(path=None, params={"n": 1}) as first:
        second = replicate.init(path=None, params={"n": 2})
        first.checkpoint(metrics={"loss": 1})
        second.checkpoint(metrics={"loss": 2})
        first.checkpoint(metrics={"loss": 3})
    second.stop()
    assert [e.checkpoints.metrics["loss"] for e in replicate.experiments.list()] == [[1, 3], [2]]
    assert {e.status for e in replicate.experiments.list()} == {Status.FINISHED}


def test_two_processes_record_into_one_repository_at_once(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    script = """
        import sys, replicate
        name = sys.argv[1]
        experiment = replicate.init(path=None, params={"name": name})
        print("ready", flush=True)
        sys.stdin.readline()
        for i in range(20):
            open(name, "w").write(f"{name} {i}")
            experiment.checkpoint(name, metrics={"i": i})
    """
    processes = [project.start(script, name) for name in ("a", "b")]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n")
        assert process.returncode == 0
    for record in project.records():
        name = record.params["name"]
        assert [c.metrics["i"] for c in record.checkpoints] == list(range(20))
        last = project.files_of(record.checkpoints[-1].id, tmp_path / name)
        assert last == {name: f"{name} 19".encode()}


def test_a_run_reads_its_own_writes_at_once(project: ProjectDirectory) -> None:
    experiment = replicate.init(path=None, params={"seed": 1})
    for i in range(3):
        experiment.checkpoint(metrics={"loss": i})
        (listed,) = replicate.experiments.list()
        assert listed.params == {"seed": 1}
        assert listed.status is Status.RUNNING
        assert listed.checkpoints.metrics["loss"] == list(range(i + 1))
    experiment.stop()


# ------------------------------------------------------------ a stable view


@pytest.mark.parametrize("size", [100, 70_000, 1 << 20])
@pytest.mark.parametrize("then", ["overwrite", "truncate", "delete", "replace"])
def test_what_becomes_of_a_file_after_checkpoint_does_not_change_what_was_saved(
    project: ProjectDirectory, tmp_path: Path, size: int, then: str
) -> None:
    change = {
        "overwrite": "file = open('m', 'r+b'); file.write(b'!' * size); file.close()",
        "truncate": "open('m', 'wb').close()",
        "delete": "os.remove('m')",
        "replace": "open('n', 'wb').write(b'!'); os.replace('n', 'm')",
    }[then]
    project.run(f"""
        import os, replicate
        experiment, size = replicate.init(path=None), {size}
        for i in range(4):
            with open("m", "wb") as file:
                file.write(bytes([i]) * size)
            experiment.checkpoint("m")
            {change}
    """)
    record = project.record()
    assert record.problems == ()
    for i, checkpoint in enumerate(record.checkpoints):
        assert project.files_of(checkpoint.id, tmp_path / str(i)) == {"m": bytes([i]) * size}


def test_many_checkpoints_of_a_large_file_in_a_tight_loop_are_each_whole(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    project.run("""
        import replicate
        experiment = replicate.init(path=None)
        for i in range(60):
            with open("m", "wb") as file:
                file.write(bytes([i]) * 300_000)
            experiment.checkpoint("m")
    """)
    record = project.record()
    assert record.problems == ()
    assert len(record.checkpoints) == 60
    for i, checkpoint in enumerate(record.checkpoints):
        assert project.files_of(checkpoint.id, tmp_path / str(i)) == {"m": bytes([i]) * 300_000}


@posix
def test_modes_and_links_are_kept(project: ProjectDirectory, tmp_path: Path) -> None:
    project.write("run.sh", "echo", mode=0o755)
    project.write("private.txt", "x", mode=0o600)
    (project.path / "latest").symlink_to("run.sh")
    (project.path.parent / "outside.txt").write_text("elsewhere")
    (project.path / "data.txt").symlink_to("../outside.txt")
    project.run("import replicate; replicate.init()")
    out = tmp_path / "out"
    project.files_of(project.record().id, out)
    assert (out / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (out / "private.txt").stat().st_mode & 0o777 == 0o600
    assert os.readlink(out / "latest") == "run.sh"
    assert not (out / "data.txt").is_symlink()
    assert (out / "data.txt").read_text() == "elsewhere"


# ------------------------------------------------------------ what is left out, and remarks


def test_ignore_files_are_honoured_and_what_is_never_code_is_left_out(
    project: ProjectDirectory,
) -> None:
    project.write(".gitignore", "*.log\n")
    project.write(".replicateignore", "data/\n")
    for name in ("a.log", "data/x.csv", ".git/config", "__pycache__/a.pyc", "venv/pyvenv.cfg"):
        project.write(name, "x")
    project.write("kept.py", "x")
    project.run("import replicate; replicate.init()")
    tree = project.record().tree
    assert tree is not None
    assert sorted(project.open().repository.tree(tree).files) == [
        ".gitignore",
        ".replicateignore",
        "kept.py",
        "train.py",
    ]


def test_an_ignored_file_is_saved_when_a_checkpoint_names_it(project: ProjectDirectory) -> None:
    project.write(".gitignore", "*.pth\n")
    project.write("model.pth", "weights")
    project.run("import replicate; replicate.init().checkpoint('model.pth')")
    tree = project.record().checkpoints[0].tree
    assert tree is not None
    assert list(project.open().repository.tree(tree).files) == ["model.pth"]


def test_a_large_snapshot_and_secrets_that_are_left_out_are_named(
    project: ProjectDirectory,
) -> None:
    project.write("replicate.yaml", "max_snapshot_size: 1MB\n")
    project.write("dataset.bin", bytes(2_000_000))
    project.write(".env", "TOKEN=1")
    done = project.run("import replicate; replicate.init()")
    assert "dataset.bin (2.0 MB)" in done.stderr
    assert "secrets: .env" in done.stderr
    assert done.stderr.count(".replicateignore") == 1


def test_a_run_says_where_it_is_saved_and_leaves_stdout_alone(project: ProjectDirectory) -> None:
    done = project.run("""
        import replicate
        experiment = replicate.init()
        print("epoch 0")
        experiment.checkpoint("missing", metrics={"loss": 1})
    """)
    assert done.stdout == "epoch 0\n"
    assert f"{project.record().id[:7]} is saved to {project.repository}" in done.stderr


@pytest.mark.parametrize(
    "stderr",
    [
        "None",
        "open(os.devnull, 'w', encoding='ascii')",
        "closed()",
        "Tee()",
    ],
)
def test_a_run_goes_on_whatever_stands_in_for_stderr(
    project: ProjectDirectory, stderr: str
) -> None:
    project.run(f"""
        import os, sys, replicate
        class Tee:
            def write(self, text): pass
            def flush(self): pass
        def closed():
            file = open(os.devnull, "w")
            file.close()
            return file
        sys.stderr = {stderr}
        replicate.init().checkpoint("missing", metrics={{"loss": 1}})
        print("trained")
    """)
    assert project.record().checkpoints[0].metrics == {"loss": 1}


# ------------------------------------------------------------ runs that are not recorded


@pytest.mark.parametrize(
    "environ", [{"RANK": "1"}, {"SLURM_PROCID": "2"}, {"REPLICATE_MODE": "disabled"}]
)
def test_other_ranks_and_disabled_runs_record_nothing_and_have_the_same_methods(
    project: ProjectDirectory, environ: dict[str, str]
) -> None:
    done = project.run(
        """
        import replicate
        with replicate.init(params={"a": 1}) as experiment:
            experiment.checkpoint("missing", step=1, metrics={"loss": 1})
            assert experiment.params == {"a": 1}
            assert len(experiment.checkpoints) == 0
            assert experiment.best() is None and experiment.latest() is None
            assert experiment.duration is None
            assert experiment.wait()
            experiment.refresh()
            str(experiment.status), dict(experiment.packages)
        experiment.stop()
        print("trained")
        """,
        **environ,
    )
    assert (done.stdout, done.stderr) == ("trained\n", "")
    assert not project.repository.exists()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_import_the_script_again_are_no_runs_of_their_own(
    project: ProjectDirectory, method: str
) -> None:
    done = project.run(f"""
        import multiprocessing
        import replicate
        experiment = replicate.init(path=None, params={{"parent": True}})

        def load(queue):
            experiment.checkpoint(metrics={{"loss": 1}})
            queue.put(len(experiment.checkpoints))

        def sweep(rate):
            with replicate.init(path=None, params={{"rate": rate}}) as run:
                run.checkpoint(metrics={{"loss": rate}})

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            queue = context.SimpleQueue()
            loader = context.Process(target=load, args=(queue,))
            loader.start()
            assert queue.get() == 0
            loader.join()
            with context.Pool(1) as pool:
                pool.map(sweep, [0.1, 0.2])
            experiment.checkpoint(metrics={{"loss": 0}})
    """)
    assert done.stderr.count("is saved to") == 3
    found = {e.params.get("rate", 0): len(e.checkpoints) for e in project.records()}
    assert found == {0: 1, 0.1: 1, 0.2: 1}


def test_rank_0_is_recorded(project: ProjectDirectory) -> None:
    project.run("import replicate; replicate.init()", RANK="0")
    assert project.record().status is Status.FINISHED


# ------------------------------------------------------------ threads and forked children


def test_checkpoints_from_several_threads_are_all_recorded(project: ProjectDirectory) -> None:
    project.run("""
        import threading, replicate
        experiment = replicate.init(path=None)
        def work(n):
            for i in range(10):
                experiment.checkpoint("train.py", step=n * 10 + i, metrics={"n": n})
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """)
    record = project.record()
    assert sorted(c.step or 0 for c in record.checkpoints) == list(range(40))
    assert record.problems == ()


@posix
def test_a_checkpoint_from_a_forked_child_is_recorded(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    done = project.run("""
        import os, replicate
        experiment = replicate.init(path=None)
        experiment.checkpoint(step=0)
        child = os.fork()
        if child == 0:
            open("m", "wb").write(b"c" * 300_000)
            experiment.checkpoint("m", step=1)
            os._exit(0)
        os.waitpid(child, 0)
        experiment.checkpoint(step=2)
        print("trained")
    """)
    assert done.stdout == "trained\n"
    record = project.record()
    assert [c.step for c in record.checkpoints] == [0, 1, 2]
    out = project.files_of(record.checkpoints[1].id, tmp_path / "out")
    assert out == {"m": b"c" * 300_000}
    assert record.status is Status.FINISHED


@posix
def test_a_forked_child_that_ends_does_not_end_the_run(project: ProjectDirectory) -> None:
    project.run("""
        import os, sys, replicate
        experiment = replicate.init(path=None)
        child = os.fork()
        if child == 0:
            experiment.checkpoint(step=1)
            experiment.stop()
            sys.exit(1)
        os.waitpid(child, 0)
        (running,) = replicate.experiments.list()
        assert running.status == "running", running.status
        experiment.checkpoint(step=2)
    """)
    record = project.record()
    assert [c.step for c in record.checkpoints] == [1, 2]
    assert record.status is Status.FINISHED


@posix
def test_checkpoints_from_multiprocessing_workers_are_recorded(project: ProjectDirectory) -> None:
    project.run("""
        import multiprocessing, replicate
        experiment = replicate.init(path=None)
        def work(n):
            experiment.checkpoint("train.py", step=n)
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=work, args=(n,)) for n in range(4)]
        for process in processes: process.start()
        for process in processes: process.join()
    """)
    assert sorted(c.step or 0 for c in project.record().checkpoints) == [0, 1, 2, 3]


@posix
def test_children_that_are_alive_at_the_end_do_not_keep_a_run_from_ending(
    project: ProjectDirectory,
) -> None:
    process = project.start("""
        import os, replicate
        experiment = replicate.init(path=None)
        experiment.checkpoint(step=0)
        if os.fork() == 0:  # as a worker of a DataLoader that nobody joins
            os.close(1), os.close(2)
            os.read(0, 1)
            os._exit(0)
        print("trained", flush=True)
    """)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.read() == "trained\n"  # ends although the child has our stdin
    assert process.wait() == 0
    assert project.record().status is Status.FINISHED
    process.stdin.close()


# ------------------------------------------------------------ importing


def test_importing_replicate_imports_nothing_heavy(project: ProjectDirectory) -> None:
    heavy = {"torch", "numpy", "obstore", "yaml", "zstandard", "click", "rich", "sklearn"}
    done = project.run("import replicate, sys; print(*sys.modules)")
    assert heavy & set(done.stdout.split()) == set()


def test_a_shadowing_file_in_the_project_does_not_break_the_helper(
    project: ProjectDirectory,
) -> None:
    for name in ("queue.py", "signal.py", "traceback.py", "blake3.py"):
        project.write(f"shadow/{name}", "raise SystemExit('the wrong module')")
    done = project.run("""
        import sys, replicate
        experiment = replicate.init()
        sys.path.insert(0, "shadow")
        experiment.checkpoint("train.py")
    """)
    assert "The helper process keeps ending" not in done.stderr
    assert len(project.record().checkpoints) == 1


def test_without_processes_a_run_saves_in_the_foreground_and_says_so_once(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    done = project.run("""
        import sys, replicate
        sys.executable = "/nonexistent/python"
        experiment = replicate.init()
        for i in range(3):
            open("m", "wb").write(bytes([i]) * 300_000)
            experiment.checkpoint("m", metrics={"i": i})
    """)
    assert done.stderr.count("foreground") == 1
    record = project.record()
    assert record.status is Status.FINISHED
    assert len(record.checkpoints) == 3
    assert project.files_of(record.checkpoints[1].id, tmp_path / "o")["m"] == b"\1" * 300_000
    assert project.spools() == []


def test_an_id_that_nothing_has_is_a_clear_error(project: ProjectDirectory) -> None:
    with pytest.raises(NotFoundError, match="abc123"):
        replicate.experiments.get("abc123")
    assert list(replicate.experiments.list()) == []
    assert not project.repository.exists()
