"""Predict: both stages' results on decoded canvases, on the cluster, through `localise`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.util import ActorPool
from torch import Tensor

from lesioncam.storage.bundle import ModelSettings, load_network
from lesioncam.training.canvases import Canvases
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.localise import classify, localise, to_channels_first
from lesioncam.vision.network import native_precision, prepare_for_inference

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


class _Predictor:
    """A network that crops or classifies batches of canvases."""

    def __init__(self, model: ModelSettings, state: Mapping[str, Tensor], compute: Workers):
        self.model = model
        self.device = torch.device("cuda" if compute.gpu else "cpu")
        if not compute.gpu:
            torch.set_num_threads(compute.threads)
        network = load_network(model, state)
        self.network = prepare_for_inference(network, self.device, native_precision(self.device))

    def localise(self, canvases: Canvases, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stage 1: probabilities (B, K) and boxes (B, 4) on the canvas."""
        pixels = self._pixels(canvases, numbers)
        found = localise(self.network, pixels, self.model.input_side, self.model.crop)
        return found.probabilities.cpu().numpy(), found.boxes.cpu().numpy()

    def classify(self, canvases: Canvases, numbers: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Stage 2: probabilities (B, K) of the boxes' contents."""
        pixels = self._pixels(canvases, numbers)
        crops = sample_boxes(pixels, torch.from_numpy(boxes).to(self.device), self.model.input_side)
        return classify(self.network, crops).cpu().numpy()

    def _pixels(self, canvases: Canvases, numbers: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(canvases.gather(numbers)).to(self.device)
        return to_channels_first(pixels)


def localise_all(
    canvases: Canvases, model: ModelSettings, stage1: Mapping[str, Tensor], compute: Workers
) -> tuple[np.ndarray, np.ndarray]:
    """Stage 1 on all canvases: probabilities (n, K) and boxes (n, 4)."""
    weights = ray.put(dict(stage1))  # lives as long as actors may have to start again
    results = _pool(model, weights, compute).map(
        lambda actor, numbers: actor.localise.remote(canvases, numbers),
        list(canvases.batches(_BATCH)),
    )
    probabilities, boxes = zip(*results, strict=True)
    return np.concatenate(probabilities), np.concatenate(boxes)


def classify_all(
    canvases: Canvases,
    boxes: np.ndarray,
    model: ModelSettings,
    stage2: Mapping[str, Tensor],
    compute: Workers,
) -> np.ndarray:
    """Stage 2 on the boxes of all canvases: probabilities (n, K)."""
    weights = ray.put(dict(stage2))  # likewise
    results = _pool(model, weights, compute).map(
        lambda actor, numbers: actor.classify.remote(canvases, numbers, boxes[numbers]),
        list(canvases.batches(_BATCH)),
    )
    return np.concatenate(list(results))


def _pool(model: ModelSettings, weights: ray.ObjectRef, compute: Workers) -> ActorPool:
    """Actors that are started again, and their batch repeated, where one dies."""
    options: dict[str, Any] = {"num_cpus": compute.cpus, "num_gpus": int(compute.gpu)}
    remote = ray.remote(max_restarts=_RETRIES, max_task_retries=_RETRIES, **options)(_Predictor)
    return ActorPool([remote.remote(model, weights, compute) for _ in range(compute.actors)])
