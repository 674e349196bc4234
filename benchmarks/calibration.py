r"""Calibration and operating points of a recipe, on the folds of its cross-validation.

    python -m benchmarks.calibration --folds docs/cross-validation \
        --labels isic/train-collections.csv --collection-column collection

Both are fitted to the predictions of four folds and applied to the fifth, as to images that were
not seen. With `--collection-column` only images of collections that have all classes count: in the
others, to recognize the collection is enough to leave classes out.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.predictions import of_complete_collections, read_folds
from lesioncam.columns import DEFAULT_REST_CLASS, STAGES, risk_class
from lesioncam.evaluation.curves import at_flag
from lesioncam.evaluation.evaluate import stage_probabilities
from lesioncam.settings import DEFAULT_SENSITIVITY, CropRule, ModelSettings
from lesioncam.storage.labels import LabelColumns, Labels, read_labels
from lesioncam.vision.classifier import combine, mean_of_stages
from lesioncam.vision.metrics import (
    auc,
    calibration_error,
    equal_mass_bins,
    format_figure,
    with_interval,
)
from lesioncam.vision.network import IMAGENET_MEAN, IMAGENET_STD
from lesioncam.vision.operating_points import Wanted, recalibrate

_SIMULATIONS = 200


def cross_fit(
    rows: pd.DataFrame, truth: np.ndarray, settings: ModelSettings, wanted: dict[str, Wanted]
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's final probabilities and flags by what was fitted to the other folds.

    Returns:
        (n, K) float64, and (n, K) bool: a class that is not wanted has no flags.
    """
    stage1, stage2 = (stage_probabilities(rows, settings.classes)[name] for name in STAGES[:2])
    final, flagged = np.zeros_like(stage1), np.zeros(stage1.shape, bool)
    for fold in rows["fold"].unique():
        own = (rows["fold"] == fold).to_numpy()
        known = np.ones((int((~own).sum()), len(settings.classes)), bool)
        fitted = recalibrate(
            settings, stage1[~own], stage2[~own], truth[~own], known, wanted, "other folds"
        )
        first, second = torch.from_numpy(stage1[own]), torch.from_numpy(stage2[own])
        final[own] = combine(first, second, fitted).numpy()
        for name, threshold in fitted.thresholds.items():
            k = settings.classes.index(name)
            flagged[own, k] = final[own, k] >= threshold
    return final, flagged


def chance_error(probabilities: np.ndarray) -> float:
    """The mean calibration error of (n,) probabilities that are right, by chance alone."""
    random = np.random.default_rng(0)
    bins = equal_mass_bins(probabilities)
    drawn = random.random((_SIMULATIONS, len(probabilities))) < probabilities
    distances = probabilities - drawn
    errors = sum(np.abs(distances[:, members].sum(axis=1)) for members in bins)
    return float(np.mean(errors)) / len(probabilities)


def tables(rows: pd.DataFrame, labels: Labels, sensitivity: float) -> str:
    """Both tables in Markdown, of the images of collections that have all classes."""
    if labels.collections is not None:
        rows = of_complete_collections(rows, labels)
    truth = rows["label"].map(list(labels.classes).index).to_numpy()
    settings = ModelSettings(
        labels.classes, "vgg16", 160, 320, IMAGENET_MEAN, IMAGENET_STD, 0.5, CropRule()
    )
    name = risk_class(labels.classes)
    wanted: dict[str, Wanted] = {} if name is None else {name: ("sensitivity", sensitivity)}
    final, flagged = cross_fit(rows, truth, settings, wanted)
    stages = stage_probabilities(rows, labels.classes)
    first, second = (torch.from_numpy(stages[name]) for name in STAGES[:2])
    before = mean_of_stages(first, second, settings.stage2_weight).numpy()
    lines = [
        f"{len(rows):,} images, calibrated on the other folds. Expected calibration error in ten "
        "bins of as many images each, with 95 % bootstrap interval:",
        "",
        "| class | images | before | after | by chance alone | AUC before | AUC after |",
        "|---|---|---|---|---|---|---|",
    ]
    for k, one in enumerate(labels.classes):
        positive = truth == k
        cells = [
            one,
            f"{positive.sum():,}",
            with_interval(calibration_error(before[:, k], positive), "error"),
            with_interval(calibration_error(final[:, k], positive), "error"),
            f"{chance_error(final[:, k]):.3f}",
            format_figure(auc(before[:, k], positive)),
            format_figure(auc(final[:, k], positive)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| flag | wanted sensitivity | flagged | sensitivity | specificity |",
        "|---|---|---|---|---|",
    ]
    for one, (_, fraction) in wanted.items():
        k = labels.classes.index(one)
        found = at_flag(flagged[:, k], truth == k)
        rates = (with_interval(found[key], "fraction") for key in ("sensitivity", "specificity"))
        lines.append(f"| {one} | {fraction:g} | {flagged[:, k].mean():.3f} | {' | '.join(rates)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folds", type=Path, required=True, help="output of the cross-validation")
    parser.add_argument("--labels", required=True)
    parser.add_argument("--collection-column", help="where an image comes from, as for train")
    parser.add_argument("--rest-class", default=DEFAULT_REST_CLASS)
    parser.add_argument(
        "--sensitivity", type=float, default=DEFAULT_SENSITIVITY, help="wanted of flags (0.95)"
    )
    flags = parser.parse_args()
    columns = LabelColumns(collection=flags.collection_column)
    labels = read_labels(flags.labels, flags.rest_class, columns=columns)
    print(tables(read_folds(flags.folds), labels, flags.sensitivity))


if __name__ == "__main__":
    main()
