"""The training job; this file is its description, the rooms it names hold the parts.

labelled images -> canvases -> stage 1 -> boxes -> stage 2 -> figures -> bundle
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from lesioncam import __version__
from lesioncam.cluster import connected
from lesioncam.errors import InputError
from lesioncam.settings import TrainSettings
from lesioncam.storage.bundle import Bundle, ModelSettings, bundle_exists, save_bundle
from lesioncam.storage.labels import Labels, read_labels
from lesioncam.storage.store import open_store
from lesioncam.storage.weights import load_backbone
from lesioncam.training.canvases import Canvases
from lesioncam.training.card import model_card
from lesioncam.training.fit import fit, remove_checkpoints
from lesioncam.training.predict import Workers, classify_all, localise_all
from lesioncam.training.progress import Board
from lesioncam.training.source import (
    Source,
    check_classes,
    hold_out,
    match_source,
    match_validation,
    read_masks,
    read_source,
)
from lesioncam.training.stage import StageJob, StageState
from lesioncam.vision.localise import combine
from lesioncam.vision.metrics import Figures, evaluate_stages
from lesioncam.vision.network import BACKBONES, IMAGENET_MEAN, IMAGENET_STD

log = logging.getLogger("lesioncam")


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
        storage: where checkpoints go; None for beside the bundle.
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
        InputError: bad labels, images, weights or settings, or a finished bundle is there already.
        RunBroke: workers died too often.
    """
    if bundle_exists(request.bundle):
        raise InputError(
            f"--bundle: {request.bundle} holds a finished bundle; name another place, or remove it "
            f"to train anew"
        )
    labels = read_labels(request.labels, request.settings.rest_class)
    source = match_source(request.images, labels, "--images", "--labels")
    held_out = hold_out(
        source.indices, labels, request.settings.val_fraction, request.settings.seed
    )
    validation = match_validation(
        request.val_images, request.val_labels, labels, request.settings.rest_class, source
    )
    model, initial = initial_network(request.settings, labels)
    with connected():
        return _run(request, labels, source, held_out, validation, model, initial)


def _run(
    request: TrainRequest,
    labels: Labels,
    source: Source,
    held_out: np.ndarray,
    validation: Source | None,
    model: ModelSettings,
    initial: Mapping[str, Tensor],
) -> dict[str, Any]:
    compute = make_workers(request)
    storage = request.storage or f"{request.bundle.rstrip('/')}-checkpoints"
    for place in (request.bundle, storage):
        open_store(place).check_writable()
    canvases, good = read_source(source, model.canvas_side)
    checked = None if validation is None else read_source(validation, model.canvas_side)
    indices, held_out = source.indices[good], held_out[good]
    check_classes(labels, indices, held_out)
    if request.workers > min(request.settings.batch_size, int((~held_out).sum())):
        raise InputError(
            f"--workers: {request.workers} workers cannot share a batch of "
            f"{min(request.settings.batch_size, int((~held_out).sum()))} images; lower --workers"
        )
    masks = None if request.masks is None else read_masks(source, good, request.masks)
    board = Board.create()
    whole = np.tile([0, 0, model.canvas_side, model.canvas_side], (len(good), 1))
    job = StageJob(
        stage="stage1",
        settings=request.settings,
        model=model,
        initial=ray.put(dict(initial)),
        epochs=request.settings.stage1_epochs,
        learning_rate=request.settings.learning_rate,
        canvases=canvases,
        boxes=whole,
        labels=indices,
        masks=masks,
        held_out=held_out,
        ranked=tuple(labels.classes.index(name) for name in labels.ranked),
        threads=compute.threads,
        board=board,
    )
    trained_on = [source.uris[number] for number in good]
    stage1 = fit(job, _fingerprint(job, request, trained_on, initial), storage, compute)
    _, boxes = localise_all(canvases, model, stage1.best, compute)
    job = replace(
        job,
        stage="stage2",
        initial=ray.put(dict(stage1.best)),
        epochs=request.settings.stage2_epochs,
        learning_rate=request.settings.stage2_learning_rate,
        boxes=boxes,
        masks=None,  # its crops hold little else
    )
    stage2 = fit(job, _fingerprint(job, request, trained_on, stage1.best), storage, compute)

    trained = Bundle(model, stage1.best, stage2.best)
    metrics: dict[str, Any] = {
        "held_out": figures(trained, labels, canvases.subset(held_out), indices[held_out], compute)
    }
    if validation is not None and checked is not None:
        pixels, readable = checked
        metrics["validation"] = figures(
            trained, labels, pixels, validation.indices[readable], compute
        )
    trained = replace(trained, training=_facts(request, labels, source, job, stage1, stage2, masks))
    trained = replace(trained, metrics=metrics)
    digest = save_bundle(trained, request.bundle, model_card(trained))
    remove_checkpoints(storage)
    return {"model": digest, "bundle": open_store(request.bundle).uri, "metrics": metrics}


def initial_network(
    settings: TrainSettings, labels: Labels
) -> tuple[ModelSettings, Mapping[str, Tensor]]:
    """The network's shape and the weights that stage 1 starts from."""
    if settings.backbone not in BACKBONES:
        raise InputError(f"--backbone: {settings.backbone!r} is not one of {', '.join(BACKBONES)}")
    side = BACKBONES[settings.backbone].input_side
    torch.manual_seed(settings.seed)
    model = ModelSettings(
        classes=labels.classes,
        backbone=settings.backbone,
        input_side=side,
        canvas_side=round(side * settings.canvas_scale),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        stage2_weight=settings.stage2_weight,
        crop=settings.crop,
    )
    network = model.network()
    if settings.weights is not None:
        load_backbone(network, settings.backbone, settings.weights)
    mean, std = (tuple(buffer.flatten().tolist()) for buffer in (network.mean, network.std))
    return replace(model, mean=mean, std=std), network.state_dict()


def make_workers(request: TrainRequest) -> Workers:
    """Divide the cluster between the workers.

    Raises:
        InputError: `--gpu` where there are fewer GPUs than workers.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    gpu = gpus > 0 if request.gpu is None else request.gpu
    if gpu and gpus < request.workers:
        raise InputError(
            f"--gpu: {request.workers} workers need a GPU each and the cluster has {gpus}; lower "
            f"--workers or use --no-gpu"
        )
    largest = max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    share = min(cpus / request.workers, largest)
    reserved = share / 2 if share <= 2 else float(int(share) - 1)  # some is left for decoding
    threads = max(1, int(share))
    log.info(
        "%d workers on the %s",
        request.workers,
        "GPU" if gpu else f"CPU, {threads} threads each",
    )
    return Workers(request.workers, gpu, reserved, threads)


def _fingerprint(
    job: StageJob, request: TrainRequest, trained_on: Sequence[str], initial: Mapping[str, Tensor]
) -> str:
    """What makes a run the same run: recipe, images that could be read, labels, first weights.

    Stage 2's first weights are what stage 1 came to.
    """
    asked = [asdict(request.settings), request.masks, trained_on, job.labels.tolist(), job.stage]
    digest = hashlib.sha256(json.dumps(asked).encode())
    for name in sorted(initial):
        digest.update(initial[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def figures(
    bundle: Bundle, labels: Labels, canvases: Canvases, indices: np.ndarray, compute: Workers
) -> Figures:
    """What a trained pair of stages reaches on labelled canvases."""
    stage1, boxes = localise_all(canvases, bundle.settings, bundle.stage1, compute)
    stage2 = classify_all(canvases, boxes, bundle.settings, bundle.stage2, compute)
    final = combine(
        torch.from_numpy(stage1), torch.from_numpy(stage2), bundle.settings.stage2_weight
    )
    stages = {"stage1": stage1, "stage2": stage2, "final": final.numpy()}
    return evaluate_stages(stages, indices, labels.classes, labels.ranked)


def _facts(
    request: TrainRequest,
    labels: Labels,
    source: Source,
    job: StageJob,
    stage1: StageState,
    stage2: StageState,
    masks: np.ndarray | None,
) -> dict[str, Any]:
    """Training facts for the bundle: counts and settings, no image's name."""

    def counts(part: np.ndarray) -> dict[str, int]:
        found = Counter(labels.classes[index] for index in job.labels[part])
        return {name: found[name] for name in labels.classes}

    settings = asdict(request.settings)
    if settings["weights"] is not None:
        settings["weights"] = Path(settings["weights"]).name  # its folder is nobody's business
    return {
        "settings": settings,
        "ranked": list(labels.ranked),
        "training_images": counts(~job.held_out),
        "held_out_images": counts(job.held_out),
        "left_over": {
            **source.left_over,
            "unreadable_images": len(source.uris) - len(job.labels),
        },
        "masks": 0 if masks is None else int(masks.any(axis=(1, 2)).sum()),
        "workers": request.workers,
        "stage1": {"best_epoch": stage1.best_epoch, "history": stage1.history},
        "stage2": {"best_epoch": stage2.best_epoch, "history": stage2.history},
        "lesioncam_version": __version__,
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
