"""Progress: `progress.json` and the log lines of a run."""

import json
import logging
from pathlib import Path

import pytest

from lesioncam.columns import ErrorKind, Status
from lesioncam.errors import RunFailedError
from lesioncam.scoring.progress import Progress
from lesioncam.storage.runs import RunRecord
from lesioncam.storage.uris import open_store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list so that a test can set it."""
    now = [1000.0]
    monkeypatch.setattr("lesioncam.scoring.progress.time.monotonic", lambda: now[0])
    return now


def test_done_failed_rate_and_remaining_time(
    tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress(RunRecord(open_store(str(tmp_path)), "run-1"))
    progress.begin(1000)
    file = tmp_path / "_lesioncam" / "runs" / "run-1" / "progress.json"
    assert json.loads(file.read_text())["seconds_remaining"] is None
    progress.add(Status.OK, 90)
    clock[0] += 50
    with caplog.at_level(logging.INFO, "lesioncam"):
        progress.add(ErrorKind.TRUNCATED, 6)
    progress.add(ErrorKind.EMPTY, 4)
    fields = {"run_id": "run-1", "remaining": 904, "failed": 6, "failed_by_kind": {"truncated": 6}}
    assert fields.items() <= vars(caplog.records[0]).items()
    expected = {
        "done": 100,
        "total": 1000,
        "failed": {"empty": 4, "truncated": 6},
        "seconds": 50.0,
        "images_per_second": 2.0,
        "seconds_remaining": 450,
    }
    assert progress.state() == expected
    assert json.loads(file.read_text()) == {
        **expected,
        "done": 96,
        "failed": {"truncated": 6},
        "images_per_second": 1.92,
        "seconds_remaining": 471,
    }
    assert caplog.messages == ["scored 96 of 1,000 images, 6 failed; 1.9 images/s, 8 min remaining"]
    progress.close()


def test_a_run_continues_where_only_its_progress_cannot_be_written(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunFailedError("no space left")

    progress = Progress(RunRecord(open_store(str(tmp_path)), "run-1"))
    progress.begin(3)
    clock[0] += 50
    monkeypatch.setattr(RunRecord, "write", full)
    progress.add(Status.OK, 3)
    assert progress.state()["done"] == 3
    progress.close()


def test_without_a_rate_the_remaining_time_is_unknown(
    tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress(RunRecord(open_store(str(tmp_path)), "run-1"))
    progress.begin(3)
    clock[0] += 1
    with caplog.at_level(logging.INFO, "lesioncam"):
        progress.close()
    line = "scored 0 of 3 images, 0 failed; 0.0 images/s, time remaining unknown"
    assert caplog.messages == [line]


def test_the_last_line_has_no_remaining_time(
    tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress(RunRecord(open_store(str(tmp_path)), "run-1"))
    progress.begin(3)
    clock[0] += 1
    progress.add(Status.OK, 3)
    with caplog.at_level(logging.INFO, "lesioncam"):
        progress.close()
    assert caplog.messages == ["scored 3 of 3 images, 0 failed; 3.0 images/s, 0 min remaining"]
    assert (progress.state()["seconds_remaining"], progress.state()["failed"]) == (0, {})
