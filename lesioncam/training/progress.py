"""Training progress: from the workers to the log and the metrics file, one line per epoch."""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from lesioncam.telemetry import set_training

log = logging.getLogger("lesioncam")

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class EpochReport:
    """A worker's report after an epoch, or when it resumes from a checkpoint.

    Attributes:
        stage: `stage1` or `stage2`.
        epochs: of this stage.
        history: the metrics of every finished epoch of this stage; may be empty.
        seconds_remaining: for all epochs to come, of the next stage too.
        resumed: whether the stage resumes from a checkpoint.
    """

    stage: str
    epochs: int
    history: Sequence[Mapping[str, Any]]
    seconds_remaining: float
    resumed: bool = False


@dataclass(frozen=True)
class WorkerFailure:
    """A worker failed; all workers restart from the last checkpoint.

    Attributes:
        stage: `stage1` or `stage2`.
        rank: the worker's.
        cause: in one line.
    """

    stage: str
    rank: int
    cause: str

    def __str__(self) -> str:
        return f"{stage_name(self.stage)}: worker {self.rank} failed: {self.cause}"


Report = EpochReport | WorkerFailure


class _Reports:
    """An actor that holds reports until they are taken."""

    def __init__(self) -> None:
        self._reports: list[Report] = []

    def add(self, report: Report) -> None:
        self._reports.append(report)

    def take(self) -> list[Report]:
        reports, self._reports = self._reports, []
        return reports


@dataclass(frozen=True)
class ProgressBoard:
    """Takes reports from any process of the cluster; the driver logs them."""

    actor: Any

    @classmethod
    def create(cls) -> "ProgressBoard":
        """Start the board's actor in the cluster."""
        return cls(ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Reports).remote())

    def report(self, report: Report) -> None:
        """Add a report; does not wait."""
        self.actor.add.remote(report)

    @contextmanager
    def logged(self, stage: str, record: Callable[[EpochReport], None]) -> Iterator[None]:
        """While a stage runs, log its reports and hand the latest `EpochReport` to `record`."""
        stop = threading.Event()

        def read() -> None:
            latest: Mapping[str, float | None] = {"epoch": 0}
            while True:
                ended = stop.wait(_POLL_SECONDS)
                reports: list[Report] = ray.get(self.actor.take.remote())
                for report in reports:
                    if isinstance(report, WorkerFailure):
                        log.warning("%s", report, extra={"stage": stage})
                        continue
                    latest = figures(report)
                    log.info("%s", line(report), extra={"stage": stage, **latest})
                epochs = [report for report in reports if isinstance(report, EpochReport)]
                if epochs:  # the last one has the history of all
                    record(epochs[-1])
                set_training(stage, latest)
                if ended:
                    return

        reader = threading.Thread(target=read, name="training-progress", daemon=True)
        reader.start()
        try:
            yield
        finally:
            stop.set()
            reader.join()


def seconds_remaining(history: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> float:
    """Seconds for all epochs to come, if a pixel takes as long as in the last epoch.

    Args:
        history: the metrics of the finished epochs.
        sizes: the input size of each epoch, finished or not, of this stage and the next.

    Returns:
        NaN while no epoch is finished.
    """
    if not history:
        return math.nan
    last = history[-1]
    seconds = float(last["seconds"]) + float(last["held_out_seconds"])
    per_pixel = seconds / sizes[len(history) - 1] ** 2
    return sum(per_pixel * size**2 for size in sizes[len(history) :])


def figures(report: EpochReport) -> dict[str, float | None]:
    """A report as numbers; a loss that is not finite is None."""
    if not report.history:
        return {"epoch": 0}
    last = report.history[-1]
    return {
        "epoch": last["epoch"],
        "epochs": report.epochs,
        "loss": last["loss"] if math.isfinite(last["loss"]) else None,
        "mean_auc": last["mean_auc"],
        "images_per_second": last["images_per_second"],
        "seconds_remaining": report.seconds_remaining,
    }


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What can be drawn of metrics: the finite numbers, without that of the epoch."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if name != "epoch" and isinstance(value, int | float) and math.isfinite(value)
    }


def line(report: EpochReport) -> str:
    """One line for a report: its last epoch's metrics, or which checkpoint is resumed."""
    stage = stage_name(report.stage)
    if report.resumed:
        return f"{stage}: resuming from the checkpoint after epoch {len(report.history)}"
    last = report.history[-1]
    mean_auc = last["mean_auc"]
    return (
        f"{stage}: epoch {last['epoch']} of {report.epochs}, loss {last['loss']:.3f}, "
        f"held-out mean AUC {'undefined' if mean_auc is None else f'{mean_auc:.3f}'}, "
        f"{last['images_per_second']:.1f} images/s, "
        f"about {report.seconds_remaining / 60:.0f} min remaining"
    )


def stage_name(stage: str) -> str:
    """`stage 1` for `stage1`."""
    return stage.replace("stage", "stage ")
