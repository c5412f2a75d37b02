"""A run beside every fault of a network or a storage: training goes on, no checkpoint is lost, none
is shown half, and the person is told at most once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import ProjectDirectory, linux
from fault_proxy import (
    EXPIRED,
    Fault,
    FaultProxy,
    lagging,
    lost,
    reset,
    skewed,
    slow,
    status,
    truncated,
)
from test_remote_recording import Training, saved, steps

pytestmark = linux

LASTING = {
    "500": status(500, "InternalError"),
    "503": status(503, "SlowDown"),
    "resets": reset,
    "lost answers": lost,
    "expired credentials": EXPIRED,
}
PASSING = LASTING | {
    "truncated bodies": truncated,
    "slow reads": slow,
    "a clock a day ahead": skewed(86400.0),
    "a clock a day behind": skewed(-86400.0),
    "lists that lag": lagging("journal|packs"),
}


@pytest.fixture
def training(project: ProjectDirectory, s3_proxy: FaultProxy) -> Training:
    """A run whose first checkpoint is in the bucket."""
    project.write("replicate.yaml", f"repository: {s3_proxy.url}\n")
    training = Training(project)
    training.tell("checkpoint 0")
    assert training.tell("wait") == "True"
    return training


def is_whole(project: ProjectDirectory, target: Path, count: int) -> None:
    """All checkpoints are saved, with the files that they had, and nothing is damaged."""
    record = saved(project)
    assert steps(record) == list(range(count))
    for checkpoint in record.checkpoints:
        files = project.files_of(checkpoint.id, target / str(checkpoint.step))
        assert files["m"] == f"version {checkpoint.step}".encode()
    project.cli("verify")


def told(said: str) -> int:
    """How often a person is told that saving does not work."""
    return said.count("saving is tried again") + said.count("cannot")


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_fault_that_passes_costs_nothing(
    project: ProjectDirectory,
    s3_proxy: FaultProxy,
    training: Training,
    fault: Fault,
    tmp_path: Path,
) -> None:
    rule = s3_proxy.inject(fault, times=4 if fault in (truncated, *LASTING.values()) else None)
    for number in (1, 2, 3):
        assert training.tell(f"checkpoint {number}") == "done"
    assert training.tell("best") == "3"
    said = training.end()
    assert training.process.returncode == 0 and rule.struck.is_set()
    assert told(said) <= 1
    s3_proxy.heal()
    is_whole(project, tmp_path, 4)


@pytest.mark.parametrize("name", ["503", "expired credentials"])
def test_a_fault_that_lasts_leaves_the_rest_for_sync(
    project: ProjectDirectory,
    s3_proxy: FaultProxy,
    training: Training,
    name: str,
    tmp_path: Path,
) -> None:
    s3_proxy.inject(LASTING[name], kinds={"PUT"})
    assert training.tell("checkpoint 1") == "done"
    assert training.tell("best") == "1"
    (experiment,) = json.loads(project.cli("ls", "--json").stdout)
    assert experiment["id"]
    said = training.end()
    assert training.process.returncode == 0
    assert told(said) >= 1 and said.count("saving is tried again") <= 1
    s3_proxy.heal()
    project.cli("sync")
    is_whole(project, tmp_path, 2)
