"""Calibration of probabilities, fitted on those of images with labels.

Shapes: `n` images, `K` classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

from lesioncam.settings import Calibration

_SMALLEST = 1e-12  # a probability counts as at least this, so that it has a logarithm
_PRIOR = 1.0  # standard deviation of log(temperature) and of each bias around 0, before the images


def calibrate(probabilities: Tensor, calibration: Calibration) -> Tensor:
    """The calibrated probabilities of (n, K) ones, by the formula in `Calibration`."""
    biases = torch.tensor(calibration.biases, dtype=probabilities.dtype)
    return _scale(probabilities, calibration.temperature, biases.to(probabilities.device))


def fit_calibration(
    probabilities: np.ndarray, labels: np.ndarray, known_classes: np.ndarray, source: str
) -> Calibration:
    """The temperature and biases under which the labels are most likely.

    They have a normal prior around no change, as the images may be few: of a handful, all of them
    right, the most likely model would be certain of everything.

    Args:
        probabilities: (n, K), the mean of both stages'.
        labels: (n,) int, class indices.
        known_classes: (n, K) bool, the classes that each image's collection has: of the others it
            says nothing.
        source: which images these are, in words.
    """
    from scipy.optimize import minimize  # noqa: PLC0415  takes a second

    given, known = torch.tensor(probabilities).double(), torch.tensor(known_classes)
    rows, truth = torch.arange(len(labels)), torch.tensor(labels)

    def loss(values: np.ndarray) -> float:
        found = _scale(given, math.exp(values[0]), torch.from_numpy(values[1:])) * known
        likelihood = (found[rows, truth] / found.sum(dim=1)).clamp(min=_SMALLEST)
        return float(-likelihood.log().sum()) + float((values**2).sum()) / (2 * _PRIOR**2)

    fitted = minimize(loss, np.zeros(1 + probabilities.shape[1]), method="BFGS").x
    biases = tuple(round(float(bias), 6) for bias in fitted[1:])
    said = int((known_classes.sum(axis=1) > 1).sum())  # images of one possible class say nothing
    return Calibration(round(math.exp(fitted[0]), 6), biases, max(1, said), source)


def _scale(probabilities: Tensor, temperature: float, biases: Tensor) -> Tensor:
    logarithms = probabilities.clamp(min=_SMALLEST).log()
    return (logarithms / temperature + biases).softmax(dim=1)
