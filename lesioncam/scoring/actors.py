"""Actors: the two stages as Ray runs them, each process with one network on its device."""

from dataclasses import dataclass

import pyarrow as pa
import ray
import torch

from lesioncam.cluster import device_here
from lesioncam.scoring.stages import Classify, Localize
from lesioncam.settings import ModelSettings
from lesioncam.telemetry import timed
from lesioncam.vision.classifier import CropClassifier, Localizer, Network
from lesioncam.vision.engine import load_network


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

    def __init__(self, compute: Compute, state: ray.ObjectRef):
        classifier = CropClassifier(compute.settings, compute.load(state))
        self._classify = Classify(classifier, compute.batch_size)

    def __call__(self, table: pa.Table) -> pa.Table:
        """As `Classify`."""
        with timed("classify", table.num_rows):
            return self._classify(table)
