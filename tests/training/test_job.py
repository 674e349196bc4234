"""The whole job, by real trainings that tests share, and those of its steps that need Ray Train."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch

from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.bundle import load_bundle
from lesioncam.storage.lease import LEASE_FILE
from lesioncam.storage.uris import open_store
from lesioncam.training.fit import fit, remove_checkpoints
from lesioncam.training.job import checkpoints_of, train
from lesioncam.training.metrics_file import MetricsFile
from lesioncam.training.stage_jobs import stage1_job
from tests.training.small import Prepared, history, hold_lease, request

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def trained(
    synthetic: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, dict[str, Any]]:
    """A bundle that one worker trained, under a relative path, and what `train` returned."""
    folder = tmp_path_factory.mktemp("trained")
    validation = {"val_images": f"{synthetic}/images", "val_labels": f"{synthetic}/val.csv"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / "model", train(request(synthetic, "model", **validation))


def change(state: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """How training changed a network's weights, as one vector."""
    return torch.cat([(state[name] - before[name]).flatten() for name in sorted(before)])


def test_one_command_writes_a_bundle_with_metrics_and_facts(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    folder, returned = trained
    bundle = load_bundle(str(folder))
    assert bundle.digest == returned["model"]
    assert returned["bundle"] == str(folder)
    assert bundle.settings.classes == ("melanoma", "seborrheic_keratosis", "nevus")
    facts = bundle.training
    assert facts["training_images"] == dict.fromkeys(bundle.settings.classes, 7)
    assert facts["held_out_images"] == dict.fromkeys(bundle.settings.classes, 2)
    assert 0 < facts["masks_given"] < 20  # some of the 20 are of held-out images
    assert 18 <= facts["masks_given"] + facts["masks_estimated"] < 21  # empty ones train nothing
    assert [(entry["epoch"], entry["size"]) for entry in history(folder)] == [(1, 80), (2, 96)]
    assert facts["stage1"]["best_epoch"] == 2  # the one at full resolution
    assert set(bundle.metrics) == {"held_out", "validation"}
    assert bundle.metrics["held_out"]["localization"]["masks"] > 0
    assert bundle.metrics["validation"]["final"]["mean"]["n"] == 9
    assert bundle.quantization is not None
    assert len(bundle.quantization.stage1) == len(bundle.quantization.stage2) == 3
    assert any(
        not np.array_equal(bundle.stage1[name], bundle.stage2[name]) for name in bundle.stage1
    )
    card = (folder / "README.md").read_text()
    for part in ("Not a medical device", "## Limits", "@article{jia2017skin", "lesion masks"):
        assert part in card
    assert "DRAWN_" not in card + (folder / "bundle.json").read_text()
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["stage"].tolist() == ["stage1", "stage1", "stage2"]
    assert metrics["loss"].tolist() == [
        entry["loss"] for stage in ("stage1", "stage2") for entry in history(folder, stage)
    ]
    assert (metrics["waited_seconds"] <= metrics["seconds"]).all()
    assert metrics["prepared_seconds"].between(0, metrics["seconds"], inclusive="neither").all()
    events = [len(list(folder.glob(f"tensorboard/{stage}/*"))) for stage in ("stage1", "stage2")]
    assert events == [2, 1]  # a file an epoch


def test_a_finished_bundle_is_refused(
    synthetic: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    with pytest.raises(InputError, match=r"--bundle: .* finished bundle"):
        train(request(synthetic, trained[0]))


def test_two_workers_train_on_the_same_batches_as_one(
    trained: tuple[Path, dict[str, Any]], prepared: Prepared, tmp_path: Path
) -> None:
    setup = replace(
        prepared.setup, bundle=f"{tmp_path}/model", workers=replace(prepared.setup.workers, count=2)
    )
    hold_lease(tmp_path / "model", setup.run_id)
    job = stage1_job(setup, prepared.dataset, prepared.initial)
    two = fit(job, f"{tmp_path}/checkpoints", MetricsFile(setup.bundle).update)
    first = change(load_bundle(str(trained[0])).stage1, prepared.initial)
    assert (change(two.best, prepared.initial) - first).norm() < 0.2 * first.norm()
    for name, tolerance in (("loss", 0.02), ("mean_auc", 0.1)):  # each evaluated half the images
        found, expected = (
            [one[name] for one in past] for past in (two.history, history(trained[0]))
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_predictors_reach_the_metrics_of_the_best_epochs(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    bundle = load_bundle(str(trained[0]))
    for stage in ("stage1", "stage2"):
        best = history(trained[0], stage)[bundle.training[stage]["best_epoch"] - 1]
        assert best["mean_auc"] == bundle.metrics["held_out"][stage]["mean"]["auc"]
    assert not Path(f"{trained[0]}-checkpoints").exists()
    assert not open_store(str(trained[0])).exists(LEASE_FILE)


def test_a_loss_that_is_not_a_number_is_bad_input(prepared: Prepared, tmp_path: Path) -> None:
    nan = {name: tensor * float("nan") for name, tensor in prepared.initial.items()}
    setup = replace(prepared.setup, bundle=f"{tmp_path}/model")
    hold_lease(tmp_path / "model", setup.run_id)
    job = stage1_job(setup, prepared.dataset, nan)
    message = "stage 1 diverged: the loss of epoch 1 is not a number; set a lower learning_rate"
    with pytest.raises(InputError, match=message):
        fit(job, f"{tmp_path}/checkpoints", MetricsFile(setup.bundle).update)


def test_a_run_without_the_lease_writes_no_checkpoint(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = replace(prepared.setup, bundle=f"{tmp_path}/model")
    hold_lease(tmp_path / "model", "another run")
    job = stage1_job(setup, prepared.dataset, prepared.initial)
    with pytest.raises(RunFailedError, match=r"stage 1 failed: run .* no longer holds "):
        fit(job, f"{tmp_path}/checkpoints", MetricsFile(setup.bundle).update)
    assert "worker 0 failed" not in caplog.text  # it is not retried
    assert not list(tmp_path.glob("checkpoints/stage1-*/checkpoint*/*"))
    assert json.loads((tmp_path / "model" / LEASE_FILE).read_text())["run_id"] == "another run"


def test_a_bundle_that_another_run_works_on_is_refused(synthetic: Path, tmp_path: Path) -> None:
    hold_lease(tmp_path / "model", "run-0")
    with pytest.raises(InputError, match=r"--bundle: .* is being written by run run-0"):
        train(request(synthetic, tmp_path / "model"))


def test_a_failure_in_ray_is_one_line(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise ray.exceptions.WorkerCrashedError

    monkeypatch.setattr("lesioncam.training.job.make_dataset", crash)
    with pytest.raises(RunFailedError, match=r"failed in Ray .* run the same command again"):
        train(request(synthetic, tmp_path / "model"))


def test_bad_input_writes_nothing(synthetic: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "model"
    with pytest.raises(InputError, match="--gpu: 2 workers need a GPU each"):
        train(request(synthetic, bundle, workers=2, gpu=True))
    with pytest.raises(InputError, match="--workers: 9 workers cannot share a batch"):
        train(request(synthetic, bundle, workers=9))
    assert not list(tmp_path.iterdir())


def test_bundles_with_one_checkpoint_dir_share_no_checkpoints(
    synthetic: Path, tmp_path: Path
) -> None:
    below = f"{tmp_path}/checkpoints"
    one, two = (
        checkpoints_of(request(synthetic, tmp_path / folder / "model", checkpoint_dir=below))
        for folder in ("one", "two")
    )
    assert one != two
    same = f"{tmp_path}/one/../one/model/"
    assert checkpoints_of(request(synthetic, same, checkpoint_dir=below)) == one
    bucket = [
        checkpoints_of(request(synthetic, bundle, checkpoint_dir="s3://bucket/checkpoints/"))
        for bundle in ("s3://bucket/model", "s3://bucket/model/", "s3://bucket/other/model")
    ]
    assert bucket[0] == bucket[1] != bucket[2]
    assert all(uri.startswith("s3://bucket/checkpoints/model-") for uri in bucket)
    for uri in (one, two):
        Path(uri, "stage1-fingerprint").mkdir(parents=True)
    remove_checkpoints(one)
    assert not Path(one).exists()
    remove_checkpoints(one)  # nothing is there any more
    assert Path(two, "stage1-fingerprint").is_dir()
    Path(two, "notes.txt").touch()
    remove_checkpoints(two)
    assert [path.name for path in Path(two).iterdir()] == ["notes.txt"]
