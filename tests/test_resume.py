"""A run that was cut off goes on as the same experiment; one that comes from another says so."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import replicate
from conftest import ProjectDirectory, linux, posix
from replicate.errors import NotFoundError, UsageError
from replicate.fold import fold
from replicate.model import Attempt, ExperimentRecord, Origin, Restored, Status
from replicate.project import resuming
from replicate.records import Event, attempt_data, new_id
from saving import Run

#: Trains to the last step. Its state is the sum of all steps, which only a true restore gets right.
#: It is killed after the checkpoint of the step in DIE, and marks metrics with its attempt.
TRAIN = """
import os, signal, sys
import replicate

experiment = replicate.init(path="train.py", params={"lr": float(os.environ.get("LR", "0.1"))})
state, first = 0, 0
if checkpoint := experiment.resumed_from:
    state, first = int(checkpoint.open().read()), checkpoint.step + 1
    assert checkpoint.metrics["state"] == state
for step in range(first, 30):
    state += step
    if step % 3 == 2:
        with open("state.txt", "w") as file:
            file.write(str(state))
        experiment.checkpoint(
            "state.txt", step=step, metrics={"state": state}, primary_metric=("state", "maximize")
        )
    if str(step) == os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
"""
STATES = {step: sum(range(step + 1)) for step in range(2, 30, 3)}


def kill(project: ProjectDirectory, step: int, script: str = TRAIN, **environ: str) -> None:
    """A run that is killed after a step."""
    done = project.run(script, expect=-signal.SIGKILL, DIE=str(step), **environ)
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------ resume


@posix
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_three_times_has_one_clean_history(
    project: ProjectDirectory, seed: int, tmp_path: Path
) -> None:
    steps = sorted(random.Random(seed).sample(range(2, 29), 3))
    for step in steps:
        kill(project, step, REPLICATE_RESUME="latest")
    project.run(TRAIN, REPLICATE_RESUME="latest")
    record = project.record()
    assert {c.step: c.metrics["state"] for c in record.current} == STATES
    assert len(record.current) == len(STATES)
    assert [c.step for c in record.current] == sorted(STATES)
    best, latest = record.best(), record.latest()
    assert best is not None and best == latest and best.step == 29
    assert [a.number for a in record.attempts] == [1, 2, 3, 4]
    assert [a.stop and a.stop.status for a in record.attempts] == [Status.KILLED] * 3 + [
        Status.FINISHED
    ]
    assert record.status is Status.FINISHED and not record.damage and not record.problems
    assert project.files_of(best.id, tmp_path / "out")["state.txt"] == b"435"


@posix
def test_what_is_logged_for_each_batch_has_one_value_a_step_after_kills(
    project: ProjectDirectory,
) -> None:
    script = """
    import os, signal, replicate
    experiment = replicate.init(path=None)
    first = experiment.resumed_from.step + 1 if experiment.resumed_from else 0
    for epoch in range(first, 5):
        for batch in range(100):
            experiment.log({"loss": epoch}, step=100 * epoch + batch)
            if os.environ.get("DIE") == str(epoch) and batch == 37:
                os.kill(os.getpid(), signal.SIGKILL)
        experiment.checkpoint(step=epoch)
        experiment.log({"seconds": epoch}, step=epoch)  # of the checkpoint's step, but after it
    """
    for epoch in (1, 3):
        kill(project, epoch, script, REPLICATE_RESUME="latest")
    project.run(script, REPLICATE_RESUME="latest")
    project.wait_for_helpers()
    (experiment,) = replicate.experiments.list()
    assert [p.step for p in experiment.history("loss")] == list(range(500))
    assert [p.step for p in experiment.history("seconds")] == list(range(5))


@linux
def test_a_run_whose_helper_was_killed_too_loses_nothing(project: ProjectDirectory) -> None:
    run = project.start(
        """
        import replicate
        experiment = replicate.init(path=None)
        experiment.wait()
        for step in range(5):
            open("f", "w").write(str(step))
            experiment.checkpoint("f", step=step)
        print(experiment.id, flush=True)
        input()
        """
    )
    assert run.stdout is not None
    id = run.stdout.readline().strip()
    for process in (*project.helpers(), run.pid):
        os.kill(process, signal.SIGKILL)
    run.wait()
    os.utime(project.repository / f"experiments/{id}/heartbeat.json", (0, 0))  # it is long ago
    experiment = replicate.init(path=None, resume=id)
    assert experiment.id == id
    assert experiment.resumed_from is not None and experiment.resumed_from.step == 4
    experiment.checkpoint()
    experiment.stop()
    record = project.record()
    assert [c.step for c in record.current] == [0, 1, 2, 3, 4, 5]
    assert record.attempts[0].stop is None and record.status is Status.FINISHED


@posix
def test_an_attempt_has_its_own_params_code_and_host(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    kill(project, 9)
    id = project.record().id
    project.run(
        TRAIN + "# changed\n", REPLICATE_RESUME=id[:8], LR="0.5", REPLICATE_HOST="elsewhere"
    )
    record = project.record()
    first, second = record.attempts
    assert (first.params["lr"], second.params["lr"]) == (0.1, 0.5)
    assert record.params["lr"] == 0.5 and record.host == "elsewhere" != first.host
    assert (second.from_step, second.environment["cpu"]) == (8, first.environment["cpu"])
    old, new = record.checkpoints[0], record.checkpoints[-1]
    assert record.at(old).params["lr"] == 0.1
    project.cli("gc")
    for checkpoint, changed in ((old, False), (new, True)):
        code = project.files_of(checkpoint.id, tmp_path / checkpoint.id)["train.py"]
        assert code.endswith(b"# changed\n") is changed
    project.cli("verify")
    shown = project.cli("show", id).stdout
    assert "after step 8" in shown and "lr=0.5" in shown


@posix
def test_what_was_done_after_the_restored_step_is_superseded_and_kept(
    project: ProjectDirectory,
) -> None:
    kill(project, 20)
    id = project.record().id
    script = TRAIN.replace("replicate.init(", "replicate.init(from_step=8, ").replace(
        "state += step", "state += step / 2"
    )
    script = script.replace("int(checkpoint", "float(checkpoint")
    project.run(script, REPLICATE_RESUME=id)
    record = project.record()
    superseded = [c for c in record.checkpoints if c.superseded]
    assert [c.step for c in superseded] == [11, 14, 17, 20]
    assert all(c.attempt == 1 and c.tree is not None for c in superseded)
    steps = [c.step for c in record.current]
    assert steps == sorted(STATES)
    best = record.best()
    assert best is not None and best.step == 29 and best.attempt == 2
    (experiment,) = replicate.experiments.list()
    assert experiment.checkpoints.step == steps
    assert experiment.superseded.step == [11, 14, 17, 20]
    assert [experiment.superseded[0].attempt, experiment.checkpoints[-1].attempt] == [1, 2]
    plain, every = project.cli("show", id).stdout, project.cli("show", id, "--all").stdout
    assert "4 checkpoints superseded" in plain and superseded[0].id[:7] not in plain
    (row,) = [line for line in every.splitlines() if line.startswith(superseded[0].id[:7])]
    assert "1 (superseded)" in row
    (listed,) = json.loads(project.cli("ls", "--json").stdout)
    (used,) = json.loads(project.cli("du", "--json").stdout)["experiments"]
    assert (listed["num_checkpoints"], listed["num_superseded"]) == (len(steps), 4)
    assert (used["num_checkpoints"], used["num_superseded"]) == (len(steps) + 4, 4)


@posix
def test_a_run_goes_on_from_the_checkpoint_that_is_named(project: ProjectDirectory) -> None:
    kill(project, 20)
    checkpoint = project.record().checkpoints[1]
    project.run(TRAIN, REPLICATE_RESUME=checkpoint.id)
    record = project.record()
    assert record.attempts[1].restored == Restored(checkpoint.id, 1, checkpoint.created)
    assert {c.step: c.metrics["state"] for c in record.current} == STATES
    assert sum(c.superseded for c in record.checkpoints) == 5


def test_a_run_without_checkpoints_begins_again(project: ProjectDirectory) -> None:
    script = "import replicate, os\nreplicate.init(path=None).wait()\nos._exit(3)"
    project.run(script, expect=3)
    id = project.record().id
    experiment = replicate.init(path=None, resume=id)
    assert experiment.resumed_from is None
    experiment.checkpoint()
    experiment.stop()
    record = project.record()
    assert record.id == id and [c.step for c in record.current] == [0]


def test_metrics_alone_do_not_hide_the_files_to_restore(project: ProjectDirectory) -> None:
    project.write("f", "weights")
    with replicate.init(path=None) as first:
        first.checkpoint("f", step=3)
        first.checkpoint(step=4, metrics={"loss": 1.0})
    with replicate.init(path=None, resume=first) as second:
        assert second.resumed_from is not None and second.resumed_from.step == 3
        second.checkpoint(metrics={"loss": 2.0})
    assert [(c.step, c.attempt) for c in project.record().current] == [(3, 1), (4, 2)]


def test_a_resumed_run_keeps_its_params_and_labels_when_there_are_no_new_ones(
    project: ProjectDirectory,
) -> None:
    replicate.init(path=None, params={"lr": 1}, name="one", tags=["a"]).stop()
    id = project.record().id
    replicate.experiments.get(id).untag("a")
    replicate.init(path=None, name="two", tags=["a"], resume=id).stop()
    record = project.record()
    assert (record.params, record.name, record.tags) == ({"lr": 1}, "one", ())


def test_a_run_that_nobody_knows_cannot_be_resumed(project: ProjectDirectory) -> None:
    with pytest.raises(NotFoundError):
        replicate.init(path=None, resume="f1b4d2b")
    assert project.spools() == []


@pytest.mark.parametrize("step", ["3", True])
def test_from_step_is_a_number(project: ProjectDirectory, step: float) -> None:
    replicate.init(path=None).stop()
    with pytest.raises(UsageError, match="from_step"):
        replicate.init(path=None, resume=project.record().id, from_step=step)


def test_from_step_without_a_run_to_resume_is_refused(project: ProjectDirectory) -> None:
    with pytest.raises(UsageError, match="from_step"):
        replicate.init(path=None, from_step=3)


@pytest.mark.parametrize("step, pass_this", [(77, 25), (14.5, 10), (1, 5), (float("nan"), 5)])
def test_a_step_that_has_no_checkpoint_is_refused_and_the_nearest_are_named(
    project: ProjectDirectory, step: float, pass_this: int
) -> None:
    with replicate.init(path=None) as first:
        for made in range(5, 30, 5):
            first.checkpoint(step=made, metrics={"loss": 1.0})
    with pytest.raises(UsageError, match=f"no checkpoint of step {step}") as refused:
        replicate.init(path=None, resume=first, from_step=step)
    assert f"pass from_step={pass_this}." in (refused.value.hint or "")
    assert str(pass_this) in refused.value.message.partition("nearest")[2]
    assert project.record().attempts == () and project.spools() == []
    with replicate.init(path=None, resume=first, from_step=pass_this) as second:
        assert second.resumed_from is not None and second.resumed_from.step == pass_this


def test_a_run_that_keeps_its_state_elsewhere_goes_on_after_a_step(
    project: ProjectDirectory,
) -> None:
    with replicate.init(path=None) as first:
        for step in range(4):
            first.log({"loss": step}, step=step)
    with replicate.init(path=None, resume=first, from_step=1) as second:
        assert second.resumed_from is None
    assert [p.step for p in second.history("loss")] == [0, 1]


def test_keep_counts_no_superseded_checkpoint(project: ProjectDirectory) -> None:
    project.write("f", "weights")
    with replicate.init(path=None) as first:
        for step in range(4):
            first.checkpoint("f", step=step, metrics={"a": step}, primary_metric=("a", "maximize"))
    with replicate.init(path=None, resume=first, from_step=1, keep={"best": 1, "last": 2}) as again:
        again.checkpoint("f", step=2, metrics={"a": 0.5}, primary_metric=("a", "maximize"))
    kept = [(c.step, c.attempt) for c in project.record().checkpoints if c.tree is not None]
    assert kept == [(1, 1), (2, 2)]


# ------------------------------------------------------------ REPLICATE_RESUME=latest


def test_latest_begins_goes_on_until_it_is_finished_and_begins_anew(
    project: ProjectDirectory,
) -> None:
    done = project.run(TRAIN, REPLICATE_RESUME="latest")
    assert "Nothing to resume" in done.stderr
    project.run(TRAIN, REPLICATE_RESUME="latest")
    records = project.records()
    assert len(records) == 2 and not any(record.attempts for record in records)


@posix
def test_latest_takes_the_newest_of_the_same_command(project: ProjectDirectory) -> None:
    kill(project, 5)
    kill(project, 8)
    kill(project, 11, REPLICATE_COMMAND="another.py")
    project.run(TRAIN, REPLICATE_RESUME="latest")
    assert [len(record.attempts) for record in project.records()] == [0, 2, 0]


# ------------------------------------------------------------ a run that is still alive


def test_a_run_that_this_machine_records_is_not_resumed(
    project: ProjectDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "_PATIENCE", 0.2)
    with replicate.init(path=None) as first:
        with pytest.raises(UsageError, match="still being recorded"):
            replicate.init(path=None, resume=first)
        first.checkpoint(step=1)
    record = project.record()
    assert len(record.checkpoints) == 1 and not record.attempts


def test_a_run_that_is_alive_elsewhere_is_not_resumed(project: ProjectDirectory) -> None:
    run = Run(project.open().repository)
    over = threading.Event()

    def live() -> None:
        while not over.wait(0.02):
            run.repository.beat(run.id, 10.0, {})

    run.repository.beat(run.id, 10.0, {})
    recorder = threading.Thread(target=live)
    recorder.start()
    try:
        with pytest.raises(UsageError, match="lovelace"):
            replicate.init(path=None, resume=run.id)
    finally:
        over.set()
        recorder.join()
    assert not project.record().attempts


def test_a_run_whose_heartbeat_stops_is_resumed(project: ProjectDirectory) -> None:
    run = Run(project.open().repository)
    run.repository.beat(run.id, 0.1, {})
    replicate.init(path=None, resume=run.id).stop()
    assert project.record().attempt == 2


def test_a_resumed_run_is_running_until_it_ends(project: ProjectDirectory) -> None:
    replicate.init(path=None).stop()
    experiment = replicate.init(path=None, resume=project.record().id)
    assert experiment.status is Status.RUNNING
    experiment.stop()
    assert experiment.status is Status.FINISHED


# ------------------------------------------------------------ what is superseded

START = datetime(2026, 1, 1, tzinfo=UTC)
EMPTY = ExperimentRecord(
    id="e" * 64, created=START, params={}, user="u", host="h", command="c", path=None, tree=None
)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def attempt(
    number: int, from_step: float | None = None, restored: tuple[int, float] | None = None
) -> Event:
    """The event of an attempt that goes on from (attempt, second), recorded by a machine whose
    clock is a day behind: nothing may depend on that."""
    back = Restored("c" * 64, restored[0], after(restored[1])) if restored else None
    made = Attempt(
        number=number,
        created=START - timedelta(days=1),
        params={},
        user="u",
        host="h",
        command="c",
        path=None,
        tree=None,
        from_step=from_step,
        restored=back,
    )
    data = {"id": new_id(), **attempt_data(made), "attempt": number}
    return Event("attempt", made.created, f"w{number}", 0, data)


def test_steps_that_count_something_else_are_told_by_time() -> None:
    record = fold(EMPTY, [attempt(2, from_step=3, restored=(1, 10))])
    assert not record.supersedes(1, after(9), 5000)  # a batch before the checkpoint of epoch 3
    assert record.supersedes(1, after(11), 5001)
    assert not record.supersedes(
        1, after(11), 3
    )  # a metric of epoch 3, logged after its checkpoint
    assert record.supersedes(1, after(11), None)
    assert not record.supersedes(2, after(-1000), 4)


def test_going_back_to_a_superseded_checkpoint_supersedes_what_came_between() -> None:
    record = fold(
        EMPTY,
        [attempt(2, from_step=5, restored=(1, 50)), attempt(3, from_step=9, restored=(1, 90))],
    )
    assert not record.supersedes(1, after(80), 8)
    assert record.supersedes(1, after(100), 10)
    assert record.supersedes(2, after(60), 6)


def test_beginning_again_supersedes_everything() -> None:
    record = fold(EMPTY, [attempt(2, from_step=5, restored=(1, 50)), attempt(3)])
    assert record.supersedes(1, after(1), 1) and record.supersedes(2, after(1), 6)
    assert not record.supersedes(3, after(1), 0)


def test_a_step_without_a_checkpoint_supersedes_later_steps_of_every_attempt() -> None:
    record = fold(EMPTY, [attempt(2, from_step=5, restored=(1, 50)), attempt(3, from_step=2)])
    assert [record.supersedes(1, after(step), step) for step in range(5)] == [False] * 3 + [
        True
    ] * 2
    assert record.supersedes(2, after(60), 6)


@given(st.data())
def test_a_run_reads_the_same_in_whatever_order_its_events_come(data: st.DataObject) -> None:
    events: list[Event] = []
    made: list[tuple[int, float]] = []
    for number in range(1, data.draw(st.integers(2, 5))):
        if number > 1:
            back = data.draw(st.sampled_from([None, *made]))
            events.append(attempt(number, from_step=back and back[1], restored=back))
        for _ in range(data.draw(st.integers(0, 4))):
            second = len(made) + 1.0
            made.append((number, second))
            checkpoint = {
                "id": new_id(),
                "step": second,
                "path": None,
                "tree": None,
                "metrics": {},
                "attempt": number,
            }
            event = Event("checkpoint", after(second), f"w{number}", len(made), checkpoint)
            events.append(event)
    record = fold(EMPTY, events)
    assert fold(EMPTY, data.draw(st.permutations(events))) == record
    assert fold(EMPTY, [*events, *events]) == record
    assert len(record.checkpoints) == len(made)
    steps = [c.step for c in record.current]
    assert steps == sorted(set(steps))


# ------------------------------------------------------------ forks


def test_a_fork_has_its_parents_params_and_says_where_it_came_from(
    project: ProjectDirectory,
) -> None:
    with replicate.init(path=None, params={"lr": 1, "depth": 3}, name="base") as base:
        base.checkpoint(step=7)
    (listed,) = replicate.experiments.list()
    fork = listed.fork(listed.checkpoints[0], params={"lr": 2}, path=None, name="child")
    fork.stop()
    replicate.init(path=None, parent=fork.id[:12], name="grandchild").stop()
    records = {record.name: record for record in project.records()}
    child = records["child"]
    assert child.params == {"lr": 2, "depth": 3}
    assert child.parent is not None and child.parent.checkpoint == base.checkpoints[0].id
    shown = project.cli("show", base.id).stdout.partition("Lineage\n")[2].splitlines()
    ids = {name: record.id[:7] for name, record in records.items()}
    made = base.checkpoints[0].short_id
    assert shown[:3] == [
        f"{ids['base']} base  (this one)",
        f"└─ {ids['child']} child, from {made} (step 7)",
        f"   └─ {ids['grandchild']} grandchild",
    ]
    assert json.loads(project.cli("show", base.id, "--json").stdout)["children"] == [
        {"experiment": child.id, "checkpoint": base.checkpoints[0].id}
    ]


def test_a_fork_takes_the_id_of_a_checkpoint_and_the_files_of_its_parent(
    project: ProjectDirectory,
) -> None:
    project.write("model.py", "depth = 3")
    project.write("other.py", "")
    with replicate.init(path="model.py") as base:
        base.checkpoint(step=7)
        base.checkpoint(step=8)
    made = base.checkpoints[0].id
    with base.fork(made[:10]) as fork:
        assert fork.parent == Origin(base.id, made)
        assert fork.record.path == "model.py"
    with replicate.init(path=None) as bare, bare.fork() as child:
        assert child.record.path is None
    with pytest.raises(NotFoundError, match="starts with 'xyz'"):
        base.fork("xyz")


def test_lineage_is_drawn_from_the_youngest_too_and_names_what_is_deleted(
    project: ProjectDirectory,
) -> None:
    base = replicate.init(path=None, name="base")
    base.stop()
    middle = base.fork(path=None, name="middle")
    middle.stop()
    last = middle.fork(path=None, name="last")
    last.stop()
    replicate.experiments.get(middle.id).delete()
    shown = project.cli("show", last.id).stdout.partition("Lineage\n")[2].splitlines()
    assert shown[:2] == [f"{middle.short_id} (deleted)", f"└─ {last.short_id} last  (this one)"]


def test_a_circle_of_parents_is_drawn_and_does_not_hang(project: ProjectDirectory) -> None:
    ids = [new_id(), new_id()]
    repository = project.open().repository
    repository.create()
    for id, parent in (ids, ids[::-1]):
        repository.create_experiment(replace(EMPTY, id=id, parent=Origin(parent)))
    assert "Lineage" in project.cli("show", ids[0]).stdout


def test_a_run_without_relatives_has_no_lineage(project: ProjectDirectory) -> None:
    replicate.init(path=None).stop()
    assert "Lineage" not in project.cli("show", project.record().id).stdout
