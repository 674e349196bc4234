"""Which Ray a verb runs on: the cluster that `RAY_ADDRESS` names, else one of its own.

And what that has to offer, and how its end is told.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import torch
from ray.util import placement_group, remove_placement_group

from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.store import StoreError

_ROUNDING = 1e-9
_PATIENCE = 900  # seconds a cluster that scales itself has for a node that is waited for

# How soon this process gives up what it asked of a node whose power went: by Ray's own settings up
# to seven minutes after. Its servers turn away who asks for a sign of life more than once a minute.
# Ray has read its settings long before; `ray.init` reads the environment once more.
_KEEPALIVE = {
    "RAY_grpc_client_keepalive_time_ms": "60000",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
}

# Ray ends a process that was idle for a second where its tasks have more processes than cores. All
# cores decode: a part would be written by a process that first has to start.
_KEEP_IDLE = {"RAY_idle_worker_killing_time_threshold_ms": "600000"}

log = logging.getLogger("lesioncam")


@dataclass(frozen=True)
class Node:
    """What one node has for tasks and actors."""

    cpus: float
    gpus: int


@dataclass(frozen=True)
class Capacity:
    """What the nodes of a cluster have."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """In all."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """In all."""
        return sum(node.gpus for node in self.nodes)

    @property
    def cpus_per_gpu(self) -> float | None:
        """Of the node with a GPU that has the fewest for each; None without one."""
        return min((node.cpus / node.gpus for node in self.nodes if node.gpus), default=None)

    def share(self, workers: int, *, gpu: bool) -> float:
        """CPUs that each of so many equal workers can have, on nodes of whatever sizes.

        Args:
            workers: how many must fit, several on a node where it is large enough.
            gpu: whether each needs a GPU besides.

        Returns:
            0 if they do not fit.
        """

        def fit(share: float) -> int:
            places = ((int(node.cpus / share + _ROUNDING), node.gpus) for node in self.nodes)
            return sum(min(cpus, gpus) if gpu else cpus for cpus, gpus in places)

        shares = {node.cpus / parts for node in self.nodes for parts in range(1, workers + 1)}
        return max((share for share in shares if share and fit(share) >= workers), default=0.0)


def capacity() -> Capacity:
    """Look at the cluster this process is connected to."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Capacity(tuple(Node(node.get("CPU", 0.0), int(node.get("GPU", 0))) for node in alive))


def can_grow() -> bool:
    """Whether nodes may come to this Ray: not to one of this program's own."""
    return bool(os.environ.get("RAY_ADDRESS"))


def await_resources(bundles: list[dict[str, float]], what: str) -> None:
    """Ask a cluster for these resources, and wait for as long as it may take to start a node.

    Args:
        bundles: each must fit on one node.
        what: their name for the log.

    Raises:
        RunFailedError: they did not come in time.
    """
    group = placement_group(bundles)
    try:
        if not group.wait(5):
            log.info("waiting for %s, which the cluster does not have free yet", what)
            if not group.wait(_PATIENCE):
                minutes = _PATIENCE / 60
                raise RunFailedError(
                    f"the cluster did not come to have {what} in {minutes:g} minutes; run the same "
                    f"command again"
                )
    finally:
        remove_placement_group(group)


def device_here() -> torch.device:
    """Where this task or actor computes: on the GPU that Ray gave it, if torch can use that."""
    return torch.device("cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")


def broke_off(error: BaseException) -> RunFailedError | None:
    """What ended a run that Ray, a store or a disk broke off, in one line.

    Args:
        error: as it reached the driver; what was good input when the run began is not to blame.

    Returns:
        None for what says it itself, and for bugs, a worker's too: their tracebacks tell more.
    """
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if isinstance(cause, RunFailedError):
        return None if cause is error else RunFailedError(_first_line(cause))
    if isinstance(cause, InputError | StoreError | OSError):
        return to_mend(cause)
    if isinstance(cause, ray.exceptions.RayError):
        what = f"in Ray, which tells more in its logs ({type(cause).__name__})"
        return RunFailedError(f"the run broke off {what}; run the same command again")
    return None


def to_mend(error: Exception) -> RunFailedError:
    """A run broken off by what was good input, or a place to write, when it began."""
    said = _first_line(error)
    return RunFailedError(f"the run broke off: {said}; mend that; run the same command again")


def _first_line(error: Exception) -> str:
    """What it says, before a worker's traceback."""
    return str(error).partition("\n")[0]


@contextmanager
def connected() -> Iterator[None]:
    """Attach to the cluster in `RAY_ADDRESS`, or start a local one and stop it at the end.

    Never joins a Ray that merely happens to run on this machine. Does nothing where this process
    is connected already.

    Raises:
        InputError: nothing answers at `RAY_ADDRESS`.
    """
    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        try:
            _start()
        except SystemExit as error:  # Ray's answer to SIGTERM
            raise KeyboardInterrupt from error
        _at_sigterm(signal.default_int_handler)  # Ray's own handler prints a stack and aborts
        yield
    finally:
        ray.shutdown()
        _at_sigterm(before)


def _start() -> None:
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        for name, value in _KEEPALIVE.items():
            os.environ.setdefault(name, value)
        try:
            _check_answers(address)
            ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"RAY_ADDRESS: no Ray cluster can be reached at {address}; mend or unset it"
            ) from error
    else:
        # Ray's core prints "errors" of its own making on a healthy run, one per actor pool.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        for name, value in _KEEP_IDLE.items():
            os.environ.setdefault(name, value)
        # Ray counts the cores, within a container's limits; its listing task takes one of them
        # beside the actors, so that one core must pass for two.
        cpus = 2 if os.cpu_count() == 1 else None
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    ray.data.DataContext.get_current().enable_progress_bars = False  # we show our own
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # its log files get all
            handler.setLevel(logging.CRITICAL)


def _at_sigterm(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():  # as Python asks
        signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    """Ray itself tries an address for minutes; `auto` and `ray://` are left to it."""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()
