"""Telemetry: what a monitor can ask of a run, as Ray metrics, which Prometheus scrapes.

Labels hold outcomes and stages, never a name: names can identify patients. Where nobody scrapes,
metrics go nowhere, and cost microseconds.

Ray keeps a counter for as long as its node lives, though its process ended. A gauge that is not set
again within Ray's reporting interval, 10 s by default, it forgets, though its process lives: a run
that stands still must go on saying where it stands.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge

from lesioncam.columns import Status

_BEAT_SECONDS = 1.0

_images = Counter("lesioncam_images", "Images with a durable row.", ("status", "error_kind"))
_images_left = Gauge("lesioncam_images_left", "Images of the run that have no row yet.")
_stage_seconds = Counter("lesioncam_stage_seconds", "Seconds a scoring stage worked.", ("stage",))
_stage_images = Counter("lesioncam_stage_images", "Images a scoring stage did.", ("stage",))
_training = {
    name: Gauge(f"lesioncam_training_{name}", description, ("stage",))
    for name, description in (
        ("epoch", "Epochs of the stage that are done."),
        ("loss", "Training loss of the last epoch."),
        ("mean_auc", "Held-out mean AUC after the last epoch."),
        ("images_per_second", "Images the last epoch learned from a second."),
        ("seconds_left", "Seconds that all epochs to come will take, of the stage after it too."),
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


def show_left(images: int) -> None:
    """Say how many images have no row yet."""
    _images_left.set(images)


def show_training(stage: str, figures: Mapping[str, float | None]) -> None:
    """Say where a stage's training stands; what is undefined or not known yet is left out."""
    for name, gauge in _training.items():
        gauge.set(figures.get(name), {"stage": stage})


class Heartbeat:
    """Calls what sets a gauge every second, from a thread of its own, until it is stopped."""

    def __init__(self, show: Callable[[], None]):
        self._show, self._stopped = show, threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Call it once more, for how it ended."""
        self._stopped.set()
        self._thread.join()
        self._show()

    def _run(self) -> None:
        while not self._stopped.wait(_BEAT_SECONDS):
            self._show()
