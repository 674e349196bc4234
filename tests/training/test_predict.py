"""Predictors: training looks at canvases as scoring will, and as the recipe says."""

from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from lesioncam.storage.labels import Labels
from lesioncam.training.canvases import Canvases, Chunk
from lesioncam.training.initial import initial_network, resolve_recipe
from lesioncam.training.predict import Workers, _Predictor
from lesioncam.vision.classifier import CropClassifier, Localizer, to_channels_first
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.network import build_network
from tests.conftest import CLASSES
from tests.training.small import SMALL


@pytest.mark.usefixtures("local_ray", "threads_restored")
@pytest.mark.parametrize("test_time_rotation", [False, True])
def test_both_stages_look_at_canvases_as_the_recipe_says(
    test_time_rotation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.training.predict.native_precision", lambda _: "float32")
    labels = Labels(CLASSES, CLASSES[:2], (), np.zeros(0, np.int64))
    model, state = initial_network(
        resolve_recipe(replace(SMALL, test_time_rotation=test_time_rotation)), labels
    )
    state = {**state, "linear.weight": 20 * state["linear.weight"]}  # turns make a difference
    coarse = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), np.uint8)
    drawn = coarse.repeat(model.canvas_size // 6, axis=1).repeat(model.canvas_size // 6, axis=2)
    kept = Canvases((ray.put(Chunk(drawn, np.ones(3, bool))),), np.arange(3))
    predictor = _Predictor(model, state, kept, Workers(1, gpu=False, cpus=1.0, threads=1))
    numbers = np.array([2, 0])
    seen = predictor.localize(numbers)
    second = predictor.classify(numbers, seen.views)

    network = build_network(model, state).eval()
    canvases = to_channels_first(torch.from_numpy(drawn[numbers]))
    crops = sample_boxes(canvases, torch.from_numpy(seen.views), model.input_size)
    for turn in (False, True):
        settings = replace(model, test_time_rotation=turn)
        first = Localizer(settings, network)(canvases).probabilities
        for found, by_hand in (
            (seen.probabilities, first),
            (second, CropClassifier(settings, network)(crops)),
        ):
            if turn == test_time_rotation:
                torch.testing.assert_close(torch.from_numpy(found), by_hand, atol=1e-4, rtol=0)
            else:
                assert (torch.from_numpy(found) - by_hand).abs().max() > 1e-3
