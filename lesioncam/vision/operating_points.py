"""Operating points: thresholds chosen on a model's probabilities of images with labels.

Shapes: `n` images, `K` classes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from lesioncam.settings import Criterion, ModelSettings, OperatingPoint
from lesioncam.vision.calibration import fit_calibration
from lesioncam.vision.classifier import combine, mean_of_stages

_FEW = 20  # images of a class, or of the others, below which a threshold is unsure

Wanted = tuple[Criterion, float]  # sensitivity or specificity, and how much of it


def recalibrate(
    settings: ModelSettings,
    stage1: np.ndarray,
    stage2: np.ndarray,
    labels: np.ndarray,
    known_classes: np.ndarray,
    wanted: Mapping[str, Wanted],
    source: str,
) -> ModelSettings:
    """The settings with a calibration and operating points derived from predictions.

    Args:
        settings: what they have of both is replaced.
        stage1: (n, K), stage 1's probabilities of images that it was not trained on.
        stage2: (n, K), stage 2's.
        labels: (n,) int, class indices.
        known_classes: (n, K) bool, the classes that each image's collection has.
        wanted: class -> what its operating point is chosen for.
        source: which images these are, in words.
    """
    first, second = torch.tensor(stage1), torch.tensor(stage2)
    mean = mean_of_stages(first, second, settings.stage2_weight).numpy()
    calibration = fit_calibration(mean, labels, known_classes, source)
    settings = replace(settings, calibration=calibration)
    final = combine(first, second, settings).numpy()
    points = choose_operating_points(final, labels, known_classes, wanted, settings.classes, source)
    return replace(settings, operating_points=points)


def choose_operating_points(
    probabilities: np.ndarray,
    labels: np.ndarray,
    known_classes: np.ndarray,
    wanted: Mapping[str, Wanted],
    classes: tuple[str, ...],
    source: str,
) -> tuple[OperatingPoint, ...]:
    """For each class in `wanted` the threshold that reaches what is wanted of it.

    Args:
        probabilities: (n, K), final ones.
        labels: (n,) int, class indices.
        known_classes: (n, K) bool. An image of a collection that lacks a class is not among the
            negatives of that class.
        wanted: class -> what is wanted of it. There are images of the class, and others whose
            collection has it; a class that lacks either gets no operating point.
        classes: the class order.
        source: which images these are, in words.
    """
    points = []
    for k, name in enumerate(classes):
        rows = known_classes[:, k]
        scores, positive = probabilities[rows, k].astype(np.float64), labels[rows] == k
        if name not in wanted or positive.all() or not positive.any():
            continue
        criterion, fraction = wanted[name]
        threshold = _threshold(scores, positive, criterion, fraction)
        flagged = scores >= threshold
        points.append(
            OperatingPoint(
                name,
                threshold,
                criterion,
                fraction,
                sensitivity=float(flagged[positive].mean()),
                specificity=float((~flagged[~positive]).mean()),
                positives=int(positive.sum()),
                negatives=int((~positive).sum()),
                source=source,
            )
        )
    return tuple(points)


def concerns(settings: ModelSettings, wanted: Mapping[str, Wanted]) -> Iterator[str]:
    """What to say of thresholds that could not be chosen well, a line each."""
    points = {point.name: point for point in settings.operating_points}
    for name in wanted:
        if name not in points:
            yield f"no threshold for {name}: it takes images of it, and images of other classes"
            continue
        point = points[name]
        if min(point.positives, point.negatives) < _FEW:
            yield (
                f"the threshold for {name} was chosen on {point.positives:,} images of it and "
                f"{point.negatives:,} others; on other images it can be far off"
            )
        if getattr(point, point.criterion) < point.wanted:
            yield f"no threshold for {name} has a {point.criterion} of {point.wanted:g}"


def _threshold(
    scores: np.ndarray, positive: np.ndarray, criterion: Criterion, fraction: float
) -> float:
    """Halfway between two images' scores, so that rounding elsewhere changes no flag.

    For a sensitivity the highest threshold that has it, for a specificity the lowest.
    """
    own = np.sort(scores[positive] if criterion == "sensitivity" else scores[~positive])
    needed = math.ceil(fraction * len(own) - 1e-9)
    if criterion == "sensitivity":
        lowest_flagged = own[len(own) - needed]
        below = scores[scores < lowest_flagged]
        highest_passed = below.max() if len(below) else 0.0
    else:
        highest_passed = own[needed - 1]
        above = scores[scores > highest_passed]
        lowest_flagged = above.min() if len(above) else 1.0
    return float(highest_passed + lowest_flagged) / 2
