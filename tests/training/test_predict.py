"""Predictors: both stages' results on canvases are the classifier's, with the recipe's views."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from lesioncam.training.canvases import Canvases, Chunk
from lesioncam.training.initial import initial_network
from lesioncam.training.predict import _RangeMeter, _Stage1Predictor, _Stage2Predictor
from lesioncam.vision.classifier import CropClassifier, Localizer, to_channels_first
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.network import build_network
from lesioncam.vision.ranges import activation_ranges
from tests.training.small import LABELS, SMALL, WORKERS


@pytest.mark.usefixtures("local_ray", "threads_restored")
@pytest.mark.parametrize("rotation", [False, True])
def test_both_stages_predict_as_the_classifier_does(rotation: bool) -> None:
    model, state = initial_network(replace(SMALL, test_time_rotation=rotation), LABELS)
    # Larger logits, so that the rotated view makes a difference.
    state = {**state, "linear.weight": 20 * state["linear.weight"]}
    blocks = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), np.uint8)
    scale = model.canvas_size // 6
    pixels = blocks.repeat(scale, axis=1).repeat(scale, axis=2)
    canvases = Canvases((ray.put(Chunk(pixels, np.ones(3, bool))),), np.arange(3))
    rows = np.array([2, 0])
    stage1 = _Stage1Predictor(model, state, canvases, WORKERS).predict(rows)
    stage2 = _Stage2Predictor(model, state, canvases, WORKERS).predict(rows, stage1.crop_boxes)

    network = build_network(model, state).eval()
    batch = to_channels_first(torch.from_numpy(pixels[rows]))
    crops = sample_boxes(batch, torch.from_numpy(stage1.crop_boxes), model.input_size)
    for rotated in (False, True):
        settings = replace(model, test_time_rotation=rotated)
        for found, expected in (
            (stage1.probabilities, Localizer(settings, network)(batch).probabilities),
            (stage2, CropClassifier(settings, network)(crops)),
        ):
            if rotated == rotation:
                torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)
            else:
                assert (torch.from_numpy(found) - expected).abs().max() > 1e-3


class InMemory:
    """Stands in for `Canvases`, without Ray."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def gather(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self.pixels[indices])


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize("rotation", [False, True])
def test_ranges_are_those_of_what_the_stage_sees(
    rotation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.training.predict.device_here", lambda: torch.device("cpu"))
    model, state = initial_network(replace(SMALL, test_time_rotation=rotation), LABELS)
    size = model.canvas_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    rows, boxes = np.array([2, 0]), np.array([[0, 0, size, size], [10, 20, 70, 80]])
    canvases: Any = InMemory(pixels)
    found = _RangeMeter(model, state, canvases, WORKERS).predict(rows, boxes)
    batch = to_channels_first(torch.from_numpy(pixels[rows]))
    crops = sample_boxes(batch, torch.from_numpy(boxes), model.input_size)
    network = build_network(model, state).eval()
    assert found == pytest.approx(activation_ranges(network, crops, rotation=rotation), rel=1e-5)
