"""The metrics file: every epoch's metrics as a CSV and as curves, in the bundle's directory."""

import io
import logging
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lesioncam.errors import LesioncamError
from lesioncam.storage.bundle import CURVES_FILE, METRICS_FILE
from lesioncam.storage.uris import open_store
from lesioncam.training.progress import EpochReport, stage_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger("lesioncam")


class MetricsFile:
    """Rewrites `metrics.csv` and `curves.png` after each epoch.

    Args:
        bundle: their directory or prefix, the bundle's own.
    """

    def __init__(self, bundle: str):
        self._store = open_store(bundle)
        self._stages: dict[str, Sequence[Mapping[str, Any]]] = {}

    def update(self, report: EpochReport) -> None:
        """Add a report's epochs. A failed write is logged, and repeated with the next report."""
        self._stages[report.stage] = report.history
        frame = self.frame()
        if frame.empty:
            return
        try:
            self._store.write(METRICS_FILE, frame.to_csv(index=False).encode())
            self._store.write(CURVES_FILE, draw_curves(frame))
        except (LesioncamError, OSError) as error:
            log.warning("%s could not be written: %s", METRICS_FILE, error)

    def frame(self) -> pd.DataFrame:
        """One row per epoch of either stage."""
        rows = [
            {"stage": stage, **entry}
            for stage, history in sorted(self._stages.items())
            for entry in history
        ]
        return pd.DataFrame(rows)


def draw_curves(frame: pd.DataFrame) -> bytes:
    """Loss and held-out mean AUC over the epochs of both stages, as a PNG."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    done = 0
    for stage, part in frame.groupby("stage"):
        epochs = part["epoch"] + done
        name = stage_name(str(stage))
        left.plot(epochs, part["loss"], marker=".", label=name)
        right.plot(epochs, part["mean_auc"].astype(float), marker=".", label=name)
        done = int(epochs.max())
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="mean AUC of the held-out images")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
