"""What goes wrong in a night: each scenario starts one run and disturbs it.

A scenario takes the night, the proxy before its store (None for a local one), dice, and how long an
undisturbed run takes; it returns when its run has ended, however it ended.
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
from tests.faults.night import Night
from tests.faults.proxy import Misdeed, Proxy

Scenario = Callable[[Night, Proxy | None, random.Random, float], None]

_LAST = 10  # images of a night, which are left to read when its store fails
_MORE = (10, 40)  # requests after these, when it fails near the end
_DISK = "40k"  # a disk that is full before the scores are written
_HOG = 3 * 2**30  # bytes that a run may take before its workers are killed
_HOGGED = 3.0  # seconds
_KILLED = "Selected to kill"  # what Ray's node process says then
_KINDS = ("fetch_and_decode", "Localize", "Classify", "WindowActor", "write_part")


def driver_killed(night: Night, _: Proxy | None, dice: random.Random, seconds: float) -> None:
    """The driver dies at some moment, and its Ray with it; one that is quick has ended by 0.7."""
    run = night.start()
    _sleep(run, dice.uniform(0.2, 0.7) * seconds)
    if run.poll() is None:
        run.send_signal(signal.SIGKILL)
    night.end(run)


def machine_lost(night: Night, _: Proxy | None, dice: random.Random, seconds: float) -> None:
    """Every process of the run dies at one moment, as when the power goes."""
    run = night.start()
    _sleep(run, dice.uniform(0.3, 1.0) * seconds)
    for process in night.processes(""):
        process.kill()
    night.end(run)


def workers_killed(
    titles: tuple[str, ...], night: Night, _: Proxy | None, dice: random.Random, seconds: float
) -> None:
    """Worker processes die, as the kernel ends those that take too much memory."""
    run = night.start()
    for title in titles:
        if not night.kill(title, run):
            raise RuntimeError(f"the run ended before a {title} process could be killed")
        _sleep(run, dice.uniform(0, 0.1) * seconds)
    night.end(run)


def node_lost(night: Night, _: Proxy | None, dice: random.Random, seconds: float) -> None:
    """Ray's own process of the node dies."""
    run = night.start()
    _sleep(run, dice.uniform(0.3, 0.9) * seconds)
    night.kill("raylet/raylet", run)
    night.end(run)


def node_of_two_lost(night: Night, _: Proxy | None, dice: random.Random, seconds: float) -> None:
    """A cluster of two nodes, of which one goes with all its processes, and another comes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        second = cluster.add_node(num_cpus=2)
        run = night.start(RAY_ADDRESS=cluster.address)
        _sleep(run, dice.uniform(0.3, 1.0) * seconds)
        cluster.remove_node(second, allow_graceful=False)
        _sleep(run, dice.uniform(0, 0.3) * seconds)
        cluster.add_node(num_cpus=2)
        night.end(run)
    finally:
        cluster.shutdown()


def out_of_memory(night: Night, _: Proxy | None, dice: random.Random, seconds: float) -> None:
    """Something else takes the machine's memory for a while, and Ray kills workers for it."""
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + _HOG) / memory.total
    killed = night.log.read_text().count(_KILLED) if night.log.exists() else 0
    run = night.start(RAY_memory_usage_threshold=f"{limit:.4f}", RAY_memory_monitor_refresh_ms="50")
    _sleep(run, dice.uniform(0.3, 0.7) * seconds)
    hog = subprocess.Popen([sys.executable, "-c", f"x = b'1' * {2 * _HOG}; input()"], stdin=-1)
    _sleep(run, _HOGGED)
    hog.kill()
    hog.wait()
    night.end(run)
    if night.log.read_text().count(_KILLED) == killed:
        raise RuntimeError("Ray killed nothing for want of memory")


def disk_full(night: Night, _: Proxy | None, __: random.Random, ___: float) -> None:
    """The disk under the output is full before all is written."""
    Path(night.output).mkdir(parents=True, exist_ok=True)
    mount = f'mount -t tmpfs -o size={_DISK} tmpfs "{night.output}" && exec "$@"'
    night.end(night.start(["unshare", "-m", "sh", "-c", mount, "sh"]))


def store_misbehaves(
    misdeed: Misdeed, share: float, images_only: bool,
    night: Night, proxy: Proxy | None, dice: random.Random, _: float,
) -> None:  # fmt: skip
    """A share of the requests goes wrong."""
    assert proxy is not None
    seed = dice.randrange(2**32)
    proxy.misdeed = proxies.sometimes(misdeed, share, seed, images_only=images_only)
    night.run()
    proxy.misdeed = None


def store_fails_from_then_on(
    misdeed: Misdeed, near_the_end: bool,
    night: Night, proxy: Proxy | None, dice: random.Random, _: float,
) -> None:  # fmt: skip
    """From a request on none succeeds: of those for images, or of those that write and merge."""
    assert proxy is not None
    images = len(list(open_store(night.images).entries())) - _LAST
    read, more = (images, dice.randint(*_MORE)) if near_the_end else (dice.randint(1, images), 0)
    proxy.misdeed = proxies.from_then_on(misdeed, read, more)
    night.run()
    proxy.misdeed = None


LOCAL: dict[str, Scenario] = {
    "driver killed (SIGKILL)": driver_killed,
    "all processes killed at once": machine_lost,
    "fetch-and-decode workers killed": partial(workers_killed, ("fetch_and_decode",) * 2),
    "stage-1 actor killed, twice": partial(workers_killed, ("Localize",) * 2),
    "stage-2 actor killed, twice": partial(workers_killed, ("Classify",) * 2),
    "write worker killed": partial(workers_killed, ("write_part",)),
    "a process of every kind killed": partial(workers_killed, _KINDS),
    "Ray's node process killed": node_lost,
    "one of two nodes lost, another comes": node_of_two_lost,
    "worker out of memory": out_of_memory,
    "disk full": disk_full,
}
REMOTE: dict[str, Scenario] = {
    "driver killed (SIGKILL)": driver_killed,
    "503 SlowDown, a fifth of all requests": partial(
        store_misbehaves, proxies.slow_down, 0.2, False
    ),
    "connection reset in mid-body, a fifth": partial(store_misbehaves, proxies.reset, 0.2, True),
    "body cut short, a fifth": partial(store_misbehaves, proxies.cut_short, 0.2, True),
    "wrong Content-Length, a fifth": partial(store_misbehaves, proxies.wrong_length, 0.2, True),
    "AccessDenied that passes, a fifth": partial(store_misbehaves, proxies.denied, 0.2, True),
    "not there when read, a fifth": partial(store_misbehaves, proxies.gone, 0.2, True),
    "no answer for 65 s, one in 200": partial(store_misbehaves, proxies.stalled, 0.005, True),
    "write's answer lost, a fifth": partial(store_misbehaves, proxies.unanswered, 0.2, False),
    "credentials expire": partial(store_fails_from_then_on, proxies.expired, False),
    "store gone": partial(store_fails_from_then_on, proxies.away, False),
    "credentials expire near the end": partial(store_fails_from_then_on, proxies.expired, True),
    "store gone near the end": partial(store_fails_from_then_on, proxies.away, True),
}


def _sleep(run: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Sleep, but no longer than the run lives."""
    deadline = time.monotonic() + seconds
    while run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
