"""Limit: both forward passes on canvases that are in memory already, and nothing else.

    python -m benchmarks.limit --bundle model

Stage 1 with map, box and crop, then stage 2, by the code that scoring runs. Several processes, that
divide the cores between them, start together and run for some seconds. No scoring pipeline on this
machine can be faster than the best of several layouts and batch sizes.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING

import torch

from lesioncam.settings import stage_ranges
from lesioncam.storage.bundle import Bundle, load_bundle, read_bundle
from lesioncam.vision.classifier import CropClassifier, Localizer, TwoStageClassifier
from lesioncam.vision.engine import load_network
from lesioncam.vision.hardware import choose_precision, hardware_of

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

BATCHES = {"cpu": (4, 8, 16, 32), "cuda": (32, 64, 128, 256)}
_SECONDS = 6.0  # that each setting is measured for, at least
_LOADING_TIMEOUT_S = 300.0  # for all processes to be ready; after that one must have failed


@dataclass(frozen=True)
class Settings:
    """How the networks are run.

    Attributes:
        processes: that run in parallel, each both stages on batches of its own.
        threads: of each of them.
        batch: images a pass.
        precision: of the convolutions.
    """

    processes: int
    threads: int
    batch: int
    precision: str

    def __str__(self) -> str:
        return (
            f"{self.processes} x {self.threads} threads, batches of {self.batch}, {self.precision}"
        )


def device() -> torch.device:
    """Where the networks run here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_of(bundle: str) -> str:
    """The precision that scoring takes by itself for this bundle on this machine."""
    quantized = read_bundle(bundle).quantization is not None
    return choose_precision("auto", hardware_of(device()), quantized=quantized)


def layouts(precision: str) -> list[Settings]:
    """The settings to try.

    One process with all cores, and one process per core; on a GPU one process or two, as scoring
    has them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    sizes = {1: 1, 2: 1} if device().type == "cuda" else {1: cores or 1, cores or 1: 1}
    return [
        Settings(processes, threads, batch, precision)
        for processes, threads in sizes.items()
        for batch in BATCHES[device().type]
    ]


def measure(bundle: str, settings: Settings, seconds: float = _SECONDS) -> float:
    """Images a second through both stages, of all processes together."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(settings.processes)
    rates: SimpleQueue[float] = context.SimpleQueue()
    processes = [
        context.Process(target=_rate, args=(bundle, settings, seconds, start, rates))
        for _ in range(settings.processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a process that measured {settings} failed")
    return sum(rates.get() for _ in processes)


def best(bundle: str, tried: Iterable[Settings]) -> tuple[Settings, dict[str, float]]:
    """The fastest of the settings, and the rate of each."""
    rates = {settings: measure(bundle, settings) for settings in tried}
    return max(rates, key=lambda s: rates[s]), {str(s): rate for s, rate in rates.items()}


class Passes:
    """Both forward passes over one batch of canvases of random pixels."""

    def __init__(self, bundle: Bundle, batch: int, precision: str):
        settings = bundle.settings
        self.stage1, self.stage2 = (
            load_network(settings, state, device(), precision, ranges)
            for state, ranges in zip(
                (bundle.stage1, bundle.stage2), stage_ranges(bundle.quantization), strict=True
            )
        )
        self._classifier = TwoStageClassifier(
            Localizer(settings, self.stage1), CropClassifier(settings, self.stage2)
        )
        shape = (batch, 3, settings.canvas_size, settings.canvas_size)
        random = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        self._canvases = pixels.contiguous(memory_format=torch.channels_last).to(device())

    def __call__(self) -> torch.Tensor:
        """Run both; returns stage 2's probabilities."""
        return self._classifier(self._canvases).stage2.cpu()


def _rate(
    bundle: str, settings: Settings, seconds: float, start: Barrier, rates: "SimpleQueue[float]"
) -> None:
    """Measure the rate of one process while all are running."""
    torch.set_num_threads(settings.threads)
    passes = Passes(load_bundle(bundle), settings.batch, settings.precision)
    passes()
    start.wait(_LOADING_TIMEOUT_S)
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        passes()
        count += settings.batch
    start.wait(_LOADING_TIMEOUT_S)  # no core is free for the others while they measure
    rates.put(count / elapsed)


def main() -> None:
    """Measure each setting and print its rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--precision", help="(the one that scoring takes)")
    flags = parser.parse_args()
    precision = flags.precision or precision_of(flags.bundle)
    fastest, rates = best(flags.bundle, layouts(precision))
    for name, rate in rates.items():
        print(f"{rate:8.2f} images/s  {name}")
    print(f"the limit: {fastest}")


if __name__ == "__main__":
    main()
