"""Kills: of workers in both stages, of predictors between them, and of a whole run."""

import logging
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from lesioncam.errors import InputError
from lesioncam.storage.bundle import load_bundle
from lesioncam.training.job import TrainRequest, train
from lesioncam.training.progress import stage_name
from lesioncam.vision.network import VGGGAP
from tests.training.small import history, request, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

PREDICTOR = "_Stage1Predictor"
SEVEN = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def seven(synthetic: Path, bundle: Path) -> TrainRequest:
    """A run on seven classes, none of them the rest class, long enough for kills."""
    labels = pd.read_csv(synthetic / "labels.csv")[["image_id"]]
    for index, name in enumerate(SEVEN):
        labels[name] = (labels.index % 7 == index).astype(int)
    labels.to_csv(f"{bundle}.csv", index=False)
    long = {"stage1_epochs": 6, "stage2_epochs": 6, "batch_size": 4, "dropout": 0.5}
    base = request(synthetic, bundle, settings=long, workers=2)
    return replace(base, labels=f"{bundle}.csv")


@pytest.fixture(scope="module")
def undisturbed(synthetic: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    bundle = tmp_path_factory.mktemp("undisturbed") / "model"
    train(seven(synthetic, bundle))
    return bundle


def test_seven_classes_with_no_rest_class(undisturbed: Path) -> None:
    bundle = load_bundle(str(undisturbed))
    assert bundle.settings.classes == tuple(SEVEN)
    assert bundle.training["target_classes"] == SEVEN
    assert bundle.metrics["held_out"]["final"]["mean"]["auc"] is not None


def test_workers_killed_in_both_stages_and_between_change_nothing(
    synthetic: Path, undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disturbed = tmp_path / "disturbed"
    with caplog.at_level(logging.INFO, "lesioncam"), Killer(f"{disturbed}-checkpoints") as killer:
        train(seven(synthetic, disturbed))
    assert killer.killed == ["stage1", PREDICTOR, "stage2"]
    for stage in ("stage1", "stage2"):
        name = stage_name(stage)
        assert re.search(rf"{name}: worker [01] failed: Actor\w+Error: ", caplog.text)
        assert f"{name}: resuming from the checkpoint after epoch" in caplog.text
        first, second = history(undisturbed, stage), history(disturbed, stage)
        assert [entry["epoch"] for entry in second] == list(range(1, 7))
        np.testing.assert_allclose(
            [entry["loss"] for entry in second], [entry["loss"] for entry in first], rtol=1e-6
        )
    assert weights(disturbed) == weights(undisturbed)


class Killer(threading.Thread):
    """Kills a worker of each stage once it has a checkpoint, and a predictor between them."""

    def __init__(self, checkpoints: str):
        super().__init__(daemon=True)
        self.checkpoints = Path(checkpoints)
        self.killed: list[str] = []
        self._over = threading.Event()

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.02):
            for stage in ("stage1", "stage2"):
                # Written when Ray Train has registered a checkpoint, whose files come before.
                known = f"{stage}-*/checkpoint_manager_snapshot.json"
                if stage not in self.killed and list(self.checkpoints.glob(known)):
                    self.kill("RayTrainWorker", stage)
            if PREDICTOR not in self.killed and "stage1" in self.killed:
                self.kill(PREDICTOR, PREDICTOR)

    def kill(self, name: str, reason: str) -> None:
        """SIGKILL a process of that name which this process's own Ray started."""
        for process in children(psutil.Process()):
            try:
                if name in " ".join(process.cmdline()):
                    process.kill()
                    self.killed.append(reason)
                    return
            except psutil.Error:  # it ended meanwhile
                continue


def children(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def test_in_a_bucket_a_killed_worker_and_a_killed_run_are_resumed(
    synthetic: Path, bucket: str, tmp_path: Path
) -> None:
    fill(bucket, synthetic)
    bundle, log = f"s3://{bucket}/model", tmp_path / "log"
    recipe = "batch_size = 4\nval_fraction = 0.25\nlearning_rate = 0.02\nfrozen_blocks = 2\n"
    loaded = VGGGAP("tiny", 2).state_dict()
    torch.save(loaded, tmp_path / "w.pth")
    (tmp_path / "recipe.toml").write_text(recipe)
    command = [sys.executable, "-m", "lesioncam", "train", "--images", f"s3://{bucket}/images"]
    command += ["--labels", f"s3://{bucket}/two.csv", "--bundle", bundle, "--backbone", "tiny"]
    command += ["--epochs", "2,20", "--config", f"{tmp_path}/recipe.toml"]
    command += ["--weights", f"{tmp_path}/w.pth"]

    with started(command, log) as first:
        wait_for(log, "stage 2: epoch 4 of 20", first)  # a checkpoint is registered by then
        for process in children(psutil.Process(first.pid)):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
        wait_for(log, "stage 2: resuming from the checkpoint after epoch", first)
        driver = psutil.Process(first.pid)
        for process in [*children(driver), driver]:
            process.kill()
    with pytest.raises(InputError, match="--bundle"):
        load_bundle(bundle)

    with started(command, log) as again:
        assert again.wait(300) == 0, log.read_text()
    assert "--images: 1 images cannot be used: 1 empty" in log.read_text()
    assert "stage 1: epoch" not in log.read_text()  # it had ended before
    assert "stage 2: resuming from the checkpoint after epoch" in log.read_text()
    assert [entry["epoch"] for entry in history(bundle, "stage2")] == list(range(1, 21))
    trained = load_bundle(bundle)
    assert trained.settings.classes == ("malignant", "benign")
    counts = (trained.training["training_images"], trained.training["held_out_images"])
    assert sum(sum(part.values()) for part in counts) == 35
    for stage in (trained.stage1, trained.stage2):  # two blocks' convolutions stay as loaded
        same = [name for name in loaded if torch.equal(stage[name], loaded[name])]
        assert [name for name in same if name.endswith("weight")] == [
            "features.0.weight",
            "features.3.weight",
        ]


def fill(bucket: str, synthetic: Path) -> None:
    """Upload the images, one of them broken, and labels of two other classes."""
    client = boto3.client("s3")
    for path in (synthetic / "images").iterdir():
        client.upload_file(str(path), bucket, f"images/{path.name}")
    client.put_object(Bucket=bucket, Key="images/DRAWN_00000.jpg", Body=b"")
    labels = pd.read_csv(synthetic / "labels.csv").rename(columns={"image_id": "image"})
    labels["malignant"] = labels["melanoma"]
    labels["benign"] = 1 - labels["melanoma"]
    csv = labels[["image", "malignant", "benign"]].to_csv(index=False)
    client.put_object(Bucket=bucket, Key="two.csv", Body=csv.encode())


def started(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("w") as stderr:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return subprocess.Popen(command, env=environment, stderr=stderr)


def wait_for(log: Path, line: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process has logged it."""
    deadline = time.monotonic() + 240
    while line not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
