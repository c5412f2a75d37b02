"""The rights that the guide says are enough, are enough: every request of the product is held
against the policy that is printed there."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from conftest import ProjectDirectory, linux
from fault_proxy import FaultProxy, Request, status

pytestmark = linux

GUIDE = Path(__file__).parents[1] / "docs/guides/cloud-storage.md"
FORBIDDEN = status(403, "AccessDenied")
ACTIONS = {
    "GET": ["s3:GetObject"],
    "HEAD": ["s3:GetObject"],
    "PUT": ["s3:PutObject"],
    "COPY": ["s3:PutObject", "s3:GetObject"],
    "DELETE": ["s3:DeleteObject"],
    "LIST": ["s3:ListBucket"],
}
SCRIPT = """
    import replicate
    experiment = replicate.init(params={"a": 1})
    for step in range(3):
        open("weights", "wb").write(bytes([step]) * 300_000)
        experiment.checkpoint("weights", step=step, metrics={"loss": 1 - step / 10},
                              primary_metric=("loss", "minimize"))
        experiment.log({"batch": step})
"""


def statements(url: str) -> list[dict[str, Any]]:
    """The policy in the guide, for the bucket and the root of this URL."""
    bucket, _, root = url.removeprefix("s3://").partition("/")
    found = re.search(r"```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found
    text = found[1].replace("my-bucket", bucket).replace("iris", root)
    return list(json.loads(text)["Statement"])


def allows(policy: list[dict[str, Any]], action: str, bucket: str, request: Request) -> bool:
    for statement in policy:
        actions = statement["Action"]
        if action not in ([actions] if isinstance(actions, str) else actions):
            continue
        if action == "s3:ListBucket":
            patterns = statement["Condition"]["StringLike"]["s3:prefix"]
            return any(fnmatchcase(request.key, pattern) for pattern in patterns)
        name = f"arn:aws:s3:::{bucket}/{request.key}"
        # The keys of a bulk delete are in its body.
        return request.key == "" or fnmatchcase(name, statement["Resource"])
    return False


def refused(policy: list[dict[str, Any]], url: str, requests: list[Request]) -> list[Request]:
    bucket = urlsplit(url).netloc
    return [
        request
        for request in requests
        if not all(allows(policy, action, bucket, request) for action in ACTIONS[request.kind])
    ]


@pytest.fixture
def recorded(project: ProjectDirectory, s3_proxy: FaultProxy) -> ProjectDirectory:
    project.write("replicate.yaml", f"repository: {s3_proxy.url}\n")
    project.run(SCRIPT)
    return project


def test_the_printed_policy_allows_everything_that_the_product_asks_for(
    recorded: ProjectDirectory, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    [experiment] = json.loads(recorded.cli("ls", "--json").stdout)
    for arguments in (
        ("show", experiment["id"]),
        ("checkout", experiment["id"], "--output", str(tmp_path / "out")),
        ("tag", experiment["id"], "good"),
        ("logs", experiment["id"]),
        ("verify", "--full"),
        ("du",),
        ("compact",),
        ("rm", experiment["id"], "--force"),
        ("gc", "--alone"),
        ("ls",),
    ):
        recorded.cli(*arguments)
    kinds = {request.kind for request in s3_proxy.requests}
    assert {"PUT", "GET", "LIST", "DELETE"} <= kinds <= set(ACTIONS)
    policy = statements(s3_proxy.url)
    assert refused(policy, s3_proxy.url, s3_proxy.requests) == []


def test_a_policy_without_one_of_its_actions_is_too_little(
    recorded: ProjectDirectory, s3_proxy: FaultProxy
) -> None:
    policy = statements(s3_proxy.url)
    narrower = [{**policy[0]}, {**policy[1], "Action": ["s3:GetObject"]}]
    assert refused(narrower, s3_proxy.url, s3_proxy.requests)
    elsewhere = statements(s3_proxy.url + "-other")
    assert refused(elsewhere, s3_proxy.url, s3_proxy.requests)


def test_who_may_only_read_can_list_and_check_out(
    recorded: ProjectDirectory, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    s3_proxy.inject(FORBIDDEN, kinds={"PUT", "COPY", "DELETE", "POST"})
    [experiment] = json.loads(recorded.cli("ls", "--json").stdout)
    assert experiment["status"] == "finished"
    out = tmp_path / "out"
    recorded.cli("checkout", experiment["id"], "--output", str(out))
    assert (out / "weights").read_bytes() == b"\x02" * 300_000


def test_who_may_only_read_can_undo_a_checkout(
    recorded: ProjectDirectory, s3_proxy: FaultProxy
) -> None:
    s3_proxy.inject(FORBIDDEN, kinds={"PUT", "COPY", "DELETE", "POST"})
    [experiment] = json.loads(recorded.cli("ls", "--json").stdout)
    recorded.write("weights", "my own work")
    recorded.cli("checkout", experiment["id"], "--force")
    assert (recorded.path / "weights").read_bytes() == b"\x02" * 300_000
    recorded.cli("checkout", "--undo")
    assert (recorded.path / "weights").read_text() == "my own work"


def test_who_may_only_read_is_told_when_a_run_begins(
    recorded: ProjectDirectory, s3_proxy: FaultProxy
) -> None:
    s3_proxy.inject(FORBIDDEN, kinds={"PUT", "COPY", "DELETE", "POST"})
    done = recorded.run(SCRIPT, expect=1)
    assert "RepositoryError: cannot write" in done.stderr and "is saved to" not in done.stderr
    recorded.wait_for_helpers()
    assert recorded.spools() == []
    assert len(json.loads(recorded.cli("ls", "--json").stdout)) == 1


def test_who_may_not_delete_can_record(project: ProjectDirectory, s3_proxy: FaultProxy) -> None:
    project.write("replicate.yaml", f"repository: {s3_proxy.url}\n")
    s3_proxy.inject(FORBIDDEN, kinds={"DELETE"})
    done = project.run(SCRIPT)
    assert "problem" not in done.stderr.lower()
    project.wait_for_helpers()
    [experiment] = json.loads(project.cli("ls", "--json").stdout)
    assert (experiment["status"], experiment["num_checkpoints"]) == ("finished", 3)
