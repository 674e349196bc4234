"""A Ray cluster of several machines that share nothing but a network and an S3 server."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import psutil
import pytest
from ray.autoscaler._private import fake_multi_node
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.cluster.machines import HERE, ROOT, Machine, Machines, unsupported
from tests.faults.servers import KEY, client, moto

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "clinic"
RAY = str(Path(sys.executable).with_name("ray"))
_OBJECT_STORE = "--object-store-memory=300000000"
_TIMEOUT_S = 480
_HEAD_STARTS = 3  # Ray gives a head 30 s to start, which a busy machine may exceed
# Ray's fake cloud for tests: the nodes that its autoscaler adds are on the head's machine.
_FAKE_CLOUD = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "CLOUD": str(Path(fake_multi_node.__path__[0])),
}
# Ray's wheel lacks that cloud's defaults; they are mounted where Ray reads them.
_BEFORE = """
    cp -r "$CLOUD" /tmp/cloud
    printf "%s" "$AUTOSCALING" | tee /tmp/autoscaling.json > /tmp/cloud/example.yaml
    mount --bind /tmp/cloud "$CLOUD"
    exec "$@"
"""
# Ray notices within half a minute, not a whole one, that a machine's power was cut.
_QUICK_CHECKS = {"RAY_health_check_failure_threshold": "2"}
_TOKEN = "a-token-that-only-these-tests-know"


@dataclass
class Cluster:
    """A head without CPUs for tasks, and the machines that join it.

    Attributes:
        machines: their network.
        head: the head's machine.
        environment: of every machine: the token, and the S3 server's URL.
    """

    machines: Machines
    head: Machine
    environment: dict[str, str]
    cpu_node: Machine | None = None
    gpu_node: Machine | None = None

    def s3(self) -> "S3Client":
        """A client of the S3 server, for this process."""
        return client(self.environment["AWS_ENDPOINT_URL"])

    def fetch(self, bucket: str, prefix: str, folder: Path) -> None:
        """Download the objects under a prefix."""
        s3 = self.s3()
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page["Contents"]:
                path = folder / item["Key"].removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, item["Key"], str(path))

    def join(self, *resources: str) -> Machine:
        """Add a machine that runs `ray start` with these flags."""
        address = f"--address={self.head.address}:6379"
        command = ("ray", "start", "--block", address, "--node-ip-address={address}")
        return self.machines.start(
            *command, _OBJECT_STORE, *resources, environment=self.environment
        )

    def command(self, *arguments: str) -> list[str]:
        """The command line that submits a job."""
        address = f"http://{self.head.address}:8265"
        submit = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT)]
        return [*submit, "--", "python", *arguments]

    def submitter(self, token: str | None = _TOKEN) -> dict[str, str]:
        """The environment of the machine that submits, with a token or without."""
        named = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PYTHONUNBUFFERED": "1"}
        return named | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})

    @contextmanager
    def submitted(self, log: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A running job; its output goes to a file."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(*arguments), env=self.submitter(), stdout=output, stderr=output
            )
        try:
            yield process
        except BaseException:
            self.stop(log)
            raise
        finally:
            process.kill()

    def run(self, *arguments: str, token: str | None = _TOKEN) -> subprocess.CompletedProcess[str]:
        """Run a job to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.submitter(token),
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )

    def stop(self, log: Path) -> None:
        """Stop the job whose name its submission printed to a file, if it has."""
        command = [RAY, "job", "stop", "--address", f"http://{self.head.address}:8265"]
        for job in set(re.findall(r"ray job stop (\w+)", log.read_text())):
            subprocess.run([*command, job], env=self.submitter(), capture_output=True, check=False)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes alive according to the head's state API; none while it is not up."""
        url = f"http://{self.head.address}:8265/api/v0/nodes"
        request = Request(url, headers={"Authorization": f"Bearer {_TOKEN}"})
        try:
            with urlopen(request, timeout=30) as response:
                known = json.load(response)["data"]["result"]["result"]
        except OSError:
            return []
        return [node for node in known if node["state"] == "ALIVE"]

    def kill(self, name: str) -> None:
        """Kill the machines' processes with `name` in their command line, once there is one."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not (found := [one for machine in self.machines for one in machine.processes(name)]):
            assert time.monotonic() < deadline, name
            time.sleep(0.02)
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def await_head(self) -> bool:
        """Wait until the head accepts jobs; False if it ends before."""
        deadline = time.monotonic() + _TIMEOUT_S
        while len(self.nodes()) != 1 or self.run("--version").returncode:
            assert time.monotonic() < deadline
            if not self.head.is_on():
                return False
            time.sleep(0.5)
        return True

    def await_nodes(self, count: int) -> None:
        """Wait until `count` nodes are alive, including the head."""
        deadline = time.monotonic() + _TIMEOUT_S
        while len(nodes := self.nodes()) != count:
            assert time.monotonic() < deadline, nodes
            assert self.head.is_on()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Starts clusters of machines that share an S3 server."""
    if (reason := unsupported()) is not None:
        pytest.skip(reason)
    with Machines(tmp_path_factory.mktemp("machines")) as machines, moto(HERE) as url:
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": "/tmp",
            **KEY,
            **_QUICK_CHECKS,
            "AWS_ENDPOINT_URL": url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": _TOKEN,
        }

        def start(autoscaling: Mapping[str, Any] | None = None) -> Cluster:
            command = [
                "ray",
                "start",
                "--head",
                "--block",
                "--num-cpus=0",
                "--node-ip-address={address}",
            ]
            command += ["--port=6379", "--dashboard-host={address}", "--disable-usage-stats"]
            known = dict(environment)
            if autoscaling:
                command.append("--autoscaling-config=/tmp/autoscaling.json")
                command = ["sh", "-ec", _BEFORE, "sh", *command]
                known |= _FAKE_CLOUD | {"AUTOSCALING": json.dumps(autoscaling)}
            for _ in range(_HEAD_STARTS):
                head = machines.start(*command, environment=known)
                started = Cluster(machines, head, known)
                if started.await_head():
                    return started
            raise RuntimeError("no head has started; the machines' logs say why")

        yield start


@pytest.fixture(scope="module")
def cluster(network: Callable[..., Cluster]) -> Cluster:
    """A head without CPUs, a node with two CPUs, and a node with one CPU and a pretended GPU."""
    started = network()
    started.s3().create_bucket(Bucket=BUCKET)
    started.cpu_node = started.join("--num-cpus=2")
    started.gpu_node = started.join("--num-cpus=1", "--num-gpus=1")
    started.await_nodes(3)
    return started
