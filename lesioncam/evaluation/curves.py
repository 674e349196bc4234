"""Curves: ROC with an interval band, calibration, confusion. Knows nothing about files.

An undefined figure is None. `n` is the number of images, `K` the number of classes.
"""

import math
from typing import Any

import numpy as np

from lesioncam.vision.metrics import equal_mass_bins, sample_weights

_CONFIDENCE = 0.95
# False-positive rates that an ROC curve is given at.
_RATES = np.linspace(0, 1, 101)

Figures = dict[str, Any]


def roc_band(scores: np.ndarray, positive: np.ndarray, seed: int = 0) -> Figures | None:
    """The sensitivity at 101 false-positive rates, with its 95 % bootstrap interval at each.

    Resampled as `evaluate_stages` does: as many positives and negatives in every resample. Where
    several thresholds give one rate, the highest sensitivity counts.

    Args:
        scores: (n,) float.
        positive: (n,) bool.
        seed: of the resampling.

    Returns:
        `false_positive_rate`, `sensitivity`, `low` and `high`, lists of 101 numbers; None where
        there are no positives or no negatives.
    """
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each group of equal scores
    is_positive = positive[order]
    curves = []
    for weights in sample_weights(positive.astype(int), 2, np.random.default_rng(seed)):
        ordered = weights[:, order]
        found, false = ordered * is_positive, ordered * ~is_positive
        rates = [
            np.cumsum(one, axis=1)[:, last] / one.sum(axis=1)[:, None] for one in (found, false)
        ]
        sensitivity, false_positive = (np.pad(rate, ((0, 0), (1, 0))) for rate in rates)
        curves += [
            np.interp(_RATES, x, y) for x, y in zip(false_positive, sensitivity, strict=True)
        ]
    low, high = np.percentile(curves[1:], [2.5, 97.5], axis=0)
    lines = {"false_positive_rate": _RATES, "sensitivity": curves[0], "low": low, "high": high}
    return {name: line.round(6).tolist() for name, line in lines.items()}


def calibration(probabilities: np.ndarray, positive: np.ndarray) -> Figures:
    """How often images of a probability are of the class, in ten bins of equal mass.

    Args:
        probabilities: (n,) float, n at least 1.
        positive: (n,) bool.

    Returns:
        `bins`, each with `mean` probability, `fraction` of positives with its 95 % Wilson interval
        (`low`, `high`), and `n`; and `expected_error`, the mean distance of the two, weighted by n.
    """
    bins, distance = [], 0.0
    for members in equal_mass_bins(probabilities):
        mean, found = float(probabilities[members].mean()), int(positive[members].sum())
        bins.append({"mean": mean, **fraction(found, len(members))})
        distance += len(members) * abs(mean - found / len(members))
    return {"bins": bins, "expected_error": distance / len(probabilities)}


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) int: how many images of each label (rows) have each prediction (columns)."""
    counts = np.bincount(labels * classes + predictions, minlength=classes**2)
    return counts.reshape(classes, classes)


def at_flag(flagged: np.ndarray, positive: np.ndarray) -> Figures:
    """What a flag finds and misses: counts, and rates with their 95 % Wilson intervals.

    Args:
        flagged: (n,) bool.
        positive: (n,) bool.

    Returns:
        `true_positives`, `false_negatives`, `false_positives` and `true_negatives` in images, and
        `sensitivity` and `specificity` as `fraction` gives them.
    """
    found, missed = int((flagged & positive).sum()), int((~flagged & positive).sum())
    false, passed = int((flagged & ~positive).sum()), int((~flagged & ~positive).sum())
    return {
        "true_positives": found,
        "false_negatives": missed,
        "false_positives": false,
        "true_negatives": passed,
        "sensitivity": fraction(found, found + missed),
        "specificity": fraction(passed, passed + false),
    }


def fraction(found: int, count: int) -> Figures:
    """`found` of `count` as a fraction with its 95 % Wilson interval; None of no images."""
    from scipy.stats import binomtest  # noqa: PLC0415  takes a second

    if not count:
        return {"fraction": None, "low": None, "high": None, "n": 0}
    interval = binomtest(found, count).proportion_ci(_CONFIDENCE, method="wilson")
    return {
        "fraction": found / count,
        "low": float(interval.low),
        "high": float(interval.high),
        "n": count,
    }


def difference(one: Figures, other: Figures) -> Figures:
    """The fraction of some images less that of other images, with its 95 % interval.

    The interval is Newcombe's hybrid score interval for independent groups (Statistics in Medicine
    17, 1998, method 10): it is made from the two Wilson intervals.

    Args:
        one: of at least one image, as `fraction` gives it.
        other: likewise, of none of the same images.

    Returns:
        `difference`, `low` and `high`.
    """
    value = one["fraction"] - other["fraction"]
    below = math.hypot(one["fraction"] - one["low"], other["high"] - other["fraction"])
    above = math.hypot(one["high"] - one["fraction"], other["fraction"] - other["low"])
    return {"difference": value, "low": value - below, "high": value + above}
