"""Calibration: worked by hand, recovered from made-up labels, and modest on few images."""

import numpy as np
import pytest
import torch

from lesioncam.settings import Calibration
from lesioncam.vision.calibration import calibrate, fit_calibration
from lesioncam.vision.metrics import calibration_error


def drawn(count: int, temperature: float, biases: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident and biased probabilities, and labels drawn from the right ones."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (count, len(biases)))
    right = np.exp(logits)
    right /= right.sum(axis=1, keepdims=True)
    labels = (right.cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)
    stated = np.exp((logits - biases) * temperature)
    return stated / stated.sum(axis=1, keepdims=True), labels


def everything_known(probabilities: np.ndarray) -> np.ndarray:
    return np.ones(probabilities.shape, bool)


@pytest.mark.parametrize(
    ("temperature", "biases", "expected"),
    [
        (1.0, (0.0, 0.0), [0.8, 0.2]),
        (2.0, (0.0, 0.0), [2 / 3, 1 / 3]),  # square roots: 2 to 1
        (1.0, (0.0, float(np.log(4))), [0.5, 0.5]),
    ],
)
def test_calibrate_by_hand(
    temperature: float, biases: tuple[float, ...], expected: list[float]
) -> None:
    calibration = Calibration(temperature, biases, 10, "a test")
    found = calibrate(torch.tensor([[0.8, 0.2]]), calibration)
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_a_probability_of_zero_stays_finite() -> None:
    calibration = Calibration(2.0, (1.0, -1.0, 0.0), 10, "a test")
    found = calibrate(torch.tensor([[1.0, 0.0, 0.0]]), calibration)
    assert found.isfinite().all()
    assert found.sum() == pytest.approx(1)


def test_what_distorted_the_probabilities_is_found() -> None:
    stated, labels = drawn(4000, 1.7, [0.6, -0.4, -0.2])
    found = fit_calibration(stated, labels, everything_known(stated), "a test")
    assert found.temperature == pytest.approx(1.7, rel=0.1)
    assert found.biases == pytest.approx((0.6, -0.4, -0.2), abs=0.15)
    assert (found.images, found.source) == (4000, "a test")
    right = calibrate(torch.from_numpy(stated), found).numpy()
    for k in range(3):
        before, after = (calibration_error(p[:, k], labels == k) for p in (stated, right))
        assert after["error"] < 0.02 < before["error"]


def test_a_handful_of_right_images_makes_no_model_certain() -> None:
    stated = np.array([[0.7, 0.3], [0.6, 0.4], [0.3, 0.7], [0.4, 0.6]])
    found = fit_calibration(stated, np.array([0, 0, 1, 1]), everything_known(stated), "a test")
    assert 0.2 < found.temperature < 1
    assert calibrate(torch.from_numpy(stated), found).max() < 0.99


def test_an_image_says_nothing_of_the_classes_that_its_collection_lacks() -> None:
    stated, labels = drawn(1000, 1.3, [0.5, -0.5, 0.0])
    expected = fit_calibration(stated, labels, everything_known(stated), "a test")
    # A collection of the third class only, with probabilities of anything.
    more = np.random.default_rng(1).dirichlet([1, 1, 1], 500)
    known = np.concatenate([everything_known(stated), np.tile([False, False, True], (500, 1))])
    both = np.concatenate([stated, more]), np.concatenate([labels, np.full(500, 2)])
    found = fit_calibration(*both, known, "a test")
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert found.biases == pytest.approx(expected.biases, abs=1e-3)
