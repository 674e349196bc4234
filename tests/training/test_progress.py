"""Progress: the line of an epoch, its numbers, and the time remaining."""

import logging
import math
from typing import Any

import pytest

from lesioncam.training.progress import EpochReport, ProgressBoard, figures, line, seconds_remaining

EPOCH: dict[str, Any] = {
    "epoch": 2, "loss": 0.4567, "mean_auc": 0.8765, "images_per_second": 12.34,
    "seconds": 100.0, "held_out_seconds": 10.0,
}  # fmt: skip


def report(**changes: Any) -> EpochReport:
    history = [{**EPOCH, "epoch": 1}, {**EPOCH, **changes}]
    return EpochReport("stage2", epochs=7, history=history, seconds_remaining=190.0)


def test_the_line_of_an_epoch() -> None:
    assert line(report()) == (
        "stage 2: epoch 2 of 7, loss 0.457, held-out mean AUC 0.876, 12.3 images/s, "
        "about 3 min remaining"
    )
    assert "held-out mean AUC undefined, " in line(report(mean_auc=None))


def test_a_resumed_stage_names_the_checkpoint() -> None:
    resumed = EpochReport("stage1", 7, [EPOCH] * 3, seconds_remaining=math.nan, resumed=True)
    assert line(resumed) == "stage 1: resuming from the checkpoint after epoch 3"


def test_the_same_in_numbers() -> None:
    assert figures(report()) == {
        "epoch": 2, "epochs": 7, "loss": 0.4567, "mean_auc": 0.8765, "images_per_second": 12.34,
        "seconds_remaining": 190.0,
    }  # fmt: skip
    assert figures(report(loss=math.inf))["loss"] is None
    assert figures(EpochReport("stage1", 7, [], seconds_remaining=math.nan)) == {"epoch": 0}


@pytest.mark.usefixtures("local_ray")
def test_every_report_is_logged_and_the_latest_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board, recorded = ProgressBoard.create(), list[EpochReport]()
    first, last = (EpochReport("stage1", 7, [EPOCH] * done, 60.0) for done in (1, 2))
    for one in (first, last):
        board.report(one)
    with caplog.at_level(logging.INFO, "lesioncam"), board.logged("stage1", recorded.append):
        pass
    assert [record.getMessage() for record in caplog.records] == [line(first), line(last)]
    assert recorded == [last]
    resumed = EpochReport("stage1", 7, [EPOCH] * 2, 60.0, resumed=True)
    board.report(resumed)
    with board.logged("stage1", recorded.append):
        pass
    assert recorded == [last, resumed]


def test_remaining_time_is_estimated_by_pixels() -> None:
    sizes = (128, 128, 224, 64, 64)  # of two stages
    assert math.isnan(seconds_remaining([], sizes))
    assert seconds_remaining([EPOCH], sizes) == 110 * (128**2 + 224**2 + 2 * 64**2) / 128**2
    assert seconds_remaining([EPOCH] * 3, sizes) == 110 * 2 * 64**2 / 224**2
    assert seconds_remaining([EPOCH] * 5, sizes) == 0
