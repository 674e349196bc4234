"""Lease: one run at a time on an output or a bundle, and a dead run blocks nobody.

`_lesioncam/lease.json` names the run that holds it and when it expires. Its holder renews it every
few seconds. Taking and renewing are conditional writes: of two runs that try at once, one gets it.
On the holder's machine another run takes over as soon as the holder's process is gone, elsewhere
when the lease has expired; that compares two machines' clocks, which may differ by some seconds.

A lease cannot stop a write that is already on its way. What a run writes for others to see is
therefore written under a staging name first; then the lease is checked, and then it is moved to its
own name. A run that takes over removes what is staged: a move that arrives later finds nothing.

Our own because a lock service would be one more thing to run, and a lock file without an expiry
would outlive its holder.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from lesioncam.errors import InputError, LesioncamError, RunFailedError
from lesioncam.storage.store import Store, read_if_there

LEASE_FILE = "_lesioncam/lease.json"
LEASE_SECONDS = 60.0
_RENEW_SECONDS = 15.0
_MAX_ATTEMPTS = 5  # to take a lease that others take and release meanwhile


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        run_id: of the run.
        host: the machine's name.
        machine: its boot id and process namespace; empty if unknown.
        pid: of the process.
        process_started: in clock ticks since that boot, because process ids are reused.
        until: when the lease expires unless renewed, in seconds since 1970.
        workers_may_write: False once the run has all parts; a task that it repeated elsewhere may
            still be running.
    """

    run_id: str
    host: str
    machine: str
    pid: int
    process_started: int
    until: float
    workers_may_write: bool = True

    def is_alive(self) -> bool:
        """Whether the run may still be running."""
        if self.machine and self.machine == _machine() and self.host == socket.gethostname():
            started = _process_started(self.pid)
            if started is not None or not _hidden(self.pid):
                return started == self.process_started
        return time.time() < self.until


class LeaseLostError(RunFailedError):
    """The output is no longer held by this run."""


class Lease:
    """Holds an output for one run; a context manager.

    Args:
        output: the store of the scores, or of the bundle.
        run_id: of the run.
        flag: the one that named the output, for messages.

    Raises:
        InputError: on entering, another run holds it.
    """

    def __init__(self, output: Store, run_id: str, flag: str = "--output"):
        self.run_id = run_id
        self._output, self._flag = output, flag
        self._held = b""
        self._until = 0.0
        self._workers_may_write = True
        self._renewing = threading.Lock()
        self._over = threading.Event()
        self._lost = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        for _ in range(_MAX_ATTEMPTS):
            if self._write(refuse_other_run(self._output, self._flag)):
                self._renewer.start()
                return self
        raise RunFailedError(
            f"{self._flag}: other runs are starting on {self._output.uri}; try again"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._renewer.join()
        with suppress(LesioncamError):  # the store may be unreachable: then the lease expires
            if not self._lost.is_set() and self._output.read_quickly(LEASE_FILE) == self._held:
                self._output.delete(LEASE_FILE)

    def check(self) -> None:
        """Raise unless the output is still held by this run, as far as this process knows.

        Raises:
            RunFailedError: the lease could not be renewed in time, or another run holds it.
        """
        if self._lost.is_set() or time.time() > self._until:
            raise RunFailedError(
                f"this run's lease on {self._output.uri} expired: it could not be renewed in time; "
                f"run the same command again"
            )

    def confirm(self) -> None:
        """`check`, and ask the store.

        Raises:
            RunFailedError: as `check`, or the store cannot be reached.
            InputError: the store refuses access.
        """
        self.check()
        _read_holder(self._output, self.run_id)

    def stop_workers(self) -> None:
        """Have `check_worker` refuse this run's workers from now on.

        Raises:
            RunFailedError: as `check`, or the store cannot be reached.
        """
        with self._renewing:
            self._workers_may_write = False
            if not self._renew_once():
                self._lost.set()
        self.check()

    def _write(self, current: bytes | None) -> bool:
        """Take or renew the lease if its file still holds `current`."""
        until = time.time() + LEASE_SECONDS
        holder = Holder(
            self.run_id, socket.gethostname(), _machine(), os.getpid(),
            _process_started(os.getpid()) or 0, until, self._workers_may_write,
        )  # fmt: skip
        content = json.dumps(asdict(holder)).encode()
        if not self._output.swap(LEASE_FILE, current, content):
            return False
        self._held, self._until = content, until
        return True

    def _renew(self) -> None:
        while not self._over.wait(_RENEW_SECONDS):
            try:
                with self._renewing:
                    if not self._renew_once():
                        self._lost.set()
                        return
            except LesioncamError:
                continue  # a store that stays unreachable is noticed by `check`

    def _renew_once(self) -> bool:
        return self._write(self._held) or self._renew_unanswered()

    def _renew_unanswered(self) -> bool:
        """Renew again if the last renewal was written but its answer was lost."""
        current = self._output.read_quickly(LEASE_FILE)
        holder = _parse(current)
        return holder is not None and holder.run_id == self.run_id and self._write(current)


def refuse_other_run(output: Store, flag: str = "--output") -> bytes | None:
    """Refuse an output, named by `flag`, that another run holds.

    Returns:
        The content of the lease file of a dead run; None if there is none.

    Raises:
        InputError: with that run's id, process and machine.
    """
    current = read_if_there(output, LEASE_FILE)
    holder = _parse(current)
    if holder is not None and holder.is_alive():
        raise InputError(
            f"{flag}: {output.uri} is being written by run {holder.run_id} (process {holder.pid} "
            f"on {holder.host}); wait for it, stop it or choose another directory; if that run is "
            f"dead, retry in {max(0, holder.until - time.time()):.0f} s"
        )
    return current


def check_worker(output: Store, run_id: str) -> None:
    """Raise unless a run's workers may write to the output; those elsewhere may outlive it.

    Raises:
        LeaseLostError: no run holds the output, or another one, or this one needs no more parts.
        RunFailedError: its store cannot be reached.
        InputError: its store refuses access.
    """
    if not _read_holder(output, run_id).workers_may_write:
        raise LeaseLostError(f"run {run_id} has all its parts already")


def _read_holder(output: Store, run_id: str) -> Holder:
    """The holder of the output, which must be this run."""
    holder = _parse(read_if_there(output, LEASE_FILE))
    if holder is None or holder.run_id != run_id:
        raise LeaseLostError(
            f"run {run_id} no longer holds {output.uri}; run the same command again"
        )
    return holder


def _parse(content: bytes | None) -> Holder | None:
    """The holder; None if there is none or the file is damaged."""
    if content is None:
        return None
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


@cache
def _machine() -> str:
    """This machine's boot id and process namespace; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _process_started(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[18])


def _hidden(pid: int) -> bool:
    """Whether this is another user's process, which /proc may be mounted to hide."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False
