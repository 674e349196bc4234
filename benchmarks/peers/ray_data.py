"""Ray Data, after its image classification example, with two stages.

Each stage is an actor that reserves half a CPU: with a whole one each, two cores would have none to
read images with.
"""

from typing import Any

import numpy as np
import ray
import torch

from benchmarks.peers.model import (
    BATCH,
    boxes_of,
    chosen_map,
    cut,
    decide,
    load_stage,
    read_flags,
    shrink,
)
from lesioncam.storage.bundle import load_bundle

Batch = dict[str, np.ndarray]


def preprocess(batch: Batch) -> Batch:
    """Channels first, as torch expects."""
    return {"path": batch["path"], "canvas": batch["image"].transpose(0, 3, 1, 2)}


class Stage1:
    """Canvases to probabilities, boxes and crops."""

    def __init__(self, bundle: str, precision: str):
        self.network, self.settings = load_stage(bundle, 1, precision)

    def __call__(self, batch: Batch) -> Batch:
        """Classify, and crop what the map shows."""
        settings = self.settings
        canvases = torch.from_numpy(batch["canvas"].copy())
        with torch.inference_mode():
            logits, features = self.network(shrink(canvases, settings.input_size))
            maps = chosen_map(self.network, features, logits, settings.crop.map)
        boxes, crop_boxes = boxes_of(maps, settings)
        return {
            "path": batch["path"],
            "stage1": logits.softmax(dim=1).numpy(),
            "box": boxes.numpy(),
            "crop": cut(canvases, crop_boxes, settings.input_size).numpy(),
        }


class Stage2:
    """Crops to final probabilities."""

    def __init__(self, bundle: str, precision: str):
        self.network, self.settings = load_stage(bundle, 2, precision)

    def __call__(self, batch: Batch) -> Batch:
        """Classify, and combine with stage 1."""
        with torch.inference_mode():
            stage2 = self.network(torch.from_numpy(batch["crop"].copy()))[0].softmax(dim=1)
        stage1 = torch.from_numpy(batch["stage1"].copy())
        predictions, final = decide(stage1, stage2, self.settings)
        return {
            "path": batch["path"],
            "prediction": np.array(predictions),
            "probabilities": final.numpy(),
            "box": batch["box"],
        }


def main() -> None:
    """Score a directory."""
    flags = read_flags()
    side = load_bundle(flags.bundle).settings.canvas_size
    ray.init(address="local", include_dashboard=False)
    actors: dict[str, Any] = {
        "fn_constructor_args": (flags.bundle, flags.precision),
        "compute": ray.data.ActorPoolStrategy(size=1),
        "num_cpus": 0.5,
        "batch_size": BATCH,
    }
    (
        ray.data.read_images(flags.images, size=(side, side), mode="RGB", include_paths=True)
        .map_batches(preprocess, batch_size=BATCH)
        .map_batches(Stage1, **actors)
        .map_batches(Stage2, **actors)
        .write_parquet(flags.output)
    )


if __name__ == "__main__":
    main()
