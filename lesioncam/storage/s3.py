"""S3: a prefix in a bucket of S3 or an S3-compatible server, as a store.

Knows nothing about images or scores.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO

import pyarrow.fs
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError
from lesioncam.storage.s3_client import (
    NOT_FOUND,
    RETRY_PAUSES_S,
    arrow_s3,
    as_lesioncam_error,
    error_code,
    s3_client,
    store_error,
)
from lesioncam.storage.store import (
    Enter,
    Entry,
    Store,
    StoreError,
    check_size,
    enter_all,
    refusal,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import OptionalObjectAttributesType
    from mypy_boto3_s3.type_defs import (
        CopySourceTypeDef,
        GetObjectRequestTypeDef,
        ListObjectsV2OutputTypeDef,
    )

_MAX_LISTINGS = 32  # a prefix is divided until there are so many parts, or after so many requests
_ARCHIVE_CLASSES = ("GLACIER", "DEEP_ARCHIVE")  # GLACIER_IR can be read at once
_ACCESS_POINT = re.compile(r"(arn:[^/]+:accesspoint[/:][^/]+)(/|$)")
_LISTED_TOO: list["OptionalObjectAttributesType"] = ["RestoreStatus"]
_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404"}


class S3Store(Store):
    """A prefix in a bucket of S3 or an S3-compatible server."""

    def __init__(self, uri: str):
        bucket, key = split_s3(uri)
        self._bucket, self._prefix = bucket, key.strip("/") + "/" if key.strip("/") else ""
        self.uri = f"s3://{bucket}/{self._prefix}".rstrip("/")

    def join(self, name: str) -> "S3Store":
        return S3Store(f"s3://{self._bucket}/{self._prefix}{name}")

    def entries(self, enter: Enter = enter_all) -> Iterator[Entry]:
        return self._below(self._prefix, enter)

    def parallel_listings(self, enter: Enter = enter_all) -> list[Iterator[Entry]]:
        """A prefix is divided if one page names everything directly below it."""
        listings, prefixes = [], deque([self._prefix])
        for _ in range(_MAX_LISTINGS):
            if not prefixes or len(prefixes) >= _MAX_LISTINGS:
                break
            prefix = prefixes.popleft()
            with as_lesioncam_error(f"cannot list {self.uri}"):
                page = s3_client().list_objects_v2(
                    Bucket=self._bucket,
                    Prefix=prefix,
                    Delimiter="/",
                    OptionalObjectAttributes=_LISTED_TOO,
                )
            if page["IsTruncated"]:
                listings.append(self._below(prefix, enter))
            else:
                listings.append(self._entries_of(page))
                inner = (item["Prefix"] for item in page.get("CommonPrefixes", ()))
                prefixes.extend(one for one in inner if enter(one.split("/")[-2]))
        return listings + [self._below(prefix, enter) for prefix in prefixes]

    def names(self) -> list[str]:
        names = []
        with as_lesioncam_error(f"cannot list {self.uri}"):
            pages = s3_client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"):
                names += [item["Key"][len(self._prefix) :] for item in page.get("Contents", ())]
        return sorted(filter(None, names))

    def _below(self, prefix: str, enter: Enter) -> Iterator[Entry]:
        """The entries below a prefix that was entered, in the order of keys."""
        start = len(f"s3://{self._bucket}/{prefix}")
        not_entered = None  # a folder: its keys come one after another
        for entry in self._all_below(prefix):
            if not_entered is not None and entry.uri.startswith(not_entered):
                continue
            end = start
            for folder in entry.uri[start:].split("/")[:-1]:
                end += len(folder) + 1
                if not enter(folder):
                    not_entered = entry.uri[:end]
                    break
            else:
                yield entry

    def _all_below(self, prefix: str) -> Iterator[Entry]:
        with as_lesioncam_error(f"cannot list {self.uri}"):
            pages = s3_client().get_paginator("list_objects_v2")
            for page in pages.paginate(
                Bucket=self._bucket, Prefix=prefix, OptionalObjectAttributes=_LISTED_TOO
            ):
                yield from self._entries_of(page)

    def _entries_of(self, page: "ListObjectsV2OutputTypeDef") -> Iterator[Entry]:
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):  # a console's empty "directory"
                yield Entry(
                    f"s3://{self._bucket}/{item['Key']}",
                    item["Size"],
                    item["ETag"].strip('"'),
                    item["LastModified"].astimezone(UTC),
                    _is_archived(
                        item.get("StorageClass"),
                        "RestoreExpiryDate" in item.get("RestoreStatus", {}),
                    ),
                )

    def read(self, name: str) -> bytes:
        return read_s3(f"s3://{self._bucket}/{self._prefix}{name}")

    def write(self, name: str, data: bytes) -> None:
        with as_lesioncam_error(f"cannot write to {self.uri}"):
            s3_client().put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def swap(self, name: str, expected: bytes | None, data: bytes) -> bool:
        key, quick = self._prefix + name, s3_client(quick=True)
        with as_lesioncam_error(f"cannot write to {self.uri}"):
            try:
                if expected is None:
                    quick.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
                    return True
                found = quick.get_object(Bucket=self._bucket, Key=key)
                if found["Body"].read() != expected:
                    return False
                quick.put_object(Bucket=self._bucket, Key=key, Body=data, IfMatch=found["ETag"])
            except ClientError as error:
                if error_code(error) not in _CHANGED:
                    raise
                # boto3 repeats a write whose answer was lost: then the object holds our data.
                return self.read_quickly(name) == data
        return True

    def move(self, name: str, target: str) -> bool:
        """S3 has no renaming: the server copies the object, then it is deleted."""
        source: CopySourceTypeDef = {"Bucket": self._bucket, "Key": self._prefix + name}
        with as_lesioncam_error(f"cannot write to {self.uri}"):
            try:
                s3_client().copy_object(
                    Bucket=self._bucket, Key=self._prefix + target, CopySource=source
                )
            except ClientError:
                if self.exists(name):  # servers differ in what they answer if it does not
                    raise
                return False
        self.delete(name)
        return True

    def read_quickly(self, name: str) -> bytes | None:
        with as_lesioncam_error(f"cannot read from {self.uri}"):
            try:
                found = s3_client(quick=True).get_object(
                    Bucket=self._bucket, Key=self._prefix + name
                )
                return found["Body"].read()
            except ClientError as error:
                if error_code(error) not in NOT_FOUND:
                    raise
                return None

    def delete(self, name: str) -> None:
        with as_lesioncam_error(f"cannot delete from {self.uri}"):
            s3_client().delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def exists(self, name: str) -> bool:
        try:
            s3_client().head_object(Bucket=self._bucket, Key=self._prefix + name)
        except (ClientError, BotoCoreError) as error:
            failure = store_error(error)
            if failure.kind is ErrorKind.NOT_FOUND:
                return False
            raise refusal(f"cannot reach {self.uri}", failure) from error
        return True

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        if self._bucket.startswith("arn:"):
            raise InputError(
                f"{self.uri}: scores cannot be below an access point's ARN; use its alias, which "
                f"is a bucket's name"
            )
        if "//" in self._prefix:
            raise InputError(f"{self.uri}: two slashes without a name between them; remove one")
        return arrow_s3(self._bucket), f"{self._bucket}/{self._prefix}".rstrip("/")


def split_s3(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` -> (`bucket`, `key`); keys are taken as they are, nothing is unescaped.

    The bucket may be an access point's ARN, `arn:aws:s3:<region>:<account>:accesspoint/<name>`.
    """
    address = uri.removeprefix("s3://")
    if arn := _ACCESS_POINT.match(address):
        return arn[1], address[arn.end() :]
    bucket, _, key = address.partition("/")
    if not bucket:
        raise InputError(f"{uri}: no bucket; expected s3://bucket/prefix")
    return bucket, key


def read_s3(uri: str, max_bytes: int | None = None) -> bytes:
    """Read an object of at most `max_bytes` bytes; `StoreError` as in `read_uri`."""
    bucket, key = split_s3(uri)
    return _read(s3_client, {"Bucket": bucket, "Key": key}, max_bytes)


def read_public_range(entry: Entry, start: int, end: int) -> bytes:
    """Read bytes `start` to `end`, the end excluded, of an object; sends no credentials.

    Raises:
        StoreError: as in `read_uri`, and if the object is not the version that `entry` shows.
    """
    if start == end:
        return b""
    bucket, key = split_s3(entry.uri)
    part = f"bytes={start}-{end - 1}"
    data = _read(
        _public_client,
        {"Bucket": bucket, "Key": key, "Range": part, "IfMatch": f'"{entry.etag}"'},
    )
    if len(data) != end - start:
        raise StoreError(ErrorKind.UNREACHABLE, "the store sends other bytes than were requested")
    return data


def _read(
    client: "Callable[[], S3Client]",
    request: "GetObjectRequestTypeDef",
    max_bytes: int | None = None,
) -> bytes:
    """The body that answers a request.

    The client repeats a failed request; a body that is cut short is requested again here.
    """
    for pause in (*RETRY_PAUSES_S, None):
        try:
            answer = client().get_object(**request)
        except (ClientError, BotoCoreError, OSError) as error:
            raise store_error(error) from error
        check_size(answer["ContentLength"], max_bytes)
        try:
            data = answer["Body"].read()
            if len(data) == answer["ContentLength"]:
                return data
            failure = StoreError(ErrorKind.UNREACHABLE, "the store sends less than it says")
        except (BotoCoreError, OSError) as error:  # also a checksum that doesn't match
            failure = store_error(error)
        if pause is not None:
            time.sleep(pause)
    raise failure


@contextmanager
def open_s3(uri: str) -> Iterator[BinaryIO]:
    """Download an object to a temporary file and open that; `StoreError` as in `read_uri`."""
    with ExitStack() as files:
        try:
            file = files.enter_context(TemporaryFile())
            s3_client().download_fileobj(*split_s3(uri), file)
            file.seek(0)
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise store_error(error) from error
        except OSError as error:
            message = f"it could not be copied to a temporary file: {error.strerror}"
            raise StoreError(ErrorKind.UNREACHABLE, message) from error
        yield file


def stat_s3(uri: str) -> Entry:
    """The entry of one object; `StoreError` as in `read_uri`."""
    return _stat(s3_client, uri)


def stat_public(uri: str) -> Entry:
    """The same; sends no credentials."""
    return _stat(_public_client, uri)


def _public_client() -> "S3Client":
    return s3_client(anonymous=True)


def _stat(client: "Callable[[], S3Client]", uri: str) -> Entry:
    bucket, key = split_s3(uri)
    try:
        head = client().head_object(Bucket=bucket, Key=key)
    except (ClientError, BotoCoreError) as error:
        raise store_error(error) from error
    modified = head["LastModified"].astimezone(UTC)
    archived = _is_archived(head.get("StorageClass"), "expiry-date" in head.get("Restore", ""))
    return Entry(uri, head["ContentLength"], head["ETag"].strip('"'), modified, archived)


def _is_archived(storage_class: str | None, restored: bool) -> bool | None:
    """Whether an object has to be restored before it can be read; None if S3 does not say."""
    if storage_class == "INTELLIGENT_TIERING":  # its archive tiers are not listed
        return None
    return storage_class in _ARCHIVE_CLASSES and not restored
