"""Kills: of a worker, of a predictor, and of a whole run, which the same command then continues."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pandas as pd
import psutil
import pytest
import torch

from lesioncam.errors import InputError
from lesioncam.storage.bundle import load_bundle
from lesioncam.vision.network import VGGGAP
from tests.test_examples import run_example
from tests.training.small import history, weights

pytestmark = pytest.mark.slow

SEVEN = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
EPOCHS = (6, 12)
RECIPE = {
    "stage1_epochs": EPOCHS[0],
    "stage2_epochs": EPOCHS[1],
    "batch_size": 4,
    "val_fraction": 0.25,
    "learning_rate": 0.02,
    "frozen_blocks": 2,
}


@pytest.fixture(scope="module")
def collection(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of seven classes, one image empty; their labels, weights and a recipe."""
    folder = tmp_path_factory.mktemp("collection")
    (folder / "images").mkdir()
    for path in (synthetic / "images").iterdir():
        (folder / "images" / path.name).write_bytes(path.read_bytes())
    labels = pd.read_csv(synthetic / "labels.csv")[["image_id"]]
    labels["diagnosis"] = [SEVEN[index % 7] for index in labels.index]
    labels.to_csv(folder / "seven.csv", index=False)
    (folder / "images" / "DRAWN_00000.jpg").write_bytes(b"")
    torch.save(VGGGAP("tiny", 2).state_dict(), folder / "w.pth")
    settings = {**RECIPE, "backbone": "tiny", "weights": str(folder / "w.pth")}
    lines = (f"{name} = {json.dumps(value)}" for name, value in settings.items())
    (folder / "recipe.toml").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def undisturbed(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the example of the Python API trains."""
    folder = tmp_path_factory.mktemp("undisturbed")
    printed = run_example(
        "train_on_csv.py", collection / "images", collection / "seven.csv", "model",
        "--image-column", "image_id", "--settings", collection / "recipe.toml", cwd=folder,
    )  # fmt: skip
    assert "mean AUC on held-out images: 0." in printed
    return folder / "model"


def test_seven_classes_in_one_column(undisturbed: Path, collection: Path) -> None:
    bundle = load_bundle(str(undisturbed))
    assert bundle.settings.classes == tuple(SEVEN)
    assert bundle.training["target_classes"] == SEVEN
    assert bundle.metrics["held_out"]["final"]["mean"]["auc"] is not None
    counts = (bundle.training["training_images"], bundle.training["held_out_images"])
    assert sum(sum(part.values()) for part in counts) == 35
    loaded = torch.load(collection / "w.pth")
    for stage in (bundle.stage1, bundle.stage2):  # two blocks' convolutions stay as loaded
        same = [name for name in loaded if torch.equal(stage[name], loaded[name])]
        assert [name for name in same if name.endswith("weight")] == [
            "features.0.weight",
            "features.3.weight",
        ]


def test_kills_change_nothing(
    collection: Path, undisturbed: Path, bucket: str, tmp_path: Path
) -> None:
    fill(bucket, collection)
    bundle, log = f"s3://{bucket}/model", tmp_path / "log"
    command = [sys.executable, "-m", "lesioncam", "train", "--images", f"s3://{bucket}/images"]
    command += ["--labels", f"s3://{bucket}/seven.csv", "--class-column", "diagnosis"]
    command += ["--bundle", bundle, "--config", f"{collection}/recipe.toml"]

    with started(command, log) as first:
        wait_for(log, "stage 1: epoch 2 of 6", first)  # a checkpoint is registered by then
        kill(first, "RayTrainWorker")
        wait_for(log, "stage 1: resuming from the checkpoint after epoch", first)
        wait_for(log, "stage 1: epoch 6 of 6", first)
        kill(first, "_Stage1Predictor")
        wait_for(log, "stage 2: epoch 4 of 12", first)
        driver = psutil.Process(first.pid)
        for process in [*driver.children(recursive=True), driver]:
            process.kill()
    assert ": worker " in log.read_text()
    with pytest.raises(InputError, match="--bundle"):
        load_bundle(bundle)

    with started(command, log) as again:
        assert again.wait(300) == 0, log.read_text()
    assert "--images: 1 images cannot be used: 1 empty" in log.read_text()
    assert "stage 1: epoch" not in log.read_text()  # it had ended before
    assert "stage 2: resuming from the checkpoint after epoch" in log.read_text()
    for stage, epochs in zip(("stage1", "stage2"), EPOCHS, strict=True):
        assert [entry["epoch"] for entry in history(bundle, stage)] == list(range(1, epochs + 1))
    downloaded = tmp_path / "model"
    downloaded.mkdir()
    boto3.client("s3").download_file(bucket, "model/bundle.json", f"{downloaded}/bundle.json")
    assert weights(downloaded) == weights(undisturbed)


def fill(bucket: str, collection: Path) -> None:
    """Upload the images and labels."""
    client = boto3.client("s3")
    for path in (collection / "images").iterdir():
        client.upload_file(str(path), bucket, f"images/{path.name}")
    client.upload_file(str(collection / "seven.csv"), bucket, "seven.csv")


def kill(driver: "subprocess.Popen[bytes]", name: str) -> None:
    """SIGKILL the first process of that name which a driver's Ray started."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert driver.poll() is None
        for process in psutil.Process(driver.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    process.kill()
                    return
            except psutil.Error:  # it ended meanwhile
                continue
        time.sleep(0.02)
    raise AssertionError(f"no process {name}")


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
