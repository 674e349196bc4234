"""The words every floor shares: statuses, error kinds, column names and the Arrow schemas.

Knows nothing about files, Ray or torch. A column is named here and nowhere else.
"""

import json
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

import pyarrow as pa

from lesioncam.errors import InputError

DEFAULT_REST_CLASS = "nevus"
IMAGE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
)  # compared in lower case
IGNORED_ENDING = "_superpixels.png"  # the ISIC archive keeps these beside its images


class Status(StrEnum):
    """Whether an image could be scored."""

    OK = "ok"
    FAILED = "failed"


class ErrorKind(StrEnum):
    """Why an image could not be scored."""

    EMPTY = "empty"
    TRUNCATED = "truncated"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    DECODE_TIMEOUT = "decode_timeout"
    NOT_FOUND = "not_found"
    PERMISSION = "permission"
    UNREACHABLE = "unreachable"


TRANSIENT_KINDS = frozenset({ErrorKind.PERMISSION, ErrorKind.UNREACHABLE})  # tried again next run

TIMESTAMP = pa.timestamp("us", tz="UTC")
BOX_COLUMNS = ("box_x0", "box_y0", "box_x1", "box_y1")

# What listing knows of a source object. `row` numbers the images of a run and names part files.
SOURCE_FIELDS = (
    pa.field("uri", pa.string()),
    pa.field("size", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("last_modified", TIMESTAMP),
)
MANIFEST_SCHEMA = pa.schema([pa.field("row", pa.int64()), *SOURCE_FIELDS])

_PANDAS_NULLABLE = {pa.int32(): "Int32", pa.int64(): "Int64", pa.bool_(): "boolean"}
_CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_STAGE1, _STAGE2, _FINAL = "stage1_p_", "stage2_p_", "p_"
STAGE_PREFIXES = {"stage1": _STAGE1, "stage2": _STAGE2, "final": _FINAL}
MEAN = "mean"


def check_classes(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return `names` as the class order, or raise `InputError` naming `where` they came from."""
    for name in names:
        if not _CLASS_NAME.fullmatch(name) or name == MEAN:
            raise InputError(
                f"{where}: {name!r} cannot be a class name; use letters, digits and _ . + -, "
                f"and not {MEAN!r}"
            )
    if len(set(names)) != len(names):
        raise InputError(f"{where}: a class name occurs twice; each class needs its own column")
    if len(names) < 2:
        raise InputError(f"{where}: {len(names)} class found; at least two are needed")
    return tuple(names)


def probability_columns(classes: Iterable[str], stage: str = "final") -> list[str]:
    """Column names of a stage's probabilities (`stage1`, `stage2` or `final`), in class order."""
    return [STAGE_PREFIXES[stage] + name for name in classes]


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
        SOURCE_FIELDS[0],
        pa.field("image_id", pa.string()),
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
        *SOURCE_FIELDS[1:],
        pa.field("model", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("lesioncam_version", pa.string()),
        pa.field("scored_at", TIMESTAMP),
    ]
    return pa.schema(fields, metadata={b"pandas": _pandas_metadata(fields)})


def classes_of(schema: pa.Schema) -> tuple[str, ...]:
    """Read the class order back from a score file's schema; empty where it is not one."""
    return tuple(name[len(_FINAL) :] for name in schema.names if name.startswith(_FINAL))


def _pandas_metadata(fields: Iterable[pa.Field]) -> bytes:
    columns = [
        {
            "name": field.name,
            "field_name": field.name,
            "pandas_type": str(field.type),
            "numpy_type": _PANDAS_NULLABLE[field.type],
            "metadata": None,
        }
        for field in fields
        if field.type in _PANDAS_NULLABLE
    ]
    content = {"index_columns": [], "column_indexes": [], "columns": columns}
    return json.dumps(content).encode()
