"""Event files: every epoch's metrics for TensorBoard, in the bundle's directory."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from lesioncam.errors import LesioncamError
from lesioncam.storage.bundle import EVENTS_FOLDER, STAGES
from lesioncam.storage.uris import open_store
from lesioncam.training.progress import EpochReport, numbers

log = logging.getLogger("lesioncam")


class EventFiles:
    """Writes an event file after each epoch, `tensorboard/<stage>/events.out.tfevents.<epoch>`.

    A file an epoch: it is written whole, so that S3 is as good as a disk, and TensorBoard, which
    reads them in the order of their names, follows a training. A training that is resumed writes
    the files of its earlier epochs again.

    Args:
        bundle: the bundle's directory or prefix.
    """

    def __init__(self, bundle: str):
        store = open_store(bundle).join(EVENTS_FOLDER)
        self._stores = {stage: store.join(stage) for stage in STAGES}
        self._written: set[tuple[str, int]] = set()
        self._is_clear = False  # of the files of another recipe

    def update(self, report: EpochReport) -> None:
        """Add a report's epochs. A failed write is logged, and repeated with the next report."""
        try:
            self._clear()
            for entry in report.history:
                key = (report.stage, entry["epoch"])
                if key not in self._written:
                    self._stores[report.stage].write(_name(entry["epoch"]), _events(entry))
                    self._written.add(key)
        except (LesioncamError, OSError) as error:
            log.warning("TensorBoard's event files could not be written: %s", error)

    def _clear(self) -> None:
        """Remove what an interrupted training left, once: it may have had another recipe."""
        if self._is_clear:
            return
        for store in self._stores.values():
            for name in store.names():
                store.delete(name)
        self._is_clear = True


def _name(epoch: int) -> str:
    return f"events.out.tfevents.{epoch:010d}"


def _events(entry: Mapping[str, Any]) -> bytes:
    """An event file with an epoch's metrics."""
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, value in numbers(entry).items():
                writer.add_scalar(name, value, entry["epoch"])
        (file,) = Path(folder).iterdir()
        return file.read_bytes()
