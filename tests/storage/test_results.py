"""Results: what is left beside the parts, the newest rows, settling, and refusals."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lesioncam.columns import BOX_COLUMNS, TRANSIENT_KINDS, ErrorKind, Status, probability_columns
from lesioncam.errors import InputError, RunFailedError
from lesioncam.schema import MANIFEST_SCHEMA, scores_schema
from lesioncam.storage.listing import image_id
from lesioncam.storage.pending import Partition, Tally
from lesioncam.storage.results import COMMIT_FILE, SUCCESS, Results
from tests.storage.conftest import refused

CLASSES = ("melanoma", "nevus")
SCHEMA = scores_schema(CLASSES)
MODEL, OTHER_MODEL = "1" * 64, "2" * 64
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

EMPTY = MANIFEST_SCHEMA.empty_table()

Row = dict[str, Any]


def scored(
    uri: str,
    kind: ErrorKind | None = None,
    *,
    minute: int = 0,
    etag: str | None = "e1",
    size: int | None = 10,
    modified: datetime | None = NOON,
    model: str = MODEL,
    width: int = 640,
) -> Row:
    """A row as scoring writes it; failed where there is an error kind."""
    row: Row = {
        "uri": uri,
        "image_id": image_id(uri),
        "size": size,
        "etag": etag,
        "last_modified": modified,
        "model": model,
        "run_id": f"run-{minute}",
        "lesioncam_version": "0.1.0",
        "scored_at": NOON + timedelta(minutes=minute),
    }
    if kind:
        return row | {"status": Status.FAILED, "error_kind": kind, "error": "no good"}
    row |= {"status": Status.OK, "prediction": "nevus", "width": width, "height": 480}
    row |= {"cam_flat": False, "cam": bytes(range(16))}
    row |= dict.fromkeys(BOX_COLUMNS, 7)
    return row | {
        column: 0.5
        for stage in ("final", "stage1", "stage2")
        for column in probability_columns(CLASSES, stage)
    }


def table(rows: Iterable[Row], classes: tuple[str, ...] = CLASSES) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=scores_schema(classes))


def results_of(place: str, **parts: list[Row]) -> Results:
    """An output that holds these parts, by the names of their files."""
    results = Results(place)
    for name, rows in parts.items():
        results.write_part(f"{name}.parquet", table(rows))
    return results


def listed(*rows: Row) -> pa.Table:
    """A manifest of the objects these rows were made from."""
    names = MANIFEST_SCHEMA.names[1:]
    manifest = [
        {"row": number, **{name: row[name] for name in names}} for number, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(manifest, schema=MANIFEST_SCHEMA)


def partition_of(results: Results, manifest: pa.Table = EMPTY) -> Partition:
    """All rows under an output beside a listing; they are few enough for one partition."""
    (partition,) = results.partitions([manifest], manifest.num_rows)
    return partition


def pending(manifest: pa.Table, results: Results, *, retry_failed: bool = False) -> list[str]:
    rows = partition_of(results, manifest).pending(retry_failed=retry_failed)
    uris: list[str] = rows["uri"].to_pylist()
    return uris


def newest(results: Results) -> list[tuple[str, str, int, int]]:
    """The uri, status, part and place of each image's newest row."""
    rows = partition_of(results).newest.sort_by("uri").to_pylist()
    return [(row["uri"], row["status"], row["part"], row["row_in_part"]) for row in rows]


def read_all(results: Results) -> list[Row]:
    """Every row under an output, in the order of uri and time."""
    filesystem, root = results.store.arrow()
    tables = [pq.read_table(f"{root}/{n}", filesystem=filesystem) for n in results.parts()]
    rows: list[Row] = pa.concat_tables(tables).to_pylist()
    return sorted(rows, key=lambda row: (row["uri"], row["scored_at"]))


def as_read(rows: Iterable[Row]) -> list[Row]:
    """What `read_all` gives for rows that were each written once."""
    return sorted(table(rows).to_pylist(), key=lambda row: (row["uri"], row["scored_at"]))


# What is left to do


def test_with_nothing_written_all_is_left(place: str) -> None:
    manifest = listed(scored("/b"), scored("/a", etag=None), scored("/c", size=None))
    assert pending(manifest, Results(place)) == ["/b", "/a", "/c"]


def test_written_rows_are_not_left(place: str) -> None:
    rows = [scored("/a"), scored("/b", etag=None), scored("/c", ErrorKind.EMPTY)]
    results = results_of(place, one=rows[:1], two=rows[1:])
    assert pending(listed(*rows), results) == []
    assert pending(listed(scored("/new"), *rows), results) == ["/new"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"etag": "e1"}, {"etag": "e2"}),
        ({"etag": None, "size": 10}, {"etag": None, "size": 11}),
        ({"etag": None, "modified": NOON}, {"etag": None, "modified": NOON + timedelta(0, 0, 1)}),
        ({"etag": None, "size": None, "modified": None}, {"etag": None}),
    ],
    ids=["etag", "size", "time", "known now"],
)
def test_a_changed_object_is_left(place: str, before: Any, after: Any) -> None:
    results = results_of(place, a=[scored("/a", **before), scored("/b")])
    assert pending(listed(scored("/a", **after), scored("/b")), results) == ["/a"]
    assert pending(listed(scored("/a", **before), scored("/b")), results) == []


@pytest.mark.parametrize("retry_failed", [False, True])
def test_failures_are_left_by_their_kind(place: str, retry_failed: bool) -> None:
    rows = [scored("/ok"), *(scored(f"/{kind}", kind) for kind in ErrorKind)]
    expected = [f"/{kind}" for kind in ErrorKind if retry_failed or kind in TRANSIENT_KINDS]
    assert pending(listed(*rows), results_of(place, a=rows), retry_failed=retry_failed) == expected


def test_what_is_left_does_not_depend_on_shares(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", 5)
    parts, kept = mixed()
    results = results_of(place, **parts)
    manifest = listed(scored("/new"), *kept)
    sizes = results.sizes()
    partitions = list(results.partitions([manifest], manifest.num_rows))
    assert len(partitions) > 1
    uris = [
        uri
        for partition in partitions
        for uri in partition.pending(retry_failed=False)["uri"].to_pylist()
    ]
    assert sorted(uris) == ["/d", "/new"]
    tally = sum((partition.tally() for partition in partitions), start=Tally())
    assert (tally.listed, tally.without_row, tally.unlisted) == (11, 1, 0)
    assert tally.doubled == sum(sizes.values()) - len(kept)


# The newest row


def test_the_newest_row_counts_wherever_it_stands(place: str) -> None:
    newer, older = scored("/a", ErrorKind.PERMISSION, minute=1), scored("/a")
    results = results_of(place, a=[newer, scored("/b")], b=[older], c=[scored("/b", minute=-1)])
    assert newest(results) == [("/a", "failed", 0, 0), ("/b", "ok", 0, 1)]
    assert results.sizes() == {"a.parquet": 2, "b.parquet": 1, "c.parquet": 1}
    assert pending(listed(older), results) == ["/a"]


def test_of_equally_new_rows_the_last_part_counts(place: str) -> None:
    results = results_of(
        place, b=[scored("/a", ErrorKind.EMPTY)], c=[scored("/a")], a=[scored("/a")]
    )
    assert newest(results) == [("/a", "ok", 2, 0)]


def test_the_newest_of_one_part_counts(place: str) -> None:
    rows = [scored("/a", minute=minute, width=100 + minute) for minute in (1, 3, 2)]
    results = results_of(place, a=rows)
    assert newest(results) == [("/a", "ok", 0, 1)]
    assert results.read(["width"], ["a"])["width"].to_pylist() == [103]


def test_parts_beyond_those_read_at_once_are_all_there(place: str) -> None:
    rows = [scored(f"/{number:02d}") for number in range(11)]
    results = results_of(place, **{f"part-{number:02d}": [row] for number, row in enumerate(rows)})
    assert newest(results) == [(row["uri"], "ok", number, 0) for number, row in enumerate(rows)]


def test_an_output_without_parts_has_no_rows(place: str) -> None:
    results = Results(place)
    assert results.sizes() == {}
    assert newest(results) == []
    assert partition_of(results).tally() == Tally()


def test_a_part_without_rows_does_no_harm(place: str) -> None:
    assert newest(results_of(place, a=[])) == []
    results = results_of(place, a=[], b=[scored("/a")])
    assert pending(listed(scored("/a"), scored("/b")), results) == ["/b"]
    results.compact("run-9")
    assert read_all(results) == as_read([scored("/a")])


# Settling


def mixed() -> tuple[dict[str, list[Row]], list[Row]]:
    """Parts with rows older and newer, failed and ok; and the rows that count."""
    kept = [
        scored("/a", minute=2, width=1),
        scored("/b", ErrorKind.EMPTY),
        scored("/c", minute=1, width=3),
        scored("/d", ErrorKind.UNREACHABLE, minute=3),
        scored("/e", width=5, etag=None),
        scored("/f é#%.jpg", width=6),
        *(scored(f"/g{number}", width=7) for number in range(4)),
    ]
    a, b, c, d, e, f, *g = kept
    parts = {
        "part-1": [scored("/a", width=9), b, scored("/c", ErrorKind.PERMISSION)],
        "part-2": [c, scored("/d", width=9, minute=2)],
        "part-3": [d, a],
        "part-4": [scored("/a", minute=1, width=9)],
        "part-5": [e, f],
        "part-6": g[:2],
        "part-7": g[2:],
    }
    return parts, kept


def test_settling_leaves_the_newest_row_of_each_image(place: str) -> None:
    parts, kept = mixed()
    results = results_of(place, **parts)
    results.compact("run-9")
    assert read_all(results) == as_read(kept)
    assert [row[:2] for row in newest(results)] == [(row["uri"], row["status"]) for row in kept]
    assert partition_of(results).older.num_rows == 0


def test_settling_does_not_depend_on_shares(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", 2)
    parts, kept = mixed()
    results = results_of(place, **parts)
    results.compact("run-9")
    assert read_all(results) == as_read(kept)


def test_settling_merges_small_parts(place: str) -> None:
    parts, _ = mixed()
    results = results_of(place, **parts)
    results.compact("run-9")
    assert len(results.parts()) == 1
    assert len(list(results.store.entries())) == 1


def test_settling_leaves_large_clean_parts_alone(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 4)
    large = [scored(f"/{number}") for number in range(4)]
    results = results_of(place, **{"part-1": large, "part-2": [scored("/x")]})
    before = list(results.store.entries())
    results.compact("run-8")
    assert list(results.store.entries()) == before
    results.write_part("part-3.parquet", table([scored("/y")]))
    results.compact("run-9")
    assert before[0] in results.store.entries()
    assert len(results.parts()) == 2
    assert read_all(results) == as_read([*large, scored("/x"), scored("/y")])


def test_settling_drops_old_rows_of_large_parts(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 4)
    old = [scored(f"/{number}", width=1) for number in range(4)]
    new = [scored("/2", minute=1, width=2), *(scored(f"/{number}") for number in (7, 8, 9))]
    results = results_of(place, **{"part-1": old, "part-2": new})
    results.compact("run-9")
    assert read_all(results) == as_read([*old[:2], old[3], *new])


def test_settled_files_reach_the_size_aimed_at(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 6)
    rows = [scored(f"/{number:02d}") for number in range(20)]
    results = results_of(place, **{f"part-{i:02d}": rows[2 * i : 2 * i + 2] for i in range(10)})
    results.compact("run-9")
    assert sorted(results.sizes().values()) == [2, 6, 6, 6]
    assert read_all(results) == as_read(rows)


def test_settling_asks_before_each_write_whose_the_output_is(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 6)
    parts, kept = mixed()
    for allowed in range(4):
        results = results_of(f"{place}/{allowed}", **parts)
        budget = iter(range(allowed))

        def check(budget: Iterator[int] = budget) -> None:
            if next(budget, None) is None:
                raise RunFailedError("lost")

        with pytest.raises(RunFailedError, match="lost"):
            results.compact("run-8", check)
        assert set(parts) <= {name.removesuffix(".parquet") for name in results.parts()}
        results.compact("run-9")
        assert read_all(results) == as_read(kept)


def test_nothing_is_removed_where_what_replaces_it_is_gone(place: str) -> None:
    parts, kept = mixed()
    results = results_of(place, **parts)
    commit = {"added": ["settled.parquet"], "removed": results.parts(), "written": True}
    results.store.write(COMMIT_FILE, json.dumps(commit).encode())
    with refused(f"remove {COMMIT_FILE} and run", kind=RunFailedError):
        results.recover()
    assert {row["uri"] for row in read_all(results)} == {row["uri"] for row in kept}


def test_what_killed_writers_left_half_is_removed_at_the_beginning(tmp_path: Path) -> None:
    results = results_of(str(tmp_path), a=[scored("/a")])
    (tmp_path / ".tmp-17-4").write_bytes(b"half")
    results.begin()
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_settling_twice_changes_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for part_rows in (200_000, 3):
        monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", part_rows)
        parts, kept = mixed()
        results = results_of(f"{place}/{part_rows}", **parts)
        results.compact("run-8")
        once, entries = newest(results), list(results.store.entries())
        results.compact("run-9")
        assert read_all(results) == as_read(kept)
        assert newest(results) == once
        assert list(results.store.entries()) == entries


def test_settling_nothing_is_no_error(place: str) -> None:
    results = Results(place)
    results.compact("run-9")
    assert list(results.store.entries()) == []


def test_settling_leaves_records_alone(place: str) -> None:
    parts, _ = mixed()
    results = results_of(place, **parts)
    results.store.write("_lesioncam/runs/run-1/manifest/000000.parquet", b"1")
    results.store.write("notes.txt", b"1")
    results.compact("run-9")
    assert results.store.exists("_lesioncam/runs/run-1/manifest/000000.parquet")
    assert results.store.exists("notes.txt")


# A settling that breaks off

SETTLING_CALLS = 12  # of the store: commit, 2 merged files, commit, 7 parts and the commit removed
STANDING_CALLS = 4  # after so many all merged files stand, and the commit says so


def killed_settling(place: str, patch: pytest.MonkeyPatch, survived: int) -> list[Row]:
    """Parts whose settling was killed after so many calls; returns the rows that count."""
    patch.setattr("lesioncam.storage.results.PART_ROWS", 6)
    parts, kept = mixed()
    results = results_of(place, **parts)
    kill_after(results, survived)
    with pytest.raises(KeyboardInterrupt):
        results.compact("run-8")
    return kept


def kill_after(results: Results, survived: int) -> None:
    """The process dies at a write or delete of this store after so many."""
    budget = iter(range(survived))

    def mortal(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            if next(budget, None) is None:
                raise KeyboardInterrupt
            real(*args)

        return call

    for name in ("write", "delete"):
        setattr(results.store, name, mortal(getattr(results.store, name)))


def names_of(results: Results) -> set[str]:
    below = len(results.store.uri) + 1
    return {entry.uri[below:] for entry in results.store.entries()}


def settled_parts(results: Results) -> list[str]:
    return [name for name in results.parts() if name.startswith("compacted-")]


def test_settling_takes_so_many_calls(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 6)
    parts, kept = mixed()
    results = results_of(place, **parts)
    kill_after(results, SETTLING_CALLS)
    results.compact("run-8")
    assert len(results.parts()) == 2
    assert read_all(results) == as_read(kept)


@pytest.mark.parametrize("survived", range(SETTLING_CALLS))
def test_a_killed_settling_loses_nothing(
    place: str, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    kept = killed_settling(place, monkeypatch, survived)
    results = Results(place)
    assert {row["uri"] for row in read_all(results)} == {row["uri"] for row in kept}
    ids = [row["image_id"] for row in kept]
    found = results.read(["uri", "status", "width"], ids).sort_by("uri").to_pylist()
    assert found == table(kept).select(["uri", "status", "width"]).to_pylist()
    assert pending(listed(*kept), results) == ["/d"]
    results.recover()
    results.compact("run-9")
    assert read_all(results) == as_read(kept)
    assert len(names_of(results)) == 2


@pytest.mark.parametrize("next_run", ["run-8", "run-9"])
@pytest.mark.parametrize("survived", range(SETTLING_CALLS))
def test_settling_recovers_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int, next_run: str
) -> None:
    kept = killed_settling(str(tmp_path), monkeypatch, survived)
    results = Results(str(tmp_path))
    results.compact(next_run)
    assert read_all(results) == as_read(kept)
    assert len(names_of(results)) == 2


@pytest.mark.parametrize("survived", range(STANDING_CALLS))
def test_recovering_removes_merged_files_before_all_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    killed_settling(str(tmp_path), monkeypatch, survived)
    parts, _ = mixed()
    results = Results(str(tmp_path))
    assert len(settled_parts(results)) == max(0, survived - 1)
    results.recover()
    assert names_of(results) == {f"{name}.parquet" for name in parts}
    assert read_all(results) == as_read(row for rows in parts.values() for row in rows)


@pytest.mark.parametrize("survived", range(STANDING_CALLS, SETTLING_CALLS))
def test_recovering_finishes_the_removal_once_all_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    kept = killed_settling(str(tmp_path), monkeypatch, survived)
    results = Results(str(tmp_path))
    merged = settled_parts(results)
    assert len(merged) == 2
    results.recover()
    assert names_of(results) == set(merged)
    assert read_all(results) == as_read(kept)


@pytest.mark.parametrize("survived", range(SETTLING_CALLS))
def test_a_killed_recovery_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    kept = killed_settling(str(tmp_path), monkeypatch, survived)
    for further in range(SETTLING_CALLS):
        results = Results(str(tmp_path))
        kill_after(results, further)
        with suppress(KeyboardInterrupt):
            results.recover()
        assert {row["uri"] for row in read_all(results)} == {row["uri"] for row in kept}
    assert not results.store.exists(COMMIT_FILE)
    results = Results(str(tmp_path))
    results.compact("run-9")
    assert read_all(results) == as_read(kept)


def test_what_a_later_run_wrote_outlives_recovery(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = killed_settling(place, monkeypatch, STANDING_CALLS + 2)
    results = Results(place)
    results.write_part("part-8.parquet", table([scored("/a", minute=9), scored("/z")]))
    results.compact("run-9")
    assert read_all(results) == as_read([scored("/a", minute=9), *kept[1:], scored("/z")])


def test_a_settled_output_has_no_commit(place: str) -> None:
    parts, _ = mixed()
    results = results_of(place, **parts)
    results.compact("run-8")
    assert names_of(results) == set(results.parts())
    assert not results.store.exists(COMMIT_FILE)


def test_recovering_without_a_commit_is_no_error(place: str) -> None:
    Results(place).recover()
    assert names_of(Results(place)) == set()
    parts, _ = mixed()
    results = results_of(place, **parts)
    before = list(results.store.entries())
    results.recover()
    assert list(results.store.entries()) == before


def test_one_run_may_settle_more_than_once(place: str) -> None:
    parts, kept = mixed()
    results = results_of(place, **parts)
    results.compact("run-8")
    results.write_part("part-8.parquet", table([scored("/z")]))
    results.compact("run-8")
    assert read_all(results) == as_read([*kept, scored("/z")])


# What pandas reads


def test_pandas_reads_the_output_and_nothing_else(place: str) -> None:
    parts, kept = mixed()
    results = results_of(place, **parts)
    results.store.write("_lesioncam/runs/run-1/manifest/000000.parquet", b"no scores")
    results.succeed()
    for settled in (False, True):
        if settled:
            results.compact("run-9")
        filesystem, root = results.store.arrow()
        frame = pd.read_parquet(root, filesystem=filesystem)
        assert list(frame.columns) == SCHEMA.names
        assert set(frame["uri"]) == {row["uri"] for row in kept}
        assert str(frame["width"].dtype) == str(frame["box_x0"].dtype) == "Int32"
        assert str(frame["size"].dtype) == "Int64"
        assert str(frame["cam_flat"].dtype) == "boolean"
        assert frame.loc[frame["status"] == "failed", "p_nevus"].isna().all()


def test_every_file_has_the_schema_to_the_letter(place: str) -> None:
    results = results_of(place, a=[scored("/a")], b=[scored("/b", ErrorKind.EMPTY)])
    for _ in range(2):
        filesystem, root = results.store.arrow()
        for name in results.parts():
            schema = pq.read_schema(f"{root}/{name}", filesystem=filesystem)
            assert schema.equals(SCHEMA, check_metadata=True)
        results.compact("run-9")


# Refusals


def test_an_empty_output_is_not_refused(place: str) -> None:
    Results(place).check(CLASSES, MODEL)


def test_the_same_model_is_not_refused(place: str) -> None:
    parts, _ = mixed()
    results = results_of(place, empty=[], **parts)
    results.check(CLASSES, MODEL)
    results.compact("run-9")
    results.check(CLASSES, MODEL)


@pytest.mark.parametrize("classes", [CLASSES, ("a", "b", "c")])
def test_another_model_is_refused_with_both_digests(place: str, classes: tuple[str, ...]) -> None:
    results = results_of(place, a=[scored("/a")], b=[scored("/b")])
    with refused("--output", place, MODEL, OTHER_MODEL, "another output", kind=InputError):
        results.check(classes, OTHER_MODEL)


def test_one_row_of_another_model_is_refused(place: str) -> None:
    rows = [scored("/a"), scored("/b", model=OTHER_MODEL), scored("/c")]
    with refused("--output", MODEL, OTHER_MODEL, kind=InputError):
        results_of(place, a=[scored("/d")], b=rows).check(CLASSES, MODEL)


def test_foreign_parquet_is_refused(place: str) -> None:
    results = results_of(place, a=[scored("/a")])
    results.write_part("b.parquet", pa.table({"uri": ["/a"], "age": [50]}))
    with refused("--output", f"{place}/b.parquet", "not written by lesioncam", kind=InputError):
        results.check(CLASSES, MODEL)


def test_what_is_no_parquet_is_refused(place: str) -> None:
    results = results_of(place, a=[scored("/a")])
    results.store.write("b.parquet", b"no Parquet at all")
    with refused("--output", f"{place}/b.parquet", kind=InputError):
        results.check(CLASSES, MODEL)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.append_column("more", pa.array([1])),
        lambda rows: rows.drop_columns("cam_flat"),
        lambda rows: rows.select(list(reversed(rows.column_names))),
        lambda rows: rows.set_column(
            rows.column_names.index("width"), "width", rows["width"].cast(pa.int64())
        ),
        lambda rows: rows.drop_columns("p_nevus"),
    ],
    ids=["one more", "one less", "another order", "another type", "another class"],
)
def test_other_columns_are_refused(place: str, change: Any) -> None:
    results = Results(place)
    results.write_part("a.parquet", change(table([scored("/a")])))
    with refused("--output", f"{place}/a.parquet", "columns", kind=InputError):
        results.check(CLASSES, MODEL)


# Files


def test_parts_are_parquet_files_at_the_top(place: str) -> None:
    results = results_of(place, b=[scored("/b")], a=[scored("/a")])
    others = ["_hidden.parquet", "_lesioncam/runs/r/manifest/0.parquet", "nested/c.parquet",
              "notes.txt", "parquet", "d.parquet.tmp", SUCCESS]  # fmt: skip
    for name in others:
        results.store.write(name, b"")
    assert results.parts() == ["a.parquet", "b.parquet"]
    assert [row[0] for row in newest(results)] == ["/a", "/b"]
    results.check(CLASSES, MODEL)


def test_a_part_written_again_is_replaced(place: str) -> None:
    results = results_of(place, a=[scored("/a"), scored("/b")])
    results.write_part("a.parquet", table([scored("/c")]))
    assert read_all(results) == as_read([scored("/c")])


def test_success_is_removed_first_and_written_last(place: str) -> None:
    results = Results(place)
    results.begin()
    assert not results.store.exists("_SUCCESS")
    results.succeed()
    assert results.store.read("_SUCCESS") == b""
    results.begin()
    assert not results.store.exists("_SUCCESS")


def test_reads_the_rows_of_some_images_and_counts_all(place: str) -> None:
    rows = [scored("/a"), scored("/c", ErrorKind.EMPTY), scored("/d")]
    results = results_of(place, b=[scored("/b"), scored("/d", minute=1)], a=rows)
    found = results.read(["uri", "width"], ["c", "b", "d", "e"])
    assert found["uri"].to_pylist() == ["/c", "/b", "/d"]
    assert results.read(["uri"], ["e"])["uri"].to_pylist() == []
    assert results.count_by_status() == {"ok": 3, "failed": 1}
    results.compact("run-9")
    results.succeed()
    assert results.count_by_status() == {"ok": 3, "failed": 1}
    schema = results.schema()
    assert schema is not None
    assert schema.equals(SCHEMA)


def test_an_output_without_parts_has_no_schema(place: str) -> None:
    assert Results(place).schema() is None
