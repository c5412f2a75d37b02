"""`keep`: which checkpoints of a run keep their files as it goes, and what the others leave."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import replicate
from conftest import ProjectDirectory, linux
from replicate.config import Keep
from replicate.errors import ConfigError, NotFoundError, UsageError
from replicate.model import CheckpointRecord, PrimaryMetric, Status, ranking
from replicate.recorder.retention import to_drop
from replicate.records import now

# ------------------------------------------------------------ the rule

START = now()


def checkpoints(*losses: float | None, files: Sequence[bool] = ()) -> list[CheckpointRecord]:
    """Checkpoints with these losses, at the steps 0, 1, 2, …; None: without one."""
    return [
        CheckpointRecord(
            id=f"{step:064x}",
            experiment="0" * 64,
            created=START + timedelta(seconds=step),
            step=step,
            path="m",
            tree="f" * 64 if has_files else None,
            metrics={} if loss is None else {"loss": loss},
            primary_metric=PrimaryMetric("loss", "minimize"),
        )
        for step, (loss, has_files) in enumerate(
            itertools.zip_longest(losses, files, fillvalue=True)
        )
    ]


def steps_that_stay(keep: Keep, found: Sequence[CheckpointRecord]) -> list[object]:
    dropped = to_drop(keep, found)
    return [c.step for c in found if c.tree is not None and c not in dropped]


NAN = float("nan")


@pytest.mark.parametrize(
    ("keep", "losses", "stay"),
    [
        (Keep(last=2), (5, 4, 3, 2), [2, 3]),
        (Keep(best=2), (1, 5, 2, 4), [0, 2, 3]),
        (Keep(best=1), (1, 5, 2, 0), [3]),
        (Keep(every=2), (1, 1, 1, 1, 1, 1), [0, 2, 4, 5]),
        (Keep(best=1, last=2), (1, 5, 2, 4), [0, 2, 3]),
        (Keep(best=1, every=3), (5, 1, 5, 5, 5), [0, 1, 3, 4]),
        (Keep(best=1, last=1, every=4), (5, 1, 5, 5, 5, 5), [0, 1, 4, 5]),
        (Keep(best=2), (3, 3, 3, 3), [2, 3]),
        (Keep(best=1), (NAN, 2, NAN, NAN), [1, 3]),
        (Keep(best=1), (NAN, None, NAN), [0, 1, 2]),
        (Keep(best=1, last=1), (None, None), [0, 1]),
    ],
)
def test_what_keep_names_stays(
    keep: Keep, losses: tuple[float | None, ...], stay: list[int]
) -> None:
    assert steps_that_stay(keep, checkpoints(*losses)) == stay


def test_a_checkpoint_without_files_takes_no_place() -> None:
    found = checkpoints(3, 1, 2, 0, files=[True, False, True, False])
    assert steps_that_stay(Keep(last=1), found) == [2]
    assert steps_that_stay(Keep(best=1), found) == [2]
    assert steps_that_stay(Keep(best=2), found) == [0, 2]


LACKS = ("model",)


def lacking(found: Sequence[CheckpointRecord], **lost: tuple[str, ...]) -> list[CheckpointRecord]:
    """The same, of which those at some steps (s1, s2, …) lack files."""
    return [replace(c, size=1, lost=lost.get(f"s{c.step}", ())) for c in found]


@pytest.mark.parametrize("keep", [Keep(last=1), Keep(best=1), Keep(best=1, last=1, every=2)])
def test_a_checkpoint_that_lacks_files_takes_the_place_of_no_whole_one(keep: Keep) -> None:
    found = lacking(checkpoints(3, 2, 1), s1=LACKS, s2=LACKS)
    assert 0 in steps_that_stay(keep, found)
    whole_again = [*found, *lacking(checkpoints(3, 2, 1, 0)[3:])]
    assert steps_that_stay(Keep(last=1), whole_again) == [3]


def test_checkpoints_that_all_lack_the_same_are_let_go_as_whole_ones_are() -> None:
    found = lacking(checkpoints(3, 2, 1), s0=LACKS, s1=LACKS, s2=LACKS)
    assert steps_that_stay(Keep(last=1), found) == [2]
    assert steps_that_stay(Keep(best=1), found) == [2]


def test_one_that_lacks_more_takes_the_place_of_none_that_lacks_less() -> None:
    found = lacking(checkpoints(3, 2, 1), s0=("log",), s1=("log", "model"), s2=("optimizer",))
    assert steps_that_stay(Keep(last=1), found) == [0, 1, 2]


keeps = st.builds(
    Keep,
    best=st.none() | st.integers(1, 4),
    last=st.none() | st.integers(1, 4),
    every=st.none() | st.integers(1, 4),
).filter(lambda keep: keep != Keep())
losses = st.lists(st.none() | st.floats(allow_subnormal=False), min_size=1, max_size=12)


@given(keeps, losses)
def test_the_latest_the_best_the_last_and_each_of_every_so_many_stay(
    keep: Keep, values: list[float | None]
) -> None:
    found = checkpoints(*values)
    dropped = to_drop(keep, found)
    assert found[-1] not in dropped
    assert not set(dropped_ids(dropped)) & {c.id for c in ranking(found)[: keep.best or 0]}
    assert not set(dropped_ids(dropped)) & {c.id for c in found[-(keep.last or 1) :]}
    if keep.every is not None:
        assert all(int(c.step or 0) % keep.every for c in dropped)


@given(keeps, losses)
def test_what_is_dropped_comes_in_the_order_it_was_made_and_only_once(
    keep: Keep, values: list[float | None]
) -> None:
    found = checkpoints(*values)
    dropped = to_drop(keep, found)
    assert dropped == [c for c in found if c in dropped]
    left = [replace(c, tree=None, dropped=True) if c in dropped else c for c in found]
    assert to_drop(keep, left) == []


@given(keeps, losses)
def test_dropping_as_the_run_goes_keeps_what_dropping_at_the_end_keeps(
    keep: Keep, values: list[float | None]
) -> None:
    found = checkpoints(*values)
    going: list[CheckpointRecord] = []
    for checkpoint in found:
        going.append(checkpoint)
        dropped = set(dropped_ids(to_drop(keep, going)))
        going = [replace(c, tree=None, dropped=True) if c.id in dropped else c for c in going]
    at_the_end = set(dropped_ids(to_drop(keep, found)))
    assert {c.id for c in going if c.tree is None} == at_the_end


def dropped_ids(found: Sequence[CheckpointRecord]) -> list[str]:
    return [c.id for c in found]


# ------------------------------------------------------------ a run

LOSSES = [0.5, 0.1, 0.4, 0.3, 0.6]
SCRIPT = f"""
    import replicate
    experiment = replicate.init(path=None)
    for step, loss in enumerate({LOSSES}):
        with open("model", "wb") as file:
            file.write(b"shared" * 20_000 + b"%d" % step * 100_000)
        with open("state", "wb") as file:
            file.write(b"state %d" % step)
        experiment.checkpoint(
            ["model", "state"], metrics={{"loss": loss}}, primary_metric=("loss", "minimize")
        )
"""


def stored_states(project: ProjectDirectory) -> set[bytes]:
    """The contents of `state` that are somewhere in the repository."""
    blobs = (p.read_bytes() for p in project.repository.glob("blobs/*/*"))
    return {content for content in blobs if content.startswith(b"state")}


def saved_state(project: ProjectDirectory, checkpoint: CheckpointRecord, target: Path) -> bytes:
    return project.files_of(checkpoint.id, target)["state"]


@pytest.mark.parametrize(
    ("keep", "stay"),
    [("{best: 1}", [1, 4]), ("{last: 2}", [3, 4]), ("{best: 1, last: 1, every: 3}", [0, 1, 3, 4])],
)
def test_the_files_of_other_checkpoints_leave_the_disk_and_their_metrics_stay(
    project: ProjectDirectory, tmp_path: Path, keep: str, stay: list[int]
) -> None:
    project.write("replicate.yaml", f"keep: {keep}\n")
    project.run(SCRIPT)
    record = project.record()
    assert [c.metrics["loss"] for c in record.checkpoints] == LOSSES
    assert [c.step for c in record.checkpoints if c.tree is not None] == stay
    assert [c.step for c in record.checkpoints if not c.dropped] == stay
    assert stored_states(project) == {b"state %d" % step for step in stay}
    for step in stay:
        content = saved_state(project, record.checkpoints[step], tmp_path / str(step))
        assert content == b"state %d" % step
    project.cli("verify", "--full")
    shown = project.cli("show", record.id).stdout
    assert all(str(loss) in shown for loss in LOSSES)
    best = replicate.experiments.list()[0].best()
    assert best is not None and best.metrics["loss"] == 0.1


@linux
@pytest.mark.parametrize("keep", ["{last: 1}", "{best: 1}", "{best: 1, last: 1, every: 7}"])
@pytest.mark.parametrize("path", ["model", ["model", "log"]])
def test_a_checkpoint_whose_file_cannot_be_read_costs_none_that_has_it(
    project: ProjectDirectory, tmp_path: Path, keep: str, path: object
) -> None:
    project.write("replicate.yaml", f"keep: {keep}\n")
    project.run(f"""
        import ctypes, os, replicate
        experiment = replicate.init(path=None)
        give_up_roots_rights = ctypes.CDLL(None).capset
        give_up_roots_rights((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
        for step in range(3):
            open("model", "wb").write(b"%d" % step * 100_000)
            open("log", "w").write(str(step))
            os.chmod("model", 0 if step else 0o600)
            experiment.checkpoint(
                {path!r}, metrics={{"loss": -step}}, primary_metric=("loss", "minimize")
            )
            os.chmod("model", 0o600)
    """)
    record = project.record()
    assert [c.lost for c in record.checkpoints] == [(), ("model",), ("model",)]
    assert not record.checkpoints[0].dropped
    saved = project.files_of(record.checkpoints[0].id, tmp_path / "out")
    assert saved["model"] == b"0" * 100_000


def test_what_is_dropped_is_no_longer_counted(project: ProjectDirectory) -> None:
    project.write("replicate.yaml", "keep: {last: 1}\n")
    project.run(SCRIPT)
    project.wait_for_helpers()
    on_disk = sum(p.stat().st_size for p in project.repository.glob("blobs/*/*"))
    usage = json.loads(project.cli("du", "--json").stdout)
    assert on_disk < 400_000
    (counted,) = usage["experiments"]
    assert on_disk <= counted["stored"] == counted["only_here"] == usage["stored"] < 2 * on_disk


def test_init_may_say_what_to_keep_and_goes_before_the_file(project: ProjectDirectory) -> None:
    project.write("replicate.yaml", "keep: {last: 1}\n")
    project.run(SCRIPT.replace("path=None", "path=None, keep={'last': 3}"))
    project.wait_for_helpers()
    assert stored_states(project) == {b"state 2", b"state 3", b"state 4"}


def test_without_keep_all_files_stay(project: ProjectDirectory) -> None:
    project.run(SCRIPT)
    project.wait_for_helpers()
    assert len(stored_states(project)) == len(LOSSES)


def test_in_the_foreground_keep_does_the_same(project: ProjectDirectory) -> None:
    project.write("replicate.yaml", "keep: {best: 1}\n")
    done = project.run(f"""
    import sys
    sys.executable = "/nonexistent/python"{SCRIPT}""")
    assert "foreground" in done.stderr
    project.wait_for_helpers()
    assert stored_states(project) == {b"state 1", b"state 4"}


def test_files_that_another_checkpoint_or_experiment_needs_survive(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    project.run(SCRIPT.replace(f"{LOSSES}", "[0.5, 0.1]"))
    project.write("replicate.yaml", "keep: {last: 1}\n")
    project.run(SCRIPT)
    earlier, later = project.records()
    assert [c.dropped for c in later.checkpoints] == [True] * 4 + [False]
    for number, checkpoint in enumerate([*earlier.checkpoints, later.checkpoints[-1]]):
        files = project.files_of(checkpoint.id, tmp_path / str(number))
        assert files["model"].startswith(b"shared" * 20_000)
        assert files["state"] == b"state %d" % int(checkpoint.step or 0)
    project.cli("verify", "--full")


@pytest.mark.parametrize("more", [[], ["--path", "model"]])
def test_who_checks_out_dropped_files_is_told_what_became_of_them(
    project: ProjectDirectory, tmp_path: Path, more: list[str]
) -> None:
    project.run(SCRIPT.replace("path=None", "path='train.py', keep={'last': 1}"))
    record = project.record()
    dropped, kept = record.checkpoints[0], record.checkpoints[-1]
    out = str(tmp_path / "out")
    done = project.cli("checkout", dropped.id, "-o", out, *more, expect=2)
    assert "`keep`" in done.stderr and kept.id[:7] in done.stderr
    assert not os.path.exists(out)
    project.cli("checkout", dropped.id, "-o", out, "--path", "train.py")
    assert os.listdir(out) == ["train.py"]


def test_checking_out_an_experiment_takes_the_best_checkpoint_that_has_files_and_says_so(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    project.run(SCRIPT.replace("path=None", "path=None, keep={'last': 2}"))
    record = project.record()
    best, kept = record.best(), record.checkpoints[3]
    assert best is not None and best.dropped
    done = project.cli("checkout", record.id, "-o", str(tmp_path / "out"))
    assert f"using {kept.id[:7]} (step 3), the best checkpoint that has files" in done.stderr
    assert (tmp_path / "out" / "state").read_bytes() == b"state 3"
    compared = project.cli("diff", record.id, record.checkpoints[0].id)
    assert f"using its best checkpoint {best.id[:7]}" in compared.stderr


def test_a_script_that_opens_dropped_files_is_told_what_became_of_them(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    project.run(SCRIPT.replace("path=None", "path=None, keep={'last': 1}"))
    project.wait_for_helpers()
    dropped = replicate.experiments.list()[0].checkpoints[0]
    with pytest.raises(NotFoundError, match="`keep`"):
        dropped.open("model")
    with pytest.raises(NotFoundError, match="`keep`"):
        dropped.checkout(tmp_path / "out")


# ------------------------------------------------------------ crashes


@linux
def test_a_helper_that_is_killed_is_followed_by_one_that_goes_on_dropping(
    project: ProjectDirectory,
) -> None:
    process = project.start("""
        import sys, replicate
        experiment = replicate.init(path=None, keep={"best": 1, "last": 1})
        for step, loss in enumerate([5, 1, 4, 3, 2]):
            open("state", "w").write(f"state {step}")
            metrics = {"loss": loss}
            experiment.checkpoint("state", metrics=metrics, primary_metric=("loss", "minimize"))
            if step == 2:
                experiment.wait()
                print("saved", flush=True)
                sys.stdin.readline()
    """)
    assert process.stdout is not None and process.stdout.readline() == "saved\n"
    (helper,) = project.helpers()
    os.kill(helper, signal.SIGKILL)
    process.communicate("go on\n")
    record = project.record()
    assert record.status is Status.FINISHED
    assert [c.step for c in record.checkpoints] == [0, 1, 2, 3, 4]
    assert [c.step for c in record.checkpoints if c.tree is not None] == [1, 4]
    project.cli("verify", "--full")
    project.cli("gc")
    assert stored_states(project) == {b"state 1", b"state 4"}


# ------------------------------------------------------------ full disks

#: Each checkpoint takes a fifth of the disk.
ON_A_SMALL_DISK = """
    import os, shutil, sys, replicate
    experiment = replicate.init(path=None, keep={"best": 1, "last": 1})
    def save(number):
        open("state", "wb").write(b"state %d" % number + os.urandom(800_000))
        metrics = {"loss": -number}
        experiment.checkpoint("state", metrics=metrics, primary_metric=("loss", "minimize"))
    for step in range(int(sys.argv[1])):
        save(step)
        experiment.wait()
        print("free", shutil.disk_usage(sys.argv[2]).free)
    print("saved", flush=True)
    sys.stdin.readline()
    save(int(sys.argv[1]))
    print("spooled", flush=True)
"""


@pytest.fixture
def on_a_small_disk(project: ProjectDirectory, small_disk: Path) -> ProjectDirectory:
    """A project whose repository has a disk of its own."""
    project.repository = small_disk / "repository"
    project.write("replicate.yaml", f"repository: {project.repository}\n")
    return project


def whole_steps(project: ProjectDirectory) -> list[object]:
    """The steps whose files can be had back."""
    record = project.record()
    assert project.open().verify(full=True).damage == () and record.problems == ()
    return [c.step for c in record.checkpoints if c.has_all_files]


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert line in iter(process.stdout.readline, "")


def leave_room(project: ProjectDirectory, size: int) -> None:
    """Fill the disk of the repository but for so many bytes."""
    disk = project.repository.parent
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - size))


def test_a_run_that_keeps_little_needs_no_more_than_a_small_disk(
    on_a_small_disk: ProjectDirectory,
) -> None:
    disk = str(on_a_small_disk.repository.parent)
    done = on_a_small_disk.run(ON_A_SMALL_DISK, "9", disk)
    free = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("free")]
    assert len(free) == 9 and min(free) > 500_000
    assert whole_steps(on_a_small_disk) == [9]


def test_on_a_full_disk_what_was_dropped_goes_at_once(on_a_small_disk: ProjectDirectory) -> None:
    process = on_a_small_disk.start(ON_A_SMALL_DISK, "2", ".")
    read_until(process, "saved\n")
    leave_room(on_a_small_disk, 1_000_000)  # for the copy in the spool
    _, errors = process.communicate("\n")
    assert process.returncode == 0 and "could not be" not in errors, errors
    assert whole_steps(on_a_small_disk) == [2]


@linux
def test_what_a_run_has_left_is_saved_on_a_disk_that_is_full_of_what_it_has_dropped(
    on_a_small_disk: ProjectDirectory,
) -> None:
    process = on_a_small_disk.start(ON_A_SMALL_DISK, "2", ".")
    read_until(process, "saved\n")
    (helper,) = on_a_small_disk.helpers()
    os.kill(helper, signal.SIGSTOP)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    read_until(process, "spooled\n")
    os.kill(helper, signal.SIGKILL)
    process.kill()
    process.wait()
    on_a_small_disk.wait_for_helpers()
    leave_room(on_a_small_disk, 200_000)
    on_a_small_disk.cli("sync")
    assert whole_steps(on_a_small_disk) == [2]


# ------------------------------------------------------------ wrong values


@pytest.mark.parametrize(
    "keep", ["3", "{}", "{bst: 1}", "{best: 0}", "{last: -1}", "{best: all}", "{last: true}", "[1]"]
)
def test_a_wrong_keep_in_the_file_is_an_error_that_names_it(
    project: ProjectDirectory, keep: str
) -> None:
    project.write("replicate.yaml", f"keep: {keep}\n")
    with pytest.raises(ConfigError, match="`keep` must be a mapping such as"):
        replicate.init()
    assert not project.repository.exists()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("{best: 1, lats: 2}", "`lats` is none of its keys"),
        ("{best: 1, last: 0}", "`last` is something else"),
    ],
)
def test_the_wrong_key_of_keep_is_named(project: ProjectDirectory, keep: str, message: str) -> None:
    project.write("replicate.yaml", f"keep: {keep}\n")
    with pytest.raises(ConfigError, match=message):
        replicate.init()


@pytest.mark.parametrize("keep", [3, {}, {"bst": 1}, {"best": 0}, {"last": 1.5}, {"every": True}])
def test_a_wrong_keep_in_the_call_is_an_error_that_names_it(
    project: ProjectDirectory, keep: object
) -> None:
    with pytest.raises(UsageError, match="keep must be a mapping such as"):
        replicate.init(keep=keep)  # type: ignore[arg-type]
    assert not project.repository.exists()
