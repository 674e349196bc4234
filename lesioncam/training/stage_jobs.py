"""Stage jobs: what each stage trains on, from which weights, and what makes it the same job."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import ray
from torch import Tensor

from lesioncam.storage.bundle import FORMAT
from lesioncam.training.batches import Examples
from lesioncam.training.dataset import Dataset
from lesioncam.training.initial import reinitialize_head
from lesioncam.training.recipe import epoch_sizes
from lesioncam.training.stage import Setup, StageJob

# Settings that neither stage depends on,
_NEITHER_STAGE = ("stage2_weight", "flag_classes", "flag_sensitivity")
# and those that stage 1 does not depend on.
_STAGE2_ONLY = ("stage2_epochs", "stage2_start", "stage2_learning_rate", "test_time_rotation")


def stage1_job(setup: Setup, dataset: Dataset, initial: Mapping[str, Tensor]) -> StageJob:
    """Stage 1: whole images, from the weights `initial`."""
    settings, size = setup.settings, setup.model.canvas_size
    boxes = np.tile([0, 0, size, size], (len(dataset.images), 1))
    return StageJob(
        stage="stage1",
        fingerprint=_fingerprint("stage1", setup, dataset, initial, {}),
        setup=setup,
        initial=ray.put(dict(initial)),
        examples=ray.put(_examples(dataset, boxes)),
        sizes=epoch_sizes(settings, setup.model.input_size, settings.stage1_epochs),
        next_sizes=epoch_sizes(settings, setup.model.input_size, settings.stage2_epochs),
        learning_rate=settings.learning_rate,
    )


def stage2_job(
    setup: Setup,
    dataset: Dataset,
    initial: Mapping[str, Tensor],
    stage1: Mapping[str, Tensor],
    crop_boxes: np.ndarray,
) -> StageJob:
    """Stage 2: crops, from the loaded weights with a new linear layer, or from stage 1's.

    Args:
        setup: of the run.
        dataset: its n images.
        initial: the weights that stage 1 started from.
        stage1: stage 1's best weights.
        crop_boxes: (n, 4) int, the part of each canvas that stage 1 cuts out.
    """
    settings = setup.settings
    if settings.stage2_start == "weights" and settings.weights is not None:
        start = reinitialize_head(initial, settings.seed)
    else:
        start = stage1
    return StageJob(
        stage="stage2",
        fingerprint=_fingerprint("stage2", setup, dataset, start, stage1),
        setup=setup,
        initial=ray.put(dict(start)),
        examples=ray.put(_examples(dataset, crop_boxes)),
        sizes=epoch_sizes(settings, setup.model.input_size, settings.stage2_epochs),
        next_sizes=(),
        learning_rate=settings.stage2_learning_rate,
    )


def _examples(dataset: Dataset, boxes: np.ndarray) -> Examples:
    images = dataset.images
    return Examples(
        images.canvases,
        boxes,
        images.labels,
        dataset.held_out,
        dataset.lesion_masks,
        dataset.known_classes,
    )


def _fingerprint(
    stage: str,
    setup: Setup,
    dataset: Dataset,
    initial: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
) -> str:
    """A digest of what a stage's result depends on.

    Recipe, images, labels, split, lesion masks and weights, also those of the stage `before`, whose
    boxes it trains on. The bundle's format, too: it changes when the same weights give another
    result. Settings that a stage does not read do not count, so changing them keeps its result.
    """
    settings = asdict(setup.settings)
    for name in _NEITHER_STAGE:
        del settings[name]
    if stage == "stage1":
        for name in _STAGE2_ONLY:
            del settings[name]
        settings["crop"] = setup.settings.crop.map
    named = [FORMAT, settings, dataset.images.uris, stage, setup.target_classes]
    digest = hashlib.sha256(json.dumps(named).encode())
    images, masks = dataset.images, dataset.lesion_masks
    arrays = (images.labels, images.thumbnails, dataset.held_out, masks.grid, masks.weights)
    for array in (*arrays, dataset.known_classes):
        digest.update(array.tobytes())
    for weights in (initial, before):
        for name in sorted(weights):
            digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
