"""A bucket: who asks, where it is, and what a collector and writers agree on."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import obstore
import pytest

from backend_contract import known, next_tick
from conftest import posix
from fault_proxy import Answer, FaultProxy, Handler
from replicate.backends.base import Backend
from replicate.backends.cloud import CloudBackend
from replicate.backends.condemned import Condemned, Sentence
from replicate.backends.credentials import region_of
from replicate.backends.location import open_backend
from replicate.errors import ConfigError, RefusedError, StorageError
from servers import Server, s3_environment


def opened(url: str) -> Backend:
    return open_backend(url, relative_to=Path())


# Who asks

STATIC = "aws_access_key_id = AKIA{0}\naws_secret_access_key = secret\n"


@pytest.fixture
def aws(s3_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's `~/.aws`, and no keys in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config").write_text("[default]\nregion = eu-west-3\n")
    (tmp_path / "credentials").write_text("")
    return tmp_path


def user_of(s3_proxy: FaultProxy) -> str:
    """Whose key signs a request."""
    opened(s3_proxy.url).put("a", b"x")
    return s3_proxy.requests[-1].user


def test_the_default_profile_is_used_where_nothing_else_says_who_asks(
    aws: Path, s3_proxy: FaultProxy
) -> None:
    (aws / "credentials").write_text("[default]\n" + STATIC.format("DEFAULT"))
    assert user_of(s3_proxy) == "AKIADEFAULT"


def test_keys_in_the_environment_come_before_the_default_profile(
    aws: Path, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (aws / "credentials").write_text("[default]\n" + STATIC.format("DEFAULT"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert user_of(s3_proxy) == "AKIAENVIRONMENT"


def test_a_named_profile_comes_before_keys_in_the_environment(
    aws: Path, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = json.dumps({"Version": 1, "AccessKeyId": "AKIAPROGRAM", "SecretAccessKey": "secret"})
    (aws / "keys.json").write_text(keys)
    (aws / "config").write_text(f"[profile team]\ncredential_process = cat {aws}/keys.json\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert user_of(s3_proxy) == "AKIAPROGRAM"


SSO = """
[profile team]
sso_session = company
sso_account_id = 123456789012
sso_role_name = Researcher
region = eu-west-3
[sso-session company]
sso_region = eu-west-3
sso_start_url = https://company.example/start
"""


class Portal(BaseHTTPRequestHandler):
    """The part of AWS that gives keys to who has logged in with SSO."""

    def do_GET(self) -> None:
        role = {"accessKeyId": "AKIASSO", "secretAccessKey": "secret", "sessionToken": "token"}
        content = json.dumps({"roleCredentials": role | {"expiration": 4102444800000}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_HEAD(self) -> None:
        """As S3 answers anybody who asks for a bucket of somebody else."""
        self.send_response(403)
        self.send_header("x-amz-bucket-region", "ap-southeast-2")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def portal() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Portal)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_who_has_logged_in_with_sso_need_do_nothing_more(
    aws: Path, s3_proxy: FaultProxy, portal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (aws / "config").write_text(SSO)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", portal)
    monkeypatch.setenv("AWS_PROFILE", "team")
    token = {"accessToken": "x", "expiresAt": "2100-01-01T00:00:00Z", "region": "eu-west-3"}
    file = aws / ".aws/sso/cache" / f"{hashlib.sha1(b'company').hexdigest()}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(token))
    code = (
        "import sys; from pathlib import Path; "
        "from replicate.backends.location import open_backend; "
        "open_backend(sys.argv[1], relative_to=Path()).put('a', b'x')"
    )  # in a process of its own: boto3 decides where the home directory is when it is imported
    subprocess.run([sys.executable, "-c", code, s3_proxy.url], check=True)
    assert s3_proxy.requests[-1].user == "AKIASSO"


def test_who_has_not_logged_in_with_sso_is_told_how(
    aws: Path, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (aws / "config").write_text(SSO)
    monkeypatch.setenv("AWS_PROFILE", "team")
    with pytest.raises(RefusedError, match="not logged in with SSO") as caught:
        opened(s3_proxy.url).get("a")
    assert "aws sso login" in str(caught.value)


def test_a_profile_that_does_not_exist_is_named(
    aws: Path, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "taem")
    with pytest.raises(ConfigError, match="profile 'taem' cannot be used"):
        opened(s3_proxy.url).get("a")


def test_a_profile_without_boto3_names_the_extra(
    aws: Path, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "team")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError, match=r"needs boto3.*\n.*replicate\[aws\]"):
        opened(s3_proxy.url).get("a")


# Where it is


def test_a_bucket_tells_its_region_also_to_whom_it_refuses(portal: str) -> None:
    assert region_of("bucket", portal) == "ap-southeast-2"
    assert region_of("bucket", "http://127.0.0.1:1") is None


def test_data_goes_in_the_clear_only_to_this_machine_or_where_it_was_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3_environment("http://storage.example:9000").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"no encryption: http://storage.example\n.*https://"):
        opened("s3://bucket/root").get("a")


def test_an_azure_container_without_an_account_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageError, match=r"no credentials were found\n.*AZURE_STORAGE_ACCOUNT"):
        opened("az://container/root").get("a")


@pytest.mark.parametrize(
    ("url", "variable", "value", "server"),
    [
        ("s3://b/r", "AWS_ENDPOINT_URL", "https://joe:pw@s3.example:9/x/?sig=1", "s3.example:9/x"),
        ("gs://b/r", "STORAGE_EMULATOR_HOST", "localhost:9", "localhost:9"),
        ("az://b/r", "AZURE_STORAGE_ACCOUNT_NAME", "team", "team.blob.core.windows.net"),
        (
            "az://b/r",
            "AZURE_STORAGE_CONNECTION_STRING",
            "AccountName=team;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net",
            "team.blob.core.windows.net",
        ),
    ],
)
def test_one_url_on_two_servers_is_two_places(
    url: str, variable: str, value: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert opened(url).identity == url
    monkeypatch.setenv(variable, value)
    place, _, where = opened(url).identity.partition("\n")
    assert (place, where.removeprefix("https://")) == (url, server)


# Processes


@posix
def test_a_forked_child_is_told_that_it_cannot_use_the_bucket(s3_url: str) -> None:
    backend = opened(s3_url)
    backend.put("a", b"x")

    def read() -> None:
        try:
            backend.get("a")
        except StorageError as error:
            results.put(error.message)

    results: multiprocessing.SimpleQueue[str] = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    child.join()
    assert "forked" in results.get()
    assert backend.get("a") == b"x"


def test_opening_a_bucket_asks_nothing_and_a_local_repository_imports_no_obstore(
    s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    opened(s3_proxy.url)
    assert not s3_proxy.requests
    code = (
        "import sys, replicate; replicate.Project(directory='.').repository; "
        "assert 'obstore' not in sys.modules and 'boto3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


# Collectors and writers


def at_the_next(
    s3_proxy: FaultProxy, kind: str, key: str, act: Callable[[], object], *, before: bool
) -> Event:
    """Do something right before, or right after, the storage does the next such request."""
    done = Event()

    def fault(handler: Handler, ask: Callable[[], Answer]) -> Answer:
        answer = None if before else ask()
        act()
        done.set()
        return answer or ask()

    s3_proxy.inject(fault, kinds={kind}, key=key, times=1)
    return done


def beside(server: Server, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The same bucket for somebody else, whose requests do not meet the faults."""
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        other = opened(s3_proxy.url)
        other.clock()  # connects
    return other


@pytest.mark.parametrize(("kind", "key"), [("HEAD", "old$"), ("DELETE", ""), ("PUT", "condemned")])
def test_a_key_is_never_lost_to_a_collector_whenever_a_writer_wants_it(
    s3_proxy: FaultProxy,
    ministack: Server,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    key: str,
) -> None:
    writer, collector = beside(ministack, s3_proxy, monkeypatch), opened(s3_proxy.url)
    watcher = beside(ministack, s3_proxy, monkeypatch)
    writer.put_if_absent({"old": b"x"})
    since = next_tick(writer)
    threads: list[Thread] = []

    def write() -> None:
        # The writer may have to wait for the collector, which waits for us: we see that it touches.
        threads.append(Thread(target=writer.put_if_absent, args=({"old": b"x"},)))
        threads[-1].start()
        while threads[-1].is_alive() and known(watcher, "old").modified < since:
            pass

    done = at_the_next(s3_proxy, kind, key, write, before=True)
    gone = collector.delete(["old"], unless_modified_since=since)
    assert done.is_set()
    for thread in threads:
        thread.join()
    assert writer.get("old") == b"x"
    assert gone <= {"old"}


def test_a_collector_that_crashed_stops_nobody_for_long(
    s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(s3_proxy.url)
    backend.put("a", b"x")
    since = backend.clock() + 10.0

    def crash(handler: Handler, ask: Callable[[], Answer]) -> Answer:
        raise ConnectionAbortedError

    s3_proxy.inject(crash, kinds={"DELETE"})
    monkeypatch.setattr("replicate.backends.cloud.PAUSES", ())
    monkeypatch.setattr("replicate.backends.condemned.Condemned._write", _once())
    with pytest.raises(StorageError):
        backend.delete(["a"], unless_modified_since=since)
    s3_proxy.heal()
    monkeypatch.setattr("replicate.backends.condemned.LEASE", -10.0)
    assert backend.put_if_absent({"a": b"x"}) == set()


def test_what_a_crash_has_left_of_a_touch_is_swept_away(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(s3_url)
    assert isinstance(backend, CloudBackend)
    store = backend._stores().quick
    obstore.put(store, ".touch/left", b"x")
    backend.delete(["a"], unless_modified_since=1.0)
    assert obstore.head(store, ".touch/left")["size"] == 1
    monkeypatch.setattr("replicate.backends.cloud._STALE", -10.0)
    backend.delete(["a"], unless_modified_since=1.0)
    with pytest.raises(FileNotFoundError):
        obstore.head(store, ".touch/left")


def _once() -> Callable[..., None]:
    """`.condemned` is written for the collector, and never again: as by one that is killed."""
    real, calls = Condemned._write, []

    def write(self: Condemned, sentence: Sentence) -> None:
        calls.append(sentence)
        if len(calls) == 1:
            real(self, sentence)

    return write
