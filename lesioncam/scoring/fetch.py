"""Fetch: what is left to do -> decoded images, and their pixels as columns.

Knows nothing about networks: the processes that fetch and decode start without torch.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from lesioncam.columns import ErrorKind, Status
from lesioncam.storage.listing import read_table
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import open_store, read_uri, stat_uri
from lesioncam.telemetry import timed
from lesioncam.vision.decode import DecodeError
from lesioncam.vision.decoder import Decoders

MAX_BYTES = 2**30  # of a source file; larger ones are not read
_FETCH_THREADS = 8
_LARGE = 2**26  # bytes; of files listed larger a worker has one in memory at a time
_LARGE_ONE = threading.Lock()
_READS = 3  # of a file that comes shorter than it is
_DECODERS = Decoders(2)  # of one worker process: decodes take the memory

_DECODED_FIELDS = (
    pa.field("status", pa.string()),
    pa.field("error_kind", pa.string()),
    pa.field("error", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
)


def read_todo(table: pa.Table, todo: str) -> pa.Table:
    """File names of what is left to do -> the manifest rows in them."""
    store = open_store(todo)
    return pa.concat_tables([read_table(store, name) for name in table["name"].to_pylist()])


def fetch_and_decode(table: pa.Table, canvas_size: int, window: Any) -> pa.Table:
    """Manifest rows -> the same with `canvas`, the image's size, and a status.

    Waits until there is room for them in the window. Threads fetch; what they fetched is decoded
    in processes of its own.
    """
    ray.get(window.enter.remote(*extent_of(table)))
    with timed("fetch", table.num_rows):
        return _decoded(table, canvas_size)


def _decoded(table: pa.Table, canvas_size: int) -> pa.Table:
    canvases = np.zeros((table.num_rows, canvas_size, canvas_size, 3), np.uint8)

    def one(place: int, uri: str, size: int | None) -> dict[str, Any]:
        try:
            with _LARGE_ONE if (size or 0) > _LARGE else nullcontext():
                decoded = _DECODERS.decode(fetch(uri, size), canvas_size)
        except (StoreError, DecodeError) as error:
            width, height = getattr(error, "size", None) or (None, None)
            return {
                "status": Status.FAILED,
                "error_kind": error.kind,
                "error": error.message,
                "width": width,
                "height": height,
            }
        canvases[place] = decoded.canvas
        return {"status": Status.OK, "width": decoded.width, "height": decoded.height}

    with ThreadPoolExecutor(_FETCH_THREADS) as threads:
        sources = (table["uri"].to_pylist(), table["size"].to_pylist())
        outcomes = list(threads.map(one, range(table.num_rows), *sources))
    for field in _DECODED_FIELDS:
        values = [outcome.get(field.name) for outcome in outcomes]
        table = table.append_column(field, pa.array(values, field.type))
    return table.append_column("canvas", pixel_column(canvases))


def fetch(uri: str, size: int | None) -> bytes:
    """Read a listed file whole.

    Args:
        uri: of the file.
        size: in bytes, as it was listed; None if it could not be found out.

    Raises:
        StoreError: what was listed and is not there is `unreachable`, as it may come back; likewise
            what comes shorter than it is. `too_large` for more than `MAX_BYTES`.
    """
    try:
        for _ in range(_READS):
            data = read_uri(uri, MAX_BYTES)
            # One that was replaced is scored as it is now; its row keeps the version that was
            # listed, so that the next run does it again. Else it was cut short on the way.
            if size is None or len(data) == size or len(data) == stat_uri(uri).size:
                return data
    except StoreError as error:
        if error.kind is ErrorKind.NOT_FOUND and size is not None:  # it, or the disk it was on
            raise StoreError(ErrorKind.UNREACHABLE, "it was listed, but is not there") from error
        raise
    raise StoreError(ErrorKind.UNREACHABLE, "the store sends less than it has")


def extent_of(table: pa.Table) -> tuple[int, int]:
    """The number of the first row, and how many there are."""
    return pc.min(table["row"]).as_py(), table.num_rows


def pixel_column(pixels: np.ndarray) -> pa.Array:
    """(N, side, side, 3) uint8 -> a fixed-size binary column of N rows, without copying.

    Arrow and Ray move such columns without copying them either.
    """
    width = int(np.prod(pixels.shape[1:]))
    data = pa.py_buffer(np.ascontiguousarray(pixels))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(pixels), [None, data])


def pixels_of(column: pa.ChunkedArray, side: int) -> np.ndarray:
    """A fixed-size binary column -> (N, side, side, 3) uint8."""
    width = side * side * 3
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # an empty column has no chunk to combine
        return np.zeros((0, side, side, 3), np.uint8)
    flat = np.frombuffer(array.buffers()[1], np.uint8)
    flat = flat[array.offset * width : (array.offset + len(array)) * width]
    return flat.reshape(len(array), side, side, 3)
