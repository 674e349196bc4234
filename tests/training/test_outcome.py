"""Outcome: calibration and operating points are derived on held-out images, and on no others."""

from dataclasses import replace

import numpy as np
import pytest

from lesioncam.errors import InputError
from lesioncam.settings import ModelSettings
from lesioncam.training.initial import initial_network
from lesioncam.training.outcome import evaluate, with_calibration
from lesioncam.training.predict import Stage1Predictions
from lesioncam.training.source import flag_classes
from tests.training.small import LABELS, SMALL, flat_dataset


def test_only_held_out_images_count() -> None:
    dataset = flat_dataset(*range(0, 250, 5))
    count = len(dataset.images)
    labels = np.arange(count) % 3
    dataset = replace(
        dataset,
        images=replace(dataset.images, labels=labels),
        held_out=np.arange(count) % 2 == 0,
        known_classes=np.ones((count, 3), bool),
    )
    random = np.random.default_rng(0)
    raw = np.eye(3)[labels] + 2 * random.random((count, 3))
    probabilities = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    boxes, maps = np.zeros((count, 4), np.int64), np.zeros((count, 12, 12), np.uint8)
    model, _ = initial_network(SMALL, LABELS)

    def derived(values: np.ndarray) -> ModelSettings:
        located = Stage1Predictions(values, boxes, boxes, maps)
        return with_calibration(model, dataset, located, values, LABELS, SMALL)

    found = derived(probabilities)
    others = probabilities.copy()
    others[~dataset.held_out] = 1 / 3
    assert derived(others) == found
    assert found.calibration is not None
    assert found.calibration.images == dataset.held_out.sum()
    (point,) = found.operating_points
    assert (point.name, point.wanted) == ("melanoma", SMALL.flag_sensitivity)
    assert point.positives == (labels[dataset.held_out] == 0).sum()

    located = Stage1Predictions(probabilities, boxes, boxes, maps)
    metrics = evaluate(dataset, located, probabilities, LABELS, found, localization=False)
    plain = evaluate(dataset, located, probabilities, LABELS, model, localization=False)
    for name in ("stage1", "stage2"):
        assert metrics["held_out"][name] == plain["held_out"][name]
    errors = [
        sum(one["held_out"]["final"][name]["calibration_error"]["error"] for name in found.classes)
        for one in (metrics, plain)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [(None, ("melanoma",)), ((), ()), (("nevus", "melanoma"), ("nevus", "melanoma"))],
)
def test_classes_that_are_flagged(
    chosen: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    assert flag_classes(replace(SMALL, flag_classes=chosen), LABELS) == expected


def test_classes_without_a_risk_are_not_flagged_and_unknown_ones_refused() -> None:
    labels = replace(LABELS, classes=("bkl", "df", "nv"), target_classes=("bkl",))
    assert flag_classes(SMALL, labels) == ()
    with pytest.raises(InputError, match="flag_classes names 'melanoma'; the labels have bkl, df"):
        flag_classes(replace(SMALL, flag_classes=("melanoma",)), labels)
