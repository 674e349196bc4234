"""Remote zip: single files out of a zip in a public bucket; the rest of it is not transferred.

Knows nothing about images or data sets.
"""

import io
import struct
import threading
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import Any

from lesioncam.storage.s3 import read_public_range
from lesioncam.storage.store import Entry

_TAIL_BYTES = 2**20  # from the end; holds the zip's directory of some 8,000 files
_HEADER_BYTES = 2**10  # before a file's content; what is longer takes another request
# What zipfile raises for damaged files, beside its own error.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError)


class ZipError(Exception):
    """A zip, or a file in it, that cannot be read, or must not be; says why."""


class RemoteZip:
    """A zip in a public bucket, in the version that `entry` shows. Threads may share it.

    Every method raises:
        StoreError: as `read_public_range` does.
        ZipError: the zip is damaged.
    """

    def __init__(self, entry: Entry):
        self._entry = entry
        self._size = entry.size or 0
        self._tail = read_public_range(entry, max(0, self._size - _TAIL_BYTES), self._size)
        self._opened = threading.local()

    def members(self) -> list[zipfile.ZipInfo]:
        """The files in it, without folders.

        Raises:
            ZipError: also if the name of one points out of the zip.
        """
        archive, _ = self._open()
        members = [one for one in archive.infolist() if not one.is_dir()]
        for member in members:
            if _is_unsafe(member.filename):
                raise ZipError(f"the name {member.filename!r} points out of it")
        return members

    def read(self, member: zipfile.ZipInfo) -> bytes:
        """The content of a file, checked against its CRC-32."""
        archive, file = self._open()
        start = max(0, member.header_offset)
        file.hold(start, start + _HEADER_BYTES + member.compress_size)
        try:
            return archive.read(member)
        except (*_DAMAGE, RuntimeError) as error:  # the last: encrypted, or compressed otherwise
            raise ZipError(f"{member.filename}: {error}") from error
        finally:
            file.release()

    def _open(self) -> tuple[zipfile.ZipFile, "_PartlyHeldFile"]:
        """This thread's own: a ZipFile reads one file at a time."""
        if not hasattr(self._opened, "pair"):
            file = _PartlyHeldFile(self._entry, self._size, self._tail)
            try:
                self._opened.pair = zipfile.ZipFile(file), file
            except _DAMAGE as error:
                raise ZipError(str(error)) from error
        pair: tuple[zipfile.ZipFile, _PartlyHeldFile] = self._opened.pair
        return pair


class _PartlyHeldFile(io.RawIOBase):
    """An object as a file, of which one part is in memory.

    Args:
        entry: of the object.
        size: of the object.
        tail: its end, the part that is held at first.
    """

    def __init__(self, entry: Entry, size: int, tail: bytes):
        super().__init__()
        self._entry, self._size = entry, size
        self._start, self._part = size - len(tail), tail
        self._position = 0

    def hold(self, start: int, end: int) -> None:
        """Request a part; what is read within it takes no other request."""
        self._part = read_public_range(self._entry, start, max(start, min(end, self._size)))
        self._start = start

    def release(self) -> None:
        """Hold nothing."""
        self._part = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError("seek before the start of the file")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        offset = self._position - self._start
        if count and not 0 <= offset <= len(self._part) - count:
            self.hold(self._position, self._position + count)
            offset = 0
        buffer[:count] = self._part[offset : offset + count]
        self._position += count
        return count


def _is_unsafe(name: str) -> bool:
    """Whether a name points out of the folder that a zip is extracted to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in name
