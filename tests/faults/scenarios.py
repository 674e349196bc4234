"""What goes wrong in a night: each scenario starts one run and disturbs it.

A scenario takes the night, the proxy before its store (None for a local one), dice, and how long an
undisturbed run takes; it returns when its run has ended, however it ended.
"""

import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults import proxy as proxies
from tests.faults.night import Night
from tests.faults.proxy import Misdeed, Proxy

if TYPE_CHECKING:
    import subprocess

Scenario = Callable[[Night, Proxy | None, random.Random, float], None]

_DISK = "40k"  # a disk that is full before the scores are written


def driver_killed(night: Night, _: Proxy | None, dice: random.Random, seconds: float) -> None:
    """The driver dies at any moment, and its Ray with it."""
    run = night.start()
    _sleep(run, dice.uniform(0.2, 1.0) * seconds)
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


def worker_killed(
    title: str, night: Night, _: Proxy | None, dice: random.Random, seconds: float
) -> None:
    """A worker process dies, as the kernel ends one that takes too much memory."""
    run = night.start()
    night.kill(title, run)
    _sleep(run, dice.uniform(0, 0.2) * seconds)
    night.kill(title, run)
    night.end(run)


def node_lost(night: Night, _: Proxy | None, dice: random.Random, seconds: float) -> None:
    """Ray's own process of the node dies."""
    run = night.start()
    _sleep(run, dice.uniform(0.3, 0.9) * seconds)
    night.kill("raylet/raylet", run)
    night.end(run)


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
    misdeed: Misdeed, night: Night, proxy: Proxy | None, dice: random.Random, seconds: float
) -> None:
    """From a moment on no request succeeds."""
    assert proxy is not None
    run = night.start()
    _sleep(run, dice.uniform(0.3, 0.9) * seconds)
    proxy.misdeed = misdeed
    night.end(run)
    proxy.misdeed = None


LOCAL: dict[str, Scenario] = {
    "driver killed (SIGKILL)": driver_killed,
    "all processes killed at once": machine_lost,
    "fetch-and-decode workers killed": partial(worker_killed, "fetch_and_decode"),
    "stage-1 actor killed, twice": partial(worker_killed, "Localise"),
    "stage-2 actor killed, twice": partial(worker_killed, "Classify"),
    "write workers killed": partial(worker_killed, "write_part"),
    "Ray's node process killed": node_lost,
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
    "credentials expire": partial(store_fails_from_then_on, proxies.expired),
    "store gone": partial(store_fails_from_then_on, proxies.away),
}


def _sleep(run: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Sleep, but no longer than the run lives."""
    deadline = time.monotonic() + seconds
    while run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
