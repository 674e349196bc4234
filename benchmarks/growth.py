"""Growth: whether `lesioncam score` keeps its rate and its memory as the work grows.

    python -m benchmarks.growth --images 500 2000 8000

Each size is one run on images of 1022 x 767, from the start of a process to its end. A run on a few
images gives the start-up time, which is subtracted from each; memory is that of all processes.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.images import SIZES, write_images
from benchmarks.limit import precision_of
from benchmarks.model import write_bundle
from benchmarks.process import Finished
from benchmarks.report import machine, machine_line, markdown, steady_rate, write
from benchmarks.speed import FEW, OURS, Program
from lesioncam.settings import BACKBONES
from lesioncam.storage.bundle import load_bundle

log = logging.getLogger("benchmarks")


def measure(sizes: Sequence[int], bundle: str, precision: str, work: Path) -> dict[str, Any]:
    """Score so many images each time; returns the content of `growth.json`."""
    program = Program(OURS, precision)

    def score(count: int) -> Finished:
        images = write_images(work, SIZES[0], count)
        finished = program.score(images, bundle, work / "scores")
        log.info("%d images: %s", count, finished)
        return finished

    score(FEW)  # uncounted: nothing is in the page cache yet
    few = score(FEW)
    found = {count: score(count) for count in sorted(sizes)}
    rows = [
        {
            "images": count,
            "seconds": finished.seconds,
            "images_per_second": steady_rate(FEW, few.seconds, count, finished.seconds),
            "peak_mib": finished.peak_mib,
        }
        for count, finished in found.items()
    ]
    return {
        "machine": machine(precision=precision),
        "backbone": load_bundle(bundle).settings.backbone,
        "few": {"images": FEW, "seconds": few.seconds, "peak_mib": few.peak_mib},
        "runs": rows,
    }


def text_of(content: dict[str, Any]) -> str:
    """The table of `growth.md`: each size beside the smallest."""
    first = content["runs"][0]
    rows = [
        [
            f"{run['images']:,}",
            f"{run['seconds']:.0f}",
            f"{run['images_per_second']:.2f}",
            f"{run['images_per_second'] / first['images_per_second']:.2f}",
            f"{run['peak_mib']:,.0f}",
            f"{run['peak_mib'] / first['peak_mib']:.2f}",
        ]
        for run in content["runs"]
    ]
    few = content["few"]
    return (
        f"# Growth\n\n{machine_line(content['machine'])}; {content['backbone']}. Start-up is not "
        f"included: {few['images']} images took {few['seconds']:.1f} s. Ratios: to the first row."
        f"\n\n{markdown(_HEAD, rows)}"
    )


_HEAD = ("images", "seconds", "images/s", "ratio", "peak memory, MiB", "ratio")


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--bundle", help="a trained model (one is made)")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="vgg16")
    parser.add_argument("--output", type=Path, default=Path("lesioncam-bench"))
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work = flags.output / "work"
    work.mkdir(parents=True, exist_ok=True)
    bundle = flags.bundle or f"{work}/{flags.backbone}"
    if flags.bundle is None:
        write_bundle(bundle, flags.backbone, None)
    content = measure(flags.images, bundle, precision_of(bundle), work)
    write(flags.output, "growth", content, text_of(content))


if __name__ == "__main__":
    main()
