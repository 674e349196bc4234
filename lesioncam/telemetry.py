"""Telemetry: a run's metrics, through Ray, for Prometheus to scrape.

Labels hold outcomes and stages, never a file's name: names can identify patients. Where nobody
scrapes, metrics go nowhere, and cost microseconds.

Ray keeps a counter for as long as its node lives, though the process has ended. It forgets a gauge
that is not set again within its reporting interval, 10 s by default, though the process lives: a
run without progress must keep setting its gauges.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge

from lesioncam.columns import Status

_HEARTBEAT_S = 1.0

_images = Counter("lesioncam_images", "Images with a durable row.", ("status", "error_kind"))
_images_remaining = Gauge("lesioncam_images_remaining", "Images of the run without a row.")
_stage_seconds = Counter("lesioncam_stage_seconds", "Seconds a scoring stage worked.", ("stage",))
_stage_images = Counter("lesioncam_stage_images", "Images a scoring stage processed.", ("stage",))
_training = {
    name: Gauge(f"lesioncam_training_{name}", description, ("stage",))
    for name, description in (
        ("epoch", "Epochs of the stage that are done."),
        ("loss", "Training loss of the last epoch."),
        ("mean_auc", "Held-out mean AUC after the last epoch."),
        ("images_per_second", "Training images per second in the last epoch."),
        ("seconds_remaining", "Estimated seconds until both stages are trained."),
    )
}


def count_images(outcome: str, count: int) -> None:
    """Count images that became durable with an outcome: `ok` or an error kind."""
    if outcome == Status.OK:
        _images.inc(count, {"status": Status.OK.value, "error_kind": ""})
    else:
        _images.inc(count, {"status": Status.FAILED.value, "error_kind": outcome})


@contextmanager
def timed(stage: str, images: int) -> Iterator[None]:
    """Count what is done inside as a scoring stage's work on so many images, at least one."""
    started = time.monotonic()
    yield
    _stage_seconds.inc(time.monotonic() - started, {"stage": stage})
    _stage_images.inc(images, {"stage": stage})


def set_remaining(images: int) -> None:
    """Set how many images have no row yet."""
    _images_remaining.set(images)


def set_training(stage: str, figures: Mapping[str, float | None]) -> None:
    """Set a stage's training metrics; an undefined or unknown figure is not set."""
    for name, gauge in _training.items():
        gauge.set(figures.get(name), {"stage": stage})


class Heartbeat:
    """Calls `update`, which sets a gauge, every second from its own thread until it is stopped."""

    def __init__(self, update: Callable[[], None]):
        self._update, self._stopped = update, threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, after one last call."""
        self._stopped.set()
        self._thread.join()
        self._update()

    def _run(self) -> None:
        while not self._stopped.wait(_HEARTBEAT_S):
            self._update()
