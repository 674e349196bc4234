"""The Arrow schemas of the scores and of the manifest. A column is named in `lesioncam.columns`."""

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa

from lesioncam.columns import BOX_COLUMNS, probability_columns

TIMESTAMP = pa.timestamp("us", tz="UTC")
_NAME_FIELDS = (pa.field("uri", pa.string()), pa.field("image_id", pa.string()))
_OBJECT_FIELDS = (
    pa.field("size", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("last_modified", TIMESTAMP),
)
# What listing knows of an image. `row` numbers the images of a run and names part files.
# `archived` is null where the store does not say.
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        *_NAME_FIELDS,
        *_OBJECT_FIELDS,
        pa.field("archived", pa.bool_()),
    ]
)

# Arrow's type -> `pandas_type` and `numpy_type` in pandas metadata.
_PANDAS_TYPES = {
    pa.string(): ("unicode", "object"),
    pa.binary(): ("bytes", "object"),
    pa.float32(): ("float32", "float32"),
    pa.int32(): ("int32", "Int32"),
    pa.int64(): ("int64", "Int64"),
    pa.bool_(): ("bool", "boolean"),
    TIMESTAMP: ("datetimetz", "datetime64[us]"),
}


def scores_schema(classes: Sequence[str]) -> pa.Schema:
    """The schema of every score file: the same for any run and any block of it.

    Carries pandas metadata, so that `pandas.read_parquet` gives nullable `Int32`, `Int64` and
    `boolean` columns instead of float64 and object where rows are null.
    """
    probabilities = [
        pa.field(column, pa.float32())
        for stage in ("final", "stage1", "stage2")
        for column in probability_columns(classes, stage)
    ]
    fields = [
        *_NAME_FIELDS,
        pa.field("status", pa.string()),
        pa.field("error_kind", pa.string()),
        pa.field("error", pa.string()),
        pa.field("prediction", pa.string()),
        *probabilities,
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        *(pa.field(column, pa.int32()) for column in BOX_COLUMNS),
        pa.field("cam_flat", pa.bool_()),
        pa.field("cam", pa.binary()),
        *_OBJECT_FIELDS,
        pa.field("model", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("lesioncam_version", pa.string()),
        pa.field("scored_at", TIMESTAMP),
    ]
    return pa.schema(fields, metadata={b"pandas": _pandas_metadata(fields)})


def _pandas_metadata(fields: Iterable[pa.Field]) -> bytes:
    """Names every column: fastparquet takes the others for missing."""
    columns = [
        {
            "name": field.name,
            "field_name": field.name,
            "pandas_type": _PANDAS_TYPES[field.type][0],
            "numpy_type": _PANDAS_TYPES[field.type][1],
            "metadata": {"timezone": "UTC"} if field.type == TIMESTAMP else None,
        }
        for field in fields
    ]
    content = {"index_columns": [], "column_indexes": [], "columns": columns}
    return json.dumps(content).encode()
