"""Recording into a bucket: training goes on whatever the network does, nothing is lost, and what is
only on this machine is told apart from what is saved."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import ProjectDirectory, linux
from gate import Gate
from replicate.model import FIRST_BEAT, ExperimentRecord, Status
from replicate.spool import known_repositories
from servers import Server

pytestmark = linux

#: Saves what it is told to, line by line, and says when it has been told so.
OBEDIENT = """
    import sys, replicate
    experiment = replicate.init(params={"a": 1})
    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "checkpoint":
            open("m", "w").write(f"version {rest[0]}")
            experiment.checkpoint("m", step=int(rest[0]), metrics={"i": int(rest[0])},
                                  primary_metric=("i", "maximize"))
        elif word == "wait":
            print(experiment.wait(), flush=True)
            continue
        elif word == "best":
            print(experiment.best().metrics["i"], flush=True)
            continue
        print("done", flush=True)
"""
OFFLINE = {"REPLICATE_MODE": "offline"}


@pytest.fixture
def gate(project: ProjectDirectory, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The network between the project and its bucket."""
    project.write("replicate.yaml", f"repository: {s3_url}\n")
    gate = Gate(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", gate.endpoint)
    yield gate
    gate.close()


class Training:
    """A script that does what it is told."""

    def __init__(self, project: ProjectDirectory, **environ: str) -> None:
        self.process = project.start(OBEDIENT, **environ)
        assert self._answer() == "ready"

    def tell(self, order: str) -> str:
        """Give an order; returns when it is carried out."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        """Let the script come to its end; what it has said to the person."""
        _, err = self.process.communicate()
        return err

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def kill_helpers(project: ProjectDirectory) -> None:
    for helper in project.helpers():
        os.kill(helper, signal.SIGKILL)
    project.wait_for_helpers()


def steps(record: ExperimentRecord) -> list[object]:
    return [c.step for c in record.checkpoints]


def listed(project: ProjectDirectory) -> dict[str, object]:
    (experiment,) = json.loads(project.cli("ls", "--json").stdout)
    assert isinstance(experiment, dict)
    return experiment


def saved(project: ProjectDirectory) -> ExperimentRecord:
    """The only experiment, which the bucket has all of."""
    record = project.record()
    assert record.saved and all(c.saved for c in record.checkpoints)
    assert project.spools() == []
    return record


def test_a_run_is_in_the_bucket_when_it_has_ended(
    project: ProjectDirectory, s3_url: str, tmp_path: Path
) -> None:
    project.write("replicate.yaml", f"repository: {s3_url}\n")
    done = project.run("""
        import replicate
        experiment = replicate.init(params={"a": 1})
        open("m", "w").write("model")
        experiment.checkpoint("m", step=1, metrics={"loss": 0.5})
        experiment.log({"x": 1})
        print("hello")
    """)
    assert s3_url in done.stderr
    record = saved(project)
    assert (record.status, record.params) == ("finished", {"a": 1})
    assert project.files_of(record.checkpoints[0].id, tmp_path / "out")["m"] == b"model"
    assert "hello\n" in project.cli("logs", record.id).stdout
    assert len(project.open().logged(record)) == 2
    assert project.open().samples(record) != []


def test_nothing_of_a_run_lies_in_the_project_and_others_cannot_read_what_waits(
    project: ProjectDirectory, gate: Gate, s3_url: str
) -> None:
    gate.shut()
    training = Training(project)
    assert not project.repository.exists()
    (spool,) = project.spools()
    assert spool.parent.stat().st_mode & 0o777 == 0o700
    assert known_repositories(spool.parents[1]) == [f"{s3_url}\n{gate.endpoint}"]
    gate.open()
    training.end()


@pytest.mark.parametrize("network", ["shut", "mute"])
def test_a_checkpoint_is_made_while_nothing_answers_and_saved_when_something_does(
    project: ProjectDirectory, gate: Gate, network: str, tmp_path: Path
) -> None:
    training = Training(project)
    assert training.tell("checkpoint 0") == "done"
    assert training.tell("wait") == "True"
    gate.shut() if network == "shut" else gate.mute()
    for number in (1, 2, 3):
        assert training.tell(f"checkpoint {number}") == "done"
    assert training.tell("best") == "3"
    (spool,) = project.spools()
    assert len(list(spool.glob("*.job"))) == 3
    gate.open()
    training.end()
    record = saved(project)
    assert (record.status, steps(record)) == ("finished", [0, 1, 2, 3])
    out = project.files_of(record.checkpoints[2].id, tmp_path / "out")
    assert out["m"] == b"version 2"


def test_an_outage_is_told_once_and_plainly(project: ProjectDirectory, gate: Gate) -> None:
    training = Training(project)
    gate.shut()
    for number in range(3):
        training.tell(f"checkpoint {number}")
        assert training.tell("wait") == "False"
    gate.open()
    said = training.end()
    assert said.count("is tried again") == 1
    assert said.count("the connection was refused") == 1
    assert steps(saved(project)) == [0, 1, 2]


def test_a_run_that_begins_without_a_network_is_recorded(
    project: ProjectDirectory, gate: Gate
) -> None:
    gate.shut()
    training = Training(project)
    training.tell("checkpoint 0")
    gate.open()
    said = training.end()
    assert "is saved to" not in said and "is kept on this machine until s3://" in said
    assert steps(saved(project)) == [0]


def test_a_run_that_only_sync_has_saved_was_never_seen_alive(
    project: ProjectDirectory, gate: Gate
) -> None:
    gate.shut()
    training = Training(project)
    (helper,) = project.helpers()
    os.kill(helper, signal.SIGKILL)  # first: it would know how the trainer has ended
    training.kill()
    project.wait_for_helpers()
    gate.open()
    project.cli("sync")
    (record,) = project.records()
    assert record.heartbeat is None
    assert replace(record, created=record.created - 2 * FIRST_BEAT).status is Status.LOST


def test_runs_for_one_url_on_two_servers_are_kept_apart(
    project: ProjectDirectory,
    gate: Gate,
    moto: Server,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project.run("import replicate; replicate.init()", **OFFLINE)
    project.wait_for_helpers()
    moto.create(moto.endpoint, s3_url.split("/")[2])
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
    for options in ([], ["--all"]):
        failed = project.cli("sync", *options, expect=1)
        assert f"runs wait for {s3_url} at {gate.endpoint}" in failed.stderr
        assert "AWS_ENDPOINT_URL" in failed.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", gate.endpoint)
    assert "All is saved" in project.cli("sync").stderr
    assert listed(project)["status"] == "finished"
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
    assert json.loads(project.cli("ls", "--json").stdout) == []


def test_a_program_that_ends_in_an_outage_ends_and_names_what_saves_the_rest(
    project: ProjectDirectory, gate: Gate
) -> None:
    training = Training(project)
    training.tell("wait")
    gate.shut()
    training.tell("checkpoint 0")
    said = training.end()
    assert training.process.returncode == 0
    assert "`replicate sync`" in said
    kill_helpers(project)
    assert "cannot" in project.cli("sync", expect=1).stderr
    gate.open()
    assert "All is saved" in project.cli("sync").stderr
    record = saved(project)
    assert (record.status, steps(record)) == ("finished", [0])
    assert "Nothing was left" in project.cli("sync").stderr


def test_a_helper_goes_on_after_the_program_has_ended(
    project: ProjectDirectory, gate: Gate
) -> None:
    training = Training(project)
    training.tell("wait")
    gate.shut()
    training.tell("checkpoint 0")
    training.end()
    gate.open()
    assert steps(saved(project)) == [0]


@pytest.mark.parametrize("killed", ["trainer", "helper", "both"])
def test_nothing_is_lost_whatever_is_killed_in_an_outage(
    project: ProjectDirectory, gate: Gate, killed: str
) -> None:
    training = Training(project)
    training.tell("wait")
    gate.shut()
    training.tell("checkpoint 0")
    if killed == "trainer":
        training.kill()
        gate.open()
        project.wait_for_helpers()
    elif killed == "helper":
        (helper,) = project.helpers()
        os.kill(helper, signal.SIGKILL)
        training.tell("checkpoint 1")
        gate.open()
        training.end()
    else:
        training.kill()
        kill_helpers(project)
        gate.open()
        assert "was cut off" in project.cli("sync").stderr
    record = saved(project)
    assert steps(record) == ([0, 1] if killed == "helper" else [0])
    expected = {"trainer": "killed", "helper": "finished", "both": "running"}
    assert record.status == expected[killed]


def test_how_a_run_ended_is_known_when_it_is_saved_on_another_day(
    project: ProjectDirectory, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(project)
    training.tell("wait")
    gate.shut()
    training.tell("checkpoint 0")
    training.kill()
    (spool,) = project.spools()
    while not list(spool.glob("999*.job")):
        pass
    kill_helpers(project)
    monkeypatch.setenv("REPLICATE_MODE", "offline")
    assert listed(project)["status"] == "killed"
    monkeypatch.delenv("REPLICATE_MODE")
    gate.open()
    project.cli("sync")
    assert saved(project).status == "killed"


# ---------------------------------------------------------------- offline


def test_offline_no_network_is_used_before_sync(
    project: ProjectDirectory, gate: Gate, tmp_path: Path
) -> None:
    gate.mute()
    training = Training(project, **OFFLINE)
    training.tell("checkpoint 0")
    assert training.tell("wait") == "False"
    assert training.tell("best") == "0"
    said = training.end()
    assert "is saved to" not in said
    assert "kept on this machine, because REPLICATE_MODE is offline" in said
    assert "`replicate sync` saves it to s3://" in said
    project.wait_for_helpers()
    assert not gate.unanswered.acquire(blocking=False)
    gate.open()
    done = project.cli("sync")
    assert "All is saved" in done.stderr
    record = saved(project)
    assert (record.status, steps(record)) == ("finished", [0])
    assert project.files_of(record.checkpoints[0].id, tmp_path / "out")["m"] == b"version 0"
    assert "ready" in project.cli("logs", record.id).stdout
    assert project.open().samples(record) != []


def test_offline_what_is_on_this_machine_can_be_looked_at(
    project: ProjectDirectory, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        project.run(
            f"""
            import sys, replicate
            experiment = replicate.init(params={{"a": {number}}})
            print("hello {number}", flush=True)
            print("no end", end="")
            print("oh", file=sys.stderr)
            experiment.log({{"x": 0.5}})
            experiment.checkpoint(metrics={{"loss": 1}})
            """,
            **OFFLINE,
        )
    project.wait_for_helpers()
    gate.mute()
    monkeypatch.setenv("REPLICATE_MODE", "offline")
    one, other = (e["id"] for e in json.loads(project.cli("ls", "--json").stdout))
    assert "hello 1\n" in project.cli("logs", one).stdout
    assert "no end" in project.cli("logs", one, "-f").stdout
    assert "oh\n" in project.cli("logs", one, "--stderr").stdout
    shown = project.cli("show", one)
    assert "x " in shown.stdout and "REPLICATE_MODE" not in shown.stderr
    assert json.loads(project.cli("show", one, "--system", "--json").stdout)["samples"] >= 1
    compared = project.cli("diff", one, other)
    assert compared.stdout.count("a:") == 1 and "files are not compared" in compared.stderr
    assert json.loads(project.cli("diff", one, other, "--json").stdout)["files_compared"] is False
    assert "REPLICATE_MODE is offline" in project.cli("show", "abc", expect=2).stderr
    assert "REPLICATE_MODE is offline" in project.cli("verify", expect=1).stderr
    assert not gate.unanswered.acquire(blocking=False)
    gate.open()
    project.cli("sync")
    monkeypatch.setenv("REPLICATE_MODE", "online")
    assert "hello 1\n" in project.cli("logs", one).stdout
    assert len(json.loads(project.cli("show", one, "--json").stdout)["metrics"]) == 2


def test_offline_a_run_that_is_saved_in_part_says_that_there_is_more(
    project: ProjectDirectory, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(project)
    training.tell("checkpoint 0")
    assert training.tell("wait") == "True"
    gate.shut()
    training.tell("checkpoint 1")
    training.end()
    kill_helpers(project)
    monkeypatch.setenv("REPLICATE_MODE", "offline")
    id = str(listed(project)["id"])
    for command in (["show", id], ["show", id, "--system"], ["logs", id]):
        assert "what is saved already is not shown" in project.cli(*command).stderr
    assert "files are not compared" in project.cli("diff", id, id).stderr


def test_offline_a_run_that_was_killed_is_known_to_be(
    project: ProjectDirectory, gate: Gate
) -> None:
    training = Training(project, **OFFLINE)
    training.tell("checkpoint 0")
    training.kill()
    project.wait_for_helpers()
    project.cli("sync")
    record = saved(project)
    assert (record.status, steps(record)) == ("killed", [0])


def test_offline_a_script_that_exits_with_an_error_has_failed(
    project: ProjectDirectory, gate: Gate
) -> None:
    project.run("import sys, replicate; replicate.init(); sys.exit(3)", expect=3, **OFFLINE)
    project.wait_for_helpers()
    project.cli("sync")
    record = saved(project)
    assert record.stop is not None
    assert (record.status, record.stop.exit_code) == ("failed", 3)


def test_a_repository_on_a_disk_is_not_offline(project: ProjectDirectory) -> None:
    done = project.run("import replicate; replicate.init().checkpoint()", **OFFLINE)
    assert "sync" not in done.stderr
    assert project.record().status == "finished"


def test_sync_finds_every_repository_that_runs_wait_for(
    project: ProjectDirectory, gate: Gate, s3_url: str
) -> None:
    project.run("import replicate; replicate.init()", **OFFLINE)
    other = f"{s3_url}-2"
    project.run("import replicate; replicate.init()", REPLICATE_REPOSITORY=other, **OFFLINE)
    project.wait_for_helpers()
    assert len(project.spools()) == 2
    project.cli("sync")
    assert len(project.spools()) == 1
    project.cli("sync", "--all")
    assert project.spools() == []
    assert len(json.loads(project.cli("ls", "--json", "-R", other).stdout)) == 1


def test_sync_leaves_a_run_alone_that_is_being_recorded(
    project: ProjectDirectory, gate: Gate
) -> None:
    training = Training(project, **OFFLINE)
    training.tell("checkpoint 0")
    assert "left to its own process" in project.cli("sync").stderr
    assert len(project.spools()) == 1
    training.end()


def test_sync_wakes_a_helper_that_waits_before_it_tries_again(
    project: ProjectDirectory, gate: Gate, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from replicate.recorder.pace import Pace\n"
        "failed = Pace.failed\n"
        "Pace.failed = lambda self: 1e6 * failed(self)\n"
    )
    training = Training(project, PYTHONPATH=str(tmp_path))
    gate.shut()
    training.tell("checkpoint 0")
    assert training.tell("wait") == "False"
    gate.open()
    (spool,) = project.spools()
    for _ in range(100):
        done = project.cli("sync")
        if not list(spool.glob("*.job")):
            break
        assert "tries now" in done.stderr
    else:
        pytest.fail("it was not saved")
    training.end()
    assert steps(saved(project)) == [0]


def test_the_next_run_says_what_is_still_to_be_saved(project: ProjectDirectory, gate: Gate) -> None:
    project.run("import replicate; replicate.init()", **OFFLINE)
    project.wait_for_helpers()
    done = project.run("import replicate; replicate.init()", **OFFLINE)
    assert "1 earlier run is only on this machine: `replicate sync`" in done.stderr


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_without_a_helper_a_run_is_kept_here_and_saved_at_its_end_or_by_sync(
    project: ProjectDirectory, gate: Gate, mode: str
) -> None:
    done = project.run(
        """
        import subprocess
        def refuse(*arguments, **keywords):
            raise PermissionError(1, "no processes here")
        subprocess.Popen = refuse
        import replicate
        experiment = replicate.init(path=None)
        open("m", "w").write("model")
        experiment.checkpoint("m", step=1)
        """,
        REPLICATE_MODE=mode,
    )
    assert done.stderr.count("No helper process") == 1
    if mode == "offline":
        assert len(project.spools()) == 1
        project.cli("sync")
    record = saved(project)
    assert (record.status, steps(record)) == ("finished", [1])


# ---------------------------------------------------------------- what is shown


def test_what_is_only_here_is_listed_and_marked(project: ProjectDirectory, gate: Gate) -> None:
    training = Training(project)
    training.tell("checkpoint 0")
    training.tell("wait")
    assert listed(project)["saved"] is True
    (helper,) = project.helpers()
    os.kill(helper, signal.SIGSTOP)  # it cannot save what comes now
    training.tell("checkpoint 1")
    experiment = listed(project)
    assert (experiment["saved"], experiment["num_checkpoints"]) == (False, 2)
    latest = experiment["latest_checkpoint"]
    assert isinstance(latest, dict) and (latest["step"], latest["saved"]) == (1, False)
    assert "running, local" in project.cli("ls").stdout
    assert "running, local" in project.cli("ps").stdout
    shown = project.cli("show", str(experiment["id"])).stdout
    assert "local" in shown.splitlines()[-1] and "local" not in shown.splitlines()[-2]
    assert "only on this machine" in project.cli("show", latest["id"]).stdout
    refused = project.cli("checkout", latest["id"], "-o", "out", expect=2)
    assert "only on this machine" in refused.stderr
    os.kill(helper, signal.SIGCONT)
    training.end()
    assert listed(project)["saved"] is True


def test_a_run_of_which_the_bucket_has_nothing_is_listed_without_a_network(
    project: ProjectDirectory, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.shut()
    training = Training(project, **OFFLINE)
    training.tell("checkpoint 0")
    failed = project.cli("ls", expect=1)
    assert "REPLICATE_MODE=offline" in failed.stderr
    monkeypatch.setenv("REPLICATE_MODE", "offline")
    experiment = listed(project)
    assert (experiment["status"], experiment["saved"]) == ("running", False)
    assert "running, local" in project.cli("show", str(experiment["id"])).stdout
    training.end()
    project.wait_for_helpers()
    assert listed(project)["status"] == "finished"


def test_what_is_not_saved_yet_is_neither_edited_nor_deleted(
    project: ProjectDirectory, gate: Gate
) -> None:
    project.run("import replicate; replicate.init()", **OFFLINE)
    project.wait_for_helpers()
    id = str(listed(project)["id"])
    for command in (["tag", id, "x"], ["rm", "--force", id]):
        assert "`replicate sync`" in project.cli(*command, expect=2).stderr
    project.cli("sync")
    project.cli("tag", id, "x")
    assert saved(project).tags == ("x",)
    project.cli("rm", "--force", id)
    assert project.records() == []


def test_what_a_script_has_recorded_can_be_opened_again_at_once(
    project: ProjectDirectory, gate: Gate
) -> None:
    done = project.run("""
        import replicate
        experiment = replicate.init(path=None)
        open("m", "w").write("model")
        experiment.checkpoint("m", step=1, metrics={"i": 1}, primary_metric=("i", "maximize"))
        experiment.tag("good")
        assert experiment.tags == ("good",)
        print(experiment.best().open().read().decode())
        print([len(e.checkpoints) for e in replicate.experiments.list()])
    """)
    assert done.stdout == "model\n[1]\n"


# ---------------------------------------------------------------- a set-up that cannot work


def test_a_bucket_that_is_not_there_is_an_error_at_once(
    project: ProjectDirectory, gate: Gate
) -> None:
    project.write("replicate.yaml", "repository: s3://no-such-bucket-anywhere/root\n")
    done = project.run("import replicate; replicate.init()", expect=1)
    assert "there is no such bucket" in done.stderr
    assert project.spools() == []


def test_keep_holds_in_a_bucket_and_for_what_sync_saves(
    project: ProjectDirectory, gate: Gate
) -> None:
    project.run(
        """
        import replicate
        experiment = replicate.init(path=None, keep={"last": 1})
        for i in range(3):
            open("m", "w").write(f"version {i}")
            experiment.checkpoint("m")
        """,
        **OFFLINE,
    )
    project.wait_for_helpers()
    project.cli("sync")
    assert [c.dropped for c in saved(project).checkpoints] == [True, True, False]


def test_a_run_in_a_bucket_is_resumed(project: ProjectDirectory, gate: Gate) -> None:
    training = Training(project)
    training.tell("checkpoint 0")
    training.kill()
    project.wait_for_helpers()
    done = project.run(
        """
        import replicate
        experiment = replicate.init()
        print(experiment.resumed_from.open("m").read().decode())
        experiment.checkpoint(step=1)
        """,
        REPLICATE_RESUME="latest",
    )
    assert done.stdout == "version 0\n"
    record = saved(project)
    assert (record.attempt, steps(record)) == (2, [0, 1])
