"""MLflow run: a training's recipe, metrics and digest, where `MLFLOW_TRACKING_URI` is set.

Nothing here ends a training: what fails is a warning, and the next report makes up for it.
"""

import hashlib
import json
import logging
import os
import re
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lesioncam import __version__
from lesioncam.settings import flat
from lesioncam.training.progress import EpochReport, numbers

log = logging.getLogger("lesioncam")

_EXPERIMENT = "lesioncam"  # where neither of MLflow's own variables names one
_KEY_TAG = "lesioncam.training"
_MAX_METRICS = 1000  # that a server takes at once
# MLflow's own settings. An unreachable server must not hold up the lines of the epochs.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # where jobs log JSON lines
}


def open_mlflow_run(bundle: str, recipe: Mapping[str, Any], fingerprint: str) -> "MLflowRun | None":
    """The run of a training; None where MLflow is not configured, or not installed (a warning).

    Args:
        bundle: absolute URI of the bundle to be. Its last part names the run.
        recipe: the settings, as in the bundle's training facts.
        fingerprint: of stage 1's job.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow  # noqa: F401, PLC0415  optional
    except ImportError as error:
        log.warning(
            "MLFLOW_TRACKING_URI is set, but MLflow cannot be imported (%s); install it with "
            "pip install 'lesioncam[mlflow]'",
            error,
        )
        return None
    key = hashlib.sha256(json.dumps([bundle, recipe, fingerprint]).encode()).hexdigest()[:16]
    return MLflowRun(bundle.rpartition("/")[2], recipe, key)


class MLflowRun:
    """One run in MLflow. It is created with the first report, or the unfinished one is continued.

    Args:
        name: of the run.
        recipe: its parameters.
        key: the same for a training that is resumed, and for no other.
    """

    def __init__(self, name: str, recipe: Mapping[str, Any], key: str):
        self._name, self._recipe, self._key = name, recipe, key
        self._client: Any = None
        self._run_id = ""
        self._logged: dict[tuple[str, int], float] = {}

    def update(self, report: EpochReport) -> None:
        """Add a report's epochs; the step of a metric is its epoch."""
        if not report.history:
            return
        with _warned():
            self._start()
            self._log(
                {
                    (f"{report.stage}.{name}", entry["epoch"]): value
                    for entry in report.history
                    for name, value in numbers(entry).items()
                }
            )

    def finish(self, digest: str, metrics: Mapping[str, Any]) -> None:
        """Add the bundle's digest and metrics, and end the run."""
        with _warned():
            self._start()
            self._client.set_tag(self._run_id, "lesioncam.model", digest)
            self._log({(name, 0): value for name, value in numbers(dict(flat(metrics))).items()})
            self._client.set_terminated(self._run_id, "FINISHED")

    def end(self, status: str) -> None:
        """End a run that did not finish: `FAILED` or `KILLED`."""
        if self._run_id:
            with _warned():
                self._client.set_terminated(self._run_id, status)

    def _start(self) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415  optional
        from mlflow.entities import Param  # noqa: PLC0415  likewise

        if self._run_id:
            return
        client = self._client = MlflowClient()
        experiment = _experiment(client)
        unfinished = client.search_runs(
            [experiment],
            f"tags.`{_KEY_TAG}` = '{self._key}' and attributes.status != 'FINISHED'",
            max_results=1,
        )
        if unfinished:
            run = unfinished[0]
            client.update_run(run.info.run_id, status="RUNNING")
            for name in run.data.metrics:
                for metric in client.get_metric_history(run.info.run_id, name):
                    self._logged[name, metric.step] = metric.value
        else:
            tags = {_KEY_TAG: self._key, "lesioncam.version": __version__}
            run = client.create_run(experiment, tags=tags, run_name=self._name)
        parameters = [Param(name, str(value)) for name, value in flat(self._recipe)]
        client.log_batch(run.info.run_id, params=parameters)  # the same again is no error
        self._run_id = run.info.run_id

    def _log(self, values: Mapping[tuple[str, int], float]) -> None:
        """Log values by name and step, those that the run does not have yet."""
        from mlflow.entities import Metric  # noqa: PLC0415  optional

        now = int(time.time() * 1000)
        named = {(_metric_name(name), step): value for (name, step), value in values.items()}
        new = [(key, value) for key, value in named.items() if self._logged.get(key) != value]
        for start in range(0, len(new), _MAX_METRICS):
            chunk = new[start : start + _MAX_METRICS]
            metrics = [Metric(name, value, now, step) for (name, step), value in chunk]
            self._client.log_batch(self._run_id, metrics=metrics)
            self._logged.update(chunk)


def _experiment(client: Any) -> str:
    """The id of the experiment that MLflow's own variables name."""
    if by_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return by_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def _metric_name(name: str) -> str:
    """A name without the one sign that class names may have and MLflow's names may not."""
    return name.replace("+", "_")


@contextmanager
def _warned() -> Iterator[None]:
    """Log what goes wrong, in one line without a password."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  optional

    try:
        yield
    except (MlflowException, OSError, ImportError) as error:  # requests' errors are OSErrors
        text = re.sub(r"//[^/@\s]+@", "//", str(error))
        log.warning("MLflow could not be written to: %s", textwrap.shorten(text, 300))
