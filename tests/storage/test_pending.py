"""Pending: the one rule of what to score, the newest rows, and partitions that agree with it."""

import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lesioncam.columns import TRANSIENT_KINDS, ErrorKind, Status
from lesioncam.schema import MANIFEST_SCHEMA
from lesioncam.storage.listing import image_id
from lesioncam.storage.pending import (
    INDEX_SCHEMA,
    Partition,
    Tally,
    count_shared_ids,
    partitions,
    regroup,
    split_newest,
    with_version,
)

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

Row = dict[str, Any]


def row(
    uri: str,
    kind: ErrorKind | None = None,
    *,
    minute: int = 0,
    etag: str | None = "e1",
    size: int | None = 10,
    modified: datetime | None = NOON,
    archived: bool | None = None,
    part: int = 0,
    row_in_part: int = 0,
) -> Row:
    """A written row; failed where there is an error kind."""
    return {
        "uri": uri,
        "image_id": uri,
        "status": Status.FAILED if kind else Status.OK,
        "error_kind": kind,
        "size": size,
        "etag": etag,
        "last_modified": modified,
        "archived": archived,
        "kept": None,
        "scored_at": NOON + timedelta(minutes=minute),
        "part": part,
        "row_in_part": row_in_part,
    }


def written(*rows: Row) -> pa.Table:
    """Rows in `INDEX_SCHEMA`."""
    fields = [*MANIFEST_SCHEMA, *INDEX_SCHEMA]
    schema = pa.schema({field.name: field for field in fields if field.name != "version"}.values())
    return with_version(pa.Table.from_pylist(rows, schema)).select(INDEX_SCHEMA.names)


def listed(*rows: Row, first: int = 0) -> pa.Table:
    """A manifest of the objects these rows were made from."""
    names = MANIFEST_SCHEMA.names[1:]
    manifest = [
        {"row": number, **{name: row[name] for name in names}}
        for number, row in enumerate(rows, first)
    ]
    return pa.Table.from_pylist(manifest, schema=MANIFEST_SCHEMA)


def one_partition(manifest: pa.Table, rows: pa.Table) -> Partition:
    (partition,) = partitions([manifest], [rows], manifest.num_rows + rows.num_rows)
    return partition


def pending(manifest: pa.Table, rows: pa.Table, *, retry_failed: bool = False) -> list[str]:
    uris: list[str] = (
        one_partition(manifest, rows).pending(retry_failed=retry_failed)["uri"].to_pylist()
    )
    return uris


# Pending images


def test_with_nothing_written_all_are_pending() -> None:
    manifest = listed(row("/b"), row("/a", etag=None), row("/c", size=None))
    assert pending(manifest, written()) == ["/b", "/a", "/c"]


def test_written_rows_are_not_pending() -> None:
    rows = [row("/a"), row("/b", etag=None), row("/c", ErrorKind.EMPTY)]
    assert pending(listed(*rows), written(*rows)) == []
    assert pending(listed(row("/new"), *rows), written(*rows)) == ["/new"]


def test_pending_images_keep_the_order_and_columns_of_the_manifest() -> None:
    rows = [row(f"/{number}", size=number) for number in (5, 3, 9, 1, 7)]
    manifest = listed(*rows)
    found = one_partition(manifest, written(rows[2])).pending(retry_failed=False)
    assert found.schema.equals(MANIFEST_SCHEMA)
    assert found.to_pylist() == manifest.take([0, 1, 3, 4]).to_pylist()


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
def test_a_changed_object_is_pending(before: Any, after: Any) -> None:
    rows = written(row("/a", **before), row("/b"))
    assert pending(listed(row("/a", **after), row("/b")), rows) == ["/a"]
    assert pending(listed(row("/a", **before), row("/b")), rows) == []


def test_the_version_is_the_newest_rows() -> None:
    rows = written(row("/a", etag="e1"), row("/a", etag="e2", minute=1))
    assert pending(listed(row("/a", etag="e1")), rows) == ["/a"]
    assert pending(listed(row("/a", etag="e2")), rows) == []


@pytest.mark.parametrize("kind", ErrorKind)
def test_transient_failures_are_pending(kind: ErrorKind) -> None:
    rows = [row("/ok"), row("/failed", kind)]
    expected = ["/failed"] if kind in ("permission", "unreachable") else []
    assert pending(listed(*rows), written(*rows)) == expected


@pytest.mark.parametrize(
    ("listed_as", "expected"), [(True, []), (None, []), (False, ["/archived"])]
)
def test_an_archived_image_is_pending_when_the_listing_shows_it_restored(
    listed_as: bool | None, expected: list[str]
) -> None:
    rows = written(row("/ok"), row("/truncated", ErrorKind.TRUNCATED),
                   row("/archived", ErrorKind.ARCHIVED))  # fmt: skip
    names = ("/ok", "/truncated", "/archived")
    manifest = listed(*(row(name, archived=listed_as) for name in names))
    assert pending(manifest, rows) == expected


def test_retrying_makes_all_failures_pending() -> None:
    rows = [row("/ok"), *(row(f"/{kind}", kind) for kind in ErrorKind)]
    found = pending(listed(*rows), written(*rows), retry_failed=True)
    assert found == [f"/{kind}" for kind in ErrorKind]


def test_an_image_without_version_counts_as_written() -> None:
    gone = row("/gone", ErrorKind.NOT_FOUND, etag=None, size=None, modified=None)
    assert pending(listed(gone), written(gone)) == []


def test_the_same_version_of_another_image_does_not_count() -> None:
    assert pending(listed(row("/a"), row("/copy of a")), written(row("/a"))) == ["/copy of a"]


def test_the_version_is_the_etag_or_size_and_time_or_nothing() -> None:
    rows = [row("/a"), row("/b", etag=""), row("/c", etag=None), row("/d", etag=None, size=None)]
    versions = with_version(listed(*rows))["version"].to_pylist()
    assert versions == ["e1", "", f"10@{int(NOON.timestamp() * 1e6)}", ""]


# The newest row


def newest(*rows: Row) -> list[tuple[str, int, int]]:
    """The uri, part and row_in_part of each image's newest row."""
    found, _ = split_newest(written(*rows))
    return [(item["uri"], item["part"], item["row_in_part"]) for item in found.to_pylist()]


def test_the_newest_row_counts_wherever_it_stands() -> None:
    rows = [
        row("/a", ErrorKind.PERMISSION, minute=1, part=0, row_in_part=0),
        row("/b", part=0, row_in_part=1),
        row("/a", part=1, row_in_part=0),
        row("/b", minute=-1, part=2, row_in_part=0),
    ]
    assert newest(*rows) == newest(*reversed(rows)) == [("/a", 0, 0), ("/b", 0, 1)]
    assert pending(listed(row("/a")), written(*rows)) == ["/a"]


def test_of_equally_new_rows_the_last_part_counts() -> None:
    rows = [row("/a", part=1), row("/a", ErrorKind.EMPTY, part=2), row("/a", part=0)]
    assert newest(*rows) == [("/a", 2, 0)]


def test_of_equally_new_rows_of_one_part_one_counts() -> None:
    rows = [row("/a", row_in_part=row_in_part) for row_in_part in range(3)]
    first, others = split_newest(written(*rows))
    assert (first.num_rows, others.num_rows) == (1, 2)
    assert {*first["row_in_part"].to_pylist(), *others["row_in_part"].to_pylist()} == {0, 1, 2}


def test_the_newest_of_one_part_counts() -> None:
    rows = [
        row("/a", minute=minute, row_in_part=row_in_part)
        for row_in_part, minute in enumerate((1, 3, 2))
    ]
    assert newest(*rows) == [("/a", 0, 1)]


def test_the_other_rows_are_given_by_part_and_row() -> None:
    rows = [
        row("/a", part=3, row_in_part=1),
        row("/a", minute=1),
        row("/b"),
        row("/a", part=2, row_in_part=5),
    ]
    _, older = split_newest(written(*rows))
    assert {tuple(item.values()) for item in older.to_pylist()} == {(3, 1), (2, 5)}
    assert older.column_names == ["part", "row_in_part"]


def test_of_no_rows_none_is_the_newest() -> None:
    first, others = split_newest(written())
    assert first.schema.equals(INDEX_SCHEMA)
    assert (first.num_rows, others.num_rows) == (0, 0)


# Counting


def test_the_tally_counts_rows_against_the_listing() -> None:
    images = [
        row("/ok"),
        row("/empty", ErrorKind.EMPTY),
        row("/permission", ErrorKind.PERMISSION),
        row("/also ok"),
        row("/new"),
        row("/changed", etag="e2"),
    ]
    rows = [*images[:4], row("/changed"), row("/not listed"), row("/nor this", ErrorKind.EMPTY)]
    assert one_partition(listed(*images), written(*rows)).tally() == Tally(
        listed=6,
        outcomes=Counter(ok=3, empty=1, permission=1),
        without_row=2,
        unlisted=2,
    )


def test_older_rows_are_counted_as_duplicates() -> None:
    rows = [row("/a"), row("/a", part=1), row("/b"), row("/a", minute=1), row("/x"), row("/x")]
    tally = one_partition(listed(row("/a"), row("/b")), written(*rows)).tally()
    assert tally == Tally(2, Counter(ok=2), without_row=0, unlisted=1, doubled=3)


def test_without_anything_the_tally_is_empty() -> None:
    assert one_partition(listed(), written()).tally() == Tally()
    assert one_partition(listed(), written(row("/a"))).tally() == Tally(unlisted=1)
    assert one_partition(listed(row("/a")), written()).tally() == Tally(listed=1, without_row=1)


def test_tallies_add() -> None:
    one = Tally(5, Counter(ok=2, empty=1), without_row=2, unlisted=3, doubled=1)
    other = Tally(7, Counter(ok=3, too_large=4), without_row=0, unlisted=1, doubled=10)
    both = Tally(12, Counter(ok=5, empty=1, too_large=4), without_row=2, unlisted=4, doubled=11)
    assert one + other == other + one == both
    assert sum([one, other], start=Tally()) == both
    assert one + Tally() == one


# An image that is listed more than once


def test_repeated_uris_are_pending_once_and_counted() -> None:
    manifest = listed(row("/a"), row("/b"), row("/a"), row("/a", etag="e2"))
    partition = one_partition(manifest, written())
    assert partition.repeated == 2
    assert partition.listed.to_pylist() == manifest.take([0, 1]).to_pylist()
    assert partition.pending(retry_failed=False).to_pylist() == partition.listed.to_pylist()
    assert partition.tally() == Tally(listed=2, without_row=2)


def test_repeated_uris_of_several_tables_are_counted() -> None:
    tables = [listed(row("/a"), row("/b")), listed(row("/b"), row("/c"), first=2)]
    (partition,) = partitions(tables, [written(row("/b"))], 5)
    assert partition.repeated == 1
    assert partition.pending(retry_failed=False)["row"].to_pylist() == [0, 3]


# Several partitions

Pile = tuple[list[pa.Table], list[pa.Table], int]


@pytest.fixture
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", 90)
    monkeypatch.setattr("lesioncam.storage.pending._CHUNK_ROWS", 64)


def in_pieces(table: pa.Table, draw: random.Random) -> list[pa.Table]:
    """The same rows as tables of any size, some of them empty."""
    cuts = sorted(draw.choices(range(table.num_rows + 1), k=12))
    bounds = zip([0, *cuts], [*cuts, table.num_rows], strict=True)
    return [table.slice(start, end - start) for start, end in bounds]


def random_case(seed: int) -> tuple[list[Row], list[Row]]:
    """What is listed, with repeats, and what is written, with several rows an image."""
    draw = random.Random(seed)
    stems = ["ISIC_{}", "é ü/{}", "画像/{}", "e\u0301{}", "😀{}", "a b#%20/{}", "../{}", "//{}"]
    uris = [f"s3://bucket/{draw.choice(stems).format(number)}.jpg" for number in range(600)]
    objects: list[Row] = [{"etag": "e1"}, {"etag": "e2"}, {"etag": None}]
    objects += [{"etag": None, "size": 11}, {"etag": None, "size": None}]
    images = []
    rows: list[Row] = []
    for uri in uris:
        listed_as = draw.choice(objects)
        images.append(row(uri, **listed_as))
        for part in draw.sample(range(9), draw.choice([0, 1, 1, 1, 2, 4])):
            written_as = draw.choice(objects) if draw.random() < 0.2 else listed_as
            kind = draw.choice(list(ErrorKind)) if draw.random() < 0.4 else None
            row_in_part, minute = len(rows), draw.randrange(5)
            rows.append(
                row(uri, kind, minute=minute, part=part, row_in_part=row_in_part, **written_as)
            )
    draw.shuffle(rows)
    images = images[:450]  # the others have rows and are not listed
    images += [row(image["uri"], **draw.choice(objects)) for image in draw.choices(images, k=80)]
    draw.shuffle(images)
    return images, rows


def piled(images: list[Row], rows: list[Row], seed: int = 0) -> Pile:
    draw = random.Random(seed)
    tables = in_pieces(listed(*images), draw), in_pieces(written(*rows), draw)
    return *tables, len(images) + len(rows)


def counting_rows(found: Iterable[Row]) -> dict[str, Row]:
    """Of each image the row that counts: the newest, and of those the last part's."""
    order = sorted(found, key=lambda row: (row["scored_at"], row["part"]))
    return {row["uri"]: row for row in order}


def version(row: Row) -> Any:
    if row["etag"] is not None:
        return row["etag"]
    return (row["size"], row["last_modified"]) if row["size"] is not None else ""


def expected_pending(images: list[Row], rows: list[Row], *, retry_failed: bool) -> list[int]:
    """The rule once more, in plain Python: which rows of the manifest are pending."""
    counting = counting_rows(rows)
    seen: set[str] = set()
    numbers = []
    for number, image in enumerate(images):
        found = counting.get(image["uri"])
        again = found and found["error_kind"] and (retry_failed or is_transient(found))
        if image["uri"] not in seen and (not found or again or not same(found, image)):
            numbers.append(number)
        seen.add(image["uri"])
    return numbers


def same(row: Row, image: Row) -> bool:
    """Whether a row is of the object that was listed; one of which nothing is known may be."""
    return version(image) in ("", version(row))


def is_transient(row: Row) -> bool:
    return row["error_kind"] in TRANSIENT_KINDS


def expected_tally(images: list[Row], rows: list[Row]) -> Tally:
    counting = counting_rows(rows)
    once = {image["uri"]: image for image in reversed(images)}
    there = [row for uri, row in counting.items() if uri in once]
    current = [row for row in there if same(row, once[row["uri"]])]
    return Tally(
        listed=len(once),
        outcomes=Counter(str(row["error_kind"] or row["status"]) for row in there),
        without_row=len(once) - len(current),
        unlisted=len(counting) - len(there),
        doubled=len(rows) - len(counting),
    )


def pending_numbers(found: Iterable[Partition], *, retry_failed: bool) -> list[int]:
    tables = [partition.pending(retry_failed=retry_failed) for partition in found]
    return sorted(number for table in tables for number in table["row"].to_pylist())


def test_all_rows_of_an_image_are_in_one_partition(small_partitions: None) -> None:
    images, rows = random_case(1)
    found = list(partitions(*piled(images, rows)))
    assert len(found) > 10
    listed_uris = [uri for one in found for uri in one.listed["uri"].to_pylist()]
    assert sorted(listed_uris) == sorted({image["uri"] for image in images})
    row_uris = [uri for one in found for uri in one.newest["uri"].to_pylist()]
    assert sorted(row_uris) == sorted({row["uri"] for row in rows})
    uris = [{*one.listed["uri"].to_pylist(), *one.newest["uri"].to_pylist()} for one in found]
    assert sum(map(len, uris)) == len(set.union(*uris))
    tables = [table for one in found for table in (one.newest, one.older)]
    numbers = [number for table in tables for number in table["row_in_part"].to_pylist()]
    assert sorted(numbers) == list(range(len(rows)))
    sizes = [one.listed.num_rows + one.newest.num_rows + one.older.num_rows for one in found]
    assert max(sizes) < 2 * 90


@pytest.mark.parametrize("seed", range(3))
def test_several_partitions_give_what_one_gives(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    images, rows = random_case(seed)
    tally = expected_tally(images, rows)
    assert min(tally.without_row, tally.unlisted, tally.doubled) > 50
    monkeypatch.setattr("lesioncam.storage.pending._CHUNK_ROWS", 64)
    for partition_rows in (250_000, 1000, 90):
        monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", partition_rows)
        found = list(partitions(*piled(images, rows, seed)))
        assert (len(found) == 1) == (partition_rows == 250_000)
        assert sum((one.tally() for one in found), start=Tally()) == tally
        assert sum(one.repeated for one in found) == 80
        for retry_failed in (False, True):
            expected = expected_pending(images, rows, retry_failed=retry_failed)
            assert 50 < len(expected) < 400
            assert pending_numbers(found, retry_failed=retry_failed) == expected


def test_many_images_do_not_become_too_many_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", 1)
    monkeypatch.setattr("lesioncam.storage.pending._MAX_PARTITIONS", 7)
    images, rows = random_case(4)
    found = list(partitions(*piled(images, rows)))
    assert len(found) == 7
    expected = expected_pending(images, rows, retry_failed=False)
    assert pending_numbers(found, retry_failed=False) == expected


def test_a_partition_may_have_nothing_listed_or_nothing_written(small_partitions: None) -> None:
    images, rows = random_case(5)
    of_rows = list(partitions([], [written(*rows)], len(rows)))
    assert len(of_rows) > 1
    assert pending_numbers(of_rows, retry_failed=True) == []
    assert sum(one.tally().unlisted for one in of_rows) == len(counting_rows(rows))
    of_images = list(partitions([listed(*images)], [], len(images)))
    assert len(of_images) > 1
    assert len(pending_numbers(of_images, retry_failed=True)) == len(images) - 80


# What waits on disk


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_partitions: None) -> Path:
    """Where partitions wait, and nothing else."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_nothing_waits_once_all_partitions_are_taken(waiting: Path) -> None:
    for _ in partitions(*piled(*random_case(6))):
        assert len(list(waiting.iterdir())) == 1
    assert list(waiting.iterdir()) == []


def test_a_partition_that_is_taken_waits_no_longer(waiting: Path) -> None:
    counts = [len(list(waiting.rglob("*"))) for _ in partitions(*piled(*random_case(6)))]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == len(counts)


def test_nothing_waits_once_the_partitions_are_closed(waiting: Path) -> None:
    found = partitions(*piled(*random_case(6)))
    next(found)
    assert list(waiting.iterdir()) != []
    found.close()  # type: ignore[attr-defined]
    assert list(waiting.iterdir()) == []


def test_nothing_waits_once_the_partitions_are_forgotten(waiting: Path) -> None:
    assert next(partitions(*piled(*random_case(6)))).listed.num_rows
    assert list(waiting.iterdir()) == []


@pytest.mark.parametrize("faulty", [0, 1])
def test_nothing_waits_after_a_fault(waiting: Path, faulty: int) -> None:
    def broken(tables: list[pa.Table]) -> Iterator[pa.Table]:
        yield from tables[:-1]
        raise OSError("away")

    images, rows, count = piled(*random_case(6))
    sources: list[Iterable[pa.Table]] = [images, rows]
    sources[faulty] = broken([images, rows][faulty])
    with pytest.raises(OSError, match="away"):
        next(partitions(sources[0], sources[1], count))
    assert list(waiting.iterdir()) == []


# Tables put together


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([0, 0], []),
        ([3], [3]),
        ([1, 2, 3, 0, 4, 1], [3, 3, 4, 1]),
        ([0, 7, 0, 2], [7, 2]),
        ([1, 1], [2]),
    ],
)
def test_tables_are_put_together(sizes: list[int], expected: list[int]) -> None:
    tables = [pa.table({"number": pa.array(range(size), pa.int64())}) for size in sizes]
    found = list(regroup(tables, 3))
    assert [table.num_rows for table in found] == expected
    together = [number for table in found for number in table["number"].to_pylist()]
    assert together == [number for size in sizes for number in range(size)]


def test_an_image_that_could_not_be_examined_keeps_its_row() -> None:
    unknown: Row = {"etag": None, "size": None, "last_modified": None}
    manifest = listed(*(row(uri) | unknown for uri in ("/a", "/b", "/c")))
    rows = written(row("/a"), row("/b", ErrorKind.UNREACHABLE))
    assert pending(manifest, rows) == ["/b", "/c"]
    assert one_partition(manifest, rows).tally().without_row == 1


def test_ids_that_several_images_have_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", 2)
    uris = [
        "/a/1.jpg",
        "/b/1.jpg",
        "/b/1.jpg",
        "/a/2.jpg",
        "/a/2.jpg",
        "/c/1.png",
        "/3.jpg",
        "/d/3",
    ]
    rows = [row(uri) | {"image_id": image_id(uri)} for uri in uris]
    assert count_shared_ids([listed(*rows[:3]), listed(*rows[3:], first=3)], len(rows)) == 2
    assert count_shared_ids([], 0) == 0
