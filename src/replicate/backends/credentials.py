"""Who asks AWS, where obstore alone does not find out: the profiles of `~/.aws` through boto3, with
SSO, roles and programs that print keys; and in which region a bucket is.

Keys in the environment, web identities and the roles of machines are obstore's own business.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from replicate.config import CloudSettings
from replicate.errors import ConfigError

#: How long keys are used before boto3 is asked again. It renews those that expire in 15 minutes.
_KEEP = timedelta(minutes=5)
_REGION = "x-amz-bucket-region"


#: What an entry of AWS's files says of who asks: keys, a program that prints them, SSO, a role.
_IDENTITY = {
    *("aws_access_key_id", "credential_process", "role_arn"),
    *("sso_session", "sso_start_url", "login_session"),
}


def profile_of(settings: CloudSettings) -> tuple[Any, str | None]:
    """What gives obstore the keys of the profile that holds, and that profile's region; twice None
    where obstore finds them itself.

    As with the tools of AWS, a profile that is named wins, and what the environment says comes
    before the default profile.
    """
    if settings.aws_profile:
        return _of_profile(settings.aws_profile)
    if not settings.aws_knows and any(map(_has_default, settings.aws_files)):
        return _of_profile("default")
    return None, None


def _has_default(file: Path) -> bool:
    """Whether the default profile is in one of AWS's files, and says who asks."""
    parser = ConfigParser(interpolation=None, strict=False)
    with suppress(OSError, ConfigParserError, UnicodeError):
        parser.read(file, encoding="utf-8")
    return parser.has_section("default") and not _IDENTITY.isdisjoint(parser.options("default"))


def _of_profile(profile: str) -> tuple[Any, str | None]:
    """What gives obstore the keys of a profile, and the profile's region if it has one.

    Raises ConfigError when boto3 is missing, or there is no such profile, or it has no keys.
    """
    try:
        import boto3  # type: ignore[import-untyped]
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise ConfigError(
            f"the AWS profile {profile!r} needs boto3, which is not installed",
            hint="Install it with: pip install 'replicate[aws]'",
        ) from None
    try:
        session = boto3.Session(profile_name=profile)
        provider = Boto3CredentialProvider(session, ttl=_KEEP)
    except (BotoCoreError, ValueError) as error:
        reason = "it has no credentials" if isinstance(error, ValueError) else str(error)
        raise ConfigError(
            f"the AWS profile {profile!r} cannot be used: {reason}",
            hint="`aws configure list` shows the profiles; AWS_PROFILE chooses one.",
        ) from error
    provider.config = {}
    return provider, session.region_name


def region_of(bucket: str, endpoint: str = "https://s3.amazonaws.com") -> str | None:
    """The region of a bucket on AWS, which it tells anybody; None when it cannot be reached."""
    request = urllib.request.Request(f"{endpoint}/{quote(bucket)}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(answer.headers[_REGION]) if _REGION in answer.headers else None
    except urllib.error.HTTPError as refusal:  # it may not be ours to look at: it says so anyway
        with refusal:
            return refusal.headers.get(_REGION)
    except OSError:
        return None
