"""What people watch while training runs: a line an epoch, from the workers to the terminal."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

log = logging.getLogger("lesioncam")

_POLL_SECONDS = 1.0


class _Posts:
    """An actor that keeps what workers post until it is read."""

    def __init__(self) -> None:
        self._posts: list[Mapping[str, Any]] = []

    def post(self, content: Mapping[str, Any]) -> None:
        self._posts.append(content)

    def take(self) -> list[Mapping[str, Any]]:
        posts, self._posts = self._posts, []
        return posts


@dataclass(frozen=True)
class Board:
    """Where workers post; can be sent to them."""

    actor: Any

    @classmethod
    def create(cls) -> "Board":
        """Start the board in the cluster."""
        return cls(ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Posts).remote())

    def post(self, content: Mapping[str, Any]) -> None:
        """Put something up; does not wait."""
        self.actor.post.remote(dict(content))

    @contextmanager
    def logged(self) -> Iterator[None]:
        """While this lasts, log a line for whatever is posted."""
        stop = threading.Event()

        def read() -> None:
            while True:
                ended = stop.wait(_POLL_SECONDS)
                for content in ray.get(self.actor.take.remote()):
                    log.info("%s", line(content))
                if ended:
                    return

        reader = threading.Thread(target=read, name="training-progress", daemon=True)
        reader.start()
        try:
            yield
        finally:
            stop.set()
            reader.join()


def line(content: Mapping[str, Any]) -> str:
    """One line for a post: an epoch's metrics, or that a stage goes on from a checkpoint."""
    stage = content["stage"].replace("stage", "stage ")
    if "resumed" in content:
        return f"{stage}: going on from the checkpoint after epoch {content['resumed']}"
    figure = content["mean_auc"]
    left = (content["epochs"] - content["epoch"]) * content["seconds"]
    return (
        f"{stage}: epoch {content['epoch']} of {content['epochs']}, loss {content['loss']:.3f}, "
        f"held-out mean AUC {'undefined' if figure is None else f'{figure:.3f}'}, "
        f"{content['images_per_second']:.1f} images/s, {left / 60:.0f} min left"
    )
