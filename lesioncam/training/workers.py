"""Workers: how many train or predict at once, and with what. Planned once, for all nodes alike."""

import logging
from dataclasses import dataclass

from lesioncam.address import can_grow
from lesioncam.cluster import Capacity, await_resources, capacity, probe_hardware
from lesioncam.errors import InputError

log = logging.getLogger("lesioncam")


@dataclass(frozen=True)
class Workers:
    """The Ray Train workers of a stage, or the predictors after it.

    Attributes:
        count: how many run at once.
        gpu: whether each has a GPU.
        cpus: CPUs that each reserves.
        threads: torch threads of each, on CPU.
        precision: of the convolutions, `float32` or `bfloat16`.
    """

    count: int
    gpu: bool
    cpus: float
    threads: int
    precision: str


def plan_workers(count: int, gpu: bool | None) -> Workers:
    """Divide the cluster between `count` workers.

    Args:
        count: how many workers.
        gpu: whether each gets a GPU; None for where the cluster has GPUs that torch can use.

    Raises:
        InputError: fewer GPUs than workers, GPUs that torch cannot use, or nodes too small.
        RunFailedError: an autoscaling cluster did not start the nodes in time.
    """
    cluster = capacity()
    on_gpu = cluster.gpus > 0 if gpu is None else gpu
    if on_gpu and cluster.gpus < count and not can_grow():
        raise InputError(
            f"--gpu: {count} workers need a GPU each and this machine has {cluster.gpus}; lower "
            f"--workers or use --no-gpu"
        )
    if can_grow():
        bundles = [{"GPU": 1.0}] * count if on_gpu else [{"CPU": 0.1}]
        await_resources(bundles, f"{count} GPUs" if on_gpu else "a CPU")
    hardware = probe_hardware(gpu=on_gpu)
    if on_gpu and hardware.device == "cpu":
        if gpu:
            raise InputError("--gpu: torch cannot use the GPUs of this cluster; use --no-gpu")
        log.warning("torch cannot use the GPUs of this cluster; training on CPU")
        return plan_workers(count, gpu=False)
    workers = workers_for(capacity(), count, gpu=on_gpu, precision=hardware.native_float)
    log.info("%s", _describe(workers))
    return workers


def workers_for(cluster: Capacity, count: int, *, gpu: bool, precision: str) -> Workers:
    """`count` equal workers that fit on a cluster's nodes, with room for decoding beside them.

    Raises:
        InputError: they do not fit.
    """
    cpu_share = cluster.cpu_share(count, gpu=gpu)
    if not cpu_share:
        raise InputError(f"--workers: {count} workers do not fit on the cluster's nodes; use fewer")
    reserved = cpu_share / 2 if cpu_share <= 2 else float(int(cpu_share) - 1)
    return Workers(count, gpu, reserved, max(1, int(cpu_share)), precision)


def check_workers(workers: int, batch: int) -> None:
    """Refuse more workers than there are images in a batch.

    Raises:
        InputError: naming both numbers.
    """
    if workers > batch:
        raise InputError(
            f"--workers: {workers} workers cannot share a batch of {batch} images; lower --workers"
        )


def _describe(workers: Workers) -> str:
    """`1 worker on CPU, 2 threads`, `2 workers on GPU`."""
    several = workers.count > 1
    text = f"{workers.count} worker{'s' * several} on {'GPU' if workers.gpu else 'CPU'}"
    if workers.gpu:
        return text
    return f"{text}, {workers.threads} thread{'s' * (workers.threads > 1)}{' each' * several}"
