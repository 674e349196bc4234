import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs.kuberay import leased_uri, stop_this_job, wait_for_lost_run
from lesioncam.cli import main
from lesioncam.errors import InputError
from lesioncam.storage.lease import LEASE_FILE, Holder, refuse_other_run
from lesioncam.storage.uris import open_store

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # else Ray takes a token from the home directory
NO_DRAIN = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}  # by default Ray waits for 30 s


def test_a_kuberay_job_waits_for_what_its_verb_writes() -> None:
    flags = ["--images", "i", "--bundle", "b"]
    assert leased_uri(["train", *flags, "--labels", "l", "--workers", "2"]) == "b"
    assert leased_uri(["score", *flags, "--output=o"]) == "o"
    assert leased_uri(["evaluate", "--scores", "s", "--labels", "l", "--output", "o"]) is None


@pytest.mark.parametrize(
    "flags",
    [
        ["score", "--images", "i", "--bundle", "b"],
        ["score", "--images", "i", "--bundle", "b", "--out", "o"],
        ["train", "--bundle"],
        ["scroe"],
    ],
)
def test_a_kuberay_job_does_not_wait_where_its_verb_refuses_the_flags(flags: list[str]) -> None:
    assert leased_uri(flags) is None
    assert main(flags) == 2


def test_a_kuberay_job_waits_for_a_run_whose_head_was_lost(tmp_path: Path) -> None:
    output = open_store(str(tmp_path))
    lost = Holder("lost", "another-machine", "its-boot", 1, 1, time.time() + 1.5)
    output.write(LEASE_FILE, json.dumps(asdict(lost)).encode())
    with pytest.raises(InputError, match="is being written by run lost"):
        refuse_other_run(output)
    wait_for_lost_run(str(tmp_path))
    assert refuse_other_run(output) is not None  # the lost run's lease, which has expired
    assert time.time() >= lost.until


def test_a_kuberay_job_outside_of_ray_just_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    stop_this_job()
