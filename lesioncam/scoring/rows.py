"""Rows: the columns of a table on its way through the pipeline.

manifest rows -> with canvases and a status -> with crops -> finished, in the scores' schema. A
failed image is a row like any other. Knows nothing about Ray, networks or files.

Shapes: `N` rows, `S` canvas size, `K` classes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lesioncam import __version__
from lesioncam.columns import Status, flag_column, probability_columns
from lesioncam.schema import STRINGS, scores_schema
from lesioncam.settings import ModelSettings
from lesioncam.storage.store import StoreError
from lesioncam.vision.decode import Decoded, DecodeError

Outcome = Decoded | DecodeError | StoreError

_OUTCOME_FIELDS = (
    pa.field("status", pa.string()),
    pa.field("error_kind", pa.string()),
    pa.field("error", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("quality", STRINGS),
)


def with_canvases(table: pa.Table, outcomes: Iterable[Outcome], canvas_size: int) -> pa.Table:
    """Append what became of each row's image.

    Args:
        table: manifest rows.
        outcomes: for each row a decoded image, or why there is none.
        canvas_size: the side of a canvas, in pixels.

    Returns:
        The same with `status`, `error_kind`, `error`, `width`, `height`, `quality` and `canvas`,
        which is black where the image failed.
    """
    canvases = np.zeros((table.num_rows, canvas_size, canvas_size, 3), np.uint8)
    columns = []
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, Decoded):
            canvases[row] = outcome.canvas
        columns.append(_outcome_columns(outcome))
    for field in _OUTCOME_FIELDS:
        values = [column.get(field.name) for column in columns]
        table = table.append_column(field, pa.array(values, field.type))
    return table.append_column("canvas", pixel_column(canvases))


def _outcome_columns(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Decoded):
        return {
            "status": Status.OK,
            "width": outcome.width,
            "height": outcome.height,
            "quality": outcome.quality,
        }
    size = outcome.size if isinstance(outcome, DecodeError) else None
    width, height = size or (None, None)
    return {
        "status": Status.FAILED,
        "error_kind": outcome.kind,
        "error": outcome.message,
        "width": width,
        "height": height,
    }


def good_rows(table: pa.Table) -> pa.Array:
    """The indices of the rows whose status is ok."""
    return pa.array(np.flatnonzero(pc.equal(table["status"], Status.OK).to_numpy()), pa.int64())


def append_scattered(table: pa.Table, rows: pa.Array, columns: Mapping[str, pa.Array]) -> pa.Table:
    """Append columns that have values in these `rows` only, and null in the others."""
    source = np.full(table.num_rows, -1)
    source[rows.to_numpy()] = np.arange(len(rows))
    indices = pa.array(source, pa.int64(), mask=source < 0)
    for name, values in columns.items():
        table = table.append_column(name, values.take(indices))
    return table


def probability_arrays(
    probabilities: np.ndarray, classes: Sequence[str], stage: str
) -> dict[str, pa.Array]:
    """A stage's columns by name, from its (N, K) probabilities."""
    names = probability_columns(classes, stage)
    return {name: pa.array(probabilities[:, k], pa.float32()) for k, name in enumerate(names)}


def flag_arrays(final: np.ndarray, settings: ModelSettings) -> dict[str, pa.Array]:
    """The flags' columns by name, from the (N, K) final probabilities.

    Null for a class without an operating point.
    """
    thresholds = settings.thresholds
    return {
        flag_column(name): pa.array(final[:, k].astype(np.float64) >= thresholds[name])
        if name in thresholds
        else pa.nulls(len(final), pa.bool_())
        for k, name in enumerate(settings.classes)
    }


def finish(
    table: pa.Table,
    classes: Sequence[str],
    *,
    model: str,
    run_id: str | None,
    not_before: datetime,
    precision: str | None = None,
) -> pa.Table:
    """Add the provenance and the kept columns; the result has the scores' schema.

    Args:
        table: classified rows.
        classes: the bundle's.
        model: the bundle's digest.
        run_id: of the run; None outside of one.
        not_before: the earliest `scored_at`, whatever this machine's clock says, so that a row is
            newer than all that were there before its run.
        precision: that the rows were computed in, for files.
    """
    schema = scores_schema(classes)
    provenance = {
        "model": model,
        "run_id": run_id,
        "lesioncam_version": __version__,
        "scored_at": max(not_before, datetime.now(UTC)),
    }
    for name, value in provenance.items():
        array = pa.repeat(pa.scalar(value, schema.field(name).type), table.num_rows)
        table = table.append_column(name, array)
    kept = [json.loads(text or "{}") for text in table["kept"].to_pylist()]
    names = sorted(kept[0]) if kept else []
    table = table.select(schema.names)
    for name in names:
        table = table.append_column(name, pa.array([row[name] for row in kept], pa.string()))
    return table.cast(scores_schema(classes, names, precision))


def block_range(table: pa.Table) -> tuple[int, int]:
    """The number of a block's first row in its run, and how many rows the block has."""
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
