"""Stores: the same behavior for a local directory and an s3:// prefix."""

import errno
import hashlib
import io
import os
import pickle
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.stub import Stubber

from lesioncam.columns import TRANSIENT_KINDS, ErrorKind
from lesioncam.errors import InputError, LesioncamError, RunFailedError
from lesioncam.storage.local import LocalStore
from lesioncam.storage.s3 import S3Store, split_s3
from lesioncam.storage.s3_client import arrow_s3, s3_client
from lesioncam.storage.store import Entry, Store, StoreError
from lesioncam.storage.uris import open_store, read_uri, stat_uri
from tests.conftest import SECRET
from tests.storage.conftest import answering, refused

ODD_NAMES = [
    "a b.jpg", "a#b.jpg", "100%.jpg", "a%20b.jpg", "é ü.jpg", "e\u0301.jpg", "画像.jpg", "a+b.jpg",
    "a?b=c&d.jpg", "a'\"b.jpg", "a\\b.jpg", "a:b.jpg", "dir #1/a b.jpg", "[a]*.jpg", "~.jpg",
]  # fmt: skip
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
KEY_ID = "AKIAIOSFODNN7EXAMPLE"


def names(store: Store) -> list[str]:
    return [entry.uri.removeprefix(store.uri + "/") for entry in store.entries()]


def kind_of(uri: str) -> ErrorKind:
    with pytest.raises(StoreError) as caught:
        read_uri(uri)
    assert len(caught.value.message.splitlines()) == 1
    return caught.value.kind


# Write, read, exists, delete, join


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5000])
def test_reads_what_was_written(location: str, data: bytes) -> None:
    store = open_store(location)
    store.write("deep/er/file.bin", data)
    assert store.read("deep/er/file.bin") == data
    assert read_uri(f"{location}/deep/er/file.bin") == data


def test_writing_again_replaces(location: str) -> None:
    store = open_store(location)
    store.write("a", b"a longer first content")
    store.write("a", b"second")
    assert store.read("a") == b"second"
    assert names(store) == ["a"]


def test_exists_once_written_until_deleted(location: str) -> None:
    store = open_store(location)
    assert not store.exists("dir/a")
    store.write("dir/a", b"")
    assert store.exists("dir/a")
    assert not store.exists("dir")
    store.delete("dir/a")
    assert not store.exists("dir/a")
    assert names(store) == []


def test_deleting_what_is_not_there_is_no_error(location: str) -> None:
    store = open_store(location)
    store.delete("nothing")
    store.write("kept", b"1")
    store.delete("nothing")
    assert names(store) == ["kept"]


def test_a_moved_file_has_its_new_name_only(location: str) -> None:
    store = open_store(location)
    store.write("staging/a", b"new")
    store.write("b", b"older")
    assert store.move("staging/a", "b")
    assert store.move("b", "deep/er/c")
    assert names(store) == ["deep/er/c"]
    assert store.read("deep/er/c") == b"new"


def test_moving_what_is_not_there_leaves_things_as_they_were(location: str) -> None:
    store = open_store(location)
    store.write("b", b"older")
    assert not store.move("a", "b")
    assert not store.move("a", "c")
    assert names(store) == ["b"]
    assert store.read("b") == b"older"


def test_join_is_the_location_below(location: str) -> None:
    store = open_store(location)
    below = store.join("a").join("b/c")
    below.write("d", b"1")
    assert below.uri == f"{location}/a/b/c"
    assert names(store) == ["a/b/c/d"]
    assert names(below) == ["d"]


def test_a_location_that_is_not_there_has_no_entries(location: str) -> None:
    assert list(open_store(location).entries()) == []


# Entries


def test_entries_are_recursive(location: str) -> None:
    store = open_store(location)
    written = {"z", "a/1", "a/b/c/d/2", "b/3.jpg", "a.txt"}
    for name in written:
        store.write(name, b"1")
    assert set(names(store)) == written
    assert len(names(store)) == len(written)


def test_names_are_those_of_the_files_directly_there(location: str) -> None:
    store = open_store(location)
    assert store.names() == []
    for name in ("b", "a é#", "c/d", "e/f/g"):
        store.write(name, b"1")
    assert store.names() == ["a é#", "b"]
    assert store.join("e/f").names() == ["g"]


def test_parallel_listings_together_give_the_entries(location: str) -> None:
    store = open_store(location)
    for number in range(40):
        store.write(f"{number}/{number % 3}/x", b"1")
    store.write("y", b"1")
    listings = [list(one) for one in store.parallel_listings()]
    assert len(listings) > 8
    found = [entry for one in listings for entry in one]
    assert sorted(found, key=lambda entry: entry.uri) == sorted(
        store.entries(), key=lambda entry: entry.uri
    )
    assert len(found) == 41


def test_entries_come_in_an_order_of_names_alone(location: str) -> None:
    store = open_store(location)
    written = ["b/2", "a", "b/10", "c/x/1", "b.txt", "B"]
    one, other = store.join("one"), store.join("other")
    for name in written:
        one.write(name, b"1")
    for name in reversed(written):
        other.write(name, b"1")
    assert names(one) == names(other)


def test_entries_leave_out_neighbors_with_the_same_beginning(location: str) -> None:
    open_store(location).write("in", b"1")
    open_store(location + "2").write("out", b"1")
    assert names(open_store(location)) == ["in"]


def test_entries_span_many_pages(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://{bucket}/many")
    for number in range(7):
        store.write(f"{number}", b"1")
    real = s3_client().get_paginator("list_objects_v2").paginate

    class Small:
        def paginate(self, **kwargs: Any) -> Any:
            return real(**kwargs, PaginationConfig={"PageSize": 2})

    monkeypatch.setattr(s3_client(), "get_paginator", lambda _: Small())
    assert names(store) == [str(number) for number in range(7)]


def test_temporary_files_and_empty_folders_are_no_entries(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / ".tmp-1-2").write_bytes(b"half a fi")
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert names(open_store(str(tmp_path))) == ["a.jpg"]


def test_directory_objects_are_no_entries(bucket: str) -> None:
    for key in ("top/", "top/empty/"):
        s3_client().put_object(Bucket=bucket, Key=key, Body=b"")
    store = open_store(f"s3://{bucket}/top")
    store.write("a.jpg", b"1")
    assert names(store) == ["a.jpg"]


def test_a_dangling_link_is_listed_with_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    (entry,) = open_store(str(tmp_path)).entries()
    assert entry == Entry(str(tmp_path / "a.jpg"), None, None, None)


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"1")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "tree")
    assert names(open_store(str(tmp_path / "tree"))) == ["link/a.jpg"]


def test_a_folder_that_two_links_lead_to_is_listed_once_and_always_the_same(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"1")
    (tmp_path / "tree" / "b").mkdir(parents=True)
    for link in ("c", "a"):
        (tmp_path / "tree" / link).symlink_to(tmp_path / "real")
    (tmp_path / "tree" / "b" / "up").symlink_to(tmp_path / "tree")
    store = open_store(str(tmp_path / "tree"))
    assert names(store) == ["a/a.jpg"]
    assert [entry for one in store.parallel_listings() for entry in one] == list(store.entries())


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(StoreError, match="a device or a pipe") as error:
            read_uri(str(tmp_path / name))
        assert error.value.kind is ErrorKind.NOT_FOUND


def test_dots_lead_to_one_uri(tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / "a.jpg").write_bytes(b"1")
    (entry,) = open_store(f"{tmp_path}/other/../im").entries()
    assert entry.uri == f"{tmp_path}/im/a.jpg"


def test_a_folder_that_may_not_be_read_is_not_passed_over(no_access: str) -> None:
    with refused(no_access):
        list(open_store(no_access).entries())


def test_an_entry_knows_size_and_time(location: str) -> None:
    store = open_store(location)
    store.write("a", b"12345")
    (entry,) = store.entries()
    assert entry.uri == f"{location}/a"
    assert entry.size == 5
    assert entry.last_modified is not None
    assert entry.last_modified.tzinfo is UTC
    assert abs(datetime.now(UTC) - entry.last_modified) < timedelta(minutes=5)
    assert stat_uri(entry.uri) == entry


def test_s3_entries_have_an_etag_without_quotes(bucket: str) -> None:
    store = open_store(f"s3://{bucket}")
    store.write("a", b"12345")
    (entry,) = store.entries()
    assert entry.etag == hashlib.md5(b"12345", usedforsecurity=False).hexdigest()


def test_local_entries_have_no_etag_and_microseconds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    os.utime(tmp_path / "a", ns=(0, 1_700_000_000_123_456_789))
    (entry,) = open_store(str(tmp_path)).entries()
    assert entry.etag is None
    assert entry.last_modified == datetime(2023, 11, 14, 22, 13, 20, 123456, UTC)


def test_odd_names_come_back_as_they_are(location: str) -> None:
    store = open_store(location)
    for name in ODD_NAMES:
        store.write(name, name.encode())
    assert set(names(store)) == set(ODD_NAMES)
    for entry in store.entries():
        content = entry.uri.removeprefix(location + "/").encode()
        assert read_uri(entry.uri) == content
        assert store.read(content.decode()) == content
        assert stat_uri(entry.uri) == entry
        assert store.exists(content.decode())


# Whole or not at all


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file can grow beyond 1000 bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextmanager
def no_rename(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        patch.setattr(os, "replace", fail)
        patch.setattr(os, "rename", fail)
        yield


@contextmanager
def no_sync(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield


@pytest.mark.parametrize("older", [None, b"older"])
@pytest.mark.parametrize("failure", [full_disk, no_rename, no_sync])
def test_a_failed_local_write_leaves_things_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any, older: bytes | None
) -> None:
    store = open_store(str(tmp_path))
    if older:
        store.write("a", older)
    before = sorted(os.listdir(tmp_path))  # noqa: PTH208
    with failure(monkeypatch), pytest.raises((OSError, LesioncamError)):
        store.write("a", bytes(10_000))
    assert sorted(os.listdir(tmp_path)) == before  # noqa: PTH208
    assert not older or store.read("a") == older


def test_a_failed_s3_write_leaves_things_as_they_were(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/top")
    store.write("a", b"older")
    with answering("put_object", "InternalError", status=500), refused(kind=RunFailedError):
        store.write("a", b"newer")
    assert store.read("a") == b"older"
    assert names(store) == ["a"]


def test_a_reader_never_sees_half_a_file(location: str) -> None:
    store = open_store(location)
    contents = {bytes([letter]) * 200_000 for letter in b"ab"}
    store.write("a", min(contents))
    done = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            seen.append(store.read("a"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(15):
            for content in contents:
                store.write("a", content)
    finally:
        done.set()
        reader.join()
    assert seen
    assert set(seen) <= contents


def test_threads_write_the_same_file_without_harm(location: str) -> None:
    store = open_store(location)
    contents = [bytes([number]) * 50_000 for number in range(6)]
    threads = [threading.Thread(target=store.write, args=("a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("a") in contents
    assert names(store) == ["a"]


# What went wrong


def test_reading_what_is_not_there(location: str) -> None:
    open_store(location).write("a", b"1")
    assert kind_of(f"{location}/b") is ErrorKind.NOT_FOUND
    assert kind_of(f"{location}/a/b") is ErrorKind.NOT_FOUND
    with pytest.raises(StoreError) as caught:
        stat_uri(f"{location}/b")
    assert caught.value.kind is ErrorKind.NOT_FOUND


def test_reading_from_a_bucket_that_is_not_there(s3_server: str) -> None:
    assert kind_of("s3://no-such-bucket/a.jpg") is ErrorKind.NOT_FOUND


def test_reading_a_local_file_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", forbid)
    assert kind_of(str(tmp_path / "a.jpg")) is ErrorKind.PERMISSION


def test_reading_a_local_file_from_a_broken_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    assert kind_of(str(tmp_path / "a.jpg")) is ErrorKind.UNREACHABLE


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("InvalidAccessKeyId", ErrorKind.PERMISSION),
        ("SignatureDoesNotMatch", ErrorKind.PERMISSION),
        ("ExpiredToken", ErrorKind.PERMISSION),
        ("NoSuchKey", ErrorKind.NOT_FOUND),
        ("NoSuchBucket", ErrorKind.NOT_FOUND),
        ("SlowDown", ErrorKind.UNREACHABLE),
        ("InternalError", ErrorKind.UNREACHABLE),
    ],
)
def test_reading_from_a_server_that_refuses(s3_server: str, code: str, kind: ErrorKind) -> None:
    with answering("get_object", code):
        assert kind_of("s3://bucket/a.jpg") is kind


def test_reading_from_a_server_that_is_away(unreachable: str) -> None:
    assert kind_of(f"{unreachable}/a.jpg") is ErrorKind.UNREACHABLE


def test_reading_without_credentials(no_credentials: None) -> None:
    assert kind_of("s3://bucket/a.jpg") is ErrorKind.PERMISSION


@pytest.mark.parametrize(
    "uri",
    ["{folder}", "{folder}/" + "a" * 300 + ".jpg", "{folder}/a\0b.jpg", "s3://bucket",
     "s3://bucket/", "s3://Not A Bucket/a.jpg"],
    ids=["folder", "long name", "zero byte", "no key", "empty key", "no bucket name"],
)  # fmt: skip
def test_what_can_never_be_read_is_no_transient_failure(
    s3_server: str, tmp_path: Path, uri: str
) -> None:
    assert kind_of(uri.format(folder=tmp_path)) not in TRANSIENT_KINDS


def test_a_store_error_is_one_line() -> None:
    assert StoreError(ErrorKind.NOT_FOUND, "a\n b\r\n c").message == "a b c"


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An AWS chain that ends in nothing."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_client.cache_clear()
    yield
    s3_client.cache_clear()


CALLS: dict[str, Callable[[Store], object]] = {
    "entries": lambda store: list(store.entries()),
    "exists": lambda store: store.exists("a"),
    "write": lambda store: store.write("a", b"1"),
    "delete": lambda store: store.delete("a"),
}
OPERATIONS = {
    "entries": "list_objects_v2",
    "exists": "head_object",
    "write": "put_object",
    "delete": "delete_object",
}


@pytest.mark.parametrize("call", ["entries", "write", "delete"])  # a HEAD answers 404 either way
def test_a_bucket_that_is_not_there_is_bad_input(s3_server: str, call: str) -> None:
    with refused("s3://no-such-bucket/x", kind=InputError):
        CALLS[call](open_store("s3://no-such-bucket/x"))


@pytest.mark.parametrize("call", ["entries", "write", "delete"])
def test_a_name_that_is_no_bucket_is_bad_input(s3_server: str, call: str) -> None:
    with refused("s3://Not A Bucket/x", kind=InputError):
        CALLS[call](open_store("s3://Not A Bucket/x"))


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_is_away_fails_the_run(unreachable: str, call: str) -> None:
    with refused(unreachable, kind=RunFailedError, without=(SECRET,)):
        CALLS[call](open_store(unreachable))


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_refuses_is_bad_input(s3_server: str, call: str) -> None:
    denied = answering(OPERATIONS[call], "AccessDenied")
    with denied, refused("s3://bucket/x", "AccessDenied", kind=InputError):
        CALLS[call](open_store("s3://bucket/x"))


@pytest.mark.parametrize("call", CALLS)
def test_no_credentials_are_bad_input(no_credentials: None, call: str) -> None:
    with refused(kind=InputError):
        CALLS[call](open_store("s3://bucket/x"))


def test_arrow_without_credentials_is_bad_input(no_credentials: None) -> None:
    with refused("credentials", kind=InputError):
        arrow_s3("bucket")


@pytest.mark.parametrize("call", CALLS)
def test_credentials_are_in_no_message(s3_server: str, call: str) -> None:
    message = f"The key {KEY_ID} with secret {SECRET} is wrong"
    wrong = answering(OPERATIONS[call], "InvalidAccessKeyId", message)
    with wrong, refused("InvalidAccessKeyId", without=(KEY_ID, SECRET)):
        CALLS[call](open_store("s3://bucket/x"))


def test_credentials_are_in_no_store_error(s3_server: str) -> None:
    message = f"The key {KEY_ID} with secret {SECRET} is wrong"
    wrong = answering("get_object", "InvalidAccessKeyId", message)
    with wrong, pytest.raises(StoreError) as caught:
        read_uri("s3://bucket/a.jpg")
    assert KEY_ID not in caught.value.message + str(caught.value)
    assert SECRET not in caught.value.message + str(caught.value)


# URIs of stores


def test_local_stores_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("a/b/").uri == str(tmp_path / "a" / "b")
    assert isinstance(open_store("a"), LocalStore)


def test_file_stores_are_unescaped(tmp_path: Path) -> None:
    open_store((tmp_path / "a b#%").as_uri()).write("c", b"1")
    assert (tmp_path / "a b#%" / "c").read_bytes() == b"1"


def test_file_uris_are_read(tmp_path: Path) -> None:
    (tmp_path / "a b#%.csv").write_bytes(b"1")
    assert read_uri((tmp_path / "a b#%.csv").as_uri()) == b"1"


@pytest.mark.parametrize("uri", ["s3://bucket/a", "s3://bucket/a/", "s3://bucket/a//"])
def test_s3_stores_end_without_a_slash(uri: str) -> None:
    store = open_store(uri)
    assert isinstance(store, S3Store)
    assert store.uri == "s3://bucket/a"


@pytest.mark.parametrize("uri", ["gs://bucket/a", "http://host/a", "az://a", "S3://bucket/a"])
def test_other_schemes_are_refused(uri: str) -> None:
    with refused(uri, "not supported", "s3://", kind=InputError):
        open_store(uri)


@pytest.mark.parametrize("uri", ["s3://", "s3:///key"])
def test_s3_without_a_bucket_is_refused(uri: str) -> None:
    with refused(uri, "no bucket", kind=InputError):
        open_store(uri)


# For pyarrow


def write_parquet(store: Store, name: str, table: pa.Table) -> None:
    file = io.BytesIO()
    pq.write_table(table, file)
    store.write(name, file.getvalue())


def test_arrow_reads_what_write_wrote(location: str) -> None:
    table = pa.table({"a": [1, 2, 3]})
    store = open_store(location)
    for name in ["plain.parquet", "deep/er.parquet", "a b#%20+é?.parquet"]:
        write_parquet(store, name, table)
        filesystem, root = store.arrow()
        assert pq.read_table(f"{root}/{name}", filesystem=filesystem).equals(table)


def test_arrow_asks_in_the_buckets_region(bucket: str) -> None:
    other = f"{bucket}-eu"
    where: Any = {"LocationConstraint": "eu-central-1"}
    s3_client().create_bucket(Bucket=other, CreateBucketConfiguration=where)
    assert s3_client().meta.region_name == arrow_s3(bucket).region == "us-east-1"
    assert arrow_s3(other).region == "eu-central-1"
    assert pickle.loads(pickle.dumps(arrow_s3(other))).region == "eu-central-1"


def test_the_region_of_other_aws_programs_counts(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    s3_client.cache_clear()
    assert s3_client().meta.region_name == "eu-central-1"
    s3_client.cache_clear()


def test_a_location_that_arrow_cannot_name_is_refused(bucket: str) -> None:
    with refused(f"s3://{bucket}/a//b", "two slashes", kind=InputError):
        open_store(f"s3://{bucket}/a//b").arrow()


def test_arrow_reads_at_the_top_of_a_bucket(bucket: str) -> None:
    table = pa.table({"a": [1]})
    store = open_store(f"s3://{bucket}")
    write_parquet(store, "a.parquet", table)
    filesystem, root = store.arrow()
    assert root == bucket
    assert pq.read_table(f"{root}/a.parquet", filesystem=filesystem).equals(table)


# Archives, public buckets, access points


@pytest.mark.parametrize(
    ("storage_class", "archived"),
    [("STANDARD", False), ("GLACIER_IR", False), ("GLACIER", True), ("DEEP_ARCHIVE", True),
     ("INTELLIGENT_TIERING", None)],
)  # fmt: skip
def test_the_listing_shows_what_is_archived(
    bucket: str, storage_class: Any, archived: bool | None
) -> None:
    s3_client().put_object(Bucket=bucket, Key="a/b.jpg", Body=b"1", StorageClass=storage_class)
    store = open_store(f"s3://{bucket}")
    listings = [store.entries(), *store.parallel_listings()]
    entries = [
        *(entry for listing in listings for entry in listing),
        stat_uri(f"{store.uri}/a/b.jpg"),
    ]
    assert [entry.archived for entry in entries] == [archived] * 3


def test_an_archived_object_is_readable_once_it_is_restored(bucket: str) -> None:
    client, uri = s3_client(), f"s3://{bucket}/a.jpg"
    client.put_object(Bucket=bucket, Key="a.jpg", Body=b"1", StorageClass="GLACIER")
    assert kind_of(uri) is ErrorKind.ARCHIVED
    assert ErrorKind.ARCHIVED not in TRANSIENT_KINDS
    client.restore_object(Bucket=bucket, Key="a.jpg", RestoreRequest={"Days": 1})
    assert stat_uri(uri).archived is False
    assert read_uri(uri) == b"1"


@pytest.mark.parametrize(
    ("status", "archived"),
    [
        (
            {"IsRestoreInProgress": False, "RestoreExpiryDate": datetime(2026, 1, 1, tzinfo=UTC)},
            False,
        ),
        ({"IsRestoreInProgress": True}, True),
    ],
)
def test_the_listing_is_asked_for_what_is_restored(
    bucket: str, status: dict[str, Any], archived: bool
) -> None:
    item = {"Key": "a.jpg", "Size": 1, "ETag": '"e"', "LastModified": NOON,
            "StorageClass": "GLACIER", "RestoreStatus": status}  # fmt: skip
    asked = {"Bucket": bucket, "Prefix": "", "OptionalObjectAttributes": ["RestoreStatus"]}
    with Stubber(s3_client()) as stub:
        stub.add_response("list_objects_v2", {"Contents": [item], "IsTruncated": False}, asked)
        (entry,) = open_store(f"s3://{bucket}").entries()
    assert entry.archived is archived


def sent_headers(action: Callable[[], object]) -> dict[str, str]:
    """The headers of the first request that an action sends."""
    sent: list[dict[str, str]] = []
    client = s3_client()
    client.meta.events.register(
        "before-send.s3", lambda request, **_: sent.append({"url": request.url, **request.headers})
    )
    action()
    return sent[0]


@pytest.fixture
def fresh_clients(s3_server: str) -> Iterator[None]:
    """Clients are made from the environment of this test."""
    s3_client.cache_clear()
    yield
    s3_client.cache_clear()


@pytest.mark.usefixtures("fresh_clients")
def test_a_public_bucket_is_read_without_credentials(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="a.jpg", Body=b"1", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    uri = f"s3://{bucket}/a.jpg"
    assert "Authorization" not in sent_headers(lambda: read_uri(uri))
    assert read_uri(uri) == b"1"
    with arrow_s3(bucket).open_input_file(f"{bucket}/a.jpg") as file:
        assert file.read() == b"1"


@pytest.mark.usefixtures("fresh_clients")
def test_the_requester_pays_where_the_environment_says_so(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="a.jpg", Body=b"1")
    store, uri = open_store(f"s3://{bucket}"), f"s3://{bucket}/a.jpg"
    actions = (lambda: list(store.entries()), lambda: read_uri(uri), lambda: stat_uri(uri))
    assert "x-amz-request-payer" not in sent_headers(actions[0])
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    for action in actions:
        s3_client.cache_clear()
        assert sent_headers(action)["x-amz-request-payer"] in ("requester", b"requester")


ARN = "arn:aws:s3:eu-west-1:123456789012:accesspoint/images"


def test_an_access_point_is_a_bucket() -> None:
    assert split_s3(f"s3://{ARN}/a/b.jpg") == (ARN, "a/b.jpg")
    assert split_s3(f"s3://{ARN}") == (ARN, "")
    assert open_store(f"s3://{ARN}/a").join("b").uri == f"s3://{ARN}/a/b"
    with refused(ARN, "use its alias", kind=InputError):
        open_store(f"s3://{ARN}/a").arrow()
