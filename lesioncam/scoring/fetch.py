"""Fetch: pending images -> decoded images; the tasks of Ray that need no network, and no torch."""

from typing import Any

import pyarrow as pa
import ray

from lesioncam.scoring.read import decode_rows
from lesioncam.scoring.rows import block_range
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
    """As `decode_rows`, once the window has room for them."""
    ray.get(window.acquire.remote(*block_range(table)))
    with timed("fetch", table.num_rows):
        return decode_rows(table, canvas_size)
