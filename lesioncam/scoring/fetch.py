"""Fetch: pending images -> decoded images; the tasks of Ray that need no network, and no torch."""

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import pyarrow as pa
import ray

from lesioncam.scoring.read import READ_THREADS, read_canvas
from lesioncam.scoring.rows import block_range, with_canvases
from lesioncam.storage.listing import read_table
from lesioncam.storage.uris import open_store
from lesioncam.telemetry import timed


def read_pending(table: pa.Table, pending: str) -> pa.Table:
    """Names of files with pending images -> the manifest rows in them.

    Args:
        table: the names, in the column `name`.
        pending: where the files are.
    """
    store = open_store(pending)
    return pa.concat_tables([read_table(store, name) for name in table["name"].to_pylist()])


def fetch_and_decode(table: pa.Table, canvas_size: int, window: Any) -> pa.Table:
    """Manifest rows -> the same with `canvas`, the image's size and a status.

    Waits until the window has room for them. Threads fetch; processes of their own decode.
    """
    ray.get(window.acquire.remote(*block_range(table)))
    with timed("fetch", table.num_rows), ThreadPoolExecutor(READ_THREADS) as threads:
        files = (table[name].to_pylist() for name in ("uri", "size", "archived"))
        outcomes = threads.map(read_canvas, *files, repeat(canvas_size))
        return with_canvases(table, outcomes, canvas_size)
