r"""Every fault scenario, many times, at random moments.

    python -m tests.faults.stress --images 300 --times 4          # on Ray
    python -m tests.faults.stress --images 50 --times 4 --docs    # in one process

Each trial has its own output: one disturbed run, then the same command until it succeeds. The rows
are then compared with those of an undisturbed run. Continues where an earlier call stopped: its
results are in `stress.jsonl`, the runs' output in `stress.log`. `--docs` writes the table of all
results into docs/reliability.md.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import torch

from lesioncam.scoring.pipeline import SMALL
from lesioncam.settings import BACKBONES, CropRule, ModelSettings
from lesioncam.storage.bundle import Bundle, save_bundle
from lesioncam.storage.s3_client import s3_client
from lesioncam.vision.network import IMAGENET_MEAN, IMAGENET_STD, build_network
from tests.docs_page import DOCS, commit, paragraph, today, write_section
from tests.faults.proxy import Proxy
from tests.faults.scenarios import LOCAL, ON_RAY, REMOTE, NotDisturbedError, Scenario
from tests.faults.servers import KEY, client, moto, seaweedfs
from tests.faults.trial import Findings, Trial, compare
from tests.messy import lesion

CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")
SCENARIOS = {"local": LOCAL | ON_RAY, "moto": REMOTE, "seaweedfs": REMOTE}
PAGE = DOCS / "reliability.md"
RESULTS, LOG = Path("stress.jsonl"), Path("stress.log")
_DIFFERENCES = ("lost", "doubled", "different")
_ATTEMPTS = 5  # at a run that ends before it can be disturbed
_MAX_RUNS = 5  # of the same command until it succeeds, after the disturbed one


@dataclass(frozen=True)
class Result:
    """What came of a trial.

    Attributes:
        store: `local`, `moto` or `seaweedfs`.
        fault: the scenario's name.
        images: in the run.
        exit_code: of the disturbed run.
        lost: listed images without a row at the end.
        doubled: images with more than one.
        different: images with another outcome, or other probabilities.
        complete: whether the last run succeeded and said so.
        fetched_again: images handed out more than once; None for local files.
        commit: of the code.
    """

    store: str
    fault: str
    images: int
    exit_code: int
    lost: int
    doubled: int
    different: int
    complete: bool
    fetched_again: int | None
    commit: str

    @property
    def is_right(self) -> bool:
        """Whether the trial ended with one right row per image."""
        return self.complete and not (self.lost or self.doubled or self.different)


def table(results: Iterable[Result]) -> str:
    """A row for each number of images, store and fault, in Markdown."""
    rows: dict[tuple[int, str, str], list[Result]] = {}
    for result in results:
        rows.setdefault((result.images, result.store, result.fault), []).append(result)
    lines = [
        "| images | store | fault | times | first exit code | lost | doubled | different "
        "| fetched again |",
        "|---:|---|---|---:|---|---:|---:|---:|---|",
    ]
    faults = [(store, fault) for store, faults in SCENARIOS.items() for fault in faults]
    order = sorted(rows, key=lambda key: (-key[0], faults.index(key[1:])))
    lines += [f"| {' | '.join(map(str, key))} | {_cells(rows[key])} |" for key in order]
    return "\n".join(lines)


def _cells(results: Sequence[Result]) -> str:
    codes = Counter(result.exit_code for result in results)
    shown = ", ".join(
        f"{code} ({'once' if count == 1 else f'{count} times'})"
        for code, count in sorted(codes.items())
    )
    if incomplete := sum(not result.complete for result in results):
        shown += f"; {incomplete} never complete"
    sums = [sum(getattr(one, name) for one in results) for name in _DIFFERENCES]
    again = [one.fetched_again for one in results if one.fetched_again is not None]
    cells = [len(results), shown, *sums, f"at most {max(again)}" if again else ""]
    return " | ".join(map(str, cells))


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
    backend: Backend, scenario: Scenario, bundle: str, name: str, seconds: float,
    undisturbed: pd.DataFrame, log: Path, rng: random.Random,
) -> tuple[Trial, Findings, int | None]:  # fmt: skip
    """Disturb one run, then run until one succeeds.

    Args:
        backend: the store.
        scenario: the disturbance.
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
    scenario(trial, backend.proxy, rng, seconds)
    trial.wait_for_processes()
    codes = trial.exit_codes
    while len(codes) == 1 or (codes[-1] != 0 and len(codes) <= _MAX_RUNS):
        trial.run()
    again = None
    if backend.proxy is not None:
        again = sum(backend.proxy.fetched.values()) - len(backend.proxy.fetched)
    return trial, compare(trial.rows(), undisturbed), again


def run_round(
    store: str, faults: Sequence[str], images: Path, bundle: str, folder: Path, rng: random.Random,
) -> Iterator[Result]:  # fmt: skip
    """One trial of each of these faults on a store.

    Args:
        store: `local`, `moto` or `seaweedfs`.
        faults: names of scenarios.
        images: a local directory.
        bundle: the trained model.
        folder: for outputs where the store is local.
        rng: chooses the moments.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        open_backend(store, images, folder, patch) as backend,
    ):
        output = f"{backend.output}/{rng.randrange(2**32):08x}"
        undisturbed = Trial(backend.images, bundle, output, LOG, backend.environment)
        started = time.monotonic()
        if undisturbed.run() != 0:
            sys.exit(f"an undisturbed run failed; see {LOG}")
        seconds, rows = time.monotonic() - started, undisturbed.rows()
        for fault in faults:
            try:
                yield _disturbed(store, fault, backend, bundle, seconds, rows, rng)
            except NotDisturbedError as error:  # the table shows how often each was
                print(error, flush=True)


def _disturbed(
    store: str, fault: str, backend: Backend, bundle: str, seconds: float, rows: pd.DataFrame,
    rng: random.Random,
) -> Result:  # fmt: skip
    """A trial of one fault; again where the run ended before it could be disturbed.

    Raises:
        NotDisturbedError: it always did.
    """
    for _ in range(_ATTEMPTS):
        name, scenario = f"{rng.randrange(2**32):08x}", SCENARIOS[store][fault]
        try:
            trial, found, again = run_trial(
                backend, scenario, bundle, name, seconds, rows, LOG, rng
            )
        except NotDisturbedError:
            continue
        complete = trial.exit_codes[-1] == 0 and trial.is_complete()
        return Result(
            store, fault, len(rows), trial.exit_codes[0], **asdict(found), complete=complete,
            fetched_again=again, commit=commit(),
        )  # fmt: skip
    raise NotDisturbedError(f"{store}: {fault}: {_ATTEMPTS} runs ended before they were disturbed")


def write_docs(results: Sequence[Result]) -> None:
    """Write the table into docs/reliability.md."""
    sizes = " or ".join(str(count) for count in sorted({result.images for result in results}))
    commits = ", ".join(sorted({result.commit for result in results}))
    wrong = sum(not result.is_right for result in results)
    summary = (
        f"**Disturbed runs** ({today()}, commit {commits}): {len(results)} runs over {sizes} "
        f"images, two cores. In {wrong or 'none'} of them a row was lost, doubled or different."
    )
    write_section(PAGE, "stress", f"{paragraph(summary)}\n\n{table(results)}")


def main() -> None:
    """Run the trials and print the table; exits with 1 if any of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=7, help="trials of each scenario (7)")
    parser.add_argument("--stores", default=",".join(SCENARIOS), help="comma-separated (all)")
    parser.add_argument("--images", type=int, default=300, help="good images in each run (300)")
    parser.add_argument("--only", default="", help="scenarios whose name contains this (all)")
    parser.add_argument("--docs", action="store_true", help="write the table to the documentation")
    flags = parser.parse_args()
    results = [Result(**json.loads(line)) for line in _lines()]
    with TemporaryDirectory(prefix="stress-") as folder:
        images, bundle, rng = Path(folder, "images"), f"{folder}/bundle", random.Random()
        write_images(images, flags.images)
        files = len(list(images.iterdir()))
        write_bundle(bundle)
        for turn, store in product(range(flags.times), flags.stores.split(",")):
            done = Counter(
                one.fault for one in results if (one.store, one.images) == (store, files)
            )
            faults = [
                fault
                for fault in SCENARIOS[store]
                if flags.only in fault and done[fault] <= turn
                and not (fault in ON_RAY and files <= SMALL)
            ]  # fmt: skip
            if not faults:
                continue
            for result in run_round(store, faults, images, bundle, Path(folder), rng):
                results.append(result)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
                print(f"{store}: {result.fault}: {_cells([result])}", flush=True)
    print(f"{len(results)} disturbed runs\n\n{table(results)}")
    if flags.docs:
        write_docs(results)
    sys.exit(not all(result.is_right for result in results))


def _lines() -> list[str]:
    return RESULTS.read_text().splitlines() if RESULTS.exists() else []


if __name__ == "__main__":
    main()
