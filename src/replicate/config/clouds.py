"""What the standard variables of the clouds say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: What says who asks AWS, before any file: keys, a web identity, a container's role, or nobody.
_AWS_IDENTITY = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_AWS_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """What the standard variables of the clouds say, as far as obstore does not read it itself.

    `aws_profile` is the one that was named. Without a name, and unless `aws_knows` (the environment
    itself says who asks), the default profile in `aws_files` holds.
    """

    allow_http: bool = False
    s3_endpoint: str | None = None
    aws_profile: str | None = None
    aws_knows: bool = False
    aws_files: tuple[Path, ...] = ()
    aws_region: str | None = None
    gcs_emulator: str | None = None
    azure_connection: str | None = field(default=None, repr=False)
    azure_account: str | None = None


def cloud_settings(environ: Mapping[str, str] = os.environ) -> CloudSettings:
    def first(*names: str) -> str | None:
        return next((value for name in names if (value := environ.get(name))), None)

    return CloudSettings(
        allow_http=environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"),
        s3_endpoint=first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        aws_profile=first("AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
        aws_knows=first(*_AWS_IDENTITY) is not None,
        aws_files=tuple(
            Path(os.path.expanduser(environ.get(name) or usual))
            for name, usual in _AWS_FILES.items()
        ),
        aws_region=first("AWS_REGION", "AWS_DEFAULT_REGION"),
        gcs_emulator=first("STORAGE_EMULATOR_HOST"),
        azure_connection=first("AZURE_STORAGE_CONNECTION_STRING"),
        azure_account=first("AZURE_STORAGE_ACCOUNT_NAME"),
    )
