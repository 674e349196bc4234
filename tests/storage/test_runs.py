"""Runs: the records of one run, under the output but no part of its scores."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from lesioncam.columns import ErrorKind, Status
from lesioncam.schema import MANIFEST_SCHEMA
from lesioncam.storage.listing import read_tables
from lesioncam.storage.pending import INDEX_SCHEMA, Partition, partitions, with_version
from lesioncam.storage.results import Results
from lesioncam.storage.runs import Pending, RunRecord, new_run_id
from lesioncam.storage.store import Entry, Store
from lesioncam.storage.uris import open_store

ENTRIES = [
    Entry("/x/0.jpg", 5, None, datetime(2024, 5, 1, tzinfo=UTC)),
    Entry("/x/1 é#.jpg", 6, "e1", None),
    Entry("/x/2.jpg", None, None, None),
    Entry("/x/3.jpg", 7, "e3", datetime(2024, 5, 1, tzinfo=UTC)),
    Entry("/x/4.jpg", 8, "e4", datetime(2024, 5, 1, tzinfo=UTC)),
]


@pytest.fixture
def two_rows_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("listing", "runs"):
        monkeypatch.setattr(f"lesioncam.storage.{module}.MANIFEST_ROWS", 2)


def record_at(location: str) -> RunRecord:
    return RunRecord(open_store(location), "run-1")


def partitions_of(
    record: RunRecord, *rows: int, kind: ErrorKind | None = None, versions: tuple[str, ...] = ()
) -> Iterator[Partition]:
    """The manifest beside a row of some of it: failed where there is an error kind."""
    listed = with_version(pa.concat_tables(record.manifest())).to_pylist()
    written = [listed[number] for number in rows]
    for row in written:
        row |= {"status": Status.FAILED if kind else Status.OK, "error_kind": kind}
    for row, version in zip(written, versions, strict=False):
        row["version"] = version
    index = pa.Table.from_pylist(written, schema=INDEX_SCHEMA)
    return partitions(record.manifest(), [index], len(listed) + len(written))


def counts(found: Pending) -> tuple[int, int, int]:
    return found.listed, found.pending, found.repeated


def pending(record: RunRecord) -> list[int]:
    tables = list(read_tables(record.pending))
    assert all(table.schema.equals(MANIFEST_SCHEMA) for table in tables)
    return [row for table in tables for row in table["row"].to_pylist()]


def names(store: Store) -> list[str]:
    return [entry.uri.removeprefix(store.uri + "/") for entry in store.entries()]


def test_the_manifest_is_the_listing(location: str, two_rows_a_file: None) -> None:
    record = record_at(location)
    assert record.record_listing(iter(ENTRIES)) == 5
    tables = list(record.manifest())
    assert [table.num_rows for table in tables] == [2, 2, 1]
    rows = pa.concat_tables(tables)
    assert rows["row"].to_pylist() == [0, 1, 2, 3, 4]
    assert [Entry(**row) for row in rows.drop_columns(["row", "image_id"]).to_pylist()] == ENTRIES


def test_written_rows_are_not_pending(tmp_path: Path, two_rows_a_file: None) -> None:
    record = record_at(str(tmp_path))
    record.record_listing(ENTRIES)
    assert counts(record.record_pending(partitions_of(record, 0, 2, 3), retry_failed=False)) == (
        5,
        2,
        0,
    )
    assert pending(record) == [1, 4]
    tables = pa.concat_tables(read_tables(record.pending)).drop_columns(["row", "image_id"])
    assert [Entry(**row) for row in tables.to_pylist()] == [ENTRIES[1], ENTRIES[4]]


def test_pending_images_are_in_files_of_a_manifests_size(
    location: str, two_rows_a_file: None
) -> None:
    record = record_at(location)
    record.record_listing(ENTRIES)
    assert counts(record.record_pending(partitions_of(record, 2, 3), retry_failed=False)) == (
        5,
        3,
        0,
    )
    assert [table.num_rows for table in read_tables(record.pending)] == [2, 1]
    assert pending(record) == [0, 1, 4]


def test_a_changed_object_is_pending(tmp_path: Path) -> None:
    record = record_at(str(tmp_path))
    record.record_listing(ENTRIES)
    older = partitions_of(record, 0, 1, 2, 3, 4, versions=("5@0", "older", "", "e3", "e4"))
    assert counts(record.record_pending(older, retry_failed=False)) == (5, 2, 0)
    assert pending(record) == [0, 1]


@pytest.mark.parametrize(
    ("kind", "retry_failed", "expected"),
    [
        (ErrorKind.EMPTY, False, [0, 3, 4]),
        (ErrorKind.EMPTY, True, [0, 1, 2, 3, 4]),
        (ErrorKind.UNREACHABLE, False, [0, 1, 2, 3, 4]),
    ],
)
def test_failures_are_pending_if_another_try_is_asked_or_may_help(
    tmp_path: Path, kind: ErrorKind, retry_failed: bool, expected: list[int]
) -> None:
    record = record_at(str(tmp_path))
    record.record_listing(ENTRIES)
    found = record.record_pending(partitions_of(record, 1, 2, kind=kind), retry_failed=retry_failed)
    assert counts(found) == (5, len(expected), 0)
    assert pending(record) == expected


def test_repeated_images_are_pending_once(tmp_path: Path, two_rows_a_file: None) -> None:
    record = record_at(str(tmp_path))
    assert record.record_listing([*ENTRIES, ENTRIES[4], ENTRIES[0], ENTRIES[4]]) == 8
    assert counts(record.record_pending(partitions_of(record, 0), retry_failed=False)) == (5, 4, 3)
    assert pending(record) == [1, 2, 3, 4]


def test_what_several_partitions_leave_is_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_rows_a_file: None
) -> None:
    monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", 2)
    record = record_at(str(tmp_path))
    record.record_listing([*ENTRIES, *ENTRIES])
    assert counts(record.record_pending(partitions_of(record, 2), retry_failed=False)) == (5, 4, 5)
    assert sorted(pending(record)) == [0, 1, 3, 4]
    assert max(table.num_rows for table in read_tables(record.pending)) <= 2


def test_a_run_knows_when_the_newest_row_was_scored(tmp_path: Path) -> None:
    record = record_at(str(tmp_path))
    record.record_listing(ENTRIES)
    times = [datetime(2031, 5, day, tzinfo=UTC) for day in (2, 9, 4)]
    rows = [
        {"uri": entry.uri, "status": Status.OK, "version": "", "scored_at": time}
        for entry, time in zip(ENTRIES, times, strict=False)
    ]
    index = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    found = record.record_pending(partitions(record.manifest(), [index], 8), retry_failed=False)
    assert times[1] < found.after < times[1] + timedelta(seconds=1)


def test_without_partitions_nothing_is_pending(tmp_path: Path) -> None:
    record = record_at(str(tmp_path))
    assert counts(record.record_pending([], retry_failed=False)) == (0, 0, 0)
    assert names(record.pending) == []


def test_a_sample_is_of_listed_uris(tmp_path: Path, two_rows_a_file: None) -> None:
    record = record_at(str(tmp_path))
    record.record_listing(ENTRIES)
    assert [len(record.sample(count)) for count in (0, 1, 20)] == [0, 1, 20]
    assert set(record.sample(200)) == {entry.uri for entry in ENTRIES}


def test_a_sample_may_be_larger_than_the_listing(tmp_path: Path) -> None:
    record = record_at(str(tmp_path))
    record.record_listing(ENTRIES[1:2])
    assert record.sample(3) == ["/x/1 é#.jpg"] * 3


@pytest.mark.parametrize("name", ["run", "progress", "summary"])
def test_records_are_json_under_the_run(location: str, name: str) -> None:
    content = {"images": "s3://b/é", "done": 3, "seconds": 1.5, "limit": None}
    record_at(location).write(name, content)
    data = open_store(location).read(f"_lesioncam/runs/run-1/{name}.json")
    assert json.loads(data) == content
    assert data.endswith(b"}\n")


def test_finish_writes_the_summary_and_ends_the_progress(location: str) -> None:
    record = record_at(location)
    record.write("run", {"asked": 1})
    record.write("progress", {"done": 3})
    record.finish({"outcome": "done"})
    store = open_store(location)
    assert set(names(store)) == {
        "_lesioncam/runs/run-1/run.json",
        "_lesioncam/runs/run-1/summary.json",
    }
    assert json.loads(store.read("_lesioncam/runs/run-1/summary.json")) == {"outcome": "done"}


def test_runs_keep_apart(tmp_path: Path) -> None:
    one, other = (RunRecord(open_store(str(tmp_path)), run_id) for run_id in ("run-1", "run-10"))
    one.record_listing(ENTRIES)
    other.record_listing(ENTRIES[:2])
    assert pa.concat_tables(one.manifest()).num_rows == 5
    assert pa.concat_tables(other.manifest()).num_rows == 2


def test_records_are_no_scores(tmp_path: Path) -> None:
    record = record_at(str(tmp_path))
    record.record_listing(ENTRIES)
    record.record_pending(partitions_of(record), retry_failed=False)
    record.finish({})
    assert Results(str(tmp_path)).parts() == []


def test_run_ids_are_distinct_and_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({new_run_id() for _ in range(50)}) == 50

    class Clock(datetime):
        moment = datetime(2024, 9, 30, 23, 59, 59, tzinfo=UTC)

        @classmethod
        def now(cls, _: object = None) -> datetime:  # type: ignore[override]
            return cls.moment

    monkeypatch.setattr("lesioncam.storage.runs.datetime", Clock)
    first = new_run_id()
    Clock.moment = datetime(2024, 10, 1, tzinfo=UTC)
    assert first < new_run_id()
    assert first.replace("-", "").isalnum()
