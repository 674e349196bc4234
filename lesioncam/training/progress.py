"""What people watch while training runs: a line an epoch, from the workers to the log; metrics."""

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
    """What a worker says after an epoch, or when it goes on from a checkpoint.

    Attributes:
        stage: `stage1` or `stage2`.
        epochs: of this stage.
        history: the metrics of every epoch of this stage that is done; may be empty.
        left: seconds that all epochs to come will take, of the stage after it too.
        resumed: whether they come from a checkpoint.
    """

    stage: str
    epochs: int
    history: Sequence[Mapping[str, Any]]
    left: float
    resumed: bool = False


@dataclass(frozen=True)
class WorkerFailure:
    """A worker broke off: all start again from the last checkpoint, or the stage is given up.

    Attributes:
        stage: `stage1` or `stage2`.
        rank: the worker's.
        cause: in one line.
    """

    stage: str
    rank: int
    cause: str

    def __str__(self) -> str:
        return f"{stage_name(self.stage)}: worker {self.rank} broke off: {self.cause}"


class _Posts:
    """An actor that keeps what is posted until it is read."""

    def __init__(self) -> None:
        self._posts: list[EpochReport | WorkerFailure] = []

    def post(self, content: EpochReport | WorkerFailure) -> None:
        self._posts.append(content)

    def take(self) -> list[EpochReport | WorkerFailure]:
        posts, self._posts = self._posts, []
        return posts


@dataclass(frozen=True)
class ProgressBoard:
    """Where workers post; can be sent to them."""

    actor: Any

    @classmethod
    def create(cls) -> "ProgressBoard":
        """Start the board in the cluster."""
        return cls(ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Posts).remote())

    def post(self, content: EpochReport | WorkerFailure) -> None:
        """Put something up; does not wait."""
        self.actor.post.remote(content)

    @contextmanager
    def logged(self, stage: str, take: Callable[[EpochReport], None]) -> Iterator[None]:
        """While a stage lasts, log a line for what is posted; the latest `EpochReport` goes to `take`."""
        stop = threading.Event()

        def read() -> None:
            stands: Mapping[str, float | None] = {"epoch": 0}
            while True:
                ended = stop.wait(_POLL_SECONDS)
                news: list[EpochReport | WorkerFailure] = ray.get(self.actor.take.remote())
                for content in news:
                    if isinstance(content, WorkerFailure):
                        log.warning("%s", content, extra={"stage": stage})
                        continue
                    stands = figures(content)
                    log.info("%s", line(content), extra={"stage": stage, **stands})
                posts = [content for content in news if isinstance(content, EpochReport)]
                if posts:  # the last has the epochs of all
                    take(posts[-1])
                set_training(stage, stands)
                if ended:
                    return

        reader = threading.Thread(target=read, name="training-progress", daemon=True)
        reader.start()
        try:
            yield
        finally:
            stop.set()
            reader.join()


def seconds_left(history: Sequence[Mapping[str, Any]], sides: Sequence[int]) -> float:
    """Seconds that all epochs to come will take; a pixel costs as much as in the last one.

    Args:
        history: the metrics of the epochs that are done.
        sides: of each epoch, done or not and of this stage or the next, the side of its images.

    Returns:
        NaN while no epoch is done.
    """
    if not history:
        return math.nan
    last = history[-1]
    seconds = float(last["seconds"]) + float(last["held_out_seconds"])
    pixel = seconds / sides[len(history) - 1] ** 2
    return sum(pixel * side**2 for side in sides[len(history) :])


def figures(post: EpochReport) -> dict[str, float | None]:
    """Where the stage stands, in numbers; a loss that is none is None."""
    if not post.history:
        return {"epoch": 0}
    last = post.history[-1]
    return {
        "epoch": last["epoch"],
        "epochs": post.epochs,
        "loss": last["loss"] if math.isfinite(last["loss"]) else None,
        "mean_auc": last["mean_auc"],
        "images_per_second": last["images_per_second"],
        "seconds_remaining": post.left,
    }


def line(post: EpochReport) -> str:
    """One line for a post: its last epoch's metrics, or that the stage goes on from there."""
    stage = stage_name(post.stage)
    if post.resumed:
        return f"{stage}: going on from the checkpoint after epoch {len(post.history)}"
    last = post.history[-1]
    figure = last["mean_auc"]
    return (
        f"{stage}: epoch {last['epoch']} of {post.epochs}, loss {last['loss']:.3f}, "
        f"held-out mean AUC {'undefined' if figure is None else f'{figure:.3f}'}, "
        f"{last['images_per_second']:.1f} images/s, about {post.left / 60:.0f} min left"
    )


def stage_name(stage: str) -> str:
    """`stage 1` for `stage1`."""
    return stage.replace("stage", "stage ")
