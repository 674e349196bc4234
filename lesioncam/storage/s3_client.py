"""S3 clients of boto3 and pyarrow, with the same endpoint, credentials, region and retries.

All of these come from the ordinary AWS chain (`AWS_ENDPOINT_URL` for S3-compatible servers).
`AWS_NO_SIGN_REQUEST=YES` reads public buckets without credentials; `AWS_REQUEST_PAYER=requester`
pays for requests.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import boto3
import pyarrow.fs
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.model import OperationModel

from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError
from lesioncam.storage.store import ARCHIVED, StoreError, refusal

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

RETRY_PAUSES_S = (0.5, 1, 2)  # before a denied request, or the rest of a body, is requested again
NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_CHANGED = {"412", "PreconditionFailed"}

_MAX_ATTEMPTS, _CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 6, 10, 60  # of a request
_DENIED = {"AccessDenied", "403"}
_FORBIDDEN = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch",
              "ExpiredToken", "InvalidToken"}  # fmt: skip
_NO_CREDENTIALS = "no AWS credentials found; set them up as for the aws command"


@lru_cache(maxsize=4)
def s3_client(*, quick: bool = False, anonymous: bool = False) -> "S3Client":
    """One client of each kind a process; boto3's clients may be used by several threads.

    Args:
        quick: gives up within some 30 s, for requests that are useless when late.
        anonymous: sends no credentials, whatever the environment says: for public buckets.
    """
    config = Config(
        retries={
            "mode": "standard" if quick else "adaptive",
            "total_max_attempts": 3 if quick else _MAX_ATTEMPTS,
        },
        connect_timeout=5 if quick else _CONNECT_TIMEOUT_S,
        read_timeout=5 if quick else _READ_TIMEOUT_S,
        max_pool_connections=64,
        signature_version=UNSIGNED if anonymous or _unsigned() else None,
    )
    client = boto3.client("s3", region_name=_region(), config=config)
    client.meta.events.register("needs-retry.s3", cast("Any", _retry_denied))
    if os.environ.get("AWS_REQUEST_PAYER") == "requester" and not anonymous:
        client.meta.events.register("provide-client-params.s3", cast("Any", _pay))
    return client


def _retry_denied(attempts: int, response: Any, **_: object) -> float | None:
    """boto3's hook after each attempt: stores under load deny requests they should delay.

    Returns:
        Seconds to the next attempt; None to leave the decision to boto3.
    """
    code = response[1].get("Error", {}).get("Code") if response else None
    if code not in _DENIED or attempts > len(RETRY_PAUSES_S):
        return None
    return RETRY_PAUSES_S[attempts - 1]


def _unsigned() -> bool:
    """Whether requests go without credentials: a public bucket refuses wrong ones."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "true", "yes")


def _pay(params: dict[str, Any], model: OperationModel, **_: object) -> None:
    """boto3's hook before each request: the requester pays, where the operation can say so."""
    if model.input_shape is not None and "RequestPayer" in model.input_shape.members:
        params.setdefault("RequestPayer", "requester")


def _region() -> str | None:
    """The configured region; boto3 ignores `AWS_REGION`, which the other AWS SDKs read."""
    return boto3.Session().region_name or os.environ.get("AWS_REGION")


class _ArrowS3(pyarrow.fs.S3FileSystem):  # type: ignore[misc]  # pyarrow has no types
    """Sent to another process, it is created again there from that process's credentials.

    pyarrow's own pickling sends the secret key along and drops the number of attempts.
    """

    bucket: str

    def __reduce__(self) -> tuple[Callable[[str], pyarrow.fs.FileSystem], tuple[str]]:
        return arrow_s3, (self.bucket,)


def arrow_s3(bucket: str) -> pyarrow.fs.FileSystem:
    """The bucket's S3 of pyarrow, with the endpoint, credentials and retries of `s3_client`.

    It has the bucket's own region: boto3 follows S3's redirects, pyarrow does not.
    """
    return _arrow_like(s3_client(), bucket)


@lru_cache(maxsize=8)
def _arrow_like(client: "S3Client", bucket: str) -> pyarrow.fs.FileSystem:
    keys = {"anonymous": True} if _unsigned() else _arrow_keys()
    region = _region_of(client, bucket)
    filesystem = _ArrowS3(
        **keys,
        region=region,
        endpoint_override=boto3.client("s3", region_name=region).meta.endpoint_url,
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_READ_TIMEOUT_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_MAX_ATTEMPTS),
    )
    filesystem.bucket = bucket
    return filesystem


def _arrow_keys() -> dict[str, str | None]:
    """The keys for pyarrow; none where they expire, as its own chain renews them in time."""
    credentials = boto3.Session().get_credentials()
    if credentials is None:
        raise InputError(f"s3://: {_NO_CREDENTIALS}")
    frozen = credentials.get_frozen_credentials()
    if frozen.token:
        return {}
    return {"access_key": frozen.access_key, "secret_key": frozen.secret_key}


def _region_of(client: "S3Client", bucket: str) -> str:
    """A bucket's region, which S3 sends even with a refusal; else the client's."""
    with as_lesioncam_error(f"cannot reach s3://{bucket}"):
        try:
            answer: Any = client.head_bucket(Bucket=bucket)
        except ClientError as error:
            answer = error.response
            if answer["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                raise
    region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    return region or client.meta.region_name


def error_code(error: Exception) -> str | None:
    """S3's code of an error; None if the error is not an answer of S3."""
    if not isinstance(error, ClientError):
        return None
    return str(error.response.get("Error", {}).get("Code", ""))


def _refused_with(code: str) -> StoreError:
    if code in NOT_FOUND:
        return StoreError(ErrorKind.NOT_FOUND, "no such object or bucket")
    if code == "InvalidObjectState":
        return StoreError(ErrorKind.ARCHIVED, ARCHIVED)
    if code in _CHANGED:
        return StoreError(ErrorKind.UNREACHABLE, "the object was changed while it was read")
    if code in _FORBIDDEN:
        return StoreError(ErrorKind.PERMISSION, f"the store refused: {code}")
    return StoreError(ErrorKind.UNREACHABLE, f"the store answered {code}")


def store_error(error: Exception) -> StoreError:
    """An error of boto3 with the schema's kind for it."""
    code = error_code(error)
    if code is not None:
        return _refused_with(code)
    if isinstance(error, ParamValidationError):
        return StoreError(ErrorKind.NOT_FOUND, "not a possible name of an object or bucket")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreError(ErrorKind.PERMISSION, _NO_CREDENTIALS)
    return StoreError(ErrorKind.UNREACHABLE, f"the store cannot be reached: {type(error).__name__}")


@contextmanager
def as_lesioncam_error(what: str) -> Iterator[None]:
    """Raise boto3's errors as an `InputError` or a `RunFailedError` that begins with `what`."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise refusal(what, store_error(error)) from error
