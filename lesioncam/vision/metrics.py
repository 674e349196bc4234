"""Metrics: AUC and calibration error with bootstrap intervals, sensitivity and specificity.

A class is compared with all others.

An undefined figure (a class without positives or negatives) is None, never 0.5 or 1.
`R` is the number of bootstrap resamples, `n` the number of images, `K` the number of classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lesioncam.columns import STAGES

RESAMPLES = 2000
DECISION = 0.5  # an image counts as a class from this probability on
CALIBRATION_BINS = 10
_BLOCK = 100  # resamples held in memory at once,
_WEIGHTS = 10_000_000  # and their weights: some 400 MB

Figures = dict[str, Any]


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: the fraction of (positive, negative) pairs in the right order.

    Ties count half. None if there are no positives or no negatives, or if a score is not finite.

    Args:
        scores: (n,) float.
        positive: (n,) bool.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415  takes a second; few callers need it

    if positive.all() or not positive.any() or not np.isfinite(scores).all():
        return None
    return float(roc_auc_score(positive, scores))


def mean_auc(
    probabilities: np.ndarray, labels: np.ndarray, target_classes: Sequence[int]
) -> float | None:
    """Mean one-vs-rest AUC over the target classes; None if one of them is undefined.

    Args:
        probabilities: (n, K).
        labels: (n,) int, class indices.
        target_classes: indices of the classes that the mean is taken over.
    """
    values = [auc(probabilities[:, k], labels == k) for k in target_classes]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if len(defined) == len(target_classes) else None


def evaluate_stages(
    stages: Mapping[str, np.ndarray],
    labels: np.ndarray,
    classes: Sequence[str],
    target_classes: Sequence[str],
    seed: int = 0,
    folds: np.ndarray | None = None,
) -> Figures:
    """AUCs, their intervals, sensitivity and specificity of each stage: see `evaluation.json`.

    Intervals are 95 % percentile intervals over bootstrap resamples of the images (Efron and
    Tibshirani, 1993). They are stratified: every resample has the same number of images of each
    class. All stages use the same resamples, so that the gain's interval is paired.

    Args:
        stages: `stage1`, `stage2` and `final` -> (n, K) probabilities.
        labels: (n,) int, class indices.
        classes: the names of the K classes.
        target_classes: the names of the classes that `mean` is taken over.
        seed: of the resampling.
        folds: (n,) int, the number of the model that scored each image, or None for a single one.
            Probabilities of different models are not ranked against each other: AUCs are computed
            and resampled within each fold, then averaged over the folds.

    Returns:
        For each stage: each class's figures by its name, and those of `mean`, among them the
        `classes` it is taken over. `final` has each class's `calibration_error`, over all folds
        together. And `gain`, the mean AUC of `final` less that of `stage1`.
    """
    aucs = resample_aucs(stages, labels, np.random.default_rng(seed), folds)
    targets = [list(classes).index(name) for name in target_classes]
    result: Figures = {}
    for stage in STAGES:
        figures: Figures = {}
        for k, name in enumerate(classes):
            positive = labels == k
            figures[name] = {
                **percentiles(aucs[stage][:, k]),
                "n": len(labels),
                "positives": int(positive.sum()),
                **_at_decision(stages[stage][:, k], positive),
            }
        figures["mean"] = {
            **percentiles(aucs[stage][:, targets].mean(axis=1)),
            "n": len(labels),
            "positives": int(np.isin(labels, targets).sum()),
            "classes": list(target_classes),
        }
        result[stage] = figures
    for k, name in enumerate(classes):
        error = calibration_error(stages["final"][:, k], labels == k, seed)
        result["final"][name]["calibration_error"] = error
    gains = aucs["final"] - aucs["stage1"]
    result["gain"] = percentiles(gains[:, targets].mean(axis=1))
    return result


def resample_aucs(
    stages: Mapping[str, np.ndarray],
    labels: np.ndarray,
    random: np.random.Generator,
    folds: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Each class's AUC, of all images and of each resample of them, as `evaluate_stages` says.

    Args:
        stages: (n, K) probabilities by stage; all are resampled alike.
        labels: (n,) int, class indices.
        random: of the resampling; its next use draws other resamples.
        folds: as for `evaluate_stages`.

    Returns:
        By stage (1 + R, K); the first row is of all images. NaN where undefined.
    """
    folds = np.zeros(len(labels), int) if folds is None else folds
    numbers = np.unique(folds) if len(folds) else [0]
    by_fold = [
        _aucs(
            {stage: each[folds == fold] for stage, each in stages.items()},
            labels[folds == fold],
            random,
        )
        for fold in numbers
    ]
    return {stage: np.mean([fold[stage] for fold in by_fold], axis=0) for stage in stages}


def markdown_table(figures: Figures) -> list[str]:
    """The AUCs of `evaluate_stages` as lines of Markdown."""
    rows = []
    for name, final in figures["final"].items():
        title, count = name, f"{final['positives']:,} of {final['n']:,}"
        if "classes" in final:
            title, count = f"{name} ({', '.join(final['classes'])})", ""
        aucs = (with_interval(figures[stage][name]) for stage in STAGES)
        rows.append(f"| {title} | {count} | {' | '.join(aucs)} |")
    return [
        "AUC, one class against the rest, with 95 % bootstrap interval:",
        "",
        "| | images | stage 1 | stage 2 | final |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Gain of final over stage 1 in mean AUC: {with_interval(figures['gain'])}",
    ]


def decision_table(figures: Figures) -> list[str]:
    """Sensitivity, specificity and calibration of `evaluate_stages` as lines of Markdown."""
    rows = []
    for name, entry in figures["final"].items():
        if "sensitivity" in entry:
            cells = [format_figure(entry[key]) for key in ("sensitivity", "specificity")]
            error = entry.get("calibration_error")  # bundles of earlier versions have none
            cells.append("not measured" if error is None else with_interval(error, "error"))
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return [
        f"Final probabilities: at a threshold of {DECISION:g}, and how far they are from the "
        f"fraction of images of the class, in ten bins of as many images each:",
        "",
        "| | sensitivity | specificity | expected calibration error |",
        "|---|---|---|---|",
        *rows,
    ]


def equal_mass_bins(probabilities: np.ndarray) -> list[np.ndarray]:
    """The images of ten bins of as many images each, by (n,) probabilities; lowest bin first."""
    order = np.argsort(probabilities, kind="stable")
    return np.array_split(order, min(CALIBRATION_BINS, len(order)))


def calibration_error(probabilities: np.ndarray, positive: np.ndarray, seed: int = 0) -> Figures:
    """The expected calibration error in ten bins of as many images each, and its interval.

    By chance alone it is above 0, more so in a resample: a small one can be below its interval.

    Args:
        probabilities: (n,) of one class.
        positive: (n,) bool, whether an image is of that class.
        seed: of the resampling.

    Returns:
        `error`, `low` and `high`; None without images, or where a probability is not finite.
    """
    if not len(probabilities) or not np.isfinite(probabilities).all():
        return {"error": None, "low": None, "high": None}
    bins, distances = equal_mass_bins(probabilities), probabilities - positive
    errors = [
        sum(np.abs(weights[:, members] @ distances[members]) for members in bins)
        for weights in sample_weights(positive.astype(int), 2, np.random.default_rng(seed))
    ]
    return percentiles(np.concatenate(errors) / len(probabilities), "error")


def format_figure(value: float | None, digits: int = 3) -> str:
    """A figure with so many decimal places, or `undefined`."""
    return "undefined" if value is None else f"{value:.{digits}f}"


def with_interval(figure: Figures, key: str = "auc") -> str:
    """The figure at `key` and its interval, where they are defined: `0.919 (0.878 to 0.954)`."""
    text = format_figure(figure[key])
    return (
        text if figure["low"] is None else f"{text} ({figure['low']:.3f} to {figure['high']:.3f})"
    )


def _weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) AUCs with each row of `weights` (R, n) as sample weights; NaN where undefined.

    The same as R calls of scikit-learn's `roc_auc_score`, which would sort the scores R times.
    """
    if not np.isfinite(scores).all():
        return np.full(len(weights), np.nan)
    _, group = np.unique(scores, return_inverse=True)  # equal scores share a group, lowest first
    groups = int(group.max()) + 1 if len(group) else 0
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(groups))
    ordered = weights[:, order]
    is_positive = positive[order]
    positives = np.add.reduceat(ordered * is_positive, starts, axis=1) if groups else weights
    negatives = np.add.reduceat(ordered * ~is_positive, starts, axis=1) if groups else weights
    below = np.cumsum(negatives, axis=1) - negatives
    ordered_right = (positives * (below + negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    result = np.full(len(weights), np.nan)
    np.divide(ordered_right, pairs, out=result, where=pairs > 0)
    return result


def _aucs(
    stages: Mapping[str, np.ndarray], labels: np.ndarray, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """By stage (1 + R, K): each class's AUC, of all images and of each resample; NaN: undefined."""
    classes = next(iter(stages.values())).shape[1]
    found: dict[str, list[np.ndarray]] = {stage: [] for stage in stages}
    for weights in sample_weights(labels, classes, random):
        for stage, blocks in found.items():
            columns = [
                _weighted_auc(stages[stage][:, k], labels == k, weights) for k in range(classes)
            ]
            blocks.append(np.stack(columns, axis=1))
    return {stage: np.concatenate(blocks) for stage, blocks in found.items()}


def sample_weights(
    labels: np.ndarray, classes: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Blocks (b, n) of R + 1 rows in all: each image once, then its count in each resample."""
    yield np.ones((1, len(labels)))
    block = max(1, min(_BLOCK, _WEIGHTS // max(1, len(labels))))
    for start in range(0, RESAMPLES, block):
        weights = np.zeros((min(block, RESAMPLES - start), len(labels)))
        for k in range(classes):
            members = np.flatnonzero(labels == k)
            if len(members):
                equal = np.full(len(members), 1 / len(members))
                weights[:, members] = random.multinomial(len(members), equal, size=len(weights))
        yield weights


def percentiles(values: np.ndarray, key: str = "auc") -> Figures:
    """The first value at `key`, and the interval of the resampled ones after it.

    Args:
        values: (1 + R,), such as those of `resample_aucs`; NaN where undefined.
        key: of the figure.
    """
    if np.isnan(values[0]):
        return {key: None, "low": None, "high": None}
    if np.isnan(values).any():
        return {key: float(values[0]), "low": None, "high": None}
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {key: float(values[0]), "low": float(low), "high": float(high)}


def _at_decision(scores: np.ndarray, positive: np.ndarray) -> Figures:
    """Sensitivity and specificity at `DECISION`."""
    called = scores >= DECISION
    return {
        "sensitivity": float(called[positive].mean()) if positive.any() else None,
        "specificity": float((~called[~positive]).mean()) if (~positive).any() else None,
    }
