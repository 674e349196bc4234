r"""Every fault, many times, at random moments; prints the table of docs/reliability.md.

    python -m tests.faults.stress --times 10 --stores local,moto,seaweedfs

Each time: a fresh output, one run that is disturbed, then the same command until it succeeds, and
what stands is compared with an undisturbed run's rows.
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
from lesioncam.storage.s3 import s3_client
from lesioncam.vision.network import IMAGENET_MEAN, IMAGENET_STD, build_network
from tests.faults.night import Findings, Night, compare
from tests.faults.proxy import Proxy
from tests.faults.scenarios import LOCAL, REMOTE, Scenario
from tests.faults.servers import KEY, client, moto, seaweedfs
from tests.messy import lesion

CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")
_RUNS = 5  # of the same command, at most, until it succeeds


@dataclass
class Tally:
    """What came of one fault."""

    times: int = 0
    codes: list[int] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    different: int = 0
    incomplete: int = 0
    repeated: list[int] = field(default_factory=list)

    def is_bad(self) -> bool:
        """Whether a promise was broken."""
        return any((self.lost, self.doubled, self.different, self.incomplete))

    def cells(self) -> str:
        """Of a row of the table."""
        codes = ", ".join(f"{code} x {self.codes.count(code)}" for code in sorted(set(self.codes)))
        again = f"{max(self.repeated)} at most" if self.repeated else "not counted"
        wrong = f", {self.incomplete} never complete" if self.incomplete else ""
        return (
            f"{self.times} | {codes}{wrong} | {self.lost} | {self.doubled} | {self.different} | "
            f"{again}"
        )


@dataclass(frozen=True)
class Place:
    """Where nights happen.

    Attributes:
        images: the images.
        output: a prefix for outputs.
        proxy: what stands before the store, or None for a local one.
        environment: for the runs.
    """

    images: str
    output: str
    proxy: Proxy | None
    environment: dict[str, str]


def draw(folder: Path, count: int) -> None:
    """Lesions, and some files that are none."""
    folder.mkdir()
    for number in range(count):
        lesion(96, 72, number).save(folder / f"{number:04d}.png")
    for number in range(3):
        (folder / f"broken {number}.png").write_bytes(b"not an image"[: 6 * number])


def make_bundle(uri: str) -> None:
    """A tiny network with random weights."""
    side = BACKBONES["tiny"].input_size
    settings = ModelSettings(
        CLASSES, "tiny", side, 2 * side, IMAGENET_MEAN, IMAGENET_STD, 0.5, CropRule()
    )
    torch.manual_seed(0)
    stage1, stage2 = (build_network(settings).state_dict() for _ in range(2))
    save_bundle(Bundle(settings, stage1, stage2), uri, "# A tiny bundle\n")


@contextmanager
def open_place(
    store: str, images: Path, folder: Path, patch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A store that holds the images; its server and proxy live as long as the context."""
    if store == "local":
        yield Place(str(images), str(folder / "scores"), None, {})
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
            s3.upload_file(str(path), "clinic", f"night/{path.name}")
        yield Place("s3://clinic/night", "s3://clinic/scores", proxy, environment)
        s3_client.cache_clear()


def one_night(
    place: Place, scenarios: Sequence[Scenario], bundle: str, name: str, seconds: float,
    undisturbed: pd.DataFrame, log: Path, dice: random.Random,
) -> tuple[Night, Findings, int | None]:  # fmt: skip
    """One night, its runs disturbed in turn; what it left and how many images it fetched again."""
    night = Night(place.images, bundle, f"{place.output}/{name}", log, place.environment)
    if place.proxy is not None:
        place.proxy.fetched.clear()
    for scenario in scenarios:
        scenario(night, place.proxy, dice, seconds)
        night.await_silence()
    while len(night.codes) == 1 or (night.codes[-1] != 0 and len(night.codes) <= _RUNS):
        night.run()
    again = None
    if place.proxy is not None:
        again = sum(place.proxy.fetched.values()) - len(place.proxy.fetched)
    return night, compare(night.rows(), undisturbed), again


def many_nights(
    place: Place, scenario: Scenario, bundle: str, times: int, seconds: float,
    undisturbed: pd.DataFrame, log: Path, dice: random.Random,
) -> Tally:  # fmt: skip
    """The same fault many times, each on an output of its own."""
    tally = Tally()
    for _ in range(times):
        name = f"{dice.randrange(2**32):08x}"
        night, found, again = one_night(
            place, [scenario], bundle, name, seconds, undisturbed, log, dice
        )
        tally.times += 1
        tally.codes.append(night.codes[0])
        tally.lost += found.lost
        tally.doubled += found.doubled
        tally.different += found.different
        tally.incomplete += night.codes[-1] != 0 or not night.is_complete()
        tally.repeated += [] if again is None else [again]
    return tally


def main() -> None:
    """Disturb, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--stores", default="local,moto,seaweedfs")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--only", default="", help="part of a scenario's name")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags = parser.parse_args()
    dice = random.Random(flags.seed)
    print(f"{flags.images + 3} images, seed {flags.seed}\n")
    print("| store | fault | times | first exit | lost | doubled | different | fetched again |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    bad = False
    with TemporaryDirectory(prefix="nights-") as folder, pytest.MonkeyPatch.context() as patch:
        draw(Path(folder, "images"), flags.images)
        bundle, log = f"{folder}/bundle", Path("stress.log")
        make_bundle(bundle)
        for store in flags.stores.split(","):
            with open_place(store, Path(folder, "images"), Path(folder), patch) as place:
                quiet = Night(place.images, bundle, f"{place.output}/quiet", log, place.environment)
                started = time.monotonic()
                if quiet.run() != 0:
                    sys.exit(f"an undisturbed run failed; see {log}")
                seconds = time.monotonic() - started
                for name, scenario in (LOCAL if store == "local" else REMOTE).items():
                    if flags.only in name:
                        tally = many_nights(
                            place, scenario, bundle, flags.times, seconds, quiet.rows(), log, dice
                        )
                        print(f"| {store} | {name} | {tally.cells()} |", flush=True)
                        bad |= tally.is_bad()
    sys.exit(bad)


if __name__ == "__main__":
    main()
