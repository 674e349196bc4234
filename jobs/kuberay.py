"""Entry point of a KubeRay RayJob: runs a verb, and lets KubeRay retry only what a retry can fix.

        python jobs/kuberay.py score --images s3://bucket/images --bundle ... --output ...

KubeRay starts a new cluster for every Ray job that FAILED, whatever its exit code. That continues a
run that failed (1). It does not help a run that was refused (2) or had too many failed images (3).
Such a job stops itself: a job that is STOPPED is not retried, and does not count as a success.

When a head is lost, KubeRay submits the job again within seconds. The lost run still holds its
lease on the output or bundle then. The job waits for the lease to expire, as a refusal is final.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence

from ray.job_submission import JobSubmissionClient

from lesioncam.cli import main, parse
from lesioncam.errors import InputError, LesioncamError
from lesioncam.interrupts import handle_signals
from lesioncam.storage.lease import LEASE_SECONDS, refuse_other_run
from lesioncam.storage.uris import open_store

_PROG = "python jobs/kuberay.py"
_FINAL = (2, 3)  # exit codes that the same command would give again
_CLOCK_SKEW_S = 5.0  # between two machines
_SIGNAL_TIMEOUT_S = 60.0  # for Ray's signal to arrive
_POLL_S = 1.0


def leased_uri(arguments: Sequence[str]) -> str | None:
    """What a verb with these flags takes a lease on: the bundle to train, or the scores' output.

    Returns:
        None for other verbs, and for bad flags, which the verb reports.
    """
    try:
        flags = parse(arguments, prog=_PROG)
    except InputError:
        return None
    written: dict[str, str] = {"train": "bundle", "score": "output"}
    return getattr(flags, written[flags.verb]) if flags.verb in written else None


def wait_for_lost_run(uri: str) -> None:
    """Wait until no other run holds the lease, or for as long as a lost run can hold it."""
    deadline = time.monotonic() + LEASE_SECONDS + _CLOCK_SKEW_S
    while time.monotonic() < deadline:
        try:
            refuse_other_run(open_store(uri))
        except LesioncamError:
            time.sleep(_POLL_S)
        else:
            return


def stop_this_job() -> None:
    """Have Ray stop the job whose entry point this process is, and wait for its signal.

    Does nothing where this process is no job's.
    """
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job = config.get("metadata", {}).get("job_submission_id")
    if job is None:
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's own handler would print a stack
    JobSubmissionClient().stop_job(job)
    time.sleep(_SIGNAL_TIMEOUT_S)


if __name__ == "__main__":
    handle_signals()
    if (uri := leased_uri(sys.argv[1:])) is not None:
        wait_for_lost_run(uri)
    code = main(sys.argv[1:], prog=_PROG, json_logs=True)
    if code in _FINAL:
        sys.stdout.flush()
        stop_this_job()
    sys.exit(code)
