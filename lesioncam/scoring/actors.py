"""Actors: the two stages as Ray runs them, each process with one network on its device.

Only they load torch, which takes seconds; the driver, which imports this module too, does without.
"""
# ruff: noqa: PLC0415

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from lesioncam.cluster import device_here
from lesioncam.settings import ModelSettings
from lesioncam.storage.bundle import load_weights
from lesioncam.telemetry import timed

if TYPE_CHECKING:
    from lesioncam.vision.classifier import Network

_COUNT_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Compute:
    """How an actor runs its network.

    Attributes:
        settings: the bundle's.
        precision: of the convolutions, `float32`, `bfloat16` or `int8`.
        batch_size: images a forward pass takes.
    """

    settings: ModelSettings
    precision: str
    batch_size: int

    def load(self, weights: ray.ObjectRef, ranges: Sequence[float]) -> "Network":
        """A stage's network, ready for inference in this process; only int8 needs ranges."""
        import torch

        from lesioncam.vision.engine import load_network

        device = device_here()
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is an actor for each core
        state = load_weights(ray.get(weights))
        return load_network(self.settings, state, device, self.precision, ranges)


class LocalizeActor:
    """Stage 1 in a process of its own."""

    def __init__(self, compute: Compute, weights: ray.ObjectRef, ranges: Sequence[float]):
        from lesioncam.scoring.stages import Localize
        from lesioncam.vision.classifier import Localizer

        localizer = Localizer(compute.settings, compute.load(weights, ranges))
        self._localize = Localize(localizer, compute.batch_size)

    def __call__(self, table: pa.Table) -> pa.Table:
        """As `Localize`."""
        with timed("localize", table.num_rows):
            return self._localize(table)


class ClassifyActor:
    """Stage 2 in a process of its own."""

    def __init__(
        self, compute: Compute, weights: ray.ObjectRef, ranges: Sequence[float], window: Any
    ):
        from lesioncam.scoring.stages import Classify
        from lesioncam.vision.classifier import CropClassifier

        classifier = CropClassifier(compute.settings, compute.load(weights, ranges))
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
