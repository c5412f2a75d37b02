"""How busy the machine was while a run went on, measured beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from conftest import ProjectDirectory, posix
from replicate.recorder.system import Sampler, gpus_from, sample_until

pytestmark = posix

#: As nvidia-smi prints it, with a GPU that does not tell its power.
TABLE = "0, 87, 10240, 71, 250.50\n1, 0, 12, 35, [N/A]\n"


def summary(project: ProjectDirectory) -> dict[str, dict[str, float]]:
    shown = project.cli("show", project.record().id, "--system", "--json").stdout
    found: dict[str, dict[str, float]] = json.loads(shown)["metrics"]
    return found


def test_a_short_run_has_been_measured(project: ProjectDirectory) -> None:
    project.run("""
        import replicate
        ballast = bytearray(50_000_000)
        with replicate.init(path=None) as experiment:
            repository = experiment._repository
            while not repository.stream(experiment.id, "system").read():
                pass
    """)
    found = summary(project)
    assert found["process.memory"]["max"] >= 50_000_000
    assert found["process.cpu"]["max"] > 0
    assert 0 < found["memory.percent"]["last"] <= 100
    assert found["disk.free"]["last"] > 0
    assert {"cpu", "memory.used"} <= found.keys()
    shown = project.cli("show", project.record().id, "--system").stdout
    assert "METRIC" in shown and "process.memory" in shown and " MB" in shown


def test_it_can_be_turned_off(project: ProjectDirectory) -> None:
    project.write("replicate.yaml", "system_metrics: false\n")
    project.run("import replicate; replicate.init(path=None)")
    assert summary(project) == {}
    assert not list(project.repository.glob("experiments/*/system"))
    shown = project.cli("show", project.record().id, "--system")
    assert shown.stdout == "" and "Nothing is known of the machine" in shown.stderr


def test_gpus_are_measured_by_what_nvidia_smi_prints(
    project: ProjectDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"#!/bin/sh\ncase $1 in --query-gpu=index,*) printf '{TABLE}';; *) exit 1;; esac\n"
    tool = project.write("bin/nvidia-smi", command, mode=0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    sample = Sampler(os.getpid(), project.path).sample()
    assert sample["gpu.0.utilization"] == 87
    assert sample["gpu.0.memory"] == 10 * 2**30
    assert sample["gpu.0.power"] == 250.5
    assert sample["gpu.1.temperature"] == 35
    assert "gpu.1.power" not in sample


@pytest.mark.parametrize("table", ["", "no devices were found\n", "0, [Unknown Error]\n", ",,,\n"])
def test_what_nvidia_smi_cannot_tell_is_left_out(table: str) -> None:
    assert gpus_from(table) == {}


def test_an_nvidia_smi_without_a_driver_is_asked_once(
    project: ProjectDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = project.write("bin/nvidia-smi", "#!/bin/sh\necho asked >> asked\nexit 9\n", mode=0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    sampler = Sampler(os.getpid(), project.path)
    assert sampler.sample().keys() == sampler.sample().keys()
    assert Path("asked").read_text() == "asked\n"


def test_a_process_that_is_gone_leaves_the_machine_to_be_measured(tmp_path: Path) -> None:
    nobody = 2**22 + 1  # above what Linux gives to processes
    sample = Sampler(nobody, tmp_path).sample()
    assert "memory.used" in sample and "process.memory" not in sample


def test_a_run_that_ends_before_the_first_sample_has_it_at_its_end(tmp_path: Path) -> None:
    kept: list[dict[str, float]] = []

    def keep(sample: dict[str, float]) -> bool:
        kept.append(sample)
        return True

    sample_until(lambda seconds: True, Sampler(os.getpid(), tmp_path), keep)
    assert len(kept) == 1 and kept[0]["memory.used"] > 0
