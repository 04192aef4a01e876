"""Requests to object stores: with which options, how often, and in one line what went wrong.

Options and credentials are those of the environment, under the names that the stores' own tools
use. A request that fails because the store is busy or out of reach is sent again, with a message.
Neither messages nor errors quote a store's answer, because it may hold parts of a credential.
"""

import errno
import math
import os
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from absl import logging

from pipeline.errors import UserError, in_one_line

# For how long a request is sent again; the first one shorter, because its address may be wrong.
_SECONDS = 60.0
_FIRST_SECONDS = 6.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 8.0
# How long nothing may arrive before a request counts as failed.
_SILENCE_SECONDS = 60.0
_LONGEST_REQUEST_SECONDS = 24 * 3600.0
# Parts of a large object are sent again by themselves, because a large object has many.
_RETRIES_OF_A_PART = 4

_OPTION = re.compile("AWS_|GOOGLE_|AZURE_")
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}
_UNKNOWN = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed"}
_EXPIRED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_ELSEWHERE = {
    *("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"),
    *("IllegalLocationConstraintException", "InvalidRegion"),
}
_MAY_HOLD_UPLOADS = "%s/%s may hold parts of unfinished uploads: %s"
_ADVICE = (
    "to remove them, give the bucket a lifecycle rule with AbortIncompleteMultipartUpload, or run "
    "pip install 'clozemill[aws]' before the next run"
)
# Where these are set, obstore finds credentials by itself.
_OTHER_CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)
_BUSY_CODES = {"SlowDown", "Throttling", "InternalError", "RequestTimeout", "ServerBusy"}
_BUSY_STATUSES = {408, 429, 500, 502, 503, 504}

_ASKS_FOR_CREDENTIALS = re.compile(
    r"Error performing (token request|\w+ http://(169\.254\.|metadata\.google))"
    r"|/latest/api/token|Missing\w*(AccessKey|Account)|CredentialsMissing"
)

T = TypeVar("T")


class _Variables(NamedTuple):
    """What a user sets for a kind of store."""

    credentials: str
    token: str
    region: str
    endpoints: tuple[str, ...]

    @property
    def endpoint(self) -> str:
        """The variable that holds the store's address, or may do so."""
        return next(filter(os.environ.get, self.endpoints), self.endpoints[-1])


_VARIABLES = {
    "s3": _Variables(
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ENDPOINT_URL"),
    ),
    "gs": _Variables(
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_BASE_URL",
        ("GOOGLE_BASE_URL",),
    ),
    "az": _Variables(
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_ACCOUNT_NAME",
        ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"),
    ),
}


def ask(root: str, url: str, operation: Callable[[Any], T], in_parts: bool = False) -> T:
    """Does an operation on a bucket; while the store is busy or out of reach, again for a minute.

    Args:
      root: the scheme and the bucket.
      url: what the operation is about, for messages.
      operation: it gets obstore's object for the bucket. It may be called several times.
      in_parts: whether it sends an object in parts.

    Returns:
      What the operation returns.

    Raises:
      FileNotFoundError: the bucket has no such object.
      FileExistsError: the operation's condition does not hold.
      OSError: all else; `strerror` is one line that says what to do.
      UserError: a variable has no meaning, or there are no credentials.
      RuntimeError: a parent of this process has used a store before it was forked.
    """
    global _process_of_first_use  # noqa: PLW0603 - of this process
    _process_of_first_use = _process_of_first_use or os.getpid()
    if _process_of_first_use != os.getpid():
        # The threads of its parent are not there, so obstore would wait for ever.
        raise RuntimeError("a store cannot be used in a process whose parent has used one")
    environment = tuple((name, os.environ[name]) for name in os.environ if _OPTION.match(name))
    _check(root, environment)
    retries = _RETRIES_OF_A_PART if in_parts else 0
    return _try(lambda: operation(_bucket(root, environment, retries)), root, url)


@cache
def _check(root: str, environment: tuple[tuple[str, str], ...]) -> None:
    """Looks for nothing in a bucket, because that tells in a short time what is wrong with it.

    Answers about one object tell little: those to HEAD have no text.
    """

    def look() -> None:
        bucket = _bucket(root, environment, seconds=_FIRST_SECONDS)
        list(bucket.list("clozemill-looks-for-nothing"))

    try:
        _try(look, root, root, is_first=True)
    except PermissionError as error:
        if error.errno != errno.EACCES:  # who may not list may still read
            raise


def _try(operation: Callable[[], T], root: str, url: str, is_first: bool = False) -> T:
    started, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
    while True:
        try:
            return operation()
        except Exception as error:
            failure = _failure(error, root, url)
            if failure is None:
                raise
        # From here on there is no exception of obstore's, which a traceback would quote.
        seconds = _FIRST_SECONDS if is_first and failure.is_silent else _SECONDS
        is_lasting = not failure.is_passing or (is_first and failure.error.errno == errno.ENOKEY)
        if is_lasting or time.monotonic() + pause > started + seconds:
            raise failure.error
        logging.warning("%s: %s; trying again", url, failure.error.strerror)
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def abort_uploads(root: str, key: str, is_in_use: Callable[[str], bool]) -> None:
    """Aborts uploads in parts that an ended run has left below a folder of S3.

    They cost as much as objects, and no list of objects shows them. Obstore cannot abort them. On
    Azure, they go by themselves after a week. In a bucket itself, they may be anybody's, so there
    is only a warning.

    Args:
      root: the scheme and the bucket.
      key: the folder.
      is_in_use: whether the object of a key may be on its way now.
    """
    if not root.startswith("s3:"):
        return
    if not key:
        logging.warning(_MAY_HOLD_UPLOADS, root, key, _ADVICE)
        return
    try:
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    except ImportError:
        logging.warning(_MAY_HOLD_UPLOADS, root, key, _ADVICE)
        return
    endpoint = os.environ.get(_VARIABLES["s3"].endpoint)
    try:
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=os.environ.get("AWS_REGION"),
            config=Config(
                connect_timeout=_FIRST_SECONDS,
                retries={"total_max_attempts": 3},
                s3={"addressing_style": "path" if endpoint else "auto"},
            ),
        )
        bucket = root.removeprefix("s3://")
        pages = client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=bucket, Prefix=f"{key}/"):
            for upload in page.get("Uploads", []):
                name, number = upload["Key"], upload["UploadId"]
                if is_in_use(name):
                    continue
                client.abort_multipart_upload(Bucket=bucket, Key=name, UploadId=number)
                logging.warning("aborted an unfinished upload of %s/%s", root, in_one_line(name))
    except (BotoCoreError, ClientError) as error:
        reason = _without_secrets(str(error))
        logging.warning("cannot abort uploads of %s/%s (%s): %s", root, key, reason, _ADVICE)


class _Failure(NamedTuple):
    """What went wrong.

    Attributes:
      error: what to raise.
      is_passing: whether the same request may succeed later.
      is_silent: whether no store has answered.
    """

    error: OSError
    is_passing: bool = False
    is_silent: bool = False


def _failure(error: Exception, root: str, url: str) -> _Failure | None:
    """What an exception of obstore means; None if it is not obstore's."""
    from obstore import exceptions  # noqa: PLC0415 - see `_bucket`

    text = str(error)
    is_missing = isinstance(error, FileNotFoundError) and error.errno is None
    if not (is_missing or isinstance(error, exceptions.BaseError | ValueError)):
        return None
    if is_missing and _code(text) not in _NO_BUCKET:
        number, reason = errno.ENOENT, "there is no such object"
    elif isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        number, reason = errno.EEXIST, "another object is there"
    elif isinstance(error, ValueError | exceptions.InvalidPathError):
        number, reason = errno.EINVAL, "an object's name has characters or parts such as .. in it"
    else:
        variables = _VARIABLES[root.partition(":")[0]]
        number, reason = _refusal(text, root, variables) or _silence(text, variables)
    is_silent = number in (errno.EIO, errno.ENOKEY)
    return _Failure(OSError(number, reason, url), is_silent or number == errno.EBUSY, is_silent)


def _refusal(text: str, root: str, variables: _Variables) -> tuple[int, str] | None:
    """What a store's answer means: the number and the reason of an `OSError`."""
    if _ASKS_FOR_CREDENTIALS.search(text):
        return errno.ENOKEY, f"there are no credentials: set {variables.credentials}"
    code, status = _code(text), int(_first(r"status code: (\d{3})", text) or 0)
    if code in _NO_BUCKET or status == HTTPStatus.NOT_FOUND:
        places = " and ".join(dict.fromkeys((variables.region, variables.endpoint)))
        return errno.ENXIO, f"there is no bucket {root}: check its name, {places}"
    if code in _EXPIRED:
        return errno.EPERM, f"the credentials have expired: renew {variables.token}"
    if code in _UNKNOWN or status == HTTPStatus.UNAUTHORIZED:
        return (
            errno.EPERM,
            f"the store does not know the credentials: check {variables.credentials}",
        )
    if code == "RequestTimeTooSkewed":
        return errno.EPERM, "the store refuses this machine's time: set its clock"
    if code in _ELSEWHERE or "eceived redirect" in text:
        region = _first(r"<Region>([\w-]+)</Region>", text)
        value = f"{variables.region}={region}" if region else variables.region
        return errno.ENXIO, f"{root} is in another region: set {value}"
    if code in _BUSY_CODES or status in _BUSY_STATUSES:
        return errno.EBUSY, f"the store is busy ({code or status})"
    if status == HTTPStatus.FORBIDDEN:
        return errno.EACCES, f"the store denies access: check the rights of {variables.credentials}"
    if status == HTTPStatus.NOT_IMPLEMENTED:
        return errno.ENOTSUP, "the store does not know such requests"
    if status:
        places = " and ".join(dict.fromkeys((variables.region, variables.token)))
        return errno.ENXIO, f"the store refuses the request ({code or status}): check {places}"
    return None


def _silence(text: str, variables: _Variables) -> tuple[int, str]:
    """Why no store has answered: the number and the reason of an `OSError`."""
    if "HttpError {" not in text:
        reason = _without_secrets(text.partition("\n")[0])
        return errno.ENXIO, f"{reason}: check {variables.credentials}"
    host = _first(r"Error performing \w+ https?://([\w.:\[\]-]+)[/ ?]", text) or "the address"
    if "dns error" in text:
        problem = f"there is no host {host}"
    elif "kind: Timeout" in text:
        problem = f"{host} does not answer"
    elif re.search("certificate|tls|Tls", text):
        problem = f"{host} has no certificate to be trusted, or does not speak HTTPS"
    elif "kind: Connect" in text:
        problem = f"nothing listens at {host}"
    else:
        problem = f"{host} has cut the connection"
    return errno.EIO, f"{problem}: check {variables.endpoint}"


def _code(text: str) -> str:
    """The word by which a store's answer names the error; empty if it does not."""
    return _first(r"<Code>(\w+)</Code>", text)


def _without_secrets(text: str) -> str:
    """The text in one line, without the values of variables that hold credentials."""
    for name, value in os.environ.items():
        if _OPTION.match(name) and re.search(r"KEY|TOKEN|SECRET|SAS", name):
            text = text.replace(value, "…") if value else text
    return in_one_line(text)


def _first(pattern: str, text: str) -> str:
    """The first group of a pattern's first match; empty if there is none."""
    found = re.search(pattern, text)
    return found[1] if found else ""


_process_of_first_use: int | None = None


@cache
def _bucket(
    root: str,
    environment: tuple[tuple[str, str], ...],  # noqa: ARG001 - obstore reads it
    retries: int = 0,
    seconds: float = math.inf,
) -> Any:
    """Obstore's object for a bucket, with the options and credentials of the environment.

    Args:
      root: the scheme and the bucket.
      environment: the options, because a change of them makes it another object.
      retries: how often obstore sends a request again by itself.
      seconds: how long a request may take; by default, as long as something arrives.
    """
    from obstore import store  # noqa: PLC0415 - only URLs need it

    scheme, _, name = root.partition("://")
    options: Any = {
        "connect_timeout": timedelta(seconds=_FIRST_SECONDS / 2),
        "read_timeout": timedelta(seconds=min(seconds, _SILENCE_SECONDS)),
        "timeout": timedelta(seconds=min(seconds, _LONGEST_REQUEST_SECONDS)),
        "allow_http": _has_http_endpoint(_VARIABLES[scheme].endpoint),
    }
    retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=_SECONDS)}
    if scheme == "s3":
        provider = _provider_of_boto3()
        return store.S3Store(
            name, client_options=options, retry_config=retry, credential_provider=provider
        )
    kind: Any = store.GCSStore if scheme == "gs" else store.AzureStore
    return kind(name, client_options=options, retry_config=retry)


def _has_http_endpoint(variable: str) -> bool:
    """Whether a store's address has no encryption, which obstore must be allowed.

    Raises:
      UserError: what should be an address is none. Obstore would end the process.
    """
    value = os.environ.get(variable)
    if not value:
        return False
    with suppress(ValueError):
        address = urlsplit(value)
        if address.scheme in ("http", "https") and address.hostname and address.port != 0:
            return address.scheme == "http"
    raise UserError(f"{variable} is not an address: set it to one like http://HOST:PORT")


def _provider_of_boto3() -> Any:
    """Credentials of a profile or of single sign-on of AWS; None if the environment has others.

    Raises:
      UserError: there are none, or boto3 is missing.
    """
    profile = os.environ.get("AWS_PROFILE")
    if any(map(os.environ.get, _OTHER_CREDENTIALS)):
        return None
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    if profile or any(Path(file).expanduser().exists() for file in files):
        try:
            from botocore.exceptions import BotoCoreError  # noqa: PLC0415
            from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415

            provider = Boto3CredentialProvider()
            provider()
            return provider
        except ImportError as error:
            if profile:
                raise UserError(
                    "AWS_PROFILE needs boto3: run pip install 'clozemill[aws]'"
                ) from error
        except (BotoCoreError, ValueError) as error:
            if profile:
                raise UserError(
                    f"AWS_PROFILE={profile} gives no credentials ({in_one_line(str(error))}): "
                    f"check it, or run aws sso login --profile {profile}"
                ) from None
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise UserError(f"there are no credentials: set {_VARIABLES['s3'].credentials}")
    return None
