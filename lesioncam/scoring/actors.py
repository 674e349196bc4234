"""Actors: the two stages as Ray runs them, each process with one network on its device.

Only they load torch, which takes seconds; the driver, which imports this module too, does without.
"""
# ruff: noqa: PLC0415

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from lesioncam.cluster import device_here
from lesioncam.errors import InputError
from lesioncam.settings import ModelSettings
from lesioncam.storage.bundle import load_weights
from lesioncam.telemetry import timed

if TYPE_CHECKING:
    from lesioncam.vision.classifier import Network

_COUNT_INTERVAL_S = 0.5

_Stage = Callable[[pa.Table], pa.Table]


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

    def load(
        self, weights: ray.ObjectRef, ranges: Sequence[float], stage: "Callable[[Network], _Stage]"
    ) -> "_Stage":
        """A stage with its network, ready for inference in this process.

        Where this node cannot run it, the stage refuses its first batch: of an error in an actor's
        constructor, Ray would not give the message.

        Args:
            weights: the stage's.
            ranges: likewise; only int8 needs them.
            stage: makes it of its network.
        """
        import torch

        from lesioncam.vision.engine import load_network

        device = device_here()
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is an actor for each core
        state = load_weights(ray.get(weights))
        try:
            return stage(load_network(self.settings, state, device, self.precision, ranges))
        except InputError as error:
            return partial(_refuse, error)


def _refuse(error: InputError, _: pa.Table) -> pa.Table:
    raise error


class LocalizeActor:
    """Stage 1 in a process of its own."""

    def __init__(self, compute: Compute, weights: ray.ObjectRef, ranges: Sequence[float]):
        from lesioncam.scoring.stages import Localize
        from lesioncam.vision.classifier import Localizer

        self._localize = compute.load(
            weights,
            ranges,
            lambda network: Localize(Localizer(compute.settings, network), compute.batch_size),
        )

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

        self._classify = compute.load(
            weights,
            ranges,
            lambda network: Classify(CropClassifier(compute.settings, network), compute.batch_size),
        )
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
