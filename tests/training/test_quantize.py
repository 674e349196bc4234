"""What int8 needs is measured on images that a model is trained on, and on no others."""

from typing import Any

import numpy as np
import pytest
import torch

from lesioncam.training import job
from lesioncam.training.initial import initial_network
from lesioncam.training.predict import Stage1Predictions
from lesioncam.training.stage import StageState
from tests.training.small import LABELS, SMALL, WORKERS, flat_dataset


def test_both_stages_are_measured_on_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = flat_dataset(*range(0, 250, 50))
    model, _ = initial_network(SMALL, LABELS)
    crop_boxes = np.arange(20).reshape(5, 4)
    located = Stage1Predictions(np.zeros((5, 3)), crop_boxes, crop_boxes, np.zeros((5, 12, 12)))
    calls: list[tuple[Any, ...]] = []

    def measure_ranges(*arguments: Any) -> tuple[float, ...]:
        calls.append(arguments)
        return (float(len(calls)),)

    monkeypatch.setattr(job, "measure_ranges", measure_ranges)
    monkeypatch.setattr(job, "RANGE_IMAGES", 3)
    stages = [StageState(best={"stage": torch.tensor(number)}) for number in (1, 2)]
    found = job.quantize(dataset, located, model, (stages[0], stages[1]), WORKERS)
    assert (found.stage1, found.stage2) == ((1.0,), (2.0,))
    for (_, rows, boxes, _, weights, _), number in zip(calls, (1, 2), strict=True):
        assert not dataset.held_out[rows].any()
        assert len(rows) == 3
        assert boxes.shape == (5, 4)
        assert weights["stage"] == number
    np.testing.assert_array_equal(calls[0][2][:, 2:], model.canvas_size)
    np.testing.assert_array_equal(calls[1][2], crop_boxes)
