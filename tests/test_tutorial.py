"""The tutorial, as a newcomer follows it: the real model, two runs, and every command it shows."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path

import pytest

from conftest import ProjectDirectory

EXAMPLES = Path(__file__).parents[1] / "examples"
ID = re.compile(r"[0-9a-f]{7}")


@pytest.fixture
def iris(project: ProjectDirectory) -> ProjectDirectory:
    """The tutorial's project after its two runs."""
    pytest.importorskip("torch", reason="torch is not installed: the tutorial's model needs it")
    pytest.importorskip("sklearn")
    return project


def train(project: ProjectDirectory, *arguments: str) -> list[str]:
    """Run the example's own script; return what it prints."""
    script = (EXAMPLES / "iris" / "train.py").read_text()
    return project.run(script, *arguments).stdout.splitlines()


def rows(text: str) -> list[list[str]]:
    """The cells of a table, which are at least two spaces apart."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_the_tutorial_works_as_it_is_shown(iris: ProjectDirectory) -> None:
    first, second = train(iris), train(iris, "--learning_rate=0.2")
    assert len(first) == len(second) == 100
    assert first[0] == "Epoch 0, train loss: 1.184, validation accuracy: 0.333"
    assert first[99] == "Epoch 99, train loss: 0.118, validation accuracy: 1.000"
    assert second[99] == "Epoch 99, train loss: 0.056, validation accuracy: 0.967"

    heading, slow, fast = rows(iris.cli("ls").stdout)
    assert heading[:6] == ["EXPERIMENT", "STARTED", "STATUS", "HOST", "USER", "LEARNING_RATE"]
    assert heading[6:] == ["LATEST CHECKPOINT", "ACCURACY", "BEST CHECKPOINT", "ACCURACY"]
    assert (slow[2], slow[5], slow[7], slow[9]) == ("finished", "0.01", "1", "1")
    assert (fast[2], fast[5], fast[7], fast[9]) == ("finished", "0.2", "0.96667", "1")
    assert re.fullmatch(r"[0-9a-f]{7} \(step 99\)", slow[6])
    assert slow[6] == slow[8]

    shown = iris.cli("show", slow[0]).stdout
    assert "Command:        train.py\n" in shown
    assert "\nParams\nlearning_rate:  0.01\nnum_epochs:     100\n" in shown
    table = rows(shown[shown.index("Checkpoints") :])
    assert table[1] == ["ID", "STEP", "CREATED", "ACCURACY", "LOSS"]
    assert [row[1:2] for row in table[2:]] == [
        *(["0"], ["1"], ["2"], ["3"], ["4"]),
        [],  # the middle is left out
        *(["95"], ["96"], ["97"], ["98"], ["99"]),
    ]
    assert table[2][3:] == ["0.33333", "1.1836"]
    assert table[-1][3] == "1 (best)"

    latest, other = slow[6].split()[0], fast[6].split()[0]
    checkpoint = iris.cli("show", latest).stdout
    assert re.search(r"^accuracy: +1 \(primary, maximize\)$", checkpoint, re.MULTILINE)
    assert re.search(r"^Path: +model.pth$", checkpoint, re.MULTILINE)
    assert re.search(r"^loss: +0.1175996\d+$", checkpoint, re.MULTILINE)

    difference = iris.cli("diff", latest, other).stdout
    assert re.search(rf"^Checkpoint: +{latest} +{other}$", difference, re.MULTILINE)
    assert re.search(r"^learning_rate: +0.01 +0.2$", difference, re.MULTILINE)
    assert re.search(r"^accuracy: +1 +0.9666666\d+$", difference, re.MULTILINE)
    assert "num_epochs" not in difference

    weights = iris.path / "model.pth"
    last_of_second_run = weights.read_bytes()
    iris.cli("checkout", latest, "--force")
    assert weights.read_bytes() == iris.files_of(latest, iris.path.parent / "new")["model.pth"]
    assert weights.read_bytes() != last_of_second_run
    iris.cli("checkout", "--undo")
    assert weights.read_bytes() == last_of_second_run


def test_weights_that_were_checked_out_load_in_torch(iris: ProjectDirectory) -> None:
    torch = pytest.importorskip("torch")
    train(iris, "--num_epochs=3")
    (experiment,) = iris.open().experiments.list()
    best = experiment.best()
    assert best is not None
    weights = torch.load(best.open("model.pth"), weights_only=True)
    assert weights["0.weight"].shape == (15, 4)
    assert experiment.packages["torch"] == torch.__version__
    assert "scikit-learn" in experiment.packages


def test_the_quickstart_needs_only_scikit_learn(project: ProjectDirectory) -> None:
    pytest.importorskip("sklearn")
    script = (EXAMPLES / "quickstart" / "train.py").read_text()
    assert "torch" not in script
    project.run(script)
    (experiment,) = json.loads(project.cli("ls", "--json").stdout)
    assert (experiment["status"], experiment["num_checkpoints"]) == ("finished", 20)
    assert experiment["best_checkpoint"]["primary_metric"]["goal"] == "maximize"


def test_code_that_was_changed_since_shows_in_a_diff_and_comes_back(
    project: ProjectDirectory,
) -> None:
    script = """
        import replicate
        with replicate.init(params={"width": %d}) as experiment:
            experiment.checkpoint(metrics={"loss": %r}, primary_metric=("loss", "minimize"))
    """
    project.run(script % (1, 0.5))
    original = (project.path / "train.py").read_bytes()
    (project.path / "train.py").chmod(0o755)
    project.run(script % (2, 0.25))
    old, new = (e["id"] for e in json.loads(project.cli("ls", "--json").stdout))

    shown = project.cli("diff", old, new)
    assert "\n--- a/train.py\n+++ b/train.py\n" in shown.stdout
    assert '-with replicate.init(params={"width": 1}) as experiment:' in shown.stdout
    assert shown.stderr.count("using its best checkpoint") == 2

    refused = project.cli("checkout", old, expect=2)
    assert "--force" in refused.stderr
    assert (project.path / "train.py").read_bytes() != original
    project.cli("checkout", old, "--force")
    assert (project.path / "train.py").read_bytes() == original
    assert not (project.path / "train.py").stat().st_mode & stat.S_IXUSR


def test_an_id_that_is_unknown_or_ambiguous_says_so(project: ProjectDirectory) -> None:
    project.run("""
        import replicate
        with replicate.init(path=None) as experiment:
            for step in range(17):  # of 18 ids two begin with the same digit
                experiment.checkpoint(step=step)
    """)
    (record,) = project.records()
    firsts = [record.id[0], *(c.id[0] for c in record.checkpoints)]
    shared = next(digit for digit in firsts if firsts.count(digit) > 1)
    ambiguous = project.cli("show", shared, expect=2).stderr
    assert f"'{shared}' matches {firsts.count(shared)} ids" in ambiguous
    for checkpoint in record.checkpoints:
        assert (checkpoint.id[:12] in ambiguous) == (checkpoint.id[0] == shared)
    assert "No experiment or checkpoint" in project.cli("show", "xyz", expect=2).stderr


def test_the_example_in_the_tutorial_is_the_example(tmp_path: Path) -> None:
    tutorial = (EXAMPLES.parent / "docs" / "tutorial.md").read_text()
    assert (EXAMPLES / "iris" / "train.py").read_text() in tutorial


def test_a_copied_project_without_its_repository_lists_nothing(project: ProjectDirectory) -> None:
    project.run("import replicate; replicate.init()")
    project.wait_for_helpers()
    shutil.rmtree(project.repository)
    listed = project.cli("ls")
    assert listed.stdout == ""
    assert "No experiments found" in listed.stderr
