"""What the failure of a bucket means to a person: every error of obstore in plain words.

Knows status codes and the codes in the answers of S3, Google Cloud Storage and Azure. The text of
the original error is never shown and never chained: it can hold a signed URL.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from replicate.errors import KeyNotFoundError, RefusedError, StorageError

_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_STATUS = re.compile(r"status code: ([0-9]{3})|^ +status: ([0-9]{3}),", re.MULTILINE)
#: Where instance roles are asked for: a failure there means that nothing nearer was found.
_INSTANCE = ("169.254.169.254", "169.254.170.", "metadata.google.internal")

_LOG_IN = (
    "Log in again, or renew the credentials in the environment. What is saved locally is kept."
)
_RIGHTS = "They need list, get, put and delete below that root."
_LATER = "Try again later."
_CREDENTIALS = (
    "Set the usual ones: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for s3://; "
    "GOOGLE_APPLICATION_CREDENTIALS for gs://; AZURE_STORAGE_ACCOUNT_NAME and "
    "AZURE_STORAGE_ACCOUNT_KEY for az://."
)
_NO_BUCKET = ("there is no such bucket", "Create it first, or correct `repository:`.")
_CLOCK = ("this machine's clock is wrong", "Set it: the storage refuses requests dated so far off.")
_DENIED = ("access denied", f"The credentials were understood, but lack a right. {_RIGHTS}")
_UNKNOWN_KEY = ("the credentials are not valid", "Correct them in the environment or the profile.")
_EXPIRED = ("the credentials have expired", _LOG_IN)
_ELSEWHERE = ("the bucket is in another region", "Set AWS_REGION to the bucket's.")
_BUSY = ("the storage asks to slow down", _LATER)
_BROKEN = ("the storage has an error", _LATER)
_CODES = {
    "NoSuchBucket": _NO_BUCKET,
    "ContainerNotFound": _NO_BUCKET,
    "ContainerBeingDeleted": _NO_BUCKET,
    "InvalidBucketName": ("not a valid name of a bucket", "Correct `repository:`."),
    "RequestTimeTooSkewed": _CLOCK,
    "AccessDenied": _DENIED,
    "AuthorizationPermissionMismatch": _DENIED,
    "AuthorizationFailure": _DENIED,
    "InsufficientAccountPermissions": _DENIED,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": _UNKNOWN_KEY,
    "AuthenticationFailed": _UNKNOWN_KEY,
    "InvalidToken": _UNKNOWN_KEY,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "PermanentRedirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "IllegalLocationConstraintException": _ELSEWHERE,
    "SlowDown": _BUSY,
    "ServerBusy": _BUSY,
    "TooManyRequests": _BUSY,
}
_RENEWAL = ("the credentials could not be renewed", _LOG_IN)
_SSO = ("you are not logged in with SSO, or no longer", "Run `aws sso login`, then try again.")
_NO_CREDENTIALS = ("no credentials were found", _CREDENTIALS)
#: What trying again does not change, before somebody has.
_REFUSALS = {
    *(_NO_BUCKET, _CLOCK, _DENIED, _UNKNOWN_KEY, _EXPIRED, _ELSEWHERE, _NO_CREDENTIALS, _SSO),
    _CODES["InvalidBucketName"],
}
_STATUSES = {301: _ELSEWHERE, 401: _UNKNOWN_KEY, 403: _DENIED, 429: _BUSY, 503: _BUSY}


#: The pauses before a question is asked again whose answer broke off (seconds).
PAUSES = (0.1, 0.4, 1.6, 3.2)
#: For how long it is asked again (seconds). Where nothing answers at all, obstore has done so.
_ASK_FOR = 10.0

T = TypeVar("T")


def asked(action: str, url: str, key: str, ask: Callable[[], T]) -> T:
    """What `ask` returns, with `explained` errors.

    It has to be something that may be done twice: it is, when an answer breaks off in the middle,
    which obstore does not try again by itself.
    """
    start = time.monotonic()
    with explained(action, url, key):
        for pause in PAUSES:
            try:
                return ask()
            except BaseError as error:
                late = time.monotonic() - start > _ASK_FOR
                if late or "kind: Interrupted" not in str(error):
                    raise
            time.sleep(random.uniform(pause / 2, pause))
        return ask()


@contextmanager
def explained(action: str, url: str, key: str = "") -> Iterator[None]:
    """Raise KeyNotFoundError or StorageError, with key and cause in words, in place of obstore's.

    AlreadyExistsError and PreconditionError pass: they answer a question that was asked.
    """
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except (BaseError, OSError, ValueError) as error:
        raise storage_error(action, url, key, error) from None


def is_refused_copy(error: BaseException) -> bool:
    """Whether a storage refuses to copy an object onto itself, as S3 does."""
    return _code(str(error)) == "InvalidRequest"


def is_past_the_end(error: BaseException) -> bool:
    """Whether a range was asked for that begins behind the last byte."""
    text = str(error)
    return _status(text) == 416 or "StartTooLarge" in text  # Azure answers 200; obstore looks


def storage_error(action: str, url: str, key: str, error: BaseException) -> StorageError:
    text = str(error)
    if isinstance(error, FileNotFoundError) and _CODES.get(_code(text)) != _NO_BUCKET:
        return KeyNotFoundError(f"no {key} in {url}")
    where = f"{url.rstrip('/')}/{key}" if key else url
    cause, hint = _cause(text)
    kind = RefusedError if (cause, hint) in _REFUSALS else StorageError
    return kind(f"cannot {action} {where}: {cause}", hint=hint)


def _cause(text: str) -> tuple[str, str | None]:
    code, status = _code(text), _status(text)
    if "External AWS credential provider" in text:  # what boto3 raised, in there
        return _SSO if "SSO" in text else _RENEWAL
    if "redirect without LOCATION" in text:
        return _ELSEWHERE
    if any(host in text for host in _INSTANCE):
        return _NO_CREDENTIALS
    if known := _CODES.get(code) or _STATUSES.get(status):
        return known
    if status >= 500:
        return f"{_BROKEN[0]} ({code or status})", _LATER
    if status:
        return f"the storage refuses it ({code or status})", None
    return _connection(text)


def _connection(text: str) -> tuple[str, str | None]:
    """What kept a request from being answered at all."""
    for sign, cause in _CONNECTIONS.items():
        if sign in text:
            return cause, "Check the network and the endpoint. It is safe to try again."
    if "redential" in text or "ccount" in text:
        return _NO_CREDENTIALS
    return "the connection failed", "Check the network and the endpoint. It is safe to try again."


_CONNECTIONS = {
    "dns error": "its name cannot be resolved",
    "failed to lookup": "its name cannot be resolved",
    "Connection refused": "the connection was refused",
    "ConnectionRefused": "the connection was refused",
    "ertificate": "its certificate is not trusted",
    "TimedOut": "it did not answer in time",
    "imeout,": "it did not answer in time",
    "timed out": "it did not answer in time",
    "reset": "the connection was cut off",
    "IncompleteMessage": "the connection was cut off",
    "Body": "the connection was cut off",
}


def _code(text: str) -> str:
    found = _CODE.search(text)
    return found[1] if found else ""


def _status(text: str) -> int:
    found = _STATUS.search(text)
    return int(found[1] or found[2]) if found else 0
