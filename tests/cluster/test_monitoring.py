"""Dashboard and alerts against a real Prometheus that scrapes a real head while jobs run."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import ray
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
from ray.job_submission import JobSubmissionClient

from lesioncam.columns import ErrorKind
from tests.cluster.machines import ROOT
from tests.messy import lesion

MONITORING = ROOT / "cluster" / "monitoring"
GOOD, EMPTY, CUT = 460, 30, 20
NAME = "JANE_DOE"  # in every image's name
# Reports as training does, which takes minutes.
TRAIN = """
import time
from lesioncam.cluster import connected
from lesioncam.logs import log_to_stderr
from lesioncam.training.progress import EpochReport, ProgressBoard

log_to_stderr(as_json=True)
metrics = {"loss": 0.5, "mean_auc": 0.8, "images_per_second": 9.0}
with connected():
    board = ProgressBoard.create()
    for stage, epochs in (("stage1", 2), ("stage2", 1)):
        history = [{"epoch": epoch + 1, **metrics} for epoch in range(epochs)]
        with board.logged(stage, lambda report: None):
            for epoch in range(epochs):
                board.report(EpochReport(stage, epochs, history[: epoch + 1], 60.0))
            time.sleep(5)  # Prometheus looks every second
"""
RAY = str(Path(sys.executable).parent / "ray")
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # else Ray takes a token from the home directory
NO_DRAIN = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}  # by default Ray waits for 30 s
STAGES = {"fetch", "localize", "classify", "write"}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus"
)


def queries() -> list[Any]:
    """Every query of every panel."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [
        pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}".replace(" ", "-"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


@dataclass(frozen=True)
class Monitored:
    """A cluster on which both jobs ran, and the Prometheus that scraped it all the time."""

    prometheus: str
    started: float
    logs: Path  # of Ray, on its node
    outputs: dict[str, str]  # what scoring printed, and what the client of the other job did

    def get(self, what: str, **parameters: object) -> Any:
        """The answer of Prometheus's API."""
        return get(f"{self.prometheus}/api/v1/{what}?{urlencode(parameters)}")["data"]

    def series(self, query: str) -> list[dict[str, Any]]:
        """A query's series over the whole time, one sample a second."""
        times = {"start": self.started, "end": time.time(), "step": 1}
        found: list[dict[str, Any]] = self.get("query_range", query=query, **times)["result"]
        return found

    def last(self, query: str, label: str) -> dict[str, float]:
        """The last value of each of a query's series, by a label's value."""
        return {
            one["metric"].get(label, ""): float(one["values"][-1][1]) for one in self.series(query)
        }


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory, bundle_uri: str) -> Iterator[Monitored]:
    """A scoring job, and one that reports as training does, at once on a head."""
    work = tmp_path_factory.mktemp("monitored")
    images = work / "images"
    images.mkdir()
    for number in range(GOOD):
        lesion(120, 90, number % 50).save(images / f"{NAME}_{number}.jpg")
    for number in range(EMPTY):
        (images / f"{NAME}_empty_{number}.jpg").touch()
    whole = (images / f"{NAME}_0.jpg").read_bytes()
    for number in range(CUT):
        (images / f"{NAME}_cut_{number}.jpg").write_bytes(whole[: len(whole) // 2])
    score = ("--images", images, "--bundle", bundle_uri, "--output", work / "scores")

    started = time.time()
    quick = {"RAY_metrics_report_interval_ms": "1000"}
    with (
        TemporaryDirectory(prefix="ray-") as ray_files,
        ray_head(ray_files, **quick) as head,
        running_prometheus(work, ray_files) as prometheus,
        ThreadPoolExecutor() as threads,
    ):
        jobs = {
            "score": threads.submit(submit, head, "jobs/score.py", *score),
            "train": threads.submit(submit, head, "-c", TRAIN),
        }
        done = {name: job.result() for name, job in jobs.items()}
        for name, process in done.items():
            assert process.returncode == 0, f"{name}: {process.stdout}{process.stderr}"
        outputs = {"score": job_log(head, "jobs/score.py"), "train": done["train"].stdout}
        yield Monitored(prometheus, started, Path(ray_files, "session_latest", "logs"), outputs)


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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running_prometheus(work: Path, ray_files: str) -> Iterator[str]:
    """Prometheus with the project's configuration, but faster, and for this Ray's files."""
    config = (MONITORING / "prometheus.yaml").read_text()
    for original, replacement in (
        ("/tmp/ray/", f"{ray_files}/"),
        (": 10s", ": 1s"),
        (": 30s", ": 1s"),
        ("rules.yaml", str(MONITORING / "rules.yaml")),
    ):
        assert original in config
        config = config.replace(original, replacement)
    file = work / "prometheus.yaml"
    file.write_text(config)
    url = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={work / 'data'}"]
    with (work / "prometheus.log").open("wb") as log:
        server = subprocess.Popen([*command, f"--web.listen-address={url}"], stderr=log)
    try:
        yield f"http://{url}"
    finally:
        server.terminate()
        server.wait(60)


def get(url: str) -> Any:
    """A JSON answer; waits for a server that is still starting."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urlopen(url, timeout=60) as answer:
                return json.load(answer)
        except URLError as error:
            if hasattr(error, "code") or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize("query", queries())
def test_every_panel_has_data(monitored: Monitored, query: str) -> None:
    concrete = query.replace("$session", ".*").replace("$__rate_interval", "1m")
    assert "$" not in concrete
    found = monitored.series(concrete)
    if gpu := re.findall(r"ray_(node_(?:gpus|gram)_\w+)", query):
        assert set(gpu) <= METRICS_GAUGES.keys()
        if not found:
            pytest.skip("needs a GPU; Ray defines these metrics, but there is no GPU here")
    values = [float(value) for one in found for _, value in one["values"]]
    assert any(not math.isnan(value) for value in values)


@pytest.mark.slow
@needs_prometheus
def test_every_rule_is_evaluated_on_series_that_exist(monitored: Monitored) -> None:
    deadline = time.monotonic() + 30
    while True:
        (group,) = monitored.get("rules")["groups"]
        if all(rule["health"] != "unknown" for rule in group["rules"]):
            break
        assert time.monotonic() < deadline, "the rules were never evaluated"
        time.sleep(0.2)
    assert group["rules"]
    for rule in group["rules"]:
        assert rule["health"] == "ok", rule
        assert rule["state"] != "firing", rule
        selectors = re.findall(r"ray_\w+(?:\{[^}]*\})?", rule["query"])
        assert selectors
        for selector in selectors:
            assert monitored.series(selector), f"{rule['name']}: no {selector}"


@pytest.mark.slow
@needs_prometheus
def test_the_metrics_count_what_the_summary_counts(monitored: Monitored) -> None:
    assert f"{GOOD} ok, {EMPTY + CUT} failed" in monitored.outputs["score"]
    by_status = monitored.last("sum by (status) (ray_lesioncam_images_total)", "status")
    assert by_status == {"ok": GOOD, "failed": EMPTY + CUT}
    by_kind = monitored.last("sum by (error_kind) (ray_lesioncam_images_total)", "error_kind")
    assert by_kind == {"": GOOD, "empty": EMPTY, "truncated": CUT}
    images = monitored.last("sum by (stage) (ray_lesioncam_stage_images_total)", "stage")
    # A process that ends may take what it counted in its last second with it.
    assert images.keys() == STAGES
    assert all(0.9 * (GOOD + EMPTY + CUT) < one <= GOOD + EMPTY + CUT for one in images.values())
    seconds = monitored.last("sum by (stage) (ray_lesioncam_stage_seconds_total)", "stage")
    assert seconds.keys() == STAGES
    assert all(0 < one < time.time() - monitored.started for one in seconds.values())
    assert monitored.last("max by (stage) (ray_lesioncam_training_epoch)", "stage") == {
        "stage1": 2,
        "stage2": 1,
    }


@pytest.mark.slow
@needs_prometheus
def test_images_remaining_is_set_while_nothing_moves_and_dropped_after_the_end(
    monitored: Monitored,
) -> None:
    """Ray drops a gauge that is not set again within 2 s here: the actors take longer to start."""
    (remaining,) = monitored.series("ray_lesioncam_images_remaining")
    constant = [at for at, value in remaining["values"] if value == str(GOOD + EMPTY + CUT)]
    assert constant, "it was not set before the first part was durable"
    assert constant[-1] - constant[0] > 4
    assert len(constant) > (constant[-1] - constant[0]) / 2  # no long gap
    assert remaining["values"][-1][1] == "0"
    deadline = time.monotonic() + 60
    while monitored.get("query", query="ray_lesioncam_images_remaining")["result"]:
        assert time.monotonic() < deadline, "the gauge of an ended run is still there"
        time.sleep(0.2)


@pytest.mark.slow
@needs_prometheus
def test_no_label_holds_a_name(monitored: Monitored) -> None:
    found = monitored.get("series", **{"match[]": '{__name__=~"ray_lesioncam_.+"}'})
    values: dict[str, set[str]] = {}
    for labels in found:
        for label, value in labels.items():
            values.setdefault(label, set()).add(value)
    assert values.pop("status") == {"ok", "failed"}
    assert values.pop("error_kind") <= set(ErrorKind)
    assert values.pop("stage") == STAGES | {"stage1", "stage2"}
    assert all(len(found) == 1 for label, found in values.items() if label.startswith("otel_"))
    assert {label for label in values if not label.startswith("otel_")} == {
        "__name__",
        "Component",
        "NodeAddress",
        "SessionName",
        "Version",
        "WorkerId",
        "instance",
        "job",
    }


@pytest.mark.slow
@needs_prometheus
def test_a_jobs_lines_are_json_and_no_log_names_an_image(monitored: Monitored) -> None:
    for name, text in monitored.outputs.items():
        printed = text.splitlines()
        if name == "score":  # Ray says when it sets up the environment and starts the command
            printed = [line for line in printed if "INFO job_manager.py" not in line]
            printed = [line for line in printed if "Running entrypoint for job" not in line]
            assert all(line.startswith("{") for line in printed), printed
        lines = [json.loads(line) for line in printed if line.startswith("{")]
        assert all({"time", "level", "message"} <= line.keys() for line in lines)
        fields = [set(line) - {"time", "level", "message"} for line in lines]
        if name == "score":
            assert {"run_id", "listed", "remaining"} in fields
            assert [line["remaining"] for line in lines if "remaining" in line][-1] == 0
            (summary,) = (line for line in lines if "outcome" in line)
            assert summary["failed_by_kind"] == {"empty": EMPTY, "truncated": CUT}
        else:
            assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 1]
    files = [file for file in monitored.logs.rglob("*.*") if file.is_file()]
    texts = [file.read_text(errors="replace") for file in files]
    assert any("jobs/score.py" in text for text in texts)
    for text in (*texts, *monitored.outputs.values()):
        assert NAME not in text
        assert "DRAWN_" not in text


@needs_prometheus
def test_alerts_fire_when_they_should_and_only_then() -> None:
    rules = ROOT / "tests" / "cluster" / "rules_test.yaml"
    done = subprocess.run(
        ["promtool", "test", "rules", rules], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    named = set(re.findall(r"alertname=\"(\w+)\"", rules.read_text()))
    assert named == set(re.findall(r"alert: (\w+)", (MONITORING / "rules.yaml").read_text()))


@needs_prometheus
def test_prometheus_accepts_the_configuration() -> None:
    subprocess.run(["promtool", "check", "config", MONITORING / "prometheus.yaml"], check=True)


def test_the_readme_names_every_panel_and_alert() -> None:
    readme = (MONITORING / "README.md").read_text()
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    alerts = re.findall(r"alert: (\w+)", (MONITORING / "rules.yaml").read_text())
    panels = [panel["title"] for panel in dashboard["panels"] if panel["type"] != "row"]
    for name in panels + alerts:
        assert name in readme


def test_the_prometheus_operator_gets_the_same_rules() -> None:
    """The README's line that wraps the rules for the Prometheus operator, without `kubectl`."""
    readme = (MONITORING / "README.md").read_text()
    command = re.search(r"^(\(printf .*?) \| kubectl", readme, re.S | re.M)
    assert command
    done = subprocess.run(
        command[1], shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    wrapped = yaml.safe_load(done.stdout)
    assert (wrapped["apiVersion"], wrapped["kind"]) == (
        "monitoring.coreos.com/v1",
        "PrometheusRule",
    )
    assert wrapped["spec"] == yaml.safe_load((MONITORING / "rules.yaml").read_text())


def test_the_pod_monitor_scrapes_kuberays_pods_often_enough() -> None:
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"].keys() == {"selector", "podTargetLabels", "podMetricsEndpoints"}
    (selected,) = monitor["spec"]["selector"]["matchExpressions"]
    assert selected == {"key": "ray.io/cluster", "operator": "Exists"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"  # KubeRay's name of Ray's port on every node
    standalone = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    dropped_after = 2 * ray._config.metrics_report_interval_ms() / 1000
    for interval in (endpoint["interval"], standalone["global"]["scrape_interval"]):
        assert int(interval.removesuffix("s")) < dropped_after
