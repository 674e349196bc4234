"""The model card's text for different bundles."""

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
        "not_used": {"images_without_label": 7, "skipped_files": 0},
        "images_of_collections_without_a_class": 0,
        "masks_given": 900,
        "masks_estimated": 350,
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
        "Not used: 7 images without label, 0 skipped files.",
        "cover the lesion, from 900 given masks and 350 estimated from color.",
        "| seborrheic_keratosis | 3 of 12 | 1.000 (1.000 to 1.000) |",
        "| mean (melanoma, seborrheic_keratosis) |  | 1.000 (1.000 to 1.000) |",
        "| melanoma | 1.000 | 1.000 |",
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
