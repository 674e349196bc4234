"""Batches: the images a worker trains on at each step, cut and augmented.

Every worker draws the order and the augmentation of the whole batch and takes its slice of both.
So the number of workers does not change what the network trains on.
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
from lesioncam.vision.augment import Draws, apply_geometry, augment, draw
from lesioncam.vision.classifier import to_channels_first
from lesioncam.vision.crop import sample_boxes

_SAMPLES = 4  # of a lesion mask, each way, that are averaged for one cell of a map


@dataclass(frozen=True)
class LesionMasks:
    """The lesion masks of n images.

    Attributes:
        grid: (n, m, m) bool, on the canvas.
        given: (n,) bool: a person drew the mask; the others are estimated from color.
        weights: (n,) float32, the weight of each in the loss.
    """

    grid: np.ndarray
    given: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Examples:
    """The images of one stage, to train on and held out; n of them.

    Attributes:
        canvases: the decoded images.
        boxes: (n, 4) int, what the stage sees of each canvas.
        labels: (n,) int, class indices.
        held_out: (n,) bool.
        lesion_masks: what the maps are trained to cover.
        known_classes: (n, K) bool, the classes that each image says something about.
    """

    canvases: Canvases
    boxes: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray
    lesion_masks: LesionMasks
    known_classes: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One worker's slice of one step, of b images.

    Attributes:
        images: (b, 3, s, s) uint8.
        labels: (b,) int64.
        known_classes: (b, K) bool.
        lesions: (b, h, w) float32, the fraction of each cell of the map that is lesion.
        lesion_weights: (b,) float32.
        size: images in the whole step, over all workers.
        seconds: how long it took to prepare.
    """

    images: Tensor
    labels: Tensor
    known_classes: Tensor
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
        world: the number of workers.
        device: where batches go.
        stage: `stage1` or `stage2`, which have different orders and augmentation.
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

    def epoch(self, epoch: int, size: int) -> Iterator[Batch]:
        """The epoch's batches, of images of `size` pixels, in an order of seed, stage and epoch.

        A thread prepares the next batch while the network works on the last. Images that do not
        fill a batch at the end are skipped; in another epoch's order, they are others.
        """
        order = np.random.default_rng(self.seed(epoch, self.steps)).permutation(self.training)
        groups = [order[step * self.size : (step + 1) * self.size] for step in range(self.steps)]
        with ThreadPoolExecutor(1, "batches") as ahead:
            prepared = ahead.submit(self._prepare, epoch, 0, groups[0], size)
            for step in range(1, self.steps):
                batch = prepared.result()
                prepared = ahead.submit(self._prepare, epoch, step, groups[step], size)
                yield batch
            yield prepared.result()

    def held_out(self, batch_size: int, size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """This worker's held-out images, without augmentation, of `size` pixels.

        Yields their indices (b,) int64 and their pixels (b, 3, size, size) uint8.
        """
        own = np.flatnonzero(self.examples.held_out)[self.rank :: self.world]
        for start in range(0, len(own), batch_size):
            indices = own[start : start + batch_size]
            yield indices, sample_boxes(*self._pixels(indices), size)

    def _prepare(self, epoch: int, step: int, indices: np.ndarray, size: int) -> Batch:
        started = time.monotonic()
        own = indices[self.rank :: self.world]
        random = torch.Generator().manual_seed(self.seed(epoch, step))
        draws = draw(len(indices), self.settings, random).rank_slice(self.rank, self.world)
        canvases, boxes = self._pixels(own)
        images = augment(canvases, boxes, draws, size)
        labels = torch.from_numpy(self.examples.labels[own]).to(self.device)
        known = torch.from_numpy(self.examples.known_classes[own]).to(self.device)
        fractions = boxes / canvases.shape[-1]
        lesions, weights = self._lesions(own, fractions, draws, self.backbone.cells(size))
        seconds = time.monotonic() - started
        return Batch(images, labels, known, lesions, weights, len(indices), seconds)

    def _lesions(
        self, indices: np.ndarray, boxes: Tensor, draws: Draws, cells: int
    ) -> tuple[Tensor, Tensor]:
        """The masks in `boxes`, augmented like their images, on a map of `cells`; their weights.

        Boxes are in fractions of the canvas.
        """
        masks = self.examples.lesion_masks
        grid = torch.from_numpy(masks.grid[indices]).to(self.device)[:, None] * 255.0
        augmented = apply_geometry(grid, boxes * grid.shape[-1], draws, cells * _SAMPLES)
        lesions = F.avg_pool2d(augmented.float(), _SAMPLES)[:, 0] / 255
        return lesions, torch.from_numpy(masks.weights[indices]).to(self.device)

    def _pixels(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Canvases (b, 3, S, S) and boxes (b, 4) of these images, on the device."""
        canvases = torch.from_numpy(self.examples.canvases.gather(indices)).to(self.device)
        boxes = torch.from_numpy(self.examples.boxes[indices]).to(self.device)
        return to_channels_first(canvases), boxes

    def seed(self, epoch: int, number: int) -> int:
        """The seed for one draw in an epoch: of each step, then of the order, then of dropout."""
        sequence = np.random.SeedSequence([self.settings.seed, self.stage, epoch, number])
        return int(sequence.generate_state(1)[0])
