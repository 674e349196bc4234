"""One stage's fine-tuning, as every Ray Train worker runs it.

Both stages run the same code: an image is a box of a canvas, the whole of it for stage 1 and the
crop for stage 2. Every worker trains on its slice of the same batches, whatever their number.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from lesioncam.settings import BACKBONES, ModelSettings, TrainSettings
from lesioncam.storage.lease import check_worker
from lesioncam.storage.uris import open_store
from lesioncam.training.batches import Batch, Batches, Examples
from lesioncam.training.failures import traceback_as_note
from lesioncam.training.progress import EpochReport, ProgressBoard, seconds_remaining
from lesioncam.training.recipe import balanced_weights, best_epoch, freeze_blocks, one_cycle
from lesioncam.training.workers import Workers
from lesioncam.vision.cam import choose_map, class_activation_maps, lesion_loss
from lesioncam.vision.metrics import mean_auc
from lesioncam.vision.network import build_network

_STATE_FILE = "state.pt"
_MOMENTUM = 0.9
_GRADIENT_NORM = 5.0  # longer gradients are cut to this: one batch must not undo an epoch
_EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Setup:
    """What both stages have in common.

    Attributes:
        settings: the recipe.
        model: the network's settings.
        target_classes: indices of the classes whose mean AUC chooses the checkpoint.
        workers: how many, and with what.
        board: takes progress reports.
        bundle: absolute URI of the bundle to be, whose lease is checked before each checkpoint.
        run_id: the run that must have the lease.
    """

    settings: TrainSettings
    model: ModelSettings
    target_classes: tuple[int, ...]
    workers: Workers
    board: ProgressBoard
    bundle: str
    run_id: str


@dataclass(frozen=True)
class StageJob:
    """One stage, as its workers get it; what is large is in the object store.

    Attributes:
        stage: `stage1` or `stage2`.
        fingerprint: a digest of what the stage's result depends on; checkpoints of the same stage
            and fingerprint are resumed.
        setup: what both stages have in common.
        initial: reference to the weights to start from, tensors by name.
        examples: reference to the images, `Examples`.
        sizes: the input size of each epoch, in pixels.
        next_sizes: likewise of the next stage's epochs.
        learning_rate: the peak of the schedule.
    """

    stage: str
    fingerprint: str
    setup: Setup
    initial: ray.ObjectRef
    examples: ray.ObjectRef
    sizes: tuple[int, ...]
    next_sizes: tuple[int, ...]
    learning_rate: float

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        return len(self.sizes)


@dataclass
class StageState:
    """A checkpoint's content: the state to resume from, and the best weights so far.

    Attributes:
        epoch: epochs finished.
        network: the weights after them.
        optimizer: its state after them.
        schedule: its state after them.
        best: the weights of the best epoch so far.
        best_epoch: which one that is, by `lesioncam.training.recipe.best_epoch`.
        history: each epoch's metrics.
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
        """Whether the last epoch's loss is not a finite number."""
        return bool(self.history) and not math.isfinite(self.history[-1]["loss"])

    def add(self, metrics: dict[str, Any], sizes: Sequence[int]) -> None:
        """Add a finished epoch.

        Args:
            metrics: among them `epoch` and `mean_auc`.
            sizes: the input size of each epoch of the stage.
        """
        self.epoch = metrics["epoch"]
        self.history.append(metrics)
        self.best_epoch = best_epoch([entry["mean_auc"] for entry in self.history], sizes)

    def keep(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Keep the state after the epoch that was added last; a copy of the weights.

        Args:
            network: on any device.
            optimizer: its buffers are not copied: save the state before the next step.
            schedule: likewise.
        """
        self.network = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in network.state_dict().items()
        }
        self.optimizer, self.schedule = optimizer.state_dict(), schedule.state_dict()
        if self.best_epoch == self.epoch:
            self.best = self.network


def read_state(checkpoint: ray.train.Checkpoint) -> StageState:
    """Read a checkpoint; tensors and plain values only."""
    with checkpoint.as_directory() as folder:
        content = torch.load(Path(folder, _STATE_FILE), map_location="cpu", weights_only=True)
    return StageState(**content)


def summed_loss(
    logits: Tensor, maps: Tensor, batch: Batch, class_weights: Tensor, settings: TrainSettings
) -> Tensor:
    """The loss of a batch, summed over its images: of their class and of where the lesion is.

    Args:
        logits: (b, K).
        maps: (b, K, h, w), the class activation maps.
        batch: of the same b.
        class_weights: (K,).
        settings: the recipe.
    """
    loss = class_loss(logits, batch, class_weights, settings.label_smoothing)
    chosen = choose_map(maps, logits, settings.crop.map)
    return loss + (lesion_loss(chosen, batch.lesions) * batch.lesion_weights).sum()


def class_loss(logits: Tensor, batch: Batch, class_weights: Tensor, smoothing: float) -> Tensor:
    """Weighted cross-entropy with label smoothing, summed, over the classes an image knows of.

    Where it knows of all, that of `torch.nn.functional.cross_entropy`.

    Args:
        logits: (b, K).
        batch: of the same b.
        class_weights: (K,).
        smoothing: the part of the target that all classes share.
    """
    known = batch.known_classes
    log_probabilities = logits.float().masked_fill(~known, -math.inf).log_softmax(dim=1)
    shared = known / known.sum(dim=1, keepdim=True)
    target = (1 - smoothing) * F.one_hot(batch.labels, logits.shape[1]) + smoothing * shared
    return -(class_weights * target * log_probabilities.masked_fill(~known, 0)).sum()


def train_stage(config: dict[str, Any]) -> None:
    """Fine-tune one stage; Ray Train calls this in every worker.

    Args:
        config: `job`, a `StageJob`.
    """
    with traceback_as_note():
        _Worker(config["job"]).run()


def compared(examples: Examples, classes: int) -> np.ndarray:
    """(n,) bool: the held-out images that epochs are compared on.

    Those of collections with all classes, if they are of each class: others reward recognizing the
    collection.
    """
    complete: np.ndarray = examples.held_out & examples.known_classes.all(axis=1)
    all_classes = len(np.unique(examples.labels[complete])) == classes
    return complete if all_classes else examples.held_out


class _Worker:
    """One worker's network, optimizer and batches."""

    def __init__(self, job: StageJob):
        self.job, setup = job, job.setup
        self.settings = setup.settings
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(setup.workers.threads)
        self.mixed = setup.workers.precision == "bfloat16"

        self.network = build_network(setup.model, ray.get(job.initial))
        self.network.dropout.p = self.settings.dropout
        self.network.to(self.device).to(memory_format=torch.channels_last)
        if self.settings.weights is not None:
            freeze_blocks(self.network, self.settings.frozen_blocks)
        self.model: nn.Module = ray.train.torch.prepare_model(self.network, move_to_device=False)

        self.examples: Examples = ray.get(job.examples)
        backbone = BACKBONES[setup.model.backbone]
        self.batches = Batches(
            self.examples, self.settings, backbone, self.rank, self.world, self.device, job.stage
        )
        self.optimizer = torch.optim.SGD(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=job.learning_rate,
            momentum=_MOMENTUM,
            nesterov=True,
            weight_decay=self.settings.weight_decay,
        )
        total = self.batches.steps * job.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: one_cycle(step, total)
        )
        self.classes = len(setup.model.classes)
        labels = self.examples.labels[self.batches.training]
        self.class_weights = balanced_weights(labels, self.classes, self.settings.balance).to(
            self.device
        )

    def run(self) -> None:
        """Train the remaining epochs, and report each with a checkpoint."""
        state = self._resume()
        for epoch in range(state.epoch, self.job.epochs):
            if state.diverged:
                return  # `fit` raises
            size = self.job.sizes[epoch]
            trained, evaluated = self._train_epoch(epoch, size), self._evaluate(size)
            metrics = {"epoch": epoch + 1, "size": size, **trained, **evaluated}
            state.add(metrics, self.job.sizes)
            self._save(state, metrics)
            if self.rank == 0:
                self._report(state)

    def _resume(self) -> StageState:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return StageState()
        state = read_state(checkpoint)
        self.network.load_state_dict(dict(state.network))
        self.optimizer.load_state_dict(dict(state.optimizer))
        self.schedule.load_state_dict(dict(state.schedule))
        if self.rank == 0:
            self._report(state, resumed=True)
        return state

    def _report(self, state: StageState, resumed: bool = False) -> None:
        job = self.job
        remaining = seconds_remaining(state.history, job.sizes + job.next_sizes)
        job.setup.board.report(
            EpochReport(job.stage, job.epochs, state.history, remaining, resumed)
        )

    def _train_epoch(self, epoch: int, size: int) -> dict[str, float]:
        """One pass over the training images: the mean loss over all workers, and times.

        A thread prepares the batches: `prepared_seconds` is how long it worked, `waited_seconds`
        how long the network waited for it.
        """
        self.model.train()
        dropout = self.batches.steps + 1 + self.rank  # another seed for each worker
        torch.manual_seed(self.batches.seed(epoch, dropout))
        total = torch.zeros((), device=self.device)
        started, waited, prepared = time.monotonic(), 0.0, 0.0
        batches = self.batches.epoch(epoch, size)
        asked = started
        for batch in batches:
            waited += time.monotonic() - asked
            prepared += batch.seconds
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                logits, features = self.model(batch.images)
            maps = class_activation_maps(features, self.network.linear.weight)
            summed = summed_loss(logits, maps, batch, self.class_weights, self.settings)
            loss = summed * (self.world / batch.size)  # so DDP's mean is the batch's
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach()
            asked = time.monotonic()
        mean = total / self.batches.steps
        if self.world > 1:
            torch.distributed.all_reduce(mean)
            mean /= self.world
        mean_loss = float(mean)  # waits for the GPU
        seconds = time.monotonic() - started
        return {
            "loss": mean_loss,
            "images_per_second": self.batches.steps * self.batches.size / seconds,
            "seconds": seconds,
            "waited_seconds": waited,
            "prepared_seconds": prepared,
        }

    @torch.no_grad()
    def _evaluate(self, size: int) -> dict[str, float | None]:
        """Mean AUC on the held-out images at `size` pixels; each worker classifies its slice."""
        self.network.eval()
        started = time.monotonic()
        labels = self.examples.labels
        found = torch.zeros(len(labels), self.classes, device=self.device)
        for indices, images in self.batches.held_out(_EVALUATION_BATCH, size):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                logits, _ = self.network(images)
            found[torch.from_numpy(indices)] = logits.float().softmax(dim=1)
        if self.world > 1:
            torch.distributed.all_reduce(found)  # each image is zero on all workers but one
        chosen = compared(self.examples, self.classes)
        probabilities = found.cpu().numpy()[chosen]
        figure = mean_auc(probabilities, labels[chosen], self.job.setup.target_classes)
        return {"mean_auc": figure, "held_out_seconds": time.monotonic() - started}

    def _save(self, state: StageState, metrics: dict[str, Any]) -> None:
        """Report the epoch to Ray Train, from rank 0 with a checkpoint."""
        if self.rank != 0:
            ray.train.report(metrics)
            return
        check_worker(open_store(self.job.setup.bundle), self.job.setup.run_id)
        state.keep(self.network, self.optimizer, self.schedule)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(vars(state), Path(folder, _STATE_FILE))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
