"""Listing: which files count as images, lists of uris, and the manifest."""

import errno
import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from itertools import count
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from lesioncam.errors import InputError, RunFailedError
from lesioncam.schema import MANIFEST_SCHEMA
from lesioncam.storage.listing import (
    LISTED_TWICE,
    Listing,
    describe_skipped,
    image_id,
    read_tables,
    reason_to_skip,
    write_manifest,
)
from lesioncam.storage.parallel import merge_parallel
from lesioncam.storage.s3_client import s3_client
from lesioncam.storage.store import Entry
from lesioncam.storage.uris import open_store, read_uri
from tests.conftest import SHARED, needs_shared
from tests.storage.conftest import refused


def fill(location: str, *names: str) -> None:
    for name in names:
        open_store(location).write(name, b"12345")


def write_list(location: str, ending: str, uris: Sequence[str | None], column: str = "uri") -> str:
    """A list of uris beside other columns; returns its own uri."""
    frame = pd.DataFrame({"note": ["x"] * len(uris), column: list(uris)})
    sink = io.BytesIO()
    if ending == "csv":
        frame.to_csv(sink, index=False)
    elif ending == "txt":
        sink.write("\n".join(map(str, uris)).encode())
    else:
        frame.to_parquet(sink)
    open_store(location).write(f"list.{ending}", sink.getvalue())
    return f"{location}/list.{ending}"


def uris(listing: Listing) -> list[str]:
    return [entry.uri for entry in listing]


ENDINGS = pytest.mark.parametrize("ending", ["csv", "parquet"])


# Directories and prefixes


def test_lists_recursively(location: str) -> None:
    fill(location, "a.jpg", "b/c.jpg", "b/d/e/f.png")
    expected = {f"{location}/a.jpg", f"{location}/b/c.jpg", f"{location}/b/d/e/f.png"}
    listing = Listing(location)
    assert set(uris(listing)) == expected
    assert not listing.skipped
    assert set(uris(Listing(location + "/"))) == expected


def test_describes_what_was_skipped() -> None:
    skipped = {"mask (_segmentation)": 1, ".psd": 1200, "other": 1}
    assert describe_skipped(skipped) == (
        "skipped 1,202 files: 1,200 .psd, 1 mask (_segmentation), 1 other"
    )
    assert describe_skipped({LISTED_TWICE: 1}) == "skipped 1 file: 1 listed twice"
    assert describe_skipped({"mask (_lesion)": 2}) == "skipped 2 files: 2 masks (_lesion)"
    assert describe_skipped({"hidden folder": 1}) == "skipped 1 hidden folder"
    assert describe_skipped({"hidden": 3, "hidden folder": 2}) == (
        "skipped 3 files: 3 hidden; 2 hidden folders"
    )
    assert describe_skipped({".heic": 1}) == (
        "skipped 1 file: 1 .heic; pip install 'lesioncam[heif]' reads .heic"
    )
    assert describe_skipped({".dcm": 2}) == (
        "skipped 2 files: 2 .dcm; pip install 'lesioncam[dicom]' reads .dcm"
    )


def test_lists_what_the_store_knows(location: str) -> None:
    fill(location, "a.jpg")
    assert list(Listing(location)) == list(open_store(location).entries())


def test_counts_what_is_not_an_image_as_skipped(location: str) -> None:
    fill(location, "a.jpg", "notes.txt", "jpg", "b.jpg.part", "c.csv")
    listing = Listing(location)
    assert uris(listing) == [f"{location}/a.jpg"]
    assert listing.skipped == {".txt": 1, ".csv": 1, "other": 2}


ENDINGS_OF_IMAGES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif")


@pytest.mark.parametrize("ending", ENDINGS_OF_IMAGES)
def test_takes_endings_in_any_case(ending: str) -> None:
    for written in (ending, ending.upper(), ending.title()):
        assert reason_to_skip(f"s3://bucket/a#b/ISIC_1.{written}") is None


@pytest.mark.parametrize(
    "name", ["/x/a.txt", "/x/jpg", "/x.jpg/a", "s3://bucket/a.jpg.gz", "/x/a.jpg~"]
)
def test_takes_nothing_else_for_an_image(name: str) -> None:
    assert reason_to_skip(name) in (".txt", "other")


@pytest.mark.parametrize("ending", [".heic", ".avif", ".jp2", ".dcm"])
def test_endings_of_optional_formats_count_where_they_can_be_read(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for endings, reason in (({".jpg", ending}, None), ({".jpg"}, ending)):
        monkeypatch.setattr("lesioncam.storage.listing.image_endings", lambda of=endings: of)
        assert reason_to_skip(f"/x/a{ending.upper()}") == reason


# Masks


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ISIC_0000001_segmentation.png", "mask (_segmentation)"),
        ("ISIC_0000001_Segmentation.PNG", "mask (_segmentation)"),
        ("ISIC_0000001_superpixels.png", "mask (_superpixels)"),
        ("A_SUPERPIXELS.PNG", "mask (_superpixels)"),
        ("a_mask.jpg", "mask (_mask)"),
        ("a_Mask.tif", "mask (_mask)"),
        ("IMD002_lesion.bmp", "mask (_lesion)"),
        ("imd002_LESION.png", "mask (_lesion)"),
        ("a_mask.txt", ".txt"),
        ("back_lesion.jpg", None),
        ("superpixels.png", None),
        ("mask.png", None),
        ("a_mask.b.jpg", None),
        ("a_segmentation_1.png", None),
    ],
)
def test_masks_are_skipped_by_their_names(name: str, reason: str | None) -> None:
    assert reason_to_skip(f"/x/{name}") == reason
    assert reason_to_skip(f"s3://bucket/a_mask/{name}") == reason


def test_masks_are_counted_by_suffix(location: str) -> None:
    fill(location, "a.jpg", "a_segmentation.png", "IMD1_lesion/IMD1_lesion.bmp", "b/c_MASK.png")
    fill(location, "b/d_mask.png", "IMD1_lesion/IMD1.bmp")
    assert either_way(location) == ["IMD1_lesion/IMD1.bmp", "a.jpg"]
    listing = Listing(location)
    assert len(uris(listing)) == 2
    assert listing.skipped == {"mask (_segmentation)": 1, "mask (_lesion)": 1, "mask (_mask)": 2}


# Hidden files and folders


@pytest.mark.parametrize(
    "name",
    ["._a.jpg", ".a.jpg", ".jpg", "@a.jpg", "Thumbs.db", "thumbs.DB", "desktop.ini", ".DS_Store"],
)
def test_hidden_files_are_skipped(location: str, name: str) -> None:
    fill(location, "a.jpg", f"b/{name}")
    assert either_way(location) == ["a.jpg"]
    listing = Listing(location)
    assert len(uris(listing)) == 1
    assert listing.skipped == {"hidden": 1}


@pytest.mark.parametrize(
    "folder",
    ["@eaDir", "__MACOSX", ".Trash-1000", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found",
     "System Volume Information", "#recycle", ".snapshot", "b/c/@eaDir"],
)  # fmt: skip
def test_hidden_folders_are_not_entered(location: str, folder: str) -> None:
    fill(location, "a.jpg", "b/c.jpg", "z/c.jpg")
    fill(location, *(f"{folder}/{name}.jpg" for name in ("a", "b", "c/d", "c/@eaDir/e")))
    assert either_way(location) == ["a.jpg", "b/c.jpg", "z/c.jpg"]
    listing = Listing(location)
    assert len(uris(listing)) == 3
    assert listing.skipped == {"hidden folder": 1}


def test_each_hidden_folder_is_counted_once(bucket: str, keys_a_page: None) -> None:
    names = [f"{number:02d}/{part}{name}.jpg" for number in range(40) for name in "abc"
             for part in ("", "@eaDir/", ".x/")]  # fmt: skip
    put(bucket, [f"top/{name}" for name in names])
    for listing in (Listing(f"s3://{bucket}/top"), Listing(f"s3://{bucket}/top")):
        assert len(uris(listing)) == 120
        assert listing.skipped == {"hidden folder": 80}


def test_a_folder_beside_a_hidden_one_of_a_longer_name_is_entered(location: str) -> None:
    fill(location, "b.x/a.jpg", ".x/a.jpg", ".xy/a.jpg", "x/a.jpg")
    assert either_way(location) == ["b.x/a.jpg", "x/a.jpg"]


def test_the_folder_that_is_named_may_be_hidden(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "@images"
    fill(str(folder), "a.jpg", ".b/c.jpg")
    assert either_way(str(folder)) == ["a.jpg"]


def test_a_hidden_folder_without_access_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(str(tmp_path), "a.jpg", "lost+found/b.jpg")
    real = os.scandir

    def scandir(folder: str) -> Any:
        assert "lost" not in str(folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert either_way(str(tmp_path)) == ["a.jpg"]


def test_all_files_are_listed_if_asked(location: str) -> None:
    names = ["@eaDir/a.jpg", ".b.jpg", "a.jpg", "a_segmentation.png", "IM0001", "notes.txt"]
    fill(location, *names)
    for entries in (Listing(location, all_files=True), Listing(location, all_files=True)):
        assert {entry.uri for entry in entries} == {f"{location}/{name}" for name in names}
        assert not entries.skipped
    unordered = Listing(location, all_files=True).unordered()
    assert {entry.uri for entry in unordered} == {f"{location}/{name}" for name in names}


def test_a_list_may_name_what_a_folder_hides(tmp_path: Path) -> None:
    names = [".a.jpg", "b_segmentation.png", "@eaDir/c.jpg", "IM0001"]
    fill(str(tmp_path), *names)
    source = write_list(str(tmp_path), "csv", [f"{tmp_path}/{name}" for name in names])
    assert uris(Listing(source)) == [f"{tmp_path}/{name}" for name in names]


def test_a_location_without_images_is_refused(location: str) -> None:
    fill(location, "notes.txt", "a_superpixels.png")
    with refused(
        "--images",
        location,
        "skipped 2 files: 1 .txt, 1 mask (_superpixels)",
        ".jpg",
        kind=InputError,
    ):
        list(Listing(location))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with refused("--images", str(tmp_path), kind=InputError):
        list(Listing(str(tmp_path)))


def test_a_location_that_is_not_there_is_refused(location: str) -> None:
    with refused("--images", location, kind=InputError):
        list(Listing(location))


def test_the_flag_in_messages_is_the_one_given(tmp_path: Path) -> None:
    with refused("--val-images", str(tmp_path), kind=InputError):
        list(Listing(str(tmp_path), "--val-images"))


def test_a_single_image_is_no_source(tmp_path: Path) -> None:
    fill(str(tmp_path), "a.jpg")
    with refused("--images", "a.jpg", kind=InputError):
        list(Listing(str(tmp_path / "a.jpg")))


def test_a_bucket_that_is_not_there_is_refused(s3_server: str) -> None:
    with refused("s3://no-such-bucket/x", kind=InputError):
        list(Listing("s3://no-such-bucket/x"))


def test_a_server_that_is_away_fails_the_run(unreachable: str) -> None:
    with refused(unreachable, kind=RunFailedError):
        list(Listing(unreachable))


def test_another_scheme_is_refused() -> None:
    with refused("gs://bucket/x", kind=InputError):
        list(Listing("gs://bucket/x"))


def test_a_file_uri_lists_absolute_paths(tmp_path: Path) -> None:
    folder = tmp_path / "a b#"
    fill(str(folder), "c.jpg")
    assert uris(Listing(folder.as_uri())) == [str(folder / "c.jpg")]


# Listing side by side


def put(bucket: str, keys: Iterable[str]) -> None:
    """Put many objects straight into the server, which runs in this process."""
    for key in keys:
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, b"12345")


def either_way(source: str) -> list[str]:
    """The names of a source's images, sorted, which are the same in order and unordered."""
    in_order, unordered = Listing(source), Listing(source)
    entries = sorted(in_order, key=lambda entry: entry.uri)
    assert sorted(unordered.unordered(), key=lambda entry: entry.uri) == entries
    assert unordered.skipped == in_order.skipped
    return [entry.uri.removeprefix(source + "/") for entry in entries]


@pytest.fixture(params=[7, 1])
def keys_a_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of the server hold so many keys and prefixes."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", str(request.param))


def test_a_tree_is_listed_either_way(location: str) -> None:
    names = ["a.jpg", "b/c.jpg", "b/d/e/f.png", "b/d/g.jpg", "h/i/j/k/l/m.jpg", "h/i.jpg", "z.jpg"]
    fill(location, *names)
    assert either_way(location) == sorted(names)


@pytest.mark.parametrize(
    "names",
    [
        [f"{number:03d}/a.jpg" for number in range(50)],
        [f"{number:03d}/a.jpg" for number in range(32)],
        [f"{number % 6}/{number:03d}/a.jpg" for number in range(50)],
        [f"x/y/z/{number:03d}/{name}.jpg" for number in range(40) for name in "ab"],
        [f"{number // 9}/{number % 9}/{number}.jpg" for number in range(80)] + ["0/a.jpg", "a.jpg"],
    ],
    ids=["wide", "just divided", "two levels", "deep", "mixed"],
)
def test_many_folders_are_listed_either_way(
    bucket: str, keys_a_page: None, names: list[str]
) -> None:
    put(bucket, [f"top/{name}" for name in names])
    put(bucket, ["top2/a.jpg", "to/a.jpg"])
    assert either_way(f"s3://{bucket}/top") == sorted(names)


def test_many_local_folders_are_listed_either_way(tmp_path: Path) -> None:
    names = [f"{number % 6}/{number:03d}/a.jpg" for number in range(50)]
    fill(str(tmp_path), *names)
    assert either_way(str(tmp_path)) == sorted(names)


@pytest.mark.parametrize("keys_at", ["top/", "top/a/b/c/"])
def test_more_keys_than_a_page_holds_are_listed_either_way(bucket: str, keys_at: str) -> None:
    many = [f"{keys_at}{number:04d}.jpg" for number in range(1001)]
    others = [f"top/a/{number}/b.jpg" for number in range(5)] + ["top/a.jpg", "top/z/b.jpg"]
    put(bucket, many + others)
    wanted = [key for key in many + others if key.startswith("top/")]
    assert either_way(f"s3://{bucket}/top") == sorted(key.removeprefix("top/") for key in wanted)
    assert either_way(f"s3://{bucket}") == sorted(many + others)


def test_more_folders_than_a_page_holds_are_listed_either_way(bucket: str) -> None:
    names = [f"{number:04d}/a.jpg" for number in range(1001)]
    put(bucket, names)
    assert either_way(f"s3://{bucket}") == names


ODD_PARTS = [
    "a b", " a ", "é ü", "e\u0301", "画像", "😀", "#", "a#b", "%", "a%20b", "%2F", "a+b", "?x=1&y",
    "a..", "[a]*", "~", "'\"", "a:b", "a\\b", "=",
]  # fmt: skip


def test_odd_names_are_listed_either_way(location: str) -> None:
    names = [f"{part}/{part}.jpg" for part in ODD_PARTS] + [f"{part}.jpg" for part in ODD_PARTS]
    fill(location, *names)
    assert either_way(location) == sorted(names)


def test_keys_that_are_no_paths_are_listed_either_way(bucket: str, keys_a_page: None) -> None:
    names = ["/a.jpg", "//a.jpg", "a//b.jpg", "a//b/c.jpg", "a///b.jpg", "../a.jpg", "./a.jpg"]
    names += ["a/../a.jpg", "..//a.jpg", "../../a.jpg", "a/./b.jpg", "\x01.jpg", "a\tb/c.jpg"]
    put(bucket, [f"top/{name}" for name in names])
    assert either_way(f"s3://{bucket}/top") == sorted(names)
    assert either_way(f"s3://{bucket}") == sorted(f"top/{name}" for name in names)


def test_long_keys_are_listed_either_way(bucket: str, keys_a_page: None) -> None:
    names = ["n" * 900 + ".jpg", "n" * 899 + "/aa.jpg", "é" * 450 + ".jpg", "/".join("n" * 60)]
    names[-1] += ".jpg"
    put(bucket, [f"top/{name}" for name in names])
    assert either_way(f"s3://{bucket}/top") == sorted(names)


def test_empty_directory_objects_are_not_listed_either_way(bucket: str, keys_a_page: None) -> None:
    directories = ["", "a/", "a/b.jpg/", "c/", "c/d/", "//"]
    put(bucket, [f"top/{name}" for name in [*directories, "a/b.jpg/c.jpg", "c/e.jpg"]])
    assert either_way(f"s3://{bucket}/top") == ["a/b.jpg/c.jpg", "c/e.jpg"]
    listing = Listing(f"s3://{bucket}/top")
    assert len(list(listing.unordered())) == 2
    assert not listing.skipped


def test_unordered_counts_each_skipped_file_once(tmp_path: Path) -> None:
    names = [f"{number % 3}/{number}/notes.txt" for number in range(20)]
    fill(str(tmp_path), "a.jpg", "a_superpixels.png", "0/b.jpg", *names)
    listing = Listing(str(tmp_path))
    assert len(list(listing.unordered())) == 2
    assert listing.skipped == {".txt": 20, "mask (_superpixels)": 1}


def test_a_location_without_images_is_refused_unordered_too(tmp_path: Path) -> None:
    fill(str(tmp_path), "notes.txt", "b/a_superpixels.png")
    with refused(
        "--images",
        str(tmp_path),
        "skipped 2 files: 1 .txt, 1 mask (_superpixels)",
        ".jpg",
        kind=InputError,
    ):
        list(Listing(str(tmp_path)).unordered())


def test_a_location_that_cannot_be_listed_is_refused_unordered_too(
    s3_server: str, tmp_path: Path
) -> None:
    for source in ("s3://no-such-bucket/x", "gs://bucket/x", str(tmp_path / "none")):
        with refused(source, kind=InputError):
            list(Listing(source).unordered())


def test_a_server_that_is_away_fails_the_run_unordered_too(unreachable: str) -> None:
    with refused(unreachable, kind=RunFailedError):
        list(Listing(unreachable).unordered())


def test_a_folder_that_may_not_be_read_is_refused_unordered_too(no_access: str) -> None:
    with refused(no_access, kind=InputError):
        list(Listing(no_access).unordered())


@pytest.mark.parametrize("faulty", ["top/00/", "top/49/"])
@pytest.mark.parametrize(
    ("code", "kind"), [("AccessDenied", InputError), ("InternalError", RunFailedError)]
)
def test_a_fault_in_one_listing_is_raised(
    bucket: str, monkeypatch: pytest.MonkeyPatch, faulty: str, code: str, kind: type[Any]
) -> None:
    put(bucket, [f"top/{number:02d}/{name}.jpg" for number in range(50) for name in "abc"])
    real = s3_client().get_paginator("list_objects_v2").paginate

    class Faulty:
        def paginate(self, **kwargs: Any) -> Any:
            if kwargs["Prefix"] == faulty:
                raise ClientError({"Error": {"Code": code}}, "ListObjectsV2")
            return real(**kwargs)

    monkeypatch.setattr(s3_client(), "get_paginator", lambda _: Faulty())
    before = listing_threads()
    with refused(f"s3://{bucket}/top", kind=kind):
        list(Listing(f"s3://{bucket}/top").unordered())
    assert listing_threads() <= before


def listing_threads() -> set[threading.Thread]:
    names = ("ThreadPool", "listing")
    return {thread for thread in threading.enumerate() if thread.name.startswith(names)}


def close(entries: Iterator[Any]) -> None:
    cast("Generator[Any, None, None]", entries).close()


@pytest.fixture
def threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads soon have read as much as they may, and wait."""
    monkeypatch.setattr("lesioncam.storage.parallel._BATCH_ITEMS", 2)
    monkeypatch.setattr("lesioncam.storage.parallel._MAX_BATCHES", 1)


@pytest.mark.parametrize("taken", [1, 30])
def test_closing_early_leaves_no_threads(location: str, threads_wait: None, taken: int) -> None:
    fill(location, *(f"{number % 40}/{number}.jpg" for number in range(80)))
    before = listing_threads()
    entries = Listing(location).unordered()
    for _ in range(taken):
        next(entries)
    assert listing_threads() > before
    close(entries)
    assert listing_threads() <= before


@ENDINGS
@pytest.mark.parametrize("taken", [1, 30])
def test_closing_a_list_early_leaves_no_threads(
    tmp_path: Path, threads_wait: None, ending: str, taken: int
) -> None:
    source = write_list(str(tmp_path), ending, [f"/gone/{number}.jpg" for number in range(80)])
    before = listing_threads()
    entries = Listing(source).unordered()
    for _ in range(taken):
        next(entries)
    assert listing_threads() > before
    close(entries)
    assert listing_threads() <= before


def test_forgetting_a_listing_leaves_no_threads(tmp_path: Path, threads_wait: None) -> None:
    fill(str(tmp_path), *(f"{number % 40}/{number}.jpg" for number in range(80)))
    before = listing_threads()
    assert next(Listing(str(tmp_path)).unordered())
    assert listing_threads() <= before


def test_a_listing_that_was_not_begun_has_no_threads(tmp_path: Path) -> None:
    fill(str(tmp_path), "a.jpg", "b/c.jpg")
    before = listing_threads()
    entries = Listing(str(tmp_path)).unordered()
    assert listing_threads() <= before
    close(entries)


@pytest.mark.parametrize(("threads", "batch"), [(1, 3), (3, 1), (50, 1000)])
def test_merging_gives_what_all_sources_give(
    monkeypatch: pytest.MonkeyPatch, threads: int, batch: int
) -> None:
    monkeypatch.setattr("lesioncam.storage.parallel._BATCH_ITEMS", batch)
    monkeypatch.setattr("lesioncam.storage.parallel._MAX_BATCHES", 2)
    sources = [iter(range(100 * number, 100 * number + number)) for number in range(20)]
    expected = [100 * number + item for number in range(20) for item in range(number)]
    assert sorted(merge_parallel(sources, threads)) == expected


def test_merging_of_nothing_is_nothing() -> None:
    assert list(merge_parallel([], 3)) == []
    assert list(merge_parallel([iter(()), iter(())], 3)) == []


def test_merging_keeps_the_order_of_each_source(threads_wait: None) -> None:
    sources = [iter([(number, item) for item in range(50)]) for number in range(4)]
    found = list(merge_parallel(sources, 4))
    for number in range(4):
        assert [item for source, item in found if source == number] == list(range(50))


def test_merging_draws_only_so_far_ahead(threads_wait: None) -> None:
    items_read = 0

    def source() -> Iterator[int]:
        nonlocal items_read
        for number in range(500):
            items_read += 1
            yield number

    for taken, _ in enumerate(merge_parallel([source()], 1)):
        assert items_read - taken <= 3 * 2  # in hand, ready, and waiting in the thread
    assert items_read == 500


@pytest.mark.parametrize("fault", [ValueError("no good"), KeyboardInterrupt(), SystemExit(3)])
def test_a_fault_of_one_source_is_raised_and_ends_the_others(
    threads_wait: None, fault: BaseException
) -> None:
    def broken() -> Iterator[int]:
        yield from range(5)
        raise fault

    before = listing_threads()
    with pytest.raises(type(fault)) as caught:
        for _ in merge_parallel([count(), broken(), count()], 3):
            pass
    assert caught.value is fault
    assert listing_threads() <= before


# Lists


@ENDINGS
def test_a_list_keeps_its_order(location: str, ending: str) -> None:
    fill(location, "a b.jpg", "é#%20.jpg", "c.png")
    wanted = [f"{location}/{name}" for name in ("é#%20.jpg", "c.png", "a b.jpg")]
    listing = Listing(write_list(location, ending, wanted))
    entries = list(listing)
    assert [entry.uri for entry in entries] == wanted
    assert {entry.size for entry in entries} == {5}
    assert set(entries) <= set(open_store(location).entries())
    assert not listing.skipped


@ENDINGS
def test_repeated_uris_count_as_skipped(tmp_path: Path, ending: str) -> None:
    fill(str(tmp_path), "a.jpg", "b.jpg")
    a, b = f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"
    listing = Listing(write_list(str(tmp_path), ending, [a, b, a, a]))
    assert uris(listing) == [a, b]
    assert listing.skipped == {LISTED_TWICE: 2}


@ENDINGS
def test_a_listed_file_that_is_not_there_stays_listed(tmp_path: Path, ending: str) -> None:
    fill(str(tmp_path), "a.jpg")
    gone = f"{tmp_path}/gone.jpg"
    entries = list(Listing(write_list(str(tmp_path), ending, [gone, f"{tmp_path}/a.jpg"])))
    assert entries[0] == Entry(gone, None, None, None)
    assert entries[1].size == 5


def test_a_listed_file_out_of_reach_stays_listed(unreachable: str, tmp_path: Path) -> None:
    source = write_list(str(tmp_path), "csv", [f"{unreachable}/a.jpg"])
    assert list(Listing(source)) == [Entry(f"{unreachable}/a.jpg", None, None, None)]


def test_relative_paths_of_a_list_are_relative_to_it(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(location, "lists/x/a.jpg", "b.jpg")
    names = ["x/a.jpg", "./x/../x/a.jpg", "../b.jpg", "/absolute/c.jpg"]
    for ending in ("csv", "parquet", "txt"):
        listing = Listing(write_list(f"{location}/lists", ending, names))
        entries = list(listing)
        wanted = [f"{location}/lists/x/a.jpg", f"{location}/b.jpg", "/absolute/c.jpg"]
        assert [entry.uri for entry in entries] == wanted
        assert [entry.size for entry in entries] == [5, 5, None]
        assert listing.skipped == {LISTED_TWICE: 1}


def test_a_list_that_is_named_by_a_relative_path_or_a_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    write_list(str(tmp_path / "a b"), "csv", ["x.jpg"])
    for source in (
        "list.csv",
        "./list.csv",
        "../a b/list.csv",
        (tmp_path / "a b/list.csv").as_uri(),
    ):
        assert uris(Listing(source)) == [f"{tmp_path}/a b/x.jpg"]


def test_a_relative_path_above_its_bucket_is_refused(bucket: str) -> None:
    source = write_list(f"s3://{bucket}/x", "csv", ["a.jpg", "../../b.jpg"])
    with refused("--images", source, "row 2", kind=InputError):
        list(Listing(source))


TABLES = {
    "list.csv": "uri\na.jpg\nb,c.jpg\n".replace("b,c.jpg", '"b,c.jpg"'),
    "header_space.csv": ' uri ,patient\na.jpg,1\n"b,c.jpg",2\n',
    "semicolons.csv": "patient;uri\n1;a.jpg\n2;b,c.jpg\n",
    "tabs.TSV": "patient\turi\n1\ta.jpg\n2\tb,c.jpg\n",
    "tabs.txt": "patient\turi\n1\ta.jpg\n2\tb,c.jpg\n",
    "bars.csv": "patient|uri\r\n1|a.jpg\r\n\r\n2|b,c.jpg\r\n",
    "mark.csv": "\ufeffpatient;uri\n1;a.jpg\n2;b,c.jpg\n",
    "lines.txt": "a.jpg\nb,c.jpg\n",
    "windows.txt": "\ufeffa.jpg\r\n\r\nb,c.jpg\r\n",
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_lists_with_other_separators_and_of_lines(
    tmp_path: Path, name: str, compressed: bool
) -> None:
    data = TABLES[name].encode()
    if compressed:
        name, data = f"{name}.gz", gzip.compress(data, mtime=0)
    (tmp_path / name).write_bytes(data)
    listing = Listing(f"{tmp_path}/{name}")
    assert uris(listing) == [f"{tmp_path}/a.jpg", f"{tmp_path}/b,c.jpg"]
    assert not listing.skipped


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("a.csv", b"uri;note,x\na.jpg;1,2\n", "its first line holds ',' and ';'; use one"),
        ("a.csv", b"uri\nb\xe4.jpg\n", "is not a CSV file in UTF-8"),
        ("a.txt", b"a.jpg\nb\xe4.jpg\n", "is not a text file in UTF-8"),
        ("a.txt", b"path;patient\na.jpg;1\n", "a header with a 'uri' column, or the path"),
        ("a.txt", b"", "a header with a 'uri' column, or the path"),
        ("a.csv", b"uri,uri\na.jpg,b.jpg\n", "a column occurs twice"),
        ("a.csv.gz", gzip.compress(b"uri\na.jpg\n" * 99, mtime=0)[:-9], ""),
        ("a.txt.gz", gzip.compress(b"a.jpg\n" * 99, mtime=0)[:-9], ""),
        ("a.tsv", b"\x1f\x8bnot compressed", ""),
    ],
)
def test_other_lists_are_refused_with_the_cause(
    tmp_path: Path, name: str, data: bytes, part: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with refused("--images", f"{tmp_path}/{name}", part, kind=InputError):
        list(Listing(f"{tmp_path}/{name}"))


def kept(listing: Listing) -> list[Any]:
    """What the entries keep of their list."""
    return [entry.kept and json.loads(entry.kept) for entry in listing]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["header_space.csv", "semicolons.csv", "tabs.TSV", "tabs.txt"])
def test_columns_of_a_list_are_kept_if_asked(tmp_path: Path, name: str, compressed: bool) -> None:
    data = TABLES[name].replace("2", "Müller, A.").encode()
    if name == "header_space.csv":
        data = data.replace("Müller, A.".encode(), '"Müller, A."'.encode())
    if compressed:
        name, data = f"{name}.gz", gzip.compress(data, mtime=0)
    (tmp_path / name).write_bytes(data)
    source = f"{tmp_path}/{name}"
    listing = Listing(source, keep_columns=["patient"])
    assert kept(listing) == [{"patient": "1"}, {"patient": "Müller, A."}]
    assert uris(listing) == [f"{tmp_path}/a.jpg", f"{tmp_path}/b,c.jpg"]
    assert kept(Listing(source)) == [None, None]


def test_several_columns_are_kept_in_any_order_and_empty_cells_are_null(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,uri,site,patient\n7,a.jpg,,NA\n,b.jpg, x \n")
    listing = Listing(f"{tmp_path}/a.csv", keep_columns=["patient", "site"])
    assert kept(listing) == [{"patient": "NA", "site": None}, {"patient": None, "site": " x "}]


def test_columns_of_a_list_are_kept_from_its_first_row_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("uri,patient\na.jpg,1\nb.jpg,2\na.jpg,3\n")
    listing = Listing(f"{tmp_path}/a.csv", keep_columns=["patient"])
    assert kept(listing) == [{"patient": "1"}, {"patient": "2"}]
    assert listing.skipped == {LISTED_TWICE: 1}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([17, None]), ["17", None]),
        (pa.array([17.0, 2.5]), ["17", "2.5"]),
        (pa.array([True, None]), ["true", None]),
        (pa.array(["é", ""]), ["é", None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array([3, 4]).dictionary_encode(), ["3", "4"]),
        (pa.array([date(2024, 5, 1), None]), ["2024-05-01", None]),
        (pa.array([b"ab", None]), ["ab", None]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_columns_of_a_parquet_list_are_kept_as_text(
    tmp_path: Path, values: pa.Array, texts: list[str | None]
) -> None:
    table = pa.table({"other": [[1], [2]], "patient.id": values, "uri": ["a.jpg", "b.jpg"]})
    pq.write_table(table, tmp_path / "a.parquet")
    listing = Listing(f"{tmp_path}/a.parquet", keep_columns=["patient.id"])
    assert kept(listing) == [{"patient.id": text} for text in texts]


@pytest.mark.parametrize("values", [pa.array([["Doe"]]), pa.array([b"Doe\xff"])])
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, values: pa.Array) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg"], "patient": values}), tmp_path / "a.parquet")
    expected = ("--images", "a.parquet", "'patient' is of type", "--keep-columns")
    with refused(*expected, kind=InputError, without=("Doe",)):
        list(Listing(f"{tmp_path}/a.parquet", keep_columns=["patient"]))


def test_a_parquet_list_of_two_columns_with_one_name_is_refused(tmp_path: Path) -> None:
    table = pa.table([["a.jpg"], ["b.jpg"]], names=["uri", "uri"])
    pq.write_table(table, tmp_path / "a.parquet")
    with refused("--images", "a column occurs twice", kind=InputError):
        list(Listing(f"{tmp_path}/a.parquet"))


@ENDINGS
def test_a_list_without_a_column_to_keep_is_refused(tmp_path: Path, ending: str) -> None:
    source = write_list(str(tmp_path), ending, ["a.jpg"])
    message = "no 'patient' or 'site' column for --keep-columns (found: note, uri)"
    listing = Listing(source, keep_columns=["patient", "note", "site"])
    for entries in (iter(listing), listing.unordered()):
        with refused("--images", source, message, kind=InputError):
            next(entries)


def test_columns_to_keep_of_a_list_without_a_header_name_no_patient(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("/x/Jane_Doe.jpg,Jane Doe\n")
    with refused("'uri' or 'patient' column", kind=InputError, without=("Doe",)):
        list(Listing(f"{tmp_path}/a.csv", keep_columns=["patient"]))


def test_what_has_no_columns_keeps_none(location: str, tmp_path: Path) -> None:
    fill(location, "a.jpg")
    listing = Listing(location, keep_columns=["site"])
    for list_entries in (listing.__iter__, listing.unordered):
        with refused("--keep-columns", location, "give a list as --images", kind=InputError):
            next(list_entries())
    source = write_list(str(tmp_path), "txt", ["a.jpg"])
    with refused("--images", source, "no columns for --keep-columns", kind=InputError):
        list(Listing(source, keep_columns=["site"]))


@needs_shared
@pytest.mark.parametrize("name", ["relative_to_csv", "header_space", "semicolon"])
def test_lists_as_people_have_them(name: str) -> None:
    folder = SHARED / "wild" / "lists"
    assert uris(Listing(f"{folder}/{name}.csv")) == [
        f"{folder}/images/DRAWN_{number:05d}.jpg" for number in range(4)
    ]


def test_file_uris_of_a_list_become_absolute_paths(tmp_path: Path) -> None:
    image = tmp_path / "a b#.jpg"
    fill(str(tmp_path), image.name)
    (entry,) = Listing(write_list(str(tmp_path), "csv", [image.as_uri()]))
    assert (entry.uri, entry.size) == (str(image), 5)


def test_the_ending_of_a_list_counts_in_any_case(tmp_path: Path) -> None:
    fill(str(tmp_path), "a.jpg")
    open_store(str(tmp_path)).write("LIST.CSV", f"uri\n{tmp_path!s}/a.jpg\n".encode())
    assert uris(Listing(f"{tmp_path}/LIST.CSV")) == [f"{tmp_path}/a.jpg"]


@ENDINGS
def test_a_list_without_the_column_is_refused(tmp_path: Path, ending: str) -> None:
    source = write_list(str(tmp_path), ending, ["a.jpg"], column="path")
    with refused("--images", source, "no 'uri' column (found: note, path)", kind=InputError):
        list(Listing(source))


def test_a_list_without_a_header_names_no_image(tmp_path: Path) -> None:
    open_store(str(tmp_path)).write("list.csv", b"/x/Jane_Doe.jpg\n/x/John_Doe.jpg\n")
    with refused("--images", "'uri'", kind=InputError, without=("Doe",)):
        list(Listing(f"{tmp_path}/list.csv"))


@pytest.mark.parametrize("empty", ["", None])
@ENDINGS
def test_a_list_with_an_empty_uri_is_refused(
    tmp_path: Path, ending: str, empty: str | None
) -> None:
    source = write_list(str(tmp_path), ending, ["s3://bucket/Jane_Doe.jpg", empty])
    with refused("--images", source, "uri", kind=InputError, without=("Doe",)):
        list(Listing(source))


@ENDINGS
def test_a_list_without_rows_is_refused(tmp_path: Path, ending: str) -> None:
    source = write_list(str(tmp_path), ending, [])
    with refused("--images", source, kind=InputError):
        list(Listing(source))


def test_a_full_temporary_disk_is_reported_as_that(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    s3_client().put_object(Bucket=bucket, Key="list.csv", Body=b"uri\n/x/a.jpg\n")
    monkeypatch.setattr("lesioncam.storage.s3.TemporaryFile", full)
    with pytest.raises(RunFailedError, match="copied to a temporary file: No space left on device"):
        list(Listing(f"s3://{bucket}/list.csv"))


@ENDINGS
@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00junk", b'"\n', b"uri,b\na.jpg,1\nb,1,1,1\n"])
def test_a_list_that_is_no_table_is_refused(tmp_path: Path, ending: str, data: bytes) -> None:
    open_store(str(tmp_path)).write(f"list.{ending}", data)
    with refused("--images", f"{tmp_path}/list.{ending}", kind=InputError):
        list(Listing(f"{tmp_path}/list.{ending}"))


@pytest.mark.parametrize(
    "data", [b"uri\ns3://b/x,1.jpg\n", b"uri,label\n/d/a.jpg,mel,\n", b"uri,label\n/a, b.jpg,mel\n"]
)
def test_a_list_with_a_comma_too_many_in_every_row_is_refused(tmp_path: Path, data: bytes) -> None:
    open_store(str(tmp_path)).write("list.csv", data)
    with refused("--images", f"{tmp_path}/list.csv", "more fields", "quotes", kind=InputError):
        list(Listing(f"{tmp_path}/list.csv"))


def test_a_name_that_is_not_utf8_is_a_file_uri_by_which_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "Müller"
    folder.mkdir()
    name = os.fsdecode(b"b\xe4 #1.jpg")  # Latin-1, as old archives have them
    (folder / "a.jpg").write_bytes(b"1")
    (folder / name).write_bytes(b"12345")
    uri = f"{tmp_path.as_uri()}/M%C3%BCller/b%E4%20%231.jpg"
    listing = Listing(str(tmp_path))
    entries = {entry.uri: entry.size for entry in listing}
    assert entries == {f"{folder}/a.jpg": 1, uri: 5}
    assert {entry.uri: entry.size for entry in Listing(str(tmp_path)).unordered()} == entries
    assert read_uri(uri) == b"12345"
    assert image_id(uri) == "b%E4%20%231"
    # A list that was made of the scores names the same image.
    (entry,) = Listing(write_list(str(tmp_path), "csv", [uri]))
    assert (entry.uri, entry.size) == (uri, 5)
    assert write_manifest([entry], open_store(str(tmp_path / "manifest"))) == 1


def test_a_folder_whose_name_is_not_utf8_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"12345")
    (folder / "notes.txt").write_bytes(b"12345")
    (folder / "broken.jpg").symlink_to("nowhere")
    entries = {entry.uri: entry.size for entry in Listing(str(tmp_path))}
    uri = f"{tmp_path.as_uri()}/M%FCller"
    assert entries == {f"{uri}/a.jpg": 5, f"{uri}/broken.jpg": None}
    assert {entry.uri for entry in Listing(str(folder))} == set(entries)


@ENDINGS
def test_a_list_that_is_not_there_is_refused(location: str, ending: str) -> None:
    with refused("--images", f"{location}/none.{ending}", kind=InputError):
        list(Listing(f"{location}/none.{ending}"))


def test_a_list_on_a_server_that_is_away_is_one_line(unreachable: str) -> None:
    with refused("--images", f"{unreachable}/list.csv"):
        list(Listing(f"{unreachable}/list.csv"))


@ENDINGS
def test_a_list_of_several_chunks_keeps_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("lesioncam.storage.uri_list._CHUNK_ROWS", 3)
    fill(str(tmp_path), "a.jpg", "b.jpg")
    a, b = f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"
    gone = [f"{tmp_path}/{number}.jpg" for number in range(9)]
    listing = Listing(write_list(str(tmp_path), ending, [*gone[5:], a, *gone[:5], b, a, b]))
    assert uris(listing) == [*gone[5:], a, *gone[:5], b]
    assert listing.skipped == {LISTED_TWICE: 2}


@ENDINGS
@pytest.mark.parametrize(("fault", "row"), [(0, 1), (3, 4), (9, 10)])
def test_a_fault_late_in_a_list_is_reported_before_any_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, fault: int, row: int
) -> None:
    monkeypatch.setattr("lesioncam.storage.uri_list._CHUNK_ROWS", 3)
    monkeypatch.setattr("lesioncam.storage.listing.stat_or_unknown", unexpected)
    wanted = [f"{tmp_path}/{number}.jpg" for number in range(10)]
    wanted[fault] = "gs://bucket/Jane_Doe.jpg"
    source = write_list(str(tmp_path), ending, wanted)
    for entries in (iter(Listing(source)), Listing(source).unordered()):
        with refused("--images", source, f"row {row};", kind=InputError, without=("Doe",)):
            next(entries)


@ENDINGS
def test_an_empty_uri_late_in_a_list_is_reported_before_any_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("lesioncam.storage.uri_list._CHUNK_ROWS", 2)
    monkeypatch.setattr("lesioncam.storage.listing.stat_or_unknown", unexpected)
    source = write_list(
        str(tmp_path), ending, [*(f"{tmp_path}/{number}.jpg" for number in range(5)), ""]
    )
    for entries in (iter(Listing(source)), Listing(source).unordered()):
        with refused("--images", source, "without a uri", kind=InputError):
            next(entries)


def test_a_row_late_in_a_list_that_is_no_row_is_reported_before_any_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.uri_list._CHUNK_ROWS", 2)
    monkeypatch.setattr("lesioncam.storage.listing.stat_or_unknown", unexpected)
    open_store(str(tmp_path)).write("list.csv", b"uri,b\n" + b"/a.jpg,1\n" * 7 + b"/a.jpg,1,1,1\n")
    for entries in (
        iter(Listing(f"{tmp_path}/list.csv")),
        Listing(f"{tmp_path}/list.csv").unordered(),
    ):
        with refused("--images", f"{tmp_path}/list.csv", kind=InputError):
            next(entries)


def test_a_list_on_s3_is_downloaded_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[tuple[str, str]] = []
    real = s3_client().download_fileobj

    def download(bucket: str, key: str, file: Any) -> None:
        downloads.append((bucket, key))
        real(bucket, key, file)

    monkeypatch.setattr(s3_client(), "download_fileobj", download)
    fill(f"s3://{bucket}", "a.jpg")
    for ending in ("csv", "parquet"):
        source = write_list(f"s3://{bucket}", ending, [f"s3://{bucket}/a.jpg"])
        assert len(list(Listing(source).unordered())) == 1
    assert downloads == [(bucket, "list.csv"), (bucket, "list.parquet")]


@ENDINGS
def test_an_unordered_list_gives_repeated_uris_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("lesioncam.storage.uri_list._CHUNK_ROWS", 2)
    fill(str(tmp_path), "a.jpg", "b.jpg")
    a, b, gone = (f"{tmp_path}/{name}.jpg" for name in ("a", "b", "gone"))
    listing = Listing(write_list(str(tmp_path), ending, [a, b, a, gone, a, gone]))
    entries = list(listing.unordered())
    assert Counter(entry.uri for entry in entries) == {a: 3, gone: 2, b: 1}
    assert not listing.skipped
    stored = {entry.uri: entry for entry in open_store(str(tmp_path)).entries()}
    assert set(entries) == {stored[a], stored[b], Entry(gone, None, None, None)}


def unexpected(uri: str) -> Entry:
    raise AssertionError(uri)


@pytest.mark.parametrize(
    ("uri", "stem"),
    [
        ("s3://b/x/ISIC_0000000.jpg", "ISIC_0000000"),
        ("/x.y/ISIC_1.tar.JPEG", "ISIC_1.tar"),
        ("/x/a b#%20?.png", "a b#%20?"),
        ("/x/ISIC_1", "ISIC_1"),
        ("/x/1.2.840.113619.2.5.1762.11", "1.2.840.113619.2.5.1762.11"),
        ("/x/1.2.840.113619.2.5.1762.11.dcm", "1.2.840.113619.2.5.1762.11"),
    ],
)
def test_the_image_id_is_the_stem(uri: str, stem: str) -> None:
    assert image_id(uri) == stem


# The manifest

ENTRIES = [
    Entry("/x/a b#.jpg", 5, None, datetime(2024, 5, 1, 12, 0, 0, 123456, UTC)),
    Entry("s3://bucket/é.jpg", 2**40, "abc-2", datetime(1999, 1, 1, tzinfo=UTC)),
    Entry("/x/gone.jpg", None, None, None, kept='{"site": "é"}'),
    Entry("/x/d.jpg", 0, "", datetime(2024, 5, 1, tzinfo=UTC)),
    Entry("/x/also gone.jpg", None, None, None),
]


def read_entries(location: str) -> list[Entry]:
    rows = (
        pa.concat_tables(read_tables(open_store(location)))
        .drop_columns(["row", "image_id"])
        .to_pylist()
    )
    return [Entry(**row) for row in rows]


@pytest.mark.parametrize(("rows", "files"), [(1, 5), (2, 3), (5, 1), (100, 1)])
def test_a_manifest_comes_back_as_it_was(
    location: str, monkeypatch: pytest.MonkeyPatch, rows: int, files: int
) -> None:
    monkeypatch.setattr("lesioncam.storage.listing.MANIFEST_ROWS", rows)
    assert write_manifest(iter(ENTRIES), open_store(location)) == 5
    assert read_entries(location) == ENTRIES
    tables = list(read_tables(open_store(location)))
    assert len(tables) == files
    assert all(table.schema.equals(MANIFEST_SCHEMA) for table in tables)
    assert pa.concat_tables(tables)["row"].to_pylist() == [0, 1, 2, 3, 4]


def test_manifest_files_beyond_ten_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.listing.MANIFEST_ROWS", 1)
    entries = [Entry(f"/x/{number}.jpg", number, None, None) for number in range(12)]
    write_manifest(entries, open_store(str(tmp_path)))
    assert read_entries(str(tmp_path)) == entries


def test_a_manifest_file_of_nulls_only_keeps_the_schema(tmp_path: Path) -> None:
    write_manifest([ENTRIES[2]], open_store(str(tmp_path)))
    (table,) = read_tables(open_store(str(tmp_path)))
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert read_entries(str(tmp_path)) == [ENTRIES[2]]


def test_a_manifest_of_nothing_is_no_file(tmp_path: Path) -> None:
    assert write_manifest([], open_store(str(tmp_path))) == 0
    assert list(read_tables(open_store(str(tmp_path)))) == []


def test_a_manifest_of_a_listing_agrees_with_its_store(location: str) -> None:
    fill(location, "a.jpg", "b/c d.jpg")
    records = open_store(location).join("_records")
    assert write_manifest(Listing(location), records) == 2
    images = [entry for entry in open_store(location).entries() if entry.uri.endswith(".jpg")]
    assert read_entries(records.uri) == images


def test_a_process_ends_while_a_listing_is_under_way() -> None:
    code = (
        "from lesioncam.storage.parallel import merge_parallel\n"
        "items = merge_parallel([iter(range(10**6))], 2)\n"
        "print(next(items))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=True
    )
    assert ended.stdout == b"0\n"
