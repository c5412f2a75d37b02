"""What the backend of a bucket does when the network or the storage misbehaves."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from backend_contract import keys, known
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
from replicate.backends.base import Backend
from replicate.backends.location import open_backend
from replicate.backends.stores import RETRIES
from replicate.errors import KeyNotFoundError, RefusedError, StorageError
from servers import Server, s3_environment

BIG = bytes(range(256)) * 4096


@pytest.fixture
def backend(s3_proxy: FaultProxy) -> Backend:
    return open_backend(s3_proxy.url, relative_to=Path())


def everything(backend: Backend) -> None:
    """Each method of the contract once, with the answers that it must give."""
    backend.put("a/1", b"one")
    assert backend.put_if_absent({"a/2": b"two", "big": BIG}) <= {"a/2", "big"}
    assert backend.put_if_absent({"a/1": b"other"}) == set()
    backend.append("j", b"", b"one\n")
    backend.append("j", b"one\n", b"two\n")
    assert [backend.get(key) for key in ("a/1", "a/2", "j")] == [b"one", b"two", b"one\ntwo\n"]
    assert backend.get("big") == BIG and backend.get("big", 1000, 5) == BIG[1000:1005]
    assert keys(backend) == ["a/1", "a/2", "big", "j"] and keys(backend, "a/") == ["a/1", "a/2"]
    assert known(backend, "a/1").size == 3 and backend.stat("nothing") is None
    with pytest.raises(KeyNotFoundError):
        backend.get("nothing")
    since = backend.clock() + 10.0
    assert backend.delete(["a/1", "nothing"], unless_modified_since=since) <= {"a/1"}
    assert backend.delete(["a/2"]) <= {"a/2"}
    assert keys(backend) == ["big", "j"]


FLAKY = {
    "500": status(500, "InternalError"),
    "503": status(503, "SlowDown"),
    "reset": reset,
    "lost answers": lost,
    "truncated bodies": truncated,
    "slow reads": slow,
}


@pytest.mark.parametrize("fault", FLAKY.values(), ids=FLAKY)
@pytest.mark.parametrize("kind", ["PUT", "COPY", "GET", "HEAD", "LIST", "DELETE"])
def test_a_fault_that_passes_is_not_noticed(
    s3_proxy: FaultProxy, backend: Backend, fault: Fault, kind: str
) -> None:
    rule = s3_proxy.inject(fault, kinds={kind}, times=2)
    everything(backend)
    assert rule.struck.is_set()


# Faults that do not pass

LASTING = {
    "500": (status(500, "InternalError"), StorageError, "the storage has an error"),
    "503": (status(503, "SlowDown"), StorageError, "asks to slow down"),
    "reset": (reset, StorageError, "the connection was cut off"),
    "lost answers": (lost, StorageError, "the connection was cut off"),
    "expired": (EXPIRED, RefusedError, "the credentials have expired"),
    "denied": (status(403, "AccessDenied"), RefusedError, "access denied"),
    "clock": (status(403, "RequestTimeTooSkewed"), RefusedError, "this machine's clock is wrong"),
    "region": (status(301, "PermanentRedirect"), RefusedError, "in another region"),
}
CALLS = {
    "get": lambda backend: backend.get("a"),
    "put": lambda backend: backend.put("a", b"x"),
    "put_if_absent": lambda backend: backend.put_if_absent({"a": b"x"}),
    "append": lambda backend: backend.append("a", b"", b"x"),
    "list": lambda backend: list(backend.list()),
    "delete": lambda backend: backend.delete(["a"]),
    "collect": lambda backend: backend.delete(["a"], unless_modified_since=backend.clock() + 9.0),
}


@pytest.mark.parametrize(("fault", "kind", "cause"), LASTING.values(), ids=LASTING)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_fault_that_lasts_is_an_error_in_words(
    s3_proxy: FaultProxy,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    kind: type[StorageError],
    cause: str,
    call: Callable[[Backend], object],
) -> None:
    monkeypatch.setitem(RETRIES, "max_retries", 1)
    for module in ("cloud", "failures"):
        monkeypatch.setattr(f"replicate.backends.{module}.PAUSES", (0.01,))
    backend.put("a", b"kept")
    rule = s3_proxy.inject(fault)
    with pytest.raises(StorageError, match=cause) as caught:
        call(backend)
    assert type(caught.value) is kind and s3_proxy.url in caught.value.message
    s3_proxy.heal()
    assert rule.struck.is_set()
    call(backend)


def test_an_error_says_nothing_of_credentials(
    s3_proxy: FaultProxy, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUNTER2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    s3_proxy.inject(EXPIRED)
    with pytest.raises(RefusedError) as caught:
        backend.get("a")
    shown = "".join(traceback.format_exception(caught.value))
    assert "unter2" not in shown.lower() and "Authorization" not in shown
    assert s3_proxy.requests[-1].user == "AKIAHUNTER2"


# A clock that is wrong, and lists that lag


@pytest.mark.parametrize("ahead", [-86400.0, 86400.0])
def test_only_the_clock_of_the_storage_counts(
    s3_proxy: FaultProxy, backend: Backend, ahead: float
) -> None:
    s3_proxy.inject(skewed(ahead))
    assert abs(backend.clock() - time.time() - ahead) < 3600.0
    backend.put_if_absent({"a": b"x"})
    assert abs(known(backend, "a").modified - backend.clock()) < 3600.0
    assert backend.delete(["a"], unless_modified_since=backend.clock() - 3600.0) == set()
    assert backend.delete(["a"], unless_modified_since=backend.clock() + 3600.0) == {"a"}


def test_a_list_that_lags_hides_nothing_from_single_looks(
    s3_proxy: FaultProxy, backend: Backend
) -> None:
    backend.put_if_absent({"a/1": b"x", "a/2": b"x"})
    rule = s3_proxy.inject(lagging("a/2"), kinds={"LIST"})
    assert keys(backend) == ["a/1"] and rule.struck.is_set()
    assert backend.get("a/2") == b"x"
    assert backend.put_if_absent({"a/2": b"y"}) == set()
    assert backend.delete(["a/2"], unless_modified_since=0.0) == set()


# What is not there


def test_a_bucket_that_does_not_exist_is_named(s3_proxy: FaultProxy) -> None:
    backend = open_backend("s3://no-such-bucket/root", relative_to=Path())
    for name in ("get", "put", "put_if_absent", "append", "list"):
        with pytest.raises(RefusedError, match=r"no-such-bucket.*there is no such bucket"):
            CALLS[name](backend)


@pytest.mark.parametrize(
    ("endpoint", "cause"),
    [
        ("http://127.0.0.1:1", "the connection was refused"),
        ("http://nowhere.invalid:9000", "its name cannot be resolved"),
    ],
)
def test_a_server_that_is_not_there_is_explained(
    endpoint: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RETRIES, "max_retries", 0)
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with pytest.raises(StorageError, match=f"cannot read s3://bucket/root/a: {cause}"):
        open_backend("s3://bucket/root", relative_to=Path()).get("a")


# Requests


def test_what_a_few_calls_cost(s3_proxy: FaultProxy, backend: Backend) -> None:
    backend.put_if_absent({"first": b""})  # learns what is condemned
    with s3_proxy.counting() as small:
        backend.put_if_absent({"packs/a": b"x" * 1000})
    with s3_proxy.counting() as large:
        backend.put_if_absent({"packs/b": BIG})
    with s3_proxy.counting() as again:
        backend.put_if_absent({"packs/b": BIG}, fresh=1800.0)
    with s3_proxy.counting() as appended:
        backend.append("journal", b"", b"line\n")
    assert small == {"PUT": 1, "GET": 1}
    assert large == {"HEAD": 1, "PUT": 1, "GET": 1}
    assert again - Counter(PUT=1, HEAD=1) == {"HEAD": 1, "GET": 1}  # and the clock, once
    assert appended == {"PUT": 1, "GET": 1}


def test_a_long_list_is_asked_for_in_parallel(
    s3_proxy: FaultProxy, backend: Backend, ministack: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"blobs/{hashlib.sha256(b'%d' % i).hexdigest()}" for i in range(1500)]
    names = [f"{name[:8]}/{name[6:]}" for name in names] + ["blobs/zz", "trees/a", "a"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", ministack.endpoint)  # the proxy need not count these
    open_backend(s3_proxy.url, relative_to=Path()).put_if_absent(dict.fromkeys(names, b""))
    with s3_proxy.counting() as requests:
        assert keys(backend, "blobs/") == sorted(n for n in names if n.startswith("blobs/"))
    assert 3 < requests["LIST"] <= 20
    assert keys(backend) == sorted(names)
    middle = sorted(names)[1200]
    assert keys(backend, after=middle) == [name for name in sorted(names) if name > middle]
