"""The training job, as a sequence of steps; the modules it names hold each step's work.

read inputs -> decode -> split -> stage 1 -> localize -> stage 2 -> calibrate -> evaluate ->
quantize -> bundle
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
from torch import Tensor

from lesioncam.cluster import as_run_error, connected
from lesioncam.errors import InputError, LesioncamError, failed_by
from lesioncam.settings import ModelSettings, Quantization, TrainSettings
from lesioncam.storage.bundle import Bundle, bundle_exists, save_bundle
from lesioncam.storage.labels import LabelColumns, read_labels
from lesioncam.storage.lease import Lease, refuse_other_run
from lesioncam.storage.runs import new_run_id
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import open_store
from lesioncam.storage.weights import check_weights
from lesioncam.training.card import model_card
from lesioncam.training.dataset import Dataset, make_dataset
from lesioncam.training.fit import fit, remove_checkpoints
from lesioncam.training.initial import initial_network
from lesioncam.training.outcome import (
    evaluate,
    recipe_facts,
    training_facts,
    with_calibration,
)
from lesioncam.training.predict import Stage1Predictions, classify_all, localize_all, measure_ranges
from lesioncam.training.progress import ProgressBoard
from lesioncam.training.source import (
    Inputs,
    check_counts,
    flag_classes,
    match_masks,
    match_source,
    match_validation,
    without_empty_classes,
    without_groups_of,
)
from lesioncam.training.stage import Setup, StageState
from lesioncam.training.stage_jobs import stage1_job, stage2_job
from lesioncam.training.tracking import Tracking
from lesioncam.training.workers import Workers, check_workers, plan_workers
from lesioncam.vision.ranges import RANGE_IMAGES, evenly_spaced

log = logging.getLogger("lesioncam")


@dataclass(frozen=True)
class TrainRequest:
    """A training job as it is requested.

    Attributes:
        images: a directory or prefix, or a CSV or Parquet file of `uri`s.
        labels: a table of labels.
        bundle: where the trained model goes; must not hold one yet.
        settings: the recipe.
        masks: lesion masks of (some of) the images, or None.
        val_images: images that are only reported on, or None.
        val_labels: their labels, or None.
        id_column: of both files, as `LabelColumns.image_id`.
        class_column: likewise, as `LabelColumns.class_name`.
        group_column: likewise, as `LabelColumns.group`.
        collection_column: likewise, as `LabelColumns.collection`.
        workers: Ray Train workers.
        gpu: whether each uses a GPU; None for where the cluster has enough.
        checkpoint_dir: checkpoints go below it, each bundle's to a directory of its own; None for
            a directory beside the bundle.
    """

    images: str
    labels: str
    bundle: str
    settings: TrainSettings
    masks: str | None = None
    val_images: str | None = None
    val_labels: str | None = None
    id_column: str | None = None
    class_column: str | None = None
    group_column: str | None = None
    collection_column: str | None = None
    workers: int = 1
    gpu: bool | None = None
    checkpoint_dir: str | None = None

    @property
    def label_columns(self) -> LabelColumns:
        """The columns of the labels."""
        return LabelColumns(
            self.id_column, self.class_column, self.group_column, self.collection_column
        )


def train(request: TrainRequest) -> dict[str, Any]:
    """Train both stages and write the bundle; returns its metrics, model digest and URI.

    The same request resumes from the last checkpoint of a run that ended early.

    Raises:
        InputError: bad labels, images, weights or settings, a finished bundle is there already, or
            another run works on it.
        RunFailedError: workers failed too often, or Ray, a store or a disk ended the run.
    """
    refuse_finished(request.bundle)
    refuse_other_run(open_store(request.bundle), "--bundle")
    if request.settings.weights is not None:
        check_weights(request.settings.weights, request.settings.backbone)
    request = replace(request, settings=request.settings.resolved())
    inputs = read_inputs(request)
    model, initial = initial_network(request.settings, inputs.labels)
    with connected():
        try:
            workers = plan_workers(request.workers, request.gpu)
            bundle = open_store(request.bundle)
            with (
                Lease(bundle, new_run_id(), "--bundle") as lease,
                Tracking(bundle.uri, recipe_facts(request.settings)) as tracking,
            ):
                refuse_finished(request.bundle)  # by a run that had the lease until now
                return _run(request, inputs, model, initial, workers, lease, tracking)
        except (ray.exceptions.RayError, StoreError, OSError) as error:
            failure = as_run_error(error)
            if failure is None:
                raise
            raise failure from error


def _run(
    request: TrainRequest,
    inputs: Inputs,
    model: ModelSettings,
    initial: Mapping[str, Tensor],
    workers: Workers,
    lease: Lease,
    tracking: Tracking,
) -> dict[str, Any]:
    """The steps that need the cluster and the bundle's lease."""
    settings, labels = request.settings, inputs.labels
    bundle, checkpoints = open_store(request.bundle).uri, checkpoints_of(request)
    for uri in (bundle, checkpoints):
        open_store(uri).check_writable()

    dataset = make_dataset(inputs, model.canvas_size, settings)
    check_workers(workers.count, min(settings.batch_size, int((~dataset.held_out).sum())))

    targets = tuple(labels.classes.index(name) for name in labels.target_classes)
    board = ProgressBoard.create()
    setup = Setup(settings, model, targets, workers, board, bundle, lease.run_id)
    job = stage1_job(setup, dataset, initial)
    tracking.begin(job.fingerprint)
    stage1 = fit(job, checkpoints, tracking.update)

    located = localize_all(dataset.canvases, model, stage1.best, workers)

    crop_boxes = located.crop_boxes[: len(dataset.images)]
    job = stage2_job(setup, dataset, initial, stage1.best, crop_boxes)
    stage2 = fit(job, checkpoints, tracking.update)

    rows = np.concatenate([dataset.held_out_rows, dataset.validation_rows])
    stage2_probabilities = np.zeros_like(located.probabilities)
    stage2_probabilities[rows] = classify_all(
        dataset.canvases, rows, located.crop_boxes, model, stage2.best, workers
    )
    model = with_calibration(model, dataset, located, stage2_probabilities, labels, settings)
    with_masks = bool(inputs.mask_uris)
    metrics = evaluate(
        dataset, located, stage2_probabilities, labels, model, localization=with_masks
    )
    facts = training_facts(
        dataset, inputs.training, labels, settings, (stage1, stage2), workers.count
    )
    quantization = quantize(dataset, located, model, (stage1, stage2), workers)
    lease.check()
    trained = Bundle(
        model,
        stage1.best,
        stage2.best,
        training=facts,
        metrics=metrics,
        quantization=quantization,
    )
    digest = save(trained, bundle, checkpoints)
    tracking.finish(digest, metrics)
    return {
        "model": digest,
        "bundle": bundle,
        "metrics": metrics,
        "operating_points": [asdict(point) for point in model.operating_points],
    }


def quantize(
    dataset: Dataset,
    located: Stage1Predictions,
    model: ModelSettings,
    stages: tuple[StageState, StageState],
    workers: Workers,
) -> Quantization:
    """What int8 needs, measured on training images: whole ones for stage 1, crops for stage 2."""
    trained_on = np.flatnonzero(~dataset.held_out)
    rows = trained_on[evenly_spaced(len(trained_on), RANGE_IMAGES)]
    whole = np.tile([0, 0, model.canvas_size, model.canvas_size], (len(dataset.canvases), 1))
    stage1, stage2 = (
        measure_ranges(dataset.canvases, rows, boxes, model, state.best, workers)
        for state, boxes in zip(stages, (whole, located.crop_boxes), strict=True)
    )
    return Quantization(stage1, stage2)


def refuse_finished(bundle: str) -> None:
    """Refuse a directory that holds a finished bundle.

    Raises:
        InputError: it does.
    """
    if bundle_exists(bundle):
        raise InputError(
            f"--bundle: {bundle} holds a finished bundle; name another directory, or remove it to "
            f"train again"
        )


def read_inputs(request: TrainRequest) -> Inputs:
    """List and match images, labels and masks; decodes nothing.

    Raises:
        InputError: bad labels, no labeled image, a class with too few, more workers than images in
            a batch, or validation images that are also trained on.
    """
    rest_class = request.settings.rest_class
    labels = read_labels(request.labels, rest_class, columns=request.label_columns)
    training = match_source(request.images, labels, "--images", "--labels")
    labels, training = without_empty_classes(labels, training)
    validation = match_validation(
        request.val_images, request.val_labels, labels, rest_class, request.label_columns, training
    )
    training = without_groups_of(training, validation)
    check_counts(labels, training.class_indices)
    flag_classes(request.settings, labels)
    check_workers(request.workers, min(request.settings.batch_size, len(training.uris)))
    return Inputs(labels, training, match_masks(training, request.masks), validation)


def save(trained: Bundle, uri: str, checkpoints: str) -> str:
    """Write the bundle, then remove its checkpoints; returns the bundle's digest.

    Raises:
        RunFailedError: the bundle's store does not take it any more.
    """
    try:
        digest = save_bundle(trained, uri, model_card(trained))
    except InputError as error:
        raise failed_by(error) from error
    try:
        remove_checkpoints(checkpoints)
    except (LesioncamError, OSError) as error:
        log.warning("%s could not be removed: %s", checkpoints, error)
    return digest


def checkpoints_of(request: TrainRequest) -> str:
    """The directory of a bundle's checkpoints and no other's: it is emptied when that is finished.

    Below `--checkpoint-dir` its name is made from the bundle's URI. Do not share one between
    machines that train bundles of the same local path.
    """
    if request.checkpoint_dir is None:
        return f"{request.bundle.rstrip('/')}-checkpoints"
    uri = open_store(request.bundle).uri
    name = f"{uri.rpartition('/')[2]}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
    return f"{request.checkpoint_dir.rstrip('/')}/{name}"
