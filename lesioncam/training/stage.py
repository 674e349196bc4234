"""One stage's fine-tuning, as every Ray Train worker runs it.

Stage 1 and stage 2 are the same code: an image is a box of a canvas, the whole of it for stage 1
and the crop for stage 2. Every worker sees its share of the same batches, whatever their number.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from lesioncam.settings import BACKBONES, ModelSettings, TrainSettings
from lesioncam.storage.lease import check_holder
from lesioncam.storage.uris import open_store
from lesioncam.training.batches import Batch, Batches, Examples
from lesioncam.training.failures import traceback_noted
from lesioncam.training.progress import EpochReport, ProgressBoard, seconds_left
from lesioncam.training.recipe import balanced_weights, best_epoch, freeze_blocks, one_cycle
from lesioncam.vision.cam import choose_map, class_activation_maps, lesion_loss
from lesioncam.vision.metrics import mean_auc
from lesioncam.vision.network import build_network, native_precision

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
        sides: of each epoch, the side in pixels of the images it learns from.
        sides_after: likewise of the epochs that another stage makes after this one.
        learning_rate: the peak of the schedule.
        examples: the images.
        target_classes: places of the classes whose mean AUC chooses the checkpoint.
        threads: torch threads a worker computes with on a CPU.
        board: where progress goes.
        bundle: where the trained model will go, from whatever directory a worker is in.
        holder: the run that has the lease on it.
    """

    stage: str
    settings: TrainSettings
    model: ModelSettings
    initial: ray.ObjectRef
    sides: tuple[int, ...]
    sides_after: tuple[int, ...]
    learning_rate: float
    examples: Examples
    target_classes: tuple[int, ...]
    threads: int
    board: ProgressBoard
    bundle: str
    holder: str

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        return len(self.sides)


@dataclass
class StageState:
    """What a checkpoint holds: enough to go on, and the best weights so far.

    Attributes:
        epoch: epochs done.
        network: the weights after them.
        optimizer: likewise.
        schedule: likewise.
        best: the weights of the best epoch so far.
        best_epoch: which one that is, as `lesioncam.training.recipe.best_epoch` has it.
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

    def add(self, metrics: dict[str, Any], sides: Sequence[int]) -> None:
        """Take an epoch's metrics in.

        Args:
            metrics: among them `epoch` and `mean_auc`.
            sides: of each epoch of the stage, the side of its images.
        """
        self.epoch = metrics["epoch"]
        self.history.append(metrics)
        self.best_epoch = best_epoch([entry["mean_auc"] for entry in self.history], sides)

    def keep(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Keep what the epoch came to that was added last, its weights as a copy.

        Args:
            network: on any device.
            optimizer: whose buffers the state refers to, until the next step changes them.
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
    """What a batch is learned by, summed over its images: their class and where the lesion is.

    Args:
        logits: (b, K).
        maps: (b, K, h, w), the class activation maps.
        batch: of the same b.
        class_weights: (K,).
        settings: the recipe.
    """
    loss = F.cross_entropy(
        logits.float(),
        batch.labels,
        class_weights,
        label_smoothing=settings.label_smoothing,
        reduction="sum",
    )
    chosen = choose_map(maps, logits, settings.crop.map)
    return loss + (lesion_loss(chosen, batch.lesions) * batch.lesion_weights).sum()


def train_stage(config: dict[str, Any]) -> None:
    """Fine-tune one stage; Ray Train calls this in every worker.

    Args:
        config: `job`, a `StageJob`.
    """
    with traceback_noted():
        _Worker(config["job"]).run()


class _Worker:
    """One worker's network, optimizer and share of the images."""

    def __init__(self, job: StageJob):
        self.job = job
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(job.threads)
        self.mixed = native_precision(self.device) == "bfloat16"

        self.network = build_network(job.model, ray.get(job.initial))
        self.network.dropout.p = job.settings.dropout
        self.network.to(self.device).to(memory_format=torch.channels_last)
        if job.settings.weights is not None:
            freeze_blocks(self.network, job.settings.frozen_blocks)
        self.model: nn.Module = ray.train.torch.prepare_model(self.network, move_to_device=False)

        backbone = BACKBONES[job.model.backbone]
        self.batches = Batches(
            job.examples, job.settings, backbone, self.rank, self.world, self.device, job.stage
        )
        self.optimizer = torch.optim.SGD(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=job.learning_rate,
            momentum=_MOMENTUM,
            nesterov=True,
            weight_decay=job.settings.weight_decay,
        )
        total = self.batches.steps * job.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: one_cycle(step, total)
        )
        learned = job.examples.labels[self.batches.training]
        self.class_weights = balanced_weights(
            learned, len(job.model.classes), job.settings.balance
        ).to(self.device)

    def run(self) -> None:
        """Train every epoch that is left, and report each with a checkpoint."""
        state = self._resume()
        for epoch in range(state.epoch, self.job.epochs):
            if state.diverged:
                return  # the driver says so
            side = self.job.sides[epoch]
            learned, found = self._train_epoch(epoch, side), self._held_out(side)
            metrics = {"epoch": epoch + 1, "side": side, **learned, **found}
            state.add(metrics, self.job.sides)
            self._report(state, metrics)
            if self.rank == 0:
                self._post(state)

    def _resume(self) -> StageState:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return StageState()
        state = read_state(checkpoint)
        self.network.load_state_dict(dict(state.network))
        self.optimizer.load_state_dict(dict(state.optimizer))
        self.schedule.load_state_dict(dict(state.schedule))
        if self.rank == 0:
            self._post(state, resumed=True)
        return state

    def _post(self, state: StageState, resumed: bool = False) -> None:
        job = self.job
        left = seconds_left(state.history, job.sides + job.sides_after)
        job.board.post(EpochReport(job.stage, job.epochs, state.history, left, resumed))

    def _train_epoch(self, epoch: int, side: int) -> dict[str, float]:
        """One pass over the training images: the mean loss over all workers, and what it took.

        Batches are prepared in a thread beside: `prepared_seconds` is how long that was at work,
        `waited_seconds` how long the network had to wait for it.
        """
        self.model.train()
        dropout = self.batches.steps + 1 + self.rank  # differs between workers
        torch.manual_seed(self.batches.seed(epoch, dropout))
        total = torch.zeros((), device=self.device)
        started, waited, prepared = time.monotonic(), 0.0, 0.0
        batches = self.batches.epoch(epoch, side)
        asked = started
        for batch in batches:
            waited += time.monotonic() - asked
            prepared += batch.seconds
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                logits, features = self.model(batch.images)
            maps = class_activation_maps(features, self.network.linear.weight)
            summed = summed_loss(logits, maps, batch, self.class_weights, self.job.settings)
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
    def _held_out(self, side: int) -> dict[str, float | None]:
        """Mean AUC on the held-out images at `side` pixels, each worker classifying its share."""
        self.network.eval()
        started = time.monotonic()
        labels, held_out = self.job.examples.labels, self.job.examples.held_out
        found = torch.zeros(len(labels), len(self.job.model.classes), device=self.device)
        for numbers, images in self.batches.held_out(_EVALUATION_BATCH, side):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                logits, _ = self.network(images)
            found[torch.from_numpy(numbers)] = logits.float().softmax(dim=1)
        if self.world > 1:
            torch.distributed.all_reduce(found)  # every image is zero in all shares but one
        probabilities = found.cpu().numpy()[held_out]
        figure = mean_auc(probabilities, labels[held_out], self.job.target_classes)
        return {"mean_auc": figure, "held_out_seconds": time.monotonic() - started}

    def _report(self, state: StageState, metrics: dict[str, Any]) -> None:
        if self.rank != 0:
            ray.train.report(metrics)
            return  # rank 0 keeps the weights
        check_holder(open_store(self.job.bundle), self.job.holder)
        state.keep(self.network, self.optimizer, self.schedule)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(vars(state), Path(folder, _STATE_FILE))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
