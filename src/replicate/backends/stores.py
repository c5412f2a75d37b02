"""A location such as `s3://bucket/root` as obstore's connection to it.

Knows credentials, endpoints, retries and time limits. Nothing is asked of the network here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, S3Store

from replicate.backends.credentials import profile_of, region_of
from replicate.backends.failures import explained
from replicate.config import CloudSettings
from replicate.errors import ConfigError, StorageError

Store = S3Store | GCSStore | AzureStore

_LOCATION = re.compile(r"(s3|gs|az)://([^/?#@\s]+)(?:/([^?#\s]*))?")
_ROOT = re.compile(r"[A-Za-z0-9_.\-=+/]*")
#: A failed request is repeated with growing, random pauses for as long as this. Then it is the
#: caller's: a recorder goes on for hours, a person wants to know.
RETRIES: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=4),
        "base": 2,
    },
}
_CONNECT = timedelta(seconds=5)
#: For a request that carries little, and for one that carries up to 16 MiB over a slow line.
_QUICK, _BULK = timedelta(seconds=60), timedelta(minutes=10)
#: How much is little (bytes).
SMALL = 256 << 10

#: The process that first used obstore: its threads do not exist in a child that was forked off.
_first_user: list[int] = []


class Stores:
    """One place through connections for different uses: `quick` for what is small, `bulk` for what
    is large, and `once` for what must not be repeated. Each is made when it is first used."""

    def __init__(self, connect: Callable[[timedelta, Any], Store]) -> None:
        self._connect = connect

    @cached_property
    def quick(self) -> Store:
        return self._connect(_QUICK, RETRIES)

    @cached_property
    def bulk(self) -> Store:
        return self._connect(_BULK, RETRIES)

    @cached_property
    def once(self) -> Store:
        return self._connect(_QUICK, {"max_retries": 0})

    def for_size(self, size: int | None) -> Store:
        return self.quick if size is not None and size <= SMALL else self.bulk


def parse_location(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and root (without slashes at its ends) of a bucket's URL, or ConfigError."""
    match = _LOCATION.fullmatch(url)
    root = (match[3] or "").removesuffix("/") if match else ""
    parts = root.split("/") if root else []
    if match is None or not _ROOT.fullmatch(root) or any(p in ("", ".", "..") for p in parts):
        raise ConfigError(
            f"not a bucket's location: {url!r}",
            hint="Write it as s3://bucket/root; credentials belong into the environment.",
        )
    return match[1], match[2], root


def connect(url: str, settings: CloudSettings) -> Stores:
    """Connections to the place at `url`. Raises StorageError in a forked child."""
    _refuse_forks()
    scheme, bucket, root = parse_location(url)
    open_store = {"s3": _s3, "gs": _gcs, "az": _azure}[scheme]

    def store(timeout: timedelta, retries: Any) -> Store:
        client = {"timeout": timeout, "connect_timeout": _CONNECT}
        with explained("open", url):
            return open_store(bucket, root or None, settings, client, retries)

    return Stores(store)


def server_of(url: str, settings: CloudSettings) -> str | None:
    """Which server the environment says is meant by a bucket's URL, without any credentials; None
    for the cloud's own, where bucket names are the world's."""
    match parse_location(url)[0]:
        case "s3":
            endpoint = settings.s3_endpoint
        case "gs":
            endpoint = settings.gcs_emulator
        case _:
            said = _connection_string(settings.azure_connection or "")
            account = said.get("account_name") or settings.azure_account
            usual = f"https://{account}.blob.core.windows.net" if account else None
            endpoint = said.get("endpoint") or usual
    if not endpoint:
        return None
    scheme, marks, rest = endpoint.rpartition("://")
    host, slash, path = rest.partition("/")
    place = path.partition("?")[0]
    return "".join((scheme, marks, host.rpartition("@")[2], slash, place)).rstrip("/")


def _refuse_forks() -> None:
    if not _first_user:
        _first_user.append(os.getpid())
    if _first_user[0] != os.getpid():
        raise StorageError(
            "a bucket cannot be used in a process that was forked off one that uses it",
            hint='Start processes with the method "spawn" or "forkserver".',
        )


def _s3(bucket: str, root: str | None, settings: CloudSettings, client: Any, retries: Any) -> Store:
    provider, region = profile_of(settings)
    region = settings.aws_region or region
    config: Any = {}
    if settings.s3_endpoint:
        config["endpoint"] = settings.s3_endpoint
        client = client | _allow_http(settings.s3_endpoint, settings)
    elif region is None:
        region = region_of(bucket)
    if region:
        config["region"] = region
    return S3Store(
        bucket,
        prefix=root,
        config=config,
        client_options=client,
        retry_config=retries,
        credential_provider=provider,
    )


def _gcs(
    bucket: str, root: str | None, settings: CloudSettings, client: Any, retries: Any
) -> Store:
    config: Any = {}
    if host := settings.gcs_emulator:
        endpoint = host if "://" in host else f"http://{host}"
        config = {"base_url": endpoint.rstrip("/"), "bearer_token": "emulator"}
        client = client | _allow_http(endpoint, settings)
    return GCSStore(bucket, prefix=root, config=config, client_options=client, retry_config=retries)


def _azure(
    bucket: str, root: str | None, settings: CloudSettings, client: Any, retries: Any
) -> Store:
    config = _connection_string(settings.azure_connection or "")
    if endpoint := config.get("endpoint"):
        client = client | _allow_http(endpoint, settings)
    return AzureStore(
        bucket, prefix=root, config=config, client_options=client, retry_config=retries
    )


def _allow_http(endpoint: str, settings: CloudSettings) -> Any:
    """Whether data may go there in the clear: to this machine, or where it was allowed."""
    parts = urlsplit(endpoint)
    if parts.scheme == "http" and not settings.allow_http and not _LOOPBACK(parts.hostname or ""):
        raise ConfigError(
            f"the storage's endpoint has no encryption: http://{parts.hostname}",
            hint="Use https://, or allow this one with AWS_ALLOW_HTTP=true.",
        )
    return {"allow_http": parts.scheme == "http"}


_LOOPBACK = re.compile(r"localhost|.*\.localhost|127(\.[0-9]+){3}|::1").fullmatch


def _connection_string(text: str) -> Any:
    """What Azure's connection string says, as obstore's settings."""
    parts = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    config = {setting: parts[name] for name, setting in _AZURE_SETTINGS.items() if name in parts}
    if (
        "endpoint" not in config
        and (suffix := parts.get("EndpointSuffix"))
        and "account_name" in config
    ):
        config["endpoint"] = f"https://{config['account_name']}.blob.{suffix}"
    return config


_AZURE_SETTINGS = {
    "AccountName": "account_name",
    "AccountKey": "account_key",
    "SharedAccessSignature": "sas_key",
    "BlobEndpoint": "endpoint",
}
