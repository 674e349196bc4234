"""The model card's text for different bundles."""

from dataclasses import replace

import numpy as np
import pytest

from lesioncam.columns import STAGES
from lesioncam.settings import Calibration, ModelSettings, OperatingPoint
from lesioncam.storage.bundle import Bundle
from lesioncam.training.card import model_card
from lesioncam.vision.metrics import evaluate_stages
from tests.training.small import FACTS

LABELS = np.repeat([0, 1, 2], [4, 3, 5])


@pytest.fixture
def bundle(model_settings: ModelSettings) -> Bundle:
    classes = model_settings.classes
    probabilities = np.eye(3)[LABELS] * 0.6 + 0.1
    figures = evaluate_stages(dict.fromkeys(STAGES, probabilities), LABELS, classes, classes[:2])
    return Bundle(model_settings, {}, {}, training=FACTS, metrics={"held_out": figures})


def test_data_figures_and_recipe(bundle: Bundle) -> None:
    card = model_card(bundle)
    for line in (
        "| melanoma | 1,200 | 4 |",
        "Not used: 7 images without label, 0 skipped files.",
        "cover the lesion, from 900 given masks and 350 estimated from color.",
        "| seborrheic_keratosis | 3 of 12 | 1.000 (1.000 to 1.000) |",
        "| mean (melanoma, seborrheic_keratosis) |  | 1.000 (1.000 to 1.000) |",
        "| melanoma | 1.000 | 1.000 | 0.167 (0.167 to 0.167) |",
        "Best epochs: 14 of 20 in stage 1, 11 of 15 in stage 2.",
        "Ray Train workers: 2.",
        "| `weights` | w.safetensors |",
        "| `learning_rate` | 0.004 |",
        "| `crop.threshold` | 0.45 |",
        "Trained 2026-01-02T03:04:05+00:00 by lesioncam 1.2.3.",
    ):
        assert line in card, card
    assert "They do not show why a class was predicted." in card
    assert "rotated" not in card


def test_untrained_maps_and_test_time_rotation(bundle: Bundle) -> None:
    facts = {**bundle.training, "masks_given": 0, "masks_estimated": 0}
    settings = replace(bundle.settings, test_time_rotation=True)
    card = model_card(replace(bundle, settings=settings, training=facts))
    assert "Its maps show which region raised stage 1's scores, not why." in card
    assert "given masks" not in card
    assert "averages over the image and the image rotated by 180 degrees." in card


def test_calibration_and_operating_points_say_how_they_were_derived(bundle: Bundle) -> None:
    point = OperatingPoint(
        "melanoma", 0.12345, "sensitivity", 0.95, 0.96, 0.5, 50, 250, "held-out training images"
    )
    calibration = Calibration(1.25, (0.5, -0.25, -0.25), 300, "held-out training images")
    settings = replace(bundle.settings, calibration=calibration, operating_points=(point,))
    card = model_card(replace(bundle, settings=settings))
    assert "calibrated on 300 held-out training images: temperature 1.25" in card
    assert "biases melanoma +0.50, seborrheic_keratosis -0.25, nevus -0.25." in card
    assert (
        "| melanoma | 0.123 | sensitivity 0.95 | 0.960 | 0.500 "
        "| 50 of 300 held-out training images |"
    ) in card
    assert "were fitted to the held-out images" in card
    assert "### Operating points" not in model_card(bundle)
