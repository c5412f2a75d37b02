"""Real servers on loopback that speak as the clouds do, for the tests of buckets.

Fixtures (each process of the tests starts a server once, when the first test asks for it, on a free
port; it ends with that process, also when that is killed):

- `s3_url`: a repository's URL in a new bucket of an S3 server; what most tests want. The
  environment, and so every script and command that the test starts, leads to it.
- `moto`, `ministack`: two independent S3 servers; `azurite`: Azure Blob; `gcs`: our own fake of
  Google Cloud Storage. Each is a `Server`; `server.new_bucket()` makes a URL, and
  `server.environment` holds the variables that reach it. `enter(server, monkeypatch)` sets them
  and returns the URL of a new bucket.

    def test_training_into_a_bucket(project: ProjectDirectory, s3_url: str) -> None:
        project.write("replicate.yaml", f"repository: {s3_url}")
        ...
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from itertools import count
from pathlib import Path
from threading import Thread

import pytest

if os.name == "posix":
    import fcntl

_BIN = Path(sys.executable).parent
_TOOLS = Path(__file__).parents[1] / ".tools"
_READY = re.compile(rb"http://127\.0\.0\.1:([0-9]+)")
_AZURITE = "azurite@3.35.0"
_ACCOUNT = "devstoreaccount1"
#: The key that every Azurite has, as its documentation says.
_AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
#: What could lead a test to the credentials, and the storage, of the person who runs it.
CLOUD_VARIABLES = ("AWS_", "GOOGLE_", "GCLOUD_", "AZURE_", "STORAGE_EMULATOR_HOST")
#: Ends with its parent, whatever ends that; then becomes the server.
_TIED = (
    "import ctypes, os, sys; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
_numbers = count(1)


@dataclass(frozen=True)
class Server:
    """A storage that answers at `endpoint`. `create` makes a bucket of that name there."""

    endpoint: str
    scheme: str
    environment: Mapping[str, str]
    create: Callable[[str, str], None]

    def new_bucket(self) -> str:
        """The URL of a root in a bucket that nobody has used."""
        name = f"bucket-{os.getpid()}-{next(_numbers)}"
        self.create(self.endpoint, name)
        return f"{self.scheme}://{name}/team/models"


def enter(server: Server, patch: pytest.MonkeyPatch) -> str:
    """The URL of a new bucket; from here on the environment leads to it, and to no other cloud."""
    for name in [n for n in os.environ if n.startswith(CLOUD_VARIABLES)]:
        patch.delenv(name)
    for name, value in server.environment.items():
        patch.setenv(name, value)
    return server.new_bucket()


def s3_environment(endpoint: str) -> dict[str, str]:
    """What a person sets for an S3 server of his own."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture
def s3_url(ministack: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    return enter(ministack, monkeypatch)


@contextmanager
def serve_moto() -> Iterator[Server]:
    """moto's S3 server, until the block ends."""
    command = [str(_BIN / "moto_server"), "--host", "127.0.0.1", "--port", "0"]
    yield from _served(command, "s3", s3_environment, _create_s3)


@contextmanager
def serve_ministack(directory: Path) -> Iterator[Server]:
    """ministack's S3 server, with its files in `directory`, until the block ends."""
    settings = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": "0",
        "SERVICES": "s3",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "TMPDIR": str(directory),
    }
    command = [str(_BIN / "ministack")]
    yield from _served(command, "s3", s3_environment, _create_s3, settings)


@pytest.fixture(scope="session")
def moto() -> Iterator[Server]:
    with serve_moto() as server:
        yield server


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite() -> Iterator[Server]:
    """Skips where it cannot be installed: it needs node and npm."""
    command = [
        *("node", str(_installed_azurite()), "--blobHost", "127.0.0.1", "--blobPort", "0"),
        *("--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"),
    ]
    yield from _served(command, "az", _azure_environment, _create_container)


@pytest.fixture(scope="session")
def gcs() -> Iterator[Server]:
    command = [sys.executable, str(Path(__file__).with_name("fake_gcs.py"))]
    yield from _served(command, "gs", lambda e: {"STORAGE_EMULATOR_HOST": e}, _create_s3)


def _served(
    command: list[str],
    scheme: str,
    environment: Callable[[str], Mapping[str, str]],
    create: Callable[[str, str], None],
    settings: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server that runs while it is used, and says on which port it listens."""
    process = subprocess.Popen(
        [sys.executable, "-c", _TIED, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | (settings or {}) | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    said = b""
    for line in process.stdout:
        said += line
        if found := _READY.search(line):
            break
    else:
        pytest.fail(f"{command[0]} did not start: {said.decode(errors='replace')[-2000:]}")
    reader = Thread(target=process.stdout.read, daemon=True)  # so that the pipe never fills
    reader.start()
    endpoint = found[0].decode()
    try:
        yield Server(endpoint, scheme, environment(endpoint), create)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def _create_s3(endpoint: str, name: str) -> None:
    _send(urllib.request.Request(f"{endpoint}/{name}", method="PUT"))


def _send(request: urllib.request.Request) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60):
        pass


# Azure


def _azure_environment(endpoint: str) -> dict[str, str]:
    return {
        "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;"
        f"AccountName={_ACCOUNT};AccountKey={_AZURE_KEY};BlobEndpoint={endpoint}/{_ACCOUNT};"
    }


def _create_container(endpoint: str, name: str) -> None:
    """With a request signed by the account's key, which is what making a container takes."""
    date, version = formatdate(usegmt=True), "2021-12-02"
    headers = f"x-ms-date:{date}\nx-ms-version:{version}\n"
    resource = f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    signed = "PUT" + "\n" * 12 + headers + resource
    key = base64.b64decode(_AZURE_KEY)
    signature = base64.b64encode(hmac.digest(key, signed.encode(), hashlib.sha256)).decode()
    _send(
        urllib.request.Request(
            f"{endpoint}/{_ACCOUNT}/{name}?restype=container",
            method="PUT",
            headers={
                "x-ms-date": date,
                "x-ms-version": version,
                "Authorization": f"SharedKey {_ACCOUNT}:{signature}",
            },
        )
    )


def _installed_azurite() -> Path:
    """The server's script, installed once; skips the test where it cannot be."""
    home = _TOOLS / _AZURITE.replace("@", "-")
    script = home / "node_modules/azurite/dist/src/blob/main.js"
    if os.name != "posix" or shutil.which("npm") is None:
        pytest.skip("Azurite needs node and npm")
    _TOOLS.mkdir(exist_ok=True)
    with open(_TOOLS / "azurite.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may be installing it
        if not (home / ".installed").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home), _AZURITE]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                shutil.rmtree(home)
                pytest.skip(f"Azurite cannot be installed: {done.stderr.strip()[-200:]}")
            (home / ".installed").touch()
    return script
