"""Progress: what a person and a monitor read of a run."""

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
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr("lesioncam.scoring.progress.time.monotonic", lambda: now[0])
    return now


def test_done_failed_rate_and_time_left(
    tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    shown = Progress(RunRecord(open_store(str(tmp_path)), "run-1"))
    shown.begin(1000)
    file = tmp_path / "_lesioncam" / "runs" / "run-1" / "progress.json"
    assert json.loads(file.read_text())["seconds_left"] is None
    shown.add(Status.OK, 90)
    clock[0] += 50
    with caplog.at_level(logging.INFO, "lesioncam"):
        shown.add(ErrorKind.TRUNCATED, 6)
    shown.add(ErrorKind.EMPTY, 4)
    told = {"run_id": "run-1", "left": 904, "failed": 6, "failed_by_kind": {"truncated": 6}}
    assert told.items() <= vars(caplog.records[0]).items()
    expected = {
        "done": 100,
        "total": 1000,
        "failed": {"empty": 4, "truncated": 6},
        "seconds": 50.0,
        "images_per_second": 2.0,
        "seconds_left": 450,
    }
    assert shown.state() == expected
    assert json.loads(file.read_text()) == {
        **expected,
        "done": 96,
        "failed": {"truncated": 6},
        "images_per_second": 1.92,
        "seconds_left": 471,
    }
    assert caplog.messages == [
        "scored 96 of 1,000 images, 6 of them failed; 1.9 images/s, 8 min left"
    ]
    shown.close()


def test_a_run_goes_on_where_only_its_progress_cannot_be_written(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunFailedError("no space left")

    shown = Progress(RunRecord(open_store(str(tmp_path)), "run-1"))
    shown.begin(3)
    clock[0] += 50
    monkeypatch.setattr(RunRecord, "write", full)
    shown.add(Status.OK, 3)
    assert shown.state()["done"] == 3
    shown.close()


def test_at_the_end_nothing_is_left(
    tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    shown = Progress(RunRecord(open_store(str(tmp_path)), "run-1"))
    shown.begin(3)
    clock[0] += 1
    shown.add(Status.OK, 3)
    with caplog.at_level(logging.INFO, "lesioncam"):
        shown.close()
    assert caplog.messages == ["scored 3 of 3 images, 0 of them failed; 3.0 images/s, 0 min left"]
    assert (shown.state()["seconds_left"], shown.state()["failed"]) == (0, {})
