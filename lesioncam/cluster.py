"""Which Ray a verb runs on: the cluster that `RAY_ADDRESS` names, else one of its own."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from lesioncam.errors import InputError


@contextmanager
def connected() -> Iterator[None]:
    """Attach to the cluster in `RAY_ADDRESS`, or start a local one and stop it at the end.

    Never joins a Ray that merely happens to run on this machine. Does nothing where this process
    is connected already.

    Raises:
        InputError: nothing answers at `RAY_ADDRESS`.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        try:
            _check_answers(address)
            ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"RAY_ADDRESS: no Ray cluster can be reached at {address}; mend or unset it"
            ) from error
    else:
        # Ray's core prints "errors" of its own making on a healthy run, one per actor pool.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Ray counts the cores, within a container's limits; its listing task takes one of them
        # beside the actors, so that one core must pass for two.
        cpus = 2 if os.cpu_count() == 1 else None
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    ray.data.DataContext.get_current().enable_progress_bars = False  # we show our own
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the terminal; its log files get all
            handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself tries an address for minutes; `auto` and `ray://` are left to it."""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()
