r"""Every fault scenario, many times, at random moments; prints the table of docs/reliability.md.

    python -m tests.faults.stress --times 10 --stores local,moto,seaweedfs

Each trial has its own output: one disturbed run, then the same command until it succeeds. The rows
are then compared with those of an undisturbed run.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import torch

from lesioncam.settings import BACKBONES, CropRule, ModelSettings
from lesioncam.storage.bundle import Bundle, save_bundle
from lesioncam.storage.s3_client import s3_client
from lesioncam.vision.network import IMAGENET_MEAN, IMAGENET_STD, build_network
from tests.faults.proxy import Proxy
from tests.faults.scenarios import LOCAL, REMOTE, Scenario
from tests.faults.servers import KEY, client, moto, seaweedfs
from tests.faults.trial import Findings, Trial, compare
from tests.messy import lesion

CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")
_MAX_RUNS = 5  # of the same command until it succeeds, after the disturbed one


@dataclass
class Tally:
    """Results of the trials of one scenario."""

    trials: int = 0
    exit_codes: list[int] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    different: int = 0
    incomplete: int = 0
    fetched_again: list[int] = field(default_factory=list)

    def failed(self) -> bool:
        """Whether a trial ended with anything but one right row per image."""
        return any((self.lost, self.doubled, self.different, self.incomplete))

    def cells(self) -> str:
        """The scenario's cells in the table."""
        counts = {code: self.exit_codes.count(code) for code in sorted(set(self.exit_codes))}
        codes = ", ".join(f"{code} x {count}" for code, count in counts.items())
        again = f"at most {max(self.fetched_again)}" if self.fetched_again else "not counted"
        never = f", {self.incomplete} never complete" if self.incomplete else ""
        return (
            f"{self.trials} | {codes}{never} | {self.lost} | {self.doubled} | {self.different} | "
            f"{again}"
        )


@dataclass(frozen=True)
class Backend:
    """The store that trials read from and write to.

    Attributes:
        images: where the images are.
        output: a prefix for outputs.
        proxy: in front of the store; None for local files.
        environment: for the runs.
    """

    images: str
    output: str
    proxy: Proxy | None
    environment: dict[str, str]


def write_images(folder: Path, count: int) -> None:
    """Write so many good images, and three broken ones."""
    folder.mkdir()
    for number in range(count):
        lesion(96, 72, number).save(folder / f"{number:04d}.png")
    for number in range(3):
        (folder / f"broken {number}.png").write_bytes(b"not an image"[: 6 * number])


def write_bundle(uri: str) -> None:
    """Save a tiny network with random weights."""
    size = BACKBONES["tiny"].input_size
    settings = ModelSettings(
        CLASSES, "tiny", size, 2 * size, IMAGENET_MEAN, IMAGENET_STD, 0.5, CropRule()
    )
    torch.manual_seed(0)
    stage1, stage2 = (build_network(settings).state_dict() for _ in range(2))
    save_bundle(Bundle(settings, stage1, stage2), uri, "# A tiny bundle\n")


@contextmanager
def open_backend(
    store: str, images: Path, folder: Path, patch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    """A store that holds the images, for as long as the context lasts.

    Args:
        store: `local`, `moto` or `seaweedfs`.
        images: a local directory.
        folder: for outputs where the store is local.
        patch: sets the environment for the store's clients in this process.
    """
    if store == "local":
        yield Backend(str(images), str(folder / "scores"), None, {})
        return
    with ExitStack() as stack:
        server = stack.enter_context(moto() if store == "moto" else seaweedfs())
        proxy = stack.enter_context(Proxy(server))
        environment = {**KEY, "AWS_ENDPOINT_URL": proxy.url}
        for name, value in environment.items():
            patch.setenv(name, value)
        s3_client.cache_clear()
        s3 = client(server)
        s3.create_bucket(Bucket="clinic")
        for path in images.iterdir():
            s3.upload_file(str(path), "clinic", f"images/{path.name}")
        yield Backend("s3://clinic/images", "s3://clinic/scores", proxy, environment)
        s3_client.cache_clear()


def run_trial(
    backend: Backend, scenarios: Sequence[Scenario], bundle: str, name: str, seconds: float,
    undisturbed: pd.DataFrame, log: Path, rng: random.Random,
) -> tuple[Trial, Findings, int | None]:  # fmt: skip
    """Disturb one run per scenario, then run until one succeeds.

    Args:
        backend: the store.
        scenarios: in order.
        bundle: the trained model.
        name: of the output.
        seconds: that an undisturbed run takes.
        undisturbed: its rows.
        log: file for the runs' output.
        rng: chooses the moments.

    Returns:
        The trial, how its rows differ, and how many images were fetched more than once: None for
        local files.
    """
    trial = Trial(backend.images, bundle, f"{backend.output}/{name}", log, backend.environment)
    if backend.proxy is not None:
        backend.proxy.fetched.clear()
    for scenario in scenarios:
        scenario(trial, backend.proxy, rng, seconds)
        trial.wait_for_processes()
    codes = trial.exit_codes
    while len(codes) == 1 or (codes[-1] != 0 and len(codes) <= _MAX_RUNS):
        trial.run()
    again = None
    if backend.proxy is not None:
        again = sum(backend.proxy.fetched.values()) - len(backend.proxy.fetched)
    return trial, compare(trial.rows(), undisturbed), again


def run_trials(
    backend: Backend, scenario: Scenario, bundle: str, times: int, seconds: float,
    undisturbed: pd.DataFrame, log: Path, rng: random.Random,
) -> Tally:  # fmt: skip
    """So many trials of one scenario; the arguments are those of `run_trial`."""
    tally = Tally()
    for _ in range(times):
        name = f"{rng.randrange(2**32):08x}"
        trial, found, again = run_trial(
            backend, [scenario], bundle, name, seconds, undisturbed, log, rng
        )
        tally.trials += 1
        tally.exit_codes.append(trial.exit_codes[0])
        tally.lost += found.lost
        tally.doubled += found.doubled
        tally.different += found.different
        tally.incomplete += trial.exit_codes[-1] != 0 or not trial.is_complete()
        tally.fetched_again += [] if again is None else [again]
    return tally


def main() -> None:
    """Run the trials and print the table; exits with 1 if any of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10, help="trials of each scenario (10)")
    parser.add_argument("--stores", default="local,moto,seaweedfs", help="comma-separated (all)")
    parser.add_argument("--images", type=int, default=600, help="good images in each run (600)")
    parser.add_argument("--only", default="", help="scenarios whose name contains this (all)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="(the time)")
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    print(f"{flags.images + 3} images, seed {flags.seed}\n")
    print("| store | fault | trials | first exit | lost | doubled | different | fetched again |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    failed = False
    with TemporaryDirectory(prefix="stress-") as folder, pytest.MonkeyPatch.context() as patch:
        images = Path(folder, "images")
        write_images(images, flags.images)
        bundle, log = f"{folder}/bundle", Path("stress.log")
        write_bundle(bundle)
        for store in flags.stores.split(","):
            with open_backend(store, images, Path(folder), patch) as backend:
                output = f"{backend.output}/undisturbed"
                undisturbed = Trial(backend.images, bundle, output, log, backend.environment)
                started = time.monotonic()
                if undisturbed.run() != 0:
                    sys.exit(f"an undisturbed run failed; see {log}")
                seconds = time.monotonic() - started
                rows = undisturbed.rows()
                for name, scenario in (LOCAL if store == "local" else REMOTE).items():
                    if flags.only in name:
                        tally = run_trials(
                            backend, scenario, bundle, flags.times, seconds, rows, log, rng
                        )
                        print(f"| {store} | {name} | {tally.cells()} |", flush=True)
                        failed |= tally.failed()
    sys.exit(failed)


if __name__ == "__main__":
    main()
