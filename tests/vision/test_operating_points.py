"""Operating points: thresholds worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lesioncam.settings import Criterion, ModelSettings
from lesioncam.vision.classifier import combine
from lesioncam.vision.operating_points import (
    choose_operating_points,
    concerns,
    recalibrate,
)

CLASSES = ("malignant", "benign")
SCORES = [0.9, 0.8, 0.5, 0.3, 0.7, 0.4, 0.2, 0.1]  # of four malignant and four benign images
LABELS = np.array([0] * 4 + [1] * 4)


def two_columns(scores: list[float]) -> np.ndarray:
    return np.stack([scores, 1 - np.array(scores)], axis=1)


@pytest.mark.parametrize(
    ("criterion", "wanted", "threshold", "sensitivity", "specificity"),
    [
        ("sensitivity", 0.75, 0.45, 0.75, 0.75),  # the third positive is 0.5, below it is 0.4
        ("sensitivity", 0.76, 0.25, 1.0, 0.5),
        ("sensitivity", 0.5, 0.75, 0.5, 1.0),
        ("specificity", 0.75, 0.45, 0.75, 0.75),
        ("specificity", 0.5, 0.25, 1.0, 0.5),
        ("specificity", 0.99, 0.75, 0.5, 1.0),
    ],
)
def test_the_threshold_is_the_best_that_reaches_what_is_wanted(
    criterion: Criterion, wanted: float, threshold: float, sensitivity: float, specificity: float
) -> None:
    known = np.ones((8, 2), bool)
    (point,) = choose_operating_points(
        two_columns(SCORES), LABELS, known, {"malignant": (criterion, wanted)}, CLASSES, "a test"
    )
    assert point.name == "malignant"
    assert point.threshold == pytest.approx(threshold)
    assert (point.sensitivity, point.specificity) == (sensitivity, specificity)
    assert (point.criterion, point.wanted, point.source) == (criterion, wanted, "a test")
    assert (point.positives, point.negatives) == (4, 4)


def test_equal_scores_are_on_one_side() -> None:
    scores = two_columns([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    known = np.ones((8, 2), bool)
    wanted: dict[str, tuple[Criterion, float]] = {"malignant": ("sensitivity", 0.5)}
    (point,) = choose_operating_points(scores, LABELS, known, wanted, CLASSES, "a test")
    assert (point.sensitivity, point.specificity) == (1, 0)
    wanted = {"malignant": ("specificity", 0.5)}
    (point,) = choose_operating_points(scores, LABELS, known, wanted, CLASSES, "a test")
    assert (point.sensitivity, point.specificity) == (0, 1)


def test_images_of_collections_without_the_class_are_no_negatives() -> None:
    known = np.ones((8, 2), bool)
    known[[4, 5], 0] = False
    wanted: dict[str, tuple[Criterion, float]] = {"malignant": ("sensitivity", 0.75)}
    (point,) = choose_operating_points(
        two_columns(SCORES), LABELS, known, wanted, CLASSES, "a test"
    )
    assert (point.positives, point.negatives, point.specificity) == (4, 2, 1)


@pytest.mark.parametrize("label", [0, 1])
def test_a_class_without_positives_or_negatives_has_none(label: int) -> None:
    known, labels = np.ones((8, 2), bool), np.full(8, label)
    wanted: dict[str, tuple[Criterion, float]] = {"malignant": ("sensitivity", 0.75)}
    assert not choose_operating_points(
        two_columns(SCORES), labels, known, wanted, CLASSES, "a test"
    )


def test_what_could_not_be_chosen_well_is_said(model_settings: ModelSettings) -> None:
    random = np.random.default_rng(0)
    labels = np.array([0] * 5 + [1] * 40)
    stages = random.dirichlet([1, 1, 1], (2, 45))
    wanted: dict[str, tuple[Criterion, float]] = {
        "melanoma": ("sensitivity", 0.95),
        "seborrheic_keratosis": ("sensitivity", 0.9),
        "nevus": ("sensitivity", 0.9),
    }
    known = np.ones((45, 3), bool)
    found = recalibrate(model_settings, stages[0], stages[1], labels, known, wanted, "a test")
    assert list(concerns(found, wanted)) == [
        "the threshold for melanoma was chosen on 5 images of it and 40 others; on other images "
        "it can be far off",
        "the threshold for seborrheic_keratosis was chosen on 40 images of it and 5 others; on "
        "other images it can be far off",
        "no threshold for nevus: it takes images of it, and images of other classes",
    ]


def test_a_specificity_that_no_threshold_has_is_said(model_settings: ModelSettings) -> None:
    certain = np.tile([1.0, 0.0, 0.0], (60, 1))
    labels, known = np.arange(60) % 2, np.ones((60, 3), bool)
    wanted: dict[str, tuple[Criterion, float]] = {"melanoma": ("specificity", 0.9)}
    (point,) = choose_operating_points(
        certain, labels, known, wanted, model_settings.classes, "a test"
    )
    settings = replace(model_settings, operating_points=(point,))
    assert list(concerns(settings, wanted)) == [
        "no threshold for melanoma has a specificity of 0.9"
    ]


def test_thresholds_are_of_calibrated_probabilities(model_settings: ModelSettings) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    stage1, stage2 = (
        (np.eye(3)[labels] + random.random((60, 3))).astype(np.float32) for _ in range(2)
    )
    stage1, stage2 = (one / one.sum(axis=1, keepdims=True) for one in (stage1, stage2))
    earlier = replace(model_settings, stage2_weight=0.25)
    wanted: dict[str, tuple[Criterion, float]] = {
        "nevus": ("specificity", 0.9),
        "melanoma": ("sensitivity", 0.95),
    }
    known = np.ones((60, 3), bool)
    found = recalibrate(earlier, stage1, stage2, labels, known, wanted, "a test")
    assert list(found.thresholds) == ["melanoma", "nevus"]  # in the class order
    assert found.calibration is not None
    final = combine(torch.from_numpy(stage1), torch.from_numpy(stage2), found).numpy()
    for name, point in zip(("melanoma", "nevus"), found.operating_points, strict=True):
        k = found.classes.index(name)
        flagged = final[:, k] >= point.threshold
        assert flagged[labels == k].mean() == point.sensitivity
        assert (~flagged[labels != k]).mean() == point.specificity
    again = recalibrate(found, stage1, stage2, labels, known, wanted, "a test")
    assert again == found  # what was there before does not count
