"""S3: a prefix in a bucket of S3 or an S3-compatible server, as a place.

Credentials and the endpoint come from the ordinary AWS chain (`AWS_ENDPOINT_URL` for S3-compatible
servers). Knows nothing about images or scores.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC
from functools import lru_cache
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import boto3
import pyarrow.fs
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError
from lesioncam.storage.store import Entry, Store, StoreError, check_size, refusal

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

# Of a request to S3: how often it is made at most; timeouts in seconds.
_ATTEMPTS, _CONNECT_TIMEOUT, _READ_TIMEOUT = 6, 10, 60
_PAUSES = (0.5, 1, 2)  # seconds until a refused request is made again, and a body read again
_REFUSED_UNDER_LOAD = {"AccessDenied", "403"}
_MAX_LISTINGS = 32  # a prefix is not divided further from so many on, nor after so many requests
_NO_CREDENTIALS = "no AWS credentials found; set them up as for the aws command"
_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404"}
_FORBIDDEN = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch",
              "ExpiredToken", "InvalidToken"}  # fmt: skip


class S3Store(Store):
    """A prefix in a bucket of S3 or an S3-compatible server."""

    def __init__(self, uri: str):
        bucket, key = split_s3(uri)
        self._bucket, self._prefix = bucket, key.strip("/") + "/" if key.strip("/") else ""
        self.uri = f"s3://{bucket}/{self._prefix}".rstrip("/")

    def join(self, name: str) -> "S3Store":
        return S3Store(f"s3://{self._bucket}/{self._prefix}{name}")

    def entries(self) -> Iterator[Entry]:
        return self._below(self._prefix)

    def parallel_listings(self) -> list[Iterator[Entry]]:
        """A prefix is divided where one page tells all that is directly below it."""
        listings, prefixes = [], deque([self._prefix])
        for _ in range(_MAX_LISTINGS):
            if not prefixes or len(prefixes) >= _MAX_LISTINGS:
                break
            prefix = prefixes.popleft()
            with _told(f"cannot list {self.uri}"):
                page = s3_client().list_objects_v2(
                    Bucket=self._bucket, Prefix=prefix, Delimiter="/"
                )
            if page["IsTruncated"]:
                listings.append(self._below(prefix))
            else:
                listings.append(self._entries_of(page))
                prefixes.extend(item["Prefix"] for item in page.get("CommonPrefixes", ()))
        return listings + [self._below(prefix) for prefix in prefixes]

    def names(self) -> list[str]:
        names = []
        with _told(f"cannot list {self.uri}"):
            pages = s3_client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"):
                names += [item["Key"][len(self._prefix) :] for item in page.get("Contents", ())]
        return sorted(filter(None, names))

    def _below(self, prefix: str) -> Iterator[Entry]:
        with _told(f"cannot list {self.uri}"):
            pages = s3_client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
                yield from self._entries_of(page)

    def _entries_of(self, page: "ListObjectsV2OutputTypeDef") -> Iterator[Entry]:
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):  # a console's empty "directory"
                yield Entry(
                    f"s3://{self._bucket}/{item['Key']}",
                    item["Size"],
                    item["ETag"].strip('"'),
                    item["LastModified"].astimezone(UTC),
                )

    def read(self, name: str) -> bytes:
        return read_s3(f"s3://{self._bucket}/{self._prefix}{name}")

    def write(self, name: str, data: bytes) -> None:
        with _told(f"cannot write to {self.uri}"):
            s3_client().put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def swap(self, name: str, expected: bytes | None, data: bytes) -> bool:
        key, quick = self._prefix + name, s3_client(quick=True)
        with _told(f"cannot write to {self.uri}"):
            try:
                if expected is None:
                    quick.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
                    return True
                found = quick.get_object(Bucket=self._bucket, Key=key)
                if found["Body"].read() != expected:
                    return False
                quick.put_object(Bucket=self._bucket, Key=key, Body=data, IfMatch=found["ETag"])
            except ClientError as error:
                if _code_of(error) not in _CHANGED:
                    raise
                # boto3 repeats a write whose answer was lost: then what stands there is ours.
                return self.read_quickly(name) == data
        return True

    def read_quickly(self, name: str) -> bytes | None:
        with _told(f"cannot read from {self.uri}"):
            try:
                found = s3_client(quick=True).get_object(
                    Bucket=self._bucket, Key=self._prefix + name
                )
                return found["Body"].read()
            except ClientError as error:
                if _code_of(error) not in _NOT_FOUND:
                    raise
                return None

    def delete(self, name: str) -> None:
        with _told(f"cannot delete from {self.uri}"):
            s3_client().delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def exists(self, name: str) -> bool:
        try:
            s3_client().head_object(Bucket=self._bucket, Key=self._prefix + name)
        except (ClientError, BotoCoreError) as error:
            if _s3_error(error).kind is ErrorKind.NOT_FOUND:
                return False
            raise refusal(f"cannot reach {self.uri}", _s3_error(error)) from error
        return True

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        if "//" in self._prefix:
            raise InputError(f"{self.uri}: a name is missing between two slashes; take one out")
        return arrow_s3(self._bucket), f"{self._bucket}/{self._prefix}".rstrip("/")


def split_s3(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` -> (`bucket`, `key`); keys are taken as they are, nothing is unescaped."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"{uri}: no bucket; expected s3://bucket/prefix")
    return bucket, key


@lru_cache(maxsize=2)
def s3_client(*, quick: bool = False) -> "S3Client":
    """One client a process; boto3's clients may be shared by threads.

    Args:
        quick: gives up within some 30 s, for what must not be late.
    """
    retries = Config(
        retries={
            "mode": "standard" if quick else "adaptive",
            "total_max_attempts": 3 if quick else _ATTEMPTS,
        },
        connect_timeout=5 if quick else _CONNECT_TIMEOUT,
        read_timeout=5 if quick else _READ_TIMEOUT,
        max_pool_connections=64,
    )
    client = boto3.client("s3", region_name=_region(), config=retries)
    client.meta.events.register("needs-retry.s3", cast("Any", _until_asked_again))
    return client


def _until_asked_again(attempts: int, response: Any, **_: object) -> float | None:
    """boto3's question after each attempt: stores under load refuse what they should delay.

    Returns:
        Seconds to the next attempt; None for what boto3 itself thinks of it.
    """
    code = response[1].get("Error", {}).get("Code") if response else None
    if code not in _REFUSED_UNDER_LOAD or attempts > len(_PAUSES):
        return None
    return _PAUSES[attempts - 1]


def _region() -> str | None:
    """The region that is set; boto3 does not look where the other AWS SDKs do."""
    return boto3.Session().region_name or os.environ.get("AWS_REGION")


class _ArrowS3(pyarrow.fs.S3FileSystem):  # type: ignore[misc]  # pyarrow has no types
    """Made anew in a process that it is sent to, from the credentials that are there.

    Pyarrow's own pickling sends the secret key along and drops the attempts.
    """

    bucket: str

    def __reduce__(self) -> tuple[Callable[[str], pyarrow.fs.FileSystem], tuple[str]]:
        return arrow_s3, (self.bucket,)


def arrow_s3(bucket: str) -> pyarrow.fs.FileSystem:
    """Pyarrow's S3 for a bucket, with the endpoint, credentials and patience of `s3_client`.

    And with the bucket's own region: boto3 follows where S3 sends it, pyarrow does not. Sent to
    another process it has what `s3_client` has there.
    """
    return _arrow_like(s3_client(), bucket)


def _region_of(client: "S3Client", bucket: str) -> str:
    """A bucket's region, which S3 tells even where it refuses; of other servers the client's."""
    with _told(f"cannot reach s3://{bucket}"):
        try:
            answer: Any = client.head_bucket(Bucket=bucket)
        except ClientError as error:
            answer = error.response
            if answer["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                raise
    told = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    return told or client.meta.region_name


@lru_cache(maxsize=8)
def _arrow_like(client: "S3Client", bucket: str) -> pyarrow.fs.FileSystem:
    session = boto3.Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise InputError(f"s3://: {_NO_CREDENTIALS}")
    frozen = credentials.get_frozen_credentials()
    expiring = bool(frozen.token)  # then pyarrow's own chain finds them, and new ones in time
    region = _region_of(client, bucket)
    filesystem = _ArrowS3(
        access_key=None if expiring else frozen.access_key,
        secret_key=None if expiring else frozen.secret_key,
        region=region,
        endpoint_override=boto3.client("s3", region_name=region).meta.endpoint_url,
        connect_timeout=_CONNECT_TIMEOUT,
        request_timeout=_READ_TIMEOUT,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
    filesystem.bucket = bucket
    return filesystem


def read_s3(uri: str, max_bytes: int | None = None) -> bytes:
    """Read an object of at most `max_bytes` bytes; `StoreError` as in `read_uri`.

    A request that fails is repeated by the client, a body that breaks off here.
    """
    bucket, key = split_s3(uri)
    for pause in (*_PAUSES, None):
        try:
            answer = s3_client().get_object(Bucket=bucket, Key=key)
        except (ClientError, BotoCoreError, OSError) as error:
            raise _s3_error(error) from error
        check_size(answer["ContentLength"], max_bytes)
        try:
            data = answer["Body"].read()
            if len(data) == answer["ContentLength"]:
                return data
            failure = StoreError(ErrorKind.UNREACHABLE, "the store sends less than it says")
        except (BotoCoreError, OSError) as error:  # among them a checksum that is not right
            failure = _s3_error(error)
        if pause is not None:
            time.sleep(pause)
    raise failure


@contextmanager
def open_s3(uri: str) -> Iterator[BinaryIO]:
    """Open an object to read in pieces, by way of a file; `StoreError` as in `read_uri`."""
    with ExitStack() as files:
        try:
            file = files.enter_context(TemporaryFile())
            s3_client().download_fileobj(*split_s3(uri), file)
            file.seek(0)
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise _s3_error(error) from error
        except OSError as error:
            message = f"it could not be copied to a temporary file: {error.strerror}"
            raise StoreError(ErrorKind.UNREACHABLE, message) from error
        yield file


def stat_s3(uri: str) -> Entry:
    """What a listing shows of an object; `StoreError` as in `read_uri`."""
    bucket, key = split_s3(uri)
    try:
        head = s3_client().head_object(Bucket=bucket, Key=key)
    except (ClientError, BotoCoreError) as error:
        raise _s3_error(error) from error
    modified = head["LastModified"].astimezone(UTC)
    return Entry(uri, head["ContentLength"], head["ETag"].strip('"'), modified)


def _code_of(error: Exception) -> str | None:
    """S3's word for an error."""
    if not isinstance(error, ClientError):
        return None
    return str(error.response.get("Error", {}).get("Code", ""))


def _s3_error(error: Exception) -> StoreError:
    code = _code_of(error)
    if code is not None:
        if code in _NOT_FOUND:
            return StoreError(ErrorKind.NOT_FOUND, "no such object or bucket")
        if code in _FORBIDDEN:
            return StoreError(ErrorKind.PERMISSION, f"the store refused: {code}")
        return StoreError(ErrorKind.UNREACHABLE, f"the store answered {code}")
    if isinstance(error, ParamValidationError):
        return StoreError(ErrorKind.NOT_FOUND, "not a possible name of an object or bucket")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreError(ErrorKind.PERMISSION, _NO_CREDENTIALS)
    return StoreError(ErrorKind.UNREACHABLE, f"the store cannot be reached: {type(error).__name__}")


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise refusal(what, _s3_error(error)) from error
