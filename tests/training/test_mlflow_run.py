"""MLflow: what a run has after a training, read back from a local store."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lesioncam.settings import TrainSettings
from lesioncam.training.mlflow_run import open_mlflow_run
from lesioncam.training.outcome import recipe_facts
from lesioncam.training.progress import EpochReport
from lesioncam.training.tracking import Tracking

RECIPE = {"seed": 7, "weights": "w.pth", "crop": {"threshold": 0.5}}
METRICS = {"held_out": {"final": {"mean": {"auc": 0.875, "classes": ["a", "b"]}, "a+b": {"n": 9}}}}


def entry(epoch: int, loss: float = 0.5) -> dict[str, Any]:
    return {"epoch": epoch, "loss": loss, "mean_auc": None}


def report(stage: str, *history: dict[str, Any]) -> EpochReport:
    return EpochReport(stage, 3, history, 60.0)


def tracking(bundle: Path, **changes: Any) -> Tracking:
    made = Tracking(str(bundle), RECIPE | changes)
    made.begin("fingerprint")
    return made


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is drawn: matplotlib takes a second."""
    monkeypatch.setattr("lesioncam.training.metrics_file.draw_curves", lambda _: b"")


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an empty store."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{tmp_path}/mlflow")
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return mlflow.MlflowClient()


def runs(client: Any, experiment: str = "lesioncam") -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id]))


def steps(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    history = client.get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def test_a_training_is_a_run(client: Any, tmp_path: Path) -> None:
    with tracking(tmp_path / "model") as training:
        training.update(report("stage1", entry(1, 0.5)))
        training.update(report("stage1", entry(1, 0.5), entry(2, 0.25)))
        training.update(report("stage2", entry(1, 0.125)))
        (run,) = runs(client)
        assert run.info.status == "RUNNING"
        training.finish("a digest", METRICS)
    (run,) = runs(client)
    assert (run.info.run_name, run.info.status) == ("model", "FINISHED")
    assert run.data.params["seed"] == "7"
    assert run.data.params["crop.threshold"] == "0.5"
    assert run.data.params["weights"] == "w.pth"
    assert run.data.tags["lesioncam.model"] == "a digest"
    assert steps(client, run, "stage1.loss") == [(1, 0.5), (2, 0.25)]
    assert steps(client, run, "stage2.loss") == [(1, 0.125)]
    assert steps(client, run, "held_out.final.mean.auc") == [(0, 0.875)]
    assert steps(client, run, "held_out.final.a_b.n") == [(0, 9)]
    assert "stage1.mean_auc" not in run.data.metrics  # undefined
    assert str(tmp_path) not in str(run.data.to_dictionary())
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"  # jobs log JSON lines


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_resumed_training_continues_its_run(
    client: Any, tmp_path: Path, error: type[BaseException], status: str
) -> None:
    def interrupted() -> None:
        with tracking(tmp_path / "model") as training:
            training.update(report("stage1", entry(1, 0.5)))
            raise error

    with pytest.raises(error):
        interrupted()
    (run,) = runs(client)
    assert run.info.status == status
    with tracking(tmp_path / "model") as training:
        training.update(report("stage1", entry(1, 0.5), entry(2, 0.25)))
        training.finish("a digest", METRICS)
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert steps(client, run, "stage1.loss") == [(1, 0.5), (2, 0.25)]


def test_another_recipe_or_a_finished_training_is_another_run(client: Any, tmp_path: Path) -> None:
    with tracking(tmp_path / "model") as finished:
        finished.update(report("stage1", entry(1)))
        finished.finish("a digest", METRICS)
    for seed in (7, 8):
        with tracking(tmp_path / "model", seed=seed) as unfinished:
            unfinished.update(report("stage1", entry(1)))
    assert len(runs(client)) == 3


def test_mlflows_own_variable_names_the_experiment(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lesions")
    tracking(tmp_path / "model").update(report("stage1", entry(1)))
    assert len(runs(client, "lesions")) == 1


def test_a_store_that_does_not_answer_is_a_warning(
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    with caplog.at_level(logging.WARNING, "lesioncam"), tracking(tmp_path / "model") as training:
        training.update(report("stage1", entry(1)))
        training.finish("a digest", METRICS)
    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert message.startswith("MLflow could not be written to: ")
        assert "secret" not in message
        assert "\n" not in message


def test_what_could_not_be_written_follows_with_the_next_report(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = tracking(tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(type(client), "log_batch", _refuse)
        training.update(report("stage1", entry(1, 0.5)))
    training.update(report("stage1", entry(1, 0.5), entry(2, 0.25)))
    (run,) = runs(client)
    assert steps(client, run, "stage1.loss") == [(1, 0.5), (2, 0.25)]
    assert run.data.params["seed"] == "7"


def _refuse(*_: object, **__: object) -> None:
    raise OSError("no space left on device")


def test_without_the_variable_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert open_mlflow_run("/bundle", {}, "fingerprint") is None


def test_without_mlflow_it_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with caplog.at_level(logging.WARNING, "lesioncam"):
        assert open_mlflow_run("/bundle", {}, "fingerprint") is None
    (warning,) = caplog.messages
    assert warning.startswith("MLFLOW_TRACKING_URI is set, but MLflow cannot be imported (")
    assert warning.endswith("install it with pip install 'lesioncam[mlflow]'")


def test_the_recipe_has_no_path_of_the_weights() -> None:
    assert recipe_facts(TrainSettings(weights="/home/someone/w.pth"))["weights"] == "w.pth"
