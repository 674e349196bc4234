"""Actors: the two stages as Ray runs them, each process with one network on its device."""

import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import torch

from lesioncam.cluster import device_here
from lesioncam.scoring.stages import Classify, Localize
from lesioncam.settings import ModelSettings
from lesioncam.telemetry import timed
from lesioncam.vision.classifier import CropClassifier, Localizer, Network
from lesioncam.vision.engine import load_network

_COUNT_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Compute:
    """How an actor runs its network.

    Attributes:
        settings: the bundle's.
        precision: of the convolutions, `float32` or `bfloat16`.
        batch_size: images a forward pass takes.
    """

    settings: ModelSettings
    precision: str
    batch_size: int

    def load(self, state: ray.ObjectRef) -> Network:
        """A stage's network with the weights `state`, ready for inference in this process."""
        device = device_here()
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is an actor for each core
        return load_network(self.settings, ray.get(state), device, self.precision)


class LocalizeActor:
    """Stage 1 in a process of its own."""

    def __init__(self, compute: Compute, state: ray.ObjectRef):
        localizer = Localizer(compute.settings, compute.load(state))
        self._localize = Localize(localizer, compute.batch_size)

    def __call__(self, table: pa.Table) -> pa.Table:
        """As `Localize`."""
        with timed("localize", table.num_rows):
            return self._localize(table)


class ClassifyActor:
    """Stage 2 in a process of its own."""

    def __init__(self, compute: Compute, state: ray.ObjectRef, window: Any):
        classifier = CropClassifier(compute.settings, compute.load(state))
        self._classify = Classify(classifier, compute.batch_size)
        self._window = window
        self._uncounted, self._counted_at = 0, 0.0

    def __call__(self, table: pa.Table) -> pa.Table:
        """As `Classify`; counts the images in the window, twice a second at most."""
        with timed("classify", table.num_rows):
            rows = self._classify(table)
        self._uncounted += table.num_rows
        if time.monotonic() - self._counted_at >= _COUNT_INTERVAL_S:
            self._window.count.remote(self._uncounted)
            self._uncounted, self._counted_at = 0, time.monotonic()
        return rows
