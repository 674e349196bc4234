"""The Ray cluster a verb runs on: the one at `RAY_ADDRESS`, else a local one for this run.

Also what that cluster has, and the one-line error for a run that it ended. Knows nothing about
scoring or training.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lesioncam.address import check_ray, cluster_address
from lesioncam.errors import InputError, RunFailedError, failed_by, first_line
from lesioncam.interrupts import handle_signals, ignore_signals, interruptible
from lesioncam.storage.store import StoreError
from lesioncam.vision.hardware import Hardware, common_hardware, hardware_of

if TYPE_CHECKING:
    import torch

_ROUNDING = 1e-9
_NODE_TIMEOUT_S = 900  # for an autoscaling cluster to start a node
_PROBE_TIMEOUT_S = 300  # for a process to start and load torch

# How soon the driver gives up on a node that lost power: with Ray's defaults after up to seven
# minutes. Ray's servers reject pings that come more than once a minute. Ray reads these variables
# when it is imported, and again in `ray.init`.
_KEEPALIVE = {
    "RAY_grpc_client_keepalive_time_ms": "60000",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
}

# By default Ray kills a worker process after one idle second where it has more processes than
# cores. Writing a part would then wait for a new process, since all cores decode.
_KEEP_IDLE = {"RAY_idle_worker_killing_time_threshold_ms": "600000"}

log = logging.getLogger("lesioncam")


@dataclass(frozen=True)
class Node:
    """The CPUs and GPUs of one node."""

    cpus: float
    gpus: int


@dataclass(frozen=True)
class Capacity:
    """The CPUs and GPUs of a cluster, node by node."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def cpus_per_gpu(self) -> float | None:
        """CPUs per GPU on the GPU node that has the fewest; None without GPUs."""
        return min((node.cpus / node.gpus for node in self.nodes if node.gpus), default=None)

    def cpu_share(self, workers: int, *, gpu: bool) -> float:
        """CPUs that each of `workers` equal workers can have.

        Args:
            workers: how many must fit; several may run on one node.
            gpu: whether each also needs a GPU.

        Returns:
            0 if they do not fit.
        """

        def fit(cpus: float) -> int:
            slots = ((int(node.cpus / cpus + _ROUNDING), node.gpus) for node in self.nodes)
            return sum(min(by_cpu, gpus) if gpu else by_cpu for by_cpu, gpus in slots)

        sizes = {node.cpus / parts for node in self.nodes for parts in range(1, workers + 1)}
        return max((cpus for cpus in sizes if cpus and fit(cpus) >= workers), default=0.0)


def capacity() -> Capacity:
    """The nodes that are alive in the cluster this process is connected to."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Capacity(tuple(Node(node.get("CPU", 0.0), int(node.get("GPU", 0))) for node in alive))


def await_resources(bundles: list[dict[str, float]], what: str) -> None:
    """Request resources and wait until the cluster has them, as an autoscaler may start nodes.

    Args:
        bundles: resources; each bundle must fit on one node.
        what: their name for the log.

    Raises:
        RunFailedError: they were not available in time.
    """
    group = placement_group(bundles)
    try:
        if not group.wait(5):
            log.info("waiting for %s: none is free in the cluster yet", what)
            if not group.wait(_NODE_TIMEOUT_S):
                raise RunFailedError(
                    f"the cluster did not provide {what} within {_NODE_TIMEOUT_S / 60:g} minutes; "
                    f"run the same command again"
                )
    finally:
        remove_placement_group(group)


def device_here() -> "torch.device":
    """The device of this task or actor: the GPU that Ray assigned, if torch can use it."""
    import torch  # noqa: PLC0415

    return torch.device("cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")


def probe_hardware(*, gpu: bool) -> Hardware:
    """Ask every node of the cluster what it computes on, for what they have in common.

    Args:
        gpu: ask the nodes with GPUs. `device` is `cpu` then where torch cannot use all of these.

    Raises:
        ray.exceptions.GetTimeoutError: no answer within five minutes.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    needed = "GPU" if gpu else "CPU"
    nodes = [node["NodeID"] for node in alive if node["Resources"].get(needed)]
    # On a one-node cluster, the answer is the same here, without a process that first loads torch.
    # A cluster without CPUs is refused by what asks.
    if not gpu and (len(alive) == 1 or not nodes):
        return _hardware_here()
    probe = ray.remote(num_cpus=0, num_gpus=0.01 * gpu)(_hardware_here)
    # Soft: where a node is lost meanwhile, another one answers for it.
    places = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    asked = [probe.options(scheduling_strategy=place).remote() for place in places]
    return common_hardware(ray.get(asked, timeout=_PROBE_TIMEOUT_S))


def _hardware_here() -> Hardware:
    return hardware_of(device_here() if ray.get_gpu_ids() else None)


def as_run_error(error: BaseException) -> RunFailedError | None:
    """The one-line error for a run that Ray, a store or a disk ended.

    Args:
        error: as it reached the driver. An InputError counts as the store's fault here: the input
            was good when the run began.

    Returns:
        None for errors that are reported as they are: a RunFailedError, and bugs (also a worker's),
        which need their traceback.
    """
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if isinstance(cause, RunFailedError):
        return None if cause is error else RunFailedError(first_line(cause))
    if isinstance(cause, InputError | StoreError | OSError):
        return failed_by(cause)
    if isinstance(cause, ray.exceptions.RayError):
        return RunFailedError(
            f"the run failed in Ray ({type(cause).__name__}; Ray's logs have details); run the "
            f"same command again"
        )
    return None


@contextmanager
def connected() -> Iterator[None]:
    """Attach to the cluster in `RAY_ADDRESS`, or start a local one and stop it at the end.

    Never joins a Ray that happens to run on this machine. Does nothing if this process is already
    connected. Ctrl-C and SIGTERM raise KeyboardInterrupt inside.

    Raises:
        InputError: nothing answers at `RAY_ADDRESS`, or no local Ray can start.
        RunFailedError: a local Ray did not start in time.
    """
    if ray.is_initialized():
        yield
        return
    with interruptible():
        try:
            try:
                _start()
            except SystemExit as error:  # Ray's handler of SIGTERM while it starts
                raise KeyboardInterrupt from error
            handle_signals()  # Ray's own handler of SIGTERM prints a stack and aborts
            yield
        except KeyboardInterrupt:
            ignore_signals()
            raise
        finally:
            ray.shutdown()


def _start() -> None:
    check_ray()
    address = cluster_address()
    # Ray's core logs an "error" per actor pool on a healthy run.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is not None:
        for name, value in _KEEPALIVE.items():
            os.environ.setdefault(name, value)
        log.info("connecting to the Ray cluster")
        try:
            with _without_log_level_line():
                ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise InputError(
                f"RAY_ADDRESS: cannot connect to the Ray cluster at {address}; correct or unset "
                f"it; if the cluster asks for a token, set RAY_AUTH_MODE=token, and "
                f"RAY_AUTH_TOKEN or the file ~/.ray/auth_token"
            ) from error
    else:
        log.info("starting Ray")
        for name, value in _KEEP_IDLE.items():
            os.environ.setdefault(name, value)
        # Ray's listing task takes a whole CPU beside the actors: one core has to count as two.
        cpus = 2 if os.cpu_count() == 1 else None
        try:
            with _without_log_level_line():
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        except Exception as error:
            if type(error) is not Exception:
                raise
            # Ray raises this very class where one of its processes is too slow.
            raise RunFailedError(
                f"Ray did not start on this machine ({first_line(error)}); run the same command "
                f"again"
            ) from error
    from ray.data import DataContext  # noqa: PLC0415  takes a second

    # lesioncam logs its own progress.
    DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # the log files still get everything
            handler.setLevel(logging.CRITICAL)


@contextmanager
def _without_log_level_line() -> Iterator[None]:
    """Drop the line that Ray's core prints about `RAY_BACKEND_LOG_LEVEL`, and no other.

    It prints to the file descriptor of stderr, past `sys.stderr`. Where Ray does not start, the
    exception says so: the lines of each attempt are dropped too.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
        printed.seek(0)
        for line in printed:
            if b"RAY_BACKEND_LOG_LEVEL" not in line:
                os.write(2, line)
