"""A job on a cluster that starts its nodes when there is work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from lesioncam.demo import draw_images
from lesioncam.predict import load
from tests.cluster.conftest import Cluster
from tests.scores import assert_same_scores

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_STORE = 300_000_000  # bytes
_MAPS = ("auth", "docker", "file_mounts")
_LISTS = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
    "rsync_filter", "rsync_exclude",
)  # fmt: skip
# Required by Ray's schema, unused by this cloud.
_UNUSED: dict[str, Any] = {key: {} for key in _MAPS} | {key: [] for key in _LISTS}


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
    local = load(bundle_uri, device="cpu").predict(
        sorted(map(str, (tmp_path / "images").iterdir()))
    )
    assert_same_scores(pd.read_parquet(tmp_path / "scores"), local, by="image_id")
