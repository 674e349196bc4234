"""Local: a directory, on this machine or mounted, as a store.

Knows nothing about images or scores.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

import pyarrow.fs

from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError, LesioncamError, RunFailedError
from lesioncam.storage.store import (
    Enter,
    Entry,
    Store,
    StoreError,
    check_size,
    enter_all,
    read_if_there,
    stat_or_unknown,
)

_TEMPORARY, _LOCK = ".tmp-", ".lock-"
_MAX_LISTINGS = 32  # that a directory's folders are divided between
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class LocalStore(Store):
    """A local directory; created by the first write."""

    def __init__(self, path: str):
        self._root = Path(os.path.abspath(path))  # noqa: PTH100  takes `..` out, follows no link
        self.uri = str(self._root)

    def join(self, name: str) -> "LocalStore":
        return LocalStore(str(self._root / name))

    def entries(self, enter: Enter = enter_all) -> Iterator[Entry]:
        for folder in self._folders(enter):
            for item in sorted(self._files(folder), key=lambda item: item.name):
                yield _entry_of(item)

    def parallel_listings(self, enter: Enter = enter_all) -> list[Iterator[Entry]]:
        """Memory holds the folders' names; a folder's files are listed when they are asked for."""
        folders = list(self._folders(enter))
        count = min(_MAX_LISTINGS, len(folders))
        return [self._entries_in(folders[number::count]) for number in range(count)]

    def names(self) -> list[str]:
        return sorted(item.name for item in self._files(self.uri))

    def _entries_in(self, folders: Iterable[str]) -> Iterator[Entry]:
        return (_entry_of(item) for folder in folders for item in self._files(folder))

    def _folders(self, enter: Enter) -> Iterator[str]:
        """This folder and all below it in the order of names, each once even if linked twice."""
        seen: set[tuple[int, int]] = set()
        waiting = [self.uri]
        while waiting:
            folder = waiting.pop()
            try:
                stat = Path(folder).stat()
            except OSError as error:
                self._refuse_unlisted(error)
                continue
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                yield folder
                inner = (item for item in self._scan(folder) if self._is_folder(item))
                waiting += sorted((item.path for item in inner if enter(item.name)), reverse=True)

    def _files(self, folder: str) -> "Iterator[os.DirEntry[str]]":
        for item in self._scan(folder):
            if not self._is_folder(item) and not item.name.startswith((_TEMPORARY, _LOCK)):
                yield item

    def _scan(self, folder: str) -> "Iterator[os.DirEntry[str]]":
        try:
            with os.scandir(folder) as items:
                yield from items
        except OSError as error:
            self._refuse_unlisted(error)

    def _is_folder(self, item: "os.DirEntry[str]") -> bool:
        try:
            return item.is_dir()
        except PermissionError as error:  # a link into a folder without access
            self._refuse_unlisted(error)
        except OSError:  # a link to itself: reading it will report why
            pass
        return False

    def _refuse_unlisted(self, error: OSError) -> None:
        """Images in a folder that cannot be listed would be missing without a trace."""
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"cannot list all of {self.uri}: {error.strerror}") from error

    def read(self, name: str) -> bytes:
        return read_local(str(self._root / name))

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
            with _locked(target.with_name(f"{_LOCK}{target.name}")):
                if (target.read_bytes() if target.exists() else None) != expected:
                    return False
                self._write(target, data)
                return True
        except OSError as error:
            raise self._unwritable(error) from error

    def move(self, name: str, target: str) -> bool:
        path = self._root / target
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            (self._root / name).replace(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unwritable(error) from error
        return True

    def read_quickly(self, name: str) -> bytes | None:
        return read_if_there(self, name)

    def _unwritable(self, error: OSError) -> LesioncamError:
        """A full disk fails the run; a directory that cannot be written to is bad input."""
        message = f"cannot write to {self.uri}: {error.strerror}"
        if error.errno in _TRANSIENT:
            return RunFailedError(f"{message}; fix that and run the same command again")
        return InputError(message)

    def delete(self, name: str) -> None:
        try:
            (self._root / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def remove_temporary_files(self) -> None:
        for file in self._root.glob(f"{_TEMPORARY}*"):
            self.delete(file.name)

    def exists(self, name: str) -> bool:
        return (self._root / name).is_file()

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return pyarrow.fs.LocalFileSystem(), str(self._root)


def local_path(uri: str) -> str:
    """The path of a local `uri`; one with `file://` is unescaped."""
    if not uri.startswith("file://"):
        return uri
    return unquote(urlsplit(uri).path, errors="surrogateescape")


def local_uri(path: str) -> str:
    """The `uri` of a path: the path itself, or `file://` and escapes if it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"file://{quote(os.fsencode(path))}"
    return path


def read_local(path: str, max_bytes: int | None = None) -> bytes:
    """Read a file of at most `max_bytes` bytes; `StoreError` as in `read_uri`."""
    try:
        with open(path, "rb", opener=_open_nonblocking) as file:
            check_size(_regular(os.fstat(file.fileno())).st_size, max_bytes)
            return file.read()
    except (OSError, ValueError) as error:
        raise _local_error(error) from error


@contextmanager
def open_local(path: str) -> Iterator[BinaryIO]:
    """Open a file; `StoreError` as in `read_uri`."""
    with ExitStack() as files:
        try:
            file = files.enter_context(Path(path).open("rb"))
        except (OSError, ValueError) as error:
            raise _local_error(error) from error
        yield file


def stat_local(path: str) -> Entry:
    """The entry of one file; `StoreError` as in `read_uri`."""
    try:
        stat = _regular(Path(path).stat())
    except (OSError, ValueError) as error:
        raise _local_error(error) from error
    modified = datetime.fromtimestamp(stat.st_mtime_ns // 1000 / 1e6, UTC)
    return Entry(local_uri(path), stat.st_size, None, modified)


def _entry_of(item: "os.DirEntry[str]") -> Entry:
    return stat_or_unknown(lambda uri: stat_local(local_path(uri)), local_uri(item.path))


def _regular(stat: os.stat_result) -> os.stat_result:
    """The same, unless it is a device or a pipe, which may block its reader or never end."""
    if not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):
        raise StoreError(ErrorKind.NOT_FOUND, "a device or a pipe, not a file")
    return stat


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a file, or a pipe without waiting for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock, also against other machines: NFS locks writable files."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
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
