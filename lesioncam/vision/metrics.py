"""Metrics: one-vs-rest AUC with bootstrap intervals, sensitivity and specificity. NumPy only.

An undefined figure (a class without positives or negatives) is None, never 0.5 or 1.
`R` is the number of bootstrap resamples, `n` the number of images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lesioncam.columns import STAGES

RESAMPLES = 2000
_BLOCK = 100  # resamples held in memory at once
DECISION = 0.5  # probability from which on an image counts as called a class

Figures = dict[str, Any]


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order.

    Ties count half (Mann-Whitney). None if there are no positives or no negatives, or if
    a score is not finite.

    Args:
        scores: (n,) float.
        positive: (n,) bool.
    """
    value = float(_weighted_auc(scores, positive, np.ones((1, len(scores))))[0])
    return None if np.isnan(value) else value


def mean_auc(
    probabilities: np.ndarray, labels: np.ndarray, target_classes: Sequence[int]
) -> float | None:
    """Mean one-vs-rest AUC over the `target_classes` classes; None if one of them is undefined.

    Args:
        probabilities: (n, K).
        labels: (n,) int, places of the classes.
        target_classes: places of the classes the mean is taken over.
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
    """All figures of `evaluation.json`.

    Intervals are 95 % percentile intervals over resamples of the images, drawn class by class, so
    that every resample has the same number of each. All stages use the same resamples: the
    gain's interval is paired.

    Args:
        stages: `stage1`, `stage2` and `final` -> (n, K) probabilities.
        labels: (n,) int, places in `classes`.
        classes: names, K of them.
        target_classes: the names that `mean` is taken over.
        seed: of the resampling.
        folds: (n,) int, the number of the model that scored each image, or None for a single one.
            Probabilities of different models are not target_classes against each other: AUCs are taken
            within each fold, resampled there, and then averaged over the folds.
    """
    random = np.random.default_rng(seed)
    folds = np.zeros(len(labels), int) if folds is None else folds
    names = np.unique(folds) if len(folds) else [0]
    of_folds = [
        _aucs(
            {stage: stages[stage][folds == fold] for stage in STAGES}, labels[folds == fold], random
        )
        for fold in names
    ]
    aucs = {stage: np.mean([one[stage] for one in of_folds], axis=0) for stage in STAGES}
    places = [list(classes).index(name) for name in target_classes]
    result: Figures = {}
    for stage in STAGES:
        figures: Figures = {}
        for k, name in enumerate(classes):
            positive = labels == k
            figures[name] = {
                **_percentiles(aucs[stage][:, k]),
                "n": len(labels),
                "positives": int(positive.sum()),
                **_at_decision(stages[stage][:, k], positive),
            }
        figures["mean"] = {
            **_percentiles(aucs[stage][:, places].mean(axis=1)),
            "n": len(labels),
            "positives": int(np.isin(labels, places).sum()),
        }
        result[stage] = figures
    gains = aucs["final"] - aucs["stage1"]
    result["gain"] = _percentiles(gains[:, places].mean(axis=1))
    return result


def markdown_table(figures: Figures) -> list[str]:
    """The AUCs of `evaluate_stages` as lines of Markdown."""
    classes = list(figures["final"])
    rows = [
        " | ".join(
            [
                f"| {name}",
                _images(figures["final"][name]),
                *(with_interval(figures[stage][name]) for stage in STAGES),
            ]
        )
        + " |"
        for name in classes
    ]
    gain = with_interval(figures["gain"])
    return [
        "AUC, one class against the rest, with 95 % bootstrap interval:",
        "",
        "| | images | stage 1 | stage 2 | final |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Gain of final over stage 1 in mean AUC: {gain}",
    ]


def decision_table(figures: Figures) -> list[str]:
    """Sensitivity and specificity of `evaluate_stages` as lines of Markdown."""
    rows = [
        f"| {name} | {_share(entry['sensitivity'])} | {_share(entry['specificity'])} |"
        for name, entry in figures["final"].items()
        if "sensitivity" in entry
    ]
    return [
        f"Final probabilities at a threshold of {DECISION:g}:",
        "",
        "| | sensitivity | specificity |",
        "|---|---|---|",
        *rows,
    ]


def _images(figure: Figures) -> str:
    """How many images are the class's own; of a mean, of one of the classes it is taken over."""
    return f"{figure['positives']:,} of {figure['n']:,}"


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def with_interval(figure: Figures) -> str:
    """A figure and its interval, as far as they are defined: `0.919 (0.878 to 0.954)`."""
    if figure["auc"] is None:
        return "undefined"
    if figure["low"] is None:
        return f"{figure['auc']:.3f}"
    return f"{figure['auc']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) AUCs of the images counted by each row of `weights` (R, n); NaN where undefined."""
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
    """Of each stage (1 + R, K): each class's AUC, as it is and on each resample; NaN: undefined."""
    classes = stages["final"].shape[1]
    found: dict[str, list[np.ndarray]] = {stage: [] for stage in STAGES}
    for block in range(1 + RESAMPLES // _BLOCK):
        weights = _resamples(labels, classes, random) if block else np.ones((1, len(labels)))
        for stage, blocks in found.items():
            columns = [
                _weighted_auc(stages[stage][:, k], labels == k, weights) for k in range(classes)
            ]
            blocks.append(np.stack(columns, axis=1))
    return {stage: np.concatenate(blocks) for stage, blocks in found.items()}


def _resamples(labels: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """(_BLOCK, n): how often each image occurs in each resample."""
    weights = np.zeros((_BLOCK, len(labels)))
    for k in range(classes):
        members = np.flatnonzero(labels == k)
        if len(members):
            share = np.full(len(members), 1 / len(members))
            weights[:, members] = random.multinomial(len(members), share, size=_BLOCK)
    return weights


def _percentiles(values: np.ndarray) -> Figures:
    """The first value, and the interval of the resampled ones after it."""
    if np.isnan(values[0]):
        return {"auc": None, "low": None, "high": None}
    if np.isnan(values).any():
        return {"auc": float(values[0]), "low": None, "high": None}
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"auc": float(values[0]), "low": float(low), "high": float(high)}


def _at_decision(scores: np.ndarray, positive: np.ndarray) -> Figures:
    called = scores >= DECISION
    return {
        "sensitivity": float(called[positive].mean()) if positive.any() else None,
        "specificity": float((~called[~positive]).mean()) if (~positive).any() else None,
    }
