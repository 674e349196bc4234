"""Results: reading the parts, compaction, and refusals. The rule of resume: test_pending.py."""

import gc
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lesioncam.columns import BOX_COLUMNS, ErrorKind, Status, probability_columns
from lesioncam.errors import InputError, RunFailedError
from lesioncam.schema import MANIFEST_SCHEMA, scores_schema
from lesioncam.storage.listing import image_id
from lesioncam.storage.local import LocalStore
from lesioncam.storage.pending import Tally
from lesioncam.storage.results import COMMIT_FILE, STAGING, SUCCESS, Results
from tests.storage.conftest import refused

CLASSES = ("melanoma", "nevus")
SCHEMA = scores_schema(CLASSES, precision="int8")
MODEL, OTHER_MODEL = "1" * 64, "2" * 64
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

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
        "archived": None,
        "kept": None,
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
    return pa.Table.from_pylist(list(rows), schema=scores_schema(classes, precision="int8"))


def results_of(location: str, **parts: list[Row]) -> Results:
    """An output that holds these parts, by the names of their files."""
    results = Results(location)
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


def pending(results: Results, *rows: Row) -> list[str]:
    """The uris that have to be scored if these objects are listed."""
    manifest = listed(*rows)
    found = results.partitions([manifest], manifest.num_rows)
    return sorted(
        uri for one in found for uri in one.pending(retry_failed=False)["uri"].to_pylist()
    )


def newest(results: Results) -> list[tuple[str, str, int, int]]:
    """The uri, status, part and row of each image's newest row."""
    (partition,) = results.partitions()
    rows = partition.newest.sort_by("uri").to_pylist()
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


def mixed() -> tuple[dict[str, list[Row]], list[Row]]:
    """Parts with rows older and newer, failed and ok; and the rows that count."""
    current = [
        scored("/a", minute=2, width=1),
        scored("/b", ErrorKind.EMPTY),
        scored("/c", minute=1, width=3),
        scored("/d", ErrorKind.UNREACHABLE, minute=3),
        scored("/e", width=5, etag=None),
        scored("/f é#%.jpg", width=6),
        *(scored(f"/g{number}", width=7) for number in range(4)),
    ]
    a, b, c, d, e, f, *g = current
    parts = {
        "part-1": [scored("/a", width=9), b, scored("/c", ErrorKind.PERMISSION)],
        "part-2": [c, scored("/d", width=9, minute=2)],
        "part-3": [d, a],
        "part-4": [scored("/a", minute=1, width=9)],
        "part-5": [e, f],
        "part-6": g[:2],
        "part-7": g[2:],
    }
    return parts, current


# Reading


def test_partitions_hold_the_rows_of_all_parts(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", 5)
    parts, current = mixed()
    results = results_of(location, empty=[], **parts)
    images = [scored("/new"), scored("/e", etag=None, size=11), *current[:4], *current[5:]]
    assert pending(results, *images) == ["/d", "/e", "/new"]
    manifest = listed(*images)
    partitions = list(results.partitions([manifest], manifest.num_rows))
    assert len(partitions) > 1
    tally = sum((partition.tally() for partition in partitions), start=Tally())
    assert (tally.listed, tally.without_row, tally.unlisted) == (11, 2, 0)
    assert tally.doubled == sum(map(len, parts.values())) - len(current)


def test_partitions_name_parts_by_number_and_row(tmp_path: Path) -> None:
    newer, older = scored("/a", ErrorKind.PERMISSION, minute=1), scored("/a")
    parts = {"a": [newer, scored("/b")], "b": [older], "c": [scored("/b", minute=-1)]}
    assert newest(results_of(str(tmp_path), **parts)) == [
        ("/a", "failed", 0, 0),
        ("/b", "ok", 0, 1),
    ]


def test_of_equally_new_rows_the_last_part_by_name_counts(tmp_path: Path) -> None:
    results = results_of(str(tmp_path), c=[scored("/a")], a=[scored("/a", ErrorKind.EMPTY)])
    assert newest(results) == [("/a", "ok", 1, 0)]
    results.write_part("b.parquet", table([scored("/a")]))
    assert newest(results) == [("/a", "ok", 2, 0)]


def test_parts_beyond_those_read_at_once_are_all_read(tmp_path: Path) -> None:
    rows = [scored(f"/{number:02d}") for number in range(40)]
    parts = {f"part-{number:02d}": [row] for number, row in enumerate(rows)}
    results = results_of(str(tmp_path), **parts)
    assert newest(results) == [(row["uri"], "ok", number, 0) for number, row in enumerate(rows)]


def test_an_output_without_parts_has_no_rows(tmp_path: Path) -> None:
    results = Results(str(tmp_path))
    assert newest(results) == []
    assert results.schema() is None
    assert results.count_by_status() == {}
    results.check(CLASSES, MODEL)
    results.compact("run-9")
    assert list(tmp_path.iterdir()) == []


def test_reads_columns_of_the_newest_rows(location: str) -> None:
    results = results_of(
        location,
        b=[scored("/x/b", minute=1), scored("/y/b")],
        a=[scored("/a"), scored("/c", ErrorKind.EMPTY), scored("/x/b", ErrorKind.EMPTY)],
    )
    found = results.read(["uri", "status"], ["a", "b", "c", "none"]).to_pydict()
    assert found["uri"] == ["/a", "/c", "/x/b", "/y/b"]
    assert found["status"] == ["ok", "failed", "ok", "ok"]
    assert results.read(["uri"], ["none"]).num_rows == 0
    schema = results.schema()
    assert schema is not None
    assert schema.equals(SCHEMA, check_metadata=True)


def test_images_are_counted_by_status_once(tmp_path: Path) -> None:
    rows = [scored("/a"), scored("/b", ErrorKind.EMPTY), scored("/c", ErrorKind.EMPTY)]
    results = results_of(str(tmp_path), a=rows, b=[scored("/b", minute=1)])
    assert results.count_by_status() == {"ok": 2, "failed": 1}
    results.compact("run-9")
    results.succeed()
    assert results.count_by_status() == {"ok": 2, "failed": 1}


def test_parts_are_parquet_files_at_the_top(location: str) -> None:
    results = results_of(location, b=[scored("/b")], a=[scored("/a")])
    others = ["_hidden.parquet", "_lesioncam/runs/r/manifest/0.parquet", "nested/c.parquet",
              "notes.txt", "parquet", "d.parquet.tmp", SUCCESS]  # fmt: skip
    for name in others:
        results.store.write(name, b"")
    assert results.parts() == ["a.parquet", "b.parquet"]
    assert [row[0] for row in newest(results)] == ["/a", "/b"]
    results.check(CLASSES, MODEL)
    results.compact("run-9")
    assert all(results.store.exists(name) for name in others)


def test_success_is_removed_first_and_written_last(location: str) -> None:
    results = Results(location)
    results.begin()
    assert not results.store.exists("_SUCCESS")
    results.succeed()
    assert results.store.read("_SUCCESS") == b""
    results.begin()
    assert not results.store.exists("_SUCCESS")


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    results = results_of(str(tmp_path), a=[scored("/a")])
    results.store.write(f"{STAGING}/b.parquet-1f", b"whole")
    (tmp_path / STAGING / ".tmp-17-4").write_bytes(b"half")
    results.discard_staged()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "a.parquet"]


def test_a_part_appears_only_while_its_run_holds_the_output(location: str) -> None:
    def lost() -> None:
        raise RunFailedError("lost")

    results = results_of(location, a=[scored("/a")])
    with pytest.raises(RunFailedError, match="lost"):
        results.write_part("b.parquet", table([scored("/b")]), lost)
    with pytest.raises(RunFailedError, match="another run has taken over"):
        results.write_part("c.parquet", table([scored("/c")]), results.discard_staged)
    with pytest.raises(RunFailedError, match="another run has taken over"):
        results.succeed(results.discard_staged)
    assert names_of(results) == {"a.parquet"}


# Each part is read once a run


class CountingFileSystem:
    """Counts how often each file is opened."""

    def __init__(self, opened: Counter[str]):
        self._opened = opened

    def open_input_file(self, path: str) -> pa.NativeFile:
        self._opened[Path(path).name] += 1
        return pa.fs.LocalFileSystem().open_input_file(path)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part was opened."""
    counts: Counter[str] = Counter()
    filesystem = CountingFileSystem(counts)
    monkeypatch.setattr(LocalStore, "arrow", lambda store: (filesystem, store.uri))
    return counts


def run(results: Results, images: list[Row], new: list[Row]) -> Tally:
    """The steps of a run that need the rows in the output; returns the final tally."""
    manifest = listed(*images)
    results.check(CLASSES, MODEL)
    results.recover()
    pending(results, *images)
    if new:
        results.write_part("part-new.parquet", table(new))
    results.compact("run-9")
    partitions = results.partitions([manifest], manifest.num_rows)
    return sum((partition.tally() for partition in partitions), start=Tally())


def test_a_run_reads_each_part_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Counter[str]
) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 4)
    rows = [scored(f"/{number}") for number in range(8)]
    results = results_of(str(tmp_path), **{"part-1": rows[:4], "part-2": rows[4:]})
    assert run(results, rows, []) == Tally(8, Counter(ok=8))
    assert opened == {"part-1.parquet": 1, "part-2.parquet": 1}


def test_only_parts_that_are_merged_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Counter[str]
) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 4)
    rows = [scored(f"/{number}") for number in range(9)]
    results = results_of(str(tmp_path), **{"part-1": rows[:4], "part-2": rows[4:8]})
    newer = [scored("/7", minute=1), rows[8]]
    assert run(results, rows, newer) == Tally(9, Counter(ok=9))
    assert results.parts() == [
        "compacted-run-9-00000.parquet",
        "part-1.parquet",
        "part-new.parquet",
    ]
    assert opened == {
        "part-1.parquet": 1,
        "part-2.parquet": 2,  # its index, and its rows for the merged file
        "part-new.parquet": 1,
        "compacted-run-9-00000.parquet": 1,
    }


def test_the_final_tally_misses_a_part_that_is_gone(tmp_path: Path) -> None:
    rows = [scored("/a"), scored("/b")]
    results = results_of(str(tmp_path), one=rows[:1], two=rows[1:])
    results.check(CLASSES, MODEL)
    results.store.delete("two.parquet")
    assert run(results, rows, []) == Tally(2, Counter(ok=1), without_row=1)


def test_the_copy_of_the_index_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    results = results_of(str(tmp_path / "out"), a=[scored("/a")])
    results.check(CLASSES, MODEL)
    assert len(list(temporary.rglob("*"))) == 2
    del results
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_a_full_temporary_disk_is_reported_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = results_of(str(tmp_path), a=[scored("/a")])
    monkeypatch.setattr("lesioncam.storage.index.mkdtemp", lambda **_: str(tmp_path / "none"))
    with refused("cannot write to", "TMPDIR", kind=RunFailedError, without=("a.parquet",)):
        results.check(CLASSES, MODEL)


# Compaction


def test_compaction_leaves_the_newest_row_of_each_image_in_one_file(location: str) -> None:
    parts, current = mixed()
    results = results_of(location, **parts)
    results.compact("run-8")
    assert read_all(results) == as_read(current)
    (entry,) = results.store.entries()
    results.compact("run-9")
    assert list(results.store.entries()) == [entry]


def test_compaction_does_not_depend_on_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", 2)
    parts, current = mixed()
    results = results_of(str(tmp_path), **parts)
    results.compact("run-9")
    assert read_all(results) == as_read(current)


def test_compaction_leaves_large_clean_parts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 4)
    large = [scored(f"/{number}") for number in range(4)]
    results = results_of(str(tmp_path), **{"part-1": large, "part-2": [scored("/x")]})
    before = list(results.store.entries())
    results.compact("run-8")
    assert list(results.store.entries()) == before
    results.write_part("part-3.parquet", table([scored("/y")]))
    results.compact("run-9")
    assert before[0] in results.store.entries()
    assert len(results.parts()) == 2
    assert read_all(results) == as_read([*large, scored("/x"), scored("/y")])


def test_compaction_drops_old_rows_of_large_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 4)
    old = [scored(f"/{number}", width=1) for number in range(4)]
    new = [scored("/2", minute=1, width=2), *(scored(f"/{number}") for number in (7, 8, 9))]
    results = results_of(str(tmp_path), **{"part-1": old, "part-2": new})
    results.compact("run-9")
    assert read_all(results) == as_read([*old[:2], old[3], *new])


def test_compacted_files_reach_the_target_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 6)
    rows = [scored(f"/{number:02d}") for number in range(20)]
    parts = {f"part-{i:02d}": rows[2 * i : 2 * i + 2] for i in range(10)}
    results = results_of(str(tmp_path), **parts)
    results.compact("run-9")
    sizes = [pq.read_metadata(tmp_path / name).num_rows for name in results.parts()]
    assert sorted(sizes) == [2, 6, 6, 6]
    assert read_all(results) == as_read(rows)


def test_compaction_checks_before_each_write_who_holds_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 6)
    parts, current = mixed()
    for allowed in range(4):
        results = results_of(str(tmp_path / str(allowed)), **parts)
        budget = iter(range(allowed))

        def check(budget: Iterator[int] = budget) -> None:
            if next(budget, None) is None:
                raise RunFailedError("lost")

        with pytest.raises(RunFailedError, match="lost"):
            results.compact("run-8", check)
        assert set(parts) <= {name.removesuffix(".parquet") for name in results.parts()}
        results.compact("run-9")
        assert read_all(results) == as_read(current)


def test_nothing_is_removed_if_a_merged_file_is_gone(tmp_path: Path) -> None:
    parts, _ = mixed()
    results = results_of(str(tmp_path), **parts)
    before = read_all(results)
    commit = {"added": ["compacted.parquet"], "removed": results.parts(), "written": True}
    results.store.write(COMMIT_FILE, json.dumps(commit).encode())
    with refused(f"remove {COMMIT_FILE} and run", kind=RunFailedError):
        results.recover()
    assert read_all(results) == before


def test_one_run_may_compact_more_than_once(tmp_path: Path) -> None:
    parts, current = mixed()
    results = results_of(str(tmp_path), **parts)
    results.compact("run-8")
    results.write_part("part-8.parquet", table([scored("/z")]))
    results.compact("run-8")
    assert read_all(results) == as_read([*current, scored("/z")])


# An interrupted compaction

ALL_CALLS = 16  # of the store: commit, 2 merged files, commit, 7 parts and the commit removed
WRITTEN_CALLS = 8  # after so many all merged files are written, and the commit says so


def kill_compaction(location: str, patch: pytest.MonkeyPatch, survived: int) -> list[Row]:
    """Parts whose compaction was killed after so many calls; returns the rows that count."""
    patch.setattr("lesioncam.storage.results.PART_ROWS", 6)
    parts, current = mixed()
    results = results_of(location, **parts)
    kill_after(results, survived)
    with pytest.raises(KeyboardInterrupt):
        results.compact("run-8")
    return current


def kill_after(results: Results, survived: int) -> None:
    """The process dies at a write, move or delete of this store after so many."""
    budget = iter(range(survived))

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if next(budget, None) is None:
                raise KeyboardInterrupt
            return real(*args)

        return call

    for name in ("write", "move", "delete"):
        setattr(results.store, name, mortal(getattr(results.store, name)))


def names_of(results: Results) -> set[str]:
    below = len(results.store.uri) + 1
    return {entry.uri[below:] for entry in results.store.entries()}


def test_compaction_takes_so_many_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesioncam.storage.results.PART_ROWS", 6)
    parts, current = mixed()
    results = results_of(str(tmp_path), **parts)
    kill_after(results, ALL_CALLS)
    results.compact("run-8")
    assert len(results.parts()) == len(names_of(results)) == 2
    assert read_all(results) == as_read(current)


@pytest.mark.parametrize("survived", range(ALL_CALLS))
def test_a_killed_compaction_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    current = kill_compaction(str(tmp_path), monkeypatch, survived)
    results = Results(str(tmp_path))
    ids = [row["image_id"] for row in current]
    found = results.read(["uri", "status", "width"], ids).sort_by("uri").to_pylist()
    assert found == table(current).select(["uri", "status", "width"]).to_pylist()
    assert pending(results, *current) == ["/d"]
    results.discard_staged()
    results.recover()
    parts, _ = mixed()
    if survived < WRITTEN_CALLS:  # undone
        assert read_all(results) == as_read(row for rows in parts.values() for row in rows)
    else:  # finished
        assert read_all(results) == as_read(current)
    results.compact("run-9")
    assert read_all(results) == as_read(current)
    assert len(names_of(results)) == 2


@pytest.mark.parametrize(
    ("survived", "next_run"),
    [(0, "run-9"), (4, "run-8"), (WRITTEN_CALLS, "run-8"), (ALL_CALLS - 1, "run-9")],
)
def test_compaction_recovers_by_itself(
    location: str, monkeypatch: pytest.MonkeyPatch, survived: int, next_run: str
) -> None:
    current = kill_compaction(location, monkeypatch, survived)
    results = Results(location)
    results.discard_staged()
    results.compact(next_run)
    assert read_all(results) == as_read(current)
    assert len(names_of(results)) == 2


@pytest.mark.parametrize("survived", range(ALL_CALLS))
def test_a_killed_recovery_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    current = kill_compaction(str(tmp_path), monkeypatch, survived)
    for further in range(ALL_CALLS):
        results = Results(str(tmp_path))
        kill_after(results, further)
        with suppress(KeyboardInterrupt):
            results.recover()
        assert {row["uri"] for row in read_all(results)} == {row["uri"] for row in current}
    assert not results.store.exists(COMMIT_FILE)
    results = Results(str(tmp_path))
    results.compact("run-9")
    assert read_all(results) == as_read(current)


def test_rows_of_a_later_run_outlive_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = kill_compaction(str(tmp_path), monkeypatch, WRITTEN_CALLS + 2)
    results = Results(str(tmp_path))
    results.write_part("part-8.parquet", table([scored("/a", minute=9), scored("/z")]))
    results.compact("run-9")
    assert read_all(results) == as_read([scored("/a", minute=9), *current[1:], scored("/z")])


# What pandas reads


def test_pandas_reads_the_output_and_nothing_else(location: str) -> None:
    parts, current = mixed()
    results = results_of(location, **parts)
    results.store.write("_lesioncam/runs/run-1/manifest/000000.parquet", b"no scores")
    results.succeed()
    for compacted in (False, True):
        if compacted:
            results.compact("run-9")
        filesystem, root = results.store.arrow()
        frame = pd.read_parquet(root, filesystem=filesystem)
        assert list(frame.columns) == SCHEMA.names
        assert set(frame["uri"]) == {row["uri"] for row in current}
        assert str(frame["width"].dtype) == str(frame["box_x0"].dtype) == "Int32"
        assert str(frame["size"].dtype) == "Int64"
        assert str(frame["cam_flat"].dtype) == "boolean"
        assert frame.loc[frame["status"] == "failed", "p_nevus"].isna().all()
        for name in results.parts():
            schema = pq.read_schema(f"{root}/{name}", filesystem=filesystem)
            assert schema.equals(SCHEMA, check_metadata=True)


# Refusals


def test_the_same_model_is_not_refused(location: str) -> None:
    parts, _ = mixed()
    results = results_of(location, empty=[], **parts)
    results.check(CLASSES, MODEL)
    results.compact("run-9")
    assert Results(location).check(CLASSES, MODEL) == "int8"


def test_rows_of_several_or_unknown_precisions_are_refused(tmp_path: Path) -> None:
    results = Results(str(tmp_path))
    assert results.check(CLASSES, MODEL) is None
    for name, precision in (("a", "int8"), ("b", "int8"), ("c", "float32"), ("d", None)):
        if name == "c":
            assert Results(str(tmp_path)).check(CLASSES, MODEL) == "int8"
        if name == "d":
            with refused("--output", "c.parquet", "several precisions", kind=InputError):
                Results(str(tmp_path)).check(CLASSES, MODEL)
        schema = scores_schema(CLASSES, precision=precision)
        rows = pa.Table.from_pylist([scored(f"/{name}")], schema)
        results.write_part(f"{name}.parquet", rows)
    with refused("--output", "d.parquet", "does not say", "another output", kind=InputError):
        Results(str(tmp_path)).check(CLASSES, MODEL)


def test_parts_with_kept_columns_are_compacted_and_checked_in_any_order(location: str) -> None:
    results, schema = Results(location), scores_schema(CLASSES, ["patient", "site"], "int8")
    rows = [scored(f"/{name}") | {"patient": name, "site": None} for name in "abc"]
    for number, row in enumerate(rows):
        results.write_part(f"{number}.parquet", pa.Table.from_pylist([row], schema))
    results.check(CLASSES, MODEL, ["site", "patient"])
    results.compact("run-9")
    (part,) = results.parts()
    filesystem, root = results.store.arrow()
    found = pq.read_table(f"{root}/{part}", filesystem=filesystem)
    assert found.schema.equals(schema, check_metadata=True)
    assert found["patient"].to_pylist() == ["a", "b", "c"]
    Results(location).check(CLASSES, MODEL, ["patient", "site"])


@pytest.mark.parametrize(
    ("had", "asked", "parts"),
    [
        (["patient", "site"], [], ("patient,site kept", "give --keep-columns patient,site")),
        (["patient"], ["site"], ("patient kept", "give --keep-columns patient,")),
        ([], ["site"], ("no columns kept", "leave it out")),
    ],
)
def test_other_kept_columns_are_refused(
    tmp_path: Path, had: list[str], asked: list[str], parts: tuple[str, ...]
) -> None:
    results = Results(str(tmp_path))
    rows = [scored("/a") | dict.fromkeys(had, "Doe")]
    results.write_part("a.parquet", pa.Table.from_pylist(rows, scores_schema(CLASSES, had)))
    expected = ("--keep-columns", str(tmp_path), *parts, "another output")
    with refused(*expected, kind=InputError, without=("Doe",)):
        results.check(CLASSES, MODEL, asked)


@pytest.mark.parametrize("classes", [CLASSES, ("a", "b", "c")])
def test_another_model_is_refused_with_both_digests(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    results = results_of(str(tmp_path), a=[scored("/a")], b=[scored("/b")])
    with refused("--output", MODEL, OTHER_MODEL, "another output", kind=InputError):
        results.check(classes, OTHER_MODEL)


def test_one_row_of_another_model_is_refused(tmp_path: Path) -> None:
    rows = [scored("/a"), scored("/b", model=OTHER_MODEL), scored("/c")]
    with refused("--output", MODEL, OTHER_MODEL, kind=InputError):
        results_of(str(tmp_path), a=[scored("/d")], b=rows).check(CLASSES, MODEL)


def test_foreign_files_are_refused(location: str) -> None:
    results = results_of(location, a=[scored("/a")])
    results.write_part("b.parquet", pa.table({"uri": ["/a"], "age": [50]}))
    with refused("--output", f"{location}/b.parquet", "not written by lesioncam", kind=InputError):
        results.check(CLASSES, MODEL)
    results.store.write("b.parquet", b"no Parquet at all")
    with refused(f"{location}/b.parquet", "not written by lesioncam", kind=InputError):
        Results(location).check(CLASSES, MODEL)


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
def test_other_columns_are_refused(tmp_path: Path, change: Any) -> None:
    results = Results(str(tmp_path))
    results.write_part("a.parquet", change(table([scored("/a")])))
    with refused("--output", f"{tmp_path}/a.parquet", "columns", kind=InputError):
        results.check(CLASSES, MODEL)
