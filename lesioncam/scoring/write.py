"""Write: finished rows -> a part file, durable from then on."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lesioncam.scoring.fetch import extent_of
from lesioncam.storage.lease import check_holder
from lesioncam.storage.results import Results
from lesioncam.telemetry import timed


def write_part(table: pa.Table, output: str, run_id: str, window: Any) -> pa.Table:
    """Write a block of finished rows as one part file; returns its receipt.

    The file is named by the run and the first row's number, so that a repeated task replaces its
    own file. Makes room in the window for as many images.

    Returns:
        A table of one row: the part's `outcomes` (`ok`, or the error kind) and their `counts`.
    """
    first, count = extent_of(table)
    rows = table.drop_columns("row")
    results = Results(output)
    check_holder(results.store, run_id)
    with timed("write", count):
        results.write_part(f"part-{run_id}-{first:09d}.parquet", rows)
    window.leave.remote(first, count)
    found = pc.value_counts(pc.coalesce(rows["error_kind"], rows["status"]))
    outcomes, counts = found.field("values").to_pylist(), found.field("counts").to_pylist()
    return pa.table({"outcomes": [outcomes], "counts": [counts]})
