"""Run a verb as the entry point of KubeRay's RayJob, whose retries then fit the exit codes.

        python jobs/kuberay.py score --images s3://bucket/images --bundle ... --output ...

KubeRay starts a new cluster for every Ray job that FAILED, whatever its exit code. That mends a run
that broke (1), but not one that was refused (2) or had too many failed images (3): such a job stops
itself, since one that is STOPPED is neither retried nor taken for a success.
"""

import json
import os
import signal
import sys

from ray.job_submission import JobSubmissionClient

from lesioncam.cli import main
from lesioncam.logs import JsonLines

_FINAL = (2, 3)  # exit codes that the same command would give again


def stop_this_job() -> None:
    """Have Ray stop the job whose entry point this process is, and wait for its signal."""
    job = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    JobSubmissionClient().stop_job(job)
    signal.pause()


if __name__ == "__main__":
    code = main(sys.argv[1:], JsonLines())
    if code in _FINAL:
        sys.stdout.flush()
        stop_this_job()
    sys.exit(code)
