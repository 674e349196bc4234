"""Predict: both stages' results on decoded canvases, on the cluster, through `localize`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.util import ActorPool
from torch import Tensor

from lesioncam.cluster import device_here
from lesioncam.settings import ModelSettings
from lesioncam.training.canvases import Canvases
from lesioncam.vision.classifier import CropClassifier, Localizer, to_channels_first
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.network import build_network, native_precision, prepare_for_inference

_BATCH = 16
_RETRIES = 10  # of an actor that was lost, and of its batch


@dataclass(frozen=True)
class Workers:
    """How many Ray Train workers, or predictors, run at once, and what each of them takes.

    Attributes:
        actors: predictors at once.
        gpu: whether each computes on a GPU of its own.
        cpus: CPUs each reserves.
        threads: torch threads each computes with on a CPU.
    """

    actors: int
    gpu: bool
    cpus: float
    threads: int


@dataclass(frozen=True)
class Stage1Predictions:
    """What stage 1 saw of n canvases.

    Attributes:
        probabilities: (n, K) float32.
        boxes: (n, 4) int64 on the canvas.
        views: (n, 4) int64 likewise, what stage 2 sees.
        maps: (n, h, w) uint8, the maps behind the boxes.
    """

    probabilities: np.ndarray
    boxes: np.ndarray
    views: np.ndarray
    maps: np.ndarray


class _Predictor:
    """A network that crops or classifies batches of canvases."""

    def __init__(
        self,
        model: ModelSettings,
        state: Mapping[str, Tensor],
        canvases: Canvases,
        compute: Workers,
    ):
        self.model, self.canvases = model, canvases
        self.device = device_here()
        if self.device.type == "cpu":
            torch.set_num_threads(compute.threads)
        network = build_network(model, state)
        self.network = prepare_for_inference(network, self.device, native_precision(self.device))

    def localize(self, numbers: np.ndarray) -> Stage1Predictions:
        """Stage 1 on these canvases."""
        model, pixels = self.model, self._pixels(numbers)
        found = Localizer(model, self.network)(pixels)
        parts = (found.probabilities, found.boxes, found.crop_boxes, found.maps)
        return Stage1Predictions(*(part.cpu().numpy() for part in parts))

    def classify(self, numbers: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Stage 2: probabilities (B, K) of the views' contents."""
        places = torch.from_numpy(views).to(self.device)
        crops = sample_boxes(self._pixels(numbers), places, self.model.input_size)
        found: np.ndarray = CropClassifier(self.model, self.network)(crops).cpu().numpy()
        return found

    def _pixels(self, numbers: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(self.canvases.gather(numbers)).to(self.device)
        return to_channels_first(pixels)


def localize_all(
    canvases: Canvases, model: ModelSettings, stage1: Mapping[str, Tensor], compute: Workers
) -> Stage1Predictions:
    """Stage 1 on all canvases."""
    pool, _weights = _pool(model, stage1, canvases, compute)
    batches = list(_batches(np.arange(len(canvases))))
    found = list(pool.map(lambda actor, numbers: actor.localize.remote(numbers), batches))
    return Stage1Predictions(
        np.concatenate([seen.probabilities for seen in found]),
        np.concatenate([seen.boxes for seen in found]),
        np.concatenate([seen.views for seen in found]),
        np.concatenate([seen.maps for seen in found]),
    )


def classify_all(
    canvases: Canvases,
    numbers: np.ndarray,
    views: np.ndarray,
    model: ModelSettings,
    stage2: Mapping[str, Tensor],
    compute: Workers,
) -> np.ndarray:
    """Stage 2 on the views of canvases `numbers` (m,): probabilities (m, K).

    Args:
        canvases: n of them.
        numbers: which of them.
        views: (n, 4), of all.
        model: the network's shape.
        stage2: its weights.
        compute: how many predictors of what size.
    """
    pool, _weights = _pool(model, stage2, canvases, compute)
    results = pool.map(
        lambda actor, batch: actor.classify.remote(batch, views[batch]), list(_batches(numbers))
    )
    return np.concatenate(list(results))


def _batches(numbers: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(numbers), _BATCH):
        yield numbers[start : start + _BATCH]


def _pool(
    model: ModelSettings, state: Mapping[str, Tensor], canvases: Canvases, compute: Workers
) -> tuple[ActorPool, ray.ObjectRef]:
    """Actors that are started again, and their batch repeated, where one dies.

    The second value is the weights' reference: it must live as long as they may have to.
    """
    weights = ray.put(dict(state))
    options: dict[str, Any] = {"num_cpus": compute.cpus, "num_gpus": int(compute.gpu)}
    remote = ray.remote(max_restarts=_RETRIES, max_task_retries=_RETRIES, **options)(_Predictor)
    actors = [remote.remote(model, weights, canvases, compute) for _ in range(compute.actors)]
    return ActorPool(actors), weights
