"""Listing: which files count as images, lists of uris, and the manifest."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from lesioncam.errors import InputError, RunBroke
from lesioncam.schema import MANIFEST_SCHEMA
from lesioncam.storage.listing import (
    Listing,
    image_id,
    is_image_name,
    read_tables,
    write_manifest,
)
from lesioncam.storage.store import Entry, open_store
from tests.storage.conftest import refused


def fill(place: str, *names: str) -> None:
    for name in names:
        open_store(place).write(name, b"12345")


def write_list(place: str, ending: str, uris: Sequence[str | None], column: str = "uri") -> str:
    """A list of uris beside other columns; returns its own uri."""
    frame = pd.DataFrame({"note": ["x"] * len(uris), column: list(uris)})
    sink = io.BytesIO()
    if ending == "csv":
        frame.to_csv(sink, index=False)
    else:
        frame.to_parquet(sink)
    open_store(place).write(f"list.{ending}", sink.getvalue())
    return f"{place}/list.{ending}"


def uris(listing: Listing) -> list[str]:
    return [entry.uri for entry in listing]


ENDINGS = pytest.mark.parametrize("ending", ["csv", "parquet"])


# Directories and prefixes


def test_lists_recursively(place: str) -> None:
    fill(place, "a.jpg", "b/c.jpg", "b/d/e/f.png")
    expected = {f"{place}/a.jpg", f"{place}/b/c.jpg", f"{place}/b/d/e/f.png"}
    listing = Listing(place)
    assert set(uris(listing)) == expected
    assert listing.ignored == 0
    assert set(uris(Listing(place + "/"))) == expected


def test_lists_what_the_store_knows(place: str) -> None:
    fill(place, "a.jpg")
    assert list(Listing(place)) == list(open_store(place).entries())


def test_counts_what_is_not_an_image_as_ignored(place: str) -> None:
    fill(place, "a.jpg", "a_superpixels.png", "b/A_Superpixels.PNG", "notes.txt", "jpg", "x/.jpg")
    fill(place, "b.jpg.part", "c.csv")
    listing = Listing(place)
    assert uris(listing) == [f"{place}/a.jpg"]
    assert listing.ignored == 7


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"])
def test_takes_endings_in_any_case(ending: str) -> None:
    for written in (ending, ending.upper(), ending.title()):
        assert is_image_name(f"s3://bucket/a#b/ISIC_1.{written}")


@pytest.mark.parametrize(
    "name",
    ["/x/a_superpixels.png", "/x/A_SUPERPIXELS.PNG", "/x/a.txt", "/x/jpg", "/x/.jpg", "/x.jpg/a",
     "s3://bucket/a.jpg.gz", "/x/a.jpg~"],
)  # fmt: skip
def test_takes_nothing_else_for_an_image(name: str) -> None:
    assert not is_image_name(name)


@pytest.mark.parametrize("name", ["/x/superpixels.png", "/x/a_superpixels.jpg", "/x/a.b.jpg"])
def test_takes_names_that_only_look_ignored(name: str) -> None:
    assert is_image_name(name)


def test_a_place_without_images_is_refused(place: str) -> None:
    fill(place, "notes.txt", "a_superpixels.png")
    with refused("--images", place, "2 other files ignored", ".jpg", kind=InputError):
        list(Listing(place))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with refused("--images", str(tmp_path), kind=InputError):
        list(Listing(str(tmp_path)))


def test_a_place_that_is_not_there_is_refused(place: str) -> None:
    with refused("--images", place, kind=InputError):
        list(Listing(place))


def test_the_flag_in_messages_is_the_one_given(place: str) -> None:
    with refused("--val-images", place, kind=InputError):
        list(Listing(place, "--val-images"))


def test_a_single_image_is_no_place(tmp_path: Path) -> None:
    fill(str(tmp_path), "a.jpg")
    with refused("--images", "a.jpg", kind=InputError):
        list(Listing(str(tmp_path / "a.jpg")))


def test_a_bucket_that_is_not_there_is_refused(s3_server: str) -> None:
    with refused("s3://no-such-bucket/x", kind=InputError):
        list(Listing("s3://no-such-bucket/x"))


def test_a_server_that_is_away_breaks_the_run(unreachable: str) -> None:
    with refused(unreachable, kind=RunBroke):
        list(Listing(unreachable))


def test_another_scheme_is_refused() -> None:
    with refused("gs://bucket/x", kind=InputError):
        list(Listing("gs://bucket/x"))


def test_a_file_uri_lists_absolute_paths(tmp_path: Path) -> None:
    folder = tmp_path / "a b#"
    fill(str(folder), "c.jpg")
    assert uris(Listing(folder.as_uri())) == [str(folder / "c.jpg")]


# Lists


@ENDINGS
def test_a_list_keeps_its_order(place: str, ending: str) -> None:
    fill(place, "a b.jpg", "é#%20.jpg", "c.png")
    wanted = [f"{place}/{name}" for name in ("é#%20.jpg", "c.png", "a b.jpg")]
    listing = Listing(write_list(place, ending, wanted))
    entries = list(listing)
    assert [entry.uri for entry in entries] == wanted
    assert {entry.size for entry in entries} == {5}
    assert set(entries) <= set(open_store(place).entries())
    assert listing.ignored == 0


@ENDINGS
def test_repeated_uris_count_as_ignored(place: str, ending: str) -> None:
    fill(place, "a.jpg", "b.jpg")
    a, b = f"{place}/a.jpg", f"{place}/b.jpg"
    listing = Listing(write_list(place, ending, [a, b, a, a]))
    assert uris(listing) == [a, b]
    assert listing.ignored == 2


@ENDINGS
def test_a_listed_file_that_is_not_there_stays_listed(place: str, ending: str) -> None:
    fill(place, "a.jpg")
    gone = f"{place}/gone.jpg"
    entries = list(Listing(write_list(place, ending, [gone, f"{place}/a.jpg"])))
    assert entries[0] == Entry(gone, None, None, None)
    assert entries[1].size == 5


def test_a_listed_file_out_of_reach_stays_listed(unreachable: str, tmp_path: Path) -> None:
    source = write_list(str(tmp_path), "csv", [f"{unreachable}/a.jpg"])
    assert list(Listing(source)) == [Entry(f"{unreachable}/a.jpg", None, None, None)]


def test_relative_paths_of_a_list_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(str(tmp_path), "x/a.jpg")
    listing = Listing(write_list(str(tmp_path), "csv", ["x/a.jpg", "./x/a.jpg"]))
    assert uris(listing) == [str(tmp_path / "x" / "a.jpg")]
    assert listing.ignored == 1


def test_file_uris_of_a_list_become_absolute_paths(tmp_path: Path) -> None:
    image = tmp_path / "a b#.jpg"
    fill(str(tmp_path), image.name)
    (entry,) = Listing(write_list(str(tmp_path), "csv", [image.as_uri()]))
    assert (entry.uri, entry.size) == (str(image), 5)


def test_the_ending_of_a_list_counts_in_any_case(place: str) -> None:
    fill(place, "a.jpg")
    open_store(place).write("LIST.CSV", f"uri\n{place}/a.jpg\n".encode())
    assert uris(Listing(f"{place}/LIST.CSV")) == [f"{place}/a.jpg"]


@ENDINGS
def test_a_list_without_the_column_is_refused(place: str, ending: str) -> None:
    source = write_list(place, ending, ["a.jpg"], column="path")
    with refused("--images", source, "'uri'", kind=InputError):
        list(Listing(source))


def test_a_list_without_a_header_names_no_image(place: str) -> None:
    open_store(place).write("list.csv", b"/x/Jane_Doe.jpg\n/x/John_Doe.jpg\n")
    with refused("--images", "'uri'", kind=InputError, without=("Doe",)):
        list(Listing(f"{place}/list.csv"))


@pytest.mark.parametrize("empty", ["", None])
@ENDINGS
def test_a_list_with_an_empty_uri_is_refused(place: str, ending: str, empty: str | None) -> None:
    source = write_list(place, ending, ["s3://bucket/Jane_Doe.jpg", empty])
    with refused("--images", source, "uri", kind=InputError, without=("Doe",)):
        list(Listing(source))


@ENDINGS
def test_a_list_without_rows_is_refused(place: str, ending: str) -> None:
    source = write_list(place, ending, [])
    with refused("--images", source, kind=InputError):
        list(Listing(source))


@ENDINGS
@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00junk", b'"\n', b"uri,b\na.jpg,1\nb,1,1,1\n"])
def test_a_list_that_is_no_table_is_refused(place: str, ending: str, data: bytes) -> None:
    open_store(place).write(f"list.{ending}", data)
    with refused("--images", f"{place}/list.{ending}", kind=InputError):
        list(Listing(f"{place}/list.{ending}"))


@ENDINGS
def test_a_list_that_is_not_there_is_refused(place: str, ending: str) -> None:
    with refused("--images", f"{place}/none.{ending}", kind=InputError):
        list(Listing(f"{place}/none.{ending}"))


def test_a_list_on_a_server_that_is_away_is_one_line(unreachable: str) -> None:
    with refused("--images", f"{unreachable}/list.csv"):
        list(Listing(f"{unreachable}/list.csv"))


@pytest.mark.parametrize(
    ("uri", "stem"),
    [
        ("s3://b/x/ISIC_0000000.jpg", "ISIC_0000000"),
        ("/x.y/ISIC_1.tar.JPEG", "ISIC_1.tar"),
        ("/x/a b#%20?.png", "a b#%20?"),
        ("/x/ISIC_1", "ISIC_1"),
    ],
)
def test_the_image_id_is_the_stem(uri: str, stem: str) -> None:
    assert image_id(uri) == stem


# The manifest

ENTRIES = [
    Entry("/x/a b#.jpg", 5, None, datetime(2024, 5, 1, 12, 0, 0, 123456, UTC)),
    Entry("s3://bucket/é.jpg", 2**40, "abc-2", datetime(1999, 1, 1, tzinfo=UTC)),
    Entry("/x/gone.jpg", None, None, None),
    Entry("/x/d.jpg", 0, "", datetime(2024, 5, 1, tzinfo=UTC)),
    Entry("/x/also gone.jpg", None, None, None),
]


def read_entries(place: str) -> list[Entry]:
    rows = pa.concat_tables(read_tables(open_store(place))).drop_columns("row").to_pylist()
    return [Entry(**row) for row in rows]


@pytest.mark.parametrize(("rows", "files"), [(1, 5), (2, 3), (5, 1), (100, 1)])
def test_a_manifest_comes_back_as_it_was(
    place: str, monkeypatch: pytest.MonkeyPatch, rows: int, files: int
) -> None:
    monkeypatch.setattr("lesioncam.storage.listing.MANIFEST_ROWS", rows)
    assert write_manifest(iter(ENTRIES), open_store(place)) == 5
    assert read_entries(place) == ENTRIES
    tables = list(read_tables(open_store(place)))
    assert len(tables) == files
    assert all(table.schema.equals(MANIFEST_SCHEMA) for table in tables)
    assert pa.concat_tables(tables)["row"].to_pylist() == [0, 1, 2, 3, 4]


def test_manifest_files_beyond_ten_keep_their_order(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.listing.MANIFEST_ROWS", 1)
    entries = [Entry(f"/x/{number}.jpg", number, None, None) for number in range(12)]
    write_manifest(entries, open_store(place))
    assert read_entries(place) == entries


def test_a_manifest_file_of_nulls_only_keeps_the_schema(place: str) -> None:
    write_manifest([ENTRIES[2]], open_store(place))
    (table,) = read_tables(open_store(place))
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert read_entries(place) == [ENTRIES[2]]


def test_a_manifest_of_nothing_is_no_file(place: str) -> None:
    assert write_manifest([], open_store(place)) == 0
    assert list(read_tables(open_store(place))) == []


def test_a_manifest_of_a_listing_agrees_with_its_store(place: str) -> None:
    fill(place, "a.jpg", "b/c d.jpg")
    records = open_store(place).join("_records")
    assert write_manifest(Listing(place), records) == 2
    images = [entry for entry in open_store(place).entries() if entry.uri.endswith(".jpg")]
    assert read_entries(records.uri) == images
