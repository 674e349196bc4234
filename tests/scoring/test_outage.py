"""Outage: a store that is down ends the run, a folder that may not be read does not."""

from pathlib import Path

import pytest

from lesioncam.columns import ErrorKind, Status
from lesioncam.errors import RunFailedError
from lesioncam.scoring.outage import MAX_FAILURES, Outage
from lesioncam.storage.runs import RunRecord
from lesioncam.storage.store import Entry
from lesioncam.storage.uris import MAX_BYTES, open_store


def outage_of(tmp_path: Path, uris: list[str]) -> Outage:
    record = RunRecord(open_store(str(tmp_path / "out")), "run-1")
    record.record_listing(Entry(uri) for uri in uris)
    return Outage(record)


def test_the_run_fails_if_no_image_can_be_read(tmp_path: Path, unreachable: str) -> None:
    outage = outage_of(tmp_path, [f"{unreachable}/{number}.jpg" for number in range(20)])
    outage.check({ErrorKind.UNREACHABLE: MAX_FAILURES - 1})
    with pytest.raises(
        RunFailedError, match=rf"out of reach \(unreachable\): {MAX_FAILURES} images in a"
    ):
        outage.check({ErrorKind.UNREACHABLE: 1})


def test_the_run_fails_if_all_listed_files_are_gone(tmp_path: Path) -> None:
    outage = outage_of(tmp_path, [str(tmp_path / "gone" / f"{number}.jpg") for number in range(20)])
    with pytest.raises(RunFailedError, match="out of reach"):
        outage.check({ErrorKind.UNREACHABLE: MAX_FAILURES})


def test_the_run_continues_if_other_images_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    outage = outage_of(tmp_path, [str(tmp_path / "a.jpg")])
    outage.check({ErrorKind.PERMISSION: MAX_FAILURES})
    assert (
        f"{MAX_FAILURES} images in a row could not be read (permission), but other images can be; "
        "continuing" in caplog.text
    )
    assert "a.jpg" not in caplog.text
    outage.check({ErrorKind.PERMISSION: 2 * MAX_FAILURES - 1})


def test_the_run_continues_if_other_images_are_only_too_large(tmp_path: Path) -> None:
    with (tmp_path / "large.tif").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    outage_of(tmp_path, [str(tmp_path / "large.tif")]).check({ErrorKind.PERMISSION: MAX_FAILURES})


def test_archived_images_neither_count_nor_reset_the_count(
    tmp_path: Path, unreachable: str
) -> None:
    outage = outage_of(tmp_path, [f"{unreachable}/a.jpg"])
    outage.check({ErrorKind.ARCHIVED: 10 * MAX_FAILURES})
    outage.check({ErrorKind.UNREACHABLE: MAX_FAILURES - 1, ErrorKind.ARCHIVED: MAX_FAILURES})
    outage.check({ErrorKind.ARCHIVED: 1})
    with pytest.raises(RunFailedError, match=rf"\(unreachable\): {MAX_FAILURES} images"):
        outage.check({ErrorKind.UNREACHABLE: 1, ErrorKind.ARCHIVED: 9})


@pytest.mark.parametrize("between", [Status.OK, ErrorKind.TRUNCATED, ErrorKind.NOT_FOUND])
def test_a_successful_read_resets_the_failure_count(
    tmp_path: Path, unreachable: str, between: str
) -> None:
    outage = outage_of(tmp_path, [f"{unreachable}/a.jpg"])
    for _ in range(3):
        outage.check({ErrorKind.UNREACHABLE: MAX_FAILURES - 1})
        outage.check({between: 1})
    with pytest.raises(RunFailedError):
        outage.check({ErrorKind.UNREACHABLE: MAX_FAILURES})


@pytest.mark.parametrize("read", [Status.OK, ErrorKind.TRUNCATED])
def test_a_part_with_any_image_that_was_read_is_no_outage(
    tmp_path: Path, unreachable: str, read: str
) -> None:
    outage = outage_of(tmp_path, [f"{unreachable}/a.jpg"])
    outage.check({read: 1, ErrorKind.PERMISSION: 2047})
    outage.check({ErrorKind.PERMISSION: 2047, read: 1})
    half = MAX_FAILURES // 2
    with pytest.raises(RunFailedError):
        outage.check({ErrorKind.PERMISSION.value: half, ErrorKind.UNREACHABLE.value: half})
