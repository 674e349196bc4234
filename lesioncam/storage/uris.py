"""URIs: the store that a flag names, and one file or object by its `uri`."""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

from lesioncam.errors import InputError
from lesioncam.storage.local import LocalStore, local_path, open_local, read_local, stat_local
from lesioncam.storage.s3 import S3Store, open_s3, read_s3, stat_s3
from lesioncam.storage.store import Entry, Store

MAX_BYTES = 2**30  # of an image file; larger ones are not read
_LARGE_BYTES = 2**26  # of files of more, a process holds one in memory at a time
_LARGE_FILE = threading.Lock()


def open_store(uri: str) -> Store:
    """The store at a local path, `file://` or `s3://bucket/prefix`."""
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "s3":
        return S3Store(uri)
    if scheme == "file":
        return LocalStore(local_path(uri))
    if scheme:
        raise InputError(f"{uri}: {scheme}:// is not supported; give a local path or s3://")
    return LocalStore(uri)


def read_uri(uri: str, max_bytes: int | None = None) -> bytes:
    """Read one file or object by its `uri`.

    Args:
        uri: of the file or object.
        max_bytes: a larger file is refused; None for no limit.

    Raises:
        StoreError: with kind `not_found`, `permission`, `unreachable` or `too_large`.
    """
    return read_s3(uri, max_bytes) if _is_s3(uri) else read_local(local_path(uri), max_bytes)


def one_large_file(size: int | None) -> AbstractContextManager[object]:
    """While a file is in memory: waits until it is the only large one, if it is large.

    Args:
        size: of the file in bytes, as it was listed; None if unknown.
    """
    return _LARGE_FILE if (size or 0) > _LARGE_BYTES else nullcontext()


def open_uri(uri: str) -> AbstractContextManager[BinaryIO]:
    """Open one file or object of any size; `StoreError` as in `read_uri`."""
    return open_s3(uri) if _is_s3(uri) else open_local(local_path(uri))


def stat_uri(uri: str) -> Entry:
    """The entry of one `uri`; `StoreError` as in `read_uri`."""
    return stat_s3(uri) if _is_s3(uri) else stat_local(local_path(uri))


def _is_s3(uri: str) -> bool:
    return uri.startswith("s3://")
