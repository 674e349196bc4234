"""Compiled: what `torch.compile` gains in the two forward passes, and the time it takes first.

    python -m benchmarks.compiled --bundle model

One process runs the passes plain and with both networks compiled, in turn, with one thread and
batches of 4, as a scoring actor does on CPUs. Prints the seconds to compile, both rates, the images
after which compiling pays off, and the largest difference of a probability. Needs a C++ compiler.
"""

import argparse
from typing import Any

import torch

from benchmarks.limit import Passes, device
from benchmarks.report import Rounds, seconds_of
from lesioncam.storage.bundle import load_bundle
from lesioncam.vision.network import native_precision

_BATCH = 4
_ROUNDS = 5


def compare(bundle: str, precision: str) -> dict[str, Any]:
    """Measure both; returns the figures by name."""
    loaded = load_bundle(bundle)
    plain, compiled = (Passes(loaded, _BATCH, precision) for _ in range(2))
    expected = plain()
    compiled.stage1.compile()
    compiled.stage2.compile()
    compiling = seconds_of(compiled)
    seconds = [(seconds_of(plain), seconds_of(compiled)) for _ in range(_ROUNDS)]
    before, after = (
        Rounds(tuple(_BATCH / one for one in each)) for each in zip(*seconds, strict=True)
    )
    saved = 1 / before.median - 1 / after.median
    return {
        "seconds to compile": f"{compiling:.0f}",
        "images/s plain": before,
        "images/s compiled": after,
        "images until it pays off": f"{compiling / saved:,.0f}" if saved > 0 else "never",
        "largest difference": f"{(compiled() - expected).abs().max():.4f}",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", required=True)
    flags = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    for name, value in compare(flags.bundle, native_precision(device())).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
