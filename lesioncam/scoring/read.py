"""Read: listed files -> their bytes -> canvases.

Knows nothing about Ray or networks: the processes that fetch and decode start without torch.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import pyarrow as pa

from lesioncam.columns import ErrorKind
from lesioncam.scoring.rows import Outcome, with_canvases
from lesioncam.storage.store import ARCHIVED, StoreError
from lesioncam.storage.uris import MAX_BYTES, one_large_file, read_uri, stat_uri
from lesioncam.vision.decode import DecodeError
from lesioncam.vision.decoder import Decoders

READ_THREADS = 8  # of one process
_ATTEMPTS = 3  # at a file that comes shorter than it is
_DECODERS = Decoders(2)  # of this process: decodes take the memory


def decode_rows(table: pa.Table, canvas_size: int) -> pa.Table:
    """Manifest rows -> the same with `canvas`, the image's size and a status.

    Threads fetch; processes of their own decode.
    """
    with ThreadPoolExecutor(READ_THREADS) as threads:
        files = (table[name].to_pylist() for name in ("uri", "size", "archived"))
        outcomes = threads.map(read_canvas, *files, repeat(canvas_size))
        return with_canvases(table, outcomes, canvas_size)


def read_canvas(uri: str, size: int | None, archived: bool | None, canvas_size: int) -> Outcome:
    """Read and decode a listed file; an image that fails gives its error.

    Args:
        uri: of the file.
        size: in bytes, as it was listed; None if unknown.
        archived: whether it was listed as archived: then it is not requested.
        canvas_size: the side of the canvas, in pixels.
    """
    if archived:
        return StoreError(ErrorKind.ARCHIVED, ARCHIVED)
    try:
        with one_large_file(size):
            return decode_bytes(read_listed(uri, size), canvas_size)
    except StoreError as error:
        return error


def decode_bytes(data: bytes, canvas_size: int) -> Outcome:
    """Decode a file's bytes in a process of its own; an image that fails gives its error."""
    try:
        return _DECODERS.decode(data, canvas_size)
    except DecodeError as error:
        return error


def read_listed(uri: str, size: int | None) -> bytes:
    """Read a listed file whole.

    Args:
        uri: of the file.
        size: in bytes, as it was listed; None if unknown.

    Raises:
        StoreError: `unreachable` for a listed file that is not there, as it may come back, and for
            one that comes shorter than it is; `too_large` for more than `MAX_BYTES`.
    """
    try:
        for _ in range(_ATTEMPTS):
            data = read_uri(uri, MAX_BYTES)
            # A replaced file is scored as it is now; its row keeps the version that was listed, so
            # that the next run scores it again. Any other was cut short on the way.
            if size is None or len(data) == size or len(data) == stat_uri(uri).size:
                return data
    except StoreError as error:
        if error.kind is ErrorKind.NOT_FOUND and size is not None:  # the file or its disk is gone
            raise StoreError(ErrorKind.UNREACHABLE, "it was listed, but is not there") from error
        raise
    raise StoreError(ErrorKind.UNREACHABLE, "the store sends less than it has")
