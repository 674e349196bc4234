"""Rows: the columns that the steps of the pipeline append."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from lesioncam.columns import ErrorKind, Quality, Status
from lesioncam.schema import MANIFEST_SCHEMA, scores_schema
from lesioncam.scoring.rows import (
    append_scattered,
    block_range,
    finish,
    good_rows,
    pixel_column,
    pixels_of,
    with_canvases,
)
from lesioncam.storage.store import StoreError
from lesioncam.vision.decode import Decoded, DecodeError
from tests.conftest import CLASSES

PROVENANCE = ("model", "run_id", "lesioncam_version", "scored_at")


def manifest(count: int, first: int = 0) -> pa.Table:
    rows = [{"row": row, "uri": f"/{row}.jpg"} for row in range(first, first + count)]
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def with_nulls(table: pa.Table) -> pa.Table:
    """Manifest rows with what the networks say of them, all null."""
    for field in scores_schema(CLASSES):
        if field.name not in (*MANIFEST_SCHEMA.names, *PROVENANCE):
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def test_pixels_come_back_from_their_column() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 7, 3), np.uint8)
    column = pa.chunked_array([pixel_column(pixels[:2]), pixel_column(pixels[2:])])
    assert np.array_equal(pixels_of(column, 7), pixels)
    assert np.array_equal(pixels_of(column.slice(1, 3), 7), pixels[1:4])
    assert pixels_of(column.slice(1, 0), 7).shape == (0, 7, 7, 3)


def test_outcomes_become_columns() -> None:
    white = np.full((4, 4, 3), 255, np.uint8)
    outcomes = (
        StoreError(ErrorKind.UNREACHABLE, "no answer"),
        Decoded(white, 640, 480, (Quality.BLURRED, Quality.OVEREXPOSED)),
        DecodeError(ErrorKind.TRUNCATED, "cut off", (64, 48)),
    )
    table = with_canvases(manifest(3), outcomes, 4)
    assert table["status"].to_pylist() == [Status.FAILED, Status.OK, Status.FAILED]
    assert table["error_kind"].to_pylist() == ["unreachable", None, "truncated"]
    assert table["error"].to_pylist() == ["no answer", None, "cut off"]
    assert table["width"].to_pylist() == [None, 640, 64]
    assert table["height"].to_pylist() == [None, 480, 48]
    assert table["quality"].to_pylist() == [None, ["blurred", "overexposed"], None]
    assert good_rows(table).to_pylist() == [1]
    assert pixels_of(table["canvas"], 4).max(axis=(1, 2, 3)).tolist() == [0, 255, 0]


def test_values_of_some_rows_are_null_in_the_others() -> None:
    values = {"x": pa.array([7, 8], pa.int32())}
    table = append_scattered(manifest(4), pa.array([3, 1]), values)
    assert table["x"].to_pylist() == [None, 8, None, 7]


def test_a_finished_row_has_its_provenance_and_is_no_older_than_it_may_be() -> None:
    schema = scores_schema(CLASSES)
    table = with_nulls(manifest(2, first=5))
    assert block_range(table) == (5, 2)
    now = datetime.now(UTC)
    for not_before in (now - timedelta(days=1), now + timedelta(days=1)):
        rows = finish(table, CLASSES, model="m", run_id=None, not_before=not_before)
        assert rows.schema.equals(schema, check_metadata=True)
        assert (rows["model"][0].as_py(), rows["run_id"][0].as_py()) == ("m", None)
        assert rows["scored_at"][0].as_py() >= max(now, not_before)


def test_kept_columns_of_any_name_are_the_last_of_a_finished_row() -> None:
    kept = [{"row": "a", "archived": None}, {"row": "b", "archived": "no"}]
    rows = [{"row": row, "kept": json.dumps(one)} for row, one in enumerate(kept)]
    table = pa.Table.from_pylist(rows, MANIFEST_SCHEMA)
    now = datetime.now(UTC)
    finished = finish(with_nulls(table), CLASSES, model="m", run_id=None, not_before=now)
    schema = scores_schema(CLASSES, ["archived", "row"])
    assert finished.schema.equals(schema, check_metadata=True)
    assert finished.select(["row", "archived"]).to_pylist() == kept
