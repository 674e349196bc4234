"""Runs: what one scoring run was asked, listed, has done and came to, under the output.

`_lesioncam/runs/<run_id>/` holds `run.json`, `manifest/` (what was listed), `todo/` (what was left
of it), `progress.json` while it runs and `summary.json` at its end.
"""

import json
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from lesioncam.storage.listing import (
    read_tables,
    write_manifest,
    write_table,
)
from lesioncam.storage.results import left_to_do
from lesioncam.storage.store import Entry, Store


def new_run_id() -> str:
    """Sortable by time, and distinct between runs that start in the same second."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


class RunRecord:
    """The records of one run."""

    def __init__(self, output: Store, run_id: str):
        self.run_id = run_id
        self._store = output.join(f"_lesioncam/runs/{run_id}")
        self._manifest = self._store.join("manifest")
        self._todo = self._store.join("todo")

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `run.json`, `progress.json` or `summary.json`."""
        self._store.write(f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary; nothing is in progress any more."""
        self.write("summary", summary)
        self._store.delete("progress.json")

    def record_listing(self, entries: Iterable[Entry]) -> int:
        """Write the manifest; returns how many images it lists."""
        return write_manifest(entries, self._manifest)

    def record_todo(self, written: pa.Table) -> int:
        """Write what is left of the manifest; returns how many images."""
        count = 0
        for number, table in enumerate(self.manifest()):
            left = left_to_do(table, written)
            if left.num_rows:
                write_table(self._todo, f"{number:06d}.parquet", left)
            count += left.num_rows
        return count

    def manifest(self) -> Iterable[pa.Table]:
        """What was listed, one table a manifest file."""
        return read_tables(self._manifest)

    @property
    def todo(self) -> Store:
        """Where what is left stands, as Parquet files in the manifest's schema."""
        return self._todo
