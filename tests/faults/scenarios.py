"""Fault scenarios: each starts one run of a trial, disturbs it and waits until it ends.

A scenario takes the trial, the proxy in front of its store (None for local files), a random
generator, and the seconds that an undisturbed run takes.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from lesioncam.storage.uris import open_store
from tests.faults import proxy as proxies
from tests.faults.proxy import Fault, Proxy
from tests.faults.trial import Trial


class NotDisturbedError(Exception):
    """The run ended before it could be disturbed."""


Scenario = Callable[[Trial, Proxy | None, random.Random, float], None]

_UNREAD_IMAGES = 10  # not yet read when the store fails near the end
_REQUESTS_NEAR_END = (10, 40)  # further requests that pass before it fails there
_FULL_DISK_SIZE = "40k"  # holds the run's records, but not the scores
_MEMORY_MARGIN = 3 * 2**30  # bytes that a run may take before Ray kills its workers
_MEMORY_PRESSURE_S = 3.0
_LATE_TIMEOUT_S = 60  # for a held request to arrive once it is released
_RAYLET_KILLED_WORKER = "Selected to kill"  # in the log
_WORKER_TITLES = ("fetch_and_decode", "Localize", "Classify", "WindowActor", "write_part")


def driver_killed(trial: Trial, _: Proxy | None, rng: random.Random, seconds: float) -> None:
    """The driver is killed, at the latest soon after the first images are read; Ray ends too."""
    run = trial.start()
    deadline = time.monotonic() + rng.uniform(0.2, 0.7) * seconds
    while not trial.processes("fetch_and_decode") and time.monotonic() < deadline:
        _sleep(run, 0.1)
    _sleep(run, min(rng.uniform(0, 0.05) * seconds, deadline - time.monotonic()))
    killed = run.poll() is None
    if killed:
        run.send_signal(signal.SIGKILL)
    trial.wait(run)
    _require(disturbed=killed)


def machine_lost(trial: Trial, _: Proxy | None, rng: random.Random, seconds: float) -> None:
    """All processes of the run are killed at once, as in a power failure."""
    run = trial.start()
    _sleep(run, rng.uniform(0.3, 1.0) * seconds)
    killed = run.poll() is None
    for process in trial.processes():
        process.kill()
    trial.wait(run)
    _require(disturbed=killed)


def workers_killed(
    titles: tuple[str, ...], trial: Trial, _: Proxy | None, rng: random.Random, seconds: float
) -> None:
    """Worker processes are killed, as the kernel does when memory is short."""
    run, killed = trial.start(), 0
    for title in titles:
        killed += trial.kill(title, run)
        _sleep(run, rng.uniform(0, 0.1) * seconds)
    trial.wait(run)
    _require(disturbed=killed > 0)


def raylet_killed(trial: Trial, _: Proxy | None, rng: random.Random, seconds: float) -> None:
    """Ray's node process is killed."""
    run = trial.start()
    _sleep(run, rng.uniform(0.3, 0.9) * seconds)
    killed = trial.kill("raylet/raylet", run)
    trial.wait(run)
    _require(disturbed=killed)


def node_of_two_lost(trial: Trial, _: Proxy | None, rng: random.Random, seconds: float) -> None:
    """A cluster of two nodes loses one with all its processes; another node joins."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        second = cluster.add_node(num_cpus=2)
        run = trial.start(RAY_ADDRESS=cluster.address)
        _sleep(run, rng.uniform(0.3, 1.0) * seconds)
        running = run.poll() is None
        cluster.remove_node(second, allow_graceful=False)
        _sleep(run, rng.uniform(0, 0.3) * seconds)
        cluster.add_node(num_cpus=2)
        trial.wait(run)
    finally:
        cluster.shutdown()
    _require(disturbed=running)


def out_of_memory(trial: Trial, _: Proxy | None, rng: random.Random, seconds: float) -> None:
    """Another process takes the machine's memory for a while, and Ray kills workers."""
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + _MEMORY_MARGIN) / memory.total
    before = _killed_workers(trial)
    run = trial.start(RAY_memory_usage_threshold=f"{limit:.4f}", RAY_memory_monitor_refresh_ms="50")
    _sleep(run, rng.uniform(0.3, 0.7) * seconds)
    code = f"x = b'1' * {2 * _MEMORY_MARGIN}; print(); input()"
    with subprocess.Popen([sys.executable, "-uc", code], stdin=-1, stdout=-1) as consumer:
        assert consumer.stdout is not None
        consumer.stdout.readline()  # it has taken the memory
        _sleep(run, _MEMORY_PRESSURE_S)
        consumer.kill()
    trial.wait(run)
    _require(disturbed=_killed_workers(trial) > before)


def disk_full(trial: Trial, _: Proxy | None, __: random.Random, ___: float) -> None:
    """The disk under the output is full before all is written."""
    Path(trial.output).mkdir(parents=True, exist_ok=True)
    mount = f'mount -t tmpfs -o size={_FULL_DISK_SIZE} tmpfs "{trial.output}" && exec "$@"'
    trial.wait(trial.start(["unshare", "-m", "sh", "-c", mount, "sh"]))


def store_faulty(
    fault: Fault, fraction: float, images_only: bool,
    trial: Trial, proxy: Proxy | None, rng: random.Random, _: float,
) -> None:  # fmt: skip
    """A fraction of the requests fails."""
    assert proxy is not None
    seed = rng.randrange(2**32)
    proxy.fault = proxies.sometimes(fault, fraction, seed, images_only=images_only)
    trial.run()
    proxy.fault = None


def store_lost(
    fault: Fault, near_the_end: bool,
    trial: Trial, proxy: Proxy | None, rng: random.Random, _: float,
) -> None:  # fmt: skip
    """From some request on all fail: while images are read, or while scores are written."""
    assert proxy is not None
    images = len(list(open_store(trial.images).entries())) - _UNREAD_IMAGES
    if near_the_end:
        proxy.fault = proxies.from_then_on(fault, images, rng.randint(*_REQUESTS_NEAR_END))
    else:
        proxy.fault = proxies.from_then_on(fault, rng.randint(1, images))
    trial.run()
    proxy.fault = None


def write_late(trial: Trial, proxy: Proxy | None, rng: random.Random, _: float) -> None:
    """The driver is killed while a part is on its way; it arrives when the next run has ended."""
    assert proxy is not None
    proxy.fault = hold = proxies.Hold(r"/part-[^/]*\.parquet$", rng.randint(1, 2))
    run = trial.start()
    while run.poll() is None and not hold.reached.wait(0.1):
        pass
    run.kill()
    trial.wait(run)
    _require(disturbed=hold.reached.is_set())
    trial.run()
    hold.release()
    if not hold.passed.wait(_LATE_TIMEOUT_S):
        raise RuntimeError("the part that was held has not arrived")
    proxy.fault = None


LOCAL: dict[str, Scenario] = {
    "driver killed (SIGKILL)": driver_killed,
    "all processes killed at once": machine_lost,
    "disk full": disk_full,
}
ON_RAY: dict[str, Scenario] = {  # for runs of more than `SMALL` images
    "fetch-and-decode workers killed": partial(workers_killed, ("fetch_and_decode",) * 2),
    "stage-1 actor killed, twice": partial(workers_killed, ("Localize",) * 2),
    "stage-2 actor killed, twice": partial(workers_killed, ("Classify",) * 2),
    "write worker killed": partial(workers_killed, ("write_part",)),
    "a process of every kind killed": partial(workers_killed, _WORKER_TITLES),
    "Ray's node process killed": raylet_killed,
    "one of two nodes lost, another joins": node_of_two_lost,
    "worker out of memory": out_of_memory,
}
REMOTE: dict[str, Scenario] = {
    "driver killed (SIGKILL)": driver_killed,
    "503 SlowDown, a fifth of all requests": partial(store_faulty, proxies.slow_down, 0.2, False),
    "connection reset in mid-body, a fifth": partial(store_faulty, proxies.reset, 0.2, True),
    "body cut short, a fifth": partial(store_faulty, proxies.cut_short, 0.2, True),
    "wrong Content-Length, a fifth": partial(store_faulty, proxies.wrong_length, 0.2, True),
    "AccessDenied that passes, a fifth": partial(store_faulty, proxies.denied, 0.2, True),
    "not there when read, a fifth": partial(store_faulty, proxies.gone, 0.2, True),
    "no answer for 65 s, one in 200": partial(store_faulty, proxies.stalled, 0.005, True),
    "write's answer lost, a fifth": partial(store_faulty, proxies.unanswered, 0.2, False),
    "write arrives after the next run": write_late,
    "credentials expire": partial(store_lost, proxies.expired, False),
    "store gone": partial(store_lost, proxies.away, False),
    "credentials expire near the end": partial(store_lost, proxies.expired, True),
    "store gone near the end": partial(store_lost, proxies.away, True),
}


def _killed_workers(trial: Trial) -> int:
    """How many workers Ray has killed for memory so far, by the trial's log."""
    return trial.log.read_text().count(_RAYLET_KILLED_WORKER) if trial.log.exists() else 0


def _require(*, disturbed: bool) -> None:
    if not disturbed:
        raise NotDisturbedError


def _sleep(run: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Sleep, but not after the run has ended."""
    deadline = time.monotonic() + seconds
    while run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
