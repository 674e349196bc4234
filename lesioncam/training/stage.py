"""One stage's fine-tuning, as every Ray Train worker runs it.

Stage 1 and stage 2 are the same code: an image is a box of a canvas, the whole of it for stage 1
and the crop for stage 2. Every worker sees its share of the same batches, whatever their number.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lesioncam.settings import TrainSettings
from lesioncam.storage.bundle import ModelSettings, load_network
from lesioncam.training.canvases import Canvases
from lesioncam.training.progress import Board
from lesioncam.vision.augment import Draws, augment, draw, turn
from lesioncam.vision.cam import class_activation_maps, mask_loss
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.localise import to_channels_first, whole_boxes
from lesioncam.vision.metrics import mean_auc
from lesioncam.vision.network import VGGGAP, native_precision

_STATE_FILE = "state.pt"
_MOMENTUM = 0.9
_GRADIENT_NORM = 5.0  # longer gradients are cut to this: one odd batch must not undo an epoch
_EVALUATION_BATCH = 32


@dataclass(frozen=True)
class StageJob:
    """What the workers of one stage are told.

    Attributes:
        stage: `stage1` or `stage2`.
        settings: the recipe.
        model: the network's shape.
        initial: the weights to start from, in the object store.
        epochs: passes over the training images.
        learning_rate: the peak of the schedule.
        canvases: the decoded images, training and held-out ones.
        boxes: (n, 4) int, of each image what the stage sees of its canvas.
        labels: (n,) int.
        masks: (n, m, m) bool, the lesions in the canvases' frame, empty where there is no mask; or
            None to train without.
        held_out: (n,) bool.
        ranked: places of the classes whose mean AUC chooses the checkpoint.
        threads: torch threads a worker computes with on a CPU.
        board: where progress goes.
    """

    stage: str
    settings: TrainSettings
    model: ModelSettings
    initial: ray.ObjectRef
    epochs: int
    learning_rate: float
    canvases: Canvases
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    held_out: np.ndarray
    ranked: tuple[int, ...]
    threads: int
    board: Board


@dataclass
class StageState:
    """What a checkpoint holds: enough to go on, and the best weights so far.

    Attributes:
        epoch: epochs done.
        network: the weights after them.
        optimizer: likewise.
        schedule: likewise.
        best: the weights of the epoch with the highest held-out mean AUC, the last of equals.
        best_epoch: that epoch, counted from 1.
        history: of each epoch its metrics.
    """

    epoch: int = 0
    network: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether the last epoch's loss was not a finite number."""
        return bool(self.history) and not math.isfinite(self.history[-1]["loss"])


def read_state(checkpoint: ray.train.Checkpoint) -> StageState:
    """Read a checkpoint; tensors and plain values only."""
    with checkpoint.as_directory() as folder:
        content = torch.load(Path(folder, _STATE_FILE), map_location="cpu", weights_only=True)
    return StageState(**content)


def train_stage(config: dict[str, Any]) -> None:
    """Fine-tune one stage; Ray Train calls this in every worker.

    Args:
        config: `job`, a `StageJob`.
    """
    _Worker(config["job"]).run()


class _Worker:
    """One worker's networks, optimiser and share of the images."""

    def __init__(self, job: StageJob):
        self.job = job
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(job.threads)
        torch.manual_seed(job.settings.seed + self.rank)  # dropout differs between workers
        self.mixed = native_precision(self.device) == "bfloat16"

        self.network = load_network(job.model, ray.get(job.initial))
        self.network.dropout.p = job.settings.dropout
        self.network.to(self.device).to(memory_format=torch.channels_last)
        if job.settings.weights is not None:
            freeze_blocks(self.network, job.settings.frozen_blocks)
        self.model: nn.Module = ray.train.torch.prepare_model(self.network, move_to_device=False)

        self.training = np.flatnonzero(~job.held_out)
        self.batch_size = min(job.settings.batch_size, len(self.training))
        self.steps = len(self.training) // self.batch_size
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            trained,
            lr=job.learning_rate,
            momentum=_MOMENTUM,
            nesterov=True,
            weight_decay=job.settings.weight_decay,
        )
        total = self.steps * job.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: one_cycle(step, total)
        )
        self.class_weights = balanced_weights(
            job.labels[self.training], len(job.model.classes), job.settings.balance
        ).to(self.device)

    def run(self) -> None:
        """Train every epoch that is left, and report each with a checkpoint."""
        state = self._resume()
        for epoch in range(state.epoch, self.job.epochs):
            if state.diverged:
                return  # the driver says so
            started = time.monotonic()
            loss = self._train_epoch(epoch)
            figure = self._held_out_auc()
            seconds = time.monotonic() - started
            metrics = {
                "epoch": epoch + 1,
                "loss": loss,
                "mean_auc": figure,
                "images_per_second": self.steps * self.batch_size / seconds,
                "seconds": seconds,
            }
            self._update(state, epoch + 1, metrics)
            self._report(state, metrics)
            if self.rank == 0:
                self.job.board.post({"stage": self.job.stage, "epochs": self.job.epochs, **metrics})

    def _resume(self) -> StageState:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return StageState()
        state = read_state(checkpoint)
        self.network.load_state_dict(dict(state.network))
        self.optimizer.load_state_dict(dict(state.optimizer))
        self.schedule.load_state_dict(dict(state.schedule))
        if self.rank == 0:
            self.job.board.post({"stage": self.job.stage, "resumed": state.epoch})
        return state

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the training images; returns the mean loss over all workers."""
        self.model.train()
        total = torch.zeros((), device=self.device)
        for step, numbers in enumerate(self._epoch_batches(epoch)):
            share = numbers[self.rank :: self.world]
            random = torch.Generator().manual_seed(self._seed(epoch, step))
            draws = draw(len(numbers), self.job.settings, random).share(self.rank, self.world)
            images = augment(*self._pixels(share), draws, self.job.model.input_side)
            target = torch.from_numpy(self.job.labels[share]).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                logits, features = self.model(images)
            loss = F.cross_entropy(
                logits.float(),
                target,
                self.class_weights,
                label_smoothing=self.job.settings.label_smoothing,
                reduction="sum",
            )
            if self.job.masks is not None:
                loss = loss + self.job.settings.mask_weight * self._mask_loss(
                    features, self.job.masks[share], draws
                )
            loss = loss * (self.world / len(numbers))  # so DDP's mean is over the whole batch
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach()
        mean = total / self.steps
        if self.world > 1:
            torch.distributed.all_reduce(mean)
            mean /= self.world
        return float(mean)

    def _mask_loss(self, features: Tensor, masks: np.ndarray, draws: Draws) -> Tensor:
        """The batch's summed `mask_loss`, its masks turned as its images were."""
        lesions = torch.from_numpy(masks).to(self.device)[:, None].to(torch.uint8) * 255
        inside = turn(lesions, whole_boxes(lesions), draws, features.shape[-1])[:, 0] / 255
        maps = class_activation_maps(features, self.network.linear.weight)
        return mask_loss(maps, inside).sum()

    def _epoch_batches(self, epoch: int) -> Iterator[np.ndarray]:
        """The epoch's batches over all workers, in an order that only seed and epoch decide.

        The images left over after the last whole batch wait for another epoch's order.
        """
        random = np.random.default_rng(self._seed(epoch, self.steps))
        order = random.permutation(self.training)
        for step in range(self.steps):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]

    def _seed(self, epoch: int, step: int) -> int:
        return int(
            np.random.SeedSequence([self.job.settings.seed, epoch, step]).generate_state(1)[0]
        )

    def _pixels(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Canvases (B, 3, S, S) and boxes (B, 4) of these images, on the device."""
        canvases = torch.from_numpy(self.job.canvases.gather(numbers)).to(self.device)
        boxes = torch.from_numpy(self.job.boxes[numbers]).to(self.device)
        return to_channels_first(canvases), boxes

    @torch.no_grad()
    def _held_out_auc(self) -> float | None:
        """Mean AUC on the held-out images, each worker classifying its share."""
        self.network.eval()
        numbers = np.flatnonzero(self.job.held_out)
        share = numbers[self.rank :: self.world]
        found = torch.zeros(len(self.job.labels), len(self.job.model.classes), device=self.device)
        for start in range(0, len(share), _EVALUATION_BATCH):
            batch = share[start : start + _EVALUATION_BATCH]
            images = sample_boxes(*self._pixels(batch), self.job.model.input_side)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                logits, _ = self.network(images)
            found[torch.from_numpy(batch)] = logits.float().softmax(dim=1)
        if self.world > 1:
            torch.distributed.all_reduce(found)  # every image is zero in all shares but one
        probabilities = found[torch.from_numpy(numbers)].cpu().numpy()
        return mean_auc(probabilities, self.job.labels[numbers], self.job.ranked)

    def _update(self, state: StageState, epoch: int, metrics: dict[str, Any]) -> None:
        weights = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.network.state_dict().items()
        }
        state.epoch, state.network = epoch, weights
        state.optimizer, state.schedule = self.optimizer.state_dict(), self.schedule.state_dict()
        best = max((entry["mean_auc"] or 0.0 for entry in state.history), default=-1.0)
        if (metrics["mean_auc"] or 0.0) >= best:  # of equals the later, at a lower rate
            state.best, state.best_epoch = weights, epoch
        state.history.append(metrics)

    def _report(self, state: StageState, metrics: dict[str, Any]) -> None:
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(vars(state), Path(folder, _STATE_FILE))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def one_cycle(step: int, total: int) -> float:
    """The learning rate of a step as a share of its peak: up for a fifth, then down, by cosines.

    L. Smith, "Super-convergence" (arXiv 1708.07120), with a constant momentum.
    """
    peak = total / 5
    if step < peak:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
    return max(1e-4, (1 + math.cos(math.pi * (step - peak) / max(total - peak, 1))) / 2)


def freeze_blocks(network: VGGGAP, blocks: int) -> None:
    """Keep the convolutions of the first `blocks` blocks (up to so many max-pools) as they are."""
    block = 0
    for module in network.features:
        if isinstance(module, nn.MaxPool2d):
            block += 1
        if block < blocks:
            module.requires_grad_(False)


def balanced_weights(labels: np.ndarray, classes: int, power: float) -> Tensor:
    """(K,) class weights: (1 / frequency) ** power, scaled so that the images' mean weight is 1."""
    counts = np.bincount(labels, minlength=classes)
    weights = (len(labels) / np.maximum(counts, 1)) ** power
    return torch.tensor(weights / (weights * counts).sum() * len(labels), dtype=torch.float32)
