"""A checkpoint of which files could not be saved says so wherever it is looked at, and is never
taken for a whole one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import replicate
from conftest import ProjectDirectory, posix
from replicate.errors import NotFoundError
from replicate.model import CheckpointRecord

#: The first checkpoint has both files, the second lacks the model and is best, the third lacks all.
SCRIPT = """
    import os, replicate
    open("model", "w").write("as the run began")
    experiment = replicate.init(path="model")
    for step in range(3):
        open("model", "w").write("step " + str(step))
        open("log", "w").write("log " + str(step))
        if step > 0:
            os.remove("model")
        if step > 1:
            os.remove("log")
        loss = abs(step - 1)
        experiment.checkpoint(["model", "log"], metrics={"loss": loss}, PRIMARY)
"""
WITH_BEST = SCRIPT.replace("PRIMARY", 'primary_metric=("loss", "minimize")')
WITHOUT = SCRIPT.replace(", PRIMARY", "")


def checkpoints(project: ProjectDirectory, script: str = WITH_BEST) -> list[CheckpointRecord]:
    project.run(script)
    found = list(project.record().checkpoints)
    assert [c.lost for c in found] == [(), ("model",), ("model", "log")]
    return found


@posix
@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("os.symlink('nowhere', 'out')", "a link that leads nowhere"),
        ("os.mkfifo('out')", "a pipe"),
        ("os.mkdir('out')", "an empty directory"),
        ("None", "nothing"),
    ],
    ids=["link", "pipe", "empty directory", "gone"],
)
def test_what_is_no_file_any_more_costs_none_that_was_saved(
    project: ProjectDirectory, tmp_path: Path, change: str, left: str
) -> None:
    project.run(f"""
        import os, replicate
        experiment = replicate.init(path=None, keep={{"last": 1}})
        open("out", "w").write("saved")
        experiment.checkpoint("out")
        os.remove("out")
        {change}
        experiment.checkpoint("out")
    """)
    saved, lacking = project.record().checkpoints
    assert lacking.lost == ("out",), left
    assert project.files_of(saved.id, tmp_path / "out") == {"out": b"saved"}


def test_show_ls_and_json_mark_it(project: ProjectDirectory) -> None:
    whole, part, nothing = checkpoints(project)
    shown = project.cli("show", whole.experiment).stdout
    rows = {
        c.id: next(x for x in shown.splitlines() if x.startswith(c.id[:7])) for c in (whole, part)
    }
    assert "lacks" not in rows[whole.id] and "lacks model" in rows[part.id]
    assert "lacks model and 1 more" in shown
    assert "model, log, which could not be saved" in project.cli("show", nothing.id).stdout
    value = json.loads(project.cli("show", whole.experiment, "--json").stdout)
    assert [c["lost"] for c in value["checkpoints"]] == [[], ["model"], ["model", "log"]]
    (listed,) = json.loads(project.cli("ls", "--json").stdout)
    assert listed["best_checkpoint"]["lost"] == ["model"]
    assert listed["latest_checkpoint"]["lost"] == ["model", "log"]


def test_a_notebook_marks_it(project: ProjectDirectory) -> None:
    checkpoints(project)
    found = replicate.experiments.list()[0].checkpoints
    assert "lacks model, log" in found._repr_html_()
    assert "lacks" not in found[0]._repr_html_()
    assert "lacks model" in found[1]._repr_html_()


def test_verify_names_it_and_calls_it_no_damage(project: ProjectDirectory) -> None:
    whole, part, nothing = checkpoints(project)
    said = project.cli("verify", "--full").stdout
    assert f"checkpoint {part.id[:7]} (step 1) lacks model\n" in said
    assert f"checkpoint {nothing.id[:7]} (step 2) lacks model, log\n" in said
    assert whole.id[:7] not in said
    found = json.loads(project.cli("verify", part.id, "--json").stdout)
    assert found["damage"] == []
    named = [one for one in found["unrecorded"] if one["checkpoint"]]
    assert [(one["checkpoint"], one["lost"]) for one in named] == [(part.id, ["model"])]


def test_checking_it_out_says_what_it_lacks_and_where_the_file_is(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    whole, part, nothing = checkpoints(project)
    out = str(tmp_path / "out")
    for id, lacks in ((part.id, "model"), (nothing.id, "model, log")):
        done = project.cli("checkout", id, "-o", out, expect=2)
        assert f"lacks {lacks}, which could not be saved" in done.stderr
        assert f"{whole.id[:7]} (step 0)" in done.stderr
    assert not os.path.exists(out)
    # What the code of the run has under that name is another file.
    assert "lacks model" in project.cli("checkout", part.id, "--path", "model", expect=2).stderr
    project.cli("checkout", part.id, "-o", out, "--path", "log")
    assert Path(out, "log").read_text() == "log 1"


@pytest.mark.parametrize(("script", "how"), [(WITH_BEST, "best"), (WITHOUT, "latest")])
def test_checking_out_the_experiment_takes_one_that_has_all_its_files(
    project: ProjectDirectory, tmp_path: Path, script: str, how: str
) -> None:
    whole, part, nothing = checkpoints(project, script)
    passed_over = part if how == "best" else nothing
    done = project.cli("checkout", whole.experiment, "-o", str(tmp_path / "out"))
    assert f"using {whole.id[:7]} (step 0), the {how} checkpoint that has files" in done.stderr
    assert f"{passed_over.id[:7]} lacks model" in done.stderr
    assert (tmp_path / "out" / "model").read_text() == "step 0"


@pytest.mark.parametrize("step", [None, 1])
def test_a_run_goes_on_from_one_that_has_all_its_files(
    project: ProjectDirectory, step: int | None
) -> None:
    checkpoints(project, WITH_BEST)
    experiment = project.record().id
    if step is not None:  # the same step once more, now whole
        project.run(f"""
            import replicate
            experiment = replicate.init(path=None, resume={experiment!r}, from_step=1)
            open("model", "w").write("again")
            open("log", "w").write("again")
            experiment.checkpoint(["model", "log"], step=1)
        """)
    done = project.run(f"""
        import replicate
        experiment = replicate.init(path=None, resume={experiment!r}, from_step={step})
        resumed = experiment.resumed_from
        print(resumed.step, resumed.open("model").read())
    """)
    assert done.stdout == ("0 b'step 0'\n" if step is None else "1 b'again'\n")


def test_a_script_that_opens_a_lost_file_is_told(project: ProjectDirectory, tmp_path: Path) -> None:
    checkpoints(project)
    part = replicate.experiments.list()[0].checkpoints[1]
    with pytest.raises(NotFoundError, match="lacks model, which could not be saved"):
        part.open("model")
    with pytest.raises(NotFoundError, match="lacks model, which could not be saved"):
        part.checkout(tmp_path / "out")
    with part.open("log") as file:
        assert file.read() == b"log 1"


def test_what_keep_has_let_go_is_marked(project: ProjectDirectory) -> None:
    project.run("""
        import replicate
        experiment = replicate.init(path=None, keep={"last": 1})
        for step in range(2):
            open("model", "w").write("step " + str(step))
            experiment.checkpoint("model", metrics={"loss": step})
    """)
    gone, kept = project.record().checkpoints
    lines = project.cli("show", gone.experiment).stdout.splitlines()
    assert ["let go" in line for line in lines if line[:7] in (gone.id[:7], kept.id[:7])] == [
        True,
        False,
    ]
    assert "let go, as `keep` says" in project.cli("show", gone.id).stdout
    assert "let go" not in project.cli("show", kept.id).stdout
