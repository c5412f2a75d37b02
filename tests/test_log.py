"""`experiment.log()`: metrics for every batch, readable soon, and there whatever is killed."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import replicate
from conftest import ProjectDirectory, linux, posix
from replicate.model import Point
from replicate.recorder.segments import SegmentWriter

LOGGER = """
    import sys, replicate
    experiment = replicate.init(path=None)
    experiment.wait()
    for i in range(int(sys.argv[1])):
        experiment.log({"loss": i / 2}, step=i)
    print("ready", flush=True)
    sys.stdin.read()
"""


def history(project: ProjectDirectory) -> list[Point]:
    """The points of the only experiment, once every helper has done its work."""
    return project.open().repository.history(project.record())


def steps(points: list[Point]) -> list[object]:
    return [point.step for point in points]


def start_logger(project: ProjectDirectory, points: int) -> int:
    """A script that has logged so many points and is alive; its process id."""
    process = project.start(LOGGER, str(points))
    assert process.stdout is not None and process.stdout.readline().startswith("ready")
    return process.pid


def kill(*processes: int) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


# ---------------------------------------------------------------- what was passed


def test_points_have_their_steps_in_whatever_order_they_come(project: ProjectDirectory) -> None:
    with replicate.init(path=None) as experiment:
        for step in (5, 3, 9, 0.5):
            experiment.log({"train/loss": step * 2.0}, step=step)
    points = experiment.history()
    assert steps(points) == [5, 3, 9, 0.5]
    assert [p.metrics for p in points] == [{"train/loss": s * 2.0} for s in (5, 3, 9, 0.5)]
    assert [p.time for p in points] == sorted(p.time for p in points)


def test_steps_that_are_left_out_count_on(project: ProjectDirectory) -> None:
    with replicate.init(path=None) as experiment:
        experiment.log({"a": 1})
        experiment.log({"a": 1})
        experiment.log({"a": 1}, step=10)
        experiment.log({"a": 1})
    assert steps(experiment.history()) == [0, 1, 10, 11]


def test_scalars_of_libraries_are_numbers_and_nan_and_infinities_are_kept(
    project: ProjectDirectory,
) -> None:
    torch = pytest.importorskip("torch")
    with replicate.init(path=None) as experiment:
        experiment.log({"numpy": np.float32(0.5), "torch": torch.tensor(2.5), "one": np.ones(1)})
        experiment.log({"nan": math.nan, "inf": math.inf, "big": 10**40}, step=np.int64(7))
    first, second = experiment.history()
    assert first.metrics == {"numpy": 0.5, "torch": 2.5, "one": 1.0}
    assert math.isnan(second.metrics["nan"])
    assert (second.metrics["inf"], second.metrics["big"], second.step) == (math.inf, 10**40, 7)


def test_what_is_no_number_is_reported_once_and_the_rest_is_recorded(
    project: ProjectDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    class Hostile:
        def __float__(self) -> float:
            raise RuntimeError("no")

        def __str__(self) -> str:
            raise RuntimeError("no")

    with replicate.init(path=None) as experiment:
        for step in range(3):
            experiment.log({"text": "x", "good": step, "hostile": Hostile()}, step)
        experiment.log("loss")  # type: ignore[arg-type]
        experiment.log({"good": 1}, step="last")  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said.count("'text' is no number but str") == 1
    assert said.count("'hostile' is no number but Hostile") == 1
    assert said.count("log() takes a dict of metrics, not str") == 1
    assert said.count("step must be a number, not str") == 1
    assert [p.metrics for p in experiment.history()] == [{"good": i} for i in (0, 1, 2, 1)]


def test_after_stop_it_is_reported_once(
    project: ProjectDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = replicate.init(path=None)
    experiment.stop()
    experiment.log({"a": 1})
    experiment.log({"a": 1})
    assert capsys.readouterr().err.count("log() was called after stop()") == 1
    assert experiment.history() == []


def test_a_run_of_another_rank_takes_points_and_keeps_none(
    project: ProjectDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    experiment = replicate.init(path=None)
    experiment.log({"a": 1})
    assert experiment.history() == []


# ---------------------------------------------------------------- the history


def test_the_metrics_of_checkpoints_are_points_too(project: ProjectDirectory) -> None:
    with replicate.init(path=None) as experiment:
        experiment.log({"loss": 3.0}, step=1)
        experiment.checkpoint(step=2, metrics={"loss": 2.0, "accuracy": 0.5})
        experiment.log({"loss": 1.0}, step=3)
    assert [p.metrics["loss"] for p in experiment.history()] == [3.0, 2.0, 1.0]
    assert steps(experiment.history("accuracy")) == [2]


def test_show_has_count_last_min_and_max_of_what_was_logged(project: ProjectDirectory) -> None:
    with replicate.init(path=None) as experiment:
        for value in (3.0, math.nan, 1.0, 2.0):
            experiment.log({"loss": value})
    shown = project.cli("show", experiment.id).stdout
    assert shown[shown.index("\nMetrics\n") :].split()[1:] == [
        *("METRIC", "COUNT", "LAST", "MIN", "MAX"),
        *("loss", "4", "2", "1", "3"),
    ]
    found = json.loads(project.cli("show", experiment.id, "--json").stdout)["metrics"]
    assert found == {"loss": {"count": 4, "last": 2.0, "min": 1.0, "max": 3.0, "mean": 2.0}}


def test_listing_does_not_read_what_was_logged(project: ProjectDirectory) -> None:
    with replicate.init(path=None) as experiment:
        experiment.log({"loss": 1.0})
    (file,) = project.repository.glob("experiments/*/log/*")
    file.write_bytes(b"damaged\n")
    assert project.record().damage == ()
    assert experiment.history() == []


# ---------------------------------------------------------------- threads and processes


def test_threads_lose_nothing(project: ProjectDirectory) -> None:
    with replicate.init(path=None) as experiment:

        def work(thread: int) -> None:
            for i in range(500):
                experiment.log({"value": i}, step=1000 * thread + i)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = {point.step for point in experiment.history()}
    assert found == {1000 * n + i for n in range(4) for i in range(500)}
    assert len(experiment.history()) == 2000


@posix
def test_forked_children_log_too(project: ProjectDirectory) -> None:
    project.run("""
        import os, replicate
        experiment = replicate.init(path=None)
        experiment.log({"who": 0}, step=0)
        for child in (1, 2):
            if os.fork() == 0:
                for i in range(100):
                    experiment.log({"who": child}, step=i)
                os._exit(0)
        os.wait(), os.wait()
        experiment.log({"who": 0}, step=1)
    """)
    found = [p.metrics["who"] for p in history(project)]
    assert (found.count(0), found.count(1), found.count(2)) == (2, 100, 100)


# ---------------------------------------------------------------- what survives


def wait_for_points(project: ProjectDirectory, count: int) -> list[Point]:
    """Look until another process sees so many points, or the test's own time limit is over."""
    repository = project.open().repository
    (id,) = repository.ids()
    found: list[Point] = []
    while len(found) < count:
        found = repository.history(repository.experiment(id))
    return found


@linux
def test_others_read_points_while_the_run_goes_on(project: ProjectDirectory) -> None:
    start_logger(project, 1000)
    found = wait_for_points(project, 1000)
    assert steps(found) == list(range(1000))


@linux
def test_a_kill_of_the_script_loses_no_point(project: ProjectDirectory) -> None:
    kill(start_logger(project, 30_000))
    assert steps(history(project)) == list(range(30_000))


@linux
def test_a_kill_of_the_helper_loses_no_point_and_makes_none_twice(
    project: ProjectDirectory,
) -> None:
    process = project.start("""
        import os, signal, sys, replicate
        experiment = replicate.init(path=None)
        experiment.wait()
        for i in range(20_000):
            experiment.log({"loss": i}, step=i)
            if i == 10_000:
                print("ready", flush=True)
                sys.stdin.readline()
        experiment.checkpoint(step=0)
    """)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    kill(*project.helpers())
    process.stdin.write("\n")
    process.stdin.flush()
    process.wait()
    found = steps(history(project))
    assert found == list(range(20_000))
    events = project.open().repository.stream(project.record().id, "log").read()
    assert sum(len(event.data["points"]) for event in events) == 20_000


@linux
def test_after_a_kill_of_both_the_points_are_recovered(project: ProjectDirectory) -> None:
    pid = start_logger(project, 5000)
    kill(*project.helpers(), pid)
    assert "was cut off" in project.cli("recover").stderr
    assert steps(history(project)) == list(range(5000))
    assert project.spools() == []


def test_points_that_a_full_disk_kept_out_are_written_when_there_is_room(
    small_disk: Path, project: ProjectDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = replicate.Project(small_disk / "repository").init(path=None)
    experiment.wait()
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    for i in range(2000):
        experiment.log({"loss": i}, step=i)
    filler.unlink()
    experiment.log({"loss": 0}, step=2000)
    experiment.stop()
    assert steps(experiment.history()) == list(range(2001))


def test_a_file_that_is_full_is_followed_by_one_that_names_its_first_line(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), "points")
    for i in range(200_000):
        writer.append(b"[%d]\n" % i)
    writer.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1
    lines = [line for file in files for line in file.read_bytes().splitlines()]
    assert lines == [b"[%d]" % i for i in range(200_000)]
    starts = [int(file.stem.rpartition("-")[2]) for file in files]
    assert all(lines[start] == b"[%d]" % start for start in starts)


# ---------------------------------------------------------------- what lists see of it


def logged(project: ProjectDirectory) -> dict[str, object]:
    """The last values that a list has of the only experiment, without reading its points."""
    return dict(project.record().logged)


def test_lists_filters_and_frames_see_what_was_only_logged(project: ProjectDirectory) -> None:
    for loss in (0.5, 0.25):
        with replicate.init(path=None, name=f"to {loss}") as experiment:
            experiment.log({"train/loss": 9.0, "nan": math.nan})
            experiment.log({"train/loss": loss})
    (found,) = replicate.experiments.list(filter="train/loss < 0.3")
    assert found.name == "to 0.25"
    shown = project.cli("ls", "--sort", "train/loss", "--columns", "name,train/loss,nan").stdout
    assert [line.split()[1:] for line in shown.splitlines()[1:]] == [
        ["to", "0.25", "0.25", "nan"],
        ["to", "0.5", "0.5", "nan"],
    ]
    frame = replicate.experiments.list().to_dataframe()
    assert sorted(frame["metrics.train/loss"]) == [0.25, 0.5]


def test_each_of_many_metrics_is_seen_however_long_ago_it_was_logged(
    project: ProjectDirectory,
) -> None:
    with replicate.init(path=None) as experiment:
        experiment.log({f"weights/{i}": i for i in range(300)})
        for i in range(5000):
            experiment.log({"loss": i}, step=i)
    assert logged(project) == {"loss": 4999, **{f"weights/{i}": i for i in range(300)}}


@linux
def test_after_a_kill_of_the_script_its_last_values_are_seen(project: ProjectDirectory) -> None:
    kill(start_logger(project, 3000))
    project.wait_for_helpers()
    assert logged(project) == {"loss": 2999 / 2}


@linux
@pytest.mark.parametrize("read", [0, 5000])
def test_after_a_kill_of_both_the_last_values_are_recovered(
    project: ProjectDirectory, read: int
) -> None:
    pid = start_logger(project, 5000)
    wait_for_points(project, read)  # then the helper has committed them, and maybe no summary
    kill(*project.helpers(), pid)
    project.cli("recover")
    assert logged(project) == {"loss": 4999 / 2}


@linux
def test_a_helper_that_takes_over_knows_what_was_logged_before(project: ProjectDirectory) -> None:
    process = project.start("""
        import sys, replicate
        experiment = replicate.init(path=None)
        experiment.log({"early": 1, "both": 1})
        experiment.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        experiment.log({"late": 2, "both": 2})
        experiment.checkpoint()
    """)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    wait_for_points(project, 1)
    kill(*project.helpers())
    process.stdin.write("\n")
    process.stdin.flush()
    process.wait()
    project.wait_for_helpers()
    assert logged(project) == {"early": 1, "both": 2, "late": 2}


def test_the_last_attempt_that_has_logged_a_metric_says_what_it_came_to(
    project: ProjectDirectory,
) -> None:
    with replicate.init(path=None) as first:
        first.log({"loss": 0.5, "only first": 1})
        first.checkpoint(step=1)
        first.log({"loss": 9.0})
    with replicate.init(path=None, resume=first.id) as second:
        second.log({"loss": 0.25})
    assert len(project.record().attempts) == 2
    assert logged(project) == {"loss": 0.25, "only first": 1}
