import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from ray.job_submission import JobSubmissionClient

from jobs.kuberay import leased_uri, stop_this_job, wait_for_lost_run
from lesioncam.cli import main
from lesioncam.errors import InputError
from lesioncam.predict import load
from lesioncam.storage.lease import LEASE_FILE, Holder, refuse_other_run
from lesioncam.storage.uris import open_store
from tests.messy import lesion
from tests.scores import assert_same_scores

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # else Ray takes a token from the home directory
NO_DRAIN = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}  # by default Ray waits for 30 s


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def ray_head(files: str, *flags: str, **environment: str) -> Iterator[str]:
    """A Ray head with its job server, started by `ray start`; yields its dashboard's address.

    Args:
        files: an own directory for Ray's files and sockets, with a short name. Among heads that
            share one, Ray gives a job to the one started last.
        flags: for `ray start`.
        environment: variables on top of this process's.
    """
    address = f"http://127.0.0.1:{(dashboard := free_port())}"
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    command += [
        f"--port={free_port()}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-agent-listen-port={free_port()}",  # another Ray may use the default
        f"--ray-client-server-port={free_port()}",
        f"--temp-dir={files}",
        *flags,
    ]
    # Jobs run `python`, which must be this environment's.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | NO_TOKEN | NO_DRAIN | {"PATH": path} | environment,
    )
    try:
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A head for this module's jobs."""
    with TemporaryDirectory(prefix="ray-") as files, ray_head(files) as address:
        yield address


def submit(address: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Submit a job and wait for its end; tries again while the head is still starting."""
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= NO_TOKEN
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            [*command, "python", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        starting = "Failed to connect" in done.stderr or "No available agent" in done.stderr
        if not starting or time.monotonic() > deadline:
            return done
        time.sleep(1)


def job_log(address: str, part: str) -> str:
    """What the job printed whose command contains `part`."""
    client = JobSubmissionClient(address)
    (job,) = [one for one in client.list_jobs() if part in one.entrypoint]
    printed: str = client.get_job_logs(job.submission_id)
    return printed


@pytest.mark.slow
def test_a_submitted_job_gives_the_rows_of_the_python_api(
    head: str, tmp_path: Path, bundle_uri: str
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        lesion(120, 90, number).save(images / f"{number}.jpg")
    (images / "broken.jpg").write_bytes(b"")
    flags = ("--images", images, "--bundle", bundle_uri, "--output", tmp_path / "scores")
    done = submit(head, "jobs/score.py", *flags)
    assert done.returncode == 0, done.stdout
    assert "7 images listed: 6 ok, 1 failed (1 empty)" in done.stdout
    printed = job_log(head, str(tmp_path)).splitlines()
    # Ray says when it sets up the environment and starts the command.
    lines = [line for line in printed if "INFO job_manager.py" not in line]
    lines = [line for line in lines if "Running entrypoint for job" not in line]
    assert len(lines) > 4
    assert all(line.startswith("{") for line in lines), lines
    assert all(json.loads(line)["level"] == "info" for line in lines)
    rows = load(bundle_uri, device="cpu").predict(sorted(map(str, images.iterdir())))
    assert_same_scores(pd.read_parquet(tmp_path / "scores"), rows)


@pytest.mark.slow
def test_bad_input_of_a_job_is_one_line(head: str, tmp_path: Path, bundle_uri: str) -> None:
    flags = ("--images", tmp_path / "nowhere", "--bundle", bundle_uri, "--output", tmp_path / "o")
    done = submit(head, "jobs/score.py", *flags)
    assert done.returncode != 0
    (error,) = [line for line in job_log(head, str(tmp_path)).splitlines() if "error" in line]
    assert json.loads(error)["message"].startswith("--images: no such directory")
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_driver_on_a_cluster_gives_up_a_silent_node_soon(head: str) -> None:
    code = (
        "import ray, lesioncam.cluster as cluster; connection = cluster.connected(); "
        "connection.__enter__(); config = ray._config; "
        "print(config.grpc_client_keepalive_time_ms(), config.grpc_client_keepalive_timeout_ms())"
    )
    done = submit(head, "-c", code)
    assert "60000 20000" in done.stdout, done.stderr


def test_a_kuberay_job_waits_for_what_its_verb_writes() -> None:
    flags = ["--images", "i", "--bundle", "b"]
    assert leased_uri(["train", *flags, "--labels", "l", "--workers", "2"]) == "b"
    assert leased_uri(["score", *flags, "--output=o"]) == "o"
    assert leased_uri(["evaluate", "--scores", "s", "--labels", "l", "--output", "o"]) is None


@pytest.mark.parametrize(
    "flags",
    [
        ["score", "--images", "i", "--bundle", "b"],
        ["score", "--images", "i", "--bundle", "b", "--out", "o"],
        ["train", "--bundle"],
        ["scroe"],
    ],
)
def test_a_kuberay_job_does_not_wait_where_its_verb_refuses_the_flags(flags: list[str]) -> None:
    assert leased_uri(flags) is None
    assert main(flags) == 2


def test_a_kuberay_job_waits_for_a_run_whose_head_was_lost(tmp_path: Path) -> None:
    output = open_store(str(tmp_path))
    lost = Holder("lost", "another-machine", "its-boot", 1, 1, time.time() + 1.5)
    output.write(LEASE_FILE, json.dumps(asdict(lost)).encode())
    with pytest.raises(InputError, match="is being written by run lost"):
        refuse_other_run(output)
    wait_for_lost_run(str(tmp_path))
    assert refuse_other_run(output) is not None  # the lost run's lease, which has expired
    assert time.time() >= lost.until


def test_a_kuberay_job_outside_of_ray_just_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    stop_this_job()
