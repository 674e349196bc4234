"""Address: the Ray cluster that `RAY_ADDRESS` names. Does not import Ray."""

import os
import socket

from lesioncam.errors import InputError


def cluster_address() -> str | None:
    """The address of the cluster to use; None to start a local Ray."""
    return os.environ.get("RAY_ADDRESS") or None


def can_grow() -> bool:
    """Whether nodes may join: a cluster at `RAY_ADDRESS` may grow, a local one cannot."""
    return cluster_address() is not None


def check_address() -> None:
    """Fail quickly where no Ray answers: Ray itself tries an address for minutes.

    Skips `auto` and `ray://`.

    Raises:
        InputError: nothing answers at `RAY_ADDRESS`.
    """
    address = cluster_address() or ""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise no_answer(address) from error


def no_answer(address: str) -> InputError:
    """The error for a cluster that does not answer."""
    return InputError(f"RAY_ADDRESS: no Ray cluster answers at {address}; correct or unset it")
