"""The Arrow schemas of the scores and of the manifest. A column is named in `lesioncam.columns`."""

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa

from lesioncam.columns import BOX_COLUMNS, STAGE_PREFIXES, flag_column, probability_columns
from lesioncam.errors import InputError

STRINGS = pa.list_(pa.field("element", pa.string()))  # named as Parquet gives it back
TIMESTAMP = pa.timestamp("us", tz="UTC")
_NAME_FIELDS = (pa.field("uri", pa.string()), pa.field("image_id", pa.string()))
_OBJECT_FIELDS = (
    pa.field("size", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("last_modified", TIMESTAMP),
)
# What listing knows of an image. `row` numbers the images of a run and names part files.
# `archived` is null where the store does not say. `kept` holds the kept columns of a list as one
# JSON object, so that none of them can be taken for a column of the manifest or the pipeline.
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        *_NAME_FIELDS,
        *_OBJECT_FIELDS,
        pa.field("archived", pa.bool_()),
        pa.field("kept", pa.string()),
    ]
)

_PRECISION = b"lesioncam.precision"

# Arrow's type -> `pandas_type` and `numpy_type` in pandas metadata.
_PANDAS_TYPES = {
    pa.string(): ("unicode", "object"),
    pa.binary(): ("bytes", "object"),
    STRINGS: ("list[unicode]", "object"),
    pa.float32(): ("float32", "float32"),
    pa.int32(): ("int32", "Int32"),
    pa.int64(): ("int64", "Int64"),
    pa.bool_(): ("bool", "boolean"),
    TIMESTAMP: ("datetimetz", "datetime64[us]"),
}


def scores_schema(
    classes: Sequence[str], kept: Iterable[str] = (), precision: str | None = None
) -> pa.Schema:
    """The schema of every score file: the same for any run and any block of it.

    Carries pandas metadata, so that `pandas.read_parquet` gives nullable `Int32`, `Int64` and
    `boolean` columns instead of float64 and object where rows are null.

    Args:
        classes: the bundle's.
        kept: the columns of a list that are kept; in the order of their names they come last.
        precision: that the rows were computed in, for files: the schema's metadata says it.
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
        *(pa.field(flag_column(name), pa.bool_()) for name in classes),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        *(pa.field(column, pa.int32()) for column in BOX_COLUMNS),
        pa.field("cam_flat", pa.bool_()),
        pa.field("cam", pa.binary()),
        pa.field("quality", STRINGS),
        *_OBJECT_FIELDS,
        pa.field("model", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("lesioncam_version", pa.string()),
        pa.field("scored_at", TIMESTAMP),
        *(pa.field(name, pa.string()) for name in sorted(kept)),
    ]
    metadata = {b"pandas": _pandas_metadata(fields)}
    if precision is not None:
        metadata[_PRECISION] = precision.encode()
    return pa.schema(fields, metadata=metadata)


def precision_of(schema: pa.Schema) -> str | None:
    """The precision that a score file's rows were computed in; None where it does not say."""
    value: bytes | None = (schema.metadata or {}).get(_PRECISION)
    return None if value is None else value.decode(errors="replace")


def check_kept_columns(names: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse columns of a list that the scores cannot have beside their own.

    Names that differ in the case of letters only count as one, as they do in DuckDB and Spark.

    Raises:
        InputError: a name is empty, occurs twice, or is that of a column of the scores.
    """
    own = {name.lower() for name in scores_schema(classes).names}
    seen: set[str] = set()
    for name in names:
        if not name:
            raise InputError("--keep-columns: a name is empty; put one comma between two names")
        if name.lower() in seen:
            raise InputError(f"--keep-columns: {name!r} is named twice; name each column once")
        if name.lower() in own or name.startswith(tuple(STAGE_PREFIXES.values())):
            raise InputError(
                f"--keep-columns: {name!r} is a name of the scores' own columns; rename the "
                f"column in the list"
            )
        seen.add(name.lower())


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
