"""Progress: `progress.json` and the log lines of a run."""

import json
import logging
from pathlib import Path

import pytest

from lesioncam.columns import ErrorKind, Status
from lesioncam.errors import RunFailedError
from lesioncam.logs import log_to_stderr
from lesioncam.scoring.progress import Progress
from lesioncam.storage.runs import RunRecord
from lesioncam.storage.uris import open_store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list so that a test can set it."""
    now = [1000.0]
    monkeypatch.setattr("lesioncam.scoring.progress.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def progress(tmp_path: Path, clock: list[float]) -> Progress:
    """The progress of a run in `tmp_path`, without its heartbeat."""
    started = Progress(RunRecord(open_store(str(tmp_path)), "run-1"))
    started._heartbeat.stop()
    return started


def beat(progress: Progress, clock: list[float], classified: int) -> None:
    """One second later so many images were classified."""
    clock[0] += 1
    progress.follow(lambda: classified, ahead=20)
    progress._beat()


def test_done_failed_rate_and_remaining_time(
    progress: Progress, tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    progress.begin(1000)
    file = tmp_path / "_lesioncam" / "runs" / "run-1" / "progress.json"
    assert json.loads(file.read_text())["seconds_remaining"] is None
    clock[0] += 30  # the networks are loaded: no part of the rate
    with caplog.at_level(logging.INFO, "lesioncam"):
        progress.add(Status.OK, 46)
        clock[0] += 25
        progress.add(ErrorKind.TRUNCATED, 50)
        clock[0] += 5
        progress.add(ErrorKind.EMPTY, 4)
    expected = {
        "done": 100,
        "total": 1000,
        "failed": {"empty": 4, "truncated": 50},
        "seconds": 60.0,
        "images_per_second": 1.8,
        "seconds_remaining": 500,
    }
    assert progress.state() == json.loads(file.read_text()) == expected
    fields = {"run_id": "run-1", "remaining": 900, "failed": 54}
    assert fields.items() <= vars(caplog.records[-1]).items()
    assert caplog.messages == [
        "scored 46 of 1,000 images, 0 failed; 0.0 images/s, time remaining unknown",
        "scored 100 of 1,000 images, 54 failed; 1.8 images/s, 8 min remaining",
    ]


def test_images_are_counted_as_they_are_classified(progress: Progress, clock: list[float]) -> None:
    progress.begin(100)
    done = []
    for classified in (0, 4, 8, 12, 0, 16, 50, 18):  # 0: no answer; 50: repeated ones too
        beat(progress, clock, classified)
        done.append(progress.state()["done"])
    assert done == [0, 4, 8, 12, 12, 16, 20, 20]
    progress.add(Status.OK, 30)
    assert progress.state()["done"] == 30
    beat(progress, clock, 130)
    assert progress.state()["done"] == 50
    progress.add(Status.OK, 70)
    beat(progress, clock, 130)
    assert progress.state()["done"] == 100


def test_the_rate_is_that_of_the_last_minute(progress: Progress, clock: list[float]) -> None:
    progress.begin(10_000)
    for second in range(100):
        clock[0] += 1
        progress.add(Status.OK, 1 if second < 35 else 10)
    assert progress.state()["images_per_second"] == 10
    assert progress.state()["seconds_remaining"] == round((10_000 - 35 - 650) / 10)


def test_a_run_continues_where_only_its_progress_cannot_be_written(
    progress: Progress, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunFailedError("no space left")

    progress.begin(3)
    clock[0] += 50
    monkeypatch.setattr(RunRecord, "write", full)
    progress.add(Status.OK, 3)
    assert progress.state()["done"] == 3


def test_without_a_rate_the_remaining_time_is_unknown(
    progress: Progress, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    progress.begin(3)
    clock[0] += 1
    with caplog.at_level(logging.INFO, "lesioncam"):
        progress.close()
    line = "scored 0 of 3 images, 0 failed; 0.0 images/s, time remaining unknown"
    assert caplog.messages == [line]


def test_the_last_line_has_no_remaining_time_and_is_logged_once(
    progress: Progress, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    progress.begin(3)
    clock[0] += 60
    with caplog.at_level(logging.INFO, "lesioncam"):
        progress.add(Status.OK, 3)
        progress.close()
    assert caplog.messages == ["scored 3 of 3 images, 0 failed; 0.1 images/s"]
    assert (progress.state()["seconds_remaining"], progress.state()["failed"]) == (0, {})


def test_log_lines_do_not_overwrite_the_bar(
    progress: Progress,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("lesioncam")
    monkeypatch.setattr(logger, "handlers", [])  # what is set up below ends with this test
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    log_to_stderr(as_json=False)  # to the stderr that is captured
    progress.begin(40)
    for classified in (0, 4, 8):
        beat(progress, clock, classified)
    logger.warning("a line")
    progress.add(Status.OK, 40)
    progress.close()
    logger.warning("after the bar")
    out, err = capsys.readouterr()
    shown = [line.rpartition("\r")[2] for line in (out + err).split("\n")]
    assert shown[0].endswith(" a line")
    assert shown[1].startswith("scoring: 100%|")
    assert "| 40/40, " in shown[1]
    assert "loading the networks:   0%|" in err
    assert "| 8/40, 4.0 images/s, 8 s remaining" in err
    assert shown[2].endswith(" after the bar")
