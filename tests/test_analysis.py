"""Looking into many experiments: choosing and ordering them, data frames, and files as values."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

import replicate
from conftest import ProjectDirectory
from experiments import START, listed, losses, record
from replicate import CheckpointList, ExperimentList
from replicate.errors import NotFoundError, UsageError
from replicate.model import PrimaryMetric, Status

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "analysis.md"
ACCURACY = PrimaryMetric("accuracy", "maximize")


@pytest.fixture
def three() -> ExperimentList:
    return listed(
        record(0, {"lr": 0.1}, losses(3.0, 2.0)),
        record(1, {"lr": 0.01}, losses(1.0, 4.0), name="slow"),
        record(2, {"lr": 0.3}, losses(math.nan)),
    )


# ------------------------------------------------------------ lists


def test_a_slice_a_choice_and_a_sum_are_lists_of_experiments(three: ExperimentList) -> None:
    for made in (three[:2], three.filter("lr < 0.2"), three.sort("lr"), three[:1] + three[1:2]):
        assert isinstance(made, ExperimentList)
        assert {e.id for e in made} >= {three[0].id, three[1].id}
    assert isinstance(three[0].checkpoints[:1], CheckpointList)
    assert isinstance(three[0].checkpoints + three[1].checkpoints, CheckpointList)
    assert len(three) == 3


def test_filters_take_a_function_a_text_or_several(three: ExperimentList) -> None:
    by_function = three.filter(lambda e: e.params["lr"] < 0.2)
    assert [e.id for e in by_function] == [three[0].id, three[1].id]
    assert [e.id for e in three.filter("params.lr < 0.2")] == [three[0].id, three[1].id]
    assert [e.name for e in three.filter(["lr < 0.2", "name = slow"])] == ["slow"]
    with pytest.raises(NotFoundError, match="did you mean lr"):
        three.filter("lrr < 1")


def test_sorting_by_a_name_puts_those_without_a_value_last(three: ExperimentList) -> None:
    assert [e.params["lr"] for e in three.sort("lr")] == [0.01, 0.1, 0.3]
    assert [e.params["lr"] for e in three.sort("loss")][:2] == [0.01, 0.1]
    assert [e.params["lr"] for e in three.sort("loss", reverse=True)] == [0.1, 0.01, 0.3]
    assert [e.params["lr"] for e in three.sort(lambda e: -e.params["lr"])] == [0.3, 0.1, 0.01]


def test_best_is_the_experiment_with_the_best_checkpoint(three: ExperimentList) -> None:
    best = three.best()
    assert best is not None and best.name == "slow"
    assert three[2:].best() is None
    assert listed().best() is None


def test_best_refuses_to_compare_different_primary_metrics() -> None:
    mixed = listed(
        record(0, metrics=losses(0.1)),
        record(1, metrics=[{"accuracy": 0.9}], primary=ACCURACY),
    )
    with pytest.raises(UsageError, match=r"accuracy \(maximize\), loss \(minimize\)"):
        mixed.best()


def test_latest_is_the_one_started_last_however_they_are_sorted(three: ExperimentList) -> None:
    latest = three.sort("lr").latest()
    assert latest is not None and latest.params["lr"] == 0.3
    assert listed().latest() is None


def test_checkpoints_of_a_list_are_those_of_all(three: ExperimentList) -> None:
    assert three.checkpoints.metrics["loss"][:4] == [3.0, 2.0, 1.0, 4.0]
    assert len(three.checkpoints) == 5


def test_representations_say_what_they_stand_for(three: ExperimentList) -> None:
    assert repr(three[1]) == (
        f"<Experiment {three[1].short_id} slow finished: python train.py, best loss=1>"
    )
    assert repr(three).splitlines()[0] == "<ExperimentList of 3:"
    assert repr(listed()) == "<ExperimentList of 0>"
    assert repr(three[0].checkpoints[0]).endswith("step=0 loss=3>")
    many = listed(*(record(n) for n in range(500)))
    assert len(repr(many).splitlines()) == 22


def test_a_representation_holds_no_control_characters() -> None:
    (hostile,) = listed(
        record(0, metrics=[{"a\x1b[31m": 1, "loss": 1}], name="x\x1b]0;y\x07", command="z\r\n")
    )
    assert repr(hostile).isprintable()
    assert repr(hostile.checkpoints[0]).isprintable()


def test_an_experiment_that_nobody_keeps_says_so(
    project: ProjectDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    experiment = replicate.init(path=None)
    assert repr(experiment) == "<Experiment: this process records nothing>"
    assert "records nothing" in experiment._repr_html_()
    assert experiment.history() == []


def test_refresh_reads_all_of_them_again(project: ProjectDirectory) -> None:
    writing = replicate.init(path=None)
    seen = replicate.experiments.list()
    writing.checkpoint(metrics={"loss": 1})
    writing.stop()
    assert len(seen.checkpoints) == 0
    assert seen.refresh() is seen
    assert len(seen.checkpoints) == 1
    assert seen[0].status is Status.FINISHED


# ------------------------------------------------------------ data frames


def test_a_data_frame_has_a_row_for_each_experiment(three: ExperimentList) -> None:
    frame = three.to_dataframe()
    assert list(frame["id"]) == [e.id for e in three]
    assert list(frame["params.lr"]) == [0.1, 0.01, 0.3]
    assert list(frame["metrics.loss"])[:2] == [2.0, 1.0]
    assert math.isnan(frame["metrics.loss"][2])
    assert frame["checkpoint"][0] == three[0].checkpoints[1].short_id
    assert list(frame["step"]) == [1, 0, 0]
    assert frame["created"][0] == START
    assert frame["duration"][0] == timedelta(minutes=3)


def test_types_of_the_columns_do_not_depend_on_what_is_missing(three: ExperimentList) -> None:
    for some in (three, three[:1], three[2:]):
        types = {name: str(kind) for name, kind in some.to_dataframe().dtypes.items()}
        assert types["name"] == types["status"] == "string"
        assert types["created"] == "datetime64[us, UTC]"
        assert types["duration"] == "timedelta64[us]"
        assert types["step"] == types["checkpoints"] == "Int64"
        assert types["params.lr"] == types["metrics.loss"] == "float64"
    empty = listed().to_dataframe()
    assert empty.empty and str(empty["created"].dtype) == "datetime64[us, UTC]"


def test_params_of_every_kind_have_a_column(three: ExperimentList) -> None:
    frame = listed(
        record(0, {"n": 1, "flag": True, "text": "a", "net": {"width": 2}, "mixed": 1}),
        record(1, {"n": 2**80, "text": None, "list": [1, 2], "mixed": "x"}),
        record(2, {"n": 3}),
    ).to_dataframe()
    assert str(frame["params.flag"].dtype) == "boolean"
    assert str(frame["params.text"].dtype) == "string"
    assert frame["params.net.width"][0] == 2 and pd.isna(frame["params.net.width"][1])
    assert frame["params.list"][1] == [1, 2]
    assert list(frame["params.n"]) == [1, 2**80, 3]
    assert list(frame["params.mixed"])[:2] == [1, "x"]


def test_infinities_and_nan_stay_in_a_data_frame() -> None:
    frame = listed(record(0, metrics=losses(math.inf)), record(1, metrics=losses(math.nan)))
    values = list(frame.to_dataframe()["metrics.loss"])
    assert values[0] == math.inf and math.isnan(values[1])


def test_a_superseded_checkpoint_is_not_what_a_run_came_to() -> None:
    made = record(0, metrics=losses(0.1, 2.0))
    first, second = made.checkpoints
    resumed = replace(made, checkpoints=(replace(first, superseded=True), second))
    assert list(listed(resumed).to_dataframe()["metrics.loss"]) == [2.0]


def test_history_is_a_row_for_each_number(three: ExperimentList) -> None:
    frame = three.history()
    assert list(frame.columns) == ["experiment", "time", "step", "metric", "value"]
    assert list(frame["value"])[:4] == [3.0, 2.0, 1.0, 4.0]
    assert math.isnan(frame["value"][4])
    assert [str(t) for t in frame.dtypes] == [
        "string",
        "datetime64[us, UTC]",
        "Int64",
        "string",
        "float64",
    ]
    assert len(three.history("loss")) == len(frame)


def test_the_history_of_a_metric_that_no_run_has_had_is_an_error_with_the_nearest_name() -> None:
    made = record(0, metrics=[{"val/loss": 1.0, "old": 1.0}, {"val/loss": 0.5}])
    first, second = made.checkpoints
    made = replace(made, checkpoints=(replace(first, superseded=True), second), logged={"lr": 0.1})
    experiments = listed(made)
    for history in (experiments[0].history, experiments.history):
        with pytest.raises(NotFoundError, match='"val/los"; did you mean val/loss') as caught:
            history("val/los")
        assert "lr" in (caught.value.hint or "")
        assert len(history("old")) == 0  # superseded, but it was there
    assert listed(record(1))[0].history("val/los") == []  # nobody knows yet
    assert len(listed(record(1)).history("val/los")) == 0


def test_history_of_one_experiment_is_points_and_a_data_frame() -> None:
    (one,) = listed(record(0, metrics=[{"loss": 1.0, "note": "warm"}, {"accuracy": 0.5}]))
    assert [p.metrics for p in one.history("loss")] == [{"loss": 1.0}]
    assert [p.step for p in one.history()] == [0, 1]
    assert list(one.history().to_dataframe()["metric"]) == ["loss", "accuracy"]


def test_what_is_logged_is_in_the_history(project: ProjectDirectory) -> None:
    experiment = replicate.init(path=None)
    for step in range(5):
        experiment.log({"loss": step / 10}, step=step)
    experiment.checkpoint(step=4, metrics={"accuracy": 0.5})
    experiment.stop()
    found = replicate.experiments.list()
    assert [p.metrics["loss"] for p in found[0].history("loss")] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert len(found.history()) == 6


def test_checkpoints_have_a_data_frame_of_their_own(three: ExperimentList) -> None:
    frame = three.checkpoints.to_dataframe()
    assert list(frame["step"]) == [0, 1, 0, 1, 0]
    assert list(frame["metrics.loss"])[:4] == [3.0, 2.0, 1.0, 4.0]


def test_a_missing_library_is_named_with_the_extra_that_brings_it() -> None:
    script = """
import sys
sys.path.insert(0, {tests!r})
sys.modules["pandas"] = sys.modules["matplotlib"] = None
from experiments import listed, losses, record
found = listed(record(0, metrics=losses(1.0)))
for call in (found.to_dataframe, found.history, found.plot, found[0].plot):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", script.format(tests=str(Path(__file__).parent))],
        capture_output=True,
        text=True,
        check=True,
    )
    pandas, plot = (
        f"UsageError Install it: pip install 'replicate[{name}]'" for name in ("pandas", "plot")
    )
    assert done.stdout.splitlines() == [pandas, pandas, plot, plot]


def test_a_training_script_imports_no_library_of_analysis() -> None:
    script = """
import sys, replicate
replicate.init, replicate.experiments, replicate.Experiment
heavy = {"pandas", "matplotlib", "replicate.analysis.charts", "replicate.analysis.html"}
print(*heavy & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_the_guide_does_what_it_says(
    project: ProjectDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    save_file({"w": np.ones(2)}, "model.safetensors")
    project.write("notes.json", "[1]")
    for lr in (0.1, 0.01):
        with replicate.init(path=None, params={"lr": lr}) as experiment:
            experiment.checkpoint(
                path=["model.safetensors", "notes.json"],
                metrics={"loss": lr},
                primary_metric=("loss", "minimize"),
            )
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(block, names)
    plt.close("all")
    assert len(names["both"]) == 3 and names["best"].params["lr"] == 0.01
    assert len(names["runs"]) == len(names["loss"]) == len(names["checkpoints"]) == 2
    assert list(names["weights"]) == ["w"] and names["notes"] == [1]


# ------------------------------------------------------------ load


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def saved(project: ProjectDirectory, *names: str) -> replicate.Checkpoint:
    """A checkpoint with these files of the project."""
    with replicate.init(path=None) as experiment:
        experiment.checkpoint(path=list(names) if len(names) > 1 else names[0])
    checkpoint = experiment.latest()
    assert checkpoint is not None
    return checkpoint


def test_load_reads_what_can_hold_nothing_but_data(project: ProjectDirectory) -> None:
    array = np.arange(6.0).reshape(2, 3)
    save_file({"w": array}, "model.safetensors")
    np.savez("arrays.npz", a=array)
    np.save("array.npy", array)
    project.write("data.json", json.dumps({"x": [1]}))
    project.write("table.csv", "a,b\n1,2\n")
    pd.DataFrame({"a": [1]}).to_parquet("table.parquet")
    project.write("notes.md", "naïve")
    checkpoint = saved(
        project,
        *("model.safetensors", "arrays.npz", "array.npy", "data.json"),
        *("table.csv", "table.parquet", "notes.md"),
    )
    assert (replicate.load(checkpoint, "model.safetensors")["w"] == array).all()
    assert (replicate.load(checkpoint, Path("arrays.npz"))["a"] == array).all()
    assert (replicate.load(checkpoint, "array.npy") == array).all()
    assert replicate.load(checkpoint, "data.json") == {"x": [1]}
    assert list(replicate.load(checkpoint, "table.csv")["b"]) == [2]
    assert list(replicate.load(checkpoint, "table.parquet")["a"]) == [1]
    assert replicate.load(checkpoint, "notes.md") == "naïve"


def test_load_gives_tensors_when_torch_is_asked_for(project: ProjectDirectory) -> None:
    save_tensors({"w": torch.ones(2, dtype=torch.bfloat16)}, "model.safetensors")
    checkpoint = saved(project, "model.safetensors")
    assert replicate.load(checkpoint, framework="pt")["w"].dtype == torch.bfloat16
    with pytest.raises(UsageError, match='framework="pt"'):
        replicate.load(checkpoint)


@pytest.mark.parametrize("name", ["model.pth", "model.pkl", "model.joblib", "model.npy", "m.npz"])
def test_load_never_unpickles(project: ProjectDirectory, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "exploded"
    project.write(name, pickle.dumps(Bomb(mark)))
    with pytest.raises(UsageError, match=name):
        replicate.load(saved(project, name))
    assert not mark.exists()
    pickle.loads((project.path / name).read_bytes())
    assert mark.exists(), "the file would have gone off"


@pytest.mark.parametrize("name", ["object.npy", "object.npz"])
def test_load_refuses_arrays_of_objects(
    project: ProjectDirectory, tmp_path: Path, name: str
) -> None:
    mark = tmp_path / "exploded"
    array = np.array([Bomb(mark)], dtype=object)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    if name.endswith("z"):
        with zipfile.ZipFile(project.path / name, "w") as archive:
            archive.writestr("a.npy", buffer.getvalue())
    else:
        project.write(name, buffer.getvalue())
    with pytest.raises(UsageError, match="allow_pickle"):
        replicate.load(saved(project, name))
    assert not mark.exists()


def test_load_says_how_to_open_what_it_does_not_read(project: ProjectDirectory) -> None:
    torch.save({"w": torch.ones(2)}, "model.pth")
    project.write("model.h5", b"x")
    checkpoint = saved(project, "model.pth", "model.h5")
    with pytest.raises(UsageError) as refused:
        replicate.load(checkpoint, "model.pth")
    advice = "torch.load(checkpoint.open('model.pth'), weights_only=True)"
    assert refused.value.hint is not None and refused.value.hint.endswith(advice)
    assert (eval(advice, {"torch": torch, "checkpoint": checkpoint})["w"] == 1).all()
    with pytest.raises(UsageError) as refused:
        replicate.load(checkpoint, "model.h5")
    assert "checkpoint.open('model.h5')" in (refused.value.hint or "")


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.safetensors", "a.npz", "a.csv"])
def test_load_says_so_when_a_file_is_not_what_its_name_says(
    project: ProjectDirectory, name: str
) -> None:
    project.write(name, b"\xff\xfe\x00broken" if name != "a.csv" else b"")
    with pytest.raises(UsageError, match=name):
        replicate.load(saved(project, name))


def test_load_of_a_file_that_is_not_there_names_those_that_are(project: ProjectDirectory) -> None:
    project.write("a.txt", "a")
    with pytest.raises(NotFoundError, match=r"a\.txt"):
        replicate.load(saved(project, "a.txt"), "b.txt")
