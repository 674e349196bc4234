"""Batches: which images a worker learns from at each step, cut, turned and lit.

Every worker draws the order and the augmentation of the whole batch and takes its share of both, so
how many workers there are changes nothing in what the network sees.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lesioncam.columns import STAGE_PREFIXES
from lesioncam.settings import Backbone, TrainSettings
from lesioncam.training.canvases import Canvases
from lesioncam.vision.augment import Draws, augment, draw, turn
from lesioncam.vision.classifier import to_channels_first
from lesioncam.vision.crop import sample_boxes

_FINER = 4  # points each way that a cell's share of lesion is the mean of


@dataclass(frozen=True)
class Lesions:
    """Where the lesions of n images are.

    Attributes:
        grid: (n, m, m) bool, on the canvas.
        drawn: (n,) bool: somebody drew the outline; the others are guessed from color.
        weights: (n,) float32, how much each counts in the loss.
    """

    grid: np.ndarray
    drawn: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Examples:
    """The images of one stage and what is known of them; n of them, training and held-out ones.

    Attributes:
        canvases: the decoded images.
        boxes: (n, 4) int, of each image what the stage sees of its canvas.
        labels: (n,) int.
        held_out: (n,) bool.
        lesions: what the maps are taught to cover.
    """

    canvases: Canvases
    boxes: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray
    lesions: Lesions


@dataclass(frozen=True)
class Batch:
    """One worker's share of one step.

    Attributes:
        images: (b, 3, s, s) uint8.
        labels: (b,) int64.
        lesions: (b, m, m) float32, the lesions turned as their images were.
        lesion_weights: (b,) float32.
        size: images in the whole step, over all workers.
        seconds: that it took to prepare.
    """

    images: Tensor
    labels: Tensor
    lesions: Tensor
    lesion_weights: Tensor
    size: int
    seconds: float


class Batches:
    """One worker's batches.

    Args:
        examples: all workers' images.
        settings: the recipe.
        backbone: the network's.
        rank: this worker's number.
        world: how many there are.
        device: where batches go.
        stage: `stage1` or `stage2`, which draw other orders and turns.
    """

    def __init__(
        self,
        examples: Examples,
        settings: TrainSettings,
        backbone: Backbone,
        rank: int,
        world: int,
        device: torch.device,
        stage: str,
    ):
        self.examples, self.settings = examples, settings
        self.backbone, self.stage = backbone, list(STAGE_PREFIXES).index(stage)
        self.rank, self.world, self.device = rank, world, device
        self.training = np.flatnonzero(~examples.held_out)
        self.size = min(settings.batch_size, len(self.training))
        self.steps = len(self.training) // self.size

    def epoch(self, epoch: int, side: int) -> Iterator[Batch]:
        """The epoch's batches, of images of `side` pixels, in an order of seed, stage and epoch.

        A thread prepares the next one while the network works on the last. The images left over
        after the last whole batch wait for another epoch's order.
        """
        order = np.random.default_rng(self.seed(epoch, self.steps)).permutation(self.training)
        groups = [order[step * self.size : (step + 1) * self.size] for step in range(self.steps)]
        with ThreadPoolExecutor(1, "batches") as ahead:
            prepared = ahead.submit(self._prepare, epoch, 0, groups[0], side)
            for step in range(1, self.steps):
                batch = prepared.result()
                prepared = ahead.submit(self._prepare, epoch, step, groups[step], side)
                yield batch
            yield prepared.result()

    def held_out(self, batch_size: int, side: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """This worker's share of the held-out images, unturned: numbers (b,), (b, 3, s, s).

        At `side` pixels, as in `epoch`.
        """
        share = np.flatnonzero(self.examples.held_out)[self.rank :: self.world]
        for start in range(0, len(share), batch_size):
            numbers = share[start : start + batch_size]
            yield numbers, sample_boxes(*self._pixels(numbers), side)

    def _prepare(self, epoch: int, step: int, numbers: np.ndarray, side: int) -> Batch:
        started = time.monotonic()
        share = numbers[self.rank :: self.world]
        random = torch.Generator().manual_seed(self.seed(epoch, step))
        draws = draw(len(numbers), self.settings, random).share(self.rank, self.world)
        canvases, boxes = self._pixels(share)
        images = augment(canvases, boxes, draws, side)
        labels = torch.from_numpy(self.examples.labels[share]).to(self.device)
        fractions = boxes / canvases.shape[-1]
        lesions, weights = self._lesions(share, fractions, draws, self.backbone.cells(side))
        seconds = time.monotonic() - started
        return Batch(images, labels, lesions, weights, len(numbers), seconds)

    def _lesions(
        self, numbers: np.ndarray, boxes: Tensor, draws: Draws, cells: int
    ) -> tuple[Tensor, Tensor]:
        """What of the lesions is in the boxes, in fractions of the canvas, once they are turned."""
        lesions = self.examples.lesions
        shown = torch.from_numpy(lesions.grid[numbers]).to(self.device)[:, None] * 255.0
        turned = turn(shown, boxes * shown.shape[-1], draws, cells * _FINER)
        shares = F.avg_pool2d(turned.float(), _FINER)[:, 0] / 255
        return shares, torch.from_numpy(lesions.weights[numbers]).to(self.device)

    def _pixels(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Canvases (b, 3, S, S) and boxes (b, 4) of these images, on the device."""
        canvases = torch.from_numpy(self.examples.canvases.gather(numbers)).to(self.device)
        boxes = torch.from_numpy(self.examples.boxes[numbers]).to(self.device)
        return to_channels_first(canvases), boxes

    def seed(self, epoch: int, number: int) -> int:
        """For what is drawn in an epoch: each step's turns, then the order, then the dropout."""
        sequence = np.random.SeedSequence([self.settings.seed, self.stage, epoch, number])
        return int(sequence.generate_state(1)[0])
