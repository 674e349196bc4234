"""Jobs on several machines, which come and go."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from lesioncam.demo import draw_images
from lesioncam.predict import load
from lesioncam.storage.bundle import load_bundle
from tests.cluster.conftest import BUCKET, Cluster
from tests.scores import assert_same_scores
from tests.test_examples import run_example
from tests.training.small import history, weights

if TYPE_CHECKING:
    import subprocess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

IMAGES = 40
SEVEN = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
RECIPE = Path(__file__).with_name("recipe.toml")
EPOCHS = 16  # of each stage: long enough to be disturbed in
COPIES = 14  # of each to score: far more than the nodes score between two polls of the parts
_TIMEOUT_S = 480


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of seven classes, one of them empty, and their labels."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_images(folder, IMAGES, seed=0)
    labels = pd.read_csv(folder / "labels.csv")[["image_id"]]
    labels["diagnosis"] = [SEVEN[index % 7] for index in labels.index]
    labels.to_csv(folder / "seven.csv", index=False)
    (folder / "images" / "DRAWN_00000.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def undisturbed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the example of the Python API trains here."""
    folder = tmp_path_factory.mktemp("undisturbed")
    printed = run_example(
        "train_on_csv.py", drawn / "images", drawn / "seven.csv", "model",
        "--image-column", "image_id", "--settings", RECIPE, "--workers", 2, cwd=folder,
    )  # fmt: skip
    assert "mean AUC on held-out images: 0." in printed
    return folder / "model"


@pytest.fixture(scope="module")
def bundle(cluster: Cluster, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in the bucket, downloaded: its training lost a node, its driver and a predictor."""
    folder = tmp_path_factory.mktemp("train")
    model, s3 = folder / "model", cluster.s3()
    s3.upload_file(str(drawn / "seven.csv"), BUCKET, "seven.csv")
    for path in (drawn / "images").iterdir():
        s3.upload_file(str(path), BUCKET, f"train/{path.name}")
    flags = ["--images", f"s3://{BUCKET}/train", "--labels", f"s3://{BUCKET}/seven.csv"]
    flags += ["--class-column", "diagnosis", "--config", str(RECIPE)]
    flags += ["--bundle", f"s3://{BUCKET}/model", "--workers", "2"]
    flags += ["--no-gpu"]  # the pretended GPU cannot train
    log = folder / "disturbed"
    with cluster.submitted(log, "jobs/train.py", *flags) as job:
        wait_for(log, f"stage 1: epoch 3 of {EPOCHS}", job)
        assert cluster.gpu_node is not None
        cluster.gpu_node.cut_power()
        cluster.gpu_node = cluster.join("--num-cpus=1", "--num-gpus=1")
        wait_for(log, "stage 1: resuming from the checkpoint after epoch", job)
        cluster.kill("jobs/train.py")
        assert job.wait(_TIMEOUT_S) != 0
    printed = log.read_text()
    assert "2 workers on CPU" in printed
    cluster.fetch(BUCKET, "model/", model)
    assert not (model / "bundle.json").exists()

    log = folder / "continued"
    with cluster.submitted(log, "jobs/train.py", *flags) as job:
        cluster.kill("_Stage1Predictor")
        assert job.wait(_TIMEOUT_S) == 0, log.read_text()
    printed += log.read_text()
    assert "--images: 1 images cannot be used: 1 empty" in log.read_text()
    assert "stage 1: epoch 1 of" not in log.read_text()
    assert "stage 1: resuming from the checkpoint after epoch" in log.read_text()
    assert "DRAWN_" not in printed  # as every image's name begins
    cluster.fetch(BUCKET, "model/", model)
    return model


def wait_for(log: Path, line: str, job: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while line not in log.read_text():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def wait_for_a_part(cluster: Cluster, job: "subprocess.Popen[bytes]") -> None:
    """Wait until the first scores are in the bucket."""
    deadline = time.monotonic() + _TIMEOUT_S
    s3 = cluster.s3()
    while not s3.list_objects_v2(Bucket=BUCKET, Prefix="scores/part-")["KeyCount"]:
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def predict(bundle: Path | str, images: Path) -> pd.DataFrame:
    """The rows of a folder's images, made in this process."""
    return load(str(bundle), device="cpu").predict(sorted(map(str, images.iterdir())))


def test_a_submission_without_the_token_is_refused(cluster: Cluster) -> None:
    for token in (None, "not-the-token-of-this-cluster-at-all"):
        refused = cluster.run("-c", "print('in')", token=token)
        assert refused.returncode != 0
        assert "in\n" not in refused.stdout
    assert "in\n" in cluster.run("-c", "print('in')").stdout


def test_seven_classes_in_one_column(undisturbed: Path) -> None:
    trained = load_bundle(str(undisturbed))
    assert trained.settings.classes == tuple(SEVEN)
    assert trained.training["target_classes"] == SEVEN
    assert trained.metrics["held_out"]["final"]["mean"]["auc"] is not None
    counts = (trained.training["training_images"], trained.training["held_out_images"])
    assert sum(sum(part.values()) for part in counts) == IMAGES - 1


def test_a_lost_node_and_killed_processes_change_nothing_of_a_training(
    bundle: Path, undisturbed: Path
) -> None:
    for stage in ("stage1", "stage2"):
        epochs = [entry["epoch"] for entry in history(bundle, stage)]
        assert epochs == list(range(1, EPOCHS + 1))
    assert weights(bundle) == weights(undisturbed)


def test_a_driver_gives_up_a_silent_node_soon(cluster: Cluster) -> None:
    code = (
        "import ray, lesioncam.cluster as cluster; connection = cluster.connected(); "
        "connection.__enter__(); config = ray._config; "
        "print(config.grpc_client_keepalive_time_ms(), config.grpc_client_keepalive_timeout_ms())"
    )
    assert "60000 20000" in cluster.run("-c", code).stdout


def test_a_refused_run_ends_as_stopped_which_kuberay_does_not_retry(cluster: Cluster) -> None:
    flags = ["--images", f"s3://{BUCKET}/copies", "--bundle", f"s3://{BUCKET}/nowhere"]
    flags += ["--output", f"s3://{BUCKET}/refused"]
    done = cluster.run("jobs/kuberay.py", "score", *flags)
    assert "--bundle: s3://clinic/nowhere/bundle.json" in done.stdout
    assert re.search(r"Job '\w+' was stopped", done.stdout), done.stdout


def test_nodes_come_and_go_and_the_rows_are_those_of_the_python_api(
    cluster: Cluster, drawn: Path, bundle: Path, tmp_path: Path
) -> None:
    for path in (drawn / "images").iterdir():
        for copy in range(COPIES):
            cluster.s3().upload_file(str(path), BUCKET, f"copies/{copy}/{path.name}")
    flags = ["--images", f"s3://{BUCKET}/copies", "--bundle", f"s3://{BUCKET}/model"]
    flags += ["--output", f"s3://{BUCKET}/scores", "--gpus", "0"]
    log = tmp_path / "log"
    with cluster.submitted(log, "jobs/score.py", *flags) as job:
        wait_for(log, f"{IMAGES * COPIES:,} to score", job)
        wait_for_a_part(cluster, job)
        assert cluster.cpu_node is not None
        cluster.cpu_node.cut_power()
        cluster.join("--num-cpus=2")
        assert job.wait(_TIMEOUT_S) == 0, log.read_text()
    listed, empty = IMAGES * COPIES, COPIES
    assert f"{listed:,} images listed: {listed - empty:,} ok, {empty} failed" in log.read_text()

    cluster.fetch(BUCKET, "scores/", tmp_path / "scores")
    remote, local = pd.read_parquet(tmp_path / "scores"), predict(bundle, drawn / "images")
    assert remote["uri"].is_unique
    assert_same_scores(remote, local.loc[local.index.repeat(COPIES)], by="image_id")
