"""Names that all layers use: columns, their types, and how pandas reads them."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lesioncam.columns import (
    BOX_COLUMNS,
    TRANSIENT_KINDS,
    ErrorKind,
    Quality,
    Status,
    check_classes,
    classes_of,
    probability_columns,
)
from lesioncam.errors import InputError
from lesioncam.schema import MANIFEST_SCHEMA, check_kept_columns, scores_schema

CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")
TIME = pd.Timestamp("2024-05-06 07:08:09.123456", tz="UTC")

# The public contract, written down a second time.
CONTRACT = {
    "uri": "string",
    "image_id": "string",
    "status": "string",
    "error_kind": "string",
    "error": "string",
    "prediction": "string",
    **{
        f"{stage}p_{name}": "float"
        for stage in ("", "stage1_", "stage2_")
        for name in ("melanoma", "seborrheic_keratosis", "nevus")
    },
    **{f"flag_{name}": "bool" for name in ("melanoma", "seborrheic_keratosis", "nevus")},
    "width": "int32",
    "height": "int32",
    "box_x0": "int32",
    "box_y0": "int32",
    "box_x1": "int32",
    "box_y1": "int32",
    "cam_flat": "bool",
    "cam": "binary",
    "quality": "list",
    "size": "int64",
    "etag": "string",
    "last_modified": "timestamp[us, tz=UTC]",
    "model": "string",
    "run_id": "string",
    "lesioncam_version": "string",
    "scored_at": "timestamp[us, tz=UTC]",
}


def types_of(schema: pa.Schema) -> dict[str, str]:
    """Types by name; every list is one of strings."""
    types = {field.name: field.type for field in schema}
    assert all(kind.value_type == pa.string() for kind in types.values() if pa.types.is_list(kind))
    return {name: "list" if pa.types.is_list(kind) else str(kind) for name, kind in types.items()}


def ok_row(name: str) -> dict[str, Any]:
    values = {"string": name, "float": 0.25, "int32": 7, "int64": 2**40, "bool": True}
    values |= {"binary": b"\x00\xff", "list": ["blurred", name], "timestamp[us, tz=UTC]": TIME}
    row = {column: values[kind] for column, kind in CONTRACT.items()}
    return row | {"status": str(Status.OK), "error_kind": None, "error": None}


def failed_row(name: str) -> dict[str, Any]:
    known = ("uri", "image_id", "size", "last_modified", "model", "run_id", "scored_at")
    row = {column: value if column in known else None for column, value in ok_row(name).items()}
    return row | {"status": str(Status.FAILED), "error_kind": str(ErrorKind.EMPTY), "error": "no"}


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, scores_schema(CLASSES)), path)
    return path


def test_columns_and_types_are_the_contracts() -> None:
    schema = scores_schema(CLASSES)
    assert types_of(schema) == CONTRACT
    assert schema.names == list(CONTRACT)
    assert all(field.nullable for field in schema)


def test_classes_change_only_their_own_columns() -> None:
    schemas = [scores_schema(order) for order in itertools.permutations(CLASSES)]
    assert all(
        {field.name: field.type for field in schema}
        == {field.name: field.type for field in schemas[0]}
        for schema in schemas
    )
    own = tuple(f"{prefix}{name}" for prefix in ("p_", "flag_") for name in CLASSES)
    others = [[name for name in schema.names if not name.endswith(own)] for schema in schemas]
    assert all(names == others[0] for names in others)


def test_kept_columns_come_last_by_name_as_strings() -> None:
    schema = scores_schema(CLASSES, ["site", "patient"])
    assert types_of(schema) == CONTRACT | dict.fromkeys(("patient", "site"), "string")
    assert schema.names == [*CONTRACT, "patient", "site"]
    assert schema.field("site").nullable
    assert classes_of(schema.names) == CLASSES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["site", ""], "a name is empty"),
        (["site", "age", "site"], "'site' is named twice"),
        (["site", "Site"], "'Site' is named twice"),
        (["uri"], "'uri' is a name of the scores' own columns; rename the column in the list"),
        (["Model"], "'Model' is a name of the scores' own"),
        (["site", "p_melanoma"], "'p_melanoma' is a name of the scores' own"),
        (["p_id"], "'p_id' is a name of the scores' own"),
        (["stage1_p_id"], "'stage1_p_id' is a name of the scores' own"),
    ],
)
def test_columns_that_the_scores_cannot_have_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"--keep-columns: {message}"):
        check_kept_columns(names, CLASSES)
    check_kept_columns(["patient", "site", "P_ID", "row", "canvas", "kept", "a b"], CLASSES)


@pytest.mark.parametrize("kept", [(), ("patient", "site")])
def test_pandas_metadata_names_every_column(kept: tuple[str, ...]) -> None:
    schema = scores_schema(CLASSES, kept)
    assert [column["field_name"] for column in schema.pandas_metadata["columns"]] == schema.names


def test_schema_is_the_same_each_time() -> None:
    assert scores_schema(CLASSES).equals(scores_schema(list(CLASSES)), check_metadata=True)


@pytest.mark.parametrize("classes", [*itertools.permutations(CLASSES), ("b", "a"), ("p_x", "x")])
def test_class_order_is_read_back(classes: tuple[str, ...]) -> None:
    assert classes_of(scores_schema(classes).names) == classes


def test_class_order_is_read_back_from_a_file(tmp_path: Path) -> None:
    path = written([ok_row("a")], tmp_path / "a.parquet")
    assert classes_of(pq.read_schema(path).names) == CLASSES


def test_schema_of_something_else_has_no_classes() -> None:
    assert classes_of(MANIFEST_SCHEMA.names) == ()
    assert classes_of(["stage1_p_a"]) == ()


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("final", ["p_a", "p_b"]),
        ("stage1", ["stage1_p_a", "stage1_p_b"]),
        ("stage2", ["stage2_p_a", "stage2_p_b"]),
    ],
)
def test_probability_columns(stage: str, expected: list[str]) -> None:
    assert probability_columns(("a", "b"), stage) == expected
    assert probability_columns(("a", "b")) == ["p_a", "p_b"]


# Through Parquet to pandas


ROWS = {
    "mixed": [ok_row("a"), failed_row("b"), ok_row("c")],
    "only ok": [ok_row("a"), ok_row("b")],
    "only failed": [failed_row("a"), failed_row("b")],
    "none": [],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_pandas_types_do_not_depend_on_the_rows(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    frame = pd.read_parquet(written(rows, tmp_path / "part.parquet"))
    assert list(frame.columns) == list(CONTRACT)
    assert isinstance(frame.index, pd.RangeIndex)
    expected = {"int32": "Int32", "int64": "Int64", "bool": "boolean", "float": "float32"}
    for column, kind in CONTRACT.items():
        if kind in expected:
            assert str(frame[column].dtype) == expected[kind], column
        if kind.startswith("timestamp"):
            assert str(frame[column].dtype) == "datetime64[us, UTC]", column


def test_values_come_back_from_pandas(tmp_path: Path) -> None:
    frame = pd.read_parquet(written(ROWS["mixed"], tmp_path / "part.parquet"))
    good, failed = frame.iloc[0], frame.iloc[1]
    assert good["size"] == failed["size"] == 2**40
    assert good["width"] == 7
    assert bool(good["cam_flat"]) is True
    assert good["cam"] == b"\x00\xff"
    assert list(good["quality"]) == ["blurred", "a"]
    assert good["p_nevus"] == np.float32(0.25)
    assert good["scored_at"] == failed["scored_at"] == TIME
    assert failed["status"] == "failed"
    assert failed["error_kind"] == "empty"
    for column in (
        "width",
        "cam_flat",
        "cam",
        "quality",
        "p_nevus",
        "prediction",
        "etag",
        *BOX_COLUMNS,
    ):
        assert pd.isna(failed[column]), column
    for column in ("error_kind", "error"):
        assert pd.isna(good[column]), column


def test_directory_of_unlike_files_is_one_frame(tmp_path: Path) -> None:
    for name, rows in ROWS.items():
        written(rows, tmp_path / f"{name}.parquet")
    frame = pd.read_parquet(tmp_path)
    assert len(frame) == sum(len(rows) for rows in ROWS.values())
    assert str(frame["width"].dtype) == "Int32"
    assert str(frame["cam_flat"].dtype) == "boolean"
    assert frame["width"].isna().sum() == (frame["status"] == "failed").sum() == 3


def test_a_file_gives_back_the_schema(tmp_path: Path) -> None:
    schema = pq.read_schema(written(ROWS["mixed"], tmp_path / "part.parquet"))
    assert schema.equals(scores_schema(CLASSES), check_metadata=True)


def test_sum_and_mean_skip_failed_rows(tmp_path: Path) -> None:
    frame = pd.read_parquet(written(ROWS["mixed"], tmp_path / "part.parquet"))
    assert frame["width"].sum() == 14
    assert frame["cam_flat"].mean() == 1.0


def test_selected_columns_keep_their_types(tmp_path: Path) -> None:
    path = written(ROWS["mixed"], tmp_path / "part.parquet")
    frame = pd.read_parquet(path, columns=["uri", "height", "cam_flat"])
    assert list(frame.columns) == ["uri", "height", "cam_flat"]
    assert [str(frame[name].dtype) for name in ("height", "cam_flat")] == ["Int32", "boolean"]


# Class names


@pytest.mark.parametrize(
    "names", [("a", "b"), CLASSES, ["MEL", "NV", "BCC"], ("a-b", "a.b", "a+b", "a_b", "0")]
)
def test_class_names_that_are_columns_are_taken(names: list[str] | tuple[str, ...]) -> None:
    assert check_classes(names, "labels.csv") == tuple(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "0 class"),
        (("a",), "1 class"),
        (("a", "a"), "twice"),
        (("a", "b", "a"), "twice"),
        (("a", ""), "''"),
        (("a", "b c"), "'b c'"),
        (("a", " b"), "' b'"),
        (("a", "b\n"), r"'b\n'"),
        (("a", "_b"), "'_b'"),
        (("a", "b/c"), "'b/c'"),
        (("a", "b,c"), "'b,c'"),
        (("a", "nävus"), "'nävus'"),
        (("a", "mean"), "'mean'"),
    ],
)
def test_other_class_names_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        check_classes(names, "labels.csv")
    assert str(caught.value).startswith("labels.csv: ")
    assert "\n" not in str(caught.value)


# Words


def test_statuses_and_kinds_are_the_contracts() -> None:
    assert [*Status] == ["ok", "failed"]
    assert {*ErrorKind} == {
        *("empty", "truncated", "not_an_image", "unsupported", "too_large", "decode_timeout"),
        *("not_found", "archived", "permission", "unreachable"),
    }
    assert {"permission", "unreachable"} == TRANSIENT_KINDS
    assert [*Quality] == [
        *("blurred", "overexposed", "underexposed", "low_resolution", "lesion_at_border")
    ]


def test_manifest_keeps_what_the_score_rows_say_of_the_source() -> None:
    scores = scores_schema(CLASSES)
    names = ["uri", "image_id", "size", "etag", "last_modified"]
    assert MANIFEST_SCHEMA.names == ["row", *names, "archived", "kept"]
    for name in names:
        assert MANIFEST_SCHEMA.field(name).equals(scores.field(name)), name
