"""Remote zip: single files come out of a zip in a bucket, each checked, and nothing else comes."""

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from lesioncam.columns import ErrorKind
from lesioncam.storage import remote_zip
from lesioncam.storage.remote_zip import RemoteZip, ZipError
from lesioncam.storage.s3 import read_public_range, stat_public
from lesioncam.storage.s3_client import s3_client
from lesioncam.storage.store import Entry, StoreError
from tests.conftest import BODY
from tests.faults import proxy as proxies
from tests.faults.proxy import Proxy, times

if TYPE_CHECKING:
    from mypy_boto3_s3.literals import ObjectCannedACLType

FILES = {f"folder/{number:02d}.bin": bytes([number]) * 3000 for number in range(8)}


def zip_of(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        archive.comment = comment
        archive.writestr("folder/", b"")
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def put(bucket: str, content: bytes, acl: "ObjectCannedACLType" = "public-read") -> Entry:
    s3_client().put_object(Bucket=bucket, Key="a.zip", Body=content, ACL=acl)
    return stat_public(f"s3://{bucket}/a.zip")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The parts that are requested; of a zip's end, only so much that its directory is there."""
    asked: list[tuple[int, int]] = []

    def read(entry: Entry, start: int, end: int) -> bytes:
        asked.append((start, end))
        return read_public_range(entry, start, end)

    monkeypatch.setattr(remote_zip, "read_public_range", read)
    monkeypatch.setattr(remote_zip, "_TAIL_BYTES", 2000)
    return asked


def read_all(entry: Entry) -> dict[str, bytes]:
    remote = RemoteZip(entry)
    return {member.filename: remote.read(member) for member in remote.members()}


@pytest.mark.parametrize(
    ("kind", "comment"), [(zipfile.ZIP_STORED, b""), (zipfile.ZIP_DEFLATED, b"a comment")]
)
def test_each_file_is_read(bucket: str, kind: int, comment: bytes) -> None:
    assert read_all(put(bucket, zip_of(FILES, kind, comment))) == FILES


def test_a_file_takes_one_request_of_its_own_bytes(
    bucket: str, requests: list[tuple[int, int]]
) -> None:
    entry = put(bucket, zip_of(FILES))
    remote = RemoteZip(entry)
    members = remote.members()
    assert entry.size is not None
    assert requests == [(entry.size - 2000, entry.size)]
    remote.read(members[3])
    ((start, end),) = requests[1:]
    assert start == members[3].header_offset
    assert end - start == 3000 + 1024


def test_a_directory_longer_than_expected_takes_more_requests(
    bucket: str, requests: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_zip, "_TAIL_BYTES", 50)
    assert read_all(put(bucket, zip_of(FILES))) == FILES


def test_threads_share_it(bucket: str) -> None:
    remote = RemoteZip(put(bucket, zip_of(FILES)))
    members = remote.members() * 3
    with ThreadPoolExecutor(8) as threads:
        contents = list(threads.map(remote.read, members))
    assert contents == [FILES[member.filename] for member in members]


def test_an_object_that_was_changed_since_is_not_mixed_with_the_new_one(bucket: str) -> None:
    remote = RemoteZip(put(bucket, zip_of(FILES)))
    (member, *_) = remote.members()
    put(bucket, zip_of({**FILES, "more": b"1"}))
    with pytest.raises(StoreError, match="the object was changed while it was read"):
        remote.read(member)


@pytest.mark.parametrize("fault", [proxies.cut_short, proxies.reset])
def test_short_faults_are_not_noticed(proxy: Proxy, bucket: str, fault: proxies.Fault) -> None:
    entry = put(bucket, BODY)
    proxy.fault, asked = times(fault, 2)
    assert read_public_range(entry, 10, 5000) == BODY[10:5000]
    assert len(asked) == 3


def test_an_empty_object_has_an_empty_range(bucket: str) -> None:
    assert read_public_range(put(bucket, b""), 0, 0) == b""


def test_no_credentials_are_sent(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesioncam.storage.s3_client.RETRY_PAUSES_S", (0, 0, 0))
    with pytest.raises(StoreError, match="the store refused: 403") as caught:
        put(bucket, b"1", acl="private")
    assert caught.value.kind is ErrorKind.PERMISSION


CONTENT = zip_of(FILES)
FLIPPED = CONTENT.replace(b"\x05" * 3000, b"\x05" * 2999 + b"\x00")


@pytest.mark.parametrize(
    "content",
    [b"", CONTENT[:-200], CONTENT[200:], CONTENT.replace(b"PK\x01\x02", b"PK\x09\x09")],
)
def test_a_damaged_zip_is_reported(bucket: str, content: bytes) -> None:
    entry = put(bucket, content)
    with pytest.raises(ZipError):
        read_all(entry)


def test_a_damaged_file_is_reported_and_others_are_read(bucket: str) -> None:
    remote = RemoteZip(put(bucket, FLIPPED))
    members = remote.members()
    with pytest.raises(ZipError, match=r"folder/05\.bin: Bad CRC-32"):
        remote.read(members[5])
    assert remote.read(members[6]) == FILES["folder/06.bin"]


def test_a_name_that_points_out_of_the_zip_is_refused(bucket: str) -> None:
    names = ["../a.jpg", "/a.jpg", "b/../../a.jpg", "b\\..\\..\\a.jpg", "C:\\a.jpg", "..\\a.jpg"]
    for name in names:
        remote = RemoteZip(put(bucket, zip_of({**FILES, name: b"1"})))
        with pytest.raises(ZipError, match="points out of it"):
            remote.members()
