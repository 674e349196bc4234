"""Predict: each stage's results on decoded canvases, by actors of the cluster.

Also the ranges of its activations, which int8 needs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import ray
import torch
from ray.util import ActorPool
from torch import Tensor

from lesioncam.cluster import device_here
from lesioncam.settings import ModelSettings
from lesioncam.training.canvases import Canvases
from lesioncam.training.workers import Workers
from lesioncam.vision.classifier import CropClassifier, Localizer, Network, to_channels_first
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.engine import load_network
from lesioncam.vision.network import build_network, prepare_for_inference
from lesioncam.vision.ranges import activation_ranges, widest_ranges

_BATCH = 16
_RETRIES = 10  # of an actor that was lost, and of its batch


@dataclass(frozen=True)
class Stage1Predictions:
    """Stage 1's results on n canvases.

    Attributes:
        probabilities: (n, K) float32.
        boxes: (n, 4) int64, where the lesion is, on the canvas.
        crop_boxes: (n, 4) int64, what stage 2 sees of the canvas.
        maps: (n, h, w) uint8, the maps behind the boxes.
    """

    probabilities: np.ndarray
    boxes: np.ndarray
    crop_boxes: np.ndarray
    maps: np.ndarray


class _Stage1Predictor:
    """An actor that localizes lesions on canvases."""

    def __init__(
        self,
        model: ModelSettings,
        weights: Mapping[str, Tensor],
        canvases: Canvases,
        workers: Workers,
    ):
        self.localize = Localizer(model, _network(model, weights, workers))
        self.canvases = canvases

    def predict(self, rows: np.ndarray) -> Stage1Predictions:
        """Stage 1's results on the canvases `rows`, (B,) int."""
        found = self.localize(_pixels(self.canvases, rows))
        parts = (getattr(found, field.name) for field in fields(Stage1Predictions))
        return Stage1Predictions(*(part.cpu().numpy() for part in parts))


class _Stage2Predictor:
    """An actor that classifies crops of canvases."""

    def __init__(
        self,
        model: ModelSettings,
        weights: Mapping[str, Tensor],
        canvases: Canvases,
        workers: Workers,
    ):
        self.classify = CropClassifier(model, _network(model, weights, workers))
        self.canvases = canvases

    def predict(self, rows: np.ndarray, crop_boxes: np.ndarray) -> np.ndarray:
        """Probabilities (B, K) of the canvases `rows`, cut to `crop_boxes` (B, 4)."""
        pixels = _pixels(self.canvases, rows)
        boxes = torch.from_numpy(crop_boxes).to(pixels.device)
        crops = sample_boxes(pixels, boxes, self.classify.settings.input_size)
        probabilities: np.ndarray = self.classify(crops).cpu().numpy()
        return probabilities


class _RangeMeter:
    """An actor that measures the ranges of a stage's activations, in float32."""

    def __init__(
        self,
        model: ModelSettings,
        weights: Mapping[str, Tensor],
        canvases: Canvases,
        workers: Workers,
    ):
        device = _device(workers)
        self.network = prepare_for_inference(build_network(model, weights), device, "float32")
        self.model, self.canvases = model, canvases

    def predict(self, rows: np.ndarray, boxes: np.ndarray) -> tuple[float, ...]:
        """The ranges on the canvases `rows`, (B,) int, cut to `boxes` (B, 4)."""
        pixels = _pixels(self.canvases, rows)
        images = sample_boxes(
            pixels, torch.from_numpy(boxes).to(pixels.device), self.model.input_size
        )
        return activation_ranges(self.network, images, rotation=self.model.test_time_rotation)


def localize_all(
    canvases: Canvases, model: ModelSettings, stage1: Mapping[str, Tensor], workers: Workers
) -> Stage1Predictions:
    """Stage 1's results on all canvases, by the weights `stage1`."""
    pool, _weights = _pool(_Stage1Predictor, model, stage1, canvases, workers)
    batches = list(_batches(np.arange(len(canvases))))
    found = list(pool.map(lambda actor, rows: actor.predict.remote(rows), batches))
    return Stage1Predictions(
        *(
            np.concatenate([getattr(part, field.name) for part in found])
            for field in fields(Stage1Predictions)
        )
    )


def classify_all(
    canvases: Canvases,
    rows: np.ndarray,
    crop_boxes: np.ndarray,
    model: ModelSettings,
    stage2: Mapping[str, Tensor],
    workers: Workers,
) -> np.ndarray:
    """Stage 2's probabilities (m, K) of some canvases.

    Args:
        canvases: n of them.
        rows: (m,) int, which of them to classify.
        crop_boxes: (n, 4), of all n.
        model: the network's settings.
        stage2: its weights.
        workers: how many predictors, and with what.
    """
    pool, _weights = _pool(_Stage2Predictor, model, stage2, canvases, workers)
    results = pool.map(
        lambda actor, batch: actor.predict.remote(batch, crop_boxes[batch]), list(_batches(rows))
    )
    return np.concatenate(list(results))


def measure_ranges(
    canvases: Canvases,
    rows: np.ndarray,
    boxes: np.ndarray,
    model: ModelSettings,
    weights: Mapping[str, Tensor],
    workers: Workers,
) -> tuple[float, ...]:
    """The ranges of a stage's activations on some canvases.

    Args:
        canvases: n of them.
        rows: (m,) int, which of them to measure on.
        boxes: (n, 4), what the stage sees of each of the n.
        model: the network's settings.
        weights: the stage's.
        workers: how many actors, and with what.
    """
    pool, _weights = _pool(_RangeMeter, model, weights, canvases, workers)
    found = pool.map(
        lambda actor, batch: actor.predict.remote(batch, boxes[batch]), list(_batches(rows))
    )
    return widest_ranges(found)


def _network(model: ModelSettings, weights: Mapping[str, Tensor], workers: Workers) -> Network:
    """A stage's network, ready for inference in this process."""
    return load_network(model, weights, _device(workers), workers.precision)


def _device(workers: Workers) -> torch.device:
    """This process's device; a CPU computes with the workers' number of threads from then on."""
    device = device_here()
    if device.type == "cpu":
        torch.set_num_threads(workers.threads)
    return device


def _pixels(canvases: Canvases, rows: np.ndarray) -> Tensor:
    """(B, 3, S, S) uint8 on this process's device."""
    return to_channels_first(torch.from_numpy(canvases.gather(rows)).to(device_here()))


def _batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def _pool(
    predictor: type[_Stage1Predictor] | type[_Stage2Predictor] | type[_RangeMeter],
    model: ModelSettings,
    weights: Mapping[str, Tensor],
    canvases: Canvases,
    workers: Workers,
) -> tuple[ActorPool, ray.ObjectRef]:
    """Predictors; one that dies is restarted and its batch repeated.

    The second value is the weights' reference. Keep it as long as the pool: a restart reads it.
    """
    reference = ray.put(dict(weights))
    options: dict[str, Any] = {"num_cpus": workers.cpus, "num_gpus": int(workers.gpu)}
    remote = ray.remote(max_restarts=_RETRIES, max_task_retries=_RETRIES, **options)(predictor)
    actors = [remote.remote(model, reference, canvases, workers) for _ in range(workers.count)]
    return ActorPool(actors), reference
