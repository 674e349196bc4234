"""Write: classified rows -> a part file, durable from then on."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lesioncam.scoring.rows import block_range, finish
from lesioncam.storage.lease import check_worker
from lesioncam.storage.results import Results
from lesioncam.telemetry import timed


def write_part(table: pa.Table, window: Any, **arguments: Any) -> pa.Table:
    """As `write_rows`; makes room for the block in the window."""
    first, count = block_range(table)
    with timed("write", count):
        receipt = write_rows(table, **arguments)
    window.release.remote(first, count)
    return receipt


def write_rows(
    table: pa.Table,
    output: str,
    classes: Sequence[str],
    model: str,
    run_id: str,
    not_before: datetime,
    precision: str,
) -> pa.Table:
    """Finish a block of rows and write it as one part file.

    The file is named by the run and the block's first row, so that a repeated task replaces its
    own file. The arguments are those of `lesioncam.scoring.rows.finish`.

    Returns:
        A receipt, a table of one row: the part's `outcomes` (`ok`, or the error kind) and their
        `counts`.
    """
    first, _ = block_range(table)
    rows = finish(
        table, classes, model=model, run_id=run_id, not_before=not_before, precision=precision
    )
    results = Results(output)
    results.write_part(
        f"part-{run_id}-{first:09d}.parquet",
        rows,
        check=lambda: check_worker(results.store, run_id),
    )
    found = pc.value_counts(pc.coalesce(rows["error_kind"], rows["status"]))
    outcomes, counts = found.field("values").to_pylist(), found.field("counts").to_pylist()
    return pa.table({"outcomes": [outcomes], "counts": [counts]})
