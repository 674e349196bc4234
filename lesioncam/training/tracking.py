"""Tracking: where a training's metrics go while it runs: files in the bundle, and MLflow."""

from collections.abc import Mapping
from typing import Any, Self

from lesioncam.training.event_files import EventFiles
from lesioncam.training.metrics_file import MetricsFile
from lesioncam.training.mlflow_run import MLflowRun, open_mlflow_run
from lesioncam.training.progress import EpochReport


class Tracking:
    """Writes the metrics of a training to all of them. A write that fails is a warning.

    Args:
        bundle: absolute URI of the bundle to be.
        recipe: the settings, as in the bundle's training facts.
    """

    def __init__(self, bundle: str, recipe: Mapping[str, Any]):
        self._bundle, self._recipe = bundle, recipe
        self._files = (MetricsFile(bundle), EventFiles(bundle))
        self._mlflow_run: MLflowRun | None = None

    def begin(self, fingerprint: str) -> None:
        """Before the first report.

        Args:
            fingerprint: of stage 1's job: a training that is resumed has the same.
        """
        self._mlflow_run = open_mlflow_run(self._bundle, self._recipe, fingerprint)

    def update(self, report: EpochReport) -> None:
        """Add a report's epochs."""
        for file in self._files:
            file.update(report)
        if self._mlflow_run:
            self._mlflow_run.update(report)

    def finish(self, digest: str, metrics: Mapping[str, Any]) -> None:
        """Add the finished bundle's digest and metrics."""
        if self._mlflow_run:
            self._mlflow_run.finish(digest, metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._mlflow_run:
            self._mlflow_run.end("FAILED" if issubclass(kind, Exception) else "KILLED")
