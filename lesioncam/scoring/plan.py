"""Plan: how many actors of what size, chosen from what the cluster has."""

from dataclasses import dataclass

import ray
import torch

from lesioncam.errors import InputError
from lesioncam.vision.network import native_precision


@dataclass(frozen=True)
class Plan:
    """Sizes of the scoring pipeline.

    Attributes:
        actors: actors of each of the two stages.
        actor_cpus: CPUs each of them reserves. On CPUs it computes with more than it reserves:
            actors that start again on the nodes that are left, when others were lost, must leave
            room for reading, decoding and writing, or the run stands still.
        actor_gpus: GPUs each of them reserves; both stages share one.
        threads: torch threads an actor computes with on a CPU.
        decode_cpus: CPUs a decode task reserves.
        batch_size: images a forward pass takes; the last batch is padded to it.
        block_rows: images that travel together.
        part_rows: images that become durable together, as one part file.
        window: images that may be fetched and not yet durable: what a killed run repeats at most.
        precision: of the convolutions, `float32` or `bfloat16`.
    """

    actors: int
    actor_cpus: float
    actor_gpus: float
    threads: int
    decode_cpus: float
    batch_size: int
    block_rows: int
    part_rows: int
    window: int
    precision: str

    @property
    def device(self) -> str:
        """Where the actors compute."""
        return "cuda" if self.actor_gpus else "cpu"


def make_plan(precision: str) -> Plan:
    """Plan for the Ray this process is connected to.

    With GPUs: on each, one actor of each stage, and decoding on all CPUs. Without: the CPUs are
    divided between the two stages, which cost the same, one thread an actor. Under way are a part
    that is written and one that fills up, for each actor a block at work and one that waits, and,
    where decoding is what the networks wait for, a block in each decode task.

    Args:
        precision: `float32`, `bfloat16`, or `auto` for what the hardware computes in natively.

    Raises:
        InputError: the cluster has a single CPU.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    if cpus < 2:  # Ray Data's own tasks take one of them whole, beside the actors
        raise InputError("the Ray cluster has one CPU; scoring needs at least two")
    if precision == "auto":
        probe = ray.remote(num_cpus=0.1, num_gpus=0.01 if gpus else 0)(_native)
        precision = ray.get(probe.remote("cuda" if gpus else "cpu"))
    if gpus:
        decode_cpus = min(1.0, cpus / 4)
        return Plan(
            actors=gpus,
            actor_cpus=min(0.5, cpus / gpus / 4),
            actor_gpus=0.5,
            threads=1,
            decode_cpus=decode_cpus,
            batch_size=64,
            block_rows=256,
            part_rows=2048,
            window=2 * 2048 + 256 * (4 * gpus + int(cpus / decode_cpus)),
            precision=precision,
        )
    actors = cpus // 2
    return Plan(
        actors=actors,
        actor_cpus=cpus / actors / 16,
        actor_gpus=0,
        threads=1,
        decode_cpus=0.5,
        batch_size=16,
        block_rows=64,
        part_rows=128,
        window=2 * 128 + 64 * 4 * actors,
        precision=precision,
    )


def _native(device: str) -> str:
    return native_precision(torch.device(device))
