"""The model card: what it says of a bundle that was made another way."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from lesioncam.columns import STAGES
from lesioncam.settings import CropRule, ModelSettings, TrainSettings
from lesioncam.storage.bundle import Bundle
from lesioncam.training.card import model_card
from lesioncam.vision.metrics import evaluate_stages

LABELS = np.repeat([0, 1, 2], [4, 3, 5])


@pytest.fixture
def bundle(model_settings: ModelSettings) -> Bundle:
    classes = model_settings.classes
    probabilities = np.eye(3)[LABELS] * 0.6 + 0.1
    figures = evaluate_stages(dict.fromkeys(STAGES, probabilities), LABELS, classes, classes[:2])
    settings = TrainSettings(weights="w.safetensors", crop=CropRule(threshold=0.45))
    facts: dict[str, Any] = {
        "settings": asdict(settings),
        "target_classes": list(classes[:2]),
        "training_images": dict(zip(classes, (1200, 20, 30), strict=True)),
        "held_out_images": dict(zip(classes, (4, 3, 5), strict=True)),
        "left_over": {"images_without_label": 7, "ignored_files": 0},
        "outlines_drawn": 900,
        "outlines_guessed": 350,
        "workers": 2,
        "stage1": {"best_epoch": 14, "history": []},
        "stage2": {"best_epoch": 11, "history": []},
        "lesioncam_version": "1.2.3",
        "trained_at": "2026-01-02T03:04:05+00:00",
    }
    return Bundle(model_settings, {}, {}, training=facts, metrics={"held_out": figures})


def test_data_figures_and_recipe(bundle: Bundle) -> None:
    card = model_card(bundle)
    for line in (
        "| melanoma | 1,200 | 4 |",
        "Left over: 7 images without label, 0 ignored files.",
        "by 900 drawn outlines and 350 guessed from color.",
        "| seborrheic_keratosis | 3 of 12 | 1.000 (1.000 to 1.000) |",
        "| mean | 7 of 12 | 1.000 (1.000 to 1.000) |",
        "| melanoma | 1.000 | 1.000 |",
        "Stage 1 is from epoch 14 of ",
        "Ray Train workers: 2.",
        "| `weights` | w.safetensors |",
        "| `learning_rate` | 0.004 |",
        "| `crop.threshold` | 0.45 |",
        "Trained 2026-01-02T03:04:05+00:00 by lesioncam 1.2.3.",
    ):
        assert line in card, card
    assert "evidence of what the class rests on" in card
    assert "half turn" not in card


def test_maps_that_nobody_taught_and_half_turns(bundle: Bundle) -> None:
    facts = {**bundle.training, "outlines_drawn": 0, "outlines_guessed": 0}
    other = replace(
        bundle, settings=replace(bundle.settings, test_time_rotation=True), training=facts
    )
    card = model_card(other)
    assert "Its maps show where stage 1 looked, not why." in card
    assert "outlines" not in card
    assert "each the mean over the image and its half turn" in card
