"""Store: the interface of a local directory and of an `s3://` prefix.

A write appears whole or not at all. Knows nothing about images or scores.

Our own protocol instead of fsspec: it has the atomic swap that a lease needs, and errors with the
kinds of the schema.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow.fs

from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError, LesioncamError, RunFailedError

Enter = Callable[[str], bool]


def enter_all(_folder: str) -> bool:
    """List every folder."""
    return True


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
        size: bytes; None if unknown.
        etag: S3's, without quotes; None for local files.
        last_modified: UTC; None if unknown.
        archived: whether it has to be restored before it can be read; None if unknown.
        kept: the columns of its list that are kept, by name, as JSON; None if none are.
    """

    uri: str
    size: int | None = None
    etag: str | None = None
    last_modified: datetime | None = None
    archived: bool | None = None
    kept: str | None = None


class Store(Protocol):
    """A directory or prefix. Names are relative to it, with `/` between their parts."""

    uri: str

    def join(self, name: str) -> "Store":
        """The store below this one."""

    def entries(self, enter: Enter = enter_all) -> Iterator[Entry]:
        """Every file in this store, at any depth, always in the same order.

        Args:
            enter: whether to list a folder of this name; says no once for each folder.
        """

    def parallel_listings(self, enter: Enter = enter_all) -> list[Iterator[Entry]]:
        """The entries in any order, as iterators that threads may read in parallel."""

    def names(self) -> list[str]:
        """Names of the files at the top level, sorted."""

    def read(self, name: str) -> bytes:
        """Read a file whole; `StoreError` if that fails."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole; it appears complete or not at all, and replaces an older one."""

    def swap(self, name: str, expected: bytes | None, data: bytes) -> bool:
        """Write a file only if it holds `expected` (None: if there is none).

        Of several processes that try at once, one succeeds.

        Returns:
            Whether it was written.
        """

    def move(self, name: str, target: str) -> bool:
        """Give a file another name in this store; it appears there complete or not at all.

        Returns:
            False if there is no such file; then nothing appears, however late the call arrives.
        """

    def read_quickly(self, name: str) -> bytes | None:
        """Read a file whole with few retries; None if there is none."""

    def delete(self, name: str) -> None:
        """Remove a file; no error if there is none."""

    def exists(self, name: str) -> bool:
        """Whether the file exists."""

    def check_writable(self) -> None:
        """Raise a `LesioncamError` unless a file can be written, by a name pyarrow accepts too."""
        self.arrow()
        name = f"_writable-{os.getpid()}"
        self.write(name, b"")
        self.delete(name)

    def remove_temporary_files(self) -> None:
        """Remove the unfinished files of killed writers; no other process may be writing."""
        return

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """A filesystem of pyarrow, and the path of this store in it."""


ARCHIVED = "the object is archived; restore it"


def check_size(size: int, max_bytes: int | None) -> None:
    """Raise a `StoreError` for more than `max_bytes` bytes; None for no limit."""
    if max_bytes is not None and size > max_bytes:
        limit = f"{max_bytes / 2**30:g} GiB"
        raise StoreError(ErrorKind.TOO_LARGE, f"{size:,} bytes; the limit is {limit}")


def stat_or_unknown(stat: Callable[[str], Entry], uri: str) -> Entry:
    """The entry by `stat`, or one without size and time: reading the file will report why."""
    try:
        return stat(uri)
    except StoreError:
        return Entry(uri)


def refusal(what: str, failure: StoreError) -> LesioncamError:
    """The error that reports a store's failure outside any one image."""
    if failure.kind is ErrorKind.UNREACHABLE:
        return RunFailedError(f"{what}: {failure.message}; run the same command again")
    return InputError(f"{what}: {failure.message}")


def read_if_there(store: Store, name: str) -> bytes | None:
    """Read a file whole with all retries; None if there is none."""
    try:
        return store.read(name)
    except StoreError as error:
        if error.kind is ErrorKind.NOT_FOUND:
            return None
        raise refusal(f"cannot read from {store.uri}", error) from error
