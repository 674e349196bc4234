"""The files in `cluster/` are valid for KubeRay, Kubernetes, Ray and lesioncam."""

import copy
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from lesioncam.cli import parse
from lesioncam.cluster import Capacity, Node
from lesioncam.scoring.plan import Plan, plan_for
from lesioncam.settings import BACKBONES, TrainSettings
from lesioncam.training.workers import workers_for
from tests.cluster.image import steps
from tests.conftest import SHARED, needs_shared

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERAY = CLUSTER / "kuberay"
JOBS = ("score", "train", "nightly")
KUBERNETES = "1.33"
GIB = 2**30

# Memory of one process, with a margin. In runs of VGG-16, 0.9 GiB were resident in an actor without
# a GPU, and 0.2 in a decode task with its two decoders.
ACTOR_MEMORY = 4 * GIB
DECODE_MEMORY = GIB
MACHINE_MEMORY = {"m7i.2xlarge": 32 * GIB, "g6.2xlarge": 32 * GIB}  # as AWS lists them


def rendered(job: str) -> list[dict[str, Any]]:
    """The objects that `kubectl apply -k` sends."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, to render the manifests")
    command = [kubectl, "kustomize", str(KUBERAY / job)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


@pytest.fixture(params=JOBS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The objects of one job."""
    return rendered(request.param)


def job_spec(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The spec of the RayJob in them, also if it is in a cron job."""
    (job,) = (one for one in objects if one["kind"] in ("RayJob", "RayCronJob"))
    spec: dict[str, Any] = job["spec"].get("jobTemplate", job["spec"])
    return spec


def pods(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates of a RayJob, by name."""
    cluster = spec["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    head = cluster["headGroupSpec"]["template"]
    return {"head": head, "submitter": spec["submitterPodTemplate"], **groups}


def strict(schema: Any) -> Any:
    """The same JSON schema, but unknown fields are invalid."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        closed.setdefault("additionalProperties", False)
    return closed


@cache
def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    """KubeRay's schema of a kind."""
    text = (SHARED / "kuberay-crds" / f"ray.io_{kind.lower()}s.yaml").read_text()
    crd = yaml.load(text, Loader=yaml.CSafeLoader)  # ten times faster on a megabyte
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in crd["spec"]["versions"]
        if version["name"] == "v1"
    )
    closed = strict(schema)
    closed["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator.check_schema(closed)
    return jsonschema.Draft202012Validator(closed)


@needs_shared
def test_kuberay_accepts_every_job(objects: list[dict[str, Any]]) -> None:
    (job,) = (one for one in objects if one["apiVersion"] == "ray.io/v1")
    schema = kuberay(job["kind"])
    schema.validate(job)
    wrong = copy.deepcopy(job)
    job_spec([wrong])["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        schema.validate(wrong)


def test_kubernetes_accepts_every_object_and_every_pod(objects: list[dict[str, Any]]) -> None:
    own = [one for one in objects if not one["apiVersion"].startswith("ray.io")]
    assert {one["kind"] for one in own} == {"ServiceAccount", "ConfigMap"}
    for name, template in pods(job_spec(objects)).items():
        metadata = {"name": name}
        own.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, **template})
    for one in own:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("job", JOBS)
def test_only_one_job_and_its_settings_are_applied(job: str) -> None:
    kind = "RayCronJob" if job == "nightly" else "RayJob"
    names = {(one["kind"], one["metadata"]["name"]) for one in rendered(job)}
    assert names == {
        ("ServiceAccount", "lesioncam"),
        ("ConfigMap", "lesioncam"),
        (kind, f"lesioncam-{job}"),
    }


def test_pods_run_confined_and_without_keys(objects: list[dict[str, Any]]) -> None:
    text = yaml.safe_dump_all(objects)
    assert "AWS_SECRET_ACCESS_KEY" not in text
    spec = job_spec(objects)
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for name, template in pods(spec).items():
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        (container,) = template["spec"]["containers"]
        assert not container["securityContext"]["allowPrivilegeEscalation"], name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert container["image"] == "registry.example/lesioncam:0.1.0", name
        assert container["envFrom"] == [{"configMapRef": {"name": "lesioncam"}}], name
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
        if name != "submitter":
            assert template["spec"]["serviceAccountName"] == "lesioncam", name


def test_machines_of_ray_up_hold_the_object_store_and_every_process() -> None:
    config = yaml.safe_load((CLUSTER / "ray-up-aws.yaml").read_text())
    (store,) = re.findall(r"--object-store-memory=(\d+)", config["worker_start_ray_commands"][-1])
    for name, node in config["available_node_types"].items():
        if name != "head":
            resources = node["resources"]
            processes = (
                resources["CPU"] * DECODE_MEMORY + resources.get("GPU", 0) * 2 * ACTOR_MEMORY
            )
            memory = MACHINE_MEMORY[node["node_config"]["InstanceType"]]
            assert int(store) + processes <= 0.9 * memory, name


def test_users_edit_one_file_only() -> None:
    settings = (KUBERAY / "settings" / "kustomization.yaml").read_text()
    assert settings.count("EDIT") == 5
    for path in sorted(KUBERAY.rglob("*.yaml")):
        text = path.read_text()
        if path.parent.name != "settings":
            assert "s3://" not in text, path
            assert "EDIT" not in text, path


def test_the_entry_point_is_a_valid_command(objects: list[dict[str, Any]]) -> None:
    (settings,) = (one["data"] for one in objects if one["kind"] == "ConfigMap")
    shell = ["bash", "-euc", f"printf '%s\\n' {job_spec(objects)['entrypoint']}"]
    printed = subprocess.run(shell, capture_output=True, text=True, check=True, env=settings)
    python, script, *flags = printed.stdout.splitlines()
    workdir = dict(steps())["WORKDIR"]
    assert (python, Path(script).parent.parent) == ("python", Path(workdir))
    assert (CLUSTER.parent / "jobs" / Path(script).name).is_file()
    parsed = parse(flags)
    assert parsed.bundle == settings["BUNDLE"]
    assert not [flag for flag in flags if "$" in flag]


def test_one_version_of_ray_everywhere() -> None:
    image = dict(steps())["FROM"]
    (pinned,) = re.findall(r"^ray\[.*\]==(\S+)$", (CLUSTER / "requirements.txt").read_text(), re.M)
    cluster = yaml.safe_load((KUBERAY / "base" / "raycluster.yaml").read_text())
    assert image == f"rayproject/ray:{pinned}-py311-cpu"
    assert cluster["spec"]["rayVersion"] == pinned


# Pods are large enough for what the operators reserve --------------------------------------------


def quantity(text: str) -> float:
    """Kubernetes' `500m`, `2` or `8Gi` as a number."""
    if text.endswith("m"):
        return float(text[:-1]) / 1000
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return float(text[:-2]) * units[text[-2:]] if text[-2:] in units else float(text)


def offers(template: dict[str, Any]) -> dict[str, float]:
    """The limits of a pod's container."""
    (container,) = template["spec"]["containers"]
    return {name: quantity(text) for name, text in container["resources"]["limits"].items()}


@pytest.fixture
def grown() -> tuple[dict[str, Any], Capacity, Plan]:
    """The scoring job's cluster at its maximum size, and the plan for it."""
    objects = rendered("score")
    spec = job_spec(objects)
    (settings,) = (one["data"] for one in objects if one["kind"] == "ConfigMap")
    nodes = [
        Node(pod["cpu"], int(pod.get("nvidia.com/gpu", 0)))
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
        for pod in [offers(group["template"])] * group["maxReplicas"]
    ]
    capacity = Capacity(tuple(nodes))
    assert capacity.gpus == int(settings["GPUS"])
    return spec, capacity, plan_for(capacity, capacity.gpus, "bfloat16")


def test_a_gpu_pod_holds_both_stages_and_decoding(
    grown: tuple[dict[str, Any], Capacity, Plan],
) -> None:
    spec, _, plan = grown
    pod = offers(pods(spec)["gpu"])
    assert sum(plan.actor_gpus) == pod["nvidia.com/gpu"]
    assert 2 * plan.actor_cpus + plan.decode_cpus <= pod["cpu"]


def test_memory_holds_the_object_store_and_every_process(
    grown: tuple[dict[str, Any], Capacity, Plan],
) -> None:
    spec, _, plan = grown
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        pod, template = offers(group["template"]), group["template"]["spec"]
        (shared,) = (one for one in template["volumes"] if one["name"] == "shared-memory")
        store = int(group["rayStartParams"]["object-store-memory"])
        size = quantity(shared["emptyDir"]["sizeLimit"])
        assert store <= size
        actors = 2 * ACTOR_MEMORY if "nvidia.com/gpu" in pod else 0
        decoding = pod["cpu"] / plan.decode_cpus * DECODE_MEMORY
        assert store + actors + decoding <= pod["memory"], group["groupName"]


def test_object_stores_hold_the_images_in_the_pipeline(
    grown: tuple[dict[str, Any], Capacity, Plan],
) -> None:
    spec, _, plan = grown
    side = BACKBONES["vgg16"].input_size
    canvas, crop = (3 * (side * scale) ** 2 for scale in (TrainSettings().canvas_scale, 1))
    stores = sum(
        int(group["rayStartParams"]["object-store-memory"]) * group["maxReplicas"]
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert plan.window * (canvas + crop) <= stores


def test_a_training_worker_fits_a_gpu_pod(grown: tuple[dict[str, Any], Capacity, Plan]) -> None:
    _, capacity, _ = grown
    spec = job_spec(rendered("train"))
    (settings,) = (one["data"] for one in rendered("train") if one["kind"] == "ConfigMap")
    entrypoint = spec["entrypoint"].replace("$WORKERS", settings["WORKERS"])
    flags = parse(shlex.split(entrypoint)[2:])
    assert flags.gpu
    workers = workers_for(capacity, flags.workers, gpu=True, precision="bfloat16")
    pod = offers(pods(spec)["gpu"])
    assert pod["cpu"] / 2 <= workers.cpus < pod["cpu"]


# `ray up` ----------------------------------------------------------------------------------------


def test_ray_up_accepts_the_file_for_aws() -> None:
    config = yaml.safe_load((CLUSTER / "ray-up-aws.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    with pytest.raises(jsonschema.ValidationError, match="max_wrkers"):
        validate_config(prepare_config(config | {"max_wrkers": 1}))
    head, *workers = config["available_node_types"].values()
    assert head["resources"] == {"CPU": 0}
    for node in workers:
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "AWS_SECRET_ACCESS_KEY" not in (CLUSTER / "ray-up-aws.yaml").read_text()
