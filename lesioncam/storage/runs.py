"""Runs: what one scoring run was asked, listed, has done and resulted in, under the output.

`_lesioncam/runs/<run_id>/` holds `run.json`, `manifest/` (what was listed), `pending/` (what of it
had to be scored), `progress.json` while it runs and `summary.json` at its end.
"""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lesioncam.storage.listing import (
    MANIFEST_ROWS,
    read_table,
    read_tables,
    write_manifest,
    write_table,
)
from lesioncam.storage.pending import Partition
from lesioncam.storage.store import Entry, Store


def new_run_id() -> str:
    """Sortable by time, and distinct between runs that start in the same second."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Pending:
    """How much a run has to do.

    Attributes:
        listed: images, each counted once.
        pending: how many of them have to be scored.
        repeated: how many more times they were listed.
        unlisted: images that have a row but are not listed.
        after: a time later than `scored_at` of every row in the output.
    """

    listed: int
    pending: int
    repeated: int
    unlisted: int
    after: datetime


class RunRecord:
    """The records of one run.

    Attributes:
        pending: the store of the pending images, Arrow files in the manifest's schema.
    """

    def __init__(self, output: Store, run_id: str):
        self.run_id = run_id
        self._store = output.join(f"_lesioncam/runs/{run_id}")
        self._manifest = self._store.join("manifest")
        self.pending = self._store.join("pending")

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `run.json`, `progress.json` or `summary.json`."""
        self._store.write(f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary; nothing is in progress any more."""
        self.write("summary", summary)
        self._store.delete("progress.json")

    def record_listing(self, entries: Iterable[Entry]) -> int:
        """Write the manifest; returns how many rows it has."""
        return write_manifest(entries, self._manifest)

    def record_pending(self, partitions: Iterable[Partition], *, retry_failed: bool) -> Pending:
        """Write the rows of the manifest that have to be scored."""
        listed = pending = repeated = unlisted = 0
        newest = datetime.fromtimestamp(0, UTC)
        for partition in partitions:
            newest = max(newest, pc.max(partition.newest["scored_at"]).as_py() or newest)
            listed += partition.listed.num_rows
            repeated += partition.repeated
            unlisted += partition.unlisted().num_rows
            rows = partition.pending(retry_failed=retry_failed)
            for start in range(0, rows.num_rows, MANIFEST_ROWS):
                chunk = rows.slice(start, MANIFEST_ROWS)
                write_table(self.pending, f"{pending + start:012d}.arrow", chunk)
            pending += rows.num_rows
        after = newest + timedelta(microseconds=1)
        return Pending(listed, pending, repeated, unlisted, after)

    def manifest(self) -> Iterator[pa.Table]:
        """What was listed, one table a manifest file."""
        return read_tables(self._manifest)

    def sample(self, count: int) -> list[str]:
        """The uris of so many listed images, chosen at random, possibly repeated."""
        names = self._manifest.names()
        uris = []
        for _ in range(count):
            listed = read_table(self._manifest, secrets.choice(names))["uri"]
            uris.append(listed[secrets.randbelow(len(listed))].as_py())
        return uris
