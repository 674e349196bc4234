"""Drift: whether the probabilities of a run are distributed otherwise than in earlier runs.

Knows nothing about files: it takes rows of the scores.
"""

import math

import numpy as np
import pandas as pd

from lesioncam.columns import classes_of, probability_columns
from lesioncam.errors import InputError

MIN_DISTANCE = 0.08  # a smaller one is no drift, however many images there are
ALPHA = 0.05  # how often chance alone may exceed the sampling error, in any class
MIN_RUN_IMAGES = 500  # of an earlier run that is compared with the others: less is noise


def drift(current: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """Compare a run's final probabilities with those of earlier runs, class by class.

    The distance is that of Kolmogorov and Smirnov: the largest difference, over all thresholds, of
    the fractions of images below it. At 0.08 there is one at which eight images more in a hundred
    are flagged, or eight less. A class has drifted where the distance is above its threshold:
    the larger of

    - `MIN_DISTANCE`, and
    - the largest distance of one earlier run from the others, as what has always differed between
      runs is no drift,

    plus the sampling error: what two samples of one distribution differ by at most, at 95 %
    confidence, by Kolmogorov's distribution, divided among the classes (Bonferroni).

    Args:
        current: rows of the scores, with `model` and the `p_` columns. Failed images are ignored.
        earlier: rows to compare with, that also have `run_id`; of other runs of the same model.

    Returns:
        A row for each class, by its name: `images` and `earlier_images`, their `mean` and
        `earlier_mean` probability, `distance`, the `threshold` that it is compared with, and
        whether the class has `drifted`. Of few images only a large change is called drift.

    Raises:
        InputError: the rows are of several models, or one side has no scored image.
    """
    from scipy.stats import kstwobign  # noqa: PLC0415  takes a second

    classes = classes_of(map(str, current.columns))
    columns = probability_columns(classes)
    models = {*current["model"].unique(), *earlier["model"].unique()}
    if len(models) > 1:
        raise InputError(f"the rows are of {len(models)} models; compare runs of one model")
    current, earlier = (rows.dropna(subset=columns) for rows in (current, earlier))
    n, m = len(current), len(earlier)
    if not n or not m:
        side = "earlier" if n else "current"
        raise InputError(f"the {side} rows have no scored image; name another run")
    sampling_error = kstwobign.isf(ALPHA / len(classes)) * math.sqrt((n + m) / (n * m))
    runs = [rows for rows in earlier.groupby("run_id").indices.values() if len(rows) < m]
    runs = [rows for rows in runs if len(rows) >= MIN_RUN_IMAGES]
    figures = {}
    for name, column in zip(classes, columns, strict=True):
        here, there = (rows[column].to_numpy(float) for rows in (current, earlier))
        everything = np.sort(there)
        # Of a run from the others: its distance from all is less by its own part of them.
        between = [_distance(there[rows], everything) * m / (m - len(rows)) for rows in runs]
        distance = _distance(here, everything)
        threshold = max([MIN_DISTANCE, *between]) + sampling_error
        figures[name] = {
            "images": n,
            "earlier_images": m,
            "mean": float(here.mean()),
            "earlier_mean": float(there.mean()),
            "distance": distance,
            "threshold": threshold,
            "drifted": distance > threshold,
        }
    return pd.DataFrame.from_dict(figures, orient="index")


def _distance(sample: np.ndarray, everything: np.ndarray) -> float:
    """The largest difference of two samples' distribution functions.

    Between two values of `sample` its function is constant and the other one rises, so that the
    largest difference is at one of them, or just below.

    Args:
        sample: (n,), in any order.
        everything: (m,), sorted.
    """
    values = np.sort(sample)
    below = [
        np.searchsorted(values, values, side) / len(values)
        - np.searchsorted(everything, values, side) / len(everything)
        for side in ("left", "right")
    ]
    return float(np.abs(below).max())
