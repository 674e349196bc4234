"""Speed: `lesioncam score` beside the machine's limit and beside what one would write instead.

    python -m benchmarks.speed [--bundle model | --backbone vgg16 --weights vgg16.safetensors]

All programs run on CPUs and on the same images. Each runs once uncounted, in one precision, as a
first run reads all its libraries from disk. Then in each round everything runs once, in turn: the
limit, then each program on a few images and on many, each time as a new process from its start to
its end. The steady rate comes from how much longer the many take than the few (their median over
all rounds), the rate with start-up from the longer run. A few images fill every stage, so that the
time to fill and empty a pipeline cancels out. Every program's results are counted and compared with
lesioncam's; a program that did other work is an error, not a row of the table.
"""

import argparse
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import limit
from benchmarks.agreement import Agreement, Outcome, compare, read_peer, read_scores
from benchmarks.images import SIZES, write_images
from benchmarks.model import write_bundle
from benchmarks.process import Finished, run
from benchmarks.report import Rounds, machine, machine_line, markdown, steady_rate, write
from lesioncam.errors import InputError
from lesioncam.settings import BACKBONES, ModelSettings
from lesioncam.storage.bundle import load_bundle
from lesioncam.vision.hardware import hardware_of

log = logging.getLogger("benchmarks")

LIMIT, OURS = "limit", "lesioncam score"
PEERS = {"DataLoader": "dataloader", "Ray Data": "ray_data", "Daft": "daft_udf"}
FEW = 64
_FLOAT32_DIVISOR = 2  # float32 is slower: its long runs have so many times fewer images beyond FEW


@dataclass(frozen=True)
class Program:
    """Something that scores a directory of images.

    Attributes:
        name: of `OURS` or `PEERS`.
        precision: of the convolutions.
    """

    name: str
    precision: str

    def score(self, images: Path, bundle: str, output: Path) -> Finished:
        """Score a directory, from the start of a process to its end."""
        shutil.rmtree(output, ignore_errors=True)
        command = (
            ["lesioncam", "score"]
            if self.name == OURS
            else [f"benchmarks.peers.{PEERS[self.name]}"]
        )
        return run(
            "-m", *command, "--images", str(images), "--bundle", bundle, "--output", str(output),
            "--precision", self.precision,
        )  # fmt: skip

    def outcome(self, output: Path, settings: ModelSettings) -> Outcome:
        """The predictions it wrote."""
        if self.name == OURS:
            return read_scores(output, settings.classes)
        return read_peer(output, settings.canvas_size)


@dataclass(frozen=True)
class Measured:
    """One round of a program.

    Attributes:
        images: of the longer run.
        few: the run on `FEW` images.
        many: the longer run.
    """

    images: int
    few: Finished
    many: Finished


def figures(rounds: Sequence[Measured]) -> dict[str, Rounds]:
    """The figures of a program's rounds.

    Returns:
        `steady`: images/s without start-up; `whole`: images/s of the longer run, with its start-up;
        `start`: seconds that do not grow with the images; `peak_mib`: the largest memory of all its
        processes.
    """
    few = median(one.few.seconds for one in rounds)
    steady = Rounds(tuple(steady_rate(FEW, few, one.images, one.many.seconds) for one in rounds))
    return {
        "steady": steady,
        "whole": Rounds(tuple(one.images / one.many.seconds for one in rounds)),
        "start": Rounds(tuple(one.few.seconds - FEW / steady.median for one in rounds)),
        "peak_mib": Rounds(tuple(one.many.peak_mib for one in rounds)),
    }


class Benchmark:
    """The programs, the images and the measurements so far.

    Args:
        bundle: the model all of them score with.
        work: the directory of images and outputs.
        many: images of a longer run in lesioncam's precision.
    """

    def __init__(self, bundle: str, work: Path, many: int):
        self.bundle, self.work, self.many = bundle, work, many
        self.settings = load_bundle(bundle).settings
        if self.settings.test_time_rotation:
            raise InputError("--bundle: it uses test-time augmentation, and the peers do not")
        self.fastest, self.layouts = limit.best(bundle, limit.layouts(limit.precision_of(bundle)))
        self.precision = self.fastest.precision
        self.native = hardware_of(limit.device()).native_float  # no peer has int8
        precisions = sorted({"float32", self.native}, reverse=True)
        peers = [Program(name, precision) for precision in precisions for name in PEERS]
        self.programs = [Program(OURS, self.precision), *peers]
        self.machine = machine("daft", "grad-cam", precision=self.precision)
        self.limits: list[float] = []
        self.measured: dict[tuple[tuple[int, int], Program], list[Measured]] = defaultdict(list)
        self.agreements: dict[tuple[tuple[int, int], Program], Agreement] = {}

    def warm_up(self) -> None:
        """Run each program once, so that its libraries are in the page cache."""
        images = write_images(self.work, SIZES[0], FEW)
        for program in self.programs:
            if program.name == OURS or program.precision == self.native:
                finished = program.score(images, self.bundle, self._output(program, SIZES[0]))
                log.info("uncounted: %s: %s", program.name, finished)

    def round(self) -> None:
        """Measure everything once."""
        for size in SIZES:
            self.limits.append(limit.measure(self.bundle, self.fastest))
            log.info("%s: %.2f images/s", self.fastest, self.limits[-1])
            for program in self.programs:
                self._measure(program, size)

    def _measure(self, program: Program, size: tuple[int, int]) -> None:
        divisor = _FLOAT32_DIVISOR if program.precision not in (self.precision, self.native) else 1
        many = FEW + (self.many - FEW) // divisor
        output = self._output(program, size)
        few_images, many_images = (write_images(self.work, size, count) for count in (FEW, many))
        measured = Measured(
            many,
            program.score(few_images, self.bundle, output),
            program.score(many_images, self.bundle, output),
        )
        self.measured[size, program].append(measured)
        log.info("%s %s %s: %s", size, program.name, program.precision, measured)
        program.outcome(output, self.settings).check_complete(many_images)
        if program.name != OURS:
            self.agreements[size, program] = self._check(program, size)

    def _check(self, program: Program, size: tuple[int, int]) -> Agreement:
        """Compare with lesioncam's results of the same round.

        Raises:
            RuntimeError: it did other work.
        """
        ours = self.programs[0]
        agreement = compare(
            ours.outcome(self._output(ours, size), self.settings),
            program.outcome(self._output(program, size), self.settings),
        )
        if not agreement.same_work:
            raise RuntimeError(f"{program} did not do the work of {OURS}: {agreement}")
        return agreement

    def _output(self, program: Program, size: tuple[int, int]) -> Path:
        name = f"scores-{program.name}-{program.precision}-{size[0]}x{size[1]}"
        return self.work / name.replace(" ", "-")

    def content(self) -> dict[str, Any]:
        """All figures, for `speed.json`."""
        return {
            "machine": self.machine,
            "backbone": self.settings.backbone,
            "limit": {"settings": str(self.fastest), **Rounds(tuple(self.limits)).as_json()},
            "limit_tried": self.layouts,
            "programs": [
                {
                    "size": size,
                    **asdict(program),
                    **{name: one.as_json() for name, one in figures(rounds).items()},
                    "rounds": [asdict(one) for one in rounds],
                    "agreement": _facts(self.agreements.get((size, program))),
                }
                for (size, program), rounds in self.measured.items()
            ],
        }

    def text(self) -> str:
        """The tables of `speed.md`."""
        parts = [f"# Speed\n\n{machine_line(self.machine)}. Images/s: median of ",
                 f"{len(self.limits) // len(SIZES)} rounds (smallest to largest).\n"]  # fmt: skip
        top = Rounds(tuple(self.limits))
        for size in SIZES:
            ours = figures(self.measured[size, self.programs[0]])["steady"].median
            rows: list[list[object]] = [[f"{LIMIT}: {self.fastest}", top, "", "", "", "", "", ""]]
            rows += [self._row(size, program, top.median, ours) for program in self.programs]
            parts.append(f"\n## {self.settings.backbone}, JPEGs of {size[0]} x {size[1]}\n\n")
            parts.append(markdown(_HEAD, rows))
        return "".join(parts)

    def _row(
        self, size: tuple[int, int], program: Program, top: float, ours: float
    ) -> list[object]:
        found = figures(self.measured[size, program])
        steady, whole = found["steady"], found["whole"]
        agreement = self.agreements.get((size, program))
        return [
            f"{program.name}, {program.precision}",
            steady,
            f"{steady.median / top:.2f}",
            f"{ours / steady.median:.2f}" if agreement else "",
            whole,
            found["start"],
            f"{found['peak_mib'].median:,.0f}",
            f"{agreement.mean_difference:.4f}, {agreement.median_overlap:.2f}" if agreement else "",
        ]


_HEAD = (
    "program",
    "steady images/s",
    "fraction of the limit",
    "lesioncam / peer",
    "with start-up",
    "start-up, s",
    "peak memory, MiB",
    "mean difference of a probability, median IoU of boxes",
)


def _facts(agreement: Agreement | None) -> Mapping[str, Any] | None:
    return asdict(agreement) if agreement else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, round by round, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", help="a trained model (one is made)")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="vgg16")
    parser.add_argument("--weights", help="ImageNet weights of the model that is made (random)")
    parser.add_argument("--images", type=int, default=320, help="of a long run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("lesioncam-bench"))
    flags = parser.parse_args(arguments)
    minimum = (1 + _FLOAT32_DIVISOR) * FEW
    if flags.images < minimum:
        parser.error(f"--images: {flags.images} are too few for a rate; give {minimum} or more")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the programs compared all compute on CPUs
    work = flags.output / "work"
    work.mkdir(parents=True, exist_ok=True)
    bundle = flags.bundle or f"{work}/{flags.backbone}"
    if flags.bundle is None:
        write_bundle(bundle, flags.backbone, flags.weights)
    benchmark = Benchmark(bundle, work, flags.images)
    benchmark.warm_up()
    for _ in range(flags.rounds):
        benchmark.round()
        write(flags.output, "speed", benchmark.content(), benchmark.text())


if __name__ == "__main__":
    main()
