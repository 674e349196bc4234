"""Places: a local directory or an `s3://` prefix, behind the few calls the rest needs.

A write appears whole or not at all in both. Credentials and the endpoint come from the ordinary
AWS chain (`AWS_ENDPOINT_URL` for S3-compatible servers). Knows nothing about images or scores.
"""

import errno
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

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

from lesioncam.errors import InputError, LesioncamError, RunBroke
from lesioncam.schema import ErrorKind

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

_TEMPORARY = ".tmp-"
# Of a request to S3: how often it is made at most; timeouts in seconds.
_ATTEMPTS, _CONNECT_TIMEOUT, _READ_TIMEOUT = 6, 10, 60
_PAUSES = (0.5, 1, 2, 0)  # seconds after each attempt to read a body
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
_REFUSED_UNDER_LOAD = {"AccessDenied", "403"}
_BRANCHES = 32  # pieces that a prefix is divided into, with at most so many requests
_NO_CREDENTIALS = "no AWS credentials found; set them up as for the aws command"
_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404"}
_FORBIDDEN = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch",
              "ExpiredToken", "InvalidToken"}  # fmt: skip


class StoreError(Exception):
    """An object that could not be read, with the schema's error kind for it."""

    def __init__(self, kind: ErrorKind, message: str):
        super().__init__(kind, message)  # both, so that it survives pickling
        self.kind = kind
        self.message = " ".join(message.split())

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or object as a listing shows it.

    Attributes:
        uri: absolute path, or `s3://bucket/key`, unescaped.
        size: bytes; None where it could not be found out.
        etag: S3's, without quotes; None for local files.
        last_modified: UTC; None where it could not be found out.
    """

    uri: str
    size: int | None
    etag: str | None
    last_modified: datetime | None


class Store(Protocol):
    """A directory or prefix. Names are relative to it, with `/` between their parts."""

    uri: str

    def join(self, name: str) -> "Store":
        """The place below this one."""

    def entries(self) -> Iterator[Entry]:
        """Every file below this place, at any depth, always in the same order."""

    def branches(self) -> list[Iterator[Entry]]:
        """What `entries` gives, in any order, in pieces that threads may list side by side."""

    def names(self) -> list[str]:
        """Names of the files directly at this place, sorted."""

    def read(self, name: str) -> bytes:
        """Read a file whole; `StoreError` if that fails."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole; it appears complete or not at all, and replaces an older one."""

    def swap(self, name: str, expected: bytes | None, data: bytes) -> bool:
        """Write a file if it still holds `expected` (None: if there is none); False if it does not.

        Of several that try at once, one succeeds.
        """

    def delete(self, name: str) -> None:
        """Remove a file; no error if there is none."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    def check_writable(self) -> None:
        """Write and remove a file; an error of one line if that fails."""
        name = f"_writable-{os.getpid()}"
        self.write(name, b"")
        self.delete(name)

    def tidy(self) -> None:
        """Remove what writers that were killed left half; nobody else may be writing."""
        return

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """The same place for pyarrow."""


def _entry_of(item: "os.DirEntry[str]") -> Entry:
    return stat_or_unknown(_utf8(item.path))


class LocalStore(Store):
    """A local directory; made at the first write."""

    def __init__(self, path: str):
        self._root = Path(os.path.abspath(path))  # noqa: PTH100  takes `..` out, follows no link
        self.uri = str(self._root)

    def join(self, name: str) -> "LocalStore":
        return LocalStore(str(self._root / name))

    def entries(self) -> Iterator[Entry]:
        for folder in self._folders():
            for item in sorted(self._files(folder), key=lambda item: item.name):
                yield _entry_of(item)

    def branches(self) -> list[Iterator[Entry]]:
        """Memory holds the folders' names; each folder's files are listed while it is read."""
        folders = list(self._folders())
        pieces = [folders[number::_BRANCHES] for number in range(min(_BRANCHES, len(folders)))]
        return [self._entries_in(piece) for piece in pieces]

    def names(self) -> list[str]:
        return sorted(item.name for item in self._files(self.uri))

    def _entries_in(self, folders: Iterable[str]) -> Iterator[Entry]:
        return (_entry_of(item) for folder in folders for item in self._files(folder))

    def _folders(self) -> Iterator[str]:
        """This folder and all below it, each once though links lead there, by names alone."""
        seen: set[tuple[int, int]] = set()
        waiting = [self.uri]
        while waiting:
            folder = waiting.pop()
            try:
                stat = Path(folder).stat()
            except OSError as error:
                self._unlisted(error)
                continue
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                yield folder
                inner = (item.path for item in self._scan(folder) if self._is_folder(item))
                waiting += sorted(inner, reverse=True)

    def _files(self, folder: str) -> "Iterator[os.DirEntry[str]]":
        for item in self._scan(folder):
            if not self._is_folder(item) and not item.name.startswith(_TEMPORARY):
                yield item

    def _scan(self, folder: str) -> "Iterator[os.DirEntry[str]]":
        try:
            with os.scandir(folder) as items:
                yield from items
        except OSError as error:
            self._unlisted(error)

    def _is_folder(self, item: "os.DirEntry[str]") -> bool:
        try:
            return item.is_dir()
        except PermissionError as error:  # a link to where nobody may look
            self._unlisted(error)
        except OSError:  # a link to itself: reading it will say why
            pass
        return False

    def _unlisted(self, error: OSError) -> None:
        """Images in a folder that cannot be listed would go missing without a word."""
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"cannot list all of {self.uri}: {error.strerror}") from error

    def read(self, name: str) -> bytes:
        return read_uri(str(self._root / name))

    def write(self, name: str, data: bytes) -> None:
        try:
            self._write(self._root / name, data)
        except OSError as error:
            raise self._unwritable(error) from error

    def _write(self, target: Path, data: bytes) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{_TEMPORARY}{os.getpid()}-{threading.get_ident()}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def swap(self, name: str, expected: bytes | None, data: bytes) -> bool:
        target = self._root / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target.parent):
                if (target.read_bytes() if target.exists() else None) != expected:
                    return False
                self._write(target, data)
                return True
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> LesioncamError:
        """A full disk breaks the run; a place that is no place to write is the user's to mend."""
        message = f"cannot write to {self.uri}: {error.strerror}"
        if error.errno in _PASSING:
            return RunBroke(f"{message}; mend that and run the same command again")
        return InputError(message)

    def delete(self, name: str) -> None:
        try:
            (self._root / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def tidy(self) -> None:
        for half in self._root.glob(f"{_TEMPORARY}*"):
            self.delete(half.name)

    def exists(self, name: str) -> bool:
        return (self._root / name).is_file()

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return pyarrow.fs.LocalFileSystem(), str(self._root)


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

    def branches(self) -> list[Iterator[Entry]]:
        """A prefix is divided where one page tells all that is directly below it."""
        branches, prefixes = [], deque([self._prefix])
        for _ in range(_BRANCHES):
            if not prefixes or len(prefixes) >= _BRANCHES:
                break
            prefix = prefixes.popleft()
            with _told(f"cannot list {self.uri}"):
                page = s3_client().list_objects_v2(
                    Bucket=self._bucket, Prefix=prefix, Delimiter="/"
                )
            if page["IsTruncated"]:
                branches.append(self._below(prefix))
            else:
                branches.append(self._entries_of(page))
                prefixes.extend(item["Prefix"] for item in page.get("CommonPrefixes", ()))
        return branches + [self._below(prefix) for prefix in prefixes]

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
        return _read_s3(self._bucket, self._prefix + name)

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
                return self.exists(name) and self.read(name) == data
        return True

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
        return arrow_s3(), f"{self._bucket}/{self._prefix}".rstrip("/")


def open_store(uri: str) -> Store:
    """The place a flag names: a local path, `file://` or `s3://bucket/prefix`."""
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    if scheme == "s3":
        return S3Store(uri)
    if scheme == "file":
        return LocalStore(local_path(uri))
    if scheme:
        raise InputError(f"{uri}: {scheme}:// is not supported; give a local path or s3://")
    return LocalStore(uri)


def read_uri(uri: str, most: int | None = None) -> bytes:
    """Read one file or object by its `uri`.

    Args:
        uri: of the file or object.
        most: bytes that it may have; None for any number.

    Raises:
        StoreError: with kind `not_found`, `permission`, `unreachable` or `too_large`.
    """
    if uri.startswith("s3://"):
        return _read_s3(*split_s3(uri), most)
    try:
        with open(local_path(uri), "rb", opener=_at_once) as file:
            _check_size(_regular(os.fstat(file.fileno())).st_size, most)
            return file.read()
    except (OSError, ValueError) as error:
        raise _local_error(error) from error


@contextmanager
def open_uri(uri: str) -> Iterator[BinaryIO]:
    """Open one file or object of any size, to read in pieces; `StoreError` as in `read_uri`."""
    with ExitStack() as files:
        try:
            if uri.startswith("s3://"):
                file: BinaryIO = files.enter_context(TemporaryFile())
                s3_client().download_fileobj(*split_s3(uri), file)
                file.seek(0)
            else:
                file = files.enter_context(Path(local_path(uri)).open("rb"))
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise _s3_error(error) from error
        except (OSError, ValueError) as error:
            raise _local_error(error) from error
        yield file


def stat_or_unknown(uri: str) -> Entry:
    """Where nothing can be found out, reading it will say why."""
    try:
        return stat_uri(uri)
    except StoreError:
        return Entry(uri, None, None, None)


def stat_uri(uri: str) -> Entry:
    """What a listing would show of one `uri`; `StoreError` as in `read_uri`."""
    if not uri.startswith("s3://"):
        return stat_local(local_path(uri))
    bucket, key = split_s3(uri)
    try:
        head = s3_client().head_object(Bucket=bucket, Key=key)
    except (ClientError, BotoCoreError) as error:
        raise _s3_error(error) from error
    modified = head["LastModified"].astimezone(UTC)
    return Entry(uri, head["ContentLength"], head["ETag"].strip('"'), modified)


def stat_local(path: str) -> Entry:
    """What a listing shows of a local file; `StoreError` as in `read_uri`."""
    try:
        stat = _regular(Path(path).stat())
    except (OSError, ValueError) as error:
        raise _local_error(error) from error
    modified = datetime.fromtimestamp(stat.st_mtime_ns // 1000 / 1e6, UTC)
    return Entry(path, stat.st_size, None, modified)


def _regular(stat: os.stat_result) -> os.stat_result:
    """The same; a device or a pipe may never end, or hang whoever reads it."""
    if not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):
        raise StoreError(ErrorKind.NOT_FOUND, "a device or a pipe, not a file")
    return stat


def _check_size(size: int, most: int | None) -> None:
    if most is not None and size > most:
        limit = f"{most / 2**30:g} GiB"
        raise StoreError(ErrorKind.TOO_LARGE, f"{size:,} bytes; the limit is {limit}")


def _at_once(path: str, flags: int) -> int:
    """Opens a file; does not wait for a writer where a pipe has an image's name."""
    return os.open(path, flags | os.O_NONBLOCK)


def _utf8(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        folder = os.fsencode(Path(path).parent).decode(errors="replace")
        raise InputError(f"a file name in {folder} is not UTF-8; rename the file") from error
    return path


def local_path(uri: str) -> str:
    """The path of a local `uri`: what `file://` stands before is unescaped, a path is itself."""
    return unquote(urlsplit(uri).path) if uri.startswith("file://") else uri


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
        quick: gives up within some 20 s, for what must not be late.
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
    return boto3.client("s3", config=retries)


class _ArrowS3(pyarrow.fs.S3FileSystem):  # type: ignore[misc]  # pyarrow has no types
    """Made anew in a process that it is sent to: pyarrow's own pickling drops the attempts."""

    def __reduce__(self) -> tuple[Callable[[], pyarrow.fs.FileSystem], tuple[()]]:
        return arrow_s3, ()


def arrow_s3() -> pyarrow.fs.FileSystem:
    """Pyarrow's S3, with the endpoint, region, credentials and patience of `s3_client`.

    Sent to another process it has those that `s3_client` has there.
    """
    return _arrow_like(s3_client())


@lru_cache(maxsize=1)
def _arrow_like(client: "S3Client") -> pyarrow.fs.FileSystem:
    session = boto3.Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise InputError(f"s3://: {_NO_CREDENTIALS}")
    frozen = credentials.get_frozen_credentials()
    expiring = bool(frozen.token)  # then pyarrow's own chain finds them, and new ones in time
    return _ArrowS3(
        access_key=None if expiring else frozen.access_key,
        secret_key=None if expiring else frozen.secret_key,
        region=client.meta.region_name,
        endpoint_override=client.meta.endpoint_url,
        connect_timeout=_CONNECT_TIMEOUT,
        request_timeout=_READ_TIMEOUT,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )


def _read_s3(bucket: str, key: str, most: int | None = None) -> bytes:
    """Read an object.

    boto3 repeats a failed request by itself, but not a body that breaks off, nor a refusal; stores
    under load refuse what they should delay.
    """
    for pause in _PAUSES:
        try:
            answer = s3_client().get_object(Bucket=bucket, Key=key)
        except (ClientError, BotoCoreError, OSError) as error:
            failure = _s3_error(error)
            if _code_of(error) not in _REFUSED_UNDER_LOAD:
                raise failure from error
        else:
            _check_size(answer["ContentLength"], most)
            try:
                data = answer["Body"].read()
                if len(data) == answer["ContentLength"]:
                    return data
                failure = StoreError(ErrorKind.UNREACHABLE, "the store sends less than it says")
            except (BotoCoreError, OSError) as error:  # among them a checksum that is not right
                failure = _s3_error(error)
        time.sleep(pause)
    raise failure


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


def refusal(what: str, failure: StoreError) -> LesioncamError:
    """A store's failure outside any one image: the user's to mend, or the store's."""
    kind = RunBroke if failure.kind is ErrorKind.UNREACHABLE else InputError
    return kind(f"{what}: {failure.message}")


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise refusal(what, _s3_error(error)) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; others wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _local_error(error: OSError | ValueError) -> StoreError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return StoreError(ErrorKind.NOT_FOUND, "no such file")
    if isinstance(error, IsADirectoryError):
        return StoreError(ErrorKind.NOT_FOUND, "a directory, not a file")
    if isinstance(error, ValueError) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return StoreError(ErrorKind.NOT_FOUND, "not a possible name of a file")
    if isinstance(error, PermissionError):
        return StoreError(ErrorKind.PERMISSION, "the file may not be read")
    return StoreError(ErrorKind.UNREACHABLE, f"reading failed: {error.strerror}")
