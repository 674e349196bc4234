"""Small training runs, and their parts, for tests."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lesioncam.settings import CropRule, TrainSettings
from lesioncam.storage.bundle import load_bundle
from lesioncam.storage.labels import Labels
from lesioncam.storage.lease import LEASE_FILE, Holder
from lesioncam.storage.uris import open_store
from lesioncam.training.canvases import Canvases
from lesioncam.training.dataset import Dataset, Images, make_dataset, read_lesion_masks
from lesioncam.training.initial import initial_network
from lesioncam.training.job import TrainRequest, read_inputs
from lesioncam.training.progress import ProgressBoard
from lesioncam.training.stage import Setup
from lesioncam.training.workers import Workers
from tests.conftest import CLASSES

SMALL = TrainSettings(
    backbone="tiny",
    stage1_epochs=2,
    stage2_epochs=1,
    batch_size=7,  # which two workers cannot halve
    learning_rate=0.02,
    dropout=0.0,
    val_fraction=0.25,
)
# What training says of itself in a bundle.
FACTS: dict[str, Any] = {
    "settings": asdict(TrainSettings(weights="w.safetensors", crop=CropRule(threshold=0.45))),
    "target_classes": list(CLASSES[:2]),
    "training_images": dict(zip(CLASSES, (1200, 20, 30), strict=True)),
    "held_out_images": dict(zip(CLASSES, (4, 3, 5), strict=True)),
    "not_used": {"images_without_label": 7, "skipped_files": 0},
    "images_of_collections_without_a_class": 0,
    "masks_given": 900,
    "masks_estimated": 350,
    "workers": 2,
    "stage1": {"best_epoch": 14, "history": []},
    "stage2": {"best_epoch": 11, "history": []},
    "lesioncam_version": "1.2.3",
    "trained_at": "2026-01-02T03:04:05+00:00",
}
LABELS = Labels(CLASSES, CLASSES[:2], (), np.zeros(0, np.int64))
WORKERS = Workers(count=1, gpu=False, cpus=1.0, threads=1, precision="float32")


def request(synthetic: Path, bundle: Path | str, **changes: Any) -> TrainRequest:
    settings = replace(SMALL, **changes.pop("settings", {}))
    uris = (f"{synthetic}/images", f"{synthetic}/train.csv", str(bundle))
    return TrainRequest(*uris, settings, masks=f"{synthetic}/masks", **changes)


@dataclass(frozen=True)
class Prepared:
    """What a run has before its first stage."""

    setup: Setup
    dataset: Dataset
    initial: dict[str, Tensor]


def prepare(request: TrainRequest) -> Prepared:
    """Read, decode and split, as the job does."""
    settings = request.settings.resolved()
    inputs = read_inputs(request)
    model, initial = initial_network(settings, inputs.labels)
    dataset = make_dataset(inputs, model.canvas_size, settings)
    board = ProgressBoard.create()
    setup = Setup(settings, model, (0, 1), WORKERS, board, request.bundle, "run-1")
    return Prepared(setup, dataset, dict(initial))


def flat_images(*grays: int, prefix: str = "") -> Images:
    """Images of one gray level each, estimated to be all lesion in their left half."""
    count = len(grays)
    masks = np.zeros((count, 32, 32), bool)
    masks[:, :, :16] = True
    return Images(
        uris=tuple(f"/images/{prefix}{number:03d}.jpg" for number in range(count)),
        canvases=Canvases((), np.arange(count)),
        labels=np.arange(count) % 2,
        groups=("",) * count,
        sizes=np.tile([128, 96], (count, 1)),
        thumbnails=np.stack([np.full((16, 16, 3), gray, np.uint8) for gray in grays]),
        estimated_masks=masks,
    )


def flat_dataset(*grays: int) -> Dataset:
    """Such images as a dataset; the last one is held out."""
    images = flat_images(*grays)
    held_out = np.arange(len(images)) == len(images) - 1
    known = np.ones((len(images), 2), bool)
    return Dataset(images, held_out, read_lesion_masks(images, {}, SMALL), known, None)


def history(bundle: Path | str, stage: str = "stage1") -> list[dict[str, float]]:
    entries: list[dict[str, float]] = load_bundle(str(bundle)).training[stage]["history"]
    return entries


def weights(bundle: Path) -> dict[str, str]:
    """The digests of both stages' weights."""
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".safetensors")}


def hold_lease(bundle: Path, run_id: str) -> None:
    """Have a run of another machine hold the lease on a bundle."""
    other = Holder(run_id, "another-host", "its-boot", 1, 1, time.time() + 60)
    open_store(str(bundle)).write(LEASE_FILE, json.dumps(asdict(other)).encode())
