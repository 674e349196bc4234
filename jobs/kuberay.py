"""Run a verb as the entry point of KubeRay's RayJob, whose retries then fit the exit codes.

        python jobs/kuberay.py score --images s3://bucket/images --bundle ... --output ...

KubeRay starts a new cluster for every Ray job that FAILED, whatever its exit code. That mends a run
that broke (1), but not one that was refused (2) or had too many failed images (3): such a job stops
itself, since one that is STOPPED is neither retried nor taken for a success.

A job whose head was lost is submitted again within seconds, while the output, or the bundle that it
trains, still counts as the lost run's: that is waited for, as what is refused is final.
"""

import argparse
import json
import os
import signal
import sys
import time

from ray.job_submission import JobSubmissionClient

from lesioncam.cli import main
from lesioncam.errors import LesioncamError
from lesioncam.logs import JsonLines
from lesioncam.storage.lease import LEASE_SECONDS, refuse_other_run
from lesioncam.storage.uris import open_store

_FINAL = (2, 3)  # exit codes that the same command would give again
_MARGIN = 5.0  # seconds that two machines' clocks may differ
_PATIENCE = 60.0  # seconds for Ray's signal to come
_POLL_SECONDS = 1.0


def written_by(arguments: list[str]) -> str | None:
    """What a verb with these flags writes: the bundle that is trained, or the output."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("--bundle" if arguments[:1] == ["train"] else "--output", dest="written")
    try:
        written: str | None = flags.parse_known_args(arguments)[0].written
    except argparse.ArgumentError:  # no value follows; the verb says so
        return None
    return written


def wait_for_a_lost_run(output: str) -> None:
    """Give another run on the same place the time after which it must be dead; `main` tells."""
    deadline = time.monotonic() + LEASE_SECONDS + _MARGIN
    while time.monotonic() < deadline:
        try:
            refuse_other_run(open_store(output))
        except LesioncamError:
            time.sleep(_POLL_SECONDS)
        else:
            return


def stop_this_job() -> None:
    """Have Ray stop the job whose entry point this process is, and wait for its signal."""
    job = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's own handler would print a stack
    JobSubmissionClient().stop_job(job)
    time.sleep(_PATIENCE)


if __name__ == "__main__":
    if (written := written_by(sys.argv[1:])) is not None:
        wait_for_a_lost_run(written)
    code = main(sys.argv[1:], JsonLines())
    if code in _FINAL:
        sys.stdout.flush()
        stop_this_job()
    sys.exit(code)
