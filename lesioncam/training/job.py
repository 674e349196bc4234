"""The training job; this file is its description, the rooms it names hold the parts.

labeled images -> canvases -> stage 1 -> boxes -> stage 2 -> figures -> bundle
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from lesioncam import __version__
from lesioncam.cluster import (
    as_run_error,
    await_resources,
    can_grow,
    capacity,
    connected,
    failed_by,
)
from lesioncam.errors import InputError, LesioncamError
from lesioncam.settings import ModelSettings, TrainSettings
from lesioncam.storage.bundle import FORMAT, Bundle, bundle_exists, save_bundle
from lesioncam.storage.labels import Labels, read_labels
from lesioncam.storage.lease import Lease, refuse_other_run
from lesioncam.storage.runs import new_run_id
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import open_store
from lesioncam.training.batches import Examples
from lesioncam.training.card import model_card
from lesioncam.training.fit import fit, remove_checkpoints
from lesioncam.training.initial import initial_network, reinitialize_head, resolve_recipe
from lesioncam.training.predict import Stage1Predictions, Workers, classify_all, localize_all
from lesioncam.training.progress import ProgressBoard
from lesioncam.training.recipe import epoch_sides
from lesioncam.training.record import Record
from lesioncam.training.source import (
    Source,
    check_classes,
    check_counts,
    hold_out,
    match_masks,
    match_source,
    match_validation,
    read_lesions,
    read_source,
    without_copies_of,
)
from lesioncam.training.stage import StageJob, StageState
from lesioncam.vision.classifier import combine
from lesioncam.vision.copies import groups_of_copies
from lesioncam.vision.metrics import Figures, evaluate_stages
from lesioncam.vision.overlap import compare, mean_overlap

log = logging.getLogger("lesioncam")

# Settings that stage 1 does not read.
_LATER = ("stage2_epochs", "stage2_start", "stage2_learning_rate", "test_time_rotation")


@dataclass(frozen=True)
class TrainRequest:
    """What `lesioncam train` is asked.

    Attributes:
        images: a directory or prefix, or a CSV or Parquet file of `uri`s.
        labels: an ISIC ground-truth CSV.
        bundle: where the trained model goes; must not hold one yet.
        settings: the recipe.
        masks: lesion masks of (some of) the images, or None.
        val_images: images that are only ever reported on, or None.
        val_labels: their labels, or None.
        workers: Ray Train workers.
        gpu: whether they use a GPU each; None for where the cluster has enough.
        storage: under which checkpoints go, each bundle's in a place of its own; None for beside
            the bundle.
    """

    images: str
    labels: str
    bundle: str
    settings: TrainSettings
    masks: str | None = None
    val_images: str | None = None
    val_labels: str | None = None
    workers: int = 1
    gpu: bool | None = None
    storage: str | None = None


def train(request: TrainRequest) -> dict[str, Any]:
    """Train both stages and write the bundle; returns its figures and digest.

    The same call goes on from the last checkpoint of a run that broke off.

    Raises:
        InputError: bad labels, images, weights or settings, a finished bundle is there already, or
            another run is at work on it.
        RunFailedError: workers died too often, or Ray, a store or a disk broke it off.
    """
    refuse_finished(request.bundle)
    refuse_other_run(open_store(request.bundle), "--bundle")
    labels = read_labels(request.labels, request.settings.rest_class)
    source = match_source(request.images, labels, "--images", "--labels")
    check_counts(labels, source.indices)
    check_workers(request.workers, min(request.settings.batch_size, len(source.uris)))
    masks = match_masks(source, request.masks)
    validation = match_validation(
        request.val_images, request.val_labels, labels, request.settings.rest_class, source
    )
    request = replace(request, settings=resolve_recipe(request.settings))
    model, initial = initial_network(request.settings, labels)
    with connected():
        compute = make_workers(request)
        try:
            with Lease(open_store(request.bundle), new_run_id(), "--bundle") as lease:
                refuse_finished(request.bundle)  # by a run that had the lease until now
                return _Run(
                    request, labels, source, masks, validation, model, initial, compute, lease
                ).run()
        except (ray.exceptions.RayError, StoreError, OSError) as error:
            told = as_run_error(error)
            if told is None:
                raise
            raise told from error


def refuse_finished(bundle: str) -> None:
    """Refuse a place where a finished bundle stands.

    Raises:
        InputError: one does.
    """
    if bundle_exists(bundle):
        raise InputError(
            f"--bundle: {bundle} holds a finished bundle; name another place, or remove it "
            f"to train anew"
        )


def check_workers(workers: int, batch: int) -> None:
    """Refuse more workers than there are images in a batch.

    Raises:
        InputError: naming both numbers.
    """
    if workers > batch:
        raise InputError(
            f"--workers: {workers} workers cannot share a batch of {batch} images; lower --workers"
        )


class _Run:
    """One run on a cluster; its stages share what was read for them."""

    def __init__(
        self,
        request: TrainRequest,
        labels: Labels,
        source: Source,
        masks: Mapping[str, str],
        validation: Source | None,
        model: ModelSettings,
        initial: Mapping[str, Tensor],
        compute: Workers,
        lease: Lease,
    ):
        self.request, self.labels, self.source = request, labels, source
        self.model, self.initial = model, initial
        self.compute, self.lease = compute, lease
        self.storage = checkpoints_of(request)
        for place in (request.bundle, self.storage):
            open_store(place).check_writable()
        self.images = read_source(source, model.canvas_size)
        self.validation = None if validation is None else read_source(validation, model.canvas_size)
        if self.validation is not None:
            self.images = without_copies_of(self.images, self.validation)
        self.held_out = hold_out(
            self.images.labels,
            groups_of_copies(self.images.thumbnails),
            request.settings.val_fraction,
            request.settings.seed,
        )
        check_classes(labels, self.images.labels, self.held_out)
        learned = int((~self.held_out).sum())
        check_workers(request.workers, min(request.settings.batch_size, learned))
        self.lesions = read_lesions(self.images, masks, request.settings)
        self.record = Record(request.bundle)
        self.board = ProgressBoard.create()

    def run(self) -> dict[str, Any]:
        """Both stages, their figures and the bundle, as long as that is this run's."""
        canvases = self.images.canvases
        if self.validation is not None:
            canvases = canvases.join(self.validation.canvases)
        stage1 = self._fit(self._stage1())
        seen = localize_all(canvases, self.model, stage1.best, self.compute)
        stage2 = self._fit(self._stage2(stage1, seen.views[: len(self.images)]), stage1.best)

        validation = np.arange(len(self.images), len(canvases))
        reported = np.concatenate([np.flatnonzero(self.held_out), validation])
        second = np.zeros_like(seen.probabilities)
        second[reported] = classify_all(
            canvases, reported, seen.views, self.model, stage2.best, self.compute
        )
        metrics: dict[str, Any] = {
            "held_out": self._figures(
                seen, second, np.flatnonzero(self.held_out), self.images.labels[self.held_out]
            )
        }
        if self.request.masks is not None:
            metrics["held_out"]["localization"] = self._localization(seen)
        if self.validation is not None:
            metrics["validation"] = self._figures(seen, second, validation, self.validation.labels)
        trained = Bundle(
            self.model,
            stage1.best,
            stage2.best,
            training=self._facts(stage1, stage2),
            metrics=metrics,
        )
        self.lease.check()
        try:
            digest = save_bundle(trained, self.request.bundle, model_card(trained))
        except InputError as error:
            raise failed_by(error) from error
        try:
            remove_checkpoints(self.storage)
        except (LesioncamError, OSError) as error:
            log.warning("%s could not be removed: %s", self.storage, error)
        place = open_store(self.request.bundle).uri
        return {"model": digest, "bundle": place, "metrics": metrics}

    def _stage1(self) -> StageJob:
        settings, side = self.request.settings, self.model.canvas_size
        return StageJob(
            stage="stage1",
            settings=settings,
            model=self.model,
            initial=ray.put(dict(self.initial)),
            sides=epoch_sides(settings, self.model.input_size, settings.stage1_epochs),
            sides_after=epoch_sides(settings, self.model.input_size, settings.stage2_epochs),
            learning_rate=settings.learning_rate,
            examples=Examples(
                canvases=self.images.canvases,
                boxes=np.tile([0, 0, side, side], (len(self.images), 1)),
                labels=self.images.labels,
                held_out=self.held_out,
                lesions=self.lesions,
            ),
            target_classes=tuple(
                self.labels.classes.index(name) for name in self.labels.target_classes
            ),
            threads=self.compute.threads,
            board=self.board,
            bundle=open_store(self.request.bundle).uri,  # workers are in other directories
            holder=self.lease.run_id,
        )

    def _stage2(self, stage1: StageState, views: np.ndarray) -> StageJob:
        first, settings = self._stage1(), self.request.settings
        initial = dict(stage1.best)
        if settings.stage2_start == "weights" and settings.weights is not None:
            initial = {**self.initial, **reinitialize_head(self.initial, settings.seed)}
        return replace(
            first,
            stage="stage2",
            initial=ray.put(initial),
            sides=first.sides_after,
            sides_after=(),
            learning_rate=settings.stage2_learning_rate,
            examples=replace(first.examples, boxes=views),
        )

    def _fit(self, job: StageJob, before: Mapping[str, Tensor] | None = None) -> StageState:
        """Run a stage; `before` is what the stage before it came to, whose boxes it learns on."""
        fingerprint = self._fingerprint(job, before or {})
        return fit(job, fingerprint, self.storage, self.compute, self.record)

    def _fingerprint(self, job: StageJob, before: Mapping[str, Tensor]) -> str:
        """What makes a stage the same: recipe, images, labels, split, lesions, weights before it.

        And the bundle's format, which changes with what the same weights make of an image. Of the
        recipe a stage has what it reads, so that another rest of it keeps the stage.
        """
        settings = asdict(self.request.settings)
        del settings["stage2_weight"]
        if job.stage == "stage1":
            for name in _LATER:
                del settings[name]
            settings["crop"] = self.request.settings.crop.map
        asked = [FORMAT, settings, self.images.uris, job.stage, job.target_classes]
        digest = hashlib.sha256(json.dumps(asked).encode())
        for known in (self.images.labels, self.images.thumbnails, self.held_out):
            digest.update(known.tobytes())
        for taught in (self.lesions.grid, self.lesions.weights):
            digest.update(taught.tobytes())
        for weights in (ray.get(job.initial), before):
            for name in sorted(weights):
                digest.update(weights[name].contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _figures(
        self, seen: Stage1Predictions, second: np.ndarray, numbers: np.ndarray, labels: np.ndarray
    ) -> Figures:
        """What both stages reach on these images; their classes are `labels`."""
        first, last = seen.probabilities[numbers], second[numbers]
        final = combine(
            torch.from_numpy(first), torch.from_numpy(last), self.model.stage2_weight
        ).numpy()
        stages = {"stage1": first, "stage2": last, "final": final}
        return evaluate_stages(stages, labels, self.labels.classes, self.labels.target_classes)

    def _localization(self, seen: Stage1Predictions) -> dict[str, Any]:
        """How well maps and boxes find the drawn outlines of held-out images."""
        grid = self.lesions.grid
        drawn = self.lesions.drawn & self.held_out & grid.any(axis=(1, 2))
        boxes = seen.boxes / self.model.canvas_size
        return mean_overlap(
            compare(grid[number], seen.maps[number], tuple(boxes[number]))
            for number in np.flatnonzero(drawn)
        )

    def _facts(self, stage1: StageState, stage2: StageState) -> dict[str, Any]:
        """Training facts for the bundle: counts and settings, no image's name."""

        def counts(part: np.ndarray) -> dict[str, int]:
            found = Counter(self.labels.classes[index] for index in self.images.labels[part])
            return {name: found[name] for name in self.labels.classes}

        shown = self.lesions.grid.any(axis=(1, 2))  # of an empty outline nothing is learned
        taught = ~self.held_out & (self.lesions.weights > 0) & shown
        settings = asdict(self.request.settings)
        if settings["weights"] is not None:
            settings["weights"] = Path(settings["weights"]).name  # its folder is nobody's business
        return {
            "settings": settings,
            "target_classes": list(self.labels.target_classes),
            "training_images": counts(~self.held_out),
            "held_out_images": counts(self.held_out),
            "left_over": {
                **self.source.left_over,
                "unreadable_images_and_copies": len(self.source.uris) - len(self.images),
            },
            "outlines_drawn": int((taught & self.lesions.drawn).sum()),
            "outlines_guessed": int((taught & ~self.lesions.drawn).sum()),
            "workers": self.request.workers,
            "stage1": {"best_epoch": stage1.best_epoch, "history": stage1.history},
            "stage2": {"best_epoch": stage2.best_epoch, "history": stage2.history},
            "lesioncam_version": __version__,
            "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def checkpoints_of(request: TrainRequest) -> str:
    """Where a bundle's checkpoints go, and no other's: they are removed when it is done.

    Under `--storage` that is a place named after the bundle's. Of local bundles that have the same
    path on two machines, only one can be trained in a storage that both share.
    """
    if request.storage is None:
        return f"{request.bundle.rstrip('/')}-checkpoints"
    uri = open_store(request.bundle).uri
    name = f"{uri.rpartition('/')[2]}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
    return f"{request.storage.rstrip('/')}/{name}"


def make_workers(request: TrainRequest) -> Workers:
    """Divide the cluster between the workers.

    Raises:
        InputError: `--gpu` where there are fewer GPUs than workers, or nodes too small for them.
        RunFailedError: what is missing did not come to a cluster in time.
    """
    cluster = capacity()
    gpu = cluster.gpus > 0 if request.gpu is None else request.gpu
    if gpu and cluster.gpus < request.workers and not can_grow():
        raise InputError(
            f"--gpu: {request.workers} workers need a GPU each and this machine has "
            f"{cluster.gpus}; lower --workers or use --no-gpu"
        )
    if can_grow():
        bundles = [{"GPU": 1.0}] * request.workers if gpu else [{"CPU": 0.1}]
        await_resources(bundles, f"{request.workers} GPUs" if gpu else "a CPU")
    share = capacity().cpu_share(request.workers, gpu=gpu)
    if not share:
        raise InputError(
            f"--workers: {request.workers} do not fit on the cluster's nodes; lower it"
        )
    reserved = share / 2 if share <= 2 else float(int(share) - 1)  # some is left for decoding
    threads = max(1, int(share))
    log.info(
        "%d workers on the %s",
        request.workers,
        "GPU" if gpu else f"CPU, {threads} threads each",
    )
    return Workers(request.workers, gpu, reserved, threads)
