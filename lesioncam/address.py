"""Address: the Ray cluster that `RAY_ADDRESS` names. Does not import Ray."""

import os
import socket
import sys

from lesioncam.errors import InputError

_MAX_SOCKET_PATH = 107  # bytes, on Linux
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"


def cluster_address() -> str | None:
    """The address of the cluster to use; None to start a local Ray."""
    return os.environ.get("RAY_ADDRESS") or None


def has_ray() -> bool:
    """Whether there is a Ray to run on already: a cluster's, or the one this process started."""
    ray = sys.modules.get("ray")
    return cluster_address() is not None or (ray is not None and ray.is_initialized())


def can_grow() -> bool:
    """Whether nodes may join: a cluster at `RAY_ADDRESS` may grow, a local one cannot."""
    return cluster_address() is not None


def check_ray() -> None:
    """Fail quickly where a local Ray cannot start, or none answers: Ray tries for minutes.

    Skips the addresses `auto` and `ray://`.

    Raises:
        InputError: nothing answers at `RAY_ADDRESS`, or the folder for temporary files has too long
            a path.
    """
    address = cluster_address()
    if address is None:
        _check_temporary_folder()
        return
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"RAY_ADDRESS: no Ray cluster answers at {address}; correct or unset it"
            ) from error


def _check_temporary_folder() -> None:
    """Ray has sockets below that folder, and Linux limits the paths of sockets."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if variable is None:
        return
    below = _SOCKET.format(pid=os.getpid())
    if len(os.fsencode(os.environ[variable])) + len(below) > _MAX_SOCKET_PATH:
        raise InputError(
            f"{variable}: its path is too long for the sockets of Ray, which allow "
            f"{_MAX_SOCKET_PATH - len(below)} bytes; set RAY_TMPDIR to a short one, such as /tmp"
        )
