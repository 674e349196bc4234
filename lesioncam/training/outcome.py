"""Outcome: the figures both stages reach, and the facts of their training, for the bundle."""

import logging
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lesioncam import __version__
from lesioncam.settings import ModelSettings, TrainSettings
from lesioncam.storage.labels import Labels
from lesioncam.training.dataset import Dataset
from lesioncam.training.predict import Stage1Predictions
from lesioncam.training.source import Source, flag_classes
from lesioncam.training.stage import StageState
from lesioncam.vision.classifier import combine
from lesioncam.vision.metrics import Figures, evaluate_stages
from lesioncam.vision.operating_points import Wanted, concerns, recalibrate
from lesioncam.vision.overlap import compare, mean_overlap

log = logging.getLogger("lesioncam")


def evaluate(
    dataset: Dataset,
    stage1: Stage1Predictions,
    stage2: np.ndarray,
    labels: Labels,
    model: ModelSettings,
    *,
    localization: bool,
) -> dict[str, Figures]:
    """The bundle's metrics, `held_out` and, where there are such images, `validation`.

    Args:
        dataset: the images.
        stage1: its predictions for all canvases, n of them.
        stage2: (n, K), its probabilities; only read of held-out and validation images.
        labels: the classes.
        model: how the stages are combined, with its calibration.
        localization: whether to compare maps and boxes with the given masks, too.
    """

    def figures(rows: np.ndarray, class_indices: np.ndarray) -> Figures:
        first, second = stage1.probabilities[rows], stage2[rows]
        final = combine(torch.from_numpy(first), torch.from_numpy(second), model).numpy()
        stages = {"stage1": first, "stage2": second, "final": final}
        return evaluate_stages(stages, class_indices, labels.classes, labels.target_classes)

    held_out = dataset.held_out_rows
    metrics = {"held_out": figures(held_out, dataset.images.labels[held_out])}
    if localization:
        metrics["held_out"]["localization"] = _localization(dataset, stage1, model.canvas_size)
    if dataset.validation is not None:
        metrics["validation"] = figures(dataset.validation_rows, dataset.validation.labels)
    return metrics


def with_calibration(
    model: ModelSettings,
    dataset: Dataset,
    stage1: Stage1Predictions,
    stage2: np.ndarray,
    labels: Labels,
    settings: TrainSettings,
) -> ModelSettings:
    """The model with a calibration and operating points, as the recipe wants them.

    Both are derived on the held-out images, which also chose the epochs: the validation images'
    metrics show how they hold on others.

    Args:
        model: without them.
        dataset: the images.
        stage1: its predictions for all canvases, n of them.
        stage2: (n, K), its probabilities; only read of held-out images.
        labels: the classes.
        settings: the recipe.
    """
    rows = dataset.held_out_rows
    sensitivity: Wanted = ("sensitivity", settings.flag_sensitivity)
    wanted = dict.fromkeys(flag_classes(settings, labels), sensitivity)
    model = recalibrate(
        model,
        stage1.probabilities[rows],
        stage2[rows],
        dataset.images.labels[rows],
        dataset.known_classes[rows],
        wanted,
        "held-out training images",
    )
    for line in concerns(model, wanted):
        log.warning("%s", line)
    return model


def _localization(dataset: Dataset, stage1: Stage1Predictions, canvas_size: int) -> dict[str, Any]:
    """How well maps and boxes find the given masks of held-out images."""
    masks, boxes = dataset.lesion_masks, stage1.boxes / canvas_size
    rows = np.flatnonzero(masks.given & dataset.held_out & masks.grid.any(axis=(1, 2)))
    return mean_overlap(
        compare(masks.grid[row], stage1.maps[row], tuple(boxes[row])) for row in rows
    )


def recipe_facts(settings: TrainSettings) -> dict[str, Any]:
    """The settings, without the path of the weights."""
    recipe = asdict(settings)
    if recipe["weights"] is not None:
        recipe["weights"] = Path(recipe["weights"]).name
    return recipe


def training_facts(
    dataset: Dataset,
    source: Source,
    labels: Labels,
    settings: TrainSettings,
    stages: tuple[StageState, StageState],
    workers: int,
) -> dict[str, Any]:
    """The training's counts, settings and history; no image's name and no local path."""

    def counts(part: np.ndarray) -> dict[str, int]:
        found = Counter(labels.classes[index] for index in dataset.images.labels[part])
        return {name: found[name] for name in labels.classes}

    masks, trained_on = dataset.lesion_masks, ~dataset.held_out
    # An empty mask, and one without weight in the loss, trains nothing.
    used = trained_on & (masks.weights > 0) & masks.grid.any(axis=(1, 2))
    return {
        "settings": recipe_facts(settings),
        "target_classes": list(labels.target_classes),
        "training_images": counts(trained_on),
        "held_out_images": counts(dataset.held_out),
        "not_used": {
            **source.not_used,
            "unreadable_images_and_copies": len(source.uris) - len(dataset.images),
        },
        "images_of_collections_without_a_class": int(
            (trained_on & ~dataset.known_classes.all(axis=1)).sum()
        ),
        "masks_given": int((used & masks.given).sum()),
        "masks_estimated": int((used & ~masks.given).sum()),
        "workers": workers,
        **{
            name: {"best_epoch": state.best_epoch, "history": state.history}
            for name, state in zip(("stage1", "stage2"), stages, strict=True)
        },
        "lesioncam_version": __version__,
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
