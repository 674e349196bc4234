"""Which Ray a verb runs on: the cluster that `RAY_ADDRESS` names, else one of its own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data


@contextmanager
def connected() -> Iterator[None]:
    """Attach to the cluster in `RAY_ADDRESS`, or start a local one and stop it at the end.

    Never joins a Ray that merely happens to run on this machine. Does nothing where this process
    is connected already.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        ray.init(address=address, **quiet)
    else:
        # Ray's core prints "errors" of its own making on a healthy run, one per actor pool.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        cpus = max(2, os.cpu_count() or 1)  # Ray Data's listing takes one beside the actors
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    ray.data.DataContext.get_current().enable_progress_bars = False  # we show our own
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
