"""Jobs on several machines: an autoscaling cluster, and one of fixed nodes."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from safetensors.torch import save_file

from lesioncam.demo import draw_images
from lesioncam.predict import load
from lesioncam.storage.bundle import load_bundle
from lesioncam.vision.network import VGGGAP
from tests.cluster.conftest import BUCKET, Cluster
from tests.scores import assert_same_scores

if TYPE_CHECKING:
    import subprocess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

IMAGES = 40
COPIES = 14  # of each to score: far more than the nodes score between two polls of the parts
_TIMEOUT_S = 480
_STORE = 300_000_000  # bytes
_MAPS = ("auth", "docker", "file_mounts")
_LISTS = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
    "rsync_filter", "rsync_exclude",
)  # fmt: skip
# Required by Ray's schema, unused by this cloud.
_UNUSED: dict[str, Any] = {key: {} for key in _MAPS} | {key: [] for key in _LISTS}


@pytest.fixture(scope="module")
def drawn(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images here and in the bucket, and many copies of them in the bucket to score."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_images(folder, IMAGES, seed=0)
    s3 = cluster.s3()
    s3.upload_file(str(folder / "labels.csv"), BUCKET, "labels.csv")
    for path in (folder / "images").iterdir():
        s3.upload_file(str(path), BUCKET, f"train/{path.name}")
        for copy in range(COPIES):
            s3.upload_file(str(path), BUCKET, f"copies/{copy}/{path.name}")
    return folder


@pytest.fixture(scope="module")
def bundle(cluster: Cluster, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained by a job that lost a node, downloaded from the bucket."""
    folder = tmp_path_factory.mktemp("train")
    log, weights = folder / "log", folder / "tiny.safetensors"
    save_file(VGGGAP("tiny", 3).state_dict(), weights)
    cluster.s3().upload_file(str(weights), BUCKET, weights.name)
    flags = ["--images", f"s3://{BUCKET}/train", "--labels", f"s3://{BUCKET}/labels.csv"]
    flags += ["--bundle", f"s3://{BUCKET}/model", "--backbone", "tiny", "--epochs", "16,1"]
    flags += ["--weights", f"s3://{BUCKET}/tiny.safetensors"]
    flags += ["--workers", "2", "--no-gpu"]  # the pretended GPU cannot train
    with cluster.submitted(log, "jobs/train.py", *flags, "--val-fraction", "0.25") as job:
        wait_for(log, "stage 1: epoch 3 of 16", job)
        assert cluster.gpu_node is not None
        cluster.gpu_node.cut_power()
        cluster.gpu_node = cluster.join("--num-cpus=1", "--num-gpus=1")
        assert job.wait(_TIMEOUT_S) == 0, log.read_text()
    assert "2 workers on CPU" in log.read_text()
    assert "stage 1: resuming from the checkpoint after epoch" in log.read_text()
    assert "DRAWN_" not in log.read_text()  # as every image's name begins
    folder = tmp_path_factory.mktemp("bundle") / "model"
    cluster.fetch(BUCKET, "model/", folder)
    return folder


def wait_for(log: Path, line: str, job: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while line not in log.read_text():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def parts(cluster: Cluster) -> int:
    """The number of part files."""
    return cluster.s3().list_objects_v2(Bucket=BUCKET, Prefix="scores/part-")["KeyCount"]


def wait_for_parts(cluster: Cluster, count: int, job: "subprocess.Popen[bytes]") -> None:
    """Wait for `count` part files."""
    deadline = time.monotonic() + _TIMEOUT_S
    while parts(cluster) < count:
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def predict(bundle: Path | str, images: Path) -> pd.DataFrame:
    """The rows of a folder's images, made in this process."""
    return load(str(bundle), device="cpu").predict(sorted(map(str, images.iterdir())))


def group(max_workers: int, **resources: int) -> dict[str, Any]:
    """A group of zero to `max_workers` nodes."""
    offered = {**resources, "object_store_memory": _STORE}
    return {"resources": offered, "node_config": {}, "min_workers": 0, "max_workers": max_workers}


def test_nodes_start_only_for_work_and_few_images_start_one_gpu(
    network: Callable[..., Cluster], bundle_uri: str, tmp_path: Path
) -> None:
    """Only a head until there is work, as under KubeRay.

    The autoscaler is Ray's real one; the nodes it adds run on the head's machine.
    """
    cluster = network(
        {
            **_UNUSED,
            "cluster_name": "growing",
            "provider": {
                "type": "fake_multinode",
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
            },
            "max_workers": 4,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 5,
            "file_mounts_sync_continuously": False,
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": group(0) | {"resources": {"CPU": 0}},
                "decode": group(2, CPU=2),
                "gpu": group(2, CPU=2, GPU=1),
            },
        }
    )
    s3 = cluster.s3()
    s3.create_bucket(Bucket="growing")
    draw_images(tmp_path, 12, seed=0)
    for path in (tmp_path / "images").iterdir():
        s3.upload_file(str(path), "growing", f"images/{path.name}")
    for path in Path(bundle_uri).iterdir():
        s3.upload_file(str(path), "growing", f"model/{path.name}")

    flags = ["--bundle", "s3://growing/model", "--output", "s3://growing/scores"]
    assert len(cluster.nodes()) == 1
    images = ["--images", "s3://growing/images"]
    done = cluster.run("jobs/score.py", *images, *flags, "--gpus", "2")
    assert "12 images listed: 12 ok, 0 failed" in done.stdout, done.stdout
    (run,) = (
        item["Key"]
        for item in s3.list_objects_v2(Bucket="growing", Prefix="scores/_lesioncam/runs")[
            "Contents"
        ]
        if item["Key"].endswith("run.json")
    )
    plan = json.loads(s3.get_object(Bucket="growing", Key=run)["Body"].read())["plan"]
    assert plan["actor_gpus"] == [0, 0]  # torch cannot use this GPU, which nobody has
    assert sum(node["resources_total"].get("GPU", 0) for node in cluster.nodes()) == 1
    cluster.head.cut_power()

    cluster.fetch("growing", "scores/", tmp_path / "scores")
    local = predict(bundle_uri, tmp_path / "images")
    assert_same_scores(pd.read_parquet(tmp_path / "scores"), local, by="image_id")


def test_a_submission_without_the_token_is_refused(cluster: Cluster) -> None:
    for token in (None, "not-the-token-of-this-cluster-at-all"):
        refused = cluster.run("-c", "print('in')", token=token)
        assert refused.returncode != 0
        assert "in\n" not in refused.stdout
    assert "in\n" in cluster.run("-c", "print('in')").stdout


def test_training_continues_when_a_workers_node_is_lost(bundle: Path) -> None:
    history = pd.read_csv(bundle / "metrics.csv")
    assert list(history[history["stage"] == "stage1"]["epoch"]) == list(range(1, 17))
    trained = load_bundle(str(bundle))
    assert trained.settings.backbone == "tiny"
    assert trained.training["training_images"]["melanoma"] > 0


def test_a_refused_run_ends_as_stopped_which_kuberay_does_not_retry(cluster: Cluster) -> None:
    flags = ["--images", f"s3://{BUCKET}/copies", "--bundle", f"s3://{BUCKET}/nowhere"]
    flags += ["--output", f"s3://{BUCKET}/refused"]
    done = cluster.run("jobs/kuberay.py", "score", *flags)
    assert "--bundle: s3://clinic/nowhere/bundle.json" in done.stdout
    assert re.search(r"Job '\w+' was stopped", done.stdout), done.stdout


def test_a_stopped_run_continues_while_nodes_come_and_go_with_the_rows_of_the_python_api(
    cluster: Cluster, drawn: Path, bundle: Path, tmp_path: Path
) -> None:
    flags = ["--images", f"s3://{BUCKET}/copies", "--bundle", f"s3://{BUCKET}/model"]
    arguments = ("jobs/score.py", *flags, "--output", f"s3://{BUCKET}/scores", "--gpus", "0")
    log = tmp_path / "stopped"
    with cluster.submitted(log, *arguments) as job:
        wait_for(log, f"{IMAGES * COPIES:,} to score", job)
        wait_for_parts(cluster, 1, job)
        cluster.stop(log)
        assert job.wait(_TIMEOUT_S) == 0, log.read_text()
    assert "was stopped" in log.read_text()

    log = tmp_path / "log"
    with cluster.submitted(log, *arguments) as job:
        wait_for(log, " to score", job)
        before = parts(cluster)  # only now: a node may finish its part after the job's end
        wait_for_parts(cluster, before + 1, job)
        assert cluster.cpu_node is not None
        cluster.cpu_node.cut_power()
        cluster.join("--num-cpus=2")
        assert job.wait(_TIMEOUT_S) == 0, log.read_text()
    images = IMAGES * COPIES
    assert f"{images:,} images listed: {images:,} ok, 0 failed" in log.read_text()
    (now,) = re.findall(r"([\d,]+) scored now", log.read_text())
    assert 0 < int(now.replace(",", "")) < images

    cluster.fetch(BUCKET, "scores/", tmp_path / "scores")
    remote, local = pd.read_parquet(tmp_path / "scores"), predict(bundle, drawn / "images")
    assert remote["uri"].is_unique
    assert_same_scores(remote, local.loc[local.index.repeat(COPIES)], by="image_id")
