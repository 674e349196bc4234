"""Plan: how many actors of what size, from the cluster's hardware and the number of images."""

import logging
import math
from dataclasses import dataclass

from lesioncam.address import can_grow
from lesioncam.cluster import Capacity, await_resources, capacity, probe_hardware
from lesioncam.errors import InputError
from lesioncam.vision.hardware import BATCH_SIZES, choose_precision

# Ray places stage 1's actors first. No two of them fill a GPU, so that stage 2 finds room even
# where fewer GPUs come than were asked for.
_GPU_FRACTIONS = (0.6, 0.4)
_IMAGES_PER_ADDED_GPU = 50_000  # pending images for which another node with a GPU is started

log = logging.getLogger("lesioncam")


@dataclass(frozen=True)
class Plan:
    """Sizes of the scoring pipeline.

    Attributes:
        actors: actors of each of the two stages.
        actor_cpus: CPUs each of them reserves. On CPUs it computes with more than it reserves:
            actors that restart on the remaining nodes, when others were lost, must leave room for
            reading, decoding and writing, or the run makes no progress.
        actor_gpus: GPUs an actor of stage 1 reserves, and one of stage 2; both share one. 0 where
            the networks run on CPUs.
        decode_cpus: CPUs a decode task reserves.
        batch_size: images a forward pass takes; the last batch is padded to it.
        block_rows: images that travel together.
        part_rows: images that become durable together, as one part file.
        window: images that may be fetched and not yet durable: the most that a killed run repeats.
        precision: of the convolutions, `float32`, `bfloat16` or `int8`: the same on every node.
    """

    actors: int
    actor_cpus: float
    actor_gpus: tuple[float, float]
    decode_cpus: float
    batch_size: int
    block_rows: int
    part_rows: int
    window: int
    precision: str


def check_cluster(gpus: int | None) -> None:
    """Refuse a Ray that cannot run the pipeline, before anything is written.

    Args:
        gpus: as for `make_plan`.

    Raises:
        InputError: it has a single CPU, or no GPU though one is asked for and none can come.
    """
    cluster = capacity()
    if gpus and not cluster.gpus and not can_grow():
        raise InputError("--gpus: this machine has no GPU; leave it out")
    if cluster.cpus or not can_grow():  # else its first node has yet to come
        _check_cpus(cluster)


def _check_cpus(cluster: Capacity) -> None:
    if cluster.cpus < 2:  # Ray Data's own tasks take one of them whole, beside the actors
        raise InputError(f"scoring needs at least 2 CPUs; the Ray cluster has {cluster.cpus:g}")


def make_plan(gpus: int | None, precision: str, pending: int, *, quantized: bool) -> Plan:
    """Plan for the Ray this process is connected to; waits for its first node if it has none.

    Args:
        gpus: the maximum to use, including ones the cluster must start first, one for every 50,000
            images; None for those available.
        precision: as for `choose_precision`.
        pending: images to score.
        quantized: whether the bundle has what int8 needs.

    Raises:
        InputError: the cluster has a single CPU, or the bundle or a node does not have this
            precision.
        RunFailedError: it started no node in time.
    """
    available = capacity().gpus
    if gpus is None:
        gpus = available
    elif can_grow():
        gpus = min(gpus, max(available, math.ceil(pending / _IMAGES_PER_ADDED_GPU)))
    else:
        gpus = min(gpus, available)
    if can_grow():
        kind = "GPU" if gpus else "CPU"
        await_resources([{kind: 0.01}], f"a {kind}")
    cluster = capacity()
    _check_cpus(cluster)
    hardware = probe_hardware(gpu=gpus > 0)
    if gpus and hardware.device == "cpu":
        log.warning("torch cannot use the GPUs of this cluster; the networks run on its CPUs")
        gpus, hardware = 0, probe_hardware(gpu=False)
    return plan_for(cluster, gpus, choose_precision(precision, hardware, quantized=quantized))


def plan_for(cluster: Capacity, gpus: int, precision: str) -> Plan:
    """The plan for a cluster.

    With GPUs: on each, one actor of each stage, and decoding on all CPUs, including those that come
    with GPUs yet to be started. Without: the CPUs are divided between the two stages, which cost
    the same, one thread an actor; an odd one remains for reading and decoding. The window holds a
    part that is written and one that fills up, for each actor a block at work and one that waits,
    and, where the networks wait for decoding, a block in each decode task.

    Args:
        cluster: its hardware.
        gpus: to use; 0 to run the networks on CPUs.
        precision: of the convolutions.
    """
    cpus_per_gpu = cluster.cpus_per_gpu or 0.0
    cpus = int(cluster.cpus + max(0, gpus - cluster.gpus) * cpus_per_gpu)
    if gpus:
        decode_cpus = min(1.0, cpus / 4)
        return Plan(
            actors=gpus,
            actor_cpus=min(0.5, cpus_per_gpu / 4),
            actor_gpus=_GPU_FRACTIONS,
            decode_cpus=decode_cpus,
            batch_size=BATCH_SIZES["cuda"],
            block_rows=256,
            part_rows=2048,
            window=2 * 2048 + 256 * (4 * gpus + int(cpus / decode_cpus)),
            precision=precision,
        )
    actors = cpus // 2
    return Plan(
        actors=actors,
        actor_cpus=cpus / actors / 16,
        actor_gpus=(0, 0),
        decode_cpus=0.5,
        batch_size=BATCH_SIZES["cpu"],
        block_rows=16,
        part_rows=128,
        window=2 * 128 + 16 * 4 * actors,
        precision=precision,
    )
