import numpy as np
import pytest
from sklearn.metrics import roc_curve

from lesioncam.evaluation.curves import (
    at_flag,
    calibration,
    confusion,
    difference,
    fraction,
    roc_band,
)


def test_an_roc_curve_worked_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.8, 0.1])
    curve = roc_band(scores, np.array([True, True, False, False]))
    assert curve is not None
    rates = curve["false_positive_rate"]
    assert (rates[0], rates[50], rates[100]) == (0, 0.5, 1)
    sensitivity = curve["sensitivity"]
    assert (sensitivity[0], sensitivity[25], sensitivity[50]) == (0.5, 0.75, 1)  # a tie is a slope
    assert all(np.array(curve["low"]) <= curve["high"])


def test_an_roc_curve_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    positive = random.random(400) < 0.3
    scores = (positive + random.normal(0, 1, 400)).round(1)
    curve = roc_band(scores, positive)
    assert curve is not None
    x, y, _ = roc_curve(positive, scores, drop_intermediate=False)
    expected = np.interp(curve["false_positive_rate"], x, y)
    assert curve["sensitivity"] == pytest.approx(expected, abs=1e-6)
    inside = (np.array(curve["low"]) <= expected) & (expected <= curve["high"])
    assert inside.all()


def test_an_roc_curve_of_one_side_is_undefined() -> None:
    assert roc_band(np.array([0.1, 0.2]), np.array([True, True])) is None
    assert roc_band(np.array([0.1, 0.2]), np.array([False, False])) is None


def test_calibration_worked_by_hand() -> None:
    probabilities = np.repeat([0.1, 0.7], 10)
    positive = np.arange(20) % 10 < np.repeat([1, 5], 10)  # 1 and 5 of ten
    found = calibration(probabilities, positive)
    assert [one["n"] for one in found["bins"]] == [2] * 10
    assert [one["mean"] for one in found["bins"]] == pytest.approx([0.1] * 5 + [0.7] * 5)
    assert [one["fraction"] for one in found["bins"]] == [0.5, 0, 0, 0, 0, 1, 1, 0.5, 0, 0]
    assert found["expected_error"] == pytest.approx((0.4 + 4 * 0.1 + 2 * 0.3 + 0.2 + 2 * 0.7) / 10)
    assert len(calibration(np.array([0.2]), np.array([True]))["bins"]) == 1


def test_confusion_has_labels_in_rows() -> None:
    counts = confusion(np.array([0, 0, 2]), np.array([1, 1, 2]), 3)
    assert counts.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_a_flag_at_its_operating_point() -> None:
    point = at_flag(np.array([True, True, False, False]), np.array([True, False, True, False]))
    assert (point["sensitivity"]["fraction"], point["specificity"]["fraction"]) == (0.5, 0.5)
    flagged = np.array([True, True, True, False, False, False, False, False, False, False])
    point = at_flag(flagged, np.array([True, False, False, True, True, True, *[False] * 4]))
    counts = ("true_positives", "false_negatives", "false_positives", "true_negatives")
    assert [point[name] for name in counts] == [1, 3, 2, 4]
    assert (point["sensitivity"]["n"], point["specificity"]["n"]) == (4, 6)
    assert fraction(0, 0) == {"fraction": None, "low": None, "high": None, "n": 0}
    of_ten = fraction(9, 10)
    assert (of_ten["low"], of_ten["high"]) == pytest.approx((0.596, 0.982), abs=1e-3)  # Wilson


def test_a_difference_is_newcombes_example() -> None:
    """56 of 70 and 48 of 80, of the paper's table II."""
    found = difference(fraction(56, 70), fraction(48, 80))
    assert found["difference"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    opposite = difference(fraction(48, 80), fraction(56, 70))
    assert (opposite["low"], opposite["high"]) == pytest.approx((-found["high"], -found["low"]))
