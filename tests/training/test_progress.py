"""What people watch: the line of an epoch, and the time that is left."""

import logging
import math
from typing import Any

import pytest

from lesioncam.training.progress import EpochReport, ProgressBoard, figures, line, seconds_left

EPOCH: dict[str, Any] = {
    "epoch": 2, "loss": 0.4567, "mean_auc": 0.8765, "images_per_second": 12.34,
    "seconds": 100.0, "held_out_seconds": 10.0,
}  # fmt: skip


def post(**changes: Any) -> EpochReport:
    history = [{**EPOCH, "epoch": 1}, {**EPOCH, **changes}]
    return EpochReport("stage2", epochs=7, history=history, left=190.0)


def test_the_line_of_an_epoch() -> None:
    assert line(post()) == (
        "stage 2: epoch 2 of 7, loss 0.457, held-out mean AUC 0.876, 12.3 images/s, "
        "about 3 min left"
    )
    assert "held-out mean AUC undefined, " in line(post(mean_auc=None))


def test_a_stage_that_goes_on_says_from_where() -> None:
    resumed = EpochReport("stage1", 7, [EPOCH, EPOCH, EPOCH], left=math.nan, resumed=True)
    assert line(resumed) == "stage 1: going on from the checkpoint after epoch 3"


def test_the_same_in_numbers() -> None:
    assert figures(post()) == {
        "epoch": 2, "epochs": 7, "loss": 0.4567, "mean_auc": 0.8765, "images_per_second": 12.34,
        "seconds_remaining": 190.0,
    }  # fmt: skip
    assert figures(post(loss=math.inf))["loss"] is None
    assert figures(EpochReport("stage1", 7, [], left=math.nan)) == {"epoch": 0}


@pytest.mark.usefixtures("local_ray")
def test_every_post_is_logged_and_the_last_of_a_look_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board, taken = ProgressBoard.create(), list[EpochReport]()
    first, last = (EpochReport("stage1", 7, [EPOCH] * done, left=60.0) for done in (1, 2))
    for content in (first, last):
        board.post(content)
    with caplog.at_level(logging.INFO, "lesioncam"), board.logged("stage1", taken.append):
        pass
    assert [record.getMessage() for record in caplog.records] == [line(first), line(last)]
    assert taken == [last]
    resumed = EpochReport("stage1", 7, [EPOCH] * 2, left=60.0, resumed=True)
    board.post(resumed)
    with board.logged("stage1", taken.append):
        pass
    assert taken == [last, resumed]


def test_what_is_left_is_reckoned_by_pixels() -> None:
    sides = (128, 128, 224, 64, 64)  # of two stages
    assert math.isnan(seconds_left([], sides))
    assert seconds_left([EPOCH], sides) == 110 * (128**2 + 224**2 + 2 * 64**2) / 128**2
    assert seconds_left([EPOCH] * 3, sides) == 110 * 2 * 64**2 / 224**2
    assert seconds_left([EPOCH] * 5, sides) == 0
